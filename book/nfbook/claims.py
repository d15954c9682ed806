"""Statistics of runs over seeds and the verdicts on them.  No torch here.

What is tested and how it is judged is written in ``data/claims.yaml``, before the runs; this module carries it out, for
the study and for the transient (``data/transient.yaml``), by one rule.

The path of a number: ``Training.evaluate`` of :mod:`nfcore.training` takes the mean loss of the held-out tokens,
``final_metrics`` puts the last one into the run's record, ``row`` of :mod:`nfcore.runs` into a table,
:func:`statistics` keeps it for trained runs of each cell, :func:`contrast` subtracts seed by seed, :func:`interval`
takes the mean, and ``UNITS`` turns it into a change of perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nfbook.recorded import recorded_dir
from nfbook.study import SPARE, Study
from nfcore import runs
from nfcore.settings import SettingsError, check_keys, choice, project_root, read_yaml
from nfcore.shares import entropy_ceiling
from nfcore.store import write_atomically


ALPHA = 0.05
LEDGERS = {"study": "claims.yaml", "transient": "transient.yaml"}
LOSSES = {"loss": "eval_loss", "loss_median": "eval_loss_median", "loss_p95": "eval_loss_p95"}
STATISTICS = (
    *(*LOSSES, "best_loss", "overload", "early_entropy", "early_with_bottom", "late_entropy"),
    *("early_entropy_training", "early_over_ln_i"),
    *("early_late_positions", "early_random", "early_minus_late", "slope", "slope_ratio", "slope_beyond_decay"),
    *("scale", "nonlinear_init", "early_inflation", "selectivity", "selectivity_gain", "dead_units"),
)
UNITS: dict[str, Callable[[float], float]] = {
    "percent": lambda x: 100 * math.expm1(x),  # a difference of losses as a change of perplexity
    "points": lambda x: 100 * x,
    "share": float,
    "slope": float,
    "log": float,
}
OUTCOMES = ("trained", "untrained", "diverged", "gradient norm")
EXPECTED = ("below", "above", "different", "zero")
_TEST = (
    "id",
    "group",
    "family",
    "source",
    "statement",
    "statistic",
    "unit",
    "contrast",
    "expect",
    "least",
    "published",
)


def early_layers(layers: int) -> range:
    """The first half of a model's layers without layer 0; layer 1 of two or three layers, and a single layer itself.

    >>> list(early_layers(6)), list(early_layers(12))
    ([1, 2], [1, 2, 3, 4, 5])
    """
    return range(1, max(2, layers // 2)) if layers > 1 else range(1)


def late_layers(layers: int) -> range:
    """The second half of a model's layers."""
    return range(layers // 2, layers)


def read_ledger(study: str = "study") -> dict[str, Any]:
    """The tests of a study, checked against its cells. Raises SettingsError."""
    ledger = read_yaml(project_root() / "data" / LEDGERS[study])
    check_keys(ledger, ("disclosures", "trained", "groups", "families", "tests", "correlations"), study)
    cells = Study.load(study).cells
    for test in ledger["tests"]:
        where = f"{study} {test.get('id')}"
        check_keys(test, (*_TEST, "scale"), where)
        choice(f"{where}: statistic", test["statistic"], (*STATISTICS, "divergence"))
        choice(f"{where}: unit", test["unit"], UNITS)
        choice(f"{where}: expect", test["expect"], EXPECTED)
        for name in test["contrast"]:
            choice(f"{where}: contrast", name, cells)
    return ledger


# --- statistics of runs -----------------------------------------------------------------------------------------


def statistics(shown: runs.Runs, study: Study) -> pd.DataFrame:
    """One row a cell and seed: columns ``run``, ``outcome`` (one of ``OUTCOMES``), ``steps`` (reached) and
    ``STATISTICS``, which are missing unless the run is trained.

    The runs of a cell are all of ``shown`` with its settings, whatever their seed, but for spare seeds; of cells with
    equal settings the first has them all, the others those of their own seeds.
    """
    rows = shown.runs.set_index("run")
    tables = {name: dict(iter(getattr(shown, name).groupby("run"))) for name in runs.TABLES}
    by_settings: dict[str, list[str]] = {}
    for e in (e for e in study.experiments() if e.seed < SPARE):
        by_settings.setdefault(e.replace(seed=0).id, []).append(e.id)
    bounds = read_yaml(project_root() / "data" / LEDGERS["study"])["trained"]
    measured = {run: _statistics(rows.loc[run], tables, run, bounds) for run in rows.index}
    found = []
    for cell in study.cells.values():
        ids = [e.id for e in cell.experiments]
        pooled = ids if min(cell.seeds) >= SPARE else by_settings.pop(cell.experiments[0].replace(seed=0).id, ids)
        chosen = [run for run in pooled if run in measured]
        found += [{"cell": cell.name, "seed": rows.loc[run, "seed"], "run": run, **measured[run]} for run in chosen]
    return pd.DataFrame(found, columns=["cell", "seed", "run", "outcome", "steps", *STATISTICS]).set_index(
        ["cell", "seed"]
    )


def _statistics(
    row: pd.Series, tables: Mapping[str, Mapping[str, pd.DataFrame]], run: str, bounds: Mapping[str, float]
) -> dict[str, Any]:
    """Statistics of one run; what does not apply to it is missing."""
    if row["status"] != "complete":
        by_norm = row["diverged.where"] == "gradient norm"
        return {"outcome": "gradient norm" if by_norm else "diverged", "steps": row["diverged.step"]}
    metrics, layers, heads = (tables[name][run] for name in ("metrics", "layers", "heads"))
    ends, norms = _last(layers), _last(metrics[metrics["name"] == "grad_norm"])["value"]
    trained = (
        pd.isna(row["diverged.step"])  # which a run that skips outlives
        and row["eval_loss"] < row["provenance.unigram_loss"]
        and ends["residual_rms"].max() < bounds["residual_rms"]
        and norms.max() < bounds["grad_norm"]
    )
    values: dict[str, Any] = {"outcome": "trained" if trained else "untrained", "steps": row["step"]}
    if not trained:
        return values
    values |= {name: row[column] for name, column in LOSSES.items()} | {"best_loss": row["best_eval_loss"]}
    ceiling, count = entropy_ceiling(int(row["data.context"])), int(row["model.num_hidden_layers"])
    last, during = _last(heads), heads[heads["step"] > 0]
    early, late = (last["layer"].isin(part(count)) for part in (early_layers, late_layers))
    by_step = during[during["layer"].isin(early_layers(count))].groupby("step")["entropy"].mean()
    values |= {
        "overload": (last["entropy"] >= 0.75 * ceiling).mean(),
        "early_entropy": last.loc[early, "entropy"].mean() / ceiling,
        "early_with_bottom": last.loc[early | (last["layer"] == 0), "entropy"].mean() / ceiling,
        "late_entropy": last.loc[late, "entropy"].mean() / ceiling,
        "early_entropy_training": by_step.mean() / ceiling,
        "early_over_ln_i": last.loc[early, "entropy_over_ln_i"].mean(),
        "early_random": last.loc[early, "entropy_random"].mean() / ceiling,
        "early_minus_late": (last.loc[early, "entropy"].mean() - last.loc[late, "entropy"].mean()) / ceiling,
        "nonlinear_init": layers.loc[layers["step"] == 0, "nonlinear_share"].mean(),
    }
    if (positions := tables["positions"].get(run)) is not None:
        there = positions["layer"].isin(early_layers(count)) & (positions["position"] > 0.75 * row["data.context"])
        values["early_late_positions"] = (positions["entropy"] / np.log(positions["position"]))[there].mean()
    if ends["slope"].notna().any():
        values["slope"] = ends["slope"].mean()
        values["slope_ratio"] = math.log(ends["slope"].abs().mean() / abs(row["model.negative_slope"]))
        values["slope_beyond_decay"] = values["slope_ratio"] + decay_sum(row, metrics)
    if "participation_in" in ends:  # recorded since there are units to measure
        spread = np.log(ends["participation_out"] / ends["participation_in"])
        values |= {
            "early_inflation": spread[ends["layer"].isin(early_layers(count))].mean(),
            "selectivity": ends["selectivity_out"].mean(),
            "selectivity_gain": (ends["selectivity_out"] - ends["selectivity_in"]).mean(),
            "dead_units": ends["dead_units"].mean(),
        }
    if ends["scale"].notna().any():
        values["scale"] = np.log(ends["scale"].abs()).mean()
    return values


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["step"] == table["step"].max()]


