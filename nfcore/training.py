"""Training: the loop, and a run from its settings to its record.

Axes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import gc
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, set_seed
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from nfcore import checkpoints, convert, faults, machine, runs
from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.optimizer import optimizer_and_schedule
from nfcore.settings import Experiment, SettingsError, TrainingSettings, choice
from nfcore.shares import entropy_ceiling
from nfcore.store import write_atomically
from nfcore.telemetry import Telemetry, Watch
from nfcore.tokens import TokenData, prepare


PLAIN_ATTENTION = 512  # T up to which plain attention trains faster than torch's fused one in bfloat16 on a CPU
VOCABULARY_MULTIPLE = 128  # a GPU multiplies faster by a vocabulary that is padded to a multiple of this
PROGRESS = "progress"  # file of an unfinished run: the share of its updates that are made
PATIENCE = timedelta(hours=12)  # how long other processes wait while the first one prepares data


@torch.no_grad()
def token_losses(model: NormFreeForCausalLM, sequences: Any, batch_size: int) -> Tensor:
    """Cross-entropy of every predicted token, (N, T - 1) float32 on the CPU, in nats; the model in eval mode."""
    training, losses = model.training, []
    model.eval()
    for start in range(0, len(sequences), batch_size):
        stop = min(start + batch_size, len(sequences))
        ids = as_ids(sequences[start:stop]).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)  # (B T, V)
        all_losses = F.cross_entropy(logits, ids.roll(-1, 1).flatten(), reduction="none").view(ids.shape)
        losses.append(all_losses[:, :-1].cpu())  # the last position has nothing to predict
    model.train(training)
    return torch.cat(losses)


def as_ids(rows: np.ndarray) -> Tensor:
    """Sequences (B, T) of a token file as the model takes them, in 64 bits."""
    return torch.from_numpy(np.asarray(rows, dtype=np.int64))


class Batches:
    """The sequences (B, T) of each update. An epoch is the whole batches of a permutation that ``seed`` plus its number
    gives, so an update's batch depends on nothing but that, whatever the micro-batch and the number of processes."""

    def __init__(self, sequences: np.ndarray, size: int, seed: int) -> None:
        self.sequences, self.size, self.seed = sequences, size, seed
        self.per_epoch = len(sequences) // size
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.sequences), generator=generator).numpy()
        return self.sequences[self.order[place * self.size : (place + 1) * self.size]]


# --- the loop ---------------------------------------------------------------------------------------------------


