# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mechanism: geometry or scale?
#
# ```{admonition} These runs are in a transient
# :class: warning
# They are 2.5 M tokens long and end in a {term}`transient` in which LayerNorm does not help yet, so no verdict on the paper is taken
# from them; [Claims](claims.ipynb) has the verdicts, on longer runs.
# ```
#
# Is ReLU's advantage without LayerNorm one of shape or of scale? The paper explains it by the geometry of ReLU {cite}`jha2024relus`.
# Another candidate is a conjecture until it is tested. Without normalisation, the inputs of the first feed-forward layers are tiny at
# initialisation, and on tiny inputs GELU is a straight line. GELU without LayerNorm then starts as a network of attention only, which
# might be what overloads its heads. ReLU has no such scale: it is {term}`positively homogeneous` {eq}`eq-homogeneous`, and so just as
# non-linear on small inputs as on large ones.
#
# If that is the reason, then GELU(s x)/s {eq}`eq-scaled-gelu`, which is GELU at s = 1 and ReLU in the limit, should recover what ReLU
# gains once s x is of the order of one, and so should other smooth activations. Larger inputs should do it without touching the
# activation. With LayerNorm, which sets the scale itself, nothing should be gained. What would count for and against was written down
# before the runs, in `data/transient.yaml`.

# %% tags=["parameters"]
preset = "transient"  # this page shows the first study, notebooks/params/transient.yaml
source = "recorded"  # recorded: data/recorded/transient; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy.special import expit

from nfbook.claims import correlations, interval, of_cell, statistics, verdicts
from nfbook.figures import STYLES, show_figure, use_style
from nfbook.gaussian import gaussian_gelu_shares, gaussian_leaky_relu_shares, gaussian_shares
from nfbook.presets import MAIN
from nfbook.report import (
    ANSWERS,
    against,
    difference,
    glue,
    glue_verdicts,
    left_out,
    markdown_table,
    said,
    study_banner,
    verdict_table,
    with_interval,
)
from nfcore.shares import entropy_ceiling


use_style()
shown = study.runs()
frame = statistics(shown, study)
table = verdicts(frame, "transient")
table = table[table["group"] == "mechanism"].set_index("id", drop=False)
layers = shown.layers.merge(shown.runs[["run", "seed"]], on="run")
study_banner(shown, study)


# %% tags=["remove-input"]
def questions(*ids):
    return verdict_table(table.loc[list(ids)], frame, "question")


def layers_of(name, step=None):
    """Telemetry per layer of a cell's runs, at one step or at all; empty where it has not been run."""
    rows = layers[layers["run"].isin(of_cell(frame, name)["run"])]
    return rows if step is None else rows[rows["step"] == step]


def mean_of(name, statistic):
    """Mean and 95 % interval over the trained runs of a cell; NaN where there is none."""
    return interval(of_cell(frame, name)[statistic].dropna())


# %% [markdown]
# ## How non-linear is an activation on small inputs?
#
# Take the output energy of an activation f on inputs x, E f(x)². The best linear map λ x, λ = E[x f]/E[x²], accounts for
# λ² E[x²] of it; the share of the rest is the {term}`non-linear share` {eq}`eq-nonlinear-share`. Part of the rest may be a constant
# only, like ReLU's mean, which shifts all tokens alike; leaving it out gives the *centred* share. For Gaussian inputs of standard
# deviation τ both have closed forms ([nfbook.gaussian](../api/gaussian.md) has the derivation).
#
# For GELU, f(u) = u Φ(u), Stein's lemma {cite}`stein1981estimation` gives λ = 1/2 at every τ, and with t = τ²
#
# $$
# \mathbb{E} f^2 = \frac{t}{4} + \frac{t}{2\pi}\left(\arcsin\frac{t}{1+t} + \frac{2t}{(1+t)\sqrt{1+2t}}\right), \qquad
# \mathbb{E} f = \frac{t}{\sqrt{2\pi(1+t)}},
# $$ (eq-gelu-energy)
#
# so that for small τ the non-linear share is 6 t/π, which goes to zero. GELU(s x)/s has the share of GELU at s τ. A leaky ReLU of
# slope α is (1+α)/2 x + (1-α)/2 |x|, with shares that depend on α alone:
#
# $$
# \frac{(1-\alpha)^2}{2(1+\alpha^2)} \quad\text{and, centred,}\quad \frac{(1-\alpha)^2}{2(1+\alpha^2)}\left(1-\frac{2}{\pi}\right).
# $$ (eq-leaky-share)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-shares-theory", "caption": "Non-linear share of the output energy on Gaussian inputs of standard deviation τ: closed forms for GELU and leaky ReLUs, summation for SiLU and centred softplus. Dotted: centred shares. Vertical lines: the mean standard deviation of pre-activations at initialisation, measured in SM+G and in SM+LN+G."}, "image": {"alt": "Curves over the scale of the inputs for GELU, SiLU and softplus, horizontal lines for leaky ReLUs, and a vertical line at the scale measured in each of two models."}}
taus = np.geomspace(1e-3, 1e3, 200)
smooth = {
    "SiLU": lambda x: x * expit(x),
    "softplus - ln 2": lambda x: np.logaddexp(0, x) - math.log(2),
}
figure, axes = plt.subplots(figsize=(6.6, 3.4))
for (name, f), color in zip(smooth.items(), ("#CC79A7", "#E69F00"), strict=True):
    for part, line in enumerate(("-", ":")):
        axes.plot(
            taus,
            [gaussian_shares(f, tau)[part] for tau in taus],
            line,
            color=color,
            linewidth=1.2,
            label=None if part else name,
            gid=name + (", centred" if part else ""),
        )
