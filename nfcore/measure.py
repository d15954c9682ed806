"""``python -m nfcore entropy``: the head entropies of a saved model on texts, as tables, CSV and a picture."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nfcore import runs
from nfcore.settings import SettingsError
from nfcore.shares import QUARTERS, quartile_shares


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
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    import nfcore.model  # noqa: F401  registers our models with the Auto classes

    saved = runs.runs_dir() / model
    record = runs.read_record(saved)
    if record:
        runs.verify(saved, record)
    where = str(saved / "model" if record else model)
    if not Path(where).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", where):
        raise SettingsError(f"model: {model!r} is no finished run, no directory and no name on the Hub")
    file, what = Path(where) / "tokenizer.json", "model"
    try:
        network = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=False, dtype=dtype or "auto").eval()
        what = "tokenizer"
        if file.exists() and not file.with_name("tokenizer_config.json").exists():
            tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(file))
        else:
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{what}: {model!r} cannot be loaded ({str(error).splitlines()[0]})") from None
    try:
        network.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    return network, tokenizer


def sequences_of(network: Any, tokenizer: Any, text: Path, context: int, sequences: int) -> Any:
    """Token ids (B, T): the first ``sequences`` pieces of ``context`` tokens of a text file.

    Raises:
        SettingsError: the text cannot be read or is too short, or the model has fewer positions.
    """
    import torch

    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{text}: not UTF-8 text") from None
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None) or context
    if not 2 <= context <= limit:
        raise SettingsError(f"context: {context} must be between 2 and the model's {limit} positions")
    ids = tokenizer(content)["input_ids"]
    count = min(sequences, len(ids) // context)
    if count < 1:
        raise SettingsError(f"{text}: {len(ids)} tokens, fewer than one sequence of {context}")
    return torch.tensor(ids[: count * context]).view(count, context)


def measure(network: Any, ids: Any, progress: Callable[[int], None] = lambda done: None) -> pd.DataFrame:
    """A row per layer and head with ``COLUMNS`` of :func:`~nfcore.meter.attention_statistics`, over token ids (B, T).

    ``progress`` is called with the number of sequences that are done.
    """
    from nfcore.meter import attention_statistics

    size = max(1, TOKENS // ids.shape[1])
    batches, weights = [], []
    for batch in ids.split(size):
        batches.append({name: x.double().numpy() for name, x in attention_statistics(network, batch).items()})
        weights.append(batch.numel() - batches[-1]["nonfinite_rows"])
        progress(sum(map(len, ids.split(size)[: len(batches)])))
    layers, heads = weights[0].shape
    whole = {"layer": batches[0]["layer"].repeat(heads), "head": np.tile(np.arange(heads), layers)}
    for name in COLUMNS:
        values = np.stack([found[name] for found in batches])  # (batches, L, H)
        mean = (np.nan_to_num(values) * weights).sum(0) / np.sum(weights, 0)
        whole[name] = {"nonfinite_rows": values.sum(0), "max_logit": values.max(0)}.get(name, mean).ravel()
    return pd.DataFrame(whole).astype({"layer": int, "nonfinite_rows": int})


def table(frame: pd.DataFrame, shape: tuple[int, int]) -> str:
    """The head entropies of :func:`measure` in nats, a line per layer under its own number, with their ceiling."""
    heads = pivot(frame, "entropy")
    shown = heads.rename(columns=lambda h: f"head {h}")
    ceilings = pivot(frame, "ceiling")
    low, high = float(np.nanmin(ceilings)), float(np.nanmax(ceilings))
    same = high - low < 5e-5
    if not same:
        shown.insert(0, "ceiling", ceilings.mean(axis=1))
    shown.insert(0, "mean", heads.mean(axis=1))
    shares = quartile_shares(heads.to_numpy() / ceilings.to_numpy(), 1.0)
    said = ", ".join(f"{q} {s:.0%}" for q, s in zip(QUARTERS, shares, strict=True))
    bad = int(frame["nonfinite_rows"].sum())
    return (
        f"{shown.to_string(float_format='{:.3f}'.format)}\n\n"
        f"nats, {shape[0]} sequences of {shape[1]} tokens; ceiling "
        + (f"{high:.4f}" if same else f"{low:.4f} to {high:.4f}, as the mask of each layer allows")
        + (f"; {bad} rows that are not finite are left out" if bad else "")
        + f"\nshare of heads with Max = ceiling: {said}"
    )


def pivot(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of :func:`measure` as layers by heads, in the model's order (a layer that runs twice has two rows)."""
    heads = frame["head"].max() + 1
    values = frame[name].to_numpy().reshape(-1, heads)
    return pd.DataFrame(values, index=pd.Index(frame["layer"].to_numpy()[::heads], name="layer"))


def picture(frames: dict[str, pd.DataFrame], file: Path) -> None:
    """Write the maps of entropy over ceiling, one per text, to an image file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layers, heads = pivot(next(iter(frames.values())), "entropy").shape
    size = (len(frames) * (1.6 + 0.4 * heads), 1.2 + 0.3 * layers)
    figure, panels = plt.subplots(1, len(frames), figsize=size, squeeze=False, layout="constrained")
    for axes, (name, frame) in zip(panels[0], frames.items(), strict=True):
        over = pivot(frame, "entropy") / pivot(frame, "ceiling")
        image = axes.imshow(over.to_numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set(title=name, xlabel="head", ylabel="layer", xticks=range(heads))
        axes.set_yticks(range(layers), over.index)
    figure.colorbar(image, ax=panels[0], label="entropy / ceiling")
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:
        raise SettingsError(f"--plot: {str(file)!r}: {str(error).splitlines()[0]}") from None
    finally:
        plt.close(figure)


def lines(label: str, total: int) -> Callable[[int], None]:
    """Progress on the standard error stream: a line at most every two seconds, and none for what is done sooner."""
    shown = time.monotonic()

    def progress(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= 2:
            shown = time.monotonic()
            print(f"  {label}: {done} of {total} sequences", file=sys.stderr, flush=True)

    return progress


def entropy_of_texts(
    model: str,
    texts: list[Path],
    context: int,
    sequences: int,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
) -> Iterator[str]:
    """Tables of the head entropies of a model on each text; ``csv`` and ``plot`` are written at the end.

    Raises:
        SettingsError: the model or a text cannot be loaded, a text is too short, or the model cannot be measured.
    """
    for text in texts:
        text.open("rb").close()  # a file that is not there is said before a model is loaded
    network, tokenizer = load(model, device, dtype)
    batches = {str(text): sequences_of(network, tokenizer, text, context, sequences) for text in texts}
    frames: dict[str, pd.DataFrame] = {}
    for name, ids in batches.items():
        frames[name] = measure(network, ids, lines(name, len(ids)))
        shown = table(frames[name], tuple(ids.shape))
        yield shown if len(batches) == 1 else f"{name}\n{shown}\n"
    if csv is not None:
        pd.concat([frame.assign(text=name) for name, frame in frames.items()]).to_csv(csv, index=False)
    if plot is not None:
        picture(frames, plot)
