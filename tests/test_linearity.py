"""Non-linear shares: closed forms against summation, samples against least squares."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from nfbook.gaussian import gaussian_gelu_shares, gaussian_leaky_relu_shares
from nfcore.linearity import nonlinear_shares, shares_of_moments


def gaussian_shares(f: Callable[[np.ndarray], Any], tau: float, points: int = 20001) -> tuple[float, float]:
    """Non-linear share of any f on N(0, tau^2), and the centred one, by summation over +-12 tau."""
    z = np.linspace(-12.0, 12.0, points)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    x, y = tau * z, np.asarray(f(tau * z))
    return shares_of_moments(*((weights * moment).sum(keepdims=True) for moment in (x, y, x * x, x * y, y * y)))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("tau", [1e-2, 0.1, 0.5, 1.0, 3.0, 20.0])
def test_closed_form_of_gelu(tau):
    assert gaussian_gelu_shares(tau) == pytest.approx(gaussian_shares(gelu, tau), rel=2e-4)


def test_limits_of_gelu():
    for tau in (1e-2, 1e-3):
        assert gaussian_gelu_shares(tau)[0] == pytest.approx(6 * tau**2 / math.pi, rel=2 * tau)
    assert gaussian_gelu_shares(1e6) == pytest.approx(gaussian_leaky_relu_shares(0.0), abs=1e-6)
    whole, centred = np.array([gaussian_gelu_shares(tau) for tau in np.geomspace(1e-2, 1e2, 50)]).T
    assert (np.diff(whole) > 0).all(), "larger inputs are more non-linear"
    assert ((centred > 0) & (centred < whole)).all()
    assert centred.max() > gaussian_leaky_relu_shares(0)[1], "without its mean, GELU can be more non-linear than ReLU"


@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.1, 0.3, 1.0])
def test_closed_form_of_leaky_relus_at_every_scale(slope, tau):
    found = gaussian_shares(lambda x: np.where(x > 0, x, slope * x), tau)
    assert found == pytest.approx(gaussian_leaky_relu_shares(slope), abs=2e-6)


def test_sample_against_least_squares():
    """Neurons of different mean and scale, so that the sums over neurons matter."""
    draw = np.random.default_rng(0)
    x = draw.normal(draw.normal(size=7), draw.uniform(0.1, 3, size=7), size=(400, 7))
    y = gelu(x)
    rest = centred = 0.0
    for neuron in range(7):
        for intercept in (False, True):
            columns = np.column_stack([x[:, neuron], *([np.ones(400)] if intercept else [])])
            residual = y[:, neuron] - columns @ np.linalg.lstsq(columns, y[:, neuron], rcond=None)[0]
            if intercept:
                centred += (residual**2).sum()
            else:
                rest += (residual**2).sum()
    energy = (y**2).sum()
    assert nonlinear_shares(x, y) == pytest.approx((rest / energy, centred / energy), rel=1e-9)


def test_what_the_share_does_not_depend_on():
    draw = np.random.default_rng(2)
    x = draw.normal(size=(300, 5))
    shares = nonlinear_shares(x, gelu(x))
    assert nonlinear_shares(x[::-1], gelu(x)[::-1]) == pytest.approx(shares)
    assert nonlinear_shares(x[:, [3, 1, 0, 4, 2]], gelu(x)[:, [3, 1, 0, 4, 2]]) == pytest.approx(shares)
    assert nonlinear_shares(x, -100 * gelu(x)) == pytest.approx(shares)
    assert nonlinear_shares(50 * x, gelu(x)) == pytest.approx(shares)
    assert nonlinear_shares(x, gelu(x) + 3)[1] < nonlinear_shares(x, gelu(x) + 3)[0], "a constant is not linear"


def test_edges():
    x = np.random.default_rng(3).normal(size=(50, 4))
    linear = x * np.array([1.0, -2.0, 0.0, 5.0])
    assert nonlinear_shares(x, linear) == pytest.approx((0, 0), abs=1e-12)
    assert nonlinear_shares(np.zeros((50, 4)), np.ones((50, 4))) == pytest.approx((1, 0)), "only a constant"
    assert np.isnan(nonlinear_shares(x, np.zeros_like(x))).all()
    broken = gelu(x)
    broken[0, 0] = np.inf
    assert np.isnan(nonlinear_shares(x, broken)).all()
