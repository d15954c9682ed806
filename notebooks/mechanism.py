# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mechanism: what gives ReLU its lead?

# %% tags=["parameters"]
preset = "study"  # this page shows the study, notebooks/params/study.yaml
source = "recorded"  # recorded: data/recorded/study; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy.special import erf
from scipy.stats import t as t_distribution

from nfbook.claims import correlations, early_layers, interval, of_cell, read_ledger, statistics, verdicts
from nfbook.figures import STYLES, forest, show_figure, use_style
from nfbook.front import strip
from nfbook.gaussian import gaussian_gelu_shares, gaussian_leaky_relu_shares
from nfbook.recorded import recorded_dir
from nfbook.report import (
    ANSWERS,
    differences,
    estimate,
    folded,
    glue,
    glue_verdicts,
    left_out,
    markdown_table,
    published_estimate,
    seeds_used,
    study_banner,
    study_runs,
    unfinished,
    verdict_table,
    with_interval,
)
from nfbook.study import Study


use_style()
shown = study_runs(study)
frame = statistics(shown, study)
judged_all = verdicts(frame).set_index("id", drop=False)
table = judged_all[judged_all["family"].isin(["scale", "cause", "units"])]
layers = shown.layers
# The first study, whose models are in a transient: the last section shows it.
first = Study.load("transient", study.source)
first_runs = study_runs(first)
first_frame = statistics(first_runs, first)
first_table = verdicts(first_frame, "transient")
first_table = first_table[first_table["group"] == "mechanism"].set_index("id", drop=False)
glue_verdicts(first_table, ANSWERS)
GELU, RELU, NORM, SHARP = (STYLES[name]["color"] for name in ("SM+G", "SM+R", "SM+LN+G", "SM+L(0.1)"))


# %% tags=["remove-input"]
def there(*cells):
    """Ids of the runs of these cells."""
    return [run for cell in cells for run in of_cell(frame, cell)["run"]]


def layers_of(name, step=None):
    """Telemetry per layer of a cell's runs, at one step or at all."""
    rows = layers[layers["run"].isin(there(name))]
    return rows if step is None else rows[rows["step"] == step]


def change(cell, against, of=frame, statistic="loss", unit="percent"):
    """What one cell changes against another, with its interval and the number of seeds."""
    row = differences(of, {"": {cell: 1, against: -1}}, statistic, unit).iloc[0]
    if not row["n"]:
        return "no seed trained" if row["lost"] else "not trained yet"
    return f"{with_interval(unit, *row[['estimate', 'low', 'high']])} (n = {row['n']:.0f})"


def judged(family):
    """The predictions of a family that have runs, as a strip."""
    rows = table[table["family"] == family]
    asked = rows[rows["n"] > 0]
    return strip({"": asked}) if len(asked) else Markdown("*No seed of these predictions is trained.*")


GAIN = {
    "SM+G s=4 short": "sharpened to GELU(4x)/4",
    "SM+G FFN start x4": "the larger start alone",
    "SM+G FFN rate x4": "the other learning rates alone",
}
start = layers_of("SM+G", 0)
share_start = 100 * start["nonlinear_share"].mean()
gains = "; ".join(f"{words}, {change(cell, 'SM+G short')}" for cell, words in GAIN.items())
early, late = (change(f"SM+G {part} logits x4", "SM+G short") for part in ("early", "late"))
normed = {name: change(f"{cell} QK-norm", f"{cell} short") for name, cell in (("GELU", "SM+G"), ("ReLU", "SM+R"))}
opening = (
    f"**Without LayerNorm, GELU starts as {'almost a straight line' if share_start < 1 else 'a bent line'}, because its inputs are small: "
    f"a straight line accounts for {100 - share_start:.1f} % of the energy of its outputs.** A sharper GELU, GELU(4x)/4, bends on smaller inputs. It also "
    f"starts larger and learns at other rates. What each changes in GELU's perplexity: {gains}. In the first study (600 updates, float32) the larger start gave "
    f"{change('SM+G FFN x4, /4', 'SM+G', first_frame)}. If overload costs perplexity, larger logits in the early layers should help GELU more than "
    f"larger logits in the late ones. Early layers, times 4: {early}; late layers: {late}. Normalised queries and keys should help GELU more than "
    f"ReLU. GELU: {normed['GELU']}; ReLU: {normed['ReLU']}. Intervals on this page are not corrected for the number of tests; verdicts on predictions with a direction are."
)
Markdown(opening + (" One seed (n = 1) is no result." if "(n = 1)" in opening else ""))

# %% tags=["remove-input"]
study_banner(shown, study)

# %% [markdown]
# Two explanations are on offer. The paper credits the geometry of ReLU {cite}`jha2024relus`: in its abstract's words, specialisation in
# input space and selectivity within a class. The other is scale, and it is our conjecture. GELU looks like ReLU only on inputs of size one or
# more. On small inputs it is a straight line. ReLU has no such scale: it is {term}`positively homogeneous` {eq}`eq-homogeneous`, so it bends
# equally on small and on large inputs.
#
# ## GELU is nearly straight where its inputs are small

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-inputs", "caption": "Three activations over the inputs that the first feed-forward layer of one model gets (grey: histogram of these inputs; GELU without LayerNorm, before and after the 600 updates of a run of the first study). Look at the curves where the grey is: there GELU is close to a straight line at the start, while ReLU and GELU(16x)/16 bend."}, "image": {"alt": "Two panels, before and after training. In each a grey histogram of inputs around zero and the curves of GELU, a sharpened GELU and ReLU over it."}}
example = json.loads((recorded_dir("") / "examples.json").read_text())


