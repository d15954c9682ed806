"""How much of an activation's output is not linear in its input.

The output energy E f(x)^2 of a neuron splits into what the best linear map a x, a = E[x f] / E[x^2], gives, and a rest:
the share of the rest is the *non-linear share*. Part of the rest is only a constant, as ReLU's mean is; the *centred*
share leaves it out: Var f - Cov(x, f)^2 / Var x over E f^2. A feed-forward layer whose share is 0 is one matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nonlinear_shares(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[float, float]:
    """Non-linear share of the output energy of a layer, and the centred one, from a sample.

    ``x``, ``y``: inputs and outputs of the activation, (N, F), N tokens and F neurons, each neuron with its own best
    linear map; energies are summed over neurons. NaN where y is zero everywhere or anything is not finite.
    """
    x, y = (torch.as_tensor(t.copy() if isinstance(t, np.ndarray) else t) for t in (x, y))
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))  # products in float32, sums in float64
    return shares_of_moments(*(m.mean(0, dtype=torch.float64).cpu().numpy() for m in (x, y, x * x, x * y, y * y)))


def shares_of_moments(
    mx: np.ndarray, my: np.ndarray, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray
) -> tuple[float, float]:
    """Both shares from each neuron's means of x, y, x^2, x y and y^2, (F,) in float64, as energies nearly cancel."""
    with np.errstate(all="ignore"):
        # A neuron whose input does not vary has nothing linear: 0 / 0 counts as 0.
        linear = np.where(xx == 0, 0.0, xy**2 / xx)
        spread = xx - mx**2
        affine = np.where(spread == 0, 0.0, (xy - mx * my) ** 2 / spread)
        energy = yy.sum()
        return float(1 - linear.sum() / energy), float((energy - (my**2).sum() - affine.sum()) / energy)
