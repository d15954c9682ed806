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


def entropy_ceiling(context: int) -> float:
    """Mean over the rows of causal attention of the largest possible row entropy, ln(T!)/T, in nats.

    That is the mean of ln i over the T positions of ``context``. What another mask allows is the ``ceiling`` of
    :func:`~nfcore.meter.attention_statistics`.

    >>> round(entropy_ceiling(128), 4)
    3.8782
    """
    if not (isinstance(context, Integral) and context >= 1):
        raise SettingsError(f"context: {context!r} must be a whole number of at least 1")
    return math.lgamma(context + 1) / context


def quartile_shares(entropy: Any, maximum: float) -> np.ndarray:
    """Share of heads in each quarter (``QUARTERS``) of [0, maximum]; heads that are not finite are left out.

    ``maximum`` is a convention: the ceiling, or the largest head entropy over all compared models (the paper's).
    Values above it count into the last quarter. Returns four numbers that sum to 1 (NaN without a finite head).
    """
    if not maximum > 0:
        raise SettingsError(f"maximum: {maximum!r} must be above 0")
    entropy = entropy.detach().double().cpu() if hasattr(entropy, "detach") else entropy
    values = np.asarray(entropy, dtype=float).ravel()
    values = values[np.isfinite(values)]
    quarter = np.clip(np.floor(4 * values / maximum), 0, 3).astype(int)
    counts = np.bincount(quarter, minlength=4)
    return counts / counts.sum() if counts.sum() else np.full(4, np.nan)
