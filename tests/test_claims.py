"""Verdicts: the statistics one by one against hand and formula, the rules, the ledger, and the recorded verdicts."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from nfcore import claims, runs
from nfcore.claims import contrast, direction, holm, interval, share_interval, size, spearman_interval
from nfcore.settings import SettingsError
from nfcore.shares import entropy_ceiling
from nfcore.study import Study


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load()


@pytest.fixture(scope="module")
def shown(study: Study) -> runs.Runs:
    return study.runs()


@pytest.fixture(scope="module")
def frame(shown: runs.Runs, study: Study) -> pd.DataFrame:
    return claims.statistics(shown, study)


@pytest.fixture(scope="module")
def table(frame: pd.DataFrame) -> pd.DataFrame:
    return claims.verdicts(frame).set_index(["group", "id"])


def cells(**values: dict[int, float]) -> pd.DataFrame:
    """A frame of one statistic x: cell -> seed -> value; NaN stands for a run that stopped being finite."""
    rows = [(c, s, v, float(np.isnan(v))) for c, by_seed in values.items() for s, v in by_seed.items()]
    return pd.DataFrame(rows, columns=["cell", "seed", "x", "diverged"]).set_index(["cell", "seed"])


# --- intervals and tests ----------------------------------------------------------------------------------------


def test_interval_by_the_formula() -> None:
    x = [0.3, -0.1, 0.4, 0.2, 0.6]
    found = interval(x)
    mean, sd = 0.28, math.sqrt(sum((v - 0.28) ** 2 for v in x) / 4)
    half = 2.7764451051977987 * sd / math.sqrt(5)  # t at 0.975 with four degrees of freedom
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert found["d"] == pytest.approx(mean / sd)
    assert found["p"] == pytest.approx(2 * stats.t.sf(mean / (sd / math.sqrt(5)), 4))
    assert (found["p"] < 0.05) == (found["low"] > 0)
    assert np.isnan(found["p_rank"])


def test_rank_test_from_ten_seeds_on() -> None:
    assert np.isnan(interval(np.linspace(0.1, 1, 9))["p_rank"])
    assert interval(np.linspace(0.1, 1, 10))["p_rank"] == pytest.approx(2 / 2**10)


@pytest.mark.parametrize("x", [[], [0.5], [0.5, 0.5, 0.5]])
def test_no_spread_is_no_test(x: list[float]) -> None:
    found = interval(x)
    assert np.isnan([found["low"], found["high"], found["p"], found["d"]]).all()
    assert direction({"expect": "above"}, found["estimate"], found["low"], found["high"], found["p"]) == "undecided"


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = [interval(draw.normal(1.0, 2.0, 5)) for _ in range(2000)]
    covered = np.mean([f["low"] <= 1 <= f["high"] for f in found])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    np.testing.assert_allclose(holm([np.nan, 0.02, np.nan, 0.03]), [np.nan, 0.04, np.nan, 0.04])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
def test_holm_is_between_no_correction_and_bonferronis(p: list[float], shuffle: Any) -> None:
    found = holm(p)
    assert (found >= p).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
    order = [*range(len(p))]
    shuffle.shuffle(order)
    np.testing.assert_allclose(holm([p[i] for i in order]), found[order])


def test_contrast_pairs_by_seed_and_counts_what_is_lost() -> None:
    found = cells(a={1: 1.0, 2: 2.0, 3: float("nan"), 4: 5.0}, b={1: 0.5, 2: 4.0, 3: 1.0, 5: 9.0})
    values, lost = contrast(found, {"a": 1, "b": -1}, "x")
    assert values.to_dict() == {1: 0.5, 2: -2.0}, "seeds that both have"
    assert lost == 1
    assert contrast(found, {"a": 1, "b": -1}, "diverged")[0].to_dict() == {1: 0, 2: 0, 3: 1}
    values, lost = contrast(found, {"a": 1, "missing": -1}, "x")
    assert (len(values), lost) == (0, 0)


def test_share_interval_of_one_cell() -> None:
    nan = float("nan")
    none, n = share_interval(cells(a={1: 1.0, 2: 1.0, 3: 1.0}), {"a": 1})
    assert (n, none["estimate"], none["low"]) == (3, 0, 0)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 3))  # Clopper and Pearson's limit without any event
    every, _ = share_interval(cells(a={1: nan, 2: nan, 3: nan}), {"a": 1})
    assert (every["estimate"], every["low"], every["high"]) == pytest.approx((1, 0.025 ** (1 / 3), 1))
    two, _ = share_interval(cells(a={1: nan, 2: nan, 3: 1.0}), {"a": 1})
    assert two["estimate"] == pytest.approx(2 / 3)
    assert two["low"] < 2 / 3 < two["high"]


def test_share_interval_of_a_difference() -> None:
    nan = float("nan")
    a, b = {1: nan, 2: nan, 3: nan}, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    found, n = share_interval(cells(a=a, b=b), {"a": 1, "b": -1})
    other, _ = share_interval(cells(a=a, b=b), {"a": -1, "b": 1})
    down, up = 1 - 0.025 ** (1 / 3), 1 - 0.025 ** (1 / 4)
    assert n == 3
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((1, 1 - math.hypot(down, up), 1))
    assert (other["low"], other["high"]) == pytest.approx((-found["high"], -found["low"]))
    assert share_interval(cells(a=a), {"a": 1, "missing": -1})[1] == 0


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


# --- rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "margin", "estimate", "low", "high", "p", "answer"),
    [
        ("below", None, -8, -10, -6, 0.001, "yes"),
        ("below", None, 8, 6, 10, 0.001, "no"),
        ("above", None, 8, 6, 10, 0.001, "yes"),
        ("above", None, 8, 6, 10, 0.051, "undecided"),  # corrected p decides, not the interval
        ("above", None, 8, -1, 17, 0.08, "undecided"),
        ("above", 1, 0.1, -0.9, 0.9, 0.5, "no"),  # nothing of interest is there
        ("above", 1, 0.1, -0.9, 1.1, 0.5, "undecided"),
        ("above", 1, 0.5, 0.2, 0.8, 0.001, "yes"),
        ("different", 2, 5, 3, 7, 0.001, "yes"),
        ("different", 2, -5, -7, -3, 0.001, "yes"),
        ("different", 2, 1, 0.5, 1.5, 0.001, "no"),
        ("different", 2, 1, -1.5, 3.5, 0.3, "undecided"),
    ],
)
def test_direction(
    expect: str, margin: float | None, estimate: float, low: float, high: float, p: float, answer: str
) -> None:
    assert direction({"expect": expect, "margin": margin}, estimate, low, high, p) == answer


@pytest.mark.parametrize(
    ("published", "low", "high", "answer"),
    [
        (-8, -15, -5, "yes"),
        (-8, -17, -5, "undecided"),
        (-8, -3, 2, "no"),
        (-8, -30, -17, "no"),
        (0.36, 0.19, 0.7, "yes"),
        (0.36, 0.0, 0.17, "no"),
    ],
)
def test_size(published: float, low: float, high: float, answer: str) -> None:
    assert size(published, low, high) == answer


# --- the ledger -------------------------------------------------------------------------------------------------


def test_every_claim_and_confound_has_a_test() -> None:
    tests = claims.read_ledger()["tests"]
    ids = {(test["group"], test["id"]) for test in tests}
    assert len(ids) == len(tests)
    first_words = {group: {i.split()[0] for g, i in ids if g == group} for group in ("claims", "confounds")}
    assert first_words["claims"] == {f"C{n}" for n in range(1, 9)}
    assert first_words["confounds"] == {str(n) for n in range(1, 9)}
    assert all(test["statement"].endswith("?") for test in tests if test["group"] != "claims")


def test_published_values_of_the_ledger(published: dict[str, Any]) -> None:
    ppl, shares = published["perplexity"], published["head_share_percent"]["main.png"]
    maps = {name: np.array(values) for name, values in published["head_entropy"]["maps"].items()}

    def change(of: str, against: str, name: str) -> float:
        return 100 * (ppl[name][of][0] / ppl[name][against][0] - 1)

    gpt2 = {**ppl["GPT2_T128"], **ppl["GPT2_T128_softmax_only"]}
    ppl = {**ppl, "GPT2_T128": gpt2}
    expected = {
        "C1": change("SM+R", "SM+G", "GPT2_T128"),
        "C1 Pythia": change("SM+R", "SM+G", "Pythia70M_T128"),
        "C1 Pythia T=256": change("SM+R", "SM+G", "Pythia70M_T256"),
        "C2": change("SM+LN+R", "SM+LN+G", "GPT2_T128"),
        "C2 Pythia": change("SM+LN+R", "SM+LN+G", "Pythia70M_T128"),
        "C3": shares["SM+G"][3] - shares["SM+R"][3],
        "C3 LN": shares["SM+G"][3] - shares["SM+LN+G"][3],
        "C3 largest": shares["SM+G"][3] - shares["SM+R"][3],
        "C4": (maps["SM+G"][:8].mean() - maps["SM+G"][8:].mean()) / entropy_ceiling(128),
        "C8": change("SM+LN", "SM+LN+G", "GPT2_T128"),
        "C8 Pythia": change("SM+LN", "SM+LN+G", "Pythia70M_T128"),
    }
    stated = {test["id"]: test["published"] for test in claims.read_ledger()["tests"] if "published" in test}
    assert stated.keys() == expected.keys()
    for name, value in expected.items():
        assert stated[name] == pytest.approx(value, abs=0.006), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistic": "los"}, "claims C1: statistic: 'los' is not one of loss"),
        ({"unit": "nats"}, "claims C1: unit: 'nats' is not one of percent"),
        ({"expect": "less"}, "claims C1: expect: 'less' is not one of below, above, different"),
        ({"group": "claim"}, "claims C1: group: 'claim' is not one of claims"),
        ({"contrast": {"SM+X": 1}}, r"claims C1: contrast: 'SM\+X' is not one of SM\+LN\+G"),
        ({"id": 1}, "claims 1: id: 1 must be of type str"),
        ({"margins": 1}, "claims C1: unknown setting 'margins'"),
    ],
)
def test_wrong_ledger(change: dict[str, Any], message: str, params_root: Any) -> None:
    ledger = {
        "groups": {"claims": "Claims"},
        "tests": [
            dict(id="C1", group="claims", statement="R leads", statistic="loss", unit="percent", expect="below")
            | {"contrast": {"SM+R": 1, "SM+G": -1}}
            | change
        ],
        "correlations": [],
    }
    (params_root / "data").mkdir(exist_ok=True)
    (params_root / "data" / "claims.yaml").write_text(yaml.safe_dump(ledger))
    with pytest.raises(SettingsError, match=message):
        claims.read_ledger()


# --- the recorded runs ------------------------------------------------------------------------------------------


def test_recorded_verdicts_follow_from_the_recorded_runs(frame: pd.DataFrame) -> None:
    assert claims.outdated(claims.summary(claims.verdicts(frame), claims.correlations(frame)[0])) == []


def test_changed_runs_are_noticed(shown: runs.Runs, study: Study) -> None:
    """As if ReLU had been as bad as GELU in every run."""
    worse = shown.runs.copy()
    ids = [e.id for e in study.cells["SM+R"].experiments]
    worse.loc[worse["run"].isin(ids), "eval_loss"] = 3.92
    changed = claims.statistics(runs.Runs(worse, *(getattr(shown, name) for name in runs.TABLES)), study)
    found = claims.summary(claims.verdicts(changed), claims.correlations(changed)[0])
    lines = "\n".join(claims.outdated(found))
    assert "claims C1: direction is recorded as 'reproduced', the runs give" in lines
    assert "C2" not in lines


def test_statistics_of_a_run_by_hand(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    run = study.cells["SM+G"].experiments[0]
    row = frame.loc[("SM+G", run.seed)]
    heads = shown.heads[(shown.heads["run"] == run.id) & (shown.heads["step"] == 600)]
    grid = heads.pivot(index="layer", columns="head", values="entropy").to_numpy()
    assert grid.shape == (6, 4)
    ceiling = sum(math.log(i) for i in range(1, 129)) / 128
    assert row["overload"] == pytest.approx((grid >= 0.75 * ceiling).mean())
    assert row["early_entropy"] == pytest.approx(grid[1:3].mean() / ceiling)
    assert row["early_minus_late"] == pytest.approx((grid[:4].mean() - grid[4:].mean()) / ceiling)
    losses = shown.metrics[(shown.metrics["run"] == run.id) & (shown.metrics["name"] == "eval_loss")]
    by_step = losses.set_index("step")["value"]
    assert row["loss"] == pytest.approx(by_step[600])
    assert row["best_loss"] == pytest.approx(by_step.min())
    initial = shown.layers[(shown.layers["run"] == run.id) & (shown.layers["step"] == 0)]
    assert row["nonlinear_init"] == pytest.approx(initial["nonlinear_share"].mean())
    assert row["diverged"] == 0
    positions = shown.positions[(shown.positions["run"] == run.id) & shown.positions["layer"].isin((1, 2))]
    late = positions[positions["position"] > 96]
    assert row["early_late_positions"] == pytest.approx(
        np.mean([e / math.log(i) for e, i in zip(late["entropy"], late["position"], strict=True)])
    )


def test_early_layers() -> None:
    assert [list(claims.early_layers(n)) for n in (1, 2, 4, 6, 8, 12)] == [
        *([1], [1], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5])
    ]


def test_decay_alone_in_the_slope_cells(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    """The cells with the paper's total decay have its sum of rate x decay, 1.61, those without any none."""
    rows = shown.runs.set_index("run")
    for name, total in (("slope 0.01, paper's total decay", 1.61), ("slope 0.25, no decay", 0.0)):
        e = study.cells[name].experiments[0]
        metrics = shown.metrics[shown.metrics["run"] == e.id]
        assert claims.decay_sum(rows.loc[e.id], metrics) == pytest.approx(total, rel=0.01)
        row = frame.loc[(name, e.seed)]
        assert row["slope_beyond_decay"] - row["slope_ratio"] == pytest.approx(total, rel=0.01)