def gelu(x, s=1.0):
    return x * 0.5 * (1 + erf(s * x / math.sqrt(2)))


figure, axes = plt.subplots(2, 1, figsize=(5, 5.2))
for panel, (when, words) in zip(axes, {"start": "before training", "end": "after training"}.items(), strict=True):
    inputs = example["inputs"][when]
    edges = np.linspace(-inputs["edge"], inputs["edge"], len(inputs["share"]) + 1)
    x = np.linspace(edges[0], edges[-1], 161)
    behind = panel.twinx()
    behind.stairs(inputs["share"], edges, fill=True, color="grey", alpha=0.35, linewidth=0)
    behind.set(ylim=(0, 2.2 * max(inputs["share"])), yticks=[])
    behind.spines[:].set_visible(False)
    for name, y, color, line in (
        ("ReLU", np.maximum(x, 0), RELU, "-"),
        ("GELU(16x)/16", gelu(x, 16), SHARP, "--"),
        ("GELU", gelu(x), GELU, "-"),
    ):
        panel.plot(x, y, line, color=color, label=name, linewidth=1.8)
    panel.set(title=words, xlabel="input x of the activation", ylabel="output", ylim=(-0.45 * edges[-1], edges[-1]))
    panel.set_zorder(behind.get_zorder() + 1)
    panel.patch.set_visible(False)
axes[0].legend(loc="upper left")
sizes = {when: example["inputs"][when]["std"] for when in ("start", "end")}
show_figure(
    figure,
    first_runs.select([example["run"]]),
    interactive=False,
    finding=f"The inputs have a standard deviation of {sizes['start']:.3f} before training and {sizes['end']:.2g} after "
    f"{example['updates']} updates.",
)

# %% [markdown]
# How straight is straight? Fit the best straight line to the outputs, and ask what part of their energy it misses. That part is the
# {term}`non-linear share` {eq}`eq-nonlinear-share`. For ReLU it is one half at every scale if the inputs are symmetric about zero, which those of a
# network need not be. For GELU it depends on the scale.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-shares-theory", "caption": "Non-linear share of an activation over the standard deviation τ of its inputs. Curves: formulas for Gaussian inputs. Points: measured at initialisation, one a layer, mean over seeds. Look at which scale the points of a model lie. They need not be on the curves, since real inputs are not Gaussian of one scale around zero."}, "image": {"alt": "An S-shaped curve for GELU, the same curve moved left for the sharpened GELU, horizontal lines for ReLU and a leaky ReLU, and measured points of four models."}}
taus = np.geomspace(1e-3, 1e2, 160)
figure, axes = plt.subplots(figsize=(5, 3.4))
for name, s, color, line in (("GELU", 1, GELU, "-"), ("GELU(16x)/16", 16, SHARP, "--")):
    axes.plot(taus, [gaussian_gelu_shares(s * tau)[0] for tau in taus], line, color=color, label=name)
for name, slope in (("ReLU", 0.0), ("leaky ReLU, slope 0.3", 0.3)):
    level = gaussian_leaky_relu_shares(slope)[0]
    axes.axhline(level, color=RELU, linewidth=1.6 if not slope else 0.8, gid=name)
    place = dict(xytext=(-2, 2), textcoords="offset points", ha="right")
    axes.annotate(name, (taus[-1], level), fontsize=8, color=RELU, **place)
at_start = {}
for name, words, color, marker in (
    ("SM+G", "GELU without LayerNorm", GELU, "^"),
    ("SM+G s=16", "the same, s = 16", SHARP, "s"),
    ("SM+LN+G", "GELU with LayerNorm", "#666666", "o"),
    ("SM+R", "ReLU without LayerNorm", RELU, "D"),
):
    means = (
        layers_of(name, 0)
        .groupby("layer")[["preactivation_std", "nonlinear_share"]]
        .mean()
        .sort_values("preactivation_std")
    )
    axes.plot(*means.to_numpy().T, marker, linestyle="none", color=color, fillstyle="none", label=f"{words} (measured)")
    at_start[name] = means.mean()
axes.set(xscale="log", xlabel="standard deviation τ of the inputs", ylabel="non-linear share", ylim=(-0.02, 0.6))
axes.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.2), fontsize=7, ncols=2)
show_figure(
    figure,
    shown.select(there(*at_start)),
    finding=f"Mean over layers at the start: {at_start['SM+G']['nonlinear_share']:.4f} without LayerNorm, "
    f"{at_start['SM+LN+G']['nonlinear_share']:.2f} with it, {at_start['SM+G s=16']['nonlinear_share']:.2f} for GELU(16x)/16 without it, "
    f"{at_start['SM+R']['nonlinear_share']:.2f} for ReLU without it.",
)

