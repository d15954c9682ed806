"""The decoder: GPT-2 or Pythia shape, with or without normalisation, with the activation as a choice.

Axes: B batch, T positions, S keys (cache included), D model width, H heads, K head width (D / H), F feed-forward
width, V vocabulary, L layers.

To add an activation: write a module and give it a line in ``ACTIVATIONS``, a function from the config to the module. A
norm likewise in ``NORMS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nfcore.settings import SHAPES, ModelSettings, SettingsError, from_mapping


class NormFreeConfig(PreTrainedConfig):
    """Hugging Face configuration with the fields of :class:`nfcore.settings.ModelSettings`, checked.

    Raises:
        SettingsError: a field has a value that is not allowed.
    """

    model_type = "normfree"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        names = {f.name for f in fields(ModelSettings)}
        settings = from_mapping(ModelSettings, {name: kwargs.pop(name) for name in names & kwargs.keys()}, "model")
        super().__init__(**kwargs)
        for name, value in asdict(settings).items():
            setattr(self, name, value)

    @classmethod
    def from_shape(cls, shape: str, **changes: Any) -> NormFreeConfig:
        """A named size (:data:`nfcore.settings.SHAPES`) with ``changes``."""
        if shape not in SHAPES:
            raise SettingsError(f"shape: {shape!r} is not one of {', '.join(SHAPES)}")
        return cls(**{**SHAPES[shape], **changes})


# --- activations: config -> module ------------------------------------------------------------------------------


class LeakyReLU(nn.Module):
    """max(x, 0) + slope min(x, 0), the slope fixed or a parameter (a scalar)."""

    def __init__(self, slope: float, learnable: bool) -> None:
        super().__init__()
        self.initial_slope = slope
        self.slope = nn.Parameter(torch.tensor([slope])) if learnable else slope

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.slope, nn.Parameter):
            return F.prelu(x, self.slope.to(x.dtype))
        return F.leaky_relu(x, self.slope)


class Scaled(nn.Module):
    """f(s x) / s: f at s = 1. GELU, SiLU and centred softplus become ReLU in the limit of large s and x / 2 in that of
    small s. ``learnable``: s is a parameter (a scalar). ``divide=False``: f(s x).

    A positively homogeneous f, such as ReLU, is the same at every s.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], scale: float, learnable: bool = False, divide: bool = True
    ) -> None:
        super().__init__()
        self.f, self.initial_scale, self.divide = f, scale, divide
        self.scale = nn.Parameter(torch.tensor([scale])) if learnable else scale

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype) if isinstance(self.scale, nn.Parameter) else self.scale
        y = self.f(scale * x)
        return y / scale if self.divide else y


