# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learnable slopes and instability

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
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from nfbook.claims import decay_sum, interval, of_cell, read_ledger, statistics, verdicts
from nfbook.figures import STYLES, show_figure, use_style
from nfbook.front import strip
from nfbook.presets import FAMILIES, PAPER_TOKENS, Preset
from nfbook.recorded import together
from nfbook.report import (
    banner,
    folded,
    glue,
    markdown_table,
    published,
    sources,
    study_runs,
    with_interval,
)
from nfbook.study import Study
from nfcore.shares import entropy_ceiling


use_style()
slopes, stability = (next(iter(sources(preset, name).values())) for name in ("slopes", "instability"))
study = Study.load()
long = study_runs(study)
frame = statistics(long, study)
count = study.cells["SM+G"].experiments[0].model.num_hidden_layers
table = verdicts(frame)
table = table[table["family"].isin(["slopes", "instability"])]
learned = [name for name in study.cells if name.startswith("slope ")]


def spread(values):
    """The smallest and the largest of some whole numbers."""
    if not len(values):
        return "never"
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def decayed(run, runs):
    """Where weight decay alone, with no gradient, takes a slope of one of these runs by its end."""
    metrics = runs.metrics[runs.metrics["run"] == run["run"]]
    return run["model.negative_slope"] * math.exp(-decay_sum(run, metrics))


def mean_slope(values):
    """The mean of slopes, one a seed, with its interval."""
    found = interval(values.astype(float))
    return with_interval("slope", found["estimate"], found["low"], found["high"])


def draw_slopes(runs):
    """The slopes of four runs over training, a panel each."""
    figure, axes = plt.subplots(2, 2, figsize=(5, 4.8), sharey=True, sharex=True)
    for panel, (_, run) in zip(axes.flat, runs.runs.iterrows(), strict=True):
        course = runs.layers[runs.layers["run"] == run["run"]].pivot(index="step", columns="layer", values="slope")
        shared = run["model.slope_sharing"] == "shared"
        shades = plt.get_cmap("viridis")(np.linspace(0.25, 0.9, len(course.columns)))
        for layer in course.columns[:1] if shared else course.columns:
            color = STYLES["SM+R"]["color"] if shared else shades[layer]
            label = "all layers" if shared else f"layer {layer}"
            panel.plot(course.index, course[layer], linewidth=1.4, color=color, label=label)
        panel.axhline(run["model.negative_slope"], linestyle=":", color="grey", linewidth=0.8, label="start")
        panel.axhline(decayed(run, runs), linestyle="--", color="grey", linewidth=0.8, label="decay alone")
        panel.axhline(0, color="black", linewidth=0.6)
        sharing, decay = "shared" if shared else "per layer", run["training.slope_weight_decay"]
        panel.set_title(f"{sharing}, decay {decay:g}, from {run['model.negative_slope']:g}", fontsize=8)
    for panel in axes[1]:
        panel.set_xlabel("update")
    for panel in axes[:, 0]:
        panel.set_ylabel("negative slope")
    return figure


