"""What the notebooks share: published numbers, tables, and where a page's runs come from."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from nfcore import runs
from nfcore.presets import Preset
from nfcore.settings import project_root
from nfcore.shares import entropy_ceiling


NAMES = {"ln_g": "SM+LN+G", "ln_r": "SM+LN+R", "g": "SM+G", "r": "SM+R"}  # in the names of glued results


def published(name: str) -> dict[str, Any]:
    """A file of ``data/published``: the paper's numbers with their sources."""
    return json.loads((project_root() / "data" / "published" / f"{name}.json").read_text())


def recorded(preset: str = "quick") -> runs.Runs | None:
    """The committed records of a preset, None where there are none."""
    directory = runs.recorded_dir(preset)
    return runs.load_runs(directory) if directory.is_dir() else None


def banner(preset: Preset, shown: runs.Runs) -> Any:
    """One paragraph that says which runs a page shows and what made them."""
    from IPython.display import Markdown

    frame = shown.runs
    devices = ", ".join(sorted(frame["provenance.device"].unique()))
    tokens = frame["provenance.tokens"] / 1e6
    size = f"{tokens.min():.2g}" + (f" to {tokens.max():.2g}" if tokens.max() > tokens.min() else "")
    seeds = ", ".join(map(str, sorted(frame["seed"].unique())))
    where = (
        f"runs of this machine ({devices})"
        if preset.source == "local"
        else f"committed records (made on {devices}); **nothing was run here for this page**"
    )
    minutes = f"{frame['provenance.seconds'].sum() / 60:.1f} minutes of training in all"
    text = f"*Preset `{preset.preset}`, {where}: {len(frame)} runs, seeds {seeds}, {size} M tokens each, {minutes}.*"
    committed = recorded()
    if preset.source == "local" and committed is not None and other_data(shown, committed):
        text += (
            " **The token files differ from those of the committed records**, though the settings of the data are the"
            " same; so the numbers need not agree."
        )
    return Markdown(text)


def other_data(own: runs.Runs, committed: runs.Runs) -> bool:
    """Whether some runs with the same data settings were made from other tokens."""
    keys = [name for name in own.runs.columns if name.startswith("data.")]
    mine, theirs = (r.runs[[*keys, "provenance.data_hash"]].astype(str).drop_duplicates() for r in (own, committed))
    both = mine.merge(theirs, on=keys, suffixes=("", ".committed"))
    return bool((both["provenance.data_hash"] != both["provenance.data_hash.committed"]).any())


def markdown_table(frame: pd.DataFrame, digits: int = 3) -> Any:
    """A frame as a Markdown table; missing values are dashes. Cells may hold Markdown, but no HTML."""
    from IPython.display import Markdown

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "-"
        text = f"{value:.{digits}f}" if isinstance(value, (float, np.floating)) else str(value)
        text = text.replace("<", "&lt;").replace("|", r"\|")
        return text.replace(" %", "\u00a0%")  # no line break between number and unit

    return Markdown(frame.map(cell).to_markdown(index=False, disable_numparse=True))


def sources(preset: Preset, name: str) -> dict[str, runs.Runs]:
    """The runs to show for experiment ``name``, the page's own first: ``this machine`` and ``recorded``.

    The recorded ones are those of preset ``quick`` that show the same experiment.
    """
    own = preset.runs(name)
    if preset.source == "recorded":
        return {"recorded": own}
    committed = recorded()
    result = {"this machine": own}
    if committed is not None:
        quick = Preset.load("quick", source="recorded")
        ids = [e.id for e in quick.grid()[name]]
        if set(ids) <= set(committed.runs["run"]):
            result["recorded" if preset.preset == "quick" else "recorded (quick)"] = committed.select(ids)
    return result


def perplexities(shown: runs.Runs) -> pd.Series:
    """Mean final perplexity over seeds, indexed by (family, context, configuration); NaN where a run diverged."""
    frame = shown.runs.astype({"perplexity": float})
    keys = ["model.family", "data.context", "configuration"]
    return frame.groupby(keys, sort=False)["perplexity"].apply(lambda p: p.mean(skipna=False))


def final_heads(shown: runs.Runs, configuration: str) -> np.ndarray:
    """Head entropies (L, H) in nats at the last probe of a configuration, averaged over its runs' seeds."""
    ids = shown.runs.loc[shown.runs["configuration"] == configuration, "run"]
    heads = shown.heads[shown.heads["run"].isin(ids)]
    last = heads[heads["step"] == heads.groupby("run")["step"].transform("max")]
    return last.groupby(["layer", "head"])["entropy"].mean().unstack().to_numpy()


def early_share(heads: np.ndarray, context: int) -> float:
    """Mean entropy of the heads (L, H) of layers 1 and 2 over the ceiling."""
    return float(np.nanmean(heads[1:3]) / entropy_ceiling(context))


def layer_entropy(shown: runs.Runs, configuration: str) -> pd.DataFrame:
    """Mean head entropy in nats, steps by layers, averaged over the seeds of a configuration."""
    ids = shown.runs.loc[shown.runs["configuration"] == configuration, "run"]
    heads = shown.heads[shown.heads["run"].isin(ids)]
    return heads.groupby(["step", "layer"])["entropy"].mean().unstack()


