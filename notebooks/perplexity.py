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
# This page shows the paper's first table {cite}`jha2024relus` with our runs beside it: final {term}`perplexity` of GPT-2 and
# Pythia, trained from scratch on Python source. They have LayerNorm in the blocks ({term}`SM`+{term}`LN`) or not (SM), and GELU
# ({term}`G`), ReLU ({term}`R`), a leaky ReLU of slope 0.1 (`L(0.1)`) or a linear feed-forward network (no letter). The linear ones
# were published later {cite}`jha2024aero,jha2025entropy`. Claims [C1, C2 and C8](../claims-of-the-paper.md).

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
import pandas as pd
from IPython.display import Markdown

from nfbook.presets import FAMILIES
from nfbook.report import NAMES, banner, glue, markdown_table, perplexities, published, relative_change, sources


shown = sources(preset, "perplexity")
banner(preset, next(iter(shown.values())))

# %% [markdown]
# ## Table
#
# Final perplexity on held-out files, and its change in percent against `SM+LN+G` of the same family at the same number
# of steps. Rows with other step counts must not be compared with one another: a preset may train the main GPT-2 rows
# longer than the rest. `NaN`: the run diverged. How far LayerNorm gets in runs this short depends on their length:
# [Claims](claims.ipynb) follows it over tokens, and has the changes over seeds with verdicts.

# %% tags=["remove-input"]
paper = published("perplexity")
table_of = {"gpt2": paper["GPT2_T128"] | paper["GPT2_T128_softmax_only"], "pythia": paper["Pythia70M_T128"]}


def rows_of(runs):
    """One row a configuration: perplexity, steps and change against SM+LN+G where the steps agree."""
    steps = runs.runs.groupby(["model.family", "configuration"], sort=False)["step"].max()
    result = pd.DataFrame({"perplexity": perplexities(runs).droplevel("data.context"), "steps": steps})
    result["change"] = float("nan")
    for (family, configuration), row in result.iterrows():
        base = result.loc[(family, "SM+LN+G")]
        if row["steps"] == base["steps"]:
            change = relative_change(row["perplexity"], base["perplexity"])
            result.loc[(family, configuration), "change"] = change
    return result


def text(value, digits=2):
    return "NaN" if pd.isna(value) else f"{value:.{digits}f}"


measured = {where: rows_of(runs) for where, runs in shown.items()}
own = next(iter(measured.values()))
rows = []
for family, configuration in own.index:
    row = {"model": FAMILIES[family], "configuration": configuration}
    value = table_of[family].get(configuration)
    row["published"] = "-" if value is None else "NaN" if value == "NaNs" else f"{value[0]:.3f} ({value[1]:+.1f} %)"
    for where, result in measured.items():
        entry = result.loc[(family, configuration)]
        change = "" if pd.isna(entry["change"]) else f" ({entry['change']:+.1f} %)"
        row[where] = text(entry["perplexity"]) + change
        row[f"steps, {where}"] = f"{int(entry['steps'])}"
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## What to remember


# %% tags=["remove-input"]
def gain(value, family, norm=""):
    """How far ReLU's perplexity is below GELU's, in percent."""
    return -relative_change(value(family, f"SM{norm}+R"), value(family, f"SM{norm}+G"))


def ours(family, configuration):
    return own.loc[(family, configuration), "perplexity"]


def theirs(family, configuration):
    return table_of[family][configuration][0]


def side(percent):
    return (
        "not comparable (a run diverged)"
        if pd.isna(percent)
        else f"{abs(percent):.1f} % {'below' if percent > 0 else 'above'}"
    )


def both(*which):
    return f"{side(gain(ours, *which))} (published: {side(gain(theirs, *which))})"


Markdown(
    f"Without LayerNorm, ReLU's perplexity against GELU's is, for GPT-2, {both('gpt2')}, and for Pythia, {both('pythia')}. "
    f"With LayerNorm it is, for GPT-2, {both('gpt2', '+LN')}, and for Pythia, {both('pythia', '+LN')}."
)

# %% tags=["remove-input"]
glue(
    gain_gpt2=f"{gain(ours, 'gpt2'):.1f}",
    gain_pythia=f"{gain(ours, 'pythia'):.1f}",
    gain_published=f"{gain(theirs, 'gpt2'):.1f}",
    gain_ln_gpt2=f"{gain(ours, 'gpt2', '+LN'):.1f}",
    **{f"ppl_{name}": text(ours("gpt2", configuration)) for name, configuration in NAMES.items()},
    main_steps=f"{int(own.loc[('gpt2', 'SM+G'), 'steps'])}",
)
