# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Claims
#
# Each claim of the paper has a test here, and each test a {term}`verdict`. The verdicts come first, then the claims and the rule.

# %% tags=["parameters"]
preset = "study"  # this page shows the study, notebooks/params/study.yaml
source = "recorded"  # recorded: data/recorded/study; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy.stats import spearmanr, wasserstein_distance

from nfbook.claims import of_cell, read_ledger, statistics, verdicts
from nfbook.figures import STYLES, direct_labels, show_figure, use_style
from nfbook.front import cards, strip
from nfbook.presets import MAIN, PAPER_TOKENS
from nfbook.report import (
    difference,
    final_heads,
    folded,
    glue,
    glue_verdicts,
    markdown_table,
    published,
    recorded,
    shares_by_convention,
    study_banner,
    study_runs,
    verdict_table,
)
from nfbook.study import Study
from nfcore.shares import entropy_ceiling


use_style()
shown = study_runs(study)
frame = statistics(shown, study)
ledger = read_ledger()
table = verdicts(frame)
base = study.cells["SM+G"].experiments[0]
# The first study, whose models are in a transient: shown beside the study, and judged nowhere.
early = Study.load("transient")
early_runs = study_runs(early)
early_frame = statistics(early_runs, early)


def tokens_of(experiment):
    """Tokens that a run sees."""
    return experiment.training.steps * experiment.training.batch_size * experiment.data.context


tokens = tokens_of(base)

# %% tags=["remove-input"]
counts = table["verdict"].value_counts()
words = [
    f"{counts[name]} {name}" for name in ("reproduced", "contradicted", "negligible", "undecided") if name in counts
]
waiting = int(counts.get("no runs", 0))
if waiting:
    words.append(f"{waiting} not judged yet, for want of trained runs")
tally = f"Of {len(table)} tests of the paper's claims, {', '.join(words)}."

glue_verdicts(table)
glue(
    claims_tally=tally,
    claims_tests=str(len(table)),
    study_runs=str(len(shown.runs)),
    study_planned=str(len(study.experiments())),
    study_tokens=f"{tokens / 1e6:.1f}",
    study_ratio=f"{PAPER_TOKENS / tokens:,.0f}",
)
glue(
    claims_cards=cards(
        table,
        {
            "T4": ("Without LayerNorm, ReLU beats GELU.", "Perplexity of ReLU against GELU"),
            "T2": (
                "Leaving LayerNorm out costs perplexity.",
                "Perplexity without against with LayerNorm, GELU in both",
            ),
            "E1": ("Without LayerNorm, GELU overloads heads.", "Heads near the ceiling of entropy, GELU minus ReLU"),
        },
    )
)
Markdown(tally)

# %% tags=["remove-input"]
strip(table)

# %% [markdown]
# n is the number of seeds. ✓ reproduced: the claim's sign, beyond chance. ✗ contradicted: the other sign, beyond chance. ○ negligible:
# the effect is smaller than the smallest one of interest. ? undecided: the runs cannot tell. ◌: no trained runs yet. `%` is the change
# of perplexity; `points` are percentage points of heads; other entropies are fractions of the {term}`ceiling`, and divergence is in
# fractions of the runs.

# %% tags=["remove-input"]
folded("Statistics of every test: source, runs left out, p", verdict_table(table, frame))

# %% tags=["remove-input"]
study_banner(shown, study)

