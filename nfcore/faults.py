"""What goes wrong while training: signals that end it, memory or disk that runs out.  No torch at import."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from nfcore.settings import Experiment, TrainingSettings


DIVERGED, OUT_OF_MEMORY = 3, 4  # exit codes of `nfcore train`
RESUME = "the same command goes on from the last checkpoint"


class Stopped(KeyboardInterrupt):
    """A signal ended the work. ``code`` is the exit code, 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int, what_now: str = f"interrupted; {RESUME}") -> None:
        super().__init__(what_now)
        self.code = 128 + number


class OutOfMemory(RuntimeError):
    """A run did not fit; the message names step and layer and what would."""


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, for the work to stop at a good moment; a second one ends it at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            stop(number, frame)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals are not handled in others
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    # Of the CPU's allocator torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def explain_memory(error: BaseException, experiment: Experiment, model: Any, step: int) -> str:
    """Where memory ran out, and settings that are estimated to fit."""
    total = memory_limit()
    remedy = advice(experiment, total)
    return f"out of memory at step {step}, {_place(error, model)}; {total / 2**30:.1f} GiB in all. {remedy}"


def _place(error: BaseException, model: Any) -> str:
    """The layer whose code was running, from the traceback: nothing has to be tracked while training goes well."""
    blocks = {id(block): layer for layer, block in enumerate(model.blocks)}
    place = "outside the layers"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner, function = frame.f_locals.get("self"), frame.f_code.co_name
        if id(owner) in blocks:
            place = f"layer {blocks[id(owner)]}"
        elif owner is model:
            place = f"layer {len(blocks)} (embedding, head or loss)"
        elif function == "backward":
            place = "backward pass"
        elif function == "step" and "optim" in frame.f_code.co_filename:
            place = "optimiser's update"
    return place


def processes() -> int:
    """How many work on one run together, as torchrun and ``accelerate launch`` say it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batch(settings: TrainingSettings) -> int:
    """Sequences that each process takes at a time of its part of the batch."""
    return math.gcd(settings.batch_size // processes(), settings.micro_batch_size or settings.batch_size)


def memory_bytes(experiment: Experiment, micro: int | None = None) -> float:
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


def too_large(experiment: Experiment) -> str | None:
    """What to say of a run that is estimated to need more memory than there is; None if it fits."""
    needed, limit = memory_bytes(experiment, micro_batch(experiment.training)), memory_limit()
    if needed <= limit:
        return None
    return f"{needed / 2**30:.1f} of {limit / 2**30:.1f} GiB are estimated; {advice(experiment, limit)}"


def advice(experiment: Experiment, available: float) -> str:
    """The largest micro-batch below the present one that is estimated to fit into ``available`` bytes."""
    settings = experiment.training
    part = settings.batch_size // processes()
    smaller = [n for n in range(micro_batch(settings) - 1, 0, -1) if part % n == 0]
    for micro in smaller:
        if (needed := memory_bytes(experiment, micro)) <= 0.9 * available:
            return (
                f"training.micro_batch_size={micro} ({part // micro} micro-batches an update, the same "
                f"result) is estimated to take {needed / 2**30:.2g} GiB"
            )
    more = [name for name in ("gradient_checkpointing", "chunked_loss") if not getattr(settings, name)]
    remedies = [
        *([f"training.micro_batch_size={smaller[-1]}"] if smaller else []),
        *(f"training.{n}=true" for n in more),
    ]
    return f"Try {' '.join(remedies) or 'a smaller model'}; no micro-batch alone is estimated to fit"


def memory_limit() -> float:
    """Bytes that this process may have: of the GPU if there is one, else of the machine, a container or a ulimit."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    limits = [float(psutil.virtual_memory().total)]
    with suppress(OSError, ValueError):  # no such container, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    limits = [min(limits) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))]  # of the processes here each its part
    if hasattr(psutil.Process, "rlimit"):
        limits.append(psutil.Process().rlimit(psutil.RLIMIT_AS)[1])
    return min(limit for limit in limits if limit > 0)


@contextmanager
def disk_watched(directory: Path, needed: float, undo: Path | None = None) -> Iterator[None]:
    """Turn the many errors of libraries for a full disk into one OSError that names ``directory``; ``undo`` is what was
    being written, and goes."""
    try:
        yield
    except Exception as error:
        place = next(path for path in (directory, *directory.parents) if path.exists())
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        full |= not isinstance(error, OSError) and shutil.disk_usage(place).free < needed
        if undo:
            shutil.rmtree(undo, ignore_errors=True)
        if not full:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error


def full_disk(path: str) -> str:
    """What to say of a disk that is full."""
    place = next(p for p in (Path(path), *Path(path).parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**20
    return (
        f"{path}: the disk is full ({free:.1f} MiB left); free some space there, or set NFCORE_RUNS and NFCORE_DATA to "
        f"another disk. What was finished is intact, and {RESUME}"
    )
