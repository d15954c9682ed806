# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Private inference, measured
#
# A clinic wants a language model's answer to a letter about a patient. It may not show the letter to anyone, and the owner of the model
# does not give the weights away. {term}`Private inference <private inference>` solves this: the two computers work out the answer
# together, and neither sees what the other has. The price is what they send each other. The paper argues that LayerNorm makes it high, and so
# wants models without it.

# %% tags=["parameters"]
preset = "study"  # the study whose perplexities the frontier shows; those of the transient are shown below it
source = "recorded"  # recorded: nothing runs here; local: also measure some operations again, where SPU is installed

# %% tags=["remove-input"]
from nfbook.notebook import parameters


study = parameters(globals())

# %% tags=["remove-input"]
import json
import math
import re
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import NullLocator

from nfbook.claims import contrast, interval, of_cell, statistics
from nfbook.figures import STYLES, show_figure, use_style
from nfbook.report import difference, folded, glue, markdown_table, published, study_runs
from nfbook.study import SPARE, Study
from nfcore.settings import project_root


use_style()
folder = project_root() / "data" / "recorded" / "private"
recorded = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("operations", "models", "costs")}
operations = pd.DataFrame(recorded["operations"]["rows"]).dropna(subset="bytes")
operations["shape"] = operations["shape"].map(tuple)
operations["elements"] = operations["shape"].map(math.prod)
operations["each"] = operations["bytes"] / operations["elements"]
models = pd.DataFrame(recorded["models"]["rows"])
sums = pd.DataFrame(recorded["costs"]["rows"])
laws = pd.DataFrame(recorded["costs"]["laws"])
LABEL = laws.drop_duplicates("operation").set_index("operation")["label"]
PROTOCOLS = ["SEMI2K", "CHEETAH"]


def row_of(protocol, operation, shape=None):
    """One measured operation: at this shape, else at the largest that both protocols have."""
    found = operations[operations["operation"] == operation]
    if shape is None:
        sizes = [{*found.loc[found["protocol"] == p, "shape"]} for p in PROTOCOLS]
        shape = max(set.intersection(*sizes), key=math.prod)
    return found.set_index(["protocol", "shape"], drop=False).loc[[(protocol, shape)]].iloc[0]


def megabytes(count):
    return f"{count / 1e6:,.1f}"


def summed(protocol, model, context, configuration):
    """The bytes of a whole pass, added up from measured operations."""
    found = sums[
        (sums["protocol"] == protocol)
        & (sums["model"] == model)
        & (sums["context"] == context)
        & (sums["configuration"] == configuration)
    ]
    return None if found.empty else found.iloc[0]


def saved(less, more, protocol="SEMI2K"):
    """Percent of the bytes of GPT-2 with 128 tokens that one configuration saves against another."""
    a, b = (summed(protocol, "gpt2-124m", 128, configuration)["bytes"] for configuration in (less, more))
    return 100 * (1 - a / b)


def saved_by_both(less, more):
    return " % and ".join(f"{saved(less, more, protocol):.0f}" for protocol in PROTOCOLS) + " %"


costs = {(p, name): row_of(p, name)["each"] for p in PROTOCOLS for name in ("relu", "gelu", "layernorm")}
Markdown(
    f"**ReLU in place of GELU (erf form) takes {saved_by_both('SM+LN+R', 'SM+LN+G')} off what GPT-2 sends under the protocols SEMI2K and "
    f"CHEETAH. Leaving LayerNorm out takes {saved_by_both('SM+G', 'SM+LN+G')} off, and {saved_by_both('SM+R', 'SM+LN+R')} where ReLU is in place already. Replacing LayerNorm by a tanh of each element does not "
    f"save: with ReLU it makes the whole pass {-saved('SM+DyT+R', 'SM+LN+R'):.0f} % dearer under SEMI2K.** SEMI2K counts what is sent once the "
    "inputs are there, and CHEETAH all but the matrix products. Against the tanh form of GELU, the default of Hugging Face's GPT-2, "
    f"ReLU saves {saved_by_both('SM+LN+R', 'SM+LN+G(tanh)')}.\n\n"
    f"So ReLU saves more than leaving LayerNorm out, and with ReLU in place LayerNorm is the larger part of the rest. Under SEMI2K an element of it costs {costs['SEMI2K', 'layernorm']:,.0f} bytes, ReLU "
    f"{costs['SEMI2K', 'relu']:,.0f} and GELU {costs['SEMI2K', 'gelu']:,.0f}; under CHEETAH {costs['CHEETAH', 'layernorm']:,.0f}, "
    f"{costs['CHEETAH', 'relu']:,.0f} and {costs['CHEETAH', 'gelu']:,.0f}."
)

# %% [markdown]
# The published numbers are those of AERO {cite}`jha2024aero`, which cannot be checked by reading. So we ran the operations, and whole
# small models, between two processes, and counted what they sent. Three questions follow. What does each operation cost? Which model
# gives the lowest perplexity for its bytes? How do our counts compare with the published ones?

# %% tags=["remove-input"]
made = recorded["operations"]["provenance"]
Markdown(
    f"*Recorded with SPU {made['spu']} on {made['system']}, last on {made['measured']}: {len(operations)} operations and "
    f"{len(models)} passes of whole models. Bytes and messages do not depend on what else the machine does. Seconds do, and were taken while it did nothing else.*"
)

