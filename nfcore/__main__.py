"""Train runs, measure attention entropy, execute notebooks, build the book.

Exit codes: 2 wrong input, or files that cannot be read or written; 3 a run that diverged, which is recorded; 4 out of
memory; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from nfcore import faults
from nfcore.settings import DTYPES, Experiment, SettingsError, checkout_file, override, project_root, read_yaml


# Modules of the extra `book` that commands import.
BOOK = (
    "datasets",
    "IPython",
    "jupytext",
    "matplotlib",
    "myst_nb",
    "nbformat",
    "papermill",
    "scipy",
    "tabulate",
    "tqdm",
)


def read_experiment(source: str, assignments: list[str]) -> Experiment:
    """An experiment from a YAML file or, written ``PRESET/ID``, from a preset's grid, with ``section.field=value``."""
    from nfcore import study
    from nfcore.presets import PRESETS

    preset, slash, run = source.partition("/")
    if slash and preset in (*PRESETS, *study.STUDIES) and not Path(source).exists():
        found = [e for e in _grid(preset) if e.id == run]
        if not found:
            raise SettingsError(f"{source}: preset {preset} has no run {run}; `runs list {preset}` shows them")
        experiment = found[0]
        return Experiment.from_dict(override(experiment.to_dict(), assignments)) if assignments else experiment
    return Experiment.from_dict(override(read_yaml(source), assignments))


def _grid(preset: str) -> list[Experiment]:
    """All runs of a preset or of a study."""
    from nfcore import study
    from nfcore.presets import Preset

    return (study.Study if preset in study.STUDIES else Preset).load(preset).experiments()


def train(args: argparse.Namespace) -> int:
    # Everything that can be wrong with the settings is said before torch is loaded.
    fresh = "fresh=true" in args.settings
    settings = [a for a in args.settings if a not in ("fresh=true", "fresh=false")]
    experiment = read_experiment(args.experiment, settings)
    gc.disable()  # torch and its like bring a million objects and no garbage: to look for it takes over a second
    from nfcore.runs import read_record
    from nfcore.training import train as run

    gc.enable()
    gc.freeze()
    directory = run(experiment, fresh=fresh, report_to=args.report_to, quiet=args.quiet, fsdp=args.fsdp)
    record = read_record(directory) or {}
    if not args.quiet and os.environ.get("RANK", "0") == "0":
        final = record["final"]
        result = f"perplexity {final['perplexity']:.3f}" if final["perplexity"] else f"diverged: {record['diverged']}"
        print(f"{directory}: {result} after {final['step']} steps")
    return faults.DIVERGED if record["status"] == "diverged" else 0


def data(args: argparse.Namespace) -> None:
    experiment = read_experiment(args.experiment, args.settings)
    from nfcore.tokens import prepare

    tokens = prepare(experiment.data, args.processes)
    summary = {k: v for k, v in tokens.meta.items() if k not in ("settings", "packages", "versions")}
    print(yaml.safe_dump({"directory": str(tokens.directory), **summary}, sort_keys=False), end="")
    if args.mark:
        args.mark.parent.mkdir(parents=True, exist_ok=True)
        args.mark.write_text(tokens.hash + "\n")


def entropy(args: argparse.Namespace) -> None:
    from nfcore.measure import entropy_of_texts

    options = dict(device=args.device, dtype=args.dtype, csv=args.csv, plot=args.plot)
    for table in entropy_of_texts(args.model, args.text, args.context, args.sequences, **options):
        print(table, flush=True)


def list_runs(args: argparse.Namespace) -> None:
    from nfcore import runs

    if args.preset:
        for e in _grid(args.preset):
            record = runs.read_record(runs.runs_dir() / e.id)
            print(
                f"{e.id}  {record['status'] if record else 'not run':9}  {e.name}, {e.training.steps or 'epoch'} steps"
            )
        return
    frame = runs.load_runs().runs
    if frame.empty:
        raise SettingsError(f"{runs.runs_dir()}: no finished runs")
    columns = ["run", "model.family", "configuration", "data.context", "seed", "step", "perplexity", "status"]
    print(frame[columns].to_string(index=False, float_format="{:.3f}".format))


def show_run(args: argparse.Namespace) -> None:
    print(yaml.safe_dump(_record(args.run)[1], sort_keys=False), end="")


def verify_runs(args: argparse.Namespace) -> None:
    from nfcore import runs

    names = [args.run] if args.run else sorted(p.parent.name for p in runs.runs_dir().glob("*/record.json"))
    for name in names:
        runs.verify(*_record(name))
    print(f"{len(names)} runs match their recorded hashes")


def record_runs(args: argparse.Namespace) -> None:
    from nfcore.runs import export
    from nfcore.study import STUDIES, Study

    if args.preset in STUDIES:
        print(Study.load(args.preset).record())
    else:
        print(export(args.preset, [e.id for e in _grid(args.preset)]))


def _record(run: str) -> tuple[Path, dict[str, Any]]:
    from nfcore import runs

    directory = runs.runs_dir() / run
    record = runs.read_record(directory)
    if record is None:
        raise SettingsError(f"{directory}: not a finished run")
    return directory, record


