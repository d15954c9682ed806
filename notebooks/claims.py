# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Claims
#
# This page shows each [claim of the paper](../claims-of-the-paper.md) with a {term}`verdict`. Statistic, comparison, criterion,
# {term}`cells <cell (of the study)>` and {term}`seeds <seed>` stand in `data/claims.yaml` and `notebooks/params/study.yaml`, which
# were committed before the first run of the study was made. `python -m nfcore claims` prints this page's verdicts and fails when a
# recorded one no longer follows from the recorded runs.
#
# **How a verdict is reached.** Runs are paired by seed: two configurations with the same seed see the same data in the same
# order and start, where their shapes agree, from the same weights. The statistic's difference is taken seed by seed; shown is
# its mean with a 95 % t interval {eq}`eq-interval`.
#
# *Direction* is `reproduced` if a two-sided paired t test {cite}`student1908probable`, corrected by Holm's method
# {cite}`holm1979simple` over all tests of this page ({term}`Holm correction`), gives p below 0.05 with the paper's sign,
# `not reproduced` if it does with the other sign, and else `undecided`. *Size* is `reproduced` if the interval lies within half and
# twice the published value, and `not reproduced` if it lies outside. What cannot be settled without two billion tokens or hardware
# with float16 is `undecided at this scale`. Intervals of shares of seeds are those of {cite:t}`clopper1934use`, combined as by
# {cite:t}`newcombe1998interval` where two are compared.
#
# **What this assumes.** Differences of different seeds are independent and roughly normal. Three to five seeds cannot show
# whether they are. A rank test {cite}`wilcoxon1945individual` would not need it, but with five pairs its smallest two-sided p is
# 2/2⁵ = 0.0625; it is given from ten seeds on. Seeds vary initial weights and the order of data; the corpus, its split and the
# evaluation sequences are the same for all, so an interval does not cover another corpus.

# %% tags=["parameters", "hide-input"]
preset = "study"  # these pages show the study, notebooks/params/study.yaml
source = "recorded"  # recorded: data/recorded/study; local: those and this machine's runs

# %% tags=["hide-input"]
from nfcore.notebook import parameters


study = parameters(globals())

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy.stats import spearmanr, wasserstein_distance

from nfcore.claims import UNITS, contrast, interval, read_ledger, statistics, verdicts
from nfcore.figures import STYLES, show_figure, use_style
from nfcore.presets import MAIN, PAPER_TOKENS
from nfcore.report import (
    final_heads,
    glue,
    glue_verdicts,
    markdown_table,
    published,
    recorded,
    study_banner,
    verdict_table,
    with_interval,
)
from nfcore.shares import entropy_ceiling, shares_by_convention


use_style()
shown = study.runs()
frame = statistics(shown, study)
ledger = read_ledger()
table = verdicts(frame)
table = table[table["group"] == "claims"].reset_index(drop=True)
study_banner(shown, len(study.experiments()))

# %% tags=["hide-input"]
made = shown.runs.set_index("run")["provenance.wall_seconds"]
rows = []
for stage in study.stages:
    planned = [e.id for e in study.experiments(stage)]
    seconds = made.reindex(planned).dropna()
    rows.append(
        {
            "stage": stage,
            "cells": sum(cell.stage == stage for cell in study.cells.values()),
            "runs planned": len(planned),
            "recorded": len(seconds),
            "minutes of these, two at a time": f"{seconds.sum() / 120:.0f}",
        }
    )
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## Verdicts

# %% tags=["hide-input"]
seen = shown.runs["provenance.tokens"].median()
glue(
    study_runs=str(len(shown.runs)),
    study_tokens=f"{seen / 1e6:.1f}",
    study_ratio=f"{PAPER_TOKENS / seen:,.0f}",
    claims_tests=str(len(table)),
    claims_reproduced=str((table["direction"] == "reproduced").sum()),
)
glue_verdicts(table)
verdict_table(table)

