"""Two prepared calls on a machine with one GPU and no network: checks with timings, and training.

Where there is a network, once; leaves all that a call has to take along, at most 50 MB, in ``data/gpu/carry``::

    python -m tools.gpu corpus

On the GPU machine, in a copy of the checkout with that folder; needs torch 2.11 and transformers 5.17 or later::

    python3 -m pip install -q --no-index --no-deps --target _build/site data/gpu/carry/*.whl
    PYTHONPATH=_build/site python3 -m tools.gpu check --out "$OUT"
    PYTHONPATH=_build/site python3 -m tools.gpu train --out "$OUT"

Each takes at most ``--minutes`` (9) and writes what it has as soon as it has it: ``check`` the files of the page Speed,
``train`` one archive of records and tables, ``runs.tar.xz``. With that archive in ``data/gpu/carry`` another ``train``
goes on: finished runs stay, one that was cut off starts again. Back home, take over what came back::

    python -m tools.gpu collect FOLDER

``--tiny`` makes each of them a rehearsal of seconds on a CPU. Exit codes: 0 all is done, 1 a part failed, 2 wrong
input, 75 time was up before all was done.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import lzma
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any

from nfbook.cost import flops_per_token
from nfbook.recorded import export, recorded_dir
from nfbook.study import Study
from nfcore.runs import (
    MEASUREMENT_VERSION,
    read_record,
    read_records,
    runs_dir,
    verify,
    write_record,
    write_table,
)
from nfcore.settings import Experiment, SettingsError, project_root
from nfcore.store import file_sha256, write_atomically
from nfcore.tokens import open_tokens, prepare


ROOT = Path(__file__).resolve().parent.parent
LIMIT = 47e6  # bytes of the packed tokens: with checkout and wheels less than the 64 MiB that a call may take along
LARGEST_FILE = 200_000  # bytes of source; longer ones are mostly tables
# Beside torch and transformers with what they need themselves.
NEEDED = ("accelerate", "psutil", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")
PARQUET = all(map(find_spec, ("pandas", "pyarrow")))  # tables are JSON where these are not installed
TOKENS, RUNS = "tokens.tar.xz", "runs.tar.xz"
PARTS = {"equality": 0.2, "training": 0.6, "telemetry": 0.2}  # of `check`, with its part of the minutes


def place(tiny: bool) -> Path:
    """The folder that a call takes along."""
    return project_root() / "data" / ("gpu-tiny" if tiny else "gpu") / "carry"


def waves(tiny: bool, stage: str | None = None) -> Iterator[list[Experiment]]:
    """The runs to be made, those of equal size and seed together."""
    study = Study.load("gpu-tiny" if tiny else "gpu-runs")
    for name in study.stages if stage is None else [stage]:
        for _, runs in groupby(study.experiments(name), key=lambda e: e.seed):
            yield list(runs)


# --- what is taken along ----------------------------------------------------------------------------------------


def corpus(args: argparse.Namespace) -> int:
    """Make token files of the pinned packages' sources, pack them, and fetch wheels that the other machine lacks."""
    os.chdir(project_root())  # data.corpus is a path below it, and part of what names the runs
    carry, data = place(args.tiny), next(waves(args.tiny))[0].data
    carry.mkdir(parents=True, exist_ok=True)
    if not args.tiny:
        with tempfile.TemporaryDirectory() as wheels:
            download(["-r", "tools/gpu_wheels.txt", "--platform", "any"], Path(wheels))
            shutil.rmtree(data.corpus, ignore_errors=True)
            extract(Path(wheels), Path(data.corpus))
        for wheel in carry.glob("*.whl"):  # perhaps of another version, and two of a package cannot be installed
            wheel.unlink()
        locked = (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines()
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("\n".join(line for line in locked if line.partition("==")[0] in NEEDED))
            file.flush()
            platforms = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64", "any")
            download(["-r", file.name, *(f"--platform={p}" for p in platforms)], carry)
    tokens = prepare(data)
    packed = pack(sorted(tokens.directory.iterdir()), tokens.directory)
    if len(packed) > LIMIT:
        raise SettingsError(f"tools/gpu_wheels.txt: {len(packed) / 1e6:.1f} MB of tokens, at most {LIMIT / 1e6:g}")
    (carry / TOKENS).write_bytes(packed)
    for part in ("train", "validation"):
        facts = tokens.meta[part]
        print(f"{part}: {facts['documents']:,} documents, {facts['sequences'] * data.context:,} tokens")
    sizes = sum(file.stat().st_size for file in carry.iterdir())
    print(f"tokens {tokens.hash}, SHA-256 {file_sha256(carry / TOKENS)}; {carry}: {sizes / 1e6:.1f} MB")
    return 0


def download(options: list[str], folder: Path) -> None:
    """By pip, each file checked against its hash."""
    fixed = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.12", "-q", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *fixed, *options], check=True, cwd=ROOT)


def extract(wheels: Path, folder: Path) -> None:
    """The Python files of each wheel in a folder of its own, without tables of numbers."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            for member in file.infolist():
                if member.filename.endswith(".py") and member.file_size <= LARGEST_FILE:
                    text = file.read(member)
                    if sum(map(text.count, b"0123456789")) <= len(text) / 4:
                        file.extract(member, folder / wheel.name.split("-")[0])


def pack(files: Iterable[Path], root: Path) -> bytes:
    """A tar.xz, the same bytes each time; its dictionary spans the whole of a corpus, whose order is random."""
    packed = io.BytesIO()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**28}]
    with lzma.open(packed, "w", filters=filters) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.relative_to(root).as_posix())  # has no owner and no date
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)
    return packed.getvalue()


def plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Take from a tar only what ``pack`` writes, files below the folder; anything else is an error."""
    if not member.isfile():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


def unpack(packed: Path, folder: Path) -> Path:
    """Unpack into ``folder``. Raises SettingsError for anything that ``pack`` would not have written."""
    try:
        with tarfile.open(packed, "r:xz") as tar:
            tar.extractall(folder, filter=plain)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise SettingsError(f"{packed}: not an archive of tools.gpu ({error})") from None
    return folder


# --- check ------------------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Sections of the benchmarks, each in a process of its own that is ended when its part of the time is over."""
    began, spent, worst = monotonic(), 0.0, 0
    for section, part in PARTS.items():
        spent += 60 * args.minutes * part
        command = [sys.executable, "-m", "tools.benchmarks", section, "--corpus", "nfcore"]
        command += ["--results", str(args.out.resolve()), "--threads", "1" if args.tiny else "8"]
        command += ["--small", "--repeats", "1"] if args.tiny else []
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=max(1, began + spent - monotonic())).returncode
        except subprocess.TimeoutExpired:
            code = os.EX_TEMPFAIL
        print(f"{section}: exit code {code} after {monotonic() - began:.0f} s", flush=True)
        worst = max(worst, code)
    return worst


