"""Hugging Face's GPT-2 and GPT-NeoX (Pythia) as this decoder, and this decoder as one of them, by tables of names; a
trained model as a folder that transformers, pipelines and lm_eval read.

Axes: D model width, H heads, K head width (D / H).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import SettingsError
from nfcore.tokens import END_OF_TEXT


# Their module and ours; {} is the layer. Each has a weight and most have a bias.
GPT2 = {
    "transformer.wte": "embed",
    "transformer.wpe": "positions",
    "transformer.h.{}.ln_1": "blocks.{}.attention_norm",
    "transformer.h.{}.attn.c_attn": "blocks.{}.attention.qkv",
    "transformer.h.{}.attn.c_proj": "blocks.{}.attention.out",
    "transformer.h.{}.ln_2": "blocks.{}.ffn_norm",
    "transformer.h.{}.mlp.c_fc": "blocks.{}.ffn.up",
    "transformer.h.{}.mlp.c_proj": "blocks.{}.ffn.down",
    "transformer.ln_f": "final_norm",
    "lm_head": "lm_head",
}
GPT_NEOX = {
    "gpt_neox.embed_in": "embed",
    "gpt_neox.layers.{}.input_layernorm": "blocks.{}.attention_norm",
    "gpt_neox.layers.{}.attention.query_key_value": "blocks.{}.attention.qkv",
    "gpt_neox.layers.{}.attention.dense": "blocks.{}.attention.out",
    "gpt_neox.layers.{}.post_attention_layernorm": "blocks.{}.ffn_norm",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h": "blocks.{}.ffn.up",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": "blocks.{}.ffn.down",
    "gpt_neox.final_layer_norm": "final_norm",
    "lm_head": "lm_head",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}  # ours: last
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def from_gpt2(
    hf_model: PreTrainedModel, *, norm: str | None = None, final_norm: str | None = None, **changes: Any
) -> NormFreeForCausalLM:
    """Take over a Hugging Face ``GPT2LMHeadModel``, with its special ids and its generation config.

    ``norm`` / ``final_norm``: None keeps the LayerNorms with their weights, ``rmsnorm`` keeps the gains, ``none``
    drops them. ``changes`` are other config fields, such as ``activation``. Dropout is kept on the embedding only.

    Raises:
        SettingsError: the model is another, or uses a feature that this decoder does not have.
    """
    hf_model = _of_class(hf_model, GPT2LMHeadModel, "from_gpt2")
    hf = hf_model.config
    if not hf.scale_attn_weights or hf.scale_attn_by_inverse_layer_idx:
        raise SettingsError("from_gpt2: attention scaled other than by 1/sqrt(head width) is not supported")
    config = dict(
        family="gpt2",
        intermediate_size=hf.n_inner,
        norm_eps=hf.layer_norm_epsilon,
        activation=hf.activation_function,
        embd_pdrop=hf.embd_pdrop,
    )
    return _take_over(hf_model, config, GPT2, _transposed, norm, final_norm, changes)


def from_gpt_neox(
    hf_model: PreTrainedModel, *, norm: str | None = None, final_norm: str | None = None, **changes: Any
) -> NormFreeForCausalLM:
    """Take over a Hugging Face ``GPTNeoXForCausalLM`` (Pythia); arguments and errors as :func:`from_gpt2`."""
    hf_model = _of_class(hf_model, GPTNeoXForCausalLM, "from_gpt_neox")
    hf = hf_model.config
    rope = hf.rope_parameters
    if not hf.use_parallel_residual or not hf.attention_bias or rope.get("rope_type", "default") != "default":
        raise SettingsError(
            "from_gpt_neox: only models with parallel residual, attention biases and plain rotary positions"
        )
    config = dict(
        family="pythia",
        intermediate_size=hf.intermediate_size,
        norm_eps=hf.layer_norm_eps,
        activation=hf.hidden_act,
        embd_pdrop=hf.hidden_dropout,
        rotary_fraction=rope.get("partial_rotary_factor", 1.0),
        rotary_base=float(rope["rope_theta"]),
    )
    heads = hf.num_attention_heads
    return _take_over(hf_model, config, GPT_NEOX, partial(_regrouped, outer=heads, inner=3), norm, final_norm, changes)


def to_gpt2(model: NormFreeForCausalLM) -> GPT2LMHeadModel:
    """The same model as a Hugging Face ``GPT2LMHeadModel``; biases that ours lacks are zero there.

    Raises:
        SettingsError: GPT-2 has no such family, norm, activation or residual stream.
    """
    config, given = model.config, _representable(model, "to_gpt2", "gpt2")
    hf = GPT2Config(
        n_inner=config.intermediate_size,
        n_positions=config.max_position_embeddings,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        layer_norm_epsilon=config.norm_eps,
        activation_function=given.pop("activation"),
        embd_pdrop=config.embd_pdrop,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        **given,
    )
    return _give(model, GPT2LMHeadModel(hf), GPT2, _transposed)


def to_gpt_neox(model: NormFreeForCausalLM) -> GPTNeoXForCausalLM:
    """The same model as a Hugging Face ``GPTNeoXForCausalLM`` (Pythia); as :func:`to_gpt2`."""
    config, given = model.config, _representable(model, "to_gpt_neox", "pythia")
    if config.embd_pdrop:
        raise SettingsError(f"to_gpt_neox: embd_pdrop {config.embd_pdrop} is not 0; GPT-NeoX drops in every layer")
    rope = {"rope_theta": config.rotary_base, "partial_rotary_factor": config.rotary_fraction, "rope_type": "default"}
    hf = GPTNeoXConfig(
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        layer_norm_eps=config.norm_eps,
        hidden_act=given.pop("activation"),
        rope_parameters=rope,
        **given,
    )
    return _give(
        model, GPTNeoXForCausalLM(hf), GPT_NEOX, partial(_regrouped, outer=3, inner=config.num_attention_heads)
    )


def save(model: NormFreeForCausalLM, tokenizer: Tokenizer, folder: Path, state_dict: dict[str, Any] | None) -> None:
    """Write model and tokenizer as a Hugging Face folder in which the end of text also begins and pads a text.

    ``state_dict``: the weights where ``model`` holds only a part of them (FSDP).
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    for name in IDS:
        setattr(model.config, name, end)
        setattr(model.generation_config, name, end)
    model.save_pretrained(folder, state_dict=state_dict)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",  # a decoder writes on from the last token
        clean_up_tokenization_spaces=False,
        **({} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)),
    ).save_pretrained(folder)