for part, line in enumerate(("-", ":")):
    axes.plot(
        taus,
        [gaussian_gelu_shares(tau)[part] for tau in taus],
        line,
        color=STYLES["SM+G"]["color"],
        label=None if part else "GELU",
        gid="GELU" + (", centred" if part else ""),
    )
for slope in (0.0, 0.3, 0.6):
    name = f"leaky {slope:g}" if slope else "ReLU"
    style = dict(linewidth=0.8 if slope else 1.4, gid=name)
    axes.axhline(gaussian_leaky_relu_shares(slope)[0], color=STYLES["SM+R"]["color"], **style)
    axes.annotate(
        name,
        (taus[-1], gaussian_leaky_relu_shares(slope)[0]),
        ha="right",
        va="bottom",
        fontsize=7,
    )
at_start = []
for name in ("SM+G", "SM+LN+G"):
    measured = layers_of(name, 0)["preactivation_std"]
    if len(measured):
        axes.axvline(measured.mean(), color=STYLES[name]["color"], linestyle="--", linewidth=1)
        axes.annotate(f" {name}", (measured.mean(), 0.55), color=STYLES[name]["color"], fontsize=8)
        at_start.append(f"{100 * gaussian_gelu_shares(measured.mean())[0]:.2g} % at the scale of {name}")
axes.set(xscale="log", xlabel="standard deviation τ of the inputs", ylabel="non-linear share", ylim=(0, 0.6))
axes.legend(loc="center left")
relu = 100 * gaussian_leaky_relu_shares(0.0)[0]
gelu = " and ".join(at_start) or "not shown at a measured scale"
show_figure(figure, finding=f"The non-linear share of ReLU is {relu:.0f} % at every scale, that of GELU {gelu}.")

# %% [markdown]
# The formulas presume Gaussian inputs of one scale; a network's neurons have neither. So the share is measured too, on the probe
# batch, each neuron with its own best linear map, at initialisation and during training. Where it falls below the formula, all tokens
# probably have something in common: a neuron whose inputs lie mostly on one side of zero sees little of the bend.

# %% tags=["remove-input"]
formula = {
    "SM+G": lambda tau: gaussian_gelu_shares(tau),
    "SM+LN+G": lambda tau: gaussian_gelu_shares(tau),
    "SM+G s=64": lambda tau: gaussian_gelu_shares(64 * tau),
    "SM+R": lambda tau: gaussian_leaky_relu_shares(0.0),
    "SM+L(0.3)": lambda tau: gaussian_leaky_relu_shares(0.3),
    "SM+L(0.6)": lambda tau: gaussian_leaky_relu_shares(0.6),
}
rows = []
for name, shares in formula.items():
    at = layers_of(name, 0)
    if len(at):
        expected = np.mean([shares(tau) for tau in at["preactivation_std"]], axis=0)
        rows.append(
            {
                "configuration": name,
                "std of inputs": at["preactivation_std"].mean(),
                "share, measured": at["nonlinear_share"].mean(),
                "formula": expected[0],
                "centred, measured": at["nonlinear_share_centred"].mean(),
                "formula, centred": expected[1],
            }
        )
