"""Notebooks: parameters, execution to the same bytes, and every script at preset smoke, training included."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pandas as pd
import pytest

from nfbook import notebook
from nfbook.figures import SPEC
from nfbook.notebook import default_preset, execute, parameters
from nfbook.presets import Preset, params_file
from nfbook.study import STUDIES, Study
from nfcore import runs
from nfcore.settings import SettingsError, project_root
from nfcore.store import file_sha256


SCRIPTS = sorted((project_root() / "notebooks").glob("*.py"))
HEAD = """\
# %% [markdown]
# # A title

# %% tags=["parameters"]
preset = "smoke"
seeds = None

# %%
from nfbook.notebook import parameters
preset = parameters(globals())
"""
SMALL = f"""{HEAD}
# %% mystnb={{"figure": {{"name": "fig-x", "caption": "A line."}}}}
import matplotlib.pyplot as plt
from nfbook.figures import show_figure, use_style
use_style()
figure, axes = plt.subplots()
axes.plot([1, 2])
show_figure(figure, finding="It rises.")

# %%
print(preset.preset, preset.seeds)
{{1, 2}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    return script


def outputs(path: Path) -> list[Any]:
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def text_of(shown: list[Any], kind: str = "text/markdown") -> str:
    return "".join(str(o.get("text", "") or o.get("data", {}).get(kind, "")) for o in shown)


def test_parameters_ignore_what_a_notebook_holds_anyway() -> None:
    shell = dict(In=[""], Out={1: 2}, _=3, _i1="x", __name__="__main__", math=math, parameters=parameters, Path=Path)
    given = dict(preset="smoke", source="local", seeds=None, steps={"main": 3})
    assert parameters({**shell, **given}) == Preset.load("smoke", steps={"main": 3})
    assert parameters(shell) == Preset.load("quick")
    assert parameters({**shell, "preset": "study", "source": "local"}) == Study.load("study", "local")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(preset="smoke", seed=1), "unknown setting 'seed'; allowed: preset, source, seeds"),
        (dict(preset=3), "preset: 3 is not one of smoke"),
        (dict(preset="smoke", training={"learning_rate": "1e-3"}), "learning_rate: '1e-3' must be a valid number"),
        (
            dict(preset="transient", seeds=[1]),
            "parameters of preset transient: unknown setting 'seeds'; allowed: preset",
        ),
        (dict(preset="transient", source="here"), "source: 'here' is not one of"),
    ],
)
def test_wrong_parameters_are_refused_and_start_no_kernel(
    given: dict[str, Any], message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=message):
        parameters(given)
    monkeypatch.setattr("papermill.execute_notebook", lambda *args, **kwargs: pytest.fail("started a kernel"))
    with pytest.raises(SettingsError, match=message):
        execute(small, tmp_path / "new" / "out.ipynb", given)
    assert not (tmp_path / "new").exists()


