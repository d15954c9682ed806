# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Instability
#
# Which {term}`norm-free` models {term}`diverge <diverged>`, and when ([C7](../claims-of-the-paper.md))? A run with a value that is not
# finite ends there, and its step and the first layer with such a value are its result. One seed shows what can happen;
# [Claims](claims.ipynb) compares times to divergence over seeds.
#
# We show GPT-2 with ReLU, GELU, a leaky slope of 0.1 and a linear feed-forward network, at the preset's learning rate and at ten
# times that, and GELU with matrices and {term}`residual stream` in bfloat16.

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
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from nfbook.figures import STYLES, show_figure, use_style
from nfbook.report import banner, markdown_table, published, sources


use_style()
shown = sources(preset, "instability")
banner(preset, next(iter(shown.values())))

# %% [markdown]
# The paper reports final perplexities of SM+R and SM+G {cite}`jha2024relus`, a later paper NaNs for SM {cite}`jha2025entropy`, and a plot
# script is named after NaNs at a leaky slope of 0.1 {cite}`jha2024code`. They belong to the paper's learning rate and to float16, and
# stand next to our runs at the preset's rate. The outcome names the step and the place of the first value that is not finite. An
# {term}`exploded gradient` is another event: it is clipped, and the run goes on.

# %% tags=["remove-input"]
paper = published("perplexity")
theirs = {name: f"perplexity {value[0]:.3f}" for name, value in paper["GPT2_T128"].items()}
theirs |= {"SM": paper["GPT2_T128_softmax_only"]["SM"], "SM+L(0.1)": "NaNs (script name)"}


def outcome(run):
    """How far a run came, and where it diverged."""
    if run["status"] != "diverged":
        return f"{int(run['step'])} steps"
    head = run["diverged.layer"] == run["model.num_hidden_layers"]
    place = "head" if head else f"layer {int(run['diverged.layer'])}"
    where = run["diverged.where"] if run["diverged.where"] == "evaluation" else f"{run['diverged.where']} pass"
    return f"diverged at step {int(run['diverged.step'])}, {place}, {where}"


own = next(iter(shown.values()))
base = own.runs["training.learning_rate"].min()
rows = []
for _, run in own.runs.iterrows():
    heads = own.heads[own.heads["run"] == run["run"]]
    last = heads[heads["step"] == heads["step"].max()]
    losses = own.metrics[(own.metrics["run"] == run["run"]) & (own.metrics["name"] == "train_loss")]["value"]
    rows.append(
        {
            "configuration": run["configuration"],
            "learning rate": f"{run['training.learning_rate']:g}",
            "precision": run.get("provenance.precision", run["training.precision"]),
            "residual": run["model.residual_dtype"],
            "published": theirs[run["configuration"]] if run["training.learning_rate"] == base else "-",
            "outcome": outcome(run),
            "non-finite rows": int(last["nonfinite_rows"].sum()),
            "largest logit": heads["largest_logit"].max(),
            "largest loss": losses.max(),
            "last loss": losses.iloc[-1],
        }
    )
markdown_table(pd.DataFrame(rows), digits=2)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-instability", "caption": "Largest absolute attention score over all heads, on the probe batch, at the preset's learning rate (solid) and ten times that (dashed). A cross marks a run that diverged."}, "image": {"alt": "Largest attention logits against steps on a logarithmic axis, for each norm-free configuration and learning rate."}}
figure, panel = plt.subplots(figsize=(5.5, 3.4))
highest, stopped = {}, []
for _, run in own.runs[own.runs["training.precision"] == own.runs["training.precision"].iloc[0]].iterrows():
    logits = own.heads[own.heads["run"] == run["run"]].groupby("step")["largest_logit"].max()
    if run["status"] == "diverged":
        logits = logits[logits.index < run["diverged.step"]]  # what comes after is not a measurement
    high = run["training.learning_rate"] > base
    name = f"{run['configuration']}, rate {run['training.learning_rate']:g}"
    highest[name] = max(highest.get(name, 0), logits.max())
    style = STYLES[run["configuration"]]
    panel.plot(
        logits.index,
        logits,
        linestyle="--" if high else "-",
        linewidth=1.2,
        markersize=4,
        label=None if high else run["configuration"],
        gid=name,
        **style,
    )
    if run["status"] == "diverged":
        stopped.append(f"{name}, at step {int(run['diverged.step'])}")
        panel.axvline(run["diverged.step"], color=style["color"], linewidth=0.8, linestyle=":")
        panel.plot(
            [run["diverged.step"]],
            [logits.iloc[-1]],
            marker="x",
            color=style["color"],
            markersize=9,
        )
panel.set(yscale="log", xlabel="optimiser step", ylabel="largest |attention score|")
panel.legend()
most = max(highest, key=highest.get)
finding = f"The largest score is {float(f'{highest[most]:.3g}'):,g} ({most}). "
finding += f"Diverged: {'; '.join(stopped)}." if stopped else "No run diverged."
show_figure(figure, own, finding=finding)

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
bad = own.runs[own.runs["status"] == "diverged"]
names = ", ".join(
    f"{r['configuration']} at learning rate {r['training.learning_rate']:g} (step {int(r['diverged.step'])})"
    for _, r in bad.iterrows()
)
Markdown(
    f"{len(bad)} of {len(own.runs)} runs diverged"
    + (f": {names}." if len(bad) else ".")
    + " The published softmax-only model ended in NaNs."
)
