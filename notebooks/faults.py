# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What it survives
#
# A killed run goes on with the same command. On one thread its result was that of an undisturbed run each time we tried.

# %% tags=["remove-input"]
import json

import pandas as pd
from IPython.display import Markdown

from nfbook.recorded import recorded_dir
from nfbook.report import glue, markdown_table
from nfcore.runs import read_records
from nfcore.settings import project_root


torture = json.loads((project_root() / "data" / "recorded" / "torture.json").read_text())
rows = torture["rows"]
made = torture["provenance"]


def tried(kind):
    return sum(row["tried"] for what, row in rows.items() if what.startswith(kind))


kills = tried("SIGKILL")
losses = sum(row["losses"] for row in rows.values())
glue(kills=f"{kills}", losses=f"{losses}")
first = min((record["provenance"]["finished"] for record in read_records(recorded_dir("study"))), default="")[:10]
Markdown(
    f"**We killed commands {kills:,} times, flipped {tried('bit flipped'):,} bits and gave {tried('bad input'):,} bad inputs, after the four "
    f"faults that earlier rounds found were mended. {losses or 'No'} {'result was' if losses < 2 else 'results were'} lost.** "
    + (
        ""
        if losses
        else f"As many kills without a loss leave a chance of up to {100 * (1 - 0.05 ** (1 / kills)):.1f} % for each (95 % confidence). "
    )
    + f"*{made['device']}, torch {made['torch']}, last counted on {made['measured']} at commit `{made['commit'][:12]}`"
    + (" with uncommitted changes" if "+changes" in made["commit"] else "")
    + (f", which is older than the code of the study (first run: {first})" if made["measured"] < first else "")
    + ".* Since then our tests found one more fault: a flipped bit in the list of a checkpoint's files could make a run refuse to go on. It is mended, "
    "and a test flips every bit of that list."
)

# %% [markdown]
# ## Counts
#
# A *failure* is an attempt after which the next command gave another result than undisturbed work, or did not name the damage. The same
# result means equal tables and weights to the last bit for a run on one thread, equal hashes for token files, and equal bytes for a
# notebook. `make test` tries each of these things a few times. `make torture` goes on until the counts below are reached, can be stopped
# at any time, and adds to them.

# %% tags=["remove-input"]
markdown_table(
    pd.DataFrame(
        {
            "what was done": list(rows),
            "times": [f"{row['tried']:,}" for row in rows.values()],
            "failures": [f"{row['losses']}" for row in rows.values()],
        }
    )
)

# %% [markdown]
# The four faults of earlier rounds have tests of their own:
#
# - Two methods of attention entropy gave NaN for a scale of zero or below.
# - An integer of thousands of digits on the command line ended in a traceback.
# - A record of token files was trusted after a flipped bit had renamed its checksum.
# - A notebook that prints slowly gave other bytes each time.
#
# ## Fault by fault
#
# Tests try each of these; only those above are counted.
#
# | fault | what happens |
# |---|---|
# | killed outright | The next command goes on from the last whole checkpoint. Half-written files are never read. |
# | SIGINT, SIGTERM | The run finishes its update, writes a checkpoint, and says in one line how to go on. A second signal ends it at once. |
# | disk full, read-only, no permission, folder gone | One line names the path and, for a full disk, what to set. Half a checkpoint is never read. |
# | the same run started twice | The second says that it waits, and then finds the run finished. The lock ends with its process. |
# | a bit flipped in a checkpoint | The file is named, and the checkpoint before it is used. |
# | a bit flipped in a finished run, its record or token files | It is refused by name, with what to do. |
# | a run that diverges | The run ends as a result: its record names step and layer. |
# | out of memory | The step is named, with the estimated memory and the largest micro-batch that would fit. |
# | one of several processes dies | The whole job ends, torchrun names rank and signal, and the same command resumes. |
# | the clock jumps | Durations come from a clock that cannot; checkpoints are kept by step, not by age. |
# | locale C, no HOME, no network, umask 077, blanks and other letters in paths, a read-only checkout | The results are the same. |
# | a notebook fails | Its partial notebook is kept aside and named, the others go on, and the book says which is missing. With `--strict` no book is built. |
# | records and checkpoints of another format | Read where that is safe, else refused with both versions. |
#
# ## Exit codes of `nfcore` and `nfbook`
#
# | code | meaning |
# |---|---|
# | `0` | done |
# | `1` | a notebook failed, or a recorded verdict no longer follows from the records |
# | `2` | wrong input, or files that cannot be read or written |
# | `3` | the run diverged, which is recorded |
# | `4` | out of memory |
# | `130`, `143` | stopped by SIGINT, SIGTERM; a checkpoint is there |
#
# ## Security
#
# - Weights are safetensors. The state of optimiser, schedule and random numbers is checked against its checksum and then read by torch's
#   loader for plain data (`weights_only`), which calls nothing.
# - Code that comes with a model is never run. Corpora are read, not imported. Parameters of notebooks are data.
# - Every page of this book carries a policy that lets a browser load nothing from elsewhere.
# - Installation checks the hash of every package except torch, whose builds differ. `make audit` asks the public database of
#   vulnerabilities about the locked versions; the workflow does so at every change.

# %% [markdown]
# ## What to remember
#
# After a kill or a signal, give the same command again. After another fault, the message says what to do.
