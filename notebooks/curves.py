# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluation loss over training
#
# This page shows how the evaluation loss falls during training, as the right panel of the paper's first figure does
# {cite}`jha2024relus`: the four main GPT-2 configurations, evaluated on the same held-out files. Early in training, our models with LayerNorm are
# behind those without; [Claims](claims.ipynb) shows where they overtake, over seeds.

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
from nfbook.presets import MAIN
from nfbook.report import against, banner, markdown_table, published, sources


use_style()
shown = sources(preset, "curves")
banner(preset, next(iter(shown.values())))


# %% tags=["remove-input"]
def curve(runs, configuration, name="eval_loss"):
    """Mean over seeds of a metric by step, in nats per token."""
    ids = runs.runs.loc[runs.runs["configuration"] == configuration, "run"]
    rows = runs.metrics[runs.metrics["run"].isin(ids) & (runs.metrics["name"] == name)]
    return rows.groupby("step")["value"].mean()


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-curves", "caption": "Evaluation loss of the four main GPT-2 configurations: published (left), and ours (right). Note the different step axes: the published runs see several hundred times more tokens than those of preset quick."}, "image": {"alt": "Four falling curves of evaluation loss against optimiser steps, published and ours; the markers tell the configurations apart."}}
panels = {"published": None} | shown
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
show_figure(figure, next(iter(shown.values())), finding=f"Last loss in nats per token, {finding}.")

# %% [markdown]
# Mean, median and 95th percentile of the token losses at the last evaluation, in {term}`nats`. A mean can hide a tail. The published
# mean is the logarithm of the published {term}`perplexity`.

# %% tags=["remove-input"]
own = next(iter(shown.values()))
rows = []
for configuration in MAIN:
    row = {"configuration": configuration}
    for label, name in {"mean": "eval_loss", "median": "eval_loss_median", "95th percentile": "eval_loss_p95"}.items():
        series = curve(own, configuration, name)
        row[label] = series.iloc[-1]
    mean = curve(own, configuration)
    row |= {
        "best mean": mean.min(),
        "best at step": int(mean.idxmin()),
        "published mean": published("eval_loss_curves")["final_eval_loss_from_published_perplexity"][configuration],
    }
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
g, r = curve(own, "SM+G"), curve(own, "SM+R")
common = g.index.intersection(r.index)
ahead = (g[common] - r[common])[common > 0]
Markdown(
    f"SM+R is ahead of SM+G at {int((ahead > 0).sum())} of {len(ahead)} evaluations after step 0 and by "
    f"{ahead.iloc[-1]:+.3f} nats at the last (published: {published('eval_loss_curves')['curves']['SM+G'][-1][2] - published('eval_loss_curves')['curves']['SM+R'][-1][2]:+.3f})."
)
