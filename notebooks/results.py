# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One preset against the paper
#
# All experiments of one preset at a glance, claim by claim, next to the published results {cite}`jha2024relus`. Unless more seeds are given,
# these runs have one seed; [Claims](claims.ipynb) explains the claims and has the verdicts.

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

from nfbook.claims import statistics, verdicts
from nfbook.figures import STYLES, direct_labels, show_figure, use_style
from nfbook.front import hero
from nfbook.presets import EXPERIMENTS, MAIN
from nfbook.report import (
    MARKED,
    against,
    banner,
    early_share,
    final_heads,
    glue,
    leaves_ceiling,
    markdown_table,
    perplexities,
    published,
    relative_change,
    said,
    shares_by_convention,
    sources,
    study_runs,
    with_interval,
)
from nfbook.study import Study
from nfcore.shares import entropy_ceiling


SIZES = ("model.hidden_size", "model.num_hidden_layers", "provenance.tokens")
use_style()
shown = {name: sources(preset, name) for name in EXPERIMENTS}
wheres = [where for where in shown["main"] if all(where in of for of in shown.values())]
own = {name: of[wheres[0]] for name, of in shown.items()}
main = own["main"]
width, layers, tokens = (main.runs[name].iloc[0] for name in SIZES)
glue(
    hero=hero(main),
    hero_runs=f"preset {preset.preset}, seed {main.runs['seed'].iloc[0]}: width {width}, {layers} layers, {tokens / 1e6:.1f} M tokens",
)
banner(preset, main)

# %% [markdown]
# ## The main picture

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-main", "caption": "The four main GPT-2 configurations, our runs at their last step. Left: perplexity on held-out files. Right: mean head entropy of each layer over the causal ceiling, on the fixed probe batch."}, "image": {"alt": "Left, bars of the final perplexity of SM+LN+G, SM+LN+R, SM+G and SM+R. Right, a line for each of them: layer-wise attention entropy as a share of its ceiling, from the first layer to the last."}}
context = int(main.runs["data.context"].iloc[0])
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[2, 3])
final = perplexities(main).droplevel(["model.family", "data.context"])
for position, configuration in enumerate(MAIN):
    value = final[configuration]
    left.bar(position, value, color=STYLES[configuration]["color"], width=0.6, label=configuration)
    label = "diverged" if np.isnan(value) else f"{value:.2f}"
    left.annotate(label, (position, 0 if np.isnan(value) else value), ha="center", va="bottom", fontsize=8)
    profile = np.nanmean(final_heads(main, configuration), axis=1) / entropy_ceiling(context)
    right.plot(range(len(profile)), profile, label=configuration, markersize=4, linewidth=1.2, **STYLES[configuration])
left.set_xticks(range(len(MAIN)), MAIN, fontsize=8)
left.grid(axis="x")
left.set(title="(a)", ylabel="final perplexity")
right.set_xticks(range(len(profile)))
right.set(title="(b)", xlabel="layer", ylabel="entropy / ceiling")
right.axhline(1, color="grey", linestyle="--", linewidth=0.8, gid="ceiling")
direct_labels(right)
seeds_of = {c: main.where(configuration=c).runs["perplexity"].astype(float) for c in MAIN}
early = {c: early_share(final_heads(main, c), context) for c in MAIN}
show_figure(
    figure,
    main,
    finding=f"Perplexity without LayerNorm is {against('SM+R', seeds_of['SM+R'], 'SM+G', seeds_of['SM+G'])}; entropy of the early "
    f"layers over the ceiling is {against('SM+R', early['SM+R'], 'SM+G', early['SM+G'])}.",
    preview=True,
)

# %% [markdown]
# ## Claim by claim
#
# *Direction* compares only signs, of our first column of results with the published statement: `same`, `opposite`, `equal` (at the
# printed precision) or `-` (nothing comparable, for example runs of different length). It is no verdict: the published numbers have one
# seed, and so have ours unless more are given. *Study* has the estimate over seeds that [Claims](claims.ipynb) judges, and its verdict.

# %% tags=["remove-input"]
paper = published("perplexity")
paper_maps = {c: np.array(published("head_entropy")["maps"][c]) for c in MAIN}
printed = published("head_share_percent")["main.png"]


