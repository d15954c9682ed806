"""What two figures show of one trained model, and that its record is of that run."""

import json

import numpy as np
import pytest

from nfbook.presets import Preset
from nfbook.recorded import recorded_dir
from nfbook.study import Study
from nfcore.runs import read_records
from tools.examples import BINS, POSITION, examples


def check(found):
    for inputs in found["inputs"].values():
        assert len(inputs["share"]) == BINS
        assert sum(inputs["share"]) + inputs["outside"] == pytest.approx(1, abs=1e-3)
        assert inputs["edge"] == pytest.approx(4 * inputs["std"], rel=1e-3)
    assert len(found["tokens"]) == POSITION
    high, low = (found["rows"][name] for name in ("highest", "lowest"))
    assert high["head_entropy"] >= low["head_entropy"]
    for row in (high, low):
        weights = np.array(row["weights"])
        assert len(weights) == POSITION
        assert weights.sum() == pytest.approx(1, abs=1e-3)
        entropy = -sum(w * np.log(w) for w in weights if w > 0)
        assert row["row_entropy"] == pytest.approx(entropy, abs=0.01)


def test_examples_of_a_trained_run(smoke_grid):
    check(examples(next(e for e in Preset.load("smoke").grid()["main"] if e.model.configuration == "SM+G")))


def test_the_recorded_example_is_of_a_recorded_run():
    found = json.loads((recorded_dir("") / "examples.json").read_text())
    check(found)
    experiment = Study.load("transient").cells["SM+G"].experiments[0]
    assert (found["run"], found["updates"]) == (experiment.id, experiment.training.steps)
    assert found["run"] in {record["id"] for record in read_records(recorded_dir("transient"))}
