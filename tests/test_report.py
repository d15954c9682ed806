"""What the notebooks share: comparisons and tables."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt as Markdown

from nfbook import report
from nfbook.presets import Preset
from nfbook.study import Study
from nfcore.runs import load_runs
from nfcore.shares import entropy_ceiling


def test_other_tokens_under_the_same_settings_are_reported(smoke_grid):
    own = load_runs()
    assert not report.other_data(own, own)
    frame = own.runs.copy()
    frame.loc[0, "provenance.data_hash"] = "0" * 12
    assert report.other_data(own, replace(own, runs=frame))
    frame["data.context"] += 1  # other settings: nothing to compare
    assert not report.other_data(own, replace(own, runs=frame))


def test_final_heads_and_perplexities_average_over_seeds(smoke_grid):
    own = Preset.load("smoke").runs("main")
    heads = report.final_heads(own, "SM+R")
    assert heads.shape == (2, 2)
    run = own.runs.loc[own.runs["configuration"] == "SM+R", "run"].item()
    rows = own.heads[(own.heads["run"] == run) & (own.heads["step"] == own.heads["step"].max())]
    np.testing.assert_array_equal(heads.ravel(), rows.sort_values(["layer", "head"])["entropy"])
    twice = replace(own, runs=pd.concat([own.runs, own.runs.assign(perplexity=own.runs["perplexity"] + 2.0)]))
    difference = report.perplexities(twice) - report.perplexities(own)
    np.testing.assert_allclose(difference, 1.0)


def test_cells_of_a_table_cannot_bring_html_or_columns_and_a_missing_value_is_a_dash():
    table = report.markdown_table(pd.DataFrame({"run": ["<script>alert(1)</script>", "a|b", "`code`"], "n": [1, 2, 3]}))
    shown = Markdown("commonmark").enable("table").render(table.data)  # with HTML let through
    assert "<script" not in shown
    for cell in ("&lt;script&gt;alert(1)&lt;/script&gt;", "a|b", "<code>code</code>"):
        assert f">{cell}</td>" in shown
    table = report.markdown_table(pd.DataFrame({"a": [1.23456, np.nan], "b": ["x", None]}))
    assert "1.235" in table.data
    assert table.data.count("| -") == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (40.02, 52.63, "40.02 in SM+R, below the 52.63 in SM+G"),
        (2.0, 1.0, "2.00 in SM+R, above the 1.00 in SM+G"),
        (1.001, 1.002, "1.00 in SM+R, equal to the 1.00 in SM+G"),
        (np.nan, 1.0, "diverged in SM+R and 1.00 in SM+G"),
        ([1.0, 2.0], [3.0, np.nan], "1.50 in SM+R and diverged in SM+G"),
        ([1.0, 2.0], [3.0, 4.0], "1.50 in SM+R, below the 3.50 in SM+G"),
        ([1.0, 3.0], [2.0, 4.0], "2.00 in SM+R, below the 3.00 in SM+G, though their seeds overlap"),
    ],
)
def test_numbers_of_two_configurations_in_words(ours, theirs, words):
    assert report.against("SM+R", ours, "SM+G", theirs) == words


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("percent", (-8.16, -9.0, -7.0), "-8.2 % [-9.0, -7.0]"),
        ("points", (34.0, np.nan, np.nan), "+34.0 points"),
        ("share", (0.1234, 0.1, 0.15), "+0.123 [+0.100, +0.150]"),
        ("log", (np.log(2), 0.0, np.log(4)), "×2.00 [×1.00, ×4.00]"),
        ("slope", (0.0123, -0.01, 0.03), "+0.012 [-0.010, +0.030]"),
        ("share", (-0.0002, -0.022, 0.022), "+0.000 [-0.022, +0.022]"),
        ("percent", (np.nan, np.nan, np.nan), "-"),
    ],
)
def test_an_estimate_is_shown_with_its_interval_and_unit(unit, values, shown):
    assert report.with_interval(unit, *values) == shown


@pytest.mark.parametrize(("layers", "early"), [(2, [1]), (6, [1, 2]), (12, [1, 2, 3, 4, 5])])
def test_early_entropy_is_of_the_early_layers_at_any_depth(layers, early):
    heads = np.random.default_rng(0).uniform(size=(layers, 4))
    assert report.early_share(heads, 128) == pytest.approx(heads[early].mean() / entropy_ceiling(128))


def test_the_step_at_which_early_layers_leave_the_ceiling(smoke_grid):
    own = Preset.load("smoke").runs("main")
    ceiling = entropy_ceiling(int(own.runs["data.context"].iloc[0]))
    steps = sorted(own.heads["step"].unique())
    level = np.where(own.heads["layer"] == 0, 0.1, np.where(own.heads["step"] < steps[1], 1.0, 0.8))
    fallen = replace(own, heads=own.heads.assign(entropy=level * ceiling))
    assert report.leaves_ceiling(fallen, "SM+G") == steps[1], "layer 0 does not count"
    assert report.leaves_ceiling(replace(own, heads=own.heads.assign(entropy=ceiling)), "SM+G") == np.inf


OUTCOMES = pd.DataFrame({"run": ["a", "b", "c", "c"], "outcome": ["trained", "diverged", "untrained", "untrained"]})
ROW = dict(id="T4", statement="ReLU is ahead", source="paper", statistic="loss", unit="percent", published=-8.2)
ROW |= dict(estimate=-5.0, low=-6.0, high=-4.0, p=0.0001, p_holm=0.0001, n=5, lost=0, verdict="reproduced", runs=["a"])
ROW |= dict(expect="below", planned=5)


def test_a_verdict_table_has_a_column_a_number_and_none_without_content():
    def columns(**changes):
        question = changes.pop("question", "claim")
        lines = report.verdict_table(pd.DataFrame([{**ROW, **changes}]), OUTCOMES, question).data.splitlines()
        names, _, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        return dict(zip(names, (value.replace("\u00a0", " ") for value in values), strict=True))

    whole = {"id": "T4", "claim": "ReLU is ahead", "source": "paper", "published": "-8.2 %"}
    whole |= {"ours, 95 % interval": "-5.0 % [-6.0, -4.0]", "n": "5", "p (Holm)": "&lt;0.001"}
    assert columns() == whole | {"verdict": "✓ reproduced"}
    assert columns(runs=["a", "b", "c"])["left out"] == "1 diverged, 1 untrained"
    assert "left out" not in columns(runs=["b"], statistic="divergence"), "diverged runs are what it counts"
    nothing = dict(verdict="no runs", n=0, estimate=np.nan, low=np.nan, high=np.nan, p_holm=np.nan, runs=[])
    assert columns(**nothing)["verdict"] == "not trained yet"
    assert columns(**nothing, lost=3)["verdict"] == "no trained seed"
    assert columns(question="question", verdict="contradicted", published=None)["answer"] == "no, the reverse"
    assert "published" not in columns(published=None)
    chosen = report.verdict_table(pd.DataFrame([ROW]), OUTCOMES, columns=("claim", "n", "verdict")).data
    assert [cell.strip() for cell in chosen.splitlines()[0].strip("|").split("|")] == ["claim", "n", "verdict"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "reproduced"),
        (dict(n=2), "reproduced so far"),
        (dict(n=2, lost=3), "reproduced"),
        (dict(n=8), "reproduced"),
        (dict(verdict="undecided"), "undecided after correction"),
        (dict(verdict="undecided", p=0.06), "undecided"),
        (dict(verdict="undecided", expect="zero"), "undecided"),
        (dict(verdict="undecided", n=1, p=np.nan), "undecided so far"),
        (dict(verdict="no runs", n=0), "not trained yet"),
    ],
)
def test_a_verdict_says_what_is_still_to_come_and_what_correction_did(changes, words):
    assert report.said(pd.Series({**ROW, **changes})) == words


def test_seeds_are_of_the_planned_ones_while_some_are_missing():
    shown = [
        report.seeds_used(pd.Series({**ROW, "n": n, "lost": lost})) for n, lost in ((5, 0), (2, 0), (2, 3), (0, 0))
    ]
    assert shown == ["5", "2 of 5", "2", "0"]


def test_verdicts_are_glued_by_their_ids(monkeypatch):
    glued = {}
    monkeypatch.setattr(report, "glue", glued.update)
    waiting = {**ROW, "id": "T4 Pythia T=256", "verdict": "no runs", "estimate": np.nan, "n": 0}
    report.glue_verdicts(pd.DataFrame([ROW, waiting]))
    assert glued["t4"] == "-5.0 % [-6.0, -4.0]"
    assert [glued[f"t4_{name}"] for name in ("published", "seeds", "verdict")] == ["-8.2 %", "5", "reproduced"]
    assert (glued["t4_pythia_t_256"], glued["t4_pythia_t_256_published"]) == ("not trained yet", "-8.2 %")
    report.glue_verdicts(pd.DataFrame([ROW]), report.ANSWERS)
    assert glued["t4_verdict"] == "yes"


def test_a_difference_is_over_the_seeds_that_both_cells_have():
    index = pd.MultiIndex.from_tuples([(c, s) for c in "ab" for s in (1, 2, 3)], names=["cell", "seed"])
    frame = pd.DataFrame({"loss": [1.0, 1.0, 1.0, 0.9, 1.0, np.nan]}, index=index)
    text, n = report.difference(frame, {"a": 1, "b": -1})
    assert (text.split(" %")[0], n) == (f"{100 * np.expm1(0.05):+.1f}", 2)
    assert report.difference(frame, {"a": 1, "none": -1}) == ("-", 0)
    assert report.relative_change(2.936, 3.197) == pytest.approx(-8.16, abs=0.01)


def test_the_banner_of_a_study_counts_its_runs_and_says_what_made_them():
    study = Study.load("transient")
    shown = study.runs()
    text = report.study_banner(shown, study).data
    assert f"{len(shown.runs)} of {len(study.experiments())} planned runs" in text
    assert f"{(shown.runs['status'] == 'diverged').sum()} stopped before their end" in text
    assert shown.runs["provenance.device"].iloc[0] in text
    assert "Not trained yet" not in text
    part = report.study_banner(shown.select(e.id for e in study.experiments("core")), study).data
    assert re.search(r"\*\*Not trained yet, or not all of it:\*\* .*sizes \(0 of \d+ runs\)", part)
    assert "core (" not in part
