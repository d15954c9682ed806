"""The decoder: GPT-2 or Pythia shape, with or without normalisation, with the activation as a choice.

Axes: B batch, T positions, S keys (cache included), D model width, H heads, K head width (D / H), F feed-forward
width, V vocabulary, L layers.

To add an activation: write a module and give it a line in ``ACTIVATIONS``, a function from the config to the module,
and its letters in ``nfcore.settings.ACTIVATION_LETTERS``, which settings are checked against before torch is
loaded. A norm likewise in ``NORMS`` and ``NORM_LETTERS``. A parameter of an activation starts at the module's
``initial``; runs record it if it is called ``slope`` or ``scale``. A new field of the settings is marked ``LATER``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import id_tensor_storage

from nfcore.entropy import must_cover
from nfcore.settings import REGISTERED, SHAPES, ModelSettings, SettingsError, choice


TRIED = ("5.17", "5.24")  # the first and the last series of transformers that pass tests/test_model.py: `make versions`


def warn_if_untried(version: str) -> None:
    """Say so where nobody tried this version of transformers, which may hand arguments under other names."""
    first, last, this = (tuple(map(int, v.split(".")[:2])) for v in (*TRIED, version))
    if not first <= this <= last:
        warnings.warn(f"nfcore was tested with transformers {' to '.join(TRIED)}, not with {version}", stacklevel=3)


warn_if_untried(transformers.__version__)


class NormFreeConfig(PreTrainedConfig):
    """Hugging Face configuration with the fields of :class:`nfcore.settings.ModelSettings`, checked.

    Raises:
        SettingsError: an unknown field, or a value that is not allowed.
    """

    model_type = "normfree"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def __init__(self, **kwargs: Any) -> None:
        if "transformers_version" not in kwargs:  # what was saved has it, and may hold what other tools have added
            known = {*ModelSettings.model_fields, *dir(type(self)), "attn_implementation"}
            if unknown := kwargs.keys() - known:
                allowed = ", ".join(ModelSettings.model_fields)
                raise SettingsError(f"model: unknown setting {min(unknown)!r}; allowed: {allowed}")
        fields = ModelSettings.model_fields.keys() & kwargs.keys()
        settings = ModelSettings(**{name: kwargs.pop(name) for name in fields})
        use_cache = kwargs.pop("use_cache", True)  # PreTrainedConfig drops it
        super().__init__(**kwargs)
        vars(self).update(settings.to_dict(), use_cache=use_cache)

    @classmethod
    def from_shape(cls, shape: str, **changes: Any) -> NormFreeConfig:
        """A named size (:data:`nfcore.settings.SHAPES`) with ``changes``, fields of this class.

        Raises:
            SettingsError: an unknown shape or field, or a value that is not allowed.
        """
        choice("shape", shape, SHAPES)
        return cls(**{**SHAPES[shape], **changes})


# --- activations: config -> module ------------------------------------------------------------------------------


class LearnableLeakyReLU(nn.Module):
    """max(x, 0) + slope min(x, 0), the slope a parameter (a scalar)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.initial = slope
        self.slope = nn.Parameter(torch.tensor([slope]))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.slope.to(x.dtype))


