r"""Entropy of attention from queries and keys, in nats, without the T x T map.

For query position i with attention weights p_ij over the keys j that it may see, the row entropy is :math:`H_i =
-\sum_j p_{ij} \ln p_{ij}` (Zhai et al. 2023, arXiv 2303.06296; the paper, section 3). It is at most the logarithm of
the number of keys that the row may see: :func:`nfcore.shares.entropy_ceiling`. Whole models are measured by
:mod:`nfcore.meter`.

Axes: B batch, H heads, T query positions, S key positions, K head width.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nfcore.settings import SettingsError, choice


METHODS = ("auto", "exact", "chunked", "lse")
NEVER_SEEN = 1e38  # replaces a masked score; larger than any real one
MASKED = -1e4  # an additive mask hides the key at this value or below: its weight is 0 in any precision
CHUNK_ELEMENTS = 2**18  # scores that `chunked` holds at a time: 1 MiB in float32, which a CPU's cache holds
GPU_CHUNKS = 64  # times as many where memory is fast and starting a kernel is slow


class Rows(NamedTuple):
    """What :func:`attention_rows` finds, each (B, H, T), float32 (``exact``: float64).

    NaN where a row sees no key and, except for the logits, where it sees a score that is not finite.
    """

    entropy: Tensor  # nats
    log_sum_exp: Tensor  # ln of the softmax's denominator, sinks included
    max_logit: Tensor  # largest score, as it enters the softmax
    min_logit: Tensor | None  # smallest score of a key that the row may see, if asked for
    first_key: Tensor  # attention weight on the first key that any query of the sequence may see
    keys: Tensor  # how many keys the row may see, int64


@dataclass(frozen=True, eq=False)
class Scores:
    """Queries, keys, and how scores are computed and masked: the keywords of :func:`attention_entropy`."""

    q: Tensor  # (B, H, T, K)
    k: Tensor  # (B, H', S, K)
    scale: float | None = None
    causal: bool = True
    mask: Tensor | Callable[..., Tensor] | None = None
    padding: Tensor | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("q", "k", "mask", "padding", "sinks"):
            value = getattr(self, name)
            fits = isinstance(value, Tensor) or (value is None and name not in ("q", "k"))
            if not fits and not (name == "mask" and callable(value)):
                raise SettingsError(f"{name}: {type(value).__name__} must be a tensor")
        for name in ("scale", "softcap", "window", "chunk"):
            value, whole = getattr(self, name), name in ("window", "chunk")
            if value is None:
                continue
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and (value > 0 or name == "scale")):
                must = "a whole number above 0" if whole else "a finite number, and a soft cap above 0"
                raise SettingsError(f"{name}: {value!r} must be {must}")
            object.__setattr__(self, name, int(value) if whole else float(value))  # NumPy's too
        if not isinstance(self.causal, bool):
            raise SettingsError(f"causal: {self.causal!r} must be True or False")
        q, k = tuple(self.q.shape), tuple(self.k.shape)
        whole = len(q) == len(k) == 4 and 0 not in q + k
        if not whole or q[0] != k[0] or q[3] != k[3] or q[1] % k[1] or (self.causal and q[2] != k[2]):
            raise SettingsError(
                f"q, k: shapes {q} and {k} must be (B, H, T, K) and (B, H', S, K), where H' divides H, nothing is "
                "empty, and T = S if causal"
            )
        if not self.q.is_floating_point() or not self.k.is_floating_point():
            raise SettingsError(f"q, k: dtypes {self.q.dtype} and {self.k.dtype} must be floating point")
        if not self.causal and (self.window or self.chunk):
            raise SettingsError("window, chunk: need causal=True")
        if isinstance(self.mask, Tensor):
            if self.mask.dtype != torch.bool and not self.mask.is_floating_point():
                raise SettingsError(f"mask: dtype {self.mask.dtype} must be bool (True: seen) or floating (added)")
            _must_broadcast("mask", self.mask, (*q[:3], k[2]), "(B, H, T, S)")
        if self.padding is not None and tuple(self.padding.shape) != (q[0], k[2]):
            raise SettingsError(f"padding: shape {tuple(self.padding.shape)} must be (B, S), here {(q[0], k[2])}")
        if self.sinks is not None:
            _must_broadcast("sinks", self.sinks_of_rows, q[:3], "(H,) or (B, H, T)")

    @property
    def factor(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def plain(self) -> bool:
        """Whether the scores are scale q k^T as they are, and only a causal mask hides keys, if any."""
        return all(x is None for x in (self.mask, self.padding, self.window, self.chunk, self.softcap))

    @property
    def sinks_of_rows(self) -> Tensor:
        """Sinks (H,) or (B, H, T), so that they broadcast to (B, H, T)."""
        assert self.sinks is not None
        return self.sinks[:, None] if self.sinks.dim() == 1 else self.sinks

    @property
    def keys_of_heads(self) -> Tensor:
        """Keys (B, H, S, K), repeated for each query head."""
        return self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1)

    def block(self, start: int, stop: int, left: int, right: int) -> tuple[Tensor, Tensor | None]:
        """Of queries start..stop-1 and keys left..right-1 those that are seen and what is added to their scores (None:
        nothing); each broadcasts to (B, H, stop - start, right - left)."""
        device = self.q.device
        i, j = torch.arange(start, stop, device=device)[:, None], torch.arange(left, right, device=device)
        seen = j <= i if self.causal else (i >= 0) & (j >= 0)
        if self.window is not None:
            seen = seen & (j > i - self.window)
        if self.chunk is not None:
            seen = seen & (i // self.chunk == j // self.chunk)
        if self.padding is not None:
            seen = seen & self.padding[:, None, None, left:right].bool()
        if self.mask is None:
            return seen, None
        if not isinstance(self.mask, Tensor):
            b, h = (torch.arange(n, device=device) for n in self.q.shape[:2])
            let = torch.as_tensor(self.mask(b[:, None, None, None], h[:, None, None], i, j), device=device)
            if let.dtype != torch.bool:
                raise SettingsError(f"mask: the function gives {let.dtype}; it must give bool (True: seen)")
            return seen & let, None
        mask = self.mask.expand(*[-1] * (self.mask.dim() - 2), self.q.shape[2], self.k.shape[2])
        mask = mask[..., start:stop, left:right].to(device)
        if mask.dtype == torch.bool:
            return seen & mask, None
        return seen & ~(mask <= MASKED), mask  # a NaN is seen, and makes its row NaN

    def rows(self, block: int) -> Iterator[tuple[int, int]]:
        """Start and stop of blocks of queries."""
        for start in range(0, self.q.shape[2], block):
            yield start, min(start + block, self.q.shape[2])

    @functools.cached_property
    def first_key(self) -> Tensor:
        """The first key that any query may see; broadcasts to (B, H)."""
        if self.mask is None:
            first = torch.zeros(1, 1) if self.padding is None else self.padding.int().argmax(-1)[:, None]
            return first.to(self.q.device, torch.long)
        keys = self.k.shape[2]
        blocks = (self.block(*rows, 0, keys)[0] for rows in self.rows(max(1, CHUNK_ELEMENTS // keys)))
        return functools.reduce(torch.logical_or, (seen.any(-2) for seen in blocks)).int().argmax(-1)


def _must_broadcast(name: str, x: Tensor, shape: tuple[int, ...], axes: str) -> None:
    sizes = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or any(n not in (1, wanted) for n, wanted in sizes):
        raise SettingsError(f"{name}: shape {tuple(x.shape)} must broadcast to {axes}, here {shape}")


def must_cover(mask: Any, x: Tensor, cache: Any) -> None:
    """Refuse a mask that is neither (B, S) nor (B or 1, H or 1, T, S) for x (B, T, ...); S = T, and with a cache at
    least by what it holds more, but that of four axes may leave out what a window does not reach.

    Raises:
        SettingsError: names the shapes.
    """
    if isinstance(mask, Tensor):
        (batch, length), shape = x.shape[:2], tuple(mask.shape)
        fits = shape[:-1] == (batch,) or (len(shape) == 4 and shape[0] in (1, batch) and shape[2] == length)
        held = int(cache.get_seq_length()) if cache is not None and len(shape) == 2 else 0
        if not fits or shape[-1] < length + held or (shape[-1] > length and cache is None):
            after = f" after {held} in the cache" if held else ""
            raise SettingsError(
                f"attention_mask: shape {shape} does not cover input_ids of shape {(batch, length)}{after}"
            )
    elif mask is not None and not hasattr(mask, "mask_mod") and not isinstance(mask, dict):  # of flex, of each kind
        raise SettingsError(f"attention_mask: {type(mask).__name__} must be a tensor")


def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    mask: Tensor | Callable[..., Tensor] | None = None,
    padding: Tensor | None = None,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    method: str = "auto",
) -> Tensor:
    """Row entropies of softmax(scale q k^T), shape (B, H, T), float32 (``exact``: float64), in nats.

    A key is seen where all of ``causal``, ``mask``, ``padding``, ``window`` and ``chunk`` that are given let it.

    Args:
        q: queries (B, H, T, K).
        k: keys (B, H', S, K); H' divides H, each key head serving H / H' query heads. With ``causal`` S must be T.
        scale: of the scores; None is 1/sqrt(K).
        causal: whether query i sees only keys j <= i.
        mask: broadcasts to (B, H, T, S): bool, True where a key is seen, or floating, added to the scores, where a
            value of -10,000 or less hides the key; or a function of indices (b, h, i, j), as ``flex_attention`` takes.
        padding: (B, S), true or 1 for the tokens of a sequence, as tokenizers give it (``attention_mask``). It
            hides keys; queries of padding have rows too, which :func:`nfcore.shares.entropy_ceiling` leaves out.
        window: how many keys a query sees, itself included (Mistral, arXiv 2310.06825).
        chunk: positions are cut into chunks of this length, and a query sees only keys of its own (Llama 4).
        softcap: c of c tanh(score / c), before a mask is added (Gemma 2, arXiv 2408.00118).
        sinks: (H,) or (B, H, T), the score of one more place that attention goes to and that has no value (gpt-oss,
            arXiv 2508.10925). The weights of the keys then sum to less than 1, and the entropy is
            -sum_j p_ij ln p_ij over the keys as always: at most ln n for n >= 3 keys, and n/e for fewer.
        method: ``chunked`` holds a block of queries at a time and is accurate for any scores; ``exact`` does so in
            float64; ``lse`` takes the log-sum-exp of the flash kernel, H_i = LSE_i - scale q_i . sum_j p_ij k_j, in
            O(T K) memory, where nothing but ``causal`` hides keys and no ``softcap`` bends scores; ``auto`` is ``lse``
            where that is possible and no gradient is asked for, else ``chunked``. No gradient flows through ``lse``.

    A row that sees no key, or a score that is not finite, has entropy NaN: leave it out of means.

    Raises:
        SettingsError: shapes that do not fit, or an unknown method.
        NotImplementedError: ``lse`` where no kernel does it.
    """
    choice("method", method, METHODS)
    how: dict[str, Any] = dict(scale=scale, causal=causal, mask=mask, padding=padding, window=window, chunk=chunk)
    scores = Scores(q=q, k=k, softcap=softcap, sinks=sinks, **how)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, sinks))
    if method == "lse" and not scores.plain:
        raise NotImplementedError("method: 'lse' has no kernel for a mask, padding, a window or a softcap")
    if method == "lse" or (method == "auto" and scores.plain and not differentiable):
        try:
            return _streaming(scores)
        except NotImplementedError:
            if method == "lse":
                raise
    return _rows(scores, method).entropy


def attention_rows(q: Tensor, k: Tensor, *, method: str = "auto", lowest: bool = False, **how: Any) -> Rows:
    """Entropy, log-sum-exp, largest logit, weight on the first key and number of keys of each row, all of them exact.

    One pass over blocks of scores, with the keywords of :func:`attention_entropy`; ``method`` is ``exact`` or
    ``chunked`` (``auto``). ``lowest``: the smallest logit too, which takes one more look at the scores.
    """
    choice("method", method, ("auto", "exact", "chunked"))
    return _rows(Scores(q=q, k=k, **how), method, lowest)


def _rows(scores: Scores, method: str = "chunked", lowest: bool = False) -> Rows:
    """Compute rows by blocks of ``CHUNK_ELEMENTS`` scores, in float32 or (``exact``) float64."""
    with torch.autocast(scores.q.device.type, enabled=False):  # it would round matrix products to 8 bits
        dtype = torch.float64 if method == "exact" else torch.float32
        entropy, lse, top, low, first, keys = _blocks(scores, dtype, lowest)
        whole, log_sum_exp = _with_sinks(scores, entropy, lse)
        first = first * (lse - log_sum_exp).exp()
    empty = keys == 0
    bad = empty | ~entropy.isfinite()
    whole, log_sum_exp, first = (x.masked_fill(bad, torch.nan) for x in (whole, log_sum_exp, first))
    top, low = (x.masked_fill(empty, torch.nan) for x in (top, low))
    return Rows(whole, log_sum_exp, top, low if lowest else None, first, keys)


def _with_sinks(scores: Scores, entropy: Tensor, log_sum_exp: Tensor) -> tuple[Tensor, Tensor]:
    """Correct entropy and log-sum-exp for sinks: weights m p of the keys have entropy m (H - ln m)."""
    if scores.sinks is None:
        return entropy, log_sum_exp
    whole = torch.logaddexp(log_sum_exp, scores.sinks_of_rows.to(log_sum_exp))
    log_m = log_sum_exp - whole
    return log_m.exp() * (entropy - log_m), whole


def _blocks(scores: Scores, dtype: torch.dtype, lowest: bool) -> Iterator[Tensor]:
    """What :func:`_tile` finds, and the number of keys that each row may see, each (B, H, T)."""
    softcap = scores.softcap
    q = (scores.factor if softcap is None else scores.factor / softcap) * scores.q.to(dtype)
    k = scores.keys_of_heads.to(dtype)
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    limit = CHUNK_ELEMENTS * (1 if q.device.type == "cpu" else GPU_CHUNKS)
    # At least four blocks where the mask is causal: what lies beyond a block's last query is never computed.
    block = max(1, min(max(limit // keys, 16), -(-queries // (4 if scores.causal else 1))))
    if scores.window is not None:
        block = min(block, max(scores.window, 64))
    parts = []
    for start, stop in reversed([*scores.rows(block)]):  # the largest first, whose memory the others then use again
        # No query of the block sees a key outside left..right-1, and each sees all before the edge.
        in_window = 0 if scores.window is None else start - scores.window + 1
        in_chunk = 0 if scores.chunk is None else start // scores.chunk * scores.chunk
        left, right = max(0, in_window, in_chunk), stop if scores.causal else keys
        edge = left if not scores.plain else start if scores.causal else right
        seen, bias = scores.block(start, stop, edge, right)
        matrices = max(1, limit // ((stop - start) * (right - left)))
        some, of = (matrices // heads, heads) if matrices >= heads else (1, matrices)
        hidden, first = (~seen).expand(batch, heads, -1, -1), scores.first_key.expand(batch, heads) - left
        tiles = []
        for b, h in itertools.product(range(0, batch, some), range(0, heads, of)):
            piece = slice(b, b + some), slice(h, h + of)
            values = q[piece][:, :, start:stop] @ k[piece][:, :, left:right].transpose(-1, -2)
            if softcap is not None:
                values = softcap * values.tanh()
            if bias is not None:
                values = values + bias.expand(batch, heads, -1, -1)[piece]
            tiles.append([x.flatten(0, 1) for x in _tile(values, hidden[piece], edge - left, first[piece], lowest)])
        found = [torch.cat(part).unflatten(0, (batch, heads)) for part in zip(*tiles, strict=True)]
        parts.append((*found, (seen.sum(-1) + edge - left).expand(batch, heads, -1)))
    return (torch.cat(part, -1) for part in zip(*parts[::-1], strict=True))


def _tile(values: Tensor, hidden: Tensor, edge: int, first: Tensor, lowest: bool) -> tuple[Tensor, ...]:
    """Entropy, log-sum-exp, largest and (``lowest``) smallest score and weight on the first key of each row.

    Args:
        values: a block of scores (b, h, t, s), which is used up.
        hidden: which of its columns from ``edge`` on are not seen.
        first: (b, h), the column of the first key; negative if it lies before the block.
    """
    right = values[..., edge:]
    low = None
    if lowest:
        right.masked_fill_(hidden, NEVER_SEEN)
        low = values.detach().amin(-1)
    right.masked_fill_(hidden, -NEVER_SEEN)  # finite, so that its product with the weight 0 is 0
    top = values.detach().amax(-1)
    # Below the row's maximum every term of H = ln Z + sum p (max - s) is positive: nothing cancels.
    below = values.sub_(top[..., None])
    weights = below.exp()
    total = weights.sum(-1)
    column = first.clamp(0, values.shape[-1] - 1)[..., None, None].expand(*values.shape[:3], 1)
    on_first = weights.detach().gather(-1, column)[..., 0] / total * (first >= 0)[..., None]
    gap = (weights * below if weights.requires_grad else below.mul_(weights)).sum(-1)
    log_total = total.log()
    return log_total - gap / total, log_total + top, top, top if low is None else low, on_first


# --- streaming: the log-sum-exp of a kernel ---------------------------------------------------------------------


def _streaming(scores: Scores) -> Tensor:
    """H_i = LSE_i - E_p[s_ij] from one call of an attention kernel with the keys as values.

    In float32 and with centred keys, which leaves H unchanged and keeps the two terms small: their difference would
    otherwise lose about |s| x 2^-24 nats. No gradient: the kernels get it wrong or do not give it.
    """
    with torch.no_grad(), torch.autocast(scores.q.device.type, enabled=False):
        q, k, scale = scores.q.float(), scores.keys_of_heads.float(), scores.factor
        if not bool(k.isfinite().all()):
            return _rows(scores).entropy  # the kernel would spread 0 x NaN over rows that never see the key
        centre = k.mean(2, keepdim=True)
        k = k - centre
        if scale <= 0:  # the kernels take the largest score before they scale
            q, scale = scale * q, 1.0
        mean_key, lse = flash_with_lse(q, k, k, scale, scores.causal)
        entropy = lse - scale * (q * mean_key).sum(-1)
        entropy = entropy.clamp_min(0.0).masked_fill(~entropy.isfinite(), torch.nan)
        return _with_sinks(scores, entropy, lse + scale * (q * centre).sum(-1))[0]


def flash_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention output (B, H, T, K) and natural log-sum-exp of the scores (B, H, T), float32, no gradient.

    The one place that calls torch's private operators; a device without one raises NotImplementedError.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu" and hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu"):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    elif q.device.type == "cuda" and hasattr(aten, "_scaled_dot_product_efficient_attention"):
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
        lse = lse[..., : q.shape[2]]  # padded to a multiple of 32
    else:
        raise NotImplementedError(f"no attention kernel with a log-sum-exp for device {q.device.type!r}")
    return out, lse
