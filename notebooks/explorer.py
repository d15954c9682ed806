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
# They are 2.5 M tokens long and end in a {term}`transient` with GPT-2 under LayerNorm still behind, so no verdict on the paper is taken
# from them; [Claims](claims.ipynb) has the verdicts.
# ```

# %% tags=["parameters"]
preset = "transient"  # this page shows the first study, notebooks/params/transient.yaml
source = "recorded"  # recorded: data/recorded/transient; local: those and this machine's runs

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import json
import re
from dataclasses import replace
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from nfbook.claims import statistics
from nfbook.figures import STYLES
from nfbook.presets import FAMILIES
from nfbook.report import folded, markdown_table, study_banner
from nfbook.study import SPARE
from nfcore.shares import QUARTERS, entropy_ceiling, quartile_shares


shown = study.runs()
rows = shown.runs.set_index("run")
spare = replace(study, cells={name: cell for name, cell in study.cells.items() if min(cell.seeds) >= SPARE})
outcomes = pd.concat([statistics(shown, part) for part in (spare, study)])
outcomes = outcomes.drop_duplicates("run").set_index("run")["outcome"]
tables = {name: dict(iter(getattr(shown, name).groupby("run"))) for name in ("metrics", "layers", "heads")}
STAGES = {
    "core": "Main configurations",
    "mechanism": "Mechanism: scales and other activations",
    "sizes": "Depth and width",
    "confounds": "Possible confounds",
    "learning-rate": "Learning rates and number formats",
    "follow-up": "Follow-up",
    "spare": "Choice of the learning rate, one seed each",
}
NORMED, BARE = " with LayerNorm", " without LayerNorm"
FUNCTIONS = {"G": "GELU", "R": "ReLU", "SiLU": "SiLU", "softplus": "softplus", "": "no activation"}
CHANGES = {
    r"^tanh": "in its tanh form",
    r"^(.+) lr=": r"\1, lr=",
    r"lr=(\S+)": r"learning rate \1",
    r"own best": "at its own best learning rate",
    r"rate x4": "four times the learning rate",
    r"^s=": "scaled by s = ",
    r"residual bf16": "residual stream in bfloat16",
    r"residual fp16": "residual stream in float16",
    r"T=256": "context 256",
    r"final none": "no norm at the end either",
    r"final RMSNorm": "RMSNorm at the end",
    r"dropout (\S+)": r"embedding dropout \1",
    r"embeddings x(\d+)": r"initial embeddings times \1",
    r"FFN input x(\d+)": r"initial first feed-forward matrix times \1",
    r"FFN x(\d+), /\d+": r"first feed-forward matrix times \1, second divided by it",
}


def plain(name):
    """The name of a cell in words."""
    code = re.match(r"(Pythia )?(T=256 )?SM(\+LN)?(?:\+([^ ]+))?(?: (.*))?$", name)
    if not code:  # learnable slopes, which have names in words
        return f"ReLU{BARE}, learnable {name}"
    family, context, norm, function, change = code.groups(default="")
    leaky = re.fullmatch(r"L\(([\d.]+)\)", function)
    words = (f"leaky ReLU {leaky[1]}" if leaky else FUNCTIONS[function]) + (NORMED if norm else BARE)
    changes = [context.strip(), change]
    for pattern, said in CHANGES.items():
        changes = [re.sub(pattern, said, part) for part in changes]
    return ", ".join(filter(None, [f"Pythia: {words}" if family else words, *changes]))


def rounded(values):
    """Nested lists with four significant digits; what is not finite is null."""
    if isinstance(values, (list, np.ndarray)):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if np.isfinite(values) else None


def over_steps(name, run, keys, column):
    """A column of a run, (steps, *keys), by step."""
    table = tables[name][run]
    if name == "metrics":
        table = table[table["name"] == "eval_loss"]
    shape = [table[key].nunique() for key in keys]
    return {
        int(step): part.sort_values(keys)[column].to_numpy(dtype=float).reshape(shape) if keys else part[column].iloc[0]
        for step, part in table.groupby("step")
    }


