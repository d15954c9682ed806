"""Settings of a run: what the model is, what it reads, how it is trained.  No torch here.

Each field stands with its choices or bounds and its meaning. Wrong input raises :class:`SettingsError` with one line:
the field, the value, what is allowed. A run is identified by :attr:`Experiment.id`, a hash of every setting with its
default filled in, so two ways of writing the same run are the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt


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

# Norms and activations, each with its letters in a configuration's name.
NORM_LETTERS = {"layernorm": "LN", "rmsnorm": "RMS", "none": ""}
ACTIVATION_LETTERS = {"gelu": "G", "gelu_tanh": "G(tanh)", "relu": "R", "leaky_relu": "L({slope:g})", "identity": ""}
ACTIVATION_LETTERS |= {"learnable_leaky_relu": "LL {sharing}({slope:g})", "scaled_softplus": "softplus(s={scale:g})"}
ACTIVATION_LETTERS |= {"scaled_gelu": "G(s={scale:g})", "learnable_scaled_gelu": "G(learnable s from {scale:g})"}
ACTIVATION_LETTERS |= {"scaled_silu": "SiLU(s={scale:g})", "learnable_input_gelu": "G(learnable a from {scale:g})"}
# The names that settings take. nfcore.model puts its own registries here, to which users add.
REGISTERED: dict[str, Collection[str]] = dict.fromkeys(("norm", "final_norm"), NORM_LETTERS)
REGISTERED["activation"] = ACTIVATION_LETTERS

# Marks a field added after runs were recorded: at its default it is left out of the hash, so that those keep their ids.
LATER = "later"
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
DType = Literal["float32", "bfloat16", "float16"]

# --- checks -----------------------------------------------------------------------------------------------------


def choice(where: str, value: object, allowed: Collection[object]) -> None:
    if value not in [*allowed]:
        raise SettingsError(f"{where}: {value!r:.200} is not one of {', '.join(map(str, allowed))}")


def check_mapping(value: Any, where: str) -> dict[str, Any]:
    """A copy of a mapping from names to anything."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SettingsError(f"{where}: {value!r:.200} must be a mapping from names")
    return dict(value)


def check_keys(mapping: Any, allowed: Collection[str], where: str) -> dict[str, Any]:
    for key in (mapping := check_mapping(mapping, where)):
        if key not in allowed:
            raise SettingsError(f"{where}: unknown setting {key!r:.200}; allowed: {', '.join(allowed)}")
    return mapping


# --- the settings -----------------------------------------------------------------------------------------------


class Section(pydantic.BaseModel):
    """Settings that are checked when they are made and then stay as they are.

    Raises:
        SettingsError: unknown field, wrong type or value.
    """

    model_config = pydantic.ConfigDict(frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    section: ClassVar[str] = ""

    def __init__(self, /, **values: Any) -> None:
        check_keys(values, type(self).model_fields, self.section or type(self).__name__.lower())
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in (self.section, *first["loc"]) if part != "")
            must = re.sub(r"^\w+ should", "must", first["msg"]).replace("a valid dictionary", "a mapping")
            own = first.get("ctx", {}).get("error")  # a SettingsError of our validators
            raise SettingsError(str(own) if own else f"{where}: {first['input']!r:.200} {must}") from None

    def __hash__(self) -> int:
        return hash(tuple(tuple(v) if isinstance(v, list) else v for v in dict(self).values()))

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked as a new one is. What was not given follows anew from the others."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    def _default(self, **values: Any) -> None:
        """Give fields that are None what follows from others."""
        for name in [name for name in values if getattr(self, name) is None]:
            object.__setattr__(self, name, values[name])

    def _wrong(self, name: str, must: str) -> SettingsError:
        return SettingsError(f"{self.section}.{name}: {getattr(self, name)!r} must {must}")


def identity(settings: Section) -> dict[str, Any]:
    """The fields of a section that name what is made with it: those added later only where they are not the default."""
    fields = type(settings).model_fields
    return {k: v for k, v in settings.to_dict().items() if LATER not in fields[k].metadata or v != fields[k].default}


