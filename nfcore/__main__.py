"""Prepare data, train runs, measure attention entropy, look after finished runs.

Exit codes: 2 wrong input, or files that cannot be read or written; 3 a run that diverged, which is recorded; 4 out of
memory; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from nfcore import faults, runs
from nfcore.settings import DType, Experiment, SettingsError, override, read_yaml
from nfcore.store import verify


DISK_FULL = f"; free some space, or set NFCORE_RUNS and NFCORE_DATA to another disk; {faults.RESUME}"


def read_experiment(source: str, assignments: list[str]) -> Experiment:
    """An experiment from a YAML file, with ``section.field=value`` over it."""
    return Experiment.from_dict(override(read_yaml(source), assignments))


def train(args: argparse.Namespace) -> int:
    # Everything that can be wrong with the settings is said before torch is loaded.
    experiment = read_experiment(args.experiment, [a for a in args.settings if a != "fresh=true"])
    gc.disable()  # torch and its like bring a million objects and no garbage: to look for it takes over a second
    from nfcore.training import train as run

    gc.enable()
    gc.freeze()
    fresh = "fresh=true" in args.settings
    directory = run(experiment, fresh=fresh, report_to=args.report_to, quiet=args.quiet, fsdp=args.fsdp)
    record = finished(experiment.id)
    if not args.quiet and is_first():
        final = record["final"]
        result = f"perplexity {final['perplexity']:.3f}" if final["perplexity"] else f"diverged: {record['diverged']}"
        print(f"{directory}: {result} after {final['step']} steps")
    return faults.DIVERGED if record["status"] == "diverged" else 0


def is_first() -> bool:
    """Whether this is the first of several processes, which speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def data(args: argparse.Namespace) -> None:
    experiment = read_experiment(args.experiment, args.settings)
    from nfcore.tokens import prepare

    tokens = prepare(experiment.data)
    summary = {k: v for k, v in tokens.meta.items() if k not in ("settings", "packages", "versions")}
    print(yaml.safe_dump({"directory": str(tokens.directory), **summary}, sort_keys=False), end="")


def entropy(args: argparse.Namespace) -> None:
    from nfcore.measure import entropy_of_texts

    for table in entropy_of_texts(args):
        print(table, flush=True)


def list_runs(args: argparse.Namespace) -> None:
    frame = runs.load_runs().runs
    if frame.empty:
        raise SettingsError(f"{runs.runs_dir()}: no finished runs")
    columns = ["run", "model.family", "configuration", "data.context", "seed", "step", "perplexity", "status"]
    print(frame[columns].to_string(index=False, float_format="{:.3f}".format))


def show_run(args: argparse.Namespace) -> None:
    print(yaml.safe_dump(finished(args.run), sort_keys=False), end="")


def verify_runs(args: argparse.Namespace) -> None:
    names = [args.run] if args.run else sorted(p.parent.name for p in runs.runs_dir().glob("*/record.json"))
    for name in names:
        verify(runs.runs_dir() / name, finished(name))
    print(f"{len(names)} runs match their recorded hashes")


def finished(run: str) -> dict[str, Any]:
    """The record of a finished run of this machine."""
    record = runs.read_record(runs.runs_dir() / run)
    if record is None:
        raise SettingsError(f"{runs.runs_dir() / run}: not a finished run")
    return record


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m nfcore", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    add_run_commands(commands)
    add_entropy(commands)
    group = commands.add_parser("runs", help="list, show, verify").add_subparsers(required=True)
    command(group, "list", list_runs, "finished runs of this machine")
    command(group, "show", show_run, "settings, results and provenance of a run").add_argument("run")
    sub = command(group, "verify", verify_runs, "compare files with their recorded hashes")
    sub.add_argument("run", nargs="?")
    return root


def command(parent: Any, name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text)
    sub.set_defaults(action=run)  # "run" is an argument of some commands
    return sub


def add_run_commands(commands: Any) -> None:
    text = "train one run, resume it, or find it finished (fresh=true: train it again)"
    training = command(commands, "train", train, text)
    for sub in (training, command(commands, "data", data, "prepare the token files of an experiment")):
        sub.add_argument("experiment", metavar="EXPERIMENT.yaml", help="a settings file")
        sub.add_argument("settings", nargs="*", metavar="section.field=value")
    training.add_argument("--report-to", action="append", default=[], help="tensorboard, wandb, trackio, ...")
    training.add_argument("--quiet", action="store_true", help="no progress")
    training.add_argument("--fsdp", action="store_true", help="shard the model over torchrun's processes (FSDP2)")


def add_entropy(commands: Any) -> None:
    sub = command(commands, "entropy", entropy, "attention entropy per head of a saved or Hub model on a text")
    sub.add_argument("model", help="a run's id, a directory of a saved model, or a Hub name")
    sub.add_argument("text", type=Path, nargs="+", help="a UTF-8 text file")
    sub.add_argument("--context", type=int, default=128, help="tokens a sequence (default 128)")
    sub.add_argument("--sequences", type=int, default=16, help="sequences from the start of the text (default 16)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default cpu)")
    sub.add_argument("--dtype", choices=get_args(DType), help="of the model (default: as its weights are saved)")
    sub.add_argument("--csv", type=Path, help="write what is measured of each head, a line per layer and head")
    sub.add_argument("--plot", type=Path, help="write a picture of each head's entropy over its ceiling (.png, .svg)")


def main(arguments: list[str] | None = None) -> int:
    return run(parser().parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Do what a command line says; errors of the user and of the machine are one line and an exit code."""
    before = signal.signal(signal.SIGTERM, faults.stop)
    try:
        return args.action(args) or 0
    except SettingsError as error:
        return failed(error, 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return failed(f"{where}{error.strerror or error}{DISK_FULL if error.errno == errno.ENOSPC else ''}", 2)
    except ImportError as error:
        return failed(f"{error}; `pip install {error.name}`, or nfcore's extra `book`, brings it", 2)
    except faults.OutOfMemory as error:
        return failed(error, faults.OUT_OF_MEMORY)
    except KeyboardInterrupt as stop:
        code = getattr(stop, "code", 130)
        return failed(str(stop) or f"interrupted; {faults.RESUME}", code) if is_first() else code
    finally:
        signal.signal(signal.SIGTERM, before)


def failed(message: object, code: int) -> int:
    print(f"nfcore: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
