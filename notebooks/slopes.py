# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learnable negative slopes
#
# What becomes of the {term}`negative slope <leaky ReLU slope>` of a leaky ReLU when it is learned, so that the {term}`norm-free` model
# settles its own activation? The paper's authors report in a later paper that the slopes go to zero, that is to ReLU
# {cite}`jha2024aero` ([C5](../claims-of-the-paper.md)). They start from 0.01 and have weight decay 0.1 {cite}`jha2024code`, which alone
# moves them towards zero {eq}`eq-slope-decay`. [Claims](claims.ipynb) tests over seeds whether they end at zero.
#
# Here both kinds of sharing, one slope per layer and one for all layers, are run from 0.01 with that decay and from 0.25 with none.

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
import math

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from nfbook.claims import decay_sum
from nfbook.figures import show_figure, use_style
from nfbook.presets import PAPER_TOKENS, Preset
from nfbook.report import banner, glue, markdown_table, sources


use_style()
shown = sources(preset, "slopes")
banner(preset, next(iter(shown.values())))


# %% tags=["remove-input"]
def decayed(run):
    """Where weight decay alone, with no gradient, takes a slope of this run by its end."""
    metrics = own.metrics[own.metrics["run"] == run["run"]]
    return run["model.negative_slope"] * math.exp(-decay_sum(run, metrics))


own = next(iter(shown.values()))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-slopes", "caption": "Negative slopes over training, a line per layer (or one line where all layers share it). Dotted: the initial slope. Dashed: where weight decay alone would take it."}, "image": {"alt": "Panels of learned negative slopes against steps."}}
frame = own.runs.reset_index(drop=True)
seed = frame["seed"].iloc[0]
frame = frame[frame["seed"] == seed]
figure, axes = plt.subplots(1, len(frame), figsize=(2.6 * len(frame), 3))
ends = []
for panel, (_, run) in zip(axes, frame.iterrows(), strict=True):
    table = own.layers[own.layers["run"] == run["run"]].pivot(index="step", columns="layer", values="slope")
    shared = run["model.slope_sharing"] == "shared"
    for layer in table.columns[:1] if shared else table.columns:
        panel.plot(table.index, table[layer], linewidth=1.2, label="all layers" if shared else f"layer {layer}")
        ends.append((abs(table[layer].iloc[-1]), run["model.negative_slope"], decayed(run)))
        panel.annotate(
            "all" if shared else str(layer),
            (table.index[-1], table[layer].iloc[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    panel.axhline(run["model.negative_slope"], linestyle=":", color="grey", linewidth=0.8, label="initial")
    panel.axhline(decayed(run), linestyle="--", color="grey", linewidth=0.8, label="decay alone")
    panel.axhline(0, color="black", linewidth=0.6)
    panel.set(
        title=f"{'shared' if shared else 'per layer'}, from {run['model.negative_slope']:g}, decay {run['training.slope_weight_decay']:g}",
        xlabel="optimiser step",
    )
    panel.title.set_fontsize(8)
axes[0].set_ylabel("negative slope")
nearer = sum(end < start for end, start, _ in ends)
beyond = sum(end < decay for end, _, decay in ends)
show_figure(
    figure,
    own,
    finding=f"{nearer} of {len(ends)} slopes end nearer to zero than they began, {beyond} nearer than weight decay alone would "
    "take them.",
)

# %% [markdown]
# Published is a figure without numbers ({cite:t}`jha2024aero`, first version, Fig. 4): with decay, slopes fall from 0.01 towards
# zero. What decay alone, without any gradient, does in the paper's schedule stands below the table (recomputed). The column *decay
# alone* is the same for the schedule of our runs.

# %% tags=["remove-input"]
rows = []
for _, run in own.runs.iterrows():
    layers = own.layers[own.layers["run"] == run["run"]]
    last = layers[layers["step"] == layers["step"].max()].sort_values("layer")["slope"]
    rows.append(
        {
            "sharing": run["model.slope_sharing"],
            "seed": run["seed"],
            "initial": f"{run['model.negative_slope']:g}",
            "decay on slopes": f"{run['training.slope_weight_decay']:g}",
            "final slopes": f"{last.iloc[0]:.4f}"
            if run["model.slope_sharing"] == "shared"
            else " ".join(f"{s:.4f}" for s in last),
            "decay alone": f"{decayed(run):.4f}",
            "published": "from 0.01 towards 0" if run["training.slope_weight_decay"] else "-",
            "perplexity": run["perplexity"],
            "steps": run["step"],
        }
    )
table = pd.DataFrame(rows)
markdown_table(table, digits=2)

# %% tags=["remove-input"]
paper = Preset.load("paper").experiment("gpt2", "SM+R", "main", seed=0)
updates = PAPER_TOKENS / paper.training.batch_size / paper.data.context
# Linear warm-up from zero and linear decay to zero: half the peak rate on average.
decay = paper.training.weight_decay * paper.training.learning_rate * updates / 2
glue(paper_decay_factor=f"{math.exp(-decay):.2f}", paper_decay_end=f"{0.01 * math.exp(-decay):.3f}")
Markdown(
    f"In the paper's schedule the sum of learning rate times decay is {decay:.2f}: decay alone multiplies a slope by "
    f"{math.exp(-decay):.2f}, and takes 0.01 to {0.01 * math.exp(-decay):.3f}."
)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
free = own.runs[own.runs["training.slope_weight_decay"] == 0]
ends = own.layers.merge(free[["run", "model.negative_slope"]], on="run")
ends = ends[ends["step"] == ends.groupby("run")["step"].transform("max")]
fell = int((ends["slope"].abs() < ends["model.negative_slope"]).sum())
Markdown(
    f"Without any decay, {fell} of {len(ends)} slopes (counted per layer and run) end nearer to zero than their start of 0.25, with mean {ends['slope'].mean():.3f}: "
    "what remains of the drift once weight decay is taken out."
)