# %% [markdown]
# ## What happens between the two parties
#
# A {term}`party` is one of the two computers: the client, who has a text, and the server, who has the weights.
#
# A {term}`share <share (of a secret)>` is one of two numbers that add up to a secret one. The client draws a random number $r$, keeps $x - r$ and sends $r$. Each
# share by itself is noise.
#
# - **Adding is free.** To add two secrets, each party adds its own shares. Nothing is sent.
# - **Multiplying and comparing are not.** A product of two secrets, or the sign of one, needs both parties: they exchange masked values,
#   compute, and exchange again. One exchange is a {term}`round`. Every message costs bytes, and every round costs the delay of the line.
#
# So sums are free, and every bend in a function is expensive. ReLU needs one comparison. GELU needs an erf or a tanh, which the engine
# builds from many products and comparisons.
#
# Products can be prepared before the inputs are known, with related random numbers {cite}`beaver1991efficient`. What is left to do when
# the inputs arrive is the {term}`online phase`.
#
# The engine is SPU {cite}`ma2023secretflow`, the one that AERO uses. It has two protocols for two parties:
#
# - **SEMI2K**, after {cite:t}`cramer2018spdz2k`, counts the online phase only. A {term}`trusted dealer`, a third computer that sees no
#   data, hands out the related random numbers; what it sends is not counted.
# - **CHEETAH** {cite}`huang2022cheetah` needs no dealer. Homomorphic encryption and oblivious transfer do its work between the two
#   parties, and all of it is counted.
#
# Both are safe against a party that follows the protocol and is curious, not against one that cheats. Numbers are integers that stand
# for fixed-point fractions, so each result has an error, which we measure too.

# %% [markdown]
# ## What each operation costs
#
# Each function runs on standard normal inputs, all of them secret, between two processes on one machine. We count the bytes that both
# parties send, and the messages of one party, which are at least as many as the rounds.


# %% tags=["remove-input"]
def line_of(operation):
    semi, cheetah = (row_of(p, operation) for p in PROTOCOLS)
    return {
        "operation": LABEL[operation],
        "shape": " × ".join(map(str, semi["shape"])),
        "SEMI2K, bytes an element": f"{semi['each']:,.0f}",
        "messages": f"{semi['messages']:,.0f}",
        "CHEETAH, bytes an element": f"{cheetah['each']:,.0f}",
        "largest error, SEMI2K": f"{semi['largest_error']:.0e}",
    }


pointwise = ["relu", "leaky_relu", "relu_squared", "gelu_tanh", "silu", "gelu", "scaled_gelu"]
norms = ["layernorm", "rmsnorm", "hardtanh", "dyt", "derf"]
markdown_table(pd.DataFrame([line_of(name) for name in [*pointwise, *norms, "softmax"]]))

# %% tags=["remove-input"]
each = {p: {name: row_of(p, name)["each"] for name in [*pointwise, *norms, "softmax"]} for p in PROTOCOLS}
over = {p: each[p]["gelu"] / each[p]["relu"] for p in PROTOCOLS}
tanh = {p: each[p]["gelu_tanh"] / each[p]["relu"] for p in PROTOCOLS}
same = each["SEMI2K"]["scaled_gelu"] / each["SEMI2K"]["gelu"]
glue(**{f"gelu_over_relu_{p.lower()}": f"{over[p]:.1f}" for p in PROTOCOLS})
Markdown(
    f"GELU costs {over['SEMI2K']:.1f} times as many bytes as ReLU under SEMI2K and {over['CHEETAH']:.0f} times under CHEETAH. "
    f"Its tanh form, an approximation, costs {tanh['SEMI2K']:.1f} and {tanh['CHEETAH']:.0f} times as many. Scaling the input "
    f"changes little: GELU(16 x)/16 costs {same:.3f} times as much as GELU. So where a rescaled GELU "
    "comes near ReLU in a model without norms ([Mechanism](mechanism.ipynb)), it still costs as much as GELU."
)

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-private-growth", "caption": "Bytes an element against the number of elements, on logarithmic axes; left under SEMI2K, right under CHEETAH. A flat line means that the cost is proportional to the size. The last axis is the width for a norm and the context for a softmax."}, "image": {"alt": "Two panels of lines, one line an operation. Under SEMI2K all are flat or nearly so. Under CHEETAH they fall with size."}}
shown_lines = {
    "relu": ("#009E73", "D"),
    "gelu_tanh": ("#E69F00", "v"),
    "gelu": ("#D55E00", "^"),
    "layernorm": ("#0072B2", "o"),
    "dyt": ("#CC79A7", "s"),
    "derf": ("#000000", "X"),
    "softmax": ("#666666", "P"),
}
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True)
for panel, protocol in zip(axes, PROTOCOLS, strict=True):
    for name, (color, marker) in shown_lines.items():
        own = operations[(operations["protocol"] == protocol) & (operations["operation"] == name)]
        own = own.sort_values("elements")
        panel.plot(
            own["elements"], own["each"], color=color, marker=marker, markersize=4, linewidth=1.2, label=LABEL[name]
        )
    panel.set(title=protocol, xscale="log", yscale="log", xlabel="elements")
    panel.set_xticks([2000, 10_000, 100_000], ["2,000", "10,000", "100,000"])
    panel.xaxis.set_minor_locator(NullLocator())
axes[0].set_ylabel("bytes an element")
axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
semi = laws[laws["protocol"] == "SEMI2K"]
miss = semi["largest_miss"].max()
falls = operations[(operations["protocol"] == "CHEETAH") & (operations["operation"] == "gelu_tanh")]
falls = falls.sort_values("elements")["each"]
show_figure(
    figure,
    finding=f"Under SEMI2K, a straight-line formula in elements and rows gives the bytes of {semi['linear'].sum()} of {len(semi)} operations, "
    f"{'exactly' if miss == 0 else f'to within {100 * miss:.2g} %'}. Under CHEETAH an element gets cheaper in a larger batch: the tanh "
    f"form of GELU goes from {falls.iloc[0]:,.0f} to {falls.iloc[-1]:,.0f} bytes.",
)