def decay_sum(row: pd.Series, metrics: pd.DataFrame) -> float:
    """Sum over steps of learning rate x weight decay of the slopes: decay alone multiplies a slope by exp(-this)."""
    rates = metrics[metrics["name"] == "learning_rate"].sort_values("step")
    steps = rates["step"].diff().fillna(rates["step"])
    return float((rates["value"] * steps).sum() * row["training.slope_weight_decay"])


def of_cell(frame: pd.DataFrame, cell: str) -> pd.DataFrame:
    """The rows of a cell, by seed; none where it has no runs."""
    return frame.loc[cell] if cell in frame.index else frame.iloc[:0].droplevel("cell")


# --- tests ------------------------------------------------------------------------------------------------------


def contrast(frame: pd.DataFrame, weights: Mapping[str, float], statistic: str) -> tuple[pd.Series, int]:
    """The contrast of every seed that all cells have, and how many such seeds drop out since a run has no value."""
    columns = [weight * of_cell(frame, cell)[statistic].astype(float) for cell, weight in weights.items()]
    values = pd.concat(columns, axis=1, join="inner").sum(axis=1, skipna=False)
    return values.dropna().sort_index(), int(values.isna().sum())


def interval(values: Sequence[float] | pd.Series) -> dict[str, float]:
    """Mean, 95 % t interval (``low``, ``high``), 90 % t interval (``inner_low``, ``inner_high``), p of the t test.

    One value has no interval, and neither have equal ones.
    """
    x = np.asarray(values, dtype=float)
    nan = math.nan
    result = dict(estimate=x.mean() if len(x) else nan, low=nan, high=nan, inner_low=nan, inner_high=nan, p=nan)
    if len(x) > 1 and np.ptp(x) > 1e-9 * max(1.0, np.abs(x).max()):
        test = stats.ttest_1samp(x, 0.0)
        outer, inner = test.confidence_interval(1 - ALPHA), test.confidence_interval(1 - 2 * ALPHA)
        result |= dict(low=outer.low, high=outer.high, inner_low=inner.low, inner_high=inner.high, p=test.pvalue)
    return {name: float(value) for name, value in result.items()}


