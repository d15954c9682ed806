"""Conversion between this decoder and Hugging Face's GPT-2 and GPT-NeoX (Pythia), both ways, by tables of names.

:func:`save` writes a trained model as a folder that transformers, pipelines and lm_eval read.

Axes: D model width, H heads, K head width (D / H).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from nfcore.model import NormFreeConfig, NormFreeForCausalLM, recompute_activations, recomputes_activations, tied
from nfcore.settings import SettingsError, choice
from nfcore.tokens import END_OF_TEXT, TokenData


IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Theirs and ours.
HF_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")

ANSWERS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")

# Our name, then GPT-2's and GPT-NeoX's. {} is the layer; every module has a weight and most have a bias.
FIELDS = {name: (name, name) for name in (*SIZES, *IDS, *ANSWERS)} | {
    "intermediate_size": ("n_inner", "intermediate_size"),
    "norm_eps": ("layer_norm_epsilon", "layer_norm_eps"),
    "activation": ("activation_function", "hidden_act"),
    "embd_pdrop": ("embd_pdrop", "hidden_dropout"),
}
MODULES = {
    "embed": ("transformer.wte", "gpt_neox.embed_in"),
    "positions": ("transformer.wpe", ""),
    "blocks.{}.attention_norm": ("transformer.h.{}.ln_1", "gpt_neox.layers.{}.input_layernorm"),
    "blocks.{}.attention.qkv": ("transformer.h.{}.attn.c_attn", "gpt_neox.layers.{}.attention.query_key_value"),
    "blocks.{}.attention.out": ("transformer.h.{}.attn.c_proj", "gpt_neox.layers.{}.attention.dense"),
    "blocks.{}.ffn_norm": ("transformer.h.{}.ln_2", "gpt_neox.layers.{}.post_attention_layernorm"),
    "blocks.{}.ffn.up": ("transformer.h.{}.mlp.c_fc", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    "blocks.{}.ffn.down": ("transformer.h.{}.mlp.c_proj", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "final_norm": ("transformer.ln_f", "gpt_neox.final_layer_norm"),
    "lm_head": ("lm_head", "lm_head"),
}


class Family(NamedTuple):
    name: str  # ours
    theirs: Any  # class of the models
    column: int  # of FIELDS and MODULES

    @property
    def fields(self) -> dict[str, str]:
        """Names of the configs' fields, ours and theirs."""
        return {ours: theirs[self.column] for ours, theirs in FIELDS.items()}

    def weights(self, layers: int) -> dict[str, str]:
        """Names of the parameters, theirs and ours."""
        return {
            f"{theirs[self.column]}.{kind}".format(layer): f"{ours}.{kind}".format(layer).replace("qkv.b", "qkv_b")
            for ours, theirs in MODULES.items()
            for layer in range(layers if "{}" in ours else 1)
            for kind in ("weight", "bias")
        }


GPT2, GPT_NEOX = Family("gpt2", GPT2LMHeadModel, 0), Family("pythia", GPTNeoXForCausalLM, 1)


def from_gpt2(hf_model: PreTrainedModel, **changes: Any) -> NormFreeForCausalLM:
    """Convert a Hugging Face ``GPT2LMHeadModel``.

    Weights are copied with their dtypes and stay frozen where they were. The special ids, the generation config, the
    attention implementation and the mode are copied too. Only the embedding's dropout is kept. What neither weights nor
    config say, such as an activation module that was put in by hand, is not, as where a model is saved and loaded.

    ``changes`` are config fields, such as ``activation``. A ``norm`` or ``final_norm`` of ``rmsnorm`` keeps the gains
    of the LayerNorms, ``none`` drops them.

    Raises:
        SettingsError: the model is another, or uses a feature that this decoder does not have.
    """
    hf_model = _of_class(hf_model, GPT2LMHeadModel, "from_gpt2")
    hf = hf_model.config
    if not hf.scale_attn_weights or hf.scale_attn_by_inverse_layer_idx:
        raise SettingsError("from_gpt2: attention scaled other than by 1/sqrt(head width) is not supported")
    return _take_over(GPT2, hf_model, changes)


