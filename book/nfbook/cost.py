"""What a run costs before it is run: parameters, operations, memory, storage, time.

Counts follow from the settings. Time needs a speed: one that was measured on the device, in recorded runs or in
``tools/benchmarks/results``, else a share of the peak in its data sheet; :class:`Speed` says which.

Axes: T context, D model width, F feed-forward width, L layers, V vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from nfbook.presets import PAPER_TOKENS
from nfbook.recorded import recorded_dir
from nfcore import memory, runs
from nfcore.settings import SHAPES, DataSettings, Experiment, ModelSettings, SettingsError, choice, project_root
from nfcore.tokens import PARTS, cache_dir, token_type


# Dense 16-bit TFLOP/s of the data sheets, by a part of the device's name. Of another device the peak is unknown.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}
ASSUMED_MFU = 0.2  # share of the peak that is assumed where nothing is measured; half of what llm.c reports on an H100
PAPER_FILES = 600_000  # that PAPER_TOKENS are of
# What tools/benchmarks/results/training.json calls its shapes: their names in SHAPES, and the vocabulary.
BENCHMARKED = {
    "quick and study": ("gpt2-6x64", 1024),
    "GPT-2 124M T=128": ("gpt2-124m", 50257),
    "GPT-2 124M T=1024": ("gpt2-124m", 50257),
    "Pythia-70M T=128": ("pythia-70m", 50257),
}
FORWARD = 1 / 3  # of the operations of a forward and backward pass


# --- counts -----------------------------------------------------------------------------------------------------


def parameters(model: ModelSettings) -> tuple[int, int]:
    """:func:`nfcore.model.count_parameters`; it loads torch, which takes seconds, so only where a count is needed."""
    from nfcore.model import count_parameters

    return count_parameters(model)


def flops_per_token(model: ModelSettings, context: int) -> float:
    """Operations of a forward and backward pass: 6 a parameter in a matrix product, and 12 L D T in attention.

    The map is counted whole although half is masked (Chowdhery et al. 2022, arXiv 2204.02311, appendix B; nanoGPT,
    llm.c).
    """
    return 6 * parameters(model)[1] + 12 * model.num_hidden_layers * model.hidden_size * context


def storage_bytes(experiment: Experiment, steps: int) -> tuple[int, int]:
    """At most while the run trains, and kept when it is finished.

    A checkpoint has weights and two moments in float32; two are kept while a third is written, and none at the end. The
    model that stays has its weights in float32. Tables are counted with 8 bytes a value, more than Parquet takes.
    """
    model, settings, count = experiment.model, experiment.training, parameters(experiment.model)[0]
    probes = steps // settings.probe_every + 2
    layers, heads = model.num_hidden_layers, model.num_attention_heads
    values = probes * layers * (8 + 8 * heads) + 5 * layers * experiment.data.context
    values += 9 * (steps // min(settings.log_every, settings.save_every) + steps // settings.eval_every + 2)
    saved = (steps - 1) // settings.save_every
    kept = 4 * count + 8 * values + 2**16  # heads of files, the tokenizer's table of bytes
    kept += 32 * model.vocab_size  # a line of the tokenizer a token
    return max(12 * count * min(saved, 3), 12 * count * min(saved, 2) + kept), kept


# --- speed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """Training tokens a second that were reached on a device. ``ways``: the precisions, compiled or not, that it stands
    for; ``threads``: of a CPU, whose speed is counted by thread, else 1."""

    model: ModelSettings
    context: int
    device: str
    ways: frozenset[str]
    threads: int
    rate: float
    source: str


@dataclass(frozen=True)
class Speed:
    """Training tokens a second that are expected. ``basis``: measured (this shape on this device), scaled (another
    shape there, by operations) or assumed (a share of the data sheet's peak); ``source`` says of what."""

    rate: float
    basis: str
    source: str


def records() -> list[dict[str, Any]]:
    """All records at hand: of this machine's runs and the committed ones."""
    own = (runs.read_record(path.parent) for path in sorted(runs.runs_dir().glob("*/record.json")))
    committed = sorted((project_root() / "data" / "recorded").glob("*/records.json"))
    return [*filter(None, own), *(record for path in committed for record in runs.read_records(path.parent))]


def recorded(found: Iterable[Mapping[str, Any]]) -> list[Measurement]:
    """The speeds of recorded runs that came to their end."""
    speeds = []
    for record in found:
        if record["diverged"]:
            continue
        settings, made = record["settings"], record["provenance"]
        training, context = settings["training"], settings["data"]["context"]
        precisions = {training["precision"], made.get("precision", training["precision"])}
        ways = frozenset(_way(precision, training["compile"]) for precision in precisions)
        threads = _threads(made["device"], made["threads"])
        with contextlib.suppress(SettingsError, TypeError):  # of an extension of nfcore that is not here
            model = ModelSettings(**settings["model"])
            rate = made["tokens_per_second"]
            speeds.append(Measurement(model, context, made["device"], ways, threads, rate, "recorded runs"))
    return speeds


def benchmarked() -> list[Measurement]:
    """The benchmarks' speeds: of each shape the fastest way in float32 and in 16 bits."""
    path = project_root() / "tools" / "benchmarks" / "results" / "training.json"
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    device, threads = results["provenance"]["device"], results["provenance"]["threads"]
    best: dict[tuple[str, bool], Measurement] = {}
    for row in results["rows"]:
        if row["kind"] == "training" and row["side"].startswith("ours"):
            shape, vocabulary = BENCHMARKED[row["shape"]]
            low = "bf16" in row["side"]
            precisions = ("bfloat16", "float16", "auto") if low else ("float32",)
            measured = Measurement(
                ModelSettings(**SHAPES[shape], vocab_size=vocabulary),
                row["context"],
                device,
                frozenset(_way(precision, compiled) for precision in precisions for compiled in (False, True)),
                _threads(device, threads),
                row["tokens_per_second"]["median"],
                f"the benchmark {row['shape']}",
            )
            key = (row["shape"], low)
            best[key] = max(best.get(key, measured), measured, key=lambda m: m.rate)
    return list(best.values())


def _way(precision: str, compiled: bool) -> str:
    return f"{precision}, compiled" if compiled else precision


def _threads(device: str, threads: int) -> int:
    return threads if device.endswith(" cores") else 1


def _shape(model: ModelSettings, context: int) -> tuple[Any, ...]:
    """What decides on the matrix products; normalisation and activation cost little beside them."""
    sizes = (model.hidden_size, model.intermediate_size, model.num_hidden_layers, model.num_attention_heads)
    return model.family, model.vocab_size, *sizes, context


def card(device: str) -> str:
    """The name in PEAK_TFLOPS of a GPU; any other device goes by its own name."""
    return next((name for name in PEAK_TFLOPS if name.lower() in device.lower()), device)


def speed(experiment: Experiment, device: str, measured: Iterable[Measurement]) -> Speed | None:
    """What the run may reach on a device, judged by measurements; None if nothing is known of the device.

    Of measurements of the same shape those of the first source count, with their median.
    """
    model, context, settings = experiment.model, experiment.data.context, experiment.training
    way, flops = _way(settings.precision, settings.compile), flops_per_token(model, context)
    own = [m for m in measured if card(m.device) == card(device) and way in m.ways]

    def a_thread(m: Measurement) -> float:
        return m.rate / m.threads * _threads(m.device, settings.threads or m.threads)

    same = [m for m in own if _shape(m.model, m.context) == _shape(model, context)]
    if same:
        first = [a_thread(m) for m in same if m.source == same[0].source]
        return Speed(median(first), "measured", f"{same[0].source} of this shape")
    if own:
        work = {m: flops_per_token(m.model, m.context) / flops for m in own}
        nearest = min(own, key=lambda m: abs(math.log(work[m])))
        return Speed(a_thread(nearest) * work[nearest], "scaled", f"by operations from {nearest.source}")
    peak = PEAK_TFLOPS.get(card(device))
    if peak is None or settings.precision == "float32":
        return None
    source = f"{ASSUMED_MFU:.0%} of {peak} TFLOP/s, the 16-bit peak in the data sheet of {card(device)}"
    return Speed(ASSUMED_MFU * peak * 1e12 / flops, "assumed", source)


# --- plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one run takes on a device. Bytes: ``memory`` while it trains, ``storage`` of its folder at most while it
    trains, ``kept`` of that at its end. ``seconds`` and ``speed`` are None where no speed is known."""

    experiment: Experiment
    parameters: int
    steps: int
    tokens: int
    memory: float
    storage: int
    kept: int
    seconds: float | None
    speed: Speed | None


def plan(
    experiments: Sequence[Experiment], device: str, measured: Sequence[Measurement] | None = None
) -> tuple[list[Plan], dict[DataSettings, Corpus]]:
    """What each run takes on a device, and the corpora that they read. ``measured``: what speeds are judged by; None
    for all records and benchmarks at hand, in this order.

    Raises:
        SettingsError: one epoch, or an evaluation on all, of a corpus of unknown size.
    """
    found = records()
    measured = [*recorded(found), *benchmarked()] if measured is None else measured
    corpora = {data: corpus(data, found) for data in dict.fromkeys(e.data for e in experiments)}
    return [_plan(e, device, corpora[e.data], measured) for e in experiments], corpora


def _plan(experiment: Experiment, device: str, corpus: Corpus, measured: Sequence[Measurement]) -> Plan:
    """Beside training, an evaluation is a forward pass over its tokens, a probe two over its own."""
    settings, data = experiment.training, experiment.data
    batch = settings.batch_size * data.context
    steps = settings.steps or int(_known(corpus.train, "training.steps: null is one epoch") // batch)
    if settings.eval_sequences is None:
        evaluated = _known(corpus.validation, "training.eval_sequences: null is all of the validation part")
    else:
        evaluated = settings.eval_sequences * data.context
    passes = evaluated * (steps // settings.eval_every + 2)
    passes += 2 * settings.probe_sequences * data.context * (steps // settings.probe_every + 2)
    found = speed(experiment, device, measured)
    return Plan(
        experiment,
        parameters(experiment.model)[0],
        steps,
        steps * batch,
        memory.estimate(experiment),
        *storage_bytes(experiment, steps),
        (steps * batch + FORWARD * passes) / found.rate if found else None,
        found,
    )


@dataclass(frozen=True)
class Corpus:
    """Tokens of the two parts, None where not known; ``source`` says how they are known."""

    train: float | None
    validation: float | None
    source: str


def corpus(data: DataSettings, found: Iterable[Mapping[str, Any]]) -> Corpus:
    """Of token files that are there, else of a recorded run on the same data, else of the published count of files."""
    for path in sorted(cache_dir().glob("*/meta.json")):
        meta = json.loads(path.read_text())
        if meta.get("settings") == data.to_dict():
            train, validation = (meta[part]["sequences"] * data.context for part in PARTS)
            return Corpus(train, validation, "counted")
    for record in found:
        if {**data.to_dict(), **record["settings"]["data"]} == data.to_dict():
            return Corpus(record["provenance"]["unique_tokens"], None, "recorded")
    if data.corpus == "codeparrot" and data.train_files is None:
        each = PAPER_TOKENS / PAPER_FILES
        train, validation = (n and n * each for n in (data.max_documents, data.max_validation_documents))
        return Corpus(train, validation, f"estimated, {each:,.0f} a file as in the published runs")
    return Corpus(None, None, "unknown before `python -m nfcore data` has prepared it")


def _known(tokens: float | None, what: str) -> float:
    if tokens is None:
        raise SettingsError(f"{what}, and its size is not known here; `python -m nfcore data` prepares the corpus")
    return tokens


def report(experiments: Sequence[Experiment], device: str) -> str:
    """The plan as text: a line a run, what they take together, and how each number is known."""
    plans, corpora = plan(experiments, device)
    width = max(len(p.experiment.name) for p in plans)
    lines = [
        f"{len(plans)} {'run' if len(plans) == 1 else 'runs'} on {device}",
        "",
        f"{'run':12}  {'':{width}}  parameters   steps     tokens  memory    storage       kept   tokens/s     hours",
    ]
    for p in plans:
        time = "   unknown   unknown"
        if p.speed and p.seconds is not None:
            time = f"{p.speed.rate:10,.0f} {p.seconds / 3600:9,.3f}  {p.speed.basis}"
        sizes = f"{p.memory / 2**30:6.2f}G {p.storage / 1e6:8,.1f} M {p.kept / 1e6:8,.1f} M"
        counts = f"{p.parameters / 1e6:8.2f} M {p.steps:7,} {p.tokens / 1e6:8,.1f} M"
        lines.append(f"{p.experiment.id}  {p.experiment.name:{width}}  {counts} {sizes} {time}")
    known = [p.seconds for p in plans if p.seconds is not None]
    hours = f"{sum(known) / 3600:,.3g} hours" if len(known) == len(plans) else "unknown time"
    lines += [
        "",
        f"Together {hours} if one run follows the other, and {sum(p.kept for p in plans) / 1e6:,.1f} MB kept.",
        "Parameters, steps and tokens are counted; steps of one epoch are as many as the corpus gives.",
        "Memory (GiB, of the GPU or else of the process) is estimated from the settings.",
        "Storage (MB) is counted: at most while a run trains, with checkpoints, and kept at its end; tables at most.",
        "Hours are tokens, and those of evaluations and probes, over tokens/s; loading and saving come on top.",
    ]
    for basis, source in dict.fromkeys((p.speed.basis, p.speed.source) for p in plans if p.speed):
        lines.append(f"Tokens/s {basis}: {source}.")
    if len(known) < len(plans):
        lines.append(f"Tokens/s unknown: nothing is recorded of {device}, nor a 16-bit peak known that it would have.")
    for data, size in corpora.items():
        stored = (size.train or 0) + (size.validation or 0)
        width = int(token_type(data.vocab_size)[-1])
        counted = f"{stored:,.0f} tokens, {width * stored / 1e6:,.1f} MB, " if size.train else ""
        lines.append(f"Token files of {data.corpus}, T={data.context}: {counted}{size.source}.")
    return "\n".join(lines)


# --- what to ask a scheduler for ----------------------------------------------------------------------------------


PROCESS = 3 * 2**30  # bytes of host memory: Python, torch, Snakemake, a device's libraries
SPARE_MEMORY, SPARE_TIME = 1.5, 2.0  # estimates are multiplied with these
START = 10  # minutes: loading, and waiting for a file system


def host_memory_mb(plan: Plan, gpu: bool) -> int:
    """Megabytes of the host's memory: on a CPU the training, beside a GPU the weights and moments of a checkpoint."""
    return math.ceil((PROCESS + SPARE_MEMORY * (12 * plan.parameters if gpu else plan.memory)) / 1e6)


def minutes(plan: Plan) -> int | None:
    """None where no speed is known."""
    return None if plan.seconds is None else math.ceil(START + SPARE_TIME * plan.seconds / 60)


def this_device() -> str:
    """The name under which this machine's runs are recorded. Loads torch."""
    from nfcore import machine

    return machine.device_name()


def known_device(name: str) -> str:
    """``name``, if a speed of it is recorded, measured or assumed. Raises SettingsError otherwise."""
    if card(name) not in PEAK_TFLOPS:
        devices = dict.fromkeys(m.device for m in [*recorded(records()), *benchmarked()])
        choice("--hardware", name, [*PEAK_TFLOPS, *devices])
    return name


def usual_device(gpu: bool) -> str:
    """What time is planned for where no device is named: an older card, or the benchmarked processor."""
    if gpu:
        return "A100"
    known = [*benchmarked(), *recorded(runs.read_records(recorded_dir("quick")))]
    return next((measured.device for measured in known), "unknown")
