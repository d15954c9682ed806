# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speed
#
# This page shows how fast this package trains, what its telemetry costs, and whether what makes it fast changes what is learnt.
# Everything here is measured by `make bench` and read from `benchmarks/results/`: the committed results, or those of your machine
# once you have run it. Both sides of a comparison run in the same process in alternating order; a figure is the median of
# the rounds, a ratio the median of the ratios round by round.

# %% tags=["remove-input"]
import json
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from nfbook import cost
from nfbook.figures import show_figure, use_style
from nfbook.presets import FAMILIES, Preset
from nfbook.recorded import recorded_dir
from nfbook.report import glue, markdown_table
from nfcore import runs
from nfcore.settings import Experiment, project_root


use_style()
results = {
    path.stem: json.loads(path.read_text())
    for path in sorted((project_root() / "benchmarks" / "results").glob("*.json"))
}
order = ("training", "equality", "telemetry", "data", "startup", "scaling")


def rows(section, kind):
    return [row for row in results[section]["rows"] if row["kind"] == kind]


def spread(value, digits=3):
    """A median with the smallest and the largest round."""
    return f"{value['median']:,.{digits}g} ({value['low']:,.{digits}g} to {value['high']:,.{digits}g})"


def whole(value):
    return f"{value['median']:,.0f} ({value['low']:,.0f} to {value['high']:,.0f})"


made = pd.DataFrame({name: results[name]["provenance"] for name in order}).T
Markdown(
    "*Measured on "
    + "; ".join(sorted(made["device"].unique()))
    + f", {made['threads'].iloc[0]} threads, torch {made['torch'].iloc[0]}, transformers {made['transformers'].iloc[0]}, "
    + f"{made['repeats'].iloc[0]} rounds.*"
)

# %% [markdown]
# ## Targets
#
# What was wanted before it was measured. *Beside* marks a figure without a target of its own; *not measured* one that
# needs a GPU, which this machine has not.

# %% tags=["remove-input"]
table = []
for name in order:
    for target in results[name]["targets"]:
        sign = "at least" if target["at_least"] else "at most"
        word = {True: "met", False: "**missed**", None: "not measured" if target["measured"] is None else "beside"}
        table.append(
            {
                "section": name,
                "figure": target["name"],
                "measured": "" if target["measured"] is None else f"{target['measured']:,.3g} {target['unit']}",
                "wanted": "" if target["wanted"] is None else f"{sign} {target['wanted']:,g} {target['unit']}",
                "": word[target["met"]],
            }
        )
targets = pd.DataFrame(table)
decided = targets[targets[""].isin(["met", "**missed**"])]
glue(targets_met=str((decided[""] == "met").sum()), targets_all=str(len(decided)))
markdown_table(targets)

# %% [markdown]
# ## Training
#
# Tokens a second of one training run, without evaluation, probes and checkpoints, of SM+LN+G, the one configuration that all
# sides have. *eager* is the way of the public code {cite}`jha2024code`: Hugging Face's GPT-2 {cite}`wolf2020transformers` with the
# attention maps returned on every update, under its Trainer. *sdpa* is the same with fused attention {cite}`dao2022flashattention`.
# *loop* is a plain loop in the manner of nanoGPT {cite}`karpathy2022nanogpt` around our model, without
# the Trainer. *ours* is `nfcore.train` in float32, then with bfloat16 products, compiled, and both.

# %% tags=["remove-input"]
table = []
for row in rows("training", "training"):
    table.append(
        {
            "shape": row["shape"],
            "T x sequences": f"{row['context']} x {row['sequences_a_step']}",
            "side": row["side"],
            "tokens/s": whole(row["tokens_per_second"]),
            "over eager": spread(row["over_eager"]),
            "compiling (s)": f"{row['compile_seconds']:.0f}" if "compile_seconds" in row else "",
            "pays after updates": ""
            if "compile_seconds" not in row
            else "never"
            if row["pays_after_updates"] is None
            else f"{row['pays_after_updates']:,.0f}",
        }
    )
markdown_table(pd.DataFrame(table))

