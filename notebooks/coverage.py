# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Coverage
#
# {py:func}`~nfcore.meter.head_entropy` measures the attention of most causal language models in transformers, and refuses the others by
# name.

# %% tags=["remove-input"]
import json

import pandas as pd
from IPython.display import Markdown

from nfbook.report import folded, glue, markdown_table
from nfcore.settings import project_root


results = json.loads((project_root() / "tools" / "benchmarks" / "results" / "coverage.json").read_text())
found = pd.DataFrame(results["rows"])
made = results["provenance"]
right = found[found["outcome"] == "right"]
wrong = int((found["outcome"] == "wrong").sum())
glue(coverage_right=f"{len(right)}", coverage_all=f"{len(found)}")
Markdown(
    f"**For {len(right)} of {len(found)} model types the measured entropy agrees with the model's own attention maps, to "
    f"{right['largest_error_nats'].max():.0e} nats in every head. {wrong or 'None'} {'are' if wrong > 1 else 'is'} wrong.** *transformers "
    f"{made['transformers']}, torch {made['torch']}, measured on {made['measured']}.*"
)

# %% [markdown]
# A model type is a name in transformers' table of causal language models; several types may have one class. We build each with a tiny random
# configuration and measure it twice on the same tokens: with `head_entropy`, and from the attention maps that the class returns with eager
# attention. `python -m tools.benchmarks coverage` measures again.

# %% [markdown]
# ## Outcomes

# %% tags=["remove-input"]
meanings = {
    "right": "entropy agrees with the maps to 1e-5 nats in every head",
    "refused": "the meter says in one line that it does not measure this model",
    "wrong": "entropies differ, or layers are missing",
    "crashed": "the model raised an error of its own",
    "no maps": "the meter measures, but the model returns no maps to compare with",
    "not built": "no tiny configuration of the model could be made to run",
}
count = found["outcome"].value_counts()
table = pd.DataFrame(
    [{"outcome": name, "model types": int(count.get(name, 0)), "meaning": text} for name, text in meanings.items()]
)
markdown_table(table)

# %% [markdown]
# ## Measured
#
# The table names the layers with causal self-attention by their own numbers; hybrid models have other layers between them. *sdpa* and
# *eager* are the attention that the class runs by default. The error is the largest over layers and heads.

# %% tags=["remove-input"]
table = [
    {
        "model type": row["model_type"],
        "class": row["class"],
        "attention": row["implementation"],
        "layers": ", ".join(dict.fromkeys(str(int(layer)) for layer in row["layers"])),
        "heads": str(int(row["heads"])),
        "largest error (nats)": f"{row['largest_error_nats']:.0e}",
    }
    for _, row in right.iterrows()
]
folded(f"The {len(right)} model types that are measured", markdown_table(pd.DataFrame(table)))

# %% [markdown]
# ## Not measured
#
# The refused models have attention code of their own, which does not go through transformers' attention interface, or no softmax
# attention at all. Those that were not built want settings, packages or memory that a tiny random configuration does not have.

# %% tags=["remove-input"]
rest = found[found["outcome"] != "right"]
names = {
    outcome: ", ".join(dict.fromkeys(rows["class"].sort_values(key=lambda names: names.str.lower())))
    for outcome, rows in rest.groupby("outcome", sort=False)
}
folded(
    f"The classes of the other {len(rest)} model types",
    Markdown("\n\n".join(f"*{outcome.capitalize()}*: {listed}." for outcome, listed in names.items())),
)

# %% [markdown]
# ## What to remember
#
# A model that uses transformers' attention interface is measured as it runs; any other model is refused by name.
