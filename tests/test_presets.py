"""The shipped parameter files and the grids they stand for; nothing is trained at their sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nfbook.presets import CONFIGURATIONS, EXPERIMENTS, MAIN, PRESETS, SHOWN, Preset, merge, params_file
from nfbook.recorded import export
from nfbook.study import GPU_DESIGNS, STUDIES
from nfcore import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import SHAPES, Experiment, SettingsError


SIZES = dict(main=4, table=14, context=8, slopes=4, instability=9)
STEPS = dict(main=8, table=6, context=6, slopes=6, instability=6)


def refusal(name: Any = "smoke", **changes: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Preset.load(name, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_parameter_file_is_a_preset_and_notebooks_show_experiments_that_there_are() -> None:
    assert {path.stem for path in params_file("smoke").parent.iterdir()} == {*PRESETS, *STUDIES, *GPU_DESIGNS}
    assert {*SHOWN} <= {script.stem for script in params_file("smoke").parent.parent.glob("*.py")}
    assert {name for names in SHOWN.values() for name in names} == {*EXPERIMENTS}


@pytest.mark.parametrize(("name", "count"), [("smoke", 29), ("quick", 31), ("gpu", 32), ("paper", 27)])
def test_grid(name: str, count: int) -> None:
    preset = Preset.load(name)
    assert (preset.preset, preset.source) == (name, "local")
    grid, everything = preset.grid(), preset.experiments()
    sizes = SIZES | ({"instability": 10} if name == "gpu" else {})  # in float16, too, which is what paper has already
    assert {key: len(runs) for key, runs in grid.items()} == sizes
    for key, runs in [*grid.items(), ("all", everything)]:
        assert len({e.id for e in runs}) == len(runs), f"{key} has one run twice"
    assert len(everything) == count, "experiments share runs"
    assert {e.id for e in everything} == {e.id for runs in grid.values() for e in runs}
    assert [e.model.configuration for e in everything[:4]] == [*MAIN]
    assert [e.id for e in grid["main"]] == [e.id for e in everything[:4]]
    assert len({e.name for runs in (grid["table"], grid["context"]) for e in runs}) == 18
    for experiment in everything:
        with torch.device("meta"):
            model = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model)))
        assert len(model.blocks) == experiment.model.num_hidden_layers
        assert Experiment.from_dict(experiment.to_dict()) == experiment


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_differ_in_nothing_else(name: str) -> None:
    """The comparison is fair: one data, one seed, and one training setting for all of a family's main runs."""
    first, *rest = Preset.load(name).grid()["table"][: len(CONFIGURATIONS)]
    for experiment in rest:
        assert (experiment.data, experiment.seed) == (first.data, first.seed)
        same = {k: v for k, v in vars(experiment.training).items() if k != "steps"}
        assert same == {k: v for k, v in vars(first.training).items() if k != "steps"}
        changed = {k for k, v in vars(experiment.model).items() if v != getattr(first.model, k)}
        assert changed <= {"norm", "activation", "negative_slope"}


def test_context_doubles_at_equal_tokens_a_batch() -> None:
    for name in PRESETS:
        runs = Preset.load(name).grid()["context"]
        for short, long in zip(runs[::2], runs[1::2], strict=True):
            assert short.model.configuration == long.model.configuration
            assert long.data.context == 2 * short.data.context
            for size in ("batch_size", "micro_batch_size"):
                assert 2 * getattr(long.training, size) == getattr(short.training, size)


def test_full_sizes_are_the_papers_and_the_quick_runs_long_enough() -> None:
    for experiment in (*Preset.load("gpu").grid()["table"], *Preset.load("paper").grid()["table"]):
        shape = SHAPES["gpt2-124m" if experiment.model.family == "gpt2" else "pythia-70m"]
        assert shape.items() <= vars(experiment.model).items()
        assert (experiment.data.corpus, experiment.data.vocab_size) == ("codeparrot", 50000)
        assert experiment.training.batch_size * experiment.data.context == 512 * 128
    for experiment in Preset.load("quick").grid()["main"]:
        assert (experiment.model.family, experiment.data.corpus) == ("gpt2", "python-source")
        assert (experiment.training.steps or 0) >= 1600
        assert experiment.training.batch_size * experiment.data.context == 4096
    paper = Preset.load("paper").grid()["table"][0]
    assert paper.training.steps is None
    assert (paper.model.embd_pdrop, paper.training.precision) == (0.1, "float16")


