"""Attention entropy against oracles in float64, its invariances and its edges."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from nfcore import attention_entropy, attention_rows, entropy
from nfcore.settings import SettingsError


METHODS = ("exact", "chunked", "lse")
ALL_METHODS = (*METHODS, "auto")


def random_qk(
    batch: int = 2, heads: int = 3, length: int = 33, width: int = 8, size: float = 1.0, key_heads: int | None = None
) -> tuple[Tensor, Tensor]:
    return size * torch.randn(batch, heads, length, width), torch.randn(batch, key_heads or heads, length, width)


def by_hand(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """The definition, in Python numbers: -sum_j p_ij ln p_ij with p_ij = exp(s_ij) / sum_j exp(s_ij)."""
    rows = torch.empty(q.shape[:3], dtype=torch.float64)
    serves = q.shape[1] // k.shape[1]
    for b, h, i in itertools.product(*map(range, rows.shape)):
        seen = i + 1 if causal else k.shape[2]
        query = q[b, h, i].tolist()
        scores = [
            scale * sum(x * y for x, y in zip(query, k[b, h // serves, j].tolist(), strict=True)) for j in range(seen)
        ]
        terms = [math.exp(s - max(scores)) for s in scores]
        rows[b, h, i] = -sum(t / sum(terms) * math.log(t / sum(terms)) for t in terms if t > 0)
    return rows


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance, equal_nan=True)


# --- against oracles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 1.7, -1.7, 0.0])
def test_every_method_follows_the_definition(causal, key_heads, scale):
    (q, k), more = random_qk(2, 4, 7, 5, key_heads=key_heads), random_qk(2, 4, 9, 5, key_heads=key_heads)[1]
    k = k if causal else more  # keys may outnumber queries
    expected = by_hand(q, k, 5**-0.5 if scale is None else scale, causal)
    for method in ALL_METHODS:
        rows = attention_entropy(q, k, scale=scale, causal=causal, method=method)
        close(rows, expected, 1e-12 if method == "exact" else 5e-6)
        assert rows.dtype == (torch.float64 if method == "exact" else torch.float32)


# Errors come from rounding scores s in float32: measured at most 4e-8 |s| (chunked) and 3.5e-7 |s| (lse), plus 3e-6.
ERROR_PER_SCORE = {"chunked": 1e-7, "lse": 6e-7}


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
@pytest.mark.parametrize(("length", "width"), [(65, 16), (257, 64)])
@pytest.mark.parametrize("method", ERROR_PER_SCORE)
def test_error_at_large_scores(method, length, width, size):
    q, k = random_qk(2, 2, length, width, size)
    largest = float((q @ k.transpose(-1, -2)).abs().max()) * width**-0.5
    got = attention_entropy(q, k, method=method)
    close(got, attention_entropy(q, k, method="exact"), 5e-6 + ERROR_PER_SCORE[method] * largest)
    assert got.min() >= -1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_half_and_mixed_precision_are_computed_in_full_with_any_strides(method, dtype):
    q, k = (x.to(dtype) for x in random_qk())
    rows = attention_entropy(q, k, method=method)
    assert torch.equal(rows, attention_entropy(q.float(), k.float(), method=method))
    close(rows, attention_entropy(q, k, method="exact"), 2e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention_entropy(q, k, method=method), rows)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]  # of (B, T, H, K), as they come
    close(attention_entropy(*views, method=method), rows, 2e-6)


# --- properties -------------------------------------------------------------------------------------------------


@st.composite
def queries_and_keys(draw: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    heads, length, width = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 16))
    return random_qk(1, heads, length, width, draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])))


@pytest.mark.parametrize("method", METHODS)
def test_range_and_invariances(method):
    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(queries_and_keys())
    def check(qk):
        q, k = qk
        rows = attention_entropy(q, k, method=method)
        assert (rows >= -1e-6).all()
        assert (rows <= torch.arange(1, rows.shape[-1] + 1).log() + 5e-6).all()
        assert rows[..., 0].abs().max() < 1e-6  # the first query sees one key
        tolerance = 1e-5 * max(1.0, float(q.abs().max()))
        moved = k + 10 * torch.randn(k.shape[-1])  # by the same vector
        close(attention_entropy(q, moved, method=method), attention_entropy(q, k, method="exact"), tolerance)
        permuted = k[:, :, torch.randperm(k.shape[2])]
        free = attention_entropy(q, permuted, causal=False, method=method)
        close(free, attention_entropy(q, k, causal=False, method="exact"), tolerance)

    check()


# --- gradients --------------------------------------------------------------------------------------------------


def test_gradients_of_exact_are_those_of_finite_differences():
    q, k = (x.double().requires_grad_() for x in random_qk(1, 2, 5, 3, key_heads=1))
    assert torch.autograd.gradcheck(lambda *qk: attention_entropy(*qk, method="exact"), (q, k))


def test_auto_differentiates_only_when_asked():
    q, k = random_qk()
    k.requires_grad_()
    assert attention_entropy(q, k).requires_grad
    assert not attention_entropy(q, k, method="lse").requires_grad
    with torch.no_grad():
        assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="lse"))
    assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="chunked"))


def test_a_device_without_a_kernel(monkeypatch):
    meta = torch.empty(1, 1, 2, 2, device="meta")
    with pytest.raises(NotImplementedError, match="'meta'"):
        entropy.flash_with_lse(meta, meta, meta, 1.0, True)

    def no_kernel(*args: Any) -> None:
        raise NotImplementedError("no attention kernel")

    monkeypatch.setattr(entropy, "flash_with_lse", no_kernel)
    q, k = random_qk()
    assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="chunked"))
    with pytest.raises(NotImplementedError, match="no attention kernel"):
        attention_entropy(q, k, method="lse")
    with pytest.raises(NotImplementedError, match="'lse' has no kernel for a mask"):
        attention_entropy(q, k, window=3, method="lse")


# --- masks, caps, sinks -----------------------------------------------------------------------------------------

BATCH, HEADS, LENGTH = 2, 4, 33


def hidden(*shape: int) -> Tensor:
    """A mask that hides a third of the keys, and some queries' all."""
    seen = torch.rand(*shape) > 0.3
    seen[..., 7, :] = False
    return seen


