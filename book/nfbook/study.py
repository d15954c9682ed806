"""A study: cells of runs over seeds in stages, from ``notebooks/params/<name>.yaml``, with their records.

A cell is a configuration with changes to it; its runs differ in the seed alone. A run whose record is committed under
``data/recorded/<name>`` counts as done. There are two: ``study``, of 4,800 updates, on which the verdicts stand, and
``transient``, of 600 updates, in which LayerNorm does not help yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from nfbook.presets import CONFIGURATIONS, FAMILIES, SOURCES, merge, params_file
from nfbook.recorded import export, recorded_dir, together
from nfcore import runs
from nfcore.settings import Experiment, SettingsError, check_keys, check_mapping, choice, read_yaml


if TYPE_CHECKING:
    import pandas as pd

STUDIES = ("study", "transient")
GPU_DESIGNS = ("gpu-runs", "gpu-tiny")  # grids of `python -m tools.gpu`, with no verdicts on them
SPARE = 100  # seeds from here on choose learning rates and serve for nothing else


@dataclass(frozen=True)
class Cell:
    """One line of the design."""

    stage: str
    name: str
    configuration: str
    family: str
    seeds: tuple[int, ...]
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class Study:
    """``cells`` by name, in the order of the file. ``source``: ``recorded`` are the committed runs, ``local`` those and
    this machine's."""

    name: str
    cells: dict[str, Cell]
    source: str = "recorded"

    @classmethod
    def load(cls, name: str = "study", source: str = "recorded") -> Study:
        """The shipped design. Raises SettingsError for a file that does not hold one."""
        choice("study", name, (*STUDIES, *GPU_DESIGNS))
        choice("source", source, SOURCES)
        design = check_keys(read_yaml(params_file(name)), ("base", "stages"), name)
        base = check_keys(design["base"], ("models", "data", "training", "seeds"), "base")
        check_keys(base["models"], FAMILIES, "base.models")
        cells: dict[str, Cell] = {}
        for stage, lines in check_mapping(design["stages"], "stages").items():
            for cell, line in check_mapping(lines, f"stages.{stage}").items():
                if cell in cells:
                    raise SettingsError(f"stages.{stage}: cell {cell!r} is there twice")
                cells[cell] = _cell(stage, cell, check_mapping(line or {}, cell), base)
        return cls(name, cells, source)

    @classmethod
    def with_stage(cls, where: str) -> tuple[Study, str]:
        """The study and the stage that ``STAGE`` (of ``study``) or ``NAME/STAGE`` stands for."""
        name, slash, stage = where.rpartition("/")
        study = cls.load(name if slash else "study")
        choice("stage", stage, study.stages)
        return study, stage

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(cell.stage for cell in self.cells.values()))

    def experiments(self, stage: str | None = None) -> list[Experiment]:
        """The runs of a stage (None: of all), each once, seed by seed, so that a stage cut short has all cells."""
        if stage is not None:
            choice("stage", stage, self.stages)
        chosen = [cell for cell in self.cells.values() if stage in (None, cell.stage)]
        numbered = [(n, e) for cell in chosen for n, e in enumerate(cell.experiments)]
        return list({e.id: e for _, e in sorted(numbered, key=lambda pair: pair[0])}.values())

    def missing(self, stage: str | None = None) -> list[Experiment]:
        """Runs that are neither recorded nor finished on this machine."""
        known = set(self.recorded_ids())
        return [e for e in self.experiments(stage) if e.id not in known and not _finished(e)]

    def recorded_ids(self) -> list[str]:
        return [record["id"] for record in runs.read_records(recorded_dir(self.name))]

    def runs(self) -> runs.Runs:
        """All runs of the design that ``source`` has, in the order of the design."""
        directory = recorded_dir(self.name)
        found = [runs.load_runs(directory)] if directory.is_dir() else []
        if self.source == "local" and runs.runs_dir().is_dir():
            found.insert(0, runs.load_runs())  # of a run in both, this machine's
        ids = [e.id for e in self.experiments()]
        both = together(found)
        if both.runs.empty:
            raise SettingsError(
                f"source: no runs of {self.name} are {self.source}; `python -m nfbook study` makes them"
            )
        there = set(both.runs["run"])
        return both.select(run for run in ids if run in there)

    def state(self) -> pd.DataFrame:
        """How each stage stands: runs planned, recorded, finished and begun on this machine, and the core-hours that
        the rest takes at the median speed of recorded runs of the same width (missing where there are none)."""
        import pandas as pd

        records = runs.read_records(recorded_dir(self.name))
        known = {record["id"] for record in records}
        speeds: dict[int, list[float]] = {}
        for record in records:
            speed = record["provenance"]["tokens_per_second"]
            speeds.setdefault(record["settings"]["model"]["hidden_size"], []).append(speed)
        rows = []
        for stage in self.stages:
            planned, missing = self.experiments(stage), self.missing(stage)
            hours = [_tokens(e) / median(speeds.get(e.model.hidden_size, [math.nan])) / 3600 for e in missing]
            row = {"stage": stage, "runs": len(planned), "recorded": sum(e.id in known for e in planned)}
            row["finished here"] = sum(e.id not in known and _finished(e) for e in planned)
            row["begun"] = sum((runs.runs_dir() / e.id / "checkpoints").exists() for e in missing)
            rows.append({**row, "hours left": round(sum(hours), 1)})
        return pd.DataFrame(rows)

    def record(self) -> Path:
        """Copy this machine's finished runs of the study to ``data/recorded/<name>``. Runs of the design that are
        recorded there stay; others go."""
        designed = self.experiments()
        return export(self.name, [e.id for e in designed if _finished(e)], keep=[e.id for e in designed])


def _tokens(experiment: Experiment) -> int:
    """The training tokens of a run whose length is given in updates."""
    return (experiment.training.steps or 0) * experiment.training.batch_size * experiment.data.context


def _finished(experiment: Experiment) -> bool:
    return runs.read_record(runs.runs_dir() / experiment.id) is not None


def _cell(stage: str, name: str, line: dict[str, Any], base: dict[str, Any]) -> Cell:
    check_keys(line, ("configuration", "family", "seeds", "model", "data", "training"), name)
    configuration, family = line.get("configuration", name), line.get("family", "gpt2")
    choice(f"{name}.configuration", configuration, CONFIGURATIONS)
    choice(f"{name}.family", family, base["models"])
    seeds = line.get("seeds", base["seeds"])
    if not isinstance(seeds, list):
        raise SettingsError(f"{name}.seeds: {seeds!r:.200} must be a list of whole numbers")
    changes = {key: check_mapping(line.get(key, {}), f"{name}.{key}") for key in ("model", "data", "training")}
    whole = {
        "model": {**base["models"][family], **CONFIGURATIONS[configuration], **changes["model"]},
        "data": merge(base["data"], changes["data"]),
        "training": merge(base["training"], changes["training"]),
    }
    experiments = [Experiment.from_dict({**whole, "seed": s, "name": f"{name}, seed {s}"}) for s in seeds]
    return Cell(stage, name, configuration, family, tuple(seeds), tuple(experiments))
