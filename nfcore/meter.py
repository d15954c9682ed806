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
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.utils import TransformersKwargs

from nfcore.entropy import METHODS, Scores, attention_entropy, attention_rows, must_cover
from nfcore.settings import SettingsError, choice
from nfcore.store import refusing


CACHES = ("past_key_values", "cache")  # a cache's name until transformers 5.23, and since
# What transformers' own decorators and attention take out of a forward pass's **kwargs, or a tokenizer adds in vain.
UNNAMED: tuple[str, ...] = ("past_key_values", "return_dict", "labels", "token_type_ids", "mm_token_type_ids")
UNNAMED += (*TransformersKwargs.__annotations__,)
_turn = threading.RLock()  # measurements take turns, since modules' training flags are set meanwhile
# A process is forked between measurements, or the child would have a model and an interface that are being measured.
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


def _measure(model: Any, batch: Any, measure: Callable[[int, dict[str, Any], Tensor], None]) -> None:
    """Run a transformers model on a batch and call ``measure(layer, how, real)`` at every causal self-attention.

    ``layer`` is the layer's own number in the model, ``how`` holds the queries, the keys and the other arguments of
    :func:`~nfcore.entropy.attention_rows`, ``real`` (B or 1, 1, T or 1) is true for the rows of tokens, not of padding.
    The model is in evaluation mode and runs uncompiled meanwhile. Afterwards all is as before.

    Raises:
        SettingsError: a batch that does not fit, or no layer of the model calls transformers' attention interface with
            causal self-attention.
    """
    network: Any = _transformer(model)
    inputs, numbers = _inputs(model, network, batch), _layer_numbers(model)
    padding = inputs.get("decoder_attention_mask" if network.config.is_encoder_decoder else "attention_mask")
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def heard(*call: Any, **options: Any) -> None:
        module, query, key = call[2:5]
        # Differential attention (DiffLlama) attends twice with the same weights: that is one row.
        again = any(m is module and q is query and k is key for m, q, k in calls[-1:])
        how = None if again else _how(*call, **options)
        if how is not None:
            calls.append((module, query, key))
            measure(numbers.get(module, len(calls) - 1), how, _real(padding, query))

    # Code that the compiler has made cannot be listened to.
    with _turn, _evaluating(model), torch.compiler.set_stance("force_eager"), _listening(heard):
        known = getattr(network.get_input_embeddings(), "num_embeddings", "?")
        most = getattr(network.config.get_text_config(), "max_position_embeddings", "?")
        with refusing(
            "batch: outside a table of embeddings", f"keep to {known} token ids, {most} positions", IndexError
        ):
            model(**inputs)
    if not calls:
        raise SettingsError(
            f"{type(network).__name__}: no layer calls transformers' attention interface with causal softmax "
            "self-attention, so nothing is measured"
        )


