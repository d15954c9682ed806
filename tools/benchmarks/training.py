"""Training tokens/s: this package against the ways to train the same model that a reader has at hand.

``ours``     the trainer of ``nfcore.train`` without probes, evaluations and checkpoints; also in bf16, and compiled
``loop``     a plain loop around the same model, optimiser and batches: what the Trainer itself costs
``eager``    the paper's way: Hugging Face's model, eager attention, its maps returned on every step, under Trainer
``sdpa``     Hugging Face's model with SDPA under Trainer
``nanogpt``  with ``--nanogpt PATH``: the model and optimiser of that checkout in the plain loop (GPT-2 shapes only)

All sides train SM+LN+G, the one configuration that they share, on the same random tokens, with the same batch and
clipping; on a CPU in fp32 unless their name says otherwise, on a GPU all in bf16, and the loop compiled too. A round is
a few updates of each side; the first of all, which compiles too, is timed by itself and does not count.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.optimizer import optimizer_and_schedule
from nfcore.settings import Experiment, ModelSettings
from nfcore.training import VOCABULARY_MULTIPLE, Training
from tools.benchmarks.common import Options, Section, Target, alternate, device, in_a_process, now, ratio, spread, timed


# shape, vocabulary, context, sequences a step, steps a round on a CPU, steps a round on a GPU
SHAPES = {
    "GPT-2 124M T=1024": ("gpt2-124m", 50257, 1024, 1, 1, 10),
    "GPT-2 124M T=128": ("gpt2-124m", 50257, 128, 8, 1, 10),
    "Pythia-70M T=128": ("pythia-70m", 50257, 128, 8, 2, 20),
    "quick and study": ("gpt2-6x64", 1024, 128, 32, 30, 200),
}
SMALL = {"small": ("gpt2-2x32", 320, 32, 4, 2, 2), "small Pythia": ("pythia-2x32", 320, 32, 4, 2, 2)}
GPU_TOKENS = 32768  # a step, where a GPU is there; with twice as many the maps of `eager` do not fit 80 GB
WANTED = {  # at least this many times the tokens/s of the paper's way, on two CPU cores
    "quick and study": 1.6,
    "GPT-2 124M T=128": 1.3,
    "GPT-2 124M T=1024": 2.0,
}
ON_GPU = {"GPT-2 124M T=128": 400e3, "GPT-2 124M T=1024": 400e3, "Pythia-70M T=128": 1e6}  # tokens/s of the best side


class Clock(TrainerCallback):
    """Seconds from the beginning of the first update of a call to ``train`` to the end of its last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = now() - self.start


def experiment(shape: str, vocabulary: int, context: int, batch: int, **training: Any) -> Experiment:
    never = 10**9
    settings = dict(batch_size=batch, learning_rate=1e-4, eval_every=never, save_every=never, probe_every=never)
    data = dict(corpus="python-source", vocab_size=vocabulary, context=context)
    return Experiment.from_dict(
        {"model": {"shape": shape}, "data": data, "training": {**settings, "log_every": 10, **training}}
    )


def ours(plan: Experiment, tokens: np.ndarray, steps: int, folder: Path) -> Callable[[], float]:
    data: Any = SimpleNamespace(train=tokens, validation=tokens[:1], hash="random")
    plan = plan.replace(training=plan.training.replace(steps=steps))
    training = Training(plan, data, folder)

    def side() -> float:
        training.step, training.telemetry.seconds = 0, 0.0
        training.run()
        return tokens.shape[1] * plan.training.batch_size * steps / training.telemetry.seconds

    return side


class Sequences:
    """A map-style data set over an array (N, T): item i is a 64-bit array (T,)."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.tokens[index], dtype=np.int64)


def collate(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch for the model: ``input_ids`` (B, T), and the same tensor as ``labels``, which the model shifts."""
    ids = torch.from_numpy(np.stack(items))
    return {"input_ids": ids, "labels": ids}


def hugging_face(plan: Experiment, tokens: np.ndarray, steps: int, folder: Path, eager: bool) -> Callable[[], float]:
    settings = plan.training
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        learning_rate=settings.learning_rate,
        logging_steps=settings.log_every,
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to="none",
    )
    network = reference(plan.model, tokens.shape[1], eager)
    trainer = Trainer(network, args, train_dataset=Sequences(tokens), data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return _trains(trainer, tokens.shape[1] * settings.batch_size * steps)


def reference(model: ModelSettings, context: int, eager: bool) -> Any:
    """Hugging Face's GPT-2 or GPT-NeoX of the same shape, without dropout."""
    attention: dict[str, Any] = dict(
        attn_implementation="eager" if eager else "sdpa", output_attentions=eager, use_cache=False
    )
    if model.family == "pythia":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=model.vocab_size,
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_hidden_layers,
                num_attention_heads=model.num_attention_heads,
                intermediate_size=4 * model.hidden_size,
                max_position_embeddings=context,
                **attention,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size,
            n_embd=model.hidden_size,
            n_layer=model.num_hidden_layers,
            n_head=model.num_attention_heads,
            n_positions=context,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            **attention,
        )
    )


