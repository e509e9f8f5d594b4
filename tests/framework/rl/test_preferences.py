"""Weights from preferences: the truth within its interval, scikit-learn as an oracle, data that do not decide."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression

from framework.rl.preferences.__main__ import main
from framework.rl.preferences.model import Pair, fit, likelihood
from framework.rl.preferences.tables import pairs_of_ranking, read_components, read_preferences

NAMES = ("goal", "speed", "collision")
TRUTH = np.array([1.5, 0.4, 0.8])


def trajectories(generator, count, scales=(1.0, 3.0, 0.5)):
    return {str(index): generator.normal(size=3) * scales for index in range(count)}


def preferences(generator, sums, count, truth=TRUTH):
    """Pairs as Bradley and Terry would have them."""
    pairs = []
    for _ in range(count):
        first, second = generator.choice(list(sums), 2, replace=False)
        sure = 1 / (1 + math.exp(-(sums[first] - sums[second]) @ truth))
        pairs.append(Pair(first, second) if generator.random() < sure else Pair(second, first))
    return pairs


def differences(sums, pairs):
    return np.stack([sums[pair.better] - sums[pair.worse] for pair in pairs])


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    sums = trajectories(generator, 100)
    return sums, preferences(generator, sums, 400)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        sums = trajectories(generator, 50)
        found = fit(sums, preferences(generator, sums, 200), NAMES, confidence=0.9)
        held.append((found.intervals[:, 0] <= TRUTH) & (found.intervals[:, 1] >= TRUTH))
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)  # 150 intervals: 0.024 standard errors apart


def test_against_scikit_learn(data):
    """Logistic regression on differences, each pair once in either direction at half the weight; L2 is 1 / C."""
    sums, pairs = data
    x = differences(sums, pairs)
    spread = np.sqrt((x**2).mean(axis=0))
    for l2 in (0.0, 0.7, 50.0):
        oracle = LogisticRegression(C=1 / l2 if l2 else np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
        both = np.concatenate([x, -x]) / spread
        oracle.fit(both, np.repeat([1, 0], len(x)), sample_weight=np.full(2 * len(x), 0.5))
        found = fit(sums, pairs, NAMES, l2=l2)
        assert found.weights == pytest.approx(oracle.coef_[0] / spread, rel=1e-5)
        assert found.agreement == np.mean(x @ found.weights > 0)


@pytest.mark.parametrize("l2", [0.0, 30.0])
def test_standard_errors_are_the_curvature(data, l2):
    sums, pairs = data
    x, ones = differences(sums, pairs), np.ones(len(pairs))
    spread = np.sqrt((x**2).mean(axis=0))
    found = fit(sums, pairs, NAMES, l2=l2)
    value, _ = likelihood(found.weights, x, ones)
    assert value == pytest.approx(found.log_likelihood)

    def slope(scaled):
        return likelihood(scaled, x / spread, ones, l2)[1]

    best = found.weights * spread
    assert slope(best) == pytest.approx(0, abs=1e-6)
    second = np.stack([(slope(best + step) - slope(best - step)) / 2e-5 for step in 1e-5 * np.eye(3)])
    assert found.covariance * np.outer(spread, spread) == pytest.approx(np.linalg.inv(-second), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 5))
def test_gradient(seed, l2):
    generator = np.random.default_rng(seed)
    x, weights = generator.normal(size=(20, 3)), generator.normal(size=3)
    target = generator.choice([0.5, 1.0], 20)
    numeric = approx_fprime(weights, lambda w: likelihood(w, x, target, l2)[0], 1e-7)
    assert likelihood(weights, x, target, l2)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_likelihood_of_extreme_margins_is_finite():
    value, gradient = likelihood(np.array([1.0]), np.array([[1e4], [-1e4]]), np.ones(2))
    assert value == pytest.approx(-1e4)
    assert gradient == pytest.approx([-1e4])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.sampled_from([0.0, 2.0]), st.booleans())
def test_units_do_not_matter(data, factors, l2, nonnegative):
    sums, pairs = data
    found = fit(sums, pairs, NAMES, l2=l2, nonnegative=nonnegative)
    scaled = {name: each * factors for name, each in sums.items()}
    other = fit(scaled, pairs, NAMES, l2=l2, nonnegative=nonnegative)
    assert other.weights * factors == pytest.approx(found.weights, rel=1e-5)
    assert other.errors * factors == pytest.approx(found.errors, rel=1e-4)


def test_ties(data):
    """Half a preference for each is what scikit-learn makes of two opposite rows at half the weight."""
    sums, pairs = data
    tied = [pair._replace(tie=index % 4 == 0) for index, pair in enumerate(pairs)]
    found = fit(sums, tied, NAMES)
    x = differences(sums, pairs)
    mirrored = np.concatenate([x, -x])
    weight = np.array([0.5 if pair.tie else 1.0 for pair in tied] + [0.5 if pair.tie else 0.0 for pair in tied])
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    flip = np.where(np.arange(len(mirrored)) % 2 == 0, 1, -1)  # both classes must occur
    oracle.fit(mirrored * flip[:, None], flip > 0, sample_weight=weight)
    assert found.weights == pytest.approx(oracle.coef_[0], rel=1e-4)
    assert (found.pairs, found.ties) == (400, 100)
    dropped = fit(sums, tied, NAMES, ties="drop")
    assert dropped.weights == pytest.approx(fit(sums, [pair for pair in tied if not pair.tie], NAMES).weights)
    assert (np.abs(found.weights) < np.abs(dropped.weights)).all()


def test_nonnegative():
    generator = np.random.default_rng(3)
    sums = trajectories(generator, 60)
    pairs = preferences(generator, sums, 400, np.array([1.0, -0.5, 0.5]))
    free, held = fit(sums, pairs, NAMES), fit(sums, pairs, NAMES, nonnegative=True)
    assert free.weights[1] < 0
    assert held.weights[1] == 0
    assert np.isnan(held.errors).tolist() == [False, True, False]
    assert held.notes == ("the weight of speed is held at 0: preferences alone would make it negative",)
    # The others are what a fit without the component finds.
    rest = fit({name: each[[0, 2]] for name, each in sums.items()}, pairs, ("goal", "collision"))
    assert held.weights[[0, 2]] == pytest.approx(rest.weights, rel=1e-5)
    assert held.errors[[0, 2]] == pytest.approx(rest.errors, rel=1e-4)
    positive = fit(sums, preferences(generator, sums, 400), NAMES)
    assert positive.weights.min() > 0


def test_relative_weights(data):
    """Errors of ratios against the spread of ratios of draws from the fit."""
    found = fit(*data, NAMES)
    ratio = found.relative_to("goal")
    assert ratio.weights == pytest.approx(found.weights / found.weights[0])
    draws = np.random.default_rng(0).multivariate_normal(found.weights, found.covariance, 20_000)
    assert ratio.errors[1:] == pytest.approx((draws / draws[:, :1]).std(axis=0)[1:], rel=0.1)
    assert ratio.errors[0] == pytest.approx(0, abs=1e-12)
    negative = fit({name: -each for name, each in data[0].items()}, data[1], NAMES).relative_to("goal")
    assert negative.weights == pytest.approx(-ratio.weights)
    assert negative.errors == pytest.approx(ratio.errors)
    with pytest.raises(ValueError, match=r"^no such component gaol; there are goal, speed, collision"):
        found.relative_to("gaol")


def test_groups_make_errors_honest(data):
    """Everything said twice by the same people says no more than once; without groups, errors shrink."""
    sums, pairs = data
    named = [pair._replace(group=f"g{index}") for index, pair in enumerate(pairs)]
    alone, twice, pretended = (fit(sums, given, NAMES) for given in (pairs, named + named, pairs + pairs))
    assert twice.weights == pytest.approx(alone.weights, rel=1e-5)
    assert twice.errors == pytest.approx(alone.errors, rel=0.25)  # the sandwich estimates what the model knows
    assert pretended.errors == pytest.approx(alone.errors / math.sqrt(2), rel=1e-4)
    few = fit(sums, [pair._replace(group=str(index % 3)) for index, pair in enumerate(pairs)], NAMES)
    assert few.notes == ("pairs come from 3 groups: with so few, standard errors are too small",)


# -- data that do not decide -------------------------------------------------------------------------------------------


def test_low_rank_is_told():
    generator = np.random.default_rng(1)
    sums = {name: np.array([each[0], each[1], 2 * each[1]]) for name, each in trajectories(generator, 40).items()}
    pairs = preferences(generator, sums, 200)
    told = (
        r"differences of 200 pairs have rank 2 for 3 components: they do not determine the weights of speed, collision"
    )
    with pytest.raises(ValueError, match=rf"^{told}; give more pairs, or l2 above 0"):
        fit(sums, pairs, NAMES)
    found = fit(sums, pairs, NAMES, l2=1.0)
    assert found.rank == 2
    assert found.notes[0].startswith(told)
    assert np.isfinite(found.errors).all()


def test_separable_preferences_are_told():
    generator = np.random.default_rng(2)
    sums = trajectories(generator, 20)
    pairs = [Pair(a, b) if (sums[a] - sums[b]) @ TRUTH > 0 else Pair(b, a) for a in sums for b in sums if a < b]
    told = r"no preference speaks against ever larger weights \(in size\) of goal, speed, collision: none is the most"
    with pytest.raises(ValueError, match=rf"^{told}"):
        fit(sums, pairs, NAMES)
    found = fit(sums, pairs, NAMES, l2=0.1)
    assert found.agreement > 0.97
    assert found.notes[0].endswith("what l2 = 0.1 prefers was taken")
    # One component alone that nobody contradicts is enough.
    one = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.0, 0.0]}
    with pytest.raises(ValueError, match=r"^no preference speaks against ever larger weights \(in size\) of goal: "):
        fit(one, [Pair("a", "c"), Pair("b", "c"), Pair("c", "b")], ("goal", "speed"))
    # A tie contradicts it.
    assert fit(one, [Pair("a", "c"), Pair("a", "c", tie=True), Pair("b", "c", tie=True)], ("goal", "speed")).rank == 2
    # So do weights that would have to be negative.
    against = [Pair("c", "a"), Pair("b", "c"), Pair("c", "b")]
    assert fit(one, against, ("goal", "speed"), nonnegative=True).weights.tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "no preferences"),
        ([Pair("a", "b", tie=True)], {"ties": "drop"}, "weights need at least one preference, got 1 ties"),
        ([Pair("a", "x")], {}, "trajectory x has preferences, but no sums of components"),
        ([Pair("a", "a")], {}, "trajectory a is compared with itself"),
        ([Pair("a", "c")], {}, "sums of components must be 2 finite numbers for every trajectory"),
        ([Pair("a", "b")], {"l2": -1.0}, r"l2 must be at least 0, got -1\.0"),
        ([Pair("a", "b")], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1\.0"),
        ([Pair("a", "b")], {"ties": "win"}, "ties must be half or drop, got 'win'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(pairs, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fit({"a": [0.0, 1.0], "b": [1.0, 0.0], "c": [math.nan, 0.0]}, pairs, ("goal", "speed"), **options)


# -- tables and the command --------------------------------------------------------------------------------------------


def test_rankings():
    assert pairs_of_ranking({"x": 2, "y": 1, "z": 2}, "g") == [
        Pair("y", "x", False, "g"),
        Pair("y", "z", False, "g"),
        Pair("x", "z", True, "g"),
    ]


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_tables(tmp_path):
    pairs = write(tmp_path / "p.csv", ("better", "worse", "tie", "group"), ("007", "1", 0, "ann"), ("1", "2", 1, ""))
    assert read_preferences(pairs) == [Pair("007", "1", False, "ann"), Pair("1", "2", True, "")]
    ranks = write(tmp_path / "r.csv", ("trajectory", "rank"), ("a", 1), ("b", 3), ("c", 2))
    assert [pair[:2] for pair in read_preferences(ranks)] == [("a", "c"), ("a", "b"), ("c", "b")]
    groups = write(
        tmp_path / "g.csv", ("group", "trajectory", "rank"), ("u", "a", 1), ("v", "a", 2), ("v", "b", 1), ("u", "b", 2)
    )
    assert read_preferences(groups) == [Pair("a", "b", False, "u"), Pair("b", "a", False, "v")]
    sums, names = read_components(write(tmp_path / "c.csv", ("trajectory", "goal"), ("007", 1), ("1", -2.5)))
    assert (names, {name: each.tolist() for name, each in sums.items()}) == (("goal",), {"007": [1.0], "1": [-2.5]})


def test_names_that_are_numbers_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"trajectory": [1, 2], "goal": [1.0, 0.0]}).to_parquet(tmp_path / "c.parquet")
    pd.DataFrame({"better": [1], "worse": [2]}).to_parquet(tmp_path / "p.parquet")
    sums, _ = read_components(tmp_path / "c.parquet")
    pairs = read_preferences(tmp_path / "p.parquet")
    assert pairs == [Pair("1", "2")]
    assert fit(sums, pairs, ("goal",), l2=1.0).agreement == 1
    pd.DataFrame({"better": ["1", None], "worse": ["2", "1"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p\.parquet:3: better is empty"):
        read_preferences(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("reader", "rows", "message"),
    [
        (read_preferences, [("a", "b"), (1, 2)], r"needs columns better and worse, or trajectory and rank, got a, b"),
        (read_preferences, [("better", "worse", "tie"), (1, 2, 3)], r"f\.csv:2: tie must be 0 or 1, got 3"),
        (read_preferences, [("better", "worse"), (1, 2), (1, "")], r"f\.csv:3: worse is empty"),
        (read_preferences, [("trajectory", "rank"), (1, "x")], r"f\.csv:2: rank must be a finite number, got x"),
        (read_preferences, [("trajectory", "rank"), (1, 1), (1, 2)], r"f\.csv:3: trajectory 1 is ranked twice"),
        (read_components, [("trajectory", "goal"), ("", 1)], r"f\.csv:2: trajectory is empty"),
        (read_components, [("trajectory",), (1,)], r"needs a column trajectory and one per component, got trajectory"),
        (read_components, [("trajectory", "goal"), (1, 1), (1, 2)], r"f\.csv:3: trajectory 1 stands there twice"),
        (read_components, [("trajectory", "goal"), (1, "x")], r"f\.csv:2: goal must be a finite number, got 'x'"),
        (
            read_components,
            [("trajectory", "goal"), (1, 1), (2, "")],
            r"f\.csv:3: goal must be a finite number, got nan",
        ),
    ],
)
def test_bad_tables(tmp_path, reader, rows, message):
    with pytest.raises(ValueError, match=message):
        reader(write(tmp_path / "f.csv", *rows))


def test_command(tmp_path, capsys, data):
    sums, pairs = data
    components = write(tmp_path / "c.csv", ("trajectory", *NAMES), *[(name, *each) for name, each in sums.items()])
    table = write(tmp_path / "p.csv", ("better", "worse"), *[pair[:2] for pair in pairs])
    assert main([table, components, "--json", "--relative-to", "goal"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = fit(sums, pairs, NAMES).relative_to("goal")
    assert [report["weights"][name]["weight"] for name in NAMES] == pytest.approx(found.weights.tolist())
    assert report["weights"]["speed"]["low"] == pytest.approx(found.intervals[1, 0])
    assert (report["pairs"], report["rank"], report["notes"]) == (400, 3, [])
    assert main([table, components, "--nonnegative", "--confidence", "0.9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["component", "weight", "error", "90", "%", "interval"]
    assert [line.split()[0] for line in lines[1:4]] == list(NAMES)
    assert lines[4].startswith("400 pairs, 0 of them ties; ")
    assert main([table, str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.startswith("preferences: error: components is not a file: ")