# %% [markdown]
# The engine adds up what it hands to the network, and all counts come from it. The kernel counts the same traffic with its headers.

# %% tags=["remove-input"]
big = operations[(operations["bytes"] > 2**23) & operations["kernel_bytes"].notna()]
ratio = big["kernel_bytes"] / big["bytes"]
by_protocol = {p: ratio[big["protocol"] == p] for p in PROTOCOLS}
within = "within" if by_protocol["SEMI2K"].between(1, 1.03).all() else "not always within"
first = operations[(operations["operation"] == "set-up") & (operations["protocol"] == "CHEETAH")].iloc[0]
Markdown(
    f"For operations that send more than eight mebibytes, the kernel counts {by_protocol['SEMI2K'].min():.3f} to "
    f"{by_protocol['SEMI2K'].max():.3f} times the engine's bytes under SEMI2K, {within} our tolerance of 3 %. Under CHEETAH "
    f"the median is {by_protocol['CHEETAH'].median():.3f} and the largest {by_protocol['CHEETAH'].max():.2f}: it sends many "
    f"small messages, whose headers the engine does not count. For {operations['kernel_bytes'].isna().sum()} operations the kernel's count "
    "is missing. The first operation of a CHEETAH session also pays for its "
    f"set-up, here {megabytes(first['bytes'])} MB in {first['messages']:,.0f} messages for a small ReLU; it has a row of its "
    "own. Later operations refill what the set-up made, so that under CHEETAH the bytes of one operation vary by some percent "
    "with what ran before it. Under SEMI2K they are the same at every repetition."
)

# %% [markdown]
# ### The same function, written in two ways
#
# The engine computes a formula instruction by instruction. Two standard formulas of one function can differ in price several times.


# %% tags=["remove-input"]
def two_ways(cheap, usual, words):
    rows, shape = [], row_of("SEMI2K", usual)["shape"]
    for protocol in PROTOCOLS:
        a, b = (row_of(protocol, name, shape) for name in (cheap, usual))
        rows.append(f"{b['bytes'] / a['bytes']:.1f}")
    return {
        "function": words,
        "cheaper": LABEL[cheap],
        "as `jax.nn` writes it": LABEL[usual],
        "times the bytes, SEMI2K": rows[0],
        "CHEETAH": rows[1],
    }


ways = pd.DataFrame([two_ways("gelu", "gelu_erfc", "GELU, exact"), two_ways("softmax", "softmax_division", "softmax")])
markdown_table(ways)

# %% [markdown]
# A GELU through erfc computes both tails and picks one. A softmax that divides every element by the sum of its row needs a division for
# each element; one reciprocal for each row and a product for each element give the same numbers. SPU has a compiler option for this, which
# is off by default. **Everything below uses the cheaper form.** The published totals may use either.

# %% [markdown]
# ## Does it pay to replace LayerNorm?
#
# Not with DyT {cite}`zhu2025transformers` or Derf {cite}`chen2025stronger`. They replace LayerNorm by a function of each element: a tanh or
# an erf with a learned scale. On a GPU that avoids sums over the row. In private inference the sums are free, and LayerNorm needs only one
# inverse root for a whole row. A tanh or an erf is needed for every element. Here all learned numbers are secret, as LayerNorm's are.

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-private-norms", "caption": "Bytes of each replacement over the bytes of the LayerNorm that it replaces, at equal shape, against the width of the model. Left SEMI2K, right CHEETAH. Above the line at one, replacing costs more than keeping."}, "image": {"alt": "Two panels of lines over the width. Derf is highest, DyT next, both above one at every width. HardTanh is above one on the left and about one on the right. RMSNorm lies on one."}}
replacements = {
    "derf": ("#000000", "X"),
    "dyt": ("#CC79A7", "s"),
    "hardtanh": ("#E69F00", "v"),
    "rmsnorm": ("#56B4E9", "o"),
}
ratios = []
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.0), sharey=True)
for panel, protocol in zip(axes, PROTOCOLS, strict=True):
    own = operations[operations["protocol"] == protocol]
    table = own.pivot(index="shape", columns="operation", values="bytes")
    for name, (color, marker) in replacements.items():
        found = (table[name] / table["layernorm"]).dropna()
        ratios += [dict(protocol=protocol, operation=name, shape=s, ratio=r) for s, r in found.items()]
        found = found[[shape[0] == 128 for shape in found.index]]
        widths = [shape[-1] for shape in found.index]
        panel.plot(widths, found, color=color, marker=marker, markersize=4, linewidth=1.2, label=LABEL[name])
    panel.axhline(1, color="#666666", linewidth=0.8, gid="LayerNorm")
    panel.set(title=protocol, xscale="log", yscale="log", xlabel="width of the model", xticks=widths)
    panel.set_xticks(widths, [str(width) for width in widths])
    panel.minorticks_off()
    panel.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
axes[0].set_ylabel("bytes / bytes of LayerNorm")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
ratios = pd.DataFrame(ratios)


def span(protocol, operation, digits=1):
    found = ratios[(ratios["protocol"] == protocol) & (ratios["operation"] == operation)]["ratio"]
    low, high = (f"{value:.{digits}f}" for value in (found.min(), found.max()))
    return low if low == high else f"{low} to {high}"


