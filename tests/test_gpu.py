"""Runs in slices: the packed corpus, the order and size of the runs, and that slices give what one go would have."""

import argparse
import json
import math
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nfcore.cost import flops_per_token, parameters
from nfcore.data import Document, documents, file_sha256, in_validation
from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.presets import Preset
from nfcore.runs import load_runs
from nfcore.settings import DataSettings, SettingsError
from nfcore.training import train
from tools import gpu


# Small enough for seconds, and long enough that a run can be stopped between a checkpoint and its end.
SETTINGS = ["data.vocab_size=300", "data.validation_fraction=0.3", "steps.main=300", "steps.table=4"]
SETTINGS += ["training.save_every=20", "training.eval_every=300", "training.probe_every=300"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve packages of two modules and a text file; the last package copies a file of the first."""
    draw, root = random.Random(0), tmp_path_factory.mktemp("packages")
    for package in "abcdefghijkl":
        (root / package / "sub").mkdir(parents=True)
        for name in ("one.py", "sub/two.py"):
            lines = [f"def {package}{i}(x):\r\n    return x * {draw.randint(2, 99)}\n" for i in range(60)]
            (root / package / name).write_bytes("".join(lines).encode())
        (root / package / "notes.txt").write_text(f"Package {package}, for ä and ö")
    (root / "l" / "copy.py").write_bytes((root / "a" / "one.py").read_bytes())
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "corpus.tar.xz"
    assert gpu.main(["pack", str(file), "--corpus", str(folder)]) == 0
    return file


def arguments(**changes: Any) -> argparse.Namespace:
    """What `plan` gets with no options."""
    return argparse.Namespace(**{**vars(gpu.parser().parse_args(["plan"])), **changes})


def refused(capfd: pytest.CaptureFixture[str], *command: object) -> str:
    """The one line that wrong input gets."""
    assert gpu.main([str(part) for part in command]) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(r"tools\.gpu: [^\n]+\n", error), error
    return error


# --- the corpus -------------------------------------------------------------------------------------------------


def test_the_packed_corpus_is_the_same_bytes_each_time(
    folder: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["pack", str(tmp_path / "again.tar.xz"), "--corpus", str(folder)]) == 0
    assert (tmp_path / "again.tar.xz").read_bytes() == packed.read_bytes()
    printed = capsys.readouterr().out
    assert printed.startswith("36 documents, ")  # of 37, one of them a copy
    assert file_sha256(packed) in printed


def test_an_unpacked_corpus_has_the_documents_and_groups_of_the_packed_one(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    def of(path: Path) -> list[Document]:
        return [d for d in documents(DataSettings(corpus=str(path))) if d.name != "l/copy.py"]

    gpu.unpack(packed, tmp_path / "deep" / "corpus")
    assert of(tmp_path / "deep" / "corpus") == of(folder)
    assert {document.group for document in of(folder)} == {*"abcdefghijkl"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["corpus"]


def test_packages_of_the_default_corpus_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfcore.data.PYTHON_SOURCE_PACKAGES", ("click", "fsspec", "nbformat"))
    assert gpu.main(["pack", str(tmp_path / "source.tar.xz")]) == 0
    gpu.unpack(tmp_path / "source.tar.xz", tmp_path / "source")
    read = [*documents(DataSettings(corpus=str(tmp_path / "source")))]
    assert {document.text for document in read} == {document.text for document in documents(DataSettings())}
    assert {document.group for document in read} == {"click", "fsspec", "nbformat"}
    validation = DataSettings().validation_fraction
    assert {d.group for d in read if in_validation(d.group, validation)} == {"click"}  # not empty, not all


def test_only_files_of_a_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "python.tar.xz")
    assert gpu.main(["pack", file, "--corpus", str(folder), "--suffix", ".py"]) == 0
    assert capsys.readouterr().out.startswith("24 documents, ")


def test_a_corpus_that_cannot_be_packed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "corpus.tar.xz"
    error = refused(capfd, "pack", file, "--corpus", folder, "--max-mb", "0.0001")
    measured = re.search(r"would be (\S+) MB, more than --max-mb 0.0001", error)
    assert measured is not None
    assert 0.0005 < float(measured[1]) < 0.1
    assert ".rs" in refused(capfd, "pack", file, "--corpus", folder, "--suffix", ".rs")
    assert "existing path" in refused(capfd, "pack", file, "--corpus", tmp_path / "none")
    assert not file.exists()


# --- the plan ---------------------------------------------------------------------------------------------------


def test_order_of_the_runs() -> None:
    plan = gpu.planned(arguments(preset="gpu", seeds=2))
    four = ["SM+LN+G", "SM+LN+R", "SM+G", "SM+R"]
    assert [e.model.configuration for e in plan] == 4 * four
    assert [e.model.family for e in plan] == 2 * (4 * ["gpt2"] + 4 * ["pythia"])
    assert [e.seed for e in plan] == 8 * [0] + 8 * [1]
    assert len({e.id for e in plan}) == 16
    shipped = Preset.load("gpu")
    assert {e.training.steps for e in plan[:4]} == {shipped.steps["main"]}
    assert {e.training.steps for e in plan[4:8]} == {shipped.steps["table"]}


def test_a_run_is_the_same_whatever_was_measured_and_saved_every_minute() -> None:
    plan = gpu.planned(arguments(), "corpus/0")
    assert plan == gpu.planned(arguments(tokens_per_second=1.0, minutes=3.0), "corpus/0")
    for e in plan:
        assert e.data.corpus == "corpus/0"
        tokens = e.training.save_every * e.training.batch_size * e.data.context
        assert flops_per_token(e.model, e.data.context) * tokens <= 60 * gpu.assumed_flops()
        assert e.training.save_every % e.training.log_every == 0
    given = gpu.planned(arguments(settings=["training.save_every=7"]))
    assert {e.training.save_every for e in given} == {7}


def test_assumed_speed() -> None:
    assert gpu.assumed_flops() == pytest.approx(gpu.SHARE * 0.405 * 989e12, rel=0.01)  # 40.5 % of the H100's peak


@pytest.mark.parametrize("number", [0, 7])
def test_estimate(number: int) -> None:
    e = gpu.planned(arguments())[number]
    with torch.device("meta"):
        model = NormFreeForCausalLM(NormFreeConfig(**vars(e.model)))
    count = sum(p.numel() for p in model.parameters())
    row = gpu.estimate(e, 1e14)
    assert row["parameters"] == count
    assert row["tokens"] == 2520 * 512 * 128
    assert row["flops"] == pytest.approx(
        6 * parameters(e.model)[1] * row["tokens"], rel=0.03
    )  # little attention at T=128
    assert row["minutes"] * 60 * 1e14 == pytest.approx(row["flops"])
    assert row["tokens_per_second"] * row["minutes"] * 60 == pytest.approx(row["tokens"])
    logits = 256 * 128 * 50_000 * 16
    assert 18 * count + logits < row["gpu_gib"] * 2**30 < 80 * 2**30


def test_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["plan", "--preset", "quick", "--tokens-per-second", "1000", "--minutes", "10"]) == 0
    printed = capsys.readouterr().out
    assert "1,000 tokens/s in the first run" in printed
    assert len(re.findall(r"^(GPT-2|Pythia) SM", printed, re.M)) == 8
    first, *_ = gpu.planned(arguments(preset="quick"))
    minutes = first.training.steps * 4096 / 1000 / 60  # type: ignore[operator]
    assert re.search(rf"GPT-2 SM\+LN\+G T=128 seed 0 .* 1,000 +{minutes:.1f} ", printed)
    assert gpu.main(["plan"]) == 0
    assert "50% of llm.c's" in capsys.readouterr().out


# --- slices -----------------------------------------------------------------------------------------------------


@pytest.fixture
def one_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, not eight: SM+R of both families."""
    monkeypatch.setattr(gpu, "MAIN", ("SM+R",))


@pytest.mark.usefixtures("one_configuration")
def test_slices_end_as_one_go_does(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, records = tmp_path / "out", tmp_path / "records"
    command = ["run", *SETTINGS, "--preset", "smoke", "--corpus", str(packed), "--out", str(out)]
    command += ["--records", str(records)]

    def checkpoints() -> list[Path]:
        return list(out.glob("runs/*/checkpoints/checkpoint-*/manifest.json"))

    with monkeypatch.context() as patch:  # the first slice is over at the first checkpoint
        patch.setattr(gpu, "monotonic", lambda: math.inf if checkpoints() else 0.0)
        assert gpu.main(command) == 75
    gpt2, pythia = sorted(out.glob("experiments/*.yaml"), key=lambda f: yaml.safe_load(f.read_text())["name"])
    assert [path.name for path in out.glob("runs/*")] == [gpt2.stem]  # half done; the other one is not begun
    assert checkpoints()
    assert not records.exists()
    printed = capfd.readouterr()
    assert "0 of 2 runs are finished" in printed.out
    assert re.search(r"\d{3} unique tokens", printed.out)
    assert re.search(r"the slice is over; its last \d seconds are to be redone", printed.out)

    assert gpu.main([*command, "--minutes", "5"]) == 0
    printed = capfd.readouterr()
    assert "resumes at step" in printed.out
    assert "2 of 2 runs are finished" in printed.out
    files = {path.relative_to(records).as_posix() for path in records.rglob("*") if path.is_file()}
    tables = ("metrics.parquet", "layers.parquet", "heads.parquet", "positions.parquet")
    assert files == {f"{f.stem}/{n}" for f in (gpt2, pythia) for n in (*tables, "settings.yaml", "record.json")}
    assert {*load_runs(records).runs["run"]} == {gpt2.stem, pythia.stem}

    monkeypatch.chdir(out)
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "at-once"))
    whole = json.loads((train(yaml.safe_load(gpt2.read_text()), quiet=True) / "record.json").read_text())
    sliced = json.loads((records / gpt2.stem / "record.json").read_text())
    assert whole["final"]["step"] == 300
    for key in ("id", "final", "settings"):
        assert sliced[key] == whole[key]
    assert sliced["provenance"]["data_hash"] == whole["provenance"]["data_hash"]


