# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explorer
#
# ```{admonition} These runs are in a transient
# :class: warning
# They are 2.5 M tokens long and end in a {term}`transient` in which LayerNorm does not help yet, so no verdict on the paper is taken
# from them; [Claims](claims.ipynb) has the verdicts, on longer runs.
# ```
#
# Set any two {term}`cells <cell (of the study)>` of the first study side by side: loss, {term}`entropy <head entropy>` by layer, maps of
# the heads, their shares in the quarters of the entropy range {eq}`eq-quarters`, and learnable slopes. A cell is a configuration with
# changes to it; its runs differ only in the {term}`seed`.
#
# Means are over the {term}`trained` runs of a cell. Where it has none, they are over all its runs and stop where the first of them did. The
# address in the browser names the two cells: keep it to come back, or send it to somebody.

# %% tags=["parameters"]
preset = "transient"  # this page shows the first study, notebooks/params/transient.yaml
source = "recorded"  # recorded: data/recorded/transient; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import json
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from nfbook.claims import statistics
from nfbook.figures import STYLES
from nfbook.presets import FAMILIES
from nfbook.report import markdown_table, study_banner
from nfbook.study import SPARE
from nfcore.shares import QUARTERS, entropy_ceiling, quartile_shares


shown = study.runs()
rows = shown.runs.set_index("run")
spare = replace(study, cells={name: cell for name, cell in study.cells.items() if min(cell.seeds) >= SPARE})
outcomes = pd.concat([statistics(shown, part) for part in (spare, study)])
outcomes = outcomes.drop_duplicates("run").set_index("run")["outcome"]
tables = {name: dict(iter(getattr(shown, name).groupby("run"))) for name in ("metrics", "layers", "heads")}
study_banner(shown, study)


# %% tags=["remove-input"]
def rounded(values):
    """Nested lists with four significant digits; what is not finite is null."""
    if isinstance(values, (list, np.ndarray)):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if np.isfinite(values) else None


def over_runs(name, ids, keys, column):
    """A column of some runs by ``keys``, a column each run; missing where a run has ended."""
    table = pd.concat([tables[name][run] for run in ids])
    if name == "metrics":
        table = table[table["name"] == "eval_loss"]
    return table.pivot(index=keys, columns="run", values=column).astype(float)


def by_step(name, ids, keys, column):
    """Steps, and the mean over runs at each as an array (steps, *keys); steps at which a run is not finite are left out."""
    mean = over_runs(name, ids, ["step", *keys], column).mean(axis=1, skipna=False).unstack("step")
    mean = mean.dropna(axis=1, how="all")
    shape = [mean.index.get_level_values(key).nunique() for key in keys]
    return [int(step) for step in mean.columns], mean.T.to_numpy().reshape(-1, *shape)


def learned(ids, steps):
    """The learnable slopes or scales of a cell, (steps, layers); None where it has neither."""
    for column in ("slope", "scale"):
        at, values = by_step("layers", ids, ["layer"], column)
        if len(at):
            return {"name": column, "values": rounded([values[at.index(s)] if s in at else [np.nan] for s in steps])}
    return None


def settings(row):
    """What tells the cells of the study apart, in words."""
    changes = {
        "final norm": row["model.final_norm"],
        "embedding dropout": f"{row['model.embd_pdrop']:g}",
        "residual stream": row["model.residual_dtype"],
        "slope decay": f"{row['training.slope_weight_decay']:g}",
        "embedding, FFN gain": f"{row['model.embedding_gain']:g}, {row['model.ffn_gain']:g}",
    }
    return {
        "model": f"{FAMILIES[row['model.family']]} {row['configuration']}",
        "layers, width, context": f"{row['model.num_hidden_layers']}, {row['model.hidden_size']}, {row['data.context']}",
        "learning rate": f"{row['training.learning_rate']:g}",
        **changes,
    }


def described(cell):
    """All that the page shows of a cell."""
    ids = [e.id for e in cell.experiments if e.id in rows.index]
    trained = [run for run in ids if outcomes[run] == "trained"]
    used = trained or ids
    row = rows.loc[ids[0]]
    ceiling = entropy_ceiling(int(row["data.context"]))
    perplexity = rows.loc[trained, "perplexity"].astype(float)
    loss = over_runs("metrics", used, "step", "value").dropna()
    steps, heads = by_step("heads", used, ["layer", "head"], "entropy")
    last = [tables["heads"][run].query("step == step.max()")["entropy"] for run in trained]
    shares = np.mean([quartile_shares(h, ceiling) for h in last], axis=0) if last else np.full(len(QUARTERS), np.nan)
    ends = {
        name: rounded(getattr(perplexity, how)()) for name, how in (("mean", "mean"), ("low", "min"), ("high", "max"))
    }
    style = STYLES.get(row["configuration"], {})
    return {
        "label": cell.name,
        "configuration": row["configuration"],
        "family": FAMILIES[cell.family],
        "stage": cell.stage,
        "color": style.get("color"),
        "marker": style.get("marker"),
        "settings": settings(row),
        "seeds": [int(rows.loc[run, "seed"]) for run in ids],
        "left out": len(ids) - len(trained),
        "runs": ids,
        "ceiling": rounded(ceiling),
        "perplexity": ends if trained else None,
        "loss": {
            "x": [int(step) for step in loss.index],
            **{
                k: rounded(getattr(loss, how)(axis=1).to_numpy())
                for k, how in (("y", "mean"), ("low", "min"), ("high", "max"))
            },
        },
        "steps": steps,
        "heads": rounded(heads),
        "shares": rounded(shares),
        "learned": learned(used, steps),
    }


cells = [
    described(cell)
    for cell in study.cells.values()
    if any(experiment.id in rows.index for experiment in cell.experiments)
]

# %% [markdown]
# ## Two cells side by side

# %% tags=["remove-input"]
names = [cell["label"] for cell in cells]
start = [name for name in ("SM+G", "SM+R") if name in names]
page = {"start": (start + names)[:2], "quarters": QUARTERS, "cells": cells}
content = json.dumps(page, separators=(",", ":")).replace("</", "<\\/")
HTML(
    f'<div class="nf-explorer"><script type="application/json">{content}</script>'
    "<noscript><p>The comparison needs JavaScript. The table below has the final perplexity of every cell.</p></noscript></div>"
)

# %% [markdown]
# ## All cells
#
# Final perplexity: mean over the trained runs, with the lowest and the highest.


# %% tags=["remove-input"]
def table_row(cell):
    ends = cell["perplexity"] or dict.fromkeys(("mean", "low", "high"), np.nan)
    return {
        "cell": cell["label"],
        "model": cell["settings"]["model"],
        "runs": len(cell["runs"]),
        "left out": cell["left out"],
        "perplexity": ends["mean"],
        "lowest": ends["low"],
        "highest": ends["high"],
    }


markdown_table(pd.DataFrame([table_row(cell) for cell in cells]), digits=2)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
trained = [cell for cell in cells if cell["perplexity"]]
best = min(trained, key=lambda cell: cell["perplexity"]["mean"])
most = max(trained, key=lambda cell: cell["shares"][-1])
Markdown(
    f"{len(cells) - len(trained)} of {len(cells)} cells have no trained run. `{best['label']}` has the lowest mean perplexity, "
    f"{best['perplexity']['mean']:.2f}; `{most['label']}` has the most heads in the top quarter of the entropy range, "
    f"{100 * most['shares'][-1]:.0f} %."
)