def notebook(args: argparse.Namespace) -> None:
    from nfcore.notebook import execute

    print(execute(args.script, args.output, override({}, args.parameters)))


def plan(args: argparse.Namespace) -> None:
    from nfcore import cost

    single = "/" in args.runs or Path(args.runs).is_file()
    experiments = [read_experiment(args.runs, [])] if single else _grid(args.runs)
    print(cost.report(experiments, cost.known_device(args.hardware) if args.hardware else cost.this_device()))


def _snakemake(args: argparse.Namespace, config: list[str], announcement: str, experiments: list[Experiment]) -> int:
    """Run the Snakefile, one Snakemake a folder, with a bar for the ``experiments`` that it trains; its exit code."""
    from filelock import FileLock, Timeout

    root = project_root()
    command = [sys.executable, "-m", "snakemake", "--directory", str(root), "--snakefile", str(root / "Snakefile")]
    command += ["--config", *config]
    if args.hardware:
        from nfcore.cost import known_device

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
                _terminate_children()
            child.wait()  # until the runs have their checkpoints
            raise


def _watch(child: subprocess.Popen[bytes], experiments: list[Experiment]) -> int:
    """Show one bar for all ``experiments`` until ``child`` ends; its exit code.

    A run counts by its tokens; all count the same if one is a whole epoch, whose tokens are not counted yet.
    """
    from tqdm import tqdm

    from nfcore.runs import runs_dir

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


def _terminate_children() -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.terminate()


def book(args: argparse.Namespace) -> int:
    """Run the whole grid of a preset and build its book, through the Snakefile."""
    from nfcore.presets import Preset
    from nfcore.runs import MEASUREMENT_VERSION, read_record, runs_dir

    preset = Preset.load(args.preset)
    checkout_file("Snakefile")
    if preset.preset in ("gpu", "paper") and not args.dry_run and not args.profile:
        import torch

        if not torch.cuda.is_available():
            raise SettingsError(f"preset: {preset.preset!r} needs a CUDA device; smoke and quick run on a CPU")
    experiments = preset.experiments()
    records = [read_record(runs_dir() / e.id) for e in experiments]
    missing_runs = [e for e, record in zip(experiments, records, strict=True) if record is None]
    announcement = f"Preset {preset.preset}: {len(records)} runs, {len(missing_runs)} to train"
    changed = sum(r is not None and r["provenance"]["measurement"] != MEASUREMENT_VERSION for r in records)
    if changed:
        print(
            f"{changed} finished runs were made with another measurement version than the present; "
            "`python -m nfcore train PRESET/ID fresh=true` retrains one",
            file=sys.stderr,
        )
    config = [f"preset={preset.preset}"]
    code = _snakemake(args, config, announcement, missing_runs)
    build = project_root() / "_build" / preset.preset
    names = sorted(path.stem for path in (project_root() / "notebooks").glob("*.py"))
    missing = [name for name in names if not (build / "notebooks" / f"{name}.ipynb").exists()]
    made = code == 0
    if code and not (args.strict or args.dry_run) and 0 < len(missing) < len(names):
        print(
            f"nfcore: {', '.join(missing)}: failed, and the book says so; --strict makes none then",
            file=sys.stderr,
        )
        made = _snakemake(args, [*config, f"missing={'+'.join(missing)}"], "The book without them", []) == 0
    if made and not args.dry_run:
        print(f"The book of preset {preset.preset}: open {build / 'html' / 'index.html'}")
    return code


def study(args: argparse.Namespace) -> int:
    """Train what is missing of a stage, through the Snakefile, and record it; without a stage say how all stand."""
    from nfcore.study import Study

    if args.stage is None:
        print(Study.load().state().to_string(index=False))
        return 0
    study, stage = Study.with_stage(args.stage)
    missing = study.missing(stage)
    announcement = f"Stage {args.stage}: {len(study.experiments(stage))} runs, {len(missing)} to train"
    if args.dry_run:
        print(announcement)
        return 0
    if missing and (code := _snakemake(args, [f"study={args.stage}"], announcement, missing)):
        return code
    print(study.record())
    return 0


