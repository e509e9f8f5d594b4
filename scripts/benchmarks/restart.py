"""From a kill to the first new step: a fork of the supervisor against a new interpreter, by `fulgurite supervise`.

Each call continues one supervised run: it kills the attempt that trains and waits until the next has finished a step.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from framework.reliability.ledger import FILE, Event, Tail

ROOT = Path(__file__).resolve().parents[2]
CASES = [{"config": "classifier/digits"}]


class Run(NamedTuple):
    """A supervised run, and what is read of it."""

    process: subprocess.Popen[bytes]
    tail: Tail
    pids: list[int]


def setup(config: str, variant: str) -> Run:
    folder = tempfile.TemporaryDirectory()
    cold = [] if variant == "fork" else ["--cold"]
    options = ["--backoff", "0s", "--crash-loop", "1000", *cold, "fit", "-c", config, "--trainer.max_epochs", "100000"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "framework.cli", "supervise", *options, *quiet],
        cwd=folder.name,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(folder.cleanup)
    atexit.register(_end, process)
    run = Run(process, Tail(Path(folder.name) / "runs" / config / "0" / FILE), [])
    _until(run, "checkpoint_end")
    time.sleep(5)  # the supervisor imports what the run has imported
    return run


def restart(run: Run) -> None:
    """Kill the attempt, and wait for a step of the next."""
    run.tail.read()
    os.kill(run.pids[-1], signal.SIGKILL)
    _until(run, "spawn")
    _until(run, "step")


def _until(run: Run, name: str) -> Event:
    while run.process.poll() is None:
        for event in run.tail.read():
            if event["event"] == "spawn":
                run.pids.append(event["pids"][0])
            if event["event"] == name:
                return event
        time.sleep(0.002)
    raise RuntimeError(f"the supervisor ended with code {run.process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


VARIANTS = {"fork": restart, "cold start": restart}
