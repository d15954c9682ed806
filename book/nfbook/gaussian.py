r"""Non-linear shares of activations on Gaussian inputs, as :mod:`nfcore.linearity` defines them.

For x ~ N(0, tau^2) the share and the centred one have closed forms. GELU(u) = u Phi(u) has a = 1/2 at every tau, by
Stein's lemma, and

.. math::
    E[\mathrm{GELU}^2] = \frac{\tau^2}{4} + \frac{\tau^2}{2\pi}\left(\arcsin\frac{\tau^2}{1+\tau^2}
    + \frac{2\tau^2}{(1+\tau^2)\sqrt{1+2\tau^2}}\right), \qquad E[\mathrm{GELU}] = \frac{\tau^2}{\sqrt{2\pi(1+\tau^2)}}.

GELU(s x)/s has the shares of GELU at s tau. A leaky ReLU of slope alpha is (1+alpha)/2 x + (1-alpha)/2 abs(x), whose
shares depend on alpha alone: it is positively homogeneous.
"""

from __future__ import annotations

import math


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
