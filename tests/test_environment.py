"""One list of pins: the lock is complete, minimal and exact, and pip, conda and the running Python all follow it."""

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import nfcore
from tools import install, lock


ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
HERE = {**default_environment(), "extra": ""}
# Required by some builds of torch only; see the head of the lock.
CUDA = re.compile(r"cuda-|nvidia-|triton|pytorch-triton")
OTHER_TORCH = importlib.metadata.version("torch").split("+")[0] != next(
    str(pin.specifier)[2:] for pin in LOCK if pin.name == "torch"
)


HASHES = [line.split(" --hash=") for line in (ROOT / "requirements.hashes").read_text().splitlines() if line[0] != "#"]


def applies(requirement: Requirement, environment: dict[str, str], extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


def pins(environment: dict[str, str]) -> dict[str, Version]:
    """What the lock installs in a marker environment; more than one version of a package is an error."""
    chosen = [(canonicalize_name(pin.name), pin.specifier) for pin in LOCK if applies(pin, environment)]
    assert len({name for name, _ in chosen}) == len(chosen)
    return {name: Version(str(specifier)[2:]) for name, specifier in chosen}


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


@cache
def metadata(name: str) -> tuple[Requirement, ...]:
    """What an installed package asks for; nothing for one that only other machines install."""
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(Requirement(line) for line in requirements if not (name == "torch" and CUDA.match(line)))


def closure(environment: dict[str, str]) -> Iterator[tuple[str, Requirement]]:
    """Each requirement, direct or not, that applies in a marker environment, with the package that asks for it."""
    waiting = [("nfcore", requirement) for requirement in direct() if applies(requirement, environment)]
    seen = set()
    while waiting:
        asker, requirement = waiting.pop()
        yield asker, requirement
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(name, below) for below in metadata(name) if applies(below, environment, extra)]


def test_every_line_is_an_exact_version() -> None:
    assert LOCK
    for pin in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is no exact version"
        assert not pin.extras, pin
        assert not pin.url, pin


def test_every_package_but_torch_has_hashes() -> None:
    assert [line for line, *_ in HASHES] == [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith(("#", "torch=="))
    ]
    for line, *hashes in HASHES:
        assert hashes, line
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), line


@pytest.mark.parametrize("environment", lock.environments(), ids=lambda e: "-".join(map(e.get, lock.LABEL)))
def test_lock_is_complete_on_every_supported_machine(environment: dict[str, str]) -> None:
    locked = pins(environment)
    for asker, requirement in closure(environment):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{asker} needs {requirement}, which is not locked"
        if not (OTHER_TORCH and asker == "torch"):
            assert requirement.specifier.contains(locked[name], prereleases=True), f"{asker} needs {requirement}"


def test_lock_has_nothing_that_is_not_needed() -> None:
    needed = {canonicalize_name(requirement.name) for _, requirement in closure(HERE)}
    surplus = set(pins(HERE)) - needed
    if OTHER_TORCH:  # may ask for less than the locked one
        surplus -= {"filelock", "fsspec", "jinja2", "mpmath", "networkx", "setuptools", "sympy", "typing-extensions"}
    assert not surplus


def test_this_environment_has_the_locked_versions() -> None:
    locked = pins(HERE)
    if OTHER_TORCH:
        assert install.wrong_torch(importlib.metadata.version("torch")) is None
        del locked["torch"]
    # A build's own label ("2.13.0+cpu") is not part of the version that is locked.
    found = {name: Version(Version(importlib.metadata.version(name)).public) for name in locked}
    assert found == locked


def test_torch_is_locked_for_the_supported_platforms_alone() -> None:
    assert all("torch" in pins(environment) for environment in lock.environments())
    for system, machine in [("Darwin", "x86_64"), ("Windows", "AMD64"), ("Linux", "ppc64le")]:
        assert "torch" not in pins({**HERE, "platform_system": system, "platform_machine": machine})


def test_conda_environment_takes_its_versions_from_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert pip == "pip"
    assert from_pip == {"pip": ["-r requirements.lock", "-e ."]}
    name, version = python.split("=")
    assert name == "python"
    assert install.wrong_python(install.numbers(version)) is None


def test_supported_pythons_agree() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [(3, minor) for minor in range(30) if f"3.{minor}" in supported] == install.PYTHONS
    assert sys.version_info[:2] in install.PYTHONS


def test_installed_nfcore_is_this_one() -> None:
    assert Path(nfcore.__file__).parent == ROOT / "nfcore"


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 13), (3, 14, 0)])
def test_other_pythons_are_refused(version: tuple[int, ...]) -> None:
    reason = install.wrong_python(version)
    assert reason is not None
    assert f"Python {version[0]}.{version[1]}," in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("system", "machine", "release"),
    [
        ("Darwin", "x86_64", "15.1"),
        ("Darwin", "arm64", "13.6.1"),
        ("Windows", "AMD64", ""),
        ("Linux", "ppc64le", "2.36"),
        ("Linux", "x86_64", ""),  # musl
        ("Linux", "aarch64", "2.17"),
    ],
)
def test_platforms_without_a_current_torch_are_refused(system: str, machine: str, release: str) -> None:
    reason = install.wrong_platform(system, machine, release)
    assert reason is not None
    assert f"{system} {machine}" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("system", "machine", "release"),
    [("Linux", "x86_64", "2.36"), ("Linux", "aarch64", "2.28"), ("Darwin", "arm64", "14.0"), ("Darwin", "arm64", "26")],
)
def test_platforms_with_a_current_torch_are_taken(system: str, machine: str, release: str) -> None:
    assert install.wrong_platform(system, machine, release) is None


@pytest.mark.parametrize("version", [None, "2.10.1", "1.13.0+cu117"])
def test_missing_or_old_system_torch_is_refused(version: str | None) -> None:
    reason = install.wrong_torch(version)
    assert reason is not None
    assert f"found {version or 'none'}" in reason


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1", "2.13.0+cu130", "3.0"])
def test_recent_system_torch_is_taken(version: str) -> None:
    assert install.wrong_torch(version) is None


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("rich==15.0.0", "rich==15.0.0"),
        ("pexpect==4.9.0 ; sys_platform != 'win32'", "pexpect==4.9.0"),
        ("colorama==0.4.6 ; sys_platform == 'win32'", None),
        ("appnope==1.0.0 ; sys_platform == 'darwin'", 'appnope==1.0.0 ; sys_platform == "darwin"'),
    ],
)
def test_lock_keeps_what_a_supported_machine_installs(line: str, kept: str | None) -> None:
    assert lock.supported(line) == kept


def test_compiled_requirements_are_read_with_their_hashes() -> None:
    compiled = "rich==15.0.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nlocal==1 ; python_version < '3.12'\n"
    assert lock.pinned(compiled) == [
        ("rich==15.0.0", ["sha256:aa", "sha256:bb"]),
        ("local==1 ; python_version < '3.12'", []),
    ]