markdown_table(pd.DataFrame(rows), digits=4)

# %% [markdown]
# The paper's models start in the same place. In the first layer the inputs of the activation are sums over d products of a
# weight and the sum of a token's and a position's embedding, so that τ = σ_W √d √2 σ_E:

# %% tags=["remove-input"]
rows = []
for words, width, deviation in (
    ("ours, width 64, init `width`", 64, 0.02 * math.sqrt(768 / 64)),
    ("GPT-2 124M, width 768, init `paper`", 768, 0.02),
):
    tau = deviation * math.sqrt(width) * math.sqrt(2) * 0.02
    rows.append({"model": words, "τ of layer 0": tau, "non-linear share of GELU": gaussian_gelu_shares(tau)[0]})
glue(tau_paper=f"{tau:.4f}", share_paper=f"{100 * gaussian_gelu_shares(tau)[0]:.2f} %")
glue_verdicts(table, ANSWERS)
first = layers_of("SM+G", 0)
first = first[first["layer"] == 0]
rows.append(
    {
        "model": "ours, measured in SM+G",
        "τ of layer 0": first["preactivation_std"].mean(),
        "non-linear share of GELU": first["nonlinear_share"].mean(),
    }
)
markdown_table(pd.DataFrame(rows), digits=4)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-share-training", "caption": "Measured non-linear share of the FFN activations over training, mean over layers and seeds. Dotted: the centred share, without the constant part."}, "image": {"alt": "Curves of the non-linear share over training steps for GELU, ReLU and LayerNorm models and for a scaled GELU."}}
figure, axes = plt.subplots(figsize=(6.6, 3))
course = []
for name, style in {
    **{n: STYLES[n] for n in MAIN},
    "SM+G s=64": dict(color="black", marker="*"),
}.items():
    curve = layers_of(name).groupby("step")[["nonlinear_share", "nonlinear_share_centred"]].mean()
    if len(curve):
        first, *_, last = curve["nonlinear_share"]
        course.append(f"from {first:.2f} to {last:.2f} in {name}")
        axes.plot(curve.index, curve["nonlinear_share"], label=name, linewidth=1.2, markersize=4, **style)
        centred = dict(color=style["color"], linewidth=1, gid=f"{name}, centred")
        axes.plot(curve.index, curve["nonlinear_share_centred"], ":", **centred)
axes.set(xlabel="optimiser step", ylabel="non-linear share", ylim=(0, None))
axes.legend(ncols=2)
there = [c for c in (*MAIN, "SM+G s=64") if c in frame.index]
show_figure(
    figure,
    shown.select(frame.loc[there, "run"] if there else []),
    finding=f"In training the non-linear share goes {', '.join(course) or 'unmeasured'}.",
)