def leaves_ceiling(shown: runs.Runs, configuration: str) -> float:
    """First probe at which layers 1 and 2 stand below nine tenths of the ceiling; infinity if none does."""
    table = layer_entropy(shown, configuration)
    early = table[[layer for layer in (1, 2) if layer in table]].mean(axis=1)
    below = early.index[early < 0.9 * entropy_ceiling(int(shown.runs["data.context"].iloc[0]))]
    return float(below[0]) if len(below) else float("inf")


def against(first: str, ours: Any, second: str, theirs: Any, form: str = "{:.2f}") -> str:
    """Numbers of two configurations in words, as ``40.02 in SM+R, below the 52.63 in SM+G``.

    Each is a number or one for each seed, of which the mean is shown. The word is chosen by the digits that are shown.
    """
    values = [np.atleast_1d(np.asarray(v, dtype=float)) for v in (ours, theirs)]
    means = [float(v.mean()) if len(v) else float("nan") for v in values]
    a, b = (form.format(mean) if np.isfinite(mean) else "not finite" for mean in means)
    if not np.isfinite(means).all():
        return f"{a} in {first} and {b} in {second}"
    overlap = min(map(len, values)) > 1 and max(v.min() for v in values) <= min(v.max() for v in values)
    word = "equal to" if a == b else "below" if means[0] < means[1] else "above"
    return f"{a} in {first}, {word} the {b} in {second}" + (", though their seeds overlap" if overlap else "")


def relative_change(value: float, base: float) -> float:
    """Change in percent."""
    return 100 * (value / base - 1)


def glue(**values: Any) -> None:
    """Name results of a notebook for the prose of the book."""
    from myst_nb import glue as glue_value

    for name, value in values.items():
        glue_value(name, value, display=False)


def with_interval(unit: str, estimate: float, low: float, high: float) -> str:
    """An estimate and its 95 % interval in a unit of ``nfcore.claims.UNITS``; a log as a factor."""
    if np.isnan(estimate):
        return "-"
    values = np.exp([estimate, low, high]) if unit == "log" else np.array([estimate, low, high])
    form = {"percent": "{:+.1f}", "points": "{:+.1f}", "share": "{:+.3f}", "log": "×{:.2f}"}.get(unit, "{:+.2f}")
    first, *limits = (form.format(value) for value in values)
    word = {"percent": " %", "points": " points", "count": " of seeds"}.get(unit, "")
    return f"{first}{word}" + ("" if np.isnan(low) else f" [{', '.join(limits)}]")


def glue_verdicts(rows: pd.DataFrame) -> None:
    """Name the results of :func:`nfcore.claims.verdicts` for the prose: of the test ``C1 Pythia``, ``c1_pythia`` is the
    estimate with its interval; ``c1_pythia_published``, ``_seeds`` and ``_verdict`` are what stands beside it."""
    for _, row in rows.iterrows():
        key = re.sub(r"\W+", "_", row["id"].lower())
        published_value = np.nan if row["published"] is None else float(row["published"])
        glue(
            **{
                key: with_interval(row["unit"], row["estimate"], row["low"], row["high"]),
                f"{key}_published": with_interval(row["unit"], published_value, np.nan, np.nan),
                f"{key}_seeds": str(row["n"]),
                f"{key}_verdict": row["direction"],
            }
        )


def verdict_table(rows: pd.DataFrame, question: str = "statement") -> Any:
    """Rows of :func:`nfcore.claims.verdicts` as a table, without the columns that are empty in all of them."""
    numbers = rows[["unit", "estimate", "low", "high"]].itertuples(index=False, name=None)
    table = pd.DataFrame(
        {
            "id": rows["id"],
            question: rows["statement"],
            "published": [
                with_interval(unit, value, np.nan, np.nan) if pd.notna(value) else ""
                for unit, value in zip(rows["unit"], rows["published"].astype(float), strict=True)
            ],
            "ours, 95 % interval": [with_interval(*row) for row in numbers],
            "n; d; p (Holm)": [
                "; ".join([str(n), *([] if np.isnan(p) else [f"{d:.1f}", "<0.001" if p < 0.001 else f"{p:.3f}"])])
                for n, d, p in rows[["n", "d", "p_holm"]].itertuples(index=False, name=None)
            ],
            "seeds lost": [str(lost) if lost else "" for lost in rows["lost"]],
            "direction" if question == "statement" else "answer": rows["direction"],
            "size": rows["size"],
        }
    )
    return markdown_table(table[[c for c in table if (table[c].astype(str) != "").any()]])


def study_banner(shown: runs.Runs, planned: int) -> Any:
    """One paragraph that says how much of the study a page shows and what made it."""
    from IPython.display import Markdown

    frame = shown.runs
    devices = "; ".join(sorted(frame["provenance.device"].unique())) if len(frame) else "nothing"
    hours = frame["provenance.wall_seconds"].sum() / 3600 if len(frame) else 0.0
    return Markdown(
        f"*Preset `study`: {len(frame)} of {planned} planned runs, {frame['status'].eq('diverged').sum()} of them not"
        f" finite to their end, made on {devices} in {hours:.1f} hours of single-thread time.*"
    )
