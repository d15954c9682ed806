"""The studies: their shipped designs, the rule for learning rates, and a small one trained, recorded and judged."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from nfbook.__main__ import main
from nfbook.presets import MAIN, Preset, params_file
from nfbook.recorded import recorded_dir
from nfbook.study import SPARE, STUDIES, Study
from nfcore import runs, train
from nfcore.settings import Experiment, SettingsError


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load()


@pytest.fixture(scope="module")
def transient() -> Study:
    return Study.load("transient")


@pytest.mark.parametrize(("name", "steps"), [("study", 4800), ("transient", 600)])
def test_every_run_has_the_least_tokens_and_every_cell_the_least_seeds(name: str, steps: int) -> None:
    for cell in Study.load(name).cells.values():
        spare = [seed >= SPARE for seed in cell.seeds]
        assert all(spare) or (not any(spare) and len(cell.seeds) >= (5 if cell.name in MAIN else 3)), cell.name
        for e in cell.experiments:
            short = all(spare) or cell.stage in ("quick", "causes")
            least = 60 if cell.stage == "skips" else 1200 if short else steps  # no test rests on the stage skips
            assert e.training.steps >= min(steps, least)
            assert e.training.batch_size * e.data.context >= 4096


def test_seeds_of_the_study_are_fresh_and_runs_go_seed_by_seed(study: Study, transient: Study) -> None:
    """No earlier run and no pilot had them. Those of the stage quick are the preset's."""
    seen = {seed for cell in transient.cells.values() for seed in cell.seeds} | {0, 1, 2}
    assert not seen & {seed for cell in study.cells.values() for seed in cell.seeds if cell.stage != "quick"}
    quick = Preset.load("quick", seeds=[0, 1, 2]).grid()["main"]
    assert {e.id for e in study.experiments("quick")} == {e.id for e in quick}
    assert study.cells["SM+G"].experiments[0].training.learning_rate == quick[0].training.learning_rate
    seeds = [e.seed for e in study.experiments("table")]
    assert seeds == sorted(seeds)
    every = [e.id for e in study.experiments()]
    assert len(every) == len(set(every))
    assert set(every) == {e.id for cell in study.cells.values() for e in cell.experiments}


def test_cells_differ_from_the_base_in_what_their_name_says(study: Study, transient: Study) -> None:
    def changed(study: Study, name: str) -> dict[str, Any]:
        cell = study.cells[name]
        base, own = (c.experiments[0].to_dict() for c in (study.cells[cell.configuration], cell))
        return {
            f"{section}.{key}": value
            for section in ("model", "data", "training")
            for key, value in own[section].items()
            if value != base[section].get(key)
        }

    scaled = {"model.activation": "scaled_gelu", "model.activation_scale": 16.0}
    assert changed(study, "SM+G s=16") == changed(transient, "SM+G s=16") == scaled
    assert changed(study, "SM+R 40 M tokens") == {"training.steps": 9600}
    assert changed(study, "SM+LN+G width 128").keys() == {"model.hidden_size", "model.intermediate_size"}
    assert changed(study, "SM+R rate 0.001") == {"training.steps": 1200, "training.learning_rate": 0.001}
    assert changed(transient, "SM+R final none") == {"model.final_norm": "none"}
    assert changed(transient, "SM+G rate x4") == {"training.learning_rate": 0.016}
    assert changed(transient, "SM+G new seeds") == {}


def test_decay_of_slopes_sums_to_the_papers(study: Study) -> None:
    """Over warm-up and linear decay the sum of rate x decay is 1.61, as in the published recipe."""
    e = study.cells["slope 0.25, paper's total decay"].experiments[0].training
    assert e.steps is not None
    assert e.slope_weight_decay is not None
    warmup = round(e.warmup_fraction * e.steps)
    rates = [(k + 1) / warmup if k < warmup else (e.steps - k) / (e.steps - warmup) for k in range(e.steps)]
    assert e.learning_rate * sum(rates) * e.slope_weight_decay == pytest.approx(1.61, abs=0.005)


def test_rates_are_those_of_the_rule(study: Study, judged: Any) -> None:
    """The lowest mean final loss over the main configurations and spare seeds, all runs trained; see the designs."""
    recorded = set(study.recorded_ids())
    if not {e.id for e in study.experiments("rates")} <= recorded:
        assert not any(e.id in recorded for e in study.experiments() if e.seed < SPARE), "rates come first"
        pytest.skip("the stage rates is not recorded yet")
    losses = judged("study")["loss"]
    means = {
        rate: np.mean([losses[f"{c} rate {rate}"].mean(skipna=False) for c in MAIN]) for rate in (0.001, 0.002, 0.004)
    }
    best = min((loss, rate) for rate, loss in means.items() if np.isfinite(loss))[1]
    assert {study.cells[c].experiments[0].training.learning_rate for c in MAIN} == {best}


