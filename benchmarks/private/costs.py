"""The cost of a whole model as the sum of its operations, from what was measured.

A :func:`law` gives the bytes of an operation at any size. It is linear in the counts of :func:`features` and fitted to
all measured sizes; ``largest_miss`` is its largest relative error among these.

Axes: T positions, V vocabulary, D width, H heads, K head width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.private.models import CONFIGURATIONS, SHAPES
from benchmarks.private.operations import OPERATIONS


Row = dict[str, Any]

# What the sums compare: the paper's configurations, and those with a norm or an activation in the place of another.
COMPARED: dict[str, dict[str, Any]] = {
    **CONFIGURATIONS,
    "SM+LN+G(tanh)": dict(norm="layernorm", activation="gelu_tanh"),
    "SM+G(tanh)": dict(norm="none", activation="gelu_tanh"),
    "SM+RMS+G": dict(norm="rmsnorm", activation="gelu"),
    "SM+RMS+R": dict(norm="rmsnorm", activation="relu"),
    "SM+L(0.1)": dict(norm="none", activation="leaky_relu"),
    "SM+SiLU(s=1)": dict(norm="none", activation="silu"),
    "SM+DyT+G": dict(norm="dyt", activation="gelu"),
    "SM+DyT+R": dict(norm="dyt", activation="relu"),
    "SM+Derf+R": dict(norm="derf", activation="relu"),
    "SM+HardTanh+R": dict(norm="hardtanh", activation="relu"),
    "SM+LN": dict(norm="layernorm", activation="identity"),
    "SM": dict(norm="none", activation="identity"),
}
SUMMED = [("gpt2-2x32", 32), ("gpt2-6x64", 128), ("pythia-70m", 128), ("gpt2-124m", 128), ("gpt2-124m", 256)]


def features(operation: str, shape: Sequence[int]) -> list[float]:
    """What the bytes of an operation grow with: a constant, its elements, and its rows where it works on rows; for a
    product a constant, the elements that come in and the elements that go out."""
    if operation == "product":
        *batch, rows, inner, columns = shape
        count = math.prod(batch)
        return [1, count * inner * (rows + columns), count * rows * columns]
    if OPERATIONS[operation].kind in ("norm", "softmax"):
        return [1, math.prod(shape), math.prod(shape[:-1])]
    return [1, math.prod(shape)]


def law(rows: Iterable[Row]) -> Row:
    """The least squares of the relative error over measured rows of one operation and protocol."""
    rows = list(rows)
    counts = np.array([features(row["operation"], row["shape"]) for row in rows])
    sent = np.array([row["bytes"] for row in rows], dtype=float)
    coefficients = np.linalg.lstsq(counts / sent[:, None], np.ones(len(rows)), rcond=None)[0]
    miss = float(np.abs(counts @ coefficients / sent - 1).max())
    first = {key: rows[0][key] for key in ("protocol", "operation")}
    first["label"] = OPERATIONS[rows[0]["operation"]].label
    return {
        **first,
        "coefficients": [round(float(c), 3) + 0.0 for c in coefficients],
        "sizes": len(rows),
        "largest_miss": round(miss, 6),
    }


def laws(rows: Iterable[Row]) -> list[Row]:
    """A law for every protocol and operation that has sizes enough to fit one and check it."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["bytes"] is not None and row["operation"] in OPERATIONS:
            groups[row["protocol"], row["operation"]].append(row)
    return [law(group) for group in groups.values() if len(group) > len(features(group[0]["operation"], (2, 2, 2)))]


def parts(settings: Mapping[str, Any], context: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """The operations of one pass over ``context`` tokens: part of the model, operation, shape, how often."""
    d, layers, heads = (settings[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    f, v, k = settings.get("intermediate_size") or 4 * d, settings["vocab_size"], d // heads
    block = [
        ("products", "product", (context, d, 3 * d), 1),
        ("other", "scale", (heads, context, context), 1),
        ("products", "product", (heads, context, k, context), 1),
        ("softmax", "softmax", (heads, context, context), 1),
        ("products", "product", (heads, context, context, k), 1),
        ("products", "product", (context, d, d), 1),
        ("products", "product", (context, d, f), 1),
        ("products", "product", (context, f, d), 1),
    ]
    if settings["family"] == "pythia":
        block.append(("other", "rotary", (heads, context, k), 2))
    if settings["activation"] != "identity":
        block.append(("activation", settings["activation"], (context, f), 1))
    if settings["norm"] != "none":
        block.append(("norms", settings["norm"], (context, d), 2))
    ends = [
        ("products", "product", (context, v, d), 1),  # one-hot tokens by the embedding
        ("norms", "layernorm", (context, d), 1),
        ("products", "product", (context, d, v), 1),
    ]
    return [(part, name, shape, layers * count) for part, name, shape, count in block] + ends


def total(settings: Mapping[str, Any], context: int, known: Mapping[str, Row], measured: Iterable[Row]) -> Row | None:
    """Bytes by part, and messages where each operation has them for rows of the same length; None where an operation
    has no law. ``known``: the laws of one protocol by operation; ``measured``: its rows."""
    rows = list(measured)
    result: dict[str, float] = dict.fromkeys(("softmax", "norms", "activation", "products", "other"), 0.0)
    messages: int | None = 0
    for part, operation, shape, count in parts(settings, context):
        if operation not in known:
            return None
        result[part] += count * float(np.dot(features(operation, shape), known[operation]["coefficients"]))
        sends = {r["messages"] for r in rows if r["operation"] == operation}
        if len(sends) > 1:  # they depend on the length of a row
            sends = {r["messages"] for r in rows if r["operation"] == operation and r["shape"][-1] == shape[-1]}
        messages = None if messages is None or len(sends) != 1 else messages + count * sends.pop()
    whole = {part: round(count) for part, count in result.items()}
    return {**whole, "bytes": sum(whole.values()), "messages": messages}


def sums(rows: Sequence[Row]) -> list[Row]:
    """The totals of all compared configurations and sizes, where every operation has a law."""
    found = []
    known = laws(rows)
    for protocol in dict.fromkeys(law["protocol"] for law in known):
        by_operation = {law["operation"]: law for law in known if law["protocol"] == protocol}
        own = [row for row in rows if row["protocol"] == protocol and row["bytes"] is not None]
        for model, context in SUMMED:
            for configuration, changes in COMPARED.items():
                whole = total({**SHAPES[model], **changes}, context, by_operation, own)
                if whole:
                    label = dict(protocol=protocol, model=model, context=context, configuration=configuration)
                    found.append({**label, **whole})
    return found
