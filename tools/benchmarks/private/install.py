"""Make ``_build/private``, an environment with SPU of its own, or say in one line why this machine cannot have it.

Called by ``make private`` with the first Python that it finds. Standard library only.
"""

import platform
import subprocess
import sys
import venv
from pathlib import Path


HERE = Path(__file__).resolve().parent
VENV = HERE.parents[2] / "_build" / "private"
PYTHONS = ((3, 10), (3, 11))
INSTEAD = "the book shows data/recorded/private instead"


def refusal(version, system, machine):
    """Why SPU has no build for this Python (a tuple) and platform, or None."""
    if tuple(version[:2]) not in PYTHONS:
        found = ".".join(map(str, version[:2]))
        return f"SPU needs Python 3.10 or 3.11, found {found}; PRIVATE_PYTHON=/path/to/python3.11 names one; {INSTEAD}"
    if (system, machine) != ("Linux", "x86_64"):
        return f"SPU needs Linux x86_64, found {system} {machine}; {INSTEAD}"
    return None


def main():
    if reason := refusal(sys.version_info, platform.system(), platform.machine()):
        sys.exit(f"make private: {reason}")
    print(f"Installing SPU into _build/private, Python {platform.python_version()}: a minute or two, 1 GB", flush=True)
    venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--requirement", str(HERE / "requirements.txt")]
    if code := subprocess.run(command).returncode:
        sys.exit(f"make private: pip failed with exit code {code}, its message is above; {INSTEAD}")
    (VENV / ".installed").touch()


if __name__ == "__main__":
    main()
