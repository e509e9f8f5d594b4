"""The ledger: whole lines from many writers, torn ones left out, and no event lost with them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.reliability.ledger import ATTEMPT, Ledger, Tail, last_attempt, process_started, read

ROOT = Path(__file__).resolve().parents[3]

WRITER = """
import sys
from framework.reliability.ledger import Ledger
ledger = Ledger(sys.argv[1], attempt=int(sys.argv[2]))
sys.stdin.read()  # until all are there
for number in range(500):
    ledger.write("step", step=number, padding="x" * (number % 300))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    for name in (ATTEMPT, "RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run" / "ledger.jsonl"


def test_an_event_has_its_times_attempt_and_rank(file, monkeypatch):
    monkeypatch.setenv(ATTEMPT, "3")
    monkeypatch.setenv("RANK", "1")
    before = time.time(), time.monotonic()
    Ledger(file).write("failure", sync=True, kind="sigkill", step=7)
    (event,) = read(file)
    assert before[0] <= event.pop("time") <= time.time()
    assert before[1] <= event.pop("monotonic") <= time.monotonic()
    assert event == {"event": "failure", "attempt": 3, "rank": 1, "kind": "sigkill", "step": 7}


def test_lines_of_processes_that_write_at_once_stay_whole(file):
    file.parent.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen([*command, str(number)], env=env, stdin=subprocess.PIPE) for number in range(3)]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for number in range(3):
        assert [event["step"] for event in events if event["attempt"] == number] == list(range(500))


@pytest.mark.parametrize("torn", [b'{"event": "st', b"\x00\x00\x00", b'{"event": "step"}\n', b"[1]\n", b"\n", b"7"])
def test_what_a_crash_has_torn_is_left_out_and_takes_nothing_with_it(file, torn):
    Ledger(file, 0).write("start")
    with open(file, "ab") as raw:
        raw.write(torn)
    Ledger(file, 1).write("start")
    assert [event["attempt"] for event in read(file)] == [0, 1]
    assert last_attempt(file) == 1


def test_a_full_disk_takes_one_event_and_not_the_next(file):
    """A limit on the size of files is met as a full disk is: a part of the line is written, then nothing."""
    ledger = Ledger(file, 0)
    ledger.write("start")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, before[1]))
        try:
            with pytest.raises(OSError, match=r"20 of \d+ bytes"):
                ledger.write("step", step=1)
            with pytest.raises(OSError, match="File too large"):
                ledger.write("step", step=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        ledger.write("exit")
    assert [event["event"] for event in read(file)] == ["start", "exit", "exit"]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(file):
    tail = Tail(file)
    assert tail.read() == []
    Ledger(file, 0).write("start")
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:10])
    assert len(tail.read()) == 1
    assert tail.read() == []
    with open(file, "ab") as raw:
        raw.write(whole[10:])
    assert len(tail.read()) == 1


def test_the_number_of_an_attempt_is_told_by_the_environment_or_the_file(file, monkeypatch):
    assert Ledger(file).attempt == 0
    Ledger(file, 4).write("start")
    assert Ledger(file).attempt == 4
    monkeypatch.setenv(ATTEMPT, "9")
    assert Ledger(file).attempt == 9


def test_a_sign_of_life_changes_the_time_and_nothing_else(file):
    ledger = Ledger(file, 0)
    ledger.write("start")
    content = file.read_bytes()
    os.utime(file, ns=(0, 0))
    ledger.touch()
    assert file.stat().st_mtime_ns > 0
    assert file.read_bytes() == content


def test_no_ledger_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such ledger"):
        read(tmp_path / "nowhere.jsonl")
    assert last_attempt(tmp_path / "nowhere.jsonl") == -1


def test_a_process_knows_when_it_was_started():
    code = "import time; from framework.reliability.ledger import process_started; print(process_started())"
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert before - 0.05 <= float(done.stdout) <= time.monotonic()
    assert process_started() < before