# --- train ------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Train wave after wave, the runs of a wave side by side, and keep each in the archive as it ends. A wave begins
    only if it is likely to end in time, going by the one before it."""
    import torch

    if not (torch.cuda.is_available() or args.tiny):
        raise SettingsError("train: needs a CUDA device; --tiny does not")
    until, carry = monotonic() + 60 * args.minutes, place(args.tiny)
    tokens = unpack(carry / TOKENS, carry.parent / "tokens")
    if (carry / RUNS).exists():
        unpack(carry / RUNS, runs_dir())
    plan = list(waves(args.tiny, args.stage))
    runs = [run for wave in plan for run in wave]
    jobs = args.jobs or max(map(len, plan))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    pool, speed, failed = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")), 0.0, 0
    try:
        for wave in plan:
            missing = [run for run in wave if not finished(run)]
            flops = sum(flops_per_token(run.model, run.data.context) * tokens_of(run) for run in missing)
            began = monotonic()
            if not missing or (speed and began + flops / speed > until):
                continue
            futures = {pool.submit(work, run, tokens, len(missing)): run for run in missing}
            for future in as_completed(futures, timeout=max(0, until - began)):
                failed += report(future, futures[future], monotonic() - began)
                keep(runs, args.out)
            speed = flops / (monotonic() - began)
    except TimeoutError:
        print("time is up", flush=True)
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown(cancel_futures=True)
    keep(runs, args.out)
    count = sum(map(finished, runs))
    print(f"{count} of {len(runs)} runs are finished", flush=True)
    return 1 if failed else 0 if count == len(runs) else os.EX_TEMPFAIL


def finished(run: Experiment) -> bool:
    return read_record(runs_dir() / run.id) is not None


def tokens_of(run: Experiment) -> int:
    return (run.training.steps or 0) * run.training.batch_size * run.data.context


def work(run: Experiment, tokens: Path, side_by_side: int) -> None:
    """Train one run on token files that are made, in a process that may have trained another."""
    import torch

    from nfcore import training

    training.prepare = lambda settings: open_tokens(tokens)
    if not PARQUET:
        training.runs.write_table = write_json
    torch._dynamo.reset()  # it gives up compiling what it has compiled for eight other models
    gc.collect()
    torch.cuda.empty_cache()  # of the run before, for those beside this one
    rewrite(training.train(run, quiet=True), side_by_side=side_by_side)


def rewrite(directory: Path, **facts: Any) -> None:
    """Complete the provenance of a run's record, and leave the model out of its files."""
    record = read_record(directory)
    assert record is not None
    tables = [as_parquet(directory / name) for name in record["files"] if "/" not in name]
    rest = {name: value for name, value in record.items() if name not in ("format", "files", "sha256")}
    write_record(directory, {**rest, "provenance": {**record["provenance"], **facts}}, tables)


