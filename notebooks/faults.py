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
# This page shows what was done on purpose to runs, notebooks and books while they were made, how often, and what came of it. `make
# test` does each of these things a few times; `make torture` goes on until the counts below are reached, can be stopped at any
# time, and adds to them.

# %% tags=["remove-input"]
import json

import pandas as pd
from IPython.display import Markdown

from nfbook.report import glue, markdown_table
from nfcore.settings import project_root


torture = json.loads((project_root() / "data" / "recorded" / "torture.json").read_text())
rows = torture["rows"]
made = torture["provenance"]
kills = sum(row["tried"] for what, row in rows.items() if what.startswith("SIGKILL"))
losses = sum(row["losses"] for row in rows.values())
glue(kills=f"{kills}", losses=f"{losses}")
Markdown(
    f"*{made['device']}, torch {made['torch']}, last counted on {made['measured']} at commit `{made['commit'][:12]}`.*"
)

# %% [markdown]
# ## Counts
#
# A *loss* is an attempt after which the next command did not come to the same result as undisturbed work, or after which damage was
# not named. For a run the same result means equal tables and weights to the last bit, on one thread; for token files, equal
# hashes; for a notebook, equal bytes.

# %% tags=["remove-input"]
markdown_table(
    pd.DataFrame(
        {
            "what was done": list(rows),
            "times": [f"{row['tried']:,}" for row in rows.values()],
            "losses": [f"{row['losses']}" for row in rows.values()],
        }
    )
)

# %% [markdown]
# Earlier rounds found four faults, which are mended and have tests of their own: attention entropy was not a number for a scale of zero
# or below in two of its methods; an integer of thousands of digits on the command line ended in a traceback; the record of token files
# was believed after a flipped bit had renamed its checksum; and a notebook that prints slowly came out in other bytes each time. The
# counts are of the rounds after that.
#
# ## Fault by fault
#
# | fault | what happens |
# |---|---|
# | killed outright | The next command goes on from the last checkpoint that is whole; what was half written is never read. |
# | SIGINT, SIGTERM | The update is finished, a checkpoint written, and one line says how to go on. A second signal ends it at once. |
# | disk full, read-only, no permission, folder gone | One line names the path; of a full disk also what is left and what to set. Half a checkpoint is removed. |
# | the same run started twice | The second says that it waits, and then finds the run finished. The lock ends with its process, however that ends. |
# | a bit flipped in a checkpoint | The file is named, and the checkpoint before it is used. |
# | a bit flipped in a finished run, its record or token files | It is refused by name, with what to do. |
# | a value that is not finite | The run ends as a result: its record has step and layer. |
# | out of memory | Step and layer are named, with the largest micro-batch that is estimated to fit. |
# | one of several processes dies | The whole job ends, torchrun names rank and signal, and the same command resumes. |
# | the clock jumps | Durations come from a clock that cannot; checkpoints are kept by step, not by age. |
# | locale C, no HOME, no network, umask 077, blanks and other letters in paths, a checkout that cannot be written | Nothing is different. |
# | a notebook fails | Its partial notebook is kept aside and named, the others go on, and the book says which is missing; with `--strict` there is no book. |
# | records and checkpoints of another format | Read where that is safe, else refused with both versions. |
#
# ## Exit codes of `python -m nfcore`
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
# Weights are safetensors. The state of optimiser, schedule and random numbers is read only after its checksum, and then by torch's
# loader for plain data (`weights_only`), which calls nothing. Code that comes with a model is never run, corpora are read and not
# imported, parameters of notebooks are data, and every page of this book carries a policy that lets a browser load nothing from
# elsewhere. Installation checks the hash of every package but torch, whose builds differ. `make audit` asks the public database of
# vulnerabilities about the locked versions; the workflow does so at every change.

# %% [markdown]
# ## What to remember
#
# Stop it whenever you like, in whatever way: the same command goes on, and what it ends with is what an undisturbed run would have
# given.
