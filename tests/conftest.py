"""What all tests share: no network, no progress bars, the same random numbers whatever the order of the tests, and
runs and token files outside the checkout."""

import functools
import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from nfcore.settings import Experiment


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "data" / "published"
LONGEST = "browser distributed notebook cli cluster benchmarks speed faults publish gpu tokens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-measurement", action="store_true", help="store what tests/test_measurement.py measures")


def pytest_xdist_auto_num_workers() -> int:
    """Processes of ``pytest -n auto``: one more than there are cores, for many tests wait for a process they start."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none of them is left for the end, when other processes have nothing to do."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def frozen() -> None:
    """What torch and its like load is no garbage: accelerate collects after each run, over all objects there are."""
    gc.disable()
    import nfcore.training  # noqa: F401

    gc.enable()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """The paper's numbers, by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PUBLISHED.glob("*.json")}


@pytest.fixture(scope="session")
def judged() -> Callable[[str], Any]:
    """``judged(name)``: the statistics of a study's recorded runs, a frame by cell and seed; not to be changed."""
    from nfbook.claims import statistics
    from nfbook.study import Study

    return functools.cache(lambda name: statistics(Study.load(name).runs(), Study.load(name)))


@pytest.fixture(scope="session", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs and token files go for this session."""
    directory = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFCORE_RUNS", str(directory / "runs"))
        patch.setenv("NFCORE_DATA", str(directory / "tokens"))
        yield directory


@pytest.fixture(scope="session")
def corpus(workspace: Path) -> Path:
    """Some 40 kB of Python in 40 files."""
    words = ["batch", "head", "layer", "query", "key", "value", "loss", "step", "token", "width", "norm", "slope"]
    draw = random.Random(0)
    directory = workspace / "corpus"
    directory.mkdir()
    for file in range(40):
        lines = []
        for _ in range(20):
            a, b, c = draw.sample(words, 3)
            lines += [f"def {a}_{b}({c}):", f"    return {c} * {draw.randint(2, 99)}", ""]
        (directory / f"{words[file % 12]}{file}.py").write_text("\n".join(lines))
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve groups of two files each."""
    for number in range(24):
        path = tmp_path / "corpus" / f"group{number // 2}" / f"file{number % 2}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def f{number}_{i}(argument):\n    return argument * {i}\n" for i in range(6)))
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> Callable[..., Experiment]:
    """``tiny(section={field: value}, ...)``: a run of ten updates of 8 x 32 tokens with these settings changed."""
    model = dict(shape="gpt2-2x32", init="width", norm="none", activation="relu")
    data = dict(corpus=str(corpus), vocab_size=300, context=32, packing="packed", split_by="document")
    training = dict(steps=10, batch_size=8, learning_rate=2e-3, warmup_fraction=0.2, eval_every=4, eval_sequences=20)
    training |= dict(probe_every=3, probe_sequences=4, log_every=1, save_every=4, threads=1)

    def experiment(**changes: Any) -> Experiment:
        sections = {"model": model, "data": {**data, "validation_fraction": 0.2}, "training": training}
        changed = {name: {**values, **changes.pop(name, {})} for name, values in sections.items()}
        return Experiment.from_dict({**changed, **changes})

    return experiment


@pytest.fixture(scope="session")
def trained(tiny: Callable[..., Experiment]) -> Path:
    """The directory of the finished run ``tiny()``."""
    from nfcore import train

    return train(tiny(), quiet=True)


@pytest.fixture(scope="session")
def diverged(tiny: Callable[..., Experiment]) -> Path:
    """The directory of a run whose learning rate is absurd."""
    from nfcore import train

    return train(tiny(training={"learning_rate": 1e6}), quiet=True)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)``: a folder that ``make`` fills, in one of the processes that share the tests."""

    def shared(name: str, make: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session")
def smoke_grid(workspace: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The runs of this session, all those of preset smoke among them."""
    from nfbook.presets import Preset
    from nfcore import corpus, tokens
    from nfcore.training import train

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NFCORE_RUNS", str(folder))
            patch.setattr(tokens, "local_corpus", functools.cache(corpus.local_corpus))  # of 11 MB, read once
            for experiment in Preset.load("smoke").experiments():
                train(experiment, quiet=True)

    shutil.copytree(once("smoke runs", make), workspace / "runs", dirs_exist_ok=True)
    return workspace / "runs"


@pytest.fixture
def params_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with nothing in it but the shipped parameter files; what is recorded goes there."""
    shutil.copytree(ROOT / "notebooks" / "params", tmp_path / "project" / "notebooks" / "params")
    monkeypatch.setenv("NFCORE_ROOT", str(tmp_path / "project"))
    return tmp_path / "project"


@pytest.fixture(scope="session")
def book(checkout: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The site built from a fresh checkout, warnings being errors."""

    def make(target: Path) -> None:
        command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(checkout / "book")]
        command += ["--path-output", str(target), "-W", "-n", "--keep-going"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    return once("a book", make) / "_build" / "html"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of what git would hold of this project, itself a git repository with nothing changed."""
    copy = tmp_path_factory.mktemp("checkout")

    def git(*command: str, cwd: Path = copy) -> str:
        return subprocess.run(["git", *command], cwd=cwd, check=True, capture_output=True, text=True).stdout

    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    git("init", "--quiet")
    git("add", "--all")
    return copy
