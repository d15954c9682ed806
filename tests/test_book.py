"""The book: every page is there, the committed notebooks come from the scripts, and it builds without a warning."""

import copy
import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from docutils import nodes
from docutils.core import publish_from_doctree
from docutils.utils import new_document

from nfbook import notebook, sphinx_ext, typeset
from nfcore.settings import project_root
from tools.readme import picture, written


ROOT = project_root()
BOOK = ROOT / "book"
COMMITTED = sorted((BOOK / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text())
MACHINE = re.compile(r"/(?:home|tmp|root|Users|private|var/folders)/")


def files_of(toc: Any) -> Iterator[str]:
    """Every page that a table of contents names."""
    for key, value in toc.items() if isinstance(toc, dict) else enumerate(toc if isinstance(toc, list) else []):
        if key in ("file", "root"):
            yield value
        elif key == "glob":
            yield from sorted(f"api/{name.rpartition('.')[2]}" for name in sphinx_ext.modules())
        else:
            yield from files_of(value)


def toc() -> list[str]:
    return [*files_of(yaml.safe_load((BOOK / "_toc.yml").read_text()))]


def test_configuration_keeps_the_book_offline_and_unexecuted() -> None:
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    assert CONFIG["only_build_toc_files"] is True
    assert not re.search(r"https?://[^\s]*(?:cdn|jsdelivr|unpkg|googleapis)", yaml.safe_dump(CONFIG))


def test_every_page_of_the_contents_exists_once_and_names_no_machine() -> None:
    pages = toc()
    assert len(pages) == len(set(pages))
    assert {page for page in pages if page.startswith("notebooks/")} == {f"notebooks/{s.stem}" for s in SCRIPTS}
    assert [path.stem for path in COMMITTED] == [path.stem for path in SCRIPTS]
    for page in pages:
        if not page.startswith(("notebooks/", "api/")):  # those are made with the book
            assert not MACHINE.findall((BOOK / f"{page}.md").read_text()), page


def test_every_module_has_a_page_and_a_line_that_says_what_it_has(book: Path) -> None:
    named = {f"{folder.name}.{p.stem}" for folder in (ROOT / "nfcore", BOOK / "nfbook") for p in folder.glob("*.py")}
    named = {name for name in named if name.rpartition(".")[2] not in sphinx_ext.UNDOCUMENTED}
    assert named == {*sphinx_ext.modules()}
    assert len({name.rpartition(".")[2] for name in named}) == len(named), "two pages at one address"
    table = (book / "api.html").read_text().partition("<table")[2].partition("</table>")[0]
    for name in named:
        module = name.rpartition(".")[2]
        assert re.search(rf'href="api/{module}.html"[^>]*>.*?{name}.*?</a></p></td>\s*<td><p>.{{20,}}', table), name
        assert f'id="module-{name}"' in (book / "api" / f"{module}.html").read_text()
    assert "head_entropy" in table


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebook_is_its_script_executed_on_recorded_runs(path: Path) -> None:
    script = ROOT / "notebooks" / f"{path.stem}.py"
    executed = nbformat.read(path, as_version=4)
    nbformat.validate(executed)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == bool(notebook.default_preset(script))
    for cell in injected:
        given: dict[str, Any] = {}
        exec(cell.source, given)
        assert given["source"] == "recorded"
    cells = [c for c in executed.cells if c not in injected]
    source = notebook.read(script).cells
    assert [(c.cell_type, c.id, c.source) for c in cells] == [(c.cell_type, c.id, c.source) for c in source]
    counts = [c.execution_count for c in executed.cells if c.cell_type == "code" and c.source]
    assert counts == [*range(1, len(counts) + 1)]
    shown = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert shown
    assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]
    assert not MACHINE.findall(path.read_text())


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


