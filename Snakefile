# data -> runs -> notebooks -> book, for one preset. `make book PRESET=quick` calls it; by hand:
#   snakemake --cores 2 --resources gpu=1 --rerun-incomplete --config preset=quick
# Everything it writes is ignored by git. Of a run only the completion record is declared, and kept (`update`) when its
# job starts again: Snakemake deletes declared outputs, and checkpoints have to survive.
import os
import shlex
import shutil
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
RUNS_DIR = os.path.relpath(runs_dir()) if runs_dir().is_relative_to(Path.cwd()) else str(runs_dir())
RECORD = RUNS_DIR + "/{id}/record.json"
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
    log:
        BUILD + "/book.log",
    run:
        source, html = Path(BUILD, "book"), Path(output[0]).parent
        pages = {source / page.relative_to("book"): page for page in PAGES}
        for old in source.rglob("*"):
            if old.is_file() and old not in pages and old.suffix != ".ipynb":
                old.unlink()
        for target, page in pages.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)
        options = "--config _config.yml -W -n --keep-going --quiet"
        jupyter_book = f"{PYTHON} -c 'from jupyter_book.cli.main import main; main()'"
        command = f"{jupyter_book} build {BUILD}/book --path-output {BUILD} {options}"
        shell(f"{command} > {{log:q}} 2>&1 || {{{{ cat {{log:q}} >&2; exit 1; }}}}")
        shutil.rmtree(html, ignore_errors=True)
        shutil.copytree(Path(BUILD, "_build", "html"), html)
