"""What the notebooks share: published numbers, tables, and where a page's runs come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from nfbook.claims import ALPHA, UNITS, contrast, early_layers, interval
from nfbook.presets import Preset
from nfbook.recorded import recorded_dir, together
from nfbook.study import Study
from nfcore import runs
from nfcore.settings import project_root
from nfcore.shares import entropy_ceiling, quartile_shares


NAMES = {"ln_g": "SM+LN+G", "ln_r": "SM+LN+R", "g": "SM+G", "r": "SM+R"}  # in the names of glued results
# How a verdict of nfbook.claims is shown: on a claim, with a marker, and on a question of the transient.
MARKED = {
    "reproduced": "✓ reproduced",
    "contradicted": "✗ contradicted",
    "negligible": "○ negligible",
    "undecided": "? undecided",
}
ANSWERS = {
    "reproduced": "yes",
    "contradicted": "no, the reverse",
    "negligible": "no, negligible",
    "undecided": "undecided",
}


def published(name: str) -> dict[str, Any]:
    """A file of ``data/published``: the paper's numbers with their sources."""
    return json.loads((project_root() / "data" / "published" / f"{name}.json").read_text())


def recorded(preset: str = "quick") -> runs.Runs | None:
    """The committed records of a preset, None where there are none."""
    directory = recorded_dir(preset)
    return runs.load_runs(directory) if directory.is_dir() else None


def banner(preset: Preset, shown: runs.Runs) -> Any:
    """One paragraph that says which runs a page shows and what made them."""
    from IPython.display import Markdown

    frame = shown.runs
    devices = ", ".join(sorted(frame["provenance.device"].unique()))
    tokens = frame["provenance.tokens"] / 1e6
    size = f"{tokens.min():.2g}" + (f" to {tokens.max():.2g}" if tokens.max() > tokens.min() else "")
    seeds = sorted(frame["seed"].unique())
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    where = (
        f"runs of this machine ({devices})"
        if preset.source == "local"
        else f"committed records (made on {devices}); **nothing was run here for this page**"
    )
    minutes = f"{frame['provenance.seconds'].sum() / 60:.1f} minutes of training in all"
    text = f"*Preset `{preset.preset}`, {where}: {len(frame)} runs, {named}, {size} M tokens each, {minutes}.*"
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


def folded(title: str, content: Any) -> Any:
    """Markdown, as that of a long table, which the page opens on a click."""
    from IPython.display import Markdown

    return Markdown(f"::::{{dropdown}} {title}\n\n{content.data}\n\n::::")


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
    """Mean entropy of the heads (L, H) of the early layers over the ceiling."""
    return float(np.nanmean(heads[early_layers(len(heads))]) / entropy_ceiling(context))


def layer_entropy(shown: runs.Runs, configuration: str) -> pd.DataFrame:
    """Mean head entropy in nats, steps by layers, averaged over the seeds of a configuration."""
    ids = shown.runs.loc[shown.runs["configuration"] == configuration, "run"]
    heads = shown.heads[shown.heads["run"].isin(ids)]
    return heads.groupby(["step", "layer"])["entropy"].mean().unstack()


def overload_course(shown: runs.Runs, ids: Iterable[str], layers: Iterable[int] | None = None) -> pd.DataFrame:
    """Share of heads with at least three quarters of the ceiling (of some layers; None: of all), steps by seeds."""
    of = shown.runs[shown.runs["run"].isin(list(ids))]
    heads = shown.heads.merge(of[["run", "seed", "data.context"]], on="run")
    if layers is not None:
        heads = heads[heads["layer"].isin(list(layers))]
    high = heads["entropy"] >= 0.75 * heads["data.context"].map(entropy_ceiling)
    return high.groupby([heads["step"], heads["seed"]]).mean().unstack()


def leaves_ceiling(shown: runs.Runs, configuration: str) -> float:
    """First probe at which the early layers are below nine tenths of the ceiling; infinity if none does."""
    table = layer_entropy(shown, configuration)
    early = table[[*early_layers(len(table.columns))]].mean(axis=1)
    below = early.index[early < 0.9 * entropy_ceiling(int(shown.runs["data.context"].iloc[0]))]
    return float(below[0]) if len(below) else float("inf")


