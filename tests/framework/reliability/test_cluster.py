"""The cluster: by hand, against the closed forms of one job, and invariants that hold after every event."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.reliability.cluster import engine, faults
from framework.reliability.cluster.account import CASCADE, DONE, FAILURE, FIRST, LIMIT, OPEN, PREEMPTION
from framework.reliability.cluster.engine import simulate_cluster
from framework.reliability.cluster.faults import Fault, draw_faults, lemons_of
from framework.reliability.cluster.model import Cluster, ClusterJob
from framework.reliability.cluster.summary import by_size, failed_share, second_order_share
from framework.reliability.cluster.workload import MIXES, Costs, read_jobs, synthetic_jobs
from framework.reliability.gaps import Gaps
from framework.reliability.interval import optimal_interval
from framework.reliability.job import Job
from framework.reliability.rates import job_rate
from framework.reliability.renewal import ettr_exact, finite_wall
from framework.reliability.simulation import simulate

NEVER = 1e9
#: Nothing but what a test is about: failures found at once, no delay of the queue, no end of a lifetime.
BARE = {"check": 0.0, "requeue": 0.0, "lifetime": math.inf}


def fault(minute, node, repair=NEVER, drains=False, sudden=True):
    return Fault(minute, node, drains, sudden, False, repair)


# -- one job -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("write", "restart", "queue"), [(5, 5, 0), (5, 20, 30)])
def test_one_job_has_the_exact_ratio(write, restart, queue):
    cluster = Cluster(115, 6.5e-2, **BARE | {"requeue": queue}, short_repair=10, long_repair=60)
    rate = job_rate(6.5e-2, 800)
    outcome = simulate_cluster(cluster, [ClusterJob(0, 100, NEVER, 0, 60, write, restart)], 6e6)
    (job,) = outcome.jobs
    assert job.status == OPEN
    assert job.productive / job.wall == pytest.approx(ettr_exact(Job(rate, 60, write, restart, queue)), rel=6e-3)
    scheduled = job.wall - job.queue
    assert job.ended[FAILURE] == pytest.approx(rate * scheduled, abs=4 * math.sqrt(rate * scheduled))
    assert job.queue == pytest.approx(queue * job.ended[FAILURE])  # there are always nodes


def test_short_runs_of_one_job_agree_with_the_simulation_of_one_job():
    job, productive = Job(0.005, 60, 5, 5, 10), 180.0
    cluster = Cluster(140, 0.005 * 1440 / 100, **BARE | {"requeue": 10}, short_repair=1, long_repair=10)
    walls = []
    for seed in range(400):
        outcome = simulate_cluster(cluster, [ClusterJob(0, 100, productive, 0, 60, 5, 5)], 20_000, seed)
        assert outcome.jobs[0].status == DONE
        walls.append(outcome.jobs[0].wall)
    error = np.std(walls) / math.sqrt(len(walls))
    without_first_queue = finite_wall(job, productive) - job.queue
    assert np.mean(walls) == pytest.approx(without_first_queue, abs=3.5 * error)
    peer = simulate(job, Gaps(200.0), productive, runs=20_000).wall - job.queue
    for quantile in (0.25, 0.5, 0.9):
        assert np.quantile(walls, quantile) == pytest.approx(np.quantile(peer, quantile), rel=0.12)


def test_work_lost_and_kept_by_hand():
    job = ClusterJob(10, 2, 45, interval=10, write=1, restart=5)
    faults_ = [fault(10 + 5 + 22 + 4, 0), fault(10 + 5 + 22 + 4 + 3, 2)]  # the latter in the restart
    outcome = simulate_cluster(Cluster(5, 0, **BARE), [job], 200, faults=faults_)
    (one,) = outcome.jobs
    # Two intervals kept; then 25 left: two intervals with a checkpoint each, and 5 without.
    assert one.status == DONE
    assert (one.productive, one.write, one.queue) == (45, 4, 0)
    assert [one.lost[FAILURE], one.restart[FIRST], one.restart[FAILURE]] == [4, 5, 3 + 5]
    assert one.wall == pytest.approx(45 + 4 + 4 + 13)
    assert one.ended == [0, 2, 0, 0, 0, 1, 0]
    assert outcome.allotted == pytest.approx(2 * one.wall)
    assert outcome.down == pytest.approx((200 - 41) + (200 - 44))


@pytest.mark.parametrize(("at", "found"), [(31.0, 35.0), (35.0, 40.0)])
def test_a_hanging_job_is_found_by_the_next_check(at, found):
    job = ClusterJob(0, 1, 100, interval=10, write=0, restart=5)
    outcome = simulate_cluster(
        Cluster(2, 0, **BARE | {"check": 5.0}), [job], 60, faults=[fault(at, 0, sudden=False), fault(at + 1, 1)]
    )
    (one,) = outcome.jobs
    kept = 10 * ((at - 5) // 10)
    assert one.lost[FAILURE] == pytest.approx(found - 5 - kept)  # standing still included
    assert one.ended[FAILURE] == 1
    assert one.queue == pytest.approx(60 - found)  # the other node is broken, too


def test_a_check_of_low_severity_waits_for_the_end_of_the_job():
    job = ClusterJob(0, 1, 50, restart=0)
    outcome = simulate_cluster(
        Cluster(1, 0, **BARE), [job, replace(job, submit=1)], 500, faults=[fault(20, 0, repair=100, drains=True)]
    )
    first, second = outcome.jobs
    assert first.ended == [0, 0, 0, 0, 0, 1, 0]
    assert second.queue == pytest.approx(149)
    assert outcome.down == pytest.approx(100)
    # A failure on the marked node before that ends the job after all, and is one repair.
    outcome = simulate_cluster(
        Cluster(1, 0, **BARE), [job], 500, faults=[fault(20, 0, repair=100, drains=True), fault(30, 0, repair=7)]
    )
    assert outcome.jobs[0].ended[FAILURE] == 1
    assert outcome.down == pytest.approx(100)
    # The longer of the two, whichever came first.
    outcome = simulate_cluster(
        Cluster(1, 0, **BARE), [job], 500, faults=[fault(20, 0, repair=7, drains=True), fault(30, 0, repair=100)]
    )
    assert outcome.down == pytest.approx(100)


def test_the_maximum_lifetime_is_counted_on_nodes_and_over_all_attempts():
    job = ClusterJob(0, 1, 500, interval=10, restart=5)
    outcome = simulate_cluster(
        Cluster(2, 0, **BARE | {"lifetime": 100.0, "requeue": 50.0}), [job], 1000, faults=[fault(48, 0)]
    )
    (one,) = outcome.jobs
    # 5 + 43 minutes, of which 40 last; then 52 more: 5 + 40 + 7 that are lost.
    assert one.status == LIMIT
    assert (one.allotted, one.productive, one.queue) == (100, 80, 50)
    assert (one.lost[FAILURE], one.lost[LIMIT]) == (3, 7)


# -- many jobs ---------------------------------------------------------------------------------------------------------


def test_a_cascade_by_hand():
    cluster = Cluster(7, 0, **BARE | {"guard": 60.0})
    large = ClusterJob(0, 3, 1000, priority=2, interval=30, restart=5)
    middle = ClusterJob(0, 2, 1000, priority=1, interval=30, restart=5)
    small = ClusterJob(50, 2, 1000, priority=0, interval=30, restart=5)
    owner_of_0 = simulate_cluster(cluster, [large, middle, small], 100, faults=[])
    assert [each.productive for each in owner_of_0.jobs] == [95, 95, 45]
    # The large job loses a node at 100. The small one is within its guard time, so the middle one makes room; at 110
    # the small one is not any more, and makes room for that.
    outcome = simulate_cluster(cluster, [large, middle, small], 200, faults=[fault(100, 0)])
    a, b, c = outcome.jobs
    assert (a.ended[FAILURE], b.ended[CASCADE], c.ended[CASCADE]) == (1, 1, 1)
    assert (a.queue, b.queue, c.queue) == (0, 10, 90)
    assert (a.lost[FAILURE], b.lost[CASCADE], c.lost[CASCADE]) == (5, 5, 25)
    assert (a.restart[FAILURE], b.restart[CASCADE], c.restart[CASCADE]) == (5, 5, 0)
    assert outcome.idle == pytest.approx(2 * 50 + 1 * 10 + 2 * 0 + 1 * 90)
    classes = by_size(outcome)
    first = sum(each.first_order for each in classes)
    second = sum(each.second_order for each in classes)
    assert (first, second) == pytest.approx((3 * 10, 2 * (5 + 5) + 2 * 25))
    assert sum(each.scheduling for each in classes) == 0
    # As the study counts: half an hour of each interrupted attempt.
    assert second_order_share(classes) == pytest.approx((2 + 2) / (3 + 2 + 2))


def test_preemption_without_a_failure_is_not_second_order():
    cluster = Cluster(2, 0, **BARE | {"guard": 60.0})
    low = ClusterJob(0, 2, 500, restart=5)
    high = ClusterJob(20, 1, 100, priority=1, restart=5)
    outcome = simulate_cluster(cluster, [low, high], 1000, faults=[])
    one, other = outcome.jobs
    assert other.queue == pytest.approx(40)  # until the guard time of the first is over
    assert (one.ended[PREEMPTION], one.ended[CASCADE]) == (1, 0)
    assert one.lost[PREEMPTION] == pytest.approx(55)
    assert one.queue == pytest.approx(105)  # it needs both nodes
    assert by_size(outcome)[1].scheduling == pytest.approx(2 * (55 + 5))


def test_what_a_hidden_failure_takes_away_is_made_good_when_the_next_guard_time_is_over():
    cluster = Cluster(4, 0, **BARE | {"check": 1000.0, "requeue": 500.0, "guard": 60.0})
    hung, young = ClusterJob(0, 2, 9000, restart=0), ClusterJob(50, 1, 9000, restart=0)
    high = ClusterJob(100, 2, 9000, priority=1, restart=0)
    outcome = simulate_cluster(cluster, [hung, young, young, high], 400, faults=[fault(70, 0, sudden=False)])
    first, second, third, top = outcome.jobs
    assert (first.ended[FAILURE], second.ended[PREEMPTION], third.ended[PREEMPTION]) == (1, 0, 1)
    assert top.queue == pytest.approx(10)  # the hung job freed one node at 100, and a young one the other at 110


def test_equals_are_served_in_the_order_of_submission_and_nothing_overtakes():
    cluster = Cluster(4, 0, **BARE)
    jobs = [ClusterJob(0, 3, 100), ClusterJob(1, 2, 100), ClusterJob(2, 1, 10), ClusterJob(3, 1, 10, priority=1)]
    outcome = simulate_cluster(cluster, jobs, 1000, faults=[])
    assert [each.queue for each in outcome.jobs] == [0, 104, 103, 0]


class Watched(engine._Engine):
    """Checks what must hold whenever a job starts, and after every event."""

    def _start(self, job, rank, now):
        better = [level.waiting for level in self.levels[rank + 1 :]]
        assert not any(better), "a job of higher priority waits"
        if self.levels[rank].waiting:
            assert (job.job.submit, job.index) < self.levels[rank].waiting[0][:2]
        super()._start(job, rank, now)
        assert len(job.nodes) == job.job.nodes == len(set(job.nodes.tolist()))
        assert not any(self.out[node] for node in job.nodes), "a job on a broken node"

    def _schedule(self, now):
        super()._schedule(now)
        size = len(self.ring)
        free = self.ring[(self.head + np.arange(self.free)) % size].tolist()
        used = [node for each in self.accounts if each.nodes is not None for node in each.nodes.tolist()]
        assert len(set(free)) == len(free)
        assert not set(free) & set(used)
        assert len(free) + len(used) + self.down == size
        for each in self.accounts:
            if each.nodes is not None:
                assert (self.owner[each.nodes] == each.index).all()
        for level in self.levels:
            assert level.ripe_nodes == sum(each.job.nodes for each in level.ripe)


clusters = st.builds(
    lambda nodes, rate, **rest: Cluster(nodes, rate, **rest),
    st.integers(4, 24),
    st.floats(0, 0.6),
    drain_rate=st.sampled_from([0.0, 0.2]),
    sudden=st.floats(0, 1),
    check=st.sampled_from([0.0, 5.0, 60.0]),
    transient=st.floats(0, 1),
    lemon_share=st.sampled_from([0.0, 0.2]),
    guard=st.sampled_from([0.0, 30.0, 120.0]),
    requeue=st.sampled_from([0.0, 2.0]),
    lifetime=st.sampled_from([200.0, 2000.0, math.inf]),
)
many = st.lists(
    st.builds(
        ClusterJob,
        st.floats(0, 3000),
        st.integers(1, 4),
        st.floats(1, 2000),
        st.integers(-1, 2),
        st.sampled_from([7.0, 60.0]),
        st.sampled_from([0.0, 3.0]),
        st.sampled_from([0.0, 5.0]),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(clusters, many, st.integers(0, 1000))
def test_what_always_holds(cluster, jobs, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_Engine", Watched)
        outcome = simulate_cluster(cluster, jobs, 4000.0, seed)
    assert outcome.allotted + outcome.idle + outcome.down == pytest.approx(outcome.capacity, rel=1e-9)
    assert sum(each.allotted * each.job.nodes for each in outcome.jobs) == pytest.approx(outcome.allotted, rel=1e-9)
    assert 0 <= outcome.goodput <= outcome.utilisation + 1e-9 <= 1 + 2e-9
    assert len(outcome.jobs) == sum(job.submit < 4000 for job in jobs)
    for each in outcome.jobs:
        assert each.wall <= 4000 - each.job.submit + 1e-6
        assert each.productive <= each.job.work + 1e-6
        assert min(each.productive, each.write, each.queue, *each.lost, *each.restart) >= -1e-6
        assert each.used <= cluster.lifetime + cluster.check + 1e-6
        if each.status == DONE:
            assert each.productive == pytest.approx(each.job.work)
        if each.status == OPEN:
            assert each.wall == pytest.approx(4000 - each.job.submit)
    classes = by_size(outcome)
    for each in classes:
        parts = (each.productive, each.write, each.start, each.first_order, each.second_order, each.scheduling)
        assert sum(parts) + each.limit == pytest.approx(each.allotted, rel=1e-9, abs=1e-6)
        assert each.gpus / 2 / 8 < max(job.nodes for job in jobs if job.nodes <= each.gpus / 8) <= each.gpus / 8


def test_a_seed_repeats_a_simulation():
    cluster = Cluster(256, 0.02, drain_rate=0.01, lemon_share=0.05)
    jobs = synthetic_jobs(cluster, 10)
    assert jobs == synthetic_jobs(cluster, 10)
    assert jobs != synthetic_jobs(cluster, 10, seed=1)
    first, again, other = (simulate_cluster(cluster, jobs, 14400, seed) for seed in (3, 3, 4))
    assert first.events == again.events != other.events
    assert [each.wall for each in first.jobs] == [each.wall for each in again.jobs]
    assert first.goodput == again.goodput != other.goodput


def test_failures_of_a_mix_lie_on_the_line():
    cluster = Cluster(1024, 6.5e-3, lemon_share=0.0)
    outcome = simulate_cluster(cluster, synthetic_jobs(cluster, 60), 60 * 1440)
    classes = by_size(outcome)
    for each in classes:
        expected = each.mttf * each.failures / each.expected_mttf
        assert each.failures == pytest.approx(expected, abs=4 * math.sqrt(expected) + 1)
    assert 0.8 < outcome.utilisation < 0.95
    large, small = classes[-1], classes[4]
    assert large.first_order / large.allotted > 5 * small.first_order / small.allotted
    assert 0 < second_order_share(classes) < 1


def test_without_lemons_large_jobs_fail_less():
    cluster = Cluster(512, 1e-3, lemon_share=0.012, lemon_factor=200)
    jobs = synthetic_jobs(cluster, 40)
    outcome = simulate_cluster(cluster, jobs, 40 * 1440)
    assert len(outcome.lemons) == 6
    without = simulate_cluster(cluster, jobs, 40 * 1440, without=outcome.lemons)
    assert without.capacity == 506 * 40 * 1440
    assert without.allotted + without.idle + without.down == pytest.approx(without.capacity, rel=1e-9)
    (failed, ended), (later, of) = failed_share(outcome, 512), failed_share(without, 512)
    assert later / of < 0.5 * failed / ended
    assert not {event.node for event in without.events} & set(outcome.lemons)
    # Like with like: what happens to the other nodes is the same.
    faults_ = draw_faults(cluster, 40 * 1440, 0)
    assert draw_faults(cluster, 40 * 1440, 0, frozenset(outcome.lemons)) == [
        each for each in faults_ if each.node not in outcome.lemons
    ]


def test_a_month_of_sixteen_thousand_gpus_takes_a_second():
    cluster = Cluster(2048, 6.5e-3)
    start = time.process_time()
    outcome = simulate_cluster(cluster, synthetic_jobs(cluster, 30), 30 * 1440)
    assert len(outcome.events) > 300
    assert time.process_time() - start < 3.0  # 131,072 GPUs: in less than 5 s, see scripts/benchmark


# -- faults and jobs ---------------------------------------------------------------------------------------------------


def test_faults_fall_on_nodes_in_proportion_to_their_rates():
    cluster = Cluster(200, 0.05, drain_rate=0.05, lemon_share=0.1, lemon_factor=10, sudden=0.25, transient=0.9)
    lemons = lemons_of(cluster, 1)
    assert len(lemons) == 20
    drawn = draw_faults(cluster, 100 * 1440, 1)
    expected = 0.1 * (180 + 20 * 10) * 100
    assert len(drawn) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert [each.minute for each in drawn] == sorted(each.minute for each in drawn)
    on_lemons = sum(each.node in lemons for each in drawn) / len(drawn)
    assert on_lemons == pytest.approx(200 / 380, abs=0.03)
    assert sum(each.drains for each in drawn) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert sum(each.sudden for each in drawn) / len(drawn) == pytest.approx(0.25, abs=0.03)
    short = [each.repair for each in drawn if each.transient]
    assert len(short) / len(drawn) == pytest.approx(0.9, abs=0.02)
    assert np.mean(short) == pytest.approx(30, rel=0.1)
    assert not {each.node for each in draw_faults(cluster, 1e5, 1, frozenset(lemons))} & set(lemons)


@pytest.mark.parametrize(("mix", "large"), [("rsc-1", 0.66), ("rsc-2", 0.52)])
def test_mixes_hold_the_reported_shares(mix, large):
    kinds = MIXES[mix]
    assert sum(kind.share for kind in kinds) == pytest.approx(1)
    assert sum(kind.share for kind in kinds if kind.gpus >= 256) == pytest.approx(large)
    assert sum(kind.share for kind in kinds if kind.gpus <= 8) <= 0.1
    cluster = Cluster(1024, 0)
    jobs = synthetic_jobs(cluster, 200, mix=mix, load=0.7)
    work = sum(job.work * job.nodes for job in jobs) / (1024 * 200 * 1440)
    assert work == pytest.approx(0.7, rel=0.12)
    share = sum(job.work * job.nodes for job in jobs if job.nodes >= 32) / (1024 * 200 * 1440) / work
    assert share == pytest.approx(large, abs=0.08)
    small = sum(kind.share for kind in kinds if kind.gpus < 256) * 0.7 * 1024  # nodes that they hold in the mean
    assert sum(job.nodes for job in jobs if job.submit == 0 and job.nodes < 32) == pytest.approx(small, rel=0.25)


def test_intervals_follow_the_rule():
    cluster = Cluster(64, 6.5e-3)
    costs = Costs(write=5, rule="optimal")
    assert costs.of(cluster, 16) == (optimal_interval(job_rate(6.5e-3, 128), 5), 5, 5)
    assert costs.of(Cluster(64, 0.0), 16)[0] == 7 * 1440
    assert {job.interval for job in synthetic_jobs(cluster, 100, costs=costs)} == {
        optimal_interval(job_rate(6.5e-3, nodes * 8), 5) for nodes in (1, 2, 4, 8, 16, 32)
    }


def test_jobs_of_a_file(tmp_path):
    file = tmp_path / "jobs.csv"
    file.write_text(
        "submit, gpus,duration,priority\n2024-01-01T00:30,16,90,1\n2024-01-01T00:00Z,9,2h,\n2024-01-02,,1,\n"
        "2024-01-02,1,-5,\n2024-01-02,1,1,x\nsoon,1,1,1\n2024-01-02,800,1,1\n2024-01-02,1,1,1.5\n"
    )
    trace = read_jobs(file, Cluster(64, 0.0), Costs(10, 1, 2))
    assert trace.jobs == [ClusterJob(0, 2, 120, 0, 10, 1, 2), ClusterJob(30, 2, 90, 1, 10, 1, 2)]
    reasons = [line.removeprefix(f"{file}:") for line in trace.unreadable]
    assert [line.partition(":")[0] for line in reasons] == ["4", "5", "6", "7", "8", "9"]
    for line, reason in zip(reasons, ("gpus is ''", "duration is '-5'", "priority is 'x'", "'soon'", "800", "1.5")):
        assert reason in line
    file.write_text("submit,gpus,duration\n0,8,1\n90s,8,1\n")
    assert [job.submit for job in read_jobs(file, Cluster(64, 0.0)).jobs] == [0, 1.5]
    file.write_text("submit,gpus,duration\n28401100.0,8,1\n28401105,8,1\n")  # minutes since 1970, and no date
    assert [job.submit for job in read_jobs(file, Cluster(64, 0.0)).jobs] == [0, 5]
    file.write_text("submit,gpus,duration\n0.0,8,1\n1.5,8,1\nnan,8,1\n")
    trace = read_jobs(file, Cluster(64, 0.0))
    assert ([job.submit for job in trace.jobs], len(trace.unreadable)) == ([0, 1.5], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"submit,gpus\n1,2\n", "has no column duration; its columns: submit, gpus"),
        (b"", "has no column submit; its columns: none"),
        (
            b"submit,gpus,duration\n1,x,2\n",
            r"has no readable job; the first that could not be read: .*jobs.csv:2: gpus",
        ),
        (b"\xff\xfe\x00\x01", "cannot be read as a CSV file"),
    ],
)
def test_files_without_jobs(tmp_path, content, message):
    (tmp_path / "jobs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jobs(tmp_path / "jobs.csv", Cluster(64, 0.0))
    with pytest.raises(ValueError, match=r"none.csv cannot be read: No such file"):
        read_jobs(tmp_path / "none.csv", Cluster(64, 0.0))


def test_values_out_of_range(monkeypatch):
    for field in fields(Cluster):
        for value in (-1, math.nan):
            with pytest.raises(ValueError, match=f"{field.name} must be"):
                replace(Cluster(8, 0.1), **{field.name: value})
    for name in ("sudden", "transient", "lemon_share"):
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 1.5"):
            Cluster(8, 0.1, **{name: 1.5})
    with pytest.raises(ValueError, match="nodes must be a whole number"):
        Cluster(1.5, 0.1)
    for field in ("submit", "nodes", "work", "interval", "write", "restart"):
        with pytest.raises(ValueError, match=f"{field} must be"):
            replace(ClusterJob(0, 1, 1), **{field: -1})
    with pytest.raises(ValueError, match="priority must be a whole number"):
        ClusterJob(0, 1, 1, 0.5)
    cluster = Cluster(8, 0.1)
    with pytest.raises(ValueError, match="asks for 9 nodes, and the cluster has 8"):
        simulate_cluster(cluster, [ClusterJob(0, 9, 1)], 10)
    with pytest.raises(ValueError, match="asks for 8 nodes, and the cluster has 7"):
        simulate_cluster(cluster, [ClusterJob(0, 8, 1)], 10, without=[3])
    with pytest.raises(ValueError, match="without must name nodes from 0 to 7"):
        simulate_cluster(cluster, [], 10, without=[8])
    with pytest.raises(ValueError, match="minutes must be positive"):
        simulate_cluster(cluster, [], 0)
    monkeypatch.setattr(faults, "MAX_FAULTS", 10)
    with pytest.raises(ValueError, match=r"failure_rate gives some .* failures: more than 10"):
        simulate_cluster(cluster, [], 1e5)
    with pytest.raises(ValueError, match="mix must be one of rsc-1, rsc-2, got x"):
        synthetic_jobs(cluster, 1, mix="x")
    with pytest.raises(ValueError, match="nodes must be at least 2"):
        synthetic_jobs(Cluster(1, 0.1), 1)
    with pytest.raises(ValueError, match="write must be positive"):
        Costs(rule="young")
