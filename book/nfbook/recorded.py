"""Recorded sets, ``data/recorded/<name>``: records and tables of finished runs, without the models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nfcore import runs
from nfcore.settings import SettingsError, project_root
from nfcore.store import file_sha256, verify, write_atomically


def recorded_dir(preset: str) -> Path:
    return project_root() / "data" / "recorded" / preset


def together(parts: Iterable[runs.Runs]) -> runs.Runs:
    """Several sets of runs as one; of a run in several the first set's."""
    import pandas as pd

    parts, seen = list(parts), set[str]()
    fresh = []
    for part in parts:
        ids = [run for run in part.runs.get("run", []) if run not in seen]
        seen |= set(ids)
        if ids:
            fresh.append(part.select(ids))
    if not fresh:
        return runs.Runs(*(pd.DataFrame({"run": []}) for _ in range(1 + len(runs.TABLES))))
    return runs.Runs(*(pd.concat([getattr(r, t) for r in fresh], ignore_index=True) for t in ("runs", *runs.TABLES)))


def export(preset: str, ids: Iterable[str], keep: Iterable[str] = ()) -> Path:
    """Write the small tidy copy of finished runs to ``data/recorded/<preset>/``: records and tables, no models.

    ``keep``: runs recorded there that stay; others go.
    """
    import pandas as pd

    ids, target = sorted(set(ids)), recorded_dir(preset)
    found = []
    for run in ids:
        record = runs.read_record(runs.runs_dir() / run)
        if record is None:
            raise SettingsError(f"{run}: not a finished run of this machine; train it first")
        verify(runs.runs_dir() / run, record)
        found.append((runs.runs_dir() / run, record))
    records, tables = [record for _, record in found], {name: runs.stack(found, name) for name in runs.TABLES}
    if kept := (set(keep) - set(ids)) & {r["id"] for r in runs.read_records(target)}:
        before = runs.load_runs(target)
        old = [r for r in runs.read_records(target) if r["id"] in kept]
        records += old
        for name in runs.TABLES:
            table = getattr(before, name)
            tables[name] = pd.concat([tables[name], table[table["run"].isin(kept)]], ignore_index=True)
    target.mkdir(parents=True, exist_ok=True)
    records.sort(key=lambda record: record["id"])
    write_atomically(target / "records.json", json.dumps(records, indent=1))
    for name, table in tables.items():
        numbers = table.select_dtypes(
            "float"
        ).columns  # whose bytes are stored by place: without loss, in half the room
        how: dict[str, Any] = {"use_dictionary": [c for c in table if c not in numbers]}
        how |= {"column_encoding": dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"), "compression": "zstd"}
        table.sort_values("run", kind="stable").to_parquet(target / f"{name}.parquet", index=False, **how)
    files = [target / "records.json", *(target / f"{name}.parquet" for name in runs.TABLES)]
    write_atomically(target / "checksums.json", json.dumps({f.name: file_sha256(f) for f in files}, indent=1))
    return target
