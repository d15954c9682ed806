"""The command line: what it prints, how it ends, and that it loads torch only to work."""

import argparse
import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from nfcore import entropy_ceiling, faults, head_entropy, measure, meter, runs
from nfcore.__main__ import main, parser
from nfcore.settings import Experiment, project_root
from tests.conftest import ROOT


Tiny = Callable[..., Experiment]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tiny: Tiny, tmp_path: Path) -> Path:
    """The run ``tiny()`` as a settings file."""
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tiny().to_dict()))
    return path


def refused(capsys: Any, *arguments: Any, main: Callable[[list[str]], int] = main) -> str:
    """The one line that wrong input gets; nothing else is printed."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"nfcore: [^\n]+\n", printed.err), printed.err
    return printed.err


def test_a_missing_module_is_named_with_what_brings_it(capsys, monkeypatch):
    def absent(args: argparse.Namespace) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("nfcore.__main__.entropy", absent)
    assert "`pip install matplotlib`" in refused(capsys, "entropy", "gpt2", "a.txt")


def test_every_module_that_nfcore_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["book"]]
    declared = {re.split(r"[<>=]", name)[0].replace("-", "_") for name in asked} | {"yaml", "IPython", "nfcore"}
    for source in (ROOT / "nfcore").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= declared | sys.stdlib_module_names, source


def commands(root: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield (*path, name)
                yield from commands(sub, (*path, name))


def test_help_of_every_command(capsys: Capture) -> None:
    for command in commands(parser()):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
        assert f"usage: python -m nfcore {' '.join(command)}" in capsys.readouterr().out


def test_help_loads_no_torch() -> None:
    heavy = ["torch", "transformers", "pandas", "snakemake"]
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module('nfcore', run_name='__main__', alter_sys=True)\n"
        f"finally: print([name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for name in ("train", "data", "entropy", "runs"):
        assert re.search(rf"^ +{name} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "training.steps", "overrides are written section.field=value"),
        ("data", "training.stpes=3", "training: unknown setting 'stpes'; allowed: steps"),
        ("data", "training.steps=[", "training.steps: cannot be read (while parsing"),
        ("train", "training.steps.more=3", "'steps' is not a section"),
        ("train", "data.context=2048", "data.context: 2048 must be at most model.max_position_embeddings 1024"),
        ("data", "data.corpus=missing", "data.corpus: 'missing' is not python-source, codeparrot or an existing path"),
        ("train", "data.corpus=missing", "data.corpus: 'missing' is not python-source, codeparrot or an existing path"),
    ],
)
def test_wrong_override(command: str, override: str, message: str, file: Path, capsys: Capture) -> None:
    assert message in refused(capsys, command, file, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "experiment.yaml: cannot be read"),
        ("a: [", "experiment.yaml: cannot be read (while parsing"),
        ("- 1", "experiment.yaml: [1] must be a mapping"),
        ("model: 3", "model: 3 must be a mapping"),
        ("training: {learning_rate: fast}", "training.learning_rate: 'fast' must be a valid number"),
        ("modle: {}", "unknown setting 'modle'"),
    ],
)
def test_wrong_file(text: str | None, message: str, file: Path, capsys: Capture) -> None:
    file.write_text(text) if text is not None else file.unlink()
    assert message in refused(capsys, "train", file)


def test_wrong_input_in_a_process_of_its_own_gives_no_traceback(file: Path) -> None:
    command = [sys.executable, "-m", "nfcore", "train", str(file), "training.batch_size=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project_root())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nfcore: training.batch_size: 0 must be greater than 0\n"


def test_interruption(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nfcore.training._run", interrupt)
    assert main(["train", str(file), "seed=77"]) == 130
    assert capsys.readouterr().err == "nfcore: interrupted; the same command goes on from the last checkpoint\n"


def test_train_with_overrides(tiny: Tiny, file: Path, capsys: Capture) -> None:
    experiment = tiny(training={"steps": 2, "learning_rate": 3e-3})
    changes = ["training.steps=2", "training.learning_rate=3e-3", "name=mine"]
    assert main(["train", str(file), *changes]) == 0
    printed = capsys.readouterr()
    assert f"  mine [{experiment.id}]: 100% of " in printed.err
    last = printed.out.splitlines()[-1]
    record = runs.read_record(runs.runs_dir() / experiment.id)
    assert record is not None
    perplexity = f"{record['final']['perplexity']:.3f}"
    assert last == f"{runs.runs_dir() / experiment.id}: perplexity {perplexity} after 2 steps"
    assert main(["train", str(file), *changes, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["train", str(file), *changes]) == 0
    assert "finished before, reused" in capsys.readouterr().out
    assert main(["train", str(file), *changes, "fresh=true"]) == 0
    assert "100% of" in capsys.readouterr().err


def test_train_reports_divergence_as_a_result(file: Path, diverged: Path, capsys: Capture) -> None:
    assert main(["train", str(file), "training.learning_rate=1e6"]) == faults.DIVERGED
    assert re.search(r"diverged: \{'step': \d+, 'layer': \d, 'where': '\w+'\}", capsys.readouterr().out)


def test_data(file: Path, capsys: Capture) -> None:
    assert main(["data", str(file)]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert Path(printed["directory"]).is_dir()
    assert printed["train"]["sequences"] > printed["validation"]["sequences"] > 20


def test_no_runs(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    assert "no finished runs" in refused(capsys, "runs", "list")
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "none"))
    assert "no such directory of runs" in refused(capsys, "runs", "list")


def test_runs_are_listed_shown_and_verified(
    trained: Path, diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for run in (trained, diverged):
        shutil.copytree(run, tmp_path / run.name)
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for run, status in ((trained, "complete"), (diverged, "diverged")):
        assert any(run.name in line and line.endswith(status) for line in lines)
    assert main(["runs", "show", trained.name]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == runs.read_record(trained)
    for command in ("show", "verify"):
        assert "0123456789ab: not a finished run" in refused(capsys, "runs", command, "0123456789ab")
    assert main(["runs", "verify"]) == 0
    assert capsys.readouterr().out == "2 runs match their recorded hashes\n"
    (tmp_path / trained.name / "heads.parquet").write_bytes(b"")
    assert "heads.parquet: does not match" in refused(capsys, "runs", "verify")
    assert main(["runs", "verify", diverged.name]) == 0


@pytest.fixture(scope="module")
def text(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text("".join(file.read_text() for file in sorted(corpus.iterdir())[:3]))
    return path


def test_entropy_of_a_run_and_of_its_saved_directory(trained: Path, text: Path, capsys: Capture) -> None:
    import torch
    from tokenizers import Tokenizer

    assert main(["entropy", trained.name, str(text), "--context", "16", "--sequences", "5"]) == 0
    shown = capsys.readouterr().out
    assert main(["entropy", str(trained / "model"), str(text), "--context", "16", "--sequences", "5"]) == 0
    assert capsys.readouterr().out == shown
    table, _, summary = shown.partition("\n\n")
    printed = np.loadtxt(io.StringIO(table), skiprows=2)  # a line of names, one with the index's
    ids = Tokenizer.from_file(str(trained / "model" / "tokenizer.json")).encode(text.read_text()).ids
    expected = head_entropy(measure.load(trained.name)[0], torch.tensor(ids[:80]).view(5, 16)).numpy()
    np.testing.assert_array_equal(printed[:, 0], [0, 1])
    np.testing.assert_allclose(printed[:, 1], expected.mean(1), atol=6e-4)
    np.testing.assert_allclose(printed[:, 2:], expected, atol=6e-4)
    ceiling = sum(np.log(np.arange(1, 17))) / 16
    assert f"nats, 5 sequences of 16 tokens; ceiling {ceiling:.4f}" in summary


def test_entropy_of_several_texts_as_csv_and_picture(
    trained: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other.py"
    other.write_text(text.read_text()[200:])
    csv, plot = tmp_path / "heads.csv", tmp_path / "heads.png"
    arguments = ("entropy", trained.name, text, other, "--context", 16, "--sequences", 5, "--dtype", "float32")
    assert main([*map(str, arguments), "--device", "cpu", "--csv", str(csv), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{text}\n")
    assert f"\n{other}\n" in printed
    frame = pd.read_csv(csv)
    assert set(frame["text"]) == {str(text), str(other)}
    assert {"layer", "head", "entropy", "ceiling", "log_sum_exp", "max_logit", "sink_rate"} <= {*frame}
    network, tokenizer = measure.load(trained.name, dtype="float32")
    expected = head_entropy(network, measure.sequences_of(network, tokenizer, other, 16, 5))
    own = frame[frame["text"] == str(other)].set_index(["layer", "head"])["entropy"].unstack()
    np.testing.assert_allclose(own, expected, atol=1e-6)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_batches_of_a_text_are_averaged(trained: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, tokenizer = measure.load(trained.name)
    ids = measure.sequences_of(network, tokenizer, text, 16, 5)
    whole = measure.measure(network, ids)
    monkeypatch.setattr(measure, "TOKENS", 32)
    pd.testing.assert_frame_equal(measure.measure(network, ids), whole, rtol=1e-5)


def test_heads_that_a_layer_does_not_have_are_no_zeros(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = meter.attention_statistics

    def fewer(network: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        found = original(network, batch)
        whole = [name for name, x in found.items() if x.is_floating_point() and name != "by_position"]
        return found | {name: found[name].index_fill(1, torch.tensor([1]), torch.nan) for name in whole}

    network, _ = measure.load(trained.name)
    monkeypatch.setattr(meter, "attention_statistics", fewer)
    found = measure.measure(network, torch.arange(32).view(2, 16))
    assert found["entropy"].isna().tolist() == [False, True] * 2
    assert "nan" in measure.table(found, (2, 16)).lower()


def test_layers_are_printed_by_their_own_numbers_with_the_ceiling_of_their_mask(
    trained: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Layers 0 and 2 of a Gemma 2 have a window of 4 tokens."""
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=512, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, head_dim=8, sliding_window=4,
    )  # fmt: skip
    saved = tmp_path / "gemma"
    transformers.Gemma2ForCausalLM(config).save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained / "model" / name, saved)
    assert main(["entropy", str(saved), str(text), "--context", "16"]) == 0
    table, _, summary = capsys.readouterr().out.partition("\n\n")
    printed = np.loadtxt(io.StringIO(table), skiprows=2)
    low, high = np.log([min(i, 4) for i in range(1, 17)]).mean(), entropy_ceiling(16)
    np.testing.assert_allclose(printed[:, 2], [low, high, low], atol=6e-4)
    assert f"ceiling {low:.4f} to {high:.4f}" in summary


