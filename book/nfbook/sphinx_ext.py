"""Sphinx extension of this book: what stands beside each figure, on top of each page and in its head.

A notebook's figure (:func:`nfbook.figures.show_figure`) brings its picture for print, its numbers, what they say and
its interactive version along in one output. Here they become files and links beside the figure, and words of its
caption. Pages get their reading time and, made from notebooks, their code; the first page gets authors, date and
repository. Links to the glossary get the definition as a title, which shows when pointed at. Pages that were merged
into others can be found at their old addresses (:data:`MOVED`). Settings get a table of their fields.

Pages may load nothing but the book's own files (:data:`POLICY`). What the theme makes of them is put right at the end
(:func:`tidied`): lighter by what no page uses, and named for those who do not see it.
"""

from __future__ import annotations

import ast
import atexit
import base64
import csv
import gc
import html
import io
import json
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.util.nodes import is_smartquotable

import nfcore
from nfbook import SPEC, typeset
from nfcore.settings import REGISTERED, Section


WORDS_A_MINUTE = 200
# The theme's scripts and styles stand in the page itself, small pictures as data: in its styles.
INLINE = "'self' 'unsafe-inline'"
POLICY = (
    f"default-src 'self'; script-src {INLINE}; style-src {INLINE}; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'"
)
UNDOCUMENTED = {"__init__", "__main__", "sphinx_ext"}
MODULES = "<!-- modules -->"
PREVIEW = "fig-main"  # the figure that other sites show with a link to the book
MOVED = {  # old addresses, and the pages that have what was there
    "claims-of-the-paper": "notebooks/claims",
    "reading": "summary",
    "notebooks/results": "notebooks/perplexity",
    "notebooks/maps": "notebooks/entropy",
    "notebooks/shares": "notebooks/entropy",
    "notebooks/layers": "notebooks/entropy",
    "notebooks/curves": "notebooks/perplexity",
    "notebooks/context": "notebooks/perplexity",
    "notebooks/instability": "notebooks/slopes",
}
ROOT = Path(__file__).resolve().parents[2]
WIDE = 430  # points: two panels side by side


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
    address = options.get("repository_url")
    if address:
        places = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
        if address.startswith("https://github.com/"):  # Colab opens nothing else
            places["colab_url"] = "https://colab.research.google.com"
        options["launch_buttons"] = {**options.get("launch_buttons", {}), **places}