def test_two_executions_are_the_same_bytes(small: Path, tmp_path: Path) -> None:
    first, second = (execute(small, tmp_path / name / "out.ipynb", {"seeds": [1, 2]}) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["out.ipynb"]
    executed = nbformat.read(first, as_version=4)
    nbformat.validate(executed)
    assert [o.text for o in outputs(first) if "text" in o] == ["smoke [1, 2]\n"]
    tags = [cell.metadata.get("tags", []) for cell in executed.cells]
    for name in ("parameters", "injected-parameters"):
        assert [name, "remove-cell"] in tags, "the page would show a box of parameters"
    assert any("mystnb" in cell.metadata for cell in executed.cells)
    assert "papermill" not in executed.metadata
    assert len({cell["id"] for cell in executed.cells}) == len(executed.cells)
    assert str(tmp_path) not in first.read_text()


@pytest.mark.parametrize("quote", ['"', "'\\", '"""'])
def test_parameters_are_data_and_not_code(quote: str, small: Path, tmp_path: Path) -> None:
    text = f"{quote}\nopen({str(tmp_path / 'pwned')!r}, 'w')  # {quote}"
    with pytest.raises(SettingsError, match=r"preset: .* is not one of"):
        execute(small, tmp_path / "out.ipynb", {"preset": text})
    with pytest.raises(SettingsError, match="unknown setting"):
        execute(small, tmp_path / "out.ipynb", {f"seeds = open({str(tmp_path / 'pwned')!r}, 'w')": 1})
    small.write_text(f"{HEAD}\n# %%\nprint(repr(preset.data['corpus']))\n")
    execute(small, tmp_path / "out.ipynb", {"data": {"corpus": text}})
    assert text_of(outputs(tmp_path / "out.ipynb")) == f"{text!r}\n"
    assert not (tmp_path / "pwned").exists()


def test_failed_notebook_replaces_nothing(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    small.write_text("# %%\nraise KeyError('missing')\n")
    with pytest.raises(RuntimeError, match=r"small\.py: cell \d+: KeyError: 'missing' \(see .*out\.failed\.ipynb\)"):
        execute(small, output, {})
    assert output.read_text() == "old"
    partial = tmp_path / "out.failed.ipynb"
    assert any(o.output_type == "error" for o in outputs(partial))
    small.write_text("# %%\n1\n")
    execute(small, output, {})
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb", "small.py"]


def test_cell_ids_come_from_the_text(small: Path) -> None:
    ids = [cell["id"] for cell in notebook.read(small).cells]
    assert ids == [cell["id"] for cell in notebook.read(small).cells]
    small.write_text(SMALL.replace("A title", "Another"))
    changed = [cell["id"] for cell in notebook.read(small).cells]
    assert [a == b for a, b in zip(ids, changed, strict=True)] == [False, *[True] * (len(ids) - 1)]


def test_a_script_is_never_written_over_and_a_missing_one_is_named(small: Path, tmp_path: Path) -> None:
    before = small.read_text()
    for output in (small, small.with_suffix(".md")):
        with pytest.raises(SettingsError, match=r"a script ends in \.py, its notebook in \.ipynb"):
            execute(small, output, {})
    assert small.read_text() == before
    with pytest.raises(SettingsError, match=r"none\.py: no such notebook script"):
        execute(tmp_path / "none.py", tmp_path / "new" / "out.ipynb", {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kernelspec", ["{name: other, display_name: Other}", "{}"])
def test_a_script_may_name_any_kernel_and_what_is_printed_slowly_is_one_output(kernelspec: str, tmp_path: Path) -> None:
    slow = "import time\nfor i in range(4):\n    time.sleep(0.1)\n    print(i)\n"
    script = tmp_path / "named.py"
    script.write_text(f"# ---\n# jupyter:\n#   kernelspec: {kernelspec}\n# ---\n\n# %%\n{slow}")
    (output,) = outputs(execute(script, tmp_path / "named.ipynb", {}))
    assert output.text == "0\n1\n2\n3\n"


@pytest.mark.parametrize("script", [s for s in SCRIPTS if default_preset(s)], ids=lambda path: path.stem)
def test_parameters_of_a_script(script: Path) -> None:
    """The cell tagged parameters has every parameter, so that papermill knows it, and nothing is read before."""
    cells = [cell for cell in notebook.read(script).cells if cell.cell_type == "code"]
    assert cells[0].metadata["tags"][0] == "parameters"
    given: dict[str, Any] = {}
    exec(cells[0].source, given)
    names = {name for name in given if not name.startswith("_")}
    assert given["preset"] == default_preset(script)
    if given["preset"] in STUDIES:
        assert given["source"] == "recorded"
        assert names == {"preset", "source"}
    else:
        assert names == {*Preset.model_fields}
        assert (given["preset"], given["source"]) == ("quick", "local")
    assert "parameters(globals())" in cells[1].source


def check_findings(shown: list[Any]) -> None:
    assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("data" in o for o in shown), "shows nothing"
    findings = [o["data"][SPEC]["finding"] for o in shown if SPEC in o.get("data", {})]
    assert not [finding for finding in findings if re.search(r"\b(?:nan|inf|None)\b", finding)]


# The others show recorded runs, as committed: nbval executes them, and test_book.py reads them.
@pytest.mark.parametrize("script", [s for s in SCRIPTS if default_preset(s) not in STUDIES], ids=lambda path: path.stem)
def test_script_runs_at_smoke(script: Path, smoke_grid: Path, tmp_path: Path) -> None:
    before = {record: record.stat().st_mtime_ns for record in smoke_grid.glob("*/record.json")}
    given = {"preset": "smoke", "source": "local"} if default_preset(script) else {}
    executed = execute(script, tmp_path / "out.ipynb", given)
    check_findings(outputs(executed))
    assert str(tmp_path) not in executed.read_text()
    assert str(Path.home()) not in executed.read_text()
    assert before == {record: record.stat().st_mtime_ns for record in smoke_grid.glob("*/record.json")}, "trained again"


def record_all(root: Path) -> None:
    """In ``root`` a project in which the whole study is recorded, by runs of the transient under its settings."""
    real, target = project_root(), root / "data" / "recorded" / "study"
    target.mkdir(parents=True)
    source = runs.load_runs(real / "data" / "recorded" / "transient")
    donors: dict[str, list[dict[str, Any]]] = {}
    for record in runs.read_records(real / "data" / "recorded" / "transient"):
        if record["settings"]["model"]["num_hidden_layers"] == 6:
            donors.setdefault(runs.row(record)["configuration"], []).append(record)
    wanted = {e.id: e for e in Study.load().experiments()}
    donor = {
        run: donors.get(e.model.configuration, donors["SM+R"])[place % 3]
        for place, (run, e) in enumerate(wanted.items())
    }
    records = [{**donor[run], "id": run, "name": e.name, "settings": e.to_dict()} for run, e in wanted.items()]
    (target / "records.json").write_text(json.dumps(records))
    for name in runs.TABLES:
        tables = dict(iter(getattr(source, name).groupby("run")))
        copies = [tables[old["id"]].assign(run=run) for run, old in donor.items() if old["id"] in tables]
        pd.concat(copies).to_parquet(target / f"{name}.parquet", index=False)
    sums = {path.name: file_sha256(path) for path in target.iterdir()}
    (target / "checksums.json").write_text(json.dumps(sums))


@pytest.mark.parametrize("recorded", ["nothing", "all", "what is committed"])
def test_claims_page_shows_what_is_missing(recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = project_root() / "book" / "notebooks" / "claims.ipynb"
    if recorded != "what is committed":
        (root := tmp_path / "project").mkdir()
        (root / "data" / "recorded").mkdir(parents=True)
        for name in ("published", "claims.yaml", "transient.yaml", "recorded/transient"):
            (root / "data" / name).symlink_to(project_root() / "data" / name)
        (root / "notebooks").symlink_to(project_root() / "notebooks")
        if recorded == "all":
            record_all(root)
        monkeypatch.setenv("NFCORE_ROOT", str(root))
        given = {"preset": "study", "source": "recorded"}
        page = execute(project_root() / "notebooks" / "claims.py", tmp_path / "out.ipynb", given)
    check_findings(outputs(page))
    shown, study = text_of(outputs(page)), Study.load()
    there = {*study.recorded_ids()}
    cells = {cell.experiments[0].replace(seed=0).id: name for name, cell in [*study.cells.items()][::-1]}
    planned = {stage: {e.id for e in study.experiments(stage)} for stage in study.stages}
    for stage, ids in planned.items():
        assert (f"{stage} ({len(ids & there)} of {len(ids)} runs)" in shown) == bool(ids - there), "a stage is hidden"
    for name in cells.values():  # the first of those with the same settings
        untrained = not there & {e.id for e in study.cells[name].experiments}
        if untrained and study.cells[name].stage not in ("rates", "skips"):
            assert f"`{name}`" in shown, "a configuration without runs is hidden"
    assert ("Not trained yet" in shown) == any(ids - there for ids in planned.values())
    assert ("not trained yet" in shown) == bool(planned["linear"] - there)


def papermill(source: Path, target: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(source), str(target), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The script ``entropy`` as plain jupytext converts it, up to where it has read its parameters."""
    whole = jupytext.read(project_root() / "notebooks" / "entropy.py")
    last = next(number for number, cell in enumerate(whole.cells) if "parameters(globals())" in cell.source)
    whole.cells = [*whole.cells[: last + 1], nbformat.v4.new_code_cell("print(preset)")]
    jupytext.write(whole, tmp_path / "entropy.ipynb")
    return tmp_path / "entropy.ipynb"


def test_papermill_by_hand(converted: Path, tmp_path: Path) -> None:
    done = papermill(converted, tmp_path / "out.ipynb", "-f", str(params_file("smoke")))
    assert done.returncode == 0, done.stderr
    assert text_of(outputs(tmp_path / "out.ipynb")) == f"{Preset.load('smoke')}\n"
    text = params_file("smoke").read_text()
    wrong = re.sub(r"learning_rate: \S+", "learning_rate: 1e-3", text)
    assert wrong != text
    (tmp_path / "wrong.yaml").write_text(wrong)
    done = papermill(converted, tmp_path / "out.ipynb", "-f", str(tmp_path / "wrong.yaml"))
    assert done.returncode != 0
    assert "SettingsError: training.learning_rate: '1e-3' must be a valid number" in done.stderr
    assert not text_of(outputs(tmp_path / "out.ipynb")).endswith(")\n"), "ran on"