# %% [markdown]
# Perplexity is the unit of `%`; `points` are percentage points of heads; C4 and C6 are in shares of the ceiling; C5 is the
# final over the initial slope; C7 the share of seeds that stopped being finite. n is the number of seeds, d the effect size,
# the mean difference over its standard deviation between seeds; a test that has none is missing p.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-claims", "caption": "Claims about perplexity: change in percent, ours (filled, 95 % interval) and published (hollow). Dotted: half and twice the published value, between which a size counts as reproduced."}, "image": {"alt": "A row for each claim about perplexity with our estimate and its interval beside the published value."}}
percent = table[table["unit"] == "percent"].reset_index(drop=True)
figure, axes = plt.subplots(figsize=(7, 0.6 + 0.42 * len(percent)))
for row, test in percent.iterrows():
    name, ours = test["id"], dict(color=STYLES["SM+R"]["color"])
    halved = [test["published"] / 2, test["published"] * 2]
    axes.plot(halved, [row, row], ":", color="grey", linewidth=1, gid=f"{name}, half and twice the published")
    theirs = dict(color="black", fillstyle="none", label="published" if row == 0 else None)
    axes.plot(test["published"], row, "o", gid=f"{name}, published", **theirs)
    axes.plot([test["low"], test["high"]], [row, row], gid=f"{name}, interval", **ours)
    axes.plot(test["estimate"], row, "D", markersize=5, label="ours" if row == 0 else None, gid=f"{name}, ours", **ours)
axes.axvline(0, color="black", linewidth=0.6)
axes.set_yticks(range(len(percent)), percent["id"])
axes.invert_yaxis()
axes.set_xlabel("change of perplexity (%)")
axes.legend()
there = percent.dropna(subset="estimate")
signs = (there["estimate"] * there["published"].astype(float) > 0).sum()
clear = ((there["low"] > 0) | (there["high"] < 0)).sum()
show_figure(
    figure,
    shown.select(run for runs in percent["runs"] for run in runs),
    interactive=False,
    finding=f"The change of perplexity has the published sign in {signs} of {len(there)} claims; the interval leaves out "
    f"zero in {clear}, and lies between the dotted ends in {(there['size'] == 'reproduced').sum()}.",
)

# %% [markdown]
# ## The last step, the best evaluation, and other means of the loss
#
# The verdicts are on the mean loss at the last step. Here are the same contrasts at each run's best evaluation, and of the
# median and the 95th percentile of the losses of single tokens; in percent of perplexity, or of the exponential of that
# quantile. `own best` repeats them with each configuration at its own best learning rate ([Confounds](confounds.ipynb)).

# %% tags=["hide-input"]
rows = []
for test in ledger["tests"]:
    if test["group"] == "claims" and test["statistic"] == "loss":
        row = {"id": test["id"]}
        for statistic, words in (
            ("loss", "last step"),
            ("best_loss", "best evaluation"),
            ("loss_median", "median token"),
            ("loss_p95", "95th percentile"),
        ):
            found = interval(contrast(frame, test["contrast"], statistic)[0])
            row[words] = with_interval("percent", *(UNITS["percent"](found[k]) for k in ("estimate", "low", "high")))
        own = {f"{cell} own best": weight for cell, weight in test["contrast"].items()}
        if set(own) <= set(study.cells):
            found = interval(contrast(frame, own, "loss")[0])
            row["own best rates, last step"] = with_interval(
                "percent", *(UNITS["percent"](found[k]) for k in ("estimate", "low", "high"))
            )
        rows.append(row)
markdown_table(pd.DataFrame(rows).fillna(""))

# %% [markdown]
# ## Perplexity of every cell of the core stage

# %% tags=["hide-input"]
rows = []
for name, cell in study.cells.items():
    if cell.stage == "core" and name in frame.index:
        runs_of = frame.loc[[name]]
        losses = runs_of["loss"].dropna().astype(float)
        rows.append(
            {
                "cell": name,
                "perplexity, last step": np.exp(losses.mean()),
                "from": np.exp(losses.min()),
                "to": np.exp(losses.max()),
                "runs": len(runs_of),
                "not finite": int(runs_of["diverged"].sum()),
            }
        )
markdown_table(
    pd.DataFrame(rows, columns=["cell", "perplexity, last step", "from", "to", "runs", "not finite"]), digits=2
)

# %% [markdown]
# ## Our entropy maps and the published ones
#
# The published maps are of 12 layers of 12 heads after two billion tokens, ours of 6 layers of 4 heads after a thousandth of
# that, so they are compared by what does not depend on the shape. *Profile*: Spearman's rank correlation between the mean
# entropies of layers, the published profile read off at our layers' relative depths. *Distance*: the Wasserstein distance
# between the distributions of head entropies, both over their {term}`ceiling`; 0 is equal, 1 the largest there is. Mean over seeds.

