"""Training with Hugging Face's Trainer: the paper's optimiser and schedule, telemetry, divergence as a result.

Axes: B batch, T positions, D model width, F feed-forward width, L layers, H heads.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from accelerate import PartialState, notebook_launcher
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging as transformers_logging

from nfcore import checkpoints, faults, runs
from nfcore.cost import memory_bytes
from nfcore.data import Sequences, TokenData, collate, prepare, set_malloc
from nfcore.entropy import attention_statistics
from nfcore.linearity import nonlinear_shares
from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import Experiment, SettingsError, TrainingSettings, choice


NEVER = 2**62
PLAIN_ATTENTION = 512  # T up to which plain attention trains faster than torch's fused one in bfloat16 on a CPU
VOCABULARY_MULTIPLE = 128  # of what a GPU multiplies
PATIENCE = timedelta(hours=12)  # of processes for the one that prepares data; a dead one is torchrun's to notice


def optimizer_and_schedule(
    model: NormFreeForCausalLM, settings: TrainingSettings, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with decay on matrices and embeddings, none on biases and norms, its own on learnable slopes; linear
    warm-up, then linear decay to ``final_learning_rate`` at the last step."""
    slopes = model.slopes
    slope_ids = {id(p) for p in slopes}
    rest = [p for p in model.parameters() if id(p) not in slope_ids]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        {"params": slopes, "weight_decay": settings.slope_weight_decay},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    warmup = round(settings.warmup_fraction * steps)
    floor = settings.final_learning_rate / settings.learning_rate

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return floor + (1 - floor) * max(0, steps - step) / max(1, steps - warmup)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def token_losses(model: NormFreeForCausalLM, sequences: Any, batch_size: int) -> Tensor:
    """Cross-entropy of every predicted token, (N, T - 1) float32 on the CPU, in nats; the model in eval mode."""
    training, losses = model.training, []
    model.eval()
    for start in range(0, len(sequences), batch_size):
        stop = min(start + batch_size, len(sequences))
        ids = collate([sequences[i] for i in range(start, stop)])["input_ids"].to(model.device)
        logits = model(input_ids=ids).logits.float().flatten(0, 1)  # (B T, V)
        all_losses = F.cross_entropy(logits, ids.roll(-1, 1).flatten(), reduction="none").view(ids.shape)
        losses.append(all_losses[:, :-1].cpu())  # the last position has nothing to predict
    model.train(training)
    return torch.cat(losses)