def test_statistics_have_every_run_once(shown: runs.Runs, study: Study, frame: pd.DataFrame) -> None:
    assert frame.index.is_unique
    assert set(frame["run"]) == set(shown.runs["run"])
    stopped = set(shown.runs.loc[shown.runs["status"] == "diverged", "run"])
    assert set(frame.loc[frame["diverged"] == 1, "run"]) == stopped
    assert frame.loc[frame["diverged"] == 1, "loss"].isna().all()


def test_a_paired_perplexity_change_by_hand(frame: pd.DataFrame, table: pd.DataFrame) -> None:
    loss = frame["loss"].astype(float)
    differences = [loss[("SM+R", seed)] - loss[("SM+G", seed)] for seed in range(1, 6)]
    row = table.loc[("claims", "C1")]
    assert row["n"] == 5
    assert row["estimate"] == pytest.approx(100 * (math.exp(np.mean(differences)) - 1))
    assert row["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert row["p_holm"] >= row["p"]
    assert set(row["runs"]) == set(frame.loc[["SM+R", "SM+G"], "run"])


def test_holm_counts_a_family(table: pd.DataFrame) -> None:
    for _, members in table.groupby("family"):
        np.testing.assert_allclose(members["p_holm"], holm(members["p"].tolist()))
    assert table.loc["claims", "family"].nunique() == 1


def test_what_this_scale_cannot_decide(table: pd.DataFrame) -> None:
    """`needs` limits the size, and the direction only where the ledger says so."""
    ledger = {(t["group"], t["id"]): t for t in claims.read_ledger()["tests"]}
    for key, row in table.iterrows():
        limited = "undecided at this scale"
        if not ledger[key].get("needs"):
            assert limited not in (row["direction"], row["size"])
        elif row["size"]:
            assert row["size"] in ("reproduced", limited)
        if key[0] != "claims":
            assert row["direction"] in ("yes", "no", "undecided")


def test_cells_of_the_correlations(frame: pd.DataFrame, study: Study) -> None:
    found, means = claims.correlations(frame)
    assert {"SM+G", "SM+R", "SM", "SM+G s=64"} <= set(means.index)
    for name in means.index:
        e = study.cells[name].experiments[0]
        assert (e.model.family, e.model.norm, e.model.num_hidden_layers, e.model.hidden_size) == ("gpt2", "none", 6, 64)
        assert (e.training.learning_rate, e.seed) == (0.004, 1)
    assert (found["n"] == len(means)).all()
