"""The main runs of a preset on a GPU that is lent in slices of minutes and has no network.

``python -m tools.gpu pack CORPUS.tar.xz`` packs a corpus where it is at hand. ``run`` trains on it for one slice, from
where the last one stopped; it needs the packed corpus and its own folder ``--out``. ``plan`` says what that takes. Exit
codes: 0 all runs are finished, 75 another slice is needed, 2 wrong input or no progress, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import lzma
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from nfcore import faults
from nfcore.cost import flops_per_token, memory_bytes, parameters
from nfcore.data import Document, documents, file_sha256, sha256
from nfcore.presets import MAIN, PRESETS, Preset
from nfcore.runs import read_record
from nfcore.settings import (
    SHAPES,
    DataSettings,
    Experiment,
    ModelSettings,
    SettingsError,
    at_least,
    check_keys,
    check_mapping,
    override,
)


ROOT = Path(__file__).resolve().parent.parent
GRACE = 20  # seconds that a run is given to end when its slice is over
# Tokens a second of llm.c, GPT-2 124M at T=1024 in bf16 on one H100 (40.5 % MFU), and the share of that assumed here.
ANCHOR, ANCHOR_CONTEXT, SHARE = 468e3, 1024, 0.5
USABLE = 0.8  # of a slice: the rest goes to starting, compiling and what is lost at its end


# --- the corpus -------------------------------------------------------------------------------------------------


def pack(args: argparse.Namespace) -> int:
    """Write the texts of a corpus, without exact copies, as a tar.xz of files: the same bytes each time.

    It is read again as a folder, whose groups are its first directories, here the packages. A parquet or JSON-lines
    file has no groups: it would be split by document, with near-copies on both sides.
    """
    skipped: Counter[str] = Counter()
    found: dict[str, Document] = {}  # of equal texts the first
    for document in documents(DataSettings(corpus=args.corpus), skipped):
        if document.name.endswith(args.suffix):
            found.setdefault(sha256(document.text), document)
    texts = {document.name: document.text.encode() for document in found.values()}
    if not any(texts.values()):
        raise SettingsError(f"--corpus: {args.corpus!r} holds no text in files whose names end with {args.suffix!r}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for name in sorted(texts):
            entry = tarfile.TarInfo(name)  # has no owner and no date
            entry.size = len(texts[name])
            tar.addfile(entry, io.BytesIO(texts[name]))
    size = len(packed.getvalue()) / 1e6
    if size > args.max_mb:
        raise SettingsError(f"{args.file}: would be {size:.3g} MB, more than --max-mb {args.max_mb:g}; not written")
    args.file.write_bytes(packed.getvalue())
    left_out = "".join(f", {count} left out ({reason})" for reason, count in sorted(skipped.items()))
    print(f"{len(texts):,} documents, {sum(map(len, texts.values())):,} bytes{left_out}")
    print(f"{args.file}: {size:.3g} MB, SHA-256 {file_sha256(args.file)}")
    return 0


def plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Of a tar only what ``pack`` writes, files below the folder; anything else is an error."""
    if not member.isfile():
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


