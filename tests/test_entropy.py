"""Attention entropy against oracles in float64, its invariances, its edges, and whole models of several families."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from nfcore import (
    NormFreeConfig,
    NormFreeForCausalLM,
    attention_entropy,
    attention_statistics,
    entropy,
    entropy_ceiling,
    head_entropy,
)
from nfcore.settings import SettingsError


METHODS = ("exact", "chunked", "lse")
ALL_METHODS = (*METHODS, "auto")


def random_qk(
    batch: int = 2, heads: int = 3, length: int = 33, width: int = 8, size: float = 1.0, key_heads: int | None = None
) -> tuple[Tensor, Tensor]:
    return size * torch.randn(batch, heads, length, width), torch.randn(batch, key_heads or heads, length, width)


def by_hand(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """The definition, in Python numbers: -sum_j p_ij ln p_ij with p_ij = exp(s_ij) / sum_j exp(s_ij)."""
    rows = torch.empty(q.shape[:3], dtype=torch.float64)
    serves = q.shape[1] // k.shape[1]
    for b, h, i in itertools.product(*map(range, rows.shape)):
        seen = i + 1 if causal else k.shape[2]
        query = q[b, h, i].tolist()
        scores = [
            scale * sum(x * y for x, y in zip(query, k[b, h // serves, j].tolist(), strict=True)) for j in range(seen)
        ]
        terms = [math.exp(s - max(scores)) for s in scores]
        rows[b, h, i] = -sum(t / sum(terms) * math.log(t / sum(terms)) for t in terms if t > 0)
    return rows


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance, equal_nan=True)


# --- against oracles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 1.7, -1.7, 0.0])
def test_every_method_follows_the_definition(causal, key_heads, scale):
    q, k = random_qk(2, 4, 7, 5, key_heads=key_heads)
    expected = by_hand(q, k, 5**-0.5 if scale is None else scale, causal)
    close(attention_entropy(q, k, scale=scale, causal=causal, method="exact"), expected, 1e-12)
    for method in ALL_METHODS:
        close(attention_entropy(q, k, scale=scale, causal=causal, method=method), expected, 5e-6)


def test_dtypes_and_shapes():
    q, k = random_qk()
    for method, dtype in (("exact", torch.float64), ("chunked", torch.float32), ("lse", torch.float32)):
        rows = attention_entropy(q, k, method=method)
        assert rows.shape == (2, 3, 33)
        assert rows.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_keys_may_outnumber_queries_without_a_mask(method):
    q, k = random_qk(length=5)[0], random_qk(length=9)[1]
    close(attention_entropy(q, k, causal=False, method=method), by_hand(q, k, 8**-0.5, False), 1e-6)


# Errors come from rounding scores s in float32: measured at most 4e-8 |s| (chunked) and 3.5e-7 |s| (lse), plus 3e-6.
ERROR_PER_SCORE = {"chunked": 1e-7, "lse": 6e-7}


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
@pytest.mark.parametrize(("length", "width"), [(65, 16), (257, 64)])
@pytest.mark.parametrize("method", ERROR_PER_SCORE)
def test_error_at_large_scores(method, length, width, size):
    q, k = random_qk(2, 2, length, width, size)
    largest = float((q @ k.transpose(-1, -2)).abs().max()) * width**-0.5
    got = attention_entropy(q, k, method=method)
    close(got, attention_entropy(q, k, method="exact"), 5e-6 + ERROR_PER_SCORE[method] * largest)
    assert got.min() >= -1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_half_precision_inputs_are_computed_in_full(method, dtype):
    q, k = (x.to(dtype) for x in random_qk())
    rows = attention_entropy(q, k, method=method)
    assert torch.equal(rows, attention_entropy(q.float(), k.float(), method=method))
    close(rows, attention_entropy(q, k, method="exact"), 2e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("elements", [1, 2 * 3 * 33 * 5, 2 * 3 * 33 * 32, 2 * 3 * 33 * 33])
def test_chunks_of_any_size_give_the_same(monkeypatch, elements, causal):
    q, k = random_qk()
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", elements)
    close(attention_entropy(q, k, causal=causal, method="chunked"), by_hand(q, k, 8**-0.5, causal), 1e-6)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_single_position_has_no_entropy(method):
    assert torch.equal(attention_entropy(*random_qk(length=1), method=method).double(), torch.zeros(2, 3, 1).double())


@pytest.mark.parametrize("method", ALL_METHODS)
def test_strided_inputs(method):
    """Queries and keys come as transposed views of (B, T, H, K)."""
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in random_qk())
    assert not q.is_contiguous()
    close(
        attention_entropy(q, k, method=method), attention_entropy(q.contiguous(), k.contiguous(), method="exact"), 2e-6
    )


# --- properties -------------------------------------------------------------------------------------------------


@st.composite
def queries_and_keys(draw: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    heads, length, width = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 16))
    return random_qk(1, heads, length, width, draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])))


def examples(function: Callable[..., None]) -> Callable[..., None]:
    return hypothesis_settings(max_examples=25, deadline=None, derandomize=True)(given(queries_and_keys())(function))


@pytest.mark.parametrize("method", METHODS)
def test_entropy_is_between_zero_and_the_log_of_the_keys_seen(method):
    @examples
    def check(qk):
        rows = attention_entropy(*qk, method=method)
        limit = torch.arange(1, rows.shape[-1] + 1).log()
        assert (rows >= -1e-6).all()
        assert (rows <= limit + 5e-6).all()
        assert rows[..., 0].abs().max() < 1e-6  # the first query sees one key

    check()


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_added_to_all_keys_changes_nothing(method):
    @examples
    def check(qk):
        q, k = qk
        offset = 10 * torch.randn(k.shape[-1])
        before, after = attention_entropy(q, k, method="exact"), attention_entropy(q, k + offset, method=method)
        close(after, before, 1e-5 * max(1.0, float(q.abs().max())))

    check()


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_keys_does_not_matter_without_a_mask(method):
    @examples
    def check(qk):
        q, k = qk
        permuted = k[:, :, torch.randperm(k.shape[2])]
        close(
            attention_entropy(q, permuted, causal=False, method=method),
            attention_entropy(q, k, causal=False, method="exact"),
            1e-5 * max(1.0, float(q.abs().max())),
        )

    check()


@pytest.mark.parametrize("method", METHODS)
def test_zero_queries_reach_the_ceiling(method):
    q, k = random_qk(length=128)
    rows = attention_entropy(torch.zeros_like(q), k, method=method)
    close(rows, torch.arange(1, 129, dtype=torch.float64).log().expand_as(rows), 3e-6)
    assert float(rows.mean()) == pytest.approx(entropy_ceiling(128), abs=1e-6)


# --- rows that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_bad_key_spoils_exactly_the_rows_that_see_it(method, causal, bad):
    q, k = random_qk(2, 4, 20, key_heads=2)
    expected = attention_entropy(q, k, causal=causal, method="exact")
    k[1, 0, 12, 3] = bad  # serves query heads 0 and 1 of batch entry 1
    expected[1, :2, 12 if causal else 0 :] = math.nan
    close(attention_entropy(q, k, causal=causal, method=method), expected, 2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_bad_query_spoils_exactly_its_row(method, causal, bad):
    q, k = random_qk(length=20)
    expected = attention_entropy(q, k, causal=causal, method="exact")
    q[1, 2, 12, 3] = bad
    expected[1, 2, 12] = math.nan
    close(attention_entropy(q, k, causal=causal, method=method), expected, 2e-6)


# --- gradients --------------------------------------------------------------------------------------------------


def gradients(method: str, q: Tensor, k: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    return torch.autograd.grad((attention_entropy(q, k, method=method) * weights).sum(), (q, k))


@pytest.mark.parametrize("key_heads", [2, 4])
def test_gradients_of_chunked_are_those_of_exact(monkeypatch, key_heads):
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", 2 * 4 * 20 * 7)
    q, k = random_qk(2, 4, 20, key_heads=key_heads)
    weights = torch.randn(2, 4, 20)
    exact = gradients("exact", q, k, weights)
    for method in ("chunked", "auto"):
        for mine, oracle in zip(gradients(method, q, k, weights), exact, strict=True):
            assert oracle.abs().max() > 0.01
            close(mine, oracle, 1e-5)


def test_gradients_of_exact_are_those_of_finite_differences():
    q, k = (x.double().requires_grad_() for x in random_qk(1, 2, 5, 3, key_heads=1))
    assert torch.autograd.gradcheck(lambda *qk: attention_entropy(*qk, method="exact"), (q, k))


def test_auto_differentiates_only_when_asked():
    q, k = random_qk()
    k.requires_grad_()
    assert attention_entropy(q, k).requires_grad
    assert not attention_entropy(q, k, method="lse").requires_grad
    with torch.no_grad():
        assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="lse"))
    assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="chunked"))


def test_a_device_without_a_kernel(monkeypatch):
    def no_kernel(*args: Any) -> None:
        raise NotImplementedError("no attention kernel")

    monkeypatch.setattr(entropy, "flash_with_lse", no_kernel)
    q, k = random_qk()
    assert torch.equal(attention_entropy(q, k), attention_entropy(q, k, method="chunked"))
    with pytest.raises(NotImplementedError, match="no attention kernel"):
        attention_entropy(q, k, method="lse")


def test_devices_without_a_kernel_are_named():
    q = torch.empty(1, 1, 2, 2, device="meta")
    with pytest.raises(NotImplementedError, match="'meta'"):
        entropy.flash_with_lse(q, q, q, 1.0, True)


@pytest.mark.parametrize(
    ("q", "k", "more", "said"),
    [
        ((1, 2, 5, 4), (1, 2, 5, 4), {"method": "flash"}, "method: 'flash' is not one of auto, exact, chunked, lse"),
        ((2, 5, 4), (2, 5, 4), {}, r"\(2, 5, 4\)"),
        ((1, 2, 5, 4), (2, 2, 5, 4), {}, r"\(B, H, T, K\)"),
        ((1, 2, 5, 4), (1, 2, 5, 3), {}, r"\(1, 2, 5, 3\)"),
        ((1, 4, 5, 4), (1, 3, 5, 4), {}, "3 key heads do not divide the 4 query heads"),
        ((1, 2, 5, 4), (1, 2, 6, 4), {}, "6 keys for 5 queries"),
        ((1, 2, 0, 4), (1, 2, 0, 4), {}, "nothing"),
        ((1, 2, 5, 4), (1, 0, 5, 4), {}, "nothing"),
    ],
)
def test_inputs_that_do_not_fit(q, k, more, said):
    with pytest.raises(SettingsError, match=said):
        attention_entropy(torch.zeros(q), torch.zeros(k), **more)


def test_whole_numbers_are_refused():
    with pytest.raises(SettingsError, match=r"torch\.int64"):
        attention_entropy(torch.zeros(1, 1, 2, 2, dtype=torch.long), torch.zeros(1, 1, 2, 2))


# --- whole models -----------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=97, bos_token_id=0, eos_token_id=0, pad_token_id=0)
LLAMA = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, **SMALL
)


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=32, **SMALL))


def gpt_neox() -> GPTNeoXForCausalLM:
    sizes = dict(num_hidden_layers=3, num_attention_heads=4, hidden_size=32, intermediate_size=40)
    return GPTNeoXForCausalLM(GPTNeoXConfig(max_position_embeddings=32, **sizes, **SMALL))


def ours(family: str = "gpt2") -> NormFreeForCausalLM:
    sizes = dict(num_hidden_layers=3, num_attention_heads=4, vocab_size=97)
    return NormFreeForCausalLM(NormFreeConfig.from_shape(f"{family}-2x32", norm="none", embd_pdrop=0.1, **sizes))


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=None, **LLAMA)),
    "our gpt2": ours,
    "our pythia": lambda: ours("pythia"),
}


def with_sharp_attention(build: Callable[[], Any]) -> Any:
    """Weights large enough that attention is far from uniform; the gains of norms stay."""
    model = build().eval()
    for name, p in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            nn.init.normal_(p, 0.0, 0.2)
    return model


def ids(batch: int = 2, length: int = 16) -> Tensor:
    return torch.randint(97, (batch, length))


@torch.no_grad()
def from_maps(model: Any, batch: Tensor) -> Tensor:
    """Head entropies from the attention maps that the eager implementation returns."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    maps = model(batch, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return torch.stack([-torch.special.xlogy(p.double(), p.double()).sum(-1).mean((0, 2)) for p in maps])


