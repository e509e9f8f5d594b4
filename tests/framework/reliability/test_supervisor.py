"""The supervisor with small processes in the place of training: what is restarted, what is not, and who is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from framework.reliability.ledger import Ledger, read
from framework.reliability.supervisor import Settings
from framework.reliability.supervisor_watch import Watch

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[3]

#: A run of ten steps with a checkpoint after each other one, which does in an attempt what its plan says.
RUN = """
import atexit, json, os, signal, subprocess, sys, time
from pathlib import Path
from framework.reliability.ledger import Ledger
from framework.reliability.supervisor import Settings, Supervisor
from framework.reliability.supervisor_processes import replace

plan, settings = json.loads(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
saved = Path("saved")


def last_words(who):
    with open("ended", "a") as file:
        file.write(who + "\\n")


def body(again):
    atexit.register(last_words, "run")
    attempt, rank = int(os.environ["FULGURITE_ATTEMPT"]), int(os.environ.get("RANK", 0))
    what, step = plan[min(attempt, len(plan) - 1)]
    with open(f"environment-{attempt}-{rank}.json", "w") as file:
        json.dump({**os.environ, "pid": os.getpid(), "again": again}, file)
    ledger = Ledger("ledger.jsonl")
    if what == "grandchild":
        command = [sys.executable, "-c", "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(99)"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        Path("grandchild").write_bytes(child.stdout.readline())
        what = "wait"
    if what == "exec":
        replace([sys.executable, "-c", "print('anew', flush=True)"])
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        what = "wait"
    at = int(saved.read_text()) if saved.exists() and not rank else 0
    act(what, -1 if step >= 0 else at, at)
    ledger.write("run")
    while at < 10:
        while rank and not saved.exists():
            time.sleep(0.01)  # until the first has begun
        if rank == settings.processes - 1:
            act(what, step, at)
        at += 1
        if rank == 0:
            ledger.write("step", step=at)
            if at % 2 == 0:
                ledger.write("checkpoint_begin", step=at)
                if what == "slow checkpoint" and at == step:
                    time.sleep(99)
                Path("new").write_text(str(at))
                os.replace("new", saved)
                ledger.write("checkpoint_end", step=at)
    ledger.write("train_end", step=at)


def act(what, step, at):
    if at != step:
        return
    if what == "wait":
        Path("waiting").touch()
        time.sleep(99)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise ValueError("what a run says\\nin its last line")
    elif what == "exit":
        sys.exit(7)
    elif what == "configuration":
        sys.exit(2)


atexit.register(last_words, "supervisor")
outcome = Supervisor(body, Path("."), settings).run()
attempts = [[each.code, each.reason, each.step, each.checkpoint] for each in outcome.attempts]
print(json.dumps({"code": outcome.code, "reason": outcome.reason, "attempts": attempts, "lines": outcome.lines}))
"""
QUICK = {"backoff": 0.0, "hang_timeout": 2.0, "start_timeout": 20.0, "checkpoint_timeout": 3.0, "grace": 1.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(plan, first=None, **settings):
    """Start the supervisor; a plan has, for each attempt, what happens and at which step (-1: before the first)."""
    command = [sys.executable, "-c", RUN, json.dumps(plan), json.dumps({**QUICK, **settings})]
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=first
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


def supervised(plan, first=None, **settings):
    return finish(start(plan, first, **settings))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=30.0):
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pid)


def soon(name, seconds=60.0):
    until = time.monotonic() + seconds
    while not Path(name).exists():
        assert time.monotonic() < until, f"{name} did not appear"
        time.sleep(0.01)


DONE = ["done", 0]


def test_whatever_ends_a_run_it_goes_on_from_its_last_checkpoint(folder):
    outcome, err = supervised([["kill", 3], ["raise", 5], ["exit", 7], DONE])
    assert outcome["code"] == 0
    assert outcome["attempts"] == [
        [-9, "was killed by SIGKILL", 3, 2],
        [1, "failed with exit code 1", 5, 4],
        [7, "failed with exit code 7", 7, 6],
        [0, "ended", 10, 10],
    ]
    assert "ValueError: what a run says" in err
    events = [(event["event"], event["attempt"]) for event in read("ledger.jsonl") if event["rank"] == 0]
    assert [event for event in events if event[0] in ("spawn", "exit")] == [
        (name, number) for number in range(4) for name in ("spawn", "exit")
    ]
    assert events[-1] == ("stop", 3)
    spawns = [event["monotonic"] for event in read("ledger.jsonl") if event["event"] == "spawn"]
    assert spawns == sorted(spawns)
    again = [json.loads(Path(f"environment-{number}-0.json").read_text())["again"] for number in range(4)]
    assert again == [False, True, True, True]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (["wait", 4], "(run)"),
        (["stop", 4], "(run)"),
        (["wait", -1], "(start)"),
        (["slow checkpoint", 4], "(checkpoint)"),
    ],
    ids=["hang", "stopped", "start", "checkpoint"],
)
def test_a_run_without_a_sign_of_life_is_killed_and_restarted(folder, plan, reason):
    outcome, err = supervised([plan, DONE], start_timeout=3.0)
    (code, why, *_), last = outcome["attempts"]
    assert code == -9
    assert why.startswith("hung: no sign of life for ")
    assert why.endswith(reason)
    assert last[:2] == [0, "ended"]
    if plan[0] == "wait":
        assert "in act" in err  # where it hung


def test_a_run_that_comes_no_further_is_given_up_with_its_last_lines(folder):
    outcome, _ = supervised([["kill", 3], ["raise", 3]], crash_loop=3)
    assert outcome["code"] == 1
    assert outcome["reason"] == "gave up: 3 attempts in a row came no further (--crash-loop)"
    assert len(outcome["attempts"]) == 4
    assert outcome["lines"][-2:] == ["ValueError: what a run says", "in its last line"]


def test_a_run_that_can_never_start_is_given_up(folder):
    outcome, _ = supervised([["exit", -1]], crash_loop=2)
    assert outcome["attempts"] == [[7, "failed with exit code 7", -1, -1]] * 2


@pytest.mark.parametrize("most", [0, 2])
def test_restarts_are_counted(folder, most):
    outcome, _ = supervised([["kill", step] for step in range(2, 10)], max_restarts=most)
    assert outcome["reason"] == f"gave up after {most} restarts (--max-restarts)"
    assert len(outcome["attempts"]) == most + 1


def test_each_attempt_has_exit_handlers_of_its_own(folder):
    supervised([["exit", 3], DONE])
    assert Path("ended").read_text().split() == ["run", "run", "supervisor"]


def test_a_full_disk_does_not_end_the_supervisor(folder):
    """Stood for by a limit on the size of files, which neither the run nor the supervisor can pass."""
    outcome, err = supervised([DONE], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)), crash_loop=2)
    assert outcome["reason"] == "gave up: 2 attempts in a row came no further (--crash-loop)"
    assert "exit is missing in the ledger: " in err


def test_a_hangup_that_is_ignored_stays_ignored(folder):
    process = start([["wait", 4]], lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    soon("waiting")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert int(status["SigIgn"], 16) >> (signal.SIGHUP - 1) & 1
    process.terminate()
    outcome, _ = finish(process)
    assert outcome["reason"] == "stopped by SIGTERM"


def test_a_wrong_configuration_is_not_tried_again(folder):
    outcome, _ = supervised([["configuration", -1]])
    assert outcome["code"] == 2
    assert len(outcome["attempts"]) == 1


def test_the_wait_before_a_restart_doubles_until_there_is_progress(folder):
    supervised([["kill", 3], ["kill", 3], ["kill", 3], ["kill", 7], ["kill", 7], DONE], backoff=0.02)
    waits = [event["seconds"] for event in read("ledger.jsonl") if event["event"] == "backoff"]
    assert waits == pytest.approx([0.02, 0.02, 0.04, 0.02, 0.02])


def test_all_ranks_start_again_when_one_dies_and_find_one_another_anew(folder):
    outcome, _ = supervised([["kill", 3], DONE], processes=2)
    assert [each[0] for each in outcome["attempts"]] == [-9, 0]
    told = [[json.loads(Path(f"environment-{a}-{r}.json").read_text()) for r in range(2)] for a in range(2)]
    for attempt in told:
        assert [each["RANK"] for each in attempt] == [each["LOCAL_RANK"] for each in attempt] == ["0", "1"]
        assert {each["WORLD_SIZE"] for each in attempt} == {"2"}
        assert len({each["MASTER_PORT"] for each in attempt}) == 1
    assert told[0][0]["MASTER_PORT"] != told[1][0]["MASTER_PORT"]
    assert not any(alive(each["pid"]) for attempt in told for each in attempt)


@pytest.mark.parametrize(
    ("plan", "number", "reason"),
    [
        (["wait", 4], signal.SIGTERM, "stopped by SIGTERM"),
        (["deaf", 4], signal.SIGINT, "stopped by SIGINT"),
        (["grandchild", 4], signal.SIGTERM, "stopped by SIGTERM"),
    ],
    ids=["asked", "deaf", "grandchild"],
)
def test_a_signal_to_the_supervisor_ends_the_run_and_leaves_nobody(folder, plan, number, reason):
    process = start([plan])
    soon("waiting")
    process.send_signal(number)
    outcome, _ = finish(process)
    assert outcome["code"] == 128 + number
    assert outcome["reason"] == reason
    assert not alive(json.loads(Path("environment-0-0.json").read_text())["pid"])
    if plan[0] == "grandchild":  # in a session of its own
        assert gone(int(Path("grandchild").read_text()))


def test_a_killed_supervisor_takes_its_run_with_it(folder):
    process = start([["deaf", 4]])
    soon("waiting")
    pid = json.loads(Path("environment-0-0.json").read_text())["pid"]
    assert alive(pid)
    process.kill()
    process.communicate()
    assert gone(pid)


def test_an_attempt_may_become_another_program(folder):
    outcome, _ = supervised([["exec", 0]])
    assert outcome["attempts"] == [[0, "ended", -1, -1]]


def test_a_second_supervisor_counts_on(folder):
    supervised([["kill", 3], ["configuration", -1]])
    outcome, _ = supervised([["kill", 3], ["configuration", -1], DONE])
    assert outcome["code"] == 0
    assert [event["attempt"] for event in read("ledger.jsonl") if event["event"] == "spawn"] == [0, 1, 2]


@pytest.mark.parametrize("field", ["backoff", "hang_timeout", "crash_loop", "processes", "grace", "max_restarts"])
def test_settings_out_of_range_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} must be .* got -1"):
        replace(Settings(), **{field: -1})


def test_rounds_that_end_between_two_looks_are_all_steps(tmp_path):
    rounds = tmp_path / "rounds.jsonl"
    watch = Watch(Ledger(tmp_path / "ledger.jsonl"), rounds)
    watch.begin(0)
    for last in (0, 1, 4, 2, 3):  # a resumed federation forgets rounds
        rounds.write_text("".join(json.dumps({"round": number}) + "\n" for number in range(last + 1)))
        os.utime(rounds, ns=(last, time.monotonic_ns()))
        watch.look()
    events = read(tmp_path / "ledger.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"] == [0, 1, 2, 3, 4, 3]
    assert [event["step"] for event in events if event["event"] == "checkpoint_end"] == [0, 1, 2, 3, 4, 3]