@pytest.mark.usefixtures("one_configuration")
def test_dry_run_trains_nothing(packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", *SETTINGS, "--preset", "smoke", "--corpus", str(packed), "--out", str(tmp_path), "--dry-run"]
    assert gpu.main([*command, "--minutes", "5"]) == 0
    printed = capfd.readouterr().out
    assert re.search(r"^Corpus: \d+ training documents, [\d,]+ unique tokens$", printed, re.M)
    meta = json.loads(next(tmp_path.glob("tokens/*/meta.json")).read_text())
    epochs = 300 * 8 / meta["train"]["sequences"]
    assert re.search(rf"GPT-2 SM\+R T=32 seed 0 .* {epochs:.1f} ", printed)
    assert meta["settings"]["corpus"] == f"corpus/{file_sha256(packed)[:12]}"
    assert not (tmp_path / "runs").exists()


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a shell leaves of SIGINT to a command, and to one that it starts in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("one_configuration", "interrupts")
def test_a_slice_without_progress_is_refused(packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", *SETTINGS, "--preset", "smoke", "--corpus", str(packed), "--out", str(tmp_path)]
    assert gpu.main([*command, "--minutes", "0"]) == 2
    assert "tools.gpu: --minutes: 0 were too few" in capfd.readouterr().err


@pytest.mark.usefixtures("one_configuration")
def test_a_run_that_fails_ends_the_slice(packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--preset", "smoke", "--corpus", str(packed), "--out", str(tmp_path), "data.vocab_size=9000"]
    assert gpu.main(command) == 1  # the corpus is too small for so many tokens
    error = capfd.readouterr().err
    assert "nfcore: data.vocab_size: the training part reaches" in error
    assert error.endswith("ended with exit code 2\n")
    assert "tools.gpu: nfcore data experiments/" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "smoke", "steps.main"], "section.field=value"),
        (["--preset", "smoke", "colour=red"], "unknown setting 'colour'"),
        (["--preset", "smoke", "preset=quick"], "unknown setting 'preset'"),
        (["--preset", "smoke", "data=3"], "data: 3 must be a mapping"),
        (["--preset", "smoke", "training=null"], "training: None must be of type dict"),
        (["--preset", "smoke", "data.corpus=python-source"], "data.corpus: 'python-source' has no effect"),
        (["--preset", "smoke", "--seeds", "0"], "--seeds: 0 must be at least 1"),
        (["--preset", "smoke", "--minutes", "-1"], "--minutes: -1.0 must be at least 0"),
        (["--preset", "smoke", "--minutes", "nan"], "--minutes: nan must be"),
        (["--preset", "smoke", "training.precision=float16"], "'float16' needs a CUDA device"),
        (["--preset", "gpu"], "'gpu' needs a CUDA device"),
        (["--preset", "paper"], "'paper' needs a CUDA device"),
    ],
)
def test_wrong_input(
    options: list[str],
    message: str,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(capfd, "run", "--corpus", packed, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_wrong_files_and_plans(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no archive")
    wrong = refused(capfd, "run", "--preset", "smoke", "--corpus", tmp_path / "text", "--out", tmp_path / "out")
    assert "not a corpus that `pack` wrote" in wrong
    assert "No such file" in refused(capfd, "run", "--corpus", tmp_path / "none", "--out", tmp_path / "out")
    assert "one epoch" in refused(capfd, "plan", "--preset", "paper")
    assert "--tokens-per-second" in refused(capfd, "plan", "--preset", "smoke", "--tokens-per-second", "0")
    with pytest.raises(SettingsError, match="one epoch"):
        gpu.estimate(Preset.load("paper").experiment("gpt2", "SM+R", "main", 0), 1e14)
