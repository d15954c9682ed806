"""Verdicts: the statistics one by one against hand and formula, the rules, the ledgers, and the recorded verdicts."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from nfbook import claims
from nfbook.claims import contrast, divergence, early_layers, holm, interval, late_layers, spearman_interval, verdict
from nfbook.study import SPARE, STUDIES, Study
from nfcore import runs
from nfcore.settings import SettingsError
from nfcore.shares import entropy_ceiling


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load("transient")


@pytest.fixture(scope="module")
def shown(study: Study) -> runs.Runs:
    return study.runs()


@pytest.fixture(scope="module")
def frame(judged: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    return judged("transient")


@pytest.fixture(scope="module")
def table(frame: pd.DataFrame) -> pd.DataFrame:
    return claims.verdicts(frame, "transient").set_index(["group", "id"])


def cells(steps: int = 600, **values: dict[int, float]) -> pd.DataFrame:
    """A frame of one statistic x: cell -> seed -> value; a negative one is the step at which a run diverged."""
    rows = [
        (c, s, v if v >= 0 else math.nan, "trained" if v >= 0 else "diverged", steps if v >= 0 else -v)
        for c, by_seed in values.items()
        for s, v in by_seed.items()
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "x", "outcome", "steps"]).set_index(["cell", "seed"])


def test_interval_by_the_formula() -> None:
    x = [0.3, -0.1, 0.4, 0.2, 0.6]
    found = interval(x)
    mean, sd = 0.28, math.sqrt(sum((v - 0.28) ** 2 for v in x) / 4)
    half = 2.7764451051977987 * sd / math.sqrt(5)  # t at 0.975 with four degrees of freedom
    inner = 2.13184678133629 * sd / math.sqrt(5)  # and at 0.95
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert (found["inner_low"], found["inner_high"]) == pytest.approx((mean - inner, mean + inner))
    assert found["p"] == pytest.approx(2 * stats.t.sf(mean / (sd / math.sqrt(5)), 4))
    assert (found["p"] < 0.05) == (found["low"] > 0)


@pytest.mark.parametrize("x", [[], [0.5], [0.5, 0.5, 0.5]])
def test_no_spread_is_no_test(x: list[float]) -> None:
    found = interval(x)
    assert np.isnan([found[name] for name in ("low", "high", "inner_low", "inner_high", "p")]).all()
    answer = verdict("above", 1.0, {**found, "p_holm": math.nan, "sign": math.nan})
    assert answer == ("undecided" if x else "no runs")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    np.testing.assert_allclose(holm([np.nan, 0.02, np.nan, 0.03]), [np.nan, 0.08, np.nan, 0.09])
    assert holm([0.03, 0.001, 0.001]) == pytest.approx([0.03, 0.003, 0.003])
    assert len(holm([])) == 0


def test_contrast_pairs_by_seed_and_counts_what_is_lost() -> None:
    found = cells(a={1: 1.0, 2: 2.0, 3: -90, 4: 5.0}, b={1: 0.5, 2: 4.0, 3: 1.0, 5: 9.0})
    values, lost = contrast(found, {"a": 1, "b": -1}, "x")
    assert values.to_dict() == {1: 0.5, 2: -2.0}, "seeds that both have"
    assert lost == 1
    values, lost = contrast(found, {"a": 1, "missing": -1}, "x")
    assert (len(values), lost) == (0, 0)


def test_difference_of_shares_that_diverged() -> None:
    a, b = {1: -80.0, 2: -90.0, 3: -100.0}, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    found, n = divergence(cells(a=a, b=b), "a", "b")
    down, up = 1 - 0.025 ** (1 / 3), 1 - 0.025 ** (1 / 4)  # Clopper and Pearson's limits where all or none diverged
    assert n == 3
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((1, 1 - math.hypot(down, up), 1))
    assert found["low"] < found["inner_low"]
    other, _ = divergence(cells(a=a, b=b), "b", "a")
    assert (other["low"], other["high"], other["p"]) == pytest.approx((-found["high"], -found["low"], found["p"]))
    assert (found["sign"] > 0, other["sign"] > 0) == (True, False)
    assert divergence(cells(a=a), "a", "missing")[1] == 0
    none, _ = divergence(cells(a=b, b=b), "a", "b")
    assert none["estimate"] == 0
    assert math.isnan(none["p"]), "no divergence is no test"


def test_times_to_divergence_tell_apart_what_counts_do_not() -> None:
    """All runs of both diverge, those of a first: no difference of shares, and the log-rank test sees it."""
    early, late = {s: -100.0 - s for s in range(5)}, {s: -400.0 - s for s in range(5)}
    found, _ = divergence(cells(a=early, b=late), "a", "b")
    assert found["estimate"] == 0
    assert found["p"] < 0.01
    assert found["sign"] > 0
    # by hand: a's five deaths come while 10, 9, .. 6 are at risk
    expected = sum((5 - k) / (10 - k) for k in range(5))
    variance = sum((5 - k) / (10 - k) * 5 / (10 - k) for k in range(5))
    assert found["sign"] == pytest.approx((5 - expected) / math.sqrt(variance))


def test_spearman_interval() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=40)
    y = x + draw.normal(size=40)
    found = spearman_interval(x, y)
    assert found["estimate"] == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert -1 < found["low"] < found["estimate"] < found["high"] < 1
    exact = spearman_interval(x, np.exp(x))
    assert exact["estimate"] == pytest.approx(1)
    assert exact["low"] > 0.999
    rho = 6 / math.pi * math.asin(0.5 / 2)  # Spearman's of a normal pair with correlation 1/2
    inside = []
    for _ in range(600):
        pair = draw.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=40)
        limits = spearman_interval(pair[:, 0], pair[:, 1])
        inside.append(limits["low"] <= rho <= limits["high"])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    ("expect", "least", "interval", "p", "answer"),
    [
        ("below", 1, (-10, -9, -7, -6), 0.001, "reproduced"),
        ("below", 1, (6, 7, 9, 10), 0.001, "contradicted"),
        ("above", 1, (6, 7, 9, 10), 0.001, "reproduced"),
        ("above", 1, (6, 7, 9, 10), 0.051, "undecided"),  # corrected p decides, not the interval
        ("above", 1, (-1, 0, 16, 17), 0.08, "undecided"),
        ("above", 1, (-1.1, -0.9, 0.9, 1.1), 0.9, "negligible"),  # the 90 % interval decides on equivalence
        ("above", 1, (-1.2, -1.1, 0.9, 1.0), 0.9, "undecided"),
        ("above", 1, (0.2, 0.3, 0.7, 0.8), 0.001, "negligible"),  # significant, and of no interest
        ("above", None, (0.2, 0.3, 0.7, 0.8), 0.001, "reproduced"),
        ("different", 2, (3, 4, 6, 7), 0.001, "reproduced"),
        ("different", 2, (-7, -6, -4, -3), 0.001, "reproduced"),
        ("different", 2, (0.5, 0.6, 1.4, 1.5), 0.001, "negligible"),
        ("zero", 0.05, (-0.04, -0.03, 0.03, 0.04), 0.9, "reproduced"),
        ("zero", 0.05, (-0.04, -0.02, 0.06, 0.08), 0.9, "undecided"),
        ("zero", 0.05, (0.06, 0.07, 0.09, 0.1), 0.001, "contradicted"),
        ("zero", 0.05, (-0.1, -0.09, -0.07, -0.06), 0.001, "contradicted"),
        ("zero", 0.05, (0.04, 0.051, 0.09, 0.1), 0.001, "undecided"),
    ],
)
def test_verdict(expect: str, least: float | None, interval: tuple[float, ...], p: float, answer: str) -> None:
    low, inner_low, inner_high, high = interval
    found = dict(estimate=(low + high) / 2, low=low, high=high, inner_low=inner_low, inner_high=inner_high)
    assert verdict(expect, least, {**found, "p_holm": p, "sign": math.nan}) == answer


def test_the_rule_is_the_same_for_and_against() -> None:
    """A mirrored effect gets the mirrored verdict, whatever the claim says."""
    for low in np.linspace(-3, 3, 13):
        found = dict(estimate=low + 1, low=low, high=low + 2, inner_low=low + 0.2, inner_high=low + 1.8)
        mirrored = {"estimate": -found["estimate"], "low": -found["high"], "high": -found["low"]}
        mirrored |= {"inner_low": -found["inner_high"], "inner_high": -found["inner_low"]}
        rest = {"p_holm": 0.01, "sign": math.nan}
        assert verdict("above", 0.9, found | rest) == verdict("below", 0.9, mirrored | rest)


@pytest.mark.parametrize("name", STUDIES)
def test_ledgers_are_whole(name: str) -> None:
    ledger = claims.read_ledger(name)
    ids = {(test.get("group", "claims"), test["id"]) for test in ledger["tests"]}
    assert len(ids) == len(ledger["tests"])
    if name == "study":
        assert {test["family"] for test in ledger["tests"]} == set(ledger["families"])
        assert all(test["least"] > 0 for test in ledger["tests"]), "every claim can fail by equivalence"
        assert all(test["source"] for test in ledger["tests"])
    else:
        assert all(test["statement"].endswith("?") for test in ledger["tests"])


def test_published_values_of_the_ledger(published: dict[str, Any]) -> None:
    ppl, shares = published["perplexity"], published["head_share_percent"]["main.png"]
    tables = {"": {**ppl["GPT2_T128"], **ppl["GPT2_T128_softmax_only"]}}
    tables |= {" Pythia": ppl["Pythia70M_T128"], " Pythia T=256": ppl["Pythia70M_T256"]}
    stated = {test["id"]: test["published"] for test in claims.read_ledger()["tests"] if "published" in test}
    pairs = {"T1": ("SM+LN+R", "SM+LN+G"), "T2": ("SM+G", "SM+LN+G"), "T3": ("SM+R", "SM+LN+G"), "T4": ("SM+R", "SM+G")}
    for size, table in tables.items():
        for name, (first, second) in pairs.items():
            if (value := stated.pop(name + size, None)) is not None:
                assert value == pytest.approx(100 * (table[first][0] / table[second][0] - 1), abs=0.006), name + size
    assert stated.pop("L1") == pytest.approx(100 * (tables[""]["SM+LN"][0] / tables[""]["SM+LN+G"][0] - 1), abs=0.006)
    maps = {name: np.array(values) for name, values in published["head_entropy"]["maps"].items()}
    ends = {c: m[early_layers(12)].mean() - m[late_layers(12)].mean() for c, m in maps.items()}
    excess = (ends["SM+G"] - ends["SM+R"]) / entropy_ceiling(128)
    assert stated.pop("E3") == pytest.approx(excess, abs=0.005)
    assert stated == {f"E{n}": shares["SM+G"][3] - shares[c][3] for n, c in ((1, "SM+R"), (2, "SM+LN+G"))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistic": "los"}, "study T1: statistic: 'los' is not one of loss"),
        ({"unit": "nats"}, "study T1: unit: 'nats' is not one of percent"),
        ({"expect": "less"}, "study T1: expect: 'less' is not one of below, above, different, zero"),
        ({"contrast": {"SM+X": 1}}, r"study T1: contrast: 'SM\+X' is not one of"),
        ({"margins": 1}, "study T1: unknown setting 'margins'"),
    ],
)
def test_wrong_ledger(change: dict[str, Any], message: str, params_root: Any) -> None:
    test = dict(id="T1", family="table", statement="R leads", statistic="loss", unit="percent", expect="below")
    test |= {"contrast": {"SM+R": 1, "SM+G": -1}} | change
    (params_root / "data").mkdir(exist_ok=True)
    (params_root / "data" / "claims.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    with pytest.raises(SettingsError, match=message):
        claims.read_ledger()


@pytest.mark.parametrize("name", STUDIES)
def test_recorded_verdicts_follow_from_the_recorded_runs(name: str, judged: Callable[[str], pd.DataFrame]) -> None:
    assert claims.outdated(claims.summary(judged(name), name), name) == []


def test_changed_runs_are_noticed(shown: runs.Runs, study: Study) -> None:
    """As if GELU at s = 4 had been as bad as the linear network in every run."""
    worse = shown.runs.copy()
    ids = [e.id for e in study.cells["SM+G s=4"].experiments]
    worse.loc[worse["run"].isin(ids), "eval_loss"] += [0.3, 0.31, 0.32]
    changed = claims.statistics(runs.Runs(worse, *(getattr(shown, name) for name in runs.TABLES)), study)
    lines = "\n".join(claims.outdated(claims.summary(changed, "transient"), "transient"))
    assert "mechanism s=4: verdict is recorded as 'reproduced', the runs give" in lines
    assert "s=16" not in lines


def test_runs_that_are_not_trained_have_no_statistic(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    """The five finite runs of the transient that the bounds of data/claims.yaml leave out, and those that ended."""
    outcome = frame.drop_duplicates("run").set_index("run")["outcome"]
    ended = shown.runs.set_index("run")["status"] != "complete"
    assert set(outcome[~outcome.isin(("trained", "untrained"))].index) == set(ended[ended].index)
    assert frame.index.is_unique
    assert set(frame["run"]) == set(shown.runs["run"])
    assert (outcome == "untrained").sum() == 5
    assert (outcome == "trained").sum() == 231
    assert frame.loc[frame["outcome"] != "trained", "loss"].isna().all()
    assert frame.loc[frame["outcome"] == "trained", "loss"].notna().all()
    for cell, seed in (("SM+R FFN x4, /4", 1), ("SM+G embeddings x16", 3)):
        assert frame.loc[(cell, seed), "outcome"] == "untrained"


def test_a_run_that_skipped_a_value_that_is_not_finite_is_not_trained(shown: runs.Runs, study: Study) -> None:
    of = shown.select([study.cells["SM+G"].experiments[0].id])
    assert claims.statistics(of, study)["outcome"].tolist() == ["trained"]
    skipped = replace(of, runs=of.runs.assign(**{"diverged.step": 3.0}))
    assert claims.statistics(skipped, study)["outcome"].tolist() == ["untrained"]


@pytest.mark.parametrize("shares", [(11 / 24, 11 / 24), (20 / 24 - 9 / 24, 18 / 24 - 7 / 24), (0.0, 0.0, 0.0), (3,)])
def test_equal_values_have_no_interval(shares: tuple[float, ...]) -> None:
    found = interval(shares)
    assert found["estimate"] == pytest.approx(shares[0])
    assert all(np.isnan(found[name]) for name in ("low", "high", "inner_low", "inner_high", "p"))


def test_all_seeds_of_equal_settings_are_pooled_and_stand_for_none_of_the_planned(frame: pd.DataFrame) -> None:
    assert set(frame.loc["SM+G"].index) == set(range(1, 9)), "those of the stages core and follow-up"
    assert set(frame.loc["SM+G new seeds"].index) == {4, 5, 6, 7, 8}
    assert not any(seed >= SPARE for seed in frame.loc["SM+R"].index)
    made = cells(**{"SM+R short": {1: 0.6, 2: 0.6, 11: 0.6}, "SM+G short": {1: 0.7, 2: 0.7, 11: 0.8}})
    made = made.rename(columns={"x": "selectivity"}).reindex(columns=["run", "outcome", "steps", *claims.STATISTICS])
    test = claims.verdicts(made).set_index("id").loc["U2"]
    assert (test["n"], test["planned"]) == (3, 7), "of seeds 11 to 15, 12 to 15 are still to come"


def test_statistics_of_a_run_by_hand(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    run = study.cells["SM+G"].experiments[0]
    row = frame.loc[("SM+G", run.seed)]
    heads = shown.heads[(shown.heads["run"] == run.id) & (shown.heads["step"] == 600)]
    grid = heads.pivot(index="layer", columns="head", values="entropy").to_numpy()
    assert grid.shape == (6, 4)
    ceiling = sum(math.log(i) for i in range(1, 129)) / 128
    assert row["overload"] == pytest.approx((grid >= 0.75 * ceiling).mean())
    assert row["early_entropy"] == pytest.approx(grid[1:3].mean() / ceiling)
    assert row["early_minus_late"] == pytest.approx((grid[1:3].mean() - grid[3:].mean()) / ceiling)
    losses = shown.metrics[(shown.metrics["run"] == run.id) & (shown.metrics["name"] == "eval_loss")]
    by_step = losses.set_index("step")["value"]
    assert row["loss"] == pytest.approx(by_step[600])
    assert row["best_loss"] == pytest.approx(by_step.min())
    initial = shown.layers[(shown.layers["run"] == run.id) & (shown.layers["step"] == 0)]
    assert row["nonlinear_init"] == pytest.approx(initial["nonlinear_share"].mean())
    assert (row["outcome"], row["steps"]) == ("trained", 600)
    positions = shown.positions[(shown.positions["run"] == run.id) & shown.positions["layer"].isin((1, 2))]
    late = positions[positions["position"] > 96]
    assert row["early_late_positions"] == pytest.approx(
        np.mean([e / math.log(i) for e, i in zip(late["entropy"], late["position"], strict=True)])
    )


def test_early_and_late_layers() -> None:
    found = {n: [*early_layers(n)] for n in (1, 2, 4, 6, 8, 12)}
    assert found == {1: [0], 2: [1], 4: [1], 6: [1, 2], 8: [1, 2, 3], 12: [1, 2, 3, 4, 5]}
    assert list(late_layers(12)) == [6, 7, 8, 9, 10, 11]


def test_decay_alone_in_the_slope_cells(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    """The cells with the paper's total decay have its sum of rate x decay, 1.61, those without any none."""
    rows = shown.runs.set_index("run")
    for name, total in (("slope 0.01, paper's total decay", 1.61), ("slope 0.25, no decay", 0.0)):
        e = study.cells[name].experiments[0]
        metrics = shown.metrics[shown.metrics["run"] == e.id]
        assert claims.decay_sum(rows.loc[e.id], metrics) == pytest.approx(total, rel=0.01)
        row = frame.loc[(name, e.seed)]
        assert row["slope_beyond_decay"] - row["slope_ratio"] == pytest.approx(total, rel=0.01)