def centred_softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) - ln 2, which is 0 at 0 as the other activations are."""
    return F.softplus(x) - math.log(2)


ACTIVATIONS: dict[str, Callable[[NormFreeConfig], nn.Module]] = {
    "gelu": lambda config: nn.GELU(),
    "gelu_tanh": lambda config: nn.GELU(approximate="tanh"),
    "relu": lambda config: nn.ReLU(),
    "leaky_relu": lambda config: LeakyReLU(config.negative_slope, learnable=False),
    "learnable_leaky_relu": lambda config: LeakyReLU(config.negative_slope, learnable=True),
    "identity": lambda config: nn.Identity(),
    "scaled_gelu": lambda config: Scaled(F.gelu, config.activation_scale),
    "scaled_silu": lambda config: Scaled(F.silu, config.activation_scale),
    "scaled_softplus": lambda config: Scaled(centred_softplus, config.activation_scale),
    "learnable_scaled_gelu": lambda config: Scaled(F.gelu, config.activation_scale, learnable=True),
    "learnable_input_gelu": lambda config: Scaled(F.gelu, config.activation_scale, learnable=True, divide=False),
}

# --- normalisations: config -> module ---------------------------------------------------------------------------

NORMS: dict[str, Callable[[NormFreeConfig], nn.Module]] = {
    "layernorm": lambda config: nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
    "rmsnorm": lambda config: nn.RMSNorm(config.hidden_size, eps=config.norm_eps),
    "none": lambda config: nn.Identity(),
}


# --- the decoder ------------------------------------------------------------------------------------------------


def rotary_angles(config: NormFreeConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B or 1, 1, T, R), for the first R = rotary_fraction K dimensions of a head (RoFormer)."""
    width = int(config.rotary_fraction * (config.hidden_size // config.num_attention_heads)) // 2 * 2
    exponent = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32) / max(width, 1)
    angles = position_ids[:, None, :, None].float() * config.rotary_base**-exponent  # (B, 1, T, R/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R dimensions of x (B, H, T, K) in pairs (i, i + R/2)."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    return torch.cat(((turned * cos + swapped * sin).to(x.dtype), rest), dim=-1)


def causal_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention that also returns its map (B, H, T, S): the ``eager`` implementation. Output (B, T, H, K)."""
    scores = scaling * q @ k.transpose(-1, -2)
    if mask is not None:
        # Mixed precision: the mask has the dtype of the weights, whose lowest number may be infinite in the scores'.
        scores = scores + mask.clamp_min(torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = scores.softmax(dim=-1).to(v.dtype)  # half precisions are summed in float32
    return (weights @ v).transpose(1, 2), weights


class Attention(nn.Module):
    is_causal = True

    def __init__(self, config: NormFreeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        d = config.hidden_size
        self.head_width = d // config.num_attention_heads
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        # The paper gives query and key a bias and the value none: one vector for the first two thirds, or all three.
        self.biased = {"paper": 2, "all": 3, "none": 0}[config.biases]
        self.qkv_bias = nn.Parameter(torch.zeros(self.biased * d)) if self.biased else None
        self.out = nn.Linear(d, d, bias=config.biases == "all")
        self.out.writes_residual = True  # type: ignore[assignment]

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        bias = None if self.qkv_bias is None else F.pad(self.qkv_bias, (0, (3 - self.biased) * x.shape[-1]))
        qkv = F.linear(x, self.qkv.weight, bias)  # (B, T, 3 D)
        q, k, v = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in qkv.chunk(3, -1))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)  # (B, H, T, K)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # (B, H, S, K)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, causal_attention)
        y, weights = attend(self, q, k, v, mask, scaling=self.head_width**-0.5, dropout=0.0)  # (B, T, H, K)
        return self.out(y.flatten(-2)), weights


class FeedForward(nn.Module):
    def __init__(self, config: NormFreeConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.biases == "all")
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.biases == "all")
        self.up.init_gain, self.down.init_gain = config.ffn_gain, config.ffn_output_gain
        self.down.writes_residual = True  # type: ignore[assignment]

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        return self.down(activation(self.up(x)))  # (B, T, D) -> (B, T, F) -> (B, T, D)


class Block(GradientCheckpointingLayer):
    """Pre-norm block on a residual stream x (B, T, D) whose dtype is the config's, not the weights'."""

    def __init__(self, config: NormFreeConfig, layer_idx: int) -> None:
        super().__init__()
        self.parallel = config.family == "pythia"
        self.attention_norm = NORMS[config.norm](config)
        self.attention = Attention(config, layer_idx)
        self.ffn_norm = NORMS[config.norm](config)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        activation: nn.Module,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        compute = self.ffn.up.weight.dtype
        attended, weights = self.attention(self.attention_norm(x.to(compute)), mask, rotary, cache)
        after = x + attended.to(x.dtype)
        source = x if self.parallel else after
        return after + self.ffn(self.ffn_norm(source.to(compute)), activation).to(x.dtype), weights


class Head(nn.Linear):
    """Logits (B, T, V) of x (B, T, D) from a weight (V, D). ``multiple``: multiply as if V were its next multiple,
    which GPUs are faster at; the rows between are zeros made on the way, whose logits nobody sees."""

    multiple = 1

    def forward(self, x: Tensor) -> Tensor:
        vocabulary = len(self.weight)
        extra = -vocabulary % self.multiple
        return F.linear(x, F.pad(self.weight, (0, 0, 0, extra)))[..., :vocabulary] if extra else super().forward(x)


class NormFreePreTrainedModel(PreTrainedModel):
    config_class = NormFreeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config, std = self.config, 0.02
        if isinstance(module, nn.Linear):
            if config.init == "width":
                std *= (768 / config.hidden_size) ** 0.5
            elif config.init == "gpt2" and getattr(module, "writes_residual", False):
                std /= (2 * config.num_hidden_layers) ** 0.5
            std *= getattr(module, "init_gain", 1.0)
            init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, std * config.embedding_gain)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, Attention) and module.biased:
            init.zeros_(cast(nn.Parameter, module.qkv_bias))
        elif isinstance(module, LeakyReLU) and isinstance(module.slope, nn.Parameter):
            init.constant_(module.slope, module.initial_slope)
        elif isinstance(module, Scaled) and isinstance(module.scale, nn.Parameter):
            init.constant_(module.scale, module.initial_scale)


class NormFreeForCausalLM(NormFreePreTrainedModel, GenerationMixin):
    """A decoder with a language-model head.

    >>> model = NormFreeForCausalLM(NormFreeConfig.from_shape("gpt2-2x32", vocab_size=300, norm="none"))
    >>> model(torch.zeros(1, 8, dtype=torch.long)).logits.shape
    torch.Size([1, 8, 300])
    """

    _tied_weights_keys = {"lm_head.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self, config: NormFreeConfig) -> None:
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.family == "gpt2"
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(Block(config, i) for i in layers)
        # One activation a layer, or a single one that all layers use: then its slope is one parameter.
        shared = config.slope_sharing == "shared"
        self.activations = nn.ModuleList(
            ACTIVATIONS[config.activation](config) for _ in (layers[:1] if shared else layers)
        )
        self.final_norm = NORMS[config.final_norm](config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.loss_alone = self.chunked_loss = False  # see forward
        if config.tie_word_embeddings:
            self._keys_to_ignore_on_save = ["lm_head.weight"]  # so that its absence from a checkpoint is no surprise
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = cast(Head, new_embeddings)

    @property
    def slopes(self) -> list[nn.Parameter]:
        """The learnable negative slopes: one a layer, one in all, or none."""
        return self._scalars("slope")

    @property
    def scales(self) -> list[nn.Parameter]:
        """The learnable scales, one a layer, one in all, or none."""
        return self._scalars("scale")

    def _scalars(self, name: str) -> list[nn.Parameter]:
        values = (getattr(activation, name, None) for activation in self.activations)
        return [value for value in values if isinstance(value, nn.Parameter)]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T, V), and with ``labels`` (B, T) the mean cross-entropy in nats per predicted token.

        ``labels`` are the inputs themselves; the shift by one is done here, -100 is ignored. ``output_attentions``
        needs ``attn_implementation="eager"``. To measure attention entropy use :func:`nfcore.head_entropy`, which
        needs neither. A model in training with ``labels`` leaves the logits out where its attribute ``loss_alone`` is
        set, and does not even hold those of all tokens at a time where ``chunked_loss`` is.
        """
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError('output_attentions=True needs attn_implementation="eager"')
        if use_cache and self.training and self.is_gradient_checkpointing:
            raise ValueError("use_cache=True: gradient checkpointing recomputes and would fill the cache twice")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]  # (1, T)

        x = self.embed(input_ids)  # (B, T, D)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if self.positions is not None:
            x = x + self.positions(position_ids)
            rotary = None
        else:
            rotary = rotary_angles(cast(NormFreeConfig, self.config), position_ids)
        x = self.dropout(x).to(getattr(torch, self.config.residual_dtype))

        maps = []
        for i, block in enumerate(self.blocks):
            activation = self.activations[i % len(self.activations)]
            x, weights = block(x, activation, mask, rotary, past_key_values)
            maps.append(weights)

        x = self.final_norm(x.to(self.lm_head.weight.dtype))
        if self.chunked_loss and self.training and labels is not None:
            given, wanted = x[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            options = nn.LinearCrossEntropyOptions()
            chunked = F.linear_cross_entropy(given, self.lm_head.weight, wanted, options=options)
            return CausalLMOutputWithPast(loss=cast(torch.FloatTensor, chunked))
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, keep])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=None if self.loss_alone and self.training and labels is not None else logits,
            past_key_values=past_key_values,
            attentions=tuple(maps) if output_attentions else None,
        )


