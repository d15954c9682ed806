# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Perplexity with and without LayerNorm
#
# {glue:text}`perplexity_found:s` These are runs of one preset, and unless more seeds are given they have one seed;
# [Claims](claims.ipynb) has the verdicts over seeds.
#
# GPT-2 and Pythia are trained from scratch on Python source, with LayerNorm in the blocks or without, and with GELU, ReLU, a leaky ReLU of slope
# 0.1 or a linear feed-forward network. The paper's first table {cite}`jha2024relus` and later ones {cite}`jha2024aero,jha2025entropy` have
# the final {term}`perplexity` of such models (claims [C1](#claim-c1), [C2](#claim-c2) and [C8](#claim-c8)). In tables and legends
# {term}`SM` is softmax attention, {term}`LN` LayerNorm, {term}`G` GELU, {term}`R` ReLU and {term}`L` a leaky ReLU.

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

from nfbook.figures import STYLES, direct_labels, show_figure, use_style
from nfbook.presets import FAMILIES, MAIN, PAPER_TOKENS
from nfbook.recorded import together
from nfbook.report import (
    against,
    banner,
    early_share,
    final_heads,
    folded,
    glue,
    markdown_table,
    perplexities,
    published,
    relative_change,
    sources,
)
from nfcore.shares import entropy_ceiling


use_style()
table, main, context = (sources(preset, name) for name in ("table", "main", "context"))
trained = next(iter(main.values()))
length = int(trained.runs["data.context"].iloc[0])
banner(preset, together([next(iter(of.values())) for of in (table, context)]))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-main", "caption": "The four main GPT-2 configurations at the end of training. Left: perplexity on held-out files; lower is better. Right: mean head entropy of each layer over the causal ceiling, on the fixed probe batch. Compare the two models without LayerNorm: the bars SM+G and SM+R, and the early layers of their lines."}, "image": {"alt": "Left, bars of the final perplexity of GELU and ReLU with LayerNorm, and of GELU and ReLU without. Right, a line for each of them: attention entropy over its ceiling, from the first layer to the last."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), width_ratios=[2, 3])
final = perplexities(trained).droplevel(["model.family", "data.context"])
for position, configuration in enumerate(MAIN):
    value = final[configuration]
    left.bar(position, value, color=STYLES[configuration]["color"], width=0.6, label=configuration)
    label = "diverged" if np.isnan(value) else f"{value:.2f}"
    left.annotate(label, (position, 0 if np.isnan(value) else value), ha="center", va="bottom", fontsize=9)
    profile = np.nanmean(final_heads(trained, configuration), axis=1) / entropy_ceiling(length)
    right.plot(range(len(profile)), profile, label=configuration, markersize=4, linewidth=1.2, **STYLES[configuration])
left.set_xticks(range(len(MAIN)), [name.replace("+LN", "\n+LN") for name in MAIN], fontsize=9)
left.grid(axis="x")
left.set(title="perplexity")
right.set_xticks(range(len(profile)))
right.set(title="entropy / ceiling", xlabel="layer")
right.axhline(1, color="grey", linestyle="--", linewidth=0.8, gid="ceiling")
direct_labels(right)
seeds_of = {c: trained.where(configuration=c).runs["perplexity"].astype(float) for c in MAIN}
early = {c: early_share(final_heads(trained, c), length) for c in MAIN}
show_figure(
    figure,
    trained,
    finding=f"Perplexity without LayerNorm is {against('SM+R', seeds_of['SM+R'], 'SM+G', seeds_of['SM+G'])}; entropy of the early "
    f"layers over the ceiling is {against('SM+R', early['SM+R'], 'SM+G', early['SM+G'])}.",
    preview=True,
)

# %% [markdown]
# ## Final perplexity
#
# The table compares each configuration with SM+LN+G of the same family after equally many updates, next to the published values
# {cite}`jha2024relus,jha2024aero,jha2025entropy`. All changes, the paper's too, are computed from the perplexities. A configuration that was
# trained for another number of updates than SM+LN+G is left out. Do not compare our perplexities with published ones; compare changes. `NaN`:
# the run diverged, at the update that the last column names.

# %% tags=["remove-input"]
paper = published("perplexity")
table_of = {"gpt2": paper["GPT2_T128"] | paper["GPT2_T128_softmax_only"], "pythia": paper["Pythia70M_T128"]}


def rows_of(runs):
    """One row a configuration: perplexity, updates and change against SM+LN+G where the updates agree."""
    reached = runs.runs["diverged.step"].fillna(runs.runs["step"]).astype(int)
    updates = reached.groupby([runs.runs["model.family"], runs.runs["configuration"]], sort=False).max()
    result = pd.DataFrame({"perplexity": perplexities(runs).droplevel("data.context"), "updates": updates})
    result["change"] = float("nan")
    for (family, configuration), row in result.iterrows():
        base = result.loc[(family, "SM+LN+G")]
        if row["updates"] == base["updates"]:
            change = relative_change(row["perplexity"], base["perplexity"])
            result.loc[(family, configuration), "change"] = change
    return result


