"""The decoder's choices one by one, and what transformers expects of a model."""

import copy
import math
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from nfcore import NormFreeConfig, NormFreeForCausalLM, head_entropy, model, settings
from nfcore.settings import SHAPES, SettingsError
from tests.conftest import ROOT


logging.disable_progress_bar()

VOCAB = 97
FAMILIES = ("gpt2", "pythia")


def ours(family: str = "gpt2", **changes: Any) -> NormFreeForCausalLM:
    """A model of two layers of width 32 in eval mode."""
    config = NormFreeConfig.from_shape(
        f"{family}-2x32", **{"vocab_size": VOCAB, "max_position_embeddings": 32, **changes}
    )
    return NormFreeForCausalLM(config).eval()


def spread(network: nn.Module, std: float = 0.2) -> Any:
    """Random values for every parameter, biases and gains included, so that each has a part in the result."""
    for name, p in network.named_parameters():
        gain = name.endswith("weight") and ("norm" in name or "ln_" in name)
        nn.init.normal_(p, 1.0 if gain else 0.0, std)
    return network


def tokens(batch: int = 2, length: int = 16) -> Tensor:
    return torch.randint(VOCAB, (batch, length))


def reloaded(network: PreTrainedModel, folder: Any) -> Any:
    network.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


# --- configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_named_shape_builds_and_has_the_size_its_name_says(shape):
    with torch.device("meta"):
        network = NormFreeForCausalLM(NormFreeConfig.from_shape(shape))
    million = sum(p.numel() for p in network.parameters()) / 1e6
    if shape.endswith("m"):
        assert million == pytest.approx(float(shape.split("-")[1][:-1]), rel=0.01)
    assert network.config.tie_word_embeddings == shape.startswith("gpt2")


def test_config_refuses():
    for changes, said in (
        ({"norm": "batchnorm"}, "model.norm: 'batchnorm'"),
        ({"ffn_output_gain": math.nan}, "model.ffn_output_gain: nan must be a finite number"),
        ({"shape": "gpt5"}, "shape: 'gpt5' is not one of gpt2-124m"),
        ({"attention_scales": [2.0]}, r"model.attention_scales: \[2.0\] must have a number for each of 2 layers"),
    ):
        with pytest.raises(SettingsError, match=said):
            NormFreeConfig.from_shape(**{"shape": "gpt2-2x32", **changes})


# --- biases, initialisation, heads ------------------------------------------------------------------------------


def biases_of(network: nn.Module) -> set[str]:
    """Names of the bias parameters of the first block, norms left out."""
    names = {name for name, _ in network.blocks[0].named_parameters() if name.endswith("bias")}  # type: ignore[index]
    return {name for name in names if "norm" not in name}


def test_which_biases_exist():
    """That those of the paper are of query and key is seen where test_convert.py gives the others zeros."""
    none, paper, every = (ours(biases=biases) for biases in ("none", "paper", "all"))
    assert biases_of(none) == set()
    assert biases_of(paper) == {"attention.qkv_bias"}
    assert biases_of(every) == {"attention.qkv_bias", "attention.out.bias", "ffn.up.bias", "ffn.down.bias"}
    assert [m.blocks[0].attention.qkv_bias.shape for m in (paper, every)] == [(2 * 32,), (3 * 32,)]