def _real(padding: Any, query: Tensor) -> Tensor:
    """Which rows of attention are those of tokens: all, or those that a two-dimensional attention mask shows.

    Tokens that a model puts before the given ones (prompt tuning) are no padding; a cache's are no queries.
    """
    if not isinstance(padding, Tensor) or padding.dim() != 2:
        return torch.ones(1, 1, 1, dtype=torch.bool, device=query.device)
    real = padding.to(query.device, torch.bool)
    return nn.functional.pad(real, (query.shape[2] - real.shape[1], 0), value=True)[:, None]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has its own mode, attributes and buffers again.

    Rotary positions that grow with the sequence (dynamic NTK) replace a buffer and note the length.
    """
    modules = [*model.modules()]
    before = [(vars(module).copy(), module._buffers.copy()) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, (attributes, buffers) in zip(modules, before, strict=True):
            vars(module).update(attributes)
            module._buffers.update(buffers)


@contextmanager
def _listening(heard: Callable[..., None]) -> Iterator[None]:
    """Call ``heard(implementation, weights, module, query, key, mask, **options)`` after each attention of this thread.

    ``weights`` is the map that eager attention returns, else None.
    """
    interface: Any = AttentionInterface
    thread, before = threading.get_ident(), interface.get_interface
    original = getattr(before, "original", before)  # one that began inside another one is heard by itself only

    def get_interface(self: Any, implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        attend = original(self, implementation, default)
        if threading.get_ident() != thread:
            return attend

        def heard_too(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            out, weights, *more = attend(module, query, key, value, *args, **kwargs)
            heard(implementation or "eager", weights, module, query, key, *args, **kwargs)
            return out, weights, *more

        return heard_too

    get_interface.original = original  # type: ignore[attr-defined]
    interface.get_interface = get_interface
    try:
        yield
    finally:
        interface.get_interface = before


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
    how: dict[str, Any] = dict(q=query, k=key, scale=None if scaling is None else float(scaling), causal=False)
    sdpa = implementation == "sdpa"  # which has no soft cap and no sinks, whatever transformers hands to it
    how["softcap"] = None if sdpa else options.get("softcap")
    if "flash" in implementation:
        places = options.get("position_ids")
        packed = attention_mask is None and places is not None and len(query) == 1 and bool((places.diff() != 1).any())
        if packed or options.get("cu_seq_lens_q") is not None or queries != key.shape[2]:
            what = "packed sequences and caches are not measured under FlashAttention"
            raise SettingsError(f'batch: {what}; after model.set_attn_implementation("sdpa") they are')
        how |= dict(window=options.get("sliding_window"), causal=bool(causal), padding=attention_mask)
    elif attention_mask is None:
        # SDPA takes the first keys where there are more keys than queries; eager attention has no mask but this one.
        how["causal"] = bool(causal) and implementation != "eager" and queries > 1
        how["k"] = key[:, :, :queries] if how["causal"] else key
    else:
        how["mask"] = getattr(attention_mask, "mask_mod", attention_mask)  # flex_attention's mask holds a function
    # Where weights sum to 1, sinks scale the output later (Granite).
    tolerance = 0.0 if weights is None else max(1e-5, 4 * torch.finfo(weights.dtype).eps)
    if not sdpa and (weights is None or bool(((weights.sum(-1) - 1).abs() >= tolerance).any())):
        how["sinks"] = options.get("s_aux") if sinks is None else sinks.squeeze(-1)
    mask = how.get("mask")
    if weights is not None and isinstance(mask, Tensor) and mask.dtype == torch.bool:
        hidden = ~mask & mask.any(-1, keepdim=True)
        if bool(weights.masked_fill(~hidden, 0).any()):
            how["mask"] = mask.to(query.dtype)  # eager attention has added it, as numbers
    if bias is not None:
        mask = how.get("mask", torch.zeros((), device=bias.device))
        how["mask"] = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
    return how if causal or _hides_the_future(how) else None


def _hides_the_future(how: dict[str, Any]) -> bool:
    """Whether a mask lets no query see a later key, and there are both."""
    queries, keys = how["q"].shape[2], how["k"].shape[2]
    if how.get("mask") is None or not 1 < queries <= keys:
        return False
    scores, next_key = Scores(**how), keys - queries + 1
    blocks = scores.rows(max(1, 2**22 // keys))
    return not any(bool(scores.block(a, b, a + next_key, keys)[0].triu().any()) for a, b in blocks)


def _transformer(model: Any) -> PreTrainedModel:
    """The outermost transformers model of ``model``, which may be wrapped (compiled, adapted, sharded)."""
    name, modules = type(model).__name__, model.modules() if isinstance(model, nn.Module) else ()
    found = [module for module in modules if isinstance(module, PreTrainedModel)]
    if not found:
        raise SettingsError(f"{name}: not a transformers model, so its attention cannot be measured")
    if not {*found} <= {*found[0].modules()}:
        raise SettingsError(f"{name}: holds several transformers models, whose layers would mix; give one of them")
    return found[0]


def _layer_numbers(model: nn.Module) -> dict[nn.Module, int]:
    """The number of the layer that a module is in: its own ``layer_idx``, else the first number in its name."""
    numbers = {}
    for name, module in model.named_modules():
        own = getattr(module, "layer_idx", None)
        found = [own] if isinstance(own, int) and own >= 0 else []
        found += [int(part) for part in name.split(".") if part.isdigit()]
        if found:
            numbers[module] = found[0]
    return numbers


# --- the batch --------------------------------------------------------------------------------------------------


def _tensor(name: str, value: Any) -> Any:
    """Numbers in lists, tuples and arrays as a tensor; a cache as a copy, since the model writes to it."""
    if name not in CACHES and isinstance(value, (list, tuple, np.ndarray)):
        first: Any = value
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        if isinstance(first, Tensor) and first.dim() == 1:
            what = f"{name} is a list of tensors, of rows or, by PyTorch's default collate, of columns"
            raise SettingsError(f'batch: {what}; stack the rows, or use dataset.with_format("torch")')
        try:
            array = np.asarray(value)
            x = torch.as_tensor(np.asarray(array, array.dtype.newbyteorder("="), order="C"))
        except (ValueError, TypeError):
            must = "pad sequences to one length, with an attention_mask"
            raise SettingsError(f"batch: {name} is no array of numbers; {must}") from None
        return x.float() if x.dtype == torch.float64 else x
    if name not in CACHES:
        return value
    if not isinstance(value, Cache):
        raise SettingsError(f"batch: {name} is {type(value).__name__}; it must be a transformers Cache")
    try:
        return copy.deepcopy(value)
    except RuntimeError:
        raise SettingsError(f"batch: {name} has gradients; compute it under torch.no_grad()") from None


def _inputs(model: nn.Module, network: PreTrainedModel, batch: Any) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass: all that the batch has, as tensors on the model's device."""
    given, taken = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}, _taken(model, network)
    for name in given:
        choice("batch", name, taken)
    inputs = {name: _tensor(name, value) for name, value in given.items() if value is not None}
    if not inputs.keys() & {"input_ids", "inputs_embeds", "decoder_input_ids", "labels"}:
        raise SettingsError(f"batch: keys {', '.join(map(str, inputs)) or '(none)'} lack input_ids")
    ids = inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.dim() == 1:  # one sequence: so are the other entries of a tokenizer
        inputs = {name: x[None] if isinstance(x, Tensor) and x.shape == ids.shape else x for name, x in inputs.items()}
    for name, axes in (("input_ids", 2), ("inputs_embeds", 3)):
        if name in inputs:
            inputs[name] = _tokens(name, inputs[name], axes)
            _must_fit(inputs, inputs[name], network.config.is_encoder_decoder)
    # Offloaded parameters are on the meta device until accelerate's hooks bring them.
    place = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    if any(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules()):
        raise SettingsError(f"{type(network).__name__}: has weights on the meta device, where there are no numbers")
    inputs = {name: x.to(place) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    names = {*inspect.signature(network.forward).parameters} & {*taken}  # a wrapper of its user may not take it
    return {"use_cache": False, **inputs} if "use_cache" in names else inputs


def _taken(model: nn.Module, network: PreTrainedModel) -> list[str]:
    """What the forward pass takes by name: its own arguments and, where it hands on others, those of models inside."""
    names: dict[str, None] = {}
    for module in (model, *network.modules()):
        if module is model or isinstance(module, PreTrainedModel):
            arguments = inspect.signature(module.forward).parameters.values()
            names |= {p.name: None for p in arguments if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if module in (model, network) and all(p.kind is not p.VAR_KEYWORD for p in arguments):
                return [*names]
    return [*(names | dict.fromkeys(UNNAMED))]


def _tokens(name: str, x: Any, axes: int) -> Tensor:
    """Token ids (B, T), as int64, or embeddings (B, T, D), of at least one token."""
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and not x.is_meta
    whole = dense and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if not dense or x.dim() != axes or not x.numel() or whole != (axes == 2):
        found = f"{x.dtype} of shape {tuple(x.shape)}" if dense else type(x).__name__
        wanted = "token ids (B, T) or (T)" if axes == 2 else "embeddings (B, T, D)"
        raise SettingsError(f"batch: {name} is {found}; it must be a dense tensor of {wanted}, of at least one token")
    return x.long() if whole else x


def _must_fit(inputs: dict[str, Any], tokens: Tensor, encodes: bool) -> None:
    """A mask and positions have the shape of ``tokens``, (B, T) or (B, T, D); a cache makes the mask longer, but not
    that of an encoder (``encodes``)."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    must_cover(mask, tokens, None if encodes else next((inputs[name] for name in CACHES if name in inputs), None))
    if isinstance(mask, Tensor) and not mask.any():
        raise SettingsError("attention_mask: leaves no token")
    if isinstance(positions, Tensor) and (positions.is_floating_point() or positions.shape[-1:] != tokens.shape[1:2]):
        found = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise SettingsError(f"position_ids: {found} is not a whole number for each of {tokens.shape[1]} tokens")


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
        batch: token ids (B, T) or (T), as tensor, array or lists of numbers, or a mapping that holds all that the
            model's forward pass takes, and nothing else. The keys that the mask allows are measured for each query;
            padding has no row. A cache in it is read and stays as it is.
        method: of :func:`~nfcore.entropy.attention_entropy`.

    Rows that are not finite are left out; a head with none left is NaN.

    Raises:
        SettingsError: a batch that does not fit, or a model without causal softmax self-attention.
    """
    choice("method", method, METHODS)
    heads: list[Tensor] = []

    def measure(layer: int, how: dict[str, Any], real: Tensor) -> None:
        rows = attention_entropy(**how, method=method)
        heads.append(rows.masked_fill(~real, torch.nan).nanmean((0, 2)).cpu())

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
    layers: list[dict[str, Tensor]] = []
    numbers: list[int] = []

    def measure(layer: int, how: dict[str, Any], real: Tensor) -> None:
        rows = attention_rows(**how, lowest=True)
        assert rows.min_logit is not None
        real = real & (rows.keys > 0)
        entropy, log_sum_exp, first, highest = (
            x.masked_fill(~real, torch.nan) for x in (rows.entropy, rows.log_sum_exp, rows.first_key, rows.keys.log())
        )
        top, low = rows.max_logit.masked_fill(~real, -torch.inf), rows.min_logit.masked_fill(~real, torch.inf)
        numbers.append(layer)
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
        layers.append({name: values.cpu() for name, values in found.items()})

    _measure(model, batch, measure)
    found = {name: _stacked([layer[name] for layer in layers]) for name in layers[0]}
    return found | {"layer": torch.tensor(numbers)}
