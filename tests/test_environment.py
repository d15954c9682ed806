"""One list of pins: the lock is complete, minimal and exact, and pip, conda and the running Python all follow it."""

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import nfcore
from tools import install


ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRIES = (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines()
PINS = [line.split() for line in ENTRIES if line[0] != "#"]
HASHES = {words[0]: [word for word in words if word.startswith("--hash=")] for words in PINS}
LOCK = [Requirement(" ".join(word for word in words if not word.startswith("--hash="))) for words in PINS]
MACHINES = [
    dict(python_version=f"{major}.{minor}", python_full_version=f"{major}.{minor}.{micro}")
    | dict(sys_platform=system.lower(), platform_system=system, platform_machine=machine)
    for major, minor in install.PYTHONS
    for micro in (0, 99)
    for system, machine in install.PLATFORMS
]
HERE = {**default_environment(), "extra": ""}
# Required by some builds of torch only; see the head of the lock.
CUDA = re.compile(r"cuda-|nvidia-|triton|pytorch-triton")
OTHER_TORCH = importlib.metadata.version("torch").split("+")[0] != next(
    str(pin.specifier)[2:] for pin in LOCK if pin.name == "torch"
)


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


def test_every_line_is_an_exact_version_with_hashes() -> None:
    assert LOCK
    for pin in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is no exact version"
        assert (pin.extras, pin.url) == (set(), None), pin
    for name, hashes in HASHES.items():
        assert hashes, name
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", value) for value in hashes), name


def test_torch_alone_is_installed_without_its_hashes() -> None:
    """Nor are the others: what the regular expression takes out of the lock is one whole entry."""
    rest, torch = install.without_torch((ROOT / "requirements.lock").read_text())
    assert torch in HASHES
    assert torch not in rest
    assert {line.split()[0] for line in rest.splitlines() if line[0] not in "# "} == {*HASHES} - {torch}
    assert rest.count("--hash=") == sum(map(len, HASHES.values())) - len(HASHES[torch])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
def test_lock_is_complete_on_every_supported_machine(machine: dict[str, str]) -> None:
    environment = {**HERE, **machine}
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


def test_this_environment_has_the_locked_versions_this_nfcore_and_a_supported_python() -> None:
    locked = pins(HERE)
    if OTHER_TORCH:
        assert install.wrong_torch(importlib.metadata.version("torch")) is None
        del locked["torch"]
    # A build's own label ("2.13.0+cpu") is not part of the version that is locked.
    found = {name: Version(Version(importlib.metadata.version(name)).public) for name in locked}
    assert found == locked
    assert Path(nfcore.__file__).parent == ROOT / "nfcore"
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [(3, minor) for minor in range(30) if f"3.{minor}" in supported] == install.PYTHONS
    assert sys.version_info[:2] in install.PYTHONS


REFUSED = [
    *(
        (install.wrong_python, (version,), f"Python {version[0]}.{version[1]},")
        for version in ((2, 7), (3, 10), (3, 14))
    ),
    (install.wrong_platform, ("Darwin", "x86_64", "15.1"), "Darwin x86_64"),
    (install.wrong_platform, ("Darwin", "arm64", "13.6.1"), "Darwin arm64"),
    (install.wrong_platform, ("Windows", "AMD64", ""), "Windows AMD64"),
    (install.wrong_platform, ("Linux", "ppc64le", "2.36"), "Linux ppc64le"),
    (install.wrong_platform, ("Linux", "x86_64", ""), "Linux x86_64"),  # musl
    (install.wrong_platform, ("Linux", "aarch64", "2.17"), "Linux aarch64"),
    (install.wrong_torch, (None,), "found none"),
    (install.wrong_torch, ("2.10.1",), "found 2.10.1"),
    (install.wrong_torch, ("1.13.0+cu117",), "found 1.13.0+cu117"),
]


@pytest.mark.parametrize(("rule", "given", "words"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line(rule: Any, given: tuple[Any, ...], words: str) -> None:
    reason = rule(*given)
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1", "2.13.0+cu130", "3.0"])
def test_recent_torch_and_platforms_that_have_it_are_taken(version: str) -> None:
    assert install.wrong_torch(version) is None
    for platform in ("Linux x86_64 2.36", "Linux aarch64 2.28", "Darwin arm64 14.0", "Darwin arm64 26"):
        assert install.wrong_platform(*platform.split()) is None
