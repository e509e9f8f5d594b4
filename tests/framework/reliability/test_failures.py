"""Failures on purpose: when they are due, what is written down before them, and what they do to a process."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from framework.checkpointing import DurableCheckpointIO
from framework.reliability import failures, ledger
from framework.reliability.failures import KINDS, Due, Injector, Plan
from framework.reliability.strikes import damage, half_written, newest_checkpoint, poison, strike
from framework.reliability.taxonomy import read_taxonomy

ROOT = Path(__file__).resolve().parents[3]
TRACE = "start\n" + "".join(f"{minutes / 1440}\n" for minutes in (0, 10, 10, 13, 33, 40))  # gaps 10, 3, 20, 7


@pytest.fixture(autouse=True)
def _unsupervised(monkeypatch):
    monkeypatch.delenv(ledger.ATTEMPT, raising=False)


def injector(folder, **settings):
    made = Injector(Plan(**settings))
    made.begin(folder, settings.get("rank") or 0)
    made.first(0)
    return made


def run(made, steps, first=0):
    """Where a run of some steps fails, if each failure only interrupts it."""
    struck = []
    for step in range(first, steps):
        due = made.due(made.plan.place, step)
        if due is not None:
            made.announce(due, step)
            struck.append(step)
    return struck


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "sigkil", "at_steps": [1]}, "kind must be one of sigkill, .*, got sigkil; did you mean sigkill"),
        ({}, "at_steps, or mttf or trace must be given, and not both"),
        ({"at_steps": [1], "mttf": "1h"}, "at_steps, or mttf or trace must be given, and not both"),
        ({"at_steps": []}, r"at_steps must be steps of at least 0, got \[\]"),
        ({"at_steps": [3, -1]}, r"at_steps must be steps of at least 0, got \[3, -1\]"),
        ({"at_steps": [1], "during": "anywhere"}, "during must be step, .* with at_steps, got anywhere"),
        (
            {"kind": "hang", "mttf": "1h", "during": "anywhere"},
            "during must be step or .* with kind hang, got anywhere",
        ),
        ({"kind": "nan", "mttf": "1h", "during": "step"}, "during must be optimizer with kind nan, got step"),
        ({"mttf": "soon"}, "mttf: 'soon' is no time: .*, such as 60min"),
        ({"mttf": "0"}, "mttf must be above 0, got 0"),
        ({"mttf": "1h", "family": "normal"}, "family must be exponential, weibull or gamma, got normal"),
        ({"mttf": "1h", "family": "gamma", "shape": 0.0}, "shape must be at least 0.01, got 0"),
        ({"mttf": "1h", "system": "20"}, "system is of a trace, but trace is not set, got 20"),
        ({"trace": "nowhere.csv"}, "nowhere.csv cannot be read: No such file"),
        ({"at_steps": [1], "rank": -1}, "rank must be at least 0, got -1"),
        ({"at_steps": [1], "seed": -1}, "seed must be at least 0, got -1"),
        ({"at_steps": [1], "max_failures": 0}, "max_failures must be at least 1, got 0"),
        ({"at_steps": [1], "slow_steps": 0}, "slow_steps must be at least 1, got 0"),
        ({"at_steps": [1], "slow_by": "-1s"}, "slow_by: '-1s' is no time"),
        ({"at_steps": [1], "hang_for": "1"}, "hang_for: '1' is no time"),
        ({"kind": "disk_full", "at_steps": [1], "rank": 1}, "rank must be 0 during a checkpoint, .*, got 1"),
    ],
)
def test_mistakes_name_the_field_the_value_and_what_is_allowed(arguments, words):
    with pytest.raises(ValueError, match=words):
        Plan(**arguments)


def test_every_kind_has_a_symptom_of_the_taxonomy_and_a_place():
    symptoms = read_taxonomy().symptoms
    for kind, nature in KINDS.items():
        assert nature.symptom in symptoms
        assert Plan(kind, at_steps=[1]).place == nature.places[0] != "anywhere"


@pytest.mark.parametrize(
    ("family", "shape", "law"),
    [
        ("exponential", 1.0, stats.expon(scale=120)),
        ("weibull", 0.6, stats.weibull_min(0.6, scale=120 / 1.5045755)),  # Gamma(1 + 1/0.6)
        ("gamma", 0.5, stats.gamma(0.5, scale=240)),
    ],
)
def test_times_follow_their_distribution_in_and_across_attempts(family, shape, law):
    plan = Plan(mttf="2min", family=family, shape=shape)
    within = list(itertools.islice(plan.times(attempt=0, rank=0, struck=0), 2000))
    first = [next(plan.times(attempt, 0, 0)) for attempt in range(2000)]
    for seconds in (within, first):
        assert stats.kstest(seconds, law.cdf).pvalue > 0.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), attempt=st.integers(0, 1000), rank=st.integers(0, 64), mttf=st.floats(1e-3, 1e5))
def test_times_hang_on_seed_rank_and_attempt_alone(seed, attempt, rank, mttf):
    plan = Plan(mttf=f"{mttf}s", seed=seed)
    times = list(itertools.islice(plan.times(attempt, rank, 0), 5))
    assert times == list(itertools.islice(plan.times(attempt, rank, 3), 5))
    assert all(time > 0 for time in times)
    others = [plan.times(attempt + 1, rank, 0), plan.times(attempt, rank + 1, 0)]
    others.append(Plan(mttf=f"{mttf}s", seed=seed + 1).times(attempt, rank, 0))
    others.append(Plan("hang", mttf=f"{mttf}s", seed=seed).times(attempt, rank, 0))
    assert all(next(other) != times[0] for other in others)


def test_a_trace_is_replayed_in_its_order_over_all_attempts(tmp_path):
    (tmp_path / "trace.csv").write_text(TRACE)
    plan = Plan(trace=str(tmp_path / "trace.csv"))
    assert list(plan.times(0, 0, 0)) == pytest.approx([600, 180, 1200, 420])  # without the tie
    assert list(plan.times(7, 3, 2)) == pytest.approx([1200, 420])
    scaled = Plan(trace=str(tmp_path / "trace.csv"), mttf="10s")
    assert list(scaled.times(0, 0, 0)) == pytest.approx([10, 3, 20, 7])
    assert list(scaled.times(4, 0, 4)) == []


# -- when a failure is due --------------------------------------------------------------------------------------------


def test_a_step_fails_once_in_a_run_whatever_restarts_it(tmp_path):
    assert run(injector(tmp_path, at_steps=[3, 7]), 5) == [3]
    assert run(injector(tmp_path, at_steps=[3, 7]), 10) == [7]
    assert run(injector(tmp_path, at_steps=[3, 7]), 10) == []
    assert run(injector(tmp_path, kind="hang", at_steps=[3, 7]), 10) == [3, 7]  # of another kind
    assert [record["attempt"] for record in failures.read(tmp_path / failures.FILE)] == [0, 1, 2, 2]


def test_steps_that_one_place_passes_over_are_one_failure_and_those_before_the_start_are_none(tmp_path):
    made = Injector(Plan(at_steps=[2, 15]))
    made.begin(tmp_path, 0)
    made.first(10)
    assert made.due("step", 11) is None
    assert made.due("step", 15) == Due((15,))
    made = Injector(Plan(at_steps=[12, 15, 25], during="validation"))
    made.begin(tmp_path, 0)
    made.first(10)
    assert made.due("step", 12) is None
    assert made.due("validation", 11) is None
    due = made.due("validation", 20)
    assert due == Due((12, 15))
    made.announce(due, 20)
    assert made.due("validation", 24) is None
    assert made.due("validation", 30) == Due((25,))


@pytest.mark.parametrize("place", ["validation", "checkpoint"])
def test_a_restart_between_a_step_and_the_place_it_waits_for_loses_no_failure(tmp_path, place):
    for begins in (0, 7):  # killed at 8, and gone on with from 7
        made = Injector(Plan("exception", at_steps=[5], during=place))
        made.begin(tmp_path, 0)
        made.first(begins)
    assert made.due(place, 10) == Due((5,))


def test_plans_of_one_kind_and_place_do_not_take_each_others_failures(tmp_path):
    """A step of another rank, and the most of another clock, are each plan's own."""
    first = injector(tmp_path, at_steps=[4], rank=0)
    first.announce(first.due("step", 4), 4)
    assert injector(tmp_path, at_steps=[4], rank=0).due("step", 4) is None
    assert injector(tmp_path, at_steps=[4], rank=1).due("step", 4) == Due((4,))
    often = injector(tmp_path, mttf="1ms", seed=1)
    for _ in range(3):
        often.announce(Due(), 1)
    assert injector(tmp_path, mttf="1ms", seed=2, max_failures=3).remaining() is not None
    assert injector(tmp_path, mttf="1ms", seed=1, max_failures=3).remaining() is None