def test_a_paired_perplexity_change_by_hand(frame: pd.DataFrame, table: pd.DataFrame) -> None:
    loss = frame["loss"].astype(float)
    differences = [loss[("SM+G s=64", seed)] - loss[("SM+G", seed)] for seed in range(1, 9)]
    row = table.loc[("mechanism", "s=64")]
    assert row["n"] == 8
    assert row["estimate"] == pytest.approx(100 * (math.exp(np.mean(differences)) - 1))
    assert row["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert row["p_holm"] >= row["p"]
    assert set(row["runs"]) == set(frame.loc[["SM+G s=64", "SM+G"], "run"])
    for _, members in table.groupby("family"):
        np.testing.assert_allclose(members["p_holm"], holm(members["p"].tolist()))


def test_cells_of_the_correlations(frame: pd.DataFrame, study: Study) -> None:
    found, means = claims.correlations(frame)
    assert "SM+R own best" not in means.index, "it has SM+R's settings, and counts once"
    assert {"SM+G", "SM+R", "SM", "SM+G s=64"} <= set(means.index)
    for name in means.index:
        e = study.cells[name].experiments[0]
        assert (e.model.family, e.model.norm, e.model.num_hidden_layers, e.model.hidden_size) == ("gpt2", "none", 6, 64)
        assert (e.training.learning_rate, e.seed) == (0.004, 1)
    assert (found["n"] == len(means)).all()
