# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learnable slopes and instability
#
# If the {term}`norm-free` model may learn the {term}`negative slope <leaky ReLU slope>` of a leaky ReLU, does it choose ReLU's zero? And
# which norm-free models {term}`diverge <diverged>`? The numbers here are of one preset and one seed, which shows what can happen;
# [Claims](claims.ipynb) tests both over seeds.

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
from nfbook.figures import STYLES, show_figure, use_style
from nfbook.presets import PAPER_TOKENS, Preset
from nfbook.recorded import together
from nfbook.report import banner, glue, markdown_table, published, sources


use_style()
slopes, stability = (next(iter(sources(preset, name).values())) for name in ("slopes", "instability"))
banner(preset, together([slopes, stability]))

# %% [markdown]
# ## Learnable negative slopes
#
# The paper's authors report in a later paper that the slopes go to zero, that is to ReLU {cite}`jha2024aero` ([C5](#claim-c5)). They start
# from 0.01 and have weight decay 0.1 {cite}`jha2024code`, which alone moves them towards zero {eq}`eq-slope-decay`. We train both kinds
# of sharing, one slope per layer and one for all layers, from 0.01 with that decay and from 0.25 with none.


# %% tags=["remove-input"]
def decayed(run):
    """Where weight decay alone, with no gradient, takes a slope of this run by its end."""
    metrics = slopes.metrics[slopes.metrics["run"] == run["run"]]
    return run["model.negative_slope"] * math.exp(-decay_sum(run, metrics))


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-slopes", "caption": "Negative slopes over training, a line per layer (or one line where all layers share it). Dotted: the initial slope. Dashed: where weight decay alone would take it."}, "image": {"alt": "Panels of learned negative slopes against steps."}}
frame = slopes.runs.reset_index(drop=True)
seed = frame["seed"].iloc[0]
frame = frame[frame["seed"] == seed]
figure, axes = plt.subplots(1, len(frame), figsize=(2.6 * len(frame), 3))
ends = []
for panel, (_, run) in zip(axes, frame.iterrows(), strict=True):
    table = slopes.layers[slopes.layers["run"] == run["run"]].pivot(index="step", columns="layer", values="slope")
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
    slopes,
    finding=f"{nearer} of {len(ends)} slopes end nearer to zero than they began, {beyond} nearer than weight decay alone would "
    "take them.",
)

# %% [markdown]
# Published is a figure without numbers ({cite:t}`jha2024aero`, first version, Fig. 4): with decay, slopes fall from 0.01 towards
# zero. What decay alone, without any gradient, does in the paper's schedule stands below the table (recomputed). The column *decay
# alone* is the same for the schedule of our runs.

# %% tags=["remove-input"]
rows = []
for _, run in slopes.runs.iterrows():
    layers = slopes.layers[slopes.layers["run"] == run["run"]]
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
# ## Which models diverge
#
# A run with a value that is not finite ends there ([C7](#claim-c7)); its step and the first layer with such a value are its result. We
# show GPT-2 with ReLU, GELU, a leaky slope of 0.1 and a linear feed-forward network, at the preset's learning rate and at ten times that,
# and GELU with matrices and {term}`residual stream` in bfloat16.
#
# The paper reports final perplexities of SM+R and SM+G {cite}`jha2024relus`, a later paper NaNs for SM {cite}`jha2025entropy`, and a plot
# script is named after NaNs at a leaky slope of 0.1 {cite}`jha2024code`. They belong to the paper's learning rate and to float16, and
# stand next to our runs at the preset's rate. The outcome names the step and the place of the first value that is not finite. An
# {term}`exploded gradient` is another event: it is clipped, and the run goes on.

# %% tags=["remove-input"]
numbers = published("perplexity")
theirs = {name: f"perplexity {value[0]:.3f}" for name, value in numbers["GPT2_T128"].items()}
theirs |= {"SM": numbers["GPT2_T128_softmax_only"]["SM"], "SM+L(0.1)": "NaNs (script name)"}


def outcome(run):
    """How far a run came, and where it diverged."""
    if run["status"] != "diverged":
        return f"{int(run['step'])} steps"
    head = run["diverged.layer"] == run["model.num_hidden_layers"]
    place = "head" if head else f"layer {int(run['diverged.layer'])}"
    where = run["diverged.where"] if run["diverged.where"] == "evaluation" else f"{run['diverged.where']} pass"
    return f"diverged at step {int(run['diverged.step'])}, {place}, {where}"


