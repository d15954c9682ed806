"""Verdicts on the paper's claims, its confounds and the mechanism, from runs over seeds.  No torch here.

What is tested and how it is judged stands in ``data/claims.yaml``, written before the runs; this module carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nfcore import runs
from nfcore.presets import MAIN
from nfcore.settings import SettingsError, check_keys, check_type, checkout_file, choice, read_yaml
from nfcore.shares import entropy_ceiling
from nfcore.study import NAME, Study


ALPHA = 0.05
LOSSES = {"loss": "eval_loss", "loss_median": "eval_loss_median", "loss_p95": "eval_loss_p95"}
STATISTICS = (
    *(*LOSSES, "best_loss", "overload", "overload_observed", "early_entropy", "early_entropy_training"),
    *("early_over_ln_i", "early_late_positions", "early_random", "early_minus_late", "slope_ratio"),
    *("slope_beyond_decay", "scale", "diverged", "nonlinear_init"),
)
UNITS: dict[str, Callable[[float], float]] = {
    "percent": lambda x: 100 * math.expm1(x),  # a difference of losses as a change of perplexity
    "points": lambda x: 100 * x,
    "share": float,
    "log": float,
    "count": float,
}
_TEST = (
    "id",
    "group",
    "family",
    "statement",
    "statistic",
    "unit",
    "contrast",
    "expect",
    "published",
    "margin",
    "needs",
)


def read_ledger() -> dict[str, Any]:
    """``data/claims.yaml``, checked against the study's cells. Raises SettingsError."""
    ledger = check_keys(read_yaml(checkout_file("data", "claims.yaml")), ("groups", "tests", "correlations"), "claims")
    cells = Study.load().cells
    for test in ledger["tests"]:
        where = f"claims {test.get('id')}"
        check_keys(test, (*_TEST, "needs_for"), where)
        check_type(f"{where}: id", test.get("id"), str)
        choice(f"{where}: group", test["group"], ledger["groups"])
        choice(f"{where}: statistic", test["statistic"], STATISTICS)
        choice(f"{where}: unit", test["unit"], UNITS)
        choice(f"{where}: expect", test["expect"], ("below", "above", "different"))
        for name in test["contrast"]:
            choice(f"{where}: contrast", name, cells)
    return ledger


