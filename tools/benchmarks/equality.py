"""Whether what makes training faster changes what is learnt.

``parity``     logits and head entropies of our GPT-2 and GPT-NeoX beside those of Hugging Face's models with the same
               weights, the entropies from its attention maps
``path``       training loss of each fast path beside the plain one's, float32 and as Hugging Face's Trainer does it,
               over the same updates from the same weights and batches: the largest difference in nats at any update
``precision``  final evaluation loss of the main configurations in bfloat16 beside the study's recorded float32 runs of
               the same seeds: their mean difference, and the standard deviation over seeds that it is to stay within

On a GPU this is the check of the paths that only run there; `precision` is left out, since its records are of a CPU.
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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from nfcore.settings import Experiment
from tools.benchmarks.common import Options, Section, Target


UPDATES = {"cpu": 200, "cuda": 50}
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
    for row in parity(options):
        section.rows.append(row)
        for what, unit in (("logits", "SD"), ("entropy", "nats")):
            name = f"{row['family']} in {row['dtype']}: largest difference of {what} from Hugging Face's"
            section.targets.append(Target(name, row[f"{what}_difference"], row[f"{what}_bound"], unit, at_least=False))
        options.save(section)
    for row in paths(options):
        section.rows.append(row)
        options.save(section)
    if not options.small and not torch.cuda.is_available():
        with tempfile.TemporaryDirectory() as folder, _runs_in(Path(folder)):
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


# --- parity -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def parity(options: Options) -> Iterator[dict[str, Any]]:
    from nfcore.convert import from_gpt2, from_gpt_neox
    from nfcore.meter import head_entropy
    from nfcore.settings import SHAPES, ModelSettings
    from tools.benchmarks.training import reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = device == "cuda" and not options.small
    shapes = ("gpt2-124m", "pythia-70m") if large else ("gpt2-2x32", "pythia-2x32")
    context = 512 if large else 32
    for shape, ours in zip(shapes, (from_gpt2, from_gpt_neox), strict=True):
        torch.manual_seed(0)
        settings = ModelSettings(vocab_size=VOCABULARY, **SHAPES[shape])
        theirs = reference(settings, context, eager=True).eval()
        model = ours(theirs).eval().to(device)
        theirs.to(device)
        ids = torch.randint(VOCABULARY, (4, context), device=device)
        for dtype, logits_bound, entropy_bound in ((torch.float32, 1e-4, 1e-4), (torch.bfloat16, 0.25, 1e-2)):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                expected = theirs(ids)
                logits, entropy = model(input_ids=ids).logits, head_entropy(model, ids)
            maps = torch.stack([a.double() for a in expected.attentions])  # (L, B, H, T, T)
            entropies = torch.special.entr(maps).sum(-1).mean((1, 3)).cpu()
            gap = (logits.float() - expected.logits.float()).abs().max() / expected.logits.float().std()
            yield {
                "kind": "parity",
                "device": device,
                "family": settings.family,
                "dtype": str(dtype).removeprefix("torch."),
                "context": context,
                "logits_difference": float(gap),
                "logits_bound": logits_bound,
                "entropy_difference": float((entropy - entropies).abs().max()),
                "entropy_bound": entropy_bound,
            }


# --- paths ------------------------------------------------------------------------------------------------------


def paths(options: Options) -> Iterator[dict[str, Any]]:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    shape = "gpt2-2x32" if options.small else "gpt2-124m" if gpu else "gpt2-6x64"
    vocabulary, updates = (300, 5) if options.small else (VOCABULARY, UPDATES["cuda" if gpu else "cpu"])
    for norm in ("none",) if options.small or gpu else ("none", "layernorm"):
        model = dict(shape=shape, norm=norm, init="paper" if shape == "gpt2-124m" else "width")
        training = dict(steps=updates, batch_size=32, learning_rate=1e-3, log_every=1, eval_sequences=1)
        never = dict.fromkeys(("eval_every", "save_every", "probe_every"), 10**9)
        data = dict(corpus=options.corpus, vocab_size=vocabulary, context=128)
        whole = {"model": model, "data": data, "training": {**training, **never}}

        def losses(changes: dict[str, Any], whole: dict[str, Any] = whole) -> list[float]:
            return _losses(Experiment.from_dict({**whole, "training": {**whole["training"], **changes}}))

        with _padded(False):
            plain = losses({})
        for name, (changes, bound) in PATHS.items():
            if changes.get("chunked_loss") and not hasattr(F, "linear_cross_entropy"):
                continue
            if options.small and changes.get("compile"):
                continue  # longer than all the rest there
            with _padded(name == "padded vocabulary"):
                fast = losses(changes)
            differences = [abs(a - b) for a, b in zip(plain, fast, strict=True)]
            yield {
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


@contextmanager
def _padded(on: bool) -> Iterator[None]:
    """Multiply with a padded vocabulary, as training does on a GPU, or with the vocabulary as it is."""
    from nfcore import training
    from nfcore.model import Head

    before = Head.multiple, training.VOCABULARY_MULTIPLE
    Head.multiple = training.VOCABULARY_MULTIPLE = 128 if on else 1
    try:
        yield
    finally:
        Head.multiple, training.VOCABULARY_MULTIPLE = before


def _losses(experiment: Experiment) -> list[float]:
    from nfcore.tokens import prepare
    from nfcore.training import Training

    steps = experiment.training.steps
    assert steps is not None
    with tempfile.TemporaryDirectory() as folder:
        training = Training(experiment, prepare(experiment.data), Path(folder))
        training.run()
    metrics = training.telemetry.tables["metrics"]
    found = [row["value"] for row in metrics if row["name"] == "train_loss"]
    assert len(found) == steps, "a run with a value that is not finite compares nothing"
    return found


# --- precision --------------------------------------------------------------------------------------------------


def precision(options: Options) -> list[dict[str, Any]]:
    from nfbook.recorded import recorded_dir
    from nfbook.study import Study
    from nfcore.runs import read_records

    study = Study.load("transient")  # whose runs were made in float32
    plain = {record["id"]: record["final"]["eval_loss"] for record in read_records(recorded_dir(study.name))}
    chosen = {name: study.cells[name].experiments for name in CELLS}
    twins = {
        e.id: e.replace(training=e.training.replace(precision="bfloat16"))
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