# %% [markdown]
# ## What the paper claims
#
# Eight claims are tested, under the ids in brackets. They come from the paper {cite}`jha2024relus` and two later papers of its authors, AERO
# {cite}`jha2024aero` and Entropy-Guided Attention, EGA {cite}`jha2025entropy`. **The body of the paper could not be read by us.** We read its
# abstract, its figures, its public code with the table of results in the README {cite}`jha2024code`, and the later papers. Three of the eight
# claims do not come from the paper itself. The numbers are stored with their sources in `data/published/`. *Recomputed* marks what we derived
# from published numbers.
#
# (claim-c1)=
# **C1. Without LayerNorm, ReLU beats GELU** (source: paper; tests `T2`, `T3`, `T4`). GPT-2 at `T=128`: {term}`perplexity` 2.936 ({term}`SM`+{term}`R`) against 3.197
# (SM+{term}`G`), 8.2 % lower. Pythia-70M: 3.736 against 4.086 at `T=128` and 3.273 against 3.570 at `T=256` {cite}`jha2024relus`.
# That is {glue:text}`t4_pythia_published:s` and
# {glue:text}`t4_pythia_t_256_published:s` (recomputed). Leaving LayerNorm out costs perplexity with either. Here:
# [Perplexity](perplexity.ipynb).
#
# (claim-c2)=
# **C2. With LayerNorm the order is the usual one** (source: paper; test `T1`). GPT-2: 2.688 (SM+{term}`LN`+G) against 2.757 (SM+LN+R) {cite}`jha2024relus`. So
# ReLU's perplexity is {glue:text}`t1_published:s` from GELU's (recomputed). Here:
# [Perplexity](perplexity.ipynb).
#
# (claim-c3)=
# **C3. Entropic overload** (source: paper; tests `E1`, `E2`). Share of heads in the top quarter of the entropy range ({term}`overload <overload (entropic)>`,
# {eq}`eq-quarters`): 58 % in SM+G, 24 % in SM+R, 8 % in SM+LN+G and 3 % in SM+LN+R {cite}`jha2024relus`, first figure. Here:
# [Entropy](entropy.ipynb), {numref}`fig-shares`.
#
# (claim-c4)=
# **C4. The overload is in the early layers** (source: paper, its figure; test `E3`). In the published map of SM+G {cite}`jha2024relus`, the first two thirds of the layers
# have means of {glue:text}`entropy.ipynb::published_early_low:s` to
# {glue:text}`entropy.ipynb::published_early_high:s` {term}`nats`, and the others a mean of
# {glue:text}`entropy.ipynb::published_late:s` (recomputed). Here: [Entropy](entropy.ipynb), {numref}`fig-maps`
# and {numref}`fig-maps-published`.
#
# (claim-c5)=
# **C5. A learnable negative slope goes towards zero** (source: AERO and the code; tests `S1` to `S4`). Given a leaky ReLU whose {term}`slope <leaky ReLU slope>` is learned, per layer or
# for all layers, the {term}`norm-free` model moves towards ReLU (AERO {cite}`jha2024aero`, first version, Fig. 4, and the public code
# {cite}`jha2024code`).
# The slopes start at 0.01 and have a weight decay of 0.1 {cite}`jha2024code`. That decay alone takes 0.01 to about
# {glue:text}`slopes.ipynb::paper_decay_end:s` over the run (recomputed). Here:
# [Learnable slopes](slopes.ipynb), {numref}`fig-slopes`, with and without that decay.
#
# (claim-c6)=
# **C6. Layer-wise entropies separate early** (source: the code and AERO; test `E4`). Over training, the early layers of SM+G stay near the {term}`ceiling`
# (plot script of the public code {cite}`jha2024code`; AERO {cite}`jha2024aero`, Fig. 12). Here: [Entropy](entropy.ipynb),
# {numref}`fig-layers`.
#
# (claim-c7)=
# **C7. Instability** (source: a file name, and EGA; tests `N1`, `N2`). Attention turns to NaN for unsuitable slopes: a plot script is named after a leaky slope of 0.1 {cite}`jha2024code`. And
# the softmax-only model SM ends in NaNs (Entropy-Guided Attention {cite}`jha2025entropy`, Table 2). Here: [Instability](slopes.ipynb),
# {numref}`fig-instability`.
#
# (claim-c8)=
# **C8. A linear feed-forward network with LayerNorm costs about a quarter** (source: EGA and AERO; test `L1`). SM+LN against SM+LN+G: 3.38 against 2.688 for GPT-2
# {cite}`jha2025entropy`; 4.445 against 3.512 and 3.836 against 3.054 for Pythia at `T=128` and `T=256` {cite}`jha2024aero`. Here:
# [Perplexity](perplexity.ipynb).
#
# ### How certain the published numbers are
#
# The published runs have one seed each and no error bars. The one public hint of their spread is a later re-run by the same authors with
# another batch size: 2.714 (SM+LN+G), 2.774 (SM+LN+R), 3.223 (SM+G), 2.988 (SM+R), and 3.081 for a norm-free leaky ReLU
# (NerVE {cite}`jha2026nerve`, taken at second hand). The order of the four is that of the paper.
#
# Some points of the recipe are not public: everything about the training of Pythia, and whether the runs had the embedding
# dropout of 0.1 that the public code has {cite}`jha2024code`. Where we had to assume something, [Reproduce it](../reproduce.md) says so.