def unpack(packed: Path, folder: Path) -> None:
    """Unpack to ``folder``, which is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        Path(unfinished, "text").mkdir()
        try:
            with tarfile.open(packed, "r:xz") as tar:
                tar.extractall(Path(unfinished, "text"), filter=plain)
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise SettingsError(f"{packed}: not a corpus that `pack` wrote ({error})") from None
        Path(unfinished, "text").replace(folder)


# --- what is to be trained, and what it takes -------------------------------------------------------------------


def planned(args: argparse.Namespace, corpus: str | None = None) -> list[Experiment]:
    """The main configurations of GPT-2, then of Pythia, one seed after the other.

    Where ``training.save_every`` is not given they are saved each minute or more often, at the assumed speed: nothing
    measured enters the settings, so a run has the same identity in every slice.
    """
    changes = check_keys(override({}, args.settings), ("seeds", "models", "data", "training", "steps"), "parameters")
    if corpus:
        data = check_mapping(changes.get("data", {}), "data")
        if "corpus" in data:
            raise SettingsError(f"data.corpus: {data['corpus']!r} has no effect, --corpus is taken; leave it out")
        changes["data"] = {**data, "corpus": corpus}
    if args.seeds is not None:
        at_least("--seeds", args.seeds, 1)
        changes["seeds"] = [*range(args.seeds)]
    preset = Preset.load(args.preset, **changes)
    grid = [(f, c, b, s) for s in preset.seeds for f, b in (("gpt2", "main"), ("pythia", "table")) for c in MAIN]
    experiments = [preset.experiment(*run) for run in grid]
    if "save_every" in changes.get("training", {}):
        return experiments
    often = [{"save_every": min(e.training.save_every, updates_a_minute(e))} for e in experiments]
    return [preset.experiment(*run, training=every) for run, every in zip(grid, often, strict=True)]


def updates_a_minute(experiment: Experiment) -> int:
    """At the assumed speed, rounded down to where the loss is logged."""
    settings, context = experiment.training, experiment.data.context
    updates = int(60 * assumed_flops() / flops_per_token(experiment.model, context) / settings.batch_size / context)
    return max(1, updates // settings.log_every * settings.log_every or updates)


def assumed_flops() -> float:
    """Operations a second that a run is assumed to reach."""
    return SHARE * ANCHOR * flops_per_token(ModelSettings(**SHAPES["gpt2-124m"]), ANCHOR_CONTEXT)


def estimate(experiment: Experiment, achieved: float, sequences: int | None = None) -> dict[str, float]:
    """Parameters, tokens, operations, tokens a second, minutes and GPU memory (GiB) of a run that does ``achieved``
    operations a second. ``sequences``: of the training part, without which an epoch has no length."""
    settings, context = experiment.training, experiment.data.context
    if settings.steps is None and sequences is None:
        raise SettingsError("steps: null is one epoch, of a corpus not known here; give steps.main and steps.table")
    tokens = (settings.steps or (sequences or 0) // settings.batch_size) * settings.batch_size * context
    operations = flops_per_token(experiment.model, context)
    return {
        "parameters": parameters(experiment.model)[0],
        "tokens": tokens,
        "flops": tokens * operations,
        "tokens_per_second": achieved / operations,
        "minutes": tokens * operations / achieved / 60,
        "gpu_gib": memory_bytes(experiment) / 2**30,
    }


def show(args: argparse.Namespace, experiments: Sequence[Experiment], sequences: int | None = None) -> None:
    """Print the plan, with epochs where the number of training ``sequences`` is known."""
    achieved = assumed_flops()
    source = f"{SHARE:.0%} of llm.c's on one H100 ({ANCHOR:,.0f} tokens/s, GPT-2 124M, T={ANCHOR_CONTEXT}, 40.5 % MFU)"
    context = experiments[0].data.context
    if args.tokens_per_second is not None:
        at_least("--tokens-per-second", args.tokens_per_second, 1)
        achieved = args.tokens_per_second * flops_per_token(experiments[0].model, context)
        source = f"{args.tokens_per_second:,.0f} tokens/s in the first run"
    rows = [estimate(experiment, achieved, sequences) for experiment in experiments]
    print(f"Speed: {achieved:.2g} operations a second, {source}.")
    print(f"{'run':32} parameters    tokens epochs   FLOPs tokens/s minutes GPU GiB saved every")
    for e, row in zip(experiments, rows, strict=True):
        epochs = f"{row['tokens'] / sequences / context:6.1f}" if sequences else "     ?"
        print(
            f"{e.name:32} {row['parameters'] / 1e6:8.1f} M {row['tokens'] / 1e6:7.1f} M {epochs} {row['flops']:7.1e} "
            f"{row['tokens_per_second']:8,.0f} {row['minutes']:7.1f} {row['gpu_gib']:7.1f} {e.training.save_every:11}"
        )
    minutes = sum(row["minutes"] for row in rows)
    slices = math.ceil(minutes / (USABLE * args.minutes)) if args.minutes else math.inf
    print(
        f"{len(rows)} runs, {minutes:.0f} minutes of training: slices of {args.minutes:g} minutes needed: {slices}, if "
        f"{1 - USABLE:.0%} go to starting, compiling and what is lost at the end. Evaluation and probes come on top.",
        flush=True,
    )


def plan(args: argparse.Namespace) -> int:
    show(args, planned(args))
    return 0


# --- one slice --------------------------------------------------------------------------------------------------


def nfcore(out: Path, until: float, *arguments: str, **options: Any) -> str | None:
    """Run ``python -m nfcore ARGUMENTS`` in ``out``, where all that it writes stays. Returns what it printed, if that
    is piped, or None if it was stopped at the time ``until`` (of ``monotonic``, seconds)."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    places = {"NFCORE_RUNS": "runs", "NFCORE_DATA": "tokens", "PYTHONPATH": path}
    environment = {**os.environ, **places, "TORCHINDUCTOR_CACHE_DIR": str(out.resolve() / "compiled")}
    # A shell starts what it puts in the background (`nohup ... &`) with SIGINT ignored, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "nfcore", *arguments]
    child = subprocess.Popen(command, cwd=out, env=environment, preexec_fn=listen, **options)
    try:
        while monotonic() < until:
            with suppress(subprocess.TimeoutExpired):
                printed, _ = child.communicate(timeout=0.5)
                if child.returncode not in (0, faults.DIVERGED):
                    raise subprocess.CalledProcessError(child.returncode, f"nfcore {' '.join(arguments)}")
                return printed or ""
        return None
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def written(out: Path, *patterns: str) -> dict[Path, float]:
    """The files with these patterns below ``out``, with the time of their writing (Unix, seconds)."""
    return {path: path.stat().st_mtime for pattern in patterns for path in out.glob(pattern)}


