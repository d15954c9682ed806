"""The paper's AdamW against its formula and torch's AdamW; resuming, and the loss scaler of mixed precision."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfcore.optimizer import HFAdamW


BETAS, STEPS = (0.8, 0.95), 12


def by_hand(p: float, gradients: Iterable[float], rates: Iterable[float], eps: float, decay: float) -> float:
    """A number after its updates."""
    (beta1, beta2), m, v = BETAS, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p -= lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + eps)
        p -= lr * decay * p
    return p


def drawn(*shape: int) -> tuple[Tensor, Tensor]:
    """Initial values and the gradients of all updates, in double precision."""
    return torch.randn(shape, dtype=torch.float64), torch.randn((STEPS, *shape), dtype=torch.float64)


def updated(optimizer: type[Any], start: Tensor, gradients: Iterable[Tensor], **options: Any) -> Tensor:
    p = nn.Parameter(start.clone())
    made = optimizer([p], lr=0.1, betas=BETAS, **options)
    for p.grad in gradients:
        made.step()
    return p.detach()


@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_equals_its_formula(eps):
    (start, gradients), decays = drawn(2), (0.3, 0.0)
    parameters = [nn.Parameter(value.clone()) for value in start]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(parameters, decays, strict=True)]
    optimizer = HFAdamW(groups, lr=0.1, betas=BETAS, eps=eps)
    rates = [0.1 * t / STEPS for t in range(STEPS)]
    for rate, gradient in zip(rates, gradients, strict=True):
        for p, g, group in zip(parameters, gradient, optimizer.param_groups, strict=True):
            p.grad, group["lr"] = g, rate
        optimizer.step()
    for i, decay in enumerate(decays):
        expected = by_hand(float(start[i]), gradients[:, i].tolist(), rates, eps, decay)
        assert parameters[i].item() == pytest.approx(expected, rel=1e-12)


def test_a_parameter_without_a_gradient_skips_the_update():
    start, gradients = drawn(2)
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizer = HFAdamW(parameters, lr=0.1, betas=BETAS, eps=1e-8)
    for t, gradient in enumerate(gradients):
        parameters[0].grad, parameters[1].grad = gradient, (None if t % 2 else gradient)
        optimizer.step()
    assert torch.equal(parameters[0], updated(HFAdamW, start, gradients, eps=1e-8))
    assert torch.equal(parameters[1], updated(HFAdamW, start, gradients[::2], eps=1e-8))


def test_equals_torch_without_epsilon_and_decay():
    start, gradients = drawn(5)
    ours, torchs = (updated(kind, start, gradients, eps=0.0, weight_decay=0.0) for kind in (HFAdamW, torch.optim.AdamW))
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


def test_an_update_that_the_loss_scaler_skips_does_not_count():
    p = nn.Parameter(torch.ones(3))
    optimizer = HFAdamW([p], lr=0.1, betas=BETAS, eps=1e-8)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (1.0, math.inf, 1.0):
        scaler.scale((p * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert float(optimizer.state[p]["step"]) == 2
    assert float(optimizer.state[p]["exp_avg"][0]) == pytest.approx(1 - BETAS[0] ** 2)  # of gradients that are unscaled
