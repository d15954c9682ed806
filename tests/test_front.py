"""The HTML of the first page and of the strip of verdicts."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from nfbook import front
from nfbook.presets import Preset


ROW = dict(id="T4", statement="ReLU <is> ahead", unit="percent", published=-8.2, estimate=-5.0, low=-6.0, high=-4.0)
ROW |= dict(n=5, lost=0, verdict="reproduced")
NOTHING = {**ROW, "id": "E1", "verdict": "no runs", "n": 0, "estimate": np.nan, "low": np.nan, "high": np.nan}
WORDS = {"T4": ("ReLU is better.", "a against b"), "E1": ("Heads are overloaded.", "b against a")}


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(
    ("verdict", "icon"), [("reproduced", "✓"), ("contradicted", "✗"), ("negligible", "○"), ("undecided", "?")]
)
def test_a_badge_has_icon_word_and_a_colour_of_its_own(verdict: str, icon: str) -> None:
    badge = front.badge(pd.Series({**ROW, "verdict": verdict}))
    assert badge == f'<span class="nf-badge nf-{verdict}">{icon} {verdict}</span>'


def test_a_strip_has_a_line_a_test_and_runs_nothing_that_a_statement_holds() -> None:
    html = front.strip(pd.DataFrame([ROW, NOTHING])).data
    head, *lines = (text(row) for row in re.findall("<tr>.*?</tr>", html))
    assert head == "claim published ours, 95 % interval n verdict"
    assert lines[0] == "ReLU &lt;is&gt; ahead -8.2 % -5.0 % [-6.0, -4.0] 5 ✓ reproduced"
    assert lines[1].endswith("-8.2 % - 0 ◌ not trained yet")


def test_cards_have_both_numbers_or_say_what_is_missing() -> None:
    first, second = (text(card) for card in front.cards(pd.DataFrame([ROW, NOTHING]), WORDS).data.split("nf-card")[2:])
    assert "paper -8.2 % here -5.0 % [-6.0, -4.0] (5 seeds) ✓ reproduced" in first
    assert "paper -8.2 % here - ◌ not trained yet" in second


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