def test_mappings_replace_only_the_keys_they_hold_and_seeds_multiply_the_grid() -> None:
    preset = Preset.load("smoke", models={"gpt2": {"hidden_size": 16}}, steps={"main": 3}, training={"threads": 2})
    gpt2, *_ = preset.grid()["main"]
    assert (gpt2.model.hidden_size, gpt2.model.num_hidden_layers, gpt2.model.init) == (16, 2, "width")
    assert (gpt2.training.steps, gpt2.training.threads, gpt2.training.batch_size) == (3, 2, 8)
    assert preset.models["pythia"] == Preset.load("smoke").models["pythia"]
    assert preset.steps == {**STEPS, "main": 3}
    two = Preset.load("smoke", seeds=[3, 4]).experiments()
    assert len(two) == 2 * len(preset.experiments())
    assert {e.seed for e in two} == {3, 4}


def test_merge() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert merge(base, {"a": {"c": {"f": 4}}, "e": {"g": 5}}) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert merge(base, {"a": None}) == {"a": None, "e": 3}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(name="big"), ["preset: 'big'", "smoke, quick, gpu, paper"]),
        (dict(name=None), ["preset: None", "smoke, quick, gpu, paper"]),
        (dict(source="remote"), ["source: 'remote'", "'local' or 'recorded'"]),
        (dict(sorce="local"), ["preset: unknown setting 'sorce'", "source"]),
        (dict(seeds=3), ["seeds: 3", "list"]),
        (dict(seeds=[]), ["seeds: []"]),
        (dict(seeds=[True]), ["seeds.0: True", "integer"]),
        (dict(seeds=[-1]), ["seed: -1", "greater than or equal to 0"]),
        (dict(steps=100), ["steps: 100", "mapping"]),
        (dict(steps={"man": 5}), ["steps: unknown setting 'man'", "main, table, context"]),
        (dict(steps={"main": "5"}), ["steps.main: '5'", "int"]),
        (dict(steps={"main": 0}), ["training.steps: 0", "greater than 0"]),
        (dict(models={"llama": {}}), ["models.llama", "'gpt2' or 'pythia'"]),
        (dict(models={"gpt2": 3}), ["models.gpt2: 3", "mapping"]),
        (dict(models={"gpt2": {"shape": "gpt2-xl"}}), ["model.shape: 'gpt2-xl'", "gpt2-124m"]),
        (dict(data={"context": 4096}), ["data.context: 4096", "max_position_embeddings"]),
        (dict(data=["python-source"]), ["data", "mapping"]),
        (dict(training={"precison": "bfloat16"}), ["training: unknown setting 'precison'", "precision"]),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(**changes)
    assert all(part in message for part in parts), message


def test_missing_budget_is_refused(params_root: Path) -> None:
    file = params_root / "notebooks" / "params" / "smoke.yaml"
    values = yaml.safe_load(file.read_text())
    del values["steps"]["context"]
    file.write_text(yaml.safe_dump(values))
    assert "steps: no budget for 'context'" in refusal()
    file.unlink()
    assert "smoke.yaml: cannot be read" in refusal()


def test_local_runs_are_trained_where_missing(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dict(corpus=str(corpus), vocab_size=300, packing="packed", split_by="document", validation_fraction=0.2)
    preset = Preset.load("smoke", data=small, steps=dict.fromkeys(STEPS, 1))
    shown = preset.runs("main")
    assert shown.runs["run"].tolist() == [e.id for e in preset.grid()["main"]]
    assert shown.runs["configuration"].tolist() == [*MAIN]
    assert capsys.readouterr().err.count("]: 100% of") == 4
    monkeypatch.setattr("nfcore.training._run", lambda *args: pytest.fail("trained again"))
    assert preset.runs("main").runs.equals(shown.runs)
    assert capsys.readouterr().out == ""


def test_recorded_runs(smoke_grid: Path, params_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = Preset.load("smoke", source="recorded")
    with pytest.raises(SettingsError, match="source: nothing is recorded for preset 'smoke'; use source=local"):
        preset.runs("main")
    export("smoke", [e.id for e in preset.grid()["main"]])
    monkeypatch.setenv("NFCORE_RUNS", str(params_root / "none"))
    assert preset.runs("main").runs["run"].tolist() == [e.id for e in preset.grid()["main"]]
    with pytest.raises(SettingsError, match=r"not recorded under data/recorded/smoke: .*Pythia SM\+R T=64 seed 0") as e:
        preset.runs("context")
    assert "\n" not in str(e.value)