def test_entropy_of_wrong_input(trained: Path, diverged: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "short").write_text("x")
    cut = tmp_path / "cut"  # as a copy is that stopped half way
    shutil.copytree(trained / "model", cut)
    (cut / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes()[:500])
    place, run = tmp_path / "none" / "heads", trained.name
    for arguments, message in (
        ((run, text, "--context", 2048), "context: 2048 must be between 2 and the model's 1024"),
        ((run, text, "--sequences", 0), "sequences: 0 must be at least 1"),
        # Said before anything is measured
        (("no/model", text, "--csv", place), f"--csv: '{place}' is in a folder that does not exist"),
        (("no/model", text, "--plot", place), f"--plot: '{place}' is in a folder that does not exist"),
        ((run, tmp_path / "missing.txt"), "missing.txt"),
        ((run, tmp_path / "binary"), "not UTF-8 text"),
        ((run, tmp_path / "short"), "1 tokens, fewer than one sequence of 128"),
        (("no/model", text), "model: 'no/model' cannot be loaded"),
        ((diverged.name, text), f"model: run {diverged.name} diverged, and has no model"),
        ((cut, text), f"model: '{cut}' cannot be loaded"),
        ((run, text, "--context", 16, "--device", "cud"), "cannot be loaded on device 'cud'"),
    ):
        assert message in refused(capsys, "entropy", *arguments)


def test_code_that_comes_with_a_model_is_not_run(text: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["entropy", str(tmp_path / "model"), str(text)]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()
