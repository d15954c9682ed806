"""Records on disk: what is refused, and the same frames from runs and from their recorded copies."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nfbook.recorded import export, recorded_dir
from nfcore import runs
from nfcore.runs import Runs, load_runs, read_record, write_record
from nfcore.settings import SettingsError
from nfcore.store import verify, write_atomically


@pytest.fixture
def two(trained: Path, diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of runs with a finished and a diverged one, and one that is unfinished."""
    directory = tmp_path / "runs"
    for run in (trained, diverged):
        shutil.copytree(run, directory / run.name)
    (directory / "unfinished").mkdir()
    monkeypatch.setenv("NFCORE_RUNS", str(directory))
    return directory


COLUMNS = {
    "metrics": "step name value",
    "layers": "step layer preactivation_std nonlinear_share nonlinear_share_centred "
    "spectral_entropy_in participation_in enrichment_in selectivity_in "
    "spectral_entropy_out participation_out enrichment_out selectivity_out "
    "spectral_shift dead_units residual_rms slope scale",
    "heads": "step layer head entropy entropy_over_ln_i nonfinite_rows largest_logit max_logit log_sum_exp sink_rate "
    "entropy_random",
    "positions": "step layer position entropy entropy_random",
}


def frames(shown: Runs) -> dict[str, pd.DataFrame]:
    return {name: getattr(shown, name) for name in ("runs", *runs.TABLES)}


def assert_equal_frames(first: Runs, second: Runs) -> None:
    for name, frame in frames(first).items():
        pd.testing.assert_frame_equal(frame, frames(second)[name], check_exact=True)


def written(directory: Path) -> dict[str, Any]:
    (directory / "sub").mkdir()
    files = [directory / "b.txt", directory / "sub" / "a.txt"]
    for file in files:
        file.write_text(file.name)
    write_record(directory, {"id": "x"}, files)
    record = read_record(directory)
    assert record is not None
    return record


def test_record_is_read_as_written(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = written(tmp_path)
    assert (record["id"], record["format"], [*record["files"]]) == ("x", runs.FORMAT, ["b.txt", "sub/a.txt"])
    verify(tmp_path, record)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read .*; delete the run's directory"),
        ("", "cannot be read"),
        ("null", "cannot be read"),
        ('{"format": 3}', "differs from its own SHA-256; delete the run's directory"),
        ('{"format": 2}', "record format 2, this version reads 3"),
    ],
)
def test_unreadable_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_record(tmp_path)
    assert str(tmp_path / "record.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flipped_byte_of_a_record_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "record.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        if whole[place : place + 1].isspace():  # between two values, where another blank may be as well
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SettingsError, match=r"record\.json: "):
            read_record(tmp_path)


def test_missing_and_tampered_files_are_named(tmp_path: Path) -> None:
    record = written(tmp_path)
    (tmp_path / "b.txt").write_text("other")
    with pytest.raises(SettingsError, match=r"b\.txt: does not match its recorded hash; fresh=true"):
        verify(tmp_path, record)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(SettingsError, match=r"b\.txt: missing, though the record lists it; fresh=true"):
        verify(tmp_path, record)


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_runs_live_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "here"))
    assert runs.runs_dir() == tmp_path / "here"
    monkeypatch.delenv("NFCORE_RUNS")
    monkeypatch.setenv("NFCORE_ROOT", str(tmp_path))
    assert runs.runs_dir() == tmp_path / "runs"
    assert recorded_dir("quick") == tmp_path / "data" / "recorded" / "quick"


