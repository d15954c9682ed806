# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Confounds: what else could give ReLU its lead?

# %% tags=["parameters"]
preset = "study"  # this page shows the study, notebooks/params/study.yaml, and then the first one, transient.yaml
source = "recorded"  # recorded: data/recorded; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy.stats import CensoredData, ecdf

from nfbook.claims import (
    OUTCOMES,
    contrast,
    decay_sum,
    early_layers,
    interval,
    of_cell,
    read_ledger,
    statistics,
    verdicts,
)
from nfbook.figures import STYLES, direct_labels, forest, show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    ANSWERS,
    against,
    difference,
    differences,
    estimate,
    folded,
    glue,
    glue_verdicts,
    markdown_table,
    published,
    said,
    study_banner,
    study_runs,
    unfinished,
    verdict_table,
    with_interval,
)
from nfbook.study import SPARE, Study
from nfcore.shares import entropy_ceiling


use_style()
long = study_runs(study)
long_frame = statistics(long, study)
epsilon = verdicts(long_frame)
epsilon = epsilon[epsilon["family"] == "epsilon"].set_index("id", drop=False)
# The first study, which most of the page shows: its models are in a transient.
first = Study.load("transient", study.source)
shown = study_runs(first)
frame = statistics(shown, first)
table = verdicts(frame, "transient")
table = table[table["group"] == "confounds"].set_index("id", drop=False)
glue_verdicts(table, ANSWERS)
maps = {name: np.array(published("head_entropy")["maps"][name]) for name in ("SM+G", "SM+R")}
gap = np.mean([(maps["SM+G"] - maps["SM+R"])[layer] for layer in early_layers(12)]) / entropy_ceiling(128)
glue(early_gap_published=with_interval("share", gap, np.nan, np.nan))
gaps = table[table["statement"].str.startswith("Is ReLU ahead")]


def answer(key):
    """The estimate of a question with n, and its answer in words."""
    row = table.loc[key]
    lost = f", {row['lost']} left out" if row["lost"] else ""
    value = "" if row["verdict"] == "no runs" else f"{estimate(row)}, n = {row['n']}{lost}: "
    return f"{value}*{said(row, ANSWERS)}*"


ran, yes = gaps["estimate"].notna().sum(), (gaps["verdict"] == "reproduced").sum()
against_it = int((gaps["verdict"] == "contradicted").sum())
open_ones = gaps[gaps["verdict"] == "undecided"]
glue(gaps_planned=str(len(gaps)), gaps_yes=str(yes), gaps_open=str(len(open_ones)), gaps_none=str(len(gaps) - ran))
rates = sorted({e.training.learning_rate for e in study.experiments("rates")})
at_rates = {rate: {f"SM+R rate {rate:g}": 1, f"SM+G rate {rate:g}": -1} for rate in rates}
by_rate = differences(long_frame, {f"{rate:g}": weights for rate, weights in at_rates.items()})
leads = ", ".join(
    f"{with_interval('percent', *row[['estimate', 'low', 'high']])} at {rate}" for rate, row in by_rate.iterrows()
)
SIZES = {"width 32": " width 32", "width 64": "", "width 128": " width 128", "40 M tokens": " 40 M tokens"}
by_size = differences(long_frame, {words: {f"SM+R{size}": 1, f"SM+G{size}": -1} for words, size in SIZES.items()})
size_leads = ", ".join(
    f"{with_interval('percent', row['estimate'], row['low'], row['high'])} at {words} (n = {row['n']:.0f})"
    for words, row in by_size.iterrows()
    if row["n"]
)
glue(size_leads=size_leads)
decided = epsilon[~epsilon["verdict"].isin(["no runs", "undecided"]) & ~epsilon.apply(unfinished, axis=1)]
Markdown(
    f"**How far ReLU is ahead of GELU without LayerNorm moves with the learning rate.** In runs of {study.cells[f'SM+R rate {rates[0]:g}'].experiments[0].training.steps:,} updates on spare seeds, "
    f"perplexity changes by {leads} (n = {by_rate['n'].min()} each). No test asks this, and at a smaller rate runs have also learnt less. **It moves with the size too:** {size_leads}, untested. Adam's epsilon is the other choice tried past the transient; of its {len(epsilon)} predictions {len(decided)} are settled. "
    f"A first, shorter study tried nine more conditions: ReLU is ahead beyond chance under {yes} of them"
    + (f", behind beyond chance under {against_it}" if against_it else ", behind beyond chance under none")
    + f", and {len(open_ones) + len(gaps) - ran} stay open (each corrected within its own family of questions, not over the nine)."
)

# %% tags=["remove-input"]
study_banner(long, study)