def from_gpt_neox(hf_model: PreTrainedModel, **changes: Any) -> NormFreeForCausalLM:
    """Convert a Hugging Face ``GPTNeoXForCausalLM`` (Pythia); arguments and errors as :func:`from_gpt2`."""
    hf_model = _of_class(hf_model, GPTNeoXForCausalLM, "from_gpt_neox")
    hf, rope = hf_model.config, hf_model.config.rope_parameters
    if not hf.use_parallel_residual or not hf.attention_bias or rope.get("rope_type", "default") != "default":
        raise SettingsError("from_gpt_neox: needs parallel residual, attention biases and plain rotary positions")
    rotary = dict(rotary_fraction=rope.get("partial_rotary_factor", 1.0), rotary_base=float(rope["rope_theta"]))
    return _take_over(GPT_NEOX, hf_model, rotary | changes)


def to_gpt2(model: NormFreeForCausalLM) -> GPT2LMHeadModel:
    """Convert to a Hugging Face ``GPT2LMHeadModel``; biases that ours lacks are zero there.

    Raises:
        SettingsError: GPT-2 has no such family, norm, activation or residual stream.
    """
    return _give(GPT2, _of_class(model, NormFreeForCausalLM, "to_gpt2"), attn_pdrop=0.0, resid_pdrop=0.0)


def to_gpt_neox(model: NormFreeForCausalLM) -> GPTNeoXForCausalLM:
    """Convert to a Hugging Face ``GPTNeoXForCausalLM`` (Pythia); as :func:`to_gpt2`."""
    model = _of_class(model, NormFreeForCausalLM, "to_gpt_neox")
    config = model.config
    if config.embd_pdrop:
        raise SettingsError(f"to_gpt_neox: embd_pdrop {config.embd_pdrop} is not 0; GPT-NeoX drops in every layer")
    rope = {"rope_theta": config.rotary_base, "partial_rotary_factor": config.rotary_fraction, "rope_type": "default"}
    return _give(GPT_NEOX, model, rope_parameters=rope)


def save(model: NormFreeForCausalLM, tokens: TokenData, folder: Path, state_dict: dict[str, Any] | None) -> None:
    """Write a Hugging Face folder with a model and the tokenizer of its tokens, whose special tokens keep their roles.

    Without one that ends a text, the end of text begins and ends it. What ends a text pads it too, unless another does.
    ``state_dict``: the weights where ``model`` holds only a part of them (FSDP).
    """
    tokenizer, roles = tokens.tokenizer, tokens.meta.get("special_tokens", {})
    if "eos_token" not in roles and tokenizer.token_to_id(END_OF_TEXT) is not None:
        roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, **roles}
    if "eos_token" in roles:
        roles = {"pad_token": roles["eos_token"], **roles}
    for name in IDS:
        token = roles.get(name.removesuffix("_id"))
        for config in (model.config, model.generation_config):
            setattr(config, name, None if token is None else tokenizer.token_to_id(token))
    model.save_pretrained(folder, state_dict=state_dict)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",  # a decoder writes on from the last token
        clean_up_tokenization_spaces=False,
        **roles,
    ).save_pretrained(folder)


# --- what both directions share ---------------------------------------------------------------------------------


def _turned(name: str, weight: Tensor, *groups: int) -> Tensor:
    """A copy of a weight in the other side's layout; ``name`` is theirs.

    GPT-2 stores the matrices of its blocks as (in, out). GPT-NeoX stores the rows of its first attention matrix as
    (H, 3, K) and we as (3, H, K); ``groups`` are the first two axes of the given weight.
    """
    if ".c_" in name and weight.dim() == 2:
        weight = weight.T
    elif "query_key_value" in name:
        weight = weight.unflatten(0, (*groups, -1)).transpose(0, 1).flatten(0, 2)
    return weight.clone(memory_format=torch.contiguous_format)


def _of_class(model: Any, wanted: Any, where: str) -> Any:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, wanted):
        kind = getattr(getattr(model, "config", None), "model_type", "no transformers")
        raise SettingsError(f"{where}: a {type(model).__name__} ({kind} model) is not a {wanted.__name__}")
    for p in model.parameters():
        if p.is_meta or type(p) is not nn.Parameter:
            kind = "offloaded (on the meta device)" if p.is_meta else type(p).__name__
            raise SettingsError(f"{where}: some weights are {kind}; convert before quantising, sharding or offloading")
    return model


def _refuse(where: str, names: list[str]) -> None:
    if names:
        raise SettingsError(f"{where}: the given model's weights do not fit: {', '.join(sorted(names)[:4])}")


