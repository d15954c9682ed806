"""The long forms of the fault tests: kills at random moments, damage at random places, bad inputs, all of them counted.

``make torture`` goes on until every row of ``data/recorded/torture.json`` has reached its count. It can be stopped at
any time, and its counts accumulate. A *loss* is an attempt after which the next command did not come to the same result
as an undisturbed one, or after which damage was not named. ``test_torture.py`` is the short form.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from nfcore import runs
from nfcore.settings import Experiment, SettingsError, project_root
from nfcore.store import verify, write_atomically
from nfcore.tokens import open_tokens, prepare


RESULTS = project_root() / "data" / "recorded" / "torture.json"
NOTEBOOK = """\
# %% tags=["parameters"]
preset = "smoke"

# %%
from nfbook.notebook import parameters
preset = parameters(globals())

# %%
import time
for line in range(20):
    time.sleep(0.05)
    print(line)
"""


def experiment(corpus: Path) -> Experiment:
    """Twenty updates that save a checkpoint after each, so that many kills fall into saving."""
    return Experiment.from_dict(
        {
            "model": dict(shape="gpt2-2x32", init="width", norm="none", activation="relu"),
            "data": dict(corpus=str(corpus), vocab_size=300, context=32, split_by="document", validation_fraction=0.2),
            "training": dict(steps=20, batch_size=8, eval_every=5, eval_sequences=20, probe_every=5, probe_sequences=4)
            | dict(log_every=1, save_every=1, threads=1),
        }
    )


environment = functools.partial(mock.patch.dict, os.environ)  # a context with other variables


def in_place(variables: dict[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    """What a child process runs: ``function`` in an environment, its words thrown away."""
    os.environ.update(variables)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        function(*arguments)


def train_quietly(settings: dict[str, Any]) -> None:
    from nfcore.training import train

    train(settings, quiet=True)


@dataclass
class Arena:
    """Where it all happens: a corpus, and the results of undisturbed work."""

    directory: Path
    draw: random.Random

    def __post_init__(self) -> None:
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(["nfcore.training"])  # so that a child starts at once
        self.number = 0

    def fresh(self) -> Path:
        self.number += 1
        place = self.directory / f"attempt {self.number}"
        place.mkdir()
        return place

    @functools.cached_property
    def corpus(self) -> Path:
        corpus = self.directory / "corpus"
        corpus.mkdir()
        draw = random.Random(0)
        words = ["batch", "head", "layer", "query", "key", "value", "loss", "step", "token", "width", "norm", "slope"]
        for file in range(150):
            lines = [f"def {draw.choice(words)}_{file}({draw.choice(words)}):", f"    return {draw.randint(2, 99)}"]
            lines += [f"{draw.choice(words)} = {draw.choice(words)} * {draw.randint(2, 99)}" for _ in range(60)]
            (corpus / f"{file}.py").write_text("\n".join(lines))
        return corpus

    @functools.cached_property
    def run(self) -> Path:
        """The undisturbed run."""
        place = self.directory / "undisturbed"
        self.child(place, train_quietly, experiment(self.corpus).to_dict()).join()
        return place / "runs" / experiment(self.corpus).id

    @functools.cached_property
    def notebook(self) -> bytes:
        """The undisturbed notebook."""
        script = self.directory / "script.py"
        script.write_text(NOTEBOOK)
        done = self.command(self.directory, "notebook", str(script), str(self.directory / "undisturbed.ipynb"))
        assert done.wait() == 0
        return (self.directory / "undisturbed.ipynb").read_bytes()

    def child(self, place: Path, function: Callable[..., Any], *arguments: Any) -> Any:
        variables = {"NFCORE_RUNS": str(place / "runs"), "NFCORE_DATA": str(place / "tokens")}
        process = self.forks.Process(target=in_place, args=(variables, function, *arguments))
        process.start()
        return process

    def command(self, place: Path, *arguments: str, root: Path | None = None) -> subprocess.Popen[bytes]:
        variables = {"NFCORE_RUNS": str(place / "runs"), "NFCORE_DATA": str(place / "tokens")}
        return subprocess.Popen(
            [sys.executable, "-m", "nfbook" if arguments[0] == "notebook" else "nfcore", *arguments],
            cwd=root or project_root(),
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def same_run(one: Path, other: Path) -> bool:
    """Equal to the last bit in all tables and weights."""
    import pandas as pd

    tables = [[pd.read_parquet(run / f"{name}.parquet") for run in (one, other)] for name in runs.TABLES]
    weights = [(run / "model/model.safetensors").read_bytes() for run in (one, other)]
    return all(mine.equals(theirs) for mine, theirs in tables) and weights[0] == weights[1]


# --- kills: each answers with the kills of one story, and with 1 for a loss --------------------------------------


def kills_of(arena: Arena, place: Path, longest: float, most: int, *work: Any) -> Iterator[None]:
    """Start ``work`` in a child and kill it within ``longest`` seconds, ``most`` times or until it ends by itself;
    gives way after each kill."""
    for _ in range(most):
        process = arena.child(place, *work)
        process.join(arena.draw.uniform(0, longest))
        if not process.is_alive():
            return
        process.kill()
        process.join()
        yield


def kill_training(arena: Arena, most: int) -> tuple[int, int]:
    """Kill a run again and again, then let it end."""
    wanted, place = arena.run, arena.fresh()
    settings = experiment(arena.corpus).to_dict()
    run = place / "runs" / wanted.name
    kills = sum(1 for _ in kills_of(arena, place, 2, most, train_quietly, settings))
    process = arena.child(place, train_quietly, settings)
    process.join()
    lost = process.exitcode != 0 or not same_run(run, wanted) or (run / "checkpoints").exists()
    shutil.rmtree(place)
    return kills, int(lost)


def kill_tokenising(arena: Arena, most: int) -> tuple[int, int]:
    """Kill the making of token files; whatever can be seen of them afterwards has to be whole."""
    settings, place, kills, lost = experiment(arena.corpus).data, arena.fresh(), 0, False
    with environment(NFCORE_DATA=str(arena.run.parents[1] / "tokens")):
        wanted = prepare(settings).hash
    for kills, _ in enumerate(kills_of(arena, place, 0.6, most, prepare, settings), 1):  # noqa: B007, returned below
        for meta in (place / "tokens").glob("[!.]*/meta.json"):
            lost |= open_tokens(meta.parent).hash != wanted
    with environment(NFCORE_DATA=str(place / "tokens")):
        lost |= prepare(settings).hash != wanted
    shutil.rmtree(place)
    return kills, int(lost)


def killed(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a command with all that it started, unless it ends first."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_notebook(arena: Arena, most: int) -> tuple[int, int]:
    """Kill the execution of a notebook: the output is absent, or whole."""
    wanted, place, kills, lost = arena.notebook, arena.fresh(), 0, False
    output = place / "notebook.ipynb"
    command = ("notebook", str(arena.directory / "script.py"), str(output))
    while kills < most and killed(arena.command(place, *command), arena.draw.uniform(0, 6)):
        kills += 1
        lost |= output.exists() and output.read_bytes() != wanted
    lost |= arena.command(place, *command).wait() != 0 or output.read_bytes() != wanted
    shutil.rmtree(place)
    return kills, int(lost)


def kill_book(arena: Arena, most: int) -> tuple[int, int]:
    """Kill the making of a whole book of preset smoke, runs and notebooks included; it is then the book of an
    undisturbed build from the same runs."""
    place, kills, built = arena.fresh(), 0, list[dict[str, bytes]]()
    for name in ("disturbed", "undisturbed"):
        root = place / name
        subprocess.run(["git", "clone", "--quiet", str(project_root()), str(root)], check=True)
        variables = {"NFCORE_ROOT": str(root), "PYTHONPATH": str(root)}
        with environment(**variables):
            while name == "disturbed" and kills < most:
                if not killed(arena.command(place, "book", "smoke", root=root), arena.draw.uniform(3, 45)):
                    break
                kills += 1
            if arena.command(place, "book", "smoke", root=root).wait() != 0:
                return kills, 1
        notebooks = root / "_build" / "smoke" / "notebooks"
        built.append({path.name: path.read_bytes() for path in sorted(notebooks.glob("*.ipynb"))})
        if not (root / "_build" / "smoke" / "html" / "index.html").exists():
            return kills, 1
    lost = not built[0] or built[0] != built[1]
    shutil.rmtree(place)
    return kills, int(lost)


# --- damage -----------------------------------------------------------------------------------------------------


def flip(arena: Arena, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[arena.draw.randrange(len(data))] ^= 1 << arena.draw.randrange(8)
    path.write_bytes(data)


def flip_checkpoint(arena: Arena, most: int) -> tuple[int, int]:
    """Flip a bit of a checkpoint: it is passed over, and the run ends as if nothing had been."""
    from nfcore import checkpoints

    wanted, place = arena.run, arena.fresh()
    settings, run = experiment(arena.corpus).to_dict(), place / "runs" / wanted.name
    found = None
    while found is None:  # a run that ends before it is killed has no checkpoints left
        shutil.rmtree(run, ignore_errors=True)
        process = arena.child(place, train_quietly, settings)
        while len(list(run.glob(f"checkpoints/*/{checkpoints.MANIFEST}"))) < checkpoints.KEPT and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()
        found, _ = checkpoints.newest(run / "checkpoints")
    files = sorted(path for path in found.iterdir() if path.stat().st_size)
    lost, saved = 0, place / "saved"
    shutil.copytree(run / "checkpoints", saved)
    for _ in range(most):
        shutil.rmtree(run)
        shutil.copytree(saved, run / "checkpoints")
        flip(arena, run / "checkpoints" / found.name / arena.draw.choice(files).name)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            other, _ = checkpoints.newest(run / "checkpoints")
        named = other != run / "checkpoints" / found.name and found.name in said.getvalue()
        process = arena.child(place, train_quietly, settings)
        process.join()
        lost += not (named and process.exitcode == 0 and same_run(run, wanted))
    shutil.rmtree(place)
    return most, lost


def flip_run(arena: Arena, most: int) -> tuple[int, int]:
    """Flip a bit of a finished run's settings, tables, weights or record: it is refused by name."""
    place, lost = arena.fresh(), 0
    run = place / arena.run.name
    for _ in range(most):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(arena.run, run)
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
        path = arena.draw.choice(files)
        before = path.read_bytes()
        flip(arena, path)
        try:
            record = runs.read_record(run)
            verify(run, record or {"files": {}})
        except SettingsError as error:
            lost += str(path) not in str(error)
        else:  # of the record a changed blank between two values changes nothing
            lost += path.name != "record.json" or json.loads(path.read_text()) != json.loads(before)
    shutil.rmtree(place)
    return most, lost


