"""What is measured while a run trains: the first value that is not finite, and the tables of :mod:`nfcore.runs`.

Axes: B batch, T positions, L layers, H heads.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nfcore import runs
from nfcore.linearity import nonlinear_shares
from nfcore.meter import attention_statistics
from nfcore.model import NormFreeForCausalLM
from nfcore.units import unit_statistics


NEVER = 2**62
EXPLODED = 1e6  # a gradient entry beyond this; in recorded runs that trained the norm of all entries stayed below 1e2


class Watch:
    """Flags on the device for the first step and layer with a value that is not finite, and for the first with a finite
    gradient entry beyond ``EXPLODED``: two events, of which only the first ends a run.

    Nothing is copied to the host while training; :meth:`events` does that, at the logging cadence. By then a value that
    is not finite has made every weight NaN, so the flags are what still tells where it began. Layers 0..L-1 are the
    blocks, L the head. In a backward pass, which runs from the head down, the highest layer with a bad gradient is the
    first.
    """

    # Gradients are divided until no entry is larger than this, so that the square of their norm fits float32.
    LARGEST = 1e15

    def __init__(self, model: NormFreeForCausalLM) -> None:
        self.forward = torch.full((len(model.blocks) + 1,), NEVER, device=model.device)
        self.backward = self.forward.clone()
        self.exploded = self.forward.clone()
        self.step = torch.zeros((), dtype=torch.int64, device=model.device)
        self.parameters = list(model.parameters())
        # A tied head gets the embedding's gradient too, which the last step of the backward pass completes.
        tied = model.lm_head.weight is model.embed.weight
        head = [*model.final_norm.parameters(), *([] if tied else model.lm_head.parameters())]
        self.layers = [*(list(block.parameters()) for block in model.blocks), head]
        known = {id(p) for of_layer in self.layers for p in of_layer}  # embeddings and activations count as layer 0's
        self.layers[0] += [p for p in self.parameters if id(p) not in known]
        for layer, module in enumerate([*model.blocks, model]):  # the model for the loss, which tells of all logits
            module.register_forward_hook(partial(self._check_output, layer))

    def _check_output(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:
            # Both extremes are NaN if any value is; one pass, many times as fast as asking each value.
            low, high = output[0].detach().aminmax()
            self._mark(self.forward, layer, ~(low.isfinite() & high.isfinite()))

    def _mark(self, flags: Tensor, layer: int, found: Tensor) -> None:
        flags[layer] = torch.where(found, flags[layer].minimum(self.step), flags[layer])

    @torch.no_grad()
    def check_gradients(self) -> None:
        """Call when the gradients of a step are complete and not yet clipped: it makes their norm safe to take."""
        tops = []
        for layer, parameters in enumerate(self.layers):
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            if gradients := [g for g in gradients if g.numel()]:
                top = torch.stack(torch._foreach_norm(gradients, math.inf)).amax().float()
                self._mark(self.backward, layer, ~top.isfinite())
                self._mark(self.exploded, layer, top.isfinite() & (top > EXPLODED))
                tops.append(top)
        largest = torch.stack(tops).amax()
        if dist.is_initialized():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        factor = (self.LARGEST / largest).clamp(max=1.0)
        torch._foreach_mul_([local(p.grad) for p in self.parameters if p.grad is not None], factor)

    def events(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The first value that is not finite in any process, ``{"step", "layer", "where"}``, and the first exploded
        gradient, ``{"step", "layer"}``; None for what has not happened. ``step`` counts from 1."""
        flags = torch.stack([self.forward, self.backward, self.exploded])
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MIN)
        forward, backward, exploded = flags.tolist()
        first, large = min(forward + backward), min(exploded)
        layer, where = (forward.index(first), "forward") if first in forward else (_last(backward, first), "backward")
        bad = {"step": first, "layer": layer, "where": where} if first < NEVER else None
        return bad, {"step": large, "layer": _last(exploded, large)} if large < NEVER else None