@pytest.mark.parametrize("name", MODELS)
def test_head_entropy_is_that_of_the_maps(name):
    model, batch = with_sharp_attention(MODELS[name]), ids()
    expected = from_maps(model, batch)
    assert expected.shape == (3, 4)
    assert expected.min() < 0.95 * entropy_ceiling(16)
    for method in ALL_METHODS:
        close(head_entropy(model, batch, method=method), expected, 5e-6)
    mapping = {"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch}
    close(head_entropy(model, mapping), expected, 5e-6)


@pytest.mark.parametrize("name", MODELS)
def test_attention_statistics(name):
    model, batch = with_sharp_attention(MODELS[name]), ids()
    statistics = attention_statistics(model, batch)
    names = ("entropy", "entropy_over_ln_i", "nonfinite_rows", "largest_logit")
    shapes = {**dict.fromkeys(names, (3, 4)), "by_position": (3, batch.shape[1])}
    assert {key: value.shape for key, value in statistics.items()} == shapes
    close(statistics["entropy"], from_maps(model, batch), 5e-6)
    close(statistics["by_position"].mean(1), statistics["entropy"].mean(1), 5e-6)
    assert (statistics["by_position"] <= torch.arange(1, batch.shape[1] + 1).log() + 1e-5).all()
    assert ((statistics["entropy_over_ln_i"] > 0) & (statistics["entropy_over_ln_i"] <= 1 + 1e-5)).all()
    assert not statistics["nonfinite_rows"].any()
    # entropy ln n - D with D at most twice the largest score: flat attention needs no large score, sharp one does
    assert (statistics["largest_logit"] >= (entropy_ceiling(16) - statistics["entropy"]) / 2).all()


@torch.no_grad()
def test_the_largest_logit_is_that_of_the_scores():
    model, batch = with_sharp_attention(ours), ids()
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    got = attention_statistics(model, batch)["largest_logit"]
    for block, x, row in zip(model.blocks, inputs, got, strict=True):
        q, k, _ = (torch.nn.functional.pad(block.attention.qkv_bias, (0, 32)) + block.attention.qkv(x)).chunk(3, -1)
        q, k = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (q, k))
        scores = (q @ k.transpose(-1, -2) / 8**0.5).tril()
        torch.testing.assert_close(row, scores.abs().amax((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    """A token whose embedding is NaN, at position 10 of one of two sequences."""
    model, batch = with_sharp_attention(ours), ids()
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


@pytest.mark.parametrize("measure", [head_entropy, attention_statistics])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "our gpt2"])
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_model_as_it_was(name, implementation, training, measure):
    model = MODELS[name]().train(training)
    model.set_attn_implementation(implementation)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    results = [measure(model, ids()) for _ in range(2)]
    assert results
    with pytest.raises(IndexError):
        measure(model, torch.full((1, 4), 1000))  # fails inside the model
    assert model.config._attn_implementation == implementation
    assert model.training == training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not entropy._measure


def test_measuring_sees_no_dropout():
    model, batch = ours().train(), ids()
    assert torch.equal(head_entropy(model, batch), head_entropy(model.eval(), batch))


@pytest.mark.parametrize("measure", [head_entropy, attention_statistics])
def test_what_is_not_plain_causal_attention_says_so(measure):
    batch = ids()
    mask = torch.ones_like(batch)
    mask[0, :3] = 0
    with pytest.raises(SettingsError, match="padded"):
        measure(gpt2(), {"input_ids": batch, "attention_mask": mask})

    windowed = MistralForCausalLM(MistralConfig(sliding_window=4, **LLAMA))
    with pytest.raises(SettingsError, match="windowed"):
        measure(windowed, batch)
    close(head_entropy(windowed, batch[:, :4]), from_maps(windowed.eval(), batch[:, :4]), 5e-6)

    capped = Gemma2ForCausalLM(Gemma2Config(head_dim=8, attn_logit_softcapping=5.0, **LLAMA))
    with pytest.raises(SettingsError, match="softcap"):
        measure(capped, batch)
    assert capped.config._attn_implementation != "nfcore_recording"

    with pytest.raises(SettingsError, match="Linear: not a transformers model"):
        measure(nn.Linear(2, 2), batch)


@pytest.mark.parametrize("measure", [head_entropy, attention_statistics])
def test_a_model_with_its_own_attention_cannot_be_hooked(measure):
    """Bloom adds its position biases inside its own attention code."""
    model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL))
    with pytest.raises(SettingsError, match="cannot be hooked"):
        measure(model, ids())


def test_head_entropy_refuses_an_unknown_method():
    with pytest.raises(SettingsError, match="method: 'fast'"):
        head_entropy(ours(), ids(), method="fast")


@pytest.mark.parametrize("method", ["exact", "chunked", "lse"])
def test_mixed_precision_does_not_round_the_entropy(method):
    q, k = 3 * torch.randn(2, 2, 32, 16), torch.randn(2, 2, 32, 16)
    plain = attention_entropy(q, k, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention_entropy(q, k, method=method), plain)
