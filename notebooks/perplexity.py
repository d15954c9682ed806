# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Perplexity with and without LayerNorm
#
# GPT-2 and Pythia, trained from scratch on Python source, with LayerNorm in the blocks ({term}`SM`+{term}`LN`) or without (SM), and with
# GELU ({term}`G`), ReLU ({term}`R`), a leaky ReLU of slope 0.1 (`L(0.1)`) or a linear feed-forward network (no letter). The paper's first
# table {cite}`jha2024relus` and later ones {cite}`jha2024aero,jha2025entropy` have their final {term}`perplexity` (claims [C1](#claim-c1),
# [C2](#claim-c2) and [C8](#claim-c8)). The numbers here are of one preset; [Claims](claims.ipynb) judges them over seeds.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, gpu or paper: the sizes in notebooks/params/<preset>.yaml
source = "local"  # local: this machine's runs, trained where missing; recorded: data/recorded/<preset>
seeds = None  # list of seeds; None, here and below: what the preset says
models = None  # mapping, e.g. {gpt2: {num_hidden_layers: 4}}; replaces only the keys it holds, as those below
data = None  # mapping, e.g. {corpus: path/to/folder}
training = None  # mapping, e.g. {learning_rate: 0.001}
steps = None  # mapping: updates of each budget, e.g. {main: 1200}

# %% tags=["remove-input"]
from nfbook.notebook import parameters


preset = parameters(globals())

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from nfbook.figures import STYLES, direct_labels, show_figure, use_style
from nfbook.presets import FAMILIES, MAIN
from nfbook.recorded import together
from nfbook.report import (
    NAMES,
    against,
    banner,
    final_heads,
    glue,
    markdown_table,
    perplexities,
    published,
    relative_change,
    sources,
)
from nfcore.shares import entropy_ceiling


use_style()
table, main, context = (sources(preset, name) for name in ("table", "main", "context"))
trained = next(iter(main.values()))
banner(preset, together([next(iter(of.values())) for of in (table, context)]))

# %% [markdown]
# ## Final perplexity
#
# Final perplexity on held-out files, and its change in percent against `SM+LN+G` of the same family at the same number
# of steps. Rows with other step counts must not be compared with one another: a preset may train the main GPT-2 rows
# longer than the rest. `NaN`: the run diverged. How far LayerNorm gets in runs this short depends on their length:
# [Claims](claims.ipynb) follows it over tokens, and has the changes over seeds with verdicts.

# %% tags=["remove-input"]
paper = published("perplexity")
table_of = {"gpt2": paper["GPT2_T128"] | paper["GPT2_T128_softmax_only"], "pythia": paper["Pythia70M_T128"]}


def rows_of(runs):
    """One row a configuration: perplexity, steps and change against SM+LN+G where the steps agree."""
    steps = runs.runs.groupby(["model.family", "configuration"], sort=False)["step"].max()
    result = pd.DataFrame({"perplexity": perplexities(runs).droplevel("data.context"), "steps": steps})
    result["change"] = float("nan")
    for (family, configuration), row in result.iterrows():
        base = result.loc[(family, "SM+LN+G")]
        if row["steps"] == base["steps"]:
            change = relative_change(row["perplexity"], base["perplexity"])
            result.loc[(family, configuration), "change"] = change
    return result


def text(value, digits=2):
    return "NaN" if pd.isna(value) else f"{value:.{digits}f}"


measured = {where: rows_of(runs) for where, runs in table.items()}
own = next(iter(measured.values()))
rows = []
for family, configuration in own.index:
    row = {"model": FAMILIES[family], "configuration": configuration}
    value = table_of[family].get(configuration)
    row["published"] = "-" if value is None else "NaN" if value == "NaNs" else f"{value[0]:.3f} ({value[1]:+.1f} %)"
    for where, result in measured.items():
        entry = result.loc[(family, configuration)]
        change = "" if pd.isna(entry["change"]) else f" ({entry['change']:+.1f} %)"
        row[where] = text(entry["perplexity"]) + change
        row[f"steps, {where}"] = f"{int(entry['steps'])}"
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## Over training
#
# The evaluation loss of the four main GPT-2 configurations, on the same held-out files. Early in training, models with LayerNorm are
# behind those without; [Claims](claims.ipynb) shows where they overtake, over seeds.


# %% tags=["remove-input"]
def curve(runs, configuration, name="eval_loss"):
    """Mean over seeds of a metric by step, in nats per token."""
    ids = runs.runs.loc[runs.runs["configuration"] == configuration, "run"]
    rows = runs.metrics[runs.metrics["run"].isin(ids) & (runs.metrics["name"] == name)]
    return rows.groupby("step")["value"].mean()


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-curves", "caption": "Evaluation loss of the four main GPT-2 configurations: published (left), and ours (right). Note the different step axes: the published runs see several hundred times more tokens than those of preset quick."}, "image": {"alt": "Four falling curves of evaluation loss against optimiser steps, published and ours; the markers tell the configurations apart."}}
panels = {"published": None} | main
figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
ends = {where: {} for where in panels}
for panel, (where, runs) in zip(axes[0], panels.items(), strict=True):
    for configuration in MAIN:
        if runs is None:
            points = pd.DataFrame(published("eval_loss_curves")["curves"][configuration])
            steps, losses, mark = points[0], points[2], dict(markevery=8, markerfacecolor="white")
        else:
            losses = curve(runs, configuration)
            steps, mark = losses.index, {}
        ends[where][configuration] = [*losses][-1]
        panel.plot(steps, losses, label=configuration, markersize=4, linewidth=1.2, **STYLES[configuration], **mark)
    panel.set(title=where, xlabel="optimiser step", ylabel="evaluation loss (nats per token)")