# %% [markdown]
# :::{dropdown} The formulas
# The output energy of an activation f on inputs x is E f(x)². The best linear map λ x with λ = E[x f]/E[x²] accounts for λ² E[x²] of it.
# The *centred* share also leaves out the constant part (E f)². For GELU, f(u) = u Φ(u), Stein's lemma {cite}`stein1981estimation` gives
# λ = 1/2 on Gaussian inputs of any standard deviation τ. With t = τ²,
#
# $$
# \mathbb{E} f^2 = \frac{t}{4} + \frac{t}{2\pi}\left(\arcsin\frac{t}{1+t} + \frac{2t}{(1+t)\sqrt{1+2t}}\right),
# $$ (eq-gelu-energy)
#
# and E f = t/√(2π(1+t)). For small τ the share is 6t/π, which goes to zero. GELU(s x)/s has the share of GELU at s τ. A leaky ReLU of
# slope α has shares that depend on α alone:
#
# $$
# \frac{(1-\alpha)^2}{2(1+\alpha^2)} \quad\text{and, centred,}\quad \frac{(1-\alpha)^2}{2(1+\alpha^2)}\left(1-\frac{2}{\pi}\right).
# $$ (eq-leaky-share)
#
# [nfbook.gaussian](../api/gaussian.md) has the derivation. A network's neurons have neither Gaussian inputs nor one scale. The measured
# share gives each neuron its own best line; where all inputs of a neuron lie on one side of zero, it sees little of the bend.
# :::

# %% tags=["remove-input"]
# In the first layer: d products of a weight and the sum of two embeddings.
tau = 0.02 * math.sqrt(768) * math.sqrt(2) * 0.02
glue(tau_paper=f"{tau:.4f}", share_paper=f"{100 * gaussian_gelu_shares(tau)[0]:.2f} %")
Markdown(
    "The paper's GPT-2 starts in the same place. Its weights and embeddings start with a standard deviation of 0.02, so the inputs of its "
    f"first layer start with {tau:.4f}, and a non-linear share of {100 * gaussian_gelu_shares(tau)[0]:.2f} %. That is arithmetic, and not a measurement of the paper's models."
)

# %% [markdown]
# ## Scale, start or learning rate?
#
# GELU(*s x*)/*s* {eq}`eq-scaled-gelu` is GELU at *s* = 1. As *s* grows, it becomes ReLU. One can write it as plain GELU between a first matrix *s*
# times as large and a second one *s* times as small. Steps of AdamW do not grow with the weights {cite}`loshchilov2019decoupled`, so sharpening GELU also
# makes the first matrix learn *s* times as fast and the second one *s* times as slowly. The stage `causes` of the study takes start and rates apart at *s* = 4. Three controls ask about other
# differences between GELU and ReLU: GELU with an output as large as ReLU's, GELU with biases, which can stand for ReLU's mean, and a leaky
# ReLU with a slope of 0.5 and the same output size, which has a fifth of ReLU's non-linear share {eq}`eq-leaky-share`.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-scale", "caption": "Change of perplexity against GELU, both without LayerNorm, after 1,600 updates: means over n seeds with 95 % intervals; hollow: one seed. Orange: a changed GELU. Green: ReLU and a leaky ReLU. Dashed: ReLU's mean, over its own seeds; only tests pair seeds. Compare the start alone and the rates alone with both together and with GELU(4x)/4."}, "image": {"alt": "A row with a point and an interval for each change to GELU, on an axis of the change of perplexity, with a dashed line for ReLU."}}
CHANGES = {
    "GELU(4x)/4": ("SM+G s=4 short", GELU),
    "start ×4": ("SM+G FFN start x4", GELU),
    "rates ×4": ("SM+G FFN rate x4", GELU),
    "start and rates ×4": ("SM+G FFN start and rate x4", GELU),
    "GELU(16x)/16": ("SM+G s=16 short", GELU),
    "larger output": ("SM+G FFN output gain", GELU),
    "biases": ("SM+G biases", GELU),
    "ReLU": ("SM+R short", RELU),
    "ReLU, rates ×4": ("SM+R FFN rate x4", RELU),
    "leaky ReLU, slope 0.5": ("SM+L(0.5) FFN output gain", RELU),
}
rows = differences(frame, {words: {cell: 1, "SM+G short": -1} for words, (cell, _) in CHANGES.items()})
figure, axes = plt.subplots(figsize=(5, 3.6))
forest(axes, rows, [color for _, color in CHANGES.values()])
axes.axvline(rows.loc["ReLU", "estimate"], linestyle="--", color=RELU, linewidth=0.8)
axes.set_xlabel("change of perplexity against GELU (%)")
several = rows[rows["n"] > 1]
below = [
    f"{words} ({row['estimate']:+.1f} %, n = {row['n']:.0f})" for words, row in several.iterrows() if row["high"] < 0
]
single = int((rows["n"] == 1).sum())
finding = f"Intervals below zero (uncorrected): {', '.join(below) or 'none'}."
if single:
    finding += f" {single} rows rest on one seed."
show_figure(
    figure,
    shown.select(there("SM+G short", *(cell for cell, _ in CHANGES.values()))),
    interactive=False,
    finding=finding,
)