class FirstBad:
    """Flags on the device for the first step and layer where something stopped being finite.

    Nothing is copied to the host while training; :meth:`event` does that, at the logging cadence. By then the update
    has made every weight NaN, so the flags are what still tells where it began. Layers 0..L-1 are the blocks, L the
    head. In a backward pass, which runs from the head down, the highest layer with a bad gradient is the first.
    """

    def __init__(self, model: NormFreeForCausalLM, watch_gradients: bool) -> None:
        layers = len(model.blocks)
        self.forward = torch.full((layers + 1,), NEVER, device=model.device)
        self.backward = torch.full((layers + 1,), NEVER, device=model.device)
        self.step = torch.zeros((), dtype=torch.int64, device=model.device)
        self.gradients = [list(block.parameters()) for block in model.blocks] if watch_gradients else []
        if watch_gradients:
            # A tied head gets the embedding's gradient too, which the last step of the backward pass completes.
            tied = model.lm_head.weight is model.embed.weight
            self.gradients.append([*model.final_norm.parameters(), *([] if tied else model.lm_head.parameters())])
        for i, module in enumerate([*model.blocks, model]):  # the model for the loss, which tells of all logits
            module.register_forward_hook(self._hook(i))

    def _hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if module.training:
                self._flag(self.forward, layer, output[0].detach())

        return hook

    def _flag(self, flags: Tensor, layer: int, *values: Tensor) -> None:
        # Both extremes are NaN if any value is; one pass, many times as fast as asking each value.
        bad = ~torch.stack([extreme for v in values for extreme in v.aminmax()]).isfinite().all()
        flags[layer] = torch.where(bad, flags[layer].minimum(self.step), flags[layer])

    @torch.no_grad()
    def check_gradients(self) -> None:
        """Call when the gradients of a step are complete and not yet clipped."""
        for layer, parameters in enumerate(self.gradients):
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            if gradients := [g for g in gradients if g.numel()]:
                self._flag(self.backward, layer, *torch._foreach_norm(gradients))

    def event(self) -> dict[str, Any] | None:
        """``{"step", "layer", "where"}`` of the first bad value in any process, or None. ``step`` counts from 1."""
        flags = torch.stack([self.forward, self.backward])
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MIN)
        forward, backward = flags.cpu()
        first = min(int(forward.min()), int(backward.min()))
        if first == NEVER:
            return None
        if int(forward.min()) == first:
            layer, where = int((forward == first).nonzero()[0]), "forward"
        else:
            layer, where = int((backward == first).nonzero()[-1]), "backward"
        return {"step": first, "layer": layer, "where": where}


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that FSDP shards; any other tensor whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP shards gathered from all processes; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Telemetry(TrainerCallback):
    """Measures a fixed held-out probe batch (B, T) every ``probe_every`` steps, keeps all numbers of the run, and ends
    it when a value stops being finite.

    The tables travel in each checkpoint. Of several processes each measures the whole probe, as fast as one of them
    would while the others wait, and the first keeps the numbers.
    """

    FILE = "tables.json"

    def __init__(self, trainer: NormFreeTrainer, probe: Tensor, settings: TrainingSettings, steps: int) -> None:
        self.trainer, self.probe, self.settings, self.steps = trainer, probe, settings, steps
        # The same tokens for all runs of a vocabulary: what attention does where there is nothing to find.
        generator = torch.Generator().manual_seed(0)
        self.random = torch.randint(trainer.raw_model.config.vocab_size, probe.shape, generator=generator)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in runs.TABLES}
        self.diverged: dict[str, Any] | None = None
        self.seconds = 0.0  # of training, without evaluation, probes and checkpoints
        self._since: float | None = None
        self.sources = [
            f"{git_commit() or 'unknown'} {runs.source_hash()}"
        ]  # read now: they may change while the run goes on
        self.wall_before, self._started = 0.0, time.perf_counter()  # before an interruption; since this start

    @property
    def wall_seconds(self) -> float:
        """From start to now, everything included, over all the starts of a resumed run."""
        return self.wall_before + time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the training clock."""
        running = self._since is not None
        self._stop_clock()
        yield
        if running:
            self._since = time.perf_counter()

    def _stop_clock(self) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def load(self, checkpoint: Path) -> None:
        saved = json.loads((checkpoint / self.FILE).read_text())
        self.tables, self.seconds, self.wall_before = saved["tables"], saved["seconds"], saved["wall_seconds"]
        self.sources = list(dict.fromkeys([*saved["sources"], *self.sources]))

    def add(self, step: int, **values: float) -> None:
        self.tables["metrics"] += [{"step": step, "name": name, "value": float(v)} for name, v in values.items()]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.measure(0)
            self.trainer.evaluate()
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        names = {"loss": "train_loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
        self.add(state.global_step, **{ours: logs[theirs] for theirs, ours in names.items() if theirs in logs})
        self.add(state.global_step, **{k: v for k, v in logs.items() if k.startswith("eval_loss")})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, last = state.global_step, state.global_step >= self.steps
        probing = step % self.settings.probe_every == 0 or last
        control.should_evaluate |= last
        stopping = not last and self.trainer.asked_to_stop(step)
        control.should_save = (control.should_save or stopping) and not last  # the finished run is saved below
        # Trainer logs the mean loss since it last logged; a resumed one would not know those before its checkpoint.
        control.should_log |= control.should_save or last
        if control.should_log or control.should_save or control.should_evaluate or probing:
            self.diverged = self.trainer.first_bad.event()
        if self.diverged:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False
        elif stopping:
            control.should_training_stop = True
        if probing or self.diverged:
            self.measure(step, last=last or bool(self.diverged))
        if last or self.diverged:
            self._stop_clock()

    def save(self, checkpoint: Path) -> None:
        saved = {name: getattr(self, name) for name in ("tables", "seconds", "wall_seconds", "sources")}
        (checkpoint / self.FILE).write_text(json.dumps(saved))

    def measure(self, step: int, last: bool = False) -> None:
        """Rows of the tables ``layers``, ``heads`` and, at the last probe, ``positions``; dropout off."""
        model = self.trainer.raw_model
        layers: list[dict[str, float]] = [{} for _ in model.blocks]
        calls = 0

        def watch_activation(module: nn.Module, args: Any, y: Tensor) -> None:
            nonlocal calls
            x = args[0]
            shares = nonlinear_shares(*(t.detach().flatten(0, -2) for t in (x, y)))
            names = ("nonlinear_share", "nonlinear_share_centred")
            layers[calls] |= {"preactivation_std": float(x.std()), **dict(zip(names, shares, strict=True))}
            calls += 1

        def watch_block(layer: int) -> Any:
            return lambda module, args, out: layers[layer].update(residual_rms=_rms(out[0]))

        hooks = [block.register_forward_hook(watch_block(i)) for i, block in enumerate(model.blocks)]
        hooks += [activation.register_forward_hook(watch_activation) for activation in model.activations]
        with self.paused(), self.trainer.compute_loss_context_manager():
            try:
                heads = attention_statistics(model, self.probe)
            finally:
                for hook in hooks:
                    hook.remove()
            random = attention_statistics(model, self.random) if last else None
        slopes, scales = (
            [float(whole(p.detach())) for p in values] or [math.nan] for values in (model.slopes, model.scales)
        )
        by_position = heads.pop("by_position")
        random_by_position = random["by_position"] if random else torch.full_like(by_position, math.nan)
        heads["entropy_random"] = random["entropy"] if random else torch.full_like(heads["entropy"], math.nan)
        for layer, values in enumerate(layers):
            where = {"step": step, "layer": layer}
            values |= {"slope": slopes[layer % len(slopes)], "scale": scales[layer % len(scales)]}
            self.tables["layers"].append(where | values)
            for head in range(heads["entropy"].shape[1]):
                values = {name: float(table[layer, head]) for name, table in heads.items()}
                self.tables["heads"].append({**where, "head": head, **values})
            if last:
                pairs = zip(by_position[layer].tolist(), random_by_position[layer].tolist(), strict=True)
                for i, (entropy, entropy_random) in enumerate(pairs, 1):
                    values = {"entropy": entropy, "entropy_random": entropy_random}
                    self.tables["positions"].append({**where, "position": i, **values})


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


class Progress(TrainerCallback):
    """A line with the time left, at most every ten seconds and at the end."""

    def __init__(self, label: str, steps: int, tokens_per_step: int) -> None:
        self.label, self.steps, self.tokens = label, steps, tokens_per_step
        self.start = self.shown = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        now, step = time.monotonic(), state.global_step
        if "loss" not in (logs or {}) or (now - self.shown < 10 and step < self.steps) or step == self.first:
            return
        self.shown = now
        pace = (now - self.start) / (step - self.first)
        left = int(pace * (self.steps - step))
        loss, rate = (logs or {})["loss"], self.tokens / pace
        print(
            f"  {self.label}: step {step}/{self.steps}, loss {loss:.3f}, {rate:,.0f} tokens/s, "
            f"{left // 60}:{left % 60:02d} left",
            flush=True,
        )


class NormFreeTrainer(Trainer):
    """Hugging Face's Trainer with token-level evaluation, the flags of :class:`FirstBad`, sealed checkpoints, and a
    good end after a signal."""

    def __init__(self, model: NormFreeForCausalLM, settings: TrainingSettings, steps: int, **kwargs: Any) -> None:
        self.settings, self.raw_model = settings, model
        super().__init__(model=model, optimizers=optimizer_and_schedule(model, settings, steps), **kwargs)
        # Every sequence has the same length, so the mean over micro-batches is the mean over the batch.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.received: list[int] = []  # signals
        # fp16 overflows its gradients on purpose, to find the loss scale; only the forward pass tells there.
        self.first_bad = FirstBad(model, watch_gradients=settings.precision != "float16")

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        # Whole batches of each epoch's order, so that it is the same whatever the micro-batch.
        data: Any = self.train_dataset
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RandomSampler(data, num_samples=len(data) // batch * batch)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.first_bad.step.fill_(self.state.global_step + 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.first_bad.check_gradients()
        return loss

    def asked_to_stop(self, step: int) -> bool:
        """Whether a signal came. Several processes agree on that where they meet to log, and stop at the same step."""
        if not dist.is_initialized():
            return bool(self.received)
        if step % self.args.logging_steps:
            return False
        signals = torch.tensor(max(self.received, default=0), device=self.args.device)
        dist.all_reduce(signals, dist.ReduceOp.MAX)
        self.received[:] = [int(signals)] if int(signals) else []  # in place: the handler adds to it
        return bool(self.received)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """``eval_loss`` (mean), ``eval_loss_median`` and ``eval_loss_p95`` over tokens of the first ``eval_sequences``
        validation sequences, in nats per token."""
        with self.telemetry.paused(), self.compute_loss_context_manager():
            data: Any = self.eval_dataset
            part = -(-len(data) // self.args.world_size)  # of each process, the last one's filled up with the last one
            mine = range(part * self.args.process_index, part * (self.args.process_index + 1))
            share = Subset(data, [min(i, len(data) - 1) for i in mine])
            losses = token_losses(self.raw_model, share, self.args.per_device_train_batch_size)
            losses = self.accelerator.gather(losses.to(self.args.device))[: len(data)].cpu()
        values = losses.double().flatten().numpy()
        median, p95 = np.quantile(values, [0.5, 0.95])
        metrics = {"eval_loss": values.mean(), "eval_loss_median": median, "eval_loss_p95": p95}
        metrics = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(metrics["eval_loss"]) and self.telemetry.diverged is None:
            layer = len(self.raw_model.blocks)  # the head's
            self.telemetry.diverged = {"step": self.state.global_step, "layer": layer, "where": "evaluation"}
            self.control.should_training_stop = True
            self.control.should_save = False
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        first = self.is_world_process_zero()
        with self.telemetry.paused(), faults.disk_watched(checkpoint, 16 * self.parameters, undo=checkpoint):
            if first:
                checkpoints.discard(checkpoint)  # one that was cut short or passed over
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(*args, **kwargs)
            if first:
                self.telemetry.save(checkpoint)
            self.accelerator.wait_for_everyone()
            if first:
                checkpoints.seal(checkpoint, fsdp=self.is_fsdp_enabled)
                checkpoints.prune(checkpoint.parent)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.raw_model.parameters())

    telemetry: Telemetry


def train(
    experiment: Experiment | dict[str, Any],
    *,
    fresh: bool = False,
    report_to: Sequence[str] = (),
    quiet: bool = False,
    fsdp: bool = False,
) -> Path:
    """Train one run, or find it finished; returns its directory ``runs/<id>``.

    A finished run is reused, saying so if nfcore's sources have changed since; ``fresh`` trains it again. An
    interrupted one resumes from its last whole checkpoint. A run whose values stop being finite ends there, with
    ``status`` "diverged" in its record, the first bad step and layer, and its telemetry.

    Of several processes that torchrun or ``accelerate launch`` started each calls this, and the update is the same as
    one process would make: the same sequences in the same order, each process taking its part of every batch. ``fsdp``
    shards weights and optimiser over them (FSDP2). The first process writes.

    Raises:
        SettingsError: wrong settings, or files of a finished run that do not match their recorded hashes.
        OutOfMemory: it does not fit; says what would.
        Stopped: a signal came; a checkpoint of the last update is there.
    """
    if isinstance(experiment, dict):
        experiment = Experiment.from_dict(experiment)
    label = f"{experiment.name or experiment.model.configuration} [{experiment.id}]"
    directory = runs.runs_dir() / experiment.id
    directory.mkdir(parents=True, exist_ok=True)
    first = not _several() or PartialState().is_main_process
    quiet = quiet or not first
    with _only_writer(directory, label, first):
        record = None if fresh else runs.read_record(directory)
        if agreed(record is None):
            _run(experiment, directory, label, fresh and first, report_to, quiet, fsdp)
        elif first and record:
            runs.verify(directory, record)
            if record["status"] == "complete":
                shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # where the run was killed at its very end
            for difference in _differences(experiment, record):
                print(f"  {label}: made {difference} (fresh=true retrains)", file=sys.stderr)
            if not quiet:
                print(f"  {label}: finished before, reused")
    return directory


def train_on_all(experiment: Experiment) -> Path:
    """:func:`train` for a notebook: on all GPUs of this machine, or the most of them that divide the batch, by
    ``accelerate.notebook_launcher``."""
    batch = experiment.training.batch_size
    processes = max((n for n in range(1, torch.cuda.device_count() + 1) if batch % n == 0), default=1)
    if processes == 1:
        return train(experiment)
    notebook_launcher(train, (experiment,), num_processes=processes)
    return runs.runs_dir() / experiment.id


def _several() -> bool:
    """Whether this is one of several processes of one job; if so they are connected now."""
    if faults.processes() == 1:
        return False
    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return True


def agreed(value: Any) -> Any:
    """What the first of several processes says; with one process ``value``."""
    return broadcast_object_list([value])[0] if dist.is_initialized() else value


@contextmanager
def _only_writer(directory: Path, label: str, first: bool) -> Iterator[None]:
    """Hold the run's lock, which ends with the process. Of several processes of one job only the first writes."""
    if not first:
        yield
        return
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"  {label}: waits for another process that trains it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _differences(experiment: Experiment, record: dict[str, Any]) -> Iterator[str]:
    """How the sources and the data of a finished run differ from the present ones."""
    if record["provenance"]["source_hash"] != runs.source_hash():
        yield "by other model, data or training code than now"
    try:
        tokens = prepare(experiment.data).hash
    except SettingsError:
        return  # the data are not at hand any more; the run is
    if record["provenance"]["data_hash"] != tokens:
        yield f"from other tokens ({record['provenance']['data_hash']}, now {tokens})"


