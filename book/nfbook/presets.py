"""Presets and the grid: which runs each notebook needs, at which size.  No torch here.

A preset is a file ``notebooks/params/<name>.yaml``; its keys are the parameters of every notebook. The runs are in
``grids.yaml`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from nfbook.recorded import recorded_dir
from nfcore import runs
from nfcore.settings import Experiment, Section, SettingsError, check_keys, choice, project_root, read_yaml
from nfcore.store import verify


Name = Literal["smoke", "quick", "gpu", "paper"]
Source = Literal["local", "recorded"]
Family = Literal["gpt2", "pythia"]
PRESETS, SOURCES = get_args(Name), get_args(Source)
FAMILIES = {"gpt2": "GPT-2", "pythia": "Pythia"}
PAPER_TOKENS = 2.11e9  # of a published run: 600,000 files, one epoch

CONFIGURATIONS, EXPERIMENTS, SHOWN = read_yaml(Path(__file__).with_name("grids.yaml")).values()
MAIN = tuple(run["configuration"] for run in EXPERIMENTS["main"])


class Preset(Section):
    """Sizes, data and budgets of all experiments."""

    preset: Name
    """Its name."""
    source: Source = "local"
    """``local`` takes this machine's runs and trains what is missing, ``recorded`` takes committed records."""
    seeds: Annotated[list[int], Field(min_length=1)]
    """Of every run."""
    models: dict[Family, dict[str, Any]]
    """Model settings per family."""
    data: dict[str, Any]
    """Settings of the data."""
    training: dict[str, Any]
    """Settings of the training but for its length."""
    steps: dict[str, int | None]
    """Updates of the runs each budget names, which is an experiment; null is one epoch."""

    def model_post_init(self, context: Any) -> None:
        check_keys(self.steps, EXPERIMENTS, "steps")
        for name in EXPERIMENTS:
            if name not in self.steps:
                raise SettingsError(f"steps: no budget for {name!r}; needed: {', '.join(EXPERIMENTS)}")
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
        return cls(**merge(read_yaml(params_file(name)), changes))

    def experiment(
        self,
        family: Family,
        configuration: str,
        budget: str,
        seed: int,
        model: Mapping[str, Any] = MappingProxyType({}),
        training: Mapping[str, Any] = MappingProxyType({}),
        times: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> Experiment:
        """The run of one configuration with extra settings on top of the preset's; ``times`` are factors on them."""
        made = Experiment.from_dict(
            {
                "model": {**self.models.get(family, {}), **CONFIGURATIONS[configuration], **model},
                "data": self.data,
                "training": {**self.training, "steps": self.steps[budget], **training},
                "seed": seed,
            }
        )
        for section, factors in times.items():
            old = getattr(made, section)
            new = {field: type(value)(value * by) for field, by in factors.items() if (value := getattr(old, field))}
            made = made.replace(**{section: old.replace(**new)})
        what = f"{FAMILIES[family]} {made.model.configuration} T={made.data.context}"
        return made.replace(name=f"{budget}: {what} seed {seed}")

    def grid(self) -> dict[str, list[Experiment]]:
        """The runs of each experiment."""
        grids: dict[str, dict[str, Experiment]] = {name: {} for name in EXPERIMENTS}
        for seed in self.seeds:
            for name, grid in grids.items():
                for line in EXPERIMENTS[name]:
                    run = {"family": "gpt2", "budget": name, **line}
                    if self.preset in run.pop("only", PRESETS):
                        experiment = self.experiment(seed=seed, **run)
                        grid.setdefault(experiment.id, experiment)
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
        verify(directory, record)
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


def params_file(name: str) -> Path:
    return project_root() / "notebooks" / "params" / f"{name}.yaml"
