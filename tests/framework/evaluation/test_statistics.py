import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from framework.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    stratified_iqm_interval,
)

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(numbers, st.floats(0.5, 0.99))
def test_mean_interval_is_scipys_t_interval(values, confidence):
    got = mean_interval(values, confidence)
    assert got.estimate == pytest.approx(np.mean(values), abs=1e-9)
    scale = stats.sem(values)
    if scale > 1e-9:
        low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (got.low, got.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert got.half == pytest.approx((got.high - got.low) / 2)
    assert got.n == len(values)


def test_mean_interval_of_a_known_sample():
    # 1..5: mean 3, s = sqrt(2.5), t_{0.975, 4} = 2.776445
    got = mean_interval([1, 2, 3, 4, 5])
    assert got.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert 3 in got
    assert 10 not in got


def test_one_value_has_no_interval_and_equal_values_have_a_closed_one():
    single = mean_interval([0.9])
    assert single.estimate == 0.9
    assert math.isnan(single.low)
    assert math.isnan(single.half)
    assert mean_interval([2.0, 2.0, 2.0])[:3] == (2.0, 2.0, 2.0)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = sum(5.0 in mean_interval(rng.normal(5, 2, size=6), 0.9) for _ in range(2000))
    assert abs(covered / 2000 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_paired_difference_is_the_interval_of_the_paired_t_test(pairs):
    ours, other = zip(*pairs)
    got = paired_difference(dict(enumerate(ours)), dict(enumerate(other)))
    expected = mean_interval(np.subtract(ours, other))
    assert got == pytest.approx(expected, nan_ok=True)
    if np.std(np.subtract(ours, other)) > 1e-6:
        interval = stats.ttest_rel(ours, other).confidence_interval(0.95)
        assert (got.low, got.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_paired_difference_uses_shared_seeds_only():
    got = paired_difference({1: 0.9, 2: 0.8, 7: 0.0}, {2: 0.7, 1: 0.6, 9: 1.0})
    assert got.n == 2
    assert got.estimate == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"shared seeds, got \[1\] and \[2\]"):
        paired_difference({1: 0.5}, {2: 0.5})


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_interquartile_mean_is_the_mean_without_both_outer_quarters(values):
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(values) == pytest.approx(np.mean(kept), rel=1e-9, abs=1e-9)


def test_interquartile_mean_flattens():
    assert interquartile_mean([[0, 1], [2, 100]]) == 1.5


@pytest.mark.parametrize("statistic", ["mean", "median", "iqm"])
def test_bootstrap_interval_holds_its_estimate_and_is_reproducible(statistic):
    values = np.random.default_rng(3).normal(size=25)
    got = bootstrap_interval(values, statistic, resamples=2000, seed=5)
    assert got.low <= got.estimate <= got.high
    assert got == bootstrap_interval(values, statistic, resamples=2000, seed=5)
    if statistic != "median":  # medians of resamples are values of the sample, so that their quantiles coincide
        assert got != bootstrap_interval(values, statistic, resamples=2000, seed=6)


def test_bootstrap_interval_of_a_mean_approaches_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    got = bootstrap_interval(values, "mean", resamples=4000)
    half = 1.96 * values.std() / 20
    assert got.half == pytest.approx(half, rel=0.06)


def test_bootstrap_of_constant_values_is_closed():
    assert bootstrap_interval([1.0, 1.0, 1.0])[:3] == (1.0, 1.0, 1.0)


def test_stratified_iqm_resamples_within_tasks():
    # Each task is constant: a stratified bootstrap sees no spread at all, an unstratified one would.
    got = stratified_iqm_interval({"a": [0.0] * 4, "b": [1.0] * 4}, resamples=500)
    assert got[:3] == (0.5, 0.5, 0.5)
    assert got.n == 8


def test_stratified_iqm_of_one_task_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(2).normal(size=40)
    ours = stratified_iqm_interval({"a": values}, resamples=8000)
    scipys = bootstrap_interval(values, "iqm", resamples=8000, seed=9, method="percentile")
    assert ours.estimate == pytest.approx(scipys.estimate)
    assert ours.half == pytest.approx(scipys.half, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "values must be a non-empty list"),
        (lambda: mean_interval([[1, 2]]), r"got shape \(1, 2\)"),
        (lambda: mean_interval([1, math.nan]), "values must be finite, got nan at position 1"),
        (lambda: mean_interval([1, 2], 95), r"confidence must lie in \(0, 1\), got 95"),
        (lambda: bootstrap_interval([1.0]), "at least two numbers for a bootstrap, got 1"),
        (lambda: bootstrap_interval([1.0, 2.0], "mode"), "statistic must be one of mean, median, iqm, got 'mode'"),
        (lambda: bootstrap_interval([1.0, 2.0], resamples=0), "resamples must be at least 1, got 0"),
        (lambda: stratified_iqm_interval({}), "at least one task"),
        (lambda: stratified_iqm_interval({"a": []}), r"scores\['a'\] must be a non-empty"),
        (lambda: interquartile_mean([]), "values must be a non-empty"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals_are_plain_tuples():
    assert Interval(1.0, 0.0, 2.0, 5) == (1.0, 0.0, 2.0, 5, 0.95)


tasks = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1
)


@given(tasks, st.data())
def test_probability_of_improvement_counts_pairs(ours, data):
    other = {task: data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=6)) for task in ours}
    shares = []
    for task, runs in ours.items():
        won = [(x > y) + (x == y) / 2 for x in runs for y in other[task]]
        shares.append(sum(won) / len(won))
    got = probability_of_improvement(ours, other, resamples=50)
    assert got.estimate == pytest.approx(np.mean(shares))
    swapped = probability_of_improvement(other, ours, resamples=50)
    assert swapped.estimate == pytest.approx(1 - got.estimate)
    assert 0 <= got.low <= got.high <= 1


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, size=12), rng.normal(size=15)
    u = stats.mannwhitneyu(x, y).statistic / (12 * 15)
    assert probability_of_improvement({"a": x}, {"a": y}, resamples=10).estimate == pytest.approx(u)


