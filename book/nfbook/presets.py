"""Presets and the grid: which runs each notebook needs, at which size.  No torch here.

A preset is a file ``notebooks/params/<name>.yaml``; its keys are the parameters of every notebook.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from nfbook.recorded import recorded_dir
from nfcore import runs
from nfcore.settings import (
    Experiment,
    SettingsError,
    check_keys,
    check_mapping,
    check_type,
    choice,
    project_root,
    read_yaml,
)


PRESETS = ("smoke", "quick", "gpu", "paper")
SOURCES = ("local", "recorded")
FAMILIES = {"gpt2": "GPT-2", "pythia": "Pythia"}
BUDGETS = ("main", "table", "slopes", "instability", "context")

# The paper's configurations, in the order of its tables.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "SM+LN+G": dict(norm="layernorm", activation="gelu"),
    "SM+LN+R": dict(norm="layernorm", activation="relu"),
    "SM+G": dict(norm="none", activation="gelu"),
    "SM+R": dict(norm="none", activation="relu"),
    "SM+L(0.1)": dict(norm="none", activation="leaky_relu", negative_slope=0.1),
    "SM+LN": dict(norm="layernorm", activation="identity"),
    "SM": dict(norm="none", activation="identity"),
}
PAPER_TOKENS = 2.11e9  # of a published run: 600,000 files, one epoch
MAIN = ("SM+LN+G", "SM+LN+R", "SM+G", "SM+R")


@dataclass(frozen=True)
class Preset:
    """Sizes, data and budgets of all experiments.

    ``models``: model settings per family. ``steps``: updates of the runs each budget names; None is one epoch.
    ``source``: ``local`` takes this machine's runs and trains what is missing, ``recorded`` takes committed records.
    """

    preset: str
    source: str = "local"
    seeds: list[int] = field(default_factory=lambda: [0])
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("preset", self.preset, PRESETS)
        choice("source", self.source, SOURCES)
        if not self.seeds:
            raise SettingsError(f"seeds: {self.seeds!r} must be a list of whole numbers")
        check_keys(self.models, FAMILIES, "models")
        for family, settings in self.models.items():
            check_mapping(settings, f"models.{family}")
        check_keys(self.steps, BUDGETS, "steps")
        for name in BUDGETS:
            if name not in self.steps:
                raise SettingsError(f"steps: no budget for {name!r}; needed: {', '.join(BUDGETS)}")
            check_type(f"steps.{name}", self.steps[name], int | None)
        if "steps" in self.training:
            raise SettingsError("training: 'steps' has no effect on the grid; give the budgets in steps")
        for family, model in self.models.items():
            fixed = sorted({"norm", "activation", "negative_slope", "slope_sharing"} & set(model))
            if fixed:
                raise SettingsError(f"models.{family}: {', '.join(fixed)} are set by the grid, which compares them")
        self.grid()  # builds, and so checks, every run

    @classmethod
    def load(cls, name: str, **changes: Any) -> Preset:
        """The preset ``name`` with parameters replaced; a mapping replaces only the keys it holds."""
        choice("preset", name, PRESETS)
        values = read_yaml(params_file(name))
        hints = get_type_hints(cls)
        check_keys({**values, **changes}, [f.name for f in fields(cls)], "parameters")
        for key, value in changes.items():
            check_type(key, value, hints[key])
            values[key] = merge(values.get(key, {}), value) if isinstance(value, Mapping) else value
        for key, value in values.items():
            check_type(key, value, hints[key])
        return cls(**values)

    def experiment(
        self,
        family: str,
        configuration: str,
        budget: str,
        seed: int,
        model: Any = None,
        data: Any = None,
        training: Any = None,
    ) -> Experiment:
        """The run of one configuration with extra settings on top of the preset's."""
        experiment = Experiment.from_dict(
            {
                "model": {**self.models.get(family, {}), **CONFIGURATIONS[configuration], **(model or {})},
                "data": {**self.data, **(data or {})},
                "training": {**self.training, "steps": self.steps[budget], **(training or {})},
                "seed": seed,
            }
        )
        name = f"{FAMILIES[family]} {experiment.model.configuration} T={experiment.data.context} seed {seed}"
        return experiment.replace(name=name)

    def grid(self) -> dict[str, list[Experiment]]:
        """The runs of each experiment. Runs with equal settings are one run, whichever experiments show them."""
        grids: dict[str, dict[str, Experiment]] = {name: {} for name in EXPERIMENTS}
        for seed in self.seeds:
            for name, runs_of in EXPERIMENTS.items():
                for run in runs_of(self):
                    experiment = self.experiment(seed=seed, **run)
                    grids[name].setdefault(experiment.id, experiment)
        return {name: list(grid.values()) for name, grid in grids.items()}

    def experiments(self) -> list[Experiment]:
        """All runs of the grid, each once, the main ones first."""
        return list({e.id: e for runs_of in self.grid().values() for e in runs_of}.values())

    def runs(self, name: str | None = None) -> runs.Runs:
        """The finished runs of experiment ``name`` (None: of the whole grid), each once.

        Where ``source`` is local, missing ones are trained first, and it is said how many were made with another
        measurement version than the present one.
        """
        wanted = self.experiments() if name is None else self.grid()[name]
        if self.source == "local":
            for experiment in wanted:
                _finish(experiment)
            found = runs.load_runs().select(e.id for e in wanted)
            changed = int((found.runs["provenance.measurement"] != runs.MEASUREMENT_VERSION).sum())
            if changed:
                note = "were made with another measurement version than the present (fresh=true retrains)"
                print(f"{changed} of {len(wanted)} runs {note}", file=sys.stderr)
            settings = found.runs.filter(regex=r"^data\.").astype(str)
            tokens = settings.assign(tokens=found.runs["provenance.data_hash"])
            if len(tokens.drop_duplicates()) > len(settings.drop_duplicates()):
                print("some runs with the same data settings were made from other tokens", file=sys.stderr)
            return found
        directory = recorded_dir(self.preset)
        if not directory.is_dir():
            raise SettingsError(f"source: nothing is recorded for preset {self.preset!r}; use source=local")
        recorded = runs.load_runs(directory)
        missing = [e.name for e in wanted if e.id not in set(recorded.runs["run"])]
        if missing:
            raise SettingsError(f"source: not recorded under data/recorded/{self.preset}: {'; '.join(missing)}")
        return recorded.select(e.id for e in wanted)


