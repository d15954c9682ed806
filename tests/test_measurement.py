"""The measurement version: the same settings give the numbers that were stored with it.

Where a change is meant to give others, raise ``runs.MEASUREMENT_VERSION`` and store the new numbers by
``python -m pytest tests/test_measurement.py --store-measurement``.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nfcore import runs, train
from nfcore.settings import Experiment


STORED = Path(__file__).with_name("measurement.json")
RUNS: dict[str, dict[str, Any]] = {
    "norm-free GPT-2": {},
    "Pythia with LayerNorm": {
        "model": {"shape": "pythia-2x32", "norm": "layernorm", "activation": "gelu"},
        "training": {"micro_batch_size": 2, "chunked_loss": True},
    },
    "learnable slopes and dropout": {"model": {"activation": "learnable_leaky_relu", "embd_pdrop": 0.1}},
}


FAST = {"steps": 20, "learning_rate": 0.02}  # numbers far from those of the start


def measured(experiment: Experiment) -> dict[str, float]:
    """Losses and telemetry at the end of a run, each of which many others of its kind go into."""
    run = train(experiment, quiet=True)
    tables = {name: pd.read_parquet(run / f"{name}.parquet") for name in runs.TABLES}
    metrics = tables.pop("metrics")
    values = {name: part["value"].sum() for name, part in metrics.groupby("name")}
    for table in tables.values():
        values |= table.drop(columns=["step", "layer", "head", "position"], errors="ignore").sum().to_dict()
    return {name: float(value) for name, value in values.items()}


def test_the_same_settings_give_the_stored_numbers(tiny, request):
    found = {
        name: measured(tiny(**{**changes, "training": {**FAST, **changes.get("training", {})}}))
        for name, changes in RUNS.items()
    }
    if request.config.getoption("--store-measurement"):
        STORED.write_text(json.dumps({"version": runs.MEASUREMENT_VERSION, "runs": found}, indent=1) + "\n")
    stored = json.loads(STORED.read_text())
    assert stored["version"] == runs.MEASUREMENT_VERSION, "store the numbers of the new measurement version"
    for name, values in stored["runs"].items():
        assert found[name] == pytest.approx(values, rel=1e-4), (
            f"{name}: raise runs.MEASUREMENT_VERSION if this is meant"
        )


def test_another_recipe_would_be_noticed(tiny):
    other = measured(tiny(training={**FAST, "beta2": 0.998}))
    stored = json.loads(STORED.read_text())["runs"]["norm-free GPT-2"]
    assert other != pytest.approx(stored, rel=1e-4)
