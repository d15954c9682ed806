"""``python -m tools.benchmarks [SECTION ...]``: measure, write ``results/<section>.json`` here, print the targets."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from nfcore.store import write_atomically
from tools.benchmarks.common import RESULTS, ROOT, Options, Section, Target, provenance


SECTIONS = ("training", "telemetry", "data", "startup", "scaling", "equality", "coverage")


def line(section: str, target: Target) -> str:
    measured = "-" if target.measured is None else f"{target.measured:.3g}"
    wanted = "" if target.wanted is None else f"{'>=' if target.at_least else '<='} {target.wanted:g}"
    word = {True: "met", False: "MISSED", None: "not measured" if target.measured is None else "beside"}[target.met]
    return f"{section:<10} {target.name:<62} {measured:>9} {target.unit:<5} {wanted:>9}  {word}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="counted rounds (default 5)")
    parser.add_argument("--threads", type=int, default=Options.threads, help="threads of torch (default 2)")
    parser.add_argument(
        "--small", action="store_true", help="the least sizes, to try the code; written only with --results"
    )
    parser.add_argument("--nanogpt", type=Path, help="a nanoGPT checkout to train on the same tokens")
    parser.add_argument("--corpus", help="as data.corpus (default: python-source, with --small nfcore itself)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    args = parser.parse_args(arguments)
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"SECTION: {name!r} is not one of {', '.join(SECTIONS)}")
    if args.nanogpt and not (args.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt: {args.nanogpt} has no model.py of nanoGPT")
    if args.repeats < 1 or args.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # torch and tokenizers, in the processes of sections too
        os.environ[name] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    corpus = args.corpus or (str(ROOT / "nfcore") if args.small else Options.corpus)
    options = Options(args.repeats, args.threads, args.small, args.nanogpt, corpus)

    def save(name: str, section: Section) -> None:
        if not args.small or args.results != RESULTS:
            args.results.mkdir(parents=True, exist_ok=True)
            content = {"section": name, "provenance": provenance(options), **section.to_dict()}
            write_atomically(args.results / f"{name}.json", json.dumps(content, indent=1) + "\n")

    missed = False
    for name in args.sections or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        run = importlib.import_module(f"tools.benchmarks.{name}").run
        section: Section = run(replace(options, save=partial(save, name)))
        save(name, section)
        for target in section.targets:
            print(line(name, target))
            missed |= target.met is False
    return int(missed and not args.small)


if __name__ == "__main__":
    sys.exit(main())
