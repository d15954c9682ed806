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
# The paper's first table: GPT-2 and Pythia, trained from scratch on Python source, with LayerNorm in the blocks (`SM+LN`)
# and without (`SM`), with GELU (`G`), ReLU (`R`), a leaky ReLU of slope 0.1 (`L(0.1)`) or a linear feed-forward network
# (no letter). Claims [C1, C2 and C8](../claims-of-the-paper.md).

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
import pandas as pd
from IPython.display import Markdown

from nfcore.report import banner, glue, markdown_table, perplexities, published, relative_change, sources, use_style


use_style()
shown = sources(preset, "perplexity")
banner(preset, next(iter(shown.values())))

# %% [markdown]
# ## Table
#
# Final perplexity on held-out files, and its change in percent against `SM+LN+G` of the same family at the same number
# of steps. Rows marked with other step counts must not be compared with one another: the GPT-2 main rows are trained
# longer than all others. `NaN`: the run stopped being finite.

# %% tags=["hide-input"]
paper = published("perplexity")
table_of = {"gpt2": paper["GPT2_T128"] | paper["GPT2_T128_softmax_only"], "pythia": paper["Pythia70M_T128"]}
families = {"gpt2": "GPT-2", "pythia": "Pythia"}


def rows_of(runs):
    """One row a configuration: perplexity, steps and change against SM+LN+G where the steps agree."""
    frame = runs.runs.groupby(["model.family", "configuration"], sort=False)
    result = pd.DataFrame(
        {"perplexity": perplexities(runs).droplevel("data.context"), "steps": frame["training.steps"].first()}
    )
    for family in families:
        base = result.loc[(family, "SM+LN+G")]
        same = result.loc[family]["steps"] == base["steps"]
        for configuration in result.loc[family].index[same]:
            value = result.loc[(family, configuration), "perplexity"]
            result.loc[(family, configuration), "change"] = relative_change(value, base["perplexity"])
    return result


def text(value, digits=2):
    return "NaN" if pd.isna(value) else f"{value:.{digits}f}"


measured = {where: rows_of(runs) for where, runs in shown.items()}
own = next(iter(measured.values()))
rows = []
for family, configuration in own.index:
    row = {"model": families[family], "configuration": configuration}
    value = table_of[family].get(configuration)
    row["published"] = "-" if value is None else "NaN" if value == "NaNs" else f"{value[0]:.3f} ({value[1]:+.1f} %)"
    for where, result in measured.items():
        entry = result.loc[(family, configuration)]
        change = "" if pd.isna(entry["change"]) else f" ({entry['change']:+.1f} %)"
        row[where] = text(entry["perplexity"]) + change
        row[f"steps, {where}"] = "one epoch" if pd.isna(entry["steps"]) else f"{int(entry['steps'])}"
    rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## What to see

# %% tags=["hide-input"]
gains = {}
for where, result in measured.items():
    for family in families:
        gains[where, family] = -relative_change(
            result.loc[(family, "SM+R"), "perplexity"], result.loc[(family, "SM+G"), "perplexity"]
        )
with_norm = {
    family: -relative_change(own.loc[(family, "SM+LN+R"), "perplexity"], own.loc[(family, "SM+LN+G"), "perplexity"])
    for family in families
}
where = next(iter(measured))
paper_gain = {family: -relative_change(table_of[family]["SM+R"][0], table_of[family]["SM+G"][0]) for family in families}


def ahead(gain):
    return (
        "a run that is not finite leaves nothing to compare"
        if pd.isna(gain)
        else f"ReLU is {abs(gain):.1f} % {'below' if gain > 0 else 'above'} GELU"
    )


Markdown(
    f"Without LayerNorm, {ahead(gains[where, 'gpt2'])} in perplexity for GPT-2 (published: {paper_gain['gpt2']:.1f} % below), "
    f"and for Pythia {ahead(gains[where, 'pythia'])} (published: {paper_gain['pythia']:.1f} % below); with LayerNorm, "
    f"for GPT-2 {ahead(with_norm['gpt2'])} (published: 2.6 % above)."
)

# %% tags=["hide-input"]
glue(
    gain_gpt2=f"{gains[where, 'gpt2']:.1f}",
    gain_pythia=f"{gains[where, 'pythia']:.1f}",
    gain_published=f"{paper_gain['gpt2']:.1f}",
    gain_ln_gpt2=f"{with_norm['gpt2']:.1f}",
    **{
        f"ppl_{name}": text(own.loc[("gpt2", configuration), "perplexity"])
        for name, configuration in {"ln_g": "SM+LN+G", "ln_r": "SM+LN+R", "g": "SM+G", "r": "SM+R"}.items()
    },
    main_steps=f"{int(own.loc[('gpt2', 'SM+G'), 'steps'])}"
    if not pd.isna(own.loc[("gpt2", "SM+G"), "steps"])
    else "one epoch",
)