# %% [markdown]
# ## The rule in short
#
# The rule, the tests and the design were written before the first run of the study (`data/claims.yaml`,
# `notebooks/params/study.yaml`). `python -m nfbook claims` prints the verdicts, and fails when a recorded one no longer follows.
#
# - **Pairs.** Runs with the same {term}`seed` see the same data in the same order. A {term}`contrast` is taken seed by seed; we show its mean
#   with a 95 % t interval {eq}`eq-interval` {cite}`student1908probable`, and correct p over each family of tests by Holm's method
#   {cite}`holm1979simple`.
# - **Trained runs only.** A run counts if it is {term}`trained`. Runs that are not are left out and counted, so perplexities hold for
#   runs that trained.
# - **One rule for and against the paper.** Each test has a {term}`smallest effect of interest`. *Negligible* needs an
#   {term}`equivalence test`: the 90 % interval lies within it. Otherwise *reproduced* or *contradicted* needs a corrected p below 0.05, and
#   *undecided* is the rest.
# - **Divergence** is compared by its time, with the {term}`log-rank test`; n is then the smaller number of runs, and the interval is that of
#   {cite:t}`newcombe1998interval` on limits of {cite:t}`clopper1934use`.
# - **Size is not judged.** It moves with width, learning rate and tokens, so the estimate stands next to the published value.
#
# The t interval assumes that differences of different seeds are independent and roughly normal, which three to five seeds cannot
# show. Seeds vary the initial weights and the order of the data. The corpus, its split and the evaluation sequences are the same for
# all runs, so an interval does not cover another corpus.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-claims", "caption": "Claims about perplexity: change in percent, ours (filled, with 95 % interval; hollow diamond: one seed, no interval) and published (hollow circle). Grey band: smaller than the smallest effect of interest."}, "image": {"alt": "A row for each claim about perplexity, with our estimate and its interval next to the published value."}}
percent = table[table["unit"] == "percent"].reset_index(drop=True)
figure, axes = plt.subplots(figsize=(8, 0.8 + 0.34 * len(percent)))
axes.axvspan(-1, 1, color="grey", alpha=0.2, linewidth=0)
for row, test in percent.iterrows():
    name, ours = test["id"], dict(color=STYLES["SM+R"]["color"])
    theirs = dict(color="black", fillstyle="none", label="published" if row == 0 else None)
    axes.plot(test["published"], row, "o", zorder=3, gid=f"{name}, published", **theirs)
    if np.isfinite(test["estimate"]):
        several = np.isfinite(test["low"])
        if several:
            axes.plot([test["low"], test["high"]], [row, row], gid=f"{name}, interval", **ours)
        fill = "full" if several else "none"
        axes.plot(test["estimate"], row, "D", markersize=5, fillstyle=fill, gid=f"{name}, ours", **ours)
axes.plot([], [], "D", markersize=5, label="ours", **ours)
axes.axvline(0, color="black", linewidth=0.6)
axes.set_yticks(range(len(percent)), [f"{test['id']}  n = {test['n']}" for _, test in percent.iterrows()])
axes.invert_yaxis()
axes.set_xlabel("change of perplexity (%)")
axes.legend()
there = percent.dropna(subset="estimate")
signs = int((there["estimate"] * there["published"] > 0).sum())
show_figure(
    figure,
    shown.select(run for runs in percent["runs"] for run in runs) if len(shown.runs) else None,
    interactive=False,
    finding=f"The change of perplexity has the published sign in {signs} of the {len(there)} claims that have trained runs; "
    f"{len(percent) - len(there)} have none yet."
    if len(there)
    else f"No claim about perplexity has trained runs yet: these are the {len(percent)} published values.",
)

# %% tags=["remove-input"]
limits = table[table["scale"].notna()].groupby("scale", sort=False)["id"].agg(", ".join)
Markdown(
    "What this scale cannot settle, whatever the verdict: "
    + "; ".join(f"{text} ({ids})" for text, ids in limits.items())
    + ". The largest head entropy observed, which the paper seems to take for Max, gives other shares than the ceiling: a remark below, "
    "and not a second test."
)

