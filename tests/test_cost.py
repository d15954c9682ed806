"""What a run costs: counts against built models, memory against its settings."""

from typing import Any

import pytest
import torch

from nfcore.cost import flops_per_token, memory_bytes, parameters
from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import SHAPES, Experiment, ModelSettings


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(shape: str, tied: bool) -> None:
    settings = ModelSettings(**SHAPES[shape], tie_word_embeddings=tied)
    with torch.device("meta"):
        model = NormFreeForCausalLM(NormFreeConfig(**vars(settings)))
    total, multiplied = parameters(settings)
    assert total == sum(p.numel() for p in model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    small = multiplied - matrices  # biases and norms
    assert 0 <= small < 0.01 * matrices


def test_operations_of_gpt2() -> None:
    model = ModelSettings(biases="all")
    assert parameters(model) == (124_439_808, 124_439_808 - 1024 * 768)  # as Hugging Face's gpt2
    assert flops_per_token(model, 1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_memory_follows_the_settings() -> None:
    def of(**training: Any) -> float:
        return memory_bytes(Experiment.from_dict({"model": {"vocab_size": 1024}, "training": training}))

    small = of(batch_size=8)
    assert of(batch_size=32, micro_batch_size=8) == small
    assert of(batch_size=8, precision="bfloat16") < small
    assert of(batch_size=8, gradient_checkpointing=True) < small
    states = 16 * parameters(ModelSettings(vocab_size=1024))[0]
    assert of(batch_size=32) - states == pytest.approx(4 * (small - states))