def _run(
    experiment: Experiment, directory: Path, label: str, fresh: bool, report_to: Sequence[str], quiet: bool, fsdp: bool
) -> None:
    settings = experiment.training
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise SettingsError("training.precision: 'float16' needs a CUDA device; float32 and bfloat16 run everywhere")
    if settings.chunked_loss and not hasattr(F, "linear_cross_entropy"):
        raise SettingsError(f"training.chunked_loss: true needs torch 2.13 or later, and this is {torch.__version__}")
    if settings.compile and (reason := why_not_compiled()):
        print(f"  {label}: is not compiled, since {reason}", file=sys.stderr)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    transformers_logging.disable_progress_bar()
    if dist.is_initialized():
        with PartialState().main_process_first():  # the others find the tokens made
            tokens = prepare(experiment.data)
    else:
        tokens = prepare(experiment.data)
    steps = settings.steps or len(tokens.train) // settings.batch_size
    if len(tokens.train) < settings.batch_size:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is more than the {len(tokens.train)} training sequences"
        )
    if not quiet:
        estimate, limit = memory_bytes(experiment, faults.micro_batch(settings)), faults.memory_limit()
        if estimate > limit:
            sizes = f"{estimate / 2**30:.1f} of {limit / 2**30:.1f} GiB"
            print(f"  {label}: {sizes} are estimated; {faults.advice(experiment, limit)}", file=sys.stderr)
    known = get_available_reporting_integrations()
    for logger in report_to:
        choice("report_to", logger, known)
    if fresh:  # only now that nothing can be wrong with the settings
        for name in ("checkpoints", "model"):
            shutil.rmtree(directory / name, ignore_errors=True)
        for file in directory.glob("*.*"):
            if file.name != ".lock":
                file.unlink()
    trainer = make_trainer(experiment, tokens, directory / "checkpoints", steps, report_to, fsdp)
    if not quiet:
        trainer.add_callback(Progress(label, steps, settings.batch_size * experiment.data.context))
    found, manifest = agreed(checkpoints.newest(directory / "checkpoints") if trainer.is_world_process_zero() else None)
    if found:
        if manifest["fsdp"] != trainer.is_fsdp_enabled:
            made = "with" if manifest["fsdp"] else "without"
            raise SettingsError(f"{found}: was made {made} fsdp; go on {made} it, or fresh=true starts anew")
        trainer.telemetry.load(found)
        if not quiet:
            print(f"  {label}: resumes at step {checkpoints.step_of(found)}")
    with faults.deferred_signals() as trainer.received:
        try:
            trainer.train(resume_from_checkpoint=str(found) if found else None)
        except Exception as error:
            if not faults.is_out_of_memory(error):
                raise
            step = trainer.state.global_step + 1
            raise faults.OutOfMemory(
                f"{label}: {faults.explain_memory(error, experiment, trainer.raw_model, step)}"
            ) from error
        diverged, step = trainer.telemetry.diverged, trainer.state.global_step
        if step >= steps or diverged:
            with faults.disk_watched(directory, 8 * trainer.parameters):
                _finish(experiment, directory, trainer, tokens)
    if trainer.received:
        reached = "finished" if step >= steps or diverged else f"stopped at step {step} of {steps}"
        raise faults.Stopped(trainer.received[0], f"{label}: {reached}; {faults.RESUME}")
    if diverged and not quiet:
        print(f"  {label}: not finite at step {diverged['step']}, layer {diverged['layer']} ({diverged['where']} pass)")


