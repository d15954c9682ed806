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
# Training is fast enough to repeat a study over seeds on two processor cores, and what makes it fast moves a loss by less than the seed does.

# %% tags=["remove-input"]
import json
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import FuncFormatter, LogLocator

from nfbook import cost
from nfbook.figures import show_figure, use_style
from nfbook.presets import FAMILIES, Preset
from nfbook.recorded import recorded_dir
from nfbook.report import folded, glue, markdown_table
from nfcore import runs
from nfcore.settings import Experiment, project_root


use_style()
results = {
    path.stem: json.loads(path.read_text())
    for path in sorted((project_root() / "tools" / "benchmarks" / "results").glob("*.json"))
}
order = ("training", "equality", "telemetry", "data", "startup", "scaling")
grid = runs.read_records(recorded_dir("quick"))
shown = [record["provenance"] for record in grid]
ended = pd.to_datetime([p["finished"] for p in shown])
elapsed = (ended.max() - (ended - pd.to_timedelta([p["wall_seconds"] for p in shown], unit="s")).min()).total_seconds()
GRID_MINUTES = 12  # the target for all runs of preset quick


def rows(section, kind):
    return [row for row in results[section]["rows"] if row["kind"] == kind]


def spread(value, digits=3):
    """A median with the smallest and the largest round."""
    return f"{value['median']:,.{digits}g} ({value['low']:,.{digits}g} to {value['high']:,.{digits}g})"