pointwise_norms = ratios[ratios["operation"].isin(["dyt", "derf"])]
show_figure(
    figure,
    finding=f"DyT costs {span('SEMI2K', 'dyt')} times as much as LayerNorm under SEMI2K and {span('CHEETAH', 'dyt')} times under "
    f"CHEETAH; Derf {span('SEMI2K', 'derf')} and {span('CHEETAH', 'derf')} times.",
)

# %% tags=["remove-input"]
glue(
    dyt_semi2k=span("SEMI2K", "dyt"),
    dyt_cheetah=span("CHEETAH", "dyt"),
    derf_semi2k=span("SEMI2K", "derf"),
    derf_cheetah=span("CHEETAH", "derf"),
)
Markdown(
    f"**Replacing LayerNorm by a tanh or an erf of each element costs more than keeping it** in {(pointwise_norms['ratio'] > 1).sum()} of "
    f"{len(pointwise_norms)} cases: DyT and Derf, both protocols, all measured shapes. Clipping (HardTanh), which needs neither, costs "
    f"{span('SEMI2K', 'hardtanh')} times as much as a LayerNorm under SEMI2K and {span('CHEETAH', 'hardtanh', 2)} times under CHEETAH, and "
    f"RMSNorm {span('SEMI2K', 'rmsnorm', 2)} and {span('CHEETAH', 'rmsnorm', 2)} times."
)

# %% [markdown]
# This holds for one engine with its general formulas for tanh and erf, for 64-bit shares, and for the errors in the table above. A
# protocol made for one of these functions, or a coarser approximation, can be cheaper; it would have to be so by the factor shown.

# %% [markdown]
# ## Whole models
#
# The costs of the operations add up to the cost of a whole model. To check this, models of the study's shape run from tokens to logits
# under SEMI2K. Tokens and weights are secret. At the end the logits are put together and compared with those of the same model in the
# open. The forward pass is written in JAX from the weights of a run, and a test compares it with the torch model.

# %% tags=["remove-input"]
PARTS = {"softmax": "#666666", "norms": "#0072B2", "activation": "#D55E00", "products": "#009E73", "other": "#E69F00"}
trained = models[models["run"].notna()]
random = models[models["run"].isna()].set_index(["model", "context", "configuration"])["bytes"]
equal = [
    row["bytes"] == random.get((row["model"], row["context"], row["configuration"])) for _, row in trained.iterrows()
]
misses = [
    abs(summed(r["protocol"], r["model"], r["context"], r["configuration"])["bytes"] - r["bytes"])
    for _, r in models.iterrows()
]
exactly = (
    "equals the whole to the byte" if max(misses) == 0 else f"differs from the whole by at most {max(misses):,} bytes"
)


def agreement(rows):
    return (
        f"{rows['same_next_token'].sum()} of {rows['context'].sum()} positions, and no logit is off by more than "
        f"{rows['largest_error'].max():.4f}"
    )


untrained = models[models["run"].isna()]
Markdown(
    f"The sum of separately measured operations {exactly}, in all {len(misses)} passes. So we can add up models that are too large to run "
    f"here. With trained weights the most likely next token is the same as in the open at {agreement(trained)}. With random weights "
    f"it is the same at {agreement(untrained)}. The rest is what fixed-point numbers of {recorded['models']['provenance']['fraction_bits']} "
    f"fraction bits lose. Trained and random weights of the same shape send the "
    f"same number of bytes, in {sum(equal)} of {len(equal)} comparisons."
)

# %% tags=["remove-input"]
rows = []
for _, row in models.iterrows():
    whole = summed(row["protocol"], row["model"], row["context"], row["configuration"])
    rows.append(
        {
            "model": f"{row['model']}, T = {row['context']}",
            "configuration": row["configuration"],
            "weights": "random" if pd.isna(row["run"]) else f"run `{row['run']}`",
            "MB": megabytes(row["bytes"]),
            "messages": f"{row['messages']:,}",
            "seconds": "-" if pd.isna(row["seconds"]) else f"{row['seconds']:.1f}",
            "sum of operations minus measured, bytes": f"{whole['bytes'] - row['bytes']:,}",
            "and messages": f"{whole['messages'] - row['messages']:,.0f}",
            "largest logit": f"{row['largest_logit']:.1f}",
            "largest error": f"{row['largest_error']:.4f}",
            "same next token": f"{row['same_next_token']} of {row['context']}",
        }
    )
folded("Every pass of a whole model", markdown_table(pd.DataFrame(rows)))

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-private-parts", "caption": "Bytes of one pass by part of the model under SEMI2K, added up from measured operations. Left: a small model of the study, T = 128. Right: GPT-2 124M, T = 128. In a product of two secret matrices both are sent, masked; at width 768 most of that traffic is the masked weights."}, "image": {"alt": "Two panels of stacked bars, one bar a configuration. The activation is the largest part with GELU and small with ReLU; the norms are a thin slice."}}
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.4))
chosen = ["SM+LN+G", "SM+LN+R", "SM+G", "SM+R", "SM+DyT+R", "SM"]
shares = {}
for panel, (model, title) in zip(
    axes, {"gpt2-6x64": "6 layers, width 64", "gpt2-124m": "GPT-2 124M"}.items(), strict=True
):
    found = [summed("SEMI2K", model, 128, configuration) for configuration in chosen]
    bottom = np.zeros(len(chosen))
    for part, color in PARTS.items():
        heights = np.array([whole[part] / 1e9 for whole in found])
        panel.bar(range(len(chosen)), heights, bottom=bottom, color=color, label=part, width=0.7)
        bottom += heights
    shares[model] = dict(zip(chosen, found, strict=True))
    panel.set(title=title, ylabel="GB a pass")
    panel.set_xticks(range(len(chosen)), chosen, rotation=45, ha="right", fontsize=8)
    panel.grid(axis="x", visible=False)
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show_figure(
    figure,
    finding=f"From SM+LN+G of GPT-2, ReLU in place of GELU saves {saved('SM+LN+R', 'SM+LN+G'):.0f} % of the bytes, and leaving "
    f"the block norms out saves {saved('SM+G', 'SM+LN+G'):.0f} %.",
)

