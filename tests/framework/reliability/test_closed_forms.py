"""Closed forms: numbers worked out independently, limits, and properties over the whole range of rates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import lambertw

from framework.reliability.interval import (
    linear_optimal_interval,
    optimal_interval,
    with_rule,
    young_interval,
)
from framework.reliability.job import Job
from framework.reliability.linear import ettr_first_version, ettr_linear, linear_error
from framework.reliability.rates import job_rate, mttf, node_rate, nodes_of, rate_of_mttf
from framework.reliability.renewal import (
    cycle_budget,
    downtime,
    ettr_exact,
    ettr_finite,
    finite_wall,
    log_ettr_exact,
    log_sinhc,
)

RSC_1, RSC_2 = 6.5e-3, 2.34e-3
TEN_SECONDS = 10 / 60

#: GPUs, failures per 1000 node-days, interval (None: Young's), write, restart; first order and exact ETTR.
GRID = [
    (1024, 6.5, 60, 0, 5, 0.9798, 0.9799),
    (4096, 6.5, 60, 5, 5, 0.8484, 0.8457),
    (8000, 5, 57.6, 0, 5, 0.8826, 0.8878),
    (8000, 5, 57.6, 0, 20, 0.8306, 0.8427),
    (8192, 6.5, 60, 5, 5, 0.7737, 0.7733),
    (12000, 6.5, None, 5, 5, 0.7398, 0.7358),
    (16000, 6.5, 60, 0, 5, 0.6840, 0.7202),
    (16000, 6.5, 5, 0, 5, 0.9323, 0.9345),
    (16384, 6.5, None, 5, 5, 0.6960, 0.6921),
    (100000, 6.5, 7, 0, 5, 0.5204, 0.6150),
    (100000, 2.34, 21, 0, 5, 0.6852, 0.7244),
    (100000, 2.34, 2, 0, 2, 0.9391, 0.9408),
    (131072, 6.5, None, 5, 5, 0.1400, 0.2455),
    (131072, 6.5, None, TEN_SECONDS, 1, 0.7858, 0.7903),
    (131072, 2.34, None, TEN_SECONDS, 2, 0.8592, 0.8616),
    (12000, 6.5, None, TEN_SECONDS, 5, 0.9205, 0.9215),
    (12000, 1, None, 5, 5, 0.8979, 0.8966),
]


def job_of(gpus, per_1000, interval, write, restart, queue=0.0):
    rate = job_rate(per_1000 / 1000, gpus)
    return Job(rate, interval or young_interval(rate, write), write, restart, queue)


@pytest.mark.parametrize("row", GRID, ids=str)
def test_first_order_and_exact_form_over_the_grid(row):
    job = job_of(*row[:5])
    linear = ettr_linear(job)
    assert linear.value == pytest.approx(row[5], abs=6e-5)
    assert ettr_exact(job) == pytest.approx(row[6], abs=6e-5)
    assert linear.error == pytest.approx(linear.value / ettr_exact(job) - 1, abs=1e-12)
    assert linear.valid == (linear.pressure <= 0.3)


@pytest.mark.parametrize(
    ("gpus", "rate", "interval", "write", "queue", "value", "valid"),
    [
        (16000, RSC_1, 60, 0, 0, 0.684, False),
        (16000, RSC_1, 5, 0, 0, 0.932, True),
        (8000, RSC_1, 30, 0, 0, 0.910, True),
        (8000, RSC_1, 30, 0, 1, 0.906, True),
        (12000, RSC_1, None, 5, 0, 0.740, True),
        (12000, 1e-3, None, 5, 0, 0.898, True),
        (12000, RSC_1, None, TEN_SECONDS, 0, 0.9205, True),
    ],
)
def test_first_order_figures_of_the_study_with_their_flag(gpus, rate, interval, write, queue, value, valid):
    linear = ettr_linear(job_of(gpus, 1000 * rate, interval, write, 5, queue))
    assert linear.value == pytest.approx(value, abs=5e-4)
    assert linear.valid is valid


def test_queue_row():
    for queue, expected in ((1, 0.7697), (10, 0.7391), (30, 0.6791), (60, 0.6054)):
        assert ettr_exact(job_of(8192, 6.5, 60, 5, 5, queue)) == pytest.approx(expected, abs=6e-5)
    for queue, expected in ((1, 0.7701), (10, 0.7395), (30, 0.6793), (60, 0.6055)):
        job = job_of(8192, 6.5, 60, 5, 5, queue)
        assert ettr_linear(job, 400 * mttf(job.rate)).value == pytest.approx(expected, abs=3e-4)


def test_mttf_at_scale():
    assert mttf(job_rate(RSC_1, 16384)) / 60 == pytest.approx(1.803, abs=5e-4)
    assert mttf(job_rate(RSC_1, 131072)) / 60 == pytest.approx(0.225, abs=5e-4)
    assert mttf(job_rate(RSC_1, 1024)) / 60 == pytest.approx(28.8, abs=0.05)
    assert node_rate(1 / (7.9 * 60), 1024) * 1000 == pytest.approx(23.7, abs=0.05)
    assert mttf(0) == math.inf
    assert rate_of_mttf(math.inf) == 0
    assert nodes_of(12, 8) == 1.5


@settings(deadline=None)
@given(st.floats(1e-9, 1e3), st.integers(1, 10**7), st.integers(1, 72))
def test_rate_and_its_inverse(rate, gpus, per_node):
    assert node_rate(job_rate(rate, gpus, per_node), gpus, per_node) == pytest.approx(rate)
    assert rate_of_mttf(mttf(rate)) == pytest.approx(rate)


# -- properties --------------------------------------------------------------------------------------------------------

scaled = st.floats(-12, 3).map(lambda power: 10.0**power)
#: Jobs with a cycle of ``rate * cycle`` from 1e-12 to 1e3.
jobs = st.builds(
    lambda pressure, interval, write, restart, queue, latency: Job(
        pressure / (interval * (1 + write)),
        interval,
        interval * write,
        interval * restart,
        interval * queue,
        interval * latency,
    ),
    scaled,
    st.floats(0.01, 1e4),
    st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
    st.sampled_from([0.0, 1e-2, 0.2, 2.0]),
    st.sampled_from([0.0, 0.1, 5.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)


@settings(deadline=None)
@given(jobs)
def test_ratio_is_a_share_and_stable_at_every_rate(job):
    value = ettr_exact(job)
    assert 0 <= value <= job.interval / job.cycle * (1 + 1e-12)
    assert math.isfinite(log_ettr_exact(job))
    x = job.rate * job.cycle
    if 1e-6 < x < 500:  # where the plain formula keeps its digits
        plain = job.rate * job.interval * math.exp(-job.rate * (job.restart + job.latency))
        plain /= (1 + job.rate * job.queue) * math.expm1(x)
        assert value == pytest.approx(plain, rel=1e-9)


@settings(deadline=None)
@given(jobs, st.sampled_from(["rate", "write", "restart", "queue", "latency"]), st.floats(1.01, 10))
def test_more_of_what_costs_time_never_helps(job, quantity, factor):
    more = getattr(job, quantity) * factor or 0.1 * job.interval
    if quantity == "latency":
        assume(more <= job.cycle)
    assert log_ettr_exact(replace(job, **{quantity: more})) < log_ettr_exact(job) + 1e-12


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(1.1, 5))
def test_larger_jobs_reach_less(gpus, factor):
    small, large = (job_of(size, 6.5, 60, 5, 5) for size in (gpus, gpus * factor))
    assert log_ettr_exact(large) < log_ettr_exact(small)


@settings(deadline=None)
@given(st.floats(0.1, 1e4), st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 1e3))
def test_without_failures_only_writing_costs(interval, write, restart, queue):
    job = Job(0.0, interval, write, restart, queue)
    assert ettr_exact(job) == pytest.approx(interval / (interval + write), rel=1e-12)
    assert ettr_linear(job).value == pytest.approx(interval / (interval + write), rel=1e-12)
    budget = cycle_budget(job)
    assert (budget.lost, budget.restart, budget.queue, budget.failures) == (0, 0, 0, 0)


def test_textbook_limit_without_any_costs():
    for x in (1e-12, 1e-3, 1.0, 50.0):
        assert ettr_exact(Job(x, 1.0)) == pytest.approx(x / math.expm1(x), rel=1e-12)


@settings(deadline=None)
@given(jobs)
def test_budget_adds_up_to_the_time_of_a_cycle(job):
    assume(job.rate * (job.cycle + job.restart + job.latency) < 300)
    budget = cycle_budget(job)
    assert budget.wall == pytest.approx(budget.queue + budget.productive + budget.unproductive, rel=1e-12)
    # T = (e^(λc) - 1)(1/λ + D), times e^(λl) with asynchronous writing
    growth = math.expm1(job.rate * job.cycle) * math.exp(job.rate * job.latency)
    assert budget.wall == pytest.approx(growth * (1 / job.rate + downtime(job)), rel=1e-9)
    assert budget.ettr == pytest.approx(ettr_exact(job), rel=1e-9)
    scheduled = budget.wall - budget.queue
    assert budget.failures == pytest.approx(job.rate * scheduled, rel=1e-9)


def test_a_budget_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="more minutes than a float holds"):
        cycle_budget(Job(1.0, 800.0))
    assert ettr_exact(Job(1.0, 800.0)) == 0
    assert log_ettr_exact(Job(1.0, 800.0)) == pytest.approx(math.log(800) - 800)


@settings(deadline=None)
@given(jobs)
def test_first_order_error_is_the_ratio_of_the_forms(job):
    assume(job.pressure < 0.999)
    expected = math.log(ettr_linear(job).value) - log_ettr_exact(job)
    error = linear_error(job)
    if math.isfinite(error):
        assert math.log1p(error) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(jobs)
def test_first_order_becomes_exact_as_the_rate_vanishes(job):
    small = replace(job, rate=1e-7 / (job.cycle + job.restart + job.latency + job.queue))
    assert abs(linear_error(small)) <= 1e-7
    # Without cost of writing what is missing is of second order.
    assert abs(linear_error(replace(small, write=0.0, latency=0.0))) <= 1e-13


def test_error_by_pressure_without_cost_of_writing():
    for pressure, least, most in ((0.05, -0.2, 0), (0.2, -2.4, -1.55), (0.3, -5.55, -4.05), (0.8, -55.5, -50.5)):
        only_interval = Job(pressure, 2.0)  # p = rate x interval / 2
        only_restart = Job(pressure, 1e-9, restart=1.0)
        for job in (only_interval, only_restart):
            assert least <= 100 * linear_error(job) <= most


@pytest.mark.parametrize(("restart", "interval"), [(0.0, 2.0), (1.0, 1e-3), (5.0, 1.0)])
def test_first_order_refuses_what_it_has_no_meaning_for(restart, interval):
    job = Job(1.0, interval, restart=restart)
    with pytest.raises(ValueError, match=r"below 1, got .*; the exact form has no such limit"):
        ettr_linear(job)
    assert 0 < ettr_exact(job) < 1


def test_finite_run():
    job = Job(0.005, 60, 5, 5, 10)
    assert ettr_finite(job, 180) == pytest.approx(0.7035, abs=5e-4)
    assert ettr_exact(job) == pytest.approx(0.7256, abs=5e-5)
    assert ettr_finite(job, 60 * 10**7) == pytest.approx(ettr_exact(job), rel=1e-6)
    # One interval and no failure: queue, restart, work, and no checkpoint after it.
    assert finite_wall(Job(0.0, 60, 5, 5, 10), 60) == 75
    assert finite_wall(Job(0.0, 60, 5, 5, 10), 61) == 81
    with pytest.raises(ValueError, match="asynchronous"):
        ettr_finite(replace(job, latency=1.0), 180)


def test_finite_first_order_form_has_its_error_against_the_finite_exact_one():
    job = job_of(1024, 6.5, 60, 5, 5, 10)
    linear = ettr_linear(job, 6000)
    assert linear.error == pytest.approx(linear.value / ettr_finite(job, 6000) - 1)
    assert ettr_linear(job, 1e12).value == pytest.approx(ettr_linear(job).value, rel=1e-6)


def test_first_version_agrees_to_first_order_and_has_no_cost_of_writing():
    job = job_of(1024, 6.5, 60, 0, 5, 1)
    assert ettr_first_version(job, 1e5).value == pytest.approx(ettr_linear(job, 1e5).value, abs=2e-5)
    assert ettr_first_version(job).value == pytest.approx(ettr_linear(job).value, rel=1e-12)
    assert abs(ettr_first_version(job).error) < 1e-3
    with pytest.raises(ValueError, match="write must be 0"):
        ettr_first_version(replace(job, write=1.0))


def test_logarithm_of_sinhc():
    for x in (1e-3, 0.0299999, 0.0300001, 1.0, 20.0):
        assert log_sinhc(x) == pytest.approx(math.log(math.sinh(x) / x), rel=1e-8, abs=1e-15)
    assert log_sinhc(0.0) == 0
    assert log_sinhc(1000.0) == pytest.approx(1000 - math.log(2000))


# -- intervals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "per_1000", "write", "restart", "young", "exact", "linear"),
    [
        (1024, 6.5, 5, 5, 131.56, 128.25, 126.46),
        (12000, 6.5, 5, 5, 38.43, 35.17, 33.10),
        (16384, 6.5, 5, 5, 32.89, 29.64, 27.51),
        (131072, 6.5, 5, 5, 11.63, 8.56, 5.50),
        (131072, 6.5, TEN_SECONDS, 1, 2.12, 2.01, 1.88),
        (100000, 2.34, TEN_SECONDS, 2, 4.05, 3.94, 3.81),
    ],
)
def test_intervals_by_the_three_rules(gpus, per_1000, write, restart, young, exact, linear):
    rate = job_rate(per_1000 / 1000, gpus)
    assert young_interval(rate, write) == pytest.approx(young, abs=6e-3)
    assert optimal_interval(rate, write) == pytest.approx(exact, abs=6e-3)
    assert linear_optimal_interval(rate, write, restart) == pytest.approx(linear, abs=6e-3)


@settings(deadline=None)
@given(st.floats(-7, 2.5).map(lambda power: 10.0**power))
def test_optimum_is_lamberts(b):
    assert optimal_interval(1.0, b) == pytest.approx(1 + float(lambertw(-math.exp(-1 - b)).real), rel=1e-7)


def test_optimum_keeps_its_digits_where_writes_are_short():
    for b in (1e-30, 1e-16, 1e-9, 4.49e-6, 4.51e-6):
        x = optimal_interval(1.0, b)
        assert x == pytest.approx(math.sqrt(2 * b) - 2 * b / 3, rel=max(b, 1e-12))
        if b > 1e-10:  # x = 1 - e^(-(x + b)), solved for b
            assert -math.log1p(-x) - x == pytest.approx(b, rel=1e-10)
    assert optimal_interval(1.0, 1e4) == 1.0


@settings(deadline=None)
@given(st.floats(-4, 1).map(lambda power: 10.0**power), st.floats(0.01, 30), st.floats(0, 50), st.floats(0, 50))
def test_optimum_is_one_whatever_restart_and_queue_are(b, write, restart, queue):
    rate = b / write
    job = Job(rate, optimal_interval(rate, write), write, restart, queue)
    best = log_ettr_exact(job)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert log_ettr_exact(replace(job, interval=job.interval * factor)) < best


@settings(deadline=None)
@given(st.floats(1e-6, 0.1), st.floats(0.01, 30), st.floats(0, 5))
def test_linear_optimum_is_that_of_the_linear_form(rate, write, restart):
    interval = linear_optimal_interval(rate, write, restart)
    job = Job(rate, interval, write, restart)
    assume(job.pressure < 0.95)
    for factor in (0.98, 1.02):
        assert ettr_linear(replace(job, interval=interval * factor)).value < ettr_linear(job).value


def test_no_best_interval():
    assert young_interval(0.0, 5.0) == optimal_interval(0.0, 5.0) == linear_optimal_interval(0.0, 5.0) == math.inf
    for rule in (young_interval, optimal_interval, linear_optimal_interval):
        with pytest.raises(ValueError, match="write must be positive and finite, got 0"):
            rule(0.1, 0.0)
    with pytest.raises(ValueError, match="without failures there is no best interval"):
        with_rule(Job(0.0, 1.0, 1.0), "young")
    with pytest.raises(ValueError, match="rule must be one of fixed, young, optimal"):
        with_rule(Job(0.1, 1.0, 1.0), "daly")
    with pytest.raises(ValueError, match="below 1"):
        linear_optimal_interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["rate", "interval", "write", "restart", "queue", "latency"])
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        replace(Job(0.1, 1.0), **{field: value})


def test_other_values_out_of_range():
    with pytest.raises(ValueError, match="interval must be positive"):
        Job(0.1, 0.0)
    with pytest.raises(ValueError, match="latency must be at most interval"):
        Job(0.1, 1.0, 1.0, latency=2.5)
    with pytest.raises(ValueError, match="gpus must be positive"):
        job_rate(0.1, 0)
    with pytest.raises(ValueError, match="node_rate must be zero or more"):
        job_rate(-0.1, 8)
    with pytest.raises(ValueError, match="mttf must be positive"):
        rate_of_mttf(math.nan)