def text(value, form="{:.2f}", none="NaN"):
    return none if pd.isna(value) else form.format(value)


def changed(value):
    return text(value, "{:+.1f}", "-")


def of_paper(numbers, configuration):
    """Published perplexity and its change in percent, as shown."""
    value = numbers.get(configuration)
    if value is None or value == "NaNs":
        return {"paper": "-" if value is None else "NaN", "change, paper (%)": "-"}
    change = relative_change(value[0], numbers["SM+LN+G"][0])
    return {"paper": f"{value[0]:.3f}", "change, paper (%)": f"{change:+.1f}"}


measured = {where: rows_of(runs) for where, runs in table.items()}
own = next(iter(measured.values()))
own = own[own["perplexity"].isna() | own["change"].notna()]
rows = []
for family, configuration in own.index:
    row = {"model": FAMILIES[family], "configuration": configuration, **of_paper(table_of[family], configuration)}
    for where, result in measured.items():
        entry = result.loc[(family, configuration)]
        row[where] = text(entry["perplexity"])
        row[f"change, {where} (%)"] = changed(entry["change"])
        row[f"updates, {where}"] = f"{int(entry['updates'])}"
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## Over training
#
# The order of the configurations can change while they train, so a short run need not show where a longer one ends. In the first study, whose runs
# end in a {term}`transient`, LayerNorm is a handicap: leaving it out changes GELU's perplexity by {glue:text}`claims.ipynb::layernorm_first_study:s`. In
# the study it helps, as in the paper: the change is {glue:text}`claims.ipynb::layernorm_study:s`, and at the number of tokens of the first study it is
# {glue:text}`claims.ipynb::layernorm_same_tokens:s`. So length alone does not explain the first study: the two differ in schedule and precision too. [Claims](claims.ipynb) follows the gaps over seeds.


# %% tags=["remove-input"]
def curve(runs, configuration, name="eval_loss"):
    """Mean over seeds of a metric by step, in nats per token."""
    ids = runs.runs.loc[runs.runs["configuration"] == configuration, "run"]
    rows = runs.metrics[runs.metrics["run"].isin(ids) & (runs.metrics["name"] == name)]
    return rows.pivot(index="step", columns="run", values="value").mean(axis=1, skipna=False)


