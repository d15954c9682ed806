"""The decoder against Hugging Face's own GPT-2 and GPT-NeoX: logits, loss, gradients, generation, and the way back."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from nfcore import from_gpt2, from_gpt_neox, to_gpt2, to_gpt_neox
from nfcore.model import recompute_activations, recomputes_activations
from nfcore.settings import SettingsError
from tests.test_model import VOCAB, ours, reloaded, spread, tokens


class OracleRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times the gain of the LayerNorm it replaces."""

    def __init__(self, layer_norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.eps = layer_norm.weight, layer_norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


REPLACEMENTS: dict[str, Callable[[nn.LayerNorm], nn.Module]] = {
    "layernorm": lambda norm: norm,
    "rmsnorm": OracleRMSNorm,
    "none": lambda norm: nn.Identity(),
}


def hf_gpt2(width: int = 32, heads: int = 4, activation: str = "gelu_new", **more: Any) -> GPT2LMHeadModel:
    config = dict(
        n_layer=2, n_embd=width, n_head=heads, vocab_size=VOCAB, n_positions=32, activation_function=activation
    )
    plain = dict(bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    return spread(GPT2LMHeadModel(GPT2Config(**{**config, **plain, **more})).eval())


def hf_gpt_neox(
    width: int = 32, heads: int = 4, activation: str = "gelu", rotary: float = 0.25, **more: Any
) -> GPTNeoXForCausalLM:
    config = dict(num_hidden_layers=2, hidden_size=width, num_attention_heads=heads, intermediate_size=3 * width)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary}
    plain = dict(vocab_size=VOCAB, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, hidden_act=activation)
    return spread(GPTNeoXForCausalLM(GPTNeoXConfig(**{**config, **plain, "rope_parameters": rope, **more})).eval())


def replace_norms(hf: PreTrainedModel, norm: str, final_norm: str) -> PreTrainedModel:
    """A copy of ``hf`` with the modules of its norms replaced."""
    changed = copy.deepcopy(hf)
    for name, module in [*changed.named_modules()]:
        if isinstance(module, nn.LayerNorm):
            last = name.endswith(("ln_f", "final_layer_norm"))
            changed.set_submodule(name, REPLACEMENTS[final_norm if last else norm](module))
    return changed


def assert_parity(
    hf: PreTrainedModel, convert: Callable[..., Any], batch: int = 2, norm: str = "layernorm", final: str = "layernorm"
) -> None:
    """Logits, loss and every gradient agree to 1e-5."""
    network = convert(hf, norm=norm, final_norm=final)
    reference = replace_norms(hf, norm, final)
    ids = tokens(batch)
    theirs, mine = reference(ids, labels=ids), network(ids, labels=ids)
    assert mine.logits.std() > 0.1
    torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-5, atol=1e-5)

    theirs.loss.backward()
    mine.loss.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    holder = copy.deepcopy(hf)  # their gradients in the place of weights: the conversion puts them into our layout
    for name, p in holder.named_parameters():
        p.data = gradients[name] if name in gradients else torch.zeros_like(p)
    expected = dict(convert(holder, norm=norm, final_norm=final).named_parameters())
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].data, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: hf_gpt2(32, 4, "gelu_new"), 1),
        (lambda: hf_gpt2(32, 1, "gelu"), 2),
        (lambda: hf_gpt2(48, 3, "relu"), 3),
        (lambda: hf_gpt2(n_inner=40, layer_norm_epsilon=1e-3, tie_word_embeddings=False), 2),
        (lambda: hf_gpt_neox(32, 2, "gelu_new", 0.25), 1),
        (lambda: hf_gpt_neox(32, 4, "gelu", 1.0), 2),
        (lambda: hf_gpt_neox(48, 3, "relu", 0.5), 3),
        (lambda: hf_gpt_neox(32, 2, "gelu", 0.45), 2),  # 7 of 16 dimensions, of which GPT-NeoX rotates one more
        (lambda: hf_gpt_neox(intermediate_size=24, layer_norm_eps=1e-3, tie_word_embeddings=True), 2),
    ],
)
def test_parity(make, batch):
    hf = make()
    assert_parity(hf, from_gpt2 if hf.config.model_type == "gpt2" else from_gpt_neox, batch)