def _new(kind: Any, config: Any, device: torch.device) -> Any:
    """A model of this class; the random numbers of its first weights, which are replaced, are not the caller's."""
    with torch.device(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        return kind(config)


def _take_over(family: Family, hf_model: PreTrainedModel, changes: dict[str, Any]) -> NormFreeForCausalLM:
    hf, source, where = hf_model.config, hf_model.state_dict(), f"from_{hf_model.config.model_type}"
    config = {ours: getattr(hf, theirs) for ours, theirs in family.fields.items()}
    choice(f"{where}: activation", config["activation"], HF_ACTIVATIONS)
    config["activation"] = HF_ACTIVATIONS[config["activation"]]
    config |= dict(family=family.name, biases="all", tie_word_embeddings=tied(hf_model))
    model = _new(NormFreeForCausalLM, NormFreeConfig(**config | changes), hf_model.device)
    names = family.weights(hf.num_hidden_layers)
    _refuse(where, [name for name in source if name not in names])
    state = {names[name]: _turned(name, weight, hf.num_attention_heads, 3) for name, weight in source.items()}
    missing, unused = _fill(model, hf_model, state, names)
    # Activations keep their initial slopes and scales. A norm that is removed, or has no bias, drops its weights.
    wrong = [n for n in missing if not n.startswith("activations.")] + [n for n in unused if "norm." not in n]
    if tied(model) and not torch.equal(state["embed.weight"], state["lm_head.weight"]):
        wrong.append("lm_head.weight")
    _refuse(where, wrong)
    return model


def _give(family: Family, model: NormFreeForCausalLM, **more: Any) -> Any:
    """Convert ``model`` to the family's own class, which must be able to represent it."""
    model.check_config()
    config, where = model.config, f"to_{family.theirs.config_class.model_type}"
    needed = dict(family=family.name, norm="layernorm", final_norm="layernorm")
    for name, value in (needed | dict(residual_dtype="float32", attention_scales=None)).items():
        choice(f"{where}: {name}", getattr(config, name), [value])
    activations = {ours: theirs for theirs, ours in reversed(HF_ACTIVATIONS.items())}  # the first of several names
    choice(f"{where}: activation", config.activation, activations)
    given = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    given[family.fields["activation"]] = activations[config.activation]
    theirs = family.theirs.config_class(**given, tie_word_embeddings=tied(model), **more)
    hf_model = _new(family.theirs, theirs, model.device)
    weights, names, state = model.state_dict(), family.weights(config.num_hidden_layers), {}
    lacking = [n for n in hf_model.state_dict() if n.endswith("weight") and names[n] not in weights]
    _refuse(where, [*(weights.keys() - {names[name] for name in hf_model.state_dict()}), *lacking])
    for name, empty in hf_model.state_dict().items():
        # A bias that ours lacks, whole or in part, is zero.
        weight = weights.get(names[name], empty[:0].to(model.dtype))
        if weight.dim() == 1:
            weight = F.pad(weight, (0, empty.shape[-1] - len(weight)))
        state[name] = _turned(name, weight, 3, config.num_attention_heads)
    missing, _ = _fill(hf_model, model, state, {ours: theirs for theirs, ours in names.items()})
    _refuse(where, [names[name] for name in missing])
    return hf_model


def _fill(made: Any, like: Any, state: dict[str, Tensor], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Load ``state`` into ``made`` and copy the mode, the dtypes and the settings of ``like``, the model it comes from.

    ``names`` maps the parameters of ``like`` to those of ``made``. Returns the names that ``state`` lacks
    or has in another size, and those that ``made`` does not have.
    """
    made.generation_config = copy.deepcopy(like.generation_config)
    made.set_attn_implementation(like.config._attn_implementation)
    made.to(like.dtype).train(like.training)
    if recomputes_activations(like):
        recompute_activations(made)
    sizes = {name: p.shape for name, p in made.state_dict().items()}
    fitting = {name: weight for name, weight in state.items() if sizes.get(name, weight.shape) == weight.shape}
    found = made.load_state_dict(fitting, strict=False, assign=True)  # not copied, which would round to one dtype
    made.tie_weights()
    frozen = {names[name] for name, p in like.named_parameters() if not p.requires_grad}
    for name, p in made.named_parameters():
        p.requires_grad_(name not in frozen)
    return found.missing_keys, found.unexpected_keys
