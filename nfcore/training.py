"""Training: the loop, and a run from its settings to its record.

Axes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import gc
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from nfcore import checkpoints, convert, faults, machine, memory, runs
from nfcore.model import NormFreeConfig, NormFreeForCausalLM, recompute_activations
from nfcore.optimizer import optimizer_and_schedule
from nfcore.settings import Experiment, SettingsError, TrainingSettings, choice
from nfcore.shares import entropy_ceiling
from nfcore.store import locked, verify, write_atomically
from nfcore.telemetry import Telemetry, Watch, gathered
from nfcore.tokens import TokenData, prepare


PLAIN_ATTENTION = 512  # T up to which plain attention trains faster than torch's fused one in bfloat16 on a CPU
VOCABULARY_MULTIPLE = 128  # a GPU multiplies faster by a vocabulary that is padded to a multiple of this
CHECKPOINTS = "checkpoints"  # folder of an unfinished run
PROGRESS = "progress"  # file of an unfinished run: the share of its updates that are made
PATIENCE = timedelta(hours=12)  # how long other processes wait while the first one prepares data


def as_ids(rows: np.ndarray) -> Tensor:
    """Sequences (B, T) of a token file as the model takes them, in 64 bits."""
    return torch.from_numpy(np.asarray(rows, dtype=np.int64))


@lru_cache(maxsize=1)
def _permutation(count: int, seed: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


# --- the loop ---------------------------------------------------------------------------------------------------


class Training:
    """One run while it trains: the model drawn from the seed, its optimiser, its data, its telemetry, its checkpoints.

    ``model`` is the bare model, ``wrapped`` what accelerate made of it (autocast, DDP or FSDP2, compiled). ``step``
    counts finished updates.
    """

    def __init__(
        self, experiment: Experiment, tokens: TokenData, folder: Path, report_to: Sequence[str] = (), fsdp: bool = False
    ) -> None:
        settings = self.settings = experiment.training
        rows, context = tokens.train.shape
        batch, processes = settings.batch_size, memory.processes()
        if rows < batch:
            raise SettingsError(f"training.batch_size: {batch} is more than the {rows} training sequences")
        if batch % processes:
            raise SettingsError(f"training.batch_size: {batch} is not a multiple of the {processes} processes")
        if fsdp and processes == 1:
            raise SettingsError("fsdp: needs several processes, started by torchrun or `accelerate launch`")
        self.folder, self.steps, self.step = folder, settings.steps or rows // batch, 0
        self.precision = machine.resolve_precision(settings.precision)
        self.compiled = settings.compile and not machine.why_not_compiled()
        self.accelerator = _accelerator(self.precision, self.compiled, report_to, folder)
        torch.manual_seed(experiment.seed)
        self.model = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model))).to(self.accelerator.device)
        self._fit_to_machine(context)
        if fsdp:
            for module in (*self.model.blocks, self.model):
                # If inputs were cast, so would be what runs between the blocks, whose precision is ours to say.
                fully_shard(module, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        optimizer, self.schedule = optimizer_and_schedule(self.model, settings, self.steps)
        self.watch = Watch(self.model)
        self.wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=fsdp)  # true: not wrapped in DDP
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.rows, self.seed, self.per_epoch = tokens.train, experiment.seed, rows // batch
        self.tokens_per_update, self.data_hash = batch * context, tokens.hash
        self.validation = tokens.validation[: settings.eval_sequences]
        probe = as_ids(self.validation[: settings.probe_sequences])
        self.telemetry = Telemetry(self.model, probe, machine.git_commit() or "unknown")
        self.loss_sum = torch.zeros((), device=self.accelerator.device)  # over the updates since the last log
        self.received: list[int] = []  # signals
        self.bar = tqdm(disable=True)
        if report_to:
            self.accelerator.init_trackers("nfcore", config={"id": experiment.id, "name": experiment.name})
        # Of dropout, in each process another one, however many numbers the initial weights have drawn.
        set_seed(experiment.seed, device_specific=True)

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
            recompute_activations(self.model)

    def run(self) -> None:
        """Train to the last update, to divergence, or to a signal."""
        settings, telemetry = self.settings, self.telemetry
        if self.step == 0:
            self.evaluate()
            self.probe(last=self.over)
        logged = self.step
        telemetry.lap(training=False)
        while self.step < self.steps and not self.over:
            norm, rate = self.update()
            step, last = self.step, self.step == self.steps

            stopping = not last and self.asked_to_stop()
            saving = not last and (stopping or step % settings.save_every == 0)  # a finished run is saved as a whole
            evaluating, probing = (last or step % n == 0 for n in (settings.eval_every, settings.probe_every))
            # A checkpoint has no sum of losses, so one is logged before it.
            logging = last or saving or step == 1 or step % settings.log_every == 0
            if logging or evaluating or probing:
                telemetry.lap(training=True)
                bad, exploded = self.watch.events()
                telemetry.diverged, telemetry.exploded = telemetry.diverged or bad, telemetry.exploded or exploded
            evaluating = evaluating and not self.over
            if logging:
                mean = float(self.accelerator.gather(self.loss_sum).mean()) / (step - logged)
                self.log(train_loss=mean, grad_norm=float(norm), learning_rate=rate)
                self.loss_sum, logged = torch.zeros_like(self.loss_sum), step
                self.show_progress(mean)
            if evaluating:
                self.evaluate()
            if probing or self.over:
                self.probe(last or self.over, units=evaluating)
            if saving and not self.over:
                self.save()
            if logging or evaluating or probing:
                telemetry.lap(training=False)
            if stopping:
                break

    @property
    def over(self) -> bool:
        """Whether a value that is not finite has ended the run."""
        return bool(self.telemetry.diverged) and self.settings.on_nonfinite == "stop"

    def update(self) -> tuple[Tensor, float]:
        """Make one update; returns the gradient norm before clipping and the learning rate."""
        settings, accelerator = self.settings, self.accelerator
        if self.step % self.per_epoch == 0:
            torch.empty((), dtype=torch.int64).random_()  # as a DataLoader draws: the next draws are those of dropout
        self.wrapped.train()
        self.watch.step.fill_(self.step + 1)
        batch, micro = self.batch(), memory.micro_batch(settings)
        penalised = settings.entropy_penalty > 0
        # Gradients add up over the micro-batches of this process; only after the last one they are averaged over all.
        mine = range(accelerator.process_index * micro, len(batch), accelerator.num_processes * micro)
        for start in mine:
            ids = as_ids(batch[start : start + micro]).to(accelerator.device)
            with nullcontext() if start == mine[-1] else accelerator.no_sync(self.wrapped):
                output = self.wrapped(input_ids=ids, labels=ids, output_attentions=penalised)
                loss = output.loss / len(mine)
                penalty = self.entropy_excess(output.attentions) / len(mine) if penalised else 0
                accelerator.backward(loss + penalty)
            self.loss_sum += loss.detach()
        if self.precision != "float16":  # where the loss scaler lets gradients overflow, and skips the update
            self.watch.check_gradients()
        norm = gathered(accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm))
        # In float16 the loss scaler leaves such an update out itself, and has to be asked so that it lowers its scale.
        if settings.on_nonfinite == "stop" or self.precision == "float16" or norm.isfinite():
            self.optimizer.step()
        rate = float(self.schedule.get_last_lr()[0])
        if not accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return norm, rate

    def batch(self) -> np.ndarray:
        """The sequences (B, T) of the next update. An epoch is the whole batches of a permutation that the seed plus
        its number gives: a batch depends on nothing else, not on the micro-batch or the number of processes."""
        epoch, place = divmod(self.step, self.per_epoch)
        size = self.settings.batch_size
        order = _permutation(len(self.rows), self.seed + epoch)
        return self.rows[order[place * size : (place + 1) * size]]

    def entropy_excess(self, maps: Sequence[Tensor]) -> Tensor:
        """``entropy_penalty`` times the mean of max(0, E / ceiling - ``entropy_target``)^2 over layers, sequences and
        heads, where E is the mean entropy of a head's rows. From the maps (B, H, T, T) of a model that attends eagerly.
        """
        weights = torch.stack([m.float() for m in maps])  # (L, B, H, T, T)
        rows = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
        excess = F.relu(rows.mean(-1) / entropy_ceiling(weights.shape[-1]) - self.settings.entropy_target)
        return self.settings.entropy_penalty * excess.square().mean()

    def log(self, **values: float) -> None:
        rows = [{"step": self.step, "name": name, "value": float(value)} for name, value in values.items()]
        self.telemetry.tables["metrics"] += rows
        self.accelerator.log(values, step=self.step)

    def show_progress(self, loss: float) -> None:
        """Move the bar, and leave the share that is made in the run's directory for whoever watches a grid."""
        if self.accelerator.is_main_process:
            write_atomically(self.folder / PROGRESS, str(self.step / self.steps))
            self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update(self.step * self.tokens_per_update - self.bar.n)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Log ``eval_loss`` (mean), ``eval_loss_median`` and ``eval_loss_p95`` over the tokens of the validation
        sequences, in nats per token. A mean that is not finite ends the run."""
        accelerator, rows, losses = self.accelerator, self.validation, []
        part = -(-len(rows) // accelerator.num_processes)  # of each process; the last one repeats the last sequence
        mine = np.minimum(np.arange(part) + part * accelerator.process_index, len(rows) - 1)
        self.model.eval()
        for ids in as_ids(rows[mine]).to(accelerator.device).split(memory.micro_batch(self.settings)):
            with accelerator.autocast():
                logits = self.model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)  # (B T, V)
            each = F.cross_entropy(logits, ids.roll(-1, 1).flatten(), reduction="none").view(ids.shape)
            losses.append(each[:, :-1])  # the last position has nothing to predict
        values = accelerator.gather(torch.cat(losses))[: len(rows)].cpu().double().flatten().numpy()
        median, p95 = np.quantile(values, [0.5, 0.95])
        self.log(eval_loss=values.mean(), eval_loss_median=median, eval_loss_p95=p95)
        if not np.isfinite(values.mean()):
            layer = len(self.model.blocks)  # the head's
            bad = {"step": self.step, "layer": layer, "where": "evaluation"}
            self.telemetry.diverged = self.telemetry.diverged or bad

    def probe(self, last: bool = False, units: bool = True) -> None:
        """Measure the model on the probe; ``last`` and ``units`` add what :meth:`~nfcore.telemetry.Telemetry.measure`
        says."""
        with self.accelerator.autocast():
            self.telemetry.measure(self.step, last, units)

    def asked_to_stop(self) -> bool:
        """Whether a signal came. Several processes agree on it where they log or save, and stop at the same update."""
        if self.accelerator.num_processes > 1:
            if self.step % self.settings.log_every and self.step % self.settings.save_every:
                return False
            mine = torch.tensor(max(self.received, default=0), device=self.accelerator.device)
            anyone = int(self.accelerator.gather(mine).max())
            self.received[:] = [anyone] if anyone else []  # in place: the handler adds to it
        return bool(self.received)

    # Whole tensors, gathered on the first process, whether they are sharded or not. The random numbers of dropout are
    # each process's own, so as many processes have to go on.
    WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def save(self) -> None:
        """Write a checkpoint of the last update and seal it."""
        accelerator = self.accelerator
        checkpoint = self.folder / CHECKPOINTS / f"checkpoint-{self.step}"
        model, optimizer = get_state_dict(self.model, self.optimizer.optimizer, options=self.WHOLE)
        if accelerator.is_main_process:
            checkpoints.discard(checkpoint)  # one that was cut short or passed over
            checkpoint.mkdir(parents=True)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
            state = {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict(), "scaler": scaler}
            torch.save(state, checkpoint / "state.pt")
            self.telemetry.save(checkpoint)
        accelerator.wait_for_everyone()
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        torch.save(random, checkpoint / f"random-{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoints.seal(checkpoint, processes=accelerator.num_processes, data=self.data_hash)
            checkpoints.prune(checkpoint)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one. Several processes take what the first one finds."""
        accelerator = self.accelerator
        found, manifest = agreed(accelerator.is_main_process and checkpoints.newest(self.folder / CHECKPOINTS))
        if found is None:
            return False
        if manifest["processes"] != accelerator.num_processes:
            made = f"{found}: was made by {manifest['processes']} processes"
            raise SettingsError(f"{made}; go on with as many, or fresh=true starts anew")
        if manifest["data"] != self.data_hash:
            made = f"{found}: was made from other tokens, {manifest['data']} and not {self.data_hash}"
            raise SettingsError(f"{made}; go on with the same corpus, or fresh=true starts anew")
        state = torch.load(found / "state.pt", map_location="cpu", weights_only=True)
        parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(self.model, self.optimizer.optimizer, **parts, options=self.WHOLE)
        self.schedule.load_state_dict(state["schedule"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.step = checkpoints.step_of(found)
        self.telemetry.load(found)
        random = torch.load(found / f"random-{accelerator.process_index}.pt", weights_only=True)
        torch.set_rng_state(random["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        return True

    def close(self) -> None:
        """Part from the other processes. DDP's wrapper has to go first: whoever drops the group with it holds Python's
        lock and waits for a thread of gloo, which may wait for that lock to drop its last tensor."""
        if dist.is_initialized():
            self.wrapped = self.model
            self.accelerator.free_memory()
            gc.collect()
        self.accelerator.end_training()


def _accelerator(precision: str, compiled: bool, report_to: Sequence[str], directory: Path) -> Accelerator:
    for logger in report_to:
        choice("report_to", logger, sorted(map(str, LOGGER_TYPE_TO_CLASS)))
        if logger not in map(str, get_available_trackers()):
            raise SettingsError(f"report_to: {logger!r} is not installed")
    AcceleratorState._reset_state()  # of a run with another precision that this process has trained before
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision],
        dynamo_backend="inductor" if compiled else None,
        log_with=list(report_to) or None,
        project_dir=directory,
    )


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
    that is not finite, with ``status`` "diverged" in its record, the first bad step and layer, and its telemetry; with
    ``training.on_nonfinite="skip"`` it goes on.

    Of several processes that torchrun or ``accelerate launch`` started each calls this, and the update is the same as
    one process would make: the same sequences in the same order, each process taking its part of every batch. ``fsdp``
    shards weights and optimiser over them (FSDP2). The first process writes.

    Raises:
        SettingsError: wrong settings, or files of a finished run that do not match their recorded hashes.
        OutOfMemory: it does not fit; says what would.
        Stopped: a signal came; a checkpoint of the last update is there.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.from_dict(experiment)
    label = f"{experiment.name or experiment.model.configuration} [{experiment.id}]"
    directory = runs.runs_dir() / experiment.id
    directory.mkdir(parents=True, exist_ok=True)
    first = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE).is_main_process
    quiet = quiet or not first
    waiting = f"  {label}: waits for another process that trains it"
    with locked(directory / ".lock", waiting) if first else nullcontext():
        record = None if fresh else runs.read_record(directory)
        if agreed(record is None):
            _run(experiment, directory, label, fresh and first, report_to, quiet, fsdp)
        elif first and record:
            _reuse(experiment, directory, label, record)
            if not quiet:
                print(f"  {label}: finished before, reused")
    return directory


def agreed(value: Any) -> Any:
    """What the first of several processes says; with one process ``value``."""
    return broadcast_object_list([value])[0]


def _reuse(experiment: Experiment, directory: Path, label: str, record: dict[str, Any]) -> None:
    """Check the files of a finished run, and say how its source and its data differ from the present ones."""
    verify(directory, record)
    if record["status"] == "complete":
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)  # where the run was killed at its very end
    made = record["provenance"]
    now: dict[str, Any] = {"measurement": runs.MEASUREMENT_VERSION}
    with suppress(SettingsError):  # the data are not at hand any more; the run is
        now["data_hash"] = prepare(experiment.data).hash
    for name, value in now.items():
        if made[name] != value:
            print(f"  {label}: made with {name} {made[name]}, now {value} (fresh=true retrains)", file=sys.stderr)