@pytest.mark.parametrize(
    ("norm", "final"), [("none", "layernorm"), ("none", "none"), ("layernorm", "none"), ("rmsnorm", "rmsnorm")]
)
def test_parity_with_replaced_norms(norm, final):
    assert_parity(spread(hf_gpt2(), 0.1), from_gpt2, norm=norm, final=final)
    assert_parity(spread(hf_gpt_neox(), 0.1), from_gpt_neox, norm=norm, final=final)


def test_conversion_takes_other_changes():
    hf = hf_gpt2()
    changed = from_gpt2(hf, activation="learnable_leaky_relu", negative_slope=0.0)
    ids = tokens()
    relu = from_gpt2(hf, activation="relu")
    torch.testing.assert_close(changed(ids).logits, relu(ids).logits)
    assert [s.item() for s in changed.learned("slope")] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activaton": "relu"}, "model: unknown setting 'activaton'; allowed: family"),
        ({"biases": "none"}, "do not fit"),
        ({"biases": "paper"}, "do not fit"),
        ({"hidden_size": 64}, "do not fit"),
    ],
)
def test_conversion_refuses_changes_that_do_not_fit(changes, said):
    with pytest.raises(SettingsError, match=said):
        from_gpt2(hf_gpt2(), **changes)


# --- what is carried over besides weights -----------------------------------------------------------------------

