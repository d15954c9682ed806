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
# notebooks and one grid of runs, in four sizes. `study` and `transient` are the two {term}`studies <study>` over seeds, with runs of their own. Each is a
# file in `notebooks/params/`, and the tables below are computed from it.

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

from nfbook import cost
from nfbook.claims import of_cell, statistics
from nfbook.presets import MAIN, PAPER_TOKENS, PRESETS, Preset
from nfbook.recorded import recorded_dir
from nfbook.report import glue, markdown_table, study_runs
from nfbook.study import STUDIES, Study
from nfcore.runs import read_records


presets = {name: Preset.load(name) for name in PRESETS}
studies = {name: Study.load(name) for name in STUDIES}


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
for size in [*presets.values(), *studies.values()]:
    for experiment in size.experiments():
        sizes.setdefault(experiment.model, cost.parameters(experiment.model))

# %% [markdown]
# ## Sizes

# %% tags=["remove-input"]
rows = []
for name, size in (presets | studies).items():
    runs = size.experiments()
    if name in presets:
        families = {family: next(e for e in runs if e.model.family == family) for family in ("gpt2", "pythia")}
        main, others = size.steps["main"], size.steps.items()
        others = ", ".join(f"{budget} {updates(steps)}" for budget, steps in others if budget != "main")
    else:
        families = {"gpt2": size.cells["SM+G"].experiments[0], "pythia": size.cells["Pythia SM+G"].experiments[0]}
        main = families["gpt2"].training.steps
        steps = {e.training.steps for e in runs} - {main}
        others = f"{min(steps):,} to {max(steps):,}" if steps else "none"
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
            "updates of main runs": updates(main),
            "updates of other runs": others,
            "precision": first.training.precision,
            "residual stream": first.model.residual_dtype,
            "runs": str(len(runs)),
            "tokens of all runs, planned": count(sum(map(tokens, runs))),
        }
    )
markdown_table(pd.DataFrame(rows).set_index("preset").T.reset_index(names=""))

# %% [markdown]
# The other runs of a preset are those of [Perplexity](perplexity.ipynb) (`table`, and `context` with Pythia also at twice T) and of
# [Slopes](slopes.ipynb) (`slopes`, `instability`). Runs with the same settings are one run, whichever notebooks show them, so the number of
# runs differs between presets.
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
ended = pd.to_datetime(frame["provenance.finished"])
elapsed = (ended.max() - (ended - pd.to_timedelta(frame["provenance.wall_seconds"], unit="s")).min()).total_seconds()
devices = ", ".join(sorted(frame["provenance.device"].unique()))
threads = sorted(frame["provenance.threads"].unique())
threads = f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
diverged = int((frame["status"] == "diverged").sum())
glue(
    grid_minutes=f"{seconds / 60:.0f}", grid_tokens=count(seen), grid_rate=f"{seen / seconds:,.0f}", grid_device=devices
)
Markdown(
    f"The {len(frame)} runs of preset `{preset.preset}` in this book took {elapsed / 60:.0f} minutes from the first start to the last end, or "
    f"{seconds / 60:.0f} minutes of training added up. As many runs train at the same time as there are cores. They saw {count(seen)} tokens"
    + (f", fewer than planned because {diverged} of them diverged" if diverged else "")
    + f". That is {seen / seconds:,.0f} tokens a second for each run, on {devices}, with {threads} a run. [Runs and versions](status.ipynb) lists "
    "each run."
)

# %% tags=["remove-input"]
rows = []
for name, study in studies.items():
    records = read_records(recorded_dir(name))
    made = [record["provenance"] for record in records]
    hours = sum(m["wall_seconds"] for m in made) / 3600
    measured = cost.recorded(records)
    plans = [
        sum(p.seconds for p in cost.plan(study.experiments(), device, measured)[0]) / 3600
        for device in sorted({m["device"] for m in made})
    ]
    planned = f"{min(plans):.0f}" + (f" to {max(plans):.0f}" if f"{min(plans):.0f}" != f"{max(plans):.0f}" else "")
    glue(**{f"{name}_hours": f"{hours:.1f}", f"{name}_plan": planned})
    rows.append(
        {
            "study": f"`{name}`",
            "runs, recorded": str(len(records)),
            "their hours": f"{hours:.1f}",
            "runs, planned": str(len(study.experiments())),
            "their hours, by the plan": planned,
            "made on": "; ".join(sorted({m["device"] for m in made})),
        }
    )
counts = statistics(study_runs(studies["study"]), studies["study"])
seeds = sorted({len(of_cell(counts, configuration)) for configuration in MAIN})
glue(quick_hours=f"{seconds / 3600:.1f}", study_main_seeds=" to ".join(map(str, seeds)))
markdown_table(pd.DataFrame(rows))

# %% [markdown]
# Hours are of one thread, with evaluations and probes. The plan takes the speed of recorded runs of the same shape, scaled by operations
# where a shape has none; it is given for each processor on which runs were recorded, from the fastest to the slowest.
#
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"`{preset.preset}` gives an answer in {elapsed / 60:.0f} minutes on {devices}; `study` gives the verdicts; `gpu` and `paper` have the paper's "
    "sizes."
)