def _run(
    experiment: Experiment, directory: Path, label: str, fresh: bool, report_to: Sequence[str], quiet: bool, fsdp: bool
) -> None:
    """Check what can be checked before anything starts, train from the newest checkpoint, write the record."""
    settings = experiment.training
    _check_machine(settings, label)
    with PartialState().main_process_first():
        tokens = prepare(experiment.data)  # the others find the tokens made
    if not quiet and memory.estimate(experiment, memory.micro_batch(settings)) > memory.limit():
        print(f"  {label}: {memory.advice(experiment)}", file=sys.stderr)
    training = Training(experiment, tokens, directory, report_to, fsdp)
    if fresh:  # only now that nothing can be wrong with the settings
        (directory / "record.json").unlink(missing_ok=True)
        for left in (CHECKPOINTS, "model"):
            shutil.rmtree(directory / left, ignore_errors=True)
    resumed = training.resume()
    if resumed and not quiet:
        print(f"  {label}: resumes at step {training.step}")
    with (
        faults.deferred_signals() as training.received,
        faults.disk_watched(directory, needed=16 * training.model.num_parameters()),
        _bar(training, label, quiet) as training.bar,
    ):
        try:
            training.run()
        except Exception as error:
            # torch raises a plain RuntimeError when the CPU's memory runs out.
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate" not in str(error):
                raise
            where = f"out of memory at step {training.step + 1}"
            raise faults.OutOfMemory(f"{label}: {where}; {memory.advice(experiment)}") from error
        if done := training.step == training.steps or training.over:
            _finish(experiment, training, tokens)
    training.close()
    if training.received:
        again = "without fresh=true " if fresh else ""
        stopped = f"stopped at step {training.step} of {training.steps}; {again}{faults.RESUME}"
        raise faults.Stopped(training.received[0], f"{label}: {'finished' if done else stopped}")


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