def padded(by_step, steps):
    """The values at these steps; missing where the run has ended."""
    missing = np.full(np.shape(next(iter(by_step.values()))), np.nan)
    return np.array([by_step.get(step, missing) for step in steps])


def ranked(heads):
    """Heads (steps, layers, heads) of each layer in the order of their entropy at the last step, the highest first."""
    order = np.argsort(-np.nan_to_num(heads[-1]), axis=-1, kind="stable")
    return np.take_along_axis(heads, order[None], axis=-1)


def settings(row):
    """What tells the cells of the study apart, in words."""
    return {
        "model": f"{FAMILIES[row['model.family']]} {row['configuration']}",
        "layers, width, context": f"{row['model.num_hidden_layers']}, {row['model.hidden_size']}, {row['data.context']}",
        "learning rate": f"{row['training.learning_rate']:g}",
        "final norm": row["model.final_norm"],
        "embedding dropout": f"{row['model.embd_pdrop']:g}",
        "residual stream": row["model.residual_dtype"],
        "slope decay": f"{row['training.slope_weight_decay']:g}",
        "embedding, FFN gain": f"{row['model.embedding_gain']:g}, {row['model.ffn_gain']:g}",
    }


def described(cell, experiments):
    """All that the page shows of a cell with the runs of its settings, run by run."""
    ids = [e.id for e in sorted(experiments, key=lambda e: e.seed) if e.id in rows.index]
    row = rows.loc[ids[0]]
    ceiling = entropy_ceiling(int(row["data.context"]))
    losses = {run: over_steps("metrics", run, [], "value") for run in ids}
    heads = {run: over_steps("heads", run, ["layer", "head"], "entropy") for run in ids}
    x, steps = (sorted(set().union(*of.values())) for of in (losses, heads))
    learned = next((c for c in ("slope", "scale") if tables["layers"][ids[0]][c].notna().any()), None)
    runs = []
    for run in ids:
        last = heads[run][max(heads[run])]
        entropies = ranked(np.array([heads[run][step] for step in sorted(heads[run])])) / ceiling
        entropies = dict(zip(sorted(heads[run]), entropies, strict=True))
        thousandths = np.round(1000 * padded(entropies, steps))
        runs.append(
            {
                "run": run,
                "seed": int(rows.loc[run, "seed"]),
                "outcome": outcomes[run],
                "perplexity": rounded(float(rows.loc[run, "perplexity"])),
                "loss": rounded(padded(losses[run], x)),
                "heads": [[[int(v) if v == v else None for v in h] for h in la] for la in thousandths.tolist()],
                "shares": rounded(quartile_shares(last, ceiling)),
                "learned": learned and rounded(padded(over_steps("layers", run, ["layer"], learned), steps)),
            }
        )
    style = STYLES.get(row["configuration"], {})
    return {
        "label": cell.name,
        "words": plain(cell.name),
        "stage": "spare" if min(cell.seeds) >= SPARE else cell.stage,
        "color": style.get("color"),
        "marker": style.get("marker"),
        "settings": settings(row),
        "learned": learned,
        "x": x,
        "steps": steps,
        "runs": runs,
    }


# Cells with equal settings are one entry, named after the first of them. Seeds that choose a rate are shown only where no others are.
entries = {}
for cell in sorted(study.cells.values(), key=lambda cell: min(cell.seeds) >= SPARE):
    first, experiments = entries.setdefault(cell.experiments[0].replace(seed=0).id, (cell, {}))
    if min(cell.seeds) < SPARE or first is cell:
        experiments |= {e.id: e for e in cell.experiments}
cells = [
    described(cell, experiments.values())
    for cell, experiments in entries.values()
    if experiments.keys() & {*rows.index}
]
entry_of = {name: entries[cell.experiments[0].replace(seed=0).id][0].name for name, cell in study.cells.items()}
by_label = {cell["label"]: cell for cell in cells}
start = ([name for name in ("SM+G", "SM+R") if name in by_label] + [*by_label])[:2]


def perplexities(cell):
    return {run["seed"]: run["perplexity"] for run in cell["runs"] if run["outcome"] == "trained"}


