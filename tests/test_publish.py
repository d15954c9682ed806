"""What publishes the book: PDF, zip, links, and the files that machines elsewhere read and that cannot run here."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import nfcore
from nfbook.crate import AUTHORS
from tools import metadata, publish


ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
BROWSER = next(filter(None, map(shutil.which, publish.BROWSERS)), None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of two pages, as that of preset ``smoke`` in a project."""
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    pages = tmp_path / "_build" / "smoke" / "html"
    (pages / "sub dir").mkdir(parents=True)
    (pages / "index.html").write_text('<h1 id="top-ic">One</h1><a href="sub%20dir/two.html#b%C3%A9">two</a>')
    (pages / "sub dir" / "two.html").write_text(
        '<p id="bé">Two</p><a href="../index.html?q=1#top-ic">one</a><a href="#">here</a>'
        '<a href="https://a.example/x#y">z</a>'
        '<a href="mailto:a@b.example">mail</a><script>"<a href=gone.html>"</script><img src="data:,">'
    )
    return pages


def test_links_that_work_are_not_reported(site: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.broken(book) == []
    assert publish.main(["links", "smoke"]) == 0
    assert capsys.readouterr().out == "0 broken links\n"


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("gone.html", "no such file"),
        ("sub%20dir", "no such file"),
        ("sub%20dir/two.html#gone", "no such anchor"),
        ("#gone", "no such anchor"),
        ("../html/../../x.html", "outside of the site"),
        ("/index.html", "outside of the site"),
        ("http://a.example/", "not https"),
        ("//a.example/x.js", "not https"),
        ("https://", "not https"),
        ("https://host/", "not https"),
        ("https://a.example/b c", "not https"),
        ("https://[a/", "no address"),
        ("file:///index.html", "not https"),
    ],
)
def test_links_that_cannot_work_are_reported(
    site: Path, link: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for element in ('<a href="{}">x</a>', '<img src="{}">', '<svg><use xlink:href="{}"/></svg>'):
        (site / "index.html").write_text(f'<a id="a" name="b"></a><a href="#b">b</a>{element.format(link)}')
        assert publish.main(["links", "smoke"]) == 1
        line, _, count = capsys.readouterr().out.partition("\n")
        assert line.startswith(f"index.html: {link!r}: {reason}")
        # The other page's link to the heading that this one had is broken now too.
        assert count.endswith("2 broken links\n")


def test_zip_is_the_site_and_the_same_each_time(site: Path, tmp_path: Path) -> None:
    name = f"nfcore-book-{nfcore.__version__}"
    path = tmp_path / "_build" / "smoke" / f"{name}.zip"
    assert publish.main(["zip", "smoke"]) == 0
    first = path.read_bytes()
    for page in site.rglob("*.html"):
        page.touch()
    assert publish.main(["zip", "smoke"]) == 0
    assert path.read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "read")
    files = sorted(p.relative_to(site) for p in site.rglob("*") if p.is_file())
    assert sorted(p.relative_to(tmp_path / "read" / name) for p in (tmp_path / "read").rglob("*.html")) == files
    assert publish.broken(tmp_path / "read" / name) == []


def test_a_book_that_is_not_built_is_asked_for_and_so_is_a_browser(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, preset in (("pdf", "quick"), ("zip", "recorded"), ("links", "quick")):
        assert publish.main([command, preset]) == 2
        assert re.fullmatch(r"publish: no \S+: build the book first.*\n", capsys.readouterr().err)
    monkeypatch.setattr(publish, "ROOT", ROOT)
    monkeypatch.setenv("PATH", str(site))
    assert publish.main(["pdf", "recorded"]) == 3
    assert re.fullmatch(r"publish: no PDF without Chromium.*\n", capsys.readouterr().err)


def small_project(root: Path, *pages: str) -> str:
    """A book in ``root`` of a page with a formula and of these of ours; the text of its configuration."""
    listed = "".join(f"  - file: {page}\n" for page in pages)
    (root / "book" / "notebooks").mkdir(parents=True)
    (root / "book" / "_toc.yml").write_text(f"format: jb-book\nroot: page\nchapters:\n{listed}")
    (root / "book" / "page.md").write_text("# A page of its own\n\n$$a^2$$\n")
    (root / "book" / "references.bib").write_text("")
    shutil.copytree(ROOT / "book" / "_assets", root / "book" / "_assets")
    for path in (ROOT / "book" / "notebooks").glob("*.ipynb"):
        if f"notebooks/{path.stem}" in pages:
            shutil.copy(path, root / "book" / "notebooks")
    config = (ROOT / "_config.yml").read_text()
    (root / "_config.yml").write_text(config)
    return config


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install the package chromium")
def test_pdf_has_the_whole_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(small_project(tmp_path, "notebooks/entropy", "api/entropy"))
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main(["pdf", "recorded"]) == 0
    printed = (tmp_path / "_build" / "book.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", printed)) > 5
    assert b"/Outlines" in printed
    for title in (config["title"], "A page of its own", "Entropy", "nfcore.entropy"):
        assert title.encode("utf-16-be") in printed or title.encode() in printed, title
    assert f'content: "{config["title"]}"' in (ROOT / "book" / "_assets" / "print.css").read_text()
    assert ["print.css", {"media": "print"}] in config["sphinx"]["config"]["html_css_files"]


