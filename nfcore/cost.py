"""What a run costs before it is run: parameters, floating-point operations, memory.

Axes: T context, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from functools import cache

from nfcore.settings import Experiment, ModelSettings


@cache
def parameters(model: ModelSettings) -> tuple[int, int]:
    """Parameters, and those of them that stand in a matrix product (embeddings do not, a tied head does)."""
    import torch

    from nfcore.model import NormFreeConfig, NormFreeForCausalLM

    with torch.device("meta"):
        built = NormFreeForCausalLM(NormFreeConfig(**vars(model)))
    total = sum(p.numel() for p in built.parameters())
    looked_up = 0 if built.positions is None else built.positions.weight.numel()
    return total, total - looked_up - (0 if model.tie_word_embeddings else built.embed.weight.numel())


def flops_per_token(model: ModelSettings, context: int) -> float:
    """Of a forward and backward pass: 6 a parameter in a matrix product, and 12 L D T in attention, whose map is
    counted whole although half is masked (Chowdhery et al. 2022, arXiv 2204.02311, appendix B; nanoGPT, llm.c)."""
    return 6 * parameters(model)[1] + 12 * model.num_hidden_layers * model.hidden_size * context


def memory_bytes(experiment: Experiment) -> float:
    """Of training, roughly: weights, gradients and AdamW's two moments in float32 (16 bytes a parameter) and autocast's
    16-bit copy of the weights; what the backward pass of a micro-batch needs of each layer; its logits."""
    model, settings = experiment.model, experiment.training
    tokens = (settings.micro_batch_size or settings.batch_size) * experiment.data.context
    wide, low = (4 if kind == "float32" else 2 for kind in (model.residual_dtype, settings.precision))
    # The stream and its normalised copy, twice; q, k, v and attention's output; the FFN; attention's log-sum-exp.
    layer = (2 * wide + 6 * low) * model.hidden_size + 2 * low * (model.intermediate_size or 0)
    layer += 4 * model.num_attention_heads
    layers = model.num_hidden_layers * layer
    if settings.gradient_checkpointing:
        layers = model.num_hidden_layers * wide * model.hidden_size + layer
    head = (2 * low + 12) * model.vocab_size  # logits and gradient; in float32 logits, log-softmax and gradient
    return parameters(model)[0] * (16 + low % 4) + tokens * (layers + head)