# %% tags=["remove-input"]
tau = start["preactivation_std"].mean()
energy = {s: (1 - gaussian_gelu_shares(tau)[0]) / (1 - gaussian_gelu_shares(s * tau)[0]) for s in (4, 16)}
both = change("SM+G FFN start and rate x4", "SM+G s=4 short")


def clipped(cell):
    """The percentage of the logged updates of a cell's runs whose gradient was clipped."""
    logged = shown.metrics[shown.metrics["name"].eq("grad_norm") & shown.metrics["run"].isin(there(cell))]
    limit = study.cells[cell].experiments[0].training.max_grad_norm
    return f"{100 * (logged['value'] > limit).mean():.0f} %" if len(logged) else "not yet known"


alone = rows.loc[["start ×4", "rates ×4", "larger output", "biases"]]
parts = 100 * np.log1p(alone["estimate"] / 100) / np.log1p(rows.loc["ReLU", "estimate"] / 100)
overlap = (
    f"The larger start, the rates, the larger output and the biases each close {parts.min():.0f} to {parts.max():.0f} % of the distance from GELU to ReLU "
    f"(of log perplexity, n = {alone['n'].min()}). Added up that is {parts.sum():.0f} %, so they overlap; none alone makes up ReLU's lead. "
    if (alone["high"] < 0).all() and parts.sum() > 100
    else ""
)
Markdown(
    f"{overlap}Start and rates together would be GELU(4x)/4 if no gradient were clipped and Adam's epsilon did not matter. Gradients are clipped in "
    f"{clipped('SM+G FFN start and rate x4')} of the logged updates of the first and in {clipped('SM+G s=4 short')} of those of the second; "
    f"perplexity differs by {both}. On the inputs of the "
    f"start, sharpening also makes the output energy {energy[4]:.2f} times as large at s = 4 and {energy[16]:.2f} times at s = 16, which the control of the output "
    f"size is for. At 1,600 updates GELU with LayerNorm has overtaken GELU without: leaving it out changes perplexity by {change('SM+G short', 'SM+LN+G short')}."
)

# %% tags=["remove-input"]
judged("scale")

# %% [markdown]
# Five of these predictions ask for no difference: the first, and those on the start alone, the larger output, the biases and the rates of ReLU. *Contradicted* then means a
# change of more than 1 %, in either direction. Biases also go to attention, so a gain with biases does not show that ReLU's mean helps.

# %% [markdown]
# ## Is overload a cause?
#
# The paper's account {cite}`jha2024relus`, as we read it, runs from the activation over {term}`overloaded <overload (entropic)>` heads to the
# loss. That both go together cannot show it: two effects of one cause would go together as well. So `causes` changes what entropy depends on, in models
# of GELU and of ReLU. It multiplies or divides the attention logits of the early layers by a fixed factor, normalises queries and keys, or puts a
# penalty on entropy above half of the ceiling, as Entropy-Guided Attention does {cite}`jha2025entropy`. Larger logits in the late layers are for comparison.
# Entropy then moves, and we measure it.
#
# Two cautions. An intervention changes gradients too, so a change of the loss need not come through entropy. Nor does a loss that stays clear
# entropy, since the intervention may do harm in another way.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-set-entropy", "caption": "What each intervention on attention changes, against the same activation without it: early entropy over its ceiling (across) and perplexity (up), means over seeds with 95 % intervals; hollow: one seed. Grey: ReLU against GELU, with no intervention. If early entropy were the only cause of the loss, points with a lower entropy would lie lower."}, "image": {"alt": "A scatter of named points with crosses for their intervals around zero, in two colours for GELU and ReLU, and a grey point for the difference between the two."}}
SETS = {
    "early ×4": ("SM+G early logits x4", "SM+G short"),
    "early ×16": ("SM+G early logits x16", "SM+G short"),
    "late ×4": ("SM+G late logits x4", "SM+G short"),
    "QK-norm": ("SM+G QK-norm", "SM+G short"),
    "penalty": ("SM+G entropy penalty", "SM+G short"),
    "ReLU early /4": ("SM+R early logits /4", "SM+R short"),
    "ReLU early /16": ("SM+R early logits /16", "SM+R short"),
    "ReLU QK-norm": ("SM+R QK-norm", "SM+R short"),
    "ReLU penalty": ("SM+R entropy penalty", "SM+R short"),
    "ReLU against GELU": ("SM+R short", "SM+G short"),
}
weights = {words: {cell: 1, base: -1} for words, (cell, base) in SETS.items()}
moved = differences(frame, weights, "early_entropy", "share").join(differences(frame, weights).add_suffix(" loss"))
moved = moved[moved["n"] > 0]
figure, axes = plt.subplots(figsize=(5, 4))
for words, row in moved.iterrows():
    color = "#666666" if words == "ReLU against GELU" else RELU if words.startswith("ReLU") else GELU
    x, y = row["estimate"], row["estimate loss"]
    axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=1, gid=f"{words}, interval of entropy")
    axes.plot(
        [x, x], [row["low loss"], row["high loss"]], color=color, linewidth=1, gid=f"{words}, interval of perplexity"
    )
    axes.plot(x, y, "o", color=color, markersize=5, fillstyle="full" if row["n"] > 1 else "none", gid=words)
    below, left = words in ("early ×16", "ReLU early /4"), words == "penalty"
    where = dict(xytext=(-4 if left else 4, -9 if below else 4), ha="right" if left else "left")
    said = words.removeprefix("ReLU ") if color == RELU else words
    axes.annotate(said, (x, y), textcoords="offset points", fontsize=7, color=color, **where)
