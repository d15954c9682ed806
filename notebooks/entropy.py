# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Entropy

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
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from nfbook.claims import early_layers, interval, late_layers, of_cell, statistics, verdicts
from nfbook.figures import STYLES, entropy_map, maps_over_steps, show_figure, use_style
from nfbook.front import strip
from nfbook.presets import MAIN, PAPER_TOKENS
from nfbook.recorded import recorded_dir
from nfbook.report import (
    NAMES,
    against,
    banner,
    difference,
    early_share,
    estimate,
    final_heads,
    folded,
    glue,
    layer_entropy,
    leaves_ceiling,
    markdown_table,
    overload_course,
    published,
    published_estimate,
    shares_by_convention,
    sources,
    study_runs,
    with_interval,
)
from nfbook.study import Study
from nfcore.shares import QUARTERS, entropy_ceiling, quartile_shares


use_style()
own = next(iter(sources(preset, "main").values()))
context = int(own.runs["data.context"].iloc[0])
ceiling = entropy_ceiling(context)
layers = int(own.runs["model.num_hidden_layers"].iloc[0])
seeds_shown = own.runs["seed"].nunique()
ours = {c: final_heads(own, c) for c in MAIN}
theirs = {name: np.array(values) for name, values in published("head_entropy")["maps"].items()}
early = {c: early_share(ours[c], context) for c in MAIN}
published_early = {c: early_share(theirs[c], 128) for c in MAIN}
counted_ours, counted = shares_by_convention(ours, context), shares_by_convention({c: theirs[c] for c in MAIN}, 128)
printed = published("head_share_percent")["main.png"]
last = {c: 100 * counted_ours["ceiling"][c][3] for c in MAIN}
study = Study.load()
shown = study_runs(study)
frame = statistics(shown, study)
table = verdicts(frame)
table = table[table["id"].isin(["E1", "E2", "E3", "E4"])]


def order(of, form="{:.2f}"):
    """GELU's and ReLU's value with the word for their order."""
    g, r = (form.format(of[c]) for c in ("SM+G", "SM+R"))
    return f"{g} with GELU and {r} with ReLU"


agrees = early["SM+G"] > early["SM+R"], last["SM+G"] > last["SM+R"]
judged = {c: of_cell(frame, c).query("outcome == 'trained'") for c in MAIN}
n = min(map(len, judged.values()))
count = study.cells["SM+G"].experiments[0].model.num_hidden_layers
long_early = {c: runs["early_entropy"].astype(float).mean() for c, runs in judged.items()}
more_even = long_early["SM+G"] > long_early["SM+R"]


def apart_of(other, statistic="early_entropy"):
    """Early entropy of GELU without LayerNorm minus that of another configuration, with its interval."""
    return difference(frame, {"SM+G": 1, other: -1}, statistic, "share")[0]


heads = table.set_index("id").loc["E1"]
overloaded = (
    f"The number of heads that count as overloaded is another matter: GELU's share of them minus ReLU's is {estimate(heads)} in the study, where the "
    f"paper's figures have {published_estimate(heads)}."
)
opening = (
    "**Without LayerNorm, the early attention heads attend "
    f"{'more' if more_even else 'no more'} evenly with GELU than with ReLU in the study's runs.** Over {n} seed{'s' if n > 1 else ''} their entropy is {order(long_early)} of the largest possible, and "
    f"{long_early['SM+LN+G']:.2f} with GELU and LayerNorm. GELU minus ReLU is {apart_of('SM+R')}, and GELU without LayerNorm minus with it "
    f"{apart_of('SM+LN+G')}, or {apart_of('SM+LN+G', 'early_with_bottom')} if the bottom layer counts as early (no test of the list asks these). The paper's maps have {order(published_early)}, and "
    f"{published_early['SM+LN+G']:.2f} with LayerNorm. {overloaded} The tests are {{ref}}`at the end of this page <entropy-seeds>`. *Early* are the first half of the layers without layer 0: "
    f"here layers {' and '.join(map(str, early_layers(count)))} of 0 to {count - 1}."
    if n
    else "The runs of the study are still to be trained; this page shows shorter ones."
)
Markdown(opening)

