# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Head entropy, head by head
#
# This page shows where in the network attention is spread out and where it selects. Each square is one {term}`head`: its
# {term}`entropy <head entropy>` {eq}`eq-head-entropy`, in {term}`nats`, on one fixed held-out batch. All panels of a figure share one
# scale, from zero to the causal {term}`ceiling` {eq}`eq-ceiling`. Numbers on the edges are means over a layer (right) and over a head
# index (below). The published maps are from {cite:t}`jha2024relus`. Claim [C4](../claims-of-the-paper.md).

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
import numpy as np
import pandas as pd
from IPython.display import Markdown

from nfbook.figures import entropy_map, maps_over_steps, show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    NAMES,
    against,
    banner,
    early_share,
    final_heads,
    glue,
    markdown_table,
    published,
    sources,
)
from nfcore.shares import entropy_ceiling


use_style()
shown = sources(preset, "maps")
banner(preset, next(iter(shown.values())))


# %% tags=["remove-input"]
def four_maps(maps, top, figsize, runs=None, interactive=None):
    figure, axes = plt.subplots(2, 2, figsize=figsize)
    for panel, configuration in zip(axes.flat, MAIN, strict=True):
        image = entropy_map(panel, maps[configuration], configuration, top)
    figure.colorbar(image, ax=axes, label="head entropy (nats)", shrink=0.6)
    cut = round(2 * len(maps["SM+G"]) / 3)
    early, late = (
        against("SM+G", np.nanmean(maps["SM+G"][part]), "SM+R", np.nanmean(maps["SM+R"][part]))
        for part in (slice(cut), slice(cut, None))
    )
    finding = f"Mean entropy of the first two thirds of the layers, in nats: {early}; of the other layers: {late}."
    show_figure(figure, runs, interactive, finding=finding)


runs = next(iter(shown.values()))
own = {c: final_heads(runs, c) for c in MAIN}
context = int(runs.runs["data.context"].iloc[0])
over_steps = {c: runs.heads[runs.heads["run"].isin(runs.where(configuration=c).runs["run"])] for c in MAIN}
theirs = {name: np.array(values) for name, values in published("head_entropy")["maps"].items()}

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps", "caption": "Head entropies of our four main GPT-2 runs at their last step, in nats, on one scale up to the causal ceiling."}, "image": {"alt": "Four heat maps of attention head entropy, layers by heads, one for each main configuration, measured here."}}
top = entropy_ceiling(context)
four_maps(own, top, (6.4, 5.2), runs, maps_over_steps(over_steps, top))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps-published", "caption": "The published head entropies (GPT-2, 12 layers of 12 heads, T=128), on the same kind of scale."}, "image": {"alt": "Four heat maps of attention head entropy as published, layers by heads, one for each main configuration."}}
four_maps(theirs, entropy_ceiling(128), (8.4, 7.2))

# %% [markdown]
# Layer means as a share of the ceiling:

# %% tags=["remove-input"]
rows = []
for label, maps, ceiling in (("ours", own, entropy_ceiling(context)), ("published", theirs, entropy_ceiling(128))):
    for configuration in MAIN:
        means = np.nanmean(maps[configuration], axis=1) / ceiling
        rows.append({"": label, "configuration": configuration} | {f"layer {i}": float(m) for i, m in enumerate(means)})
markdown_table(pd.DataFrame(rows), digits=2)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
share = {c: early_share(own[c], context) for c in MAIN}
paper_share = {c: early_share(theirs[c], 128) for c in MAIN}
first = theirs["SM+G"].mean(axis=1)
cut = round(2 * len(first) / 3)
glue(
    **{f"ceiling_{t}": f"{entropy_ceiling(t):.4f}" for t in (128, 256, 512)},
    ln_128=f"{np.log(128):.4f}",
    published_early_low=f"{first[:cut].min():.1f}",
    published_early_high=f"{first[:cut].max():.1f}",
    published_late=f"{first[cut:].mean():.1f}",
)
glue(**{f"early_{name}": f"{share[c]:.2f}" for name, c in NAMES.items()})
Markdown(
    f"The heads of the early layers have a mean entropy of {share['SM+G']:.2f} of the ceiling in SM+G and of {share['SM+R']:.2f} in SM+R "
    f"(published: {paper_share['SM+G']:.2f} and {paper_share['SM+R']:.2f}); with LayerNorm it is {share['SM+LN+G']:.2f} and {share['SM+LN+R']:.2f} "
    f"(published: {paper_share['SM+LN+G']:.2f} and {paper_share['SM+LN+R']:.2f})."
)