# %% [markdown]
# ## Perplexity of every configuration
#
# Geometric means over the trained runs, with the lowest and the highest. *Against SM+LN+G* is over the seeds that both have, within one
# family, size and {term}`context length`. Perplexities of a small model on few tokens are not to be compared with the published ones;
# changes are.

# %% tags=["remove-input"]
rows, untrained = [], []
exploded = shown.runs.set_index("run")["exploded.step"] if len(shown.runs) else None
for name, cell in study.cells.items():
    runs_of = of_cell(frame, name)
    if cell.stage == "rates":
        continue
    if runs_of.empty:
        untrained.append(f"`{name}`")
        continue
    outcomes = runs_of["outcome"].value_counts()
    losses = runs_of["loss"].dropna().astype(float)
    reference = name.replace(cell.configuration, "SM+LN+G")  # of the same family and size
    reference = reference if reference in study.cells else "SM+LN+G"
    change, n = difference(frame, {name: 1, reference: -1}) if name != reference else ("", "")
    rows.append(
        {
            "configuration": name,
            "perplexity": np.exp(losses.mean()),
            "lowest": np.exp(losses.min()),
            "highest": np.exp(losses.max()),
            "against SM+LN+G": change,
            "n": n,
            **{outcome: int(outcomes.get(outcome, 0)) for outcome in ("trained", "untrained", "diverged")},
            "exploded gradient": int(exploded[runs_of["run"]].notna().sum()),
        }
    )
if rows:
    display(markdown_table(pd.DataFrame(rows), digits=2))
if untrained:
    display(Markdown(f"**Not trained yet:** {', '.join(untrained)}."))


# %% [markdown]
# ## LayerNorm in the transient and after it
#
# Short runs mislead here. The first study of this project, now the preset `transient`, ended inside a {term}`transient` in which models
# with LayerNorm are behind those without. The paper's order appears later in training. No verdict is taken from those runs.


# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-transient", "caption": "Evaluation loss of the four main GPT-2 configurations over tokens, means over trained runs with the lowest and highest seed: the first study and, where it is trained, the study. Each panel has its own learning rate and its own schedule."}, "image": {"alt": "Falling curves of evaluation loss against tokens on a logarithmic axis, one for each main configuration, a panel for each study."}}
def losses_of(runs, frame, configuration):
    """Evaluation losses of the trained runs of a configuration: a row per number of tokens, a column per run."""
    rows = of_cell(frame, configuration)
    ids = rows.loc[rows["outcome"] == "trained", "run"]
    chosen = runs.metrics[runs.metrics["run"].isin(ids) & (runs.metrics["name"] == "eval_loss")] if len(ids) else []
    if not len(chosen):
        return pd.DataFrame()
    at = runs.runs.set_index("run").loc[ids.iloc[0]]
    table = chosen.pivot(index="step", columns="run", values="value")
    table.index = table.index * at["training.batch_size"] * at["data.context"] / 1e6
    return table[table.index > 0]


def overtakes(runs, frame):
    """Million tokens from which on SM+LN+G's mean loss is below SM+G's; None if it is not at the end."""
    gap = losses_of(runs, frame, "SM+LN+G").mean(axis=1) - losses_of(runs, frame, "SM+G").mean(axis=1)
    behind = gap.index[gap >= 0]
    ahead = gap.index if not len(behind) else gap.index[gap.index > behind[-1]]
    return float(ahead[0]) if len(ahead) else None


