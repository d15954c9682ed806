"""The book: every page is there, the committed notebooks come from the scripts, and it builds without a warning."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from nfcore import notebook
from nfcore.settings import project_root
from tools.readme import picture, written


ROOT = project_root()
BOOK = ROOT / "book"
COMMITTED = sorted((BOOK / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
MACHINE = re.compile(r"/(?:home|tmp|root|Users|private|var/folders)/")


def files_of(toc: Any) -> Iterator[str]:
    """Every page that a table of contents names."""
    for key, value in toc.items() if isinstance(toc, dict) else enumerate(toc if isinstance(toc, list) else []):
        if key in ("file", "root"):
            yield value
        else:
            yield from files_of(value)


def toc() -> list[str]:
    return [*files_of(yaml.safe_load((BOOK / "_toc.yml").read_text()))]


def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def test_configuration_keeps_the_book_offline_and_unexecuted() -> None:
    settings = config()
    assert settings["title"]
    assert settings["execute"]["execute_notebooks"] == "off"
    assert settings["only_build_toc_files"] is True
    assert not re.search(r"https?://[^\s]*(?:cdn|jsdelivr|unpkg|googleapis)", yaml.safe_dump(settings))


def test_every_page_of_the_contents_exists_once() -> None:
    pages = toc()
    assert len(pages) == len(set(pages))
    for page in pages:
        if page.startswith("notebooks/"):
            assert (ROOT / "notebooks" / f"{page.split('/')[1]}.py").is_file(), f"{page}: made from no script"
        else:
            assert any((BOOK / f"{page}{suffix}").is_file() for suffix in ("", ".md", ".ipynb", ".rst")), page


def test_every_notebook_is_in_the_contents() -> None:
    assert {page for page in toc() if page.startswith("notebooks/")} == {f"notebooks/{s.stem}" for s in SCRIPTS}


def committed() -> list[Any]:
    if not COMMITTED:
        return [pytest.param(None, marks=pytest.mark.skip(reason="book/notebooks holds no executed notebook"))]
    return [pytest.param(path, id=path.stem) for path in COMMITTED]


@pytest.mark.skipif(not COMMITTED, reason="book/notebooks holds no executed notebook")
def test_every_script_has_its_committed_notebook() -> None:
    assert [path.stem for path in COMMITTED] == [path.stem for path in SCRIPTS]


@pytest.mark.parametrize("path", committed())
def test_committed_notebook_is_its_script_executed(path: Path) -> None:
    executed = nbformat.read(path, as_version=4)
    nbformat.validate(executed)
    source = notebook.read(ROOT / "notebooks" / f"{path.stem}.py")
    cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [(c.cell_type, c.id, c.source) for c in cells] == [(c.cell_type, c.id, c.source) for c in source.cells]
    counts = [c.execution_count for c in executed.cells if c.cell_type == "code" and c.source]
    assert counts == [*range(1, len(counts) + 1)]


@pytest.mark.parametrize("path", committed())
def test_committed_notebook_shows_recorded_runs(path: Path) -> None:
    executed = nbformat.read(path, as_version=4)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1
    given: dict[str, Any] = {}
    exec(injected[0].source, given)
    assert given["source"] == "recorded"
    shown = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert shown
    assert not [o for o in shown if o.output_type == "error"]
    assert not [o.text for o in shown if o.get("name") == "stderr"]
    assert not MACHINE.findall(path.read_text())


def test_pages_name_no_machine() -> None:
    for page in BOOK.rglob("*.md"):
        if "_build" not in page.parts:
            assert not MACHINE.findall(page.read_text()), page


def test_table_of_private_inference_has_the_published_numbers() -> None:
    published = json.loads((ROOT / "data" / "published" / "private_inference.json").read_text())
    names = published["_cols"]
    page = (BOOK / "background.md").read_text()
    rows = re.findall(r"^\* - (SM\S+)\n  - ([\d.]+)\n  - ([\d.]+)\n  - ([\d.]+)$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == ["SM+LN+G", "SM+LN+R", "SM+ScFFN"]
    for name, *shown in rows:
        costs = published["GPT2_12L_T128"]["AERO SM+ScFFN" if name == "SM+ScFFN" else name]
        costs = dict(zip(names, costs, strict=True))
        assert [*map(float, shown)] == [costs[key] for key in ("ppl", "comm_GB", "latency_min")], name


def test_figures_have_captions_and_alternative_texts() -> None:
    names = []
    for script in SCRIPTS:
        for cell in notebook.read(script).cells:
            settings = cell.metadata.get("mystnb", {})
            if "figure" in settings:
                names.append(settings["figure"]["name"])
                assert settings["figure"]["caption"].endswith("."), names[-1]
                assert len(settings["image"]["alt"]) > 20, names[-1]
            else:
                assert "plt.show()" not in cell.source or "def " in cell.source, f"{script}: a figure without a caption"
    assert len(names) == len(set(names))


@pytest.mark.skipif(not COMMITTED, reason="book/notebooks holds no executed notebook")
def test_book_builds_with_warnings_as_errors(checkout: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(checkout / "book"),
        "--path-output",
        str(tmp_path),
    ]
    done = subprocess.run([*command, "-W", "-n", "--keep-going"], capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    html = tmp_path / "_build" / "html"
    for page in toc():
        assert (html / f"{page}.html").is_file(), page
    index = (html / f"{toc()[0]}.html").read_text()
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"https?://[^\"]+\.(?:js|css)", index), "needs a network"


def test_readme_shows_the_recorded_results() -> None:
    readme = (ROOT / "README.md").read_text()
    assert written(readme) == readme, "run `make notebooks`"
    assert picture() == (ROOT / "book" / "_assets" / "main.svg").read_text(), "run `make notebooks`"
