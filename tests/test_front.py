"""The HTML of the first page and of the strip of verdicts."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from nfbook import front, typeset
from nfbook.presets import Preset


ROW = dict(id="T4", statement="ReLU <is> ahead", unit="percent", published=-8.2, estimate=-5.0, low=-6.0, high=-4.0)
ROW |= dict(p=0.0001, n=5, lost=0, verdict="reproduced", least=1, expect="below", planned=5)
NOTHING = {**ROW, "id": "E1", "verdict": "no runs", "n": 0, "estimate": np.nan, "low": np.nan, "high": np.nan}
WORDS = {"T4": ("ReLU is better.", "a against b"), "E1": ("Heads are overloaded.", "b against a")}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("-8.2 % [-21.4, +1.6]", "\u22128.2\u00a0% [\u221221.4, +1.6]"),
        ("-0.0003, -0.0007", "\u22120.0003, \u22120.0007"),
        ("GPT-2 at 1e-05 on 2026-11-27, x86-64, L(0.1)-2, 3-5", None),
    ],
)
def test_numbers_get_signs_and_names_and_dates_keep_hyphens(written: str, shown: str | None) -> None:
    assert typeset(written) == (shown or written)


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(
    ("verdict", "icon"), [("reproduced", "✓"), ("contradicted", "✗"), ("negligible", "○"), ("undecided", "?")]
)
def test_a_badge_has_icon_word_and_a_colour_of_its_own(verdict: str, icon: str) -> None:
    badge = front.badge(pd.Series({**ROW, "verdict": verdict, "p": 0.5}))
    assert badge == f'<span class="nf-badge nf-{verdict}">{icon} {verdict}</span>'


def test_a_strip_has_a_line_a_test_under_its_claim_and_runs_nothing_that_words_hold() -> None:
    rows = pd.DataFrame([ROW, NOTHING])
    html = front.strip({"C1. <b>": rows[:1], "C2.": rows[1:], "C3.": rows[:0]}).data
    head, *lines = (text(row) for row in re.findall("<tr>.*?</tr>", html))
    assert head == "claim paper ours, 95 % interval n verdict"
    assert lines == [
        "C1. &lt;b&gt;",
        "ReLU &lt;is&gt; ahead \u22128.2 % \u22125.0 % [\u22126.0, \u22124.0] 5 ✓ reproduced",
        "C2.",
        "ReLU &lt;is&gt; ahead \u22128.2 % - 0 ◌ not trained yet",
    ], "a claim without tests has no heading"


def test_the_picture_of_a_row_is_to_scale() -> None:
    """Zero, the paper's value, ours and its interval on the scale of all rows of the unit."""
    one = {**ROW, "n": 1, "low": np.nan, "high": np.nan, "published": 12.0}
    first, second = re.findall("<svg.*?</svg>", front.strip({"C1.": pd.DataFrame([ROW, one])}).data)
    span = front.EFFECT[0] - 12

    def place(value: float) -> str:
        return f"{6 + span * (value + 8.2) / 20.2:.1f}"

    for picture, published in ((first, -8.2), (second, 12.0)):
        assert f"M{place(0)} 0V" in picture
        assert f'x="{place(-1)}"' in picture
        assert f'cx="{place(published)}"' in picture
    assert f"M{place(-6)} 9.0H{place(-4)}" in first
    assert ("nf-full" in first, "nf-full" in second) == (True, False), "one seed has no interval and is hollow"
    assert re.findall(r"M[\d.]+ 9.0H", second) == ["M0 9.0H"], "the axis alone"


def test_cards_have_both_numbers_or_say_what_is_missing() -> None:
    first, second = (text(card) for card in front.cards(pd.DataFrame([ROW, NOTHING]), WORDS).data.split("nf-card")[2:])
    assert "paper \u22128.2 % here \u22125.0 % [\u22126.0, \u22124.0] (5 seeds) ✓ reproduced" in first
    assert "paper \u22128.2 % here - ◌ not trained yet" in second


def test_the_picture_shows_the_runs_at_every_stop(smoke_grid: object) -> None:
    runs = Preset.load("smoke").runs("main")
    html = front.hero(runs).data
    script = json.loads(re.findall(r'<script type="application/json">(.*)</script>', html)[0])
    picture = html.partition("<script")[0]
    for slider in script:
        assert len(slider["names"]) == len(slider["stops"])
        for id, changed in slider["stops"][slider["start"]].items():
            (element,) = re.findall(rf'<\w+ id="{id}"[^>]*>[^<]*', picture.replace("&#x27;", "'"))
            for name, value in changed.items():
                assert element.endswith(f">{value}") if name == "text" else f'{name}="{value}"' in element, id
    last = script[1]["stops"][-1]
    assert script[1]["names"][-1] == runs.runs["step"].max()
    for number, c in enumerate(front.MAIN):
        assert (
            last[f"nf-hero-value-{number}"]["text"] == f"{runs.where(configuration=c).runs['perplexity'].iloc[0]:.3g}"
        )
    heads = len(runs.heads[(runs.heads["run"] == runs.runs["run"].iloc[0]) & (runs.heads["step"] == 0)])
    assert {len(re.findall("h0", last[f"nf-hero-heads-{number}"]["d"])) for number in range(4)} == {heads}
