# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Context length
#
# This page shows whether the order of the configurations holds at twice the {term}`context length`: Pythia at T and at twice T with
# equally many tokens a step, as in the paper's tables at T=128 and T=256 {cite}`jha2024relus`. Entropies are shown over the
# {term}`ceiling` of their own T.

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

from nfbook.presets import MAIN
from nfbook.report import banner, final_heads, markdown_table, perplexities, published, relative_change, sources
from nfcore.shares import entropy_ceiling


shown = sources(preset, "context")
banner(preset, next(iter(shown.values())))

# %% tags=["remove-input"]
own = next(iter(shown.values()))
contexts = sorted(own.runs["data.context"].unique())
table_of = {
    contexts[0]: ("128", published("perplexity")["Pythia70M_T128"]),
    contexts[1]: ("256", published("perplexity")["Pythia70M_T256"]),
}
rows, gains = [], []
for context in contexts:
    label, paper = table_of[context]
    base = paper["SM+LN+G"][0]
    for configuration in MAIN:
        row = {
            "T": str(context),
            "configuration": configuration,
            f"published (T = {contexts[0]}, {contexts[1]}: 128, 256)": f"{paper[configuration][0]:.3f} ({paper[configuration][1]:+.1f} %)",
        }
        for where, runs in shown.items():
            values = perplexities(runs)
            level = sorted(runs.runs["data.context"].unique())[contexts.index(context)]
            value, reference = values[("pythia", level, configuration)], values[("pythia", level, "SM+LN+G")]
            row[where] = f"{value:.2f} ({relative_change(value, reference):+.1f} %)"
        part = own.where(data__context=context)
        row["mean entropy / ceiling"] = float(final_heads(part, configuration).mean() / entropy_ceiling(int(context)))
        row["steps"] = str(int(part.runs["step"].max()))
        rows.append(row)
    values = perplexities(own)
    gains.append(
        (
            context,
            -relative_change(values[("pythia", context, "SM+R")], values[("pythia", context, "SM+G")]),
            -relative_change(paper["SM+R"][0], paper["SM+G"][0]),
        )
    )
markdown_table(pd.DataFrame(rows).rename(columns=lambda c: "published" if c.startswith("published") else c))

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    "Without LayerNorm, ReLU's perplexity against GELU's: "
    + "; ".join(
        f"T={context}: {gain:.1f} % lower (published at T={table_of[context][0]}: {paper:.1f} %)"
        for context, gain, paper in gains
    )
    + "."
)
