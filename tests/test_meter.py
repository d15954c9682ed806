"""Whole models: what the meter reads from their attention, and that it leaves them as they were."""

import math
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from nfcore import (
    NormFreeConfig,
    NormFreeForCausalLM,
    attention_statistics,
    entropy_ceiling,
    head_entropy,
    meter,
)
from nfcore.settings import SettingsError


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance, equal_nan=True)


# --- whole models -----------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=97, bos_token_id=0, eos_token_id=0, pad_token_id=0)
SIZES = dict(num_hidden_layers=3, num_attention_heads=4, hidden_size=32, intermediate_size=40)
LLAMA = dict(num_key_value_heads=2, **SIZES, **SMALL)


def ours(family: str = "gpt2") -> NormFreeForCausalLM:
    sizes = dict(num_hidden_layers=3, num_attention_heads=4, vocab_size=97)
    return NormFreeForCausalLM(NormFreeConfig.from_shape(f"{family}-2x32", norm="none", embd_pdrop=0.1, **sizes))


def hf(name: str, kind: str = "ForCausalLM", **config: Any) -> Any:
    """A model of transformers in evaluation mode."""
    return getattr(transformers, name + kind)(getattr(transformers, f"{name}Config")(**config)).eval()


def gpt2(**more: Any) -> Any:
    return hf("GPT2", "LMHeadModel", n_layer=3, n_head=4, n_embd=32, n_positions=32, **{**SMALL, **more})


PLAIN: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt_neox": lambda: hf("GPTNeoX", max_position_embeddings=32, **SIZES, **SMALL),
    "llama": lambda: hf("Llama", **LLAMA),
    "mistral": lambda: hf("Mistral", sliding_window=None, **LLAMA),
    "our gpt2": ours,
    "our pythia": lambda: ours("pythia"),
}
MODELS = PLAIN | {
    "mistral with a window": lambda: hf("Mistral", sliding_window=6, **LLAMA),
    # Up to transformers 5.22 the default is SDPA, which drops the cap.
    "gemma 2": lambda: hf(
        "Gemma2", head_dim=8, attn_logit_softcapping=2.0, sliding_window=6, attn_implementation="eager", **LLAMA
    ),
    "gpt-oss": lambda: hf("GptOss", head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2, **LLAMA),
    "diffllama": lambda: hf("DiffLlama", **LLAMA),  # differential attention attends twice in a layer
    "lfm2": lambda: hf("Lfm2", layer_types=["conv", "full_attention"] * 2, **{**LLAMA, "num_hidden_layers": 4}),
}


def sharp(build: Callable[[], Any] | str) -> Any:
    """A model, or one of MODELS, whose weights are so large that attention is far from uniform; gains of norms stay."""
    model = (MODELS[build] if isinstance(build, str) else build)().eval()
    for name, p in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            nn.init.normal_(p, 0.0, 0.2)
    return model


def ids(batch: int = 2, length: int = 16) -> Tensor:
    return torch.randint(97, (batch, length))