def _last(flags: list[int], step: int) -> int:
    return max(layer for layer, flag in enumerate(flags) if flag == step)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that FSDP shards; any other tensor whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that FSDP shards gathered from all processes; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Telemetry:
    """The tables of a run, and its clocks; both travel in its checkpoints.

    ``probe`` (B, T) is a fixed held-out batch. Each of several processes measures the whole probe, as fast as one of
    them would while the others wait, and the first keeps the numbers.
    """

    FILE = "tables.json"
    KEPT = ("tables", "seconds", "wall_seconds", "commits", "diverged", "exploded")

    def __init__(self, model: NormFreeForCausalLM, probe: Tensor, commit: str) -> None:
        self.model, self.probe = model, probe
        # The same tokens for all runs of a vocabulary: what attention does where there is nothing to find.
        generator = torch.Generator().manual_seed(0)
        self.random = torch.randint(model.config.vocab_size, probe.shape, generator=generator)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in runs.TABLES}
        self.commits = [commit]  # several, if the run is resumed from another one
        self.diverged: dict[str, Any] | None = None  # the first events of Watch
        self.exploded: dict[str, Any] | None = None
        self.seconds = 0.0  # of training, without evaluation, probes and checkpoints
        self._started = self._lap = perf_counter()

    @property
    def wall_seconds(self) -> float:
        """From start to now, everything included, over all the starts of a resumed run."""
        return perf_counter() - self._started

    def lap(self, training: bool) -> None:
        """End a lap of the clock, which was spent training or on something else."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = perf_counter()
        self.seconds += now - self._lap if training else 0.0
        self._lap = now

    def save(self, checkpoint: Path) -> None:
        (checkpoint / self.FILE).write_text(json.dumps({name: getattr(self, name) for name in self.KEPT}))

    def load(self, checkpoint: Path) -> None:
        saved = json.loads((checkpoint / self.FILE).read_text())
        self.tables, self.seconds, self.exploded = saved["tables"], saved["seconds"], saved["exploded"]
        self.diverged = saved.get("diverged")  # checkpoints of earlier versions have none
        self._started -= saved["wall_seconds"]
        self.commits = list(dict.fromkeys([*saved["commits"], *self.commits]))

    def measure(self, step: int, last: bool = False, units: bool = True) -> None:
        """Rows of the tables ``layers``, ``heads`` and, at the last probe, ``positions``; dropout off. ``units``: with
        :func:`~nfcore.units.unit_statistics`, which cost more than the rest."""
        attention = self.model.config._attn_implementation
        self.model.set_attn_implementation("sdpa")  # so that a probe does not depend on what training attends with
        layers, heads = self._forward(units)
        positions = {"entropy": heads.pop("by_position")}
        heads["entropy_random"] = torch.full_like(heads["entropy"], math.nan)
        if last:
            random = attention_statistics(self.model, self.random)
            heads["entropy_random"], positions["entropy_random"] = random["entropy"], random["by_position"]
        self.model.set_attn_implementation(attention)
        learned = {name: [gathered(p).mean().item() for p in self.model.learned(name)] for name in ("slope", "scale")}
        for layer, values in enumerate(layers):
            where = {"step": step, "layer": layer}
            own = {name: found[layer % len(found)] if found else math.nan for name, found in learned.items()}
            self.tables["layers"].append(where | values | own)
            for head in range(heads["entropy"].shape[1]):
                values = {name: float(table[layer, head]) for name, table in heads.items()}
                self.tables["heads"].append(where | {"head": head} | values)
            for position in range(self.probe.shape[1] if last else 0):
                values = {name: float(table[layer, position]) for name, table in positions.items()}
                self.tables["positions"].append(where | {"position": position + 1} | values)

    def _forward(self, units: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        """Measure each layer and its heads in a pass over the probe."""
        layers: list[dict[str, float]] = []
        inputs: list[Tensor] = []

        def before_activation(module: nn.Module, args: Any) -> None:
            inputs[:] = [args[0].clone()]  # it may work in place

        def after_activation(module: nn.Module, args: Any, y: Tensor) -> None:
            x, y = inputs[0].flatten(0, -2), y.flatten(0, -2)  # (B T, F)
            share, centred = nonlinear_shares(x, y)
            found = {"nonlinear_share": share, "nonlinear_share_centred": centred}
            found |= unit_statistics(x, y, self.probe.flatten().to(x.device)) if units else {}
            layers.append({"preactivation_std": float(x.std()), **found})

        def after_block(module: nn.Module, args: Any, output: Any) -> None:
            layers[-1]["residual_rms"] = float(output[0].float().square().mean().sqrt())

        activations = dict.fromkeys(self.model.activations)  # one may serve several layers
        hooks = [activation.register_forward_pre_hook(before_activation) for activation in activations]
        hooks += [activation.register_forward_hook(after_activation) for activation in activations]
        hooks += [block.register_forward_hook(after_block) for block in self.model.blocks]
        heads = attention_statistics(self.model, self.probe)
        for hook in hooks:
            hook.remove()
        del heads["ceiling"], heads["layer"]  # the same in all rows, and their number
        return layers, heads