def test_only_the_rank_that_is_meant_fails_and_a_step_once_in_a_run_not_once_in_each_rank(tmp_path):
    def fails(folder, plan, rank):
        made = Injector(Plan(at_steps=[4], rank=plan))
        made.begin(tmp_path / folder, rank)
        return run(made, 6)

    assert fails("second", 1, rank=0) == []
    assert fails("second", 1, rank=1) == [4]
    ranks = [Injector(Plan(at_steps=[4], rank=None)) for _ in range(2)]
    for rank, made in enumerate(ranks):
        made.begin(tmp_path / "all", rank)
    assert [run(made, 6) for made in ranks] == [[4], [4]]
    assert [fails("all", None, rank) for rank in range(2)] == [[], []]


def test_the_clock_starts_again_after_each_failure_and_stops_at_the_most(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = {"kind": "slow", "mttf": "10s", "max_failures": 3}
    times = Plan(**plan).times(0, 0, 0)
    made = injector(tmp_path, **plan)
    for _ in range(2):
        assert made.due("step", 0) is None
        gap = next(times)
        assert made.remaining() == pytest.approx(gap)
        now[0] += gap
        assert made.remaining() == 0
        made.announce(made.due("step", 1), 1)
    made = injector(tmp_path, **plan)  # a restart
    assert made.attempt == 1
    now[0] += next(Plan(**plan).times(1, 0, 2))
    made.announce(made.due("step", 5), 5)
    now[0] += 1e9
    assert made.due("step", 6) is None is made.remaining()
    assert injector(tmp_path, **plan).due("step", 6) is None


def test_a_supervisors_attempt_counts_and_begins_with_the_process(tmp_path, monkeypatch):
    monkeypatch.setenv(ledger.ATTEMPT, "5")
    made = injector(tmp_path, mttf="1000h")
    first = next(made.plan.times(5, 0, 0))
    assert made.attempt == 5
    alive = time.monotonic() - ledger.process_started()
    assert made.remaining() == pytest.approx(first - alive, abs=1)
    made.announce(Due(), 3)
    (event,) = ledger.read(tmp_path / ledger.FILE)
    assert {key: event[key] for key in ("event", "attempt", "rank", "kind", "during", "step", "symptom")} == {
        "event": "failure", "attempt": 5, "rank": 0, "kind": "sigkill", "during": "step", "step": 3,
        "symptom": "node_fail",
    }  # fmt: skip


def test_without_a_supervisor_the_ledger_tells_the_attempt_that_its_own_writer_counts(tmp_path):
    for attempt in (0, 1):  # the first was stopped by hand
        ledger.Ledger(tmp_path / ledger.FILE, attempt).write("start")
    made = injector(tmp_path, at_steps=[3])
    made.announce(made.due("step", 3), 3)
    assert [(each["event"], each["attempt"]) for each in ledger.read(tmp_path / ledger.FILE)][-1] == ("failure", 1)


def test_the_record_survives_torn_lines_and_foreign_ones(tmp_path):
    path = tmp_path / failures.FILE
    assert failures.read(path) == []
    record = {"plan": "sigkill step", "at_steps": [1], "attempt": 0, "rank": 0}
    failures.append(path, record)
    with path.open("ab") as file:
        file.write(b'{"plan": "sigki')
    failures.append(path, record)
    failures.append(path, {"something": "else"})
    assert failures.read(path) == [record, record]


# -- what it does to a process ----------------------------------------------------------------------------------------

SCRIPT = """
import signal, sys, time
from pathlib import Path
from framework.reliability.failures import Due, Injector, Plan
from framework.reliability.strikes import strike
assert "torch" not in sys.modules
signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
made = Injector(Plan(sys.argv[1], at_steps=[3]))
made.begin(Path(sys.argv[2]), 0)
made.announce(made.due(made.plan.place, 3), 3)
strike(made.plan.kind, 3, file=Path(sys.argv[2]) / "last.ckpt")
print("went on")
"""


def process(kind, folder):
    (folder / "last.ckpt").write_bytes(bytes(1000))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, seconds=60.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "code"), [("sigkill", -signal.SIGKILL), ("sigterm", -signal.SIGTERM), ("corrupt_checkpoint", -9)]
)
def test_a_process_dies_of_it_and_both_records_know(tmp_path, kind, code):
    started = process(kind, tmp_path)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (code, ""), err
    (event,) = ledger.read(tmp_path / ledger.FILE)
    (record,) = failures.read(tmp_path / failures.FILE)
    assert (event["kind"], event["step"], record["at_steps"]) == (kind, 3, [3])
    assert (tmp_path / "last.ckpt").stat().st_size == (500 if kind == "corrupt_checkpoint" else 1000)


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("kind", "states"), [("sigstop", "T"), ("hang", "S")])
def test_a_process_stays_and_does_nothing(tmp_path, kind, states):
    started = process(kind, tmp_path)
    try:
        until(lambda: (tmp_path / ledger.FILE).is_file() and state(started.pid) == states)
        time.sleep(0.1)
        assert started.poll() is None
        started.send_signal(signal.SIGCONT if kind == "sigstop" else signal.SIGINT)
        out, err = started.communicate(timeout=60)
    finally:
        started.kill()
    if kind == "sigstop":
        assert (started.returncode, out) == (0, "went on\n"), err
    else:
        assert "KeyboardInterrupt" in err