def test_the_interval_of_improvement_is_that_of_every_possible_resample():
    # Brute force: all 3^3 x 3^3 resamples, which are equally likely.
    x, y = [1.0, 2.0, 4.0], [0.0, 2.0, 3.0]
    shares = [
        np.mean([(a > b) + (a == b) / 2 for a in ours for b in other])
        for ours in itertools.product(x, repeat=3)
        for other in itertools.product(y, repeat=3)
    ]
    got = probability_of_improvement({"a": x}, {"a": y}, 0.8, resamples=40_000)
    assert (got.low, got.high) == pytest.approx(np.quantile(shares, [0.1, 0.9]), abs=0.06)  # they lie 1/18 apart
    assert got.n == 3


def test_the_interval_of_a_stratified_iqm_is_that_of_every_possible_resample():
    a, b = [0.0, 1.0, 5.0], [2.0, 9.0]
    everything = [
        interquartile_mean([*first, *second])
        for first in itertools.product(a, repeat=3)
        for second in itertools.product(b, repeat=2)
    ]
    got = stratified_iqm_interval({"a": a, "b": b}, 0.8, resamples=40_000)
    assert (got.low, got.high) == pytest.approx(np.quantile(everything, [0.1, 0.9]), abs=0.34)  # they lie 1/3 apart
    assert got.estimate == pytest.approx(interquartile_mean([*a, *b]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probability_of_improvement({}, {}), r"scores of the same tasks, got \[\] and \[\]"),
        (lambda: probability_of_improvement({"a": [1]}, {"b": [1]}), r"same tasks, got \['a'\] and \['b'\]"),
        (lambda: probability_of_improvement({"a": []}, {"a": [1]}), r"ours\['a'\] must be a non-empty"),
        (lambda: probability_of_improvement({"a": [1]}, {"a": [math.inf]}), r"other\['a'\] must be finite"),
        (
            lambda: probability_of_improvement({"a": [1]}, {"a": [1]}, resamples=0),
            "resamples must be at least 1, got 0",
        ),
        (lambda: probability_of_improvement({"a": [1]}, {"a": [1]}, 1.0), r"confidence must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input_of_improvement_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