def make_trainer(
    experiment: Experiment,
    tokens: TokenData,
    output: Path,
    steps: int,
    report_to: Sequence[str] = (),
    fsdp: bool = False,
) -> NormFreeTrainer:
    """A trainer ready to run: the model drawn from the seed, the data order from the seed, telemetry attached."""
    settings = experiment.training
    torch.manual_seed(experiment.seed)
    model = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model)))
    precision = resolve_precision(settings.precision)
    processes = faults.processes()
    if settings.batch_size % processes:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is not a multiple of the {processes} processes"
        )
    if fsdp and processes == 1:
        raise SettingsError("fsdp: needs several processes, started by torchrun or `accelerate launch`")
    micro = faults.micro_batch(settings)
    args = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // (micro * processes),
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_steps=settings.save_every,
        seed=experiment.seed,
        data_seed=experiment.seed,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=not torch.cuda.is_available(),  # a GPU of Nvidia's kind, else the CPU
        torch_compile=settings.compile and not why_not_compiled(),
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        ddp_find_unused_parameters=False,
        ddp_timeout=int(PATIENCE.total_seconds()),
        fsdp=fsdp or None,  # type: ignore[arg-type]
        fsdp_config={"transformer_layer_cls_to_wrap": ["Block"]} if fsdp else None,
    )
    if args.fsdp_plugin_args:  # else it would cast what runs between the blocks, whose precision is ours to say
        from torch.distributed.fsdp import MixedPrecisionPolicy

        args.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(cast_forward_inputs=False)
    args._n_gpu = min(args.n_gpu, 1)  # else Trainer gives every GPU a micro-batch, in one process (DataParallel)
    model.to(args.device)  # type: ignore[arg-type]
    keep_freed_memory()
    if args.device.type == "cuda":
        model.lm_head.multiple = VOCABULARY_MULTIPLE
    elif precision == "bfloat16" and tokens.train.shape[1] <= PLAIN_ATTENTION:
        model.set_attn_implementation("eager")
    model.loss_alone = True  # accelerate copies the logits to float32 otherwise
    model.chunked_loss = settings.chunked_loss
    if settings.gradient_checkpointing:
        # transformers 5.23 renamed it and warns of the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    validation = Sequences(tokens.validation[: settings.eval_sequences])
    trainer = NormFreeTrainer(
        model,
        settings,
        steps,
        args=args,
        train_dataset=Sequences(tokens.train),
        eval_dataset=validation,
        data_collator=collate,
    )
    probe = collate([validation[i] for i in range(min(settings.probe_sequences, len(validation)))])["input_ids"]
    trainer.telemetry = Telemetry(trainer, probe, settings, steps)
    trainer.add_callback(trainer.telemetry)
    return trainer


