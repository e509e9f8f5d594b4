"""What is measured from a ledger: by hand, closed to the last digit, and against a run that the models describe."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.reliability.job import Job
from framework.reliability.ledger import Ledger
from framework.reliability.measured import KINDS, Span, measure, measured, merged
from framework.reliability.renewal import ettr_exact
from framework.reliability.timeline import timeline_figure

BOOT = 1e9


def event(name, at, attempt=0, **fields):
    """An event at a minute."""
    return {"event": name, "time": BOOT + 60 * at, "monotonic": 60 * at, "attempt": attempt, "rank": 0, **fields}


#: Two attempts: killed in step 4 after a checkpoint of step 2, then to the end.
BY_HAND = [
    event("spawn", 100),
    event("start", 101),
    event("run", 102, step=0),
    event("step", 103, step=1),
    event("step", 105, step=2),
    event("validation_begin", 105.5, step=2),
    event("validation_end", 106.5, step=2),
    event("checkpoint_begin", 107, step=2),
    event("checkpoint_end", 108, step=2),
    event("step", 110, step=3),
    event("failure", 110.5, kind="sigkill"),
    event("exit", 111, code=-9, reason="was killed by SIGKILL"),
    event("backoff", 111, seconds=120),
    event("spawn", 113, 1),
    event("start", 114, 1),
    event("run", 116, 1, step=2),
    event("step", 118, 1, step=3),
    event("step", 119, 1, step=4),
    event("validation_begin", 119, 1, step=4),
    event("checkpoint_begin", 120, 1, step=4),
    event("checkpoint_end", 120.25, 1, step=4),
    event("validation_end", 120.5, 1, step=4),
    event("checkpoint_begin", 120.5, 1, step=4),
    event("checkpoint_end", 121, 1, step=4),
    event("train_end", 121.5, 1, step=4),
    event("exit", 130, 1, code=0, reason="ended"),
    event("stop", 130, 1, code=0, reason="done"),
]


def times(result):
    return {kind: round(result.minutes(kind), 9) for kind in KINDS}


def test_a_run_by_hand():
    result = measured(BY_HAND)
    assert times(result) == {
        "queue": 2,
        "restart": 2 + 3,
        # Steps 1 and 2; 3 with what surrounds validation and checkpoint; 4; what came after the last checkpoint.
        "productive": 3 + (0.5 + 0.5 + 2) + 1 + 0.5,
        "validation": 1 + 1.25,
        "checkpoint": 1 + 0.75,
        "redone": 2,
        "lost": 1,
    }
    assert result.budget.wall == pytest.approx(21.5, abs=1e-12)
    assert result.after == 8.5
    assert (result.complete, result.failures, result.steps) == (True, 1, 4)
    assert result.rate == pytest.approx(1 / 19.5)
    assert [(each.steps, each.last_step, each.failed, each.how) for each in result.attempts] == [
        (3, 3, True, "was killed by SIGKILL"),
        (1, 4, False, "ended"),
    ]
    job = result.job()
    # Two checkpoints, the second in two files: 3 + 1 + .5 + .5 until the first, 2 + 1 + 1.25 until the second.
    assert job.interval == pytest.approx((5 + 4.25) / 2)
    assert job.write == pytest.approx(1.75 / 2)
    assert job.restart == pytest.approx(2.5)
    assert job.queue == 2


def test_the_wall_clock_is_taken_where_the_other_began_anew():
    shifted = [{**each, "monotonic": each["monotonic"] - 6700} if each["attempt"] else each for each in BY_HAND]
    assert times(measured(shifted)) == pytest.approx(times(measured(BY_HAND)), abs=1e-5)


def test_a_wall_clock_that_is_set_back_is_not_trusted():
    back = [{**each, "time": each["time"] - 3600} if each["attempt"] else each for each in BY_HAND]
    assert times(measured(back)) == times(measured(BY_HAND))


def test_steps_before_there_was_a_ledger_are_not_counted():
    begun = [event("spawn", 0), event("run", 1, step=100), event("step", 2, step=101), event("step", 3, step=102)]
    again = [event("spawn", 4, 1), event("run", 5, 1, step=100), event("step", 6, 1, step=101)]
    result = measured([*begun, *again])
    assert [each.steps for each in result.attempts] == [2, 0]
    assert times(result) == dict.fromkeys(KINDS, 0) | {"restart": 2, "productive": 2, "queue": 1, "redone": 1}


@pytest.mark.parametrize(
    ("kind", "failures", "how"),
    [("RuntimeError", 1, "raised RuntimeError"), ("KeyboardInterrupt", 0, "stopped by SIGINT")],
)
def test_a_run_without_a_supervisor_says_itself_how_it_ended(kind, failures, how):
    ended = [event("start", 0, process=-60), event("run", 1, step=0), event("exception", 2, kind=kind, step=0)]
    for events in (ended, [*ended, event("start", 3, 1, process=180)]):
        result = measured(events)
        assert (result.failures, result.attempts[0].how) == (failures, how)


@pytest.mark.parametrize("hidden", [("spawn", "exit", "backoff", "stop")])
def test_a_run_without_a_supervisor_is_measured_from_the_start_of_its_processes(hidden):
    alone = [
        {**each, "process": each["monotonic"] - 30} if each["event"] == "start" else each
        for each in BY_HAND
        if each["event"] not in hidden
    ]
    result = measured(alone)
    assert result.minutes("restart") == pytest.approx(1.5 + 2.5)
    assert result.minutes("queue") == pytest.approx(113.5 - 110.5)  # the last that was heard of it
    assert result.failures == 1
    assert result.attempts[0].how == "died"
    assert result.budget.wall == pytest.approx(121.5 - 100.5)


def test_a_failure_in_a_write_a_validation_or_a_restart_is_accounted_for():
    begun = [event("spawn", 0), event("run", 1, step=0), event("step", 2, step=1)]
    died = event("exit", 5, code=-9, reason="was killed by SIGKILL")
    writing = measured([*begun, event("checkpoint_begin", 3, step=1), died])
    assert times(writing) == dict.fromkeys(KINDS, 0) | {"restart": 1, "productive": 1, "lost": 3}
    validating = measured([*begun, event("validation_begin", 3, step=1), died])
    assert times(validating) == dict.fromkeys(KINDS, 0) | {"restart": 1, "productive": 1, "lost": 3}
    starting = measured([event("spawn", 0), event("start", 1), died])
    assert times(starting) == dict.fromkeys(KINDS, 0) | {"restart": 5}
    assert not starting.complete
    with pytest.raises(ValueError, match="wrote no checkpoint"):
        starting.job()


def test_a_run_that_was_stopped_or_hung():
    stopped = [event("spawn", 0), event("run", 1, step=0), event("exit", 2, code=143, reason="stopped by SIGTERM")]
    assert measured(stopped).failures == 0
    hung = [event("spawn", 0), event("run", 1, step=0), event("exit", 9, code=0, reason="hung: no sign", hung=True)]
    assert measured(hung).failures == 1


def test_a_complete_run_that_is_tested_again_counts_nothing_more():
    again = [event("spawn", 140, 2), event("start", 141, 2), event("exit", 150, 2, code=0, reason="ended")]
    result = measured([*BY_HAND, *again])
    assert times(result) == times(measured(BY_HAND))
    assert result.after == 8.5 + 10
    assert result.complete


def test_a_complete_run_that_is_trained_further_waited_for_nobody():
    more = [event("spawn", 140, 2), event("run", 141, 2, step=4), event("step", 143, 2, step=5)]
    result = measured([*BY_HAND, *more, event("train_end", 143, 2, step=5)])
    assert result.minutes("queue") == 2
    assert result.steps == 5
    assert result.budget.wall == pytest.approx(21.5 + 3)


NAMES = ["step", "checkpoint_begin", "checkpoint_end", "validation_begin", "validation_end", "failure", "run"]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_budget_closes_whatever_a_run_did(data):
    draw = lambda strategy: data.draw(strategy)  # noqa: E731
    gap = st.floats(0, 1e4, allow_nan=False)
    now, events, furthest, steps = draw(gap), [], 0, 0
    first = now
    attempts = draw(st.integers(1, 5))
    for attempt in range(attempts):
        events.append(event("spawn", now, attempt))
        step = draw(st.integers(0, furthest))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=12)):
            now += draw(gap)
            step += name == "step"
            events.append(event(name, now, attempt, step=step))
            furthest = max(furthest, step if name == "step" else 0)
        now += draw(gap)
        events.append(event("exit", now, attempt, code=-9, reason="was killed by SIGKILL"))
        end = now
        now += draw(gap)
    result = measured(events)
    budget = result.budget
    assert budget.wall == pytest.approx(end - first, rel=1e-9, abs=1e-9)
    assert budget.wall == pytest.approx(sum(map(result.minutes, KINDS)), rel=1e-9, abs=1e-9)
    assert result.failures == attempts
    spans = [span for each in result.attempts for span in each.spans]
    for before, after in pairwise(spans):
        assert after.begin == pytest.approx(before.end, rel=1e-9, abs=1e-9)
    steps = sum(each.steps for each in result.attempts)
    assert steps == max([each.last_step for each in result.attempts if each.last_step > 0], default=0)


def planned(job, step, saved, steps):
    """What an attempt does if nothing stops it: event, minutes it takes, step."""
    yield "run", job.restart, saved
    for number in range(saved + 1, steps + 1):
        yield "step", step, number
        if number % round(job.interval / step) == 0:
            yield "checkpoint_begin", 0.0, number
            yield "checkpoint_end", job.write, number


def simulated(job, step, steps, seed):
    """A ledger of a run as the models have it: failures at a constant rate while it is scheduled, even costs."""
    generator = random.Random(seed)
    now, saved, attempt, events = 0.0, 0, 0, []
    while saved < steps:
        events.append(event("spawn", now, attempt))
        left = generator.expovariate(job.rate)
        for name, length, number in planned(job, step, saved, steps):
            if left < length:
                break
            left -= length
            now += length
            events.append(event(name, now, attempt, step=number))
            saved = number if name == "checkpoint_end" else saved
        else:
            events.append(event("train_end", now, attempt, step=steps))
            return events
        now += left
        events.append(event("exit", now, attempt, code=-9, reason="was killed by SIGKILL"))
        now += job.queue
        attempt += 1
    raise AssertionError


@pytest.mark.parametrize(
    "job",
    [Job(0.1, 2.0, 0.1, 0.5, 0.2), Job(0.3, 1.0, 0.5, 1.0), Job(0.02, 10.0, 0.3, 5.0, 1.0)],
    ids=lambda job: f"rate{job.rate}",
)
def test_a_run_that_the_models_describe_measures_what_they_say(job):
    result = measured(simulated(job, job.interval / 2, 4_000, 0))
    found = result.job()
    assert result.steps == 4_000
    assert (found.interval, found.write, found.restart) == pytest.approx((job.interval, job.write, job.restart))
    assert found.queue == pytest.approx(job.queue)
    assert found.rate == pytest.approx(job.rate, rel=4 / math.sqrt(result.failures))
    assert result.budget.ettr == pytest.approx(ettr_exact(found), rel=0.02)


def test_neighbours_are_merged_and_gaps_are_kept():
    spans = [Span("lost", 0, 1), Span("lost", 1, 2), Span("lost", 3, 4), Span("redone", 4, 5)]
    assert list(merged(spans)) == [Span("lost", 0, 2), Span("lost", 3, 4), Span("redone", 4, 5)]
    assert list(merged([])) == []


def test_the_picture_has_a_row_an_attempt_and_a_mark_a_failure():
    (axes,) = timeline_figure(measured(BY_HAND)).axes
    (marks,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(zip(*marks.get_data())) == [(11.0, 0)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "waiting", "restart", "productive", "validation", "checkpoint", "redone", "cut off", "failure",
    ]  # fmt: skip


def test_ledgers_that_tell_nothing_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ledger\.jsonl: no such ledger"):
        measure(tmp_path)
    Ledger(tmp_path / "ledger.jsonl", 0).write("failure")
    with pytest.raises(ValueError, match=r"ledger\.jsonl: it tells of no start"):
        measure(tmp_path)