# %% tags=["remove-input"]
lines = []
for shape in dict.fromkeys(row["shape"] for row in rows("training", "training")):
    rates = {r["side"]: r["tokens_per_second"]["samples"] for r in rows("training", "training") if r["shape"] == shape}
    over = [loop / own for loop, own in zip(rates["loop"], rates["ours"], strict=True)]
    word = "differ by no more than the rounds do" if min(over) < 1 < max(over) else "differ in every round"
    lines.append(f"{shape} {median(over):.2f} ({min(over):.2f} to {max(over):.2f}): they {word}")
Markdown(
    "What the Trainer itself costs is the speed of the plain loop over ours, here with its smallest and largest round: "
    + "; ".join(lines)
    + "."
)

# %% [markdown]
# The last column of the table is the rule for `training.compile` on this machine: compile where a run has more updates than that. It
# counts from an empty cache of compiled code; a second run of the same model compiles in a fraction of the time.

# %% tags=["remove-input"]
lines = []
for row in rows("training", "allocator"):
    kept, back = (row["tokens_per_second"][name]["median"] for name in ("kept", "given back"))
    lines.append(
        f"Training tells the C library to keep what it frees. Otherwise the kernel hands out the same pages again at every "
        f"update: {kept:,.0f} tokens/s instead of {back:,.0f} at the quick shape in bfloat16 "
        f"({row['speedup']['median']:.2f} times as many, {row['speedup']['low']:.2f} to {row['speedup']['high']:.2f}). The sides "
        "above all have this, since it is a setting of the process."
    )
Markdown("\n\n".join(lines))

# %% [markdown]
# ## The same losses
#
# Each fast path against float32 as the Trainer computes it, from the same weights over the same batches: the largest
# difference of a training loss at any update. And, for precision, whole runs: the final evaluation loss of the main
# configurations in bfloat16 less that of the recorded float32 runs of the same seeds, beside the standard deviation
# over seeds.

# %% tags=["remove-input"]
table = [
    {
        "configuration": row["configuration"],
        "path": row["path"],
        "updates": str(row["updates"]),
        "largest difference (nats)": f"{row['largest_difference']:.1e}",
        "bound": f"{row['bound']:g}",
        "loss, first to last": f"{row['first_loss']:.2f} to {row['last_loss']:.2f}",
    }
    for row in rows("equality", "path")
]
markdown_table(pd.DataFrame(table))

