"""Records of runs: what a finished run leaves on disk, and all of them as tidy frames.  No torch here.

A run lives in ``runs/<id>/``. Its ``record.json`` is written last and names every other file with its SHA-256: a run
without one is unfinished. Small copies of whole grids, without the models, are kept in ``data/recorded/<preset>/``.

Frames, each with the column ``run`` (the id):

- ``runs``: one row a run: settings as ``model.norm`` ..., ``configuration``, ``status``, final metrics, provenance.
- ``metrics``: ``step``, ``name`` (``train_loss``, ``eval_loss``, ``eval_loss_median``, ``eval_loss_p95``,
  ``learning_rate``, ``grad_norm``), ``value``; losses in nats per token.
- ``layers``: ``step``, ``layer``, ``residual_rms``, ``preactivation_std``, ``slope`` on the probe batch.
- ``heads``: ``step``, ``layer``, ``head``, ``entropy`` (nats), ``nonfinite_rows``, ``largest_logit``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nfcore.data import file_sha256
from nfcore.settings import ModelSettings, SettingsError, digest, project_root


FORMAT = 1
TABLES = ("metrics", "layers", "heads")
_SOURCES = ("settings.py", "model.py", "entropy.py", "data.py", "training.py")


def runs_dir() -> Path:
    """Where this machine's runs live: ``NFCORE_RUNS``, else ``runs`` in the project."""
    return Path(os.environ.get("NFCORE_RUNS") or project_root() / "runs")


def recorded_dir(preset: str) -> Path:
    return project_root() / "data" / "recorded" / preset


def source_hash() -> str:
    """Hash of the sources that decide what a run measures: model, data, training."""
    return digest({name: (Path(__file__).parent / name).read_text() for name in _SOURCES})


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_record(directory: Path, record: dict[str, Any], files: Iterable[Path]) -> None:
    """Complete a run: checksum ``files`` and put ``record.json`` in place."""
    sums = {str(f.relative_to(directory)): file_sha256(f) for f in sorted(files)}
    write_atomically(directory / "record.json", json.dumps({"format": FORMAT, **record, "files": sums}, indent=1))


def read_record(directory: Path) -> dict[str, Any] | None:
    """The record of a run, or None if it is not finished. Raises SettingsError for one that cannot be read."""
    path = directory / "record.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); delete the run's directory to train it again") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise SettingsError(f"{path}: record format {found!r}, this version reads {FORMAT}")
    return record


def verify(directory: Path, record: dict[str, Any], remedy: str = "fresh=true trains the run again") -> None:
    """Raise SettingsError if a file of the run is missing or does not match its recorded hash."""
    for name, expected in record["files"].items():
        path = directory / name
        if not path.exists():
            raise SettingsError(f"{path}: missing, though the record lists it; {remedy}")
        if file_sha256(path) != expected:
            raise SettingsError(f"{path}: does not match its recorded hash; {remedy}")


def row(record: dict[str, Any]) -> dict[str, Any]:
    """One row of the ``runs`` frame."""
    try:
        configuration = ModelSettings(**record["settings"]["model"]).configuration
    except (SettingsError, TypeError):  # of an extension of nfcore that is not here: shown under its own name
        configuration = record["name"]
    flat = {"run": record["id"], "configuration": configuration, "seed": record["settings"]["seed"]}
    for section in ("model", "data", "training"):
        flat |= {f"{section}.{k}": v for k, v in record["settings"][section].items()}
    flat["status"] = record["status"]
    flat |= {f"diverged.{k}": (record["diverged"] or {}).get(k) for k in ("step", "layer", "where")}
    return flat | record["final"] | {f"provenance.{k}": v for k, v in record["provenance"].items()}


@dataclass(frozen=True)
class Runs:
    """Tidy frames of several runs; see the module's docstring for the columns."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    heads: pd.DataFrame

    def select(self, ids: Iterable[str]) -> Runs:
        """The runs with these ids, in this order."""
        ids = list(dict.fromkeys(ids))
        rows = self.runs.set_index("run", drop=False).loc[ids].reset_index(drop=True)
        tables = (getattr(self, name) for name in TABLES)
        return Runs(rows, *(t[t["run"].isin(ids)].reset_index(drop=True) for t in tables))

    def where(self, **conditions: Any) -> Runs:
        """The runs whose columns have these values; ``model__norm="none"`` stands for the column ``model.norm``."""
        keep = pd.Series(True, index=self.runs.index)
        for name, value in conditions.items():
            keep &= self.runs[name.replace("__", ".")] == value
        return self.select(self.runs.loc[keep, "run"])


def load_runs(source: str | Path | None = None) -> Runs:
    """All finished runs of this machine (None), or of a directory: of runs, or one that :func:`export` wrote.

    Raises:
        SettingsError: no such directory, or an unreadable record.
    """
    directory = runs_dir() if source is None else Path(source)
    if not directory.is_dir():
        raise SettingsError(f"{directory}: no such directory of runs")
    if (directory / "checksums.json").exists():
        try:
            sums = json.loads((directory / "checksums.json").read_text())
        except ValueError as error:
            raise SettingsError(f"{directory / 'checksums.json'}: cannot be read ({error})") from None
        verify(directory, {"files": sums}, "`python -m nfcore runs record` writes it again")
        records = json.loads((directory / "records.json").read_text())
        tables = {name: pd.read_parquet(directory / f"{name}.parquet") for name in TABLES}
    else:
        found = [(path.parent, read_record(path.parent)) for path in sorted(directory.glob("*/record.json"))]
        records = [record for _, record in found if record]
        tables = {name: _stack(((r["id"], d) for d, r in found if r), name) for name in TABLES}
    return Runs(pd.DataFrame([row(record) for record in records]), **tables)


def _stack(found: Iterable[tuple[str, Path]], name: str) -> pd.DataFrame:
    frames = [pd.read_parquet(directory / f"{name}.parquet").assign(run=run) for run, directory in found]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": []})


def export(preset: str, ids: Iterable[str]) -> Path:
    """Write the small tidy copy of finished runs to ``data/recorded/<preset>/``: records and tables, no models."""
    ids = sorted(set(ids))
    records = []
    for run in ids:
        record = read_record(runs_dir() / run)
        if record is None:
            raise SettingsError(f"{run}: not a finished run of this machine; train it first")
        verify(runs_dir() / run, record)
        records.append(record)
    target = recorded_dir(preset)
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "records.json", json.dumps(records, indent=1))
    for name in TABLES:
        _stack(((r, runs_dir() / r) for r in ids), name).to_parquet(target / f"{name}.parquet", index=False)
    files = [target / "records.json", *(target / f"{name}.parquet" for name in TABLES)]
    write_atomically(target / "checksums.json", json.dumps({f.name: file_sha256(f) for f in files}, indent=1))
    return target
