"""Train grids, execute notebooks, judge claims, build the book."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml

from nfbook import crate, models
from nfbook.presets import PRESETS, Preset
from nfbook.recorded import export, recorded_dir
from nfbook.study import STUDIES, Study
from nfcore import runs
from nfcore.__main__ import command, failed, read_experiment, run
from nfcore.settings import Experiment, SettingsError, choice, override, project_root


def grid(name: str) -> list[Experiment]:
    """All runs of a preset or of a study."""
    choice("grid", name, (*PRESETS, *STUDIES))
    return (Study if name in STUDIES else Preset).load(name).experiments()


def build(args: argparse.Namespace) -> int:
    """Run the whole grid of a preset and build its book, through the Snakefile."""
    from nfbook.schedule import snakemake

    preset = Preset.load(args.preset)
    if preset.preset in ("gpu", "paper") and not args.dry_run and not args.profile:
        import torch

        if not torch.cuda.is_available():
            raise SettingsError(f"preset: {preset.preset!r} needs a CUDA device; smoke and quick run on a CPU")
    experiments = preset.experiments()
    records = [runs.read_record(runs.runs_dir() / e.id) for e in experiments]
    to_train = [e for e, record in zip(experiments, records, strict=True) if record is None]
    changed = sum(r is not None and r["provenance"]["measurement"] != runs.MEASUREMENT_VERSION for r in records)
    if changed:
        print(
            f"{changed} finished runs were made with another measurement version than the present; "
            "`python -m nfcore train runs/ID/settings.yaml fresh=true` retrains one",
            file=sys.stderr,
        )
    config = [f"preset={preset.preset}"]
    announcement = f"Preset {preset.preset}: {len(records)} runs, {len(to_train)} to train"
    code = snakemake(args, config, announcement, to_train)
    output = project_root() / "_build" / preset.preset
    names = sorted(path.stem for path in (project_root() / "notebooks").glob("*.py"))
    missing = [name for name in names if not (output / "notebooks" / f"{name}.ipynb").exists()]
    made = code == 0
    if code and not (args.strict or args.dry_run) and 0 < len(missing) < len(names):
        print(f"nfbook: {', '.join(missing)}: failed, and the book says so; --strict makes none then", file=sys.stderr)
        made = snakemake(args, [*config, f"missing={'+'.join(missing)}"], "The book without them", []) == 0
    if made and not args.dry_run:
        print(f"The book of preset {preset.preset}: open {output / 'html' / 'index.html'}")
    return code


def study(args: argparse.Namespace) -> int:
    """Train what is missing of a stage, through the Snakefile, and record it; without a stage say how all stand."""
    if args.stage is None:
        print(Study.load().state().to_string(index=False))
        return 0
    chosen, stage = Study.with_stage(args.stage)
    missing = chosen.missing(stage)
    announcement = f"Stage {args.stage}: {len(chosen.experiments(stage))} runs, {len(missing)} to train"
    if args.dry_run:
        print(announcement)
        return 0
    if missing:
        from nfbook.schedule import snakemake

        if code := snakemake(args, [f"study={args.stage}"], announcement, missing):
            return code
    print(crate.write(chosen.record()))
    return 0


def claims(args: argparse.Namespace) -> int:
    """Print the verdicts; exit with 1 if a recorded one does not follow from the recorded runs."""
    from nfbook import claims as ledger

    code = 0
    for chosen in [Study.load(name, args.source) for name in args.study or STUDIES]:
        found = ledger.summary(ledger.statistics(chosen.runs(), chosen), chosen.name)
        shown = found.drop(columns="runs").to_markdown(index=False, tablefmt="simple", floatfmt=".3f")
        print(f"{chosen.name}\n{shown}\n")
        if args.record:
            print(ledger.record(found, chosen.name))
            crate.write(recorded_dir(chosen.name))
        elif args.source == "recorded":
            for line in ledger.outdated(found, chosen.name):
                print(f"nfbook: {chosen.name}: {line}", file=sys.stderr)
                code = 1
    return code


def list_grid(args: argparse.Namespace) -> None:
    """The runs of a grid and their state; with ``--write`` the settings file of each, as ``nfcore train`` takes it."""
    for e in grid(args.grid):
        record = runs.read_record(runs.runs_dir() / e.id)
        print(f"{e.id}  {record['status'] if record else 'not run':9}  {e.name}, {e.training.steps or 'epoch'} steps")
        if args.write:
            args.write.mkdir(parents=True, exist_ok=True)
            (args.write / f"{e.id}.yaml").write_text(yaml.safe_dump(e.to_dict(), sort_keys=False))


def record(args: argparse.Namespace) -> None:
    """Copy the finished runs of a grid to data/recorded, with an RO-Crate."""
    if args.grid in STUDIES:
        print(crate.write(Study.load(args.grid).record()))
    else:
        print(crate.write(export(args.grid, [e.id for e in grid(args.grid)])))


def verify(args: argparse.Namespace) -> None:
    """Compare every file of the recorded sets with its recorded hash."""
    folders = sorted(path for path in recorded_dir("").iterdir() if path.is_dir())
    for folder in folders:
        print(f"{folder.name}: {crate.verify(folder)} files match")


def pack_models(args: argparse.Namespace) -> None:
    """Pack trained models, each with a model card, as a zip file; SHA256SUMS has their checksums."""
    ids: list[str] = []
    for name in args.runs:
        if name in (*PRESETS, *STUDIES):
            ids += [e.id for e in grid(name) if models.finished(e.id)]
        else:
            ids.append(name)
    for path in models.pack(list(dict.fromkeys(ids)), args.out):
        print(path)


def plan(args: argparse.Namespace) -> None:
    from nfbook import cost

    experiments = [read_experiment(args.runs, [])] if Path(args.runs).is_file() else grid(args.runs)
    print(cost.report(experiments, cost.known_device(args.hardware) if args.hardware else cost.this_device()))


def notebook(args: argparse.Namespace) -> int:
    from nfbook.notebook import execute

    try:
        print(execute(args.script, args.output, override({}, args.parameters)))
    except RuntimeError as error:
        return failed(error, 1)
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m nfbook", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    sub = command(commands, "build", build, "run the grid of a preset and build its book")
    sub.add_argument("preset", nargs="?", default="quick")
    sub.add_argument("--strict", action="store_true", help="no book if a notebook failed; else one that says which")
    scheduled(sub)

    text = "train what is missing of a stage and record it; without a stage say how all stand"
    sub = command(commands, "study", study, text)
    sub.add_argument("stage", nargs="?", help="a stage of the study, or transient/STAGE (default: none)")
    scheduled(sub)

    text = "verdicts on claims, confounds and mechanism; 1 if a recorded one no longer follows"
    sub = command(commands, "claims", claims, text)
    sub.add_argument("study", nargs="*", help="study, transient (default: both)")
    sub.add_argument("--source", choices=("recorded", "local"), default="recorded")
    sub.add_argument("--record", action="store_true", help="write the verdicts beside the recorded runs")

    sub = command(commands, "list", list_grid, "the runs of a preset or a study, and their state")
    sub.add_argument("grid")
    sub.add_argument("--write", type=Path, metavar="FOLDER", help="write the settings file of each run there")

    sub = command(commands, "record", record, "copy the finished runs of a preset or a study to data/recorded")
    sub.add_argument("grid")

    command(commands, "verify", verify, "compare the recorded sets with the hashes in their RO-Crates")

    sub = command(commands, "models", pack_models, "pack trained models with model cards and checksums")
    sub.add_argument(
        "runs", metavar="RUN", nargs="+", help="the id of a run; a preset or a study, for its finished runs"
    )
    sub.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="where the zip files go")

    sub = command(commands, "plan", plan, "what runs take: parameters, tokens, memory, storage, hours")
    sub.add_argument("runs", metavar="GRID", help="a preset, study, transient, or a settings file")
    sub.add_argument("--hardware", help="H100, A100, ..., or a device that runs are recorded of (default: this one)")

    text = "execute a notebook script: jupytext, papermill, the same bytes each time"
    sub = command(commands, "notebook", notebook, text)
    sub.add_argument("script", type=Path)
    sub.add_argument("output", type=Path)
    sub.add_argument("parameters", nargs="*", metavar="name=value")
    return root


def scheduled(sub: argparse.ArgumentParser) -> None:
    """Add the options of a command that trains a grid."""
    sub.add_argument("--cores", type=int, default=os.cpu_count(), help="of this machine (default: all)")
    sub.add_argument("--profile", type=Path, help="a folder of workflow/profiles: train on a cluster")
    sub.add_argument("--hardware", help="what the time of a cluster's jobs is planned for, as in `plan`")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be done")


def main(arguments: list[str] | None = None) -> int:
    if not (project_root() / "notebooks").is_dir():
        return failed(f"{project_root()}: no checkout of the project; work in one, or name it in NFCORE_ROOT", 2)
    return run(parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
