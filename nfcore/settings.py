"""Settings of a run: what the model is, what it reads, how it is trained.  No torch here.

A run is identified by :attr:`Experiment.id`, a hash of every setting with its default filled in, so two ways of
writing the same run are the same run.  Wrong input raises :class:`SettingsError` naming field, value and choices.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import math
import os
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml


T = typing.TypeVar("T")


class SettingsError(ValueError):
    """A setting that a user gave is wrong; the message names the field, the value and what is allowed."""


# Named sizes. The first two are the paper's; the others keep their proportions at a width that two CPU cores train.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-124m": dict(family="gpt2", hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
    "pythia-70m": dict(family="pythia", hidden_size=512, num_hidden_layers=6, num_attention_heads=8),
    "gpt2-6x64": dict(family="gpt2", hidden_size=64, num_hidden_layers=6, num_attention_heads=4),
    "pythia-6x64": dict(family="pythia", hidden_size=64, num_hidden_layers=6, num_attention_heads=4),
    "gpt2-2x32": dict(family="gpt2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    "pythia-2x32": dict(family="pythia", hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
}

FAMILIES = ("gpt2", "pythia")
# The names in the registries of nfcore.model; others are looked up there, which costs loading torch.
NORMS = ("layernorm", "rmsnorm", "none")
ACTIVATIONS = (
    *("gelu", "gelu_tanh", "relu", "leaky_relu", "learnable_leaky_relu", "identity"),
    *("scaled_gelu", "scaled_silu", "scaled_softplus", "learnable_scaled_gelu", "learnable_input_gelu"),
)
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = (*DTYPES, "auto")
OPTIMIZERS = ("adamw", "hf_adamw")
SCHEDULES = ("linear", "hf_linear")

YAML_BYTES = 2**20  # the longest file of settings that is read
YAML_DEPTH = 16  # and its deepest nesting
LARGEST_VOCABULARY = 2**20  # about that of the largest tokenizers there are


class Short(reprlib.Repr):
    """A value in a message: whatever it was, the message is readable."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 64 else f"a number of {x.bit_length()} bits"  # Python refuses to write some


SHORT = Short()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200


def project_root() -> Path:
    """Where ``data`` and ``runs`` live: the environment's ``NFCORE_ROOT``, else nfcore's own checkout, else here."""
    if os.environ.get("NFCORE_ROOT"):
        return Path(os.environ["NFCORE_ROOT"])
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "data" / "published").is_dir() else Path.cwd()


def checkout_file(*parts: str) -> Path:
    """A file that only a checkout has. Raises SettingsError where there is no checkout."""
    path = project_root().joinpath(*parts)
    if not path.exists():
        raise SettingsError(
            f"{path}: not found; it comes with a checkout of the project, not with the installed package: work in the "
            "checkout, or name it in NFCORE_ROOT"
        )
    return path