def claims(args: argparse.Namespace) -> int:
    """Print the verdicts; exit with 1 if a recorded one does not follow from the recorded runs."""
    from nfcore.study import STUDIES, Study

    studies = [Study.load(name, args.source) for name in args.study or STUDIES]  # first: an installed package has none
    from nfcore import claims as ledger

    code = 0
    for study in studies:
        found = ledger.summary(ledger.statistics(study.runs(), study), study.name)
        print(f"{study.name}\n{found.to_markdown(index=False, tablefmt='simple', floatfmt='.3f')}\n")
        if args.record:
            print(ledger.record(found, study.name))
        elif args.source == "recorded":
            for line in ledger.outdated(found, study.name):
                print(f"nfcore: {study.name}: {line}", file=sys.stderr)
                code = 1
    return code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m nfcore", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, parent: Any = commands) -> argparse.ArgumentParser:
        sub = parent.add_parser(name, help=text, description=text)
        sub.set_defaults(action=run)  # "run" is an argument of some commands
        return sub

    def scheduled(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--cores", type=int, default=os.cpu_count(), help="of this machine (default: all)")
        sub.add_argument("--profile", type=Path, help="a folder of profiles/: train on a cluster")
        sub.add_argument("--hardware", help="what the time of a cluster's jobs is planned for, as in `plan`")
        sub.add_argument("--dry-run", action="store_true", help="only say what would be done")

    for name, run, text in (
        ("train", train, "train one run, resume it, or find it finished (fresh=true: train it again)"),
        ("data", data, "prepare the token files of an experiment"),
    ):
        sub = command(name, run, text)
        sub.add_argument(
            "experiment", metavar="EXPERIMENT.yaml", help="a settings file, or PRESET/ID of a preset's run"
        )
        sub.add_argument("settings", nargs="*", metavar="section.field=value")
        if name == "train":
            sub.add_argument("--report-to", action="append", default=[], help="tensorboard, wandb, trackio, ...")
            sub.add_argument("--quiet", action="store_true", help="no progress")
            sub.add_argument(
                "--fsdp", action="store_true", help="shard the model over the processes of torchrun (FSDP2)"
            )
        else:
            sub.add_argument("--processes", type=int, default=1, metavar="N", help="how many tokenise at once")
            sub.add_argument("--mark", type=Path, help=argparse.SUPPRESS)

    sub = command("entropy", entropy, "attention entropy per head of a saved or Hub model on a text")
    sub.add_argument("model", help="a run's id, a directory of a saved model, or a Hub name")
    sub.add_argument("text", type=Path, nargs="+", help="a UTF-8 text file")
    sub.add_argument("--context", type=int, default=128, help="tokens a sequence (default 128)")
    sub.add_argument("--sequences", type=int, default=16, help="sequences from the start of the text (default 16)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default cpu)")
    sub.add_argument("--dtype", choices=DTYPES, help="of the model (default: as its weights are saved)")
    sub.add_argument("--csv", type=Path, help="write what is measured of each head, a line per layer and head")
    sub.add_argument(
        "--plot", type=Path, help="write a picture of the heads' entropy over its ceiling (.png, .svg, ...)"
    )

    group = commands.add_parser("runs", help="list, show, verify, record").add_subparsers(required=True)
    sub = command("list", list_runs, "finished runs of this machine, or the runs of a preset and their state", group)
    sub.add_argument("preset", nargs="?")
    command("show", show_run, "settings, results and provenance of a run", group).add_argument("run")
    command("verify", verify_runs, "compare files with their recorded hashes", group).add_argument("run", nargs="?")
    sub = command("record", record_runs, "copy the finished grid of a preset to data/recorded/", group)
    sub.add_argument("preset")

    sub = command("notebook", notebook, "execute a notebook script: jupytext, papermill, the same bytes each time")
    sub.add_argument("script", type=Path)
    sub.add_argument("output", type=Path)
    sub.add_argument("parameters", nargs="*", metavar="name=value")

    sub = command(
        "claims", claims, "verdicts on claims, confounds and mechanism; 1 if a recorded one no longer follows"
    )
    sub.add_argument("study", nargs="*", help="study, transient (default: both)")
    sub.add_argument("--source", choices=("recorded", "local"), default="recorded")
    sub.add_argument("--record", action="store_true", help="write the verdicts beside the recorded runs")

    sub = command("study", study, "train what is missing of a stage and record it; without a stage say how all stand")
    sub.add_argument(
        "stage", nargs="?", help="rates, table, pythia, linear, sizes, quick, or transient/STAGE (default: none)"
    )
    scheduled(sub)

    sub = command("book", book, "run the grid of a preset and build its book")
    sub.add_argument("preset", nargs="?", default="quick")
    sub.add_argument("--strict", action="store_true", help="no book if a notebook failed; else one that says which")
    scheduled(sub)

    sub = command("plan", plan, "what runs take: parameters, tokens, memory, storage, hours")
    sub.add_argument("runs", metavar="PRESET", help="a preset, study, transient, PRESET/ID, or a settings file")
    sub.add_argument(
        "--hardware", help="H100, A100, ..., or a device that runs are recorded of (default: this machine)"
    )
    return root


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, faults.stop)
    try:
        return args.action(args) or 0
    except SettingsError as error:
        return failed(error, 2)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return failed(faults.full_disk(error.filename or os.fspath(project_root())), 2)
        where = f"{error.filename}: " if error.filename else ""
        return failed(f"{where}{error.strerror or error}", 2)
    except ImportError as error:
        extra = "; it is in nfcore's extra `book`, which `make` installs in a checkout" if error.name in BOOK else ""
        return failed(f"{error}{extra}", 2)
    except faults.OutOfMemory as error:
        return failed(error, faults.OUT_OF_MEMORY)
    except RuntimeError as error:
        if args.action is notebook:
            return failed(error, 1)
        raise
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") != "0":  # the first of several processes speaks for all
            return getattr(stop, "code", 130)
        return failed(str(stop) or f"interrupted; {faults.RESUME}", getattr(stop, "code", 130))
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def failed(message: object, code: int) -> int:
    print(f"nfcore: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