def test_frames_of_all_finished_runs(two: Path, trained: Path, diverged: Path) -> None:
    shown = load_runs()
    assert sorted(shown.runs["run"]) == sorted([trained.name, diverged.name])
    assert_equal_frames(shown, load_runs(two))
    rows = shown.runs.set_index("run")
    good, bad = rows.loc[trained.name], rows.loc[diverged.name]
    assert (good["status"], bad["status"]) == ("complete", "diverged")
    assert (good["configuration"], good["model.norm"], good["training.steps"]) == ("SM+R", "none", 10)
    assert good["perplexity"] > 1
    assert pd.isna(bad["perplexity"])
    assert pd.isna(good["diverged.step"])
    assert bad["diverged.step"] > 0
    assert good["provenance.tokens"] == 2560
    for name, columns in COLUMNS.items():
        frame = frames(shown)[name]
        assert [*frame.columns] == [*columns.split(), "run"]
        own = frame[frame["run"] == trained.name].drop(columns="run").reset_index(drop=True)
        written = pd.read_parquet(trained / f"{name}.parquet")
        pd.testing.assert_frame_equal(own, written.astype(own.dtypes.to_dict()))


def test_select_keeps_the_given_order_and_where_takes_columns_with_dots(
    two: Path, trained: Path, diverged: Path
) -> None:
    for order in ([trained.name, diverged.name], [diverged.name, trained.name]):
        assert load_runs().select(iter(order)).runs["run"].tolist() == order
    one = load_runs().select([diverged.name, diverged.name])
    assert all(set(frame["run"]) == {diverged.name} for frame in frames(one).values())
    assert len(one.runs) == 1
    shown = load_runs()
    assert shown.where(status="complete").runs["run"].tolist() == [trained.name]
    assert shown.where(model__norm="none", training__learning_rate=2e-3).runs["run"].tolist() == [trained.name]
    assert shown.where(model__norm="layernorm").runs.empty
    assert set(shown.where(status="complete").heads["run"]) == {trained.name}


def test_no_runs(tmp_path: Path) -> None:
    assert load_runs(tmp_path).runs.empty
    with pytest.raises(SettingsError, match="missing: no such directory of runs"):
        load_runs(tmp_path / "missing")


def test_recorded_copy_gives_the_same_frames(two: Path, params_root: Path, trained: Path, diverged: Path) -> None:
    target = export("smoke", [trained.name, diverged.name, trained.name])
    assert target == params_root / "data" / "recorded" / "smoke"
    assert_equal_frames(load_runs(target), load_runs(two))
    assert sum(file.stat().st_size for file in target.iterdir()) < 200_000, "no models in the copy"
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    export("smoke", [diverged.name, trained.name])
    assert before == {file.name: file.read_bytes() for file in target.iterdir()}, "not the same bytes"
    facts = json.loads(before["records.json"])[0]["provenance"]
    assert not any(str(value).startswith("/") for value in facts.values()), "a path of this machine"


@pytest.mark.parametrize("name", ["records.json", "metrics.parquet", "heads.parquet"])
def test_tampered_copy_is_refused(two: Path, params_root: Path, trained: Path, name: str) -> None:
    target = export("smoke", [trained.name])
    (target / name).write_bytes((target / name).read_bytes() + b" ")
    with pytest.raises(SettingsError, match=f"{name}: does not match its recorded hash; .*nfbook record"):
        load_runs(target)
    (target / name).unlink()
    with pytest.raises(SettingsError, match=f"{name}: missing"):
        load_runs(target)


def test_unfinished_or_tampered_runs_are_not_recorded(two: Path, params_root: Path, trained: Path) -> None:
    with pytest.raises(SettingsError, match="unfinished: not a finished run of this machine; train it first"):
        export("smoke", [trained.name, "unfinished"])
    (two / trained.name / "heads.parquet").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"heads\.parquet: does not match"):
        export("smoke", [trained.name])
    assert not (params_root / "data").exists()


def test_settings_added_after_a_record_have_their_defaults(two: Path, trained: Path) -> None:
    made = read_record(trained)
    assert made is not None
    del made["settings"]["data"]["streaming"], made["settings"]["training"]["chunked_loss"]
    row = runs.row(made)
    assert (row["data.streaming"], row["training.chunked_loss"]) == (False, False)
