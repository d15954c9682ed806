"""Write requirements.lock from pyproject.toml: one exact version of every package, on every supported platform.

``make lock`` calls it. Versions already in the lock stay where they still fit; ``--upgrade`` or ``--upgrade-package
NAME``, handed on to uv, moves them.
"""

import subprocess
import sys
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

from tools.install import PLATFORMS, PYTHONS


ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
LABEL = ("python_full_version", "sys_platform", "platform_machine")  # what tells two supported machines apart
HEADER = """\
# Every package that nfcore, its book and its tests need, in exact versions. `make lock` writes this file.
# Markers choose for Python 3.11 to 3.13 on Linux (x86_64, aarch64) and macOS (arm64), where there is a current torch.
# The CUDA libraries of torch's GPU build are not named: pip takes those that this torch asks for, and where a CPU build
# of the same version is provided there are none.
"""


def environments():
    """The marker environments of all supported machines: first and late releases of each Python, on each platform."""
    names = {"Linux": "linux", "Darwin": "darwin"}
    return [
        {
            "python_version": f"{major}.{minor}",
            "python_full_version": f"{major}.{minor}.{micro}",
            "implementation_version": f"{major}.{minor}.{micro}",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": names[system],
            "platform_system": system,
            "platform_machine": machine,
            "platform_release": "",
            "platform_version": "",
            "extra": "",
        }
        for major, minor in PYTHONS
        for micro in (0, 99)
        for system, machine in PLATFORMS
    ]


def supported(line):
    """The line of the lock as it is to stand, or None if no supported machine would install it."""
    requirement = Requirement(line)
    if requirement.marker is None:
        verdicts = {True}
    else:
        verdicts = {requirement.marker.evaluate(environment) for environment in environments()}
    if True not in verdicts:
        return None
    pin = f"{requirement.name}{requirement.specifier}"
    if requirement.name == "torch":
        return f"{pin} ; {torch_marker()}"
    return pin if False not in verdicts else f"{pin} ; {requirement.marker}"


def torch_marker():
    """The platforms that have a torch wheel, as a marker."""
    marker = " or ".join(f"platform_system == '{s}' and platform_machine == '{m}'" for s, m in PLATFORMS)
    return str(Marker(marker)).replace('"', "'")


def main(arguments):
    """Resolve for all platforms, keep what the supported ones install, write the lock."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", "--universal", "--quiet"]
    options = ["--python-version=3.11", "--no-annotate", "--no-header", f"--output-file={LOCK.name}"]
    subprocess.run([*command, *options, *arguments], cwd=ROOT, check=True)
    lines = [line for line in map(supported, LOCK.read_text().splitlines()) if line]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