class Training:
    """One run while it trains: the model drawn from the seed, its optimiser, its data, its telemetry, its checkpoints.

    ``model`` is the bare model, ``wrapped`` what accelerate made of it (autocast, DDP or FSDP2, compiled). ``step``
    counts finished updates.
    """

    def __init__(
        self,
        experiment: Experiment,
        tokens: TokenData,
        checkpoint_dir: Path,
        steps: int,
        report_to: Sequence[str] = (),
        fsdp: bool = False,
    ) -> None:
        settings = self.settings = experiment.training
        processes = faults.processes()
        if settings.batch_size % processes:
            raise SettingsError(
                f"training.batch_size: {settings.batch_size} is not a multiple of the {processes} processes"
            )
        if fsdp and processes == 1:
            raise SettingsError("fsdp: needs several processes, started by torchrun or `accelerate launch`")
        self.steps, self.step, self.checkpoint_dir = steps, 0, checkpoint_dir
        self.precision = machine.resolve_precision(settings.precision)
        self.accelerator = _accelerator(self.precision, settings.compile, fsdp, report_to, checkpoint_dir.parent)
        torch.manual_seed(experiment.seed)
        self.model = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model))).to(self.accelerator.device)
        self._fit_to_machine(experiment.data.context)
        optimizer, self.schedule = optimizer_and_schedule(self.model, settings, steps)
        self.watch = Watch(self.model, watch_gradients=self.precision != "float16")
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.batches = Batches(tokens.train, settings.batch_size, experiment.seed)
        self.validation = tokens.validation[: settings.eval_sequences]
        self.telemetry = Telemetry(
            self.model, as_ids(self.validation[: settings.probe_sequences]), machine.git_commit() or "unknown"
        )
        self.loss_sum = torch.zeros((), device=self.accelerator.device)  # over the updates since the last log
        self.diverged: dict[str, Any] | None = None
        self.received: list[int] = []  # signals
        if report_to:
            self.accelerator.init_trackers("nfcore", config={"id": experiment.id, "name": experiment.name})
        set_seed(experiment.seed)  # of dropout

    def _fit_to_machine(self, context: int) -> None:
        """Choose between ways of computing the same thing."""
        machine.keep_freed_memory()
        if self.accelerator.device.type == "cuda":
            self.model.lm_head.multiple = VOCABULARY_MULTIPLE
        elif self.precision == "bfloat16" and context <= PLAIN_ATTENTION:
            self.model.set_attn_implementation("eager")
        if self.settings.entropy_penalty:  # needs the maps
            self.model.set_attn_implementation("eager")
        self.model.loss_alone = True  # accelerate would copy the logits to float32
        self.model.chunked_loss = self.settings.chunked_loss
        if self.settings.gradient_checkpointing:
            # transformers 5.23 renamed it and warns of the old name
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)()

    def run(self) -> None:
        """Train to the last update, to divergence, or to a signal."""
        settings, telemetry = self.settings, self.telemetry
        if self.step == 0:
            self.probe()
            self.evaluate()
        logged = self.step
        telemetry.start_clock()
        while self.step < self.steps and not self.diverged:
            norm, rate = self.update()
            step, last = self.step, self.step == self.steps

            stopping = not last and self.asked_to_stop()
            saving = (step % settings.save_every == 0 or stopping) and not last  # a finished run is saved as a whole
            evaluating = step % settings.eval_every == 0 or last
            probing = step % settings.probe_every == 0 or last
            logging = step % settings.log_every == 0 or step == 1 or saving or last
            if logging or evaluating or probing:
                self.diverged, exploded = self.watch.events()
                telemetry.exploded = telemetry.exploded or exploded
            if probing or self.diverged:
                self.probe(last=last or bool(self.diverged))
            if logging:
                mean = float(self.accelerator.gather(self.loss_sum).mean()) / (step - logged)
                self.log(train_loss=mean, grad_norm=float(norm), learning_rate=rate)
                self.loss_sum, logged = torch.zeros_like(self.loss_sum), step
            if evaluating and not self.diverged:
                self.evaluate()
            if saving and not self.diverged:
                self.save()
            if stopping:
                break
        telemetry.stop_clock()

    def update(self) -> tuple[Tensor, float]:
        """Make one update; returns the gradient norm before clipping and the learning rate."""
        settings, accelerator = self.settings, self.accelerator
        if self.step % self.batches.per_epoch == 0:
            torch.empty((), dtype=torch.int64).random_()  # as a DataLoader draws; recorded runs with dropout had one
        self.wrapped.train()
        self.watch.step.fill_(self.step + 1)
        batch, micro = self.batches[self.step], faults.micro_batch(settings)
        penalised = settings.entropy_penalty > 0
        mine = range(accelerator.process_index * micro, len(batch), accelerator.num_processes * micro)
        for start in mine:
            ids = as_ids(batch[start : start + micro]).to(accelerator.device)
            with nullcontext() if start == mine[-1] else accelerator.no_sync(self.wrapped):
                output = self.wrapped(input_ids=ids, labels=ids, output_attentions=penalised)
                loss = output.loss / len(mine)
                penalty = self.entropy_excess(output.attentions) / len(mine) if penalised else 0
                accelerator.backward(loss + penalty)
            self.loss_sum += loss.detach()
        self.watch.check_gradients()
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        rate = float(self.schedule.get_last_lr()[0])
        if not accelerator.optimizer_step_was_skipped:  # as the loss scaler does in float16
            self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return cast(Tensor, norm), rate

    def entropy_excess(self, maps: Sequence[Tensor]) -> Tensor:
        """``entropy_penalty`` times the mean of max(0, E / ceiling - ``entropy_target``)^2 over layers, sequences and
        heads, where E is the mean entropy of a head's rows. From the maps (B, H, T, T) of a model that attends eagerly.
        """
        weights = torch.stack([m.float() for m in maps])  # (L, B, H, T, T)
        rows = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
        excess = F.relu(rows.mean(-1) / entropy_ceiling(weights.shape[-1]) - self.settings.entropy_target)
        return self.settings.entropy_penalty * excess.square().mean()

    def log(self, **values: float) -> None:
        self.telemetry.add(self.step, **values)
        self.accelerator.log(values, step=self.step)
        self.on_log(self.step, values)

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Replaced by whoever shows progress."""

    def probe(self, last: bool = False) -> None:
        with self.accelerator.autocast():
            self.telemetry.measure(self.step, last)

    def evaluate(self) -> None:
        """Log ``eval_loss`` (mean), ``eval_loss_median`` and ``eval_loss_p95`` over the tokens of the validation
        sequences, in nats per token. A mean that is not finite ends the run."""
        accelerator, rows = self.accelerator, self.validation
        with self.telemetry.paused(), accelerator.autocast():
            part = -(-len(rows) // accelerator.num_processes)  # of each process; the last one repeats the last sequence
            mine = np.minimum(np.arange(part) + part * accelerator.process_index, len(rows) - 1)
            losses = token_losses(self.model, rows[mine], faults.micro_batch(self.settings))
            losses = accelerator.gather(losses.to(accelerator.device))[: len(rows)].cpu()
        values = losses.double().flatten().numpy()
        median, p95 = np.quantile(values, [0.5, 0.95])
        self.log(eval_loss=values.mean(), eval_loss_median=median, eval_loss_p95=p95)
        if not np.isfinite(values.mean()):
            layer = len(self.model.blocks)  # the head's
            self.diverged = {"step": self.step, "layer": layer, "where": "evaluation"}

    def asked_to_stop(self) -> bool:
        """Whether a signal came. Several processes agree on that where they log, and stop at the same update."""
        if not dist.is_initialized():
            return bool(self.received)
        if self.step % self.settings.log_every:
            return False
        signals = torch.tensor(max(self.received, default=0), device=self.accelerator.device)
        dist.all_reduce(signals, dist.ReduceOp.MAX)
        self.received[:] = [int(signals)] if int(signals) else []  # in place: the handler adds to it
        return bool(self.received)

    # Whole tensors, gathered on the first process, whether they are sharded or not: one file that any number of
    # processes goes on from. Only the random numbers of dropout are each process's own.
    WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def save(self) -> None:
        """Write a checkpoint of the last update and seal it."""
        checkpoint, first = self.checkpoint_dir / f"checkpoint-{self.step}", self.accelerator.is_main_process
        with self.telemetry.paused(), faults.disk_watched(checkpoint, 16 * self.parameters, undo=checkpoint):
            model, optimizer = get_state_dict(self.model, self.optimizer.optimizer, options=self.WHOLE)
            if first:
                checkpoints.discard(checkpoint)  # one that was cut short or passed over
                checkpoint.mkdir(parents=True)
                scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
                state = {
                    "model": model,
                    "optimizer": optimizer,
                    "schedule": self.schedule.state_dict(),
                    "scaler": scaler,
                }
                torch.save(state, checkpoint / "state.pt")
                self.telemetry.save(checkpoint)
            self.accelerator.wait_for_everyone()
            torch.save(_random_state(), checkpoint / f"random-{self.accelerator.process_index}.pt")
            self.accelerator.wait_for_everyone()
            if first:
                checkpoints.seal(checkpoint, processes=self.accelerator.num_processes)
                checkpoints.prune(self.checkpoint_dir)

    def load(self, checkpoint: Path) -> None:
        """Go on from a sealed checkpoint."""
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        set_state_dict(
            self.model,
            self.optimizer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = checkpoints.step_of(checkpoint)
        self.telemetry.load(checkpoint)
        random = torch.load(checkpoint / f"random-{self.accelerator.process_index}.pt", weights_only=True)
        torch.set_rng_state(random["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])

    def close(self) -> None:
        """Part from the other processes. DDP's wrapper has to go first: whoever drops the group with it holds Python's
        lock and waits for a thread of gloo, which may wait for that lock to drop its last tensor."""
        if dist.is_initialized():
            self.wrapped = self.model
            self.accelerator.free_memory()
            gc.collect()
        self.accelerator.end_training()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def _accelerator(precision: str, compiled: bool, fsdp: bool, report_to: Sequence[str], directory: Path) -> Accelerator:
    choices = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    for logger in report_to:
        choice("report_to", logger, choices)
    AcceleratorState._reset_state()  # of a run with another precision that this process has trained before
    plugin = None
    if fsdp:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
            # else it would cast what runs between the blocks, whose precision is ours to say
            mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        )
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision],
        dynamo_backend="inductor" if compiled and not machine.why_not_compiled() else None,
        fsdp_plugin=plugin,
        log_with=list(report_to) or None,
        project_dir=directory,
    )


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


# --- a run ------------------------------------------------------------------------------------------------------


def train(
    experiment: Experiment | dict[str, Any],
    *,
    fresh: bool = False,
    report_to: Sequence[str] = (),
    quiet: bool = False,
    fsdp: bool = False,
) -> Path:
    """Train one run, or find it finished; returns its directory ``runs/<id>``.

    A finished run is reused; it is said if it was made with another measurement version or from other tokens.
    ``fresh`` trains it again. An interrupted one resumes from its last whole checkpoint. A run ends at the first value
    that is not finite, with ``status`` "diverged" in its record, the first bad step and layer, and its telemetry.

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
    if record["provenance"]["measurement"] != runs.MEASUREMENT_VERSION:
        made, now = record["provenance"]["measurement"], runs.MEASUREMENT_VERSION
        yield f"with measurement version {made}, now {now}"
    try:
        tokens = prepare(experiment.data).hash
    except SettingsError:
        return  # the data are not at hand any more; the run is
    if record["provenance"]["data_hash"] != tokens:
        yield f"from other tokens ({record['provenance']['data_hash']}, now {tokens})"