ends = slopes.layers[slopes.layers["step"] == slopes.layers.groupby("run")["step"].transform("max")]
settings = ["run", "model.negative_slope", "model.slope_sharing", "training.slope_weight_decay"]
ends = ends.merge(slopes.runs[settings], on="run")
ends = ends[(ends["model.slope_sharing"] != "shared") | (ends["layer"] == 0)]  # a shared slope is one
ends["nearer"] = ends["slope"].abs() < ends["model.negative_slope"]
free, with_decay = (ends[(ends["training.slope_weight_decay"] > 0) == decays] for decays in (False, True))
bad = stability.runs[stability.runs["status"] == "diverged"]
base = stability.runs["training.learning_rate"].min()
elsewhere = next(iter(sources(preset, "table").values())).runs
elsewhere = elsewhere[elsewhere["status"] == "diverged"]
first_study = Study.load("transient")
first_runs = first_study.runs()
free_runs = of_cell(statistics(first_runs, first_study), "slope 0.25, no decay").dropna(subset=["slope"])
by_itself_of = free_runs["slope"]
found = interval(by_itself_of.astype(float))
by_itself = mean_slope(by_itself_of)
margin = next(test["least"] for test in read_ledger()["tests"] if test["id"] == "S4")
near = max(abs(found["inner_low"]), abs(found["inner_high"])) <= margin
bottom = first_runs.layers
bottom = bottom[bottom["run"].isin(free_runs["run"]) & (bottom["layer"] == 0)]
bottom = bottom[bottom["step"] == bottom["step"].max()]["slope"]
untrained = int((slopes.runs["eval_loss"] >= slopes.runs["provenance.unigram_loss"]).sum())
in_study = all(name in frame.index for name in learned)
headline = ""
if in_study:
    long_ends = long.layers[long.layers["run"].isin(frame.loc[learned, "run"])]
    long_ends = long_ends[long_ends["step"] == long_ends.groupby("run")["step"].transform("max")]["slope"]
    means = [of_cell(frame, name)["slope"].astype(float).mean() for name in learned]
    seeds_of = min(len(of_cell(frame, name)) for name in learned)
    headline = (
        f"**Learnable slopes {'end near zero' if np.abs(means).max() <= margin else 'do not all end near zero'}, from either start, with and without weight decay.** In runs of "
        f"{study.cells[learned[0]].experiments[0].training.steps:,} updates ({seeds_of} seed{'s' * (seeds_of > 1)}) the means over layers end between {min(means):+.3f} and {max(means):+.3f} (near: within {margin:g}), and single "
        f"layers between {long_ends.min():+.3f} and {long_ends.max():+.3f}. "
    )
Markdown(
    headline
    + f"In the first study, in runs of 600 updates that end in a {{term}}`transient`, slopes that start at 0.25 without decay fall to {by_itself} (mean over layers, 95 % interval over {len(by_itself_of)} seeds). "
    f"That is {'within' if near else 'not shown to be within'} {margin:g} of ReLU's zero, a margin fixed after these runs"
    + (", and above zero" if found["low"] > 0 else "")
    + f". The bottom layer ends at {bottom.min():.2f} to {bottom.max():.2f}. In the still shorter runs of this page, of one seed, {free['nearer'].sum()} of "
    f"{len(free)} slopes that start at {free['model.negative_slope'].max():g} without decay end nearer to zero than they began. Of those that start at "
    f"{with_decay['model.negative_slope'].max():g} with decay, {len(with_decay) - with_decay['nearer'].sum()} of {len(with_decay)} end further from zero"
    + (
        ". "
        if with_decay["nearer"].all()
        else f", at up to {with_decay['slope'].abs().max():.3f}, so early in training slopes leave zero too. "
    )
    + (
        f"{untrained} of these {len(slopes.runs)} runs end{'s' * (untrained == 1)} no better than token frequencies, so {'its' if untrained == 1 else 'their'} slopes say little. "
        if untrained
        else ""
    )
    + f"{len(bad)} of {len(stability.runs)} runs without LayerNorm diverged"
    + (
        f", all at {bad['training.learning_rate'].min() / base:g} times the preset's learning rate."
        if len(bad) and bad["training.learning_rate"].min() > base
        else "."
    )
    + (
        " In the longer runs of [Perplexity](perplexity.ipynb) at the preset's rate these diverged: "
        + ", ".join(
            f"{FAMILIES[r['model.family']]} {r['configuration']} at update {r['diverged.step']:.0f}"
            for _, r in elsewhere.iterrows()
        )
        + "."
        if len(elsewhere)
        else ""
    )
    + (
        " The longer study has not judged either claim yet."
        if table["verdict"].isin(["no runs", "undecided"]).all()
        else ""
    )
)

# %% tags=["remove-input"]
banner(preset, together([slopes, stability]))