@torch.no_grad()
def from_maps(model: Any, input_ids: Tensor | None = None, first: int = 0, **batch: Tensor) -> Tensor:
    """Head entropies from the maps that eager attention returns, those of a decoder if there are others too.

    Rows before the ``first`` one are left out.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    batch |= {} if input_ids is None else {"input_ids": input_ids}
    found = model(output_attentions=True, **batch)
    maps = found.decoder_attentions if model.config.is_encoder_decoder else found.attentions
    maps = [p[:, :, first:] for p in maps if p is not None]
    model.set_attn_implementation(before)
    return torch.stack([-torch.special.xlogy(p.double(), p.double()).sum(-1).mean((0, 2)) for p in maps])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_measured_as_its_maps_are(name):
    model, batch = sharp(name), ids()
    expected = from_maps(model, batch)
    found = attention_statistics(model, batch)
    close(found["entropy"], expected, 5e-6)
    close(found["by_position"].mean(1), expected.mean(1), 5e-6)
    assert not found["nonfinite_rows"].any()
    assert found["layer"].tolist() == ([1, 3] if name == "lfm2" else [0, 1, 2])  # the others are convolutions
    for method in ("exact", "chunked", "lse", "auto") if name in PLAIN else ("auto",):
        close(head_entropy(model, batch, method=method), expected, 5e-6)
    if name not in PLAIN:
        return
    assert expected.shape == (3, 4)
    assert expected.min() < 0.95 * entropy_ceiling(16)
    mapping = {"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch}
    close(head_entropy(model, mapping), expected, 5e-6)
    names = ("entropy", "entropy_over_ln_i", "nonfinite_rows", "largest_logit")
    names += ("max_logit", "log_sum_exp", "sink_rate", "ceiling")
    shapes = {**dict.fromkeys(names, (3, 4)), "by_position": (3, batch.shape[1]), "layer": (3,)}
    assert {key: value.shape for key, value in found.items()} == shapes
    assert ((found["entropy_over_ln_i"] > 0) & (found["entropy_over_ln_i"] <= 1 + 1e-5)).all()
    assert (found["by_position"] <= torch.arange(1, batch.shape[1] + 1).log() + 1e-5).all()
    close(found["ceiling"], torch.full((3, 4), entropy_ceiling(16)), 1e-6)


@torch.no_grad()
def test_logits_and_sinks_are_those_of_the_scores():
    model, batch = sharp(ours), ids()
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    got = attention_statistics(model, batch)
    for layer, (block, x, row) in enumerate(zip(model.blocks, inputs, got["largest_logit"], strict=True)):
        q, k, _ = (torch.nn.functional.pad(block.attention.qkv_bias, (0, 32)) + block.attention.qkv(x)).chunk(3, -1)
        q, k = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (q, k))
        scores = (q @ k.transpose(-1, -2) / 8**0.5).tril()
        torch.testing.assert_close(row, scores.abs().amax((0, 2, 3)), rtol=1e-5, atol=1e-5)
        seen = scores.masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -torch.inf)
        others = {
            "max_logit": seen.amax((0, 2, 3)),
            "log_sum_exp": seen.logsumexp(-1).mean((0, 2)),
            "sink_rate": seen.softmax(-1)[..., 0].mean((0, 2)),
        }
        for name, expected in others.items():
            torch.testing.assert_close(got[name][layer], expected, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    """A token whose embedding is NaN, at position 10 of one of two sequences."""
    model, batch = sharp(ours), ids()
    batch[batch == 5] = 6
    clean = head_entropy(model, batch)
    batch[1, 10] = 5
    model.embed.weight.data[5] = math.nan
    statistics = attention_statistics(model, batch)
    rows = statistics["nonfinite_rows"]
    assert (rows[0] == 6).all()  # positions 10..15
    assert ((rows[1:] >= 6) & (rows[1:] <= 16)).all()  # the layer itself spreads it: a weight of zero times NaN
    assert statistics["entropy"].isfinite().all()
    close(head_entropy(model, batch), statistics["entropy"], 5e-6)
    assert not torch.allclose(clean, statistics["entropy"].to(clean.dtype))
    batch[:, 0] = 5
    statistics = attention_statistics(model, batch)
    assert (statistics["nonfinite_rows"] == 32).all()
    assert statistics["entropy"].isnan().all()
    assert head_entropy(model, batch).isnan().all()


def state(model: nn.Module) -> dict[str, Any]:
    """What a caller can see of a model and of transformers."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    return {
        "training": [module.training for module in model.modules()],
        "configs": [config.to_dict() for config in configs],
        "attention": [config._attn_implementation for config in configs],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "interface": (AttentionInterface.get_interface, dict(AttentionInterface._global_mapping)),
        "masks": dict(AttentionMaskInterface._global_mapping),
        "weights": {name: p.detach().clone() for name, p in model.state_dict().items()},
        "stance": torch._dynamo.eval_frame._stance.stance,
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights = before.pop("weights"), after.pop("weights")
    return before == after and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("measure", [head_entropy, attention_statistics])