def test_pages_need_no_network_show_no_markup_and_say_what_they_are(book: Path) -> None:
    """The fixture fails where a build has a warning. Markup shows where a fence is none, as before a line with a `."""
    roles = r"\{(?:cite(?::\w+)?|eq|term|(?:num)?ref|glue:text|py:\w+)\}`"
    for page in book.rglob("*.html"):
        found = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+\"", page.read_text())
        assert not found, f"{page.name} needs a network"
    for page in toc():
        text = (book / f"{page}.html").read_text()
        shown = re.sub(r"<[^>]+>", "", text.partition("<article")[2].partition("</article>")[0])
        assert not re.findall(rf"{roles}|^(?:```|:::)\{{", shown, re.MULTILINE), page
        top = text.partition('<p class="nf-top">')[2].partition("</p>")[0]
        assert bool(re.match(r"\d+ min", top)) != page.startswith(("api/", "index")), "the time it takes to read"
        if page.startswith("notebooks/"):
            assert "cell_input" not in text, f"{page}: code is behind one link a page and one a figure"
            assert top.count("<a ") == 1, page
        (said,) = re.findall(r'<meta name="description" content="([^"]{20,})"', text)
        (picture,) = re.findall(r'<meta property="og:image" content="([^"]+)"', text)
        assert (book / f"{page}.html").parent.joinpath(picture).read_bytes().startswith(b"\x89PNG"), page
        if page == "index":
            front = CONFIG["sphinx"]["config"]["nf_front"]
            assert top == f"{CONFIG['author']} · {front['date']}"
            assert html.unescape(said) == front["description"]


def figures() -> dict[str, tuple[str, dict[str, Any]]]:
    """Of each figure of the committed notebooks its page and its output."""
    return {name: (path.stem, data) for path in COMMITTED for name, data in sphinx_ext.figures_of(path)}


