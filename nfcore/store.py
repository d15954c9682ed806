"""Files and texts: their checksums, who may write them, and what a user is told when one cannot be read."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nfcore.settings import SettingsError, digest


def sha256(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is whole or as it was before."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with ``sha256``, that of all else in it."""
    return {**record, "sha256": digest(record, 64)}


def is_sealed(record: dict[str, Any]) -> bool:
    """Whether a record is as :func:`sealed` gave it."""
    return record == sealed({name: value for name, value in record.items() if name != "sha256"})


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file, which ends with the process. While another process holds it, this one says so and waits."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_once(directory: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` fill a hidden folder that then becomes ``directory``, unless another process has done so meanwhile.

    What a killed process has made stays for the next one. After a SettingsError, which would come again, it is deleted.
    """
    place, lock = (directory.with_name(f".{directory.name}.{end}") for end in ("unfinished", "lock"))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"{directory}: waits for another process that makes it"):
        if not directory.exists():
            place.mkdir(exist_ok=True)
            try:
                make(place)
            except SettingsError:
                shutil.rmtree(place)
                raise
            os.replace(place, directory)
        lock.unlink(missing_ok=True)  # whoever has opened it will find the directory


@contextmanager
def refusing(
    what: str, remedy: str, errors: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Raise these errors, by default whatever a library raises, as one line: what failed, why, and the remedy.

    Raises:
        SettingsError: in place of the error. One that was raised inside stays as it is.
    """
    try:
        yield
    except SettingsError:
        raise
    except errors as error:
        cause = error.__cause__ or error  # datasets wraps what its own message does not tell
        first = (str(cause).strip().splitlines() or [""])[0]
        raise SettingsError(f"{what} ({type(cause).__name__}: {first}); {remedy}") from error


def verify(directory: Path, record: dict[str, Any], remedy: str = "fresh=true trains the run again") -> None:
    """Raise SettingsError if a file of the run is missing or does not match its recorded hash."""
    with refusing(f"{directory}: cannot be read", remedy):
        for name, expected in record["files"].items():
            path = directory / name
            if not path.exists():
                raise SettingsError(f"{path}: missing, though the record lists it; {remedy}")
            if file_sha256(path) != expected:
                raise SettingsError(f"{path}: does not match its recorded hash; {remedy}")