# %% [markdown]
# ## The sweep over s
#
# Only s changes. The slope at the origin and the limits for large inputs stay those of GELU. The size of the output does not: on
# Gaussian inputs of variance τ², the output energy goes from about τ²/4, on small inputs at s = 1, to ReLU's τ²/2 at large s. So a gain
# from s may be one of shape, of scale or of output size. At s = 64 the function is nearly ReLU itself, so s = 64 and ReLU cannot differ much.
#
# Nor is it only the function that changes. GELU(s x)/s is GELU between a first matrix s times as large and a second one s times as small.
# AdamW's steps do not scale with the weights {cite}`loshchilov2019decoupled`, so s also multiplies the effective learning rate of the
# first matrix by s and divides that of the second by s. The sweep cannot tell these apart.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-sweep", "caption": "GELU(s x)/s without LayerNorm: perplexity (left) and early entropy over its ceiling (right) against s, means over seeds with 95 % intervals. Bands: ReLU and GELU with their intervals. SiLU and centred softplus for comparison."}, "image": {"alt": "Two panels of points with intervals against s on a logarithmic axis, with a band for GELU and one for ReLU."}}
sweeps = {
    "GELU": (
        {0.25: "SM+G s=1/4", 1: "SM+G", 4: "SM+G s=4", 16: "SM+G s=16", 64: "SM+G s=64", 256: "SM+G s=256"},
        "#D55E00",
        "^",
    ),
    "SiLU": ({1: "SM+SiLU s=1", 64: "SM+SiLU s=64"}, "#CC79A7", "v"),
    "softplus - ln 2": ({1: "SM+softplus s=1", 64: "SM+softplus s=64"}, "#E69F00", "X"),
}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
for panel, statistic, label in zip(
    axes, ("loss", "early_entropy"), ("final perplexity", "early entropy / ceiling"), strict=True
):
    scale = np.exp if statistic == "loss" else np.asarray
    for name in ("SM+G", "SM+R"):
        found = mean_of(name, statistic)
        if np.isfinite(found["estimate"]):
            panel.axhline(scale(found["estimate"]), color=STYLES[name]["color"], linewidth=0.8, gid=name)
            panel.axhspan(
                scale(found["low"]), scale(found["high"]), color=STYLES[name]["color"], alpha=0.15, linewidth=0
            )
            panel.annotate(
                "ReLU" if name == "SM+R" else "GELU", (0.25, scale(found["estimate"])), fontsize=7, va="bottom"
            )
    for label_of, (cells, color, marker) in sweeps.items():
        points = [(s, mean_of(cell, statistic)) for s, cell in cells.items()]
        points = [(s, found) for s, found in points if np.isfinite(found["estimate"])]
        if points:
            s, found = zip(*points, strict=True)
            panel.plot(
                s,
                [scale(f["estimate"]) for f in found],
                marker=marker,
                color=color,
                markersize=5,
                linewidth=1,
                label=label_of,
            )
            panel.vlines(
                s,
                [scale(f["low"]) for f in found],
                [scale(f["high"]) for f in found],
                color=color,
                linewidth=1,
                gid=f"{label_of}, interval",
            )
    panel.set(xscale="log", xlabel="s", ylabel=label)
axes[0].legend()


def of_steps(table, name, column):
    """Mean over the seeds of a cell."""
    rows = table[table["run"].isin(frame.loc[[name], "run"])]
    return rows.groupby(column)[{"layer": "entropy", "step": "value"}[column]].mean()


def drawn(name, words, color, dash=False):
    """Two series of a cell: entropy of its layers over the ceiling at the end, evaluation loss over training."""
    last = shown.heads[shown.heads["step"] == shown.heads.groupby("run")["step"].transform("max")]
    profile = of_steps(last, name, "layer") / entropy_ceiling(int(shown.runs["data.context"].iloc[0]))
    loss = of_steps(shown.metrics[shown.metrics["name"] == "eval_loss"], name, "step")
    return [
        dict(name=words, color=color, marker="", dash=dash, x=[int(i) for i in y.index], y=[round(v, 4) for v in y])
        for y in (profile, loss)
    ]


frames, ends = [], [("SM+G", "GELU", "#D55E00"), ("SM+R", "ReLU", "#009E73")]
if all(name in frame.index for name, *_ in ends):
    fixed = [drawn(name, words, color, dash=True) for name, words, color in ends]
    for s, name in sweeps["GELU"][0].items():
        if name in frame.index:
            both = [*fixed, drawn(name, "GELU(s x)/s", "#0072B2")]
            titles = ("layer", "entropy / ceiling"), ("optimiser step", "evaluation loss (nats per token)")
            panels = [
                dict(title=y, x=dict(label=x, log=False), y=dict(label=y, log=False), series=[pair[i] for pair in both])
                for i, (x, y) in enumerate(titles)
            ]
            frames.append(dict(name=f"{s:g}", x=panels[0]["x"], y=panels[0]["y"], panels=panels))
there = [c for cells, *_ in sweeps.values() for c in cells.values() if c in frame.index]
largest, parts = sweeps["GELU"][0][256], []
for statistic, words, scale in (
    ("loss", "Perplexity", np.exp),
    ("early_entropy", "Early entropy over its ceiling", np.asarray),
):
    at = {name: float(scale(mean_of(name, statistic)["estimate"])) for name in (largest, "SM+G", "SM+R")}
    parts.append(f"{words} is {against(largest, at[largest], 'SM+G', at['SM+G'])}; in SM+R it is {at['SM+R']:.2f}.")