# --- what both directions share ---------------------------------------------------------------------------------

Change = Callable[[str, Tensor], Tensor]  # their name and the weight on one side: the weight on the other


def _names(table: dict[str, str], layers: int) -> Iterator[tuple[str, str]]:
    """Names of parameters, theirs and ours."""
    for theirs, ours in table.items():
        for layer in range(layers if "{}" in theirs else 1):
            for kind in ("weight", "bias"):
                name = f"{ours}.{kind}".replace("qkv.bias", "qkv_bias")
                yield f"{theirs}.{kind}".format(layer), name.format(layer)


def _transposed(name: str, weight: Tensor) -> Tensor:
    """GPT-2 stores the matrices of its blocks as (in, out)."""
    return weight.T if ".c_" in name and weight.dim() == 2 else weight


def _regrouped(name: str, weight: Tensor, outer: int, inner: int) -> Tensor:
    """GPT-NeoX stores the rows of its first attention matrix as (H, 3, K) and we as (3, H, K)."""
    if "query_key_value" not in name:
        return weight
    return weight.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


def _of_class(model: Any, wanted: Any, where: str) -> Any:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, wanted):
        kind = getattr(getattr(model, "config", None), "model_type", "no transformers")
        raise SettingsError(f"{where}: a {type(model).__name__} ({kind} model) is not a {wanted.__name__}")
    if any(p.is_meta for p in model.parameters()):
        raise SettingsError(f"{where}: some weights are on the meta device; load the model without offloading")
    return model


