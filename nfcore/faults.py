"""What goes wrong while training: signals that end it, memory or disk that runs out.  No torch here."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfcore.settings import SettingsError


DIVERGED, OUT_OF_MEMORY = 3, 4  # exit codes of `nfcore train`
RESUME = "the same command goes on from the last checkpoint"


class Stopped(KeyboardInterrupt):
    """A signal ended the work. ``code`` is the exit code, 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int, what_now: str = f"interrupted; {RESUME}") -> None:
        super().__init__(what_now)
        self.code = 128 + number


class OutOfMemory(RuntimeError):
    """A run did not fit; the message names the step, what the run is estimated to take, and what would take less."""


def stop(number: int, frame: object) -> None:
    raise Stopped(number)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, for the work to stop at a good moment; a second one ends it at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            stop(number, frame)
        received.append(number)

    main = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def disk_watched(directory: Path, needed: float) -> Iterator[None]:
    """Turn the many errors of libraries on a full disk into one OSError that names ``directory``, on whose disk
    ``needed`` bytes are to be written."""
    try:
        yield
    except (OutOfMemory, SettingsError):
        raise
    except Exception as error:
        full = error.errno == errno.ENOSPC if isinstance(error, OSError) else shutil.disk_usage(directory).free < needed
        if not full:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