show_figure(
    figure,
    shown.select(frame.loc[[*there, *(name for name, *_ in ends if name in frame.index)], "run"]),
    dict(kind="frames", label="s", frames=frames) if frames else False,
    finding=" ".join(parts),
)

# %% tags=["remove-input"]
questions(
    "s=1/4",
    "s=4",
    "s=16",
    "s=64",
    "s=256",
    "s=16 and ReLU",
    "s=64 and ReLU",
    "s=64 overload",
    "s=64 overload and ReLU",
    "SiLU",
    "softplus",
)

# %% [markdown]
# Three seeds leave wide intervals. The central four questions were therefore asked again on five fresh seeds, before the runs that
# answer them were made. The rows above pool all recorded seeds, these included.

# %% tags=["remove-input"]
questions("follow-up s=64", "follow-up s=64 and ReLU", "follow-up s=64 overload", "follow-up s=64 overload and ReLU")

# %% [markdown]
# ## Leaky ReLUs: the share without the scale
#
# A leaky slope α lowers the non-linear share equally at every scale, from ReLU's one half at α = 0 to nothing at α = 1, which is a
# linear feed-forward layer (SM). It separates the share from the scale, but it changes the output energy too.

# %% tags=["remove-input"]
questions("leaky 0.3", "leaky 0.6", "linear")

# %% [markdown]
# ## The same rescue without touching the activation
#
# Larger inputs should help GELU as a larger s does. They change more than that, though: larger embeddings change
# attention too, and a larger first matrix also makes the output larger. ReLU with the same initial weights is the control.
# *Left out* counts runs that are not {term}`trained`.

# %% tags=["remove-input"]
questions("embeddings", "embeddings gap", "FFN input", "FFN input gap")

# %% [markdown]
# A factor of 32 stopped most of these runs, so smaller ones were tried, with questions written before their runs. In the feed-forward
# layer the second matrix is now divided by the factor: W₂/s GELU(s W₁ x) *is* W₂ GELU(s W₁ x)/s, so at initialisation SM+G is SM+G s=16
# to the bit, and only GELU is in it (a test in `tests/test_model.py` checks that). What differs from the sweep is the learning: the steps
# of AdamW {cite}`loshchilov2019decoupled` do not grow with the weights, so the larger matrix turns more slowly and the smaller one faster.

# %% tags=["remove-input"]
questions(
    *(f"embeddings x{n}{gap}" for n in (4, 16) for gap in ("", " gap")),
    *(f"FFN x{n}, /{n}{gap}" for n in (4, 16) for gap in ("", " gap")),
)

# %% [markdown]
# ## Does training find the scale?
#
# Each layer learns a scalar, s in GELU(s x)/s or a in GELU(a x), from 1. Both have the learning rate of all parameters and no weight
# decay. Factors are geometric means over layers.

# %% tags=["remove-input"]
questions("learnable s", "learnable a", "learnable s loss", "learnable a loss", "learnable s from 16")

# %% [markdown]
# ## With LayerNorm
#
# LayerNorm {eq}`eq-layernorm` gives the feed-forward layer inputs of size one, whatever came before. Is s = 1 then the best?

# %% tags=["remove-input"]
questions("LN s=1/4", "LN s=4", "LN s=64")

# %% [markdown]
# For ReLU there is nothing to sweep: ReLU(s x)/s = ReLU(x) for every s > 0 {eq}`eq-homogeneous`, since max(s x, 0) = s max(x, 0). A
# test in `tests/test_model.py` holds a whole model to that, outputs and gradients, to float precision.

# %% [markdown]
# ## Does the share at initialisation predict the rest?
#
# Over all norm-free GPT-2 cells of the base size at the common rate that have a trained run, we set the non-linear share at initialisation
# against the result. Cells with equal settings count once. Cells are not independent draws, so the interval says how well a monotone relation
# holds over these cells, and no more. It is Fisher's, with the variance of {cite:t}`bonett2000sample`.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-share-scatter", "caption": "Each point is a norm-free cell, means over seeds: non-linear share of the FFN activations at initialisation against early entropy over its ceiling (left) and final perplexity (right)."}, "image": {"alt": "Two scatter plots with a point per cell; the main configurations are marked."}}
over_cells, means = correlations(frame)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
for panel, statistic, label in zip(
    axes, ("early_entropy", "loss"), ("early entropy / ceiling", "final perplexity"), strict=True
):
    scale = np.exp if statistic == "loss" else np.asarray
    for name, row in means.iterrows():
        style = STYLES.get(name, dict(color="#999999", marker="."))
        panel.plot(row["nonlinear_init"], scale(row[statistic]), linestyle="none", markersize=6, gid=name, **style)
        if name in STYLES or "embedding" in name or "input" in name or name.endswith(("s=64", "s=1/4")):
            panel.annotate(
                name.removeprefix("SM+") if name != "SM" else name,
                (row["nonlinear_init"], scale(row[statistic])),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=6,
            )
    panel.set(xlabel="non-linear share at initialisation", ylabel=label)
