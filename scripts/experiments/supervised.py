"""A real run under real kills, restarted by the supervisor: its measured ETTR beside the models' at its rate and costs.

The models take every step to last as long as any other. On a machine with other work that is not so; therefore steps
are padded to an even length, as they have on an accelerator.

.venv/bin/python -m scripts.experiments.supervised      draws docs/images/reliability-timeline.png from a run of its own
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.reliability.ledger import FILE, Tail
from framework.reliability.linear import ettr_linear
from framework.reliability.measured import Measured, measure
from framework.reliability.renewal import ettr_exact, ettr_finite

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "classifier/digits"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--threads", "1"]


class Pace(Callback):
    """Make steps last at least so long, with their checkpoint and validation left out.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begun = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(max(0.0, self._begun + self.seconds - time.monotonic()))


def ettr(data: str, seed: int, epochs: int, step: float, mttf: float, backoff: str) -> dict[str, dict[str, Any]]:
    """Supervise a run, kill it at exponential times, and measure it.

    Args:
        data: Configuration to train.
        seed: Seed of the run and of the times of the kills.
        epochs: Length of the run; a checkpoint is written after each.
        step: Least length of a step in seconds.
        mttf: Mean scheduled seconds between two kills.
        backoff: Wait before a restart.

    Returns:
        Measured, exact (of a long run, and of this length) and first-order ETTR, with what they follow from.

    Raises:
        RuntimeError: If the run failed, or a step was lost or counted twice.
    """
    with tempfile.TemporaryDirectory() as folder:
        args = ["-c", data, "--seed_everything", str(seed), *_args(epochs, step)]
        run = supervised(Path(folder), data, args, mttf, seed, backoff)
        job, budget = run.job(), run.budget
        last = max(each.last_step for each in run.attempts)
        if run.steps != last or last % epochs:
            raise RuntimeError(f"{run.steps} steps were counted, {last} were to be done in {epochs} epochs")
        closed = abs(budget.wall - max(each.end for each in run.attempts))
        common = {
            "ettr/failures": run.failures, "ettr/steps": run.steps, "ettr/wall_s": 60 * budget.wall,
            "ettr/mttf_s": 60 / run.rate, "ettr/interval_s": 60 * job.interval, "ettr/write_s": 60 * job.write,
            "ettr/restart_s": 60 * job.restart, "ettr/queue_s": 60 * job.queue, "ettr/lost_s": 60 * budget.lost,
            "ettr/gap_of_budget_min": closed,
        }  # fmt: skip
        exact, linear = ettr_exact(job), ettr_linear(job).value
        finite = ettr_finite(job, budget.productive)
        return {
            "measured": {"metrics": {"ettr/ratio": budget.ettr, **common}},
            "exact form": {"metrics": {"ettr/ratio": exact, "ettr/error": exact / budget.ettr - 1}},
            "exact form, of this length": {"metrics": {"ettr/ratio": finite, "ettr/error": finite / budget.ettr - 1}},
            "first order": {"metrics": {"ettr/ratio": linear, "ettr/error": linear / budget.ettr - 1}},
        }


def _args(epochs: int, step: float) -> list[str]:
    pace = ["--trainer.callbacks+", "scripts.experiments.supervised.Pace", "--trainer.callbacks.seconds", str(step)]
    return ["--trainer.max_epochs", str(epochs), *pace, *QUIET]


def supervised(folder: Path, name: str, args: list[str], mttf: float, seed: int, backoff: str) -> Measured:
    """Run ``fulgurite supervise fit`` to its end while killing what it starts.

    Args:
        folder: Where to run.
        name: Name of the run.
        args: Arguments of ``fit``.
        mttf: Mean scheduled seconds between two kills.
        seed: Seed of their times.
        backoff: Wait before a restart.

    Raises:
        RuntimeError: If the supervisor gives up.
    """
    command = [sys.executable, "-m", "framework.cli", "supervise", "--backoff", backoff, "--crash-loop", "30"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen([*command, "fit", *args], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            directory = folder / "runs" / name / "0"
            _kill(process, directory / FILE, mttf, random.Random(seed))
        finally:
            process.terminate()
        if process.wait():
            log.seek(0)
            raise RuntimeError(log.read()[-3000:])
        return measure(directory)


def _gaps(mean: float, generator: random.Random, strata: int = 20) -> Iterator[float]:
    """Exponential times, of every twenty one in each twentieth of the distribution: few kills vary less so."""
    while True:
        for stratum in generator.sample(range(strata), strata):
            yield -mean * math.log1p(-(stratum + generator.random()) / strata)


def _kill(process: subprocess.Popen[bytes], ledger: Path, mttf: float, generator: random.Random) -> None:
    """Kill attempts at exponential times, which pass while one runs, until training or the supervisor ends."""
    gaps = _gaps(mttf, generator)
    tail, pid, since, left = Tail(ledger), 0, 0.0, next(gaps)
    while process.poll() is None:
        for event in tail.read():
            if event["event"] == "spawn":
                pid, since = event["pids"][0], event["monotonic"]
            elif event["event"] == "train_end":
                process.wait()
                return
        if pid and time.monotonic() - since >= left:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)
            pid, left = 0, next(gaps)
        time.sleep(0.002)


if __name__ == "__main__":
    from framework.figures import png
    from framework.reliability.timeline import timeline_figure

    with tempfile.TemporaryDirectory() as place:
        found = supervised(Path(place), DIGITS, ["-c", DIGITS, *_args(40, 0.04)], 8.0, 0, "200ms")
    (ROOT / "docs/images/reliability-timeline.png").write_bytes(png(timeline_figure(found)))