# %% [markdown]
# Each choice on this page could produce the paper's result {cite}`jha2024relus`, or change it. The first three sections stand on runs past the
# {term}`transient`: leaving LayerNorm out costs GELU perplexity there, as in the paper. With ReLU it changes perplexity by {glue:text}`claims.ipynb::t3:s` in
# the longest runs; a cost above 1 % is not excluded, and the paper has {glue:text}`claims.ipynb::t3_published:s`.
#
# ## Learning rate
#
# One rate serves all configurations, and it may suit only some of them. Before the study, a stage of its own tried three rates on spare seeds, in runs of
# a quarter of its length.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-study-rates", "caption": "Final perplexity against the learning rate in the runs that chose it (both logarithmic): means over the trained runs of three spare seeds. Compare how far apart GELU and ReLU without LayerNorm are at each rate, and where the models with LayerNorm stand."}, "image": {"alt": "Four falling curves of perplexity over three learning rates, one per main configuration."}}
figure, axes = plt.subplots(figsize=(5, 3.4))
for configuration in MAIN:
    losses = [of_cell(long_frame, f"{configuration} rate {rate:g}")["loss"].astype(float).mean() for rate in rates]
    axes.plot(rates, np.exp(losses), label=configuration, markersize=5, linewidth=1.2, **STYLES[configuration])
axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="final perplexity")
axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
axes.set_yticks([30, 35, 40, 50, 60, 80], ["30", "35", "40", "50", "60", "80"])
axes.minorticks_off()
direct_labels(axes)
of_rates = [run for rate in rates for c in MAIN for run in of_cell(long_frame, f"{c} rate {rate:g}")["run"]]
show_figure(figure, long.select(of_rates), finding=f"ReLU's perplexity against GELU's without LayerNorm: {leads}.")

# %% [markdown]
# The rule, fixed beforehand, took the rate with the lowest mean loss over the four configurations: the largest of the three. A still larger one may be better.
# [Claims](claims.ipynb) has the losses, and {numref}`fig-gap` shows how the gaps change with the length of training.
#
# ## Width
#
# The paper's GPT-2 is 768 wide, and the study's models are 64 wide. The stage `sizes` trains at half and at twice that width, and for twice as many
# tokens. Initial matrices are scaled so that a layer's gain stays that of width 768. No test is registered on this stage; it shows which way the gaps go.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-study-sizes", "caption": "Change of final perplexity, and early entropy of GELU minus that of ReLU, at other sizes of the study: means over n seeds with 95 % intervals; hollow: one seed, no interval. Width 64 and 19.7 M tokens are the study's own. Compare a hollow point with how wide the interval of five seeds is."}, "image": {"alt": "Three panels with a row for each size: ReLU against GELU without LayerNorm, GELU without LayerNorm against with it, and early entropy."}}
contrasts = {
    "perplexity, ReLU against GELU without LayerNorm (%)": ("loss", "percent", "SM+R", "SM+G"),
    "perplexity, GELU without LayerNorm against with (%)": ("loss", "percent", "SM+G", "SM+LN+G"),
    "early entropy / ceiling, GELU minus ReLU": ("early_entropy", "share", "SM+G", "SM+R"),
}
figure, axes = plt.subplots(3, 1, figsize=(5, 5.2))
for panel, (title, (statistic, unit, one, other)) in zip(axes, contrasts.items(), strict=True):
    weights = {words: {f"{one}{size}": 1, f"{other}{size}": -1} for words, size in SIZES.items()}
    forest(panel, differences(long_frame, weights, statistic, unit), [STYLES[one]["color"]] * len(SIZES))
    panel.set_title(title)
there = [
    run
    for configuration in ("SM+LN+G", "SM+G", "SM+R")
    for size in SIZES.values()
    for run in of_cell(long_frame, f"{configuration}{size}")["run"]
]
show_figure(
    figure,
    long.select(there),
    interactive=False,
    finding=f"ReLU against GELU without LayerNorm: {size_leads}.",
)