@pytest.mark.parametrize(("name", "implementation"), [("gpt2", "eager"), ("llama", "sdpa"), ("our gpt2", "sdpa")])
def test_measuring_sees_no_dropout_and_leaves_the_model_as_it_was(name, implementation, measure):
    model, batch = MODELS[name]().train(), ids()
    model.set_attn_implementation(implementation)
    frozen = list(model.modules())[3]
    frozen.eval()
    before = state(model)
    found = measure(model, batch)
    assert same(before, state(model))
    assert not frozen.training

    before = state(model)
    handle = list(model.modules())[-1].register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(model, batch)
    handle.remove()
    assert same(before, state(model))
    torch.testing.assert_close(found, measure(model.eval(), batch), rtol=0, atol=0)


def test_parts_with_an_attention_of_their_own_keep_it():
    """The text and vision configurations of Llava differ in their attention."""
    model = llava().eval()
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    model(**llava_batch())  # transformers puts hooks of its own where outputs are collected
    before = state(model)
    head_entropy(model, llava_batch())
    assert same(before, state(model))


def test_rotary_positions_that_grow_are_as_before():
    """Dynamic NTK widens its wavelengths at the longest sequence so far."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model, batch = hf("Llama", max_position_embeddings=8, rope_parameters=rope, **LLAMA), ids(1, 12)
    expected = model(batch).logits
    head_entropy(model, ids(1, 40))
    assert torch.equal(model(batch).logits, expected)


def test_a_measurement_inside_a_measurement():
    model, other, batch = sharp(gpt2).train(), sharp("llama"), ids()
    expected, before, inner = (head_entropy(model, batch), head_entropy(other, batch)), state(model), []
    handle = model.transformer.h[1].register_forward_hook(lambda *args: inner.append(head_entropy(other, batch)))
    assert torch.equal(head_entropy(model, batch), expected[0])
    handle.remove()
    assert torch.equal(inner[0], expected[1])
    assert same(before, state(model))


def test_two_threads_measure_and_a_third_generates():
    """Measurements of one model at once, and another model that is used meanwhile, have their own results."""
    model, other = sharp("llama").train(), sharp(gpt2)
    batches = [ids(1, n) for n in (8, 12, 16)]
    expected = [head_entropy(model, batch) for batch in batches]
    before, logits = state(model), other(batches[0]).logits
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(head_entropy, model, batch) for batch in batches * 4]
        used = [pool.submit(lambda: other(batches[0]).logits) for _ in range(8)]
        for future, value in zip(found, expected * 4, strict=True):
            assert torch.equal(future.result(), value)
        assert all(torch.equal(future.result(), logits) for future in used)
    assert same(before, state(model))


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # since transformers 5.24
def test_a_cache_in_the_batch_is_read_and_not_written_to():
    model, batch = sharp("llama"), ids()
    with torch.no_grad():
        past = model(batch[:, :6], use_cache=True).past_key_values
    expected = from_maps(model, batch, first=6)
    for _ in range(2):
        close(head_entropy(model, {"input_ids": batch[:, 6:], "past_key_values": past}), expected, 5e-6)
    assert past.get_seq_length() == 6
    half = {"input_ids": batch[:, 6:], "past_key_values": past, "attention_mask": torch.ones_like(batch[:, 6:])}
    for measured in (model, sharp("our gpt2")):
        with torch.no_grad():
            half["past_key_values"] = measured(batch[:, :6], use_cache=True).past_key_values
        with pytest.raises(SettingsError, match=r"attention_mask: .* does not cover input_ids .* after 6 in the cache"):
            head_entropy(measured, half)
    past = model(batch[:, :6], use_cache=True).past_key_values
    with pytest.raises(SettingsError, match="past_key_values has gradients"):
        head_entropy(model, {"input_ids": batch[:, 6:], "past_key_values": past})


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_process_forked_while_another_thread_measures_can_measure():
    model, batch, began, done = sharp(ours).train(), ids(), threading.Event(), threading.Event()

    def wait(*args: Any) -> None:
        began.set()
        done.wait(20)

    model.blocks[0].register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(head_entropy, model, batch)
        began.wait()
        threading.Timer(0.2, done.set).start()
        if (child := os.fork()) == 0:
            signal.alarm(30)  # it would wait for ever
            torch.set_num_threads(1)  # OpenMP's threads are not forked
            os._exit(0 if model.training and head_entropy(sharp(ours), batch).isfinite().all() else 1)
        assert os.waitpid(child, 0)[1] == 0


# --- the batch given is the batch measured ----------------------------------------------------------------------


def llava() -> Any:
    sizes = dict(num_hidden_layers=3, image_size=8, patch_size=4, projection_dim=32)
    parts = dict(
        vision_config=transformers.CLIPVisionConfig(**{**SIZES, **sizes}),
        text_config=transformers.LlamaConfig(**LLAMA),
    )
    return sharp(lambda: hf("Llava", "ForConditionalGeneration", image_token_index=96, **parts))


def llava_batch() -> dict[str, Tensor]:
    """An image of 2 x 2 patches at the start of each sequence."""
    batch = torch.randint(90, (2, 16))
    batch[:, 1:5] = 96
    return {"input_ids": batch, "pixel_values": torch.randn(2, 3, 8, 8), "attention_mask": torch.ones_like(batch)}


def test_an_image_is_measured_with_its_text():
    model, batch = llava(), llava_batch()
    expected = from_maps(model, **batch)
    close(head_entropy(model, batch), expected, 5e-6)
    assert head_entropy(model, batch).shape == (3, 4)  # the image encoder has no row
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    assert (head_entropy(model, batch) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "mistral with a window", "our gpt2", "our pythia"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_measured(name, side):
    """A padded batch has the rows of its sequences alone, given the same positions."""
    model, batch = sharp(name), ids(2, 16)
    mask = torch.ones_like(batch)
    short = slice(5, 16) if side == "left" else slice(0, 11)
    mask[0], mask[0, short] = 0, 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = {"input_ids": batch, "attention_mask": mask, "position_ids": positions}
    alone = [attention_statistics(model, x) for x in (batch[:1, short], batch[1:])]
    found = attention_statistics(model, padded)
    close(found["entropy"], (11 * alone[0]["entropy"] + 16 * alone[1]["entropy"]) / 27, 1e-5)
    close(found["entropy"], head_entropy(model, padded), 1e-5)
    assert not found["nonfinite_rows"].any()
    keys = [min(i, 6) if "window" in name else i for n in (11, 16) for i in range(1, n + 1)]
    close(found["ceiling"], torch.tensor(keys).log().mean().expand(3, 4), 1e-5)
    assert ((found["sink_rate"] > 0) & (found["sink_rate"] < 1)).all()
    close(found["max_logit"], torch.maximum(*(x["max_logit"] for x in alone)), 1e-4)


def test_a_mask_of_the_callers_own_decides_what_is_measured():
    """Two sequences packed in one row do not see each other."""
    model, batch = sharp("llama"), ids(1, 16)
    document = torch.arange(16) >= 6
    mask = (document[:, None] == document) & torch.ones(16, 16, dtype=torch.bool).tril()
    positions = torch.cat((torch.arange(6), torch.arange(10)))[None]
    packed = {"input_ids": batch, "attention_mask": mask[None, None], "position_ids": positions}
    alone = head_entropy(model, batch[:, :6]), head_entropy(model, batch[:, 6:])
    close(head_entropy(model, packed), (6 * alone[0] + 10 * alone[1]) / 16, 1e-5)


# --- a row for each decoder layer -------------------------------------------------------------------------------


CROSSED = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40)
CROSSED |= dict(d_model=32, encoder_layers=2, decoder_layers=3, **SMALL)


def test_of_an_encoder_decoder_only_the_decoders_own_attention_is_measured():
    model, batch = sharp(lambda: hf("Bart", "ForConditionalGeneration", max_position_embeddings=32, **CROSSED)), ids()
    expected = from_maps(model, batch, decoder_input_ids=batch)
    close(head_entropy(model, {"input_ids": batch, "decoder_input_ids": batch}), expected, 5e-6)
    # what pads the encoder's sequence does not pad the decoder's
    mask = torch.ones_like(batch)
    mask[:, 9:] = 0
    first = attention_statistics(model, {"input_ids": batch, "attention_mask": mask, "decoder_input_ids": batch})
    close(first["entropy"][0], expected[0], 5e-6)
    assert (expected <= entropy_ceiling(16)).all()


def test_labels_that_an_encoder_decoder_makes_its_inputs_of_are_enough():
    sizes = dict(num_mel_bins=8, max_source_positions=8, max_target_positions=32, decoder_start_token_id=1)
    model = sharp(lambda: hf("Whisper", "ForConditionalGeneration", **sizes, **CROSSED))
    batch = {"input_features": torch.randn(2, 8, 16), "labels": ids()}
    close(head_entropy(model, batch), from_maps(model, **batch), 5e-6)


def test_a_layer_without_a_number_of_its_own_has_that_of_its_place():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity(), nn.ModuleDict({"attention": nn.Identity()})])})
    attention = model["layers"][1]["attention"]
    assert meter._layer_numbers(model)[attention] == 1
    for own, number in ((-1, 1), (5, 5)):  # Zamba 2 numbers its shared layers -1
        attention.layer_idx = own
        assert meter._layer_numbers(model)[attention] == number


@pytest.mark.parametrize("measure", [head_entropy, attention_statistics])
def test_what_is_no_causal_attention_is_refused_by_name(measure):
    batch, bert = ids(), dict(**SIZES, **SMALL)
    for model, said in (
        (hf("Bert", "LMHeadModel", **bert), r"BertLMHeadModel: no layer calls .* causal softmax self-attention"),
        # Bloom adds its position biases inside its own attention code.
        (hf("Bloom", hidden_size=32, n_layer=2, n_head=4, **SMALL), "BloomForCausalLM: no layer calls"),
        (nn.Linear(2, 2), "Linear: not a transformers model"),
    ):
        with pytest.raises(SettingsError, match=said):
            measure(model, batch)
    decoder = sharp(lambda: hf("Bert", "LMHeadModel", is_decoder=True, **bert))
    close(head_entropy(decoder, batch), from_maps(decoder, batch), 5e-6)


def test_under_flash_attention_packed_sequences_and_caches_are_refused():
    """A function with the arguments of FlashAttention stands in for it."""

    def attend(module, query, key, value, attention_mask, **options):
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None

    model, batch = sharp("llama"), ids()
    AttentionInterface.register("flash_stand_in", attend)
    AttentionMaskInterface.register("flash_stand_in", lambda *args, attention_mask=None, **options: attention_mask)
    expected = head_entropy(model, batch)[0]
    places = torch.arange(batch.shape[1])[None] % 5
    model.config._attn_implementation = "flash_stand_in"
    close(head_entropy(model, batch)[0], expected, 5e-6)
    with pytest.raises(SettingsError, match="packed sequences and caches are not measured under FlashAttention"):
        head_entropy(model, {"input_ids": batch[:1], "position_ids": places})


def test_layers_with_fewer_heads_end_in_nan():
    assert meter._stacked([torch.ones(3), torch.ones(2)]).isnan().tolist() == [[False] * 3, [False, False, True]]


# --- wrapped models ---------------------------------------------------------------------------------------------


def test_a_compiled_model_is_measured_as_it_was_written():
    model, batch = sharp(gpt2), ids()
    expected = head_entropy(model, batch)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(batch)
    assert torch.equal(head_entropy(compiled, batch), expected)
    model.transformer.h[0].compile(backend="eager")
    assert torch.equal(head_entropy(model, batch), expected)


def test_an_offloaded_model(tmp_path):
    model, batch = sharp("llama"), ids()
    expected = head_entropy(model, batch)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).device.type == "meta"
    assert torch.equal(head_entropy(model, batch), expected)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated, peft asks for what transformers renamed
@pytest.mark.parametrize("name", ["llama", "our pythia"])
def test_quantised_and_adapted_models_are_measured_as_they_are(name):
    model, batch = sharp(name), ids()
    plain = head_entropy(model, batch)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    close(head_entropy(small, batch), from_maps(small, batch), 1e-5)
    assert not torch.equal(head_entropy(small, batch), plain)
    peft = pytest.importorskip("peft")
    options = dict(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    found = head_entropy(adapted, batch)
    assert (found - plain).abs().max() > 1e-3
    with adapted.disable_adapter():
        close(head_entropy(adapted, batch), plain, 1e-6)
    close(head_entropy(adapted.merge_and_unload(), batch), found, 1e-5)


# --- inputs -----------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Models of a user's own module, whose forward takes no more than it needs."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, input_ids: Tensor) -> Any:
        return [model(input_ids) for model in self.models]


def test_a_module_around_a_model_is_measured_and_around_two_refused():
    model, batch = sharp(gpt2), ids()
    assert torch.equal(head_entropy(Wrapped(model), batch), head_entropy(model, batch))
    with pytest.raises(SettingsError, match="Wrapped: holds several transformers models"):
        head_entropy(Wrapped(model, gpt2()), batch)


def test_a_model_without_numbers_and_an_unknown_method_are_refused():
    with pytest.raises(SettingsError, match="GPT2LMHeadModel: has weights on the meta device"):
        head_entropy(gpt2().to("meta"), ids())
    with pytest.raises(SettingsError, match="method: 'fast'"):
        head_entropy(ours(), ids(), method="fast")


@pytest.mark.parametrize("name", ["gpt2", "our gpt2"])
def test_a_bool_mask_is_measured_as_eager_attention_takes_it(name):
    """Ours hides what it does not show; GPT-2's adds it to the scores."""
    model, batch = sharp(name), ids()
    model.set_attn_implementation("eager")
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    mask[8:, :4] = False
    batch = {"input_ids": batch, "attention_mask": mask.expand(2, 1, 16, 16)}
    with torch.no_grad():
        maps = torch.stack(model(**batch, output_attentions=True).attentions)
    close(head_entropy(model, batch), torch.special.entr(maps.double()).sum(-1).mean((1, 3)), 1e-5)
    assert (maps[..., 8:, :4].max() == 0) == (name == "our gpt2")


