"""Write requirements.lock from pyproject.toml: one exact version of every package, on every supported platform; and
requirements.hashes, the SHA-256 of every file that may be installed for it, of all but torch, whose builds differ.

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
LOCK, HASHES = ROOT / "requirements.lock", ROOT / "requirements.hashes"
LABEL = ("python_full_version", "sys_platform", "platform_machine")  # what tells two supported machines apart
HEADER = """\
# Every package that nfcore, its book and its tests need, in exact versions. `make lock` writes this file.
# Markers choose for Python 3.11 to 3.13 on Linux (x86_64, aarch64) and macOS (arm64), where there is a current torch.
# The CUDA libraries of torch's GPU build are not named: pip takes those that this torch asks for, and where a CPU build
# of the same version is provided there are none.
"""
HASHES_HEADER = """\
# The SHA-256 of every file of a package in requirements.lock, for pip to check. `make lock` writes this file. Not of
# torch: the build for CPUs, the one for GPUs and a machine's own are different files of one version.
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


def pinned(compiled):
    """What uv compiled, as pairs: a requirement, and the hashes of its files."""
    pairs = []
    for line in compiled.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split(" --hash=")
        pairs.append((requirement.strip(), [value.strip() for value in hashes]))
    return pairs


def main(arguments):
    """Resolve for all platforms, keep what the supported ones install, write the lock and the hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", "--universal", "--quiet"]
    options = ["--python-version=3.11", "--no-annotate", "--no-header", "--generate-hashes"]
    done = subprocess.run(
        [*command, *options, f"--output-file={LOCK.name}", *arguments], cwd=ROOT, check=True, capture_output=True
    )
    print(done.stderr.decode(), end="", file=sys.stderr)
    found = [(line, hashes) for text, hashes in pinned(LOCK.read_text()) if (line := supported(text))]
    LOCK.write_text(HEADER + "".join(f"{line}\n" for line, _ in found))
    checked = [(line, hashes) for line, hashes in found if hashes and Requirement(line).name != "torch"]
    lines = [" ".join([line, *(f"--hash={value}" for value in hashes)]) for line, hashes in checked]
    HASHES.write_text(HASHES_HEADER + "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
