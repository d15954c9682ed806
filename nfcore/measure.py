"""``python -m nfcore entropy``: the head entropies of a saved model on texts, as tables, CSV and a picture."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from nfcore import runs
from nfcore.settings import SettingsError
from nfcore.shares import QUARTERS, quartile_shares
from nfcore.store import refusing, verify


TOKENS = 8192  # of a batch, at least one sequence
COLUMNS = ("entropy", "entropy_over_ln_i", "log_sum_exp", "max_logit", "sink_rate", "nonfinite_rows", "ceiling")


def load(model: str, device: str = "cpu", dtype: str | None = None) -> tuple[Any, Any]:
    """A model, in evaluation mode, and its tokenizer.

    ``model``: the id of a finished run, a directory with a saved model and its tokenizer, or a Hub name. ``dtype``:
    None is the one that the weights are saved in.

    Raises:
        SettingsError: the model cannot be loaded, or not onto the device.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nfcore.model  # noqa: F401  registers our models with the Auto classes

    saved = runs.runs_dir() / model
    if record := runs.read_record(saved):
        verify(saved, record)
        if record["status"] != "complete":
            raise SettingsError(f"model: run {model} diverged, and has no model")
    where = saved / "model" if record else model
    remedy = "give the id of a finished run, a directory with a model and its tokenizer, or a name on the Hub"
    with refusing(f"model: {model!r} cannot be loaded on device {device!r}", remedy):
        network = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=False, dtype=dtype or "auto")
        network.eval().to(torch.device(device))
        return network, AutoTokenizer.from_pretrained(where, trust_remote_code=False)