# %% [markdown]
# ## Learnable negative slopes
#
# A {term}`leaky ReLU <leaky ReLU slope>` has a slope for negative inputs. If the model may learn it, does it choose ReLU's zero? The paper's
# authors report in a later paper that the slopes go to zero {cite}`jha2024aero`. They start from 0.01 and have weight decay 0.1
# {cite}`jha2024code`, which alone moves them towards zero {eq}`eq-slope-decay`. So we train both, with that decay from 0.01 and without any from
# 0.25, and with one slope for each layer or one for all.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-slopes", "caption": "Negative slopes over training on one scale, a line for each layer, or one line where all layers share the slope. Dotted: the start. Dashed: where weight decay alone would take it. Watch the distance to zero, which is ReLU."}, "image": {"alt": "Four panels of learned negative slopes against updates on one scale, with zero marked."}}
first_seed = slopes.runs[slopes.runs["seed"] == slopes.runs["seed"].iloc[0]]["run"]
figure = draw_slopes(slopes.select(first_seed))
nearer = int((ends["slope"].abs() < ends["model.negative_slope"]).sum())
show_figure(
    figure,
    slopes,
    finding=f"{nearer} of {len(ends)} slopes end nearer to zero than they began; the smallest ends at {ends['slope'].min():.3f}, the largest at {ends['slope'].max():.3f}.",
)

# %% tags=["remove-input"]
paper = Preset.load("paper").experiment("gpt2", "SM+R", "main", seed=0)
paper_updates = PAPER_TOKENS / paper.training.batch_size / paper.data.context
# Linear warm-up from zero and linear decay to zero: half the peak rate on average.
decay = paper.training.weight_decay * paper.training.learning_rate * paper_updates / 2
glue(paper_decay_factor=f"{math.exp(-decay):.2f}", paper_decay_end=f"{0.01 * math.exp(-decay):.3f}")
Markdown(
    "The published figure has no numbers ({cite:t}`jha2024aero`, first version, Fig. 4). It shows slopes that fall from 0.01 towards zero, with decay. In the paper's "
    f"schedule decay alone multiplies a slope by {math.exp(-decay):.2f} and takes 0.01 to {0.01 * math.exp(-decay):.3f}. So such a fall needs no preference for ReLU. "
    "Longer runs with and without decay are below, and on [Confounds](confounds.ipynb) those of the first study."
)

# %% tags=["remove-input"]
rows = []
for _, run in slopes.runs.iterrows():
    end = ends[ends["run"] == run["run"]]["slope"]
    rows.append(
        {
            "sharing": run["model.slope_sharing"],
            "seed": run["seed"],
            "start": f"{run['model.negative_slope']:g}",
            "decay": f"{run['training.slope_weight_decay']:g}",
            "smallest, end": f"{end.min():.4f}",
            "largest, end": f"{end.max():.4f}",
            "decay alone": f"{decayed(run, slopes):.4f}",
            "perplexity": run["perplexity"],
        }
    )
losses = slopes.metrics[slopes.metrics["name"] == "eval_loss"].merge(slopes.runs[settings], on="run")
perplexity = np.exp(losses.set_index(["model.negative_slope", "step"])["value"]).sort_index()
low, high = perplexity.index.levels[0][[0, -1]]
half, end = perplexity.index.levels[1][-2:]


def reached(start, step):
    """The perplexities at a step of the runs with this start."""
    return f"{perplexity[start, step].min():.0f} to {perplexity[start, step].max():.0f}"


Markdown(
    f"The two starts differ in perplexity too: the runs from {low:g} end at {reached(low, end)}, those from {high:g} at {reached(high, end)}. At "
    f"update {half:.0f} they were at {reached(low, half)} and {reached(high, half)}, where guessing by token frequencies gives "
    f"{math.exp(slopes.runs['provenance.unigram_loss'].iloc[0]):.0f}. They differ in start and in decay, so we cannot say which does it.\n\n"
    + folded("Every run", markdown_table(pd.DataFrame(rows), digits=2)).data
)