# %% tags=["hide-input"]
maps = {name: np.array(published("head_entropy")["maps"][name]) for name in MAIN}
rows = []
for name in MAIN:
    ids = frame.loc[[name], "run"] if name in frame.index else []
    ours = [final_heads(shown.select([run]), name) for run in ids]
    if ours:
        depth = np.linspace(0, 1, len(ours[0]))
        theirs = np.interp(depth, np.linspace(0, 1, len(maps[name])), maps[name].mean(1))
        flat = maps[name].ravel() / entropy_ceiling(128)
        rho = [spearmanr(heads.mean(1), theirs).statistic for heads in ours]
        distance = [wasserstein_distance(heads.ravel() / entropy_ceiling(128), flat) for heads in ours]
        rows.append(
            {
                "configuration": name,
                "profile, Spearman's ρ": np.mean(rho),
                "from": min(rho),
                "to": max(rho),
                "distance of head entropies": np.mean(distance),
                "largest distance": max(distance),
                "seeds": len(ours),
            }
        )
markdown_table(pd.DataFrame(rows), digits=2)

# %% [markdown]
# Shares of heads in the four quarters of the entropy range, from [0, Max/4) to [3Max/4, Max], under both conventions of Max;
# ours as mean over seeds:

# %% tags=["hide-input"]
printed = published("head_share_percent")["main.png"]
seeds = sorted(
    set.intersection(*(set(frame.loc[[n]].index.get_level_values("seed")) if n in frame.index else set() for n in MAIN))
)
per_seed = [
    shares_by_convention({n: final_heads(shown.select([frame.loc[(n, seed), "run"]]), n) for n in MAIN}, 128)
    for seed in seeds
]
rows = []
for name in MAIN if per_seed else []:
    row = {"configuration": name, "published (%)": ", ".join(map(str, printed[name]))}
    for convention in per_seed[0]:
        mean = 100 * np.mean([shares[convention][name] for shares in per_seed], axis=0)
        row[f"ours, Max {convention} (%)"] = ", ".join(f"{share:.0f}" for share in mean)
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## On a GPU
#
# The preset `gpu` trains the paper's own sizes, GPT-2 with 124 M and Pythia with 70 M parameters. Its row in this companion:

# %% tags=["hide-input"]
gpu = recorded("gpu")
text = "**Still empty.** No machine with a GPU has run it yet; [Reproduce it](../reproduce.md) has the command and the estimate."
if gpu is not None:
    text = f"{len(gpu.runs)} runs are recorded under `data/recorded/gpu`."
Markdown(text)

# %% [markdown]
# ## Runs behind the verdicts
#
# The identifiers are those in `data/recorded/study/records.json`, which holds settings, results, versions and hardware of
# each run; `python -m nfcore train study/ID` makes one again.

# %% tags=["hide-cell"]
markdown_table(
    pd.DataFrame({"id": table["id"], "runs": [" ".join(f"`{run}`" for run in ids) for ids in table["runs"]]})
)

# %% tags=["hide-input"]
facts = {
    "commit": "commit",
    "measurement version": "measurement",
    "tokens": "data_hash",
    "torch": "torch",
    "threads": "threads",
}
counts = {words: shown.runs[f"provenance.{name}"].astype(str).value_counts() for words, name in facts.items()}
markdown_table(
    pd.DataFrame(
        [
            {"": words, "value": "; ".join(v if len(count) == 1 else f"{v} ({n} runs)" for v, n in count.items())}
            for words, count in counts.items()
        ]
    )
)

# %% [markdown]
# ## What to remember

# %% tags=["hide-input"]
count = table["direction"].value_counts()
sizes = table.loc[table["size"] != "", "size"].value_counts()
Markdown(
    f"Of {len(table)} tests of the paper's claims, the direction of "
    + ", ".join(f"{number} is {verdict}" for verdict, number in count.items())
    + "; of those with a published size, "
    + ", ".join(f"{number} {'is' if number == 1 else 'are'} {verdict}" for verdict, number in sizes.items())
    + "."
)
