"""Correctness under speed: whatever makes training faster gives the losses of the plain float32 path."""

import platform
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nfcore import NormFreeConfig, NormFreeForCausalLM, machine, runs, train, training
from nfcore.model import Head
from nfcore.settings import Experiment, SettingsError


Tiny = Callable[..., Experiment]
STEPS = 100
COMPILER = [
    pytest.mark.skipif(bool(machine.why_not_compiled()), reason=str(machine.why_not_compiled())),
    pytest.mark.filterwarnings("ignore"),  # in torch's own compiler
]


def losses(experiment: Experiment) -> pd.Series:
    metrics = pd.read_parquet(train(experiment, quiet=True) / "metrics.parquet")
    return metrics.query("name == 'train_loss'").set_index("step")["value"]


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> pd.Series:
    return losses(tiny(training={"steps": STEPS}))


# Bounds on the largest difference of a logged loss, in nats, over all steps: rounding, amplified by the updates.
@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        (dict(chunked_loss=True), 2e-3),
        (dict(precision="bfloat16", chunked_loss=True, micro_batch_size=2), 5e-2),
        pytest.param(dict(compile=True), 2e-3, marks=COMPILER),
        pytest.param(dict(compile=True, precision="bfloat16"), 5e-2, marks=COMPILER),
    ],
)
def test_fast_paths_give_the_plain_losses(tiny: Tiny, plain: pd.Series, changes: dict[str, Any], bound: float) -> None:
    model = {"num_hidden_layers": 1} if "compile" in changes else {}  # compiling takes half as long
    plain = losses(tiny(model=model, training={"steps": STEPS})) if model else plain
    fast = losses(tiny(model=model, training={"steps": STEPS, **changes}))
    assert fast.index.equals(plain.index)
    assert plain.iloc[-1] < plain.iloc[0] - 10 * bound, "nothing was learnt, so nothing is compared"
    assert (fast - plain).abs().max() < bound, (fast - plain).abs()


def test_record_tells_what_auto_was_and_that_nothing_was_compiled(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    record = runs.read_record(train(tiny(training={"compile": True, "precision": "auto"}), quiet=True))
    assert "is not compiled, since there is no C++ compiler" in capsys.readouterr().err
    assert record is not None
    asked, made = record["settings"]["training"], record["provenance"]
    assert (asked["compile"], made["compiled"]) == (True, False)
    assert (asked["precision"], made["precision"]) == ("auto", "float32")


@pytest.mark.parametrize("tied", [True, False])
def test_padded_vocabulary_changes_neither_logits_nor_gradients(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = NormFreeForCausalLM(NormFreeConfig.from_shape("gpt2-2x32", vocab_size=300, tie_word_embeddings=tied))
    ids = torch.randint(300, (2, 16))
    results = []
    for multiple in (1, 128):
        monkeypatch.setattr(Head, "multiple", multiple)
        model.zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        results.append((output.logits, output.loss, *(p.grad for p in model.parameters())))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)
    assert results[1][0].shape == (2, 16, 300)
    assert model.state_dict()["lm_head.weight"].shape == (300, 32), "the padding is not saved"


def test_only_training_leaves_logits_out() -> None:
    model = NormFreeForCausalLM(NormFreeConfig.from_shape("gpt2-2x32", vocab_size=300))
    ids = torch.randint(300, (2, 16))
    whole = model.train()(ids, labels=ids)
    for field in ("loss_alone", "chunked_loss"):
        setattr(model, field, True)
        alone = model.train()(ids, labels=ids)
        assert alone.logits is None
        torch.testing.assert_close(alone.loss, whole.loss)
        assert model(ids).logits.shape == (2, 16, 300)
        assert model.eval()(ids, labels=ids).logits.shape == (2, 16, 300)


def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, expected in (
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx2": True}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert machine.resolve_precision("auto") == expected
    assert machine.resolve_precision("float16") == "float16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of torch
    assert machine.resolve_precision("auto") == "float32"


def test_chunked_loss_is_refused_where_torch_lacks_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    with pytest.raises(SettingsError, match=r"training\.chunked_loss: true needs torch 2\.13"):
        train(tiny(training={"chunked_loss": True, "steps": 11}), quiet=True)


@pytest.mark.parametrize(
    ("precision", "context", "expected"),
    [("float32", 32, "sdpa"), ("bfloat16", 32, "eager"), ("bfloat16", 1024, "sdpa")],
)
def test_attention_of_short_sequences_in_bfloat16(
    tiny: Tiny, tmp_path: Any, precision: str, context: int, expected: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a rule for CPUs")
    experiment = tiny(
        data={"context": context}, model={"max_position_embeddings": 1024}, training={"precision": precision}
    )
    parts = {name: np.zeros((n, context), np.uint16) for name, n in (("train", 8), ("validation", 2))}
    tokens: Any = SimpleNamespace(**parts, hash="zeros")
    found = training.Training(experiment, tokens, tmp_path)
    assert found.model.config._attn_implementation == expected


def test_a_model_trained_with_plain_attention_loads_with_the_default(tiny: Tiny) -> None:
    run = train(tiny(training={"precision": "bfloat16"}), quiet=True)
    assert NormFreeForCausalLM.from_pretrained(run / "model").config._attn_implementation == "sdpa"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    """Page faults of a program that takes and frees 64 MiB again and again; in a process of its own, for good."""
    code = (
        "import resource, torch; from nfcore.machine import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.zeros(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(); keep_freed_memory(); faults(); print(first, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 20, (before, after)