def change(runs, family, context, configuration, base):
    """Change of perplexity against `base` in percent, and the updates; NaN where the two differ in updates."""
    steps = runs.runs.set_index(["model.family", "data.context", "configuration"])["step"]
    ours, theirs = (steps.loc[[(family, context, c)]].max() for c in (configuration, base))
    values = perplexities(runs)
    same = ours == theirs
    value = relative_change(values[(family, context, configuration)], values[(family, context, base)])
    return (value if same else float("nan")), (f"{ours}" if same else f"{ours} and {theirs}")


def compared_with(higher, lower):
    """Direction of a result whose published counterpart has `higher` above `lower`."""
    if np.isnan(higher) or np.isnan(lower):
        return "-"
    return "equal" if higher == lower else "same" if higher > lower else "opposite"


def percent(value, published_value):
    if np.isnan(value):
        return "-", "-"
    direction = "equal" if abs(value) < 0.05 else "same" if value * published_value > 0 else "opposite"
    return f"{value:+.1f} %", direction


def slope_ends(runs, decay):
    """Initial slope, mean final slope and the share of slopes nearer to zero than their start."""
    chosen = runs.runs[(runs.runs["training.slope_weight_decay"] > 0) == decay]
    finite = chosen.loc[chosen["status"] == "complete", ["run", "model.negative_slope"]]
    ends = runs.layers.merge(finite, on="run")
    ends = ends[ends["step"] == ends.groupby("run")["step"].transform("max")]
    nearer = ends["slope"].abs() < ends["model.negative_slope"]
    return chosen["model.negative_slope"].iloc[0], ends["slope"].mean(), nearer.mean()


def outcome(runs, configuration):
    """What became of a configuration at each learning rate, and whether one run diverged."""
    chosen = runs.runs[runs.runs["configuration"] == configuration].sort_values("training.learning_rate")
    bad = chosen["status"] == "diverged"
    words = [
        f"rate {run['training.learning_rate']:g}: "
        + (f"diverged at step {int(run['diverged.step'])}" if run["status"] == "diverged" else "finite")
        for _, run in chosen.iterrows()
    ]
    return "; ".join(words), "same" if bad.any() else "not seen", f"{int(runs.runs['step'].max())}"


