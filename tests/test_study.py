"""The study: its shipped design, its rules, and a small one trained, recorded and judged from end to end."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfcore import runs, train
from nfcore.__main__ import main
from nfcore.presets import MAIN, params_file
from nfcore.settings import Experiment, SettingsError
from nfcore.study import RATE_SEED, Study, own_best_rates


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load()


@pytest.fixture(scope="module")
def losses() -> dict[str, float | None]:
    """Final loss of each recorded run."""
    return {r["id"]: r["final"]["eval_loss"] for r in runs.read_records(runs.recorded_dir("study"))}


# --- the shipped design -----------------------------------------------------------------------------------------


def test_every_run_has_the_least_tokens_and_every_cell_the_least_seeds(study: Study) -> None:
    for cell in study.cells.values():
        if cell.seeds != (RATE_SEED,):
            main_ones = cell.name in MAIN or cell.own_best
            assert len(cell.seeds) >= (5 if main_ones else 3), cell.name
            assert RATE_SEED not in cell.seeds, "the grid's seed serves for nothing else"
        for e in cell.experiments:
            assert e.training.steps is not None
            assert e.training.steps >= 600
            assert e.training.batch_size * e.data.context >= 4096


def test_cells_differ_from_the_base_in_what_their_name_says(study: Study) -> None:
    def changed(name: str) -> dict[str, Any]:
        cell = study.cells[name]
        base, own = (c.experiments[0].to_dict() for c in (study.cells[cell.configuration], cell))
        return {
            f"{section}.{key}": value
            for section in ("model", "data", "training")
            for key, value in own[section].items()
            if value != base[section].get(key)
        }

    assert changed("SM+G s=16") == {"model.activation": "scaled_gelu", "model.activation_scale": 16.0}
    assert changed("SM+R final none") == {"model.final_norm": "none"}
    assert changed("SM+G dropout 0.1") == {"model.embd_pdrop": 0.1}
    assert changed("SM+G rate x4") == {"training.learning_rate": 0.016}
    assert changed("SM+R 12 layers") == {"model.num_hidden_layers": 12}
    assert changed("SM+G width 32").keys() == {"model.hidden_size", "model.intermediate_size"}
    assert changed("SM+G new seeds") == {}


def test_runs_go_seed_by_seed(study: Study) -> None:
    seeds = [e.seed for e in study.experiments("core")]
    assert seeds == sorted(seeds)
    every = [e.id for e in study.experiments()]
    assert len(every) == len(set(every))
    assert set(every) == {e.id for cell in study.cells.values() for e in cell.experiments}


def test_own_best_rates_are_those_of_the_recorded_grid(study: Study, losses: dict[str, float | None]) -> None:
    for configuration in MAIN:
        grid = {
            c.experiments[0].training.learning_rate: losses[c.experiments[0].id]
            for c in study.cells.values()
            if c.configuration == configuration and c.seeds == (RATE_SEED,)
        }
        assert sorted(grid) == [0.001, 0.002, 0.004, 0.008, 0.016]
        best = min((loss, rate) for rate, loss in grid.items() if loss is not None)[1]
        rates = {e.training.learning_rate for e in study.cells[f"{configuration} own best"].experiments}
        assert rates == {best}


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ({0.001: 4.0, 0.002: 3.9, 0.004: 3.8, 0.008: 3.85, 0.016: 4.1}, 0.004),
        ({0.001: 4.0, 0.002: 3.9, 0.004: None, 0.008: None, 0.016: None}, 0.002),
        ({0.001: 4.0, 0.002: 3.9, 0.004: 3.8, 0.008: 3.85}, None),
    ],
)
def test_rule_of_the_own_best_rate(
    results: dict[float, float | None], best: float | None, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest loss wins, a run that was not finite has lost, and an unfinished grid decides nothing."""
    grid = [c for c in study.cells.values() if c.configuration == "SM+G" and c.seeds == (RATE_SEED,)]
    found = [
        {"id": c.experiments[0].id, "final": {"eval_loss": results[c.experiments[0].training.learning_rate]}}
        for c in grid
        if c.experiments[0].training.learning_rate in results
    ]
    monkeypatch.setattr(runs, "read_records", lambda directory: found)
    assert own_best_rates(grid) == ({} if best is None else {"SM+G": best})


def test_recorded_runs_are_of_the_design_and_whole(study: Study) -> None:
    directory = runs.recorded_dir("study")
    planned = {e.id: e for e in study.experiments()}
    for record in runs.read_records(directory):
        assert Experiment.from_dict(record["settings"]) == replace(planned[record["id"]], name=record["name"])
        assert record["provenance"]["commit"]
    loaded = runs.load_runs(directory)  # compares the files with their checksums
    assert not loaded.runs["run"].duplicated().any()
    assert sum(f.stat().st_size for f in directory.iterdir()) < 8e6


