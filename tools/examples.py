"""Record what two figures show of one trained model: the inputs of its first activation, before and after training, and
a row of attention of its heads of highest and of lowest entropy.

``python -m tools.examples`` writes ``data/recorded/examples.json`` from the first run of SM+G in the transient. It has
to be finished on this machine: ``python -m nfbook list transient --write DIR`` writes its settings to a file, and
``python -m nfcore train`` takes that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfbook.recorded import recorded_dir
from nfbook.study import Study
from nfcore import NormFreeConfig, NormFreeForCausalLM, head_entropy, runs
from nfcore.settings import Experiment, SettingsError
from nfcore.store import verify, write_atomically
from nfcore.tokens import prepare
from nfcore.training import as_ids


BINS, WIDEST = 48, 4.0  # of a histogram, which goes to so many standard deviations on both sides
POSITION = 32  # of the query, counted from one


def examples(experiment: Experiment) -> dict[str, Any]:
    """What the figures show of a finished run; its probe batch is the text. Raises SettingsError where it is not."""
    directory = runs.runs_dir() / experiment.id
    record = runs.read_record(directory)
    if not record:
        raise SettingsError(f"{directory}: there is no finished run of {experiment.name or experiment.id}")
    verify(directory, record)
    trained = NormFreeForCausalLM.from_pretrained(directory / "model")
    torch.manual_seed(experiment.seed)
    start = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model)))
    tokens = prepare(experiment.data)
    probe = as_ids(tokens.validation[: experiment.training.probe_sequences])
    trained.set_attn_implementation("eager")
    entropies = head_entropy(trained, probe)  # (layers, heads)
    with torch.no_grad():
        maps = trained.eval()(input_ids=probe, output_attentions=True).attentions  # per layer (B, H, T, T)
    heads = {
        name: divmod(int(flat), entropies.shape[1])
        for name, flat in (("highest", entropies.argmax()), ("lowest", entropies.argmin()))
    }
    rows = {name: maps[layer][:, head, POSITION - 1, :POSITION].double() for name, (layer, head) in heads.items()}
    of_rows = {name: -torch.xlogy(weights, weights).sum(1) for name, weights in rows.items()}  # (B,)
    # The text in which the row of the head of lowest entropy is a typical one of that head.
    text = int(of_rows["lowest"].argsort()[len(probe) // 2])
    row_of = {
        name: {
            "layer": layer,
            "head": head,
            "head_entropy": round(float(entropies[layer, head]), 4),
            "row_entropy": round(float(of_rows[name][text]), 4),
            "weights": [round(float(w), 5) for w in rows[name][text]],
        }
        for name, (layer, head) in heads.items()
    }
    return {
        "run": experiment.id,
        "configuration": "SM+G",
        "updates": experiment.training.steps,
        "inputs": {name: histogram(inputs(model, probe)) for name, model in (("start", start), ("end", trained))},
        "tokens": [tokens.tokenizer.decode([int(t)]) for t in probe[text, :POSITION]],
        "rows": row_of,
    }


def inputs(model: NormFreeForCausalLM, probe: torch.Tensor) -> np.ndarray:
    """All inputs of the activation in the first layer."""
    seen: list[torch.Tensor] = []
    hook = model.activations[0].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(input_ids=probe)
    hook.remove()
    return seen[0].flatten().double().numpy()


def histogram(x: np.ndarray) -> dict[str, Any]:
    """Their standard deviation and their density in bins; what lies outside of these is a number of its own."""
    edge = WIDEST * x.std()
    counts, _ = np.histogram(x, bins=BINS, range=(-edge, edge))
    return {
        "std": float(f"{x.std():.4g}"),
        "edge": float(f"{edge:.5g}"),
        "share": [round(float(c) / len(x), 5) for c in counts],
        "outside": round(1 - counts.sum() / len(x), 5),
    }


def main() -> Path:
    path = recorded_dir("") / "examples.json"
    found = examples(Study.load("transient").cells["SM+G"].experiments[0])
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    print(main())