axes.axhline(0, color="black", linewidth=0.6)
axes.axvline(0, color="black", linewidth=0.6)
axes.set(xlabel="change of early entropy / ceiling", ylabel="change of perplexity (%)")
less = moved.drop("ReLU against GELU", errors="ignore")
clear = less[(less["low"] * less["high"] > 0) & (less["low loss"] * less["high loss"] > 0)]
agree = (np.sign(clear["estimate"]) == np.sign(clear["estimate loss"])).sum()
show_figure(
    figure,
    shown.select(there(*dict.fromkeys(cell for pair in SETS.values() for cell in pair))),
    interactive=False,
    finding=f"In {len(clear)} of {len(less)} interventions the intervals of both exclude zero (uncorrected); in {agree} of these, entropy and perplexity move the same way."
    if len(less)
    else "No intervention is trained yet.",
)

# %% tags=["remove-input"]
judged("cause")

# %% tags=["remove-input"]
heads = judged_all.loc["E1"]
Markdown(
    "The axis of the figure is the mean entropy of early heads, and not the paper's count of overloaded heads over all layers. The two need not agree: GELU's "
    f"share of overloaded heads minus ReLU's is {estimate(heads)} in the study (n = {seeds_used(heads)}, "
    f"test E1 on [Claims](claims.ipynb)) and {published_estimate(heads)} in the paper's figures."
)

# %% [markdown]
# ## What the hidden units do
#
# The paper's abstract argues with specialisation in input space and selectivity within a class; in what we could read we found neither a definition nor a measurement. We measure stand-ins of our own on the hidden units of each
# feed-forward layer, before and after the activation, over the tokens of one held-out batch ([nfcore.units](../api/units.md) has the definitions). *How many
# directions*: four numbers on the spectrum of the units' covariance, named after those of NerVE {cite}`jha2026nerve`. *Selectivity*: the share of a unit's variance
# that the input token at its position explains; the paper may mean another class. *Dead*: a unit that hardly varies. Nothing in this section is intervened on. It
# compares trained models and does not say what causes the lead.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-spectra", "caption": "Four numbers on the spectrum of the hidden units by layer, after 1,600 updates, means over seeds: spectral entropy and participation ratio (more: the units spread over more directions), early enrichment (more: a few directions hold most variance), and the distance between the spectra before and after the activation. Dotted, hollow: before the activation. Solid, filled: after it. Look how far each activation lifts its own dotted line."}, "image": {"alt": "Four panels of curves over six layers for GELU and ReLU without LayerNorm and GELU with it, before and after the activation."}}
OF = {"GELU": ("SM+G short", GELU, "^"), "ReLU": ("SM+R short", RELU, "D"), "LN, GELU": ("SM+LN+G short", NORM, "o")}
END = study.cells["SM+G short"].experiments[0].training.steps


def draw(panel, curve, name, words, line, markevery=1):
    """A curve of a model of ``OF``; what lies before the activation is hollow and has no place in the legend."""
    _, color, marker = OF[name]
    after = line == "-"
    panel.plot(
        curve.index,
        curve,
        marker + line,
        color=color,
        fillstyle="full" if after else "none",
        markersize=4,
        linewidth=1.2,
        markevery=markevery,
        label=name if after else None,
        gid=f"{name}, {words}",
    )


def by_layer(panel, column, words, line="-"):
    """A curve over layers at the last update for each model of ``OF``; their number of seeds."""
    counts = {}
    for name, (cell, *_) in OF.items():
        rows_of = layers_of(cell, END).dropna(subset=[column])
        curve, counts[name] = rows_of.groupby("layer")[column].mean(), rows_of["run"].nunique()
        draw(panel, curve, name, words, line)
    return counts


figure, axes = plt.subplots(2, 2, figsize=(5, 5), sharex=True)
for panel, (name, words) in zip(
    axes.flat[:3],
    {
        "spectral_entropy": "spectral entropy",
        "participation": "participation ratio",
        "enrichment": "early enrichment",
    }.items(),
    strict=True,
):
    by_layer(panel, f"{name}_in", "before", ":")
    counts = by_layer(panel, f"{name}_out", "after")
    panel.set_title(words)
axes[0, 1].set_yscale("log")
axes[0, 1].set_yticks([15, 20, 30, 40, 60], ["15", "20", "30", "40", "60"])
axes[0, 1].minorticks_off()
by_layer(axes[1, 1], "spectral_shift", "before to after")
axes[1, 1].set_title("distance of spectra (nats)")
for panel in axes[1]:
    panel.set_xlabel("layer")
