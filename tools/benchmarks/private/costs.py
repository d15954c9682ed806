"""The cost of a whole model as the sum of its operations, from what was measured.

A :func:`law` gives the bytes of an operation at any size; ``largest_miss`` is its largest relative error among the
measured sizes.

Axes: T positions, V vocabulary, D width, H heads, K head width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tools.benchmarks.private.models import CONFIGURATIONS, SHAPES
from tools.benchmarks.private.operations import OPERATIONS


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
    if OPERATIONS[operation].kind in ("norm", "softmax", "other softmax"):
        return [1, math.prod(shape), math.prod(shape[:-1])]
    return [1, math.prod(shape)]


def law(rows: Iterable[Row], shape: Sequence[int]) -> Row | None:
    """The bytes at any size, from the measured rows of one operation and protocol.

    Where a linear function of the features gives every measured size to within 1 %, that function: ``linear`` is true.
    Otherwise the price of an element at ``shape``; None for a product, which has no such price.
    """
    rows = sorted(rows, key=lambda row: math.prod(row["shape"]))
    operation = rows[0]["operation"]
    counts = np.array([features(operation, row["shape"]) for row in rows])
    sent = np.array([row["bytes"] for row in rows], dtype=float)
    fit = np.linalg.lstsq(counts / sent[:, None], np.ones(len(rows)), rcond=None)[0]
    linear = len(rows) > len(fit) and np.abs(counts @ fit / sent - 1).max() < 0.01
    if not linear:
        if operation == "product":
            return None
        (at,) = (number for number, row in enumerate(rows) if row["shape"] == [*shape])
        fit = np.zeros_like(fit)
        fit[1] = sent[at] / counts[at, 1]
    return {
        **{key: rows[0][key] for key in ("protocol", "operation")},
        "label": OPERATIONS[operation].label,
        "coefficients": [round(float(c), 3) + 0.0 for c in fit],
        "sizes": len(rows),
        "linear": bool(linear),
        "largest_miss": round(float(np.abs(counts @ fit / sent - 1).max()), 6),
    }


def laws(rows: Iterable[Row]) -> list[Row]:
    """The law of every protocol and operation that has one.

    Prices of one kind of operation are taken at the largest shape that all of the kind have, so that they compare.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["bytes"] is not None and row["operation"] in OPERATIONS:
            groups[row["protocol"], row["operation"]].append(row)
    common: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for (protocol, operation), group in groups.items():
        shapes = {tuple(row["shape"]) for row in group}
        kind = protocol, OPERATIONS[operation].kind
        common[kind] = common.get(kind, shapes) & shapes
    found = []
    for (protocol, operation), group in groups.items():
        shape = max(common[protocol, OPERATIONS[operation].kind], key=math.prod)
        found.append(law(group, shape))
    return [one for one in found if one]


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
    """Bytes by part, and messages where they are known for each operation; None where an operation has no law.
    Products without a law are left out of the sum. ``known``: the laws of one protocol; ``measured``: its rows."""
    rows = list(measured)
    result: dict[str, float] = dict.fromkeys(("softmax", "norms", "activation", "products", "other"), 0.0)
    messages: int | None = 0
    for part, operation, shape, count in parts(settings, context):
        if operation == "product" and operation not in known:
            result.pop(part, None)
            continue
        if operation not in known:
            return None
        result[part] += count * float(np.dot(features(operation, shape), known[operation]["coefficients"]))
        sends = _messages(operation, shape, [row for row in rows if row["operation"] == operation])
        messages = (
            None if messages is None or sends is None or not known[operation]["linear"] else messages + count * sends
        )
    whole = {part: round(count) for part, count in result.items()}
    return {**whole, "bytes": sum(whole.values()), "messages": messages}


def _messages(operation: str, shape: Sequence[int], rows: Sequence[Row]) -> int | None:
    """Messages of one operation: a batch of products takes one after another, a softmax more for longer rows."""
    batch = math.prod(shape[:-3]) if operation == "product" else 1
    found = {r["messages"] // (math.prod(r["shape"][:-3]) if operation == "product" else 1) for r in rows}
    if len(found) > 1:
        found = {r["messages"] for r in rows if r["shape"][-1] == shape[-1]}
    return batch * found.pop() if len(found) == 1 else None


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
