# data -> runs -> notebooks -> book, for one preset. `make book PRESET=quick` calls it; by hand:
#   snakemake --cores 2 --resources gpu=1 --rerun-incomplete --config preset=quick
# Everything it writes is ignored by git. Of a run only the completion record is declared, and kept (`update`) when its
# job starts again: Snakemake deletes declared outputs, and checkpoints have to survive.
import shlex
import sys
from pathlib import Path

from nfcore.presets import EXPERIMENTS, Preset, params_file
from nfcore.runs import runs_dir
from nfcore.settings import digest

PRESET = Preset.load(config.get("preset", "quick"))
NAME = PRESET.preset
BUILD = f"_build/{NAME}"
RUNS = {e.id: e for e in PRESET.experiments()}
MAIN = {e.id for e in PRESET.grid()["curves"]}
NEEDS = {name: list(dict.fromkeys(e.id for e in grid)) for name, grid in PRESET.grid().items()}
NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.py"))
PAGES = [p for p in Path("book").rglob("*") if p.is_file() and p.suffix != ".ipynb" and "_build" not in p.parts]
PYTHON = shlex.quote(sys.executable)
RECORD = f"{runs_dir()}/{{id}}/record.json"
NFCORE = [f"nfcore/{name}.py" for name in ("report", "notebook", "presets", "runs", "settings")]


def marker(experiment):
    return f"{BUILD}/tokens/{digest(vars(experiment.data))}"


MARKERS = {marker(e): e.id for e in RUNS.values()}


wildcard_constraints:
    id="[0-9a-f]{12}",


rule all:
    input:
        f"{BUILD}/html/index.html",


rule tokens:
    output:
        BUILD + "/tokens/{data}",
    params:
        run=lambda wildcards, output: MARKERS[output[0]],
    shell:
        "{PYTHON} -m nfcore data {NAME}/{params.run} --mark {output:q} > /dev/null"


rule run:
    input:
        lambda wildcards: marker(RUNS[wildcards.id]),
    output:
        update(RECORD),
    priority: lambda wildcards: 2 if wildcards.id in MAIN else 1
    resources:
        gpu=1 if NAME in ("gpu", "paper") else 0,
    shell:
        "{PYTHON} -m nfcore train {NAME}/{wildcards.id} && touch {output:q}"


rule notebook:
    input:
        lambda wildcards: expand(RECORD, id=NEEDS.get(wildcards.name, RUNS)),
        script="notebooks/{name}.py",
        params=params_file(NAME),
        code=NFCORE,
    output:
        BUILD + "/book/notebooks/{name}.ipynb",
    shell:
        "{PYTHON} -m nfcore notebook {input.script:q} {output:q} preset={NAME} source=local > /dev/null"


rule book:
    input:
        expand(BUILD + "/book/notebooks/{name}.ipynb", name=NOTEBOOKS),
        "_config.yml",
        PAGES,
    output:
        BUILD + "/html/index.html",
    params:
        source=BUILD + "/book",
    shell:
        "{PYTHON} -m nfcore assemble {params.source:q} {output:q}"