axes[0, 0].legend(fontsize=7)
spread = {
    name: float(np.exp(of_cell(frame, cell)["early_inflation"].astype(float).mean())) for name, (cell, *_) in OF.items()
}
show_figure(
    figure,
    shown.select(there(*(cell for cell, *_ in OF.values()))),
    interactive=False,
    finding="In the early layers the activation multiplies the number of directions by "
    + ", ".join(f"{value:.2f} ({name}, n = {counts[name]})" for name, value in spread.items())
    + ".",
)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-units", "caption": "Over training, means over the early layers and over seeds: non-linear share of the activation, how many times more directions there are after it than before it, selectivity of the units for the token before (dotted) and after it (solid), and the share of dead units. Look when GELU's curves without LayerNorm leave the start, and on which side of the dotted line each solid one lies."}, "image": {"alt": "Four panels of curves over updates for GELU and ReLU without LayerNorm and GELU with it."}}
figure, axes = plt.subplots(2, 2, figsize=(5, 5), sharex=True)
count = study.cells["SM+G short"].experiments[0].model.num_hidden_layers
PANELS = {
    "non-linear share": {"nonlinear_share": "-"},
    "directions, after / before": {"inflation": "-"},
    "selectivity for the token": {"selectivity_in": ":", "selectivity_out": "-"},
    "dead units (%)": {"dead": "-"},
}
for panel, (title, columns) in zip(axes.flat, PANELS.items(), strict=True):
    for name, (cell, *_) in OF.items():
        rows_of = layers_of(cell)
        rows_of = rows_of[rows_of["layer"].isin(early_layers(count)) & rows_of["participation_in"].notna()]
        rows_of = rows_of.assign(
            inflation=rows_of["participation_out"] / rows_of["participation_in"], dead=100 * rows_of["dead_units"]
        )
        for column, line in columns.items():
            draw(panel, rows_of.groupby("step")[column].mean(), name, column, line, markevery=4)
    panel.set_title(title)
for panel in axes[1]:
    panel.set_xlabel("update")
axes[0, 0].legend(fontsize=7)
ends = {}
for name, (cell, *_) in OF.items():
    rows_of = layers_of(cell, END)
    rows_of = rows_of[rows_of["layer"].isin(early_layers(count))]
    ends[name] = (rows_of["selectivity_out"] - rows_of["selectivity_in"]).mean()
show_figure(
    figure,
    shown.select(there(*(cell for cell, *_ in OF.values()))),
    interactive=False,
    finding="In the early layers, at the end, the activation changes selectivity by "
    + ", ".join(f"{value:+.3f} ({name}, n = {counts[name]})" for name, value in ends.items())
    + ".",
)

# %% tags=["remove-input"]
judged("units")

# %% tags=["remove-input"]
last = study.cells["SM+G"].experiments[0].training.steps
long = {
    name: layers_of(cell, last).dropna(subset=["dead_units"]) for name, cell in (("GELU", "SM+G"), ("ReLU", "SM+R"))
}
dead = " and ".join(
    f"{100 * rows_of['dead_units'].mean():.0f} % with {name} (n = {rows_of['run'].nunique()})"
    for name, rows_of in long.items()
)
Markdown(
    "Two seeds of the stage `quick` have the same settings and count here too; its seed 0 was made before these statistics and has none. All numbers on "
    f"units are those of {END:,} updates. After {last:,}, where they were measured, dead units are {dead}."
)

# %% [markdown]
# Small inputs are a fact of the start. How far does training bend GELU?

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-share-layers", "caption": "Non-linear share of the activation in each layer without LayerNorm, at the start and after the 4,800 updates of the study; means over n seeds. Look how far training has lifted each layer of GELU from zero."}, "image": {"alt": "Lines of the non-linear share over six layers: flat at zero for GELU at the start, higher after training, highest for ReLU and the sharpened GELU."}}
figure, axes = plt.subplots(figsize=(5, 3.2))
profiles = {
    "GELU, start": ("SM+G", 0, GELU, "^:"),
    f"GELU, {last:,} updates": ("SM+G", last, GELU, "^-"),
    f"GELU(16x)/16, {last:,} updates": ("SM+G s=16", last, SHARP, "s--"),
    f"ReLU, {last:,} updates": ("SM+R", last, RELU, "D-"),
}
curves = {}
for words, (cell, step, color, line) in profiles.items():
    rows_of = layers_of(cell, step)
    curve = curves[words] = rows_of.groupby("layer")["nonlinear_share"].mean()
    axes.plot(
        curve.index,
        curve,
        line,
        color=color,
        markersize=5,
        linewidth=1.2,
        label=f"{words} (n={rows_of['run'].nunique()})",
    )
axes.set(xlabel="layer", ylabel="non-linear share", ylim=(-0.02, None))
axes.legend(fontsize=7)
finding = "; ".join(
    f"{words}: {curve.iloc[0]:.3f} in the first layer, {curve.iloc[-1]:.3f} in the last"
    for words, curve in curves.items()
    if len(curve) and words.startswith("GELU,")
)
show_figure(figure, shown.select(there("SM+G", "SM+G s=16", "SM+R")), finding=f"{finding}.")

# %% tags=["remove-input"]
waiting = table[(table["n"] == 0) | table.apply(unfinished, axis=1)]
folded(
    f"All {len(table)} predictions; {len(waiting)} have fewer seeds than planned",
    verdict_table(table, frame, columns=("id", "claim", "ours, 95 % interval", "n", "left out", "p (Holm)", "verdict")),
)

