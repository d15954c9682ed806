"""Make .venv with the versions of requirements.lock and nfcore itself; refuse what cannot work before making anything.

Called by the Makefile with the Python that .venv is to have. Standard library only. With ``--system-torch`` torch is
not installed: .venv sees the packages of this Python and takes the torch among them.
"""

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


PYTHONS = [(3, 11), (3, 12), (3, 13)]
# Platforms that have a wheel of the locked torch, with the oldest C library or macOS that its wheels run on.
PLATFORMS = {("Linux", "x86_64"): (2, 28), ("Linux", "aarch64"): (2, 28), ("Darwin", "arm64"): (14,)}
OLDEST_SYSTEM_TORCH = (2, 11)

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


def numbers(version):
    """The leading numbers of a version: "2.11.0a0+git1" gives (2, 11, 0), "" gives ()."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version).group()))


def wrong_python(version):
    """What is wrong with a Python of this version (a tuple), or None."""
    if tuple(version[:2]) in PYTHONS:
        return None
    found = ".".join(str(part) for part in version[:2])
    return f"found Python {found}, needed is 3.11, 3.12 or 3.13; make PYTHON=/path/to/python3.12 names another"


def wrong_platform(system, machine, release):
    """What is wrong with a platform for the locked torch, or None; `release` is that of glibc or macOS, or ""."""
    oldest = PLATFORMS.get((system, machine))
    if oldest and numbers(release) >= oldest:
        return None
    library = "macOS" if system == "Darwin" else "glibc"
    return (
        f"found {system} {machine} with {library} {release or 'absent'}, which has no current torch; needed is "
        "Linux x86_64 or aarch64 with glibc 2.28, or macOS 14 on arm64; SYSTEM_TORCH=1 takes a torch installed already"
    )


def wrong_torch(version):
    """What is wrong with the machine's torch, None if nothing; `version` is None where there is no torch."""
    if version and numbers(version) >= OLDEST_SYSTEM_TORCH:
        return None
    return f"SYSTEM_TORCH=1 needs torch 2.11 or later in {sys.executable}, found {version or 'none'}"


def installed_torch():
    """The version of the torch that this Python has, or None."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def refusal(system_torch):
    """The reason why this machine cannot have the environment, or None."""
    if reason := wrong_python(sys.version_info):
        return reason
    if importlib.util.find_spec("ensurepip") is None:
        return f"{sys.executable} cannot make environments: its ensurepip is missing (Debian: the python3-venv package)"
    if system_torch:
        return wrong_torch(installed_torch())
    system = platform.system()
    release = platform.mac_ver()[0] if system == "Darwin" else platform.libc_ver()[1]
    return wrong_platform(system, platform.machine(), release)


def install(system_torch):
    """Make or update .venv; one made from other pins is made anew, so that nothing of them stays."""
    lines = (ROOT / "requirements.lock").read_text().splitlines(keepends=True)
    wanted = "".join(line for line in lines if not (system_torch and line.startswith("torch==")))
    pins = VENV / "requirements.txt"
    if not pins.exists() or pins.read_text() != wanted:
        venv.create(VENV, clear=True, symlinks=True, with_pip=True, system_site_packages=system_torch)
        pins.write_text(wanted)
        if system_torch and sys.prefix != sys.base_prefix:
            # Made from another environment, .venv sees the packages of the Python below both, not those of its parent.
            inside = {"base": str(VENV), "platbase": str(VENV)}
            Path(sysconfig.get_path("purelib", vars=inside), "parent.pth").write_text(sysconfig.get_path("purelib"))
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # First what can be checked: with hashes pip takes nothing without one. Then torch, and what this torch asks for.
    hashed = str(ROOT / "requirements.hashes")
    subprocess.run([*pip, "--no-deps", "--require-hashes", "--requirement", hashed], check=True)
    subprocess.run([*pip, "--requirement", str(pins)], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)


if __name__ == "__main__":
    system_torch = "--system-torch" in sys.argv[1:]
    if reason := refusal(system_torch):
        sys.exit(f"nfcore: {reason}")
    print(f"Installing the locked packages into .venv, Python {platform.python_version()}: some minutes", flush=True)
    try:
        install(system_torch)
    except subprocess.CalledProcessError as error:
        sys.exit(f"nfcore: pip failed with exit code {error.returncode}; its message is above")
