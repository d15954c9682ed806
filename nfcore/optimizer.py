"""The AdamW of transformers 4.30, with which the paper's code trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
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
        return loss