PAIRS = [(hf_gpt2, from_gpt2, to_gpt2), (hf_gpt_neox, from_gpt_neox, to_gpt_neox)]
IDS = dict(bos_token_id=1, eos_token_id=[2, 3], pad_token_id=4)


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_special_ids_and_generation_settings_are_carried_over_both_ways(make, convert, back, tmp_path):
    hf = make()
    for name, value in IDS.items():
        setattr(hf.config, name, value)
        setattr(hf.generation_config, name, value)
    hf.generation_config.max_new_tokens = 7
    network = convert(hf)
    for m in (network, back(network), reloaded(network, tmp_path)):
        for name, value in IDS.items():
            assert getattr(m.config, name) == getattr(m.generation_config, name) == value
        assert m.generation_config.max_new_tokens == 7


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_dtypes_flags_and_frozen_weights_are_carried_over_both_ways(make, convert, back):
    """Whatever dtype and device new modules have just then."""
    hf, ids = make(use_cache=False, output_hidden_states=True).double(), tokens()
    hf.set_attn_implementation("eager")
    for p in hf.parameters():
        p.data += 1e-10 * torch.randn_like(p)  # lost in float32
    hf.get_input_embeddings().requires_grad_(False)
    expected = hf(ids).logits
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            made = convert(hf), back(convert(hf))
    finally:
        torch.set_default_dtype(torch.float32)
    weights = made[1].state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in hf.state_dict().items())
    for m in made:
        torch.testing.assert_close(m(ids).logits, expected, rtol=1e-5, atol=1e-5)
        config = m.config
        assert (config.use_cache, config.output_hidden_states, config._attn_implementation) == (False, True, "eager")
        frozen = [name for name, p in m.named_parameters() if not p.requires_grad]
        assert [m.get_parameter(name) is m.get_input_embeddings().weight for name in frozen] == [True]
    half = make().bfloat16()
    norms = [m for m in half.modules() if isinstance(m, nn.LayerNorm)]
    norms[-1].float()
    dtypes = {p.dtype for m in (convert(half), back(convert(half))) for p in m.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_maps_and_checkpointing_are_carried_over_and_no_random_number_is_drawn(make, convert, back):
    hf = make()
    hf.set_attn_implementation("eager")
    hf.config.output_attentions = True
    recompute_activations(hf)
    before = torch.get_rng_state()
    made = convert(hf), back(convert(hf))
    assert torch.equal(torch.get_rng_state(), before)
    for m in made:
        assert len(m(tokens()).attentions) == 2
        assert recomputes_activations(m)


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_embedding_dropout_and_the_mode_are_carried_over(make, convert, back):
    dropout = {"embd_pdrop" if make is hf_gpt2 else "hidden_dropout": 0.25}
    network = convert(make(**dropout).train())
    assert (network.dropout.p, network.training) == (0.25, True)
    if make is hf_gpt2:
        assert back(network).config.embd_pdrop == 0.25
    else:
        with pytest.raises(SettingsError, match=r"embd_pdrop 0\.25 is not 0"):
            back(network)


def test_a_head_untied_after_construction_stays_untied_and_a_compiled_model_is_the_model():
    hf = hf_gpt2()
    hf.lm_head.weight = nn.Parameter(hf.transformer.wte.weight.detach() + 1.0)
    ids = tokens()
    for network in (from_gpt2(hf), from_gpt2(torch.compile(hf, backend="eager"))):
        torch.testing.assert_close(network(ids).logits, hf(ids).logits, rtol=1e-5, atol=1e-5)
        assert not network.config.tie_word_embeddings
    with pytest.raises(SettingsError, match=r"do not fit: lm_head\.weight"):
        from_gpt2(hf, tie_word_embeddings=True)


class Subclass(nn.Parameter):
    """What torchao and FSDP put in the place of parameters."""


def headed(network: Any, make: Callable[[nn.Module], nn.Module]) -> Any:
    network.lm_head = make(network.lm_head)
    return network


def subclassed(head: Any) -> nn.Module:
    head.weight = Subclass(head.weight.detach())
    return head


def biased(head: Any) -> nn.Module:
    return nn.Linear(32, VOCAB)


def wider(head: Any) -> nn.Module:
    return nn.Linear(32, VOCAB + 31, bias=False)


LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("convert", "make", "said"),
    [
        (from_gpt2, hf_gpt_neox, r"a GPTNeoXForCausalLM \(gpt_neox model\) is not a GPT2LMHeadModel"),
        (from_gpt_neox, hf_gpt2, r"a GPT2LMHeadModel \(gpt2 model\) is not a GPTNeoXForCausalLM"),
        (from_gpt2, lambda: GPT2Model(hf_gpt2().config), "a GPT2Model .* is not a GPT2LMHeadModel"),
        (from_gpt2, lambda: nn.Linear(2, 2), "a Linear .no transformers model. is not"),
        (from_gpt2, lambda: hf_gpt2(activation="silu"), "'silu'"),
        (from_gpt2, lambda: hf_gpt2(scale_attn_by_inverse_layer_idx=True), "scaled"),
        (from_gpt2, lambda: hf_gpt2(scale_attn_weights=False), "scaled"),
        (from_gpt_neox, lambda: hf_gpt_neox(use_parallel_residual=False), "parallel residual"),
        (from_gpt_neox, lambda: hf_gpt_neox(attention_bias=False), "attention biases"),
        (from_gpt_neox, lambda: hf_gpt_neox(rope_parameters=LINEAR_ROPE), "plain rotary"),
        (from_gpt2, lambda: hf_gpt2(add_cross_attention=True), "do not fit: transformer.h.0.crossattention"),
        (from_gpt2, lambda: hf_gpt2().to("meta"), "meta device"),
        (from_gpt2, lambda: headed(hf_gpt2(), subclassed), "some weights are Subclass; convert before quantising"),
        (from_gpt2, lambda: headed(hf_gpt2(), biased), r"do not fit: lm_head\.bias$"),
        (from_gpt2, lambda: headed(hf_gpt2(), wider), r"do not fit: lm_head\.weight$"),
        (to_gpt2, lambda: headed(ours(biases="all"), biased), r"do not fit: lm_head\.bias$"),
        (to_gpt2, lambda: headed(ours(biases="all"), wider), r"do not fit: lm_head\.weight$"),
        (to_gpt2, lambda: headed(ours(biases="all"), nn.Sequential), r"do not fit: lm_head\.0\.weight"),
        (to_gpt2, hf_gpt2, "a GPT2LMHeadModel .* is not a NormFreeForCausalLM"),
        (to_gpt2, lambda: ours("pythia"), "family: 'pythia' is not one of gpt2"),
        (to_gpt2, lambda: ours(norm="none"), "norm: 'none' is not one of layernorm"),
        (to_gpt2, lambda: ours(residual_dtype="bfloat16"), "residual_dtype: 'bfloat16' is not one of float32"),
        (to_gpt_neox, lambda: ours("pythia", final_norm="rmsnorm"), "final_norm: 'rmsnorm' is not one of layernorm"),
        (
            to_gpt_neox,
            lambda: ours("pythia", activation="leaky_relu"),
            "activation: 'leaky_relu' is not one of relu, gelu_tanh, gelu",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(convert, make, said):
    with pytest.raises(SettingsError, match=said) as refused:
        convert(make())
    assert "\n" not in str(refused.value)


# --- the way back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("biases", "activation", "tied"), [("paper", "gelu", True), ("all", "gelu_tanh", False), ("none", "relu", None)]
)
@pytest.mark.parametrize(
    ("family", "back", "convert"), [("gpt2", to_gpt2, from_gpt2), ("pythia", to_gpt_neox, from_gpt_neox)]
)
def test_the_way_back_gives_the_same_logits(family, back, convert, biases, activation, tied, tmp_path):
    network = spread(ours(family, biases=biases, activation=activation, tie_word_embeddings=tied, rotary_fraction=0.5))
    ids, hf = tokens(), back(network)
    assert not hf.training
    torch.testing.assert_close(hf(ids).logits, network(ids).logits, rtol=1e-5, atol=1e-5)
    hf.save_pretrained(tmp_path)
    again = type(hf).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(convert(again)(ids).logits, network(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_there_and_back_gives_every_weight_to_the_bit(make, convert, back):
    hf = make().bfloat16()
    again = back(convert(hf))
    given, allowed = again.config.to_dict(), {"n_inner", "dtype", "architectures", "_name_or_path"}
    assert given == hf.config.to_dict() | {name: given[name] for name in allowed & given.keys()}
    for name, weight in hf.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


# --- generation as theirs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(use_cache=False),
        dict(num_beams=3),
        dict(cache_implementation="static"),
        dict(prompt_lookup_num_tokens=2),
    ],
    ids=["greedy", "no cache", "beams", "static cache", "assisted"],
)
@torch.no_grad()
def test_generation_is_theirs(make, convert, back, how):
    hf = spread(make(), 0.5)
    network, ids = convert(hf), tokens(1 if "prompt_lookup_num_tokens" in how else 2, 6)
    how |= dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    made = [m.generate(ids, do_sample=False, **how) for m in (hf, network)]
    assert len(made[0][:, 6:].unique()) > 2
    assert torch.equal(*made)


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
@torch.no_grad()
def test_generation_from_embeddings_and_padding_is_theirs(make, convert, back):
    hf = spread(make(), 0.4)
    network, ids = convert(hf), tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = hf.generate(ids, **plain)
    assert torch.equal(network.generate(ids, **plain), expected)
    embeds = network.get_input_embeddings()(ids)
    assert torch.equal(network.generate(inputs_embeds=embeds, **plain), expected[:, 6:])


@pytest.mark.parametrize(("make", "convert", "back"), PAIRS)
def test_hidden_states_maps_and_tuples_are_theirs(make, convert, back):
    hf, ids = make(), tokens()
    hf.set_attn_implementation("eager")
    network = convert(hf)
    network.set_attn_implementation("eager")
    wanted = dict(output_hidden_states=True, output_attentions=True, use_cache=False)
    theirs, mine = hf(ids, **wanted), network(ids, **wanted)
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-5)
    loss, logits = network(ids, labels=ids, return_dict=False, use_cache=False)
    torch.testing.assert_close(
        (loss, logits), hf(ids, labels=ids, return_dict=False, use_cache=False)[:2], rtol=1e-5, atol=1e-5
    )