def published_curve(configuration):
    points = pd.DataFrame(published("eval_loss_curves")["curves"][configuration])
    return pd.Series(points[2].to_numpy(), index=points[0])


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-curves", "caption": "Change of perplexity against GELU with LayerNorm (SM+LN+G, the line at zero), at each evaluation of the GPT-2 runs, published and ours. The published curves are read off a plot to about 1.5 %, so their ends miss the table's numbers by a little. The axis is the part of training that is done. A line above zero is worse than GELU with LayerNorm. See how the order changes, and on which side of zero each line ends."}, "image": {"alt": "Panels of lines over the part of training that is done, published and ours: perplexity of SM+LN+R, SM+G and SM+R against SM+LN+G."}}
panels = {"published": {c: published_curve(c) for c in MAIN}}
panels |= {where: {c: curve(runs, c) for c in MAIN} for where, runs in main.items()}
figure, axes = plt.subplots(len(panels), 1, figsize=(5.6, 2.5 * len(panels) + 0.4), sharex=True)
ends = {}
for panel, (where, curves) in zip(axes, panels.items(), strict=True):
    whole = max(of.index.max() for of in curves.values())  # of a run that diverged the line ends before
    for configuration in MAIN[1:]:
        gap = 100 * np.expm1(curves[configuration] - curves["SM+LN+G"]).dropna()
        gap = gap[gap.index > 0]
        ends.setdefault(where, {})[configuration] = gap.get(whole, float("nan"))
        every = max(1, len(gap) // 16)
        style = dict(markersize=4, linewidth=1.2, markevery=every, **STYLES[configuration])
        panel.plot(100 * gap.index / whole, gap, label=configuration, **style)
    panel.axhline(0, color="black", linewidth=0.6, gid="SM+LN+G")
    panel.set(title=where, xlabel="part of training done (%)", ylabel="change of perplexity (%)")
    direct_labels(panel)
finding = "; ".join(
    f"{where}, {against('SM+R', of['SM+R'], 'SM+G', of['SM+G'], '{:+.1f} %')}" for where, of in ends.items()
)
seen = ", ".join(f"{runs.runs['provenance.tokens'].max() / 1e6:.1f} M {where}" for where, runs in main.items())
show_figure(
    figure,
    trained,
    finding=f"At the end, which is at {PAPER_TOKENS / 1e6:,.0f} M tokens published and {seen}: {finding}.",
)

# %% [markdown]
# A mean of losses can hide a tail, so the folded table has the median and the 95th percentile of the token losses too, at the last evaluation, in
# {term}`nats`. The published mean is the logarithm of the published {term}`perplexity`.

# %% tags=["remove-input"]
rows = []
for configuration in MAIN:
    row = {"configuration": configuration}
    for label, name in {"mean": "eval_loss", "median": "eval_loss_median", "95th percentile": "eval_loss_p95"}.items():
        row[label] = curve(trained, configuration, name).iloc[-1]
    mean = curve(trained, configuration)
    row |= {
        "best mean": mean.min(),
        "best at update": int(mean.idxmin()),
        "published mean": published("eval_loss_curves")["final_eval_loss_from_published_perplexity"][configuration],
    }
    rows.append(row)
folded("Mean, median and tail of the losses", markdown_table(pd.DataFrame(rows)))

# %% [markdown]
# ## At twice the context length
#
# Pythia is trained at T and at twice the {term}`context length`, with equally many tokens an update. The paper's tables have T=128 and T=256
# {cite}`jha2024relus`; its batch is not public. The paper's columns are those of its shorter and its longer context. Changes are against SM+LN+G of the same T, and entropies are means over the {term}`ceiling` of their own T.

# %% tags=["remove-input"]
longer = next(iter(context.values()))
contexts = sorted(longer.runs["data.context"].unique())
by_length = {
    contexts[0]: ("128", published("perplexity")["Pythia70M_T128"]),
    contexts[1]: ("256", published("perplexity")["Pythia70M_T256"]),
}
rows, gains = [], []
for T in contexts:
    _, numbers = by_length[T]
    for configuration in MAIN:
        row = {"T": str(T), "configuration": configuration, **of_paper(numbers, configuration)}
        for where, runs in context.items():
            values = perplexities(runs)
            level = sorted(runs.runs["data.context"].unique())[contexts.index(T)]
            value, reference = values[("pythia", level, configuration)], values[("pythia", level, "SM+LN+G")]
            row |= {where: text(value), f"change, {where} (%)": changed(relative_change(value, reference))}
        part = longer.where(data__context=T)
        row["entropy / ceiling"] = f"{final_heads(part, configuration).mean() / entropy_ceiling(int(T)):.2f}"
        rows.append(row)
    values = perplexities(longer)
    gains.append((T, relative_change(values[("pythia", T, "SM+R")], values[("pythia", T, "SM+G")]), numbers))
markdown_table(pd.DataFrame(rows))


# %% tags=["remove-input"]
def side(percent):
    """A change of perplexity as "8.2 % below"."""
    if pd.isna(percent):
        return "not comparable to (a run diverged)"
    return "level with" if round(percent, 1) == 0 else f"{abs(percent):.1f} % {'below' if percent < 0 else 'above'}"


def lead(value, family, norm=""):
    """Change of perplexity from GELU to ReLU, in percent."""
    return relative_change(value(family, f"SM{norm}+R"), value(family, f"SM{norm}+G"))


def ours(family, configuration):
    return own.loc[(family, configuration), "perplexity"]


def theirs(family, configuration):
    return table_of[family][configuration][0]


def both(*which):
    return f"{side(lead(ours, *which))} GELU's (paper: {side(lead(theirs, *which))})"


at_lengths = " and ".join(
    f"{side(gain)} GELU's at T={T} (paper: {side(relative_change(numbers['SM+R'][0], numbers['SM+G'][0]))} at T={by_length[T][0]})"
    for T, gain, numbers in gains
)
of_pythia = longer.where(data__context=contexts[0])
spread = min(final_heads(of_pythia, c).mean() for c in ("SM+G", "SM+R")) / entropy_ceiling(int(contexts[0]))
pythia = (
    f"The Pythia runs here cannot show it: after {of_pythia.runs['step'].max()} updates the heads of the models without LayerNorm are still at "
    f"{spread:.2f} of the ceiling, so attention has hardly begun to learn."
    if spread > 0.95
    else f"For Pythia it is {both('pythia')}."
)
glue(perplexity_found=f"Without LayerNorm, ReLU's perplexity is {both('gpt2')} for GPT-2. {pythia}")
Markdown(f"Without LayerNorm, ReLU's perplexity is {at_lengths}." + (f" {pythia}" if spread > 0.95 else ""))

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"In GPT-2, ReLU's perplexity is {both('gpt2')} without LayerNorm, and {both('gpt2', '+LN')} with it: one preset, "
    f"{'seed' if len(preset.seeds) == 1 else 'seeds'} {', '.join(map(str, preset.seeds))}."
)
