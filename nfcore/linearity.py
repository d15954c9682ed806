r"""How much of an activation's output is not linear in its input.

The output energy E f(x)^2 of a neuron splits into what the best linear map a x, a = E[x f] / E[x^2], gives, and a rest:
the share of the rest is the *non-linear share*. Part of the rest is only a constant, as ReLU's mean is; the *centred*
share leaves it out: Var f - Cov(x, f)^2 / Var x over E f^2. A feed-forward layer whose share is 0 is one matrix.

For x ~ N(0, tau^2) both have closed forms. GELU(u) = u Phi(u) has a = 1/2 at every tau, by Stein's lemma, and

.. math::
    E[\mathrm{GELU}^2] = \frac{\tau^2}{4} + \frac{\tau^2}{2\pi}\left(\arcsin\frac{\tau^2}{1+\tau^2}
    + \frac{2\tau^2}{(1+\tau^2)\sqrt{1+2\tau^2}}\right), \qquad E[\mathrm{GELU}] = \frac{\tau^2}{\sqrt{2\pi(1+\tau^2)}}.

GELU(s x)/s has the shares of GELU at s tau. A leaky ReLU of slope alpha is (1+alpha)/2 x + (1-alpha)/2 abs(x), whose
shares depend on alpha alone: it is positively homogeneous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gaussian_gelu_shares(tau: float) -> tuple[float, float]:
    """Non-linear share of GELU on N(0, tau^2), and the centred one.

    >>> [round(share, 3) for share in gaussian_gelu_shares(1e3)]  # ReLU's
    [0.5, 0.182]
    """
    t = tau * tau
    energy = t / 4 + t / (2 * math.pi) * (math.asin(t / (1 + t)) + 2 * t / ((1 + t) * math.sqrt(1 + 2 * t)))
    rest = energy - t / 4
    return rest / energy, (rest - t * t / (2 * math.pi * (1 + t))) / energy


def gaussian_leaky_relu_shares(slope: float) -> tuple[float, float]:
    """Non-linear share of a leaky ReLU on N(0, tau^2) for any tau, and the centred one.

    >>> [round(share, 3) for share in gaussian_leaky_relu_shares(0.0)]
    [0.5, 0.182]
    """
    rest, energy = ((1 - slope) / 2) ** 2, (1 + slope**2) / 2
    return rest / energy, rest * (1 - 2 / math.pi) / energy


def gaussian_shares(f: Callable[[np.ndarray], Any], tau: float, points: int = 20001) -> tuple[float, float]:
    """Non-linear share of any f on N(0, tau^2), and the centred one, by summation over +-12 tau."""
    z = np.linspace(-12.0, 12.0, points)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    x, y = tau * z, np.asarray(f(tau * z))
    return _shares(*((weights * moment).sum(keepdims=True) for moment in (x, y, x * x, x * y, y * y)))


def nonlinear_shares(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[float, float]:
    """Non-linear share of the output energy of a layer, and the centred one, from a sample.

    ``x``, ``y``: inputs and outputs of the activation, (N, F), N tokens and F neurons, each neuron with its own best
    linear map; energies are summed over neurons. NaN where y is zero everywhere or anything is not finite.
    """
    x, y = (torch.as_tensor(t.copy() if isinstance(t, np.ndarray) else t) for t in (x, y))
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))  # products in float32, sums in float64
    return _shares(*(m.mean(0, dtype=torch.float64).cpu().numpy() for m in (x, y, x * x, x * y, y * y)))


def _shares(mx: np.ndarray, my: np.ndarray, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> tuple[float, float]:
    """From each neuron's means of x, y, x^2, x y and y^2, (F,) each, in float64: the energies nearly cancel."""
    with np.errstate(all="ignore"):
        # A neuron whose input does not vary has nothing linear: 0 / 0 counts as 0.
        linear = np.where(xx == 0, 0.0, xy**2 / xx)
        spread = xx - mx**2
        affine = np.where(spread == 0, 0.0, (xy - mx * my) ** 2 / spread)
        energy = yy.sum()
        return float(1 - linear.sum() / energy), float((energy - (my**2).sum() - affine.sum()) / energy)