def _trains(trainer: Trainer, tokens: int) -> Callable[[], float]:
    clock = Clock()
    trainer.add_callback(clock)

    def side() -> float:
        trainer.train()
        return tokens / clock.seconds

    return side


def loop(plan: Experiment, tokens: np.ndarray, steps: int) -> Callable[[], float]:
    """As nanoGPT does it: batches of random sequences, a step, a printed loss now and then."""
    network: Any = NormFreeForCausalLM(NormFreeConfig(**vars(plan.model))).to(device())  # type: ignore[arg-type]
    if device() == "cuda":
        network.lm_head.multiple = VOCABULARY_MULTIPLE
    optimizer, schedule = optimizer_and_schedule(network, plan.training, steps)
    called: Any = torch.compile(network) if plan.training.compile else network

    def loss(ids: Tensor) -> Tensor:
        with torch.autocast(device(), torch.bfloat16, enabled=plan.training.precision == "bfloat16"):
            return called(ids, labels=ids).loss

    return _loops(network, loss, optimizer, schedule, batches(plan, tokens), plan, steps)


def nanogpt(checkout: Path, plan: Experiment, tokens: np.ndarray, steps: int) -> Callable[[], float]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = plan.model
    network = module.GPT(
        module.GPTConfig(
            block_size=tokens.shape[1],
            vocab_size=model.vocab_size,
            n_layer=model.num_hidden_layers,
            n_head=model.num_attention_heads,
            n_embd=model.hidden_size,
            dropout=0.0,
        )
    ).to(device())
    settings = plan.training
    optimizer = network.configure_optimizers(
        settings.weight_decay, settings.learning_rate, (settings.beta1, settings.beta2), device()
    )

    def loss(ids: Tensor) -> Tensor:
        targets = ids.roll(-1, 1)
        targets[:, -1] = -1  # what nanoGPT ignores
        return network(ids, targets)[1]

    return _loops(network, loss, optimizer, None, batches(plan, tokens), plan, steps)


def batches(plan: Experiment, tokens: np.ndarray) -> Iterator[Tensor]:
    draw = np.random.default_rng(0)
    while True:
        chosen = tokens[draw.integers(len(tokens), size=plan.training.batch_size)]
        yield torch.from_numpy(chosen.astype(np.int64)).to(device())


def _loops(
    network: torch.nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    source: Iterator[Tensor],
    plan: Experiment,
    steps: int,
) -> Callable[[], float]:
    def side() -> float:
        network.train()
        start = now()
        for step in range(steps):
            loss = loss_of(next(source))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), plan.training.max_grad_norm)
            optimizer.step()
            if schedule:
                schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if step % plan.training.log_every == 0:
                loss.item()
        return plan.data.context * plan.training.batch_size * steps / (now() - start)

    return side


def run(options: Options) -> Section:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    section = Section()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = temporary  # nothing is compiled yet
        for name, sizes in (SMALL if options.small else SHAPES).items():
            compare(section, options, name, sizes, Path(temporary))
            options.save(section)
    if not torch.cuda.is_available():
        section.rows += allocator(options)
    return section


def compare(section: Section, options: Options, name: str, sizes: tuple[Any, ...], folder: Path) -> None:
    """Train one shape with each side, and add a row for each and the targets."""
    gpu = torch.cuda.is_available()
    torch._dynamo.reset()  # the sizes before must not make it compile for any size
    torch.cuda.empty_cache()
    shape, vocabulary, context, batch, *steps_on = sizes
    steps = steps_on[gpu]
    batch = GPU_TOKENS // context if gpu and not options.small else batch
    sides = sides_of(options, shape, vocabulary, context, batch, steps, folder)
    first: dict[str, float] = {}
    for side, train in list(sides.items()):
        try:
            first[side] = timed(train)
        except torch.OutOfMemoryError as error:
            if side == "eager":  # all others are compared with it
                raise
            print(f"{name}, {side}: left out, {error}", file=sys.stderr)
            del sides[side]
    samples = alternate(sides, options.repeats, warmup=0)
    update = {side: context * batch / spread(samples[side])["median"] for side in sides}  # seconds
    for side in sides:
        row = {
            "kind": "training",
            "shape": name,
            "side": side,
            "precision": "bfloat16" if gpu or "bf16" in side else "float32",
            "tokens_per_second": spread(samples[side]),
            "over_eager": ratio(samples, side, "eager"),
            "sequences_a_step": batch,
            "context": context,
        }
        if side.endswith("compiled"):
            # Against the same without compiling: the updates after which the time that compiling took is won back.
            plain = "ours, bf16" if "bf16" in side else side.partition(",")[0]
            row["compile_seconds"] = first[side] - steps * update[side]
            won = update[plain] - update[side]
            row["pays_after_updates"] = row["compile_seconds"] / won if won > 0 else None
        section.rows.append(row)
    section.targets += targets_of(options, name, samples)


