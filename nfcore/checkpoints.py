"""Checkpoints of an unfinished run: sealed when whole, checked before use, the last two kept.  No torch here.

``manifest.json`` of a checkpoint names every file of it with its SHA-256, has its own, and is put in place last,
atomically. A directory without one was cut short and does not count; one that differs from it is passed over by name.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from nfcore.settings import SettingsError
from nfcore.store import file_sha256, is_sealed, refusing, sealed, verify, write_atomically


FORMAT = 4
MANIFEST = "manifest.json"
KEPT = 2
PASSED_OVER = "this checkpoint is passed over"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_first(directory: Path) -> list[Path]:
    """The checkpoints in a directory, sealed or not: by step, since a clock may jump."""
    found = (path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    return sorted(found, key=step_of, reverse=True)


def seal(checkpoint: Path, **facts: Any) -> None:
    """Checksum what is in ``checkpoint`` and declare it whole. ``facts`` are for whoever resumes from it."""
    files = {file.name: file_sha256(file) for file in sorted(checkpoint.iterdir()) if file.name != MANIFEST}
    write_atomically(checkpoint / MANIFEST, json.dumps(sealed({"format": FORMAT, **facts, "files": files}), indent=1))


def prune(newest: Path) -> None:
    """Delete all checkpoints but ``newest`` and the sealed one before it. Later ones are damaged, or the run would have
    gone on from them."""
    found = last_first(newest.parent)
    sealed = [path for path in found if step_of(path) <= step_of(newest) and (path / MANIFEST).exists()]
    for checkpoint in {*found} - {*sealed[:KEPT]}:
        discard(checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete, the manifest first, so that half a checkpoint never passes for a whole one."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def newest(directory: Path) -> tuple[Path | None, dict[str, Any]]:
    """The last checkpoint that is as it was sealed, and its manifest; damaged ones are named on stderr.

    Raises:
        SettingsError: a checkpoint of another format.
    """
    for path in (checkpoint / MANIFEST for checkpoint in last_first(directory)):
        if not path.exists():
            continue
        try:
            with refusing(f"{path}: cannot be read", PASSED_OVER):
                manifest = json.loads(path.read_text())
                made = manifest["format"]
            if not is_sealed(manifest) and (made == FORMAT or "sha256" in manifest):
                raise SettingsError(f"{path}: differs from its own SHA-256; {PASSED_OVER}")
            if made == FORMAT:
                verify(path.parent, manifest, PASSED_OVER)
                return path.parent, manifest
        except SettingsError as error:
            print(f"nfcore: {error}", file=sys.stderr)
        else:
            must = f"this version reads {FORMAT}; fresh=true starts anew"
            raise SettingsError(f"{path.parent}: checkpoint format {made!r}, {must}")
    return None, {}