# %% tags=["remove-input"]
table = []
for protocol in PROTOCOLS:
    for model, context in (("gpt2-124m", 128), ("gpt2-124m", 256), ("pythia-70m", 128), ("gpt2-6x64", 128)):
        base = summed(protocol, model, context, "SM+LN+G")
        for configuration in (
            "SM+LN+G",
            "SM+LN+R",
            "SM+G",
            "SM+R",
            "SM+RMS+R",
            "SM+DyT+R",
            "SM+Derf+R",
            "SM+HardTanh+R",
            "SM",
        ):
            whole = summed(protocol, model, context, configuration)
            if whole is not None:
                table.append(
                    {
                        "protocol": protocol,
                        "model": f"{model}, T = {context}",
                        "configuration": configuration,
                        **{part: "-" if pd.isna(whole[part]) else f"{whole[part] / 1e9:.3f}" for part in PARTS},
                        "GB": f"{whole['bytes'] / 1e9:.3f}",
                        "of SM+LN+G": f"{100 * whole['bytes'] / base['bytes']:.0f} %",
                    }
                )
glue(
    saved_relu=f"{saved('SM+LN+R', 'SM+LN+G'):.0f}",
    saved_norms=f"{saved('SM+G', 'SM+LN+G'):.0f}",
    saved_both=f"{saved('SM+R', 'SM+LN+G'):.0f}",
)
folded("Bytes by part of the model, both protocols", markdown_table(pd.DataFrame(table)))

# %% [markdown]
# GB are 10⁹ bytes in both directions, for one pass over T tokens. Under SEMI2K the sums are exact. Under CHEETAH an element costs what it
# does at the largest size at which all functions of a kind were measured, which is an upper estimate. Matrix products are left out there,
# because their cost depends on how the engine packs a matrix into ciphertexts and follows no simple rule.

# %% [markdown]
# ## Perplexity for bytes
#
# Which model gives the lowest perplexity for its bytes? All runs below have the shape of the small model above and differ only in norm and
# activation. Those of the study decide. Those of the first study show more activations, but end in a {term}`transient` in which LayerNorm
# does not help yet.

# %% tags=["remove-input"]
VARIED = ("norm", "activation", "negative_slope", "slope_sharing", "activation_scale")


def cost_name(configuration):
    """The configuration with the same operations in the recorded sums: a scale or a slope costs the same at any value."""
    for pattern, name in ((r"G\(s=[^)]+\)", "G(s=16)"), (r"L\([^)]+\)", "L(0.1)"), (r"SiLU\(s=[^)]+\)", "SiLU(s=1)")):
        configuration = re.sub(rf"(?<=\+){pattern}", name, configuration)
    return configuration


def fixed(experiment):
    """All settings but those that the frontier compares."""
    model = {name: value for name, value in vars(experiment.model).items() if name not in VARIED}
    return model, experiment.data, experiment.training


def points_of(study, frame):
    """A row for each protocol and configuration, over the seeds that all of them have, and the configurations with runs
    that are left out."""
    base, points, left_out, chosen = fixed(study.cells["SM+G"].experiments[0]), {}, [], {}
    for cell in study.cells.values():
        configuration, own = cell.experiments[0].model.configuration, of_cell(frame, cell.name)
        if fixed(cell.experiments[0]) != base or min(cell.seeds) >= SPARE or own.empty or configuration in chosen:
            continue  # of cells with equal settings the first has all runs
        wholes = {p: summed(p, "gpt2-6x64", 128, cost_name(configuration)) for p in PROTOCOLS}
        if wholes["SEMI2K"] is None or (own["outcome"] != "trained").any():
            left_out.append(configuration)
            continue
        chosen[configuration] = cell, own, wholes
    seeds = set.intersection(*(set(own.index) for _, own, _ in chosen.values())) if chosen else set()
    for configuration, (cell, own, wholes) in chosen.items():
        own = own[own.index.isin(seeds)]
        found = interval(own["loss"].astype(float))
        points[configuration] = [
            {
                "protocol": protocol,
                "configuration": configuration,
                "cell": cell.name,
                "n": len(own),
                "megabytes": whole["bytes"] / 128 / 1e6,
                **{key: math.exp(found[key]) for key in ("estimate", "low", "high")},
            }
            for protocol, whole in wholes.items()
            if whole is not None
        ]
    return pd.DataFrame([row for rows in points.values() for row in rows]), left_out


studies = {s.name: s for s in (study, Study.load("transient", study.source))}
frames = {name: statistics(study_runs(s), s) for name, s in studies.items()}
found = {name: points_of(s, frames[name]) for name, s in studies.items()}
points = {name: rows for name, (rows, _) in found.items() if len(rows)}
training = {name: studies[name].cells["SM+G"].experiments[0].training for name in points}
million = {name: f"{t.steps * t.batch_size * 128 / 1e6:.1f} M tokens" for name, t in training.items()}
lines = []
for name, rows in points.items():
    n = " to ".join(map(str, sorted({rows["n"].min(), rows["n"].max()})))
    line = f"`{name}`, {million[name]} a run, {rows['configuration'].nunique()} configurations with {n} seeds"
    if left_out := found[name][1]:
        line += (
            f" (left out, for a run that is not trained or an operation that was not measured: {', '.join(left_out)})"
        )
    lines.append(line)
