"""Inverse questions: what they answer gives the ETTR that was asked for, and a little more does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.reliability.interval import with_rule
from framework.reliability.inverse import intervals, largest
from framework.reliability.job import Job
from framework.reliability.rates import job_rate, node_rate
from framework.reliability.renewal import ettr_exact

JOB = Job(job_rate(6.5e-3, 12_000), 30.0, 2.0, 5.0, 1.0)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["rate", "write", "restart", "queue"]),
    st.floats(0.02, 0.97),
    st.sampled_from(["fixed", "young", "optimal"]),
)
def test_the_largest_value_gives_the_target(quantity, target, rule):
    job = with_rule(JOB, rule)
    bound = largest(job, quantity, target, rule)
    if bound is None:
        assert ettr_exact(with_rule(replace(job, **{quantity: 1e-9}), rule)) < target
    else:
        assert ettr_exact(with_rule(replace(job, **{quantity: bound}), rule)) == pytest.approx(target, rel=1e-6)


def test_what_the_study_says_it_takes_for_nine_tenths():
    job = Job(job_rate(6.5e-3, 12_000), 1.0, 5.0, 5.0)
    rate = largest(job, "rate", 0.9, "young")
    assert 1000 * node_rate(rate, 12_000) == pytest.approx(0.94, abs=0.01)  # reported: about 1
    assert 60 * largest(job, "write", 0.9, "young") == pytest.approx(22, abs=0.5)  # 10 s are enough


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 0.8), st.sampled_from([0.0, 0.5]))
def test_both_ends_of_the_intervals_give_the_target(target, latency):
    low, high = intervals(replace(JOB, latency=latency), target) or (None, None)
    if low is None:
        assert ettr_exact(with_rule(JOB, "optimal")) * math.exp(-JOB.rate * latency) < target
        return
    for end in (low, high):
        assert ettr_exact(replace(JOB, interval=end, latency=latency)) == pytest.approx(target, rel=1e-6)


def test_latency_is_a_factor_and_leaves_room_for_itself():
    job = replace(JOB, latency=10.0)
    for quantity in ("rate", "write", "restart", "queue"):
        bound = largest(job, quantity, 0.5)
        assert ettr_exact(replace(job, **{quantity: bound})) == pytest.approx(0.5, rel=1e-6)
    low, high = intervals(job, 0.1)
    assert low == 8.0  # a checkpoint is on its way for the whole interval and the next write
    assert ettr_exact(replace(job, interval=low)) > 0.1
    assert ettr_exact(replace(job, interval=high)) == pytest.approx(0.1, rel=1e-6)


def test_ends_without_costs_and_without_failures():
    free = replace(JOB, write=0.0)
    low, high = intervals(free, 0.8)
    assert low == 0
    assert ettr_exact(replace(free, interval=high)) == pytest.approx(0.8)
    calm = replace(JOB, rate=0.0)
    assert intervals(calm, 0.8) == (pytest.approx(8.0), math.inf)
    assert largest(calm, "restart", 0.8) == largest(calm, "queue", 0.8) == math.inf
    assert largest(calm, "write", 0.8) == pytest.approx(7.5)
    assert largest(replace(JOB, write=30.0), "rate", 0.8) is None  # writing alone costs half


def test_out_of_reach():
    assert intervals(JOB, 0.999) is None
    assert largest(JOB, "restart", 0.999) is None


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, math.nan])
def test_targets_that_are_no_share(target):
    with pytest.raises(ValueError, match="between 0 and 1"):
        largest(JOB, "rate", target)
    with pytest.raises(ValueError, match="between 0 and 1"):
        intervals(JOB, target)
