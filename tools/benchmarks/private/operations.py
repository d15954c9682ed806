"""The functions whose cost is measured, in JAX, and the random inputs that they are measured on.

Axes: T positions, D width, S keys, N columns of a second matrix, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


# --- activations: (T, D) -> (T, D) ------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    """x Phi(x), written with erf."""
    return x * (1 + jax.lax.erf(x / math.sqrt(2))) / 2


def gelu_erfc(x: Array) -> Array:
    """The same function as ``jax.nn.gelu`` writes it, with erfc."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    return x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


def scaled_gelu(x: Array, scale: float = 16.0) -> Array:
    return gelu(scale * x) / scale


def relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def leaky_relu(x: Array, slope: float = 0.1) -> Array:
    return slope * x + (1 - slope) * relu(x)


def silu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)


def scaled_silu(x: Array, scale: float = 64.0) -> Array:
    return silu(scale * x) / scale


def relu_squared(x: Array) -> Array:
    return relu(x) ** 2


# --- normalisations and what is used in their place: (T, D) -> (T, D) ---------------------------------------------


def layernorm(x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps) * gain + bias


def rmsnorm(x: Array, gain: Array, eps: float = 1e-5) -> Array:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def dyt(x: Array, scale: Array, gain: Array, bias: Array) -> Array:
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622)."""
    return jnp.tanh(scale * x) * gain + bias


def derf(x: Array, scale: Array, shift: Array, gain: Array, bias: Array) -> Array:
    """erf in the place of tanh, with a shift (Chen et al. 2025, arXiv 2512.10938)."""
    return jax.lax.erf(scale * x + shift) * gain + bias


def hardtanh(x: Array, scale: Array, gain: Array, bias: Array) -> Array:
    return jnp.clip(scale * x, -1, 1) * gain + bias


# --- attention and products ---------------------------------------------------------------------------------------


LOWEST, VANISHING = -1000.0, -30.0  # below any score; its exponential is 0 in fixed-point numbers


def softmax(x: Array, mask: np.ndarray | None = None) -> Array:
    """Over the last axis, the largest score subtracted first: one reciprocal a row, then products.

    ``mask``, which both parties know, is true where a score counts; it costs nothing. SPU's exponential overflows some
    hundreds below zero: a score that far below the largest of its row spoils the row.
    """
    allowed = np.ones(x.shape[-2:], dtype=bool) if mask is None else mask
    largest = jnp.where(allowed, x, LOWEST).max(-1, keepdims=True)
    weights = jnp.exp(jnp.where(allowed, x - largest, VANISHING))
    return weights * (1 / weights.sum(-1, keepdims=True))


def softmax_division(x: Array) -> Array:
    """The same function as ``jax.nn.softmax`` writes it: a division for each element."""
    return jax.nn.softmax(x, axis=-1)


def scale(x: Array, factor: float = 0.3) -> Array:
    """A product with a number that both parties know: free but for cutting the result to its fixed-point digits."""
    return factor * x


def rotary(x: Array, fraction: float = 0.25, base: float = 10000.0) -> Array:
    """Rotate the first ``fraction`` K dimensions of x (H, T, K) in pairs (i, i + half), by angles both parties know."""
    width = int(fraction * x.shape[-1]) // 2 * 2
    exponents = np.arange(0, width, 2) / max(width, 1)
    angles = np.arange(x.shape[-2])[:, None] * base**-exponents  # (T, width / 2)
    cos, sin = (np.concatenate((f(angles), f(angles)), -1).astype(np.float32) for f in (np.cos, np.sin))
    turned, rest = x[..., :width], x[..., width:]
    swapped = jnp.concatenate((-turned[..., width // 2 :], turned[..., : width // 2]), -1)
    return jnp.concatenate((turned * cos + swapped * sin, rest), -1)


def product(x: Array, w: Array) -> Array:
    return x @ w


# --- the list -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """``kind``: sets which shapes are measured, and what is compared with what. ``parameters``: inputs
    beyond x, the scalars ``scale`` and ``shift`` or vectors of the width; all secret."""

    kind: str
    label: str
    function: Callable[..., Array]
    parameters: tuple[str, ...] = ()


OPERATIONS = {
    "relu": Operation("activation", "ReLU", relu),
    "leaky_relu": Operation("activation", "leaky ReLU, slope 0.1", leaky_relu),
    "relu_squared": Operation("activation", "ReLU squared", relu_squared),
    "silu": Operation("activation", "SiLU", silu),
    "gelu_tanh": Operation("activation", "GELU, tanh form", gelu_tanh),
    "gelu": Operation("activation", "GELU, erf form", gelu),
    "scaled_gelu": Operation("activation", "GELU(16 x)/16, erf form", scaled_gelu),
    "layernorm": Operation("norm", "LayerNorm", layernorm, ("gain", "bias")),
    "rmsnorm": Operation("norm", "RMSNorm", rmsnorm, ("gain",)),
    "dyt": Operation("norm", "DyT", dyt, ("scale", "gain", "bias")),
    "derf": Operation("norm", "Derf", derf, ("scale", "shift", "gain", "bias")),
    "hardtanh": Operation("norm", "HardTanh", hardtanh, ("scale", "gain", "bias")),
    "softmax": Operation("softmax", "softmax", softmax),
    "scale": Operation("other", "scaling of scores", scale),
    "rotary": Operation("other", "rotary positions", rotary),
    "product": Operation("product", "matrix product", product, ("w",)),
    "gelu_erfc": Operation("other form", "GELU, erf form by erfc", gelu_erfc),
    "softmax_division": Operation("other softmax", "softmax by a division for each element", softmax_division),
}


def inputs(name: str, shape: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal x and random parameters. A product's ``shape`` is (..., T, D, N): x (..., T, D), w (..., D, N),
    whose columns have length one on average."""
    draw = np.random.default_rng(seed)
    *batch, last = shape
    if name == "product":
        *before, rows, inner = batch
        x = draw.normal(size=(*before, rows, inner))
        return _float32({"x": x, "w": draw.normal(size=(*before, inner, last)) / math.sqrt(inner)})
    made = {
        "gain": 1 + 0.1 * draw.normal(size=last),
        "bias": 0.1 * draw.normal(size=last),
        "scale": np.array(0.5),
        "shift": np.array(0.1),
    }
    parameters = {parameter: made[parameter] for parameter in OPERATIONS[name].parameters}
    return _float32({"x": draw.normal(size=tuple(shape)), **parameters})


def _float32(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, dtype=np.float32) for name, x in arrays.items()}