# %% [markdown]
# ### In longer runs
#
# The study trains a slope for each layer as long as the runs behind the paper's first table, from the same two starts, each with and without decay.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-study-slopes", "caption": "Negative slopes over training in the study's runs of its first seed, a line for each layer. Dotted: the start. Dashed: where weight decay alone would take it. Watch whether a slope stays near zero once it is there, and which layer does not."}, "image": {"alt": "Four panels of learned negative slopes against updates on one scale, with zero marked."}}
if in_study:
    chosen = long.select(of_cell(frame, name)["run"].iloc[0] for name in learned)
    ends_of = {name: of_cell(frame, name)["slope"] for name in learned}
    finding = "Mean over layers at the end: " + ", ".join(
        f"{mean_slope(values)} ({name.removeprefix('slope ')}, n = {len(values)})" for name, values in ends_of.items()
    )
    show_figure(draw_slopes(chosen), chosen, finding=finding + ".")
else:
    display(Markdown("*These runs are still to be trained.*"))

# %% [markdown]
# ## Which models diverge?
#
# A run with a value that is not finite ends there; its step and the first layer with such a value are its result. An
# {term}`exploded gradient` is another event: it is clipped, and the run goes on. The paper reports final perplexities of SM+R and SM+G
# {cite}`jha2024relus`, a later paper NaNs for SM {cite}`jha2025entropy`, and a plot script is named after NaNs at a leaky slope of 0.1
# {cite}`jha2024code`. Those runs used float16 and two billion tokens; no run here has both.


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-instability", "caption": "Largest absolute attention score over all heads at the last probe of each run, at the preset's learning rate (filled) and at ten times that (hollow). A run that diverged says so in its row instead. Compare rows, and mind that the axis is logarithmic."}, "image": {"alt": "A row for each configuration without LayerNorm, with a filled point for the preset's learning rate and a hollow one for ten times that, on a logarithmic axis."}}
def outcome(run):
    """How far a run came, and where it diverged."""
    if run["status"] != "diverged":
        return f"{int(run['step'])} updates"
    head = run["diverged.layer"] == run["model.num_hidden_layers"]
    place = "head" if head else f"layer {int(run['diverged.layer'])}"
    where = run["diverged.where"] if run["diverged.where"] == "evaluation" else f"{run['diverged.where']} pass"
    return f"diverged at update {int(run['diverged.step'])}, {place}, {where}"


kinds = {}  # of each row its runs: configuration, and precision where it is not the common one
for _, run in stability.runs.iterrows():
    low = run["model.residual_dtype"] != stability.runs["model.residual_dtype"].iloc[0]
    kinds.setdefault(run["configuration"] + (f", {run['model.residual_dtype']}" if low else ""), []).append(run)
figure, panel = plt.subplots(figsize=(5, 0.9 + 0.42 * len(kinds)))
scores, stopped = {}, []
for row, (name, runs_of) in enumerate(kinds.items()):
    for run in runs_of:
        high = run["training.learning_rate"] > base
        words = f"{name}, rate {run['training.learning_rate']:g}"
        if run["status"] == "diverged":
            stopped.append(f"{words}, at update {int(run['diverged.step'])}")
            said = f"rate {run['training.learning_rate']:g}: diverged at update {int(run['diverged.step'])}"
            panel.annotate(said, (0.01, row + 0.25), xycoords=("axes fraction", "data"), va="center", fontsize=7)
            continue
        heads = stability.heads[stability.heads["run"] == run["run"]]
        last = heads[heads["step"] == heads["step"].max()]
        peak = last.loc[last["largest_logit"].idxmax()]
        scores[words] = float(peak["largest_logit"])
        if scores[words] == max(scores.values()):
            highest = {"run": run, "step": peak["step"], "layer": peak["layer"]}
        style = STYLES[run["configuration"]]
        full = "none" if high else "full"
        panel.plot(scores[words], row, style["marker"], color=style["color"], fillstyle=full, markersize=6, gid=words)
panel.set_ylim(-0.6, len(kinds) - 0.4)
panel.set_yticks(range(len(kinds)), list(kinds), fontsize=8)
panel.invert_yaxis()
panel.set(xscale="log", xlabel="largest |attention score|")
most = max(scores, key=scores.get)
finding = f"The largest score at a last probe is {float(f'{scores[most]:.3g}'):,g} ({most}). "
finding += f"Diverged: {'; '.join(stopped)}." if stopped else f"No run of {len(stability.runs)} diverged."
show_figure(figure, stability, interactive=False, finding=finding)

