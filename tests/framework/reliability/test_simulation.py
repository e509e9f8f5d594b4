"""Monte Carlo: gap by gap against a plain loop, in the mean against the closed forms, and how long it takes."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from framework.reliability.gaps import Gaps, TraceGaps
from framework.reliability.interval import young_interval
from framework.reliability.job import Job
from framework.reliability.rates import job_rate
from framework.reliability.renewal import cycle_budget, ettr_exact, ettr_finite
from framework.reliability.simulation import simulate

PARTS = ("productive", "write", "lost", "restart", "queue", "failures")

#: The reference set of the closed forms' tests: GPUs, failures per 1000 node-days, interval, write, restart.
GRID = [
    (1024, 6.5, 60, 0, 5),
    (4096, 6.5, 60, 5, 5),
    (8000, 5, 57.6, 0, 5),
    (8000, 5, 57.6, 0, 20),
    (8192, 6.5, 60, 5, 5),
    (12000, 6.5, None, 5, 5),
    (16000, 6.5, 60, 0, 5),
    (16000, 6.5, 5, 0, 5),
    (16384, 6.5, None, 5, 5),
    (100000, 6.5, 7, 0, 5),
    (100000, 2.34, 21, 0, 5),
    (100000, 2.34, 2, 0, 2),
    (131072, 6.5, None, 5, 5),
    (131072, 6.5, None, 10 / 60, 1),
    (131072, 2.34, None, 10 / 60, 2),
]


class Given:
    """Gaps that were drawn before, one row per run."""

    longest = math.inf

    def __init__(self, rows, mean=1.0):
        self.rows, self.mean, self.used = rows, mean, 0

    def draw(self, generator, size):
        block = self.rows[: size[0], self.used : self.used + size[1]]
        assert block.shape == size, "a test needs more gaps"
        self.used += size[1]
        return block


def loop(job, gaps, productive):
    """One run, as a reader would write it down: wall-clock time and failures."""
    gaps = iter(gaps)
    wall, done, failures = job.queue, 0.0, 0
    x = next(gaps)
    while True:
        if x < job.restart:
            wall += x + job.queue
        else:
            left = math.ceil((productive - done) / job.interval - 1e-12)
            finish = (left - 1) * job.cycle + productive - done - (left - 1) * job.interval
            if x - job.restart >= finish:
                return wall + job.restart + finish, failures
            done += job.interval * max(0, math.floor((x - job.restart - job.latency) / job.cycle))
            wall += x + job.queue
        failures += 1
        x = next(gaps)


@pytest.mark.parametrize("latency", [0.0, 0.7])
@pytest.mark.parametrize(("write", "restart", "queue"), [(0.0, 0.0, 0.0), (0.5, 0.3, 0.2), (0.0, 2.5, 4.0)])
def test_every_run_agrees_with_a_plain_loop(write, restart, queue, latency):
    job = Job(1.0, 1.0, write, restart, queue, latency)
    rows = np.random.default_rng(3).exponential(3.0, (1, 4000))
    for productive in (0.4, 1.0, 7.0, 23.5):
        found = simulate(job, Given(rows, mean=3.0), productive, runs=1)
        wall, failures = loop(job, rows[0], productive)
        assert found.wall[0] == pytest.approx(wall, rel=1e-12)
        assert found.failures[0] == failures


def test_runs_side_by_side_do_not_mix():
    job = Job(1.0, 1.0, 0.1, 0.2, 0.3)
    rows = np.random.default_rng(4).exponential(2.0, (40, 400))
    # More work than one block holds: some runs end in the first block, and others go on without them.
    together = simulate(job, Gaps(2.0), 12.0, runs=40, seed=4)
    assert len(set(together.failures)) > 5
    first = simulate(job, Given(rows[:1]), 12.0, runs=1)
    assert first.wall[0] == pytest.approx(loop(job, rows[0], 12.0)[0])
    assert simulate(job, Gaps(2.0), 12.0, runs=4000, seed=1).ettr == pytest.approx(
        ettr_finite(replace(job, rate=0.5), 12.0), rel=0.015
    )


@pytest.mark.parametrize("row", GRID, ids=str)
def test_exact_form_is_within_half_a_per_cent_over_the_grid(row):
    gpus, per_1000, interval, write, restart = row
    rate = job_rate(per_1000 / 1000, gpus)
    job = Job(rate, interval or young_interval(rate, write), write, restart)
    found = simulate(job, Gaps(1 / rate), 500 / rate, runs=200)
    assert found.ettr == pytest.approx(ettr_exact(job), rel=5e-3)
    assert found.ettr == pytest.approx(ettr_finite(job, 500 / rate), abs=4.5 * found.standard_error)


@pytest.mark.parametrize("queue", [1, 10, 30, 60])
def test_queues(queue):
    rate = job_rate(6.5e-3, 8192)
    job = Job(rate, 60, 5, 5, queue)
    assert simulate(job, Gaps(1 / rate), 500 / rate, runs=200).ettr == pytest.approx(ettr_exact(job), rel=5e-3)


@pytest.mark.parametrize(
    "job",
    [
        Job(0.005, 60, 5, 5, 10),
        Job(0.01, 20, 150, 300, 10),  # write and restart of several MTTF
        Job(0.005, 60, 1, 5, 10, latency=40),
        Job(0.02, 30, 0, 5, latency=30),
    ],
    ids=["usual", "long write and restart", "asynchronous", "back to back"],
)
def test_budget_term_by_term_and_to_the_last_digit(job):
    found = simulate(job, Gaps(1 / job.rate), 200 * job.interval, runs=400, seed=5)
    wall = found.queue + found.productive + (found.write + found.lost + found.restart)
    np.testing.assert_allclose(found.wall, wall, rtol=1e-12)
    ours, expected = found.budget, cycle_budget(job)
    assert ours.wall == pytest.approx(ours.queue + ours.productive + ours.unproductive, rel=1e-9)
    for part in PARTS:
        assert getattr(ours, part) / ours.wall == pytest.approx(getattr(expected, part) / expected.wall, rel=0.03)
    assert found.ettr == pytest.approx(ettr_exact(job), rel=0.02)


def test_a_long_asynchronous_run_has_the_exact_ratio():
    job = Job(0.005, 60, 1, 5, 10, latency=40)
    found = simulate(job, Gaps(200.0), 60 * 3000, runs=200)
    assert found.ettr == pytest.approx(ettr_exact(job), rel=5e-3)
    # What a latency costs to first order: its own length per failure.
    little = replace(job, rate=1e-6)
    assert 1 - ettr_exact(little) / ettr_exact(replace(little, latency=0.0)) == pytest.approx(40e-6, rel=1e-3)


def test_mean_of_ratios_is_larger_on_short_runs():
    found = simulate(Job(0.005, 60, 5, 5, 10), Gaps(200.0), 180, runs=100_000)
    assert found.ettr == pytest.approx(0.7035, abs=3e-3)
    assert found.mean_of_ratios == pytest.approx(0.7348, abs=3e-3)
    assert math.isnan(simulate(Job(0.005, 60), Gaps(200.0), 180, runs=1).standard_error)


def test_failures_in_bursts_cost_less_than_the_formula_says():
    rate = job_rate(6.5e-3, 16384)
    job = Job(rate, 60, 0, 5, 2)
    weibull = stats.weibull_min(0.82, scale=1 / rate / math.gamma(1 + 1 / 0.82))
    gamma = stats.gamma(0.75, scale=1 / rate / 0.75)
    for family, shape, distribution in (("weibull", 0.82, weibull), ("gamma", 0.75, gamma)):
        # Of each gap X, floor((X - restart) / cycle) intervals last, and it takes X and a queue.
        lasting = distribution.sf(job.restart + job.cycle * np.arange(1, 2000)).sum()
        expected = job.interval * lasting / (1 / rate + job.queue)
        assert expected > ettr_exact(job) + 0.015
        found = simulate(job, Gaps(1 / rate, family, shape), 500 / rate, runs=400)
        assert found.ettr == pytest.approx(expected, rel=5e-3)
    even = simulate(job, Gaps(1 / rate, "weibull", 1.0), 500 / rate, runs=200)
    assert even.ettr == pytest.approx(ettr_exact(job), rel=5e-3)


@pytest.mark.parametrize(("family", "shape"), [("exponential", 1.0), ("weibull", 0.6), ("gamma", 0.5), ("gamma", 3.0)])
def test_gaps_have_the_mean_that_was_asked_for(family, shape):
    drawn = Gaps(7.0, family, shape).draw(np.random.default_rng(0), (200, 1000))
    assert drawn.shape == (200, 1000)
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(7.0, rel=0.02)


def test_gaps_of_a_trace_are_its_own():
    gaps = TraceGaps([1.0, 2.0, 6.0])
    assert set(gaps.draw(np.random.default_rng(0), (10, 10)).ravel()) == {1.0, 2.0, 6.0}
    scaled = TraceGaps([1.0, 2.0, 6.0], mean=30.0)
    assert (scaled.mean, scaled.longest) == (30.0, 60.0)


def test_a_seed_repeats_a_simulation():
    job = Job(0.01, 10, 1, 1)
    first, again, other = (simulate(job, Gaps(100.0), 1000, runs=20, seed=seed).wall for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_job_that_cannot_get_on_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"longest time without a failure, 6 min, is shorter than .* 7 min"):
        simulate(Job(1.0, 5.0, 1.0, 1.0), TraceGaps([1.0, 6.0]), 100.0)
    assert simulate(Job(1.0, 5.0, 1.0, 1.0), TraceGaps([1.0, 6.0]), 5.0).ettr > 0  # its one interval fits
    monkeypatch.setattr("framework.reliability.simulation.MAX_FAILURES", 10_000)
    with pytest.raises(ValueError, match="3 of 3 runs are not done after 10,000 failures"):
        simulate(Job(1.0, 50.0), Gaps(1.0), 100.0, runs=3)


def test_values_out_of_range():
    for gaps in ([1.0], [1.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="gaps"):
            TraceGaps(gaps)
    with pytest.raises(ValueError, match="family must be"):
        Gaps(1.0, "normal")
    with pytest.raises(ValueError, match="shape must be at least"):
        Gaps(1.0, "weibull", 0.001)
    with pytest.raises(ValueError, match="mean must be positive"):
        Gaps(0.0)
    with pytest.raises(ValueError, match="productive must be positive"):
        simulate(Job(1.0, 1.0), Gaps(1.0), 0.0)
    with pytest.raises(ValueError, match="runs must be at least 1"):
        simulate(Job(1.0, 1.0), Gaps(1.0), 1.0, runs=0)


def test_a_failure_takes_less_than_ten_microseconds():
    rate = job_rate(6.5e-3, 16384)
    job = Job(rate, 30, 5, 5, 1)
    start = time.process_time()
    found = simulate(job, Gaps(1 / rate), 500 / rate, runs=200)
    assert (time.process_time() - start) / found.failures.sum() < 10e-6