# %% [markdown]
# ## Adam's epsilon
#
# Adam divides by the size of recent gradients plus a small epsilon. Where gradients are smaller than epsilon, it slows their matrices down. In a
# norm-free model the queries and keys, which set entropy, can have very small gradients ([Traps](../traps.md) has one measurement). So the early
# overload could come from epsilon. In a pilot of one seed, in the list below, an epsilon of 1e-12 changed GELU's perplexity by a thousandth. The optimiser of the
# paper's code makes epsilon larger in the first updates, too. The stage `causes` asks what both do.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-epsilon", "caption": "ReLU against GELU without LayerNorm after 1,600 updates, under four settings of the optimiser: change of perplexity, and early entropy of GELU minus that of ReLU, means over n seeds, the same in all rows, with 95 % intervals; hollow: one seed. If a larger epsilon made overload, the row of 1e-6 would lie further from zero than that of 1e-8 in the lower panel, and the row of 1e-12 nearer."}, "image": {"alt": "Two panels with four rows of points and intervals, one row for each optimiser."}}
OPTIMISERS = {
    "epsilon 1e-8": "short",
    "epsilon 1e-12": "epsilon 1e-12",
    "epsilon 1e-6": "epsilon 1e-6",
    "the paper's optimiser": "hf_adamw",
}
optimised = [f"SM+{a} {name}" for name in OPTIMISERS.values() for a in "RG"]
seeds_of_all = set.intersection(*(set(of_cell(long_frame, cell).index) for cell in optimised))
alike = long_frame[long_frame.index.get_level_values("seed").isin(seeds_of_all)]
figure, axes = plt.subplots(2, 1, figsize=(5, 3.8))
color = STYLES["SM+R"]["color"]
panels = {
    "perplexity, ReLU against GELU (%)": ("loss", "percent", 1),
    "early entropy / ceiling, GELU minus ReLU": ("early_entropy", "share", -1),
}
for panel, (title, (statistic, unit, sign)) in zip(axes, panels.items(), strict=True):
    weights = {words: {f"SM+R {name}": sign, f"SM+G {name}": -sign} for words, name in OPTIMISERS.items()}
    found = differences(alike, weights, statistic, unit)
    forest(panel, found, [color] * len(found))
    panel.set_title(title)
there = [run for cell in optimised for run in of_cell(alike, cell)["run"]]
own = found.apply(lambda row: with_interval("share", row["estimate"], row["low"], row["high"]), axis=1)
show_figure(
    figure,
    long.select(dict.fromkeys(there)),
    interactive=False,
    finding="Early entropy, GELU minus ReLU: "
    + ", ".join(f"{text} at {words}" for words, text in own.items() if text != "-")
    + f" (n = {found['n'].min()}).",
)

# %% tags=["remove-input"]
columns = ("claim", "ours, 95 % interval", "n", "p (Holm)", "verdict")
folded(
    f"{(epsilon['n'] > 0).sum()} of {len(epsilon)} predictions have runs",
    verdict_table(epsilon, long_frame, columns=columns),
)

# %% [markdown]
# ## The first study: nine conditions
#
# ```{admonition} These runs are in a transient
# :class: warning
# They are 2.5 M tokens long and end in a {term}`transient`: GPT-2 with LayerNorm is still behind. So no verdict on the paper is taken
# from them; [Claims](claims.ipynb) has the verdicts, on longer runs.
# ```
#
# The nine conditions are no final norm, a final RMSNorm, dropout, own best learning rates, 4, 8 and 12 layers, and widths 32 and 128.

# %% tags=["remove-input"]
single = int((open_ones["n"] == 1).sum())
Markdown(
    f"In these short runs ReLU is ahead beyond chance under {yes} of {len(gaps)} planned conditions. Under {len(open_ones)} the answer is open ({single} of them rest on one "
    f"surviving seed)"
    + (f", and under {len(gaps) - ran} no pair of runs trained. " if ran < len(gaps) else ". ")
    + "A condition without an answer is not one without an effect. Three conditions were added later. Two of them: "
    f"at the rate 0.0057 ReLU against GELU is {answer('6 follow-up')}; with 12 layers at half the rate it is {answer('7 follow-up depth 12')}. "
    "The third, 4 layers at half the rate, was asked only as a part of another question."
)

# %% tags=["remove-input"]
study_banner(shown, first)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-confounds", "caption": "Change of perplexity from GELU to ReLU, and early entropy of GELU minus that of ReLU, without LayerNorm, under each condition: means over n seeds of those planned, with 95 % intervals. Hollow: one seed, no interval. Dashed: the base settings. Where the change of perplexity is left of zero, ReLU is ahead. The rows of the rates 0.0057 and 0.002 were added later. Look at the width of an interval before its middle."}, "image": {"alt": "Two forest plots, a row for each condition such as no final norm, dropout, depth and width, with the number of seeds in each label."}}
suffixes = {
    "base": "",
    "no final norm": " final none",
    "final RMSNorm": " final RMSNorm",
    "dropout 0.1": " dropout 0.1",
    "own best rates": " own best",
    "rate 0.0057": " lr=0.0057",
    "4 layers": " 4 layers",
    "8 layers": " 8 layers",
    "12 layers": " 12 layers",
    "4 layers, rate 0.002": " 4 layers lr=0.002",
    "12 layers, rate 0.002": " 12 layers lr=0.002",
    "width 32": " width 32",
    "width 128": " width 128",
}
figure, axes = plt.subplots(2, 1, figsize=(5, 7.4))
found = {}
for panel, (title, (statistic, unit, sign)) in zip(axes, panels.items(), strict=True):
    weights = {words: {f"SM+R{suffix}": sign, f"SM+G{suffix}": -sign} for words, suffix in suffixes.items()}
    rows = found[statistic] = differences(frame, weights, statistic, unit)
    forest(panel, rows, [color] * len(rows))
    panel.axvline(rows.loc["base", "estimate"], linestyle="--", color="grey", linewidth=0.8)
    panel.set_title(title)