def divergence(frame: pd.DataFrame, cell: str, control: str) -> tuple[dict[str, float], int]:
    """Share of runs of ``cell`` that stopped before their end minus that of ``control``, with Newcombe's intervals
    (1998, method 10, from Clopper and Pearson's limits), p of the log-rank test of the times, the smaller count of
    runs, and as ``sign`` which way the times differ (above 0: ``cell`` stops sooner)."""
    runs_of = [of_cell(frame, name) for name in (cell, control)]
    n = min(map(len, runs_of))
    names = ("estimate", "low", "high", "inner_low", "inner_high", "p", "sign")
    if not n:
        return dict.fromkeys(names, math.nan), 0
    stopped = [~rows["outcome"].isin(("trained", "untrained")) for rows in runs_of]
    counts = [stats.binomtest(int(s.sum()), len(s)) for s in stopped]
    first, second = (count.statistic for count in counts)
    limits = []
    for level in (1 - ALPHA, 1 - 2 * ALPHA):
        a, b = (count.proportion_ci(level) for count in counts)
        limits.append(first - second - math.hypot(first - a.low, b.high - second))
        limits.append(first - second + math.hypot(a.high - first, second - b.low))
    p = sign = math.nan
    if any(s.any() for s in stopped):
        times = [rows["steps"].to_numpy(dtype=float) for rows in runs_of]
        test = stats.logrank(*(stats.CensoredData(t[s], right=t[~s]) for t, s in zip(times, stopped, strict=True)))
        p, sign = float(test.pvalue), float(test.statistic)
    return dict(zip(names, (first - second, *limits, p, sign), strict=True)), n