# %% tags=["remove-input"]
banner(preset, own)

# %% [markdown]
# ## What entropy measures
#
# A {term}`head` compares each token with itself and all earlier ones, and spreads a total weight of one over them. The
# {term}`entropy <head entropy>` of these weights says how widely {eq}`eq-head-entropy`. Equal weights give the largest entropy, the
# {term}`ceiling` {eq}`eq-ceiling`; one weight of one gives zero. The paper calls a head near the ceiling
# {term}`overloaded <overload (entropic)>`: it takes the average of everything and selects nothing {cite}`jha2024relus`.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-rows", "caption": "The weights with which one token, the last one on the axis, attends to itself and to those before it: the head of highest entropy (above) and that of lowest entropy (below) in one model of the first study, GELU without LayerNorm after 600 updates. Dashed: equal weights. The upper head spreads its weight over all tokens; the lower one picks a few."}, "image": {"alt": "Two bar charts of attention weights over the tokens of a line of Python source: one flat, one with a few high bars."}}
example = json.loads((recorded_dir("") / "examples.json").read_text())
tokens = [token.strip().replace("$", r"\$") or "↵" for token in example["tokens"]]
figure, axes = plt.subplots(2, 1, figsize=(5, 4.6), sharex=True)
for panel, (which, row) in zip(axes, example["rows"].items(), strict=True):
    panel.bar(range(len(tokens)), row["weights"], color=STYLES["SM+G"]["color"], label=f"{which} entropy")
    panel.axhline(1 / len(tokens), linestyle="--", color="grey", linewidth=0.8, gid=f"equal weights, {which}")
    panel.set(title=f"{which} entropy: layer {row['layer']}, head {row['head']}", ylabel="attention weight")
    panel.grid(axis="x", visible=False)
axes[1].set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7, family="monospace")
rows = example["rows"]
show_figure(
    figure,
    interactive=False,
    finding=f"This row has an entropy of {rows['highest']['row_entropy']:.2f} nats above and {rows['lowest']['row_entropy']:.2f} below, of {np.log(len(tokens)):.2f} "
    f"possible over {len(tokens)} tokens.",
)

# %% [markdown]
# ## Head by head
#
# The pictures from here to the last section show one run of each model, of the preset that is named above; it is shorter than the runs of the
# study. Each square is one head, in {term}`nats`, on one fixed held-out batch.


# %% tags=["remove-input"]
def four_maps(maps, top, figsize, runs=None, interactive=None):
    figure, axes = plt.subplots(2, 2, figsize=figsize)
    for panel, configuration in zip(axes.flat, MAIN, strict=True):
        image = entropy_map(panel, maps[configuration], configuration, top)
        panel.label_outer()
    lowest = min(float(np.nanmin(maps[c])) for c in MAIN)
    extend = "min" if lowest < top / 2 else "neither"
    figure.colorbar(
        image, ax=axes, label="head entropy (nats)", shrink=0.7, location="bottom", aspect=40, extend=extend
    )
    count = len(maps["SM+G"])
    bottom, first, rest = (
        against("SM+G", np.nanmean(maps["SM+G"][[*part]]), "SM+R", np.nanmean(maps["SM+R"][[*part]]))
        for part in ([0], early_layers(count), late_layers(count))
    )
    finding = f"Mean entropy in nats of layer 0: {bottom}; of the early layers: {first}; of the second half: {rest}."
    show_figure(figure, runs, interactive, finding=finding)