class Scaled(nn.Module):
    """f(s x) / s: f at s = 1. GELU, SiLU and centred softplus become ReLU in the limit of large s and x / 2 in that of
    small s. ``learnable``: s is a parameter (a scalar). ``divide=False``: f(s x).

    A positively homogeneous f, such as ReLU, is the same at every s.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], scale: float, learnable: bool = False, divide: bool = True
    ) -> None:
        super().__init__()
        self.f, self.initial, self.divide = f, scale, divide
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
    "leaky_relu": lambda config: nn.LeakyReLU(config.negative_slope),
    "learnable_leaky_relu": lambda config: LearnableLeakyReLU(config.negative_slope),
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

REGISTERED.update(norm=NORMS, final_norm=NORMS, activation=ACTIVATIONS)  # so settings take what is added here


# --- the decoder ------------------------------------------------------------------------------------------------


def rotary_angles(config: NormFreeConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B or 1, 1, T, R), for the first R = rotary_fraction K dimensions of a head (RoFormer).

    An odd R is rounded up but keeps its place in the exponent, as in GPT-NeoX.
    """
    head_width = config.hidden_size // config.num_attention_heads
    width = min(int(config.rotary_fraction * head_width), head_width // 2 * 2)
    exponent = torch.arange(0, width, 2, device=position_ids.device, dtype=dtype) / max(width, 1)
    angles = position_ids[:, None, :, None].to(dtype) * config.rotary_base**-exponent  # (B, 1, T, R/2)
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
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        # Mixed precision: the mask has the dtype of the weights, whose lowest number may be infinite in the scores'.
        scores = scores + mask.clamp_min(torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = scores.softmax(dim=-1).to(v.dtype)  # half precisions are summed in float32
    return (weights @ v).transpose(1, 2), weights


class QKV(nn.Linear):
    """Queries, keys and values (B, T, 3 D) of x (B, T, D), with the bias of ``Attention`` in the same product.

    In half precision a sum that is added later is rounded twice. torch's old ``quantize_dynamic`` replaces only
    ``nn.Linear`` itself, and so not this class.
    """

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.bias is not None:  # one that its user has added
            bias = self.bias if bias is None else self.bias + bias
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    is_causal = True

    def __init__(self, config: NormFreeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        d = config.hidden_size
        self.head_width = d // config.num_attention_heads
        self.qkv = QKV(d, 3 * d, bias=False)
        # The paper gives query and key a bias and the value none: one vector for the first two thirds, or all three.
        self.biased_parts = {"paper": 2, "all": 3, "none": 0}[config.biases]
        self.qkv_bias = nn.Parameter(torch.zeros(self.biased_parts * d)) if self.biased_parts else None
        self.out = nn.Linear(d, d, bias=config.biases == "all")
        self.out.writes_residual = True  # type: ignore[assignment]
        self.scale = config.attention_scales[layer_idx] if config.attention_scales else 1.0
        self.scaling = self.head_width**-0.5 * self.scale
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(self.head_width, eps=config.norm_eps) for _ in "qk")

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None, place: int
    ) -> tuple[Tensor, Tensor | None]:
        bias = None if self.qkv_bias is None else F.pad(self.qkv_bias, (0, (3 - self.biased_parts) * x.shape[-1]))
        if isinstance(self.qkv, QKV):
            qkv = self.qkv(x, bias)  # (B, T, 3 D)
        else:  # whatever an adapter or a quantiser has put in its place
            qkv = self.qkv(x)
            qkv = qkv if bias is None else qkv + bias.to(qkv.dtype)
        q, k, v = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in qkv.chunk(3, -1))
        if self.config.qk_norm:
            q, k = self.q_norm(q.to(x.dtype)).to(v.dtype), self.k_norm(k.to(x.dtype)).to(v.dtype)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)  # (B, H, T, K)
        if cache is not None:
            k, v = cache.update(k, v, place)  # (B, H, S, K)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, causal_attention)
        y, weights = attend(self, q, k, v, mask, scaling=self.scaling, dropout=0.0)  # (B, T, H, K)
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
    """Pre-norm block on a residual stream x (B, T, D); its norms and products have the dtype ``compute``."""

    def __init__(self, config: NormFreeConfig, layer_idx: int) -> None:
        super().__init__()
        self.parallel = config.family == "pythia"
        self.number = layer_idx  # of its activation, also where other blocks are removed
        self.attention_norm = NORMS[config.norm](config)
        self.attention = Attention(config, layer_idx)
        self.ffn_norm = NORMS[config.norm](config)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, activation: nn.Module, compute: torch.dtype, *attention: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The stream after the block, and the map. ``attention``: what attention takes after x."""
        attended, weights = self.attention(self.attention_norm(x.to(compute)), *attention)
        after = x + attended.to(x.dtype)
        source = x if self.parallel else after
        return after + self.ffn(self.ffn_norm(source.to(compute)), activation).to(x.dtype), weights


class Head(nn.Linear):
    """Logits (B, T, V) of x (B, T, D), or with ``labels`` their loss, of which no more than a part is held at a time.

    ``multiple``: pad the weight (V, D) with zeros to a multiple of it, which GPUs are faster at; the logits beyond V
    are dropped.
    """

    multiple = 1

    def forward(self, x: Tensor, labels: Tensor | None = None, items: int | Tensor | None = None) -> Tensor:
        if labels is not None:
            loss = F.linear_cross_entropy(
                x[:, :-1].flatten(0, 1),
                self.weight,
                labels[:, 1:].flatten(),
                linear_bias=self.bias,
                reduction="mean" if items is None else "sum",
                options=nn.LinearCrossEntropyOptions(),
            )
            return loss if items is None else loss / items
        extra = -len(self.weight) % self.multiple
        if not extra:
            return super().forward(x)
        bias = None if self.bias is None else F.pad(self.bias, (0, extra))
        return F.linear(x, F.pad(self.weight, (0, 0, 0, extra)), bias)[..., :-extra]


# Fields of the config that may change after a model is built: they only drew its first weights, its forward pass reads
# them, or saving finds them out.
FREE = ["init", "embedding_gain", "ffn_gain", "ffn_output_gain", "residual_dtype", "rotary_fraction", "rotary_base"]
FREE += ["tie_word_embeddings"]


class NormFreeForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder with a language-model head.

    >>> model = NormFreeForCausalLM(NormFreeConfig.from_shape("gpt2-2x32", vocab_size=300, norm="none"))
    >>> model(torch.zeros(1, 8, dtype=torch.long)).logits.shape
    torch.Size([1, 8, 300])
    """

    config_class = NormFreeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "embed"
    _tied_weights_keys = {"lm_head.weight": "embed.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True  # Trainer hands num_items_in_batch to forward

    def __init__(self, config: NormFreeConfig) -> None:
        super().__init__(config)
        self.built = ModelSettings(**{name: getattr(config, name) for name in ModelSettings.model_fields})
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
        self._note_tied(bool(config.tie_word_embeddings))
        self.post_init()

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
        elif isinstance(module, Attention) and module.biased_parts:
            init.zeros_(cast(nn.Parameter, module.qkv_bias))
        elif hasattr(module, "initial"):  # an activation with a parameter
            for p in module.parameters():
                init.constant_(p, cast(float, module.initial))
        else:
            super()._init_weights(module)  # norms

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if type(new_embeddings) is nn.Linear and new_embeddings.bias is None:  # of resize_token_embeddings
            new_embeddings.__class__ = Head
            new_embeddings.multiple = getattr(self.lm_head, "multiple", 1)
        self.lm_head = cast(Head, new_embeddings)

    def learned(self, name: str) -> list[nn.Parameter]:
        """A parameter of the activations, ``slope`` or ``scale``: one a layer, one for all, or none."""
        return [p for key, p in self.activations.named_parameters() if key.endswith(f".{name}")]

    def _note_tied(self, tied: bool) -> None:
        self.config.tie_word_embeddings = tied
        self._keys_to_ignore_on_save = {"lm_head.weight"} if tied else set()  # Trainer resumes without a warning

    def check_config(self) -> None:
        """Refuse a config that was changed since the model was built, or does not follow a change of the model.

        Raises:
            SettingsError: names the field, its value and what the model has.
        """
        has = {name: value for name, value in self.built if name not in FREE} | {"num_hidden_layers": len(self.blocks)}
        if self.built.attention_scales:
            has["attention_scales"] = [module.scale for module in self.modules() if isinstance(module, Attention)]
        for name, table in (("vocab_size", self.embed), ("max_position_embeddings", self.positions)):
            has[name] = getattr(table, "num_embeddings", getattr(self.config, name))  # rotary positions have no table
        for name, value in has.items():
            if (said := getattr(self.config, name)) != value:
                raise SettingsError(f"config.{name}: {said!r} is not what the model has, {value!r}; build another one")
        places = [getattr(block, "number", i) for i, block in enumerate(self.blocks)]
        if places != [*range(len(places))] and [*self.activations[1:].parameters()]:
            raise SettingsError(f"blocks: numbered {places}, would be loaded with other blocks' activations; renumber")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As of any model; head and embedding are written as they are, tied or not, whatever the config said.

        Raises:
            SettingsError: as :meth:`check_config`.
        """
        self.check_config()
        self._note_tied(tied(self))
        super().save_pretrained(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Next-token logits (B, T, V), and with ``labels`` (B, T) the cross-entropy in nats per predicted token.

        ``labels`` are the inputs themselves; the shift by one is done here, -100 is ignored. The loss is the mean, or
        the sum over ``num_items_in_batch``. Arguments and outputs are those of Hugging Face's GPT-2, with two
        differences: positions are counted from the first token that ``attention_mask`` (B, T) shows, and a model in
        training keeps no cache unless ``use_cache`` asks for one. ``cache`` is transformers' new name for
        ``past_key_values``. To measure attention entropy use :func:`~nfcore.meter.head_entropy`, which needs no maps.

        A model in training with ``labels`` leaves the logits out where its attribute ``loss_alone`` is set, and does
        not even hold those of all tokens at a time where ``chunked_loss`` is.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds``; ``output_attentions`` without
                ``attn_implementation="eager"``; a cache together with gradient checkpointing; a mask of another shape.
        """
        config = cast(NormFreeConfig, self.config)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError('output_attentions=True needs attn_implementation="eager"')
        x = self._embedded(input_ids, inputs_embeds, labels)  # (B, T, D)
        cache = self._cache(past_key_values, cache, use_cache, attention_mask, x)
        compute = x.dtype
        if position_ids is None:
            position_ids = _positions(x, attention_mask, cache)
        mask = create_causal_mask(config, x, attention_mask, cache, position_ids)
        rotary = None
        if self.positions is not None:
            x = x + self.positions(position_ids)
        else:
            rotary = rotary_angles(config, position_ids, torch.promote_types(compute, torch.float32))
        residual = getattr(torch, config.residual_dtype)
        if residual == torch.float32:
            residual = torch.promote_types(residual, compute)  # a model in float64 stays in it
        x = self.dropout(x).to(residual)

        states, maps = [], []
        for i, block in enumerate(self.blocks):
            if output_hidden_states:
                states.append(x)
            activation = self.activations[getattr(block, "number", i) % len(self.activations)]
            x, weights = block(x, activation, compute, mask, rotary, cache, i)
            maps.append(weights)
        x = self.final_norm(x.to(compute))
        loss, logits = self._head(x, labels, logits_to_keep, num_items_in_batch)
        # By position: transformers 5.24 renamed past_key_values to cache.
        hidden = (*states, x) if output_hidden_states else None
        output = CausalLMOutputWithPast(loss, logits, cache, hidden, tuple(maps) if output_attentions else None)
        as_dict = config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # whose signature transformers looks at
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        for name in ("tokenizer", "assistant_tokenizer"):  # of stop strings; `generate` hands it on to `forward`
            kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, labels: Tensor | None) -> Tensor:
        """The stream (B, T, D) that goes into the model."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward: give either input_ids or inputs_embeds")
        for name, given in (("input_ids", input_ids), ("labels", labels)):
            if given is not None and not (isinstance(given, Tensor) and given.dim() == 2):
                found = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise SettingsError(f"{name}: {found} must be a tensor of shape (B, T)")
        return self.embed(input_ids) if inputs_embeds is None else inputs_embeds

    def _cache(
        self, old: Cache | None, new: Cache | None, use_cache: bool | None, mask: Tensor | None, x: Tensor
    ) -> Cache | None:
        """The cache that keys and values go to: the one that was given under its old or its new name, a new one, or
        none. ``mask`` must cover it and x."""
        if old is not None and new is not None:
            raise ValueError("forward: give either past_key_values or cache, which are the same")
        given = old if new is None else new
        if isinstance(given, (tuple, list)):
            raise ValueError("past_key_values: tuples are no longer a cache; give a transformers Cache")
        must_cover(mask, x, given)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and self.training and recomputes_activations(self) and torch.is_grad_enabled():
            raise ValueError("use_cache=True: gradient checkpointing recomputes and would fill the cache twice")
        cache = DynamicCache(config=self.config) if use_cache and given is None else given
        if cache is not None and len(self.blocks) > self.config.num_hidden_layers:
            self.check_config()  # which refuses it; a cache has the config's layers
        return cache

    def _head(
        self, x: Tensor, labels: Tensor | None, logits_to_keep: int | Tensor, num_items_in_batch: int | Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Loss and logits (B, T, V) of the normalised stream (B, T, D), as far as they are asked for."""
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x = x[:, keep]
        if labels is not None and labels.shape != x.shape[:2]:
            raise SettingsError(f"labels: shape {tuple(labels.shape)} is not that of the logits, {tuple(x.shape[:2])}")
        training = self.training and labels is not None
        if training and self.chunked_loss:
            if not isinstance(self.lm_head, Head):
                raise ValueError(f"chunked_loss: needs lm_head to be a Head, not {type(self.lm_head).__name__}")
            return self.lm_head(x, labels, num_items_in_batch), None
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            options = dict(vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch)
            # transformers' own function, which moves the labels on by one
            loss = self.loss_function(logits=logits, labels=labels, **options)
        return loss, None if training and self.loss_alone else logits