# %% [markdown]
# ## The first study
#
# ```{admonition} These runs are in a transient
# :class: warning
# They are 2.5 M tokens long and end in a {term}`transient`: GPT-2 with LayerNorm is still behind. So no verdict on the paper is taken
# from them.
# ```
#
# The project's first study asked about scale more widely, in shorter runs, and could not take shape, output size and learning rate apart. Its
# predictions are in `data/transient.yaml`. Those with factors of 4 and 16 on initial weights and embeddings were added when a factor of 32 had
# stopped most runs, and before their own runs.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-sweep", "caption": "GELU(s x)/s without LayerNorm: final perplexity, and entropy of the early layers over its ceiling, against s. Points are means over n seeds with 95 % intervals; horizontal lines with bands are GELU and ReLU. Look where each panel leaves GELU's band, and how wide the intervals are."}, "image": {"alt": "Two panels of points with intervals against s from a quarter to 256, between a band for GELU and a band for ReLU."}}
sweep = {0.25: "SM+G s=1/4", 1: "SM+G", 4: "SM+G s=4", 16: "SM+G s=16", 64: "SM+G s=64", 256: "SM+G s=256"}
figure, axes = plt.subplots(2, 1, figsize=(5, 5.6), sharex=True)
for panel, statistic, words in zip(
    axes, ("loss", "early_entropy"), ("final perplexity", "early entropy / ceiling"), strict=True
):
    scale = np.exp if statistic == "loss" else np.asarray
    for name, words_of in (("SM+G", "GELU"), ("SM+R", "ReLU")):
        found = interval(of_cell(first_frame, name)[statistic].dropna())
        color = STYLES[name]["color"]
        panel.axhline(scale(found["estimate"]), color=color, linewidth=0.8, gid=words_of)
        panel.axhspan(scale(found["low"]), scale(found["high"]), color=color, alpha=0.15, linewidth=0)
        panel.annotate(words_of, (420, scale(found["estimate"])), fontsize=8, color=color, va="center")
    points = [(s, of_cell(first_frame, cell)[statistic].dropna().astype(float)) for s, cell in sweep.items()]
    found = [interval(values) for _, values in points]
    at, means, low, high = [s for s, _ in points], *([scale(f[k]) for f in found] for k in ("estimate", "low", "high"))
    panel.plot(at, means, "o-", color=SHARP, markersize=5, linewidth=1, label="GELU(s x)/s")
    panel.vlines(at, low, high, color=SHARP, linewidth=1.4, gid="GELU(s x)/s, interval")
    for (s, values), top in zip(points, high, strict=True):
        panel.annotate(f"n={len(values)}", (s, top), xytext=(0, 3), textcoords="offset points", fontsize=7, ha="center")
    panel.set(title=words, xscale="log", xlim=(0.17, 800), ylabel=words)
    panel.set_xticks(list(sweep), ["1/4", "1", "4", "16", "64", "256"])
    panel.minorticks_off()
axes[1].set_xlabel("s")
parts = [
    f"at s = {s} perplexity changes by {change(sweep[s], 'SM+G', first_frame)} and entropy by "
    f"{change(sweep[s], 'SM+G', first_frame, 'early_entropy', 'share')}"
    for s in (4, 16)
]
show_figure(
    figure,
    first_runs.select(first_frame.loc[[*sweep.values(), "SM+R"], "run"]),
    finding=f"Against GELU, {'; '.join(parts)}.",
)

# %% tags=["remove-input"]
predictions = {
    "s=4": "GELU(4x)/4 is ahead of GELU",
    "s=16": "GELU(16x)/16 is ahead of GELU",
    "follow-up s=64": "on seeds 4 to 8, GELU(64x)/64 is ahead of GELU (GELU's runs of seeds 4 and 5 had been seen)",
    "SiLU": "SiLU, sharpened 64 times, is ahead of SiLU",
    "softplus": "centred softplus, sharpened 64 times, is ahead of softplus",
    "leaky 0.3": "a leaky slope of 0.3, which bends less at every scale, is behind ReLU",
    "FFN x4, /4": "GELU with a first matrix 4 times as large and a second 4 times as small is ahead of GELU",
    "FFN x16, /16": "the same with 16 times",
    "embeddings x4": "GELU with initial embeddings 4 times as large is ahead of GELU",
    "embeddings x16": "the same with 16 times",
    "learnable a": "a learned factor on GELU's inputs grows",
    "learnable s": "a learned s grows",
}
WORDS = {
    "reproduced": "held",
    "contradicted": "failed, the opposite",
    "negligible": "failed, negligible",
    "undecided": "undecided",
}
rows = [
    {
        "prediction": words,
        "outcome": WORDS.get(row["verdict"], "no trained seed"),
        "measured, 95 % interval": estimate(row),
        "n": row["n"],
        "left out": left_out(first_frame, row["runs"]) or "none",
    }
    for words, row in ((words, first_table.loc[key]) for key, words in predictions.items())
]
outcomes = pd.Series([row["outcome"] for row in rows]).value_counts()
FORMS = {
    "held": ("held", "held"),
    "failed, the opposite": ("failed", "failed"),
    "failed, negligible": ("failed", "failed"),
    "undecided": ("is undecided", "are undecided"),
    "no trained seed": ("has no trained seed", "have no trained seed"),
}
tally = ", ".join(f"{n} {FORMS[words][n > 1]}" for words, n in outcomes.items())
over_cells, means = correlations(first_frame)
rho = over_cells.set_index("id").loc["overload and loss"]
width = "SM+R width 32", "SM+G width 32", first_frame
Markdown(
    f"Of {len(first_table)} questions on mechanism the page lists {len(rows)}. Of these {tally}. Those on *s* do not tell the explanations apart: sharpening changes the learning rates as well, and at a large s GELU is close to ReLU. "
    f"A learned factor before GELU starts at one and should grow: it changes by {estimate(first_table.loc['learnable a'])}. A learned s should grow too: it "
    f"changes by {estimate(first_table.loc['learnable s'])} (n = {first_table.loc['learnable s', 'n']} each). "
    f"Over {len(means)} configurations, early entropy and final loss go together (Spearman's ρ = {with_interval('share', *rho[['estimate', 'low', 'high']])}, "
    "for points that are not independent, so that the interval is too narrow; interval by {cite:t}`bonett2000sample`). But at width 32 ReLU changes "
    f"GELU's perplexity by {change(*width)} and early entropy by {change(*width, statistic='early_entropy', unit='share')} of the ceiling, near which both stand there."
)

