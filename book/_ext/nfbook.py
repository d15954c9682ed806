"""Sphinx extension of this book: what stands beside each figure and on top of each page.

A notebook's figure (:func:`nfcore.figures.show_figure`) brings its picture for print, its numbers and its interactive
version along in one output. Here they become files and links beside the figure. Pages get their reading time and, made
from notebooks, their sources. Links to the glossary get the definition as a title, which shows when pointed at.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


SPEC = "application/vnd.nfcore.figure+json"
WORDS_A_MINUTE = 200
ROOT = Path(__file__).resolve().parents[2]


def figures_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and output of each figure of an executed notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []) if name else []:
            if SPEC in output.get("data", {}):
                yield name, output["data"]


def launch_buttons(app: Sphinx, config: Any) -> None:
    """Buttons for Binder and Colab where the repository has an address; without one the theme would fail on them."""
    options = config.html_theme_options
    if options.get("repository_url"):
        places = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
        options["launch_buttons"] = {**options.get("launch_buttons", {}), "notebook_interface": "jupyterlab", **places}
        options["repository_branch"] = "main"


def text(value: Any) -> str:
    """A value of an output, which may be stored in lines."""
    return "".join(value)


def add_links(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    path = Path(app.env.doc2path(docname))
    up = "../" * docname.count("/")
    found = dict(figures_of(path)) if path.suffix == ".ipynb" else {}
    for figure in list(doctree.findall(nodes.figure)):
        name = next((n for n in (*figure["names"], *figure["ids"]) if n in found), None)
        if name:
            figure.parent.insert(figure.parent.index(figure) + 1, raw(beside(name, found[name], up, docname)))
    add_top(docname, path, doctree, up)


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def beside(name: str, data: dict[str, Any], up: str, docname: str) -> str:
    """The links below a figure, and its interactive version for the script to find."""
    spec = data[SPEC]
    links = [
        f'<a href="{up}_figures/{name}.{kind}" download>{words}</a>'
        for kind, words in (("csv", "Data (CSV)"), ("svg", "SVG"), ("pdf", "PDF"))
    ]
    links.append(f'<a href="{up}_sources/{docname}.ipynb" download>Notebook</a>')
    if spec["runs"]:
        ids = " ".join(f"<code>{run}</code>" for run in spec["runs"])
        commits = ", ".join(f"<code>{html.escape(str(commit))[:18]}</code>" for commit in spec["commits"])
        status = f'<a href="{up}notebooks/status.html">hashes and hardware</a>'
        count = f"{len(spec['runs'])} run" + ("s" if len(spec["runs"]) > 1 else "")
        links.append(f"<details><summary>{count}</summary><div>{ids}<br>commit {commits}; {status}</div></details>")
    script = ""
    if spec["interactive"]:
        content = json.dumps(spec["interactive"], separators=(",", ":")).replace("</", "<\\/")
        script = f'<script type="application/json" class="nf-spec">{content}</script>'
    return f'<div class="nf-figure" data-figure="{name}"><div class="nf-links">{"".join(links)}</div>{script}</div>'


def add_top(docname: str, path: Path, doctree: nodes.document, up: str) -> None:
    """Below the title: how long the page takes to read, and its sources if a notebook made it."""
    section = next(doctree.findall(nodes.section), None)
    if section is None or docname.startswith("api/"):
        return
    words = sum(len(p.astext().split()) for p in doctree.findall(nodes.paragraph))
    parts = [f"{max(1, math.ceil(words / WORDS_A_MINUTE))} min"]
    if path.suffix == ".ipynb":
        parts.append(f'<a href="{up}_sources/{docname}.ipynb" download>notebook</a>')
        parts.append(f'<a href="{up}_scripts/{path.stem}.py" download>script</a>')
    section.insert(1, raw(f'<p class="nf-top">{" · ".join(parts)}</p>'))


def title_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Definitions of the glossary as titles of the links to it."""
    definitions = getattr(app, "nf_definitions", None)
    if definitions is None:
        definitions = app.nf_definitions = dict(glossary(app))  # type: ignore[attr-defined]
    for reference in doctree.findall(nodes.reference):
        target = reference.get("refuri", "").rpartition("#")[2] or reference.get("refid", "")
        if target in definitions:
            reference["reftitle"] = definitions[target]


def glossary(app: Sphinx) -> Iterator[tuple[str, str]]:
    if "glossary" in app.env.found_docs:
        for item in app.env.get_doctree("glossary").findall(nodes.definition_list_item):
            definition = next(item.findall(nodes.definition))
            for term in item.findall(nodes.term):
                for target in term["ids"]:
                    yield target, re.sub(r"\s+", " ", definition.astext())


def leave_out_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Of the scripts that Jupyter Book puts on each page those for a live kernel, which this book has not."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()]


def write_files(app: Sphinx, exception: Exception | None) -> None:
    """Pictures, numbers and scripts as files of the site."""
    if exception or app.builder.name != "html":
        return
    folder, scripts = Path(app.outdir, "_figures"), Path(app.outdir, "_scripts")
    for made in (folder, scripts):
        made.mkdir(exist_ok=True)
    for docname in app.env.found_docs:
        path = Path(app.env.doc2path(docname))
        if path.suffix != ".ipynb":
            continue
        script = ROOT / "notebooks" / f"{path.stem}.py"
        if script.exists():
            (scripts / script.name).write_bytes(script.read_bytes())
        for name, data in figures_of(path):
            (folder / f"{name}.svg").write_text(text(data["image/svg+xml"]), encoding="utf-8")
            (folder / f"{name}.csv").write_text(text(data["text/csv"]), encoding="utf-8")
            (folder / f"{name}.pdf").write_bytes(base64.b64decode(text(data["application/pdf"])))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", launch_buttons)
    app.connect("doctree-read", add_links)
    app.connect("doctree-resolved", title_terms)
    app.connect("html-page-context", leave_out_thebe, priority=900)  # when all others have added theirs
    app.connect("build-finished", write_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
