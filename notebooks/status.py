# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Runs and versions
#
# Compare your own run with ours here: versions, hardware, and the hash of the data of every run. All of it comes from the records of the
# runs. The runs of the study are at the end of [Claims](claims.ipynb).

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

import pandas as pd
from IPython.display import Markdown

from nfbook.presets import FAMILIES
from nfbook.recorded import recorded_dir
from nfbook.report import folded, glue, markdown_table
from nfcore.runs import read_records


frame = preset.runs().runs
where = (
    "trained on this machine" if preset.source == "local" else "committed records; nothing was run here for this page"
)
Markdown(
    f"*Preset `{preset.preset}`, {where}: {len(frame)} runs, {frame['provenance.tokens'].sum() / 1e6:.3g} M tokens.*"
)

# %% [markdown]
# ## Versions, hardware, hashes
#
# More than one value in a line means that the runs differ there. The measurement version is raised when the code would give other
# numbers for the same settings on the same machine.

# %% tags=["remove-input"]
facts = {
    "commit": "commit",
    "measurement version": "measurement",
    "token files": "data_hash",
    "validation lines in training": "validation_overlap",
    "nfcore": "nfcore",
    "Python": "python",
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "tokenizers": "tokenizers",
    "datasets": "datasets",
    "numpy": "numpy",
    "system": "system",
    "device": "device",
    "torch threads": "threads",
}


def provenance(name):
    """A fact of each run; `unknown` where its record has none."""
    values = frame.get(f"provenance.{name}", pd.Series(None, index=frame.index, dtype=object))
    if name == "validation_overlap":
        values = values.map("{:.1%}".format, na_action="ignore").str.replace("%", " %")
    return values.astype(object).where(values.notna(), "unknown")


rows = []
for label, name in facts.items():
    values = provenance(name)
    count = values.astype(str).value_counts(sort=False)
    text = "; ".join(v if len(count) == 1 else f"{v} ({n} runs)" for v, n in count.items())
    rows.append({"fact": label, "value": text})
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# In a preset the token files differ only with the context length, and with the locked packages every machine makes the same ones.
# *Validation lines in training* is the fraction of the distinct validation lines of 20 characters or more that also occur in the training
# part. It measures how much of the validation text a model could have memorised.

# %% [markdown]
# ## Runs
#
# Seconds are those of training, without evaluation, probes and checkpoints. Wall seconds include all of that, but not the pauses of an
# interrupted run. The records do not say how many runs shared the machine.

# %% tags=["remove-input"]
table = pd.DataFrame(
    {
        "run": [f"`{run}`" for run in frame["run"]],
        "model": frame["model.family"].map(FAMILIES),
        "configuration": frame["configuration"],
        "T": frame["data.context"].astype(str),
        "rate": [f"{rate:g}" for rate in frame["training.learning_rate"]],
        "precision": frame.get("provenance.precision", frame["training.precision"]).fillna(frame["training.precision"]),
        "seed": frame["seed"].astype(str),
        "parameters": [f"{n:,}" for n in frame["provenance.parameters"]],
        "steps": [
            f"{step}" if status == "complete" else f"{at:.0f} ({status})"
            for step, status, at in zip(frame["step"], frame["status"], frame["diverged.step"], strict=True)
        ],
        "M tokens": [f"{n / 1e6:.3g}" for n in frame["provenance.tokens"]],
        "tokens/s": [f"{rate:,.0f}" for rate in frame["provenance.tokens_per_second"]],
        "seconds": [f"{seconds:,.1f}" for seconds in frame["provenance.seconds"]],
        "wall seconds": [s if s == "unknown" else f"{s:,.1f}" for s in provenance("wall_seconds")],
        "data": [f"`{h}`" for h in frame["provenance.data_hash"]],
    }
)
folded(f"All {len(table)} runs", markdown_table(table))

# %% tags=["remove-input"]
seconds = frame["provenance.seconds"].sum()
# Some runs of the preset and of the study have the same settings, and two machines have made both.
ends = [{r["id"]: r for r in read_records(recorded_dir(name))} for name in ("quick", "study")]
apart = [
    abs(math.expm1(a["final"]["eval_loss"] - b["final"]["eval_loss"]))
    for a, b in ((of[run] for of in ends) for run in ends[0].keys() & ends[1].keys())
    if a["provenance"]["device"] != b["provenance"]["device"]
]
glue(across_machines=f"{100 * max(apart, default=0):.1f} %")
Markdown(
    f"Added up, all runs trained for {seconds / 60:.1f} minutes; runs may overlap in time. Of {len(apart)} runs that two processors have made, "
    f"the final perplexities differ by up to {100 * max(apart, default=0):.1f} %."
)

# %% [markdown]
# ## What to remember
#
# On one machine the same settings and token files give the same numbers, and both have a hash. On another processor they differ a little.