def flip_tokens(arena: Arena, most: int) -> tuple[int, int]:
    """Flip a bit of token files: the next use of them is refused by name."""
    settings, place, lost = experiment(arena.corpus).data, arena.fresh(), 0
    (made,) = (path.parent for path in (arena.run.parents[1] / "tokens").glob("[!.]*/meta.json"))
    for _ in range(most):
        shutil.rmtree(place / "tokens", ignore_errors=True)
        shutil.copytree(made, place / "tokens" / made.name)
        path = place / "tokens" / made.name / arena.draw.choice(("train.bin", "validation.bin", "tokenizer.json"))
        flip(arena, path)
        with environment(NFCORE_DATA=str(place / "tokens")):
            try:
                prepare(settings)
                lost += 1
            except SettingsError as error:
                lost += str(path) not in str(error)
    shutil.rmtree(place)
    return most, lost


ROWS: dict[str, tuple[Callable[[Arena, int], tuple[int, int]], int, int]] = {
    # what is tried: how, how often at least, how often in one story
    "SIGKILL while training and saving checkpoints": (kill_training, 140, 10),
    "SIGKILL while tokenising": (kill_tokenising, 40, 5),
    "SIGKILL while a notebook is executed": (kill_notebook, 15, 5),
    "SIGKILL while a book is made": (kill_book, 10, 10),
    "bit flipped in a checkpoint": (flip_checkpoint, 60, 20),
    "bit flipped in a finished run": (flip_run, 500, 100),
    "bit flipped in token files": (flip_tokens, 200, 100),
}


