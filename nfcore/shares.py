"""What a head entropy is measured against: its ceiling, and quarters of the range below it. No torch.

Entropies are arrays of any shape, in nats; a head's entropy is what :func:`~nfcore.meter.head_entropy` gives.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np

from nfcore.settings import SettingsError


QUARTERS = ("[0, Max/4)", "[Max/4, Max/2)", "[Max/2, 3Max/4)", "[3Max/4, Max]")


def array_of(x: Any) -> Any:
    """The values of a torch tensor of any dtype and device as an array; anything else as it is."""
    if not hasattr(x, "detach"):
        return x
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


def entropy_ceiling(
    context: int, *, mask: Any = None, padding: Any = None, window: int | None = None, chunk: int | None = None
) -> float:
    """Mean over rows of attention of the largest possible row entropy, ln of the keys that the row may see, in nats.

    Without more than a ``context`` of T positions that is the causal ceiling, the mean of ln i over 1..T, ln(T!)/T. The
    other arguments are those of :func:`~nfcore.entropy.attention_entropy`, on top of the causal mask: ``mask``
    (..., T, T), true where a key is seen; ``padding`` (B, T), true or 1 for tokens; ``window``; ``chunk``. Rows that
    are padding or see no key are left out.

    >>> round(entropy_ceiling(128), 4)
    3.8782
    >>> round(entropy_ceiling(128, window=16), 4)
    2.6656
    """
    for name, size in (("context", context), ("window", window), ("chunk", chunk)):
        whole = isinstance(size, Integral) and not isinstance(size, bool) and size >= 1
        if not whole and (size is not None or name == "context"):
            raise SettingsError(f"{name}: {size!r} must be a whole number of at least 1")
    if mask is None and padding is None and window is None and chunk is None:
        return math.lgamma(context + 1) / context
    i, j = np.arange(context)[:, None], np.arange(context)
    if mask is None and padding is None:  # no T x T array: a row sees a stretch that ends with itself
        first = np.maximum(j - (window or context) + 1, j // (chunk or context) * (chunk or context))
        return float(np.log(j - np.maximum(first, 0) + 1).mean())
    seen = (j <= i) & (i - j < (window or context)) & (i // (chunk or context) == j // (chunk or context))
    mask, padding = array_of(mask), array_of(padding)
    for name, given, last in (("mask", mask, (context, context)), ("padding", padding, (context,))):
        if given is not None and np.shape(given)[-len(last) :] != last:
            raise SettingsError(f"{name}: shape {np.shape(given)} must end in {last}")
    if mask is not None:
        if (dtype := np.asarray(mask).dtype).kind not in "biu":
            raise SettingsError(f"mask: dtype {dtype} must be bool (True: seen); a mask that is added is `mask > -1e4`")
        seen = seen & np.asarray(mask, dtype=bool)
    if padding is not None:
        real = np.asarray(padding, dtype=bool)[..., None, None, :]  # (B, 1, 1, T), as the mask's (B, H, T, T)
        seen = seen & real & real.swapaxes(-1, -2)
    keys = seen.sum(-1)
    if not keys.any():
        raise SettingsError("mask, padding: no row sees a key")
    return float(np.log(keys[keys > 0]).mean())


def quartile_shares(entropy: Any, maximum: float) -> np.ndarray:
    """Share of heads in each quarter (``QUARTERS``) of [0, maximum]; heads that are not finite are left out.

    ``maximum`` is a convention: the ceiling, or the largest head entropy over all compared models (the paper's).
    Values above it count into the last quarter. Returns four numbers that sum to 1 (NaN without a finite head).
    """
    values, maximum = np.asarray(array_of(entropy), dtype=float).ravel(), float(array_of(maximum))
    if not maximum > 0:
        raise SettingsError(f"maximum: {maximum!r} must be above 0")
    values = values[np.isfinite(values)]
    quarter = np.clip(np.floor(4 * values / maximum), 0, 3).astype(int)
    counts = np.bincount(quarter, minlength=4)
    return counts / counts.sum() if counts.sum() else np.full(4, np.nan)