def padding() -> Tensor:
    """One sequence padded on the left, one on the right."""
    real = torch.ones(BATCH, LENGTH, dtype=torch.long)
    real[0, :5] = real[1, -4:] = 0
    return real


HOW: dict[str, Callable[[], dict[str, Any]]] = {
    "causal": dict,
    "all keys": lambda: dict(causal=False),
    "padding": lambda: dict(padding=padding()),
    "window": lambda: dict(window=5),
    "chunk": lambda: dict(chunk=7),
    "softcap": lambda: dict(softcap=2.0),
    "sinks": lambda: dict(sinks=torch.randn(HEADS)),
    "sink of each row": lambda: dict(sinks=torch.randn(BATCH, HEADS, LENGTH)),
    "boolean mask": lambda: dict(mask=hidden(BATCH, 1, LENGTH, LENGTH)),
    "boolean mask of heads": lambda: dict(mask=hidden(1, HEADS, LENGTH, LENGTH), causal=False),
    "additive mask": lambda: dict(mask=torch.zeros(LENGTH, LENGTH).masked_fill(~hidden(LENGTH, LENGTH), -1e4)),
    "lowest number": lambda: dict(mask=torch.where(hidden(BATCH, 1, LENGTH, LENGTH), 0.0, torch.finfo().min)),
    "bias": lambda: dict(mask=torch.randn(1, HEADS, LENGTH, LENGTH)),
    "function": lambda: dict(mask=lambda b, h, i, j: (b + h + i + j) % 3 > 0),
    "all at once": lambda: dict(
        padding=padding(),
        window=9,
        softcap=1.0,
        sinks=torch.randn(HEADS),
        mask=torch.randn(HEADS, LENGTH, LENGTH),
        scale=0.7,
    ),
}


