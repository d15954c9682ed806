"""What the notebooks share: comparisons and tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nfcore import report
from nfcore.presets import CONFIGURATIONS, Preset
from nfcore.runs import load_runs


def test_every_configuration_has_its_own_colour_and_marker():
    assert set(report.STYLES) == set(CONFIGURATIONS)
    for key in ("color", "marker"):
        assert len({style[key] for style in report.STYLES.values()}) == len(report.STYLES)


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


def test_relative_change():
    assert report.relative_change(2.936, 3.197) == pytest.approx(-8.16, abs=0.01)
