# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Entropy
#
# How widely does each attention {term}`head` spread its attention, and does that depend on the activation? The paper finds that without
# LayerNorm, GELU leaves the early heads near the largest possible {term}`entropy <head entropy>` {eq}`eq-head-entropy`, where a head attends
# to all earlier tokens alike {cite}`jha2024relus` (claims [C3](#claim-c3), [C4](#claim-c4) and [C6](#claim-c6)). The figures here are of one
# preset; [Claims](claims.ipynb) judges them over seeds.

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

from nfbook.figures import STYLES, entropy_map, maps_over_steps, show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    NAMES,
    against,
    banner,
    early_share,
    final_heads,
    glue,
    layer_entropy,
    leaves_ceiling,
    markdown_table,
    published,
    shares_by_convention,
    sources,
)
from nfcore.shares import QUARTERS, entropy_ceiling, quartile_shares


use_style()
own = next(iter(sources(preset, "main").values()))
context = int(own.runs["data.context"].iloc[0])
ceiling = entropy_ceiling(context)
layers = int(own.runs["model.num_hidden_layers"].iloc[0])
ours = {c: final_heads(own, c) for c in MAIN}
theirs = {name: np.array(values) for name, values in published("head_entropy")["maps"].items()}
early = {c: early_share(ours[c], context) for c in MAIN}
published_early = {c: early_share(theirs[c], 128) for c in MAIN}
counted_ours, counted = shares_by_convention(ours, context), shares_by_convention({c: theirs[c] for c in MAIN}, 128)
printed = published("head_share_percent")["main.png"]
banner(preset, own)

# %% [markdown]
# ## Head by head
#
# Each square is one head: its entropy in {term}`nats`, on one fixed held-out batch. All panels of a figure share one scale, from zero to
# the causal {term}`ceiling` {eq}`eq-ceiling`. Numbers on the edges are means over a layer (right) and over a head index (below).


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


over_steps = {c: own.heads[own.heads["run"].isin(own.where(configuration=c).runs["run"])] for c in MAIN}

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps", "caption": "Head entropies of our four main GPT-2 runs at their last step, in nats, on one scale up to the causal ceiling."}, "image": {"alt": "Four heat maps of attention head entropy, layers by heads, one for each main configuration, measured here."}}
four_maps(ours, ceiling, (6.4, 5.2), own, maps_over_steps(over_steps, ceiling))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps-published", "caption": "The published head entropies (GPT-2, 12 layers of 12 heads, T=128), on the same kind of scale."}, "image": {"alt": "Four heat maps of attention head entropy as published, layers by heads, one for each main configuration."}}
four_maps(theirs, entropy_ceiling(128), (8.4, 7.2))

# %% [markdown]
# Layer means as fractions of the ceiling:

# %% tags=["remove-input"]
rows = []
for label, maps, highest in (("ours", ours, ceiling), ("published", theirs, entropy_ceiling(128))):
    for configuration in MAIN:
        means = np.nanmean(maps[configuration], axis=1) / highest
        rows.append({"": label, "configuration": configuration} | {f"layer {i}": float(m) for i, m in enumerate(means)})
markdown_table(pd.DataFrame(rows), digits=2)

# %% [markdown]
# ## How many heads are overloaded
#
# The paper's first figure counts heads by entropy: their share in each quarter of the range [0, Max] {eq}`eq-quarters`. A
# disproportionate share in the last quarter is {term}`entropic overload <overload (entropic)>`, one in the first
# {term}`entropy collapse <collapse (entropy)>`. We do not know what Max is there. Its numbers allow two conventions, and we show both: the
# largest head entropy observed over the compared models, and the ceiling.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-shares", "caption": "Share of heads in each quarter of [0, Max], Max being the causal ceiling: as printed in the paper (hollow) and ours (filled)."}, "image": {"alt": "Bars of the share of attention heads per entropy quarter for the four main configurations, published and ours."}}
figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True)
positions = np.arange(4)
for panel, configuration in zip(axes, MAIN, strict=True):
    color = STYLES[configuration]["color"]
    panel.bar(positions - 0.2, printed[configuration], 0.4, fill=False, edgecolor=color, label="published")
    panel.bar(positions + 0.2, 100 * counted_ours["ceiling"][configuration], 0.4, color=color, label="ours")
    panel.set(title=configuration, xlabel="quarter of [0, Max]")
    panel.set_xticks(positions, ["1st", "2nd", "3rd", "4th"])
