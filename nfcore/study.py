"""The study: cells of runs over seeds in stages, from ``notebooks/params/study.yaml``, with their records.

A cell is a configuration with changes to it; its runs differ in the seed alone. A run whose record is committed under
``data/recorded/study`` counts as done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nfcore import runs
from nfcore.presets import CONFIGURATIONS, FAMILIES, SOURCES, merge, params_file
from nfcore.settings import (
    Experiment,
    SettingsError,
    check_keys,
    check_mapping,
    check_type,
    choice,
    read_yaml,
)


NAME = "study"
NOTEBOOKS = ("claims", "confounds", "mechanism")
RATE_SEED = 100  # of the learning-rate grid, and of nothing else


@dataclass(frozen=True)
class Cell:
    """One line of the design. ``model``, ``data`` and ``training`` are laid over the base's settings."""

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

    cells: dict[str, Cell]
    source: str = "recorded"

    @classmethod
    def load(cls, source: str = "recorded") -> Study:
        """The shipped design. Raises SettingsError for a file that does not hold one."""
        choice("source", source, SOURCES)
        design = check_keys(read_yaml(params_file(NAME)), ("base", "stages"), NAME)
        base = check_keys(design["base"], ("models", "data", "training", "seeds"), "base")
        check_keys(base["models"], FAMILIES, "base.models")
        cells: dict[str, Cell] = {}
        for stage, lines in check_mapping(design["stages"], "stages").items():
            for name, line in check_mapping(lines, f"stages.{stage}").items():
                if name in cells:
                    raise SettingsError(f"stages.{stage}: cell {name!r} is there twice")
                cells[name] = _cell(stage, name, check_mapping(line or {}, name), base)
        return cls(cells, source)

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

    @staticmethod
    def recorded_ids() -> list[str]:
        directory = runs.recorded_dir(NAME)
        return list(runs.load_runs(directory).runs["run"]) if directory.is_dir() else []

    def runs(self) -> runs.Runs:
        """All runs of the study that ``source`` has, in the order of the design."""
        directory = runs.recorded_dir(NAME)
        found = [runs.load_runs(directory)] if directory.is_dir() else []
        if self.source == "local" and runs.runs_dir().is_dir():
            found.append(runs.load_runs())
        ids = [e.id for e in self.experiments()]
        both = runs.together(found)
        there = set(both.runs["run"])
        return both.select(run for run in ids if run in there)

    def record(self) -> Path:
        """Copy this machine's finished runs of the study to ``data/recorded/study``, beside what is there."""
        return runs.export(NAME, [e.id for e in self.experiments() if _finished(e)], keep=True)


def _finished(experiment: Experiment) -> bool:
    return runs.read_record(runs.runs_dir() / experiment.id) is not None


def _cell(stage: str, name: str, line: dict[str, Any], base: dict[str, Any]) -> Cell:
    check_keys(line, ("configuration", "family", "seeds", "model", "data", "training"), name)
    configuration, family = line.get("configuration", name), line.get("family", "gpt2")
    choice(f"{name}.configuration", configuration, CONFIGURATIONS)
    choice(f"{name}.family", family, base["models"])
    seeds = line.get("seeds", base["seeds"])
    check_type(f"{name}.seeds", seeds, list)
    changes = {key: check_mapping(line.get(key, {}), f"{name}.{key}") for key in ("model", "data", "training")}
    whole = {
        "model": {**base["models"][family], **CONFIGURATIONS[configuration], **changes["model"]},
        "data": merge(base["data"], changes["data"]),
        "training": merge(base["training"], changes["training"]),
    }
    experiments = [Experiment.from_dict({**whole, "seed": s, "name": f"{name}, seed {s}"}, name) for s in seeds]
    return Cell(stage, name, configuration, family, tuple(seeds), tuple(experiments))


def own_best_rates(shown: runs.Runs, study: Study) -> dict[str, float]:
    """The rule of the design: per main configuration the rate of the grid on ``RATE_SEED`` with the lowest final loss.

    Configurations of which a run of the grid is missing are left out.
    """
    losses = shown.runs.set_index("run")["eval_loss"].astype(float)
    grid: dict[str, dict[float, float]] = {}
    for cell in study.cells.values():
        if cell.seeds == (RATE_SEED,):
            (experiment,) = cell.experiments
            rates = grid.setdefault(cell.configuration, {})
            rates[experiment.training.learning_rate] = losses.get(experiment.id, float("inf"))
    complete = {c: pd.Series(rates) for c, rates in grid.items() if all(r != float("inf") for r in rates.values())}
    return {c: float(rates.idxmin()) for c, rates in complete.items()}