def test_exceptions_look_like_what_they_stand_for(tmp_path):
    with pytest.raises(RuntimeError, match="injected by FailureInjection at step 4"):
        strike("exception", 4)
    with pytest.raises(
        getattr(torch, "AcceleratorError", RuntimeError), match=r"^CUDA error: an illegal memory access"
    ):
        strike("cuda_error", 4)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt") as caught:
        strike("disk_full", 4, file=tmp_path / "last.ckpt")
    assert caught.value.errno == errno.ENOSPC
    before = time.monotonic()
    strike("hang", 4, hang=0.05)
    assert 0.05 <= time.monotonic() - before < 5


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoint_is_found_and_halved(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for age, name in enumerate(["checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/.last.ckpt.new"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(101))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/last.ckpt"
    damage(tmp_path / "checkpoints/last.ckpt")
    assert [each.stat().st_size for each in sorted((tmp_path / "checkpoints").iterdir())] == [101, 101, 50]
    shards = tmp_path / "checkpoints/sharded.ckpt"
    shards.mkdir()
    for size in (1, 30, 20):
        (shards / f"{size}.distcp").write_bytes(bytes(size))
    assert newest_checkpoint(tmp_path) == shards / "30.distcp"
    (tmp_path / "checkpoints/empty.ckpt").mkdir()
    os.utime(tmp_path / "checkpoints/empty.ckpt", (2**32, 2**32))
    assert newest_checkpoint(tmp_path) is None


CHECKPOINT = {"weights": torch.arange(1000.0), "step": 3}


def fail():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("way", ["path", "file", "buffer"])
def test_half_a_checkpoint_is_written_when_it_fails_and_all_of_it_when_it_does_not(tmp_path, way):
    whole, path = io.BytesIO(), tmp_path / "c.ckpt"
    torch.save(CHECKPOINT, whole)

    def save():
        if way == "path":
            torch.save(CHECKPOINT, path)
        elif way == "file":
            with path.open("wb") as file:
                torch.save(CHECKPOINT, file)
        else:
            buffer = io.BytesIO()
            try:
                torch.save(CHECKPOINT, buffer)
            finally:
                path.write_bytes(buffer.getvalue())

    seen = []
    original = torch.save
    with half_written(lambda: seen.append(path.stat().st_size if path.exists() else None)):
        save()
    assert torch.load(path)["step"] == 3
    assert seen == [None if way == "buffer" else len(whole.getvalue()) // 2]
    with pytest.raises(OSError, match="No space left"), half_written(fail):
        save()
    assert torch.save is original
    assert path.read_bytes() == whole.getvalue()[: len(whole.getvalue()) // 2]


def test_what_is_saved_by_other_means_or_by_other_threads_is_whole(tmp_path):
    with pytest.raises(OSError, match="No space left"), half_written(fail):
        (tmp_path / "own.ckpt").write_bytes(bytes(10))
    assert (tmp_path / "own.ckpt").stat().st_size == 10
    other = threading.Thread(target=torch.save, args=(CHECKPOINT, tmp_path / "other.ckpt"))

    def in_another_thread():
        other.start()
        other.join()

    with pytest.raises(OSError, match="No space left"), half_written(fail):
        in_another_thread()
    assert torch.load(tmp_path / "other.ckpt")["step"] == 3


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path):
    writer, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match="No space left"), half_written(fail):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}


def test_gradients_become_nan_where_there_are_any():
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    layer.bias.grad = None
    poison(layer.parameters())
    assert layer.weight.grad.isnan().all()
    assert layer.bias.grad is None


def test_the_record_is_plain_json_a_line_each(tmp_path):
    made = injector(tmp_path, at_steps=[1])
    made.announce(made.due("step", 1), 1, file="checkpoints/last.ckpt")
    (line,) = (tmp_path / failures.FILE).read_text().splitlines()
    assert json.loads(line)["at_steps"] == [1]
    (event,) = ledger.read(tmp_path / ledger.FILE)
    assert event["file"] == "checkpoints/last.ckpt"