def jobs() -> list[Any]:
    found = [(path.stem, yaml.safe_load(path.read_text())["jobs"]) for path in WORKFLOWS]
    return [pytest.param(job, id=f"{stem}-{name}") for stem, jobs in found for name, job in jobs.items()]


def test_workflows_may_only_read_and_test_the_oldest_and_the_newest_python() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        assert "group" in workflow["concurrency"]
    minors = {int(minor) for path in WORKFLOWS for minor in re.findall(r'"3\.(\d+)"', path.read_text())}
    supported = [minor for minor in range(30) if f"3.{minor}" in PYTHONS]
    assert {supported[0], supported[-1]} <= minors <= set(supported)


@pytest.mark.parametrize("job", jobs())
def test_job_uses_pinned_actions_and_what_there_is(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"]
    for step in job["steps"]:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        run = step.get("run", "")
        for target in re.findall(r"\bmake (\S+)", run):
            done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        for command, preset in re.findall(r"tools\.publish (\w+) (\w+)", run):
            publish.parser().parse_args([command, preset])
            assert preset == "recorded"


def test_citation_is_of_this_version_and_agrees_with_what_else_names_author_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page, year = (ROOT / "book" / "cite.md").read_text(), citation["date-released"].year
    assert citation["version"] == nfcore.__version__
    assert f"version = {{{nfcore.__version__}}}" in page
    assert f"year    = {{{year}}}" in page.partition("@software")[2]
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in project["authors"]] == [AUTHORS]
    assert citation["license"] == project["license"] == "MIT"
    assert f"(c) {year} {AUTHORS}" in (ROOT / "LICENSE").read_text()
    assert "creativecommons.org/licenses/by/4.0/" in (ROOT / "book" / "licence.md").read_text()


@pytest.mark.parametrize("path", metadata.files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_metadata_for_archives_is_current(path: Path) -> None:
    assert path.read_text() == metadata.files()[path], "run `python -m tools.metadata`"


CONTAINER = ROOT / "tools" / "container"


def test_container_gets_what_git_holds_and_like_conda_installs_the_lock() -> None:
    dockerfile = (CONTAINER / "Dockerfile").read_text()
    installs = " python tools/install.py --here\n"
    assert dockerfile.index(installs) < dockerfile.index("\nUSER 1000\n") < dockerfile.index("\nCMD ")
    assert (ROOT / "postBuild").read_text().endswith(installs)
    assert os.access(ROOT / "postBuild", os.X_OK)
    python, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == "pip"
    version = python.removeprefix("python=")
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == [f"python:{version}-slim"]
    assert version in PYTHONS
    held, sent = (
        {line for line in path.read_text().splitlines() if line and line[0] != "#"}
        for path in (ROOT / ".gitignore", CONTAINER / "Dockerfile.dockerignore")
    )
    # git looks for a name without an inner slash in every folder, Docker only where it is told to.
    assert sent == {".git/", *(line if "/" in line[:-1] else f"**/{line}" for line in held)}


def test_launch_buttons_have_one_setting(book: Path, tmp_path: Path) -> None:
    """Without an address there are none; with one, pages that are notebooks have that of Binder, on GitHub Colab's too,
    for the branch that is set."""
    config = small_project(tmp_path, "notebooks/status")
    assert config.count('\n  url: ""') == 1
    here = "book/notebooks/status.ipynb"
    places = r'href="(https://(?:mybinder\.org|colab\.research\.google\.com)/[^"]+)"'
    assert re.findall(places, (book / "notebooks" / "status.html").read_text()) == []
    for host, expected in {
        "https://github.com": [
            f"https://mybinder.org/v2/gh/someone/a-fork/trunk?urlpath=lab/tree/{here}",
            f"https://colab.research.google.com/github/someone/a-fork/blob/trunk/{here}",
        ],
        "https://gitlab.com": [f"https://mybinder.org/v2/gl/someone%2Fa-fork/trunk?urlpath=lab/tree/{here}"],
    }.items():
        changed = config.replace('\n  url: ""', f'\n  url: "{host}/someone/a-fork"').replace(
            "branch: main", "branch: trunk"
        )
        (tmp_path / "_config.yml").write_text(changed)
        command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(tmp_path / "book"), "--all"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        assert re.findall(places, (tmp_path / "_build" / "html" / "notebooks" / "status.html").read_text()) == expected