def percent(share):
    """In percent to two significant digits, without an exponent."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def whole(value):
    return f"{value['median']:,.0f} ({value['low']:,.0f} to {value['high']:,.0f})"


made = pd.DataFrame({name: results[name]["provenance"] for name in order}).T
fast = [row["over_eager"]["median"] for row in rows("training", "training") if row["side"] == "ours, bf16"]
moved = [abs(x) for row in rows("equality", "precision") for x in row["differences"]]
spare = [row["seed_sd"] for row in rows("equality", "precision")]
Markdown(
    f"**With bfloat16 products a run trains {min(fast):.1f} to {max(fast):.1f} times as fast as the public code's way of training does in "
    f"float32 on this processor. Its final loss moves by at most {max(moved):.3f} nats in a single run; over seeds the loss has a standard "
    f"deviation of {min(spare):.3f} to {max(spare):.3f}.** In float32 on both sides neither is faster at every shape. The public code "
    "itself used float16 on a GPU, which is not compared here."
)

# %% [markdown]
# `make bench` measures everything on this page and writes `tools/benchmarks/results/`, which the page reads. The sides of a comparison run
# in one process, in alternating order. A figure is the median over rounds, and a ratio the median of the ratios of single rounds.

# %% tags=["remove-input"]
threads = made["threads"].iloc[0]
Markdown(
    f"*Measured on {'; '.join(sorted(made['device'].unique()))}, with {threads} thread{'s' if int(threads) > 1 else ''}, torch "
    f"{made['torch'].iloc[0]} and transformers {made['transformers'].iloc[0]}, in {made['repeats'].iloc[0]} rounds.*"
)

# %% [markdown]
# ## Targets
#
# Targets were set in advance.

# %% tags=["remove-input"]
table = []
for name in order:
    for target in results[name]["targets"]:
        sign = "at least" if target["at_least"] else "at most"
        word = {True: "met", False: "**missed**", None: "needs a GPU" if target["measured"] is None else "no target"}
        table.append(
            {
                "section": name,
                "figure": target["name"],
                "measured": "" if target["measured"] is None else f"{target['measured']:,.3g} {target['unit']}",
                "target": "" if target["wanted"] is None else f"{sign} {target['wanted']:,g} {target['unit']}",
                "outcome": word[target["met"]],
            }
        )
table.append(
    {
        "section": "grid",
        "figure": "all runs of preset quick on two cores",
        "measured": f"{elapsed / 60:.1f} min",
        "target": f"at most {GRID_MINUTES} min",
        "outcome": word[elapsed <= 60 * GRID_MINUTES],
    }
)
targets = pd.DataFrame(table)
decided = targets[targets["outcome"].isin(["met", "**missed**"])]
glue(targets_met=str((decided["outcome"] == "met").sum()), targets_all=str(len(decided)))
Markdown(
    f"{(decided['outcome'] == 'met').sum()} of {len(decided)} targets are met; the table names those that are missed. "
    f"{(targets['outcome'] == 'needs a GPU').sum()} more need a GPU, which this machine does not have."
)

# %% tags=["remove-input"]
folded("Every target, with what was measured", markdown_table(targets))

# %% [markdown]
# ## Training
#
# The speed is that of one training run, without evaluation, probes and checkpoints. The model is GPT-2 with LayerNorm and GELU, the one
# configuration that all sides have.
#
# *eager*
# : The way of the public code {cite}`jha2024code`: Hugging Face's GPT-2 {cite}`wolf2020transformers` under its Trainer, which returns the
#   attention maps on every update.
#
# *sdpa*
# : The same with fused attention {cite}`dao2022flashattention`.
#
# *loop*
# : A plain loop in the manner of nanoGPT {cite}`karpathy2022nanogpt` around our model, without ours.
#
# *ours*
# : `nfcore.train` in float32, then with bfloat16 products, compiled, and both.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-training-speed", "caption": "Training speed of each side over that of the public code's way, eager, at four shapes. Points are medians over rounds, lines reach from the lowest to the highest round. The dashed line is eager itself."}, "image": {"alt": "A panel for each of four shapes with a row for each side. The sides with bfloat16 products are far to the right of one, the others near it."}}
timed = rows("training", "training")
shapes = list(dict.fromkeys(row["shape"] for row in timed))
sides = [side for side in dict.fromkeys(row["side"] for row in timed) if side != "eager"]
figure, axes = plt.subplots(1, len(shapes), figsize=(8.4, 2.4), sharey=True, sharex=True)
for panel, shape in zip(axes, shapes, strict=True):
    for row in timed:
        if row["shape"] == shape and row["side"] != "eager":
            ratio, color = row["over_eager"], "#D55E00" if "bf16" in row["side"] else "#0072B2"
            place = sides.index(row["side"])
            panel.plot(
                [ratio["low"], ratio["high"]], [place, place], color=color, linewidth=1.2, gid=f"{row['side']}, rounds"
            )
            panel.plot([ratio["median"]], [place], "o", color=color, markersize=4, gid=row["side"])
    panel.axvline(1, color="#666666", linestyle="--", linewidth=0.8)
    panel.set(title=shape)
    panel.set_yticks(range(len(sides)), sides)
axes[0].invert_yaxis()
axes[0].set_xlim(0, 1.1 * max(row["over_eager"]["high"] for row in timed))
figure.supxlabel("tokens a second over those of eager", fontsize=9)
best = max(timed, key=lambda row: row["over_eager"]["median"])
plain = [row["over_eager"]["median"] for row in timed if row["side"] == "ours"]
show_figure(
    figure,
    finding=f"In float32 this package trains {min(plain):.2f} to {max(plain):.2f} times as fast as eager; with bfloat16 products it "
    f"trains up to {best['over_eager']['median']:.1f} times as fast ({best['shape']}, {best['side']}).",
    interactive=False,
)

# %% tags=["remove-input"]
table = []
for row in rows("training", "training"):
    table.append(
        {
            "shape": row["shape"],
            "tokens × sequences": f"{row['context']} × {row['sequences_a_step']}",
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
folded("Tokens a second of every side", markdown_table(pd.DataFrame(table)))

# %% tags=["remove-input"]
lines = []
for shape in dict.fromkeys(row["shape"] for row in rows("training", "training")):
    rates = {r["side"]: r["tokens_per_second"]["samples"] for r in rows("training", "training") if r["shape"] == shape}
    over = [loop / own for loop, own in zip(rates["loop"], rates["ours"], strict=True)]
    word = (
        "below one in every round" if max(over) < 1 else "above one in every round" if min(over) > 1 else "around one"
    )
    lines.append(f"{median(over):.2f} at {shape} ({min(over):.2f} to {max(over):.2f}, {word})")
Markdown("The speed of a plain loop over ours, with the smallest and the largest round, is " + "; ".join(lines) + ".")

# %% [markdown]
# The last column of that table says when `training.compile` pays on this machine: for runs with more updates than that. It counts from
# an empty cache of compiled code; a second run of the same model compiles in a fraction of the time.

# %% tags=["remove-input"]
lines = []
for row in rows("training", "allocator"):
    low, high = row["speedup"]["low"], row["speedup"]["high"]
    lines.append(
        f"Training tells the C library to keep freed memory, because the kernel would otherwise hand out the same pages again at every "
        f"update. At the quick shape in bfloat16 the median speed is {row['speedup']['median']:.2f} times that without it, and single rounds "
        f"range from {low:.2f} to {high:.2f}"
        + (", so the rounds do not settle whether it helps" if low < 1 < high else "")
        + ". All sides above have it, since it is a setting of the process."
    )
Markdown("\n\n".join(lines))

# %% [markdown]
# ## The same losses
#
# Each fast path is compared with float32 in our loop, from the same weights over the same batches. What counts is the largest
# difference of a training loss at any update.

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
paths = pd.DataFrame(rows("equality", "path"))
largest = paths.groupby("path", sort=False)["largest_difference"].max()
within = int((paths["largest_difference"] <= paths["bound"]).sum())
exact, rounding = largest[~largest.index.str.contains("bfloat16")], largest[largest.index.str.contains("bfloat16")]
Markdown(
    f"In float32 no path moves a loss by more than {exact.max():.0e} nats ({', '.join(exact.index)}). With bfloat16 products a loss moves "
    f"by up to {rounding.max():.3f} nats. {within} of {len(paths)} comparisons are within the bounds that were set in advance."
)

# %% tags=["remove-input"]
folded("Every path", markdown_table(pd.DataFrame(table)))

# %% [markdown]
# For precision we also compare whole runs: the final evaluation loss of each main configuration in bfloat16 minus that of the recorded
# float32 run of the same seed.

# %% tags=["remove-input"]
table = [
    {
        "configuration": row["configuration"],
        "seeds": ", ".join(map(str, row["seeds"])),
        "bfloat16 minus float32 (nats), mean": f"{row['difference']:+.4f}",
        "each": ", ".join(f"{x:+.4f}" for x in row["differences"]),
        "SD over seeds, float32": f"{row['seed_sd']:.4f}",
    }
    for row in rows("equality", "precision")
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# ## Telemetry
#
# A {term}`probe` measures the {term}`entropy <head entropy>` of every head and the state of every layer. Its cost, as a fraction of
# training time, falls with the number of updates between probes.

# %% tags=["remove-input"]
table = [
    {
        "shape": row["shape"],
        "update (s)": spread(row["step_seconds"]),
        "probe (s)": spread(row["probe_seconds"]),
        **{
            f"every {n} updates" if n > 1 else "every update": percent(row[f"share_every_{n}_steps"]["median"])
            for n in (1, 10, 100)
        },
    }
    for row in rows("telemetry", "probe")
]
markdown_table(pd.DataFrame(table))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-entropy-cost", "caption": "Cost of the entropy of attention against the context. Left: time over one forward of torch's fused attention. Right: peak memory of one call; twelve heads of width 64 up to T = 4,096, one head beyond. The materialised map stops where it needs more than 6 GiB."}, "image": {"alt": "Two log-log panels against the context length, with a curve for each way to compute the entropy."}}
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
# The entropy is a difference of two terms {eq}`eq-lse`, which loses digits when scores are large. Centring the keys keeps the error
# small: the table has the largest error in {term}`nats` against float64, by the standard deviation of the scores.

# %% tags=["remove-input"]
found = pd.DataFrame(rows("telemetry", "error"))
found["column"] = found["method"] + ", " + found["dtype"]
found = found.pivot(index="score_std", columns="column", values="largest_error_nats")
table = markdown_table(found.map(lambda x: f"{x:.1e}").reset_index(names="standard deviation of the scores"))
folded(f"Errors of each method: at most {found.to_numpy().max():.1e} nats", table)

# %% [markdown]
# ## From text to tokens
#
# `nfcore.prepare` and `datasets.map`, as Hugging Face's own language-model example uses it, get the same JSON lines, tokenizer and
# threads. A *cold* call starts from nothing; a *cached* one finds what the first call left.

# %% tags=["remove-input"]
table = [
    {
        "call": row["kind"],
        "side": row["side"],
        "seconds": spread(row["seconds"]),
        "documents/s": f"{row['documents_per_second']['median']:,.0f}",
        "M tokens/s": f"{row['tokens_per_second']['median'] / 1e6:.2f}",
        "speed over datasets.map": f"{row['speedup']['median']:.2f}",
    }
    for kind in ("cold", "cached")
    for row in rows("data", kind)
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# Neither side can be faster than the tokenizer on texts that are in memory already.

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
table = [{"what": names[row["what"]], "seconds": spread(row["seconds"])} for row in rows("startup", "startup")]
table += [
    {"what": f"a checkpoint of {row['shape']}, {row['bytes'] / 1e6:,.0f} MB", "seconds": spread(row["seconds"])}
    for row in rows("startup", "checkpoint")
]
markdown_table(pd.DataFrame(table))

# %% [markdown]
# ## How cost grows
#
# One size changes at a time. The others stay at width 256, depth 4, 128 tokens, 16 sequences and a vocabulary of 4,096. The peak of this
# machine is measured too, as the speed of one large matrix product.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-scaling", "caption": "Training speed (top), peak memory (middle) and model operations a second over the measured peak of a matrix product in the same precision (bottom), each against one size of the run."}, "image": {"alt": "Three rows of panels, a column for each size that is changed: width, depth, context, batch and vocabulary."}}
found = rows("scaling", "scaling")
overs = list(dict.fromkeys(row["over"] for row in found))
drawn = {
    "tokens/s": (lambda row: row["tokens_per_second"]["median"], "#0072B2", "o"),
    "peak memory (MiB)": (lambda row: row["peak_bytes"] / 2**20, "#D55E00", "s"),
    "share of the peak": (lambda row: row["of_measured_peak"]["median"], "#009E73", "D"),
}


def short(size):
    return f"{size / 1024:.0f}k" if size >= 1024 else f"{size:g}"


figure, axes = plt.subplots(3, len(overs), figsize=(8.4, 5.2), sharey="row", sharex="col")
for column, over in enumerate(overs):
    own = sorted((row for row in found if row["over"] == over), key=lambda row: row[over])
    sizes = [row[over] for row in own]
    for panel, (what, (value, color, marker)) in zip(axes[:, column], drawn.items(), strict=True):
        panel.plot(
            sizes,
            [value(row) for row in own],
            color=color,
            marker=marker,
            markersize=3,
            linewidth=1.2,
            gid=f"{what} over {over}",
        )
        panel.set(xscale="log", yscale="linear" if what == "share of the peak" else "log")
        panel.minorticks_off()
        panel.set_xticks([sizes[0], sizes[-1]], [short(sizes[0]), short(sizes[-1])])
    axes[-1][column].set(xlabel=over, ylim=(0, 1.05))
for panel, what in zip(axes[:, 0], drawn, strict=True):
    panel.set_ylabel(what)
    if what != "share of the peak":
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
ends = {over: sorted((row for row in found if row["over"] == over), key=lambda row: row[over]) for over in overs}
factors = "; ".join(
    f"{over} from {first[over]:,} to {last[over]:,}, "
    f"{last['tokens_per_second']['median'] / first['tokens_per_second']['median']:.2g} times"
    for over, (first, *_, last) in ends.items()
)
best = max(found, key=lambda row: row["of_measured_peak"]["median"])
show_figure(
    figure,
    finding=f"Tokens a second at the largest size over those at the smallest: {factors}. The largest fraction of the "
    f"peak is {100 * best['of_measured_peak']['median']:.0f} % ({best['over']} {best[best['over']]:,}).",
    interactive=False,
)

# %% tags=["remove-input"]
peaks = {row["what"]: row for row in rows("scaling", "peak")}
(profile,) = rows("scaling", "profile")
largest = ", ".join(f"`{row['operator']}` {100 * row['share']:.0f} %" for row in profile["largest"][:6])
mfu = found[-1]["mfu"]
utilisation = (
    "The utilisation of a data sheet's peak (MFU) is known only for the GPUs in the table of `nfbook.cost`"
    if isinstance(mfu, str)
    else f"The utilisation of a data sheet's peak (MFU) is {100 * mfu:.0f} %"
)
Markdown(
    f"One large matrix product reaches {peaks['float32']['median']:,.0f} GFLOP/s in float32 and {peaks['bfloat16']['median']:,.0f} in "
    f"bfloat16, and a copy reaches {peaks['bandwidth']['median']:.1f} GB/s. {utilisation}. In an update of {profile['shape']} in float32, "
    f"matrix products take {100 * profile['matmul_share']:.0f} % of the time and reach {100 * profile['matmul_of_peak']:.0f} % of the "
    f"measured peak. By operator: {largest}."
)

# %% [markdown]
# ## Planned and taken
#
# `python -m nfbook plan PRESET` says before a run what it will take. Here it plans recorded runs from the benchmark above only, and the table
# compares that with the time from start to record. It has the runs of preset `quick` and of the study that were made on the benchmark's
# processor. Both times are of one thread. Records do not say what else the machine did at the time.

# %% tags=["remove-input"]
recorded = {record["id"]: record for record in [*grid, *runs.read_records(recorded_dir("study"))]}
planned, _ = cost.plan(
    [Experiment.from_dict(r["settings"]) for r in recorded.values()],
    made.loc["training", "device"],
    cost.benchmarked(),
)
table = []
for plan, record in zip(planned, recorded.values(), strict=True):
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
comparison if len(compared) else Markdown("No recorded run was made on that processor.")

# %% [markdown]
# Parameters and tokens are as planned in every run that came to its end.
#
# ## Where the time of the grid goes
#
# The recorded grid of `quick` trains as many runs at a time as there are cores. *Starting* is mostly the time to load torch and transformers in
# a process for each run.

# %% tags=["remove-input"]
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
            {
                "part of the grid": name,
                "core minutes": f"{s / 60:.1f}",
                "fraction": f"{100 * s / (cores * elapsed):.0f} %",
            }
            for name, s in spent.items()
        ]
        + [
            {
                "part of the grid": f"all, in {elapsed / 60:.1f} minutes on {cores} cores",
                "core minutes": f"{cores * elapsed / 60:.1f}",
                "fraction": "100 %",
            }
        ]
    )
)

# %% [markdown]
# ## The paper's runs
#
# One published run is 2.11 billion tokens. The plan for this machine takes the nearest shape measured above, by operations, in the fastest
# way of this package, and adds evaluations and probes.

# %% tags=["remove-input"]
device = made.loc["training", "device"]
paper = Preset.load("paper").grid()
table = {}  # norm and activation change the hours by less than one in a thousand
for plan in cost.plan(paper["table"] + paper["context"], device, cost.benchmarked())[0]:
    model, context = plan.experiment.model, plan.experiment.data.context
    if model.configuration != "SM+LN+G":
        continue
    table[model.family, context] = {
        "model": FAMILIES[model.family],
        "T": str(context),
        "operations": f"{plan.tokens * cost.flops_per_token(model, context):.2g}",
        f"tokens/s on {device}": f"{plan.speed.rate:,.0f}",
        "hours there": f"{plan.seconds / 3600:,.0f}",
        "memory at preset paper (GiB)": f"{plan.memory / 2**30:.1f}",
    }
table = pd.DataFrame(table.values())
hours = table["hours there"].str.replace(",", "").astype(float)
Markdown(
    f"One run of the paper's size would take {hours.min():,.0f} to {hours.max():,.0f} hours on {device}: "
    f"{hours.min() / 24:.0f} to {hours.max() / 24:.0f} days."
)

# %% tags=["remove-input"]
markdown_table(table)

# %% [markdown]
# No GPU was at hand when this was recorded. [Presets](presets.ipynb) estimates the time on one from an assumed speed; on a machine with a
# GPU, `make bench` puts measured values into this page.
#
# ## What to remember
#
# Use bfloat16 products where the machine has them: against float32 they nearly double the speed, and they move a loss by less than the seed does.