def _bar(training: Training, label: str, quiet: bool) -> tqdm:
    return tqdm(
        total=training.steps * training.tokens_per_update,
        initial=training.step * training.tokens_per_update,
        desc=label,
        unit=" tokens",
        unit_scale=True,
        bar_format="  {desc}: {percentage:3.0f}% of {total_fmt} tokens, {rate_fmt}, {remaining} left{postfix}",
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=quiet,
    )


def _finish(experiment: Experiment, training: Training, tokens: TokenData) -> None:
    """Write the run's files and, last, its record; all processes leave when that is there."""
    folder, telemetry, over = training.folder, training.telemetry, training.over
    weights = None if over else get_model_state_dict(training.model, options=training.WHOLE)  # by all together
    if training.accelerator.is_main_process:
        files = [folder / "settings.yaml"]
        files[0].write_text(yaml.safe_dump(experiment.to_dict(), sort_keys=False))
        files += [runs.write_table(folder, name, rows) for name, rows in telemetry.tables.items()]
        if not over:
            transformers_logging.disable_progress_bar()
            convert.save(training.model, tokens, folder / "model", weights)
            files += [f for f in (folder / "model").iterdir() if f.is_file()]
        status = "diverged" if over else "complete"
        record = dict(id=experiment.id, name=experiment.name, status=status, diverged=telemetry.diverged)
        record |= dict(exploded=telemetry.exploded, settings=experiment.to_dict())
        record["final"] = final_metrics(telemetry.tables["metrics"], over)
        record["provenance"] = provenance(experiment, training, tokens)
        runs.write_record(folder, record, files)
        (folder / PROGRESS).unlink(missing_ok=True)
        if not over:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    training.accelerator.wait_for_everyone()