both = [("first study", early, early_runs, early_frame), ("study", study, shown, frame)]
both = [entry for entry in both if all(len(of_cell(entry[-1], c)) for c in MAIN)]
figure, axes = plt.subplots(1, len(both), figsize=(4.2 * len(both), 3.4), squeeze=False)
parts = []
for panel, (title, design, runs, of) in zip(axes[0], both, strict=True):
    for configuration in MAIN:
        curves = losses_of(runs, of, configuration)
        style = dict(markersize=3, linewidth=1.2, **STYLES[configuration])
        panel.plot(curves.index, curves.mean(axis=1), label=configuration, **style)
        ends, name = (curves.min(axis=1), curves.max(axis=1)), f"{configuration}, range over seeds"
        panel.vlines(curves.index, *ends, color=style["color"], linewidth=0.8, gid=name)
    panel.set(title=title, xscale="log", xlabel="tokens (M)", ylabel="evaluation loss (nats per token)")
    panel.xaxis.set_minor_formatter("")
    panel.set_xticks([t for t in (0.5, 1, 2, 5, 10, 20) if t < 1.1 * panel.dataLim.x1])
    panel.xaxis.set_major_formatter("{x:g}")
    direct_labels(panel)
    size = f"{tokens_of(design.cells['SM+G'].experiments[0]) / 1e6:.1f} M tokens"
    change, n = difference(of, {"SM+G": 1, "SM+LN+G": -1})
    since = overtakes(runs, of)
    parts.append(
        f"{title}, {size}: leaving LayerNorm out changes GELU's perplexity by {change} (n = {n}), and "
        + (f"LayerNorm is ahead from {since:.1f} M tokens on" if since else "LayerNorm does not get ahead")
    )
    glue(**{f"layernorm_{title.replace(' ', '_')}": f"{change} (n = {n}, {size})"})
if len(both) < 2:
    parts.append("of the study this is not trained yet")
    glue(layernorm_study="not trained yet")
text = "; ".join(parts)
show_figure(
    figure,
    early_runs.select(r for c in MAIN for r in of_cell(early_frame, c)["run"]) if len(both) < 2 else shown,
    finding=f"{text[0].upper()}{text[1:]}.",
)

# %% [markdown]
# ## Learning rates
#
# Stage `rates` fixes the one learning rate of all runs: of three, the one with the lowest final loss, averaged over the four main
# GPT-2 configurations and three seeds, among the rates at which all twelve runs are {term}`trained`. Its runs are shorter, and their seeds
# serve for nothing else.

# %% tags=["remove-input"]
rates = pd.DataFrame(
    [
        {
            "configuration": cell.configuration,
            "rate": cell.experiments[0].training.learning_rate,
            "loss": of_cell(frame, name)["loss"].astype(float).mean(),
            "trained": int((of_cell(frame, name)["outcome"] == "trained").sum()),
            "made": len(of_cell(frame, name)),
            "planned": len(cell.experiments),
        }
        for name, cell in study.cells.items()
        if cell.stage == "rates"
    ]
)
losses = rates.pivot(index="configuration", columns="rate", values="loss").loc[[*MAIN]]
counts = rates.groupby("rate")[["trained", "made", "planned"]].sum()
shown_rates = losses.map("{:.3f}".format).rename(columns="rate {:g}".format)
shown_rates["own best rate"] = ["-" if row.isna().any() else f"{row.idxmin():g}" for _, row in losses.iterrows()]
shown_rates.loc["mean of the four"] = [*losses.mean(skipna=False).map("{:.3f}".format), "-"]
shown_rates.loc["trained runs"] = [*(f"{r.trained} of {r.planned}" for r in counts.itertuples()), "-"]
if counts["made"].sum():
    display(markdown_table(shown_rates.replace("nan", "-").reset_index(names="final loss, nats per token")))
fit = losses.mean(skipna=False)[counts["trained"] == counts["planned"]]
used = base.training.learning_rate
if (counts["made"] < counts["planned"]).any():
    text = (
        f"**Not trained yet, or not all of it: stage `rates`.** Until it is, the design has the pilots' rate, {used:g}."
    )
elif fit.empty:
    text = "At no rate are all twelve runs trained, so the rule chooses none."
else:
    text = f"The rule chooses {fit.idxmin():g}. The design has {used:g}."
Markdown(text)

# %% [markdown]
# ## Our entropy maps and the published ones
#
# The published maps have 12 layers of 12 heads, ours 6 layers of 4, so we compare what does not depend on the shape. *Profile* is
# Spearman's rank correlation between the mean entropies of the layers, with the published profile read off at our layers' relative
# depths. *Distance* is the Wasserstein distance between the distributions of head entropies over their {term}`ceiling`: 0 if they are
# equal, at most 1. Means over trained runs.