def holm(p: Sequence[float]) -> np.ndarray:
    """P values corrected by Holm's step-down method (1979). Missing ones count as 1: a family is what was registered,
    so that a verdict does not depend on which of its tests have runs already."""
    values = np.asarray(p, dtype=float)
    result = np.full(len(values), np.nan)
    highest = 0.0
    for rank, i in enumerate(np.argsort(values)[: np.isfinite(values).sum()]):  # missing ones are last
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        result[i] = highest
    return result


def verdict(expect: str, least: float | None, found: Mapping[str, Any]) -> str:
    """``reproduced``, ``contradicted``, ``negligible`` or ``undecided`` by the rule of data/claims.yaml; ``no runs``
    without a value. ``found`` has the estimate and both intervals in the test's unit, and the corrected p."""
    if math.isnan(found["estimate"]):
        return "no runs"
    if least is not None and -least <= found["inner_low"] and found["inner_high"] <= least:
        return "reproduced" if expect == "zero" else "negligible"
    if expect == "zero":
        outside = least is not None and (found["low"] > least or found["high"] < -least)
        return "contradicted" if outside else "undecided"
    if not found["p_holm"] < ALPHA:
        return "undecided"
    sign = found["estimate"] if math.isnan(found["sign"]) else found["sign"]
    return "reproduced" if expect == "different" or (sign > 0) == (expect == "above") else "contradicted"


def verdicts(frame: pd.DataFrame, study: str = "study") -> pd.DataFrame:
    """One row a test of a study, from the :func:`statistics` of its runs: what the ledger says of it, the estimate with
    its intervals in the test's unit, n, seeds ``lost`` since a run has no value, seeds ``planned`` or run, corrected p,
    ``verdict`` and the runs' ids."""
    tests, planned, rows = read_ledger(study)["tests"], Study.load(study).cells, []
    for test in tests:
        row = {"group": "claims", **dict.fromkeys((*_TEST[3:], "scale")), **test}
        cells = test["contrast"]
        if test["statistic"] == "divergence":
            (cell, control) = sorted(cells, key=cells.__getitem__, reverse=True)
            found, n = divergence(frame, cell, control)
            row |= {"n": n, "lost": 0, **found}
        else:
            values, lost = contrast(frame, cells, test["statistic"])
            found, unit = interval(values), UNITS[test["unit"]]
            row |= {name: unit(value) if name != "p" else value for name, value in found.items()}
            row |= {"n": len(values), "lost": lost, "sign": math.nan}
        # Runs of other seeds with the same settings count as well, and stand for none of the planned ones.
        seeds = [
            set.intersection(*map(set, of))
            for of in zip(*((planned[c].seeds, of_cell(frame, c).index) for c in cells), strict=True)
        ]
        row["planned"] = len(set.union(*seeds))
        row["runs"] = [run for cell in cells for run in of_cell(frame, cell)["run"]]
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    for _, members in table.groupby("family"):
        table.loc[members.index, "p_holm"] = holm(members["p"].tolist())
    table["verdict"] = [
        verdict(test["expect"], test.get("least"), row)
        for test, row in zip(tests, table.to_dict("records"), strict=True)
    ]
    return table