def sides_of(
    options: Options, shape: str, vocabulary: int, context: int, batch: int, steps: int, folder: Path
) -> dict[str, Callable[[], Any]]:
    """What trains: ours and its variants, a bare loop, Hugging Face's model with two kinds of attention, nanoGPT."""
    gpu = torch.cuda.is_available()
    tokens = np.random.default_rng(0).integers(vocabulary, size=(4 * batch * steps, context), dtype=np.uint16)
    precision = "bfloat16" if gpu else "float32"
    plan = experiment(shape, vocabulary, context, batch, precision=precision)
    sides = {
        "ours": ours(plan, tokens, steps, folder),
        "loop": loop(plan, tokens, steps),
        "eager": hugging_face(plan, tokens, steps, folder, eager=True),
        "sdpa": hugging_face(plan, tokens, steps, folder, eager=False),
    }
    variants: dict[str, dict[str, Any]] = {} if gpu else {"bf16": dict(precision="bfloat16")}
    if not options.small:  # compiling takes longer than all the rest there
        variants["compiled"] = dict(precision=precision, compile=True)
        variants |= {} if gpu else {"bf16 compiled": dict(precision="bfloat16", compile=True)}
    for words, changes in variants.items():
        sides[f"ours, {words}"] = ours(experiment(shape, vocabulary, context, batch, **changes), tokens, steps, folder)
    if gpu and not options.small:
        compiled = experiment(shape, vocabulary, context, batch, precision=precision, compile=True)
        sides["loop, compiled"] = loop(compiled, tokens, steps)
    if options.nanogpt and plan.model.family == "gpt2":
        sides["nanogpt"] = nanogpt(options.nanogpt, plan, tokens, steps)
    return sides


def targets_of(options: Options, name: str, samples: dict[str, list[float]]) -> list[Target]:
    gpu = torch.cuda.is_available()
    median = {side: ratio(samples, side, "eager")["median"] for side in samples}
    best = max((side for side in samples if side.startswith("ours")), key=median.__getitem__)
    targets = []
    if not options.small:
        rate = spread(samples[best])["median"] if gpu else None
        targets.append(Target(f"{name}, one GPU: {best if gpu else 'ours'}", rate, ON_GPU.get(name), "tok/s"))
    if not gpu and name in WANTED:
        targets += [
            Target(f"{name}: {best} over eager", median[best], WANTED[name], "x"),
            Target(f"{name}: ours over eager, both in float32", median["ours"], None, "x"),
            Target(f"{name}: loop over ours", ratio(samples, "loop", "ours")["median"], 1.03, "x", at_least=False),
        ]
    return targets


def allocator(options: Options) -> list[dict[str, Any]]:
    """What it is worth that training keeps freed memory. The sides above share it: it is a setting of the process."""
    name = "small" if options.small else "quick and study"
    sizes = {**SMALL, **SHAPES}[name]
    arguments = (sizes[:4], 2 if options.small else sizes[4], options.threads)
    sides = {
        words: lambda keep=keep: in_a_process(_in_bfloat16, *arguments, keep)[0]
        for words, keep in (("kept", True), ("given back", False))
    }
    samples = alternate(sides, options.repeats, warmup=0)
    speedup = ratio(samples, "kept", "given back")
    rates = {words: spread(values) for words, values in samples.items()}
    return [{"kind": "allocator", "shape": name, "tokens_per_second": rates, "speedup": speedup}]


def _in_bfloat16(sizes: tuple[Any, ...], steps: int, threads: int, keep: bool) -> float:
    from nfcore import machine

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(threads)
    if not keep:
        machine.keep_freed_memory = lambda: None
    shape, vocabulary, context, batch = sizes
    tokens = np.random.default_rng(0).integers(vocabulary, size=(4 * batch * steps, context), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        plan = experiment(shape, vocabulary, context, batch, precision="bfloat16")
        side = ours(plan, tokens, steps, Path(folder))
        side()
        return side()
