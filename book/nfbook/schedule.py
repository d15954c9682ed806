"""Snakemake, the one door that trains a grid: one at a time in a folder, with a bar for all runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import suppress

import psutil
from filelock import FileLock, Timeout
from tqdm import tqdm

from nfbook.cost import known_device
from nfcore import faults
from nfcore.runs import runs_dir
from nfcore.settings import Experiment, SettingsError, project_root


def snakemake(args: argparse.Namespace, config: list[str], announcement: str, experiments: list[Experiment]) -> int:
    """Run the Snakefile, one Snakemake a folder, with a bar for the ``experiments`` that it trains; its exit code."""
    root = project_root()
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--directory",
        str(root),
        "--snakefile",
        str(root / "workflow" / "Snakefile"),
    ]
    command += ["--config", *config]
    if args.hardware:
        command += [f"hardware={known_device(args.hardware)}"]
    if args.profile and not args.profile.is_dir():
        raise SettingsError(f"--profile: {str(args.profile)!r} is not a folder with a Snakemake profile")
    if args.profile and not args.dry_run and " " in sys.executable:
        raise SettingsError(
            f"--profile: {sys.executable!r} has a space, and Snakemake does not quote it in jobs' scripts"
        )
    environment = {"TOKENIZERS_PARALLELISM": "true", **os.environ}
    (root / ".snakemake").mkdir(exist_ok=True)
    try:
        # Held by every live Snakemake of this folder (see the Snakefile), and gone with it however it ends: so what
        # Snakemake's own lock says is stale when this one is free.
        with FileLock(root / ".snakemake" / "nfcore.lock", timeout=0):
            stale = any((root / ".snakemake" / "locks").glob("*"))
    except Timeout:
        raise SettingsError(f"{root}: another Snakemake is at work here; wait for it or stop it") from None
    if stale and subprocess.run([*command, "--unlock", "--quiet"], env=environment).returncode:
        raise SettingsError(f"{root}: the lock of an earlier Snakemake could not be removed")
    print(announcement, flush=True)
    here = ["--cores", str(args.cores), "--resources", "gpu=1"]
    command += ["--profile", str(args.profile.resolve())] if args.profile else here
    command += ["--rerun-incomplete", "--keep-going", "--quiet", "all", *(["--dry-run"] if args.dry_run else [])]
    with subprocess.Popen(command, env=environment) as child:
        try:
            return child.wait() if args.dry_run else _watch(child, experiments)
        except KeyboardInterrupt as stop:
            if isinstance(stop, faults.Stopped):  # came to this process alone, as Ctrl-C does not
                _terminate_children(child)
            child.wait()  # until the runs have their checkpoints
            raise


def _watch(child: subprocess.Popen[bytes], experiments: list[Experiment]) -> int:
    """Show one bar for all ``experiments`` until ``child`` ends; its exit code.

    A run counts by its tokens; all count the same if one is a whole epoch, whose tokens are not counted yet.
    """
    tokens = [(e.training.steps or 0) * e.training.batch_size * e.data.context for e in experiments]
    sizes = tokens if all(tokens) else [1] * len(tokens)
    done = [0.0] * len(experiments)

    def made() -> float:
        for i, e in enumerate(experiments):
            with suppress(OSError, ValueError):
                done[i] = float((runs_dir() / e.id / "progress").read_text())
            if (runs_dir() / e.id / "record.json").exists():
                done[i] = 1.0
        return sum(size * share for size, share in zip(sizes, done, strict=True))

    every = 0.5 if sys.stderr.isatty() else 30  # without a terminal a line every half minute
    form = "{desc}: {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
    with tqdm(
        total=sum(sizes), initial=made(), bar_format=form, smoothing=0, mininterval=every, disable=not sizes
    ) as bar:
        while child.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(1)
            bar.set_description(f"{done.count(1.0)} of {len(done)} runs", refresh=False)
            bar.update(made() - bar.n)
    return child.returncode


def _terminate_children(child: subprocess.Popen[bytes]) -> None:
    """Ask each process below this one to end, once, until ``child`` has ended: it may just be starting another."""
    asked: set[psutil.Process] = set()
    while child.poll() is None:
        for process in {*psutil.Process().children(recursive=True)} - asked:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            asked.add(process)
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