class ModelSettings(Section):
    """The architecture (the fields of :class:`nfcore.model.NormFreeConfig`)."""

    section = "model"

    family: Literal["gpt2", "pythia"] = "gpt2"
    """``gpt2`` (learned positions, sequential residual, tied head) or ``pythia`` (rotary positions on
    ``rotary_fraction`` of each head, parallel residual, untied head)."""
    vocab_size: PositiveInt = 50257
    """Tokens the model knows: ``data.vocab_size``, which is the default in a run."""
    hidden_size: PositiveInt = 768
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt = 12
    """Blocks."""
    num_attention_heads: PositiveInt = 12
    """Heads of a block; divides ``hidden_size``."""
    intermediate_size: PositiveInt | None = None
    """Width of the FFN; null is 4 ``hidden_size``."""
    max_position_embeddings: PositiveInt = 1024
    """The longest sequence, in tokens."""
    norm: str = "layernorm"
    """Normalisation inside the blocks."""
    final_norm: str = "layernorm"
    """Normalisation before the head. The paper's "normalization-free" models keep the final LayerNorm."""
    norm_eps: NonNegativeFloat = 1e-5
    """Added to the variance in a norm."""
    activation: str = "gelu"
    """Activation of the FFN."""
    negative_slope: float = 0.01
    """Negative slope of ``leaky_relu``; the initial one of ``learnable_leaky_relu``."""
    slope_sharing: Literal["per_layer", "shared"] = "per_layer"
    """A learnable slope or scale is one per layer or one for all."""
    activation_scale: PositiveFloat = 1.0
    """s of ``scaled_gelu``, GELU(s x)/s, and its kin; the initial s of ``learnable_scaled_gelu`` and a of
    ``learnable_input_gelu``, GELU(a x)."""
    biases: Literal["paper", "all", "none"] = "paper"
    """``paper`` (query and key only), ``all`` or ``none``."""
    init: Literal["paper", "gpt2", "width"] = "paper"
    """``paper`` (N(0, 0.02) for every matrix), ``gpt2`` (output matrices scaled by 1/sqrt(2 L)) or ``width``
    (0.02 sqrt(768/d) for matrices, 0.02 for embeddings, which keeps the gain of a layer at d = 768)."""
    embd_pdrop: Share = 0.0
    """Dropout of the embeddings."""
    residual_dtype: DType = "float32"
    """Precision of the residual stream."""
    rotary_fraction: Share = 0.25
    """Share of each head's width that rotary positions turn; ``pythia`` only."""
    rotary_base: PositiveFloat = 10000.0
    """The longest wavelength of rotary positions is about 2 pi times this many tokens."""
    tie_word_embeddings: bool | None = None
    """Whether the head is the embedding; null is as the family does."""
    embedding_gain: Annotated[PositiveFloat, LATER] = 1.0
    """Factor on the initial embeddings."""
    ffn_gain: Annotated[PositiveFloat, LATER] = 1.0
    """Factor on the initial first FFN matrices."""
    ffn_output_gain: Annotated[PositiveFloat, LATER] = 1.0
    """Factor on the initial second FFN matrices."""
    qk_norm: Annotated[bool, LATER] = False
    """RMSNorm with a weight on the query and key of each head, before rotary positions."""
    attention_scales: Annotated[list[PositiveFloat] | None, LATER] = None
    """Factor on the attention logits of each layer, an inverse temperature; null is 1 in all."""

    def model_post_init(self, context: Any) -> None:
        for name, known in REGISTERED.items():
            choice(f"model.{name}", getattr(self, name), known)
        if self.hidden_size % self.num_attention_heads:
            raise self._wrong("num_attention_heads", f"divide model.hidden_size {self.hidden_size}")
        if self.attention_scales is not None and len(self.attention_scales) != self.num_hidden_layers:
            raise self._wrong("attention_scales", f"have a number for each of {self.num_hidden_layers} layers")
        self._default(intermediate_size=4 * self.hidden_size, tie_word_embeddings=self.family == "gpt2")

    @property
    def configuration(self) -> str:
        """The paper's name: SM softmax attention, LN LayerNorm, G GELU, R ReLU; a linear FFN has no letter."""
        values = dict(
            slope=self.negative_slope, scale=self.activation_scale, sharing=self.slope_sharing.replace("_", " ")
        )
        letter = ACTIVATION_LETTERS.get(self.activation, "{name}").format(**values, name=self.activation)
        return "+".join(part for part in ("SM", NORM_LETTERS.get(self.norm, self.norm), letter) if part)