def sequences_of(network: Any, tokenizer: Any, text: Path, context: int, sequences: int) -> Any:
    """Token ids (B, T): the first ``sequences`` pieces of ``context`` tokens of a text file.

    Raises:
        SettingsError: the text cannot be read or is too short, or the model has fewer positions.
    """
    import torch

    with refusing(f"{text}: not UTF-8 text", "convert it", (UnicodeDecodeError,)):
        content = text.read_text(encoding="utf-8")
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None) or context
    if not 2 <= context <= limit:
        raise SettingsError(f"context: {context} must be between 2 and the model's {limit} positions")
    if sequences < 1:
        raise SettingsError(f"sequences: {sequences} must be at least 1")
    ids = tokenizer(content)["input_ids"]
    count = min(sequences, len(ids) // context)
    if count < 1:
        raise SettingsError(f"{text}: {len(ids)} tokens, fewer than one sequence of {context}")
    return torch.tensor(ids[: count * context]).view(count, context)


def measure(network: Any, ids: Any, label: str = "") -> pd.DataFrame:
    """A row per layer and head with ``COLUMNS`` of :func:`~nfcore.meter.attention_statistics`, over token ids (B, T).

    What takes more than two seconds shows a bar with ``label``.
    """
    from nfcore.meter import attention_statistics

    batches, weights = [], []
    for batch in tqdm(ids.split(max(1, TOKENS // ids.shape[1])), f"  {label}", leave=False, delay=2):
        batches.append({name: x.double().numpy() for name, x in attention_statistics(network, batch).items()})
        there = np.isfinite(batches[-1]["entropy"])  # layers may have fewer heads than others
        weights.append(np.where(there, batch.numel() - batches[-1]["nonfinite_rows"], 0))
    layers, heads = weights[0].shape
    whole = {"layer": batches[0]["layer"].repeat(heads), "head": np.tile(np.arange(heads), layers)}
    for name in COLUMNS:
        values = np.stack([found[name] for found in batches])  # (batches, L, H)
        with np.errstate(invalid="ignore"):
            mean = (np.nan_to_num(values) * weights).sum(0) / np.sum(weights, 0)
        whole[name] = {"nonfinite_rows": values.sum(0), "max_logit": values.max(0)}.get(name, mean).ravel()
    return pd.DataFrame(whole).astype({"layer": int, "nonfinite_rows": int})


def table(frame: pd.DataFrame, shape: tuple[int, int]) -> str:
    """The head entropies of :func:`measure` in nats, a line per layer under its own number, with their ceiling."""
    heads, ceilings = pivot(frame, "entropy"), pivot(frame, "ceiling")
    shown = heads.rename(columns=lambda h: f"head {h}")
    low, high = float(np.nanmin(ceilings)), float(np.nanmax(ceilings))
    ceiling = f"ceiling {high:.4f}"
    if high - low >= 5e-5:
        ceiling = f"ceiling {low:.4f} to {high:.4f}, as the mask of each layer allows"
        shown.insert(0, "ceiling", ceilings.mean(axis=1))
    shown.insert(0, "mean", heads.mean(axis=1))
    bad = int(frame["nonfinite_rows"].sum())
    left_out = f"; {bad} rows that are not finite are left out" if bad else ""
    shares = quartile_shares(heads.to_numpy() / ceilings.to_numpy(), 1.0)
    return (
        f"{shown.to_string(float_format='{:.3f}'.format)}\n\n"
        f"nats, {shape[0]} sequences of {shape[1]} tokens; {ceiling}{left_out}\n"
        "share of heads with Max = ceiling: " + ", ".join(f"{q} {s:.0%}" for q, s in zip(QUARTERS, shares, strict=True))
    )


def pivot(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of :func:`measure` as layers by heads, in the model's order (a layer that runs twice has two rows)."""
    heads = frame["head"].max() + 1
    values = frame[name].to_numpy().reshape(-1, heads)
    return pd.DataFrame(values, index=pd.Index(frame["layer"].to_numpy()[::heads], name="layer"))


def picture(frames: dict[str, pd.DataFrame], file: Path) -> None:
    """Write the maps of entropy over ceiling, one per text, to an image file."""
    from matplotlib.figure import Figure

    layers, heads = pivot(next(iter(frames.values())), "entropy").shape
    size = (len(frames) * (1.6 + 0.4 * heads), 1.2 + 0.3 * layers)
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(frames), squeeze=False)
    for axes, (name, frame) in zip(panels[0], frames.items(), strict=True):
        over = pivot(frame, "entropy") / pivot(frame, "ceiling")
        image = axes.imshow(over.to_numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set(title=name, xlabel="head", ylabel="layer", xticks=range(heads))
        axes.set_yticks(range(layers), over.index)
    figure.colorbar(image, ax=panels[0], label="entropy / ceiling")
    with refusing(f"--plot: {str(file)!r}", "take .png, .svg or .pdf", (ValueError,)):
        figure.savefig(file, dpi=150)


def entropy_of_texts(args: Namespace) -> Iterator[str]:
    """Tables of the head entropies of a model on each text, as the command line asks for them; files at the end.

    Raises:
        SettingsError: the model or a text cannot be loaded, a text is too short, or the model cannot be measured.
    """
    for text in args.text:
        text.open("rb").close()  # a file that is not there is said before a model is loaded
    for option, file in (("--csv", args.csv), ("--plot", args.plot)):
        if file is not None and not file.parent.is_dir():
            raise SettingsError(f"{option}: {str(file)!r} is in a folder that does not exist")
    network, tokenizer = load(args.model, args.device, args.dtype)
    size = args.context, args.sequences
    batches = {str(text): sequences_of(network, tokenizer, text, *size) for text in args.text}
    frames: dict[str, pd.DataFrame] = {}
    for name, ids in batches.items():
        frames[name] = measure(network, ids, name)
        shown = table(frames[name], tuple(ids.shape))
        yield shown if len(batches) == 1 else f"{name}\n{shown}\n"
    if args.csv is not None:
        pd.concat([frame.assign(text=name) for name, frame in frames.items()]).to_csv(args.csv, index=False)
    if args.plot is not None:
        picture(frames, args.plot)