def correlations(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spearman's correlations over cells of the transient (see data/transient.yaml), and the cells' means that they are
    taken over."""
    ledger, study = read_ledger("transient"), Study.load("transient")
    base = study.cells["SM+G"].experiments[0]
    chosen: dict[str, str] = {}
    for cell in study.cells.values():
        e = cell.experiments[0]
        same = all(
            getattr(e.model, name) == getattr(base.model, name)
            for name in ("family", "norm", "num_hidden_layers", "hidden_size")
        )
        if same and e.training.learning_rate == base.training.learning_rate:
            chosen.setdefault(e.replace(seed=0).id, cell.name)  # cells with equal settings count once
    means = frame[frame.index.get_level_values("cell").isin(chosen.values())][list(STATISTICS)].astype(float)
    means = means.groupby(level="cell", sort=False).mean().dropna(subset=["loss"])
    rows = []
    for test in ledger["correlations"]:
        x, y = means[test["x"]], means[test["y"]]
        found = spearman_interval(x, y) if len(means) > 3 else dict.fromkeys(("estimate", "low", "high"), math.nan)
        decided = found["low"] > 0 or found["high"] < 0
        expected = (found["estimate"] > 0) == (test["expect"] == "above")
        answer = ("reproduced" if expected else "contradicted") if decided else "undecided"
        rows.append({**test, **found, "n": len(means), "verdict": answer})
    columns = ["id", "statement", "x", "y", "expect", "estimate", "low", "high", "n", "verdict"]
    return pd.DataFrame(rows, columns=columns), means


def spearman_interval(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> dict[str, float]:
    """Spearman's rank correlation with a 95 % interval: Fisher's z, variance (1 + r^2 / 2) / (n - 3) (Bonett and Wright
    2000)."""
    r = float(stats.spearmanr(x, y).statistic)
    bounded = min(max(r, -1 + 1e-12), 1 - 1e-12)
    half = stats.norm.ppf(1 - ALPHA / 2) * math.sqrt((1 + r * r / 2) / (len(x) - 3))
    return {
        "estimate": r,
        "low": math.tanh(math.atanh(bounded) - half),
        "high": math.tanh(math.atanh(bounded) + half),
    }


# --- recorded verdicts ------------------------------------------------------------------------------------------


def summary(frame: pd.DataFrame, study: str = "study") -> pd.DataFrame:
    """What is recorded of the verdicts: one row a test or correlation, numbers to four decimals, the runs' ids."""
    parts = [verdicts(frame, study).rename(columns={"group": "kind"})]
    if study == "transient":
        parts.append(correlations(frame)[0].assign(kind="correlations", unit="rank"))
    columns = ["kind", "id", "statement", "unit", "estimate", "low", "high", "n", "lost", "verdict", "runs"]
    whole = pd.concat(parts, ignore_index=True).reindex(columns=columns).fillna({"lost": 0}).astype({"lost": int})
    whole["runs"] = [" ".join(ids) if isinstance(ids, list) else "" for ids in whole["runs"]]
    return whole.round({"estimate": 4, "low": 4, "high": 4}).replace({-0.0: 0.0})


def _recorded_verdicts(study: str) -> Path:
    return recorded_dir(study) / "verdicts.csv"


def record(found: pd.DataFrame, study: str = "study") -> Path:
    """Write the verdicts of :func:`summary` beside the recorded runs."""
    path = _recorded_verdicts(study)
    write_atomically(path, found.drop(columns="statement").to_csv(index=False))
    return path


def outdated(found: pd.DataFrame, study: str = "study") -> list[str]:
    """Which recorded verdicts do not follow from the runs. Raises SettingsError where none are recorded."""
    path = _recorded_verdicts(study)
    if not path.exists():
        raise SettingsError(f"{path}: no recorded verdicts; `python -m nfbook claims --record` writes them")
    before = pd.read_csv(path, keep_default_na=False, dtype=str).set_index(["kind", "id"])
    now = found.astype({"n": int}).astype(str).set_index(["kind", "id"])
    lines = [f"{k} {i}: not recorded" for k, i in now.index.difference(before.index)]
    lines += [f"{k} {i}: recorded, but no test of {study}" for k, i in before.index.difference(now.index)]
    for key in before.index.intersection(now.index):
        for name in ("verdict", "n"):
            old, new = str(before.loc[key, name]), str(now.loc[key, name])
            if old != new:
                lines.append(f"{key[0]} {key[1]}: {name} is recorded as {old!r}, the runs give {new!r}")
    return lines