cells = [f"SM+{a}{suffix}" for suffix in suffixes.values() for a in "RG" if f"SM+{a}{suffix}" in frame.index]
loss, early = (rows[rows["n"] > 0] for rows in found.values())
show_figure(
    figure,
    shown.select(frame.loc[cells, "run"]),
    interactive=False,
    finding=f"ReLU is ahead in {(loss['estimate'] < 0).sum()} of {len(loss)} rows with a point, and {(loss['high'] < 0).sum()} of their intervals exclude "
    f"zero (uncorrected); early entropy is higher with GELU in {(early['estimate'] > 0).sum()} of {len(early)}, and "
    f"{(early['low'] > 0).sum()} intervals exclude zero.",
)

# %% tags=["remove-input"]
sizes = [
    (words, difference(frame, {f"SM+R{s}": 1, f"SM+G{s}": -1}))
    for words, s in (("width 32", " width 32"), ("width 64", ""), ("width 128", " width 128"))
]
Markdown(
    "How large ReLU's lead is by width: "
    + ", ".join(f"{text} at {words} (n = {n})" for words, (text, n) in sizes)
    + f". Whether it grows with the width is {said(table.loc['7 width trend'])}, and at width 128 most runs diverged."
)

# %% tags=["remove-input"]
MARGIN = 0.02  # the smallest effect of interest on early entropy, of data/claims.yaml
lines, levels = [], []
for words, suffix in (("width 32", " width 32"), ("4 layers at the rate 0.002", " 4 layers lr=0.002")):
    lead, n = difference(frame, {f"SM+R{suffix}": 1, f"SM+G{suffix}": -1})
    weights = {f"SM+G{suffix}": 1, f"SM+R{suffix}": -1}
    level, _ = difference(frame, weights, "early_entropy", "share")
    inner = interval(contrast(frame, weights, "early_entropy")[0])
    levels += [of_cell(frame, cell)["early_entropy"].dropna().astype(float) for cell in weights]
    same = inner["inner_low"] >= -MARGIN and inner["inner_high"] <= MARGIN
    lines.append(
        f"At {words} ReLU's perplexity changes by {lead} (n = {n}), and GELU's early entropy minus ReLU's is {level} of the ceiling: "
        + (
            f"an {{term}}`equivalence test` puts it within {MARGIN:g}."
            if same
            else f"whether that is within {MARGIN:g}, the runs cannot tell."
        )
    )
Markdown(
    "**Can ReLU lead without a difference in early entropy?** "
    + " ".join(lines)
    + f" Both activations stand at {pd.concat(levels).min():.2f} to {pd.concat(levels).max():.2f} of the ceiling there, so early entropy can hardly differ. That ReLU leads there says at "
    "most that a lead can begin before early entropy falls. The margin was fixed after these runs, and the two conditions "
    "were picked out afterwards, of all the rows above."
)

# %% [markdown]
# ### How to read the answers
#
# The questions were written down before the runs (`data/transient.yaml`), but for the follow-ups, which came when other stages had been seen. The rule that judges them here is that of [Claims](claims.ipynb) and came
# after the runs; what it changed stands there. *Yes* and *no, the reverse* need a p below 0.05 after {term}`Holm's correction <Holm correction>`. *No, negligible* needs an
# {term}`equivalence test`: without a margin, nothing is called equal. The rest is *undecided*. Only {term}`trained` runs count.


# %% tags=["remove-input"]
def questions(number):
    rows = table[table["id"].str.split().str[0] == str(number)]
    answers = pd.Series([said(row, ANSWERS) for _, row in rows.iterrows()]).value_counts()
    counts = ", ".join(f"{n} {answer}" for answer, n in answers.items())
    columns = ("question", "ours, 95 % interval", "n", "left out", "p (Holm)", "answer")
    return folded(f"The questions: {counts}", verdict_table(rows, frame, "question", columns))


fixed = [
    line
    for line in read_ledger()["disclosures"]
    if any(word in line["what"].lower() for word in ("first study", "follow-up", "pilot"))
]
folded("What was fixed when", Markdown("\n".join(f"- {line['when']}: {line['what']}." for line in fixed)))

