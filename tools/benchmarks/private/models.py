"""The decoder of ``nfcore.model`` in JAX, from the weights of a finished run or from random ones of the same shape.

The token ids come in as one-hot rows, so that looking a row of the embedding up is a matrix product and the ids stay
secret. The causal mask and the shape are known to both parties.

Axes: T positions, V vocabulary, D width, H heads, K head width, F feed-forward width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tools.benchmarks.private import operations


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "SM+LN+G": dict(norm="layernorm", activation="gelu"),
    "SM+LN+R": dict(norm="layernorm", activation="relu"),
    "SM+G": dict(norm="none", activation="gelu"),
    "SM+R": dict(norm="none", activation="relu"),
    "SM+G(s=16)": dict(norm="none", activation="scaled_gelu", activation_scale=16.0),
}
# As nfcore.settings names them; only what sets the cost of a pass.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-2x32": dict(family="gpt2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=300),
    "gpt2-6x64": dict(family="gpt2", hidden_size=64, num_hidden_layers=6, num_attention_heads=4, vocab_size=1024),
    "gpt2-124m": dict(family="gpt2", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=50257),
    "pythia-70m": dict(family="pythia", hidden_size=512, num_hidden_layers=6, num_attention_heads=8, vocab_size=50257),
}
DEFAULTS = dict(
    intermediate_size=None, biases="paper", final_norm="layernorm", norm_eps=1e-5, rotary_fraction=0.25, rotary_base=1e4
)
ACTIVATIONS: dict[str, Callable[[Mapping[str, Any]], Callable[[Array], Array]]] = {
    "gelu": lambda settings: operations.gelu,
    "gelu_tanh": lambda settings: operations.gelu_tanh,
    "relu": lambda settings: operations.relu,
    "leaky_relu": lambda settings: partial(operations.leaky_relu, slope=settings["negative_slope"]),
    "scaled_gelu": lambda settings: partial(operations.scaled_gelu, scale=settings["activation_scale"]),
    "scaled_silu": lambda settings: partial(operations.scaled_silu, scale=settings["activation_scale"]),
    "identity": lambda settings: lambda x: x,
}


@dataclass(frozen=True)
class Model:
    """``settings``: those of ``nfcore.settings.ModelSettings``. ``weights``: by their names in the torch model."""

    settings: dict[str, Any]
    weights: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        allowed = (
            ("activation", ACTIVATIONS),
            ("norm", ("layernorm", "rmsnorm", "none")),
            ("family", ("gpt2", "pythia")),
        )
        for name, values in allowed:
            if self.settings[name] not in values:
                raise ValueError(f"model.{name}: {self.settings[name]!r} is not one of {', '.join(values)}")

    @property
    def program(self) -> Callable[..., Array]:
        """:func:`forward` for this shape: a function of ``tokens`` and the weights."""
        return partial(forward, settings=self.settings)

    def inputs(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """What the parties get in shares: tokens (T,) as one-hot rows, and the weights that T positions need."""
        used = dict(self.weights)
        if "positions.weight" in used:
            used["positions.weight"] = used["positions.weight"][: len(tokens)]
        return {"tokens": np.eye(self.settings["vocab_size"], dtype=np.float32)[tokens], **used}


def read(run: Path) -> tuple[Model, dict[str, Any], Path]:
    """The model of a finished run of nfcore (``runs/<id>``), its record and its tokenizer.

    Raises:
        ValueError: the folder holds no finished run, or a model that is not written here.
    """
    from safetensors.numpy import load_file

    try:
        record = json.loads((run / "record.json").read_text())
        weights = load_file(run / "model" / "model.safetensors")
    except OSError as error:
        raise ValueError(f"{run}: not a finished run of nfcore ({error.strerror}: {error.filename})") from None
    weights.setdefault("lm_head.weight", weights["embed.weight"])
    return Model(record["settings"]["model"], weights), record, run / "model" / "tokenizer.json"


def random(shape: str, configuration: str, context: int, seed: int = 0) -> Model:
    """A model with random weights: what it costs is what a trained one of its shape costs."""
    settings = {**DEFAULTS, **SHAPES[shape], **CONFIGURATIONS[configuration]}
    draw = np.random.default_rng(seed)
    d, f, v = (
        settings["hidden_size"],
        settings["intermediate_size"] or 4 * settings["hidden_size"],
        settings["vocab_size"],
    )
    sizes: dict[str, tuple[int, ...]] = {"embed.weight": (v, d), "lm_head.weight": (v, d)}
    if settings["family"] == "gpt2":
        sizes["positions.weight"] = (context, d)
    for layer in range(settings["num_hidden_layers"]):
        for name, size in (
            *(("attention.qkv.weight", (3 * d, d)), ("attention.qkv_bias", (2 * d,)), ("attention.out.weight", (d, d))),
            *(("ffn.up.weight", (f, d)), ("ffn.down.weight", (d, f))),
        ):
            sizes[f"blocks.{layer}.{name}"] = size
    weights = {name: draw.normal(size=size) / math.sqrt(d) for name, size in sizes.items()}
    norms = ["final_norm"]
    if settings["norm"] != "none":
        norms += [
            f"blocks.{n}.{which}_norm" for n in range(settings["num_hidden_layers"]) for which in ("attention", "ffn")
        ]
    weights |= {f"{norm}.weight": 1 + 0.1 * draw.normal(size=d) for norm in norms}
    weights |= {f"{norm}.bias": 0.1 * draw.normal(size=d) for norm in norms}
    return Model(settings, {name: w.astype(np.float32) for name, w in weights.items()})


def forward(tokens: Array, *, settings: Mapping[str, Any], **weights: Array) -> Array:
    """Next-token logits (T, V) of one-hot tokens (T, V)."""
    heads = settings["num_attention_heads"]
    parallel = settings["family"] == "pythia"

    def linear(x: Array, name: str) -> Array:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x: Array, name: str, kind: str) -> Array:
        if kind == "none":
            return x
        if kind == "rmsnorm":
            return operations.rmsnorm(x, weights[f"{name}.weight"], settings["norm_eps"])
        return operations.layernorm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], settings["norm_eps"])

    def attention(x: Array, name: str) -> Array:
        qkv = linear(x, f"{name}.qkv")  # (T, 3 D)
        if f"{name}.qkv_bias" in weights:  # of query and key, or of all three
            bias = weights[f"{name}.qkv_bias"]
            qkv = qkv + jnp.pad(bias, (0, qkv.shape[-1] - len(bias)))
        q, k, v = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in jnp.split(qkv, 3, -1))  # (H, T, K)
        if parallel:
            q, k = (operations.rotary(y, settings["rotary_fraction"], settings["rotary_base"]) for y in (q, k))
        scores = operations.scale(q @ k.transpose(0, 2, 1), q.shape[-1] ** -0.5)  # (H, T, T)
        mask = np.tril(np.ones((len(x), len(x)), dtype=bool))
        maps = operations.softmax(scores, mask)
        return linear((maps @ v).transpose(1, 0, 2).reshape(len(x), -1), f"{name}.out")

    activation = ACTIVATIONS[settings["activation"]](settings)
    x = tokens @ weights["embed.weight"]  # (T, D)
    if not parallel:
        x = x + weights["positions.weight"]
    for layer in range(settings["num_hidden_layers"]):
        block = f"blocks.{layer}"
        attended = attention(norm(x, f"{block}.attention_norm", settings["norm"]), f"{block}.attention")
        source = norm(x if parallel else x + attended, f"{block}.ffn_norm", settings["norm"])
        x = x + attended + linear(activation(linear(source, f"{block}.ffn.up")), f"{block}.ffn.down")
    return norm(x, "final_norm", settings["final_norm"]) @ weights["lm_head.weight"].T
