"""How cost grows with width, depth, context, batch and vocabulary, against the roofline of the machine.

``peak``     measured: a large matrix product in fp32 and bf16, and the bandwidth of a copy
``scaling``  tokens/s, peak memory and model FLOP/s of training over one size at a time, the others as in the base;
             what a token costs is :func:`nfbook.cost.flops_per_token`
``profile``  of GPT-2 124M: the share of an update's time that matrix products take, and what they reach of the peak
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfbook.cost import PEAK_TFLOPS, card, flops_per_token
from nfcore.settings import Experiment
from tools.benchmarks.common import Options, Section, Target, in_a_process, seconds, spread
from tools.benchmarks.training import experiment, ours


BASE = dict(width=256, depth=4, context=128, batch=16, vocabulary=4096)
OVER: dict[str, tuple[int, ...]] = {
    "width": (64, 128, 256, 512, 768),
    "depth": (1, 2, 4, 8, 12),
    "context": (64, 128, 256, 512, 1024),
    "batch": (1, 4, 16, 64),
    "vocabulary": (1024, 4096, 16384, 50257),
}


def run(options: Options) -> Section:
    section = Section()
    section.rows = peaks(options)
    measured = {row["what"]: row["median"] for row in section.rows}
    sizes = {"width": (32,)} if options.small else OVER
    base = dict(width=32, depth=2, context=32, batch=4, vocabulary=300) if options.small else BASE
    for name, values in sizes.items():
        for value in values:
            section.rows.append(point(name, {**base, name: value}, measured, options))
    row = profile("gpt2-2x32" if options.small else "gpt2-124m", 300 if options.small else 50257, measured, options)
    section.rows.append(row)
    section.targets = [
        Target("GPT-2 124M T=128: matrix products, of an update's time", 100 * row["matmul_share"], 50, "%"),
        Target("GPT-2 124M T=128: they reach, of the measured peak", 100 * row["matmul_of_peak"], 60, "%"),
    ]
    return section


def peaks(options: Options) -> list[dict[str, Any]]:
    """GFLOP/s of a matrix product and GB/s of a copy: the best that this machine does."""
    rows = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 256 if options.small else 2048 if device == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        rates = [2 * n**3 / t / 1e9 for t in _times(lambda a=a, b=b: a @ b, options.repeats)]
        rows.append({"kind": "peak", "what": str(dtype).removeprefix("torch."), "unit": "GFLOP/s", **spread(rates)})
    source = torch.ones(2**16 if options.small else 2**26, device=device)
    target = torch.empty_like(source)
    rates = [2 * source.nbytes / t / 1e9 for t in _times(lambda: target.copy_(source), options.repeats)]
    rows.append({"kind": "peak", "what": "bandwidth", "unit": "GB/s", **spread(rates)})
    return rows


def _times(function: Any, repeats: int) -> list[float]:
    def synchronised() -> None:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    synchronised()
    side = seconds(synchronised, 3)
    return [side() for _ in range(repeats)]


def plan(sizes: dict[str, int], **training: Any) -> Experiment:
    heads = max(1, sizes["width"] // 64)
    model = dict(hidden_size=sizes["width"], num_hidden_layers=sizes["depth"], num_attention_heads=heads)
    model["max_position_embeddings"] = sizes["context"]
    base = experiment("gpt2-2x32", sizes["vocabulary"], sizes["context"], sizes["batch"], **training).to_dict()
    base["model"] |= {**model, "intermediate_size": 4 * sizes["width"], "norm": "none"}
    return Experiment.from_dict(base)


def point(over: str, sizes: dict[str, int], measured: dict[str, float], options: Options) -> dict[str, Any]:
    settings = plan(sizes, precision="auto")
    (rates, precision), memory = in_a_process(train, settings, options.repeats, options.threads)
    flops = flops_per_token(settings.model, settings.data.context)
    reached = [rate * flops / 1e9 for rate in rates]
    row = {"kind": "scaling", "over": over, **sizes, "precision": precision, "flops_per_token": flops}
    row |= {"tokens_per_second": spread(rates), "gflops": spread(reached), "peak_bytes": memory}
    row["of_measured_peak"] = spread([x / measured[precision] for x in reached])
    row["mfu"] = mfu(row["gflops"]["median"])
    return row


def train(settings: Experiment, repeats: int, threads: int) -> tuple[list[float], str]:
    """Tokens/s of each round, and the precision; in a process of its own, for the memory."""
    from transformers.utils import logging as transformers_logging

    from nfcore.machine import resolve_precision

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(threads)
    steps = max(2, 8192 // (settings.training.batch_size * settings.data.context))
    rows = 4 * settings.training.batch_size * steps
    tokens = np.random.default_rng(0).integers(settings.data.vocab_size, size=(rows, settings.data.context))
    with tempfile.TemporaryDirectory() as folder:
        side = ours(settings, tokens.astype(np.uint16), steps, Path(folder))
        side()
        return [side() for _ in range(repeats)], resolve_precision(settings.training.precision)


def mfu(gflops: float) -> float | str:
    """Model FLOP/s utilisation, of the data sheet's peak."""
    peak = PEAK_TFLOPS.get(card(torch.cuda.get_device_name())) if torch.cuda.is_available() else None
    return gflops / 1e3 / peak if peak else "unknown"


def profile(shape: str, vocabulary: int, measured: dict[str, float], options: Options) -> dict[str, Any]:
    """Of one update in fp32, by torch's profiler: operators by their own time on the device."""
    batch, context = (4, 32) if options.small else (8, 128)
    settings = experiment(shape, vocabulary, context, batch)
    gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    tokens = np.random.default_rng(0).integers(vocabulary, size=(4 * batch, context), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        side = ours(settings, tokens, 1, Path(folder))
        side()
        start = time.perf_counter()
        with torch.profiler.profile(activities=[activity], with_flops=True) as found:
            rate = side()
        passed = time.perf_counter() - start
    operators = [
        (event.key, (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6, event.flops or 0)
        for event in found.key_averages()
    ]
    total = sum(own for _, own, _ in operators)
    products = [(own, flops) for name, own, flops in operators if name in ("aten::mm", "aten::addmm", "aten::bmm")]
    busy, work = (sum(column) for column in zip(*products, strict=True))
    largest = sorted(operators, key=lambda row: -row[1])[:10]
    return {
        "kind": "profile",
        "shape": shape,
        "tokens_per_second": rate,
        "seconds": passed,
        "matmul_share": busy / total,
        "matmul_of_peak": work / busy / 1e9 / measured["float32"],
        "largest": [{"operator": name, "share": own / total} for name, own, _ in largest],
    }
