"""The two GPU calls, rehearsed on a CPU: what is taken along, checks, training in two calls, what is taken over."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nfbook import study
from nfcore import runs
from nfcore.machine import git_commit
from nfcore.tokens import open_tokens, prepare
from tools import gpu
from tools.benchmarks import common


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the shipped parameter files, nfcore as its corpus, and the tiny tokens packed."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(gpu.ROOT / "notebooks" / "params", root / "notebooks" / "params")
    (root / "nfcore").symlink_to(gpu.ROOT / "nfcore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFCORE_ROOT", str(root))
        patch.setenv("NFCORE_DATA", str(root / "tokens"))
        patch.chdir(root)
        assert gpu.main(["corpus", "--tiny"]) == 0
    return root


@pytest.fixture(autouse=True)
def _in_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = dict(
        NFCORE_ROOT=project, NFCORE_DATA=project / "tokens", NFCORE_RUNS=tmp_path / "runs", PYTHONPATH=gpu.ROOT
    )
    for name, value in {**places, "OMP_NUM_THREADS": 1, "TORCHINDUCTOR_COMPILE_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(project)


def refused(capfd: pytest.CaptureFixture[str], *command: object) -> str:
    """The one line that wrong input gets."""
    assert gpu.main([str(part) for part in command]) == 2
    error = capfd.readouterr().err
    assert error.startswith("tools.gpu: ")
    assert error.count("\n") == 1
    return error


def test_packed_tokens_are_those_of_the_corpus_and_the_same_bytes_each_time(project: Path, tmp_path: Path) -> None:
    packed = gpu.place(tiny=True) / gpu.TOKENS
    made = prepare(next(gpu.waves(tiny=True))[0].data)
    again = gpu.pack(sorted(made.directory.iterdir()), made.directory)
    assert again == packed.read_bytes()
    tokens = open_tokens(gpu.unpack(packed, tmp_path / "unpacked"))
    assert tokens.hash == made.hash
    assert tokens.train.tolist() == made.train.tolist()


def test_sources_are_taken_from_wheels_pinned_by_their_hash(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "some_name-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_name/code.py", "x = 1\n")
        wheel.writestr("some_name/table.py", "1234567890\n")
        wheel.writestr("some_name/large.py", "#" * (gpu.LARGEST_FILE + 1))
        wheel.writestr("some_name/data.json", "{}")
    gpu.extract(tmp_path / "wheels", tmp_path / "corpus")
    files = [path.relative_to(tmp_path / "corpus").as_posix() for path in (tmp_path / "corpus").rglob("*.*")]
    assert files == ["some_name/some_name/code.py"]
    lines = (gpu.ROOT / "tools" / "gpu_wheels.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 20
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:\w{64}", line) for line in pinned)
    assert pinned == sorted(pinned, key=str.lower)


def test_what_is_too_large_or_something_else_is_refused(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    (tmp_path / gpu.RUNS).write_text("no archive")
    assert "not an archive of tools.gpu" in refused(capfd, "collect", tmp_path, "--tiny")
    monkeypatch.setattr(gpu, "LIMIT", 1000)
    assert "MB of tokens, at most" in refused(capfd, "corpus", "--tiny")


def test_order_of_the_runs() -> None:
    plan = list(gpu.waves(tiny=False))
    assert [e.model.configuration for e in plan[0]] == ["SM+LN+G", "SM+LN+R", "SM+G", "SM+R", "SM+G(s=16)"]
    assert [{(e.model.hidden_size, e.seed) for e in wave} for wave in plan] == [
        {(width, seed)} for width in (256, 512) for seed in (1, 2, 3, 4)
    ]
    for run in (run for wave in plan for run in wave):
        assert run.model.hidden_size // run.model.num_attention_heads == 64
        assert gpu.tokens_of(run) == pytest.approx(1e8, rel=0.01)
    assert list(gpu.waves(False, "width 512")) == plan[4:]
    ids = {e.id for e in study.Study.load().experiments()}
    assert not ids & {run.id for tiny in (True, False) for wave in gpu.waves(tiny) for run in wave}


def test_training_needs_a_gpu_and_a_known_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA device" in refused(capfd, "train", "--out", tmp_path)
    assert "width 32, width 64" in refused(capfd, "train", "--tiny", "--out", tmp_path, "--stage", "width 8")
    assert "--minutes" in refused(capfd, "train", "--tiny", "--out", tmp_path, "--minutes", "-1")


def test_two_calls_and_what_is_taken_over(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The first call trains one stage; the second goes on from its archive; runs without parquet come home as it."""
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["train", "--tiny", "--jobs", "1"]
    assert gpu.main([*command, "--minutes", "0", "--out", str(first)]) == 75
    assert "0 of 5 runs are finished" in capfd.readouterr().out
    assert gpu.main([*command, "--stage", "width 64", "--out", str(first)]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model").is_dir()  # stays where it was made
    shutil.copy(first / gpu.RUNS, gpu.place(tiny=True))
    shutil.rmtree(tmp_path / "runs")

    def at_once(*arguments: Any) -> None:  # in this process, for it has the patch
        with monkeypatch.context() as patch:
            patch.setattr(runs, "write_table", None)
            patch.setattr(gpu, "PARQUET", False)
            patch.setattr("nfcore.training.prepare", None)
            patch.setattr("nfcore.machine.git_commit", lambda: None)
            gpu.work(*arguments)

    missing = [e for e in next(gpu.waves(tiny=True)) if e.seed == 1]
    gpu.unpack(gpu.place(tiny=True) / gpu.RUNS, tmp_path / "runs")
    for experiment in missing:
        at_once(experiment, project / "data" / "gpu-tiny" / "tokens", 2)
    assert gpu.main([*command, "--minutes", "0", "--out", str(second)]) == 75
    assert "3 of 5 runs are finished" in capfd.readouterr().out

    known = git_commit()
    monkeypatch.setattr("nfcore.machine.git_commit", lambda: "here")
    assert gpu.main(["collect", str(second), "--tiny"]) == 0
    recorded = runs.load_runs(project / "data" / "recorded" / "gpu-tiny")
    assert {*recorded.runs["run"]} == {run.name, *(e.id for e in missing)}
    commits = recorded.runs.set_index("run")["provenance.commit"].to_dict()
    assert commits == {run.name: known or "here", **{e.id: "here" for e in missing}}
    side_by_side = recorded.runs.set_index("run")["provenance.side_by_side"].to_dict()
    assert side_by_side == {run.name: 1, **{e.id: 2 for e in missing}}
    for name in runs.TABLES:
        table = getattr(recorded, name)
        assert {*table["run"]} == {*recorded.runs["run"]}
        assert table.drop(columns="run").notna().any().any()
    final = recorded.metrics[(recorded.metrics["name"] == "eval_loss") & (recorded.metrics["step"] == 6)]
    losses = recorded.runs.set_index("run")["eval_loss"].to_dict()
    assert final.set_index("run")["value"].to_dict() == pytest.approx(losses)


def test_check_writes_what_the_page_speed_reads(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"equality": 1.0})
    assert gpu.main(["check", "--tiny", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.glob("*.json")] == ["equality.json"]
    written = json.loads((tmp_path / "equality.json").read_text())
    assert {row["kind"] for row in written["rows"]} == {"parity", "path"}
    assert all(target["met"] for target in written["targets"])
    assert gpu.main(["collect", str(tmp_path), "--tiny"]) == 0
    taken = json.loads((project / "tools" / "benchmarks" / "results" / "gpu-tiny" / "equality.json").read_text())
    assert taken["rows"] == written["rows"]


def test_a_section_cut_off_leaves_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.benchmarks import equality
    from tools.benchmarks.__main__ import main

    def cut_off(options: common.Options) -> Any:
        yield {"kind": "path", "bound": 0.002, "largest_difference": 0.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(equality, "parity", lambda options: [])
    monkeypatch.setattr(equality, "paths", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(["equality", "--small", "--results", str(tmp_path), "--threads", "1"])
    assert len(json.loads((tmp_path / "equality.json").read_text())["rows"]) == 1
