# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many heads are overloaded
#
# This page counts {term}`heads <head>` by {term}`entropy <head entropy>`, as the left panel of the paper's first figure does
# {cite}`jha2024relus`: their share in each quarter of the range [0, Max] {eq}`eq-quarters`. A disproportionate share in the last
# quarter is {term}`entropic overload <overload (entropic)>`, one in the first {term}`entropy collapse <collapse (entropy)>`. Claim
# [C3](../claims-of-the-paper.md).
#
# What Max is the paper does not say. Both conventions that its numbers allow are shown: the largest head entropy observed over the
# compared models, and the causal {term}`ceiling` {eq}`eq-ceiling`.

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
import numpy as np
import pandas as pd
from IPython.display import Markdown

from nfbook.figures import STYLES, show_figure, use_style
from nfbook.presets import MAIN
from nfbook.report import (
    NAMES,
    against,
    banner,
    final_heads,
    glue,
    markdown_table,
    published,
    shares_by_convention,
    sources,
)
from nfcore.shares import QUARTERS, quartile_shares


use_style()
shown = sources(preset, "shares")
banner(preset, next(iter(shown.values())))

# %% tags=["remove-input"]
own = next(iter(shown.values()))
context = int(own.runs["data.context"].iloc[0])
ours = shares_by_convention({c: final_heads(own, c) for c in MAIN}, context)
maps = {c: published("head_entropy")["maps"][c] for c in MAIN}
counted = shares_by_convention(maps, 128)
printed = published("head_share_percent")["main.png"]

# %% tags=["remove-input"] mystnb={"figure": {"name": "fig-shares", "caption": "Share of heads in each quarter of [0, Max], Max being the causal ceiling: as printed in the paper (hollow) and ours (filled)."}, "image": {"alt": "Bars of the share of attention heads per entropy quarter for the four main configurations, published and ours."}}
figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True)
positions = np.arange(4)
for panel, configuration in zip(axes, MAIN, strict=True):
    color = STYLES[configuration]["color"]
    panel.bar(positions - 0.2, printed[configuration], 0.4, fill=False, edgecolor=color, label="published")
    panel.bar(positions + 0.2, 100 * ours["ceiling"][configuration], 0.4, color=color, label="ours")
    panel.set(title=configuration, xlabel="quarter of [0, Max]")
    panel.set_xticks(positions, ["1st", "2nd", "3rd", "4th"])
axes[0].set_ylabel("share of heads (%)")
axes[2].legend(loc="upper left")
fourth = {"ours": {c: 100 * ours["ceiling"][c][3] for c in MAIN}, "published": {c: printed[c][3] for c in MAIN}}
finding = "; ".join(
    f"{whose}: {against('SM+G', of['SM+G'], 'SM+R', of['SM+R'], '{:.0f} %')}" for whose, of in fourth.items()
)
show_figure(figure, own, finding=f"Heads in the fourth quarter, {finding}.")

# %% [markdown]
# All shares in percent. *Counted* is our count on the published two-decimal maps; below the table stands how many of
# the 16 printed shares it reproduces under each convention. The rest needs entries within rounding distance of a
# boundary.

# %% tags=["remove-input"]
rows = []
for configuration in MAIN:
    for label, values in (
        ("published, printed", np.array(printed[configuration]) / 100),
        ("published, counted, ceiling", counted["ceiling"][configuration]),
        ("published, counted, largest", counted["largest observed"][configuration]),
        ("ours, ceiling", ours["ceiling"][configuration]),
        ("ours, largest", ours["largest observed"][configuration]),
    ):
        rows.append(
            {"configuration": configuration, "Max": label}
            | {q: f"{100 * v:.0f}" for q, v in zip(QUARTERS, values, strict=True)}
        )
markdown_table(pd.DataFrame(rows))

# %% tags=["remove-input"]
agree = {
    c: sum(round(100 * v) == p for m in MAIN for v, p in zip(counted[c][m], printed[m], strict=True)) for c in counted
}
on_log = {m: quartile_shares(maps[m], np.log(128)) for m in MAIN}
log = sum(round(100 * v) == p for m in MAIN for v, p in zip(on_log[m], printed[m], strict=True))
glue(agree_ceiling=str(agree["ceiling"]), agree_largest=str(agree["largest observed"]), agree_log=str(log))
glue(printed_all=str(sum(map(len, printed.values()))))
print(f"printed shares reproduced by counting on the published maps: {agree}")

# %% [markdown]
# ## What to remember

# %% tags=["remove-input"]
last = {c: 100 * ours["ceiling"][c][3] for c in MAIN}
glue(**{f"overload_{name}": f"{last[c]:.0f}" for name, c in NAMES.items()})
Markdown(
    f"In the last quarter stand {last['SM+G']:.0f} % of the heads of SM+G and {last['SM+R']:.0f} % of SM+R (published: {printed['SM+G'][3]} % and "
    f"{printed['SM+R'][3]} %), with LayerNorm {last['SM+LN+G']:.0f} % and {last['SM+LN+R']:.0f} % (published: {printed['SM+LN+G'][3]} % and {printed['SM+LN+R'][3]} %). "
    "After few steps most heads are still near their start at the ceiling, so these shares need long training to compare."
)