parts = []
for statistic, words in (("early_entropy", "early entropy"), ("loss", "perplexity")):
    chosen = over_cells[(over_cells["x"] == "nonlinear_init") & (over_cells["y"] == statistic)].iloc[0]
    way = "lower" if chosen["high"] < 0 else "higher" if chosen["low"] > 0 else "neither lower nor higher"
    parts.append(f"{way} {words} (Spearman's ρ {with_interval('share', *chosen[['estimate', 'low', 'high']])})")
show_figure(
    figure,
    shown.select(frame.loc[[*means.index], "run"] if len(means) else []),
    interactive=False,
    finding=f"Over {len(means)} cells a larger share goes with {' and with '.join(parts)}.",
)

# %% tags=["remove-input"]
markdown_table(
    pd.DataFrame(
        {
            "question": over_cells["statement"],
            "Spearman's ρ, 95 % interval": [
                with_interval("share", *v)
                for v in over_cells[["estimate", "low", "high"]].itertuples(index=False, name=None)
            ],
            "cells": over_cells["n"],
            "answer": over_cells["verdict"].map(ANSWERS),
        }
    )
)

# %% [markdown]
# ## Every cell of this chapter
#
# Means over trained runs; entropy and shares are those at the last probe, *share at init* that at the start. Shares are over all runs
# that reached the step.

# %% tags=["remove-input"]
rows = []
planned = [cell.name for cell in study.cells.values() if cell.stage in ("mechanism", "follow-up")]
for name in ["SM+LN+G", "SM+G", "SM+R", *planned]:
    if name in frame.index:
        runs_of = of_cell(frame, name)
        trained = runs_of[["loss", "early_entropy", "overload"]].astype(float).mean()
        start, end = (layers_of(name, step)[["nonlinear_share", "nonlinear_share_centred"]].mean() for step in (0, 600))
        rows.append(
            {
                "cell": name,
                "perplexity": np.exp(trained["loss"]),
                "early entropy": trained["early_entropy"],
                "overloaded heads": trained["overload"],
                "share at init": start.iloc[0],
                "centred": start.iloc[1],
                "share at end": end.iloc[0],
                "centred at end": end.iloc[1],
                "trained": int((runs_of["outcome"] == "trained").sum()),
                "left out": left_out(frame, runs_of["run"]),
            }
        )
markdown_table(pd.DataFrame(rows), digits=3)

# %% [markdown]
# ## What the data allow to conclude
#
# Each sentence below is chosen by the answer it rests on, named in brackets, so it changes when the answer does.

# %% tags=["remove-input"]


def numbers(key):
    row = table.loc[key]
    lost = left_out(frame, row["runs"])
    value = with_interval(*row[["unit", "estimate", "low", "high"]])
    return f"{said(row, ANSWERS)}; {value}, n = {row['n']}" + (f", left out: {lost}" if lost else "")


def sentence(key, **by_verdict):
    """What a verdict allows to say; a question without trained runs has no sentence of its own."""
    verdict = table.loc[key, "verdict"]
    words = by_verdict.get(
        verdict, f"Undecided: {table.loc[key, 'statement'][0].lower()}{table.loc[key, 'statement'][1:]}"
    )
    return f"{words} [{key}: {numbers(key)}]"