def test_own_best_rates_of_the_transient(transient: Study, judged: Any) -> None:
    """Per configuration the lowest final loss on seed 100; a run that did not end has lost."""
    frame, grid = judged("transient"), (0.001, 0.002, 0.004, 0.008, 0.016)
    for configuration in MAIN:
        losses = pd.Series({rate: frame.loc[(f"{configuration} lr={rate}", 100), "loss"] for rate in grid}, dtype=float)
        rates = {e.training.learning_rate for e in transient.cells[f"{configuration} own best"].experiments}
        assert rates == {losses.idxmin()}


@pytest.mark.parametrize("name", STUDIES)
def test_recorded_runs_are_of_the_design_and_whole(name: str) -> None:
    directory = recorded_dir(name)
    planned = {e.id: e for e in Study.load(name).experiments()}
    for record in runs.read_records(directory):
        assert Experiment.from_dict(record["settings"]) == planned[record["id"]].replace(name=record["name"])
        assert record["provenance"]["commit"]
    loaded = runs.load_runs(directory)  # compares the files with their checksums
    assert not loaded.runs["run"].duplicated().any()
    assert all(file.stat().st_size < 4e6 for file in directory.iterdir())


def test_a_stage_belongs_to_a_study(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert Study.with_stage("table")[0].name == "study"
    other, stage = Study.with_stage("transient/core")
    assert (other.name, stage) == ("transient", "core")
    with pytest.raises(SettingsError, match="study: 'other' is not one of study, transient"):
        Study.with_stage("other/core")
    with pytest.raises(SettingsError, match="stage: 'cores' is not one of rates, table"):
        study.experiments("cores")
    with pytest.raises(SettingsError, match="source: 'here' is not one of"):
        Study.load(source="here")
    assert main(["study", "cores", "--dry-run"]) == 2
    assert f"stage: 'cores' is not one of {', '.join(study.stages)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("stage",), {}, "study: unknown setting 'stage'; allowed: base, stages"),
        (("base", "models", "llama"), {}, "base.models: unknown setting 'llama'; allowed: gpt2, pythia"),
        (("stages", "table", "SM+G", "seed"), 1, r"SM\+G: unknown setting 'seed'"),
        (("stages", "table", "SM+X"), {}, r"SM\+X.configuration: 'SM\+X' is not one of SM\+LN\+G"),
        (("stages", "table", "SM+G", "family"), "llama", r"SM\+G.family: 'llama' is not one of gpt2, pythia"),
        (("stages", "table", "SM+G", "seeds"), 3, r"SM\+G.seeds: 3 must be a list"),
        (("stages", "linear", "SM+G"), {}, r"stages.linear: cell 'SM\+G' is there twice"),
        (("stages", "table", "SM+G", "model"), {"norm": "x"}, "SM.G.model.norm: 'x' is not one of|model.norm: 'x'"),
        (("stages", "table"), [1], r"stages.table: \[1\] must be a mapping"),
    ],
)
def test_wrong_design(path: tuple[str, ...], value: Any, message: str, params_root: Path) -> None:
    design = yaml.safe_load(params_file("study").read_text())
    here = design
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    params_file("study").write_text(yaml.safe_dump(design, sort_keys=False))
    with pytest.raises(SettingsError, match=message):
        Study.load()


