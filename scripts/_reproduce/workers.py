"""Jobs in parallel, each in a process of its own that starts with everything heavy already imported.

A fork server imports torch and Lightning once; every job is a fork of it, so it costs no import (six seconds of CPU)
and still shares no state with the jobs before it. A job that crashes, is killed or runs out of memory takes nothing
with it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import fcntl
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts._reproduce.jobs import QUIET, Call, Run, options

PRELOAD = [
    "framework.commands.train", "framework.evaluation.records", "scripts._reproduce.workers",
    "sklearn.datasets", "sklearn.model_selection", "torchmetrics.classification",
]  # fmt: skip
OUTCOME, LOG = "outcome.json", "log.txt"


@dataclasses.dataclass(frozen=True)
class Done:
    """How a job ended.

    Attributes:
        job: The job.
        code: Exit code of its process; negative for a signal.
        directory: Its folder, with ``outcome.json`` if the code is 0, and ``log.txt``.
    """

    job: Run | Call
    code: int

    def last_lines(self, count: int = 5) -> str:
        """The end of what it printed."""
        log = self.job.directory / LOG
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        reason = [f"killed by signal {-self.code}"] if self.code < 0 else []
        return "\n".join(["    " + line for line in [*lines[-count:], *reason]]) or "    (no output)"


def finished(job: Run | Call) -> bool:
    """Whether the job has run to its end with the configuration it has now."""
    path = job.directory / OUTCOME
    return path.exists() and json.loads(path.read_text())["hash"] == job.hash


def outcome(job: Run | Call) -> dict[str, Any]:
    """What a finished job left."""
    return json.loads((job.directory / OUTCOME).read_text())


def run_all(
    jobs: Sequence[Run | Call],
    processes: int,
    threads: int = 1,
    keep: bool = False,
    preload: Sequence[str] = (),
    fresh: bool = False,
) -> Iterator[Done]:
    """Run jobs, yielding each as it ends.

    Args:
        jobs: The jobs, started in this order.
        processes: How many run at once, at least 1.
        threads: CPU threads of each.
        keep: Whether to keep checkpoints.
        preload: Modules to import once for all, besides ``PRELOAD``.
        fresh: Whether to start every job in a new interpreter instead of a fork (slower; to compare).

    Raises:
        ValueError: If ``processes`` or ``threads`` is below 1.
    """
    if processes < 1 or threads < 1:
        raise ValueError(f"jobs and threads must be at least 1, got {processes} and {threads}")
    context = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        context.set_forkserver_preload([*PRELOAD, *preload])
    waiting, running = list(jobs)[::-1], {}
    try:
        with _environment(threads):
            while waiting or running:
                while waiting and len(running) < processes:
                    job = waiting.pop()
                    process = context.Process(target=_work, args=(job, keep))
                    process.start()
                    running[process.sentinel] = (process, job)
                for sentinel in multiprocessing.connection.wait(list(running)):
                    process, job = running.pop(sentinel)
                    process.join()
                    yield Done(job, process.exitcode)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Threads, and where to import from, for the processes started meanwhile."""
    root = str(Path(__file__).resolve().parents[2])
    new = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    new["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(job: Run | Call, keep: bool) -> None:
    """Body of a process: run the job with its output in a file, and leave its outcome."""
    from framework.evaluation.records import Commit, Environment, peak_memory_mb

    shutil.rmtree(job.directory, ignore_errors=True)  # of an attempt that was killed
    job.directory.mkdir(parents=True)
    with (job.directory / LOG).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            if isinstance(job, Run) and job.start is not None:
                _prepare(job.start)
            started = time.perf_counter()
            result = _run(job, keep) if isinstance(job, Run) else _call(job)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        except SystemExit as exit:
            sys.stderr.flush()
            os._exit(exit.code if isinstance(exit.code, int) else 1)
        result |= {
            "hash": job.hash,
            "seconds": round(time.perf_counter() - started, 2),
            "peak_mb": round(peak_memory_mb(), 1),
            "date": datetime.date.today().isoformat(),
            "commit": dataclasses.asdict(Commit.current(Path(__file__).parent)),
            "environment": dataclasses.asdict(Environment.current()),
        }
        part = job.directory / f".{OUTCOME}"
        part.write_text(json.dumps(result, indent=1))
        part.rename(job.directory / OUTCOME)
        sys.stdout.flush()


def _run(job: Run, keep: bool) -> dict[str, Any]:
    """One run of the command line: what it tested, and what it monitored at the checkpoint it tested."""
    from framework import cli

    place = {**QUIET, "trainer.default_root_dir": str(job.directory), "name": "run"}
    done = cli.run([*job.arguments, *options(place)])
    if done is None or not done.results:
        raise ValueError(f"{job.command} gave no test metrics: does the data module have test_dataloader?")
    log = done.directory / "metrics.csv"
    if job.verb == "federate":
        monitor = done.run.monitor if done.run.best[1] is not None else None
        monitored = row_of_round(log, done.run.best[0])
    else:
        monitor = getattr(done.trainer.checkpoint_callback, "monitor", None)
        monitored = best_row(log, monitor, getattr(done.trainer.checkpoint_callback, "mode", "max"))
    more = _collected(job, done.directory)
    if not keep:
        shutil.rmtree(done.directory / "checkpoints", ignore_errors=True)
    metrics = {**done.results, **more.get("metrics", {})}
    return {"metrics": metrics, "curves": more.get("curves", {}), "monitored": monitored, "monitor": monitor}


def _prepare(start: Run) -> None:
    """Fit what other runs start from, once: the first of them does it, and the others wait."""
    from framework import cli

    start.directory.mkdir(parents=True, exist_ok=True)
    with (start.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = start.directory / "hash"
        if start.checkpoint.is_file() and made.is_file() and made.read_text() == start.hash:
            return
        shutil.rmtree(start.directory / "run", ignore_errors=True)  # of an attempt that was killed
        place = {**QUIET, "trainer.default_root_dir": str(start.directory), "name": "run"}
        done = cli.run([*start.arguments, *options(place)])
        assert done is not None
        shutil.copyfile(done.trainer.checkpoint_callback.best_model_path, start.checkpoint)
        shutil.rmtree(done.directory)
        made.write_text(start.hash)


def _collected(job: Run, directory: Path) -> dict[str, Any]:
    """What the experiment's own function reads from the run's directory."""
    if not job.collect:
        return {}
    more = _function(job.collect)(directory)
    if set(more) - {"metrics", "curves"}:
        raise ValueError(f"{job.collect} must return metrics and curves, got {', '.join(more)}")
    return more


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def best_row(path: Path, monitor: str | None, mode: str) -> dict[str, float]:
    """Metrics logged together with the best value of the monitored one; of equal values the first, as checkpoints go.

    Args:
        path: ``metrics.csv`` of a run.
        monitor: The monitored metric; with ``None`` the last value of every metric is taken.
        mode: ``max`` or ``min``.

    Raises:
        ValueError: If the monitored metric was never logged.
    """
    rows = _rows(path)
    if monitor is None:
        merged: dict[str, float] = {}
        for row in rows:
            merged |= row
        return _without_test(merged)
    rows = [row for row in rows if monitor in row]
    if not rows:
        raise ValueError(f"{path} has no value of the monitored {monitor}")
    choose: Callable[..., dict[str, float]] = max if mode == "max" else min
    return _without_test(choose(rows, key=lambda row: row[monitor]))


def row_of_round(path: Path, number: int) -> dict[str, float]:
    """Metrics of one round of a federation.

    Args:
        path: ``metrics.csv`` of its run.
        number: The round.
    """
    return _without_test(next(row for row in _rows(path) if row.get("round") == number))


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if value not in ("", None)} for row in csv.DictReader(file)
        ]


def _without_test(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not key.startswith("test")}


def _call(job: Call) -> dict[str, Any]:
    result = _function(job.function)(data=job.data, seed=job.seed, **job.options)
    if set(result) != set(job.rows):
        raise ValueError(f"{job.function} returned the rows {', '.join(result)}; declared are {', '.join(job.rows)}")
    rows = {}
    for row, fields in result.items():
        if "metrics" not in fields or set(fields) - {"metrics", "choice", "selection", "curves"}:
            raise ValueError(
                f"{job.function} must return metrics (and choice, selection, curves) for row {row}, "
                f"got {', '.join(fields)}"
            )
        rows[row] = {**fields, "metrics": {name: float(value) for name, value in fields["metrics"].items()}}
    return {"rows": rows}
