"""The study: cells of runs over seeds in stages, from ``notebooks/params/study.yaml``, with their records.

A cell is a configuration with changes to it; its runs differ in the seed alone. A run whose record is committed under
``data/recorded/study`` counts as done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
NOTEBOOKS = ("claims", "confounds", "mechanism", "explorer")
RATE_SEED = 100  # of the learning-rate grid, and of nothing else


@dataclass(frozen=True)
class Cell:
    """One line of the design. One with ``own_best`` has the learning rate of :func:`own_best_rates`, and no runs until
    that is known."""

    stage: str
    name: str
    configuration: str
    family: str
    seeds: tuple[int, ...]
    experiments: tuple[Experiment, ...]
    own_best: bool = False


@dataclass(frozen=True)
class Study:
    """``cells`` by name, in the order of the file. ``source``: ``recorded`` are the committed runs, ``local`` those and
    this machine's."""

    cells: dict[str, Cell]
    source: str = "recorded"

    @classmethod
    def load(cls, source: str = "recorded", design_file: str = NAME) -> Study:
        """The shipped design, or another one from ``notebooks/params``. Raises SettingsError for a file that holds
        none."""
        choice("source", source, SOURCES)
        design = check_keys(read_yaml(params_file(design_file)), ("base", "stages"), design_file)
        base = check_keys(design["base"], ("models", "data", "training", "seeds"), "base")
        check_keys(base["models"], FAMILIES, "base.models")
        cells: dict[str, Cell] = {}
        for stage, lines in check_mapping(design["stages"], "stages").items():
            for name, line in check_mapping(lines, f"stages.{stage}").items():
                if name in cells:
                    raise SettingsError(f"stages.{stage}: cell {name!r} is there twice")
                cells[name] = _cell(stage, name, check_mapping(line or {}, name), base)
        rates = own_best_rates(cells.values())
        for name, cell in cells.items():
            if cell.own_best:
                rate = rates.get(cell.configuration)
                line = {**design["stages"][cell.stage][name], "training": {"learning_rate": rate}}
                cells[name] = _cell(cell.stage, name, line, base) if rate else replace(cell, experiments=())
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
        return [record["id"] for record in runs.read_records(runs.recorded_dir(NAME))]

    def runs(self) -> runs.Runs:
        """All runs of the study that ``source`` has, in the order of the design."""
        directory = runs.recorded_dir(NAME)
        found = [runs.load_runs(directory)] if directory.is_dir() else []
        if self.source == "local" and runs.runs_dir().is_dir():
            found.insert(0, runs.load_runs())  # of a run in both, this machine's
        ids = [e.id for e in self.experiments()]
        both = runs.together(found)
        if both.runs.empty:
            raise SettingsError(f"source: no runs of the study are {self.source}; `python -m nfcore study` makes them")
        there = set(both.runs["run"])
        return both.select(run for run in ids if run in there)

    def record(self) -> Path:
        """Copy this machine's finished runs of the study to ``data/recorded/study``, beside what is there."""
        return runs.export(NAME, [e.id for e in self.experiments() if _finished(e)], keep=True)


def _finished(experiment: Experiment) -> bool:
    return runs.read_record(runs.runs_dir() / experiment.id) is not None


def _cell(stage: str, name: str, line: dict[str, Any], base: dict[str, Any]) -> Cell:
    check_keys(line, ("configuration", "family", "seeds", "model", "data", "training", "own_best"), name)
    configuration, family = line.get("configuration", name), line.get("family", "gpt2")
    choice(f"{name}.configuration", configuration, CONFIGURATIONS)
    choice(f"{name}.family", family, base["models"])
    seeds = line.get("seeds", base["seeds"])
    check_type(f"{name}.seeds", seeds, list)
    check_type(f"{name}.own_best", line.get("own_best", False), bool)
    changes = {key: check_mapping(line.get(key, {}), f"{name}.{key}") for key in ("model", "data", "training")}
    whole = {
        "model": {**base["models"][family], **CONFIGURATIONS[configuration], **changes["model"]},
        "data": merge(base["data"], changes["data"]),
        "training": merge(base["training"], changes["training"]),
    }
    experiments = [Experiment.from_dict({**whole, "seed": s, "name": f"{name}, seed {s}"}, name) for s in seeds]
    return Cell(stage, name, configuration, family, tuple(seeds), tuple(experiments), line.get("own_best", False))


def own_best_rates(cells: Iterable[Cell]) -> dict[str, float]:
    """The rule of the design: per configuration the rate of its grid, the cells on ``RATE_SEED`` alone, with the lowest
    final loss; a run that stopped being finite has lost. Without a configuration of which a run is missing."""
    recorded = {record["id"]: record for record in runs.read_records(runs.recorded_dir(NAME))}
    losses: dict[str, dict[float, float]] = {}
    missing = set()
    for cell in cells:
        if cell.seeds == (RATE_SEED,):
            (experiment,) = cell.experiments
            record = recorded.get(experiment.id) or runs.read_record(runs.runs_dir() / experiment.id)
            if record is None:
                missing.add(cell.configuration)
                continue
            final = record["final"]["eval_loss"]
            grid = losses.setdefault(cell.configuration, {})
            grid[experiment.training.learning_rate] = math.inf if final is None else final
    return {c: min(grid, key=grid.__getitem__) for c, grid in losses.items() if c not in missing}
