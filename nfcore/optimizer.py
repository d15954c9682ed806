"""The optimiser and its schedule: torch's AdamW, or that of transformers 4.30, with which the paper's code trains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from nfcore.model import NormFreeForCausalLM
from nfcore.settings import TrainingSettings


class HFAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, as the class ``AdamW`` of transformers 4.30 computes it.

    With gradient g, moments m and v, learning rate lr and weight decay w, update t = 1, 2, ... is::

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p <- p - lr w p

    ``torch.optim.AdamW`` corrects the bias of v before it adds epsilon. This class corrects it afterwards, so its
    epsilon acts like torch's epsilon divided by sqrt(1 - beta2^t): with beta2 = 0.999, 32 times larger in update 1 and
    1.26 times in update 1,000. It also decays the weights after the step; torch decays them before it.

    A parameter without a gradient keeps its value and its t.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue  # foreach functions refuse empty lists
            for p in parameters:
                if p not in self.state:  # the names and types of torch's AdamW
                    moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[p] = {"step": torch.zeros(()), **moments}
            states = [self.state[p] for p in parameters]
            counts, m, v = ([state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq"))
            gradients = [p.grad for p in parameters]
            (beta1, beta2), lr = group["betas"], group["lr"]

            torch._foreach_add_(counts, 1)
            torch._foreach_mul_(m, beta1)
            torch._foreach_add_(m, gradients, alpha=1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
            denominators = torch._foreach_sqrt(v)
            torch._foreach_add_(denominators, group["eps"])
            steps = [-lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) for t in map(float, counts)]
            torch._foreach_addcdiv_(parameters, m, denominators, steps)
            if decay := group["weight_decay"]:
                torch._foreach_add_(parameters, parameters, alpha=-lr * decay)


def optimizer_and_schedule(
    model: NormFreeForCausalLM, settings: TrainingSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with decay on matrices and embeddings, none on biases and norms, its own on learnable slopes, and with
    ``ffn_rate``; linear warm-up, then linear decay to ``final_learning_rate`` one step after the last."""
    slopes, factor = model.learned("slope"), settings.ffn_rate
    decay, rate = settings.weight_decay, settings.learning_rate
    ffns: list[Any] = [block.ffn for block in model.blocks] if factor != 1 else []
    up, down = [ffn.up.weight for ffn in ffns], [ffn.down.weight for ffn in ffns]
    named = {id(p) for p in (*slopes, *up, *down)}
    rest = [p for p in model.parameters() if id(p) not in named]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        {"params": slopes, "weight_decay": settings.slope_weight_decay},
        # The factor is one on the rate alone: an update decays these matrices as much as all others.
        {"params": up, "lr": rate * factor, "weight_decay": decay / factor},
        {"params": down, "lr": rate / factor, "weight_decay": decay * factor},
    ]
    kind: Any = HFAdamW if settings.optimizer == "hf_adamw" else partial(torch.optim.AdamW, fused=True)
    betas = (settings.beta1, settings.beta2)
    optimizer = kind([group for group in groups if group["params"]], lr=rate, betas=betas, eps=settings.epsilon)
    # In transformers' schedule the first update has rate zero, and a part of a warm-up step counts as one.
    first, whole = (0, math.ceil) if settings.schedule == "hf_linear" else (1, round)
    warmup = whole(settings.warmup_fraction * steps)
    floor = settings.final_learning_rate / rate

    def share(step: int) -> float:
        if step < warmup:
            return (step + first) / warmup
        return floor + (1 - floor) * max(0, steps - step) / max(1, steps - warmup)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)