for panel in axes[0]:
    direct_labels(panel)
finding = "; ".join(
    f"{where}: {against('SM+R', of['SM+R'], 'SM+G', of['SM+G'], '{:.3f}')}" for where, of in ends.items()
)
show_figure(figure, trained, finding=f"Last loss in nats per token, {finding}.")

# %% [markdown]
# Mean, median and 95th percentile of the token losses at the last evaluation, in {term}`nats`. A mean can hide a tail. The published
# mean is the logarithm of the published {term}`perplexity`.

# %% tags=["remove-input"]
rows = []
for configuration in MAIN:
    row = {"configuration": configuration}
    for label, name in {"mean": "eval_loss", "median": "eval_loss_median", "95th percentile": "eval_loss_p95"}.items():
        series = curve(trained, configuration, name)
        row[label] = series.iloc[-1]
    mean = curve(trained, configuration)
    row |= {
        "best mean": mean.min(),
        "best at step": int(mean.idxmin()),
        "published mean": published("eval_loss_curves")["final_eval_loss_from_published_perplexity"][configuration],
    }
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
g, r = curve(trained, "SM+G"), curve(trained, "SM+R")
common = g.index.intersection(r.index)
ahead = (g[common] - r[common])[common > 0]
ends = {c: points[-1][2] for c, points in published("eval_loss_curves")["curves"].items()}
Markdown(
    f"SM+R is ahead of SM+G at {int((ahead > 0).sum())} of {len(ahead)} evaluations after step 0 and by {ahead.iloc[-1]:+.3f} nats at the "
    f"last (published: {ends['SM+G'] - ends['SM+R']:+.3f})."
)

# %% [markdown]
# ## At twice the context length
#
# Pythia at T and at twice the {term}`context length`, with equally many tokens a step, as in the paper's tables at T=128 and T=256
# {cite}`jha2024relus`. Entropies are over the {term}`ceiling` of their own T.

# %% tags=["remove-input"]
longer = next(iter(context.values()))
contexts = sorted(longer.runs["data.context"].unique())
by_length = {
    contexts[0]: ("128", published("perplexity")["Pythia70M_T128"]),
    contexts[1]: ("256", published("perplexity")["Pythia70M_T256"]),
}
rows, gains = [], []
for length in contexts:
    _, numbers = by_length[length]
    base = numbers["SM+LN+G"][0]
    for configuration in MAIN:
        row = {
            "T": str(length),
            "configuration": configuration,
            f"published (T = {contexts[0]}, {contexts[1]}: 128, 256)": f"{numbers[configuration][0]:.3f} ({numbers[configuration][1]:+.1f} %)",
        }
        for where, runs in context.items():
            values = perplexities(runs)
            level = sorted(runs.runs["data.context"].unique())[contexts.index(length)]
            value, reference = values[("pythia", level, configuration)], values[("pythia", level, "SM+LN+G")]
            row[where] = f"{value:.2f} ({relative_change(value, reference):+.1f} %)"
        part = longer.where(data__context=length)
        row["mean entropy / ceiling"] = float(final_heads(part, configuration).mean() / entropy_ceiling(int(length)))
        row["steps"] = str(int(part.runs["step"].max()))
        rows.append(row)
    values = perplexities(longer)
    gains.append(
        (
            length,
            -relative_change(values[("pythia", length, "SM+R")], values[("pythia", length, "SM+G")]),
            -relative_change(numbers["SM+R"][0], numbers["SM+G"][0]),
        )
    )
markdown_table(pd.DataFrame(rows).rename(columns=lambda c: "published" if c.startswith("published") else c))

# %% [markdown]
# ## What to remember


# %% tags=["remove-input"]
def lead(value, family, norm=""):
    """How far ReLU's perplexity is below GELU's, in percent."""
    return -relative_change(value(family, f"SM{norm}+R"), value(family, f"SM{norm}+G"))


def ours(family, configuration):
    return own.loc[(family, configuration), "perplexity"]


def theirs(family, configuration):
    return table_of[family][configuration][0]


def side(percent):
    return (
        "not comparable (a run diverged)"
        if pd.isna(percent)
        else f"{abs(percent):.1f} % {'below' if percent > 0 else 'above'}"
    )


def both(*which):
    return f"{side(lead(ours, *which))} (published: {side(lead(theirs, *which))})"


Markdown(
    f"Without LayerNorm, ReLU's perplexity against GELU's is, for GPT-2, {both('gpt2')}, and for Pythia, {both('pythia')}. "
    f"With LayerNorm it is, for GPT-2, {both('gpt2', '+LN')}, and for Pythia, {both('pythia', '+LN')}. "
    "At both context lengths of Pythia without LayerNorm: "
    + "; ".join(
        f"T={length}, {side(gain)} (published at T={by_length[length][0]}: {side(paper)})"
        for length, gain, paper in gains
    )
    + "."
)

# %% tags=["remove-input"]
glue(
    gain_gpt2=f"{lead(ours, 'gpt2'):.1f}",
    gain_pythia=f"{lead(ours, 'pythia'):.1f}",
    gain_published=f"{lead(theirs, 'gpt2'):.1f}",
    gain_ln_gpt2=f"{lead(ours, 'gpt2', '+LN'):.1f}",
    **{f"ppl_{name}": text(ours("gpt2", configuration)) for name, configuration in NAMES.items()},
    main_steps=f"{int(own.loc[('gpt2', 'SM+G'), 'steps'])}",
)