def test_every_figure_has_a_name_of_its_own_and_a_caption() -> None:
    cells = [(script, cell) for script in SCRIPTS for cell in notebook.read(script).cells]
    names = [
        cell.metadata["mystnb"]["figure"]["name"] for _, cell in cells if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert len(names) == len(set(names))
    for script, cell in cells:
        bare = "show_figure(" in cell.source and "def " not in cell.source
        assert "figure" in cell.metadata.get("mystnb", {}) or not bare, f"{script}: a figure without a caption"


@pytest.mark.parametrize("name", figures())
def test_figure_is_light_and_has_its_files_beside_it(name: str, book: Path) -> None:
    page, data = figures()[name]
    svg, csv = ("".join(data[kind]) for kind in ("image/svg+xml", "text/csv"))
    assert len(svg.encode()) < 300_000
    assert "<text" in svg, "text is not text"
    assert (book / "_figures" / f"{name}.svg").read_text() == svg
    assert (book / "_figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (book / "_figures" / f"{name}.csv").read_text() == csv
    assert len(pd.read_csv(book / "_figures" / f"{name}.csv"))
    text = (book / "notebooks" / f"{page}.html").read_text()
    block = text[text.index(f'<div class="nf-figure" data-figure="{name}">') :]
    block = block[: block.index("</div></div>" if "</div></div>" in block[:200_000] else "</div>")]
    for kind in ("csv", "svg", "pdf"):
        assert f'href="../_figures/{name}.{kind}"' in block
    assert f'href="../_scripts/{page}.py"' in block
    assert (book / "_scripts" / f"{page}.py").read_text() == (ROOT / "notebooks" / f"{page}.py").read_text()
    assert all(run in block for run in data[sphinx_ext.SPEC]["runs"])


@pytest.mark.parametrize("name", figures())
def test_caption_and_alternative_text_describe_and_then_state_the_finding(name: str, book: Path) -> None:
    page, data = figures()[name]
    finding = typeset(data[sphinx_ext.SPEC]["finding"])
    assert re.fullmatch(r"[A-Z0-9].{19,}\.", finding)
    assert not re.search(r"\b(?:nan|inf|None)\b", finding), "a number that is none"
    text = (book / f"notebooks/{page}.html").read_text()
    shown = text.partition(f'id="{name}">')[2].partition("</figure>")[0]
    (alt,) = re.findall(r'<img alt="([^"]*)"', shown)
    (caption,) = re.findall(r'<span class="caption-text">(.*?)</span>', shown, re.DOTALL)
    for words in (html.unescape(re.sub(r"<[^>]+>", "", caption)), html.unescape(alt)):
        description, said, after = words.partition(f" {finding}")
        assert len(description) > 20
        assert description.endswith(".")
        assert (bool(said), after) == (True, ""), "first what is plotted"


def test_a_finding_is_text_whatever_it_holds() -> None:
    figure = nodes.figure("", nodes.image(alt="A line.", uri="x.svg"), nodes.caption("", "", nodes.Text("Drawn so.")))
    document = new_document("page")
    document += figure
    finding = '<script>alert("1")</script> & *more* `x`'
    sphinx_ext.say(figure, finding)
    page = publish_from_doctree(document, writer_name="html5").decode()
    assert "<script" not in page
    assert page.count(html.escape(finding)) == 2
    assert figure[0]["alt"] == f"A line. {finding}"
    assert figure[1].astext() == f"Drawn so. {finding}"


INTERACTIVE = [name for name, (_, data) in figures().items() if data[sphinx_ext.SPEC]["interactive"]]


@pytest.mark.parametrize("name", INTERACTIVE)
def test_file_of_a_figure_has_the_numbers_of_its_interactive_version(name: str, book: Path) -> None:
    page = book / "notebooks" / f"{figures()[name][0]}.html"
    block = page.read_text().partition(f'<div class="nf-figure" data-figure="{name}">')[2]
    written = pd.read_csv(page.parent / re.findall(r'href="([^"]*\.csv)"', block)[0])
    spec = json.loads(re.findall(r'class="nf-spec"[^>]*>([^<]*)</script>', block)[0])
    compared = 0

    def same(shown: Any, given: Any) -> None:
        nonlocal compared
        given = np.array([math.nan if v is None else v for v in given], dtype=float)
        np.testing.assert_allclose(shown, given, rtol=1e-4, atol=1e-12)
        compared += len(given)

    for panel in spec["panels"] if spec["kind"] == "lines" else []:
        rows = written[written["panel"] == panel["title"]] if panel["title"] in {*written["panel"]} else written
        for series in panel["series"]:
            ours = rows[rows["series"] == series["name"]]
            for axis in "xy":
                same(ours[axis].iloc[: len(series[axis])], series[axis])
    for panel in spec["panels"] if spec["kind"] == "heat" else []:
        cells = written[written["panel"] == panel["title"]].pivot(index="y", columns="x", values="value")
        same(cells.to_numpy().ravel(), np.ravel(panel["values"][-1]))  # the picture for print has the last step
    assert compared >= 5


def test_interactive_version_comes_first_only_where_it_has_all_of_the_caption(book: Path) -> None:
    first = {name: sphinx_ext.shows_the_same(figures()[name][1]) for name in INTERACTIVE}
    assert first["fig-maps"]
    assert first["fig-curves"]
    less = copy.deepcopy(figures()["fig-curves"][1])
    less[sphinx_ext.SPEC]["interactive"]["panels"][0]["series"].pop()
    assert not sphinx_ext.shows_the_same(less)
    for name, same in first.items():
        page = (book / "notebooks" / f"{figures()[name][0]}.html").read_text()
        block = page.partition(f'<div class="nf-figure" data-figure="{name}">')[2]
        assert block.partition('class="nf-spec"')[2].startswith(" data-same>" if same else ">"), name


def test_picture_for_links_has_a_whole_address_where_the_book_has_one() -> None:
    document = new_document("page")
    document += nodes.paragraph("", "What it is about.")
    config = SimpleNamespace(project="Book", root_doc="index", nf_front={}, html_baseurl="https://book.example/x/")
    said = sphinx_ext.description(SimpleNamespace(config=config), "notebooks/claims", document)  # type: ignore[arg-type]
    assert said['property="og:image"'] == f"https://book.example/x/_figures/{sphinx_ext.PREVIEW}.png"
    assert said['property="og:url"'] == "https://book.example/x/notebooks/claims.html"


def test_old_addresses_lead_to_the_pages_that_replaced_them(book: Path) -> None:
    assert {*sphinx_ext.MOVED.values()} <= {*toc()}
    for old, new in sphinx_ext.MOVED.items():
        assert old not in toc()
        (address,) = re.findall(r'http-equiv="refresh" content="0; url=([^"]+)"', (book / f"{old}.html").read_text())
        assert (book / f"{old}.html").parent.joinpath(address).resolve() == (book / f"{new}.html").resolve()


def test_readme_shows_the_recorded_results() -> None:
    readme = (ROOT / "README.md").read_text()
    assert written(readme) == readme, "run `make notebooks`"
    assert picture() == (ROOT / "book" / "_assets" / "main.svg").read_text(), "run `make notebooks`"
