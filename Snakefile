# data -> runs -> notebooks -> book, for one preset. `make book PRESET=quick` calls it; by hand:
#   snakemake --cores 2 --resources gpu=1 --rerun-incomplete --config preset=quick
# With a profile (profiles/) the runs and notebooks are jobs of a cluster; `hardware` is what their time is planned for.
# Everything it writes is ignored by git. Of a run only the completion record is declared, and kept (`update`) when its
# job starts again: Snakemake deletes declared outputs, and checkpoints have to survive.
import os
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from snakemake.exceptions import WorkflowError

from nfcore import cost
from nfcore.presets import Preset, params_file
from nfcore.runs import runs_dir
from nfcore.settings import SettingsError, digest
from nfcore.study import NOTEBOOKS as STUDY_NOTEBOOKS
from nfcore.study import Study

# With study=STAGE the goal is what is missing of that stage of a study, without a book.
STUDY, STAGE = Study.with_stage(config["study"]) if "study" in config else (None, None)
PRESET = Preset.load(config.get("preset", "quick"))
NAME = STUDY.name if STUDY else PRESET.preset
BUILD = f"_build/{NAME}"
RUNS = {e.id: e for e in (STUDY.missing(STAGE) if STUDY else PRESET.experiments())}
GPU = int(NAME in ("gpu", "paper"))
HARDWARE = config.get("hardware") or cost.usual_device(GPU)
UNPLANNED = {"mem_mb": 16000, "runtime": 720}  # of a run whose memory or time is not known: MB, minutes
FIRST = {run: len(RUNS) - place for place, run in enumerate(RUNS)}  # in the order of the grid
NEEDS = {name: [e.id for e in grid] for name, grid in PRESET.grid().items()}
NEEDS |= dict.fromkeys((*STUDY_NOTEBOOKS, "speed", "faults"), [])  # these show recorded runs, and no runs
NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.py"))
MISSING = sorted(filter(None, str(config.get("missing", "")).split("+")))  # notebooks that failed, for a book without them
PAGES = [p for p in Path("book").rglob("*") if p.is_file() and p.suffix != ".ipynb" and "_build" not in p.parts]
PYTHON = shlex.quote(sys.executable)
RUNS_DIR = os.path.relpath(runs_dir()) if runs_dir().is_relative_to(Path.cwd()) else str(runs_dir())
RECORD = RUNS_DIR + "/{id}/record.json"
SHOWS = [f"nfcore/{n}.py" for n in ("claims", "cost", "figures", "linearity", "report", "notebook", "presets", "runs", "settings", "shares", "study")]
SHOWS += sorted(map(str, [Path("data/claims.yaml"), *Path("data/published").glob("*.json"), *Path("data/recorded").rglob("*.*"), *Path("benchmarks/results").glob("*.json")]))


def marker(experiment):
    return f"{BUILD}/tokens/{digest(vars(experiment.data))}"


@cache
def planned(run):
    """Memory and time to ask for. The tokens of an epoch may be yet to be counted, and of a device nothing be known."""
    try:
        (plan,), _ = cost.plan([RUNS[run]], HARDWARE)
    except SettingsError:
        return UNPLANNED
    return {"mem_mb": cost.host_memory_mb(plan, GPU), "runtime": cost.minutes(plan) or UNPLANNED["runtime"]}


def shown_by(notebook):
    return STUDY_NOTEBOOKS.get(notebook, NAME)


MARKERS = {}
for e in RUNS.values():
    MARKERS.setdefault(marker(e), e.id)

if workflow.is_main_process:
    # One Snakemake a folder. Its own lock outlives a killed process; this one does not (`nfcore book` removes the other).
    LOCK = FileLock(".snakemake/nfcore.lock")
    try:
        LOCK.acquire(timeout=0)
    except Timeout:
        raise WorkflowError("another Snakemake is at work here; wait for it or stop it")


wildcard_constraints:
    id="[0-9a-f]{12}",


envvars:
    *(name for name in ("HF_HOME", "NFCORE_DATA", "NFCORE_ROOT", "NFCORE_RUNS") if name in os.environ),


# Downloads need a network, which nodes of a cluster often lack.
localrules:
    all,
    tokens,
    book,


rule all:
    input:
        expand(RECORD, id=RUNS) if STUDY else f"{BUILD}/html/index.html",


rule tokens:
    output:
        BUILD + "/tokens/{data}",
    params:
        run=lambda wildcards, output: MARKERS[output[0]],
    retries: 0  # on a cluster others are: what is wrong with a corpus stays so
    shell:
        "{PYTHON} -m nfcore data {NAME}/{params.run} --mark {output:q} > /dev/null"


rule run:
    input:
        lambda wildcards: marker(RUNS[wildcards.id]),
    output:
        update(RECORD),
    priority: lambda wildcards: FIRST[wildcards.id]
    threads: lambda wildcards: RUNS[wildcards.id].training.threads or 4
    resources:
        gpu=GPU,
        mem_mb=lambda wildcards, attempt: attempt * planned(wildcards.id)["mem_mb"],
        runtime=lambda wildcards, attempt: attempt * planned(wildcards.id)["runtime"],
    shell:
        "{PYTHON} -m nfcore train {NAME}/{wildcards.id} --quiet || [ $? -eq 3 ]; touch {output:q}"


rule notebook:
    input:
        lambda wildcards: expand(RECORD, id=NEEDS.get(wildcards.name, RUNS)),
        script="notebooks/{name}.py",
        params=lambda wildcards: params_file(shown_by(wildcards.name)),
        shows=SHOWS,
    output:
        BUILD + "/notebooks/{name}.ipynb",
    params:
        preset=lambda wildcards: shown_by(wildcards.name),
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=120,
    shell:
        "{PYTHON} -m nfcore notebook {input.script:q} {output:q} preset={params.preset} source=local > /dev/null"


# In shell alone: a `run:` block breaks where the path of Python has a space.
rule book:
    input:
        expand(BUILD + "/notebooks/{name}.ipynb", name=[n for n in NOTEBOOKS if n not in MISSING]),
        "_config.yml",
        ["CHANGELOG.md", "LICENSE"],  # pages include them
        PAGES,
        sorted(Path("nfcore").glob("*.py")),  # docstrings are pages too
    output:
        BUILD + "/html/index.html",
    log:
        BUILD + "/book.log",
    params:
        # Pages that quote a missing notebook bring warnings.
        build="build {} --path-output {} --config _config.yml {} -n --keep-going --quiet".format(f"{BUILD}/book", BUILD, "" if MISSING else "-W"),
        missing=MISSING,
    shell:
        """
        rm -rf {BUILD}/book {BUILD}/html
        cp -R book {BUILD}/book
        cp CHANGELOG.md LICENSE {BUILD}
        rm -rf {BUILD}/book/_build {BUILD}/book/notebooks
        cp -R {BUILD}/notebooks {BUILD}/book/notebooks
        rm -f {BUILD}/book/notebooks/*.failed.ipynb
        for name in {params.missing}; do
            rm -f "{BUILD}/book/notebooks/$name.ipynb"
            printf '# %s: missing\n\n```{{warning}}\nThis notebook failed, or a run that it shows. What it came to is in `%s`.\n```\n' \
                "$name" "{BUILD}/notebooks/$name.failed.ipynb" > "{BUILD}/book/notebooks/$name.md"
        done
        {PYTHON} -c 'from jupyter_book.cli.main import main; main()' {params.build} > {log} 2>&1 \
            || {{ cat {log} >&2; exit 1; }}
        cp -R {BUILD}/_build/html {BUILD}/html
        """
