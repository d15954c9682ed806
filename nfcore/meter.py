"""Attention entropy of whole models, layer by layer, while a model runs on a batch.

The model itself is not changed. During a measurement, transformers' attention interface reports every call of the
measuring thread to the meter, which reads queries, keys, scale, mask, window, soft cap and sinks from it.

Axes: B batch, T query positions, L layers, H heads.
"""

from __future__ import annotations

import copy
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nfcore.entropy import METHODS, Scores, attention_entropy, attention_rows
from nfcore.settings import SettingsError, choice


_listeners: list[Callable[..., None]] = []  # of the thread whose turn it is, the innermost last
_turn = threading.RLock()  # measurements take turns, since modules' training flags are set meanwhile
# A process is forked between measurements, or the child would have a model and an interface that are being measured.
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


def _measure(model: Any, batch: Any, measure: Callable[[int, dict[str, Any], dict[str, Any]], None]) -> None:
    """Run a transformers model on a batch and call ``measure(layer, how, inputs)`` at every causal self-attention.

    ``layer`` is the layer's own number in the model, ``how`` holds the queries, the keys and the other arguments of
    :func:`~nfcore.entropy.attention_rows`, ``inputs`` those of the model. The model is in evaluation mode and runs
    uncompiled meanwhile. Afterwards all is as before.

    Raises:
        SettingsError: a batch that does not fit, or no layer of the model calls transformers' attention interface with
            causal self-attention.
    """
    inputs, numbers = _inputs(model, batch), _layer_numbers(model)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def heard(*call: Any, **options: Any) -> None:
        module, query, key = call[2:5]
        # Differential attention (DiffLlama) attends twice with the same weights: that is one row.
        again = any(m is module and q is query and k is key for m, q, k in calls[-1:])
        how = None if again else _how(*call, **options)
        if how is not None:
            calls.append((module, query, key))
            measure(numbers.get(module, len(calls) - 1), how, inputs)

    # Code that the compiler has made cannot be listened to.
    with _turn, _evaluating(model), torch.compiler.set_stance("force_eager"), _listening(heard):
        _run(model, inputs)
    if not calls:
        raise SettingsError(
            f"{type(_transformer(model)).__name__}: no layer calls transformers' attention interface with causal "
            "softmax self-attention, so nothing is measured"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _listening(heard: Callable[..., None]) -> Iterator[None]:
    """Call ``heard(implementation, weights, module, query, key, mask, **options)`` after each attention of this thread.

    ``weights`` is the map that eager attention returns, else None.
    """
    from transformers import AttentionInterface

    interface: Any = AttentionInterface
    thread, original = threading.get_ident(), interface.get_interface

    def get_interface(self: Any, implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        attend = original(self, implementation, default)
        if threading.get_ident() != thread:
            return attend

        def heard_too(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            out, weights, *more = attend(module, query, key, value, *args, **kwargs)
            if _listeners[-1] is heard:  # and no measurement that began inside this one
                heard(implementation or "eager", weights, module, query, key, *args, **kwargs)
            return out, weights, *more

        return heard_too

    _listeners.append(heard)
    interface.get_interface = get_interface
    try:
        yield
    finally:
        interface.get_interface = original
        _listeners.pop()


def _how(
    implementation: str,
    weights: Tensor | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Any = None,
    scaling: Any = None,
    dropout: float = 0.0,
    **options: Any,
) -> dict[str, Any] | None:
    """The arguments of :func:`~nfcore.entropy.attention_rows` for a call of an attention function of transformers; None
    if it is no causal self-attention."""
    causal, sinks, bias = (options.get(name) for name in ("is_causal", "sinks", "position_bias"))
    causal = getattr(module, "is_causal", True) if causal is None else causal
    queries = query.shape[2]
    how: dict[str, Any] = dict(scale=None if scaling is None else float(scaling), causal=False)
    sdpa = implementation == "sdpa"  # which has no soft cap and no sinks, whatever transformers hands to it
    how["softcap"] = None if sdpa else options.get("softcap")
    if "flash" in implementation:
        how |= dict(window=options.get("sliding_window"), causal=causal, padding=attention_mask)
    elif attention_mask is None:
        # SDPA takes the first keys where there are more keys than queries; eager attention has no mask but this one.
        how["causal"] = bool(causal) and implementation != "eager" and queries > 1
        key = key[:, :, :queries] if how["causal"] else key
    else:
        how["mask"] = getattr(attention_mask, "mask_mod", attention_mask)  # flex_attention's mask holds a function
    # Where weights sum to 1, sinks scale the output later (Granite).
    tolerance = 0.0 if weights is None else max(1e-5, 4 * torch.finfo(weights.dtype).eps)
    if not sdpa and (weights is None or bool(((weights.sum(-1) - 1).abs() >= tolerance).any())):
        how["sinks"] = options.get("s_aux") if sinks is None else sinks.squeeze(-1)
    if bias is not None:
        mask = how.get("mask", torch.zeros((), device=bias.device))
        how["mask"] = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
    how |= dict(q=query, k=key)
    return how if causal or _hides_the_future(how) else None


def _hides_the_future(how: dict[str, Any]) -> bool:
    """Whether no query sees a later key, and there are both."""
    if how["causal"]:
        return True
    scores = Scores(**how)
    queries, keys = how["q"].shape[2], how["k"].shape[2]
    if how.get("mask") is None or not 1 < queries <= keys:
        return False
    i, j = (torch.arange(n, device=how["q"].device) for n in (queries, keys))
    blocks = scores.rows(max(1, 2**22 // keys))
    later = (scores.block(a, b, 0, keys)[0] & (j > i[a:b, None] + keys - queries) for a, b in blocks)
    return not any(bool(seen.any()) for seen in later)


def _transformer(model: Any) -> nn.Module:
    """The outermost transformers model of ``model``, which may be wrapped (compiled, adapted, sharded)."""
    from transformers import PreTrainedModel

    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, PreTrainedModel):
            return module
    raise SettingsError(f"{type(model).__name__}: not a transformers model, so its attention cannot be measured")


def _layer_numbers(model: nn.Module) -> dict[nn.Module, int]:
    """The number of the layer that a module is in: its own ``layer_idx``, else the first number in its name."""
    numbers = {}
    for name, module in model.named_modules():
        own = getattr(module, "layer_idx", None)
        found = (
            [own] if isinstance(own, int) and own >= 0 else [int(part) for part in name.split(".") if part.isdigit()]
        )
        if found:
            numbers[module] = found[0]
    return numbers


# --- the batch --------------------------------------------------------------------------------------------------


def _tensor(name: str, value: Any) -> Any:
    """Numbers in lists, tuples and arrays as a tensor; a cache as a copy, since the model writes to it."""
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            x = torch.as_tensor(np.asarray(value))
        except (ValueError, TypeError):
            raise SettingsError(
                f"batch: {name} is no array of numbers; pad sequences to one length, with an attention_mask"
            ) from None
        return x.float() if x.dtype == torch.float64 else x
    if name not in ("past_key_values", "cache"):
        return value
    try:
        return copy.deepcopy(value)
    except RuntimeError:
        raise SettingsError(f"batch: {name} has gradients; compute it under torch.no_grad()") from None


def _inputs(model: Any, batch: Any) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass: all that the batch has, as tensors on the model's device."""
    network: Any = _transformer(model)
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    inputs = {name: _tensor(name, value) for name, value in given.items()}
    needed = {"input_ids", "inputs_embeds", "decoder_input_ids", "labels" if network.config.is_encoder_decoder else ""}
    if not inputs.keys() & needed:
        raise SettingsError(f"batch: keys {', '.join(map(str, given)) or '(none)'} lack input_ids")
    if inputs.get("input_ids") is not None or inputs.keys() == {"input_ids"}:
        ids = inputs["input_ids"] = _tokens("input_ids", inputs["input_ids"])
        if ids.dim() == 1:  # one sequence: so are the other entries of a tokenizer
            alike = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.shape == ids.shape}
            inputs |= {name: x[None] for name, x in alike.items()}
        _must_fit(inputs, inputs["input_ids"])
    elif inputs.get("inputs_embeds") is not None:
        _must_fit(inputs, _tokens("inputs_embeds", inputs["inputs_embeds"]))
    accepted = inspect.signature(network.forward).parameters
    unknown = () if any(p.kind is p.VAR_KEYWORD for p in accepted.values()) else inputs.keys() - accepted.keys()
    if unknown:
        raise SettingsError(f"batch: {min(unknown)} is not an argument of {type(network).__name__}")
    # Offloaded parameters are on the meta device.
    place = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    inputs = {name: x.to(place) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    return {"use_cache": False, **inputs} if "use_cache" in accepted else inputs


def _tokens(name: str, x: Any) -> Tensor:
    """``input_ids`` (B, T) or (T), as int64, or ``inputs_embeds`` (B, T, D), of at least one token."""
    ids = name == "input_ids"
    wanted = "token ids (B, T) or (T)" if ids else "embeddings (B, T, D)"
    if not isinstance(x, Tensor) or x.is_nested or x.is_sparse or x.is_meta:
        kind = "nested, sparse or on the meta device" if isinstance(x, Tensor) else type(x).__name__
        raise SettingsError(f"batch: {name} is {kind}; it must be {wanted}")
    if x.numel() == 0:
        raise SettingsError(f"batch: {name} of shape {tuple(x.shape)} holds no tokens")
    numbers = x.is_floating_point() or x.is_complex() or x.dtype == torch.bool
    if x.dim() not in ((1, 2) if ids else (3,)) or numbers == ids:
        raise SettingsError(f"batch: {name} is {x.dtype} of shape {tuple(x.shape)}; it must be {wanted}")
    return x.long() if ids else x


def _must_fit(inputs: dict[str, Any], tokens: Tensor) -> None:
    """A mask and positions have the shape of ``tokens``, (B, T) or (B, T, D); a cache makes the mask longer."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    (count, length), cached = tokens.shape[:2], inputs.get("past_key_values", inputs.get("cache")) is not None
    if isinstance(mask, Tensor) and mask.dim() != 4:
        longer = mask.shape[-1] - length
        if mask.dim() != 2 or len(mask) != count or longer < 0 or (longer and not cached):
            raise SettingsError(f"batch: attention_mask of shape {tuple(mask.shape)} does not cover {count} x {length}")
        if not mask.any():
            raise SettingsError("batch: attention_mask leaves no token")
    if isinstance(positions, Tensor) and positions.shape[-1:] != (length,):
        raise SettingsError(f"batch: position_ids of shape {tuple(positions.shape)} is not for {length} tokens")


def _run(model: Any, inputs: dict[str, Any]) -> None:
    try:
        model(**inputs)
    except IndexError as error:  # of a table of embeddings
        network: Any = _transformer(model)
        size = getattr(network.get_input_embeddings(), "num_embeddings", 0)
        most = getattr(network.config.get_text_config(), "max_position_embeddings", 0)
        for name, limit in dict(input_ids=size, decoder_input_ids=size, token_type_ids=size, position_ids=most).items():
            x = inputs.get(name)
            if limit and isinstance(x, Tensor) and not 0 <= int(x.min()) <= int(x.max()) < limit:
                found = f"{int(x.min())} to {int(x.max())}"
                raise SettingsError(f"batch: {name} {found} is not within the model's {limit}, from 0 on") from error
        ids = inputs.get("input_ids")
        if most and ids is not None and ids.shape[1] > most:
            raise SettingsError(f"batch: {ids.shape[1]} tokens, more than the model's {most} positions") from error
        raise


def _real_tokens(model: Any, inputs: dict[str, Any], rows: Tensor) -> Tensor:
    """Which of the ``rows`` (B, H, T) are those of tokens, not of padding: bool, broadcasts to them.

    A two-dimensional attention mask says so. Tokens that a model puts before the given ones (prompt tuning) are no
    padding; a cache's are no queries.
    """
    config: Any = _transformer(model).config
    mask = inputs.get("decoder_attention_mask" if config.is_encoder_decoder else "attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.ones(1, 1, 1, dtype=torch.bool, device=rows.device)
    return nn.functional.pad(mask.bool(), (rows.shape[2] - mask.shape[1], 0), value=True)[:, None].to(rows.device)


# --- what is measured -------------------------------------------------------------------------------------------


def _stacked(rows: list[Tensor]) -> Tensor:
    """Rows (H,) or (T,) of all layers, (L, H) or (L, T); a layer with fewer of them ends in NaN (counts: 0)."""
    return nn.utils.rnn.pad_sequence(rows, True, torch.nan if rows[0].is_floating_point() else 0)


@torch.no_grad()
def head_entropy(model: Any, batch: Any, *, method: str = "auto") -> Tensor:
    """Head entropies (L, H) of a causal language model on a batch, in nats, averaged over batch and positions.

    Args:
        model: ours or any transformers model behind its attention interface (GPT-2, GPT-NeoX, Llama and most others),
            also adapted, quantised, compiled or offloaded. It gets a row per layer of causal self-attention;
            ``layer`` of :func:`attention_statistics` holds their numbers. Attention that is not causal (an encoder's,
            an image encoder's) or that looks at another sequence has no row.
        batch: token ids (B, T) or (T), as tensor, array or lists, or a mapping that holds all that the model's forward
            pass takes. The keys that the mask allows are measured for each query; padding has no row. A cache in it is
            read and stays as it is.
        method: of :func:`~nfcore.entropy.attention_entropy`.

    Rows that are not finite are left out; a head with none left is NaN.

    Raises:
        SettingsError: a batch that does not fit, or a model without causal softmax self-attention.
    """
    choice("method", method, METHODS)
    heads: list[Tensor] = []

    def measure(layer: int, how: dict[str, Any], inputs: dict[str, Any]) -> None:
        rows = attention_entropy(**how, method=method)
        heads.append(rows.masked_fill(~_real_tokens(model, inputs, rows), torch.nan).nanmean((0, 2)).cpu())

    _measure(model, batch, measure)
    return _stacked(heads)


@torch.no_grad()
def attention_statistics(model: Any, batch: Any) -> dict[str, Tensor]:
    """Statistics of a model's attention on a batch; ``model`` and ``batch`` are those of :func:`head_entropy`.

    Per layer and head, each (L, H), means over the rows of attention that are measured:

    - ``entropy``: nats, as :func:`head_entropy`.
    - ``entropy_over_ln_i``: mean of H_i / ln n_i over the rows that may see n_i >= 2 keys (i, if the mask is causal),
      which weighs all positions alike.
    - ``log_sum_exp``: mean logarithm of the softmax's denominator.
    - ``sink_rate``: mean attention weight on the first token of the sequence, 0 where a window hides it. A head with
      more than 0.3 counts as an attention sink in Gu et al. 2024 (arXiv 2410.10781).
    - ``max_logit``: largest score, which is what QK-clip bounds (Kimi K2, arXiv 2507.20534).
    - ``largest_logit``: largest absolute score.
    - ``nonfinite_rows``: rows with a score that is not finite; they are left out of the means.
    - ``ceiling``: mean of ln n_i, the largest possible entropy.

    ``by_position`` (L, T): the entropy of each query position, averaged over batch and heads. ``layer`` (L,): the
    number of each layer in the model.
    """
    result: dict[str, list[Tensor]] = {}
    layers: list[int] = []

    def measure(layer: int, how: dict[str, Any], inputs: dict[str, Any]) -> None:
        rows = attention_rows(**how, lowest=True)
        assert rows.min_logit is not None
        real = _real_tokens(model, inputs, rows.entropy) & (rows.keys > 0)
        entropy, log_sum_exp, first, highest = (
            x.masked_fill(~real, torch.nan) for x in (rows.entropy, rows.log_sum_exp, rows.first_key, rows.keys.log())
        )
        top, low = rows.max_logit.masked_fill(~real, -torch.inf), rows.min_logit.masked_fill(~real, torch.inf)
        found = {
            "entropy": entropy.nanmean((0, 2)),
            "entropy_over_ln_i": (entropy / highest.masked_fill(rows.keys < 2, torch.nan)).nanmean((0, 2)),
            "nonfinite_rows": (entropy.isnan() & real).sum((0, 2)),
            "largest_logit": torch.maximum(top.abs(), low.abs()).masked_fill(~real, 0).amax((0, 2)),
            "max_logit": top.amax((0, 2)),
            "log_sum_exp": log_sum_exp.nanmean((0, 2)),
            "sink_rate": first.nanmean((0, 2)),
            "ceiling": highest.nanmean((0, 2)),
            "by_position": entropy.nanmean((0, 1)),
        }
        layers.append(layer)
        for name, values in found.items():
            result.setdefault(name, []).append(values.cpu())

    _measure(model, batch, measure)
    return {**{name: _stacked(values) for name, values in result.items()}, "layer": torch.tensor(layers)}