def test_lists_arrays_and_single_sequences_are_converted():
    model, batch = sharp(gpt2), ids()
    expected = head_entropy(model, batch)
    rows = tuple(map(tuple, batch.tolist())), batch.numpy().astype("uint16"), batch.numpy().astype(">i8")
    rows = *rows, batch.flip(1).numpy()[:, ::-1]
    for same_batch in (batch.tolist(), batch.numpy(), {"input_ids": batch.tolist()}, batch.int(), *rows):
        assert torch.equal(head_entropy(model, same_batch), expected)
    single = head_entropy(model, batch[:1])
    for one in (batch[0], batch[0].tolist(), {"input_ids": batch[0].tolist(), "attention_mask": [1] * 16}):
        assert torch.equal(head_entropy(model, one), single)


PAIR, COLUMN = {"input_ids": [[1, 2]]}, [torch.ones(2, dtype=torch.long)] * 16


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(2, 0, dtype=torch.long), r"input_ids is torch.int64 of shape \(2, 0\); it must be .* one token"),
        ([[1, 2], [3]], "input_ids is no array of numbers; pad sequences"),
        ("a text", "input_ids is str; it must be a dense tensor of token ids"),
        (torch.rand(2, 4), r"input_ids is torch.float32 of shape \(2, 4\)"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"torch.int64 of shape \(1, 2, 3\)"),
        (torch.ones(1, 4, dtype=torch.bool), "input_ids is torch.bool"),
        (torch.zeros(1, 2, dtype=torch.complex64), "input_ids is torch.complex64"),
        (torch.ones(1, 2, dtype=torch.long).to_sparse(), "input_ids is Tensor; it must be a dense tensor"),
        ({"attention_mask": [[1, 1]]}, "keys attention_mask lack input_ids"),
        (None, r"keys \(none\) lack input_ids"),
        ([[5, 1000]], "97 token ids, 32 positions"),
        ([[5, -1]], "97 token ids"),
        ([[5] * 33], "97 token ids, 32 positions"),
        ({**PAIR, "position_ids": [[0, 40]]}, "32 positions"),
        ({**PAIR, "position_ids": [[0, 1, 2]]}, r"position_ids: .* \(1, 3\) is not .* 2 tokens"),
        ({**PAIR, "position_ids": [[0.0, 1.0]]}, r"position_ids: torch.float32 of shape \(1, 2\) is not"),
        ({**PAIR, "attention_mask": [[1]]}, r"attention_mask: shape \(1, 1\) does not cover"),
        ({**PAIR, "attention_mask": [[1] * 3]}, r"attention_mask: shape \(1, 3\) does not cover"),
        ({**PAIR, "attention_mask": torch.ones(1, 1, 2, 1)}, r"attention_mask: shape \(1, 1, 2, 1\)"),
        ({**PAIR, "attention_mask": [[0, 0]]}, "attention_mask: leaves no token"),
        ({**PAIR, "attention_mask": "ones"}, "attention_mask: str must be a tensor"),
        ({**PAIR, "past_key_values": ((torch.zeros(1, 4, 3, 8),) * 2,)}, "past_key_values is tuple"),
        *(  # what the default collate makes of columns
            (batch, r'_\w+ is a list of tensors, .*; stack .* dataset.with_format\("torch"\)')
            for batch in (COLUMN, [COLUMN], {"input_ids": COLUMN}, {"input_ids": ids(), "attention_mask": COLUMN})
        ),
        ({"inputs_embeds": torch.zeros(4, 32)}, r"inputs_embeds is torch.float32 of shape \(4, 32\); .* embeddings"),
        ({"inputs_embeds": torch.zeros(1, 0, 32)}, r"inputs_embeds is torch.float32 of shape \(1, 0, 32\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused_in_one_line(batch, said):
    with pytest.raises(SettingsError, match=said) as caught:
        head_entropy(gpt2(), batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "llama", "our gpt2"])
def test_a_misspelt_key_is_refused_and_what_a_model_takes_is_not(name):
    model, batch = MODELS[name]().eval(), ids()
    wrapped = torch.compile(model, backend="eager")
    for key in ("atention_mask", "attention_masks", "text"):
        for m in (model, wrapped):
            with pytest.raises(SettingsError, match=f"batch: '{key}' is not one of input_ids, .*attention_mask, "):
                head_entropy(m, {"input_ids": batch, key: torch.ones_like(batch)})
    more = {"labels": batch, "position_ids": torch.arange(16)[None]}
    more |= {} if name == "our gpt2" else {"token_type_ids": torch.zeros_like(batch), "seq_idx": batch}
    assert head_entropy(model, {"input_ids": batch, **more}).isfinite().all()
    with pytest.raises(SettingsError, match=r"batch: 'attention_mask' is not one of input_ids$"):
        head_entropy(Wrapped(model), {"input_ids": batch, "attention_mask": batch})