def copy_records(out: Path, experiments: Sequence[Experiment], target: Path) -> int:
    """Copy record, settings and tables of the finished runs, never a model; returns how many are finished."""
    finished = 0
    for experiment in experiments:
        directory, copy = out / "runs" / experiment.id, target / experiment.id
        if record := read_record(directory):
            finished += 1
            copy.mkdir(parents=True, exist_ok=True)
            for name in [*(name for name in record["files"] if "/" not in name), "record.json"]:
                shutil.copyfile(directory / name, copy / name)
    return finished


def check_device(preset: str, experiments: Sequence[Experiment]) -> None:
    """Raise unless this machine can train them."""
    import torch

    if not torch.cuda.is_available():
        if preset in ("gpu", "paper"):
            raise SettingsError(f"--preset: {preset!r} needs a CUDA device; --dry-run, smoke and quick do not")
        if any(e.training.precision == "float16" for e in experiments):
            raise SettingsError("training.precision: 'float16' needs a CUDA device; float32 and bfloat16 do not")


def run(args: argparse.Namespace) -> int:
    """One slice: unpack, tokenise, train the unfinished runs in order until the minutes are over, copy the records."""
    until = monotonic() + 60 * args.minutes
    out, target = args.out, args.records or args.out / "records"
    corpus = Path("corpus", file_sha256(args.corpus)[:12])  # part of the settings: the same in all slices of a corpus
    experiments = planned(args, str(corpus))
    if not args.dry_run:
        check_device(args.preset, experiments)
    if not (out / corpus).is_dir():
        unpack(args.corpus, out / corpus)
    (out / "experiments").mkdir(exist_ok=True)
    for e in experiments:
        (out / "experiments" / f"{e.id}.yaml").write_text(yaml.safe_dump(e.to_dict(), sort_keys=False))

    done = ("tokens/*/meta.json", "tokens/*/*.journal", "runs/*/record.json", "runs/*/checkpoints/*/manifest.json")
    before = written(out, *done)
    try:
        data = nfcore(out, until, "data", f"experiments/{experiments[0].id}.yaml", stdout=subprocess.PIPE, text=True)
        if data is not None:
            part = yaml.safe_load(data)["train"]
            unique = part["sequences"] * experiments[0].data.context
            print(f"Corpus: {part['documents']:,} training documents, {unique:,} unique tokens")
            show(args, experiments, part["sequences"])
        for e in experiments if data is not None and not args.dry_run else ():
            record = out / "runs" / e.id / "record.json"
            if monotonic() < until and not record.exists():
                began = time.time()
                nfcore(out, until, "train", f"experiments/{e.id}.yaml")
                if not record.exists():
                    saved = max([began, *written(out, f"runs/{e.id}/checkpoints/*/manifest.json").values()])
                    print(f"{e.name}: the slice is over; its last {time.time() - saved:.0f} seconds are to be redone")
    finally:
        finished = copy_records(out, experiments, target)
        print(f"{finished} of {len(experiments)} runs are finished; their records are in {target}", flush=True)
    if args.dry_run or finished == len(experiments):
        return 0
    if written(out, *done) == before:
        raise SettingsError(
            f"--minutes: {args.minutes:g} were too few to finish the token files or to reach a checkpoint; give more, "
            "or a smaller training.save_every, with which they are other runs"
        )
    return os.EX_TEMPFAIL


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    sub = commands.add_parser("pack", help="pack a corpus where it is at hand")
    sub.set_defaults(action=pack)
    sub.add_argument("file", type=Path, metavar="CORPUS.tar.xz")
    sub.add_argument("--corpus", default="python-source", help="as data.corpus (default python-source), or a folder")
    sub.add_argument("--suffix", default="", help="only files whose names end so, for example .py")
    sub.add_argument("--max-mb", type=float, default=60.0, help="refuse a larger result (default 60)")

    for name, action, text in (("plan", plan, "say what the runs take"), ("run", run, "train for one slice")):
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(action=action)
        sub.add_argument("settings", nargs="*", metavar="name=value", help="of the preset, for example steps.main=1000")
        sub.add_argument("--preset", default="gpu", choices=PRESETS)
        sub.add_argument("--seeds", type=int, help="their number, from 0 on (default: the preset's seeds)")
        sub.add_argument("--minutes", type=float, default=9.0, help="of a slice (default 9)")
        sub.add_argument("--tokens-per-second", type=float, help="as measured in the first run; changes the plan alone")
    sub.add_argument("--corpus", type=Path, required=True, metavar="CORPUS.tar.xz")
    sub.add_argument("--out", type=Path, default=Path("runs", "gpu"), help="kept between slices (default runs/gpu)")
    sub.add_argument("--records", type=Path, help="gets the records of finished runs (default: records in --out)")
    sub.add_argument("--dry-run", action="store_true", help="unpack, tokenise and plan; train nothing")
    return root


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        at_least("--minutes", getattr(args, "minutes", 0), 0)
        return args.action(args)
    except SettingsError as error:
        print(f"tools.gpu: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"tools.gpu: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"tools.gpu: {error.cmd} ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tools.gpu: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # as exceptions, even where a shell had SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
