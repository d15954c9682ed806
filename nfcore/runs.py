"""Records of runs: what a finished run leaves on disk, and all of them as tidy frames.  No torch here.

A run lives in ``runs/<id>/``. Its ``record.json`` is written last and names every other file with its SHA-256: a run
without one is unfinished. Small copies of whole grids, without the models, are kept in ``data/recorded/<preset>/``.

Frames, each with the column ``run`` (the id):

- ``runs``: one row a run: settings as ``model.norm`` ..., ``configuration``, ``status``, final metrics, provenance.
- ``metrics``: ``step``, ``name`` (``train_loss``, ``eval_loss``, ``eval_loss_median``, ``eval_loss_p95``,
  ``learning_rate``, ``grad_norm``), ``value``; losses in nats per token.
- ``layers``: ``step``, ``layer``, ``residual_rms``, ``preactivation_std`` (in the precision of the run: bfloat16 keeps
  three digits), ``nonlinear_share`` and
  ``nonlinear_share_centred`` of the activation (:mod:`nfcore.linearity`), ``slope`` and ``scale`` where they are
  learnable; where there is an evaluation too, what :func:`nfcore.units.unit_statistics` finds; on the probe batch.
- ``heads``: ``step``, ``layer``, ``head``, ``entropy`` (nats), ``entropy_over_ln_i``, ``nonfinite_rows``,
  ``largest_logit`` (absolute), ``max_logit``, ``log_sum_exp``, ``sink_rate``
  (:func:`nfcore.meter.attention_statistics`); at the last probe ``entropy_random``, on uniformly random tokens.
- ``positions``: at the last probe ``step``, ``layer``, query ``position`` (from 1), ``entropy`` (nats, mean over batch
  and heads), ``entropy_random``.

Runs made before a column or a table was added lack it: their values are missing, not zero. A new column leaves the
other numbers as they are, so it does not raise ``MEASUREMENT_VERSION``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfcore.settings import DataSettings, ModelSettings, SettingsError, TrainingSettings, project_root
from nfcore.store import file_sha256, is_sealed, refusing, sealed, verify, write_atomically


if TYPE_CHECKING:
    import pandas as pd

FORMAT = 3
# Raised when the same settings would give other numbers, and only then; tests/test_measurement.py trains a run and
# compares. 1: a run ended where the float32 norm of its gradient overflowed. 2: only where a value is not finite.
MEASUREMENT_VERSION = 2
TABLES = ("metrics", "layers", "heads", "positions")
AGAIN = "delete the run's directory to train it again"


def runs_dir() -> Path:
    """Where this machine's runs live: ``NFCORE_RUNS``, else ``runs`` in the project."""
    return Path(os.environ.get("NFCORE_RUNS") or project_root() / "runs")


def write_record(directory: Path, record: dict[str, Any], files: Iterable[Path]) -> None:
    """Complete a run: checksum ``files`` and the record itself, and put ``record.json`` in place."""
    sums = {str(f.relative_to(directory)): file_sha256(f) for f in sorted(files)}
    whole = sealed({"format": FORMAT, **record, "files": sums})
    write_atomically(directory / "record.json", json.dumps(whole, indent=1))