@pytest.fixture
def small(tiny: Any, params_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose study has two cells of two seeds, and two claims on them; no runs yet."""
    own = tiny().to_dict()
    data = {key: own["data"][key] for key in ("corpus", "vocab_size", "context", "validation_fraction")}
    base = dict(models={"gpt2": {"shape": "gpt2-2x32", "init": "width"}}, data=data, training=own["training"])
    other = {"SM+R s": {"configuration": "SM+R", "model": {"embedding_gain": 2.0}}}
    stages = {"core": {"SM+G": None, "SM+R": {}}, "other": other}
    design = {"base": {**base, "seeds": [1, 2]}, "stages": stages}
    params_file("study").write_text(yaml.safe_dump(design, sort_keys=False))
    tests = [
        dict(id="T4", family="table", statement="R leads", statistic="loss", unit="percent", expect="below"),
        dict(id="N1", family="instability", statement="NaNs", statistic="divergence", unit="share", expect="above"),
    ]
    tests[0] |= dict(contrast={"SM+R": 1, "SM+G": -1}, published=-8.0, least=1)
    tests[1] |= dict(contrast={"SM+R": 1, "SM+G": -1}, least=0.1)
    ledger = {"trained": {"residual_rms": 100, "grad_norm": 10}, "tests": tests}
    (params_root / "data").mkdir(exist_ok=True)
    (params_root / "data" / "claims.yaml").write_text(yaml.safe_dump(ledger))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    return params_root


def test_train_record_and_judge(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.load(source="local")
    assert len(study.missing()) == 6
    with pytest.raises(SettingsError, match="source: no runs of study are recorded"):
        Study.load().runs()
    assert main(["claims", "study"]) == 2
    assert "nfbook study" in capsys.readouterr().err

    first, *others = study.experiments("core")
    assert [e.seed for e in (first, *others)] == [1, 1, 2, 2]
    train(first, quiet=True)
    assert len(study.missing("core")) == 3
    assert study.runs().runs["run"].tolist() == [first.id]
    study.record()
    shutil.rmtree(tmp_path / "runs")
    assert first.id not in {e.id for e in Study.load().missing()}, "a recorded run counts as done"

    for e in others:
        train(e, quiet=True)
    assert main(["record", "study"]) == 0
    recorded = {r["id"] for r in runs.read_records(recorded_dir("study"))}
    assert recorded == {e.id for e in (first, *others)}, "records are added to those that are there"
    assert Study.load().missing("core") == []
    shown = Study.load().runs()
    assert shown.runs["run"].tolist() == [e.id for e in study.experiments("core")]
    for name in runs.TABLES:
        assert set(getattr(shown, name)["run"]) == recorded

    capsys.readouterr()
    assert main(["study", "other", "--dry-run"]) == 0
    assert capsys.readouterr().out == "Stage other: 2 runs, 2 to train\n"
    assert main(["study"]) == 0
    state = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert state[1:] == [["core", "4", "4", "0", "0", "0.0"], ["other", "2", "0", "0", "0", "0.0"]]

    assert main(["claims", "study"]) == 2, "nothing is recorded of verdicts"
    assert "`python -m nfbook claims --record` writes them" in capsys.readouterr().err
    assert main(["claims", "study", "--record"]) == 0
    capsys.readouterr()
    assert main(["claims", "study"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.search(r"^claims +T4 +R leads +percent ", printed.out, re.MULTILINE)
    file = recorded_dir("study") / "verdicts.csv"
    text = file.read_text()
    assert re.search(r"^claims,N1,.*,undecided,", text, re.MULTILINE)
    file.write_text(text.replace("undecided", "reproduced"))
    assert main(["claims", "study"]) == 1, "a recorded verdict that does not follow"
    message = "study: claims N1: verdict is recorded as 'reproduced', the runs give 'undecided'"
    assert message in capsys.readouterr().err
    assert main(["claims", "study", "--source", "local"]) == 0, "own runs are not held to the recorded verdicts"


def test_a_run_that_the_design_gave_up_leaves_the_record(small: Path) -> None:
    study = Study.load()
    kept, dropped = study.experiments("core")[:2]
    for e in (kept, dropped):
        train(e, quiet=True)
    study.record()
    design = yaml.safe_load(params_file("study").read_text())
    name = next(cell.name for cell in study.cells.values() if dropped in cell.experiments)
    del design["stages"]["core"][name]
    params_file("study").write_text(yaml.safe_dump(design, sort_keys=False))
    Study.load().record()
    assert [r["id"] for r in runs.read_records(recorded_dir("study"))] == [kept.id]


def test_own_runs_replace_recorded_ones_on_a_page(small: Path) -> None:
    study = Study.load(source="local")
    run = train(study.experiments("core")[0], quiet=True)
    study.record()
    record = json.loads((run / "record.json").read_text())
    changed = {name: value for name, value in record.items() if name not in ("format", "files", "sha256")}
    changed["provenance"] = {**record["provenance"], "device": "another"}
    runs.write_record(run, changed, [run / name for name in record["files"]])
    for source, device in (("local", "another"), ("recorded", record["provenance"]["device"])):
        shown = Study.load(source=source).runs().runs
        assert shown["run"].tolist() == [run.name]
        assert shown["provenance.device"].tolist() == [device]