# %% tags=["remove-input"]
rows = []
for _, run in stability.runs.iterrows():
    heads = stability.heads[stability.heads["run"] == run["run"]]
    losses = stability.metrics[(stability.metrics["run"] == run["run"]) & (stability.metrics["name"] == "train_loss")]
    rows.append(
        {
            "configuration": run["configuration"],
            "learning rate": f"{run['training.learning_rate']:g}",
            "precision": run.get("provenance.precision", run["training.precision"]),
            "residual": run["model.residual_dtype"],
            "outcome": outcome(run),
            "largest score at any probe": heads["largest_logit"].max(),
            "last training loss": losses["value"].iloc[-1],
        }
    )
run = highest["run"]
there = stability.heads[(stability.heads["run"] == run["run"]) & (stability.heads["step"] == highest["step"])]
there = there[there["layer"] == highest["layer"]]
layer = stability.layers[(stability.layers["run"] == run["run"]) & (stability.layers["step"] == highest["step"])]
size = layer.loc[layer["layer"] == highest["layer"], "residual_rms"].iloc[0]
Markdown(
    f"The largest score is in layer {highest['layer']:.0f}, where the root mean square of the residual stream is {size:.0f}: without LayerNorm the inputs of "
    f"queries and keys are not normalised. No run with LayerNorm was made at the higher rate. The entropy of the heads there is {there['entropy'].mean() / entropy_ceiling(int(run['data.context'])):.2f} of the ceiling. "
    f"The evaluation loss of that run ends at {run['eval_loss']:.2f}, and guessing by token frequencies gives {run['provenance.unigram_loss']:.2f}.\n\n"
    + folded("Every run", markdown_table(pd.DataFrame(rows), digits=2)).data
)

# %% [markdown]
# ### A run that goes on
#
# The paper's training scales its loss for float16 and leaves out updates whose gradients are not finite. So a run goes on after a NaN, and the public code
# counts NaNs in the attention of each layer {cite}`jha2024code`. The stage `skips` of the study leaves out such updates too (`on_nonfinite: skip`), at ten times the
# rate. But it has no loss scaler, which could lower its scale: a run that is stuck here might go on there. It counts rows of attention that are not finite, on the
# probe batch, at every tenth update. In half of its runs the {term}`residual stream` is held in float16, as in the public code; products are computed in
# bfloat16 or float32. No run of it has LayerNorm.

# %% tags=["remove-input"]
rows, every, left_of = [], [], {}
for cell in (cell for cell in study.cells.values() if cell.stage == "skips"):
    runs_of = long.runs[long.runs["run"].isin(of_cell(frame, cell.name)["run"])]
    if runs_of.empty:
        continue
    ids = runs_of["run"]
    norms = long.metrics[long.metrics["run"].isin(ids) & (long.metrics["name"] == "grad_norm")]
    left_out = norms.assign(bad=~np.isfinite(norms["value"])).groupby("run")["bad"].sum()
    heads = long.heads[long.heads["run"].isin(ids)]
    every.append(heads.assign(configuration=cell.configuration, stream=cell.experiments[0].model.residual_dtype))
    left_of.setdefault(cell.experiments[0].model.residual_dtype, []).append(left_out)
    first_bad = runs_of[["diverged.step", "diverged.layer"]].dropna().astype(int)
    rows.append(
        {
            "configuration": cell.configuration,
            "stream": cell.experiments[0].model.residual_dtype,
            "n": len(runs_of),
            "first bad update": spread(first_bad["diverged.step"]),
            "in layer": spread(first_bad["diverged.layer"]),
            f"updates left out, of {cell.experiments[0].training.steps}": spread(left_out),
            "largest score at the end": f"{heads[heads['step'] == heads['step'].max()]['largest_logit'].max():.2g}",
            "rows of attention not finite": int(heads["nonfinite_rows"].sum()),
        }
    )
