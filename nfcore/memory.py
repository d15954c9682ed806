"""What a run takes of memory, what there is, and what would take less.  No torch at import."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

import psutil

from nfcore.settings import Experiment, TrainingSettings


def processes() -> int:
    """How many work on one run together, as torchrun and ``accelerate launch`` say it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batch(settings: TrainingSettings) -> int:
    """Sequences that each process takes at a time of its part of the batch."""
    return math.gcd(settings.batch_size // processes(), settings.micro_batch_size or settings.batch_size)


def estimate(experiment: Experiment, micro: int | None = None) -> float:
    """Of training in one process, roughly: weights, gradients and AdamW's two moments in float32 (16 bytes a parameter)
    and autocast's 16-bit copy of the weights; what the backward pass of a micro-batch (of ``micro`` sequences, or as
    the settings say) needs of each layer; its logits."""
    from nfcore.model import count_parameters  # which loads torch

    model, settings = experiment.model, experiment.training
    tokens = (micro or settings.micro_batch_size or settings.batch_size) * experiment.data.context
    wide, low = (4 if kind == "float32" else 2 for kind in (model.residual_dtype, settings.precision))
    # The stream and its normalised copy, twice; q, k, v and attention's output; the FFN; attention's log-sum-exp.
    layer = (2 * wide + 6 * low) * model.hidden_size + 2 * low * (model.intermediate_size or 0)
    layer += 4 * model.num_attention_heads
    layers = model.num_hidden_layers * layer
    if settings.gradient_checkpointing:
        layers = model.num_hidden_layers * wide * model.hidden_size + layer
    head = (2 * low + 12) * model.vocab_size  # logits and gradient; in float32 logits, log-softmax and gradient
    return count_parameters(model)[0] * (16 + low % 4) + tokens * (layers + head)


def limit() -> float:
    """Bytes that this process may have: of the GPU if there is one, else its part of the machine or the container."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):  # no such container, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def advice(experiment: Experiment) -> str:
    """What a run is estimated to take of the memory that there is, and the setting that takes less: the largest
    micro-batch below the present one that fits, or gradient checkpointing if none does."""
    settings, there = experiment.training, limit()
    micro = micro_batch(settings)
    remedy = "a smaller model" if settings.gradient_checkpointing else "training.gradient_checkpointing=true"
    if smaller := [n for n in range(1, micro) if micro % n == 0 and estimate(experiment, n) <= 0.9 * there]:
        remedy = f"training.micro_batch_size={smaller[-1]} (the same result)"
    needed = estimate(experiment, micro)
    return f"{needed / 2**30:.1f} of {there / 2**30:.1f} GiB are estimated; {remedy} takes less"
