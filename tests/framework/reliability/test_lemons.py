"""Lemon nodes: found where they are known, foretold in public failure records, and scores against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from framework.reliability.cluster.engine import simulate_cluster
from framework.reliability.cluster.model import Cluster
from framework.reliability.cluster.workload import synthetic_jobs
from framework.reliability.lemon_history import (
    SIGNALS,
    History,
    Record,
    history_of_cluster,
    history_of_trace,
    synthetic_history,
)
from framework.reliability.lemons import (
    MULTIPLES,
    PROBABILITY,
    VOTES,
    Mixture,
    evaluate,
    find_lemons,
    fit_mixture,
    highest,
    lemon_probability,
    marked,
    posterior_rate,
    votes,
    worst,
)
from framework.reliability.traces import Failure, Trace, read_trace

LANL = "lanl_failures/lanl_failures.csv.gz"
OUT = SIGNALS.index("out_count")


def test_synthetic_lemons_are_found_with_a_precision_above_85_per_cent():
    found = {"probability": [0, 0, 0], "votes": [0, 0, 0]}
    for seed in range(6):
        history = synthetic_history(2048, 56, 6.5e-3, seed)
        lemons = marked(history.nodes, history.lemons)
        flags = {
            "probability": find_lemons(history, 0, 28),
            "votes": votes(history.signals(0, 28)) >= VOTES,
        }
        for name, flag in flags.items():
            one = evaluate(flag, lemons)
            found[name] = [sum(pair) for pair in zip(found[name], (one.hits, one.flagged, one.bad))]
    for hits, flagged, bad in found.values():
        assert hits / flagged >= 0.85
        assert hits / bad >= 0.25  # 25 of 2,048 nodes in 28 days with 2 to 5 failures each: not all can be told


@pytest.mark.parametrize(("system", "significant"), [("18", 1e-6), ("19", 1e-6), ("20", 1e-3)])
def test_the_past_foretells_the_worst_nodes_of_lanls_systems(data_root_or_skip, system, significant):
    history = history_of_trace(read_trace(data_root_or_skip / LANL, system=system))
    half = history.days / 2
    signals = history.signals(0, half)
    counts, later = signals[:, OUT], history.signals(half, history.days + 1)[:, OUT]
    assert counts.sum() + later.sum() == len([r for r in history.records if r.kind == "out_count"])
    rates = posterior_rate(counts, half, fit_mixture(counts, half))
    for scores in (rates, votes(signals, 0.95)):
        one = evaluate(highest(scores, 0.05), worst(later, 0.05))
        assert one.p_value < significant
        assert one.low > one.bad / one.nodes  # the interval excludes a random choice
        assert one.lift > 4


def test_what_a_random_order_finds():
    generator = np.random.default_rng(0)
    values = [
        evaluate(highest(generator.uniform(size=400), 0.1), worst(generator.poisson(3.0, 400), 0.1)).p_value
        for _ in range(200)
    ]
    assert np.mean(np.array(values) < 0.05) < 0.1


# -- histories ---------------------------------------------------------------------------------------------------------


def test_signals_count_what_lies_in_the_window():
    day = 1440.0
    records = [
        Record(0.5 * day, 0, "xid_cnt"),
        Record(1.0 * day, 0, "xid_cnt"),
        Record(2.0 * day, 0, "xid_cnt"),
        Record(1.5 * day, 1, "single_node_node_fails"),
        Record(1.5 * day, 1, "tickets"),
        Record(1.6 * day, 1, "excl_jobid_count"),
    ]
    history = History(records, 3, 3.0, ["a", "b", "c"])
    signals = {name: column.tolist() for name, column in zip(SIGNALS, history.signals(1, 2).T)}
    assert signals["xid_cnt"] == [1, 0, 0]
    assert signals["tickets"] == signals["excl_jobid_count"] == [0, 1, 0]
    assert signals["single_node_node_failure_rate"] == [0, 1, 0]  # per day, as jobs are not recorded
    jobs = [Record(1.2 * day, 1, "single_node_jobs")] * 4
    with_jobs = History(records + jobs, 3, 3.0, ["a", "b", "c"]).signals(1, 2)
    assert with_jobs[:, -1].tolist() == [0, 0.25, 0]


def test_a_trace_tells_alone_from_together_and_short_from_long():
    rows = [(10.0, "x", 5.0), (20.0, "x", 1440.0), (20.0, "y", math.nan), (30.0, "y", 9.0)]
    failures = [Failure(*row) for row in rows]
    history = history_of_trace(Trace(failures, 4, 1.0, 4))
    signals = {name: column.tolist() for name, column in zip(SIGNALS, history.signals(0, 2).T)}
    assert history.names == ["x", "y"]
    assert signals["out_count"] == [2, 2, 0, 0]
    assert signals["multi_node_node_fails"] == signals["single_node_node_fails"] == [1, 1, 0, 0]
    assert signals["tickets"] == [1, 0, 0, 0]
    assert not history.signals(0, 1)[:, SIGNALS.index("tickets")].any()  # not known before the repair has taken a day
    with pytest.raises(ValueError, match="need a trace with a column node"):
        history_of_trace(Trace([Failure(1.0, "", 1.0)], 4, 1.0, 1))
    with pytest.raises(ValueError, match="names 2 nodes, and nodes is 1"):
        history_of_trace(Trace(failures, 1, 1.0, 4))


def test_lemons_of_a_simulated_cluster_are_found():
    cluster = Cluster(512, 6.5e-3, lemon_share=0.012, lemon_factor=30)
    outcome = simulate_cluster(cluster, synthetic_jobs(cluster, 60), 60 * 1440)
    history = history_of_cluster(outcome)
    assert history.signals(0, 61)[:, OUT].sum() == len(outcome.events)
    one = evaluate(find_lemons(history, 32, 60), marked(512, outcome.lemons))
    assert one.precision >= 0.85
    assert one.recall >= 0.5
    failed = sum(event.failed for event in outcome.events)
    both = history.signals(0, 61)[:, [SIGNALS.index(f"{kind}_node_node_fails") for kind in ("multi", "single")]]
    assert both.sum() == failed


def test_synthetic_history_repeats_and_has_the_rates_asked_for():
    first, again, other = (synthetic_history(500, 100, 0.01, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.lemons) == 6
    ordinary = ~marked(500, first.lemons)
    counts = first.signals(0, 100)[:, OUT]
    assert counts[ordinary].mean() == pytest.approx(1.0, rel=0.2)
    assert 10 < counts[~ordinary].mean() < 30
    for wrong in ({"nodes": 0}, {"days": -1.0}, {"rate": math.nan}, {"share": 1.5}, {"shape": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            synthetic_history(**{"nodes": 10, "days": 1.0, "rate": 0.1, **wrong})


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [Mixture(2.0, 0.01, 0.012), Mixture(0.5, 0.003, 0.05)])
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_probability_and_rate_are_those_of_bayes_rule(mixture, count):
    days = 28.0
    prior = stats.gamma(mixture.shape, scale=mixture.mean / mixture.shape)
    low, high = (math.log(multiple * mixture.mean) for multiple in MULTIPLES)

    def moment(power):
        # Over the root of the rate, where a density with a pole at zero has none.
        ordinary = integrate.quad(
            lambda x: 2 * x * prior.pdf(x * x) * x ** (2 * power) * stats.poisson.pmf(count, x * x * days),
            0,
            math.sqrt(100 * mixture.mean),
            limit=500,
        )[0]
        lemon = integrate.quad(lambda x: math.exp(power * x) * stats.poisson.pmf(count, math.exp(x) * days), low, high)
        return (1 - mixture.share) * ordinary, mixture.share * lemon[0] / (high - low)

    ordinary, lemon = moment(0)
    counts = np.array([float(count)])
    assert lemon_probability(counts, days, mixture)[0] == pytest.approx(lemon / (lemon + ordinary), rel=1e-5)
    assert posterior_rate(counts, days, mixture)[0] == pytest.approx(sum(moment(1)) / sum(moment(0)), rel=1e-5)


def test_a_fit_finds_the_rates_that_were_drawn():
    generator = np.random.default_rng(5)
    rates = 0.02 * generator.gamma(2.0, 0.5, 20_000)
    rates[:400] = 0.02 * np.exp(generator.uniform(*np.log(MULTIPLES), 400))
    mixture = fit_mixture(generator.poisson(rates * 100).astype(float), 100.0)
    assert mixture.mean == pytest.approx(0.02, rel=0.03)
    assert mixture.shape == pytest.approx(2.0, rel=0.1)
    assert mixture.share == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ValueError, match="no failure to fit"):
        fit_mixture(np.zeros(5), 10.0)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 50), st.floats(1e-4, 1), st.floats(1e-4, 0.2), st.floats(1, 1000))
def test_scores_are_finite_shares_at_any_count(shape, mean, share, days):
    mixture = Mixture(shape, mean, share)
    counts = np.array([0.0, 1.0, 5.0, 50.0, 1e4])
    probability = lemon_probability(counts, days, mixture)
    assert ((probability >= 0) & (probability <= 1)).all()
    rates = posterior_rate(counts[:4], days, mixture)
    assert np.isfinite(rates).all()
    assert (np.diff(rates) > -1e-9 * rates[1:]).all()  # more failures, a higher rate


def test_votes_leave_out_exclusions():
    signals = np.zeros((100, len(SIGNALS)))
    signals[0, 0] = 9  # excluded by users, and nothing else
    signals[1, 1:] = 9
    assert votes(signals).tolist()[:3] == [0, 6, 0]
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
        votes(signals, 1.0)


def test_no_failures_no_lemons():
    assert not find_lemons(History([], 10, 28.0, []), 0, 28).any()
    assert 0 < PROBABILITY < 1


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_by_hand():
    flagged, bad = marked(10, [0, 1, 2]), marked(10, [0, 1, 7, 8])
    one = evaluate(flagged, bad)
    assert (one.precision, one.recall, one.lift) == pytest.approx((2 / 3, 1 / 2, (2 / 3) / 0.4))
    assert one.p_value == pytest.approx((math.comb(4, 2) * 6 + math.comb(4, 3)) / math.comb(10, 3))
    interval = stats.binomtest(2, 3).proportion_ci(method="exact")
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    none = evaluate(marked(10, []), bad)
    assert math.isnan(none.precision)
    assert none.p_value == 1
    assert math.isnan(evaluate(flagged, marked(10, [])).recall)


def test_highest_and_worst():
    values = np.array([1.0, 5.0, 5.0, 0.0, 2.0])
    assert highest(values, 0.4).tolist() == [False, True, True, False, False]
    assert highest(values, 0.01).sum() == 1
    assert worst(np.array([0.0, 0.0, 0.0, 0.0]), 0.5).sum() == 0
    assert worst(np.arange(100.0), 0.05).sum() == 5