@pytest.mark.parametrize(
    ("init", "matrices", "writers"),
    [("paper", 0.02, 0.02), ("gpt2", 0.02, 0.02 / (2 * 3) ** 0.5), ("width", 0.02 * 12**0.5, 0.02 * 12**0.5)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_initial_standard_deviations(family, init, matrices, writers):
    network = ours(family, hidden_size=64, num_hidden_layers=3, init=init, biases="all", vocab_size=400)
    for name, p in network.named_parameters():
        if "bias" in name or "norm" in name:
            assert (p == float("bias" not in name)).all(), name
            continue
        embedding = name.startswith(("embed", "positions"))
        writer = name.endswith(("attention.out.weight", "ffn.down.weight"))
        expected = 0.02 if embedding else writers if writer else matrices
        assert p.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(p.mean().item()) < 0.1 * expected, name


@pytest.mark.parametrize("family", FAMILIES)
def test_one_seed_gives_all_configurations_the_same_weights(family):
    def weights(**changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return ours(family, **changes).state_dict()

    plain = weights()
    assert not torch.equal(plain["embed.weight"], ours(family).state_dict()["embed.weight"])
    for changes in (
        {"norm": "none"},
        {"norm": "rmsnorm", "final_norm": "none"},
        {"activation": "relu"},
        {"activation": "learnable_leaky_relu"},
        {"activation": "learnable_leaky_relu", "slope_sharing": "shared", "norm": "none"},
        {"embd_pdrop": 0.1},
        {"residual_dtype": "bfloat16"},
    ):
        other = weights(**changes)
        same = [name for name in plain if name in other and plain[name].shape == other[name].shape]
        assert {"embed.weight", "blocks.1.ffn.down.weight"} <= set(same)
        for name in same:
            assert torch.equal(plain[name], other[name]), (changes, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False, None])
def test_tied_and_untied_heads(family, tied, tmp_path):
    network = ours(family, tie_word_embeddings=tied)
    expected = family == "gpt2" if tied is None else tied
    for m in (network, reloaded(network, tmp_path)):
        assert (m.lm_head.weight is m.embed.weight) == expected
        assert (m.get_output_embeddings().weight is m.get_input_embeddings().weight) == expected


# --- activations ------------------------------------------------------------------------------------------------


def test_every_activation_that_settings_allow_exists_and_no_other():
    assert model.ACTIVATIONS.keys() == settings.ACTIVATION_LETTERS.keys()
    assert model.NORMS.keys() == settings.NORM_LETTERS.keys()


def erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


# Of x and the one number that an activation may have.
FORMULAS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gelu": lambda x, s: erf_gelu(x),
    "gelu_tanh": lambda x, s: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x, s: x.clamp_min(0),
    "identity": lambda x, s: x,
    "leaky_relu": leaky,
    "learnable_leaky_relu": leaky,
    "scaled_gelu": lambda x, s: erf_gelu(s * x) / s,
    "scaled_silu": lambda x, s: x * torch.sigmoid(s * x),
    "scaled_softplus": lambda x, s: ((1 + (s * x).exp()).log() - math.log(2)) / s,
    "learnable_scaled_gelu": lambda x, s: erf_gelu(s * x) / s,
    "learnable_input_gelu": lambda x, s: erf_gelu(s * x),
}


@pytest.mark.parametrize("name", settings.ACTIVATION_LETTERS)
def test_activations_and_the_gradients_of_their_parameters_against_formulas(name):
    x = torch.linspace(-6, 6, 1001).double()
    for s in (0.1, 1.0, 1.7):
        config = NormFreeConfig.from_shape("gpt2-2x32", activation=name, negative_slope=s, activation_scale=s)
        module, formula = model.ACTIVATIONS[name](config).double(), FORMULAS[name]
        torch.testing.assert_close(module(x), formula(x, s))
        for p in module.parameters():
            module(x).sum().backward()
            slope = (formula(x, s + 1e-6) - formula(x, s - 1e-6)).sum() / 2e-6
            assert p.grad.item() == pytest.approx(slope.item(), rel=1e-4)
    if name.startswith("scaled_"):  # from half the identity to ReLU
        for s, limit, tolerance in ((1e4, x.clamp_min(0), 1e-4), (1e-4, x / 2, 1e-2)):
            config.activation_scale = s
            torch.testing.assert_close(model.ACTIVATIONS[name](config)(x), limit, rtol=0, atol=tolerance)
    network, ids = ours(activation=name, norm="none"), tokens()
    network(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("s", [0.25, 7.3, 256.0])
def test_relu_at_any_s_is_the_same_model_outputs_and_gradients(s, monkeypatch):
    """ReLU(s x)/s = ReLU(x): to the bit where s is a power of two, else to float precision. GELU is another model."""
    monkeypatch.setitem(model.ACTIVATIONS, "scaled_relu", lambda c: model.Scaled(F.relu, c.activation_scale))
    ids, results = tokens(), {}
    for name in ("relu", "scaled_relu", "gelu", "scaled_gelu"):
        torch.manual_seed(0)
        network = ours(norm="none", init="width", activation=name, activation_scale=s)
        output = network(ids, labels=ids)
        output.loss.backward()
        results[name] = {"logits": output.logits.detach(), **{n: p.grad for n, p in network.named_parameters()}}
    tolerance = dict(rtol=0, atol=0) if math.log2(s).is_integer() else dict(rtol=1e-4, atol=1e-6)
    for name, expected in results["relu"].items():
        torch.testing.assert_close(results["scaled_relu"][name], expected, **tolerance)
    assert (results["scaled_gelu"]["logits"] - results["gelu"]["logits"]).abs().max() > 1e-4


def test_gains_multiply_the_initial_weights_they_name_and_no_others():
    def weights(**gains):
        torch.manual_seed(0)
        return dict(ours(norm="none", init="gpt2", biases="all", tie_word_embeddings=False, **gains).named_parameters())

    plain = weights()
    for field, part, count in (
        ("embedding_gain", ("embed.", "positions."), 2),
        ("ffn_gain", (".ffn.up.weight",), 2),
        ("ffn_output_gain", (".ffn.down.weight",), 2),
    ):
        changed = weights(**{field: 8.0})
        named = {name for name in plain if any(p in name for p in part)}
        assert len(named) == count
        for name, p in plain.items():
            assert torch.equal(changed[name], 8 * p if name in named else p), (field, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_of_a_layers_logits_is_one_of_its_queries(family):
    network, scaled, ids = spread(ours(family)), ours(family, attention_scales=[1.0, 3.0]), tokens()
    scaled.load_state_dict(network.state_dict())
    attention, width = network.blocks[1].attention, network.config.hidden_size
    with torch.no_grad():
        attention.qkv.weight[:width] *= 3
        attention.qkv_bias[:width] *= 3
    torch.testing.assert_close(scaled(ids).logits, network(ids).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head_entropy(scaled, ids), head_entropy(network, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_qk_norm_makes_attention_blind_to_the_length_of_queries_and_keys(family):
    network, ids = spread(ours(family, qk_norm=True)), tokens()
    before = network(ids).logits
    attention, width = network.blocks[0].attention, network.config.hidden_size
    with torch.no_grad():
        attention.qkv.weight[: 2 * width] *= 100
        attention.qkv_bias[: 2 * width] *= 100
    torch.testing.assert_close(network(ids).logits, before, rtol=1e-3, atol=1e-3)
    assert head_entropy(ours(family, qk_norm=True), ids).max() < head_entropy(ours(family), ids).min()
    made = network.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(made, greedy(network, ids, 4))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("learnable_scaled_gelu", "scale"), ("learnable_input_gelu", "scale"), ("learnable_leaky_relu", "slope")],
)
@pytest.mark.parametrize(("sharing", "count"), [("per_layer", 2), ("shared", 1)])
def test_slopes_and_scales_are_one_a_layer_or_one_in_all_learned_and_saved(name, kind, sharing, count, tmp_path):
    network = ours(activation=name, activation_scale=4, negative_slope=4, slope_sharing=sharing, norm="none")
    assert [s.item() for s in network.learned(kind)] == [4.0] * count
    assert not network.learned("slope" if kind == "scale" else "scale")
    names = [name for name, _ in network.named_parameters() if kind in name]
    assert names == [f"activations.{i}.{kind}" for i in range(count)]
    ids = tokens()
    network(ids, labels=ids).loss.backward()
    assert all(s.grad.abs() > 0 for s in network.learned(kind))
    for i, parameter in enumerate(network.learned(kind)):
        parameter.data.fill_(2.5 + i)
    again = reloaded(network, tmp_path)
    assert [s.item() for s in again.learned(kind)] == [2.5, 3.5][:count]
    torch.testing.assert_close(again(ids).logits, network.eval()(ids).logits)


# --- what transformers expects of a model -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_a_saved_model_has_the_same_config_and_logits_bit_by_bit(family, norm, tmp_path):
    changes = dict(activation="scaled_gelu", activation_scale=4, init="width", use_cache=False)
    network, ids = spread(ours(family, norm=norm, biases="all", **changes)), tokens()
    again = reloaded(network, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert type(again) is NormFreeForCausalLM
    assert again.config.to_dict() == network.config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert (again.config.use_cache, again.config.activation_scale) == (False, 4.0)
    assert torch.equal(again(ids).logits, network(ids).logits)


def greedy(network: PreTrainedModel, ids: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


def copied(network: NormFreeForCausalLM) -> None:
    network.blocks.append(copy.deepcopy(network.blocks[0]))


def twice(network: NormFreeForCausalLM) -> None:
    network.blocks.append(network.blocks[0])


def cut(network: NormFreeForCausalLM) -> None:
    del network.blocks[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [copied, twice, cut])
@torch.no_grad()
def test_every_block_has_its_own_place_in_the_cache(change, family):
    network, ids = spread(ours(family)), tokens(3, 5)
    change(network)
    if change is not cut:
        with pytest.raises(SettingsError, match=r"config\.num_hidden_layers: 2 is not what the model has, 3"):
            network(ids)
    network.config.num_hidden_layers = len(network.blocks)
    torch.testing.assert_close(network(ids).logits, network(ids, use_cache=False).logits, rtol=0, atol=0)
    plain = dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    expected = network.generate(ids, use_cache=False, **plain)
    assert len(expected[:, 5:].unique()) > 3
    assert torch.equal(network.generate(ids, **plain), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family):
    plain = ours(family, activation="learnable_leaky_relu", slope_sharing="shared").train()
    checkpointed = copy.deepcopy(plain)
    # transformers 5.23 renamed the method
    getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)()
    calls = []
    checkpointed.blocks[0].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = tokens()
    for network in (plain, checkpointed):
        network(ids, labels=ids).loss.backward()
    assert len(calls) == 2  # once more in the backward pass
    for p, q in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_compilation_has_no_graph_break():
    torch._dynamo.reset()
    network = spread(ours("pythia", norm="none", activation="learnable_leaky_relu"))
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    ids = tokens()
    for m in (network, compiled):
        m(ids, labels=ids).loss.backward()
    torch.testing.assert_close(compiled(ids).logits, network(ids).logits, rtol=1e-5, atol=1e-5)
    for p, q in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_implementations_agree_and_only_eager_has_maps(family):
    network, ids = spread(ours(family)), tokens()
    assert network.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        network(ids, output_attentions=True)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    fused, padded = network(ids).logits, network(ids, attention_mask=mask).logits
    network.set_attn_implementation("eager")
    torch.testing.assert_close(network(ids).logits, fused, rtol=1e-5, atol=1e-5)
    again, real = network(ids, attention_mask=mask).logits, mask.bool()
    torch.testing.assert_close(again[real], padded[real], rtol=1e-5, atol=1e-5)
    for m in network(ids, output_attentions=True).attentions:
        torch.testing.assert_close(m.sum(-1), torch.ones(2, 2, 16))
        assert not m.triu(1).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtype_of_the_residual_stream(dtype, autocast):
    default = {} if dtype == "float32" else {"residual_dtype": dtype}
    network, ids = ours(norm="none", **default), tokens()
    streams = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: streams.append(output[0].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = network(ids).logits
    assert streams == [getattr(torch, dtype)] * 2
    assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
    if not autocast:
        network.config.residual_dtype = "float32"
        torch.testing.assert_close(logits, network(ids).logits, rtol=0, atol=0.02)


def test_only_the_embedding_drops_out_and_only_in_training():
    network, ids, dropped = ours(embd_pdrop=0.5), tokens(), []
    assert [name for name, m in network.named_modules() if isinstance(m, nn.Dropout)] == ["dropout"]
    network.blocks[0].register_forward_pre_hook(lambda module, args: dropped.append((args[0] == 0).float().mean()))
    for training, rate, expected in ((False, 0.5, 0.0), (True, 0.5, 0.5), (True, 0.0, 0.0)):
        network.train(training).dropout.p = rate
        network(ids)
        assert abs(dropped[-1] - expected) < 0.1


def test_the_range_of_transformers_that_was_tried_is_declared_and_another_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, last = (v.split(".") for v in model.TRIED)
    declared = f"transformers>={'.'.join(first)},<{last[0]}.{int(last[1]) + 1}"
    assert declared in project["dependencies"]
    for version in ("5.16.1", "5.25.0.dev0", "6.0"):
        with pytest.warns(UserWarning, match=f"not with {version}"):
            model.warn_if_untried(version)
    for version in (*model.TRIED, transformers.__version__):
        model.warn_if_untried(version)  # a warning is an error here


def test_importing_the_package_loads_no_torch_and_training_no_logger_and_tells_the_auto_classes():
    loggers = {"datasets", "wandb", "tensorboard", "trackio", "papermill", "snakemake", "matplotlib", "IPython"}
    script = (
        "import sys, nfcore\n"
        "from nfcore import Experiment, SettingsError\n"
        "assert Experiment.from_dict({}).id == sys.argv[1], 'the id is of this process'\n"
        "assert not {'torch', 'transformers', 'numpy', 'pandas'} & {*sys.modules}, 'heavy import'\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "import nfcore.training\n"
        f"assert not {loggers} & {{*sys.modules}}, 'loggers'\n"
        "config = AutoConfig.for_model('normfree', hidden_size=32, num_attention_heads=2, vocab_size=9)\n"
        "assert type(AutoModelForCausalLM.from_config(config)) is nfcore.NormFreeForCausalLM\n"
        "try:\n"
        "    nfcore.nonsense\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, settings.Experiment.from_dict({}).id]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no attribute 'nonsense'" in done.stdout
