"""Make .venv with the versions of requirements.lock and nfcore itself; refuse what cannot work before making anything.

Called by the Makefile with the Python that .venv is to have. Standard library only. With ``--system-torch`` torch is
not installed: .venv sees the packages of this Python and takes the torch among them. With ``--here`` everything is
installed for this Python itself, as containers and conda need it.
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


def refusal(system_torch):
    """The reason why this machine cannot have the environment, or None."""
    if reason := wrong_python(sys.version_info):
        return reason
    if importlib.util.find_spec("ensurepip") is None:
        return f"{sys.executable} cannot make environments: its ensurepip is missing (Debian: the python3-venv package)"
    if system_torch:
        return wrong_torch(next((found.version for found in importlib.metadata.distributions(name="torch")), None))
    system = platform.system()
    release = platform.mac_ver()[0] if system == "Darwin" else platform.libc_ver()[1]
    return wrong_platform(system, platform.machine(), release)


def environment(system_torch, pins):
    """The Python of .venv, which is made anew if it was made from other pins, so that nothing of them stays."""
    made_from = VENV / "requirements.txt"
    if not made_from.exists() or made_from.read_text() != pins:
        venv.create(VENV, clear=True, symlinks=True, with_pip=True, system_site_packages=system_torch)
        made_from.write_text(pins)
        if system_torch and sys.prefix != sys.base_prefix:
            # Made from another environment, .venv sees the packages of the Python below both, not those of its parent.
            inside = {"base": str(VENV), "platbase": str(VENV)}
            Path(sysconfig.get_path("purelib", vars=inside), "parent.pth").write_text(sysconfig.get_path("purelib"))
    return str(VENV / "bin" / "python")


def without_torch(lock):
    """The lock without torch, and the pin of torch."""
    torch = re.search(r"^(torch==\S+).*\n(?: .*\n)*", lock, re.MULTILINE)
    return lock.replace(torch[0], ""), torch[1]


def install(system_torch, here):
    """Install the lock and nfcore itself."""
    lock = (ROOT / "requirements.lock").read_text()
    rest, torch = without_torch(lock)
    python = sys.executable if here else environment(system_torch, rest if system_torch else lock)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    checked = [*pip, "--no-deps", "--require-hashes", "--requirement", "/dev/stdin"]
    subprocess.run(checked, input=rest, text=True, check=True)
    if not system_torch:
        # Without its hash: the builds of one version for CPUs and for GPUs are different files. Those for GPUs ask for
        # CUDA libraries, which are not locked either, since no marker tells the builds apart.
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)


if __name__ == "__main__":
    system_torch, here = "--system-torch" in sys.argv[1:], "--here" in sys.argv[1:]
    if reason := refusal(system_torch):
        sys.exit(f"nfcore: {reason}")
    place = sys.prefix if here else ".venv"
    print(f"Installing the locked packages into {place}, Python {platform.python_version()}: some minutes", flush=True)
    try:
        install(system_torch, here)
    except subprocess.CalledProcessError as error:
        sys.exit(f"nfcore: pip failed with exit code {error.returncode}; its message is above")