if rows:
    updates = cell.experiments[0].training.steps
    counted = pd.concat(every)
    only_in_half = (
        counted.loc[counted["stream"] == "float32", "nonfinite_rows"].sum() == 0 < counted["nonfinite_rows"].sum()
    )
    bad_rows = int(counted["nonfinite_rows"].sum())
    per_run = counted[counted["stream"] == "float16"].groupby("run")["nonfinite_rows"].sum()
    clean = int((per_run == 0).sum())
    left = " and ".join(f"{spread(pd.concat(of))} with a stream in {kind}" for kind, of in left_of.items())
    display(
        Markdown(
            f"After the first bad update nearly every further one is left out (of {updates}: {left}), and the model stays as it is. "
            + (
                "Rows of attention that are not finite appear only where the stream is in float16, whose largest number is 65,504. With a stream "
                f"in float32 gradients are not finite and attention is. {clean} of {per_run.size} runs with a float16 stream have no such row either. "
                "Scores in float16, which the paper's code multiplies before it scales them "
                "([Traps](../traps.md)), are not tested here."
                if only_in_half
                else f"In all, {bad_rows:,} rows of attention are not finite."
            )
        )
    )
    display(folded(f"Runs that go on; layer {count} is the head", markdown_table(pd.DataFrame(rows))))
else:
    display(Markdown("*The stage `skips` is still to be trained.*"))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-nans", "caption": "Percentage of the rows of attention that are not finite, by layer and update, in runs that go on with a residual stream in float16: means over heads and three seeds, some of which have none. Look in which layers it is above zero, and that it stays as it is once updates are left out."}, "image": {"alt": "Four panels, one a configuration without LayerNorm, with a line for each layer over sixty updates; lines of higher layers jump up within the first ten updates and stay level."}}
if rows:
    half = counted[counted["stream"] == "float16"]
    whole = (
        long.runs.loc[long.runs["run"].isin(half["run"]), ["training.probe_sequences", "data.context"]]
        .prod(axis=1)
        .iloc[0]
    )
    figure, axes = plt.subplots(2, 2, figsize=(5, 4.6), sharex=True, sharey=True)
    colors = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, count))
    ends_at = {}
    for panel, (configuration, heads) in zip(axes.flat, half.groupby("configuration", sort=False), strict=True):
        course = 100 * heads.groupby(["step", "layer"])["nonfinite_rows"].mean().unstack() / whole
        for layer in course.columns:
            panel.plot(course.index, course[layer], color=colors[layer], linewidth=1.3, label=f"layer {layer}")
        panel.set_title(configuration)
        ends_at[configuration] = course.iloc[-1].max()
    for panel in axes[1]:
        panel.set_xlabel("update")
    for panel in axes[:, 0]:
        panel.set_ylabel("rows not finite (%)")
    axes[0, 0].legend(fontsize=6)
    finding = (
        "At the end, in the layer with most: "
        + ", ".join(f"{share:.0f} % ({name})" for name, share in ends_at.items())
        + "."
    )
    show_figure(figure, long.select(half["run"].unique()), interactive=False, finding=finding)

# %% tags=["remove-input"]
numbers = published("perplexity")
Markdown(
    "Published: "
    + ", ".join(f"{name} ends at perplexity {numbers['GPT2_T128'][name][0]:.3f}" for name in ("SM+G", "SM+R"))
    + f"; SM: {numbers['GPT2_T128_softmax_only']['SM']}. A claim that one configuration diverges *sooner* needs times over several seeds and a control; "
    "[Confounds](confounds.ipynb) shows those of the first study, and the study behind [Claims](claims.ipynb) has these tests:"
)

# %% tags=["remove-input"]
strip({"": table})

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"Weight decay alone would take the paper's slopes from 0.01 to {0.01 * math.exp(-decay):.3f}, so only runs without decay can say what training prefers; there, "
    f"slopes from 0.25 fall to {by_itself} in the first study's short runs"
    + (f", and to {mean_slope(ends_of['slope 0.25, no decay'])} in long ones." if in_study else ".")
)