Markdown(f"*Perplexities: {'; '.join(lines)}.*")

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-private-frontier", "caption": "Final perplexity against the bytes of one token, in a pass over 128 tokens; lower and further left is better. Top: the study; below: the transient, whose perplexities are not where longer runs end. Points are means over seeds (hollow: one seed), vertical lines 95 % intervals, cut off where they leave the panel. The stepped line joins the configurations that no other beats in both. Left SEMI2K, all operations; right CHEETAH, without matrix products."}, "image": {"alt": "Panels of points, the study above and the transient below. A stepped line runs along the lower left edge from the cheapest configuration to the one with the lowest perplexity."}}


def efficient(frame):
    """The rows that no other row beats in both bytes and perplexity, the cheapest first."""
    frame = frame.sort_values(["megabytes", "estimate"])
    return frame[frame["estimate"] < frame["estimate"].cummin().shift(fill_value=np.inf)]


def draw(panel, own, edge):
    panel.step(
        edge["megabytes"],
        edge["estimate"],
        where="post",
        color="#999999",
        linewidth=1,
        gid="no other is better in both",
    )
    below = 0
    for _, point in own.sort_values("megabytes").iterrows():
        configuration, where = point["configuration"], (point["megabytes"], point["estimate"])
        style = STYLES.get(configuration, dict(color="#999999", marker="."))
        full = "none" if point["n"] == 1 else "full"
        panel.plot(*([v] for v in where), **style, fillstyle=full, markersize=6, linestyle="", gid=configuration)
        if not math.isnan(point["low"]):
            ends = (point["low"], point["high"])
            panel.vlines(where[0], *ends, color=style["color"], linewidth=0.8, gid=f"{configuration}, interval")
        if configuration in STYLES:
            place = dict(xytext=(5, -11 if configuration == "SM+R" else 4))
        elif len(own) < 8 or configuration in set(
            edge["configuration"]
        ):  # below, to the left and to the right by turns
            below += 1
            place = dict(xytext=(0, -11), ha="right" if below % 2 else "left")
        else:
            continue
        panel.annotate(configuration, where, textcoords="offset points", fontsize=7, color=style["color"], **place)


figure, axes = plt.subplots(len(points), 2, figsize=(7.6, 3.3 * len(points)), sharey="row", squeeze=False)
edges, sentences = {}, []
for (name, rows), panels in zip(points.items(), axes, strict=True):
    for panel, protocol in zip(panels, PROTOCOLS, strict=True):
        own = rows[rows["protocol"] == protocol]
        edges[name, protocol] = efficient(own)
        draw(panel, own, edges[name, protocol])
        panel.set(title=f"{protocol}, {million[name]}", xlim=(0, 1.35 * own["megabytes"].max()))
    panels[0].set_ylabel("final perplexity")
    panels[0].set_ylim(0.92 * rows["estimate"].min(), 1.04 * rows["estimate"].max())
    by_protocol = "; ".join(f"{p}: {', '.join(edges[name, p]['configuration'])}" for p in PROTOCOLS)
    sentences.append(
        f"After {million[name]}, no other configuration beats these in both, from cheap to dear: {by_protocol}."
    )
for panel in axes[-1]:
    panel.set_xlabel("MB a token")
show_figure(figure, finding=" ".join(sentences), interactive=False)

# %% tags=["remove-input"]
lines = []
for name in points:
    own = points[name].query("protocol == 'SEMI2K'").sort_values("megabytes")
    lowest = own.loc[own["estimate"].idxmin()]
    same = []
    for other in own[own["megabytes"] < lowest["megabytes"]].itertuples():
        gap = interval(contrast(frames[name], {other.cell: 1, lowest["cell"]: -1}, "loss")[0])
        change, n = difference(frames[name], {other.cell: 1, lowest["cell"]: -1})
        if not gap["low"] > 0:
            same.append(f"{other.configuration} ({change}, n = {n})")
    lines.append(
        f"After {million[name]}, {lowest['configuration']} has the lowest mean perplexity. "
        + (
            f"On the same seeds these cheaper ones are not shown to be above it: {', '.join(same)}."
            if same
            else "All cheaper ones are above it on the same seeds."
        )
    )
Markdown(f"**{lines[0]}** {' '.join(lines[1:])}")

# %% tags=["remove-input"]
table = []
for name, rows in points.items():
    own = rows[rows["protocol"] == "SEMI2K"].set_index("configuration").sort_values("megabytes")
    for configuration, point in own.iterrows():
        better = own.index[(own["megabytes"] <= point["megabytes"]) & (own["estimate"] < point["estimate"])]
        table.append(
            {
                "runs": million[name],
                "configuration": configuration,
                "MB a token, SEMI2K": f"{point['megabytes']:.2f}",
                "of SM+LN+G": f"{100 * point['megabytes'] / own.loc['SM+LN+G', 'megabytes']:.0f} %",
                "perplexity": f"{point['estimate']:.2f}",
                "95 % interval": "" if pd.isna(point["low"]) else f"{point['low']:.2f} to {point['high']:.2f}",
                "seeds": str(point["n"]),
                "lower mean for no more bytes": ", ".join(better[:2]) or "none",
            }
        )
glue(frontier=", ".join(edges[next(iter(points)), "SEMI2K"]["configuration"]), frontier_set=next(iter(points)))
folded("Every configuration", markdown_table(pd.DataFrame(table)))