def choice(where: str, value: object, allowed: typing.Iterable[object]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise SettingsError(f"{where}: {SHORT.repr(value)} is not one of {', '.join(map(str, allowed))}")


def registered(where: str, name: str, registry: str) -> None:
    """Raise unless ``name`` is in this registry (``NORMS`` or ``ACTIVATIONS``) of :mod:`nfcore.model`."""
    if name not in globals()[registry]:
        choice(where, name, getattr(importlib.import_module("nfcore.model"), registry))


def at_least(where: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise SettingsError(f"{where}: {value!r} must be {limit}")


# A setting added after runs were recorded: at its default it is left out of the hash, so that those keep their ids.
LATER = {"later": True}


def identity(settings: Any) -> dict[str, Any]:
    """The fields of a section that name what is made with it: those added later only where they are not the default."""
    later = {f.name: f.default for f in fields(settings) if f.metadata == LATER}
    return {name: value for name, value in asdict(settings).items() if name not in later or value != later[name]}


@dataclass(frozen=True)
class ModelSettings:
    """The architecture (the fields of :class:`nfcore.model.NormFreeConfig`).

    ``family``: ``gpt2`` (learned positions, sequential residual, tied head) or ``pythia`` (rotary positions on
    ``rotary_fraction`` of each head, parallel residual, untied head).
    ``norm`` / ``final_norm``: normalisation inside the blocks / before the head. The paper's "normalization-free"
    models keep the final LayerNorm.
    ``negative_slope``: of ``leaky_relu``; the initial one of ``learnable_leaky_relu``, whose slopes are one per layer
    or one for all (``slope_sharing``, as learnable scales are). ``activation_scale``: s of ``scaled_gelu``,
    GELU(s x)/s, and its kin; the initial s of ``learnable_scaled_gelu`` and a of ``learnable_input_gelu``, GELU(a x).
    ``biases``: ``paper`` (query and key only), ``all`` or ``none``.
    ``init``: ``paper`` (N(0, 0.02) for every matrix), ``gpt2`` (output matrices scaled by 1/sqrt(2 L)) or ``width``
    (0.02 sqrt(768/d) for matrices, 0.02 for embeddings, which keeps the gain of a layer at d = 768).
    ``embedding_gain`` / ``ffn_gain`` / ``ffn_output_gain``: factors on the initial embeddings / on the initial first /
    second FFN matrices.
    """

    family: str = "gpt2"
    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None  # None: 4 hidden_size
    max_position_embeddings: int = 1024
    norm: str = "layernorm"
    final_norm: str = "layernorm"
    norm_eps: float = 1e-5
    activation: str = "gelu"
    negative_slope: float = 0.01
    slope_sharing: str = "per_layer"
    activation_scale: float = 1.0
    biases: str = "paper"
    init: str = "paper"
    embd_pdrop: float = 0.0
    residual_dtype: str = "float32"
    rotary_fraction: float = 0.25
    rotary_base: float = 10000.0
    tie_word_embeddings: bool | None = None  # None: as the family does
    embedding_gain: float = field(default=1.0, metadata=LATER)
    ffn_gain: float = field(default=1.0, metadata=LATER)
    ffn_output_gain: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        choice("model.family", self.family, FAMILIES)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            at_least(f"model.{name}", getattr(self, name), 1)
        at_least("model.max_position_embeddings", self.max_position_embeddings, 1)
        if self.hidden_size % self.num_attention_heads:
            raise SettingsError(
                f"model.num_attention_heads: {self.num_attention_heads} heads do not divide "
                f"model.hidden_size {self.hidden_size}"
            )
        registered("model.norm", self.norm, "NORMS")
        registered("model.final_norm", self.final_norm, "NORMS")
        registered("model.activation", self.activation, "ACTIVATIONS")
        choice("model.slope_sharing", self.slope_sharing, ("per_layer", "shared"))
        choice("model.biases", self.biases, ("paper", "all", "none"))
        choice("model.init", self.init, ("paper", "gpt2", "width"))
        choice("model.residual_dtype", self.residual_dtype, DTYPES)
        at_least("model.embd_pdrop", self.embd_pdrop, 0.0, 1.0)
        at_least("model.rotary_fraction", self.rotary_fraction, 0.0, 1.0)
        at_least("model.norm_eps", self.norm_eps, 0.0)
        if not math.isfinite(self.negative_slope):
            raise SettingsError(f"model.negative_slope: {self.negative_slope!r} must be finite")
        for name in ("activation_scale", "rotary_base", "embedding_gain", "ffn_gain", "ffn_output_gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"model.{name}: {getattr(self, name)!r} must be above 0")
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        at_least("model.intermediate_size", typing.cast(int, self.intermediate_size), 1)
        if self.tie_word_embeddings is None:
            object.__setattr__(self, "tie_word_embeddings", self.family == "gpt2")

    @property
    def configuration(self) -> str:
        """The paper's name: SM softmax attention, LN LayerNorm, G GELU, R ReLU; a linear FFN has no letter."""
        slope = f"({self.negative_slope:g})"
        letters = {
            "gelu": "G",
            "gelu_tanh": "G(tanh)",
            "scaled_gelu": f"G(s={self.activation_scale:g})",
            "scaled_silu": f"SiLU(s={self.activation_scale:g})",
            "scaled_softplus": f"softplus(s={self.activation_scale:g})",
            "learnable_scaled_gelu": f"G(learnable s from {self.activation_scale:g})",
            "learnable_input_gelu": f"G(learnable a from {self.activation_scale:g})",
            "relu": "R",
            "leaky_relu": f"L{slope}",
            "learnable_leaky_relu": f"LL {self.slope_sharing.replace('_', ' ')}{slope}",
            "identity": "",
        }
        letter = letters.get(self.activation, self.activation)
        norm = {"layernorm": "LN", "rmsnorm": "RMS", "none": ""}.get(self.norm, self.norm)
        return "+".join(part for part in ("SM", norm, letter) if part)


@dataclass(frozen=True)
class DataSettings:
    """The corpus, its tokens and how they are cut.

    ``corpus``: ``python-source`` (sources of packages that the lock pins), ``codeparrot`` (the paper's data sets), or
    the path of a folder or a text, JSON-lines or parquet file.
    ``packing``: ``per-file`` cuts each document into sequences of ``context`` tokens and drops the tail, as the paper
    does; ``packed`` joins documents with an end-of-text token first.
    ``split_by``: documents go to validation by the hash of their group (package/directory) or of themselves.
    ``streaming``: of ``codeparrot`` only, read no more than ``max_documents`` need, in place of a download of it all.
    It is then shuffled within a window instead of as a whole, so the documents are others than the paper's.
    """

    corpus: str = "python-source"
    text_column: str = "content"
    tokenizer: str | None = None  # None: byte-level BPE trained on the training part; else a path or a Hub name
    vocab_size: int = 1024
    context: int = 128
    packing: str = "per-file"
    split_by: str = "group"
    validation_fraction: float = 0.05
    max_documents: int | None = None  # of the training part, after shuffling with seed 0
    max_validation_documents: int | None = None
    train_files: str | None = None  # codeparrot only: local parquet or JSON-lines files in place of the Hub's
    validation_files: str | None = None
    streaming: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.corpus:
            raise SettingsError("data.corpus: '' must be python-source, codeparrot or a path")
        at_least("data.vocab_size", self.vocab_size, 257, LARGEST_VOCABULARY)
        at_least("data.context", self.context, 2)
        choice("data.packing", self.packing, ("per-file", "packed"))
        choice("data.split_by", self.split_by, ("group", "document"))
        if not 0.0 < self.validation_fraction < 1.0:
            raise SettingsError(f"data.validation_fraction: {self.validation_fraction!r} must be between 0 and 1")
        for name in ("max_documents", "max_validation_documents"):
            if getattr(self, name) is not None:
                at_least(f"data.{name}", getattr(self, name), 1)
        if (self.train_files is None) != (self.validation_files is None):
            raise SettingsError("data.train_files and data.validation_files: give both or neither")
        if self.train_files is not None and self.corpus != "codeparrot":
            raise SettingsError(f"data.train_files: only for data.corpus codeparrot, which here is {self.corpus!r}")
        if self.streaming and self.corpus != "codeparrot":
            raise SettingsError(f"data.streaming: true is only for data.corpus codeparrot, not for {self.corpus!r}")


@dataclass(frozen=True)
class TrainingSettings:
    """The optimiser, its schedule and what is measured when. Defaults are the paper's recipe except for the size,
    ``optimizer`` and ``schedule``.

    ``steps``: optimiser updates; None is one epoch. ``batch_size``: sequences per update, in micro-batches of
    ``micro_batch_size``.
    ``optimizer``: ``adamw`` is torch's AdamW; ``hf_adamw``, that of the paper's code, is
    :class:`nfcore.optimizer.HFAdamW`.
    ``schedule``: a linear warm-up over ``warmup_fraction`` of the updates, then linear decay to
    ``final_learning_rate``. ``linear`` rounds the W updates of the warm-up to the nearest number and starts at 1/W of
    ``learning_rate``; ``hf_linear``, that of the paper's code, rounds W up and starts at zero.
    ``slope_weight_decay``: of learnable slopes, None for the same as ``weight_decay``.
    ``precision``: of matrix products; ``auto`` is bfloat16 where the device multiplies in it, else float32.
    ``chunked_loss``: never hold the logits of all tokens of a micro-batch, for memory.
    ``eval_sequences`` (None: all) and ``probe_sequences`` are taken from the start of the validation part.
    """

    steps: int | None = 600
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-7
    warmup_fraction: float = 0.05
    schedule: str = field(default="linear", metadata=LATER)
    optimizer: str = field(default="adamw", metadata=LATER)
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    slope_weight_decay: float | None = None
    max_grad_norm: float = 1.0
    precision: str = "float32"
    compile: bool = False
    gradient_checkpointing: bool = False
    chunked_loss: bool = field(default=False, metadata=LATER)
    eval_every: int = 100
    eval_sequences: int | None = 512
    probe_every: int = 50
    probe_sequences: int = 16
    log_every: int = 10
    save_every: int = 100
    threads: int | None = None  # None: what torch finds

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_every", "probe_every", "probe_sequences", "log_every", "save_every"):
            at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("steps", "threads", "eval_sequences"):
            if getattr(self, name) is not None:
                at_least(f"training.{name}", getattr(self, name), 1)
        micro = self.batch_size if self.micro_batch_size is None else self.micro_batch_size
        object.__setattr__(self, "micro_batch_size", micro)
        if micro < 1 or self.batch_size % micro:
            raise SettingsError(
                f"training.micro_batch_size: {micro} does not divide training.batch_size {self.batch_size}"
            )
        if self.slope_weight_decay is None:
            object.__setattr__(self, "slope_weight_decay", self.weight_decay)
        for name in ("learning_rate", "epsilon", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"training.{name}: {getattr(self, name)!r} must be above 0")
        at_least("training.final_learning_rate", self.final_learning_rate, 0, self.learning_rate)
        at_least("training.warmup_fraction", self.warmup_fraction, 0, 1)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"training.{name}: {getattr(self, name)!r} must be at least 0 and below 1")
        at_least("training.weight_decay", self.weight_decay, 0)
        at_least("training.slope_weight_decay", typing.cast(float, self.slope_weight_decay), 0)
        choice("training.precision", self.precision, PRECISIONS)
        choice("training.optimizer", self.optimizer, OPTIMIZERS)
        choice("training.schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Experiment:
    """One training run. ``name`` labels it and is not part of its identity."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0, 2**32 - 1)
        if self.model.vocab_size != self.data.vocab_size:
            raise SettingsError(
                f"model.vocab_size: {self.model.vocab_size} differs from data.vocab_size {self.data.vocab_size}"
            )
        if self.data.context > self.model.max_position_embeddings:
            raise SettingsError(
                f"data.context: {self.data.context} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], where: str = "") -> Experiment:
        """Build and check an experiment from nested dictionaries, as a YAML file gives them.

        ``model`` may hold ``shape``, a name in :data:`SHAPES`, whose sizes the other keys override; its vocabulary is
        that of ``data``.

        Raises:
            SettingsError: unknown field, wrong type or value.
        """
        top = check_keys(mapping, ("model", "data", "training", "seed", "name"), where or "experiment")
        sections = {name: top.get(name) for name in ("model", "data", "training")}
        parts = {name: {} if part is None else check_mapping(part, name) for name, part in sections.items()}
        data = from_mapping(DataSettings, parts["data"], "data")
        model = dict(parts["model"])
        shape = model.pop("shape", None)
        if shape is not None:
            choice("model.shape", shape, SHAPES)
            model = {**SHAPES[shape], **model}
        model.setdefault("vocab_size", data.vocab_size)
        plain = {k: top[k] for k in ("seed", "name") if k in top}
        for key, kind in (("seed", int), ("name", str)):
            if key in plain:
                check_type(key, plain[key], kind)
        return cls(
            model=from_mapping(ModelSettings, model, "model"),
            data=data,
            training=from_mapping(TrainingSettings, parts["training"], "training"),
            **plain,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the run: SHA-256 of all settings but the label and the thread count."""
        sections = {name: identity(getattr(self, name)) for name in ("model", "data", "training")}
        sections["training"].pop("threads")
        return digest({"seed": self.seed, **sections})


def digest(value: Any, digits: int = 12) -> str:
    """SHA-256 of the canonical JSON of ``value``, shortened."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def check_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where}: {SHORT.repr(value)} must be a mapping of settings")
    return dict(value)


def check_keys(mapping: Any, allowed: typing.Iterable[str], where: str) -> dict[str, Any]:
    allowed = tuple(allowed)
    mapping = check_mapping(mapping, where)
    for key in mapping:
        if key not in allowed:
            raise SettingsError(f"{where}: unknown setting {SHORT.repr(key)}; allowed: {', '.join(allowed)}")
    return mapping


def check_type(where: str, value: Any, kind: Any) -> None:
    """Raise unless ``value`` is of the annotated type ``kind`` (an int may stand for a float, a bool for nothing)."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise SettingsError(f"{where}: a number of {value.bit_length()} bits must be below 2**63")
    if isinstance(value, str) and not _is_text(value):
        raise SettingsError(f"{where}: {SHORT.repr(value)} must be text, and holds half a character or a NUL")
    if get_origin(kind) in (types.UnionType, typing.Union):
        kinds = get_args(kind)
    else:
        kinds = (kind,)
    for k in kinds:
        k = get_origin(k) or k
        if k is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return
        if isinstance(value, k) and not (k is int and isinstance(value, bool)):
            return
    hint = ""
    if float in kinds and isinstance(value, str):
        with contextlib.suppress(ValueError):
            hint = f" (YAML reads {value} as text; write {yaml.safe_dump(float(value)).split()[0]})"
    names = " or ".join("null" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds)
    raise SettingsError(f"{where}: {SHORT.repr(value)} must be of type {names}{hint}")


def _is_text(value: str) -> bool:
    """Whether it can be written to a file and be part of a path."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build the settings dataclass ``cls`` from a mapping after checking names and types."""
    hints = typing.get_type_hints(cls)
    check_keys(mapping, [f.name for f in fields(cls)], where)  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        check_type(f"{where}.{key}", value, hints[key])
        is_float = float in (get_args(hints[key]) or (hints[key],)) and isinstance(value, int)
        values[key] = float(value) if is_float else value  # 1 and 1.0 are the same run
    return cls(**values)


class _Loader(yaml.SafeLoader):
    """Of YAML what settings need: no aliases, with which a short file stands for a huge value, and few levels."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        if self.depth == YAML_DEPTH:
            where = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"more than {YAML_DEPTH} levels", where)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text of plain types."""
    if len(text) > YAML_BYTES:
        raise SettingsError(f"{where}: {len(text)} characters of YAML, at most {YAML_BYTES} are read")
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML lets through whatever its constructors raise on `!!int x` or a 13th month
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingsError(f"{where}: not valid YAML ({reason})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a file that cannot be read or parsed raises :class:`SettingsError`."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(YAML_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from None
    return check_mapping(parse_yaml(text, str(path)) or {}, str(path))


def override(mapping: Mapping[str, Any], assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Apply ``section.field=value`` assignments of a command line to nested settings; values are YAML, or numbers."""
    result = copy.deepcopy(dict(mapping))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"{SHORT.repr(assignment)}: overrides are written section.field=value")
        where = key[:200]
        try:
            value = parse_yaml(text, where)
        except SettingsError:
            raise SettingsError(f"{where}: {SHORT.repr(text)} is not valid YAML") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # 1e-3, which YAML 1.1 reads as text
        *sections, leaf = key.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsError(f"{where}: {SHORT.repr(section)} is not a section of settings")
        target[leaf] = value
    return result
