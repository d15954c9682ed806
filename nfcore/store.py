"""Files and texts: their checksums, who may write them, and what a user is told when one cannot be read."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nfcore.settings import SettingsError


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


@contextmanager
def made_whole(directory: Path) -> Iterator[Path | None]:
    """Give a hidden place in which ``directory`` can be made, and move it there at the end; None if it exists.

    While another process makes it, this one waits. What a killed process has made stays in the place for the next one.
    After a SettingsError, which would come again, it is deleted.
    """
    if directory.exists():
        yield None
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = directory.with_name(f".{directory.name}.unfinished")
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{directory}: waits for another process that makes it", file=sys.stderr)
        lock.acquire()
    try:
        if directory.exists():
            yield None
        else:
            place.mkdir(exist_ok=True)
            yield place
            os.replace(place, directory)
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever has opened it will find the directory
    except SettingsError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        lock.release()


@contextmanager
def refusing(what: str, remedy: str, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
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
