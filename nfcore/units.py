"""What the hidden units of a feed-forward layer do on a sample of tokens: spectrum, dead units, selectivity.

Axes: N tokens, F hidden units.

The *spectrum* of a layer is that of the covariance of its units over tokens: p_k, the eigenvalues from the largest to
the smallest over their sum. Jha and Reagen (NerVE, arXiv 2603.06922) compare it before and after the activation by four
numbers. We know their names from the abstract; the definitions are ours, as each stands below.
"""

from __future__ import annotations

import torch
from torch import Tensor


DEAD = 1e-2  # a unit is dead whose output varies less than this part of what the layer's units do on average


def unit_statistics(x: Tensor, y: Tensor, tokens: Tensor) -> dict[str, float]:
    """Statistics of the inputs and outputs of an activation, (N, F), at ``tokens`` (N,), the ids of the input tokens.

    Of the inputs (``_in``) and the outputs (``_out``):

    - ``spectral_entropy``: -sum_k p_k ln p_k over ln F, from 0 (one direction) to 1 (all directions alike).
    - ``participation``: 1 / sum_k p_k^2, the participation ratio, from 1 to F directions.
    - ``enrichment``: mean over k of 2 (p_1 + ... + p_k - k / F), the early enrichment, from 0 (all alike) to 1 - 1 / F.
    - ``selectivity``: the share of the units' variance that the token explains, corrected for what chance explains
      (Kelley's epsilon squared of a one-way analysis of variance, summed over units); 0 at chance, 1 where a unit
      tells nothing but the token.

    And of both: ``spectral_shift``, the Jensen-Shannon divergence of the two spectra in nats, at most ln 2;
    ``dead_units``, the share of units whose output has a standard deviation below ``DEAD`` of the layer's root mean
    square of them. NaN where nothing varies or anything is not finite.
    """
    x, y = (values.float() - values.float().mean(0) for values in (x, y))
    (p, given), (q, made) = ((_spectrum(values), _explained(values, tokens)) for values in (x, y))
    middle = (p + q) / 2
    variance = y.square().mean(0)
    found = {
        **{f"{name}_in": value for name, value in (_shape(p) | {"selectivity": given}).items()},
        **{f"{name}_out": value for name, value in (_shape(q) | {"selectivity": made}).items()},
        "spectral_shift": _entropy(middle) - (_entropy(p) + _entropy(q)) / 2,
        "dead_units": torch.where(variance.sum() > 0, variance < DEAD**2 * variance.mean(), torch.nan).mean(),
    }
    return {name: float(value) for name, value in found.items()}


def _spectrum(x: Tensor) -> Tensor:
    """p_k of a centred sample (N, F), in float64; NaN if it does not vary or is not finite."""
    covariance = x.T @ x / (len(x) - 1)
    if not bool(covariance.isfinite().all()):  # which the solver refuses
        return torch.full_like(x[0], torch.nan, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(covariance).double().flip(0).clamp_min(0)
    return eigenvalues / eigenvalues.sum()


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum()


def _shape(p: Tensor) -> dict[str, Tensor]:
    count = len(p)
    uniform = torch.arange(1, count + 1, device=p.device) / count
    enrichment = 2 * (p.cumsum(0) - uniform).mean()
    entropy = _entropy(p) / torch.tensor(float(count)).log()
    return {"spectral_entropy": entropy, "participation": 1 / p.square().sum(), "enrichment": enrichment}


def _explained(x: Tensor, tokens: Tensor) -> Tensor:
    """Epsilon squared of a centred sample (N, F): 1 - (variance within tokens) / (variance), both unbiased."""
    kinds, kind, count = tokens.unique(return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(kinds), x.shape[1]).index_add_(0, kind, x)
    total = x.square().sum(dtype=torch.float64)
    if len(kinds) == len(x):  # each token once: nothing varies within one
        return x.new_tensor(torch.nan)
    within = total - (sums.double().square() / count[:, None]).sum()
    return 1 - (within / (len(x) - len(kinds))) / (total / (len(x) - 1))