def final_metrics(metrics: list[dict[str, Any]], over: bool) -> dict[str, float | int | None]:
    """Losses (nats per token) and perplexities at the last step and at the best evaluation; a run that is ``over``
    before its last step, or ends at a loss that is not finite, has no last ones."""
    evaluations = {m["step"]: m["value"] for m in metrics if m["name"] == "eval_loss"}
    last = {m["name"]: m["value"] for m in metrics if m["name"].startswith("eval_loss")}
    last["perplexity"] = math.exp(min(last["eval_loss"], 700.0))
    best = min(evaluations, key=lambda step: evaluations[step])
    ended = {"best_step": best, "best_eval_loss": evaluations[best]}
    return {
        "step": max(m["step"] for m in metrics),
        **(last if math.isfinite(last["eval_loss"]) and not over else dict.fromkeys(last)),
        **ended,
    }


def provenance(experiment: Experiment, training: Training, tokens: TokenData) -> dict[str, Any]:
    """What made the run: commit, versions, hardware, data, speed."""
    telemetry, seen = training.telemetry, training.step * training.tokens_per_update
    return {
        "commit": " ".join(telemetry.commits),
        "measurement": runs.MEASUREMENT_VERSION,
        **machine.provenance(),
        "processes": training.accelerator.num_processes,
        "precision": training.precision,
        "compiled": training.compiled,
        "parameters": training.model.num_parameters(),
        "data_hash": tokens.hash,
        "unique_tokens": int(tokens.train.size),
        "validation_overlap": round(tokens.meta["validation_overlap"], 4),
        "unigram_loss": round(unigram_loss(tokens, experiment.training.eval_sequences), 6),
        "tokens": seen,
        "seconds": round(telemetry.seconds, 2),
        "wall_seconds": round(telemetry.wall_seconds, 2),
        "tokens_per_second": round(seen / telemetry.seconds, 1) if seen else 0.0,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def unigram_loss(tokens: TokenData, sequences: int | None) -> float:
    """Loss (nats per token) on the evaluated sequences of a model that only knows the frequencies of tokens in the
    training part; counts start at one."""
    counts = np.bincount(tokens.train.reshape(-1), minlength=tokens.tokenizer.get_vocab_size()) + 1.0
    surprise = -np.log(counts / counts.sum())
    return float(surprise[tokens.validation[:sequences, 1:]].mean())