# %% tags=["remove-input"]
maps = {name: np.array(published("head_entropy")["maps"][name]) for name in MAIN}
trained = {name: of_cell(frame, name).query("outcome == 'trained'")["run"] for name in MAIN}
ours = {name: {seed: final_heads(shown.select([run]), name) for seed, run in trained[name].items()} for name in MAIN}
rows = []
for name, of_seed in ours.items():
    if of_seed:
        heads = [*of_seed.values()]
        theirs = np.interp(
            np.linspace(0, 1, len(heads[0])), np.linspace(0, 1, len(maps[name])), maps[name].mean(axis=1)
        )
        flat = maps[name].ravel() / entropy_ceiling(128)
        rho = [spearmanr(h.mean(axis=1), theirs).statistic for h in heads]
        distance = [wasserstein_distance(h.ravel() / entropy_ceiling(128), flat) for h in heads]
        rows.append(
            {
                "configuration": name,
                "profile, Spearman's ρ": np.mean(rho),
                "lowest": min(rho),
                "highest": max(rho),
                "distance": np.mean(distance),
                "largest distance": max(distance),
                "n": len(heads),
            }
        )
markdown_table(pd.DataFrame(rows), digits=2) if rows else Markdown("**Not trained yet:** stage `table`.")

# %% [markdown]
# A remark, and no test: shares of heads in the four quarters of the entropy range, from [0, Max/4) to [3Max/4, Max], with both readings of
# Max, the ceiling and the largest entropy observed over the four models. Means over the seeds that all four have.

# %% tags=["remove-input"]
printed = published("head_share_percent")["main.png"]
seeds = sorted(set.intersection(*(set(of_seed) for of_seed in ours.values())))
per_seed = [shares_by_convention({name: ours[name][seed] for name in MAIN}, 128) for seed in seeds]
rows = []
for name in MAIN if per_seed else []:
    row = {"configuration": name, "published (%)": ", ".join(map(str, printed[name]))}
    for convention in per_seed[0]:
        mean = 100 * np.mean([shares[convention][name] for shares in per_seed], axis=0)
        row[f"ours, Max {convention} (%)"] = ", ".join(f"{share:.0f}" for share in mean)
    rows.append({**row, "n": len(seeds)})
markdown_table(pd.DataFrame(rows)) if rows else Markdown("**Not trained yet:** stage `table`.")

# %% [markdown]
# ## What was fixed when
#
# Dates are those of commits. What was known before a choice was made is part of how far the choice can be trusted.

# %% tags=["remove-input"]
markdown_table(pd.DataFrame([{"date": str(line["when"]), "what": line["what"]} for line in ledger["disclosures"]]))

# %% [markdown]
# ## On a GPU
#
# `notebooks/params/gpu-runs.yaml` is a grid of runs for one GPU: the four main configurations and a scaled GELU, at two widths, over
# 100 M tokens a run. No verdict above rests on it.

# %% tags=["remove-input"]
gpu = recorded("gpu")
text = "**Still empty.** No machine with a GPU has run it yet; [Reproduce it](../reproduce.md) has the commands."
if gpu is not None:
    text = f"{len(gpu.runs)} runs are recorded under `data/recorded/gpu`."
Markdown(text)

# %% [markdown]
# ## Runs behind the verdicts
#
# `data/recorded/study/records.json` has settings, results, versions and hardware of each run; `python -m nfbook study` makes
# one again.

# %% tags=["remove-input"]
ids = {test["id"]: " ".join(f"`{run}`" for run in test["runs"]) or "not trained yet" for _, test in table.iterrows()}
folded("Runs of each test", markdown_table(pd.DataFrame({"id": ids.keys(), "runs": ids.values()})))

# %% tags=["remove-input"]
facts = {
    "commit": "commit",
    "measurement version": "measurement",
    "tokens": "data_hash",
    "torch": "torch",
    "threads": "threads",
}
rows = []
for words, name in facts.items() if len(shown.runs) else []:
    count = shown.runs[f"provenance.{name}"].astype(str).value_counts()
    value = "; ".join(v if len(count) == 1 else f"{v} ({n} runs)" for v, n in count.items())
    rows.append({"": words, "value": value})
markdown_table(pd.DataFrame(rows)) if rows else Markdown("No runs yet.")

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"{tally} They hold for runs of {tokens / 1e6:.1f} M tokens, {PAPER_TOKENS / tokens:,.0f} times fewer than a published run, and for "
    "models of width 64. A verdict says on which side of the line the paper's claim falls here; how large an effect is depends on the "
    "scale."
)