def write_json(directory: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write a table where there is no parquet; ``as_parquet`` makes it one back home."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(rows))
    return path


def as_parquet(path: Path) -> Path:
    """The file of a run's record, as a table in parquet if it is one in JSON and parquet is installed."""
    if path.suffix != ".json" or not PARQUET:
        return path
    return write_table(path.parent, path.stem, json.loads(path.read_text()))


def report(future: Future[None], run: Experiment, seconds: float) -> int:
    """Print how a run ended; 1 if it failed."""
    if error := future.exception():
        print(f"{run.name}: {type(error).__name__}: {error}", flush=True)
        return 1
    record = read_record(runs_dir() / run.id)
    assert record is not None
    made = f"loss {record['final']['eval_loss']}, {record['provenance']['tokens_per_second']:,.0f} tokens/s"
    print(f"{run.name}: {record['status']} after {seconds:.0f} s, {made}", flush=True)
    return 0


def keep(runs: Iterable[Experiment], out: Path) -> None:
    """Write the archive of all finished runs, which is there whole at any time."""
    files = []
    for directory in sorted(runs_dir() / run.id for run in runs):
        if record := read_record(directory):
            files += [directory / name for name in (*record["files"], "record.json")]
    out.mkdir(parents=True, exist_ok=True)
    (out / "partial").write_bytes(pack(files, runs_dir()))
    os.replace(out / "partial", out / RUNS)


# --- what came back ---------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace) -> int:
    """Take what came back into ``data/recorded/gpu`` and the benchmarks' results. What has no commit, since the
    other machine had no history to name it by, gets this checkout's, if that has the same measurement version."""
    from nfcore.machine import git_commit

    name = "gpu-tiny" if args.tiny else "gpu"

    def made(provenance: dict[str, Any]) -> dict[str, Any]:
        known = provenance["commit"] not in (None, "unknown")
        return {} if known or provenance["measurement"] != MEASUREMENT_VERSION else {"commit": git_commit()}

    for file in sorted(args.folder.glob("*.json")):
        content = json.loads(file.read_text())
        content["provenance"] |= made(content["provenance"])
        target = project_root() / "tools" / "benchmarks" / "results" / name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(content, indent=1) + "\n")
        print(target)
    if (args.folder / RUNS).exists():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NFCORE_RUNS"] = folder
            directories = sorted(path.parent for path in unpack(args.folder / RUNS, Path(folder)).glob("*/record.json"))
            for directory in directories:
                record = read_record(directory)
                assert record is not None
                verify(directory, record)
                rewrite(directory, **made(record["provenance"]))
            before = [record["id"] for record in read_records(recorded_dir(name))]
            print(f"{len(directories)} runs: {export(name, (path.name for path in directories), keep=before)}")
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.partition("\n")[0])
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for action, text in (
        (corpus, "make what a call takes along"),
        (check, "equality and speed"),
        (train, "train the runs of notebooks/params/gpu-runs.yaml"),
        (collect, "take over what came back"),
    ):
        sub = commands.add_parser(action.__name__, help=text)
        sub.set_defaults(action=action)
        sub.add_argument("--tiny", action="store_true", help="a rehearsal of seconds on a CPU")
        if action in (check, train):
            sub.add_argument("--out", type=Path, required=True, help="folder for what is to come back")
            sub.add_argument("--minutes", type=float, default=9.0, help="that the call may take (default 9)")
        if action is train:
            sub.add_argument("--stage", help="train this one only, for example 'width 512'")
            sub.add_argument(
                "--jobs", type=int, help="runs side by side (default: as many as there are configurations)"
            )
        if action is collect:
            sub.add_argument("folder", type=Path)
    return root


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if not 0 <= getattr(args, "minutes", 0.0) < math.inf:
            raise SettingsError(f"--minutes: {args.minutes} must be a number of at least 0")
        return args.action(args)
    except (SettingsError, OSError) as error:
        print(f"tools.gpu: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"tools.gpu: {' '.join(error.cmd[2:4])} ended with exit code {error.returncode}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