# %% [markdown]
# ### 1. Do learned slopes go to zero by themselves?
#
# Weight decay alone makes a slope smaller {eq}`eq-slope-decay`, and the public code puts it on slopes {cite}`jha2024code`. So "the slopes went to
# zero" needs two controls: runs without decay, and the place to which decay alone would lead. *The paper's total decay* is a decay so much
# larger that it shrinks a slope as much in these short runs as the paper's 0.1 does over its long one.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-slope-confound", "caption": "Learned negative slopes at the end of training, a point for each layer and seed; hollow: the bottom layer. Bar: the start. Cross: where weight decay alone would take it. Band: smaller than the smallest slope of interest. Compare the points with the cross of their row, above all in the rows without decay."}, "image": {"alt": "A row of points for each start and decay on a linear axis around zero, with the start and the place of decay alone."}}
margin = next(test["least"] for test in read_ledger()["tests"] if test["id"] == "S1")
by_run = shown.runs.set_index("run")
cells = [cell for cell in first.cells.values() if "slope" in cell.name and cell.name in frame.index]
figure, panel = plt.subplots(figsize=(5, 0.9 + 0.36 * len(cells)))
panel.axvspan(-margin, margin, color="grey", alpha=0.15, linewidth=0)
ends, color = {}, STYLES["SM+R"]["color"]
for row, cell in enumerate(cells):
    runs_of = of_cell(frame, cell.name).dropna(subset=["slope"])
    begin = by_run.loc[runs_of["run"].iloc[0], "model.negative_slope"]
    sums = [decay_sum(by_run.loc[run], shown.metrics[shown.metrics["run"] == run]) for run in runs_of["run"]]
    alone = float(np.mean(begin * np.exp(-np.array(sums))))
    panel.plot(begin, row, "|", color="black", markersize=14, gid=f"{cell.name}, start")
    panel.plot(alone, row, "x", color="grey", markersize=6, gid=f"{cell.name}, decay alone")
    last = shown.layers[shown.layers["run"].isin(runs_of["run"])]
    last = last[last["step"] == last["step"].max()]
    bottom, above = last.loc[last["layer"] == 0, "slope"], last.loc[last["layer"] > 0, "slope"]
    if cell.name.startswith("shared"):
        bottom, above = bottom[:0], bottom
    for slopes, full in ((above, "full"), (bottom, "none")):
        where = "bottom layer" if full == "none" else "other layers"
        panel.plot(
            slopes, [row] * len(slopes), "o", color=color, fillstyle=full, markersize=4, gid=f"{cell.name}, {where}"
        )
    found = interval(runs_of["slope"].astype(float))
    inside = -margin <= found["inner_low"] and found["inner_high"] <= margin
    outside = found["low"] > margin or found["high"] < -margin
    ends[cell.name] = {
        "slopes": cell.name,
        "mean at the end, 95 % interval": with_interval("slope", found["estimate"], found["low"], found["high"]),
        "n": len(runs_of),
        "largest of any layer": f"{pd.concat([bottom, above]).abs().max():.3f}",
        "decay alone": f"{alone:.3f}",
        "mean at zero?": "yes, within the margin" if inside else "no, outside the margin" if outside else "undecided",
    }
panel.axvline(0, color="black", linewidth=0.6)
names = [cell.name.removeprefix("slope ").replace("shared slope ", "shared, ") for cell in cells]
panel.set_yticks(range(len(cells)), names, fontsize=8)
panel.invert_yaxis()
panel.set_xlabel("negative slope at the end")
zero = [name for name, row in ends.items() if row["mean at zero?"].startswith("yes")]
show_figure(
    figure,
    shown.select(frame.loc[[cell.name for cell in cells], "run"]),
    interactive=False,
    finding=f"In {len(zero)} of {len(ends)} rows the mean over layers is within ±{margin:g} of zero by an equivalence test.",
)

# %% tags=["remove-input"]
free, small = ends["slope 0.25, no decay"], ends["slope 0.01, no decay"]
words = (
    "So these slopes come near zero on average, and decay is not needed for it"
    if "slope 0.25, no decay" in zero
    else "So these slopes are not shown to reach zero by themselves"
)
Markdown(
    f"Slopes that start at 0.25 and have no decay end at {free['mean at the end, 95 % interval']} on average over layers (n = {free['n']}); the largest of any layer "
    f"is {free['largest of any layer']}. {words}, in runs of this length. Slopes that start at 0.01 end at {small['mean at the end, 95 % interval']}: they begin "
    f"within the margin and may leave zero on its other side. The margin of {margin:g} was fixed for the study, after these runs."
)

# %% tags=["remove-input"]
folded("Final slopes, against zero", markdown_table(pd.DataFrame([*ends.values()])))