# %% tags=["remove-input"]
lines = []
for name in points:
    changes = []
    for words, activation in (("GELU", "G"), ("ReLU", "R")):
        change, n = difference(frames[name], {f"SM+{activation}": 1, f"SM+LN+{activation}": -1})
        changes.append(f"{words}'s perplexity by {change} (n = {n})")
    lines.append(f"After {million[name]}, leaving LayerNorm out changes {' and '.join(changes)}.")
Markdown(
    f"{' '.join(lines)} In the paper it raises both ([Perplexity](perplexity.ipynb)). Longer runs may move every point up or down; the bytes "
    "stay."
)

# %% [markdown]
# ## Against the published numbers
#
# AERO's table {cite}`jha2024aero` gives totals, not operations. Two differences follow from it. GELU minus ReLU in the same model is the
# price of GELU above that of ReLU. The model with ReLU and LayerNorm minus the model with neither is the price of both.

# %% tags=["remove-input"]
aero = published("private_inference")
column = aero["_cols"].index("comm_GB")
SETTINGS = {
    "GPT2_12L_T128": (12, 128, column),
    "GPT2_12L_T256": (12, 256, column),
    "GPT2_18L_T128": (18, 128, column),
    "Languini_12L_T512_ppl_1.2B_2.4B_4.8B": (12, 512, -2),
}
rows, gaps = [], []
for setting, (layers, context, place) in SETTINGS.items():
    of = aero[setting]
    gelu, relu, neither = (of[c][place] for c in ("SM+LN+G", "SM+LN+R", "AERO SM+ScFFN"))
    gaps.append((gelu - relu) * 1e9 / (layers * context * 3072))
    rows.append(
        {
            "setting": setting.split("_ppl")[0].replace("_", " "),
            "SM+LN+G (GB)": f"{gelu:.2f}",
            "SM+LN+R (GB)": f"{relu:.2f}",
            "neither norm nor activation (GB)": f"{neither:.2f}",
            "GELU minus ReLU, bytes an element": f"{gaps[-1]:,.0f}",
            "softmax and the rest": f"{100 * neither / gelu:.0f} % of SM+LN+G",
        }
    )
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
rows = [
    {
        "": "published, four settings",
        "GELU minus ReLU, bytes an element": f"{min(gaps):,.0f} to {max(gaps):,.0f}",
        "of published": "1",
    }
]
mean_gap = float(np.mean(gaps))
ours = {}
for protocol in PROTOCOLS:
    for operation in ("gelu_tanh", "gelu", "gelu_erfc"):
        found = operations[(operations["protocol"] == protocol) & (operations["operation"] == operation)]
        shape = max(found["shape"], key=math.prod)
        gap = row_of(protocol, operation, shape)["each"] - row_of(protocol, "relu", shape)["each"]
        ours[protocol, operation] = gap / mean_gap
        rows.append(
            {
                "": f"{protocol}, {LABEL[operation]}, {' × '.join(map(str, shape))}",
                "GELU minus ReLU, bytes an element": f"{gap:,.0f}",
                "of published": f"{gap / mean_gap:.2f}",
            }
        )
FORM = {"gelu_tanh": "the tanh form", "gelu": "the erf form", "gelu_erfc": "the erf form through erfc"}
nearest = min(ours, key=lambda pair: abs(math.log(ours[pair])))
glue(aero_gap=f"{mean_gap:,.0f}")
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
rows = []
for configuration, theirs in (
    ("SM+LN+G", "SM+LN+G"),
    ("SM+LN+G(tanh)", "SM+LN+G"),
    ("SM+LN+R", "SM+LN+R"),
    ("SM", "AERO SM+ScFFN"),
):
    for context in (128, 256):
        row = {
            "configuration": configuration,
            "T": context,
            "published (GB)": f"{aero[f'GPT2_12L_T{context}'][theirs][column]:.2f}",
        }
        for protocol in PROTOCOLS:
            whole = summed(protocol, "gpt2-124m", context, configuration)
            products = np.nan if whole is None else whole["products"]
            row[f"{protocol}, all"] = "-" if pd.isna(products) else f"{whole['bytes'] / 1e9:.2f}"
            alone = None if whole is None else whole["bytes"] - (0 if pd.isna(products) else products)
            row[f"{protocol}, without products"] = "-" if alone is None else f"{alone / 1e9:.2f}"
        rows.append(row)
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
Markdown(
    f"The published price of GELU over ReLU is the same in all four settings, {min(gaps):,.0f} to {max(gaps):,.0f} bytes an "
    f"element. That is what a sum of prices by element gives, as ours is. The nearest of ours is {nearest[0]} with "
    f"{FORM[nearest[1]]} of GELU, at {ours[nearest]:.2f} times the published price."
)

# %% [markdown]
# These things differ, or are not known to be equal:
#
# | | AERO | here |
# |---|---|---|
# | protocol | SecretFlow; the table does not say which | SEMI2K, and CHEETAH in sums |
# | what is counted | end to end, with embedding and output matrix | SEMI2K: the online phase; both: the same parts of the model |
# | GELU | the public code has the erf form | each form in a row of its own |
# | weights | known to the server, presumably | secret, so that a product sends both matrices, masked |
# | last model | a scaled linear feed-forward network, no norms | SM: the same operations, unscaled |
# | line | two machines, 100 Mbit/s, 80 ms | one machine; times over a line are computed |