class DataSettings(Section):
    """The corpus, its tokens and how they are cut."""

    section = "data"

    corpus: Annotated[str, Field(min_length=1)] = "python-source"
    """``python-source`` (sources of packages that the lock pins), ``codeparrot`` (the paper's data sets), or the path
    of a file or a folder in one of the formats of :mod:`nfcore.formats`."""
    text_column: str = "content"
    """The column of records that holds the text."""
    tokenizer: str | None = None
    """A path or a Hub name; null is a byte-level BPE trained on the training part."""
    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 1024
    """Tokens of the tokenizer."""
    context: Annotated[int, Field(ge=2)] = 128
    """Tokens of a sequence."""
    packing: Literal["per-file", "packed"] = "per-file"
    """``per-file`` cuts each document into sequences and drops the tail, as the paper does; ``packed`` joins documents
    with an end-of-text token first."""
    split_by: Literal["group", "document"] = "group"
    """Documents go to validation by the hash of their group (package/directory) or of themselves."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the groups or documents that go to validation."""
    max_documents: PositiveInt | None = None
    """How many documents the training part keeps, after shuffling with seed 0; null is all."""
    max_validation_documents: PositiveInt | None = None
    """How many the validation part keeps; null is all."""
    train_files: str | None = None
    """Local parquet or JSON-lines files in place of the Hub's; for ``codeparrot`` only."""
    validation_files: str | None = None
    """The same for validation; both or neither."""
    streaming: Annotated[bool, LATER] = False
    """Read no more than ``max_documents`` need, in place of a download of it all; for ``codeparrot`` only. It is then
    shuffled within a window instead of as a whole, so the documents are others than the paper's."""

    def model_post_init(self, context: Any) -> None:
        if (self.train_files is None) != (self.validation_files is None):
            raise SettingsError("data.train_files and data.validation_files: give both or neither")
        for name in ("train_files", "streaming"):
            if getattr(self, name) and self.corpus != "codeparrot":
                raise self._wrong(name, f"go with data.corpus codeparrot, not with {self.corpus!r}")


class TrainingSettings(Section):
    """The optimiser, its schedule and what is measured when. Defaults are the paper's recipe except for the size,
    ``optimizer`` and ``schedule``."""

    section = "training"

    steps: PositiveInt | None = 600
    """Updates of the optimiser; null is one epoch."""
    batch_size: PositiveInt = 32
    """Sequences per update."""
    micro_batch_size: PositiveInt | None = None
    """Sequences per pass; divides ``batch_size``, which null stands for."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate at the end of the warm-up."""
    final_learning_rate: NonNegativeFloat = 1e-7
    """Learning rate one update after the last, as in transformers; at most ``learning_rate``."""
    warmup_fraction: Share = 0.05
    """Share of the updates in which the rate rises linearly; then it decays linearly."""
    schedule: Annotated[Literal["linear", "hf_linear"], LATER] = "linear"
    """``linear`` rounds the W updates of the warm-up to the nearest number and starts at 1/W of ``learning_rate``;
    ``hf_linear``, that of the paper's code, rounds W up and starts at zero."""
    optimizer: Annotated[Literal["adamw", "hf_adamw"], LATER] = "adamw"
    """``adamw`` is torch's AdamW; ``hf_adamw``, that of the paper's code, is :class:`nfcore.optimizer.HFAdamW`."""
    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Decay of the mean of their squares."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of that mean."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay of matrices, per unit of the learning rate."""
    slope_weight_decay: NonNegativeFloat | None = None
    """Weight decay of learnable slopes; null is ``weight_decay``."""
    ffn_rate: Annotated[PositiveFloat, LATER] = 1.0
    """Factor on the learning rate of the first FFN matrices; that of the second ones is divided by it. With
    ``model.ffn_gain`` s, ``model.ffn_output_gain`` 1/s and this s, GELU(x) trains like GELU(s x)/s as long as no
    gradient is clipped."""
    entropy_penalty: Annotated[NonNegativeFloat, LATER] = 0.0
    """Weight in the loss of the mean over heads of max(0, E / ceiling - ``entropy_target``)^2, where E is a head's
    entropy."""
    entropy_target: Annotated[Share, LATER] = 0.5
    """Share of the causal ceiling up to which ``entropy_penalty`` costs nothing."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are cut to this norm."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision of matrix products; ``auto`` is bfloat16 where the device multiplies in it, else float32."""
    compile: bool = False
    """By ``torch.compile``, where there is a compiler."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, for memory."""
    on_nonfinite: Annotated[Literal["stop", "skip"], LATER] = "stop"
    """What a value that is not finite does: ``stop`` ends the run; ``skip`` leaves out updates whose gradients are not
    finite, as training with a loss scaler does, and goes on."""
    chunked_loss: Annotated[bool, LATER] = False
    """Never hold the logits of all tokens of a micro-batch, for memory."""
    eval_every: PositiveInt = 100
    """Updates from one evaluation to the next."""
    eval_sequences: PositiveInt | None = 512
    """From the start of the validation part; null is all."""
    probe_every: PositiveInt = 50
    """Updates from one probe to the next."""
    probe_sequences: PositiveInt = 16
    """From the start of the validation part."""
    log_every: PositiveInt = 10
    """Updates from one row of the metrics to the next."""
    save_every: PositiveInt = 100
    """Updates from one checkpoint to the next."""
    threads: PositiveInt | None = None
    """Threads of the CPU; null leaves as many as torch has. Not part of what names a run."""

    def model_post_init(self, context: Any) -> None:
        self._default(micro_batch_size=self.batch_size, slope_weight_decay=self.weight_decay)
        if self.batch_size % (self.micro_batch_size or 1):
            raise self._wrong("micro_batch_size", f"divide training.batch_size {self.batch_size}")
        if self.final_learning_rate > self.learning_rate:
            raise self._wrong("final_learning_rate", f"be at most training.learning_rate {self.learning_rate}")