def why_not_compiled() -> str | None:
    """What keeps torch from compiling a model here; None if nothing does. For a CPU it writes C++."""
    if torch.cuda.is_available():
        return None
    if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
        return "there is no C++ compiler, which torch.compile needs on a CPU"
    if " " in torch.__file__:
        return "torch does not quote its own path for the C++ compiler, and that has a space here"
    return None


def keep_freed_memory() -> None:
    """Tell glibc to keep what this process frees. It otherwise gives it back to the kernel at every step, and a small
    model on a CPU spends up to a fifth of its time on getting it again. Nothing happens with another C library."""
    # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD; of the last, older versions refuse more than 32 MiB
    for option, size in ((-1, 2**30), (-2, 2**27), (-3, 2**25), (-3, 2**30)):
        set_malloc(option, size)


def resolve_precision(precision: str) -> str:
    """What ``training.precision`` is on this machine: ``auto`` is bfloat16 where the device multiplies in it natively,
    else float32, and everything else is itself."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.13 has it
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def _finish(experiment: Experiment, directory: Path, trainer: NormFreeTrainer, tokens: TokenData) -> None:
    """Write the run's files and, last, its record; all processes leave when that is there."""
    telemetry, files = trainer.telemetry, []
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # by all together
    if not trainer.is_world_process_zero():
        trainer.accelerator.wait_for_everyone()
        return
    files += [runs.write_table(directory, name, rows) for name, rows in telemetry.tables.items()]
    (directory / "settings.yaml").write_text(yaml.safe_dump(experiment.to_dict(), sort_keys=False))
    files.append(directory / "settings.yaml")
    diverged = telemetry.diverged
    if not diverged:
        trainer.raw_model.save_pretrained(directory / "model", state_dict=weights)
        tokens.tokenizer.save(str(directory / "model" / "tokenizer.json"))
        files += [f for f in (directory / "model").iterdir() if f.is_file()]
    record = {
        "id": experiment.id,
        "name": experiment.name,
        "status": "diverged" if diverged else "complete",
        "diverged": diverged,
        "settings": experiment.to_dict(),
        "final": final_metrics(telemetry.tables["metrics"], bool(diverged)),
        "provenance": provenance(experiment, trainer, tokens),
    }
    runs.write_record(directory, record, files)
    if not diverged:
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def final_metrics(metrics: list[dict[str, Any]], diverged: bool) -> dict[str, float | int | None]:
    """Losses (nats per token) and perplexities at the last step and at the best evaluation; a diverged run has no
    last ones."""
    evaluations = {m["step"]: m["value"] for m in metrics if m["name"] == "eval_loss"}
    last = {m["name"]: m["value"] for m in metrics if m["name"].startswith("eval_loss")}
    best = min(evaluations, key=lambda step: evaluations[step])
    final: dict[str, float | int | None] = {"step": max(m["step"] for m in metrics)}
    final |= {name: None if diverged else value for name, value in last.items()}
    final["perplexity"] = None if diverged else math.exp(min(last["eval_loss"], 700.0))
    final |= {"best_step": best, "best_eval_loss": evaluations[best]}
    return final