base = stability.runs["training.learning_rate"].min()
rows = []
for _, run in stability.runs.iterrows():
    heads = stability.heads[stability.heads["run"] == run["run"]]
    last = heads[heads["step"] == heads["step"].max()]
    losses = stability.metrics[(stability.metrics["run"] == run["run"]) & (stability.metrics["name"] == "train_loss")][
        "value"
    ]
    rows.append(
        {
            "configuration": run["configuration"],
            "learning rate": f"{run['training.learning_rate']:g}",
            "precision": run.get("provenance.precision", run["training.precision"]),
            "residual": run["model.residual_dtype"],
            "published": theirs[run["configuration"]] if run["training.learning_rate"] == base else "-",
            "outcome": outcome(run),
            "non-finite rows": int(last["nonfinite_rows"].sum()),
            "largest logit": heads["largest_logit"].max(),
            "largest loss": losses.max(),
            "last loss": losses.iloc[-1],
        }
    )
markdown_table(pd.DataFrame(rows), digits=2)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-instability", "caption": "Largest absolute attention score over all heads, on the probe batch, at the preset's learning rate (solid) and ten times that (dashed). A cross marks a run that diverged."}, "image": {"alt": "Largest attention logits against steps on a logarithmic axis, for each norm-free configuration and learning rate."}}
figure, panel = plt.subplots(figsize=(5.5, 3.4))
highest, stopped = {}, []
for _, run in stability.runs[
    stability.runs["training.precision"] == stability.runs["training.precision"].iloc[0]
].iterrows():
    logits = stability.heads[stability.heads["run"] == run["run"]].groupby("step")["largest_logit"].max()
    if run["status"] == "diverged":
        logits = logits[logits.index < run["diverged.step"]]  # what comes after is not a measurement
    high = run["training.learning_rate"] > base
    name = f"{run['configuration']}, rate {run['training.learning_rate']:g}"
    highest[name] = max(highest.get(name, 0), logits.max())
    style = STYLES[run["configuration"]]
    panel.plot(
        logits.index,
        logits,
        linestyle="--" if high else "-",
        linewidth=1.2,
        markersize=4,
        label=None if high else run["configuration"],
        gid=name,
        **style,
    )
    if run["status"] == "diverged":
        stopped.append(f"{name}, at step {int(run['diverged.step'])}")
        panel.axvline(run["diverged.step"], color=style["color"], linewidth=0.8, linestyle=":")
        panel.plot(
            [run["diverged.step"]],
            [logits.iloc[-1]],
            marker="x",
            color=style["color"],
            markersize=9,
        )
panel.set(yscale="log", xlabel="optimiser step", ylabel="largest |attention score|")
panel.legend()
most = max(highest, key=highest.get)
finding = f"The largest score is {float(f'{highest[most]:.3g}'):,g} ({most}). "
finding += f"Diverged: {'; '.join(stopped)}." if stopped else "No run diverged."
show_figure(figure, stability, finding=finding)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
free = slopes.runs[slopes.runs["training.slope_weight_decay"] == 0]
ends = slopes.layers.merge(free[["run", "model.negative_slope"]], on="run")
ends = ends[ends["step"] == ends.groupby("run")["step"].transform("max")]
fell = int((ends["slope"].abs() < ends["model.negative_slope"]).sum())
Markdown(
    f"Without any decay, {fell} of {len(ends)} slopes (counted per layer and run) end nearer to zero than their start of 0.25, with mean {ends['slope'].mean():.3f}: "
    "what remains of the drift once weight decay is taken out."
)

# %% tags=["remove-input"]
bad = stability.runs[stability.runs["status"] == "diverged"]
names = ", ".join(
    f"{r['configuration']} at learning rate {r['training.learning_rate']:g} (step {int(r['diverged.step'])})"
    for _, r in bad.iterrows()
)
Markdown(
    f"{len(bad)} of {len(stability.runs)} runs diverged"
    + (f": {names}." if len(bad) else ".")
    + " The published softmax-only model ended in NaNs."
)