over_steps = {c: own.heads[own.heads["run"].isin(own.where(configuration=c).runs["run"])] for c in MAIN}

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps", "caption": "Entropy of every head of our four main GPT-2 models after training, layers by heads. The colours run from half the ceiling to the ceiling; bright means even attention. Compare layers 1 and 2 of SM+G, SM+R and SM+LN+G. Layer 0 is bright in both models without LayerNorm."}, "image": {"alt": "Four heat maps of attention head entropy, layers by heads, one for each main configuration, measured here."}}
four_maps(ours, ceiling, (5, 5), own, maps_over_steps(over_steps, ceiling))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-maps-published", "caption": "The published entropy of every head (GPT-2, 12 layers of 12 heads), on the same scale. In SM+G most of the first eight layers are bright from side to side."}, "image": {"alt": "Four heat maps of attention head entropy as published, layers by heads, one for each main configuration."}}
four_maps(theirs, entropy_ceiling(128), (5, 5.4))

# %% tags=["remove-input"]
rows = []
for label, maps, highest in (("ours", ours, ceiling), ("published", theirs, entropy_ceiling(128))):
    for configuration in MAIN:
        means = np.nanmean(maps[configuration], axis=1) / highest
        rows.append({"": label, "configuration": configuration} | {f"layer {i}": float(m) for i, m in enumerate(means)})
folded("Layer means over the ceiling", markdown_table(pd.DataFrame(rows), digits=2))

