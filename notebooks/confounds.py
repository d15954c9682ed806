# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Confounds
#
# ```{admonition} These runs are in a transient
# :class: warning
# They are 2.5 M tokens long and end in a {term}`transient` in which LayerNorm does not help yet, so no verdict on the paper is taken
# from them; [Claims](claims.ipynb) has the verdicts, on longer runs.
# ```
#
# Eight things could make the paper's result {cite}`jha2024relus`, or change it. Each is an experiment of the project's first study,
# with questions and {term}`cells <cell (of the study)>` that were written down before its runs (`data/transient.yaml`).
#
# The rule is that of [Claims](claims.ipynb), applied to questions. *Yes* and *no, the reverse* need a p below 0.05 after
# {term}`Holm's correction <Holm correction>` over the questions of the experiment; *no, negligible* needs an {term}`equivalence test`; the rest is
# *undecided*. Only {term}`trained` runs count; *left out* says which do not. Questions whose id says *follow-up* were added when the
# other results had been seen, and before their own runs were made.

# %% tags=["parameters"]
preset = "transient"  # this page shows the first study, notebooks/params/transient.yaml
source = "recorded"  # recorded: data/recorded/transient; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from nfbook.claims import OUTCOMES, contrast, decay_sum, early_layers, interval, of_cell, statistics, verdicts
from nfbook.figures import STYLES, direct_labels, show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    ANSWERS,
    against,
    glue,
    glue_verdicts,
    markdown_table,
    published,
    said,
    study_banner,
    verdict_table,
    with_interval,
)
from nfbook.study import SPARE
from nfcore.shares import entropy_ceiling


use_style()
shown = study.runs()
frame = statistics(shown, study)
table = verdicts(frame, "transient")
table = table[table["group"] == "confounds"]
study_banner(shown, study)


# %% tags=["remove-input"]
def questions(number):
    return verdict_table(table[table["id"].str.split().str[0] == str(number)], frame, "question")


glue_verdicts(table, ANSWERS)
maps = {name: np.array(published("head_entropy")["maps"][name]) for name in ("SM+G", "SM+R")}
gap = np.mean([(maps["SM+G"] - maps["SM+R"])[layer] for layer in early_layers(12)]) / entropy_ceiling(128)
glue(early_gap_published=with_interval("share", gap, np.nan, np.nan))


# %% [markdown]
# ## All at once
#
# We show the gap, that is the change of perplexity from GELU to ReLU without LayerNorm, and how far GELU's early entropy exceeds
# ReLU's, under every condition of this page. Intervals are 95 % t intervals {eq}`eq-interval` over {term}`seeds <seed>`, uncorrected.
# Each row says how many seeds have both runs trained; a condition without such a seed has no point.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-confounds", "caption": "Left: change of perplexity from SM+G to SM+R under each condition, mean over seeds with 95 % interval; hollow: one seed, no interval. Right: early entropy over its ceiling in SM+G minus that in SM+R. Dashed: the value at the base settings."}, "image": {"alt": "Two forest plots, a row per condition such as no final norm, dropout, depth and width. Points left of zero in the first mean that ReLU is ahead; points right of zero in the second mean that GELU's early layers have more entropy."}}
suffixes = {
    "base": "",
    "no final norm": " final none",
    "final RMSNorm": " final RMSNorm",
    "embedding dropout 0.1": " dropout 0.1",
    "own best rates": " own best",
    "rate 0.0057 (follow-up)": " lr=0.0057",
    "4 layers": " 4 layers",
    "8 layers": " 8 layers",
    "12 layers": " 12 layers",
    "4 layers, rate 0.002 (follow-up)": " 4 layers lr=0.002",
    "12 layers, rate 0.002 (follow-up)": " 12 layers lr=0.002",
    "width 32": " width 32",
    "width 128": " width 128",
}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
estimates, seeds = {"loss": [], "early_entropy": []}, {}
for panel, (statistic, sign, label) in zip(
    axes,
    (("loss", 1, "ReLU against GELU, perplexity (%)"), ("early_entropy", -1, "excess of early entropy in SM+G")),
    strict=True,
):
    for row, (condition, suffix) in enumerate(suffixes.items()):
        values, _ = contrast(frame, {f"SM+R{suffix}": sign, f"SM+G{suffix}": -sign}, statistic)
        found = interval(values)
        scale = (lambda x: 100 * np.expm1(x)) if statistic == "loss" else (lambda x: x)
        seeds[condition] = len(values)
        if len(values):
            estimates[statistic].append(found)
            center = scale(found["estimate"])
            ends, color = [scale(found["low"]), scale(found["high"])], STYLES["SM+R"]["color"]
            panel.plot(ends, [row, row], color=color, gid=f"{condition}, interval")
            look = dict(marker=STYLES["SM+R"]["marker"], markersize=4, fillstyle="full" if len(values) > 1 else "none")
            panel.plot(center, row, color=color, gid=condition, **look)
            if not suffix:
                panel.axvline(center, linestyle="--", color="grey", linewidth=0.8)
    panel.axvline(0, color="black", linewidth=0.6)
    panel.set_xlabel(label)
