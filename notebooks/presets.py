# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Presets, time and cost
#
# Choose a {term}`preset` by the machine you have: `quick` for two processor cores, `gpu` or `paper` for a GPU. There is one set of
# notebooks and one grid of runs, in four sizes. A preset is a file in `notebooks/params/`, and the tables below are computed from it.

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

from nfbook.cost import parameters as count_parameters
from nfbook.presets import PAPER_TOKENS, PRESETS, Preset
from nfbook.report import glue, markdown_table


presets = {name: Preset.load(name) for name in PRESETS}


def tokens(experiment):
    steps = experiment.training.steps
    return PAPER_TOKENS if steps is None else steps * experiment.training.batch_size * experiment.data.context


def updates(steps):
    return "one epoch" if steps is None else f"{steps:,}"


def count(number):
    for unit, name in ((1e9, " billion"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number / 1e6:.2g} M"


sizes = {}
for preset_of in presets.values():
    for experiment in preset_of.experiments():
        sizes.setdefault(experiment.model, count_parameters(experiment.model))

# %% [markdown]
# ## Sizes

# %% tags=["remove-input"]
rows = []
for name, preset_of in presets.items():
    runs = preset_of.experiments()
    families = {family: next(e for e in runs if e.model.family == family) for family in ("gpt2", "pythia")}
    shapes = [f"{e.model.num_hidden_layers} layers, d = {e.model.hidden_size}" for e in families.values()]
    first = families["gpt2"]
    rows.append(
        {
            "preset": f"`{name}`",
            "GPT-2 shape": shapes[0],
            "Pythia shape": shapes[1],
            "parameters, GPT-2 / Pythia": " / ".join(count(sizes[e.model][0]) for e in families.values()),
            "corpus": first.data.corpus,
            "vocabulary": f"{first.data.vocab_size:,}",
            "T": str(first.data.context),
            "tokens an update": f"{first.training.batch_size * first.data.context:,}",
            "peak learning rate": f"{first.training.learning_rate:g}",
            "updates of main runs": updates(preset_of.steps["main"]),
            "updates of other runs": ", ".join(
                f"{budget} {updates(steps)}" for budget, steps in preset_of.steps.items() if budget != "main"
            ),
            "precision": first.training.precision,
            "residual stream": first.model.residual_dtype,
            "runs": str(len(runs)),
            "tokens of the grid": count(sum(map(tokens, runs))),
        }
    )
markdown_table(pd.DataFrame(rows).set_index("preset").T.reset_index(names=""))

# %% [markdown]
# The context experiment also runs Pythia at twice T. Runs with the same settings are one run, whichever notebooks show them, so the number
# of runs differs between presets.
#
# ## Time and cost, estimated
#
# Training takes about 6 floating-point operations for each token and each parameter in a matrix product {cite}`kaplan2020scaling`.
# Attention adds a few per cent at T = 128 and is left out. Two numbers are assumptions: 2 × 10¹⁴ operations a second, about a fifth of
# the 16-bit peak in the data sheet of the H100, and 2 dollars a GPU-hour. A model this small may reach less, and evaluation comes on top.

# %% tags=["remove-input"]
RATE, PRICE = 2e14, 2.0
rows = []
for name in ("gpu", "paper"):
    operations = sum(6 * sizes[e.model][1] * tokens(e) for e in presets[name].experiments())
    hours = operations / RATE / 3600
    rows.append(
        {
            "preset": f"`{name}`",
            "operations of the grid": f"{operations:.2g}",
            "GPU-hours": f"{hours:.0f}",
            "dollars": f"{hours * PRICE:.0f}",
        }
    )
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# ## Time, measured

# %% tags=["remove-input"]
frame = preset.runs().runs
seconds, seen = frame["provenance.seconds"].sum(), frame["provenance.tokens"].sum()
devices = ", ".join(sorted(frame["provenance.device"].unique()))
threads = sorted(frame["provenance.threads"].unique())
threads = f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
glue(
    grid_minutes=f"{seconds / 60:.0f}", grid_tokens=count(seen), grid_rate=f"{seen / seconds:,.0f}", grid_device=devices
)
Markdown(
    f"The {len(frame)} runs of preset `{preset.preset}` in this book took {seconds / 60:.1f} minutes of training together, for {count(seen)} "
    f"tokens. That is {seen / seconds:,.0f} tokens a second for each run, on {devices}, with {threads} a run. As many runs train at the same "
    "time as there are cores. [Status](status.ipynb) lists each run."
)

# %% [markdown]
# ## What to remember
#
# `quick` gives an answer in half an hour on two processor cores; `study` gives the verdicts; `gpu` and `paper` have the paper's sizes.
