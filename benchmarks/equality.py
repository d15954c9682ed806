"""Whether what makes training faster changes what is learnt.

``path``       training loss of each fast path beside the plain one's, float32 and as Hugging Face's Trainer does it,
               over the same updates from the same weights and batches: the largest difference in nats at any update
``precision``  final evaluation loss of the main configurations in bfloat16 beside the study's recorded float32 runs of
               the same seeds: their mean difference, and the standard deviation over seeds that it is to stay within

On a GPU this is the check of the paths that only run there.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import Options, Section, Target
from nfcore.settings import Experiment


UPDATES = 200
VOCABULARY = 1000  # not a multiple of 128, so that a padded one differs
# Rounding, amplified by the updates: nats, in float32 and in bfloat16
FLOAT32, BFLOAT16 = 2e-3, 5e-2
PATHS: dict[str, tuple[dict[str, Any], float]] = {
    "micro-batches": (dict(micro_batch_size=8), FLOAT32),
    "padded vocabulary": ({}, FLOAT32),
    "chunked loss": (dict(chunked_loss=True), FLOAT32),
    "compiled": (dict(compile=True), FLOAT32),
    "bfloat16": (dict(precision="bfloat16"), BFLOAT16),
    "bfloat16, compiled, chunked loss": (dict(precision="bfloat16", compile=True, chunked_loss=True), BFLOAT16),
}
CELLS, SEEDS = ("SM+LN+G", "SM+LN+R", "SM+G", "SM+R"), 3


def run(options: Options) -> Section:
    section = Section()
    with tempfile.TemporaryDirectory() as folder, _runs_in(Path(folder)):
        section.rows += paths(options)
        if not options.small:
            section.rows += precision(options)
    for bound in (FLOAT32, BFLOAT16):
        worst = max(row["largest_difference"] for row in section.rows if row.get("bound") == bound)
        name = "float32" if bound == FLOAT32 else "bfloat16"
        section.targets.append(Target(f"largest difference of a loss, paths in {name}", worst, bound, "nats", False))
    for row in section.rows:
        if row["kind"] == "precision":
            name = f"{row['configuration']}: bfloat16 less float32, over the SD of seeds"
            section.targets.append(Target(name, abs(row["difference"]) / row["seed_sd"], 1.0, "SD", at_least=False))
    return section


@contextmanager
def _runs_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("NFCORE_RUNS")
    os.environ["NFCORE_RUNS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("NFCORE_RUNS")
        if before is not None:
            os.environ["NFCORE_RUNS"] = before


# --- paths ------------------------------------------------------------------------------------------------------


def paths(options: Options) -> list[dict[str, Any]]:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    shape = "gpt2-2x32" if options.small else "gpt2-124m" if torch.cuda.is_available() else "gpt2-6x64"
    vocabulary, updates = (300, 5) if options.small else (VOCABULARY, UPDATES)
    rows = []
    for norm in ("none",) if options.small else ("none", "layernorm"):
        model = dict(shape=shape, norm=norm, init="paper" if shape == "gpt2-124m" else "width")
        training = dict(steps=updates, batch_size=32, learning_rate=1e-3, log_every=1, eval_sequences=1)
        never = dict.fromkeys(("eval_every", "save_every", "probe_every"), 10**9)
        data = dict(corpus=options.corpus, vocab_size=vocabulary, context=128)
        whole = {"model": model, "data": data, "training": {**training, **never}}

        def losses(changes: dict[str, Any], whole: dict[str, Any] = whole) -> list[float]:
            return _losses(Experiment.from_dict({**whole, "training": {**whole["training"], **changes}}))

        plain = losses({})
        for name, (changes, bound) in PATHS.items():
            if changes.get("chunked_loss") and not hasattr(F, "linear_cross_entropy"):
                continue
            if options.small and changes.get("compile"):
                continue  # longer than all the rest there
            with _padded(name == "padded vocabulary"):
                fast = losses(
                    {**changes, "probe_sequences": 2}
                )  # another run, even where no setting of training differs
            differences = [abs(a - b) for a, b in zip(plain, fast, strict=True)]
            rows.append(
                {
                    "kind": "path",
                    "configuration": "SM+G" if norm == "none" else "SM+LN+G",
                    "shape": shape,
                    "path": name,
                    "updates": updates,
                    "largest_difference": max(differences),
                    "bound": bound,
                    "first_loss": plain[0],
                    "last_loss": plain[-1],
                }
            )
    return rows


@contextmanager
def _padded(on: bool) -> Iterator[None]:
    """Multiply with a padded vocabulary, as on a GPU."""
    from nfcore.model import Head
    from nfcore.training import VOCABULARY_MULTIPLE

    before, Head.multiple = Head.multiple, VOCABULARY_MULTIPLE if on else Head.multiple
    try:
        yield
    finally:
        Head.multiple = before


def _losses(experiment: Experiment) -> list[float]:
    import pandas as pd

    from nfcore.training import train

    metrics = pd.read_parquet(train(experiment, quiet=True) / "metrics.parquet")
    found = metrics[metrics["name"] == "train_loss"]["value"].tolist()
    assert len(found) == experiment.training.steps, "a run that stopped being finite compares nothing"
    return found


# --- precision --------------------------------------------------------------------------------------------------


def precision(options: Options) -> list[dict[str, Any]]:
    from nfcore.runs import read_records, recorded_dir
    from nfcore.study import Study

    study = Study.load("transient")  # whose runs were made in float32
    plain = {record["id"]: record["final"]["eval_loss"] for record in read_records(recorded_dir(study.name))}
    chosen = {name: study.cells[name].experiments for name in CELLS}
    twins = {
        e.id: replace(e, training=replace(e.training, precision="bfloat16"))
        for experiments in chosen.values()
        for e in experiments[:SEEDS]
    }
    # One thread a run, as the study's: as many at a time as there are threads.
    with concurrent.futures.ProcessPoolExecutor(options.threads, multiprocessing.get_context("spawn")) as pool:
        low = dict(zip(twins, pool.map(_final_loss, twins.values()), strict=True))
    rows = []
    for name, experiments in chosen.items():
        differences = [low[e.id] - plain[e.id] for e in experiments[:SEEDS]]
        rows.append(
            {
                "kind": "precision",
                "configuration": name,
                "seeds": [e.seed for e in experiments[:SEEDS]],
                "difference": statistics.mean(differences),
                "differences": differences,
                "seed_sd": statistics.stdev(plain[e.id] for e in experiments),
                "seed_sd_of": len(experiments),
            }
        )
    return rows


def _final_loss(experiment: Experiment) -> float:
    from nfcore.runs import read_record
    from nfcore.training import train

    record = read_record(train(experiment, quiet=True))
    assert record is not None
    loss = record["final"]["eval_loss"]
    return math.nan if loss is None else float(loss)