conclusions = [
    sentence(
        "s=16",
        reproduced="GELU(s x)/s at s = 16 is ahead of GELU. Its cause may be the scale of the inputs, the size of the output or the "
        "effective learning rate of the two matrices, which all change with s.",
        contradicted="GELU(s x)/s at s = 16 is behind GELU.",
        negligible="GELU(s x)/s at s = 16 is as good as GELU.",
    ),
    sentence(
        "follow-up s=64",
        reproduced="On fresh seeds, s = 64 is ahead of GELU. The function is nearly ReLU there, so this says that ReLU helps, and not why.",
        contradicted="On fresh seeds, s = 64 is behind GELU.",
        negligible="On fresh seeds, s = 64 is as good as GELU.",
    ),
    sentence(
        "FFN x4, /4",
        reproduced="Larger and smaller initial matrices around GELU itself, which make the same function as s = 4 at the start, help too.",
        contradicted="Larger and smaller initial matrices around GELU itself, which make the same function as s = 4 at the start, cost perplexity.",
        negligible="Larger and smaller initial matrices around GELU itself, which make the same function as s = 4 at the start, do not help.",
    ),
    sentence(
        "embeddings x4",
        reproduced="Larger initial embeddings help GELU, as the conjecture predicts.",
        contradicted="Larger initial embeddings cost perplexity, against the conjecture's prediction.",
        negligible="Larger initial embeddings do not help GELU, against the conjecture's prediction.",
    ),
    sentence(
        "learnable a",
        reproduced="Training makes the inputs larger when it is given a scalar to do so.",
        contradicted="A learnable factor before GELU shrinks, against the conjecture's prediction.",
    ),
    sentence(
        "leaky 0.3",
        reproduced="A leaky slope of 0.3, with less non-linearity at every scale, is behind ReLU.",
        contradicted="A leaky slope of 0.3, with less non-linearity at every scale, is ahead of ReLU.",
        negligible="A leaky slope of 0.3, with less non-linearity at every scale, costs nothing.",
    ),
    sentence(
        "LN s=64",
        reproduced="With LayerNorm, s = 64 is behind s = 1.",
        contradicted="With LayerNorm, s = 64 is ahead of s = 1, which scale would not lead one to expect.",
    ),
]
Markdown("\n".join(f"- {line}" for line in conclusions))

# %% [markdown]
# **Is the overload the cause?** The paper's account {cite}`jha2024relus`, as we read it, runs from the activation over
# {term}`overloaded <overload (entropic)>` heads to the loss. The table has changes against GELU, over the seeds of each cell, with
# uncorrected intervals; the cells were chosen after the results were seen.

# %% tags=["remove-input"]
rows = []
for name in ("SM+G s=4", "SM+G s=16", "SM+G s=64", "SM+G s=256", "SM+G FFN x4, /4", "SM+R"):
    weights = {name: 1, "SM+G": -1}
    loss, n = difference(frame, weights)
    entropy, _ = difference(frame, weights, "early_entropy", "share")
    rows.append({"cell": name, "perplexity": loss, "early entropy / ceiling": entropy, "n": n})
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# This decides nothing about cause. Each change moves more than one thing, and an interval of entropy that includes zero does not
# show that entropy stayed: some are wide enough to hold the whole difference between GELU and ReLU. Over cells the two go together
# ({numref}`fig-share-scatter`), as a cause and its effect would, and as two effects of one cause would too. Only an experiment that
# sets the entropy from outside can tell, and no run here does.
#
# **What the data do not allow.** All of this is one shape, six layers of width 64, on one corpus, in the transient, at one learning rate
# that was not tuned per cell. Shape, scale, output size and effective learning rate are not taken apart. The paper's models are twelve
# layers of width 768; their inputs start as small, but training is long enough to change scales. Whether GELU at a larger scale keeps up
# with ReLU there is not known to us; the settings `activation: scaled_gelu` and `activation_scale` of preset `gpu` would tell. ReLU needs
# no such scale to be chosen. That is a point in its favour, and taking ReLU is the paper's practical advice {cite}`jha2024relus`.

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
change, n = difference(frame, {"SM+G s=16": 1, "SM+G": -1})
Markdown(
    "On small inputs GELU is nearly linear and ReLU is not, by arithmetic. In the transient and without LayerNorm, GELU(s x)/s at s = 16, "
    f"which bends on them, changes GELU's perplexity by {change} (n = {n}). Two predictions of the conjecture are not borne out: larger "
    f"embeddings [{numbers('embeddings x4')}], and a learnable factor before GELU that grows [{numbers('learnable a')}]. Why s helps is open."
)
