"""Notebooks: parameters, execution to the same bytes, and every script at preset smoke, training included."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
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
SMALL = """\
# %% [markdown]
# # A title

# %% tags=["parameters"]
preset = "smoke"
seeds = None

# %%
from nfbook.notebook import parameters
preset = parameters(globals())

# %% mystnb={"figure": {"name": "fig-x", "caption": "A line."}}
import matplotlib.pyplot as plt
from nfbook.figures import show_figure, use_style
use_style()
figure, axes = plt.subplots()
axes.plot([1, 2])
show_figure(figure, finding="It rises.")

# %%
print(preset.preset, preset.seeds)
{1, 2}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    return script


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[Any]:
    return [output for cell in code_cells(path) for output in cell.outputs]


# --- parameters -------------------------------------------------------------------------------------------------


def test_parameters_ignore_what_a_notebook_holds_anyway() -> None:
    namespace = dict(
        In=[""], Out={1: 2}, _=3, _i1="x", __name__="__main__", math=math, parameters=parameters, Path=Path
    )
    given = dict(preset="smoke", source="local", seeds=None, steps={"main": 3})
    assert parameters({**namespace, **given}) == Preset.load("smoke", steps={"main": 3})
    assert parameters(namespace) == Preset.load("quick")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(seed=1), "unknown setting 'seed'; allowed: preset, source, seeds"),
        (dict(preset=3), "preset: 3 is not one of smoke"),
        (dict(preset="big"), "preset: 'big' is not one of smoke"),
        (dict(seeds=0), "seeds: 0 must be a valid list"),
        (dict(training={"learning_rate": "1e-3"}), "learning_rate: '1e-3' must be a valid number"),
        (dict(steps="many"), "steps: 'many' must be a mapping"),
    ],
)
def test_wrong_parameters_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parameters({"preset": "smoke", **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(seeds=[1]), "parameters of preset transient: unknown setting 'seeds'; allowed: preset, source"),
        (dict(source="here"), "source: 'here' is not one of"),
        (dict(training={}), "unknown setting 'training'"),
    ],
)
def test_wrong_parameters_of_a_study_are_refused(given: dict[str, Any], message: str) -> None:
    assert parameters({"preset": "study", "source": "local"}) == Study.load("study", "local")
    with pytest.raises(SettingsError, match=message):
        parameters({"preset": "transient", **given})


# --- execution --------------------------------------------------------------------------------------------------


