"""Attention entropy of whole models: what a model's own attention does, layer by layer, while it runs on a batch.

Nothing of a model is replaced. While it is measured, transformers' attention interface hands every call of the
measuring thread to the meter first, which reads queries, keys, scale, mask, window, soft cap and sinks from it.

Axes: B batch, T query positions, L layers, H heads.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nfcore.entropy import METHODS, Scores, attention_entropy, attention_rows
from nfcore.settings import SettingsError, choice


NO_IDS = (torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_listeners: list[Callable[..., None]] = []  # of the thread whose turn it is, the innermost last
_turn = threading.RLock()  # measurements take turns, since modules' training flags are set meanwhile

Measure = Callable[[int, dict[str, Any]], None]


@contextmanager
def recording(model: Any, measure: Measure) -> Iterator[None]:
    """Call ``measure(layer, how)`` at every causal self-attention of a transformers model, in order.

    ``layer`` is the layer's own number in the model; ``how`` holds the queries, the keys and the other arguments of
    :func:`~nfcore.entropy.attention_rows`. The model is in evaluation mode and runs uncompiled meanwhile. Afterwards
    all is as before.

    Raises:
        SettingsError: no layer of the model calls transformers' attention interface with causal self-attention.
    """
    name = type(_transformer(model)).__name__
    numbers = _layer_numbers(model)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def heard(
        implementation: str, weights: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        # Differential attention (DiffLlama) attends twice with the same weights: that is one row.
        again = any(m is module and q is query and k is key for m, q, k in calls[-1:])
        how = None if again else _how(implementation, weights, module, query, key, *args, **kwargs)
        if how is not None:
            calls.append((module, query, key))
            measure(numbers.get(module, len(calls) - 1), how)

    with _turn, _evaluating(model), _uncompiled(), _listening(heard):
        yield
    if not calls:
        raise SettingsError(
            f"{name}: no layer calls transformers' attention interface with causal softmax self-attention, so nothing "
            "is measured"
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
def _uncompiled() -> Iterator[None]:
    """Run compiled code as it was written: the meter cannot listen in the compiler's."""
    with torch.compiler.set_stance("force_eager"):
        yield


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
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> dict[str, Any] | None:
    """The arguments of :func:`~nfcore.entropy.attention_rows` for a call of an attention function of transformers; None
    if it is no causal self-attention."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    queries = query.shape[2]
    how: dict[str, Any] = dict(scale=None if scaling is None else float(scaling), causal=False, softcap=softcap)
    if "flash" in implementation:
        how |= dict(window=sliding_window, causal=causal, padding=attention_mask)
    elif attention_mask is None:
        # SDPA takes the first keys where there are more keys than queries; eager attention has no mask but this one.
        how["causal"] = bool(causal) and implementation != "eager" and queries > 1
        key = key[:, :, :queries] if how["causal"] else key
    else:
        how["mask"] = getattr(attention_mask, "mask_mod", attention_mask)  # flex_attention's mask holds a function
    # SDPA has no sinks, whatever it is given; and where weights sum to 1, sinks scale the output later (Granite).
    if implementation != "sdpa" and not (weights is not None and _sum_to_one(weights)):
        how["sinks"] = s_aux if sinks is None else sinks.squeeze(-1)
    if position_bias is not None:
        how["mask"] = _biased(position_bias, how.get("mask"))
    how |= dict(q=query, k=key)
    return how if causal or _hides_the_future(how) else None


def _sum_to_one(weights: Tensor) -> bool:
    return bool(((weights.sum(-1) - 1).abs() < max(1e-5, 4 * torch.finfo(weights.dtype).eps)).all())


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _hides_the_future(how: dict[str, Any]) -> bool:
    """Whether no query sees a later key, and there are both."""
    if how["causal"]:
        return True
    scores = Scores(**how)
    queries, keys = how["q"].shape[2], how["k"].shape[2]
    if how.get("mask") is None or not 1 < queries <= keys:
        return False
    i, j = (torch.arange(n, device=how["q"].device) for n in (queries, keys))
    for start, stop in scores.rows(max(1, 2**22 // keys)):
        if (scores.block(start, stop, 0, keys)[0] & (j > i[start:stop, None] + keys - queries)).any():
            return False
    return True


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
        found = [int(part) for part in name.split(".") if part.isdigit()]
        own = getattr(module, "layer_idx", None)
        if isinstance(own, int) or found:
            numbers[module] = own if isinstance(own, int) else found[0]
    return numbers


# --- the batch --------------------------------------------------------------------------------------------------


def _tensor(name: str, value: Any) -> Any:
    """Numbers in lists, tuples and arrays as a tensor, everything else as it is."""
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            return torch.as_tensor(np.asarray(value))
        except (ValueError, TypeError):
            raise SettingsError(
                f"batch: {name} is no array of numbers; pad sequences to one length, with an attention_mask"
            ) from None
    return value


def _inputs(model: Any, batch: Any) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass: all that the batch has, as tensors on the model's device."""
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    inputs = {name: _tensor(name, value) for name, value in given.items()}
    ids = inputs.get("input_ids")
    if not inputs.keys() & {"input_ids", "inputs_embeds", "decoder_input_ids"}:
        raise SettingsError(f"batch: keys {', '.join(map(str, given)) or '(none)'} lack input_ids")
    if ids is not None or inputs.keys() == {"input_ids"}:
        if isinstance(ids, Tensor) and ids.numel() == 0:
            raise SettingsError(f"batch: input_ids of shape {tuple(ids.shape)} holds no tokens")
        if not isinstance(ids, Tensor) or ids.dim() not in (1, 2) or ids.dtype in NO_IDS:
            kind = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise SettingsError(f"batch: input_ids is {kind}; it must be token ids (B, T) or (T)")
        inputs["input_ids"] = ids = ids.long()
        if ids.dim() == 1:  # one sequence: so are the other entries of a tokenizer
            inputs = {
                name: x[None] if isinstance(x, Tensor) and x.shape == ids.shape else x for name, x in inputs.items()
            }
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            ids = inputs["input_ids"]
            if len(mask) != len(ids) or mask.shape[1] < ids.shape[1]:
                raise SettingsError(
                    f"batch: attention_mask of shape {tuple(mask.shape)} does not cover input_ids {tuple(ids.shape)}"
                )
            if not mask.any():
                raise SettingsError("batch: attention_mask leaves no token")
    network = _transformer(model)
    accepted = inspect.signature(network.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for name in inputs:
            if name not in accepted:
                raise SettingsError(f"batch: {name} is not an argument of {type(network).__name__}")
    devices = [p.device for p in model.parameters() if p.device.type != "meta"]  # offloaded ones are there
    place = devices[0] if devices else torch.device("cpu")
    inputs = {name: x.to(place) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    return {"use_cache": False, **inputs} if "use_cache" in accepted else inputs


def _run(model: Any, inputs: dict[str, Any]) -> None:
    try:
        model(**inputs)
    except IndexError as error:  # of a table of embeddings
        network, ids = _transformer(model), inputs.get("input_ids")
        size = getattr(network.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
        positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)  # type: ignore
        if ids is not None and size and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise SettingsError(
                f"batch: token ids {int(ids.min())} to {int(ids.max())} are not within the vocabulary of {size}"
            ) from error
        if ids is not None and positions and ids.shape[1] > positions:
            raise SettingsError(f"batch: {ids.shape[1]} tokens, more than the model's {positions} positions") from error
        raise


def _real_tokens(model: Any, inputs: dict[str, Any], queries: int) -> Tensor | None:
    """(B, T): which queries are tokens and no padding, as a two-dimensional attention mask says; None: all."""
    config: Any = _transformer(model).config
    mask = inputs.get("decoder_attention_mask" if config.is_encoder_decoder else "attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.all()):
        return None
    # Tokens that a model puts before the given ones (prompt tuning) are no padding; a cache's are no queries.
    before = queries - mask.shape[1]
    return nn.functional.pad(mask.bool(), (before, 0), value=True)


# --- what is measured -------------------------------------------------------------------------------------------


def _stacked(rows: list[Tensor]) -> Tensor:
    """Rows (H,) or (T,) of all layers, (L, H) or (L, T); a layer with fewer of them ends in NaN (counts: 0)."""
    empty = torch.nan if rows[0].is_floating_point() else 0
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=empty)


@torch.no_grad()
def head_entropy(model: Any, batch: Any, *, method: str = "auto") -> Tensor:
    """Head entropies (L, H) of a causal language model on a batch, in nats, averaged over batch and positions.

    Args:
        model: ours or any transformers model behind its attention interface (GPT-2, GPT-NeoX, Llama and most others),
            also adapted, compiled or offloaded. It gets a row per layer of causal self-attention: ``layer`` of
            :func:`attention_statistics` holds their numbers. Attention that is not causal (an encoder's, an image
            encoder's) or that looks at another sequence has no row.
        batch: token ids (B, T) or (T), as tensor, array or lists, or a mapping that holds all that the model's forward
            pass takes. Of each query the keys that the mask allows are measured; padding has no row.
        method: of :func:`~nfcore.entropy.attention_entropy`.

    Rows that are not finite are left out; a head with none left is NaN.

    Raises:
        SettingsError: a batch that does not fit, or a model without causal softmax self-attention.
    """
    choice("method", method, METHODS)
    inputs, heads = _inputs(model, batch), []

    def measure(layer: int, how: dict[str, Any]) -> None:
        rows = attention_entropy(**how, method=method)
        heads.append(_without_padding(model, inputs, rows).nanmean((0, 2)).cpu())

    with recording(model, measure):
        _run(model, inputs)
    return _stacked(heads)


def _without_padding(model: Any, inputs: dict[str, Any], rows: Tensor) -> Tensor:
    """Rows (B, H, T) with NaN for the queries that are padding."""
    real = _real_tokens(model, inputs, rows.shape[2])
    return rows if real is None else rows.masked_fill(~real[:, None].to(rows.device), torch.nan)


@torch.no_grad()
def attention_statistics(model: Any, batch: Any) -> dict[str, Tensor]:
    """Statistics of a model's attention on a batch; ``model`` and ``batch`` are those of :func:`head_entropy`.

    Per layer and head, each (L, H), means over the rows of attention that are measured:

    - ``entropy``: nats, as :func:`head_entropy`.
    - ``entropy_over_ln_i``: mean over positions i >= 2 of H_i / ln n_i, n_i the keys that the row may see (i, if the
      mask is causal), which weighs all positions alike.
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
    inputs = _inputs(model, batch)
    result: dict[str, list[Tensor]] = {}
    layers: list[int] = []

    def measure(layer: int, how: dict[str, Any]) -> None:
        rows = attention_rows(**how, lowest=True)
        measured = rows.keys > 0
        if (real := _real_tokens(model, inputs, measured.shape[2])) is not None:
            measured = measured & real[:, None].to(measured.device)
        entropy, log_sum_exp, first = (
            x.masked_fill(~measured, torch.nan) for x in (rows.entropy, rows.log_sum_exp, rows.first_key)
        )
        highest = rows.keys.log()  # 0 where a row sees one key
        over = (entropy / highest.masked_fill(rows.keys < 2, torch.nan))[..., 1:]
        assert rows.min_logit is not None
        top, low = rows.max_logit.masked_fill(~measured, -torch.inf), rows.min_logit.masked_fill(~measured, torch.inf)
        found = {
            "entropy": entropy.nanmean((0, 2)),
            "entropy_over_ln_i": over.nanmean((0, 2)),
            "nonfinite_rows": (entropy.isnan() & measured).sum((0, 2)),
            "largest_logit": torch.maximum(top.abs(), low.abs()).masked_fill(~measured, 0).amax((0, 2)),
            "max_logit": top.amax((0, 2)),
            "log_sum_exp": log_sum_exp.nanmean((0, 2)),
            "sink_rate": first.nanmean((0, 2)),
            "ceiling": highest.masked_fill(~measured, torch.nan).nanmean((0, 2)),
            "by_position": entropy.nanmean((0, 1)),
        }
        layers.append(layer)
        for name, values in found.items():
            result.setdefault(name, []).append(values.cpu())

    with recording(model, measure):
        _run(model, inputs)
    return {**{name: _stacked(values) for name, values in result.items()}, "layer": torch.tensor(layers)}