def _run(
    experiment: Experiment, directory: Path, label: str, fresh: bool, report_to: Sequence[str], quiet: bool, fsdp: bool
) -> None:
    """Check what can be checked before anything starts, train from the newest checkpoint, write the record."""
    settings = experiment.training
    _check_machine(settings, label)
    with PartialState().main_process_first() if dist.is_initialized() else nullcontext():
        tokens = prepare(experiment.data)  # the others find the tokens made
    if len(tokens.train) < settings.batch_size:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is more than the {len(tokens.train)} training sequences"
        )
    steps = settings.steps or len(tokens.train) // settings.batch_size
    if not quiet and (warning := faults.too_large(experiment)):
        print(f"  {label}: {warning}", file=sys.stderr)
    training = Training(experiment, tokens, directory / "checkpoints", steps, report_to, fsdp)
    if fresh:  # only now that nothing can be wrong with the settings
        _clear(directory)
    if _resume(training) and not quiet:
        print(f"  {label}: resumes at step {training.step}")
    with faults.deferred_signals() as training.received, _progress(training, directory, label, quiet):
        try:
            training.run()
        except Exception as error:
            if not faults.is_out_of_memory(error):
                raise
            where = faults.explain_memory(error, experiment, training.model, training.step + 1)
            raise faults.OutOfMemory(f"{label}: {where}") from error
        done = training.step >= steps or bool(training.diverged)
        if done:
            with faults.disk_watched(directory, 8 * training.parameters):
                _finish(experiment, directory, training, tokens)
    training.close()
    if training.received:
        reached = "finished" if done else f"stopped at step {training.step} of {steps}"
        raise faults.Stopped(training.received[0], f"{label}: {reached}; {faults.RESUME}")
    if (diverged := training.diverged) and not quiet:
        print(f"  {label}: diverged at step {diverged['step']}, layer {diverged['layer']} ({diverged['where']})")


