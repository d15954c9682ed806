"""Statistics of hidden units: cases whose spectra, dead units and selectivity are known."""

import math

import pytest
import torch

from nfcore.units import unit_statistics


def sample(tokens: int, units: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, units, generator=torch.Generator().manual_seed(seed))


def test_spectrum_of_equal_directions_and_of_one():
    units = 8
    alike = torch.cat([torch.eye(units), -torch.eye(units)])  # covariance: a multiple of the identity
    line = torch.arange(16.0)[:, None] * torch.arange(1.0, units + 1)
    found = unit_statistics(alike, line, torch.arange(16) % 2)
    assert found["spectral_entropy_in"] == pytest.approx(1)
    assert found["participation_in"] == pytest.approx(units)
    assert found["enrichment_in"] == pytest.approx(0, abs=1e-6)
    assert found["spectral_entropy_out"] == pytest.approx(0, abs=1e-4)
    assert found["participation_out"] == pytest.approx(1, rel=1e-4)
    assert found["enrichment_out"] == pytest.approx(1 - 1 / units, rel=1e-4)  # mean of 2 (1 - k / F)


def test_shift_is_the_divergence_of_the_spectra():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = unit_statistics(corners * p.sqrt(), corners * q.sqrt(), torch.tensor([0, 0, 1, 1]))
    middle = (p + q) / 2
    expected = 0.5 * sum(float((a * (a / middle).log()).sum()) for a in (p, q))
    assert found["spectral_shift"] == pytest.approx(expected, rel=1e-5)
    assert unit_statistics(corners, corners, torch.tensor([0, 0, 1, 1]))["spectral_shift"] == pytest.approx(0, abs=1e-7)


def test_dead_units_by_what_varies_not_by_the_sign():
    x = sample(1000, 10)
    x[:, :3] -= 50  # never above zero
    tokens = torch.arange(1000) % 7
    assert unit_statistics(x, x.relu(), tokens)["dead_units"] == pytest.approx(0.3)
    assert unit_statistics(x, torch.nn.functional.leaky_relu(x, 0.5), tokens)["dead_units"] == 0
    assert unit_statistics(x, x.relu() + 5, tokens)["dead_units"] == pytest.approx(0.3)


def test_selectivity_is_the_share_of_variance_that_tokens_explain():
    tokens = torch.arange(6000) % 50
    noise, signal = sample(6000, 20), sample(50, 20, seed=1)[tokens]
    signal = signal / signal.std(0)
    found = unit_statistics(noise, signal, tokens)
    assert found["selectivity_in"] == pytest.approx(0, abs=0.01)  # chance, also with 50 kinds of token
    assert found["selectivity_out"] == pytest.approx(1)
    half = unit_statistics(noise, signal + noise, tokens)
    assert half["selectivity_out"] == pytest.approx(0.5, abs=0.02)


def test_selectivity_needs_a_token_that_comes_again():
    found = unit_statistics(sample(20, 3), sample(20, 3).relu(), torch.arange(20))
    assert math.isnan(found["selectivity_in"])
    assert math.isnan(found["selectivity_out"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_no_numbers_where_nothing_varies_or_is_finite(bad):
    x = sample(100, 4)
    y = torch.zeros_like(x) if bad is None else x.clone()
    if bad is not None:
        y[3, 2] = bad
    found = unit_statistics(x, y, torch.arange(100) % 5)
    assert math.isfinite(found["participation_in"])
    for name in ("participation_out", "spectral_entropy_out", "enrichment_out", "selectivity_out", "spectral_shift"):
        assert math.isnan(found[name])
    assert bad is not None or math.isnan(found["dead_units"])


def test_scale_and_precision_change_nothing():
    x, tokens = sample(500, 16), torch.arange(500) % 9
    plain, scaled = unit_statistics(x, x.relu(), tokens), unit_statistics(1e4 * x, 1e4 * x.relu(), tokens)
    assert scaled == pytest.approx(plain, rel=1e-4, abs=1e-5)
    half = unit_statistics(x.bfloat16(), x.relu().bfloat16(), tokens)
    assert half == pytest.approx(plain, rel=0.05, abs=0.01)