def compare(of):
    """Rows (claim, statement, published, ours, direction, updates) from the runs of each experiment."""
    rows = []
    table, main, contexts = of["table"], of["main"], of["context"]
    short, long = sorted(contexts.runs["data.context"].unique())
    t = int(main.runs["data.context"].iloc[0])
    gpt2, pythia, pythia_long = paper["GPT2_T128"], paper["Pythia70M_T128"], paper["Pythia70M_T256"]
    softmax_only = gpt2 | paper["GPT2_T128_softmax_only"]
    pairs = [
        ("C1", "SM+R against SM+G, GPT-2", table, "gpt2", t, "SM+R", "SM+G", gpt2),
        ("C1", f"SM+R against SM+G, Pythia, T={short}", contexts, "pythia", short, "SM+R", "SM+G", pythia),
        ("C1", f"SM+R against SM+G, Pythia, T={long}", contexts, "pythia", long, "SM+R", "SM+G", pythia_long),
        ("C2", "SM+LN+R against SM+LN+G, GPT-2", table, "gpt2", t, "SM+LN+R", "SM+LN+G", gpt2),
        ("C2", "SM+LN+R against SM+LN+G, Pythia", table, "pythia", t, "SM+LN+R", "SM+LN+G", pythia),
        ("C8", "SM+LN against SM+LN+G, GPT-2", table, "gpt2", t, "SM+LN", "SM+LN+G", softmax_only),
        ("C8", "SM+LN against SM+LN+G, Pythia", table, "pythia", t, "SM+LN", "SM+LN+G", pythia),
    ]
    for claim, statement, runs, family, length, configuration, base, numbers in pairs:
        theirs = relative_change(numbers[configuration][0], numbers[base][0])
        value, steps = change(runs, family, length, configuration, base)
        ours, direction = percent(value, theirs)
        rows.append((claim, f"perplexity of {statement}", f"{theirs:+.1f} %", ours, direction, steps))

    steps = str(int(main.runs["step"].max()))
    maps = {c: final_heads(main, c) for c in MAIN}
    last = {c: np.round(100 * s[3]) for c, s in shares_by_convention(maps, t)["ceiling"].items()}
    rows.append(
        (
            "C3",
            f"heads in the top quarter of the entropy range: {', '.join(MAIN)}",
            ", ".join(f"{printed[c][3]} %" for c in MAIN),
            ", ".join(f"{last[c]:.0f} %" for c in MAIN),
            compared_with(last["SM+G"], last["SM+R"]),
            steps,
        )
    )

    def early_and_late(heads, ceiling):
        """Mean entropy over its ceiling of the first two thirds of the layers and of the rest, as printed."""
        cut = round(2 * len(heads) / 3)
        return [round(float(np.nanmean(part) / ceiling), 2) for part in (heads[:cut], heads[cut:])]

    theirs, (early, late) = (
        early_and_late(paper_maps["SM+G"], entropy_ceiling(128)),
        early_and_late(maps["SM+G"], entropy_ceiling(t)),
    )
    direction = compared_with(early, late)
    statement = "entropy over ceiling in SM+G: first two thirds of the layers, the rest"
    rows.append(("C4", statement, f"{theirs[0]:.2f}, {theirs[1]:.2f}", f"{early:.2f}, {late:.2f}", direction, steps))

    slope_steps = str(int(of["slopes"].runs["step"].max()))
    for decay, words, theirs in ((True, "with the paper's weight decay", "towards 0"), (False, "without decay", "-")):
        start, end, share = slope_ends(of["slopes"], decay)
        direction = "-" if np.isnan(end) else "same" if share > 0.5 else "opposite"
        ours = f"{start:g} to {end:.3f}; {100 * share:.0f} % nearer to 0"
        rows.append(("C5", f"learnable negative slopes {words}, mean", theirs, ours, direction, slope_steps))

    g, r = leaves_ceiling(main, "SM+G"), leaves_ceiling(main, "SM+R")
    direction = compared_with(g, r)
    words = [f"step {int(step)}" if np.isfinite(step) else "never" for step in (g, r)]
    statement = "early layers first below 0.9 of the ceiling: SM+G, SM+R"
    rows.append(("C6", statement, "SM+G later (plot)", ", ".join(words), direction, steps))

    for configuration, theirs in (("SM+L(0.1)", "NaNs (script name)"), ("SM", "NaNs")):
        ours, direction, steps = outcome(of["instability"], configuration)
        rows.append(("C7", f"{configuration} diverges", theirs, ours, direction, steps))
    return sorted(rows)


compared = {where: compare({name: of[where] for name, of in shown.items()}) for where in wheres}
# The same claims over seeds, in the order of the rows; None has no test
ids = ["T4", "T4 Pythia", "T4 Pythia T=256", "T1", "T1 Pythia", "E1", "E3", "S1", "S4", "E4", "N2", "N1", "L1", None]
study = Study.load()
over_seeds = verdicts(statistics(study_runs(study), study)).set_index("id")
rows = []
for number, (key, (claim, statement, theirs, _, direction, steps)) in enumerate(
    zip(ids, compared[wheres[0]], strict=True)
):
    row = {"claim": claim, "statement": statement, "published": theirs}
    row |= {where: lines[number][3] for where, lines in compared.items()}
    row |= {"direction": direction, f"updates, {wheres[0]}": steps}
    test = over_seeds.loc[key] if key else None
    row["study"] = with_interval(*test[["unit", "estimate", "low", "high"]]) if key else "-"
    rows.append(row | {"n": str(test["n"]) if key else "-", "verdict": said(test, MARKED) if key else "no test"})
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# *Study* is a difference with its 95 % interval: percent of perplexity (C1, C2, C8), percentage points of heads (C3), shares of the
# ceiling (C4, C6), the final slope (C5), share of runs that diverged (C7). It comes from the recorded runs of the study, whichever runs
# the other columns show.
#
# C5 without decay has no published counterpart: the public code always decays the slopes. For C7, `not seen` means that no run shown
# diverged for as long as it was trained, and `same` that at least one did. Learning rates are those of the preset and ten times that.

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
count = pd.Series([direction for *_, direction, _ in compared[wheres[0]]]).value_counts().to_dict()
total, nothing = sum(count.values()), count.pop("-", 0)
Markdown(
    f"Of {total} comparisons the direction is "
    + ", ".join(f"`{direction}` in {number}" for direction, number in sorted(count.items()))
    + (f"; in {nothing} there is nothing to compare" if nothing else "")
    + f". Seeds: {', '.join(map(str, preset.seeds))}."
)