axes[0].set_yticks(range(len(suffixes)), [f"{condition}  n = {seeds[condition]}" for condition in suffixes])
axes[0].invert_yaxis()
cells = [f"SM+{a}{suffix}" for suffix in suffixes.values() for a in "RG" if f"SM+{a}{suffix}" in frame.index]
loss, early = (pd.DataFrame(found, columns=["estimate", "low", "high"]) for found in estimates.values())
show_figure(
    figure,
    shown.select(frame.loc[cells, "run"]),
    interactive=False,
    finding=f"SM+R is ahead of SM+G under {(loss['estimate'] < 0).sum()} of {len(suffixes)} conditions; in "
    f"{(loss['high'] < 0).sum()} the interval excludes zero; without a seed with both runs trained: {len(suffixes) - len(loss)}. Early entropy is higher "
    f"in SM+G under {(early['estimate'] > 0).sum()}; in {(early['low'] > 0).sum()} the interval excludes zero.",
)

# %% [markdown]
# ## 1. Do slopes go to zero by themselves?
#
# In the public code the slopes have weight decay 0.1 {cite}`jha2024code`, which alone makes them smaller {eq}`eq-slope-decay`;
# [Traps](../traps.md) has the factor. A run of the study has a far smaller sum of learning rates, so decay is also raised until its
# sum is the paper's. *Beyond decay* takes out what decay alone would have done. Ratios are of the mean magnitude of the final slopes
# to the initial one.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-slope-confound", "caption": "Mean magnitude of the learned slopes over their initial value at the end of training, a point per seed. Grey ticks: where weight decay alone takes them. Below one (dotted) a slope has gone towards zero."}, "image": {"alt": "A row of points for each initial slope and decay, on a logarithmic axis, with a tick where decay alone would lead."}}
rows = shown.runs.set_index("run")
cells = [cell for cell in study.cells.values() if "slope" in cell.name and cell.name in frame.index]
figure, axes = plt.subplots(figsize=(7, 0.4 + 0.38 * max(len(cells), 2)))
for row, cell in enumerate(cells):
    runs_of = frame.loc[[cell.name]].dropna(subset=["slope_ratio"])
    axes.plot(
        np.exp(runs_of["slope_ratio"].astype(float)),
        [row] * len(runs_of),
        "o",
        color=STYLES["SM+R"]["color"],
        markersize=4,
        gid=cell.name,
    )
    for run in runs_of["run"]:
        metrics = shown.metrics[shown.metrics["run"] == run]
        axes.plot(
            np.exp(-decay_sum(rows.loc[run], metrics)),
            row,
            "|",
            color="grey",
            markersize=14,
            gid=f"{cell.name}, decay alone",
        )
axes.axvline(1, linestyle=":", color="black", linewidth=0.8)
axes.set_xscale("log")
axes.set_yticks(range(len(cells)), [cell.name for cell in cells])
axes.invert_yaxis()
axes.set_xlabel("final over initial slope")
ids = frame.loc[[cell.name for cell in cells], "run"] if cells else []
ends = frame[frame["run"].isin(ids)].dropna(subset="slope_ratio")
show_figure(
    figure,
    shown.select(ids),
    interactive=False,
    finding=f"Slopes of {(ends['slope_ratio'] < 0).sum()} of {len(ends)} runs end nearer to zero than they began, those of "
    f"{(ends['slope_beyond_decay'] < 0).sum()} nearer than weight decay alone takes them.",
)

