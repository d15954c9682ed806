"""Write the results block of README.md and its picture from the recorded quick runs and the executed notebooks.

``python -m tools.readme`` after ``make notebooks``; a test checks that the committed README is what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from nfbook import typeset
from nfbook.claims import statistics, verdicts
from nfbook.presets import MAIN, PAPER_TOKENS, Preset
from nfbook.report import (
    MARKED,
    difference,
    early_share,
    final_heads,
    perplexities,
    published,
    relative_change,
    said,
    seeds_used,
    study_runs,
    with_interval,
)
from nfbook.study import STUDIES, Study


ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by tools/readme.py -->", "<!-- end of results -->"


def picture() -> str:
    """The SVG of figure ``fig-main`` in the committed notebook on perplexity."""
    notebook = json.loads((ROOT / "book" / "notebooks" / "perplexity.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == "fig-main":
            for output in cell["outputs"]:
                if "image/svg+xml" in output.get("data", {}):
                    return "".join(output["data"]["image/svg+xml"])
    raise SystemExit("book/notebooks/perplexity.ipynb holds no figure fig-main; run `make notebooks` first")


def block() -> str:
    """Tables of published and recorded results, with what made them."""
    return "\n\n".join([*_perplexities(), *_lengths(), *_claims()])


def _table(*rows: str) -> str:
    """A table of Markdown whose first row is its head."""
    head, *body = (f"| {row} |" for row in rows)
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *body])


def _perplexities() -> Iterator[str]:
    """Perplexity and early entropy of the four main configurations, and what preset ``quick`` took."""
    whole = Preset.load("quick", source="recorded")
    runs, grid = whole.runs("main"), whole.runs().runs
    frame, ours = runs.runs, perplexities(runs).droplevel(["model.family", "data.context"])
    paper, maps = _paper(), published("head_entropy")["maps"]
    context, tokens = int(frame["data.context"].iloc[0]), frame["provenance.tokens"].max()
    rows = []
    for name in MAIN:
        theirs, early = early_share(np.array(maps[name]), 128), early_share(final_heads(runs, name), context)
        rows.append(f"`{name}` | {paper[name]:.3f} | {ours[name]:.2f} | {theirs:.2f} | {early:.2f}")
    yield _table(
        "GPT-2 shape | perplexity, paper | perplexity, ours | entropy / ceiling in the early layers, paper | ours",
        *rows,
    )
    gain, theirs = (-relative_change(p["SM+R"], p["SM+G"]) for p in (ours, paper))
    ended = pd.to_datetime(grid["provenance.finished"])
    started = ended - pd.to_timedelta(grid["provenance.wall_seconds"], unit="s")
    minutes = (ended.max() - started.min()).total_seconds() / 60
    yield (
        f"Without LayerNorm, ReLU's perplexity is {gain:.1f} % below GELU's here (paper: {theirs:.1f} %). Ours: "
        f"preset `quick`, width {frame['model.hidden_size'].iloc[0]}, {frame['model.num_hidden_layers'].iloc[0]} "
        f"layers, {tokens / 1e6:.1f} M tokens a run, about {PAPER_TOKENS / tokens:,.0f} times fewer than the paper's "
        f"2.1 B, one seed, on {', '.join(sorted(frame['provenance.device'].unique()))}. There all {len(grid)} runs of "
        f"the grid took {minutes:.0f} minutes, as many at a time as there are cores."
    )


def _lengths() -> Iterator[str]:
    """What leaving LayerNorm out changes with GELU, by tokens a run."""
    quick = Preset.load("quick", source="recorded").runs("main")
    ours = perplexities(quick).droplevel(["model.family", "data.context"])
    paper, tokens = _paper(), quick.runs["provenance.tokens"].max() / 1e6
    rows = [f"preset `quick` | {tokens:.1f} M | 1 | {relative_change(ours['SM+G'], ours['SM+LN+G']):+.1f} %"]
    for name in reversed(STUDIES):
        study = Study.load(name)
        change, n = difference(statistics(study_runs(study), study), {"SM+G": 1, "SM+LN+G": -1})
        run = study.cells["SM+G"].experiments[0]
        tokens = (run.training.steps or 0) * run.training.batch_size * run.data.context / 1e6
        rows.append(f"preset `{name}` | {tokens:.1f} M | {n} | {change if n else 'not trained yet'}")
    change = relative_change(paper["SM+G"], paper["SM+LN+G"])
    rows.append(f"paper | {PAPER_TOKENS / 1e6:,.0f} M | 1 | {change:+.1f} %")
    change = "Change of perplexity when GPT-2 with GELU goes without it:"
    yield f"**Where LayerNorm stands, by length of training.** {change}"
    yield _table("runs | tokens a run | seeds | change, 95 % interval", *rows)
    yield "Rows differ in more than length: warm-up, decay of the rate, seeds and, for `transient`, precision and code."


def _claims() -> Iterator[str]:
    """The verdicts on the paper's first table."""
    study = Study.load("study")
    found = verdicts(statistics(study_runs(study), study)).set_index("id")
    rows = []
    for row in (found.loc[claim] for claim in ("T1", "T2", "T3", "T4")):
        ours = with_interval(row["unit"], row["estimate"], row["low"], row["high"])
        theirs = with_interval(row["unit"], row["published"], np.nan, np.nan)
        rows.append(f"{row['statement']} | {theirs} | {ours} | {seeds_used(row)} | {said(row, MARKED)}")
    yield "The paper's first table for GPT-2, judged on preset `study` (the book's page Claims has every verdict):"
    yield _table("claim | paper | ours, 95 % interval | seeds | verdict", *rows)


def _paper() -> dict[str, float]:
    """The published perplexities."""
    return {name: values[0] for name, values in published("perplexity")["GPT2_T128"].items()}


def written(readme: str) -> str:
    """``readme`` with a fresh results block."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{typeset(block())}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    (ROOT / "book" / "_assets" / "main.svg").write_text(picture())
    (ROOT / "README.md").write_text(written((ROOT / "README.md").read_text()))