# %% [markdown]
# ## Layer by layer over training
#
# Every head starts at the ceiling: initial scores are so small that attention is uniform. The claim is that the
# {term}`early layers` of the {term}`norm-free` GELU model stay there.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-layers", "caption": "Mean head entropy of each layer over training, from dark (first layer) to light (last). The dashed line is the ceiling. See which layers leave the ceiling, and when; compare SM+G with SM+R."}, "image": {"alt": "Four panels of layer-wise entropy against updates, a line per layer from dark (first) to light (last), below a dashed ceiling."}}
figure, axes = plt.subplots(2, 2, figsize=(5, 4.8), sharey=True, sharex=True)
colors = plt.get_cmap("viridis")(np.linspace(0.25, 0.9, layers))
for panel, configuration in zip(axes.flat, MAIN, strict=True):
    course = layer_entropy(own, configuration)
    for layer in course.columns:
        panel.plot(course.index, course[layer], color=colors[layer], linewidth=1.4, label=f"layer {layer}")
    for layer in {0, 1, layers // 2, layers - 1} & {*course.columns}:
        end = course.index[-1], course[layer].iloc[-1]
        panel.annotate(str(layer), end, xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
    panel.axhline(ceiling, linestyle="--", color="grey", linewidth=0.8, label="ceiling")
    panel.set(title=configuration)
for panel in axes[1]:
    panel.set_xlabel("update")
for panel in axes[:, 0]:
    panel.set_ylabel("entropy (nats)")
show_figure(
    figure,
    own,
    finding=f"At the last update, early layers over the ceiling: {against('SM+G', early['SM+G'], 'SM+R', early['SM+R'])}; "
    f"{against('SM+LN+G', early['SM+LN+G'], 'SM+LN+R', early['SM+LN+R'])}.",
)

# %% tags=["remove-input"]
probe = int(own.runs["training.probe_every"].iloc[0])
below = {configuration: leaves_ceiling(own, configuration) for configuration in MAIN}
words = {c: f"{step:.0f}" if np.isfinite(step) else "never" for c, step in below.items()}
Markdown(
    f"The early layers together are below nine tenths of the ceiling from update {words['SM+G']} (GELU) and {words['SM+R']} (ReLU) on without LayerNorm, "
    f"and from {words['SM+LN+G']} and {words['SM+LN+R']} on with it, in one run each. The first probe below it may be {probe} updates late. The paper's authors "
    "show the course in a plot without numbers ({cite:t}`jha2024aero`, Fig. 12)."
)

# %% [markdown]
# ## How many heads are overloaded?
#
# The paper's first figure counts heads by entropy: the share of heads in each quarter of the range [0, Max] {eq}`eq-quarters`. A
# disproportionate share in the last quarter is {term}`entropic overload <overload (entropic)>`, one in the first
# {term}`entropy collapse <collapse (entropy)>`.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-shares", "caption": "Share of heads in each quarter of [0, Max], with the ceiling for Max: as printed in the paper (hollow) and of one run of ours (filled). The claim is about the fourth quarter of SM+G, against that of SM+R. The tests at the end of the page are on longer runs of several seeds."}, "image": {"alt": "Bars of the share of attention heads per entropy quarter for the four main configurations, published and ours."}}
figure, axes = plt.subplots(2, 2, figsize=(5, 4.4), sharey=True, sharex=True)
positions = np.arange(4)
for panel, configuration in zip(axes.flat, MAIN, strict=True):
    color = STYLES[configuration]["color"]
    panel.bar(positions - 0.2, printed[configuration], 0.4, fill=False, edgecolor=color, label="published")
    panel.bar(positions + 0.2, 100 * counted_ours["ceiling"][configuration], 0.4, color=color, label="ours")
    panel.set(title=configuration)
    panel.set_xticks(positions, ["1st", "2nd", "3rd", "4th"])
for panel in axes[1]:
    panel.set_xlabel("quarter of [0, Max]")
for panel in axes[:, 0]:
    panel.set_ylabel("share of heads (%)")
axes[0, 0].legend(loc="upper left")
fourth = {"ours": last, "published": {c: printed[c][3] for c in MAIN}}
finding = "; ".join(
    f"{whose}: {against('SM+G', of['SM+G'], 'SM+R', of['SM+R'], '{:.0f} %')}" for whose, of in fourth.items()
)
show_figure(figure, own, finding=f"Heads in the fourth quarter, {finding}.")

# %% tags=["remove-input"]
agree = {
    c: sum(round(100 * v) == p for m in MAIN for v, p in zip(counted[c][m], printed[m], strict=True)) for c in counted
}
on_log = {m: quartile_shares(theirs[m], np.log(128)) for m in MAIN}
log = sum(round(100 * v) == p for m in MAIN for v, p in zip(on_log[m], printed[m], strict=True))
glue(agree_ceiling=str(agree["ceiling"]), agree_largest=str(agree["largest observed"]), agree_log=str(log))
glue(printed_all=str(sum(map(len, printed.values()))))
Markdown(
    "We did not see Max defined; the authors' later paper takes the largest entropy observed. Counting on the published maps reproduces "
    f"{agree['ceiling']} of the {sum(map(len, printed.values()))} printed shares with the ceiling as Max, and {agree['largest observed']} with the largest entropy "
    f"observed. A model of ours has {ours['SM+G'].size} heads, so one head is {100 / ours['SM+G'].size:.1f} points. With LayerNorm and GELU, {last['SM+LN+G']:.0f} % of the heads are in the fourth quarter here and "
    f"{printed['SM+LN+G'][3]} % in the paper."
)

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
folded("All shares, in percent, under both conventions", markdown_table(pd.DataFrame(rows)))

# %% [markdown]
# (entropy-seeds)=
# ## Over seeds
#
# The study trains longer, over several {term}`seeds <seed>`, and is the one that judges ([Claims](claims.ipynb)). The early layers leave out layer 0,
# which stands near the ceiling without LayerNorm whatever the activation.

# %% tags=["remove-input"]
WORDS = {
    "SM+LN+G": "with LayerNorm and GELU",
    "SM+LN+R": "with LayerNorm and ReLU",
    "SM+G": "with GELU only",
    "SM+R": "with ReLU only",
}
top = {c: 100 * runs["overload"].astype(float).mean() for c, runs in judged.items()}
Markdown(
    f"In the study's runs the top quarter has {', '.join(f'{share:.0f} % of the heads {WORDS[c]}' for c, share in top.items())} "
    f"(means over {n} seed{'s' if n > 1 else ''}; paper: {', '.join(f'{printed[c][3]} %' for c in MAIN)})."
    if n
    else "None of its runs is trained yet."
)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-overload-course", "caption": "Overloaded heads over training in the runs of the study without LayerNorm. Above: percentage of heads with at least three quarters of the ceiling, GELU minus ReLU, over all layers, with 95 % intervals over seeds, each for itself and uncorrected; above zero GELU has more. Below: the same percentage for each, in the early layers (solid) and in the second half of the layers (dashed), means over seeds. Look at where the upper curve crosses zero, and in which layers ReLU's heads rise."}, "image": {"alt": "Above, a curve with a band that starts above zero and ends below it. Below, four curves of percentages for GELU and ReLU in early and late layers."}}
ids = {c: judged[c]["run"] for c in ("SM+G", "SM+R")}
if n > 1:
    figure, axes = plt.subplots(2, 1, figsize=(5, 5.4), sharex=True)
    courses = {c: 100 * overload_course(shown, ids[c]) for c in ids}
    apart = (courses["SM+G"] - courses["SM+R"]).dropna(axis=1).iloc[1:]
    found = pd.DataFrame([interval(values) for _, values in apart.iterrows()], index=apart.index).dropna()
    axes[0].plot(
        found.index,
        found["estimate"],
        "o-",
        markersize=3,
        linewidth=1.2,
        color=STYLES["SM+G"]["color"],
        label="GELU minus ReLU",
    )
    axes[0].vlines(
        found.index,
        found["low"],
        found["high"],
        linewidth=1,
        color=STYLES["SM+G"]["color"],
        gid="GELU minus ReLU, interval",
    )
    axes[0].axhline(0, color="black", linewidth=0.6)
    axes[0].set(title="overloaded heads, GELU minus ReLU (points)")
    for c, name in (("SM+G", "GELU"), ("SM+R", "ReLU")):
        for part, line, words in ((early_layers, "-", "early"), (late_layers, "--", "second half")):
            share = 100 * overload_course(shown, ids[c], part(count)).iloc[1:].mean(axis=1)
            axes[1].plot(
                share.index, share, linestyle=line, linewidth=1.2, color=STYLES[c]["color"], label=f"{name}, {words}"
            )
    axes[1].set(title="overloaded heads (%)", xlabel="update")
    axes[1].legend(fontsize=7)
    ends_at = [(step, found.loc[step]) for step in (found.index[found.index <= 600].max(), found.index[-1])]
    show_figure(
        figure,
        shown.select([*ids["SM+G"], *ids["SM+R"]]),
        interactive=False,
        finding="GELU minus ReLU is "
        + " and ".join(
            f"{with_interval('points', *row[['estimate', 'low', 'high']])} at update {step:,}" for step, row in ends_at
        )
        + f" (n = {apart.shape[1]}).",
    )

# %% [markdown]
# How do the layers compare with the published ones, also where the feed-forward network is linear or learns the slope of its activation?

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-profiles", "caption": "Mean head entropy over its ceiling by depth, after the last update: the published maps, and ours as means over n seeds. SM and SM+LN have a linear feed-forward network. Learnable slopes belong to models without LayerNorm, and start from the value named. Runs of the first study end in a transient and stand in where the study has none yet. Compare the shape of a configuration's line with the published one."}, "image": {"alt": "Panels of lines over the depth of a model, one line a configuration: published, ours, and models with learnable slopes."}}
first_study = Study.load("transient")
first_runs = study_runs(first_study)
made = {}
for words, of, runs_of in (("study", study, shown), ("first study", first_study, first_runs)):
    run = of.cells["SM+G"].experiments[0]
    tokens = run.training.steps * run.training.batch_size * run.data.context
    made[f"{words}, {tokens / 1e6:.1f} M tokens"] = of, runs_of, statistics(runs_of, of)
published_runs = f"published, {PAPER_TOKENS / 1e6:,.0f} M tokens"
newest, older = made
WITHOUT = ("SM+LN", "SM")


def learned(where):
    """The cells of a study whose models learn a slope."""
    return [name for name in made[where][0].cells if name.startswith("slope ")]


def profile(where, cell):
    """Mean entropy over the ceiling by layer, over the trained runs of a cell, and their number."""
    _, runs_of, statistic = made[where]
    ids = of_cell(statistic, cell).query("outcome == 'trained'")["run"]
    heads = runs_of.heads[runs_of.heads["run"].isin(ids)]
    heads = heads[heads["step"] == heads.groupby("run")["step"].transform("max")]
    return heads.groupby("layer")["entropy"].mean() / entropy_ceiling(128), len(ids)


paper = {name: pd.Series(np.nanmean(maps, axis=1)) / entropy_ceiling(128) for name, maps in theirs.items()}
panels = {published_runs: {name: (paper[name], 1) for name in (*MAIN, *WITHOUT)}}
for where in made:
    panels[where] = {name: profile(where, name) for name in (*MAIN, *WITHOUT)}
    panels[f"learnable slopes, {where}"] = {name: profile(where, name) for name in (*learned(where), "SM+R")}
complete = [where for where, curves in panels.items() if all(n for _, n in curves.values())]
chosen = dict.fromkeys([published_runs, newest, *complete])
for kind in ("", "learnable slopes, "):
    if kind + newest in complete:  # what the study has in full, the first one need not show
        chosen.pop(kind + older, None)
figure, axes = plt.subplots(len(chosen), 1, figsize=(5, 2.3 * len(chosen)), sharex=True, squeeze=False)
for panel, where in zip(axes[:, 0], chosen, strict=True):
    for number, (name, (curve, n)) in enumerate(panels[where].items()):
        if not n:
            continue
        style = STYLES.get(name) or dict(color=plt.get_cmap("viridis")(number / 6), marker=".")
        label = f"{name.removeprefix('slope ')} (n = {n})"
        panel.plot(curve.index / curve.index.max(), curve, markersize=4, linewidth=1.2, label=label, **style)
    slopes = where.startswith("learnable")
    panel.set(title=where, ylabel="entropy / ceiling", ylim=(0.35 if slopes else -0.03, 1.03))
    panel.legend(fontsize=6, ncols=2, loc="lower left")
axes[-1, 0].set_xlabel("depth (0: first layer, 1: last)")
of_maps = [where for where in chosen if not where.startswith("learnable") and where in complete]
finding = "; ".join(
    f"{where}: " + " and ".join(f"{panels[where][name][0].mean():.2f} ({name})" for name in WITHOUT)
    for where in of_maps
)
show_figure(
    figure,
    shown.select(dict.fromkeys(run for name in MAIN for run in of_cell(frame, name)["run"])),
    interactive=False,
    finding=f"Mean over all layers, {finding}.",
)

# %% tags=["remove-input"]
strip({"": table})

# %% [markdown]
# {glue:text}`claims.ipynb::overload_said:s` So the verdict on the number of overloaded heads holds for the length of these runs. The third test compares
# early with late layers. In GELU alone early minus late is {glue:text}`claims.ipynb::early_late_g:s` of the ceiling, in ReLU
# {glue:text}`claims.ipynb::early_late_r:s`. On the published maps GELU's late layers stand higher than ReLU's.

# %% tags=["remove-input"]
parts = {
    words: difference(frame, {"SM+G": 1, "SM+R": -1}, statistic, "share")
    for statistic, words in (("early_entropy", "early layers"), ("late_entropy", "second half of the layers"))
}
Markdown(
    "GELU minus ReLU, of the ceiling: "
    + "; ".join(f"{text} in the {words} (n = {n})" for words, (text, n) in parts.items())
    + ". The third test adds up both."
)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
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
    f"Without LayerNorm, early heads attend {'more' if more_even else 'no more'} evenly with GELU than with ReLU, {long_early['SM+G']:.2f} against "
    f"{long_early['SM+R']:.2f} of the ceiling over {n} seed{'s' if n > 1 else ''}, {'as' if more_even else 'unlike'} in the paper; with LayerNorm and GELU it is "
    f"{long_early['SM+LN+G']:.2f}, and there the paper has {published_early['SM+LN+G']:.2f}. {overloaded}"
    if n
    else "The study decides how evenly heads attend, and is still to be trained."
)