def _refuse(where: str, names: list[str]) -> None:
    if names:
        raise SettingsError(f"{where}: the given model's weights do not fit: {', '.join(sorted(names)[:4])}")


def _take_over(
    hf_model: PreTrainedModel,
    config: dict[str, Any],
    table: dict[str, str],
    change: Change,
    norm: str | None,
    final_norm: str | None,
    changes: dict[str, Any],
) -> NormFreeForCausalLM:
    hf, source, where = hf_model.config, hf_model.state_dict(), f"from_{hf_model.config.model_type}"
    if config["activation"] not in ACTIVATIONS:
        raise SettingsError(f"{where}: activation {config['activation']!r} is not one of {', '.join(ACTIVATIONS)}")
    config |= dict(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        num_hidden_layers=hf.num_hidden_layers,
        num_attention_heads=hf.num_attention_heads,
        max_position_embeddings=hf.max_position_embeddings,
        norm=norm or "layernorm",
        final_norm=final_norm or "layernorm",
        activation=ACTIVATIONS[config["activation"]],
        biases="all",
        tie_word_embeddings=_tied(hf_model),
        **{name: getattr(hf, name) for name in IDS},
    )
    model = NormFreeForCausalLM(NormFreeConfig(**{**config, **changes}))
    names = dict(_names(table, hf.num_hidden_layers))
    _refuse(where, [name for name in source if name not in names])
    state = {names[theirs]: change(theirs, weight) for theirs, weight in source.items()}
    sizes = {name: p.shape for name, p in model.state_dict().items()}
    fitting = {name: weight for name, weight in state.items() if sizes.get(name, weight.shape) == weight.shape}
    missing, unused = model.load_state_dict(fitting, strict=False)
    # Activations keep the slopes and scales they start with, and a norm that is gone or has no bias drops its own.
    wrong = [n for n in missing if not n.startswith("activations.")] + [n for n in unused if "norm." not in n]
    if _tied(model) and not torch.equal(state["embed.weight"], state["lm_head.weight"]):
        wrong.append("lm_head.weight")
    _refuse(where, wrong)
    return _finish(model, hf_model)


def _representable(model: Any, where: str, family: str) -> dict[str, Any]:
    """Settings that both of their configs have, after checking that they say all there is to say of ``model``."""
    config = _of_class(model, NormFreeForCausalLM, where).config
    activation = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation), config.activation)
    for name, value, allowed in (
        ("family", config.family, [family]),
        ("norm", config.norm, ["layernorm"]),
        ("final_norm", config.final_norm, ["layernorm"]),
        ("activation", config.activation, [*ACTIVATIONS.values()]),
        ("residual_dtype", config.residual_dtype, ["float32"]),
    ):
        if value not in allowed:
            raise SettingsError(f"{where}: {name} {value!r} is not {' or '.join(dict.fromkeys(allowed))}")
    common = {name: getattr(config, name) for name in (*IDS, "vocab_size", "use_cache")}
    return {**common, "activation": activation, "tie_word_embeddings": _tied(model)}


def _give(model: NormFreeForCausalLM, hf_model: Any, table: dict[str, str], change: Change) -> Any:
    model = getattr(model, "_orig_mod", model)
    ours, names = model.state_dict(), dict(_names(table, model.config.num_hidden_layers))
    _refuse(f"to_{hf_model.config.model_type}", [*(ours.keys() - names.values())])
    state = {}
    for theirs, empty in hf_model.state_dict().items():
        weight = ours.get(names[theirs], torch.zeros(0))  # a bias that ours lacks, whole or in part, is zero
        if weight.dim() == 1:
            weight = F.pad(weight, (0, empty.shape[-1] - len(weight)))
        state[theirs] = change(theirs, weight)
    hf_model.load_state_dict(state)
    return _finish(hf_model, model)


def _tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _finish(made: Any, like: PreTrainedModel) -> Any:
    """``made`` with the device, the dtype, the mode and the generation config of the model it was made from."""
    made.generation_config = copy.deepcopy(like.generation_config)
    return made.to(device=like.device, dtype=like.dtype).train(like.training)