def _check_machine(settings: TrainingSettings, label: str) -> None:
    """Refuse what this machine cannot do, and set its threads."""
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise SettingsError("training.precision: 'float16' needs a CUDA device; float32 and bfloat16 run everywhere")
    if settings.chunked_loss and not hasattr(F, "linear_cross_entropy"):
        raise SettingsError(f"training.chunked_loss: true needs torch 2.13 or later, and this is {torch.__version__}")
    if settings.compile and (reason := machine.why_not_compiled()):
        print(f"  {label}: is not compiled, since {reason}", file=sys.stderr)
    if settings.threads:
        torch.set_num_threads(settings.threads)


def _clear(directory: Path) -> None:
    """Delete what an earlier training left."""
    for name in ("checkpoints", "model"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for file in directory.glob("*.*"):
        if file.name != ".lock":
            file.unlink()


def _resume(training: Training) -> bool:
    """Go on from the newest whole checkpoint, if there is one. Several processes take what the first one finds."""
    processes = training.accelerator.num_processes
    newest = checkpoints.newest(training.checkpoint_dir) if training.accelerator.is_main_process else None
    found, manifest = agreed(newest)
    if found and manifest["processes"] != processes:
        made = f"{found}: was made by {manifest['processes']} processes"
        raise SettingsError(f"{made}; go on with as many, or fresh=true starts anew")
    if found:
        training.load(found)
    return bool(found)


@contextmanager
def _progress(training: Training, directory: Path, label: str, quiet: bool) -> Iterator[None]:
    """Show a bar unless ``quiet``, and leave the share that is made in ``directory`` for whoever watches a grid."""
    if not training.accelerator.is_main_process:
        yield
        return
    batch = training.settings.batch_size * training.batches.sequences.shape[1]
    form = "  {desc}: {percentage:3.0f}% of {total_fmt} tokens, {rate_fmt}, {remaining} left{postfix}"
    with tqdm(
        total=training.steps * batch,
        initial=training.step * batch,
        desc=label,
        unit=" tokens",
        unit_scale=True,
        bar_format=form,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=quiet,
    ) as bar:

        def show(step: int, values: dict[str, float]) -> None:
            if "train_loss" in values:
                write_atomically(directory / PROGRESS, str(step / training.steps))
                bar.set_postfix_str(f"loss {values['train_loss']:.3f}", refresh=False)
                bar.update(step * batch - bar.n)

        training.on_log = show  # type: ignore[method-assign]
        yield


def _finish(experiment: Experiment, directory: Path, training: Training, tokens: TokenData) -> None:
    """Write the run's files and, last, its record; all processes leave when that is there."""
    telemetry, diverged, files = training.telemetry, training.diverged, []
    weights = None if diverged else training.accelerator.get_state_dict(training.wrapped)  # gathered by all together
    if not training.accelerator.is_main_process:
        training.accelerator.wait_for_everyone()
        return
    files += [runs.write_table(directory, name, rows) for name, rows in telemetry.tables.items()]
    (directory / "settings.yaml").write_text(yaml.safe_dump(experiment.to_dict(), sort_keys=False))
    files.append(directory / "settings.yaml")
    if not diverged:
        transformers_logging.disable_progress_bar()
        convert.save(training.model, tokens.tokenizer, directory / "model", weights)
        files += [f for f in (directory / "model").iterdir() if f.is_file()]
    record = {
        "id": experiment.id,
        "name": experiment.name,
        "status": "diverged" if diverged else "complete",
        "diverged": diverged,
        "exploded": telemetry.exploded,
        "settings": experiment.to_dict(),
        "final": final_metrics(telemetry.tables["metrics"], bool(diverged)),
        "provenance": provenance(experiment, training, tokens),
    }
    runs.write_record(directory, record, files)
    (directory / PROGRESS).unlink(missing_ok=True)
    if not diverged:
        shutil.rmtree(training.checkpoint_dir, ignore_errors=True)
    training.accelerator.wait_for_everyone()


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


def provenance(experiment: Experiment, training: Training, tokens: TokenData) -> dict[str, Any]:
    """What made the run: commit, versions, hardware, data, speed."""
    telemetry = training.telemetry
    seen = training.step * experiment.training.batch_size * experiment.data.context
    return {
        "commit": " ".join(telemetry.commits),
        "measurement": runs.MEASUREMENT_VERSION,
        **machine.provenance(),
        "processes": training.accelerator.num_processes,
        "precision": training.precision,
        "compiled": experiment.training.compile and not machine.why_not_compiled(),
        "parameters": training.parameters,
        "data_hash": tokens.hash,
        "unique_tokens": int(tokens.train.size),
        "validation_overlap": round(tokens.meta["validation_overlap"], 4),
        "unigram_loss": round(unigram_loss(tokens, experiment.training.eval_sequences), 6),
        "tokens": seen,
        "seconds": round(telemetry.seconds, 2),
        "wall_seconds": round(telemetry.wall_seconds, 2),
        "tokens_per_second": round(seen / max(telemetry.seconds, 1e-9), 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def unigram_loss(tokens: TokenData, sequences: int | None) -> float:
    """Loss (nats per token) on the evaluated sequences of a model that only knows the frequencies of tokens in the
    training part; counts start at one."""
    counts = np.bincount(tokens.train.reshape(-1), minlength=tokens.tokenizer.get_vocab_size()) + 1.0
    surprise = -np.log(counts / counts.sum())
    return float(surprise[tokens.validation[:sequences, 1:]].mean())


def load_model(run: str | Path) -> NormFreeForCausalLM:
    """The trained model of a run, by id or directory. Raises SettingsError for one that is unfinished or diverged."""
    directory = Path(run) if Path(run).is_dir() else runs.runs_dir() / str(run)
    record = runs.read_record(directory)
    if not record or record["status"] == "diverged":
        raise SettingsError(f"{directory}: no trained model here")
    runs.verify(directory, record)
    return NormFreeForCausalLM.from_pretrained(directory / "model")
