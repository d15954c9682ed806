"""The words of the book: no measured number typed by hand, pages that say what to remember, references that exist."""

import csv
import re
from pathlib import Path

import pytest

from nfcore import notebook
from tests.test_book import BOOK, ROOT, toc


PAGES = [page for page in toc() if (BOOK / f"{page}.md").is_file() and not page.startswith("api")]
REFERENCE = {"glossary", "notation", "bibliography", "changelog", "licence", "cite"}  # pages to look things up in
# Numbers that no file makes and none could: conventions, sizes of the settings, counts of what a page lists.
CONVENTIONS = r"""
    95\ %|95th                  # level of all intervals, and a percentile
  | 1\.0|0\.05|0\.95            # norms, levels and exponents by definition
  | \b[1-9]\.(?=\s)             # items of a list
  | \b\d+(?=\ (?:CPU\ )?cores?\b)
  | (?:Python\ )?3\.1[1-3](?:\ (?:to|and)\ 3\.1[1-3])?
"""


def prose(text: str) -> str:
    """A page without code, mathematics, roles, links' targets, comments and list tables, which hold published numbers
    that another test compares with their source."""
    text = re.sub(
        r"^(`{3,}|:{3,})(?!\{(?:figure|table|admonition|note|glossary)).*?^\1\s*$",
        "",
        text,
        flags=re.S | re.M,
    )
    text = re.sub(r"<!--.*?-->|^%.*?$|\$\$.*?\$\$|\$[^$]+\$", "", text, flags=re.S | re.M)
    text = re.sub(r"^:\w+:.*$|^```.*$|^\([\w-]+\)=$", "", text, flags=re.M)
    return re.sub(r"(?:\{[\w:-]+\})?`[^`]*`|\]\([^)]*\)", "", text)


def typed_numbers(text: str) -> list[str]:
    """Numbers in paragraphs that cite nobody; names with digits and years are no numbers."""
    found = []
    for paragraph in re.split(r"\n\s*\n", prose(re.sub(r"\{cite[:\w]*\}`[^`]*`", "CITED", text))):
        if "CITED" not in paragraph:
            words = re.sub(CONVENTIONS, "", paragraph, flags=re.X)
            words = re.sub(r"[A-Za-zα-ω][\w.+/-]*\d[\w.+/%-]*|\b(?:19|20)\d\d\b", "", words)
            found += re.findall(r"[^\s(]*\d[^\s)]*", words)
    return found


def markdown(script: Path) -> str:
    return "\n\n".join(cell.source for cell in notebook.read(script).cells if cell.cell_type == "markdown")


def test_typed_numbers_are_found() -> None:
    text = "It falls by 8.2 % with `0.1` at {glue:text}`x::y:s`, as GPT-2 did in 2024, with $x = 3$."
    assert typed_numbers(text) == ["8.2"]
    assert typed_numbers(text + " {cite}`jha2024relus`") == []


@pytest.mark.parametrize("page", PAGES)
def test_no_number_is_typed_by_hand(page: str) -> None:
    assert typed_numbers((BOOK / f"{page}.md").read_text()) == []


@pytest.mark.parametrize("page", [page for page in toc() if not page.startswith("api")])
def test_page_opens_with_what_it_shows_and_closes_with_what_to_remember(page: str) -> None:
    script = ROOT / "notebooks" / f"{page.removeprefix('notebooks/')}.py"
    text = markdown(script) if page.startswith("notebooks/") else (BOOK / f"{page}.md").read_text()
    if page not in REFERENCE:
        assert re.search(r"^This page (?:shows|says|is|asks|counts|defines|lists|gives|explains)", text, re.M), (
            "opens with something else"
        )
        assert "## What to remember" in text
    assert not re.search(
        r"\b(?:obviously|clearly shows|groundbreaking|remarkabl[ey]|state-of-the-art|dramatic)\b", text, re.I
    )


# Sentences that state an answer without a glued one, and the recorded verdicts that they rest on.
SENTENCES = [
    ("index", "agree on the first point", {"C1": "reproduced"}),
    ("index", "and on the early layers", {"8 ceiling": "yes"}),
    ("index", "GELU gains too once it is rescaled to bend on small inputs", {"follow-up s=64": "yes"}),
    ("index", "ReLU's lead is left for its shape, these runs do not decide", {"follow-up s=64 and ReLU": "undecided"}),
    ("index", "Our small models point the same way", {"C1": "reproduced", "C1 Pythia": "reproduced"}),
    ("summary", "Without LayerNorm, take ReLU", {"C1": "reproduced", "C1 Pythia": "reproduced"}),
    ("summary", "GELU needs a scale of its own to keep up", {"follow-up s=64": "yes"}),
]


@pytest.mark.parametrize(("page", "sentence", "rests_on"), SENTENCES)
def test_sentence_holds_by_the_recorded_verdicts(page: str, sentence: str, rests_on: dict[str, str]) -> None:
    assert sentence in " ".join((BOOK / f"{page}.md").read_text().split())
    with (ROOT / "data" / "recorded" / "study" / "verdicts.csv").open() as file:
        verdicts = {row["id"]: row["direction"] for row in csv.DictReader(file)}
    assert {name: verdicts[name] for name in rests_on} == rests_on