class Experiment(Section):
    """One training run."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    """The architecture."""
    data: DataSettings = Field(default_factory=DataSettings)
    """What it reads."""
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    """How it is trained."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the initial weights and of the order of the data."""
    name: str = ""
    """A label, not part of what names the run."""

    def model_post_init(self, context: Any) -> None:
        if self.model.vocab_size != self.data.vocab_size:
            raise self.model._wrong("vocab_size", f"be data.vocab_size {self.data.vocab_size}")
        if self.data.context > (longest := self.model.max_position_embeddings):
            raise self.data._wrong("context", f"be at most model.max_position_embeddings {longest}")

    @classmethod
    def from_dict(cls, mapping: Any) -> Self:
        """Build and check an experiment from nested dictionaries, as a YAML file gives them.

        ``model`` may hold ``shape``, a name in :data:`SHAPES`, whose sizes the other keys override; its vocabulary is
        that of ``data``.
        """
        values = check_keys(mapping, cls.model_fields, "experiment")
        part = {k: check_mapping({} if values.get(k) is None else values[k], k) for k in ("model", "data", "training")}
        data, shape = DataSettings(**part["data"]), part["model"].pop("shape", None)
        if shape is not None:
            choice("model.shape", shape, SHAPES)
        model = ModelSettings(**{"vocab_size": data.vocab_size, **SHAPES.get(shape, {}), **part["model"]})
        return cls(**{**values, "model": model, "data": data, "training": TrainingSettings(**part["training"])})

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the run: SHA-256 of all settings but the label and the thread count."""
        sections = {part.section: identity(part) for part in (self.model, self.data, self.training)}
        sections["training"].pop("threads")
        return digest({"seed": self.seed, **sections})


def digest(value: Any, digits: int = 12) -> str:
    """SHA-256 of the canonical JSON of ``value``, shortened."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


# --- where they come from ---------------------------------------------------------------------------------------


def project_root() -> Path:
    """Where ``data`` and ``runs`` live: the environment's ``NFCORE_ROOT``, else nfcore's own checkout, else here."""
    if os.environ.get("NFCORE_ROOT"):
        return Path(os.environ["NFCORE_ROOT"])
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "data" / "published").is_dir() else Path.cwd()


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number and no key is repeated, as in YAML 1.2; PyYAML reads text and takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise SettingsError(f"{repeated[0]!r:.200} is there more than once")
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, "-+0123456789")


def _load(source: str | Path, where: str) -> Any:
    """The value of a YAML text or file."""
    try:
        return yaml.load(source if isinstance(source, str) else source.read_text(encoding="utf-8"), _Loader)
    except Exception as error:  # PyYAML lets through whatever its constructors raise on `!!int x` or a 13th month
        raise SettingsError(f"{where}: cannot be read ({' '.join(str(error).split())})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a file that cannot be read or parsed raises :class:`SettingsError`."""
    return check_mapping(_load(Path(path), str(path)) or {}, str(path))


def override(settings: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Change nested settings by the ``section.field=value`` assignments of a command line, their values in YAML."""
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key in ("", assignment):
            raise SettingsError(f"{assignment!r:.200}: overrides are written section.field=value")
        *sections, leaf = key.split(".")
        target = settings
        for section in sections:
            if target.get(section) is None:  # also where YAML has a section with nothing in it
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise SettingsError(f"{key:.200}: {section!r:.200} is not a section of settings")
        target[leaf] = _load(text, key)
    return settings
