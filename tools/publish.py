"""The built book as one PDF, as a zip to read offline, and its links checked.

``python -m tools.publish pdf|zip|links PRESET`` after ``make book PRESET=...``. The preset ``recorded`` is the book of
the committed notebooks, which ``jupyter-book build book`` builds. Exit codes: 0 done, 1 broken links or a failed build,
2 the book is not built, 3 no Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nfcore
from nfbook.models import zipped


ROOT = Path(__file__).resolve().parent.parent
NAME = "nfcore-book"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
HOST = re.compile(r"[\w-]+(\.[\w-]+)+")


class PublishError(Exception):
    """What cannot be made, and the exit code that says so."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def folders(preset: str) -> tuple[Path, Path, Path]:
    """Sources and site of a preset's book, and where to put what is made of them."""
    if preset == "recorded":
        return ROOT / "book", ROOT / "_build" / "html", ROOT / "_build"
    build = ROOT / "_build" / preset
    return build / "book", build / "html", build


def existing(path: Path) -> Path:
    """``path``, which a build leaves; raise if it did not."""
    if not path.exists():
        raise PublishError(2, f"no {path.relative_to(ROOT)}: build the book first, as `make book PRESET=...` does")
    return path


# --- the PDF ----------------------------------------------------------------------------------------------------


def pdf(preset: str) -> int:
    """Print the whole book, built as a single page, with a headless Chromium."""
    sources, _, target = folders(preset)
    existing(sources / "_toc.yml")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise PublishError(3, f"no PDF without Chromium: none of {', '.join(BROWSERS)} is on the PATH")
    # On its own: doctrees shared with the site's would be read by whichever build comes next.
    pages = target / "print"
    shutil.rmtree(pages, ignore_errors=True)
    build = ["build", str(sources), "--path-output", str(pages), "--config", str(ROOT / "_config.yml")]
    # Not by its script, which cannot start where the path of Python has a space.
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    call([*start, *build, "--builder", "singlehtml", "--quiet"])
    # Beside the book and not in /tmp, which a Chromium packed as a snap cannot see.
    with tempfile.TemporaryDirectory(dir=pages, ignore_cleanup_errors=True) as profile:
        printed = Path(profile, "book.pdf")
        flags = [*OFFLINE, "--headless", "--disable-gpu", f"--user-data-dir={profile}", f"--print-to-pdf={printed}"]
        # print.css has page numbers and title; Chromium's own header would show a date and this machine's path.
        flags += ["--no-pdf-header-footer", "--generate-pdf-document-outline"]
        flags += ["--virtual-time-budget=120000"]  # milliseconds of the page's own clock, for the formulas
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # refuses to run as root
        said = call([browser, *flags, (pages / "_build" / "singlehtml" / "index.html").as_uri()])
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF"):
            raise PublishError(1, f"{browser} wrote no PDF: {said.strip().splitlines()[-1:]}")
        printed.replace(target / "book.pdf")
    print(target / "book.pdf")
    return 0


def call(command: list[str]) -> str:
    """Run a command in the project's folder; returns what it said."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise PublishError(1, f"{command[0]} failed with exit code {done.returncode}:\n{done.stdout}")
    return done.stdout


# --- the zip ----------------------------------------------------------------------------------------------------


def pack(preset: str) -> int:
    """Zip the site, the same bytes from the same files."""
    _, site, target = folders(preset)
    existing(site / "index.html")
    name = f"{NAME}-{nfcore.__version__}"
    files = sorted(path for path in site.rglob("*") if path.is_file())
    packed = zipped((f"{name}/{file.relative_to(site).as_posix()}", file.read_bytes()) for file in files)
    path = target / f"{name}.zip"
    path.write_bytes(packed)
    print(f"{path}: {len(packed) / 1e6:.1f} MB")
    return 0


# --- the links --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Links of a page, and the anchors that it has for those of others."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value or "")
            elif name in ("href", "xlink:href", "src", "poster") or (tag, name) == ("object", "data"):
                self.links.append(value or "")


def wrong(link: str, page: Path, pages: dict[Path, Page], site: Path) -> str | None:
    """What is wrong with a link of a page, or None. Whether another site answers is not asked."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return "no address"
    if parts.scheme in ("mailto", "data", "javascript"):
        return None
    if parts.scheme or parts.netloc:
        good = parts.scheme == "https" and HOST.fullmatch(parts.hostname or "") and not re.search(r"\s", link)
        return None if good else "not https with a host and without spaces"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not file.is_relative_to(site):
        return "outside of the site"
    if not file.is_file():
        return "no such file"
    return "no such anchor" if file in pages and unquote(parts.fragment) not in pages[file].anchors else None


def broken(site: Path) -> list[str]:
    """Each link that cannot work, with its page and the reason."""
    site = site.resolve()
    # In _static lie the theme's templates.
    found = (path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts)
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in found}
    checked = [
        (path, link, wrong(link, path, pages, site))
        for path, page in pages.items()
        for link in dict.fromkeys(page.links)
    ]
    return [f"{path.relative_to(site)}: {link!r}: {reason}" for path, link, reason in checked if reason]


def links(preset: str) -> int:
    """Check all links of the site; those to other sites by their form alone."""
    _, site, _ = folders(preset)
    existing(site / "index.html")
    found = broken(site)
    for line in found:
        print(line)
    print(f"{len(found)} broken links")
    return int(bool(found))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m tools.publish", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for name, action in (("pdf", pdf), ("zip", pack), ("links", links)):
        sub = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        sub.set_defaults(action=action)
        sub.add_argument("preset", nargs="?", default="quick", help="smoke, quick, gpu, paper or recorded")
    return root


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return int(args.action(args.preset))
    except PublishError as error:
        print(f"publish: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