def test_two_executions_are_the_same_bytes(small: Path, tmp_path: Path) -> None:
    first, second = (execute(small, tmp_path / name / "out.ipynb", {"seeds": [1, 2]}) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["out.ipynb"]
    executed = nbformat.read(first, as_version=4)
    nbformat.validate(executed)
    assert "".join(o.get("text", "") for o in outputs(first)) == "smoke [1, 2]\n"
    figure = next(o.data["image/svg+xml"] for o in outputs(first) if "image/svg+xml" in o.get("data", {}))
    assert "<dc:date>" not in figure
    tags = [cell.metadata.get("tags", []) for cell in executed.cells]
    for name in ("parameters", "injected-parameters"):
        assert [name, "remove-cell"] in tags, "the page would show a box of parameters"
    assert any("mystnb" in cell.metadata for cell in executed.cells)
    assert "papermill" not in executed.metadata
    assert len({cell["id"] for cell in executed.cells}) == len(executed.cells)
    assert str(tmp_path) not in first.read_text()


@pytest.mark.parametrize("quote", ['"', "'", '"""', "\\"])
def test_parameters_are_data_and_not_code(quote: str, small: Path, tmp_path: Path) -> None:
    text = f"{quote}\nopen({str(tmp_path / 'pwned')!r}, 'w')  # {quote}"
    with pytest.raises(SettingsError, match=r"preset: .* is not one of"):
        execute(small, tmp_path / "out.ipynb", {"preset": text})
    with pytest.raises(SettingsError, match="unknown setting"):
        execute(small, tmp_path / "out.ipynb", {f"seeds = open({str(tmp_path / 'pwned')!r}, 'w')": 1})
    small.write_text(SMALL + "\n# %%\nprint(repr(preset.data['corpus']))\n")
    execute(small, tmp_path / "out.ipynb", {"data": {"corpus": text}})
    assert "".join(o.get("text", "") for o in outputs(tmp_path / "out.ipynb")).endswith(f"{text!r}\n")
    assert not (tmp_path / "pwned").exists()


def test_what_is_printed_slowly_is_one_output(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("# %%\nimport time\nfor i in range(4):\n    time.sleep(0.1)\n    print(i)\n")
    (output,) = outputs(execute(script, tmp_path / "out.ipynb", {}))
    assert output.text == "0\n1\n2\n3\n"


def test_failed_notebook_replaces_nothing(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    small.write_text(SMALL + "\n# %%\nraise KeyError('missing')\n")
    with pytest.raises(RuntimeError, match=r"small\.py: cell \d+: KeyError: 'missing' \(see .*out\.failed\.ipynb\)"):
        execute(small, output, {})
    assert output.read_text() == "old"
    partial = tmp_path / "out.failed.ipynb"
    assert any(o.output_type == "error" for o in outputs(partial))
    small.write_text("# %%\n1\n")
    execute(small, output, {})
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb", "small.py"]


@pytest.mark.parametrize("values", [dict(stpes={}), dict(preset="big"), dict(training={"learning_rate": "1e-3"})])
def test_wrong_parameters_start_no_kernel(
    small: Path, tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papermill.execute_notebook", lambda *args, **kwargs: pytest.fail("started a kernel"))
    with pytest.raises(SettingsError):
        execute(small, tmp_path / "new" / "out.ipynb", values)
    assert not (tmp_path / "new").exists()


def test_missing_script(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.py: no such notebook script"):
        execute(tmp_path / "none.py", tmp_path / "new" / "out.ipynb", {})
    assert not (tmp_path / "new").exists()


def test_cell_ids_come_from_the_text(small: Path) -> None:
    ids = [cell["id"] for cell in notebook.read(small).cells]
    assert ids == [cell["id"] for cell in notebook.read(small).cells]
    small.write_text(SMALL.replace("A title", "Another"))
    changed = [cell["id"] for cell in notebook.read(small).cells]
    assert [a == b for a, b in zip(ids, changed, strict=True)] == [False, *[True] * (len(ids) - 1)]


def test_a_script_is_never_written_over(small: Path) -> None:
    before = small.read_text()
    for output in (small, small.with_suffix(".py"), small.with_suffix(".md")):
        with pytest.raises(SettingsError, match=r"a script ends in \.py, its notebook in \.ipynb"):
            execute(small, output, {})
    assert small.read_text() == before


@pytest.mark.parametrize("kernelspec", ["{name: python3}", "{name: other, display_name: Other}", "{}"])
def test_a_script_may_name_any_kernel(kernelspec: str, tmp_path: Path) -> None:
    script = tmp_path / "named.py"
    script.write_text(f"# ---\n# jupyter:\n#   kernelspec: {kernelspec}\n# ---\n\n# %%\nprint(1 + 1)\n")
    executed = execute(script, tmp_path / "named.ipynb", {})
    assert '"2\\n"' in executed.read_text()


# --- the project's notebooks ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_at_smoke(script: Path, smoke_grid: Path, tmp_path: Path) -> None:
    before = {record: record.stat().st_mtime_ns for record in smoke_grid.glob("*/record.json")}
    preset = default_preset(script)
    if preset in STUDIES:  # they show the recorded runs, as committed; nbval executes them
        executed = project_root() / "book" / "notebooks" / f"{script.stem}.ipynb"
    else:
        executed = execute(script, tmp_path / "out.ipynb", {"preset": "smoke", "source": "local"} if preset else {})
    assert all(cell.execution_count for cell in code_cells(executed) if cell.source)
    shown = outputs(executed)
    assert not [o for o in shown if o.output_type == "error"]
    assert not [o.text for o in shown if o.get("name") == "stderr"]
    assert any("data" in o for o in shown), "shows nothing"
    findings = [o["data"][SPEC]["finding"] for o in shown if SPEC in o.get("data", {})]
    assert not [finding for finding in findings if re.search(r"\b(?:nan|inf|None)\b", finding)]
    text = executed.read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert before == {record: record.stat().st_mtime_ns for record in smoke_grid.glob("*/record.json")}, "trained again"


@pytest.fixture
def project_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``project_with(*stages)``: a project in which these stages of the study are recorded, by runs of the transient
    under the settings of the study's."""

    def make(*stages: str) -> Path:
        root, real = tmp_path / "project", project_root()
        (root / "data" / "recorded").mkdir(parents=True)
        for name in (
            "data/published",
            "data/claims.yaml",
            "data/transient.yaml",
            "data/recorded/transient",
            "notebooks",
        ):
            (root / name).symlink_to(real / name)
        source = runs.load_runs(real / "data" / "recorded" / "transient")
        donors: dict[str, list[dict[str, Any]]] = {}
        for record in runs.read_records(real / "data" / "recorded" / "transient"):
            if record["settings"]["model"]["num_hidden_layers"] == 6:
                donors.setdefault(runs.row(record)["configuration"], []).append(record)
        study = Study.load()
        wanted = {e.id: e for stage in stages for e in study.experiments(stage)}
        donor = {
            run: donors.get(e.model.configuration, donors["SM+R"])[place % 3]
            for place, (run, e) in enumerate(wanted.items())
        }
        if wanted:
            target = root / "data" / "recorded" / "study"
            target.mkdir()
            records = [{**donor[run], "id": run, "name": e.name, "settings": e.to_dict()} for run, e in wanted.items()]
            (target / "records.json").write_text(json.dumps(records))
            for name in runs.TABLES:
                tables = dict(iter(getattr(source, name).groupby("run")))
                copies = [tables[old["id"]].assign(run=run) for run, old in donor.items() if old["id"] in tables]
                pd.concat(copies).to_parquet(target / f"{name}.parquet", index=False)
            sums = {path.name: file_sha256(path) for path in target.iterdir()}
            (target / "checksums.json").write_text(json.dumps(sums))
        monkeypatch.setenv("NFCORE_ROOT", str(root))
        return root

    return make


@pytest.mark.parametrize("stages", [(), ("rates",), tuple(Study.load().stages)], ids=len)
def test_claims_page_builds_with_whatever_is_recorded(
    stages: tuple[str, ...], project_with: Callable[..., Path], tmp_path: Path
) -> None:
    project_with(*stages)
    given = {"preset": "study", "source": "recorded"}
    executed = execute(project_root() / "notebooks" / "claims.py", tmp_path / "out.ipynb", given)
    shown = "".join(str(o.get("data", {}).get("text/markdown", "")) for o in outputs(executed))
    study = Study.load()
    missing = [stage for stage in study.stages if stage not in stages]
    for stage in missing:
        assert f"{stage} (0 of {len(study.experiments(stage))} runs)" in shown, "a missing stage is hidden"
    cells = {cell.experiments[0].replace(seed=0).id: name for name, cell in [*study.cells.items()][::-1]}
    for name in cells.values():  # the first of those with the same settings
        if study.cells[name].stage in missing and study.cells[name].stage != "rates":
            assert f"`{name}`" in shown, "a configuration without runs is hidden"
    assert ("Not trained yet" in shown) == bool(missing)
    assert ("not trained yet" in shown) == ("linear" in missing)
    findings = [o["data"][SPEC]["finding"] for o in outputs(executed) if SPEC in o.get("data", {})]
    assert not [finding for finding in findings if re.search(r"\b(?:nan|inf|None)\b", finding)]
    assert not [o.text for o in outputs(executed) if o.get("name") == "stderr"]


def papermill(source: Path, target: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(source), str(target), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script ``entropy`` as plain jupytext converts it."""
    target = tmp_path_factory.mktemp("converted") / "entropy.ipynb"
    jupytext.write(jupytext.read(project_root() / "notebooks" / "entropy.py"), target)
    return target


@pytest.mark.parametrize("options", [("-f", str(params_file("smoke"))), ("-p", "preset", "smoke")], ids=["-f", "-p"])
def test_papermill_by_hand(converted: Path, tmp_path: Path, smoke_grid: Path, options: tuple[str, ...]) -> None:
    done = papermill(converted, tmp_path / "out.ipynb", *options)
    assert done.returncode == 0, done.stderr
    shown = "".join(str(o.get("data", {}).get("text/markdown", "")) for o in outputs(tmp_path / "out.ipynb"))
    assert "Preset `smoke`, runs of this machine" in shown


def test_papermill_with_a_wrong_parameter_file_fails_at_the_top(converted: Path, tmp_path: Path) -> None:
    text = params_file("smoke").read_text()
    wrong = re.sub(r"learning_rate: \S+", "learning_rate: 1e-3", text)
    assert wrong != text
    (tmp_path / "wrong.yaml").write_text(wrong)
    done = papermill(converted, tmp_path / "out.ipynb", "-f", str(tmp_path / "wrong.yaml"))
    assert done.returncode != 0
    assert "SettingsError: training.learning_rate: '1e-3' must be a valid number" in done.stderr
    assert sum(bool(cell.outputs) for cell in code_cells(tmp_path / "out.ipynb")) <= 2, "ran on"