# %% [markdown]
# The questions as they were asked are about the *ratio* of the final to the initial magnitude. A ratio reads a slope that passes through zero as one
# that grows, so take them with the figure.

# %% tags=["remove-input"]
questions(1)

# %% [markdown]
# ### 2. The final LayerNorm
#
# The paper's {term}`norm-free` model keeps the LayerNorm before the output matrix {cite}`jha2024code`.

# %% tags=["remove-input"]
Markdown(f"ReLU against GELU without it: {answer('2 none')}. With an RMSNorm instead: {answer('2 RMSNorm')}.")

# %% tags=["remove-input"]
questions(2)

# %% [markdown]
# ### 3. Embedding dropout
#
# The public code inherits GPT-2's 0.1 {cite}`jha2024code`; whether the published runs had it is not known.

# %% tags=["remove-input"]
Markdown(f"ReLU against GELU with it: {answer('3')}.")

# %% tags=["remove-input"]
questions(3)

# %% [markdown]
# ### 4. Two forms of GELU
#
# The public code has the erf form {cite}`jha2024code`, Hugging Face's GPT-2 the tanh form {cite}`wolf2020transformers`.

# %% tags=["remove-input"]
Markdown(f"The tanh form against the erf form: {answer('4')}.")

# %% tags=["remove-input"]
questions(4)

# %% [markdown]
# ### 5. Precision, and what stops a run
#
# The public code adds to the {term}`residual stream` in float16 {cite}`jha2024code`. Here only the stream is held in the lower precision, and the
# layers compute in float32. Mixed-precision training in float16, with its loss scaling, is not tested.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-stops", "caption": "The update at which each run stopped, at four times the common learning rate. Filled: a value that is not finite. Hollow: the float32 norm of gradients that were all finite overflowed, which ended runs of the first study. Compare the times of two rows; where all runs stop, counts tell nothing."}, "image": {"alt": "A row of points on a logarithmic axis of updates for each configuration at four times the learning rate."}}
fast = [name for name in first.cells if "rate x4" in name]
figure, panel = plt.subplots(figsize=(5, 0.9 + 0.34 * len(fast)))
for row, name in enumerate(fast):
    runs_of = of_cell(frame, name)
    for outcome, full in (("diverged", "full"), ("gradient norm", "none")):
        at = runs_of.loc[runs_of["outcome"] == outcome, "steps"].astype(float)
        panel.plot(
            at,
            [row] * len(at),
            "o",
            color=STYLES["SM+G"]["color"],
            fillstyle=full,
            markersize=5,
            gid=f"{name}, {outcome}",
        )
    rest = int(runs_of["outcome"].isin(["trained", "untrained"]).sum())
    if rest:
        panel.annotate(
            f"{rest} ran to the end", (1, row), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=7
        )
panel.set_yticks(range(len(fast)), [name.replace(" rate x4", "").removeprefix(",") for name in fast], fontsize=8)
panel.invert_yaxis()
panel.set(xscale="log", xlabel="update at which the run stopped")
panel.set_xticks([30, 50, 100, 200], ["30", "50", "100", "200"])
panel.minorticks_off()
every = pd.concat([of_cell(frame, name) for name in fast])
stopped = every["outcome"].isin(["diverged", "gradient norm"])
show_figure(
    figure,
    shown.select(every["run"]),
    interactive=False,
    finding=f"Of {len(every)} runs {stopped.sum()} stopped, {(every['outcome'] == 'diverged').sum()} of them with a value that is not finite.",
)

# %% tags=["remove-input"]
sooner = {key: said(table.loc[key], ANSWERS) for key in ("5 rate fp32", "5 rate bf16", "5 rate fp16")}
Markdown(
    f"At the common rate, a bfloat16 stream changes GELU's perplexity by {answer('5 bf16')}; a float16 one by {answer('5 fp16')}. At four times the "
    f"rate, the {{term}}`log-rank test` compares times. GELU sooner than ReLU: *{sooner['5 rate fp32']}*. GELU sooner with a bfloat16 stream: "
    f"*{sooner['5 rate bf16']}*; with a float16 stream: *{sooner['5 rate fp16']}*."
)

# %% tags=["remove-input"]
questions(5)