def _finish(experiment: Experiment) -> None:
    """Train the run unless it is finished; the files of a finished one are checked against its record."""
    directory = runs.runs_dir() / experiment.id
    record = runs.read_record(directory)
    if record:
        runs.verify(directory, record)
    else:
        train_on_all(experiment)


def train_on_all(experiment: Experiment) -> None:
    """Train on all GPUs of this machine, or the most of them that divide the batch."""
    import torch
    from accelerate import notebook_launcher

    from nfcore.training import train

    batch = experiment.training.batch_size
    processes = max((n for n in range(1, torch.cuda.device_count() + 1) if batch % n == 0), default=1)
    if processes == 1:
        train(experiment)
    else:
        notebook_launcher(train, (experiment,), num_processes=processes)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, mappings within mappings likewise."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def _main(preset: Preset) -> Iterable[dict[str, Any]]:
    return [dict(family="gpt2", configuration=c, budget="main") for c in MAIN]


def _table(preset: Preset) -> Iterable[dict[str, Any]]:
    """GPT-2's main runs have the main budget; all others the table's."""
    for family in FAMILIES:
        for c in CONFIGURATIONS:
            budget = "main" if family == "gpt2" and c in MAIN else "table"
            yield dict(family=family, configuration=c, budget=budget)


def _slopes(preset: Preset) -> Iterable[dict[str, Any]]:
    """Per layer and shared: from 0.01 with the paper's weight decay on slopes, and from 0.25 with none."""
    for sharing in ("per_layer", "shared"):
        for slope, training in ((0.01, {}), (0.25, {"slope_weight_decay": 0.0})):
            model = dict(activation="learnable_leaky_relu", negative_slope=slope, slope_sharing=sharing)
            yield dict(family="gpt2", configuration="SM+R", budget="slopes", model=model, training=training)


def _instability(preset: Preset) -> Iterable[dict[str, Any]]:
    """What the paper reports NaNs for, at the learning rate of the preset and at ten times that."""
    rate = preset.training.get("learning_rate", 1e-3)
    for c in ("SM+R", "SM+G", "SM+L(0.1)", "SM"):
        for factor in (1, 10):
            yield dict(family="gpt2", configuration=c, budget="instability", training=dict(learning_rate=factor * rate))
    for precision in ("bfloat16", "float16") if preset.preset in ("gpu", "paper") else ("bfloat16",):
        low, settings = dict(residual_dtype=precision), dict(precision=precision)
        yield dict(family="gpt2", configuration="SM+G", budget="instability", model=low, training=settings)


def _context(preset: Preset) -> Iterable[dict[str, Any]]:
    """Pythia at the preset's context and at twice that, with as many tokens a batch."""
    context, batch = preset.data.get("context", 128), preset.training.get("batch_size", 32)
    longer = dict(data=dict(context=2 * context), training=dict(batch_size=batch // 2))
    micro = preset.training.get("micro_batch_size")
    if micro:
        longer["training"]["micro_batch_size"] = micro // 2
    for c in MAIN:
        yield dict(family="pythia", configuration=c, budget="table")
        yield dict(family="pythia", configuration=c, budget="context", **longer)


EXPERIMENTS = {
    "main": _main,
    "table": _table,
    "context": _context,
    "slopes": _slopes,
    "instability": _instability,
}
# The experiments that a notebook shows; one that is not named here may show all of them.
SHOWN = {"entropy": ("main",), "perplexity": ("table", "main", "context"), "slopes": ("slopes", "instability")}


def params_file(name: str) -> Path:
    return project_root() / "notebooks" / "params" / f"{name}.yaml"
