r"""Entropy of attention from queries and keys, in nats, without the T x T map.

For query position i with attention weights p_ij over the keys j that it may see, the row entropy is :math:`H_i =
-\sum_j p_{ij} \ln p_{ij}` (Zhai et al. 2023, arXiv 2303.06296; the paper, section 3). It is at most the logarithm of
the number of keys that the row may see: :func:`nfcore.shares.entropy_ceiling`. Whole models are measured by
:mod:`nfcore.meter`.

Axes: B batch, H heads, T query positions, S key positions, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nfcore.settings import SettingsError, choice


METHODS = ("auto", "exact", "chunked", "lse", "flex")
NEVER_SEEN = 1e38  # in the place of a masked score, above or below all others
MASKED = -1e4  # an additive mask that is not above this hides the key: the weight is 0 in any precision
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
    """How scores come from queries and keys, and which of them count: the keywords of :func:`attention_entropy`."""

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
        q, k = tuple(self.q.shape), tuple(self.k.shape)
        if len(q) != 4 or len(k) != 4 or q[0] != k[0] or q[3] != k[3]:
            raise SettingsError(f"q, k: shapes {q} and {k} must be (B, H, T, K) and (B, H', S, K)")
        if self.q.numel() == 0 or self.k.numel() == 0:
            raise SettingsError(f"q, k: shapes {q} and {k} hold nothing")
        if q[1] % k[1]:
            raise SettingsError(f"k: {k[1]} key heads do not divide the {q[1]} query heads")
        if self.causal and q[2] != k[2]:
            raise SettingsError(f"k: {k[2]} keys for {q[2]} queries; a causal mask needs as many of each")
        if not self.q.is_floating_point() or not self.k.is_floating_point():
            raise SettingsError(f"q, k: dtypes {self.q.dtype} and {self.k.dtype} must be floating point")
        for name in ("window", "chunk"):
            size = getattr(self, name)
            if size is not None and (size < 1 or not self.causal):
                raise SettingsError(f"{name}: {size!r} must be at least 1, and needs causal=True")
        if self.softcap is not None and not self.softcap > 0:
            raise SettingsError(f"softcap: {self.softcap!r} must be above 0")
        full = (*q[:3], k[2])
        if isinstance(self.mask, Tensor):
            if self.mask.dtype != torch.bool and not self.mask.is_floating_point():
                raise SettingsError(f"mask: dtype {self.mask.dtype} must be bool (True: seen) or floating (added)")
            _must_broadcast("mask", self.mask, full, "(B, H, T, S)")
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

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """The keys from the first to one beyond the last that any of the queries start..stop-1 may see."""
        left = 0
        if self.window is not None:
            left = max(left, start - self.window + 1)
        if self.chunk is not None:
            left = max(left, start // self.chunk * self.chunk)
        return left, stop if self.causal else self.k.shape[2]

    def sees(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i may see key j, without regard to a mask that is a tensor; indices broadcast."""
        seen = j <= i if self.causal else (i >= 0) & (j >= 0)
        if self.window is not None:
            seen = seen & (j > i - self.window)
        if self.chunk is not None:
            seen = seen & (i // self.chunk == j // self.chunk)
        if self.padding is not None:
            seen = seen & self.padding.bool()[b, j]
        if callable(self.mask) and not isinstance(self.mask, Tensor):
            seen = seen & self.mask(b, h, i, j)
        return seen

    def block(self, start: int, stop: int, left: int, right: int) -> tuple[Tensor, Tensor | None]:
        """Of queries start..stop-1 and keys left..right-1 those that are seen and what is added to their scores (None:
        nothing); each broadcasts to (B, H, stop - start, right - left)."""
        spans = (0, self.q.shape[0]), (0, self.q.shape[1]), (start, stop), (left, right)
        shapes = (-1, 1, 1, 1), (1, -1, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1)
        indices = (torch.arange(*s, device=self.q.device).view(x) for s, x in zip(spans, shapes, strict=True))
        seen = self.sees(*indices)
        if not isinstance(self.mask, Tensor):
            return seen, None
        mask = self.mask.expand(*[-1] * (self.mask.dim() - 2), self.q.shape[2], self.k.shape[2])
        mask = mask[..., start:stop, left:right].to(self.q.device)
        if mask.dtype == torch.bool:
            return seen & mask, None
        return seen & (mask > MASKED), mask

    def rows(self, block: int) -> Iterator[tuple[int, int]]:
        """Start and stop of blocks of queries."""
        for start in range(0, self.q.shape[2], block):
            yield start, min(start + block, self.q.shape[2])

    @functools.cached_property
    def first_key(self) -> Tensor:
        """The first key that any query may see; broadcasts to (B, H)."""
        if self.mask is None:
            if self.padding is None:
                return torch.zeros(1, 1, dtype=torch.long, device=self.q.device)
            return self.padding.int().argmax(-1)[:, None]
        keys = self.k.shape[2]
        found = torch.zeros(1, 1, keys, dtype=torch.bool, device=self.q.device)
        for start, stop in self.rows(max(1, CHUNK_ELEMENTS // keys)):
            found = found | self.block(start, stop, 0, keys)[0].any(-2)
        return found.int().argmax(-1)


def _must_broadcast(name: str, x: Tensor, shape: tuple[int, ...], axes: str) -> None:
    try:
        fits = torch.broadcast_shapes(x.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise SettingsError(f"{name}: shape {tuple(x.shape)} must broadcast to {axes}, here {shape}")


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
        padding: (B, S), true or 1 for the tokens of a sequence, as tokenizers give it (``attention_mask``).
        window: how many keys a query sees, itself included (Mistral, arXiv 2310.06825).
        chunk: positions are cut into chunks of this length, and a query sees only keys of its own (Llama 4).
        softcap: c of c tanh(score / c), before a mask is added (Gemma 2, arXiv 2408.00118).
        sinks: (H,) or (B, H, T), the score of one more place that attention goes to and that has no value (gpt-oss,
            arXiv 2508.10925). The weights of the keys then sum to less than 1, and the entropy is
            -sum_j p_ij ln p_ij over the keys as always: at most ln n for n >= 3 keys, and n/e for fewer.
        method: ``exact`` is the materialised oracle in float64; ``chunked`` holds a block of queries at a time and
            is accurate for any scores; ``lse`` takes the log-sum-exp of the flash kernel,
            H_i = LSE_i - scale q_i . sum_j p_ij k_j, in O(T K) memory, where nothing but ``causal`` hides keys and no
            ``softcap`` bends scores; ``flex`` does so with torch's compiled ``flex_attention``, which takes
            ``padding``, ``window`` and ``chunk`` too; ``auto`` is ``lse`` where that is possible and no gradient is
            asked for, else ``chunked``. Gradients flow through ``exact`` and ``chunked`` only.

    A row that sees no key, or a score that is not finite, has entropy NaN: leave it out of means.

    Raises:
        SettingsError: shapes that do not fit, or an unknown method.
        NotImplementedError: ``lse`` or ``flex`` where no kernel does it.
    """
    choice("method", method, METHODS)
    scores = Scores(q, k, scale, causal, mask, padding, window, chunk, softcap, sinks)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, sinks))
    if method == "flex":
        return _with_sinks(scores, *_flex(scores))[0]
    if method == "lse" or (method == "auto" and scores.plain and not differentiable):
        if not scores.plain:
            raise NotImplementedError(f"method: {method!r} has no kernel for a mask, padding, a window or a softcap")
        try:
            return _with_sinks(scores, *_streaming(scores))[0]
        except NotImplementedError:
            if method == "lse":
                raise
    return _rows(scores, "exact" if method == "exact" else "chunked").entropy


def attention_rows(q: Tensor, k: Tensor, *, method: str = "auto", lowest: bool = False, **how: Any) -> Rows:
    """Entropy, log-sum-exp, largest logit, weight on the first key and number of keys of each row, all of them exact.

    One pass over blocks of scores, with the keywords of :func:`attention_entropy`; ``method`` is ``exact`` or
    ``chunked`` (``auto``). ``lowest``: the smallest logit too, which takes one more look at the scores.
    """
    choice("method", method, ("auto", "exact", "chunked"))
    return _rows(Scores(q, k, **how), "exact" if method == "exact" else "chunked", lowest)


def _rows(scores: Scores, method: str, lowest: bool = False) -> Rows:
    with torch.autocast(scores.q.device.type, enabled=False):  # it would round matrix products to 8 bits
        rows = (_exact if method == "exact" else _chunked)(scores, lowest)
        entropy, log_sum_exp = _with_sinks(scores, rows.entropy, rows.log_sum_exp)
        first = rows.first_key
        if scores.sinks is not None:
            first = first * (rows.log_sum_exp - log_sum_exp).exp()
        return rows._replace(entropy=entropy, log_sum_exp=log_sum_exp, first_key=first)


def _with_sinks(scores: Scores, entropy: Tensor, log_sum_exp: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and log-sum-exp of rows after sinks took their part: weights m p have entropy m (H - ln m)."""
    if scores.sinks is None:
        return entropy, log_sum_exp
    whole = torch.logaddexp(log_sum_exp, scores.sinks_of_rows.to(log_sum_exp))
    log_m = log_sum_exp - whole
    return log_m.exp() * (entropy - log_m), whole


def _exact(scores: Scores, lowest: bool = False) -> Rows:
    q, k = scores.q.double(), scores.keys_of_heads.double()
    values = scores.factor * q @ k.transpose(-1, -2)  # (B, H, T, S)
    if scores.softcap is not None:
        values = scores.softcap * (values / scores.softcap).tanh()
    seen, bias = scores.block(0, q.shape[2], 0, k.shape[2])
    if bias is not None:
        values = values + bias
    bad = (~values.isfinite() & seen).any(-1)
    log_p = values.masked_fill(~seen, -torch.inf).log_softmax(-1)
    # A masked key's term is zero; its 0 x -inf must not reach the value or the gradient.
    entropy = -(log_p.exp() * log_p.masked_fill(~seen, 0.0)).sum(-1)
    index = scores.first_key.expand(q.shape[:2])[..., None, None].expand(*q.shape[:3], 1)
    return _whole(
        entropy.masked_fill(bad, torch.nan),
        values.masked_fill(~seen, -torch.inf).logsumexp(-1),
        values.masked_fill(~seen, -torch.inf).amax(-1),
        values.masked_fill(~seen, torch.inf).amin(-1) if lowest else None,
        log_p.exp().gather(-1, index)[..., 0],
        seen.sum(-1).expand(q.shape[:3]),
    )


def _chunked(scores: Scores, lowest: bool = False) -> Rows:
    """Blocks of queries, and of sequences and heads, that together hold at most ``CHUNK_ELEMENTS`` scores."""
    softcap = scores.softcap
    q = (scores.factor if softcap is None else scores.factor / softcap) * scores.q.float()
    k = scores.keys_of_heads.float()
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    limit = CHUNK_ELEMENTS * (1 if q.device.type == "cpu" else GPU_CHUNKS)
    # At least four blocks where the mask is causal: what lies beyond a block's last query is never computed.
    block = max(1, min(max(limit // keys, 16), -(-queries // (4 if scores.causal else 1))))
    if scores.window is not None:
        block = min(block, max(scores.window, 64))
    parts = []
    for start, stop in scores.rows(block):
        left, right = scores.reach(start, stop)
        edge = left  # of the columns before it none is hidden
        if scores.plain:
            edge = start if scores.causal else right
        seen, bias = scores.block(start, stop, edge, right)
        hidden = (~seen).expand(batch, heads, -1, -1)
        matrices = max(1, limit // ((stop - start) * (right - left)))
        some, of = (matrices // heads, heads) if matrices >= heads else (1, matrices)
        tiles = []
        for b, h in (
            (slice(b, b + some), slice(h, h + of)) for b in range(0, batch, some) for h in range(0, heads, of)
        ):
            values = q[b, h, start:stop] @ k[b, h, left:right].transpose(-1, -2)
            if softcap is not None:
                values = softcap * values.tanh()
            if bias is not None:
                values = values + bias.expand(batch, heads, -1, -1)[b, h]
            tiles.append(
                _tile(values, hidden[b, h], edge - left, scores.first_key.expand(batch, heads)[b, h] - left, lowest)
            )
        joined = [torch.cat([torch.cat(x, 1) for x in _grouped(part, heads, of)]) for part in zip(*tiles, strict=True)]
        count = seen.sum(-1) + edge - left
        parts.append((*joined, count.expand(batch, heads, -1)))
    entropy, lse, top, first, *low, keys_seen = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return _whole(entropy, lse, top, low[0] if low else None, first, keys_seen)


def _whole(entropy: Tensor, lse: Tensor, top: Tensor, low: Tensor | None, first: Tensor, keys: Tensor) -> Rows:
    """Rows with NaN where no key is seen and, except for the logits, where one of them is not finite."""
    empty = keys == 0
    bad = empty | ~entropy.isfinite()
    entropy, lse, first = (x.masked_fill(bad, torch.nan) for x in (entropy, lse, first))
    low = None if low is None else low.masked_fill(empty, torch.nan)
    return Rows(entropy, lse, top.masked_fill(empty, torch.nan), low, first, keys)


def _grouped(tiles: tuple[Tensor, ...], heads: int, of: int) -> list[tuple[Tensor, ...]]:
    """Tiles in lists of those that make up all heads of the same sequences."""
    per = -(-heads // of)
    return [tiles[n : n + per] for n in range(0, len(tiles), per)]


def _tile(values: Tensor, hidden: Tensor, edge: int, first: Tensor, lowest: bool) -> tuple[Tensor, ...]:
    """Entropy, log-sum-exp, largest (and ``lowest``) score and weight on the first key of each row.

    Args:
        values: a block of scores (b, h, t, s), which is used up.
        hidden: which of its columns from ``edge`` on are not seen.
        first: (b, h), the column of the first key; negative if it lies before the block.
    """
    low = []
    if edge and lowest:
        low.append(values[..., :edge].detach().amin(-1))
    if edge < values.shape[-1]:
        right = values[..., edge:]
        if lowest:
            low.append(right.detach().masked_fill(hidden, NEVER_SEEN).amin(-1))
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
    found = (log_total - gap / total, log_total + top, top, on_first)
    return (*found, functools.reduce(torch.minimum, low)) if lowest else found


# --- streaming: the log-sum-exp of a kernel ---------------------------------------------------------------------


def _without_gradient(function: Callable[[Scores], tuple[Tensor, Tensor]]) -> Callable[[Scores], tuple[Tensor, Tensor]]:
    """Keep gradients, which the kernels get wrong or do not give, and mixed precision out of a function."""

    @functools.wraps(function)
    def plain(scores: Scores) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(scores.q.device.type, enabled=False):
            return function(scores)

    return plain


@_without_gradient
def _streaming(scores: Scores) -> tuple[Tensor, Tensor]:
    """H_i = LSE_i - E_p[s_ij] from one flash-attention call with the keys as values, and LSE_i.

    In float32 and with centred keys, which leaves H unchanged and keeps the two terms small: their difference would
    otherwise lose about |s| x 2^-24 nats.
    """
    q, k, scale = scores.q.float(), scores.keys_of_heads.float(), scores.factor
    if not bool(k.isfinite().all()):
        rows = _chunked(scores)  # the kernel would spread 0 x NaN over rows that never see the key
        return rows.entropy, rows.log_sum_exp
    centre = k.mean(2, keepdim=True)
    k = k - centre
    if scale <= 0:  # the kernels take the largest score before they scale
        q, scale = scale * q, 1.0
    mean_key, lse = flash_with_lse(q, k, k, scale, scores.causal)
    entropy = lse - scale * (q * mean_key).sum(-1)
    whole = lse if scores.sinks is None else lse + scale * (q * centre).sum(-1)
    return entropy.clamp_min(0.0).masked_fill(~entropy.isfinite(), torch.nan), whole


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


def why_no_flex(device: str) -> str | None:
    """What keeps the compiled ``flex_attention`` from giving a log-sum-exp on a device; None if nothing does.

    Tried once, with the smallest inputs: torch 2.13 has it for CUDA but not for CPUs (pytorch #190562).
    """
    if device not in _FLEX:
        x = torch.zeros(1, 1, 16, 16, device=device)
        try:
            _flex_with_lse(x, x, 1.0, None)
            _FLEX[device] = None
        except Exception as error:  # the compiler's own exceptions have no common base
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            _FLEX[device] = f"{type(error).__name__}: {lines[0]}"
    return _FLEX[device]


_FLEX: dict[str, str | None] = {}


@torch.no_grad()
def _flex_with_lse(q: Tensor, k: Tensor, scale: float, block_mask: Any) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    compiled: Any = torch.compile(flex_attention)
    grouped = q.shape[1] != k.shape[1]
    aux = AuxRequest(lse=True)
    out, found = compiled(q, k, k, block_mask=block_mask, scale=scale, enable_gqa=grouped, return_aux=aux)
    return out, found.lse


@_without_gradient
def _flex(scores: Scores) -> tuple[Tensor, Tensor]:
    """As :func:`_streaming`, with a kernel that skips blocks of keys that no query sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    device = scores.q.device.type
    if isinstance(scores.mask, Tensor) or scores.softcap is not None:
        raise NotImplementedError("method: 'flex' takes no mask that is a tensor, and no softcap")
    if reason := why_no_flex(device):
        raise NotImplementedError(f"method: 'flex' has no log-sum-exp on device {device!r} ({reason})")
    q, k = scores.q.float(), scores.k.float()
    centre = k.mean(2, keepdim=True)
    batch, heads, queries, _ = q.shape

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:  # it takes functions, and no methods
        return scores.sees(b, h, i, j)

    block_mask = create_block_mask(sees, batch, heads, queries, k.shape[2], device=device)
    mean_key, lse = _flex_with_lse(q, k - centre, scores.factor, block_mask)
    entropy = lse - scores.factor * (q * mean_key).sum(-1)
    centres = centre.repeat_interleave(heads // k.shape[1], dim=1)
    whole = lse + scores.factor * (q * centres).sum(-1)
    return entropy.clamp_min(0.0).masked_fill(~entropy.isfinite(), torch.nan), whole
