r"""Entropy of attention, in nats, without the T x T map.

For query position i with attention p_ij over the keys j <= i, the row entropy is :math:`H_i = -\sum_j p_{ij} \ln
p_{ij}`; a head's entropy is its mean over batch and query positions (Zhai et al. 2023, arXiv 2303.06296; the paper,
section 3). Its largest possible value under a causal mask is the mean of ln i, not ln T:
:func:`nfcore.shares.entropy_ceiling`.

Axes: B batch, H heads, T query positions, S key positions, K head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nfcore.settings import SettingsError, choice


METHODS = ("auto", "exact", "chunked", "lse")
NEVER_SEEN = 1e38  # in the place of a masked score, above or below all others
CHUNK_ELEMENTS = 2**24  # of the score block that `chunked` holds at a time: 64 MiB in float32


def attention_entropy(
    q: Tensor, k: Tensor, *, scale: float | None = None, causal: bool = True, method: str = "auto"
) -> Tensor:
    """Row entropies of softmax(scale q k^T), shape (B, H, T), float32 (``exact``: float64), in nats.

    Args:
        q: queries (B, H, T, K).
        k: keys (B, H', S, K); H' divides H, each key head serving H / H' query heads. With ``causal`` S must be T.
        scale: of the scores; None is 1/sqrt(K).
        method: ``exact`` is the materialised oracle in float64; ``chunked`` holds a block of queries at a time and
            is accurate for any scores; ``lse`` takes the log-sum-exp of the flash kernel,
            H_i = LSE_i - scale q_i . sum_j p_ij k_j, in O(T K) memory; ``auto`` is ``lse`` where a kernel exists and
            no gradient is asked for, else ``chunked``. Gradients flow through ``exact`` and ``chunked`` only.

    A row with a score that is not finite has entropy NaN: count it, and leave it out of means.

    Raises:
        SettingsError: shapes that do not fit, or an unknown method.
        NotImplementedError: ``lse`` on a device without a kernel.
    """
    choice("method", method, METHODS)
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise SettingsError(
            f"q, k: shapes {tuple(q.shape)} and {tuple(k.shape)} must be (B, H, T, K) and (B, H', S, K)"
        )
    if q.numel() == 0 or k.numel() == 0:
        raise SettingsError(f"q, k: shapes {tuple(q.shape)} and {tuple(k.shape)} hold nothing")
    if q.shape[1] % k.shape[1]:
        raise SettingsError(f"k: {k.shape[1]} key heads do not divide the {q.shape[1]} query heads")
    if causal and q.shape[2] != k.shape[2]:
        raise SettingsError(f"k: {k.shape[2]} keys for {q.shape[2]} queries; a causal mask needs as many of each")
    if not q.is_floating_point() or not k.is_floating_point():
        raise SettingsError(f"q, k: dtypes {q.dtype} and {k.dtype} must be floating point")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    if method == "exact":
        return _exact(q.double(), k.double(), scale, causal)
    if method == "chunked" or (method == "auto" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        return _chunked(q, k, scale, causal)[0]
    try:
        return _streaming(q, k, scale, causal)
    except NotImplementedError:
        if method == "lse":
            raise
        return _chunked(q, k, scale, causal)[0]


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep mixed precision out of a function of (q, k, ...): its matrix products would be rounded to 8 bits."""

    @wraps(function)
    def plain(q: Tensor, k: Tensor, *args: Any) -> Any:
        with torch.autocast(q.device.type, enabled=False):
            return function(q, k, *args)

    return plain


@_without_autocast
def _exact(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    scores = scale * q @ k.transpose(-1, -2)  # (B, H, T, S)
    allowed = _allowed(0, q.shape[2], k.shape[2], causal, q.device)
    bad = (~scores.isfinite() & allowed).any(-1)
    log_p = scores.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    # A masked key's term is zero; its 0 x -inf must not reach the value or the gradient.
    return -(log_p.exp() * log_p.masked_fill(~allowed, 0.0)).sum(-1).masked_fill(bad, torch.nan)


def _allowed(start: int, stop: int, keys: int, causal: bool, device: torch.device) -> Tensor:
    """(stop - start, keys): which keys the queries start..stop-1 may see."""
    if not causal:
        return torch.ones(stop - start, keys, dtype=torch.bool, device=device)
    return torch.arange(keys, device=device) <= torch.arange(start, stop, device=device)[:, None]


@_without_autocast
def _chunked(q: Tensor, k: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Row entropies and largest absolute scores, each (B, H, T) float32, a block of queries at a time."""
    q, k = scale * q.float(), k.float()
    # At least four blocks where the mask is causal: what lies beyond a block's last query is never computed.
    rows = max(1, min(CHUNK_ELEMENTS // (k.shape[0] * k.shape[1] * k.shape[2]), -(-q.shape[2] // (4 if causal else 1))))
    entropies, largest = [], []
    for start in range(0, q.shape[2], rows):
        stop = min(start + rows, q.shape[2])
        seen = stop if causal else k.shape[2]  # keys beyond the block's last query are masked anyway
        scores = q[:, :, start:stop] @ k[:, :, :seen].transpose(-1, -2)
        masked = ~_allowed(start, stop, seen, causal, q.device)
        low = scores.detach().masked_fill(masked, NEVER_SEEN).amin(-1)
        scores = scores.masked_fill_(masked, -NEVER_SEEN)  # finite, so that its product with the weight 0 is 0
        top = scores.detach().amax(-1)
        # Below the row's maximum every term of H = ln Z + sum p (max - s) is positive: nothing cancels.
        below = scores - top[..., None]
        weights = below.exp()
        total = weights.sum(-1)
        gap = (weights * below).sum(-1)
        extreme = torch.maximum(top.abs(), low.abs())  # not finite if one of the row's scores is not
        entropies.append((total.log() - gap / total).masked_fill(~extreme.isfinite(), torch.nan))
        largest.append(extreme)
    return torch.cat(entropies, -1), torch.cat(largest, -1)


@torch.no_grad()
@_without_autocast
def _streaming(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """H_i = LSE_i - E_p[s_ij] from one flash-attention call with the keys as values.

    In float32 and with centred keys, which leaves H unchanged and keeps the two terms small: their difference would
    otherwise lose about |s| x 2^-24 nats.
    """
    q, k = q.float(), k.float()
    if not bool(k.isfinite().all()):
        return _chunked(q, k, scale, causal)[0]  # the kernel would spread 0 x NaN over rows that never see the key
    k = k - k.mean(2, keepdim=True)
    if scale <= 0:  # the kernels take the largest score before they scale
        q, scale = scale * q, 1.0
    mean_key, lse = flash_with_lse(q, k, k, scale, causal)
    entropy = lse - scale * (q * mean_key).sum(-1)
    return entropy.clamp_min(0.0).masked_fill(~entropy.isfinite(), torch.nan)


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


# --- whole models -----------------------------------------------------------------------------------------------

_RECORDING = "nfcore_recording"  # an entry of transformers' attention interface
_measure: list[Callable[..., None]] = []


def _recording_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = bool(kwargs.get("is_causal") if kwargs.get("is_causal") is not None else module.is_causal)
    where = type(module).__name__
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise SettingsError(f"{where}: attention with {name} is not plain softmax attention, so not measured")
    if attention_mask is not None:
        plain = _allowed(0, query.shape[2], key.shape[2], causal, query.device)
        allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
        if not bool((allowed == plain).all()):
            raise SettingsError(f"{where}: padded, windowed or otherwise masked attention is not measured")
    _measure[-1](query, key, scaling, causal)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


@contextmanager
def recording(model: Any, measure: Callable[[Tensor, Tensor, float | None, bool], None]) -> Iterator[None]:
    """Call ``measure(q, k, scale, causal)`` at every attention layer of a Hugging Face causal model, in order."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not hasattr(model, "set_attn_implementation"):
        raise SettingsError(f"{type(model).__name__}: not a transformers model, so its attention cannot be hooked")
    AttentionInterface.register(_RECORDING, _recording_attention)
    AttentionMaskInterface.register(_RECORDING, sdpa_mask)
    before = model.config._attn_implementation
    training = model.training
    calls = 0

    def counted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        measure(*args)

    _measure.append(counted)
    try:
        model.set_attn_implementation(_RECORDING)
        model.eval()
        yield
    finally:
        _measure.pop()
        model.set_attn_implementation(before)
        model.train(training)
    if not calls:
        raise SettingsError(f"{type(model).__name__}: does not use transformers' attention interface; cannot be hooked")


def _input_ids(model: Any, batch: Any) -> Tensor:
    ids = batch if isinstance(batch, Tensor) else batch["input_ids"]
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise SettingsError("batch: padded sequences are not measured; give sequences of one length")
    return ids.to(model.device)


@torch.no_grad()
def head_entropy(model: Any, batch: Any, *, method: str = "auto") -> Tensor:
    """Head entropies (L, H) of a causal language model on a batch, in nats, averaged over batch and positions.

    ``model`` is ours or any transformers model with standard attention behind its attention interface (GPT-2,
    GPT-NeoX, Llama and most others); ``batch`` is token ids (B, T) or a mapping with ``input_ids``. Rows that are not
    finite are left out; a head with none left is NaN.

    Raises:
        SettingsError: the model cannot be hooked, or its attention is not plain softmax attention.
    """
    heads: list[Tensor] = []

    def measure(q: Tensor, k: Tensor, scale: float | None, causal: bool) -> None:
        heads.append(attention_entropy(q, k, scale=scale, causal=causal, method=method).nanmean((0, 2)).cpu())

    with recording(model, measure):
        model(input_ids=_input_ids(model, batch), use_cache=False)
    return torch.stack(heads)


@torch.no_grad()
def attention_statistics(model: Any, batch: Any) -> dict[str, Tensor]:
    """Per layer and head, each (L, H): ``entropy`` in nats (as :func:`head_entropy`), ``entropy_over_ln_i`` (mean over
    positions i >= 2 of H_i / ln i, which weighs all positions alike), ``nonfinite_rows`` (rows of attention with a
    score that is not finite, out of B T), ``largest_logit`` (largest absolute scaled score); ``by_position``
    (L, T): the entropy of each query position, averaged over batch and heads."""
    names = ("entropy", "entropy_over_ln_i", "nonfinite_rows", "largest_logit", "by_position")
    result: dict[str, list[Tensor]] = {name: [] for name in names}

    def measure(q: Tensor, k: Tensor, scale: float | None, causal: bool) -> None:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        rows, largest = _chunked(q, k, q.shape[-1] ** -0.5 if scale is None else scale, causal)
        highest = torch.arange(1, rows.shape[-1] + 1, device=rows.device).log()  # 0 at the first position
        result["entropy"].append(rows.nanmean((0, 2)).cpu())
        result["entropy_over_ln_i"].append((rows / highest)[..., 1:].nanmean((0, 2)).cpu())
        result["by_position"].append(rows.nanmean((0, 1)).cpu())
        result["nonfinite_rows"].append(rows.isnan().sum((0, 2)).cpu())
        result["largest_logit"].append(largest.amax((0, 2)).cpu())

    with recording(model, measure):
        model(input_ids=_input_ids(model, batch), use_cache=False)
    return {name: torch.stack(values) for name, values in result.items()}