# %% tags=["remove-input"]
folded(f"The {len(rows)} predictions", markdown_table(pd.DataFrame(rows)))

# %% tags=["remove-input"]
columns = ("id", "question", "ours, 95 % interval", "n", "left out", "p (Holm)", "answer")
folded(
    f"All {len(first_table)} questions of the first study on this page",
    verdict_table(first_table, first_frame, "question", columns),
)

# %% tags=["remove-input"]
relations = pd.DataFrame(
    {
        "question": over_cells["statement"],
        "Spearman's ρ, 95 % interval": [
            with_interval("share", *v)
            for v in over_cells[["estimate", "low", "high"]].itertuples(index=False, name=None)
        ],
        "n": over_cells["n"],
        "answer": over_cells["verdict"].map(ANSWERS),
    }
)
folded("Correlations over configurations", markdown_table(relations))

# %% [markdown]
# ## What this page does not show
#
# Intervened on are the activation, the start, the learning rates, the output gain, biases, logits, QK-norm and the penalty. Only observed are non-linear shares, spectra,
# selectivity, dead units, entropy and the correlations. Runs have 600, 1,600 or 4,800 updates, as each figure says. But for one comparison at width 32, all runs have one shape, six layers of
# width 64, one corpus, and one learning rate that was not tuned for each configuration: the highest of its grid, where ReLU's lead is largest
# ([Confounds](confounds.ipynb)). Perplexities are those of runs that trained; *left out* says how many did not. Predictions and tests were fixed at different times:

# %% tags=["remove-input"]
fixed = [
    line
    for line in read_ledger()["disclosures"]
    if any(word in line["what"].lower() for word in ("first study", "follow-up", "stage causes", "pilots"))
]
folded("What was fixed when", Markdown("\n".join(f"- {line['when']}: {line['what']}." for line in fixed)))

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
KINDS = {
    "on scale": table["family"] == "scale",
    "on entropy and the loss": table["unit"].eq("percent") & table["family"].eq("cause"),
    "that entropy moves": table["unit"].eq("share") & table["family"].eq("cause"),
    "that describe the hidden units": table["family"] == "units",
}
FOUND = {"reproduced": "held", "contradicted": "contradicted", "negligible": "negligible"}


def outcomes_of(rows):
    """Which predictions of some rows held or failed, by number, and how many are open."""
    named = {word: ", ".join(rows.loc[rows["verdict"] == verdict, "id"]) for verdict, word in FOUND.items()}
    found = [f"{word} {ids}" for word, ids in named.items() if ids]
    still = (~rows["verdict"].isin(FOUND)).sum()
    return "; ".join(found + [f"{still} undecided or without runs"] * bool(still))


def needed(n, tests):
    """How many standard errors from zero a mean over n seeds has to be for Holm's correction over so many tests."""
    return t_distribution.ppf(1 - 0.025 / tests, n - 1)


seeds = max(2, int(table.loc[table["family"].isin(["scale", "cause"]), "n"].median()))
planned = int(table.loc["M1", "planned"])
tests = int((table["family"] == "scale").sum())
Markdown(
    f"Before training, GELU without LayerNorm is nearly a straight line in every layer, and ReLU is not. Training bends GELU most in the last layers. The {len(table)} predictions, by number. "
    + " ".join(f"{mask.sum()} {words}: {outcomes_of(table[mask])}." for words, mask in KINDS.items())
    + f" No verdict is final before its {planned} planned seeds, and looking early is not corrected for. "
    f"*Undecided* says little so far: with {seeds} seeds the first of {tests} tests passes Holm's correction only if its mean is {needed(seeds, tests):.1f} standard errors from zero; with {planned} seeds, {needed(planned, tests):.1f}."
)