def modules() -> dict[str, Path]:
    """The modules of both packages by their names, but for those that serve commands and this extension."""
    files = [*sorted(Path(nfcore.__file__).parent.glob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    return {f"{path.parent.name}.{path.stem}": path for path in files if path.stem not in UNDOCUMENTED}


def write_api_pages(app: Sphinx, config: Any) -> None:
    """A page for each module that has none written by hand."""
    folder = Path(app.srcdir, "api")
    folder.mkdir(exist_ok=True)
    for name in modules():
        page = folder / f"{name.rpartition('.')[2]}.md"
        if not page.exists():
            page.write_text(f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n", encoding="utf-8")


def list_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """In place of ``MODULES`` on the page of the API: each module, the first sentence of its docstring, and what of it
    can be imported from ``nfcore``."""
    if MODULES not in source[0]:
        return
    lines = ["| module | what it has | names in `nfcore` |", "|---|---|---|"]
    for name, path in modules().items():
        package, _, module = name.partition(".")
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = re.sub(r":\w+:`|``", "`", re.split(r"\.\s|\n\n", f"{words} ")[0]).replace("\n", " ")
        names = [f"`{n}`" for n in nfcore._EXPORTS.get(module, ()) if package == "nfcore"]
        lines.append(f"| [{name}](api/{module}.md) | {first.strip().rstrip('.')} | {', '.join(names)} |")
    source[0] = source[0].replace(MODULES, "\n".join(lines))


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
            say(figure, typeset(found[name][SPEC]["finding"]))
            width = re.search(r'<svg[^>]* width="([\d.]+)pt"', text(found[name].get("image/svg+xml", "")))
            if width and float(width[1]) > WIDE:
                figure["classes"].append("nf-wide")  # scrolls on a phone, where its letters would be too small
            figure.parent.insert(figure.parent.index(figure) + 1, raw(beside(name, found[name], up, docname)))
    add_top(app, docname, path, doctree, up)


def say(figure: nodes.figure, finding: str) -> None:
    """Close the caption and the alternative text of the picture with the finding, as text."""
    for caption in figure.findall(nodes.caption):
        caption += nodes.Text(f" {finding}")
    for image in figure.findall(nodes.image):
        image["alt"] = f"{image.get('alt', '')} {finding}".strip()


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def beside(name: str, data: dict[str, Any], up: str, docname: str) -> str:
    """The links below a figure, and its interactive version for the script to find."""
    spec = data[SPEC]
    links = [
        f'<a href="{up}_figures/{name}.{kind}" download>{words}</a>'
        for kind, words in (("csv", "Data (CSV)"), ("svg", "SVG"), ("pdf", "PDF"))
    ]
    links.append(f'<a href="{up}_scripts/{Path(docname).name}.py" download>Code</a>')
    if spec["runs"]:
        ids = " ".join(f"<code>{html.escape(str(run))}</code>" for run in spec["runs"])
        commits = ", ".join(f"<code>{html.escape(str(commit))[:18]}</code>" for commit in spec["commits"])
        status = f'<a href="{up}notebooks/status.html">hashes and hardware</a>'
        count = f"{len(spec['runs'])} run" + ("s" if len(spec["runs"]) > 1 else "")
        links.append(f"<details><summary>{count}</summary><div>{ids}<br>commit {commits}; {status}</div></details>")
    script = ""
    if spec["interactive"]:
        # Without any "<", no text of a run can end the script or hide its end.
        content = json.dumps(spec["interactive"], separators=(",", ":")).replace("<", "\\u003c")
        same = " data-same" if shows_the_same(data) else ""
        script = f'<script type="application/json" class="nf-spec"{same}>{content}</script>'
    return f'<div class="nf-figure" data-figure="{name}"><div class="nf-links">{"".join(links)}</div>{script}</div>'


def shows_the_same(data: dict[str, Any]) -> bool:
    """Whether the interactive version of a figure has all that its caption speaks of: the panels of a map, or every
    named series of the picture. Such a version comes first on the page."""
    spec = data[SPEC]["interactive"]
    rows = csv.DictReader(io.StringIO(text(data["text/csv"])))
    drawn = {(row["panel"], row["series"]) for row in rows if not row.get("low")}  # intervals belong to their series
    if spec["kind"] == "heat":
        return {panel["title"] for panel in spec["panels"]} == {panel for panel, _ in drawn}
    panels = spec.get("panels", [])
    shown = [s["name"] for p in panels for s in p["series"]] + [r["label"] for p in panels for r in p.get("rules", [])]
    return sorted(shown) == sorted(name for _, name in drawn)


def add_top(app: Sphinx, docname: str, path: Path, doctree: nodes.document, up: str) -> None:
    """Below the title: how long the page takes to read, and its code if a notebook made it. Below that of the first
    page: authors, date and repository."""
    section = next(doctree.findall(nodes.section), None)
    if section is None or docname.startswith("api/"):
        return
    if docname == app.config.root_doc:
        parts = [html.escape(words) for words in (app.config.author, app.config.nf_front.get("date")) if words]
        if address := app.config.html_theme_options.get("repository_url"):
            parts.append(f'<a href="{html.escape(address)}">repository</a>')
    else:
        prose = (p for p in doctree.findall(nodes.paragraph) if not isinstance(p.parent, nodes.entry))  # no tables
        words = sum(len(p.astext().split()) for p in prose)
        parts = [f"{max(1, math.ceil(words / WORDS_A_MINUTE))} min"]
    if path.suffix == ".ipynb":
        parts.append(f'<a href="{up}_scripts/{path.stem}.py" download>code</a>')
    section.insert(1, raw(f'<p class="nf-top">{" · ".join(parts)}</p>'))


def reach_figures(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Keys reach what scrolls on a phone, as fingers do."""
    context["body"] = context.get("body", "").replace('<figure class="nf-wide', '<figure tabindex="0" class="nf-wide')


def set_signs(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Minus signs and percent signs of the prose, results and tables included; code keeps its hyphens."""
    for node in list(doctree.findall(nodes.Text)):
        if is_smartquotable(node) and (better := typeset(node)) != node:
            node.parent.replace(node, nodes.Text(better))


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
                    yield target, re.sub(r"\s+", " ", definition[0].astext())  # what follows says where it is defined


def leave_out(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take away what serves no page: scripts for a live kernel, which this book has not, and translations into English,
    which evaluate a string, as the policy forbids."""
    for kind in ("script_files", "css_files"):
        files = context.get(kind, [])
        unused = re.compile(r"thebe|translations\.js", re.I)
        context[kind] = [f for f in files if not unused.search(f"{f} {getattr(f, 'attributes', '')}")]
    context["body"] = re.sub(
        r"<script[^>]*>(?:\s*\{\s*requestKernel.*?|kernelName = .*?)</script>", "", context.get("body", ""), flags=re.S
    )


def add_head(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The first words of each page: what it may load, what it is about, and the picture that goes with a link to it."""
    tags = [f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />']
    for name, words in description(app, page, doctree).items():
        tags.append(f'<meta {name} content="{html.escape(words)}" />')
    context["metatags"] = "\n".join([*tags, context.get("metatags", "")])


def description(app: Sphinx, page: str, doctree: nodes.document | None) -> dict[str, str]:
    """The attributes that name each ``meta`` of a page, with its content. The first page is described by its setting,
    others by their first paragraph."""
    if doctree is None:
        return {}
    first = next((p.astext() for p in doctree.findall(nodes.paragraph)), app.config.project)
    words = app.config.nf_front.get("description") if page == app.config.root_doc else first
    words = textwrap.shorten(words or first, 200, placeholder=" ...")
    base = app.config.html_baseurl.rstrip("/") or "../" * page.count("/") + "."
    found = {'name="description"': words, 'property="og:description"': words, 'property="og:type"': "article"}
    title = next((t.astext() for t in doctree.findall(nodes.title)), app.config.project)
    if app.config.html_baseurl:
        found['property="og:url"'] = f"{base}/{page}.html"
    return found | {'property="og:title"': title, 'property="og:image"': f"{base}/_figures/{PREVIEW}.png"}


def tidied(page: str, name: str) -> str:
    """The HTML of a page without what it loads in vain, and with names and roles that the theme leaves out."""
    # Drawings of all icons there are; those in use come from the font, which the styles load anyway.
    in_vain = r"fontawesome"
    if name != "search.html":
        in_vain += r"|searchtools|language_data|searchindex"  # the theme's search as you type, which is off
    if 'class="math ' not in page:
        in_vain += r"|mathjax/startup|formulas"
        page = re.sub(r"<script>window\.MathJax = .*?</script>\n?", "", page)
    page = re.sub(rf'<script[^>]* src="[^"]*\b(?:{in_vain})\.js[^"]*"></script>\n?', "", page)
    page = page.replace('<i class="fa-', '<i aria-hidden="true" class="fa-')
    branch = r'(<a class="[^"]*reference internal" href="[^"]*">([^<]*)</a><details[^>]*><summary)>'
    page = re.sub(branch, r'\1 aria-label="\2">', page)
    # Parameters of a long signature, a list of definitions of nothing; entries of a list without their role.
    page = re.sub(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>', parameters, page, flags=re.S)
    return page.replace('role="doc-biblioentry"', 'role="listitem"')


def parameters(found: re.Match[str]) -> str:
    items = found[2].replace("<dd>", "<li>").replace("</dd>", "</li>")
    return f'{found[1]}<ul class="nf-parameters">{items}</ul>'


def tidy(app: Sphinx, exception: Exception | None) -> None:
    """Put all pages right, and take away files that none loads."""
    if exception or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for path in site.rglob("*.html"):
        if "_static" not in path.relative_to(site).parts:  # there: templates
            page = path.read_text(encoding="utf-8")
            if (better := tidied(page, path.name)) != page:
                path.write_text(better, encoding="utf-8")
    for path in (*site.glob("_static/scripts/fontawesome.js"), *site.glob("_static/**/*.map")):
        path.unlink()


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
            for mime, kind in (("application/pdf", "pdf"), ("image/png", "png")):
                if mime in data:
                    (folder / f"{name}.{kind}").write_bytes(base64.b64decode(text(data[mime])))


def forward(app: Sphinx, exception: Exception | None) -> None:
    """At the old address of a page that was merged into another, a page that leads there."""
    if exception or app.builder.name != "html":
        return
    for old, new in MOVED.items():
        if new in app.env.found_docs:
            address = "../" * old.count("/") + f"{new}.html"
            path = Path(app.outdir, f"{old}.html")
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                f'<!DOCTYPE html><html lang="en-GB"><meta charset="utf-8"><title>Moved</title>'
                f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
                f'<meta http-equiv="refresh" content="0; url={address}">'
                f'<p>This page is now part of <a href="{address}">another</a>.</p></html>\n',
                encoding="utf-8",
            )


def is_settings(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Section)


def taken(name: str, schema: dict[str, Any]) -> str:
    """What a field takes, from its JSON schema."""
    if name in REGISTERED:
        return ", ".join(f"``{choice}``" for choice in REGISTERED[name])
    if "$ref" in schema:
        return f":class:`~nfcore.settings.{schema['$ref'].rpartition('/')[2]}`"
    if "enum" in schema:
        return ", ".join(f"``{choice}``" for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(taken(name, one) for one in schema["anyOf"])
    types = {"integer": "whole number", "boolean": "true or false", "string": "text"}
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{word} {schema[key]:,}" for key, word in words.items() if key in schema]
    return " ".join([types.get(schema["type"], schema["type"]), " and ".join(bounds)]).strip()


def add_fields(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A table of what each field of settings takes, its default and its meaning, below the words of the class."""
    if not is_settings(thing) or thing is Section:
        return
    lines += ["", ".. list-table::", "   :header-rows: 1", ""]
    rows = [("Field", "Takes", "Default", "Meaning")]
    for field, schema in thing.model_json_schema()["properties"].items():
        default = f"``{json.dumps(schema['default'])}``" if "default" in schema else ""
        rows.append((f"``{field}``", taken(field, schema), default, " ".join(schema["description"].split())))
    lines += [f"   {mark} - {cell}" for row in rows for mark, cell in zip("*   ", row, strict=True)]
    lines.append("")


def leave_out_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields are in the table or, of a named tuple, in the signature; pydantic's own parts are in its manual."""
    if str(getattr(thing, "__doc__", "")).startswith("Alias for field number"):
        return True
    kinds: list[type[Section]] = [Section, *Section.__subclasses__()]
    fields = {field for kind in kinds for field in kind.model_fields}
    return True if what == "class" and (name in fields or name.startswith("model_")) else None


def short_signature(app: Sphinx, what: str, name: str, thing: Any, *rest: Any) -> tuple[str, None] | None:
    return ("(**values)", None) if is_settings(thing) else None


def setup(app: Sphinx) -> dict[str, Any]:
    # Documents are a million objects, hardly any of them garbage: looking for that takes a quarter of a build.
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)
    app.setup_extension("sphinx.ext.autodoc")  # whose events are listened to
    app.add_config_value("nf_front", {}, "env", dict)
    # Terms of the glossary are results of the search, as names of the API are; interactive.js puts them first.
    StandardDomain.object_types["term"].attrs["searchprio"] = 0
    app.connect("config-inited", launch_buttons)
    app.connect("config-inited", write_api_pages)
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", add_fields)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-skip-member", leave_out_fields)
    app.connect("doctree-read", add_links)
    app.connect("doctree-resolved", title_terms)
    app.connect("doctree-resolved", set_signs)
    app.connect("html-page-context", leave_out, priority=900)  # when all others have added theirs
    app.connect("html-page-context", reach_figures)
    app.connect("html-page-context", add_head)
    app.connect("build-finished", write_files)
    app.connect("build-finished", tidy)
    app.connect("build-finished", forward)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