# %% tags=["remove-input"]
table = [
    {
        "configuration": row["configuration"],
        "seeds": ", ".join(map(str, row["seeds"])),
        "bfloat16 less float32 (nats), mean": f"{row['difference']:+.4f}",
        "each": ", ".join(f"{x:+.4f}" for x in row["differences"]),
        "SD over seeds, float32": f"{row['seed_sd']:.4f}",
    }
    for row in rows("equality", "precision")
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# ## Telemetry
#
# A {term}`probe` measures the {term}`entropy <head entropy>` of every head on the held-out batch and on random tokens, and the state of every layer. Its
# cost is a share of training time that falls with the number of updates between probes.

# %% tags=["remove-input"]
table = [
    {
        "shape": row["shape"],
        "update (s)": spread(row["step_seconds"]),
        "probe (s)": spread(row["probe_seconds"]),
        **{f"every {n} updates": f"{100 * row[f'share_every_{n}_steps']['median']:.2g} %" for n in (1, 10, 100)},
    }
    for row in rows("telemetry", "probe")
]
markdown_table(pd.DataFrame(table))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-entropy-cost", "caption": "Cost of the entropy of attention over the context. Left: time over one forward of torch's fused attention. Right: peak memory of one call; twelve heads of width 64 up to T = 4,096, one head beyond. The materialised map stops where it needs more than 6 GiB."}, "image": {"alt": "Two log-log panels against the context length, with a curve for each way to compute the entropy."}}
found = rows("telemetry", "entropy")
looks = {"lse": ("#009E73", "D"), "chunked": ("#0072B2", "o"), "materialised": ("#D55E00", "^")}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
for method, (color, marker) in looks.items():
    own = [row for row in found if row["method"] == method and "seconds" in row]
    contexts = [row["context"] for row in own]
    style = dict(color=color, marker=marker, markersize=4, linewidth=1.2, label=method)
    left.plot(contexts, [row["over_sdpa"]["median"] for row in own], **style)
    right.plot(contexts, [row["peak_bytes"] / 2**20 for row in own], **style)
left.axhline(1, color="#666666", linewidth=0.8, gid="one attention forward")
left.set(
    title="time", xscale="log", yscale="log", xlabel="context T (tokens)", ylabel="time over one attention forward"
)
right.set(title="memory", xscale="log", yscale="log", xlabel="context T (tokens)", ylabel="peak memory (MiB)")
left.legend()
measured = {
    method: {row["context"]: row for row in found if row["method"] == method and "seconds" in row} for method in looks
}
longest = max(set.intersection(*map(set, measured.values())))
costs = ", ".join(
    f"{method} {of[longest]['over_sdpa']['median']:.1f} times and {of[longest]['peak_bytes'] / 2**20:,.0f} MiB"
    for method, of in measured.items()
)
show_figure(
    figure,
    finding=f"Time over one attention forward and peak memory at T = {longest:,}, the longest with all: {costs}.",
)

# %% [markdown]
# The largest error in {term}`nats` against float64, over the standard deviation of the scores. In float32 the difference of the two
# terms of {eq}`eq-lse` loses digits when scores are large; centring the keys keeps that small.

# %% tags=["remove-input"]
found = pd.DataFrame(rows("telemetry", "error"))
found["column"] = found["method"] + ", " + found["dtype"]
found = found.pivot(index="score_std", columns="column", values="largest_error_nats")
markdown_table(found.map(lambda x: f"{x:.1e}").reset_index(names="standard deviation of the scores"))

# %% [markdown]
# ## From text to tokens
#
# The same JSON lines, tokenizer and threads: `nfcore.prepare`, and `datasets.map` as Hugging Face's own language-model example
# uses it. *Cold* starts from nothing, *cached* finds what the first call left.

# %% tags=["remove-input"]
table = [
    {
        "": row["kind"],
        "side": row["side"],
        "seconds": spread(row["seconds"]),
        "documents/s": f"{row['documents_per_second']['median']:,.0f}",
        "M tokens/s": f"{row['tokens_per_second']['median'] / 1e6:.2f}",
        "datasets.map takes": f"{row['speedup']['median']:.2f} x",
    }
    for kind in ("cold", "cached")
    for row in rows("data", kind)
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# The tokenizer alone, on texts that are in memory already, is what neither side can do without: its line bounds the other two.

# %% tags=["remove-input"]
sizes = "; ".join(f"{row['megabytes']} MB of text: {row['peak_mib']:.0f} MiB" for row in rows("data", "memory"))
Markdown(f"Peak memory above the start of the process: {sizes}.")

# %% [markdown]
# ## Starting, saving, resuming

# %% tags=["remove-input"]
names = {
    "python": "Python itself",
    "import": "`import nfcore`, without torch",
    "help": "`python -m nfcore --help`",
    "first step": "a run of one update, from the command to its record",
    "resume": "a run that resumes one update before its end",
    "rebuild": "`make book` with nothing to do (preset smoke)",
}
table = [{"": names[row["what"]], "seconds": spread(row["seconds"])} for row in rows("startup", "startup")]
table += [
    {"": f"a checkpoint of {row['shape']}, {row['bytes'] / 1e6:,.0f} MB", "seconds": spread(row["seconds"])}
    for row in rows("startup", "checkpoint")
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# ## How cost grows
#
# One size changes at a time, the others stay at width 256, depth 4, T = 128, 16 sequences and a vocabulary of 4,096. The
# roofline of the machine is measured too: what one large matrix product reaches, and the bandwidth of a copy.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-scaling", "caption": "Training speed over width, depth, context, batch and vocabulary. Above: tokens a second, and peak memory (dashed, right axis). Below: model operations a second over the measured peak of a matrix product in the same precision (dotted line: all of it)."}, "image": {"alt": "Panels of tokens a second, peak memory and share of the measured peak, a column for each size that is changed."}}
found = rows("scaling", "scaling")
overs = list(dict.fromkeys(row["over"] for row in found))
figure, axes = plt.subplots(2, len(overs), figsize=(2.0 * len(overs), 4.4), sharey="row")
for column, over in enumerate(overs):
    own = [row for row in found if row["over"] == over]
    sizes = [row[over] for row in own]
    top, bottom = axes[0][column], axes[1][column]
    top.plot(
        sizes,
        [row["tokens_per_second"]["median"] for row in own],
        "o-",
        color="#0072B2",
        markersize=3,
        linewidth=1.2,
        gid=f"tokens/s over {over}",
    )
    memory = top.twinx()
    memory.plot(
        sizes,
        [row["peak_bytes"] / 2**20 for row in own],
        "s--",
        color="#D55E00",
        markersize=3,
        linewidth=1,
        gid=f"peak memory (MiB) over {over}",
    )
    memory.set_yscale("log")
    memory.set_ylim(10, 2e4)
    memory.grid(False)
    memory.spines["right"].set_visible(True)
    if column == len(overs) - 1:
        memory.set_ylabel("peak memory (MiB)", color="#D55E00")
    else:
        memory.set_yticklabels([])
    bottom.plot(
        sizes,
        [row["of_measured_peak"]["median"] for row in own],
        "o-",
        color="#009E73",
        markersize=3,
        linewidth=1.2,
        gid=f"share of the peak over {over}",
    )
    bottom.axhline(1, color="#666666", linestyle=":", linewidth=1)
    top.set(xscale="log", yscale="log")
    bottom.set(xscale="log", xlabel=over, ylim=(0, 1.05))
axes[0][0].set_ylabel("tokens/s", color="#0072B2")
axes[1][0].set_ylabel("share of the peak")
ends = {over: sorted((row for row in found if row["over"] == over), key=lambda row: row[over]) for over in overs}
factors = ", ".join(
    f"{over} {last['tokens_per_second']['median'] / first['tokens_per_second']['median']:.2g}"
    for over, (first, *_, last) in ends.items()
)
best = max(found, key=lambda row: row["of_measured_peak"]["median"])
show_figure(
    figure,
    finding=f"From the smallest to the largest size tokens a second change by these factors: {factors}. The largest share of "
    f"the peak is {100 * best['of_measured_peak']['median']:.0f} % ({best['over']} {best[best['over']]:,}).",
)

# %% tags=["remove-input"]
peaks = {row["what"]: row for row in rows("scaling", "peak")}
(profile,) = rows("scaling", "profile")
largest = ", ".join(f"`{row['operator']}` {100 * row['share']:.0f} %" for row in profile["largest"][:6])
mfu = found[-1]["mfu"]
Markdown(
    f"Measured peaks: {peaks['float32']['median']:,.0f} GFLOP/s in float32, {peaks['bfloat16']['median']:,.0f} in bfloat16, "
    f"{peaks['bandwidth']['median']:.1f} GB/s. The utilisation of a data sheet's peak (MFU) is "
    f"{mfu if isinstance(mfu, str) else f'{100 * mfu:.0f} %'} here; it is given for GPUs whose peak is in the table of "
    f"`nfbook.cost`. In an update of {profile['shape']} in float32, matrix products take "
    f"{100 * profile['matmul_share']:.0f} % of the time and reach {100 * profile['matmul_of_peak']:.0f} % of the measured peak; "
    f"by operator: {largest}."
)

# %% [markdown]
# ## Planned and taken
#
# `python -m nfbook plan PRESET` says before a run what it takes. Here it is asked for the recorded runs of preset `quick` with
# nothing to judge by but the benchmark above: the time of a run from its start to its record, planned and taken. Both are counted by
# thread; a benchmark has the machine for itself, and these runs shared it two at a time.

# %% tags=["remove-input"]
recorded = runs.read_records(recorded_dir("quick"))
planned, _ = cost.plan(
    [Experiment.from_dict(r["settings"]) for r in recorded], made.loc["training", "device"], cost.benchmarked()
)
table = []
for plan, record in zip(planned, recorded, strict=True):
    taken = record["provenance"]
    assert (plan.parameters, plan.tokens) == (taken["parameters"], taken["tokens"]) or record["diverged"]
    if record["provenance"]["device"] == made.loc["training", "device"] and not record["diverged"]:
        shape = f"{FAMILIES[plan.experiment.model.family]}, T = {plan.experiment.data.context}"
        table.append({"runs of": shape, "planned": plan.seconds, "taken": taken["wall_seconds"]})
compared = pd.DataFrame(table, columns=["runs of", "planned", "taken"])
compared["ratio"] = compared["taken"] / compared["planned"]
by_shape = compared.groupby("runs of", sort=False)
spans = {"": compared["ratio"].median(), "_low": compared["ratio"].min(), "_high": compared["ratio"].max()}
glue(**{f"plan_ratio{name}": f"{value:.2f}" if len(compared) else "unknown" for name, value in spans.items()})
comparison = markdown_table(
    pd.DataFrame(
        {
            "runs": by_shape.size().map(str),
            "planned (s)": by_shape["planned"].sum().map("{:,.0f}".format),
            "taken (s)": by_shape["taken"].sum().map("{:,.0f}".format),
            "taken over planned, median": by_shape["ratio"].median().map("{:.2f}".format),
            "lowest": by_shape["ratio"].min().map("{:.2f}".format),
            "highest": by_shape["ratio"].max().map("{:.2f}".format),
        }
    ).reset_index()
)
other = f"The recorded runs were made on {recorded[0]['provenance']['device']}, which the benchmark above has not seen."
comparison if len(compared) else Markdown(other)

# %% [markdown]
# Parameters and tokens are as planned in every run that came to its end; the cell fails otherwise.
#
# ## Where the time of the grid goes
#
# The recorded grid of `quick`, with as many runs at a time as there are cores: minutes of a core, and their share. Wanted were twelve
# minutes in all. *Starting* is what is left over, most of it for loading torch and transformers in a process for each run.

# %% tags=["remove-input"]
shown = [record["provenance"] for record in recorded]
ended = pd.to_datetime([p["finished"] for p in shown])
elapsed = (ended.max() - (ended - pd.to_timedelta([p["wall_seconds"] for p in shown], unit="s")).min()).total_seconds()
cores = int(shown[0]["device"].rpartition(", ")[2].split()[0])
spent = {
    "training": sum(p["seconds"] for p in shown),
    "evaluation, probes, checkpoints": sum(p["wall_seconds"] - p["seconds"] for p in shown),
}
spent["starting, and cores that wait for the last runs"] = cores * elapsed - sum(spent.values())
glue(grid_elapsed=f"{elapsed / 60:.1f}", grid_training=f"{100 * spent['training'] / (cores * elapsed):.0f}")
markdown_table(
    pd.DataFrame(
        [
            {"of the grid": name, "core minutes": f"{s / 60:.1f}", "share": f"{100 * s / (cores * elapsed):.0f} %"}
            for name, s in spent.items()
        ]
        + [
            {
                "of the grid": f"all, in {elapsed / 60:.1f} minutes on {cores} cores",
                "core minutes": f"{cores * elapsed / 60:.1f}",
                "share": "100 %",
            }
        ]
    )
)

# %% [markdown]
# ## The paper's runs
#
# One published run is 2.11 billion tokens. What the plan says of its time on this machine, and of the memory of training at the
# micro-batches of the preset. It takes the nearest shape measured above, by operations, in the fastest way of this package, and adds
# evaluations and probes.

# %% tags=["remove-input"]
device = made.loc["training", "device"]
grid = Preset.load("paper").grid()
table = {}
for plan in cost.plan(grid["table"] + grid["context"], device, cost.benchmarked())[0]:
    model, context = plan.experiment.model, plan.experiment.data.context
    table[model.family, context, model.configuration] = {
        "model": FAMILIES[model.family],
        "T": str(context),
        "configuration": model.configuration,
        "operations": f"{plan.tokens * cost.flops_per_token(model, context):.2g}",
        f"tokens/s on {device}": f"{plan.speed.rate:,.0f}",
        "hours there": f"{plan.seconds / 3600:,.0f}",
        "memory at preset paper (GiB)": f"{plan.memory / 2**30:.1f}",
    }
markdown_table(pd.DataFrame(table.values()))

# %% [markdown]
# No GPU was at hand when this was recorded. [Presets](presets.ipynb) has an estimate for one, from an assumed speed; on a
# machine with a GPU, `make bench` puts measured ones into this page.
#
# ## What to remember
#
# In the quick shape most time goes to memory traffic and not to products, as the profile above shows, so bfloat16, kept memory and
# plain attention help more than a faster product would. The entropy of attention costs about as much as one more attention forward.
# And the table of equal losses says by how much the fast paths move a loss.
