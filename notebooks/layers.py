# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Layer-wise entropy over training
#
# This page shows how the {term}`entropy <head entropy>` of each layer falls during training. Every head starts at the
# {term}`ceiling`: at initialisation the scores are so small that attention is uniform, as the first points of {numref}`fig-layers`
# show. The claim ([C6](../claims-of-the-paper.md)) is that the {term}`early layers` of the {term}`norm-free` GELU model stay up.

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

from nfbook.figures import show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    against,
    banner,
    early_share,
    final_heads,
    layer_entropy,
    leaves_ceiling,
    markdown_table,
    published,
    sources,
)
from nfcore.shares import entropy_ceiling


use_style()
shown = sources(preset, "layers")
banner(preset, next(iter(shown.values())))

# %% tags=["remove-input"]
own = next(iter(shown.values()))
ceiling = entropy_ceiling(int(own.runs["data.context"].iloc[0]))
layers = int(own.runs["model.num_hidden_layers"].iloc[0])
theirs = {name: np.array(heads) for name, heads in published("head_entropy")["maps"].items()}

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-layers", "caption": "Mean head entropy of each layer over training. The dashed line is the causal ceiling."}, "image": {"alt": "Four panels of layer-wise entropy against steps, a line per layer from dark (first) to light (last), below a dashed ceiling."}}
figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharey=True)
colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, layers))
for panel, configuration in zip(axes, MAIN, strict=True):
    table = layer_entropy(own, configuration)
    for layer in table.columns:
        panel.plot(table.index, table[layer], color=colors[layer], linewidth=1.2, label=f"layer {layer}")
        panel.annotate(
            str(layer),
            (table.index[-1], table[layer].iloc[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    panel.axhline(ceiling, linestyle="--", color="grey", linewidth=0.8, label="ceiling")
    panel.set(title=configuration, xlabel="optimiser step")
axes[0].set_ylabel("entropy (nats)")
context = int(own.runs["data.context"].iloc[0])
early = {c: early_share(final_heads(own, c), context) for c in MAIN}
show_figure(
    figure,
    own,
    finding=f"At the last step the mean of the early layers over the ceiling is {against('SM+G', early['SM+G'], 'SM+R', early['SM+R'])}; "
    f"with LayerNorm it is {against('SM+LN+G', early['SM+LN+G'], 'SM+LN+R', early['SM+LN+R'])}.",
)

# %% [markdown]
# As shares of the ceiling of the respective context, at a few steps. Published in numbers are only the heads of the
# final model (GPT-2, 12 layers, T = 128) {cite}`jha2024relus`; their course is in a plot ({cite:t}`jha2024aero`, Fig. 12).

# %% tags=["remove-input"]
rows = []
for configuration in MAIN:
    table = layer_entropy(own, configuration) / ceiling
    picks = table.index[np.unique(np.linspace(0, len(table) - 1, 4).round().astype(int))]
    for step in picks:
        rows.append(
            {"configuration": configuration, "step": f"{step}"}
            | {f"layer {i}": float(table.loc[step, i]) for i in table.columns}
        )
    means = theirs[configuration].mean(axis=1) / entropy_ceiling(128)
    rows.append(
        {"configuration": configuration, "step": "published, end"}
        | {f"layer {i}": float(mean) for i, mean in enumerate(means)}
    )
markdown_table(pd.DataFrame(rows), digits=2)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
below = {configuration: leaves_ceiling(own, configuration) for configuration in MAIN}
end = {configuration: early_share(theirs[configuration], 128) for configuration in MAIN}
Markdown(
    "The early layers together first fall below nine tenths of the ceiling: "
    + ", ".join(f"{c} {f'at step {step:.0f}' if np.isfinite(step) else 'never'}" for c, step in below.items())
    + f". The paper's claim is that SM+G stays up longest; at the end its early layers have a mean of {end['SM+G']:.2f} of the "
    f"ceiling, those of SM+R {end['SM+R']:.2f} (published)."
)