# --- wrong designs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("stage",), {}, "study: unknown setting 'stage'; allowed: base, stages"),
        (("base", "models", "llama"), {}, "base.models: unknown setting 'llama'; allowed: gpt2, pythia"),
        (("stages", "core", "SM+G", "seed"), 1, r"SM\+G: unknown setting 'seed'"),
        (("stages", "core", "SM+X"), {}, r"SM\+X.configuration: 'SM\+X' is not one of SM\+LN\+G"),
        (("stages", "core", "SM+G", "family"), "llama", r"SM\+G.family: 'llama' is not one of gpt2, pythia"),
        (("stages", "core", "SM+G", "seeds"), 3, r"SM\+G.seeds: 3 must be of type list"),
        (("stages", "core", "SM+G", "own_best"), "yes", r"SM\+G.own_best: 'yes' must be of type bool"),
        (("stages", "mechanism", "SM+G"), {}, r"stages.mechanism: cell 'SM\+G' is there twice"),
        (("stages", "core", "SM+G", "model"), {"norm": "x"}, "SM.G.model.norm: 'x' is not one of|model.norm: 'x'"),
        (("stages", "core"), [1], r"stages.core: \[1\] must be a mapping"),
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


def test_wrong_stage_and_source(study: Study) -> None:
    with pytest.raises(SettingsError, match="stage: 'cores' is not one of core, learning-rate"):
        study.experiments("cores")
    with pytest.raises(SettingsError, match="source: 'here' is not one of"):
        Study.load("here")


# --- a small one, from end to end -------------------------------------------------------------------------------


@pytest.fixture
def small(tiny: Any, params_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose study has two cells of two seeds, and two claims on them; no runs yet."""
    base = tiny().to_dict()
    model = {"shape": "gpt2-2x32", "init": "width"}
    design = {
        "base": {
            "models": {"gpt2": model},
            "data": {key: base["data"][key] for key in ("corpus", "vocab_size", "context", "validation_fraction")},
            "training": base["training"],
            "seeds": [1, 2],
        },
        "stages": {
            "core": {"SM+G": None, "SM+R": {}},
            "other": {"SM+R s": {"configuration": "SM+R", "model": {"embedding_gain": 2.0}}},
        },
    }
    params_file("study").write_text(yaml.safe_dump(design, sort_keys=False))
    tests = [
        dict(id="C1", group="claims", statement="R leads", statistic="loss", unit="percent", expect="below"),
        dict(id="C7", group="claims", statement="NaNs", statistic="diverged", unit="count", expect="above"),
    ]
    tests[0] |= dict(contrast={"SM+R": 1, "SM+G": -1}, published=-8.0)
    tests[1] |= dict(contrast={"SM+R": 1})
    ledger = {"groups": {"claims": "Claims"}, "tests": tests, "correlations": []}
    (params_root / "data").mkdir(exist_ok=True)
    (params_root / "data" / "claims.yaml").write_text(yaml.safe_dump(ledger))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    return params_root


def test_train_record_and_judge(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.load("local")
    assert len(study.missing()) == 6
    with pytest.raises(SettingsError, match="source: no runs of the study are recorded"):
        Study.load("recorded").runs()
    assert main(["claims"]) == 2
    assert "python -m nfcore study" in capsys.readouterr().err

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
    assert main(["runs", "record", "study"]) == 0
    recorded = {r["id"] for r in runs.read_records(runs.recorded_dir("study"))}
    assert recorded == {e.id for e in (first, *others)}, "records are added to those that are there"
    assert Study.load().missing("core") == []
    shown = Study.load("recorded").runs()
    assert shown.runs["run"].tolist() == [e.id for e in study.experiments("core")]
    for name in runs.TABLES:
        assert set(getattr(shown, name)["run"]) == recorded

    capsys.readouterr()
    assert main(["study", "--dry-run"]) == 0
    assert capsys.readouterr().out == "Stage core: all 4 runs are there\nStage other: 2 runs, 2 to train\n"

    assert main(["claims"]) == 2, "nothing is recorded of verdicts"
    assert "`python -m nfcore claims --record` writes them" in capsys.readouterr().err
    assert main(["claims", "--record"]) == 0
    capsys.readouterr()
    assert main(["claims"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.search(r"^claims +C1 +percent ", printed.out, re.MULTILINE)
    file = runs.recorded_dir("study") / "verdicts.csv"
    text = file.read_text()
    assert re.search(r"^claims,C7,.*,not reproduced,$", text, re.MULTILINE)
    file.write_text(text.replace("not reproduced", "reproduced"))
    assert main(["claims"]) == 1, "a recorded verdict that does not follow"
    assert (
        capsys.readouterr().err
        == "nfcore: claims C7: direction is recorded as 'reproduced', the runs give 'not reproduced'\n"
    )
    assert main(["claims", "--source", "local"]) == 0, "own runs are not held to the recorded verdicts"


def test_own_runs_replace_recorded_ones_on_a_page(small: Path) -> None:
    study = Study.load("local")
    run = train(study.experiments("core")[0], quiet=True)
    study.record()
    record = json.loads((run / "record.json").read_text())
    changed = {name: value for name, value in record.items() if name not in ("format", "files", "sha256")}
    changed["provenance"] = {**record["provenance"], "device": "another"}
    runs.write_record(run, changed, [run / name for name in record["files"]])
    for source, device in (("local", "another"), ("recorded", record["provenance"]["device"])):
        shown = Study.load(source).runs().runs
        assert shown["run"].tolist() == [run.name]
        assert shown["provenance.device"].tolist() == [device]


def test_unknown_stage_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "cores", "--dry-run"]) == 2
    assert "stage: 'cores' is not one of core, learning-rate, confounds, sizes" in capsys.readouterr().err


def test_stages_are_named_in_the_help(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert all(stage in words for stage in study.stages)
