"""What is measured while a run trains: the first value that is not finite, and the tables of :mod:`nfcore.runs`.

Axes: B batch, T positions, L layers, H heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
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

    def __init__(self, model: NormFreeForCausalLM, watch_gradients: bool) -> None:
        layers = len(model.blocks)
        self.forward = torch.full((layers + 1,), NEVER, device=model.device)
        self.backward = self.forward.clone()
        self.exploded = self.forward.clone()
        self.step = torch.zeros((), dtype=torch.int64, device=model.device)
        self.parameters = list(model.parameters())
        self.gradients = [list(block.parameters()) for block in model.blocks] if watch_gradients else []
        if watch_gradients:
            # A tied head gets the embedding's gradient too, which the last step of the backward pass completes.
            tied = model.lm_head.weight is model.embed.weight
            self.gradients.append([*model.final_norm.parameters(), *([] if tied else model.lm_head.parameters())])
        for i, module in enumerate([*model.blocks, model]):  # the model for the loss, which tells of all logits
            module.register_forward_hook(self._hook(i))

    def _hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if module.training:
                self._flag(self.forward, layer, output[0].detach())

        return hook

    def _flag(self, flags: Tensor, layer: int, value: Tensor) -> None:
        # Both extremes are NaN if any value is; one pass, many times as fast as asking each value.
        self._mark(flags, layer, ~torch.stack(value.aminmax()).isfinite().all())

    def _mark(self, flags: Tensor, layer: int, found: Tensor) -> None:
        flags[layer] = torch.where(found, flags[layer].minimum(self.step), flags[layer])

    @torch.no_grad()
    def check_gradients(self) -> None:
        """Call when the gradients of a step are complete and not yet clipped: it makes their norm safe to take."""
        tops = []
        for layer, parameters in enumerate(self.gradients):
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            if gradients := [g for g in gradients if g.numel()]:
                top = torch.stack(torch._foreach_norm(gradients, math.inf)).amax().float()
                self._mark(self.backward, layer, ~top.isfinite())
                self._mark(self.exploded, layer, top.isfinite() & (top > EXPLODED))
                tops.append(top)
        if not tops:
            return
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
        forward, backward, exploded = flags.cpu()
        bad = None
        if (first := min(int(forward.min()), int(backward.min()))) < NEVER:
            if int(forward.min()) == first:
                bad = {"step": first, "layer": int((forward == first).nonzero()[0]), "where": "forward"}
            else:
                bad = {"step": first, "layer": int((backward == first).nonzero()[-1]), "where": "backward"}
        large = None
        if (first := int(exploded.min())) < NEVER:
            large = {"step": first, "layer": int((exploded == first).nonzero()[-1])}
        return bad, large


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that FSDP shards; any other tensor whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP shards gathered from all processes; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Telemetry:
    """The tables of a run, and its clocks; both travel in its checkpoints.

    ``probe`` (B, T) is a fixed held-out batch. Of several processes each measures the whole probe, as fast as one of
    them would while the others wait, and the first keeps the numbers.
    """

    FILE = "tables.json"
    KEPT = ("tables", "seconds", "wall_seconds", "commits", "exploded")

    def __init__(self, model: NormFreeForCausalLM, probe: Tensor, commit: str) -> None:
        self.model, self.probe = model, probe
        # The same tokens for all runs of a vocabulary: what attention does where there is nothing to find.
        generator = torch.Generator().manual_seed(0)
        self.random = torch.randint(model.config.vocab_size, probe.shape, generator=generator)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in runs.TABLES}
        self.commits = [commit]  # several, if the run is resumed from another one
        self.exploded: dict[str, Any] | None = None
        self.seconds = 0.0  # of training, without evaluation, probes and checkpoints
        self._since: float | None = None
        self._wall_before, self._started = 0.0, perf_counter()  # before an interruption; since this start

    @property
    def wall_seconds(self) -> float:
        """From start to now, everything included, over all the starts of a resumed run."""
        return self._wall_before + perf_counter() - self._started

    def start_clock(self) -> None:
        self._since = perf_counter()

    def stop_clock(self) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += perf_counter() - self._since
            self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock of training, which goes on afterwards if it ran."""
        running = self._since is not None
        self.stop_clock()
        yield
        if running:
            self.start_clock()

    def save(self, checkpoint: Path) -> None:
        (checkpoint / self.FILE).write_text(json.dumps({name: getattr(self, name) for name in self.KEPT}))

    def load(self, checkpoint: Path) -> None:
        saved = json.loads((checkpoint / self.FILE).read_text())
        self.tables, self.seconds, self.exploded = saved["tables"], saved["seconds"], saved["exploded"]
        self._wall_before = saved["wall_seconds"]
        self.commits = list(dict.fromkeys([*saved["commits"], *self.commits]))

    def add(self, step: int, **values: float) -> None:
        """Rows of the table ``metrics``."""
        self.tables["metrics"] += [{"step": step, "name": name, "value": float(v)} for name, v in values.items()]

    def measure(self, step: int, last: bool = False) -> None:
        """Rows of the tables ``layers``, ``heads`` and, at the last probe, ``positions``; dropout off."""
        model = self.model
        layers: list[dict[str, float]] = [{} for _ in model.blocks]
        calls = 0

        def watch_activation(module: nn.Module, args: Any, y: Tensor) -> None:
            nonlocal calls
            x = args[0]
            shares = nonlinear_shares(*(t.detach().flatten(0, -2) for t in (x, y)))
            names = ("nonlinear_share", "nonlinear_share_centred")
            layers[calls] |= {"preactivation_std": float(x.std()), **dict(zip(names, shares, strict=True))}
            calls += 1

        def watch_block(layer: int) -> Any:
            return lambda module, args, out: layers[layer].update(residual_rms=_rms(out[0]))

        hooks = [block.register_forward_hook(watch_block(i)) for i, block in enumerate(model.blocks)]
        hooks += [activation.register_forward_hook(watch_activation) for activation in model.activations]
        with self.paused(), _fused_attention(model):
            try:
                heads = attention_statistics(model, self.probe)
            finally:
                for hook in hooks:
                    hook.remove()
            random = attention_statistics(model, self.random) if last else None
        slopes, scales = (
            [float(whole(p.detach())) for p in values] or [math.nan] for values in (model.slopes, model.scales)
        )
        by_position = heads.pop("by_position")
        for name in ("ceiling", "layer"):  # the same in all rows, and their number
            del heads[name]
        random_by_position = random["by_position"] if random else torch.full_like(by_position, math.nan)
        heads["entropy_random"] = random["entropy"] if random else torch.full_like(heads["entropy"], math.nan)
        for layer, values in enumerate(layers):
            where = {"step": step, "layer": layer}
            values |= {"slope": slopes[layer % len(slopes)], "scale": scales[layer % len(scales)]}
            self.tables["layers"].append(where | values)
            for head in range(heads["entropy"].shape[1]):
                values = {name: float(table[layer, head]) for name, table in heads.items()}
                self.tables["heads"].append({**where, "head": head, **values})
            if last:
                pairs = zip(by_position[layer].tolist(), random_by_position[layer].tolist(), strict=True)
                for i, (entropy, entropy_random) in enumerate(pairs, 1):
                    values = {"entropy": entropy, "entropy_random": entropy_random}
                    self.tables["positions"].append({**where, "position": i, **values})


@contextmanager
def _fused_attention(model: NormFreeForCausalLM) -> Iterator[None]:
    """Attend with torch's fused attention, so that a probe does not depend on what training attends with."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
