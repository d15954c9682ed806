"""The ceiling of entropies and quarters below it: by their formulas, and as the paper prints them."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfbook.report import shares_by_convention
from nfcore.settings import SettingsError
from nfcore.shares import entropy_ceiling, quartile_shares


@pytest.mark.parametrize("context", [1, 2, 17, 4096])
def test_the_ceiling_is_the_mean_of_the_logarithms(context):
    assert entropy_ceiling(context) == pytest.approx(sum(map(math.log, range(1, context + 1))) / context, abs=1e-12)
    assert round(entropy_ceiling(128), 4) == 3.8782  # as published


def test_a_window_needs_no_square_of_the_context():
    context, window = 131_072, 4096
    keys = np.minimum(np.arange(1, context + 1), window)
    assert entropy_ceiling(context, window=window) == pytest.approx(np.log(keys).mean())


@pytest.mark.parametrize(("window", "chunk"), [(4, None), (None, 5), (3, 4), (4, 3), (100, 100), (1, 7)])
def test_windows_and_chunks_are_those_of_the_mask(window, chunk):
    full = np.ones((17, 17), dtype=bool)
    for context in (1, 4, 17):
        expected = entropy_ceiling(context, window=window, chunk=chunk, mask=full[:context, :context])
        assert entropy_ceiling(context, window=window, chunk=chunk) == pytest.approx(expected)


@pytest.mark.parametrize("context", [1, 5, 16])
def test_the_ceiling_follows_the_mask(context):
    def mean(keys):
        return sum(map(math.log, keys)) / len(keys)

    positions = range(1, context + 1)
    assert entropy_ceiling(context, window=4) == pytest.approx(mean([min(i, 4) for i in positions]))
    assert entropy_ceiling(context, chunk=3) == pytest.approx(mean([(i - 1) % 3 + 1 for i in positions]))
    full = np.ones((2, 1, context, context), dtype=bool)
    assert entropy_ceiling(context, mask=full) == pytest.approx(entropy_ceiling(context))
    padding = np.ones((2, context), dtype=int)
    padding[0, 0] = padding[1, -1] = 0
    if context > 1:
        expected = entropy_ceiling(context - 1)
        assert entropy_ceiling(context, padding=padding) == pytest.approx(expected)
        assert entropy_ceiling(context, padding=torch.tensor(padding), mask=full) == pytest.approx(expected)
    full[..., 0] = False  # nobody sees the first key, and the first query sees nothing
    if context > 1:
        assert entropy_ceiling(context, mask=full) == pytest.approx(mean([i - 1 for i in positions][1:]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"context": 0}, "context: 0 must be a whole number of at least 1"),
        ({"window": 0}, "window: 0 must be a whole number"),
        ({"padding": [[1, 1]]}, r"padding: shape \(1, 2\) must end in \(4,\)"),
        ({"mask": np.ones((3, 4))}, r"mask: shape \(3, 4\) must end in \(4, 4\)"),
        ({"window": True}, "window: True must be a whole number"),
        ({"mask": torch.zeros(4, 4).fill_diagonal_(-torch.inf)}, r"mask: dtype float64 must be bool .* is added"),
        ({"padding": [[0, 0, 0, 0]]}, "mask, padding: no row sees a key"),
    ],
)
def test_ceilings_of_what_does_not_fit(more, said):
    with pytest.raises(SettingsError, match=said):
        entropy_ceiling(**{"context": 4, **more})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.uint8])
def test_tensors_of_any_dtype_are_read(dtype):
    padding = torch.tensor([[0, 1, 1, 1]], dtype=dtype)
    assert entropy_ceiling(4, padding=padding) == pytest.approx(entropy_ceiling(3))
    entropy = torch.tensor([[0.5, 4.0]], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(quartile_shares(entropy, entropy.max()), [0.5, 0, 0, 0.5])
    if not dtype.is_floating_point:
        assert entropy_ceiling(4, mask=torch.eye(4).to(dtype)) == 0


def test_shares_by_quarter():
    # a value on a boundary counts upwards, one above the maximum into the last quarter, one that is no number nowhere
    heads = torch.tensor([[0.0, 0.9, 1.0, 2.0], [3.0, 4.0, 4.5, math.nan]])
    np.testing.assert_allclose(quartile_shares(heads, 4.0), np.array([2, 1, 1, 3]) / 7)
    np.testing.assert_allclose(quartile_shares(heads.numpy(), 4.0), np.array([2, 1, 1, 3]) / 7)
    np.testing.assert_allclose(quartile_shares([math.inf, 1.5], 4.0), [0, 1, 0, 0])
    assert np.isnan(quartile_shares([math.nan], 4.0)).all()
    for maximum in (0.0, -1.0, math.nan):
        with pytest.raises(SettingsError, match="maximum: "):
            quartile_shares(heads, maximum)


@given(st.lists(st.floats(0, 10) | st.just(math.nan), min_size=1), st.floats(0.01, 10))
def test_shares_sum_to_one(heads, maximum):
    shares = quartile_shares(heads, maximum)
    assert np.isnan(shares).all() if np.isnan(heads).all() else shares.sum() == pytest.approx(1)


def test_plain_counting_reproduces_thirteen_of_the_sixteen_published_shares(published):
    maps, printed = published["head_entropy"]["maps"], published["head_share_percent"]["main.png"]
    shares = shares_by_convention({name: maps[name] for name in printed}, context=128)
    assert set(shares) == {"ceiling", "largest observed"}
    for convention in shares.values():
        same = [np.abs(100 * convention[name] - printed[name]) <= 0.5 for name in printed]
        assert np.sum(same) >= 13


def reachable(heads: np.ndarray, slack: np.ndarray, maximum: float, printed: list[int]) -> bool:
    """Whether heads known to within ``slack`` can have the printed shares, in percent, for this maximum."""
    boundaries = [maximum * quarter / 4 for quarter in (1, 2, 3)]
    below = [range((heads + slack <= b).sum(), (heads - slack < b).sum() + 1) for b in boundaries]
    counts = (np.diff([0, *cut, heads.size]) for cut in itertools.product(*below))
    return any((np.abs(100 * c / heads.size - printed) <= 0.5).all() for c in counts)


def test_all_published_shares_are_reachable_within_rounding(published):
    """With one Max, common to the models, in [3.865, 3.873), what 3.87 stands for, if boundary entries may be rounded.

    Those are the entries printed 2.90 and, in SM+LN+R, the one printed 0.97; without the former none of it works.
    """
    maps, printed = published["head_entropy"]["maps"], published["head_share_percent"]["main.png"]

    def maxima(rounded: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        heads = {name: np.array(maps[name]) for name in printed}
        return [
            m
            for m in np.arange(3.865, 3.873, 0.0005)
            if all(reachable(h, 0.005 * rounded(h), m, printed[name]) for name, h in heads.items())
        ]

    assert maxima(np.ones_like)
    assert maxima(lambda h: np.isin(h, (2.90, 0.97)))
    assert not maxima(lambda h: np.isin(h, (0.97,)))
    assert not maxima(np.zeros_like)


def test_reading_results_loads_no_torch():
    program = "import sys, nfbook.claims, nfbook.report, nfbook.figures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