def lower(gelu, relu):
    """Whether ReLU ends lower than GELU, by the mean over the seeds that both have; None if there is none."""
    first, second = (perplexities(by_label[name]) for name in (gelu, relu))
    ratios = [np.log(second[seed] / first[seed]) for seed in first if seed in second]
    return bool(np.mean(ratios) < 0) if ratios else None


alike = [(name, re.sub(r"SM\+G\b", "SM+R", name)) for name in study.cells if re.search(r"SM\+G( |$)", name)]
alike = dict.fromkeys((entry_of[gelu], entry_of[relu]) for gelu, relu in alike if relu in study.cells)
answers = {pair: answer for pair in alike if {*pair} <= {*by_label} and (answer := lower(*pair)) is not None}
exceptions = "; ".join(by_label[gelu]["words"] for (gelu, _), answer in answers.items() if not answer)
Markdown(
    f"**Without LayerNorm, ReLU ends at a lower perplexity than GELU in {sum(answers.values())} of the {len(answers)} settings that have both.** "
    f"Choose any two of the {len(cells)} configurations."
)


# %% tags=["remove-input"]
def menu(side, words, chosen):
    groups = []
    for stage, title in STAGES.items():
        options = [
            f'<option value="{escape(cell["label"])}"{" selected" * (cell["label"] == chosen)}>{escape(cell["words"])}</option>'
            for cell in cells
            if cell["stage"] == stage
        ]
        groups.append(f'<optgroup label="{title}">{"".join(options)}</optgroup>' if options else "")
    return f'<label>{words} <select id="nf-{side}">{"".join(groups)}</select></label>'


QUARTERS_IN_WORDS = [f"{name} quarter" for name in ("the lowest", "the second", "the third", "the highest")]
assert len(QUARTERS_IN_WORDS) == len(QUARTERS)
page = {"start": start, "quarters": QUARTERS_IN_WORDS, "cells": cells}
content = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")
menus = menu("a", "First", start[0]) + menu("b", "Second", start[1])
HTML(
    f'<div class="nf-explorer"><div class="nf-choices">{menus}</div><script type="application/json">{content}</script>'
    "<noscript><p>The comparison needs JavaScript. The table below has the final perplexity of every configuration.</p></noscript></div>"
)

# %% [markdown]
# ## How to read it

# %% tags=["remove-input"]
Markdown(
    f"GELU is lower than ReLU without LayerNorm in these of the settings that have both: {exceptions}."
    if exceptions
    else ""
)

# %% [markdown]
# The slider moves through training. It reads the loss at that update, and it sets the {term}`entropy <head entropy>` of layers and heads
# to that of the nearest {term}`probe`. Entropies are divided by their {term}`ceiling`.
#
# All runs with the same settings are one entry. Equal {term}`seeds <seed>` saw the same data in the same order, so perplexities are compared seed by seed. Runs that are not
# {term}`trained` are left out. Where no seed is trained in both, each configuration shows its own runs, up to where the first of them
# stopped.
#
# Heads are interchangeable: the first head of one seed has nothing to do with the first head of another. So the heads of each layer are
# put in the order of their final entropy before they are averaged. Quarters are those of the range from zero to the ceiling
# {eq}`eq-quarters`.
#
# The address in the browser names the two configurations. Keep it to come back, or send it to somebody.

# %% tags=["remove-input"]
study_banner(shown, study)


# %% tags=["remove-input"]
def table_row(cell):
    values = list(perplexities(cell).values()) or [np.nan]
    return {
        "code": f"`{cell['label']}`",
        "configuration": cell["words"],
        "seeds": ", ".join(str(run["seed"]) for run in cell["runs"]),
        "left out": str(len(cell["runs"]) - len(perplexities(cell))),
        "perplexity, geometric mean": float(np.exp(np.mean(np.log(values)))),
        "lowest": min(values),
        "highest": max(values),
    }


folded(
    f"Final perplexity of all {len(cells)} configurations",
    markdown_table(pd.DataFrame(map(table_row, cells)), digits=2),
)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"Compare two configurations that differ in one thing: in these short runs without LayerNorm, ReLU in place of GELU lowers the perplexity in "
    f"{sum(answers.values())} of {len(answers)} settings."
)