def _positions(x: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Positions (1, T) from the end of the cache, or (B, T) from the first token that a mask (B, S) shows."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return (attention_mask.bool().cumsum(-1) - 1).clamp_min(0)[:, -x.shape[1] :]
    past = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(x.shape[1], device=x.device) + past)[None]


def recompute_activations(model: PreTrainedModel) -> None:
    """Let a model compute activations again in the backward pass (gradient checkpointing), for memory."""
    # transformers 5.23 renamed it and warns of the old name
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()


def recomputes_activations(model: nn.Module) -> bool:
    """Whether :func:`recompute_activations`, or anyone else, has asked a model to do so."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def tied(model: PreTrainedModel) -> bool:
    """Whether the head's weight is the embedding's: one parameter, or two with the same memory."""
    head, table = (getattr(m, "weight", None) for m in (model.get_output_embeddings(), model.get_input_embeddings()))
    if not isinstance(head, nn.Parameter) or not isinstance(table, nn.Parameter):
        return False
    return head is table or (not head.is_meta and id_tensor_storage(head) == id_tensor_storage(table))


AutoConfig.register("normfree", NormFreeConfig)
AutoModelForCausalLM.register(NormFreeConfig, NormFreeForCausalLM)


@cache
def count_parameters(settings: ModelSettings) -> tuple[int, int]:
    """Parameters, and those of them that multiply: a table that is only looked up does not, a tied head does."""
    with torch.device("meta"):
        model = NormFreeForCausalLM(NormFreeConfig(**vars(settings)))
    tables = [model.positions, None if settings.tie_word_embeddings else model.embed]
    count = model.num_parameters()
    return count, count - sum(table.weight.numel() for table in tables if table is not None)
