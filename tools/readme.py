"""Write the results block of README.md and its picture from the recorded quick runs and the executed notebooks.

``python -m tools.readme`` after ``make notebooks``; a test checks that the committed README is what it writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

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
    """Table of published and recorded results, with what made them."""
    runs = Preset.load("quick", source="recorded").runs("main")
    frame = runs.runs
    context = int(frame["data.context"].iloc[0])
    ours = perplexities(runs).droplevel(["model.family", "data.context"])
    paper, maps = published("perplexity")["GPT2_T128"], published("head_entropy")["maps"]

    lines = [
        "| GPT-2 shape | perplexity, paper | perplexity, ours | entropy / ceiling in the early layers, paper | ours |",
        "|---|---|---|---|---|",
    ]
    for name in MAIN:
        entropies = (
            f"{early_share(np.array(maps[name]), 128):.2f} | {early_share(final_heads(runs, name), context):.2f}"
        )
        lines.append(f"| `{name}` | {paper[name][0]:.3f} | {ours[name]:.2f} | {entropies} |")
    gain, theirs = (-relative_change(p["SM+R"], p["SM+G"]) for p in (ours, {k: v[0] for k, v in paper.items()}))
    tokens = frame["provenance.tokens"].max() / 1e6
    share = PAPER_TOKENS / frame["provenance.tokens"].max()
    device = ", ".join(sorted(frame["provenance.device"].unique()))
    grid = Preset.load("quick", source="recorded").runs().runs
    ended = pd.to_datetime(grid["provenance.finished"])
    started = ended - pd.to_timedelta(grid["provenance.wall_seconds"], unit="s")
    minutes = (ended.max() - started.min()).total_seconds() / 60
    lines += [
        "",
        f"Without LayerNorm, ReLU's perplexity is {gain:.1f} % below GELU's here (paper: {theirs:.1f} %). Ours: preset "
        f"`quick`, width {frame['model.hidden_size'].iloc[0]}, {frame['model.num_hidden_layers'].iloc[0]} layers, "
        f"{tokens:.1f} M tokens a run, about {share:,.0f} times fewer than the paper's 2.1 B, one seed, on {device}. "
        f"There all {len(grid)} runs of the grid took {minutes:.0f} minutes, as many at a time as there are cores.",
        "",
        "**Where LayerNorm stands, by length of training.** Change of perplexity when GPT-2 with GELU goes without it:",
        "",
        "| runs | tokens a run | seeds | change, 95 % interval |",
        "|---|---|---|---|",
        f"| preset `quick` | {tokens:.1f} M | 1 | {relative_change(ours['SM+G'], ours['SM+LN+G']):+.1f} % |",
    ]
    studies = {name: Study.load(name) for name in reversed(STUDIES)}
    frames = {name: statistics(study_runs(study), study) for name, study in studies.items()}
    for name, study in studies.items():
        change, n = difference(frames[name], {"SM+G": 1, "SM+LN+G": -1})
        training = study.cells["SM+G"].experiments[0].training
        size = (training.steps or 0) * training.batch_size * context / 1e6
        lines.append(f"| preset `{name}` | {size:.1f} M | {n} | {change if n else 'not trained yet'} |")
    paper_change = relative_change(paper["SM+G"][0], paper["SM+LN+G"][0])
    lines += [
        f"| paper | {PAPER_TOKENS / 1e6:,.0f} M | 1 | {paper_change:+.1f} % |",
        "",
        "The paper's first table for GPT-2, judged on preset `study` (the book's page Claims has every verdict):",
        "",
        "| claim | paper | ours, 95 % interval | seeds | verdict |",
        "|---|---|---|---|---|",
    ]
    verdict = verdicts(frames["study"]).set_index("id")
    for claim in ("T1", "T2", "T3", "T4"):
        row = verdict.loc[claim]
        ours_text = with_interval(row["unit"], row["estimate"], row["low"], row["high"])
        theirs_text = with_interval(row["unit"], row["published"], np.nan, np.nan)
        lines.append(f"| {row['statement']} | {theirs_text} | {ours_text} | {seeds_used(row)} | {said(row, MARKED)} |")
    return "\n".join(lines)


def written(readme: str) -> str:
    """``readme`` with a fresh results block."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    (ROOT / "book" / "_assets" / "main.svg").write_text(picture())
    (ROOT / "README.md").write_text(written((ROOT / "README.md").read_text()))