# %% tags=["remove-input"]
questions(1)

# %% [markdown]
# ## 2. The final LayerNorm
#
# The paper's {term}`norm-free` model keeps the LayerNorm before the output matrix {cite}`jha2024code`.

# %% tags=["remove-input"]
questions(2)

# %% [markdown]
# ## 3. Embedding dropout
#
# The public code inherits GPT-2's 0.1 {cite}`jha2024code`; whether the published runs had it is not known.

# %% tags=["remove-input"]
questions(3)

# %% [markdown]
# ## 4. Two forms of GELU
#
# The public code has the erf form {cite}`jha2024code`, Hugging Face's GPT-2 the tanh form {cite}`wolf2020transformers`.

# %% tags=["remove-input"]
questions(4)

# %% [markdown]
# ## 5. Precision of the residual stream
#
# The public code adds to the {term}`residual stream` in float16 {cite}`jha2024code`. Here the stream alone is held in the lower precision and the
# layers compute in float32, which a CPU can do too; mixed-precision training in float16, with its loss scaling, is
# not tested. The questions on stopping compare times by the {term}`log-rank test`; their estimate is a difference of shares of runs.
# These runs were made when a run also ended where the float32 norm of finite gradients overflowed; the table counts the two events
# apart.

# %% tags=["remove-input"]
questions(5)


# %% tags=["remove-input"]
def count_table(names):
    """What became of the runs of each cell, and when those that stopped did."""
    rows = []
    for name in names:
        runs_of = of_cell(frame, name)
        outcomes = runs_of["outcome"].value_counts()
        stopped = runs_of.loc[runs_of["outcome"].isin(["diverged", "gradient norm"]), "steps"]
        rows.append(
            {
                "cell": name,
                "learning rate": f"{study.cells[name].experiments[0].training.learning_rate:g}",
                **{outcome: int(outcomes.get(outcome, 0)) for outcome in OUTCOMES},
                "stopped at steps": ", ".join(str(int(step)) for step in stopped),
                "perplexity, trained": float(np.exp(runs_of["loss"].astype(float).mean())),
            }
        )
    return markdown_table(pd.DataFrame(rows), digits=2)


count_table([name for name in study.cells if "rate x4" in name or "residual" in name])

# %% [markdown]
# ## 6. Learning rate
#
# One rate for all configurations may suit only some of them. Each main configuration's own best rate is the one with the lowest
# final loss on a seed that serves for nothing else. One seed does not tell whether other seeds train at that rate; the table below
# {numref}`fig-rates` counts those that did not.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-rates", "caption": "Final perplexity against the learning rate, on the one seed of the grid. Circled: each configuration's own best rate. A missing point is a run that is not trained."}, "image": {"alt": "Four curves of perplexity over learning rates from 0.001 to 0.016, one per main configuration, with their lowest points circled."}}
figure, axes = plt.subplots(figsize=(6, 3.2))
lowest = {}
spare = replace(study, cells={name: cell for name, cell in study.cells.items() if min(cell.seeds) >= SPARE})
rates_frame = statistics(shown, spare)
for configuration in MAIN:
    grid = [c for c in spare.cells.values() if c.configuration == configuration]
    there = [c for c in grid if c.name in rates_frame.index]
    rates = [c.experiments[0].training.learning_rate for c in there]
    losses = [float(of_cell(rates_frame, c.name)["loss"].iloc[0]) for c in there]
    if not there:
        continue
    axes.plot(rates, np.exp(losses), label=configuration, markersize=5, linewidth=1.2, **STYLES[configuration])
    if len(there) == len(grid) and np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        lowest[configuration] = np.exp(losses[best]), rates[best]
        axes.plot(
            rates[best],
            np.exp(losses[best]),
            "o",
            markersize=12,
            fillstyle="none",
            color=STYLES[configuration]["color"],
        )
    axes.set(xscale="log", yscale="log")