def early_layers(layers: int) -> range:
    """The first half without layer 0, whose entropy is near the ceiling in every model."""
    return range(1, max(2, layers // 2))


def statistics(shown: runs.Runs, study: Study) -> pd.DataFrame:
    """All statistics of all runs of the study there are: rows (cell, seed), columns ``STATISTICS`` and ``run``."""
    rows = shown.runs.set_index("run")
    tables = {name: dict(iter(getattr(shown, name).groupby("run"))) for name in runs.TABLES}
    found = [
        {"cell": cell.name, "seed": e.seed, "run": e.id, **_statistics(rows.loc[e.id], tables, e.id)}
        for cell in study.cells.values()
        for e in cell.experiments
        if e.id in rows.index
    ]
    frame = pd.DataFrame(found, columns=["cell", "seed", "run", "top", *STATISTICS]).set_index(["cell", "seed"])
    # Max of the paper's second convention: the largest head entropy over the main models of a seed.
    for seed in frame.index.get_level_values("seed").unique():
        main = [(name, seed) for name in MAIN if (name, seed) in frame.index]
        if len(main) == len(MAIN):
            top = frame.loc[main, "top"].max()
            for key in main:
                heads = _last(tables["heads"][frame.loc[key, "run"]])
                frame.loc[key, "overload_observed"] = (heads["entropy"] >= 0.75 * top).mean()
    return frame.drop(columns="top")


def _statistics(row: pd.Series, tables: Mapping[str, Mapping[str, pd.DataFrame]], run: str) -> dict[str, Any]:
    """Statistics of one run; what does not apply to it is missing."""
    if row["status"] != "complete":
        return {"diverged": 1.0}
    layers, heads = tables["layers"][run], tables["heads"][run]
    metrics, positions = tables["metrics"][run], tables["positions"].get(run)
    ceiling = entropy_ceiling(int(row["data.context"]))
    values: dict[str, Any] = {name: row[column] for name, column in LOSSES.items()}
    values |= {"best_loss": row["best_eval_loss"], "diverged": 0.0}
    early = early_layers(int(row["model.num_hidden_layers"]))
    last = _last(heads)
    at_early = last[last["layer"].isin(early)]
    during = heads[heads["layer"].isin(early) & (heads["step"] > 0)]
    first_part = last["layer"] < 2 * int(row["model.num_hidden_layers"]) / 3
    values |= {
        "top": last["entropy"].max(),
        "overload": (last["entropy"] >= 0.75 * ceiling).mean(),
        "early_entropy": at_early["entropy"].mean() / ceiling,
        "early_entropy_training": during.groupby("step")["entropy"].mean().mean() / ceiling,
        "early_over_ln_i": at_early["entropy_over_ln_i"].mean(),
        "early_random": at_early["entropy_random"].mean() / ceiling,
        "early_minus_late": (last.loc[first_part, "entropy"].mean() - last.loc[~first_part, "entropy"].mean())
        / ceiling,
        "nonlinear_init": layers.loc[layers["step"] == 0, "nonlinear_share"].mean(),
    }
    if positions is not None:
        late = positions[positions["layer"].isin(early) & (positions["position"] > 0.75 * row["data.context"])]
        values["early_late_positions"] = (late["entropy"] / np.log(late["position"])).mean()
    ends = _last(layers)
    if ends["slope"].notna().any():
        values["slope_ratio"] = math.log(ends["slope"].abs().mean() / abs(row["model.negative_slope"]))
        values["slope_beyond_decay"] = values["slope_ratio"] + decay_sum(row, metrics)
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


def contrast(frame: pd.DataFrame, weights: Mapping[str, float], statistic: str) -> tuple[pd.Series, int]:
    """The contrast of every seed that all cells have, and how many such seeds a run without the statistic cost."""
    seeds = [
        set(frame.loc[[cell]].index.get_level_values("seed")) if cell in frame.index else set() for cell in weights
    ]
    common = sorted(set.intersection(*seeds))
    values = pd.Series(
        {s: sum(w * float(frame.loc[(c, s), statistic]) for c, w in weights.items()) for s in common}, dtype=float
    )
    return values.dropna(), int(values.isna().sum())


def interval(values: Sequence[float] | pd.Series) -> dict[str, float]:
    """Mean, 95 % t interval, p of the t test against 0, effect size d, and from ten values on p of the signed ranks."""
    x = np.asarray(values, dtype=float)
    nan = float("nan")
    result = dict(estimate=x.mean() if len(x) else nan, low=nan, high=nan, p=nan, d=nan, p_rank=nan)
    if len(x) > 1 and x.std() > 0:
        test = stats.ttest_1samp(x, 0.0)
        ci = test.confidence_interval(1 - ALPHA)
        result |= dict(low=ci.low, high=ci.high, p=test.pvalue, d=x.mean() / x.std(ddof=1))
        if len(x) >= 10:
            result["p_rank"] = stats.wilcoxon(x).pvalue
    return {name: float(value) for name, value in result.items()}


def share_interval(frame: pd.DataFrame, weights: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Contrast of the shares of runs that stopped being finite, its interval, and the smallest number of runs.

    Clopper and Pearson's limits of each share; those of two shares combined as by Newcombe (1998, method 10).
    """
    estimate, below, above, sizes = 0.0, 0.0, 0.0, []
    for cell, weight in weights.items():
        values = frame.loc[[cell], "diverged"].dropna() if cell in frame.index else pd.Series(dtype=float)
        sizes.append(len(values))
        if not len(values):
            return {"estimate": float("nan"), "low": float("nan"), "high": float("nan")}, 0
        count = stats.binomtest(int(values.sum()), len(values))
        share, ci = count.statistic, count.proportion_ci(1 - ALPHA)
        down, up = (share - ci.low, ci.high - share) if weight > 0 else (ci.high - share, share - ci.low)
        estimate, below, above = estimate + weight * share, below + down**2, above + up**2
    return {"estimate": estimate, "low": estimate - math.sqrt(below), "high": estimate + math.sqrt(above)}, min(sizes)


def holm(p: Sequence[float]) -> np.ndarray:
    """P values corrected by Holm's step-down method (1979); missing ones do not count."""
    values = np.asarray(p, dtype=float)
    result = np.full(len(values), np.nan)
    order = [i for i in np.argsort(values) if not np.isnan(values[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        result[i] = highest
    return result


def direction(test: Mapping[str, Any], estimate: float, low: float, high: float, p: float) -> str:
    """``yes``, ``no`` or ``undecided``, by the rules of data/claims.yaml; estimate and interval in the test's unit."""
    margin = test.get("margin")
    negligible = margin is not None and -margin <= low and high <= margin
    if test["expect"] == "different":
        return "no" if negligible else "yes" if p < ALPHA else "undecided"
    expected = estimate > 0 if test["expect"] == "above" else estimate < 0
    if p < ALPHA:
        return "yes" if expected else "no"
    return "no" if negligible else "undecided"


def size(published: float, low: float, high: float) -> str:
    """Whether the interval lies within half and twice the published value: ``yes``, ``no`` (outside), ``undecided``."""
    least, most = sorted((published / 2, 2 * published))
    return "yes" if least <= low and high <= most else "no" if high < least or low > most else "undecided"


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a test, from the :func:`statistics` of the runs: statement, published value, estimate with interval in
    its unit, n, verdicts, the runs' ids."""
    ledger, rows = read_ledger(), []
    for test in ledger["tests"]:
        row = {name: test.get(name) for name in ("id", "group", "statement", "unit", "published", "needs")}
        row["family"] = test.get("family", test["group"])
        cells = test["contrast"]
        if test["statistic"] == "diverged":
            found, n = share_interval(frame, cells)
            row |= {"n": n, "lost": 0, **found}
        else:
            values, lost = contrast(frame, cells, test["statistic"])
            found, unit = interval(values), UNITS[test["unit"]]
            row |= {"n": len(values), "lost": lost, **found}
            row |= {name: unit(found[name]) for name in ("estimate", "low", "high")}
        row["runs"] = [run for cell in cells if cell in frame.index for run in frame.loc[[cell], "run"]]
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    for _, members in table.groupby("family"):
        table.loc[members.index, "p_holm"] = holm(members["p"].tolist())
    words = {"yes": "reproduced", "no": "not reproduced"}
    for i, test in enumerate(ledger["tests"]):
        estimate, low, high, p = (table.loc[i, name] for name in ("estimate", "low", "high", "p_holm"))
        if test["statistic"] == "diverged":
            way = (
                "undecided"
                if np.isnan(estimate)
                else "yes"
                if estimate >= 0.5
                else "no"
                if estimate <= 0
                else "undecided"
            )
        else:
            way = direction(test, estimate, low, high, p)
        amount = "" if test.get("published") is None else size(test["published"], low, high)
        if test["group"] == "claims":
            way, amount = words.get(way, way), words.get(amount, amount)
            limited = {"not reproduced": "undecided at this scale", "undecided": "undecided at this scale"}
            if test.get("needs"):
                amount = limited.get(amount, amount)
                way = limited.get(way, way) if test.get("needs_for") == "direction" else way
        table.loc[i, ["direction", "size"]] = way, amount
    return table


def correlations(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spearman's correlations over cells (see data/claims.yaml), from the :func:`statistics` of the runs, and the
    cells' means they are taken over."""
    ledger, study = read_ledger(), Study.load()
    base = study.cells["SM+G"].experiments[0]
    rate, sizes = base.training.learning_rate, (base.model.num_hidden_layers, base.model.hidden_size)
    chosen = []
    for cell in study.cells.values():
        if not cell.experiments or cell.family != "gpt2" or cell.seeds[0] != base.seed:
            continue
        e = cell.experiments[0]
        same = (e.model.num_hidden_layers, e.model.hidden_size) == sizes and e.training.learning_rate == rate
        if e.model.norm == "none" and same:
            chosen.append(cell.name)
    means = frame[frame.index.get_level_values("cell").isin(chosen)].drop(columns="run").astype(float)
    means = means.groupby(level="cell", sort=False).mean().dropna(subset=["loss"])
    rows = []
    for test in ledger["correlations"]:
        x, y = means[test["x"]], means[test["y"]]
        found = spearman_interval(x, y) if len(means) > 3 else dict.fromkeys(("estimate", "low", "high"), float("nan"))
        decided = found["low"] > 0 or found["high"] < 0
        expected = (found["estimate"] > 0) == (test["expect"] == "above")
        answer = ("yes" if expected else "no") if decided else "undecided"
        rows.append({**test, **found, "n": len(means), "direction": answer})
    columns = ["id", "statement", "x", "y", "expect", "estimate", "low", "high", "n", "direction"]
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


def _recorded_verdicts() -> Path:
    return runs.recorded_dir(NAME) / "verdicts.csv"


def summary(table: pd.DataFrame, over_cells: pd.DataFrame) -> pd.DataFrame:
    """What is recorded of the verdicts: one row a test or correlation, numbers to four decimals."""
    parts = [table.assign(kind=table["group"]), over_cells.assign(kind="correlations", unit="rank", size="")]
    columns = ["kind", "id", "unit", "estimate", "low", "high", "n", "direction", "size"]
    whole = pd.concat([part[columns] for part in parts], ignore_index=True)
    return whole.round({"estimate": 4, "low": 4, "high": 4}).replace({-0.0: 0.0})


def record(found: pd.DataFrame) -> Path:
    """Write the verdicts of :func:`summary` beside the recorded runs."""
    runs.write_atomically(_recorded_verdicts(), found.to_csv(index=False))
    return _recorded_verdicts()


def outdated(found: pd.DataFrame) -> list[str]:
    """Which recorded verdicts do not follow from the runs. Raises SettingsError where none are recorded."""
    path = _recorded_verdicts()
    if not path.exists():
        raise SettingsError(f"{path}: no recorded verdicts; `python -m nfcore claims --record` writes them")
    before = pd.read_csv(path, keep_default_na=False, dtype=str).set_index(["kind", "id"])
    now = found.astype({"n": int}).astype(str).set_index(["kind", "id"])
    lines = [f"{k} {i}: not recorded" for k, i in now.index.difference(before.index)]
    lines += [f"{k} {i}: recorded, but not in data/claims.yaml" for k, i in before.index.difference(now.index)]
    for key in before.index.intersection(now.index):
        for name in ("direction", "size", "n"):
            old, new = str(before.loc[key, name]), str(now.loc[key, name])
            if old != new:
                lines.append(f"{key[0]} {key[1]}: {name} is recorded as {old!r}, the runs give {new!r}")
    return lines
