"""What the notebooks share: comparisons and tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt as Markdown

from nfcore import report
from nfcore.presets import Preset
from nfcore.runs import load_runs


def test_other_tokens_under_the_same_settings_are_reported(smoke_grid):
    own = load_runs()
    assert not report.other_data(own, own)
    frame = own.runs.copy()
    frame.loc[0, "provenance.data_hash"] = "0" * 12
    assert report.other_data(own, replace(own, runs=frame))
    frame["data.context"] += 1  # other settings: nothing to compare
    assert not report.other_data(own, replace(own, runs=frame))


def test_final_heads_and_perplexities_average_over_seeds(smoke_grid):
    own = Preset.load("smoke").runs("maps")
    heads = report.final_heads(own, "SM+R")
    assert heads.shape == (2, 2)
    run = own.runs.loc[own.runs["configuration"] == "SM+R", "run"].item()
    rows = own.heads[(own.heads["run"] == run) & (own.heads["step"] == own.heads["step"].max())]
    np.testing.assert_array_equal(heads.ravel(), rows.sort_values(["layer", "head"])["entropy"])
    twice = replace(own, runs=pd.concat([own.runs, own.runs.assign(perplexity=own.runs["perplexity"] + 2.0)]))
    difference = report.perplexities(twice) - report.perplexities(own)
    np.testing.assert_allclose(difference, 1.0)


def test_a_missing_value_is_a_dash_in_a_table():
    table = report.markdown_table(pd.DataFrame({"a": [1.23456, np.nan], "b": ["x", None]}))
    assert "1.235" in table.data
    assert table.data.count("| -") == 2


def test_cells_of_a_table_cannot_bring_html_or_columns():
    table = report.markdown_table(pd.DataFrame({"run": ["<script>alert(1)</script>", "a|b", "`code`"], "n": [1, 2, 3]}))
    shown = Markdown("commonmark").enable("table").render(table.data)  # with HTML let through
    assert "<script" not in shown
    for cell in ("&lt;script&gt;alert(1)&lt;/script&gt;", "a|b", "<code>code</code>"):
        assert f">{cell}</td>" in shown


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (40.02, 52.63, "40.02 in SM+R, below the 52.63 in SM+G"),
        (2.0, 1.0, "2.00 in SM+R, above the 1.00 in SM+G"),
        (1.001, 1.002, "1.00 in SM+R, equal to the 1.00 in SM+G"),
        (np.nan, 1.0, "not finite in SM+R and 1.00 in SM+G"),
        ([1.0, 2.0], [3.0, np.nan], "1.50 in SM+R and not finite in SM+G"),
        ([1.0, 2.0], [3.0, 4.0], "1.50 in SM+R, below the 3.50 in SM+G"),
        ([1.0, 3.0], [2.0, 4.0], "2.00 in SM+R, below the 3.00 in SM+G, though their seeds overlap"),
    ],
)
def test_numbers_of_two_configurations_in_words(ours, theirs, words):
    assert report.against("SM+R", ours, "SM+G", theirs) == words


def test_relative_change():
    assert report.relative_change(2.936, 3.197) == pytest.approx(-8.16, abs=0.01)


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("percent", (-8.16, -9.0, -7.0), "-8.2 % [-9.0, -7.0]"),
        ("points", (34.0, np.nan, np.nan), "+34.0 points"),
        ("share", (0.1234, 0.1, 0.15), "+0.123 [+0.100, +0.150]"),
        ("log", (np.log(2), 0.0, np.log(4)), "×2.00 [×1.00, ×4.00]"),
        ("count", (1.0, 0.29, 1.0), "+1.00 of seeds [+0.29, +1.00]"),
        ("percent", (np.nan, np.nan, np.nan), "-"),
    ],
)
def test_an_estimate_is_shown_with_its_interval_and_unit(unit, values, shown):
    assert report.with_interval(unit, *values) == shown


def test_a_verdict_table_leaves_out_columns_without_content():
    row = dict(id="C1", statement="ReLU", unit="percent", published=-8.2, estimate=-5.0, low=-6.0, high=-4.0, d=-3.0)
    row |= dict(p_holm=0.0001, n=5, lost=0, direction="reproduced", size="reproduced")
    table = report.verdict_table(pd.DataFrame([row])).data
    for part in ("-8.2\u00a0%", "-5.0\u00a0% [-6.0, -4.0]", "5; -3.0; &lt;0.001", "reproduced"):
        assert part in table
    assert "seeds lost" not in table
    asked = report.verdict_table(pd.DataFrame([{**row, "published": None, "size": "", "lost": 2}]), "question").data
    assert "published" not in asked
    assert "size" not in asked
    assert "answer" in asked
    assert "seeds lost" in asked


def test_the_banner_of_the_study_counts_its_runs(smoke_grid):
    shown = load_runs()
    diverged = int((shown.runs["status"] == "diverged").sum())
    text = report.study_banner(shown, 1000).data
    assert f"{len(shown.runs)} of 1000 planned runs, {diverged} of them not" in text
    assert shown.runs["provenance.device"].iloc[0] in text