def against(first: str, ours: Any, second: str, theirs: Any, form: str = "{:.2f}") -> str:
    """Numbers of two configurations in words, as ``40.02 in SM+R, below the 52.63 in SM+G``.

    Each is a number or one for each seed, of which the mean is shown. The word is chosen by the digits that are shown.
    """
    values = [np.atleast_1d(np.asarray(v, dtype=float)) for v in (ours, theirs)]
    means = [float(v.mean()) if len(v) else float("nan") for v in values]
    a, b = (form.format(mean) if np.isfinite(mean) else "diverged" for mean in means)
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
    """An estimate and its 95 % interval in a unit of ``nfbook.claims.UNITS``; a log as a factor."""
    if np.isnan(estimate):
        return "-"
    values = np.exp([estimate, low, high]) if unit == "log" else np.array([estimate, low, high])
    percent, share = "{:+z.1f}", "{:+z.3f}"  # z: what rounds to zero has no minus
    form = {"percent": percent, "points": percent, "share": share, "slope": share, "log": "×{:.2f}"}[unit]
    first, *limits = (form.format(value) for value in values)
    word = {"percent": " %", "points": " points"}.get(unit, "")
    return f"{first}{word}" + ("" if np.isnan(low) else f" [{', '.join(limits)}]")


def differences(
    frame: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]], statistic: str = "loss", unit: str = "percent"
) -> pd.DataFrame:
    """Contrasts of :func:`nfbook.claims.statistics` by name: ``estimate`` and 95 % interval ``low`` to ``high`` in the
    unit, ``n`` seeds, and ``lost`` ones, of which a run has no value."""
    rows = {}
    for name, weights in contrasts.items():
        values, lost = contrast(frame, weights, statistic)
        found = interval(values)
        rows[name] = {k: UNITS[unit](found[k]) for k in ("estimate", "low", "high")} | {"n": len(values), "lost": lost}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"n": int, "lost": int})


def difference(
    frame: pd.DataFrame, weights: Mapping[str, float], statistic: str = "loss", unit: str = "percent"
) -> tuple[str, int]:
    """A contrast with its 95 % interval in words, and its number of seeds."""
    row = differences(frame, {"": weights}, statistic, unit).iloc[0]
    return with_interval(unit, row["estimate"], row["low"], row["high"]), int(row["n"])


def left_out(frame: pd.DataFrame, ids: Iterable[str]) -> str:
    """How many of these runs are not trained, by what became of them; empty if all are."""
    outcomes = frame[frame["run"].isin(list(ids))].drop_duplicates("run")["outcome"]
    counts = outcomes[outcomes != "trained"].value_counts(sort=False)
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items())


def glue_verdicts(rows: pd.DataFrame, words: Mapping[str, str] | None = None) -> None:
    """Name the results of :func:`nfbook.claims.verdicts` for the prose: of the test ``T4 Pythia``, ``t4_pythia`` is the
    estimate with its interval; ``t4_pythia_published``, ``_seeds`` and ``_verdict`` are what belongs to it.

    ``words``: what verdicts are called, as ``ANSWERS``; None keeps them.
    """
    for _, row in rows.iterrows():
        key, verdict = re.sub(r"\W+", "_", row["id"].lower()), said(row, words)
        glue(
            **{
                key: verdict if row["verdict"] == "no runs" else estimate(row),
                f"{key}_published": published_estimate(row),
                f"{key}_seeds": seeds_used(row),
                f"{key}_verdict": verdict,
            }
        )


def said(row: pd.Series, words: Mapping[str, str] | None = None) -> str:
    """The verdict of a row in ``words`` (None: its own) with its :func:`remark`; without a value, why there is none."""
    if row["verdict"] == "no runs":
        return "no trained seed" if row["lost"] else "not trained yet"
    word = words[row["verdict"]] if words else str(row["verdict"])
    return f"{word} {remark(row)}".strip()


def remark(row: pd.Series) -> str:
    """What belongs to a verdict: *after correction* where it is undecided though its own p is below 0.05, and
    *so far* where planned seeds are still to come."""
    corrected = row["verdict"] == "undecided" and row["expect"] != "zero" and row["p"] < ALPHA
    return " ".join(["after correction"] * bool(corrected) + ["so far"] * bool(unfinished(row)))