def weights_by_hand(q: Tensor, k: Tensor, how: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores (B, H, T, S) with -inf where hidden, and the weights of the keys, from the T x T map in float64."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1).double()
    scores = (8**-0.5 if how.get("scale") is None else how["scale"]) * q.double() @ k.transpose(-1, -2)
    if "softcap" in how:
        scores = how["softcap"] * torch.tanh(scores / how["softcap"])
    b, h, i, j = torch.meshgrid(*map(torch.arange, scores.shape), indexing="ij")
    seen = (j <= i) if how.get("causal", True) else j >= 0
    if "window" in how:
        seen = seen & (j > i - how["window"])
    if "chunk" in how:
        seen = seen & (j // how["chunk"] == i // how["chunk"])
    if "padding" in how:
        seen = seen & how["padding"].bool()[b, j]
    mask = how.get("mask")
    if callable(mask) and not isinstance(mask, Tensor):
        seen = seen & mask(b, h, i, j)
    elif mask is not None:
        seen = seen & (mask if mask.dtype == torch.bool else mask > -9999)
        scores = scores if mask.dtype == torch.bool else scores + mask
    scores = scores.masked_fill(~seen, -torch.inf)
    sinks = how.get("sinks")
    if sinks is None:
        return scores, scores.softmax(-1)
    sink = (sinks[:, None] if sinks.dim() == 1 else sinks)[..., None].expand(*scores.shape[:3], 1)
    return scores, torch.cat((scores, sink.double()), -1).softmax(-1)[..., :-1]


@pytest.mark.parametrize("elements", [2**18, 1200, 40])
@pytest.mark.parametrize("name", HOW)
def test_what_attention_has_is_measured(monkeypatch, name, elements):
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", elements)
    q, k = random_qk(BATCH, HEADS, LENGTH, 8, size=2.0, key_heads=2)
    how = HOW[name]()
    scores, weights = weights_by_hand(q, k, how)
    seen = scores > -torch.inf
    nothing = ~seen.any(-1)
    expected = torch.special.entr(weights).sum(-1).masked_fill(nothing, math.nan)
    first = seen.any(-2).int().argmax(-1)  # (B, H)
    on_first = weights.gather(-1, first[..., None, None].expand(*scores.shape[:3], 1))[..., 0]
    for method, tolerance in (("exact", 1e-12), ("chunked", 1e-5)):
        rows = attention_rows(q, k, method=method, lowest=True, **how)
        close(rows.entropy, expected, tolerance)
        close(rows.max_logit, scores.amax(-1).masked_fill(nothing, math.nan), tolerance)
        close(rows.min_logit, scores.masked_fill(~seen, math.inf).amin(-1).masked_fill(nothing, math.nan), tolerance)
        close(rows.first_key, on_first.masked_fill(nothing, math.nan), tolerance)
        # the weight of a key is exp(score - log-sum-exp), sinks or none
        of_weights = (scores.amax(-1) - weights.amax(-1).log()).masked_fill(nothing, math.nan)
        close(rows.log_sum_exp, of_weights, tolerance)
        assert torch.equal(rows.keys, seen.sum(-1).expand_as(rows.keys))
        close(attention_entropy(q, k, method=method, **how), expected, tolerance)
    close(attention_entropy(q, k, **how), expected, 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["causal", "all keys", "padding", "window", "boolean mask", "additive mask", "softcap", "sinks"]
)
def test_a_bad_query_or_key_spoils_exactly_the_rows_that_see_it(name, bad):
    q, k = random_qk(BATCH, HEADS, LENGTH, 8, key_heads=2)
    how = HOW[name]()
    scores = weights_by_hand(q, k, how)[0].expand(BATCH, HEADS, LENGTH, LENGTH)
    expected = attention_entropy(q, k, method="exact", **how)
    of_key, of_query = (torch.zeros_like(expected, dtype=torch.bool) for _ in range(2))
    of_key[0, 2:] = scores[0, 2:, :, 12] > -torch.inf  # query heads 2 and 3 share key head 1
    of_query[1, 2, 14] = (scores[1, 2, 14] > -torch.inf).any()
    for spoilt, x, place in ((of_key, k.clone(), (0, 1, 12, 3)), (of_query, q.clone(), (1, 2, 14, 3))):
        x[place] = bad
        given = (q, x) if spoilt is of_key else (x, k)
        for method in ALL_METHODS if name in ("causal", "all keys") else ("auto", "exact"):
            got = attention_entropy(*given, method=method, **how)
            if name == "softcap" and math.isinf(bad):  # tanh makes the score finite again
                close(got[~spoilt], expected[~spoilt], 2e-6)
                assert got[spoilt].isfinite().all()
            else:
                close(got, expected.masked_fill(spoilt, math.nan), 2e-6)
                rows = attention_rows(*given, **how)
                for part in (rows.log_sum_exp, rows.first_key):
                    assert torch.equal(part.isnan(), spoilt | expected.isnan())


@pytest.mark.parametrize("name", ["causal", "softcap", "window", "bias", "sinks"])
def test_gradients_of_chunked_are_those_of_exact(monkeypatch, name):
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", 1200)
    q, k = random_qk(BATCH, HEADS, LENGTH, 8, key_heads=2)
    how, weights, of = HOW[name](), torch.randn(BATCH, HEADS, LENGTH), {}
    for method in ("exact", "chunked", "auto"):
        inputs = [x.clone().requires_grad_() for x in (q, k)]
        of[method] = torch.autograd.grad((attention_entropy(*inputs, method=method, **how) * weights).sum(), inputs)
    for method in ("chunked", "auto"):
        for mine, oracle in zip(of[method], of["exact"], strict=True):
            assert oracle.abs().max() > 0.01
            close(mine, oracle, 2e-5)


def test_a_window_is_not_computed_beyond_its_reach(monkeypatch):
    """Time and memory of a windowed row grow with the window."""
    tiles = []
    tile = entropy._tile
    monkeypatch.setattr(entropy, "_tile", lambda values, *rest: tiles.append(values.numel()) or tile(values, *rest))
    q, k = random_qk(1, 1, 4096, 8)
    attention_entropy(q, k, window=64)
    assert sum(tiles) < 4096 * 64 * 2.1
    assert max(tiles) <= entropy.CHUNK_ELEMENTS


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mask": torch.ones(4, 4, dtype=torch.bool)}, r"mask: shape \(4, 4\) must broadcast to \(B, H, T, S\)"),
        ({"mask": torch.ones(33, 33, dtype=torch.long)}, "mask: dtype torch.int64 must be bool"),
        ({"mask": [[True]]}, "mask: list must be a tensor"),
        ({"mask": lambda b, h, i, j: (i - j).float()}, "mask: the function gives torch.float32; it must give bool"),
        ({"padding": torch.ones(33)}, r"padding: shape \(33,\) must be \(B, S\), here \(2, 33\)"),
        ({"padding": [[1] * 33] * 2}, "padding: list must be a tensor"),
        ({"sinks": torch.zeros(2)}, r"sinks: shape \(2, 1\) must broadcast to \(H,\) or \(B, H, T\)"),
        ({"window": 0}, "window: 0 must be a whole number above 0"),
        ({"window": 2.5}, "window: 2.5 must be a whole number"),
        ({"window": 4, "causal": False}, "window, chunk: need causal=True"),
        ({"chunk": True}, "chunk: True must be a whole number"),
        ({"scale": "x"}, "scale: 'x' must be a finite number"),
        ({"softcap": 0.0}, "softcap: 0.0 must be a finite number, and a soft cap above 0"),
        ({"softcap": math.inf}, "softcap: inf must be a finite number"),
        ({"causal": "no"}, "causal: 'no' must be True or False"),
        ({"method": "flash"}, "method: 'flash' is not one of auto, exact, chunked, lse"),
        ({"q": torch.zeros(2, 3, 33, 8, dtype=torch.long)}, r"q, k: dtypes torch\.int64 and torch\.float32 must be"),
        ({"q": torch.zeros(2, 3, 32, 8)}, r"q, k: shapes \(2, 3, 32, 8\) and \(2, 3, 33, 8\) must be \(B, H, T, K\)"),
    ],
)
def test_what_does_not_fit_is_refused(how, said):
    """test_fuzz.py has other shapes."""
    q, k = random_qk()
    with pytest.raises(SettingsError, match=said):
        attention_entropy(**{"q": q, "k": k, **how})


def test_numbers_of_numpy_are_numbers():
    q, k = random_qk()
    given = dict(window=np.int64(4), scale=np.float32(0.5), softcap=np.float64(5.0))
    assert torch.equal(attention_entropy(q, k, **given), attention_entropy(q, k, window=4, scale=0.5, softcap=5.0))