# %% [markdown]
# Runs that stop are a result of their own. Over the whole first study, at all its rates and sizes:

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-survival", "caption": "Share of the runs of the first study that are still training over updates, by kind of model (Kaplan and Meier), with pointwise 95 % intervals; a run counts until it ends or stops. The kinds were tried under different mixes of learning rates and sizes, so compare what is left with the number of runs and not one curve with another."}, "image": {"alt": "Falling step curves of the share of runs still training, one for each of four kinds of model, with bands."}}
outcomes = frame.drop_duplicates("run")[["run", "outcome", "steps"]].merge(
    shown.runs[["run", "model.norm", "configuration"]], on="run"
)
free = outcomes["model.norm"] == "none"
groups = {
    "with LayerNorm": (~free, "SM+LN+G"),
    "GELU without it": (free & (outcomes["configuration"] == "SM+G"), "SM+G"),
    "ReLU without it": (free & (outcomes["configuration"] == "SM+R"), "SM+R"),
    "others without it": (free & ~outcomes["configuration"].isin(["SM+G", "SM+R"]), None),
}
names = {
    "trained": "trained",
    "untrained": "ran, not trained",
    "diverged": "not finite",
    "gradient norm": "norm overflowed",
}
figure, axes = plt.subplots(figsize=(5, 3.4))
rows, end = [], int(outcomes["steps"].max())
for words, (members, style) in groups.items():
    runs_of = outcomes[members]
    stops = ~runs_of["outcome"].isin(["trained", "untrained"])
    times = runs_of["steps"].astype(float)
    alive = ecdf(CensoredData(times[stops], right=times[~stops])).sf
    color = STYLES[style]["color"] if style else "#666666"
    x = np.concatenate([[1], alive.quantiles, [end]])
    axes.plot(
        x,
        [1, *alive.probabilities, alive.probabilities[-1]],
        color=color,
        drawstyle="steps-post",
        linewidth=1.4,
        linestyle="--" if style == "SM+LN+G" else "-",
        label=f"{words} (n = {len(runs_of)})",
    )
    if stops.any():
        limits = alive.confidence_interval(method="log-log")
        low, high = (np.concatenate([[1], limit.probabilities]) for limit in (limits.low, limits.high))
        low, high = (pd.Series(np.append(limit, limit[-1])).ffill() for limit in (low, high))
        axes.fill_between(x, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    counts = runs_of["outcome"].value_counts()
    rows.append({"runs": words, "all": len(runs_of), **{names[o]: int(counts.get(o, 0)) for o in OUTCOMES}})
axes.set(xscale="log", xlabel="update", ylabel="share of runs still training", ylim=(-0.02, 1.05), xlim=(10, end))
axes.legend(loc="lower left", fontsize=7)
left = [f"{row['trained'] + row['ran, not trained']} of {row['all']} {row['runs']}" for row in rows]
show_figure(figure, shown.select(outcomes["run"]), interactive=False, finding=f"To their end ran {', '.join(left)}.")

# %% tags=["remove-input"]
folded("What became of the runs", markdown_table(pd.DataFrame(rows)))

# %% [markdown]
# Every perplexity on this page is that of the runs that trained. Where many did not, it speaks of the survivors only. The two
# events are not alike: with a norm that overflows all entries are finite, and we expect that the paper's training, which skips such steps when it
# scales the loss, would have gone on. The study behind [Claims](claims.ipynb) lets such runs go on.

# %% [markdown]
# ### 6. Learning rate
#
# One rate for all configurations may suit only some of them. Each main configuration's own best rate is the one with the lowest
# final loss on one spare seed, 100, with which nothing is judged.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-rates", "caption": "Final perplexity against the learning rate, on the one seed of the grid (both logarithmic). The static version circles each configuration's own best rate. A curve that ends early has no trained run further right."}, "image": {"alt": "Four curves of perplexity over learning rates from 0.001 to 0.016, one per main configuration, with their lowest points circled."}}
figure, axes = plt.subplots(figsize=(5, 3.4))
lowest = {}
spare = replace(first, cells={name: cell for name, cell in first.cells.items() if min(cell.seeds) >= SPARE})
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
axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="final perplexity")
axes.set_xticks([0.001, 0.002, 0.004, 0.008, 0.016], ["0.001", "0.002", "0.004", "0.008", "0.016"])
axes.set_yticks([45, 50, 60, 70, 85], ["45", "50", "60", "70", "85"])
axes.minorticks_off()
direct_labels(axes)
finding = "The grids of SM+G and SM+R are not complete."
if {"SM+G", "SM+R"} <= set(lowest):
    (g, g_rate), (r, r_rate) = lowest["SM+G"], lowest["SM+R"]
    best = against(f"SM+R (rate {r_rate:g})", r, f"SM+G (rate {g_rate:g})", g)
    finding = f"At the best rate of each, perplexity is {best}, on one seed."
show_figure(figure, shown.select(rates_frame["run"]), finding=finding)