BAD_INPUTS = 10_000


def bad_inputs() -> None:
    """The long form of ``test_fuzz.py``, whose own words tell what failed; its counts by kind."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "counts")
        with environment(NFCORE_FUZZ_CASES=str(BAD_INPUTS), NFCORE_TORTURE_LOG=str(log)):
            subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/test_fuzz.py"], cwd=project_root())
        for line in log.read_text().splitlines():
            found = json.loads(line)
            add(f"bad input: {found['kind']}", found["cases"], found["losses"])


def counts() -> dict[str, dict[str, int]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}


def add(row: str, tried: int, losses: int) -> None:
    """Add to the counts on disk."""
    from tools.benchmarks.common import Options, provenance

    rows = counts()
    before = rows.get(row, {"tried": 0, "losses": 0})
    rows[row] = {"tried": before["tried"] + tried, "losses": before["losses"] + losses}
    made_by = {k: v for k, v in provenance(Options()).items() if k not in ("threads", "repeats")}
    write_atomically(RESULTS, json.dumps({"rows": rows, "provenance": made_by}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="WORD", help="only the rows that have one of these words")
    parser.add_argument("--fresh", action="store_true", help="forget the counts and begin anew")
    args = parser.parse_args(arguments)
    if args.fresh:
        RESULTS.unlink(missing_ok=True)
    seed = random.randrange(2**32)
    with tempfile.TemporaryDirectory(prefix="torture ") as directory:
        arena = Arena(Path(directory), random.Random(seed))
        for row, (story, wanted, most) in ROWS.items():
            if args.rows and not any(word in row for word in args.rows):
                continue
            while (done := counts().get(row, {"tried": 0})["tried"]) < wanted:
                tried, losses = story(arena, min(most, wanted - done))
                add(row, tried, losses)
                print(f"{row}: {tried} more, {losses} losses (seed {seed})", flush=True)
    tried = sum(row["tried"] for name, row in counts().items() if name.startswith("bad input"))
    if tried < BAD_INPUTS and (not args.rows or any(word in "bad input" for word in args.rows)):
        bad_inputs()
    found = counts()
    print(yaml.safe_dump(found, sort_keys=False), end="")
    return int(any(row["losses"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