def unfinished(row: pd.Series) -> bool:
    """Whether a test with runs waits for more of its planned seeds."""
    return 0 < row["n"] + row["lost"] < row["planned"]


def seeds_used(row: pd.Series) -> str:
    """The number of seeds behind a row, and of those that are planned where some are still to come."""
    return f"{row['n']} of {row['planned']}" if unfinished(row) else str(row["n"])


def verdict_table(
    rows: pd.DataFrame, frame: pd.DataFrame, question: str = "claim", columns: Iterable[str] | None = None
) -> Any:
    """Rows of :func:`nfbook.claims.verdicts` as a table, without the columns that are empty in all of them.

    ``frame``: the statistics that they come from, which say what became of runs that are left out. ``question``: the
    heading of the statements; where it is not ``claim`` they are questions, and the verdicts answers. ``columns``: only
    these.
    """
    claims = question == "claim"
    shown = []
    for _, row in rows.iterrows():
        p, counted = row["p_holm"], row["statistic"] == "divergence"  # which leaves out nothing
        shown.append(
            {
                "id": row["id"],
                question: row["statement"],
                "source": row["source"] or "",
                "published": "" if (text := published_estimate(row)) == "-" else text,
                "ours, 95 % interval": estimate(row),
                "n": seeds_used(row),
                "left out": "" if counted else left_out(frame, row["runs"]),
                "p (Holm)": "" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}",
                "verdict" if claims else "answer": said(row, MARKED if claims else ANSWERS),
            }
        )
    table = pd.DataFrame(shown)
    return markdown_table(table[[c for c in columns or table if (table[c] != "").any()]])


def estimate(row: pd.Series) -> str:
    """The estimate of a row of :func:`nfbook.claims.verdicts` with its 95 % interval."""
    return with_interval(row["unit"], row["estimate"], row["low"], row["high"])


def published_estimate(row: pd.Series) -> str:
    """The published counterpart of :func:`estimate`, a dash where there is none."""
    value = row["published"]
    return "-" if pd.isna(value) else with_interval(row["unit"], float(value), np.nan, np.nan)


def study_runs(study: Study) -> runs.Runs:
    """The runs of a study; empty tables as long as none is made."""
    made = len(study.missing()) < len(study.experiments())
    return study.runs() if made else together([])


def study_banner(shown: runs.Runs, study: Study) -> Any:
    """One paragraph that says how much of a study a page shows, what made it and which stages are not trained yet."""
    from IPython.display import Markdown

    there, planned = set(shown.runs["run"]), {s: [e.id for e in study.experiments(s)] for s in study.stages}
    text = f"Preset `{study.name}`: {len(there)} of {len(study.experiments())} planned runs are recorded"
    if there:
        tokens = shown.runs["provenance.tokens"] / 1e6
        size = f"{tokens.min():.1f}" + (f" to {tokens.max():.1f}" if tokens.max() > tokens.min() else "")
        devices = "; ".join(sorted(shown.runs["provenance.device"].unique()))
        hours = shown.runs["provenance.wall_seconds"].sum() / 3600
        stopped = int(shown.runs["status"].eq("diverged").sum())
        text += f", with {size} M tokens each, made on {devices} in {hours:.1f} hours of single-thread time"
        text += f"; {stopped} stopped before their end"
    counts = {
        stage: f"{stage} ({len(there & set(ids))} of {len(ids)} runs)"
        for stage, ids in planned.items()
        if set(ids) - there
    }
    if counts:
        text += f". **Not trained yet, or not all of it:** {', '.join(counts.values())}"
    return Markdown(f"*{text}.*")


def shares_by_convention(maps: Mapping[str, Any], context: int) -> dict[str, dict[str, np.ndarray]]:
    """:func:`~nfcore.shares.quartile_shares` of several models' head entropies under both conventions of Max.

    Returns ``{"ceiling": {name: shares}, "largest observed": {name: shares}}``; the second takes one Max, the largest
    entropy over all ``maps``.
    """
    largest = max(float(np.nanmax(np.asarray(m, dtype=float))) for m in maps.values())
    conventions = {"ceiling": entropy_ceiling(context), "largest observed": largest}
    return {c: {name: quartile_shares(m, top) for name, m in maps.items()} for c, top in conventions.items()}
