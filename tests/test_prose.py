"""The words of the book: no measured number typed by hand, a close on every page, sentences that the runs bear out."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nfbook import notebook
from nfbook.claims import contrast, interval
from nfbook.recorded import recorded_dir
from nfbook.study import STUDIES, Study
from nfcore.runs import read_records
from tests.test_book import BOOK, ROOT, toc


PAGES = [page for page in toc() if (BOOK / f"{page}.md").is_file() and not page.startswith("api")]


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
    block = r"^(`{3,}|:{3,})(?!\{(?:figure|table|admonition|note|glossary)).*?^\1\s*$"
    text = re.sub(block, "", text, flags=re.S | re.M)
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


@pytest.mark.parametrize(
    ("page", "heading"), [("explorer", "# "), ("confounds", "## The first study"), ("mechanism", "## The first study")]
)
def test_what_shows_the_transient_says_so_first_and_takes_no_verdict(page: str, heading: str) -> None:
    text = markdown(ROOT / "notebooks" / f"{page}.py")
    assert re.search(rf"^{heading}[^\n]*\n\n```\{{admonition\}} These runs are in a transient\n", text, re.MULTILINE)
    training = Study.load("transient").cells["SM+G"].experiments[0].training
    assert f"{(training.steps or 0) * training.batch_size * 128 / 1e6:.1f} M tokens long" in text
    assert "no verdict on the paper is taken" in " ".join(text.split())


def test_sentences_on_the_transient_hold(judged: Callable[[str], pd.DataFrame]) -> None:
    """They state what its runs say, and are not glued."""
    assert "LayerNorm is a handicap at this size" in (BOOK / "summary.md").read_text()
    assert interval(contrast(judged("transient"), {"SM+G": 1, "SM+LN+G": -1}, "loss")[0])["high"] < 0


def test_sentence_on_runs_past_the_transient_holds(judged: Callable[[str], pd.DataFrame]) -> None:
    assert "leaving LayerNorm out costs GELU perplexity there" in markdown(ROOT / "notebooks" / "confounds.py")
    frame = judged("study")
    for cell in {f"rate {e.training.learning_rate:g}" for e in Study.load().experiments("rates")}:
        assert interval(contrast(frame, {f"SM+G {cell}": 1, f"SM+LN+G {cell}": -1}, "loss")[0])["low"] > 0
        assert interval(contrast(frame, {f"SM+R {cell}": 1, f"SM+LN+R {cell}": -1}, "loss")[0])["low"] < 0


def test_sentences_on_limitations_hold() -> None:
    page = " ".join((BOOK / "limitations.md").read_text().split())
    study = Study.load()
    rates = {e.training.learning_rate for e in study.experiments("rates")}
    chosen = study.cells["SM+G"].experiments[0].training.learning_rate
    assert "from a grid of three. The rule chose the largest." in page
    assert (len(rates), chosen) == (3, max(rates))
    records = [record for name in ("quick", *STUDIES) for record in read_records(recorded_dir(name))]
    made = [record["provenance"] for record in records]
    assert "`x86-64` processors under Linux, with a single thread each" in page
    assert {(m["system"], m["threads"]) for m in made} == {("Linux x86_64", 1)}
    assert "no recorded run was trained in the published runs' float16 mixed precision" in page
    assert "float16" not in {r["settings"]["training"]["precision"] for r in records}
    assert "Contrasts are planned for three to five seeds" in page
    assert {len(cell.seeds) for cell in study.cells.values()} == {3, 5}