# %% [markdown]
# ## Time over a slow line: a projection
#
# Our two processes are on one machine, so their seconds are those of computing, without a line between them. A time over AERO's line
# {cite}`jha2024aero` follows from bytes and messages:
#
# $$
# \begin{aligned}
# \text{seconds} ={}& \frac{8 \times \text{bytes}}{\text{bandwidth}} \\[1ex]
# &+ \text{messages} \times \text{delay} .
# \end{aligned}
# $$ (eq-wan)
#
# This assumes that the line carries one direction at a time and that every message waits for the one before it. Both make it an upper
# estimate of the time on the line; computing comes on top. It is a projection, not a measurement.

# %% tags=["remove-input"]
BANDWIDTH, DELAY = (float(re.search(rf"([\d.]+) {unit}", aero["_setup"])[1]) for unit in ("Mbps", "ms"))


def over_the_line(count, messages=0):
    return 8 * count / (BANDWIDTH * 1e6) + messages * DELAY / 1e3


timed = trained[trained["seconds"].notna()]  # on this machine, both parties together
computing = {row["configuration"]: f"{row['seconds']:.1f}" for _, row in timed.iterrows()}
rows = []
for configuration in ("SM+LN+G", "SM+LN+R", "SM+G", "SM+R", "SM"):
    small, whole = (summed("SEMI2K", model, 128, configuration) for model in ("gpt2-6x64", "gpt2-124m"))
    rows.append(
        {
            "configuration": configuration,
            "small model, one machine (s)": computing.get(configuration, "-"),
            "small model, over the line (s)": f"{over_the_line(small['bytes'], small['messages']):,.0f}",
            "GPT-2 124M, over the line (s)": f"{over_the_line(whole['bytes'], whole['messages']):,.0f}",
            "of it for the bytes (s)": f"{over_the_line(whole['bytes']):,.0f}",
            "GPT-2 124M, messages": f"{whole['messages']:,.0f}",
        }
    )
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
minutes = aero["_cols"].index("latency_min")
rows = []
for configuration in ("SM+LN+G", "SM+LN+R", "AERO SM+ScFFN"):
    given = aero["GPT2_12L_T128"][configuration]
    rows.append(
        {
            "published, GPT-2 T = 128": configuration,
            "GB": f"{given[column]:.2f}",
            "minutes, published": f"{given[minutes]:.2f}",
            "minutes for the bytes alone": f"{over_the_line(given[column] * 1e9) / 60:.1f}",
            "if half goes each way at once": f"{over_the_line(given[column] * 5e8) / 60:.1f}",
        }
    )
slowest = aero["GPT2_12L_T128"]["SM+LN+G"]
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
too_short = over_the_line(slowest[column] * 5e8) / 60 > slowest[minutes]
Markdown(
    "The published times do not follow from the published bytes at the published bandwidth"
    + (
        f": the bytes of SM+LN+G need {over_the_line(slowest[column] * 5e8) / 60:.1f} minutes even if half of them travels each "
        f"way at once, and the table says {slowest[minutes]}. Bytes, minutes or bandwidth mean something else than we read."
        if too_short
        else " only if one direction waits for the other."
    )
)

# %% [markdown]
# ## Measured again here

# %% tags=["remove-input"]
python = project_root() / "_build" / "private" / "bin" / "python"
if study.source == "recorded":
    said = "Nothing was run for this page. `make private` installs the engine and measures on your machine."
elif not python.exists():
    said = "SPU is not installed here, so nothing was measured again; `make private` installs it."
else:
    command = [python, "-m", "tools.benchmarks.private", "operations", "--protocol", "SEMI2K", "--largest", "10000"]
    done = subprocess.run([*map(str, command)], cwd=project_root(), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr)
    fresh = json.loads((project_root() / "_build" / "private" / "results" / "operations.json").read_text())["rows"]
    key = ["protocol", "operation", "shape"]
    known = {str([row[k] for k in key]): row["bytes"] for row in recorded["operations"]["rows"]}
    both = [(row["bytes"], known.get(str([row[k] for k in key]))) for row in fresh if row["protocol"] == "SEMI2K"]
    agree = sum(a == b for a, b in both)
    said = f"Measured on this machine under SEMI2K: {len(both)} operations, {agree} of them with the recorded bytes exactly."
Markdown(said)

# %% [markdown]
# To take the seconds too, on a machine with nothing else to do: `make private PRIVATE="--timing"`.

# %% tags=["remove-input"]
exact = operations.sort_values(["protocol", "operation", "elements"])
counts = pd.DataFrame(
    {
        "protocol": exact["protocol"],
        "operation": exact["operation"].map(LABEL).fillna("set-up"),
        "shape": exact["shape"].map(lambda shape: " × ".join(map(str, shape))),
        "bytes": exact["bytes"].map("{:,.0f}".format),
        "messages": exact["messages"].map("{:,.0f}".format),
        "kernel's bytes": exact["kernel_bytes"].map(lambda b: "-" if pd.isna(b) else f"{b:,.0f}"),
        "seconds": exact["seconds"].map(lambda s: "-" if pd.isna(s) else f"{s:.2f}"),
        "largest error": exact["largest_error"].map(lambda e: "-" if pd.isna(e) else f"{e:.1e}"),
    }
)
folded("All counts, as measured", markdown_table(counts))

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
Markdown(
    f"In private inference save on the activation first: under SEMI2K, ReLU in place of GELU takes {saved('SM+LN+R', 'SM+LN+G'):.0f} % off "
    f"GPT-2's bytes, leaving LayerNorm out {saved('SM+G', 'SM+LN+G'):.0f} %, and replacing it by tanh or erf costs more than keeping it."
)
