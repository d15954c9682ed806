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
# Every head starts at the ceiling: at initialisation the scores are so small that attention is uniform. Training lets the
# layers come down; the paper's claim (C6) is that the early layers of the norm-free GELU model stay up.

# %% tags=["parameters", "hide-input"]
preset = "quick"  # smoke, quick, gpu or paper: the sizes in notebooks/params/<preset>.yaml
source = "local"  # local: this machine's runs, trained where missing; recorded: data/recorded/<preset>
seeds = None  # list of seeds; None, here and below: what the preset says
models = None  # mapping, e.g. {gpt2: {num_hidden_layers: 4}}; replaces only the keys it holds, as those below
data = None  # mapping, e.g. {corpus: path/to/folder}
training = None  # mapping, e.g. {learning_rate: 0.001}
steps = None  # mapping: updates of each budget, e.g. {main: 1200}

# %% tags=["hide-input"]
from nfcore.notebook import parameters


preset = parameters(globals())

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from nfcore.entropy import entropy_ceiling
from nfcore.presets import MAIN
from nfcore.report import banner, markdown_table, sources, use_style


use_style()
shown = sources(preset, "layers")
banner(preset, next(iter(shown.values())))


# %% tags=["hide-input"]
def by_layer(runs, configuration):
    """Mean head entropy in nats, steps by layers."""
    ids = runs.runs.loc[runs.runs["configuration"] == configuration, "run"]
    heads = runs.heads[runs.heads["run"].isin(ids)]
    return heads.groupby(["step", "layer"])["entropy"].mean().unstack()


own = next(iter(shown.values()))
ceiling = entropy_ceiling(int(own.runs["data.context"].iloc[0]))
layers = int(own.runs["model.num_hidden_layers"].iloc[0])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-layers", "caption": "Mean head entropy of each layer over training. The dashed line is the causal ceiling."}, "image": {"alt": "Four panels of layer-wise entropy against steps, a line per layer from dark (first) to light (last), below a dashed ceiling."}}
figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharey=True)
colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, layers))
for panel, configuration in zip(axes, MAIN, strict=True):
    table = by_layer(own, configuration)
    for layer in table.columns:
        panel.plot(table.index, table[layer], color=colors[layer], linewidth=1.2)
        panel.annotate(
            str(layer),
            (table.index[-1], table[layer].iloc[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    panel.axhline(ceiling, linestyle="--", color="grey", linewidth=0.8)
    panel.set(title=configuration, xlabel="optimiser step")
axes[0].set_ylabel("entropy (nats)")
plt.show()

# %% [markdown]
# As shares of the ceiling, at a few steps:

# %% tags=["hide-input"]
rows = []
for configuration in MAIN:
    table = by_layer(own, configuration) / ceiling
    picks = table.index[np.unique(np.linspace(0, len(table) - 1, 4).round().astype(int))]
    for step in picks:
        rows.append(
            {"configuration": configuration, "step": int(step)}
            | {f"layer {i}": float(table.loc[step, i]) for i in table.columns}
        )
markdown_table(pd.DataFrame(rows), digits=2)

# %% [markdown]
# ## What to see

# %% tags=["hide-input"]
below = {}
for configuration in MAIN:
    early = (by_layer(own, configuration) / ceiling)[[c for c in (1, 2) if c < layers]].mean(axis=1)
    gone = early.index[early < 0.9]
    below[configuration] = f"at step {gone[0]}" if len(gone) else "never"
Markdown(
    "Layers 1 and 2 together first fall below nine tenths of the ceiling: "
    + ", ".join(f"{configuration} {when}" for configuration, when in below.items())
    + ". The paper's claim is that SM+G stays up longest."
)