def provenance(experiment: Experiment, trainer: NormFreeTrainer, tokens: TokenData) -> dict[str, Any]:
    """What made the run: commit, versions, hardware, data, speed. Nothing that names the machine or its paths."""
    telemetry = trainer.telemetry
    step = trainer.state.global_step
    seen = step * experiment.training.batch_size * experiment.data.context
    device = trainer.args.device
    sources = [tuple(made_by.split()) for made_by in telemetry.sources]
    packages = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {
        "commit": " ".join(commit for commit, _ in sources),
        "source_hash": " ".join(source for _, source in sources),  # several, if it was resumed with other sources
        "nfcore": _version("nfcore"),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": trainer.args.world_size,
        "precision": resolve_precision(experiment.training.precision),
        "compiled": experiment.training.compile and not why_not_compiled(),
        "parameters": trainer.parameters,
        "data_hash": tokens.hash,
        "unique_tokens": int(tokens.train.size),
        "validation_overlap": round(tokens.meta["validation_overlap"], 4),
        "tokens": seen,
        "seconds": round(telemetry.seconds, 2),
        "wall_seconds": round(telemetry.wall_seconds, 2),
        "tokens_per_second": round(seen / max(telemetry.seconds, 1e-9), 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def load_model(run: str | Path) -> NormFreeForCausalLM:
    """The trained model of a run, by id or directory. Raises SettingsError for one that is unfinished or diverged."""
    directory = Path(run) if Path(run).is_dir() else runs.runs_dir() / str(run)
    record = runs.read_record(directory)
    if not record or record["status"] == "diverged":
        raise SettingsError(f"{directory}: no trained model here")
    runs.verify(directory, record)
    return NormFreeForCausalLM.from_pretrained(directory / "model")