axes[0].set_ylabel("share of heads (%)")
axes[2].legend(loc="upper left")
fourth = {"ours": {c: 100 * counted_ours["ceiling"][c][3] for c in MAIN}, "published": {c: printed[c][3] for c in MAIN}}
finding = "; ".join(
    f"{whose}: {against('SM+G', of['SM+G'], 'SM+R', of['SM+R'], '{:.0f} %')}" for whose, of in fourth.items()
)
show_figure(figure, own, finding=f"Heads in the fourth quarter, {finding}.")

# %% [markdown]
# All shares in percent. *Counted* is our count on the published maps, which have two decimals. Under neither convention does it
# reproduce all printed shares; the rest have entries within rounding distance of a boundary.

# %% tags=["remove-input"]
rows = []
for configuration in MAIN:
    for label, values in (
        ("published, printed", np.array(printed[configuration]) / 100),
        ("published, counted, ceiling", counted["ceiling"][configuration]),
        ("published, counted, largest", counted["largest observed"][configuration]),
        ("ours, ceiling", counted_ours["ceiling"][configuration]),
        ("ours, largest", counted_ours["largest observed"][configuration]),
    ):
        rows.append(
            {"configuration": configuration, "Max": label}
            | {q: f"{100 * v:.0f}" for q, v in zip(QUARTERS, values, strict=True)}
        )
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
agree = {
    c: sum(round(100 * v) == p for m in MAIN for v, p in zip(counted[c][m], printed[m], strict=True)) for c in counted
}
on_log = {m: quartile_shares(theirs[m], np.log(128)) for m in MAIN}
log = sum(round(100 * v) == p for m in MAIN for v, p in zip(on_log[m], printed[m], strict=True))
glue(agree_ceiling=str(agree["ceiling"]), agree_largest=str(agree["largest observed"]), agree_log=str(log))
glue(printed_all=str(sum(map(len, printed.values()))))
Markdown(
    f"Counting on the published maps reproduces {agree['ceiling']} of the {sum(map(len, printed.values()))} printed shares with the ceiling "
    f"as Max, and {agree['largest observed']} with the largest entropy observed."
)

# %% [markdown]
# ## Layer by layer over training
#
# Every head starts at the ceiling: at initialisation the scores are so small that attention is uniform. The claim is that the
# {term}`early layers` of the {term}`norm-free` GELU model stay there.

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

# %% tags=["remove-input"]
below = {configuration: leaves_ceiling(own, configuration) for configuration in MAIN}
Markdown(
    "The early layers together first fall below nine tenths of the ceiling: "
    + ", ".join(f"{c} {f'at step {step:.0f}' if np.isfinite(step) else 'never'}" for c, step in below.items())
    + "."
)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
last = {c: 100 * counted_ours["ceiling"][c][3] for c in MAIN}
first = theirs["SM+G"].mean(axis=1)
cut = round(2 * len(first) / 3)
glue(
    **{f"ceiling_{t}": f"{entropy_ceiling(t):.4f}" for t in (128, 256, 512)},
    **{f"early_{name}": f"{early[c]:.2f}" for name, c in NAMES.items()},
    **{f"overload_{name}": f"{last[c]:.0f}" for name, c in NAMES.items()},
    ln_128=f"{np.log(128):.4f}",
    published_early_low=f"{first[:cut].min():.1f}",
    published_early_high=f"{first[:cut].max():.1f}",
    published_late=f"{first[cut:].mean():.1f}",
)
Markdown(
    f"Without LayerNorm, the heads of the early layers have a mean entropy of {early['SM+G']:.2f} of the ceiling with GELU and of "
    f"{early['SM+R']:.2f} with ReLU (published: {published_early['SM+G']:.2f} and {published_early['SM+R']:.2f}), and {last['SM+G']:.0f} % and "
    f"{last['SM+R']:.0f} % of all heads are in the last quarter (published: {printed['SM+G'][3]} % and {printed['SM+R'][3]} %). After few steps "
    "most heads are still near their start at the ceiling, so these shares need long training to compare."
)