axes.set(xlabel="learning rate", ylabel="final perplexity")
direct_labels(axes)
finding = "The grids of SM+G and SM+R are not complete."
if {"SM+G", "SM+R"} <= set(lowest):
    (g, g_rate), (r, r_rate) = lowest["SM+G"], lowest["SM+R"]
    best = against(f"SM+R (rate {r_rate:g})", r, f"SM+G (rate {g_rate:g})", g)
    finding = f"At the best rate of each, perplexity is {best}, on one seed."
show_figure(figure, shown.select(rates_frame["run"]), finding=finding)

# %% tags=["remove-input"]
count_table([*(f"{c} own best" for c in MAIN), "SM+G lr=0.0057", "SM+R lr=0.0057", "SM+G", "SM+R"])

# %% tags=["remove-input"]
questions(6)

# %% [markdown]
# ## 7. Depth and width at equal tokens
#
# {numref}`fig-confounds` shows each size. At width 128 the matrices start smaller and at width 32 larger, so that a
# layer's gain stays that of width 768.

# %% tags=["remove-input"]
questions(7)

# %% [markdown]
# ## 8. Which entropy?
#
# The paper's statistic {eq}`eq-head-entropy` averages over query positions, of which late ones have the higher {term}`ceiling`. Three others: every
# position over its own ceiling, only the last quarter of positions, and the paper's statistic on uniformly random tokens,
# where there is nothing to attend to.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-positions", "caption": "Entropy over its ceiling ln i by query position i in the early layers, at the last probe, mean over seeds. Solid, filled markers: held-out text. Dotted, hollow markers: random tokens."}, "image": {"alt": "Curves of normalised entropy against query position for the four main configurations, on text and on random tokens."}}
figure, axes = plt.subplots(figsize=(6.4, 3.2))
late = {"-": {}, ":": {}}
for configuration in MAIN:
    if configuration in frame.index and len(shown.positions):
        chosen = shown.positions[shown.positions["run"].isin(frame.loc[[configuration], "run"])]
        chosen = chosen[chosen["layer"].isin(early_layers(6)) & (chosen["position"] > 1)]
        for column, line in (("entropy", "-"), ("entropy_random", ":")):
            curve = chosen.groupby("position")[column].mean()
            curve = (curve / np.log(curve.index)).rolling(5, min_periods=1, center=True).mean()
            axes.plot(
                curve.index,
                curve,
                linestyle=line,
                linewidth=1.2,
                markersize=4,
                markevery=[*np.unique(np.geomspace(1, len(curve), 9).astype(int)) - 1],
                markerfacecolor=STYLES[configuration]["color"] if line == "-" else "white",
                **STYLES[configuration],
                label=configuration if line == "-" else None,
                gid=configuration + (" on random tokens" if line == ":" else ""),
            )
            late[line][configuration] = curve[curve.index > 0.75 * curve.index.max()].mean()
axes.set(xlabel="query position i", ylabel="entropy / ln i", xscale="log")
axes.legend()
there = [c for c in MAIN if c in frame.index]
text, noise = (against("SM+G", of.get("SM+G", np.nan), "SM+R", of.get("SM+R", np.nan)) for of in late.values())
show_figure(
    figure,
    shown.select(frame.loc[there, "run"] if there else []),
    finding=f"Entropy over ln i in the last quarter of the positions, on held-out text: {text}; on random tokens: {noise}.",
)

# %% tags=["remove-input"]
questions(8)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
answers = [said(row, ANSWERS) for _, row in table.iterrows()]
counts = ", ".join(f"{number} *{answer}*" for answer, number in sorted(pd.Series(answers).value_counts().items()))
gaps = table[table["statement"].str.startswith("Is ReLU ahead")]
ahead, ran, yes = (gaps["estimate"] < 0).sum(), gaps["estimate"].notna().sum(), (gaps["verdict"] == "reproduced").sum()
glue(gaps_ahead=str(ahead), gaps_run=str(ran), gaps_planned=str(len(gaps)), gaps_yes=str(yes))
Markdown(
    f"Of {len(table)} questions: {counts}. Of {len(gaps)} other conditions, {ran} have a seed with both runs trained. ReLU is ahead of GELU "
    f"without LayerNorm in {ahead} of those, beyond chance (after correction) in {yes}; follow-ups are not counted. All of it holds for "
    "models in the transient."
)
