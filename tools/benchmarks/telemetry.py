"""What measuring costs: the probe's share of training, and time, memory and error of the attention entropy.

``probe``    seconds of one probe, as training calls it, beside those of one optimiser step, and from both the share of
             training time, probe / (cadence x step), with a probe every 1, 10 and 100 steps
``entropy``  a causal :func:`nfcore.attention_entropy` by ``lse`` and ``chunked``, and by ``materialised``, which a
             reader would write, each over one forward of torch's SDPA of the same shape; the peak memory of one call.
             ``rows`` is :func:`nfcore.attention_rows`: entropy, log-sum-exp and largest logit together. ``window``,
             ``padding`` and ``softcap`` are entropies of attention that has one, over the same plain forward
``error``    the largest difference of ``lse`` and ``chunked`` from ``exact``, which is in float64, of the same inputs

All of it runs where training does; each row names its device.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nfcore.entropy import attention_entropy, attention_rows
from tools.benchmarks.common import (
    Options,
    Section,
    Target,
    _reset_peak,
    _status,
    alternate,
    device,
    in_a_process,
    ratio,
    seconds,
    spread,
)


# preset, its settings changed for a machine without a GPU, steps a round, probes a round
PROBES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "quick": ("quick", {}, 20, 10),
    "GPT-2 124M T=128": ("gpu", dict(batch_size=8, micro_batch_size=8, precision="float32", compile=False), 1, 1),
}
CADENCES = (1, 10, 100)  # steps from one probe to the next
NEVER = 10**9

CONTEXTS = (128, 512, 1024, 4096, 16384, 32768)
WIDTH = 64  # of a head
MAPS = 3  # of T x T float32 a head that `materialised` holds at its peak
MOST = 6 * 2**30  # bytes; a side that needs more is left out

SCALES = (1, 3, 10, 30, 100, 300, 1000)  # standard deviation of the scores
GIB = 2**30


def run(options: Options) -> Section:
    section = Section()

    def added(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        new = list(rows)
        section.rows += new
        options.save(section)
        return new

    added(errors())
    probe_rows = [row for name in (["quick"] if options.small else PROBES) for row in added([probe_row(name, options)])]
    contexts = (128,) if options.small else CONTEXTS
    entropy_rows = [row for context in contexts for row in added(entropy(context, options))]
    found = {(row["method"], row["context"]): row for row in entropy_rows if "seconds" in row}

    def over_sdpa(method: str) -> float | None:
        """The largest ratio at T >= 1024."""
        ratios = [
            row["over_sdpa"]["median"] for (name, context), row in found.items() if name == method and context >= 1024
        ]
        return max(ratios, default=None)

    def memory(method: str) -> float | None:
        row = found.get((method, 32768))
        return row["peak_bytes"] / GIB if row else None

    share = 100 * probe_rows[0]["share_every_100_steps"]["median"]
    section.targets = [
        Target("probe every 100 steps, quick shape: of training time", share, 1.0, "%", at_least=False),
        Target("entropy by lse over one SDPA forward, T >= 1024", over_sdpa("lse"), 1.3, "x", at_least=False),
        Target("with log-sum-exp and largest logit, T >= 1024", over_sdpa("rows"), 1.3, "x", at_least=False),
        *(
            Target(f"with a {name}, T >= 1024", over_sdpa(name), 4.0, "x", at_least=False)
            for name in ("window", "padding", "softcap")
        ),
        *(
            Target(f"peak memory of {name}, one head, T=32768", memory(name), 1.0, "GiB", at_least=False)
            for name in ("lse", "rows", "window", "padding", "softcap")
        ),
    ]
    return section


# --- the probe --------------------------------------------------------------------------------------------------


def probe_row(name: str, options: Options) -> dict[str, Any]:
    # Not at the top, for the processes that measure memory import this module and need only torch.
    from nfbook.presets import Preset
    from nfcore.training import Training

    preset, changes, steps, probes = PROBES[name]
    # Without normalisation the step is cheapest, so the share is largest.
    if torch.cuda.is_available():
        changes, steps, probes = {}, 20, 10
    plan = Preset.load(preset).experiment(
        "gpt2", "SM+G", "main", seed=0, training={**changes, "steps": steps, "eval_every": NEVER, "save_every": NEVER}
    )
    settings, context = plan.training, plan.data.context
    shape = (max(steps * settings.batch_size, settings.probe_sequences), context)
    tokens = np.random.default_rng(0).integers(plan.data.vocab_size, size=shape, dtype=np.uint16)
    data: Any = SimpleNamespace(train=tokens, validation=tokens, hash="random")
    with tempfile.TemporaryDirectory() as folder:
        training = Training(plan, data, Path(folder))
        step = seconds(training.update, steps)
        probe = seconds(training.probe, probes)
        samples = alternate({"step": step, "probe": probe}, options.repeats, options.warmup)
    over_step = ratio(samples, "probe", "step")["samples"]
    return {
        "kind": "probe",
        "shape": name,
        "device": training.accelerator.device.type,
        "context": context,
        "sequences_a_step": settings.batch_size,
        "sequences_a_probe": settings.probe_sequences,
        "step_seconds": spread(samples["step"]),
        "probe_seconds": spread(samples["probe"]),
        **{f"share_every_{cadence}_steps": spread([x / cadence for x in over_step]) for cadence in CADENCES},
    }


# --- time and memory of the entropy -----------------------------------------------------------------------------


def materialised(q: Tensor, k: Tensor) -> Tensor:
    """Row entropies (B, H, T) in the dtype of q (B, H, T, K), by way of the map."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    attention = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.special.entr(attention).sum(-1)