AutoConfig.register("normfree", NormFreeConfig)
AutoModelForCausalLM.register(NormFreeConfig, NormFreeForCausalLM)


# --- pretrained weights of others -------------------------------------------------------------------------------


def from_gpt2(
    hf_model: PreTrainedModel, *, norm: str | None = None, final_norm: str | None = None, **changes: Any
) -> NormFreeForCausalLM:
    """Take over a Hugging Face ``GPT2LMHeadModel``.

    ``norm`` / ``final_norm``: None keeps the LayerNorms with their weights, ``rmsnorm`` keeps the gains, ``none``
    drops them. ``changes`` are other config fields, such as ``activation``.

    Raises:
        SettingsError: the model uses a feature that this decoder does not have.
    """
    hf = hf_model.config
    if hf.model_type != "gpt2":
        raise SettingsError(f"from_gpt2: a {hf.model_type!r} model is not a GPT-2")
    if not hf.scale_attn_weights or hf.scale_attn_by_inverse_layer_idx:
        raise SettingsError("from_gpt2: attention scaled other than by 1/sqrt(head width) is not supported")
    config = _config_like(hf, "gpt2", hf.activation_function, hf.n_inner, hf.layer_norm_epsilon, norm, final_norm)
    source = hf_model.state_dict()
    state = {"embed.weight": source["transformer.wte.weight"], "positions.weight": source["transformer.wpe.weight"]}
    for i in range(hf.n_layer):
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        state[ours + "attention.qkv.weight"] = source[theirs + "attn.c_attn.weight"].T
        state[ours + "attention.qkv_bias"] = source[theirs + "attn.c_attn.bias"]
        for name, part in (("attention.out", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj")):
            state[f"{ours}{name}.weight"] = source[f"{theirs}{part}.weight"].T
            state[f"{ours}{name}.bias"] = source[f"{theirs}{part}.bias"]
        _copy_norm(state, ours + "attention_norm.", source, theirs + "ln_1.")
        _copy_norm(state, ours + "ffn_norm.", source, theirs + "ln_2.")
    _copy_norm(state, "final_norm.", source, "transformer.ln_f.")
    state["lm_head.weight"] = source["lm_head.weight"]
    return _build(config, state, changes, hf_model)


def from_gpt_neox(
    hf_model: PreTrainedModel, *, norm: str | None = None, final_norm: str | None = None, **changes: Any
) -> NormFreeForCausalLM:
    """Take over a Hugging Face ``GPTNeoXForCausalLM`` (Pythia); arguments and errors as :func:`from_gpt2`."""
    hf = hf_model.config
    if hf.model_type != "gpt_neox":
        raise SettingsError(f"from_gpt_neox: a {hf.model_type!r} model is not a GPT-NeoX")
    rope = hf.rope_parameters
    if not hf.use_parallel_residual or not hf.attention_bias or rope.get("rope_type", "default") != "default":
        raise SettingsError(
            "from_gpt_neox: only models with parallel residual, attention biases and plain rotary positions"
        )
    config = _config_like(hf, "pythia", hf.hidden_act, hf.intermediate_size, hf.layer_norm_eps, norm, final_norm)
    config |= dict(rotary_fraction=rope.get("partial_rotary_factor", 1.0), rotary_base=float(rope["rope_theta"]))
    source = hf_model.state_dict()
    state = {"embed.weight": source["gpt_neox.embed_in.weight"]}
    d, heads = hf.hidden_size, hf.num_attention_heads
    for i in range(hf.num_hidden_layers):
        theirs, ours = f"gpt_neox.layers.{i}.", f"blocks.{i}."
        # GPT-NeoX stores (head, q k v, head width), we store (q k v, head, head width)
        weight = source[theirs + "attention.query_key_value.weight"].view(heads, 3, d // heads, d)
        state[ours + "attention.qkv.weight"] = weight.transpose(0, 1).reshape(3 * d, d)
        bias = source[theirs + "attention.query_key_value.bias"].view(heads, 3, d // heads)
        state[ours + "attention.qkv_bias"] = bias.transpose(0, 1).reshape(3 * d)
        parts = (
            ("attention.out", "attention.dense"),
            ("ffn.up", "mlp.dense_h_to_4h"),
            ("ffn.down", "mlp.dense_4h_to_h"),
        )
        for name, part in parts:
            for kind in ("weight", "bias"):
                state[f"{ours}{name}.{kind}"] = source[f"{theirs}{part}.{kind}"]
        _copy_norm(state, ours + "attention_norm.", source, theirs + "input_layernorm.")
        _copy_norm(state, ours + "ffn_norm.", source, theirs + "post_attention_layernorm.")
    _copy_norm(state, "final_norm.", source, "gpt_neox.final_layer_norm.")
    state["lm_head.weight"] = source["lm_head.weight"]
    return _build(config, state, changes, hf_model)


def _config_like(
    hf: Any, family: str, activation: str, inner: int | None, eps: float, norm: str | None, final_norm: str | None
) -> dict[str, Any]:
    known = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
    if activation not in known:
        raise SettingsError(f"activation: {activation!r} of the given model is not one of {', '.join(known)}")
    return dict(
        family=family,
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        num_hidden_layers=hf.num_hidden_layers,
        num_attention_heads=hf.num_attention_heads,
        intermediate_size=inner,
        max_position_embeddings=hf.max_position_embeddings,
        norm=norm or "layernorm",
        final_norm=final_norm or "layernorm",
        norm_eps=eps,
        activation=known[activation],
        biases="all",
        tie_word_embeddings=hf.tie_word_embeddings,
    )


def _copy_norm(state: dict[str, Tensor], ours: str, source: dict[str, Tensor], theirs: str) -> None:
    for kind in ("weight", "bias"):
        state[ours + kind] = source[theirs + kind]


def _build(
    config: dict[str, Any], state: dict[str, Tensor], changes: dict[str, Any], hf_model: PreTrainedModel
) -> NormFreeForCausalLM:
    """A model of ``config`` with the weights of ``state``; only norm and bias weights it lacks may be left over."""
    model = NormFreeForCausalLM(NormFreeConfig(**{**config, **changes}))
    sizes = {name: p.shape for name, p in model.state_dict().items()}
    missing, unused = model.load_state_dict({n: w for n, w in state.items() if sizes.get(n, w.shape) == w.shape}, False)
    wrong = [k for k in missing if not k.startswith("activations.")] + [k for k in unused if "norm." not in k]
    if wrong:
        raise SettingsError(f"the given model's weights do not fit: {', '.join(wrong[:4])}")
    model.to(device=hf_model.device, dtype=hf_model.dtype)  # type: ignore[call-arg]
    return model.train(hf_model.training)