def write_table(directory: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write one table of a run."""
    import pandas as pd

    path = directory / f"{name}.parquet"
    pd.DataFrame(rows).to_parquet(path, index=False)
    return path


def read_record(directory: Path) -> dict[str, Any] | None:
    """The record of a run, or None if it is not finished. Raises SettingsError for one that cannot be read."""
    path = directory / "record.json"
    if not path.exists():
        return None
    with refusing(f"{path}: cannot be read", AGAIN):
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise SettingsError(f"{path}: record format {record['format']!r}, this version reads {FORMAT}; {AGAIN}")
        if not is_sealed(record):
            raise SettingsError(f"{path}: differs from its own SHA-256; {AGAIN}")
    return record


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of a recorded set, such as ``data/recorded/study``; none where there is no such directory."""
    path = directory / "records.json"
    return json.loads(path.read_text()) if path.exists() else []


def row(record: dict[str, Any]) -> dict[str, Any]:
    """One row of the ``runs`` frame."""
    try:
        configuration = ModelSettings(**record["settings"]["model"]).configuration
    except SettingsError:  # of an extension of nfcore that is not here: shown under its own name
        configuration = record["name"]
    flat = {"run": record["id"], "configuration": configuration, "seed": record["settings"]["seed"]}
    for section, kind in (("model", ModelSettings), ("data", DataSettings), ("training", TrainingSettings)):
        default = {name: field.default for name, field in kind.model_fields.items()}  # of fields added later
        flat |= {f"{section}.{k}": v for k, v in {**default, **record["settings"][section]}.items()}
    flat["status"] = record["status"]
    flat |= {f"diverged.{k}": (record["diverged"] or {}).get(k) for k in ("step", "layer", "where")}
    flat |= {f"exploded.{k}": (record["exploded"] or {}).get(k) for k in ("step", "layer")}
    return flat | record["final"] | {f"provenance.{k}": v for k, v in record["provenance"].items()}


@dataclass(frozen=True)
class Runs:
    """Tidy frames of several runs; see the module's docstring for the columns."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    heads: pd.DataFrame
    positions: pd.DataFrame

    def select(self, ids: Iterable[str]) -> Runs:
        """The runs with these ids, in this order."""
        ids = list(dict.fromkeys(ids))
        rows = self.runs.set_index("run", drop=False).loc[ids].reset_index(drop=True)
        tables = (getattr(self, name) for name in TABLES)
        return Runs(rows, *(t[t["run"].isin(ids)].reset_index(drop=True) for t in tables))

    def where(self, **conditions: Any) -> Runs:
        """The runs whose columns have these values; ``model__norm="none"`` stands for the column ``model.norm``."""
        keep = self.runs["run"].notna()
        for name, value in conditions.items():
            keep &= self.runs[name.replace("__", ".")] == value
        return self.select(self.runs.loc[keep, "run"])


def load_runs(source: str | Path | None = None) -> Runs:
    """All finished runs of this machine (None), or of a directory: of runs, or a recorded set.

    Raises:
        SettingsError: no such directory, or an unreadable record.
    """
    import pandas as pd

    directory = runs_dir() if source is None else Path(source)
    if not directory.is_dir():
        raise SettingsError(f"{directory}: no such directory of runs")
    checksums = directory / "checksums.json"
    if checksums.exists():
        remedy = "`python -m nfbook record` writes it again"
        with refusing(f"{checksums}: cannot be read", remedy):
            sums = {"files": json.loads(checksums.read_text())}
        verify(directory, sums, remedy)
        found, records = [(directory, sums)], read_records(directory)
    else:
        read = ((path.parent, read_record(path.parent)) for path in sorted(directory.glob("*/record.json")))
        found = [(path, record) for path, record in read if record]
        records = [record for _, record in found]
    with refusing(f"{directory}: cannot be read", AGAIN):
        return Runs(pd.DataFrame([*map(row, records)]), **{name: stack(found, name) for name in TABLES})


def stack(found: Iterable[tuple[Path, dict[str, Any]]], name: str) -> pd.DataFrame:
    """One table of several records, each with its directory; a run's own table gets the column ``run``."""
    import pandas as pd

    frames = []
    for directory, record in found:
        path = directory / f"{name}.parquet"
        if path.name not in record["files"]:
            continue
        with refusing(f"{path}: cannot be read", AGAIN):
            frame = pd.read_parquet(path)
            if name == "positions" and len(frame):  # the largest table: in half the bytes
                frame = frame.astype(dict.fromkeys(("entropy", "entropy_random"), "float32"))
        frames.append(frame.assign(run=record["id"]) if "id" in record else frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": []})