# %% tags=["remove-input"]
at_best = of_cell(frame, "SM+G own best")["outcome"]
Markdown(
    f"One seed is too few to choose a rate by: at GELU's own best rate, {(at_best != 'trained').sum()} of {len(at_best)} other seeds did not train. ReLU against "
    f"GELU, each at its own best rate: {answer('6')}. A rate between the common one and GELU's best was added later: {answer('6 follow-up')}."
)

# %% tags=["remove-input"]
questions(6)

# %% [markdown]
# ### 7. Depth and width
#
# All sizes see equally many tokens. At width 128 the initial matrices are smaller and at width 32 larger, so that a layer's gain stays that of
# width 768.

# %% tags=["remove-input"]
Markdown(
    f"ReLU against GELU with 4 layers: {answer('7 depth 4')}. With 8: {answer('7 depth 8')}. With 12: {answer('7 depth 12')}; and at half "
    f"the rate, where more seeds train: {answer('7 follow-up depth 12')}. At width 32: {answer('7 width 32')}. At width 128: {answer('7 width 128')}. "
    "At 12 layers, the paper's depth, no seed trained in both at the common rate."
    if table.loc["7 depth 12", "n"] == 0
    else f"ReLU against GELU with 4 layers: {answer('7 depth 4')}. With 12: {answer('7 depth 12')}. At width 128: {answer('7 width 128')}."
)

# %% tags=["remove-input"]
questions(7)

# %% [markdown]
# ### 8. Which entropy?
#
# The paper's statistic {eq}`eq-head-entropy` averages over query positions, and late positions have a higher {term}`ceiling`. Three
# others are possible: every position over its own ceiling, only the last quarter of positions, and random tokens, where
# there is nothing to attend to.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-positions", "caption": "Entropy of the early layers over its ceiling ln i by query position i (logarithmic), at the last probe, mean over seeds. Solid, filled: held-out text. Dotted, hollow: random tokens. Compare GELU's and ReLU's curves (SM+G, SM+R) at late positions, and text with random tokens."}, "image": {"alt": "Curves of normalised entropy against query position for the four main configurations, on text and on random tokens."}}
figure, axes = plt.subplots(figsize=(5, 3.6))
late = {"-": {}, ":": {}}
for configuration in MAIN:
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
            markerfacecolor=STYLES[configuration]["color"] if line == "-" else "none",
            **STYLES[configuration],
            label=configuration if line == "-" else None,
            gid=configuration + (" on random tokens" if line == ":" else ""),
        )
        late[line][configuration] = curve[curve.index > 0.75 * curve.index.max()].mean()
axes.set(xlabel="query position i", ylabel="entropy / ln i", xscale="log")
axes.legend()
text, noise = (against("SM+G", of["SM+G"], "SM+R", of["SM+R"]) for of in late.values())
show_figure(
    figure,
    shown.select(frame.loc[[*MAIN], "run"]),
    finding=f"In the last quarter of the positions, on text: {text}; on random tokens: {noise}.",
)

# %% tags=["remove-input"]
FOUR = (
    "by the paper's statistic",
    "with each position over its own ceiling",
    "in the last quarter of positions",
    "on random tokens",
)
all_four = table.loc[["8 ceiling", "8 per position", "8 late positions", "8 random"]]
Markdown(
    f"GELU's early layers minus ReLU's (n = {all_four['n'].min()}): "
    + ", ".join(f"{estimate(row)} {words}" for words, (_, row) in zip(FOUR, all_four.iterrows(), strict=True))
    + (
        ". All four differ from zero."
        if all_four["verdict"].eq("reproduced").all()
        else ". The answer depends on the statistic."
    )
)

# %% tags=["remove-input"]
questions(8)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
LATER_STAGES = {"pythia": "Pythia", "sizes": "other sizes"}
still = {
    "2 none": "no final norm",
    "2 RMSNorm": "a final RMSNorm",
    "3": "embedding dropout",
    "6": "own best learning rates",
}
still |= {f"7 depth {layers}": f"{layers} layers" for layers in (4, 8, 12)} | {
    f"7 width {d}": f"width {d}" for d in (32, 128)
}
assert {*still} == {*gaps["id"]}, "the conditions of this page"
tried = ["other learning rates", "other optimisers"]
tried += [
    words for stage, words in LATER_STAGES.items() if {e.id for e in study.experiments(stage)} & {*long.runs["run"]}
]
still = [words for key, words in still.items() if table.loc[key, "verdict"] in ("no runs", "undecided")]
Markdown(
    f"Past the transient, ReLU's lead was tried under {', '.join(tried[:-1])} and {tried[-1]} only. In runs of 2.5 M tokens ReLU is ahead of GELU without LayerNorm beyond chance under {yes} of {len(gaps)} conditions and behind under {against_it or 'none'}"
    + (f", and these stay open: {', '.join(still)}." if still else ".")
)