@torch.no_grad()
def flex(q: Tensor, k: Tensor) -> Tensor:
    """Row entropies (B, H, T) as ``lse`` computes them, from the log-sum-exp of torch's compiled ``flex_attention``."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i

    mask = create_block_mask(causal, None, None, q.shape[2], k.shape[2], device=q.device.type)
    compiled: Any = torch.compile(flex_attention)
    mean_key, found = compiled(q, k, k, block_mask=mask, return_aux=AuxRequest(lse=True))
    return found.lse - (q * mean_key).sum(-1) / math.sqrt(q.shape[-1])


@cache
def why_no_flex() -> str | None:
    """What keeps torch from compiling it; None if nothing does. Torch 2.13 does not for CPUs (pytorch #190562)."""
    try:
        flex(*draw(1, 16))
    except Exception as error:  # the compiler's own exceptions have no common base
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


METHODS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "lse": lambda q, k: attention_entropy(q, k, method="lse"),
    "chunked": lambda q, k: attention_entropy(q, k, method="chunked"),
    "rows": attention_rows,
    "window": lambda q, k: attention_entropy(q, k, window=256),
    "padding": lambda q, k: attention_entropy(q, k, padding=padded(q)),
    "softcap": lambda q, k: attention_entropy(q, k, softcap=50.0),
    "flex": flex,
    "materialised": materialised,
    "sdpa": lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
}


def padded(q: Tensor) -> Tensor:
    """A padding mask (B, T) that leaves out the first eighth."""
    real = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
    real[:, : q.shape[2] // 8] = False
    return real


def draw(heads: int, context: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, H, T, K), whose scores have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, heads, context, WIDTH, generator=generator).to(device())
    return q, k


def entropy(context: int, options: Options) -> list[dict[str, Any]]:
    heads = 12 if context <= 4096 else 1
    map_bytes = context**2 * 4
    needed = MAPS * heads * map_bytes
    q, k = draw(heads, context)
    skipped = {"materialised": f"needs {needed / GIB:.3g} GiB"} if needed > MOST else {}
    if reason := why_no_flex():
        skipped["flex"] = reason
    measured = [name for name in METHODS if name not in skipped]
    calls = max(1, 2**22 // context**2)  # in a row: the smallest take less than a millisecond
    calls *= 10 if device() == "cuda" else 1

    def side(method: Callable[[Tensor, Tensor], Any]) -> Callable[[], float]:
        return seconds(lambda: method(q, k), calls)

    samples = alternate({name: side(METHODS[name]) for name in measured}, options.repeats, options.warmup)
    rows: list[dict[str, Any]] = []
    for name in METHODS:
        row: dict[str, Any] = dict(
            kind="entropy", method=name, device=device(), context=context, heads=heads, width=WIDTH
        )
        if name == "materialised":
            row["map_bytes_a_head"] = map_bytes
        if name in measured:
            row["seconds"] = spread(samples[name])
            row["over_sdpa"] = ratio(samples, name, "sdpa")
            row["peak_bytes"] = peak_on_gpu(name, q, k) if q.is_cuda else in_a_process(peak, name, heads, context)[0]
        else:
            row["skipped"] = skipped[name]
        rows.append(row)
    return rows


def peak(method: str, heads: int, context: int) -> int:
    """Bytes by which one call raises the memory of this process above its inputs and what torch sets up once."""
    METHODS[method](*draw(2, 32))
    q, k = draw(heads, context)
    before = _reset_peak()
    METHODS[method](q, k)
    return _status("VmHWM") - before


def peak_on_gpu(method: str, q: Tensor, k: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    METHODS[method](q, k)
    return torch.cuda.max_memory_allocated() - before


# --- error of the entropy ---------------------------------------------------------------------------------------


def errors() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scale in SCALES:
        q, k = draw(4, 256)
        for dtype in (torch.float32, torch.bfloat16):
            rounded = (scale * q).to(dtype), k.to(dtype)
            exact = attention_entropy(*rounded, method="exact")
            for method in ("lse", "chunked"):
                error = (attention_entropy(*rounded, method=method) - exact).abs().max()
                rows.append(
                    {
                        "kind": "error",
                        "method": method,
                        "device": device(),
                        "dtype": str(dtype).removeprefix("torch."),
                        "score_std": scale,
                        "largest_error_nats": float(error),
                    }
                )
    return rows
