"""Failures on purpose: of which kind, at which steps or times, and a record of them that outlives the process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from framework.errors import near
from framework.reliability.gaps import Gaps, Shape, TraceGaps
from framework.reliability.ledger import ATTEMPT, Ledger, last_attempt, process_started
from framework.reliability.ledger import FILE as LEDGER
from framework.reliability.units import minutes
from framework.seeding import derive

Kind = Literal[
    "sigkill", "sigterm", "sigstop", "exception", "cuda_error", "hang", "slow", "corrupt_checkpoint", "disk_full", "nan"
]
Place = Literal["step", "optimizer", "validation", "checkpoint", "anywhere"]

FILE = "failures.jsonl"
"""What has been injected into a run, in its directory."""

_IN_HOOKS: tuple[Place, ...] = ("step", "optimizer", "validation")


@dataclass(frozen=True)
class Nature:
    """What a kind of failure is.

    Attributes:
        symptom: What it looks like from outside, by its name in the taxonomy.
        places: Where in a step it may strike; the first unless another is asked for.
    """

    symptom: str
    places: tuple[Place, ...]


KINDS: dict[Kind, Nature] = {
    "sigkill": Nature("node_fail", (*_IN_HOOKS, "checkpoint", "anywhere")),
    "sigterm": Nature("preempted", (*_IN_HOOKS, "checkpoint", "anywhere")),
    "sigstop": Nature("unresponsive", (*_IN_HOOKS, "checkpoint", "anywhere")),
    "exception": Nature("exception", (*_IN_HOOKS, "checkpoint")),
    "cuda_error": Nature("illegal_memory_access", (*_IN_HOOKS, "checkpoint")),
    "hang": Nature("nccl_timeout", (*_IN_HOOKS, "checkpoint")),
    "slow": Nature("straggler", ("step",)),
    "corrupt_checkpoint": Nature("corrupt_file", _IN_HOOKS),
    "disk_full": Nature("disk_full", ("checkpoint",)),
    "nan": Nature("not_finite", ("optimizer",)),
}
"""All kinds."""


@dataclass(frozen=True)
class Plan:
    """Which failures a run is to suffer.

    Attributes:
        kind: What happens.
        at_steps: Optimiser steps, from 0, at which it happens, each once in a run however often that is restarted.
        mttf: Mean time to failure while the run is up, such as ``10min``. With ``trace`` its gaps are scaled to it.
        family: Distribution of the times between failures.
        shape: Shape of a Weibull or gamma distribution, at least 0.01.
        trace: CSV file of failures (:func:`framework.reliability.traces.read_trace`), whose gaps are replayed.
        system: Which system of the trace, where that has several.
        during: Where in a step; ``None`` for the kind's own place.
        rank: Which process; ``None`` for all of them, each by a clock of its own.
        seed: Seed of the times, at least 0.
        max_failures: The most in a run, at least 1; ``None`` for no limit.
        symptom: What is told to the ledger; ``None`` for the kind's.
        slow_by: How much longer each step of a slow process takes.
        slow_steps: How many steps it is slow for, at least 1.
        hang_for: How long a hang lasts; ``None`` for ever.

    Raises:
        ValueError: If an argument is out of range, or two do not go together.
    """

    kind: Kind = "sigkill"
    at_steps: Sequence[int] | None = None
    mttf: str | None = None
    family: Shape = "exponential"
    shape: float = 1.0
    trace: str | None = None
    system: str | None = None
    during: Place | None = None
    rank: int | None = 0
    seed: int = 0
    max_failures: int | None = None
    symptom: str | None = None
    slow_by: str = "1s"
    slow_steps: int = 10
    hang_for: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind}{near(str(self.kind), KINDS)}")
        places = KINDS[self.kind].places
        if self.during is not None and self.during not in places:
            raise ValueError(f"during must be {' or '.join(places)} with kind {self.kind}, got {self.during}")
        if (self.at_steps is None) == (self.mttf is None and self.trace is None):
            raise ValueError("at_steps, or mttf or trace must be given, and not both: when is it to fail?")
        if self.at_steps is not None and not (self.at_steps and all(step >= 0 for step in self.at_steps)):
            raise ValueError(f"at_steps must be steps of at least 0, got {list(self.at_steps)}")
        if self.at_steps is not None and self.during == "anywhere":
            raise ValueError("during must be step, optimizer, validation or checkpoint with at_steps, got anywhere")
        if self.system is not None and self.trace is None:
            raise ValueError(f"system is of a trace, but trace is not set, got {self.system}")
        for name, least in (("rank", 0), ("seed", 0), ("max_failures", 1), ("slow_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.place == "checkpoint" and self.rank not in (0, None):
            raise ValueError(f"rank must be 0 during a checkpoint, which rank 0 writes, got {self.rank}")
        for name in ("mttf", "slow_by", "hang_for"):
            _seconds(name, getattr(self, name))
        self.gaps()

    @property
    def place(self) -> Place:
        """Where in a step it strikes."""
        return KINDS[self.kind].places[0] if self.during is None else self.during

    @property
    def key(self) -> str:
        """What tells its failures from those of another plan of the same run."""
        when = "steps" if self.at_steps is not None else "clock" if self.trace is None else "trace"
        return f"{self.kind} {self.place} rank {'all' if self.rank is None else self.rank} {when} {self.seed}"

    @property
    def seconds_slow(self) -> float:
        """Seconds that each step of a slow process takes longer."""
        return _seconds("slow_by", self.slow_by) or 0.0

    @property
    def seconds_hung(self) -> float | None:
        """Seconds that a hang lasts."""
        return _seconds("hang_for", self.hang_for)

    def gaps(self) -> Gaps | TraceGaps | None:
        """Times between failures; ``None`` where they come at steps.

        Raises:
            ValueError: If the trace cannot be read.
        """
        seconds = _seconds("mttf", self.mttf)
        mean = None if seconds is None else seconds / 60
        if self.trace is not None:
            from framework.reliability.traces import read_trace

            # Neither the number of nodes nor the days of observation matter to gaps.
            return TraceGaps(read_trace(self.trace, system=self.system, nodes=1, days=1).gaps()[0], mean)
        return None if mean is None else Gaps(mean, self.family, self.shape)

    def times(self, attempt: int, rank: int, struck: int) -> Iterator[float]:
        """Seconds from the start of an attempt to its first failure, from there to its second, and so forth.

        Random ones depend on (seed, rank, attempt), so that a restarted run does not die at the same time again. Those
        of a trace come in its order, one after the other over all attempts, and end with it.

        Args:
            attempt: Number of the attempt, from 0.
            rank: Of the process.
            struck: How many by the clock this rank has had in earlier attempts.
        """
        gaps = self.gaps()
        if isinstance(gaps, TraceGaps):
            yield from (60 * gap for gap in gaps.values[struck:].tolist())
        elif gaps is not None:
            import numpy as np

            generator = np.random.default_rng(derive(self.seed, "failures", f"{self.kind} {self.place}", rank, attempt))
            for _ in count():
                yield 60 * float(gaps.draw(generator, (1, 1))[0, 0])


@dataclass(frozen=True)
class Due:
    """A failure whose time has come.

    Attributes:
        steps: The steps of ``at_steps`` that it stands for; empty if it comes by the clock.
    """

    steps: tuple[int, ...] = ()


class Injector:
    """Decides in one process when failures are due, and writes them down before they happen.

    Args:
        plan: Which failures.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.attempt = 0
        self.rank = 0
        self._directory: Path | None = None
        self._ledger: Ledger | None = None
        self._first: int | None = None
        self._left = plan.max_failures
        self._waiting: list[int] = []
        self._times: Iterator[float] = iter(())
        self._next: float | None = None

    @property
    def begun(self) -> bool:
        """Whether ``begin`` has been called."""
        return self._directory is not None

    def begin(self, directory: Path, rank: int) -> None:
        """Read what has struck this run before, and draw what is to come.

        The attempt is what the supervisor says it is; without one, the next after the last that has had a failure. An
        attempt of a supervisor begins with its process, so that failures hit its start-up, too.

        Args:
            directory: The run directory.
            rank: Of this process.
        """
        plan = self.plan
        records = read(directory / FILE)
        own = [record for record in records if record["plan"] == plan.key]
        supervised = os.environ.get(ATTEMPT)
        self.attempt = int(supervised or max((record["attempt"] for record in records), default=-1) + 1)
        self.rank, self._directory = rank, directory
        if plan.max_failures is not None:
            self._left = max(0, plan.max_failures - len(own))
        if plan.rank not in (None, rank):
            return
        struck = {step for record in own for step in record["at_steps"]}
        self._waiting = [step for step in plan.at_steps or () if step not in struck]
        by_clock = [record for record in own if not record["at_steps"] and record["rank"] == rank]
        self._times = plan.times(self.attempt, rank, len(by_clock))
        self._advance(time.monotonic() if supervised is None else process_started())

    def first(self, step: int) -> None:
        """Tell the step at which this attempt begins; earlier ones are over, but for validations and checkpoints."""
        if self._first is None:
            self._first = step

    def due(self, place: Place, step: int) -> Due | None:
        """Whether to fail here and now.

        Args:
            place: Where in a step this is.
            step: Which step, from 0.

        Returns:
            What is due: all steps since the last look at this place together, or the clock. ``None`` if nothing is.
        """
        if place != self.plan.place or self._left == 0:
            return None
        # A validation or checkpoint that a step waits for may come after a restart beyond that step.
        first = self._first if place in ("step", "optimizer") else None
        steps = tuple(each for each in self._waiting if (first or 0) <= each <= step)
        if steps or (self._next is not None and time.monotonic() >= self._next):
            return Due(steps)
        return None

    def remaining(self) -> float | None:
        """Seconds until the next failure by the clock, 0 if that is over; ``None`` if there is none to come."""
        if self._next is None or self._left == 0:
            return None
        return max(0.0, self._next - time.monotonic())

    def announce(self, due: Due, step: int, **more: Any) -> None:
        """Write down that a failure strikes now: to the run's record and to the ledger, through to the disk.

        Args:
            due: The failure.
            step: At which step.
            more: What else the ledger should hold.
        """
        assert self._directory is not None
        plan = self.plan
        if self._ledger is None:
            path = self._directory / LEDGER
            # Without a supervisor, whoever else writes there counts attempts without failures, too, and has begun this.
            number = self.attempt if os.environ.get(ATTEMPT) else max(self.attempt, last_attempt(path))
            self._ledger = Ledger(path, number)
        self._waiting = [each for each in self._waiting if each not in due.steps]
        if self._left is not None:
            self._left -= 1
        if not due.steps:
            self._advance(time.monotonic())
        told = {"kind": plan.kind, "during": plan.place, "step": step, "rank": self.rank}
        record = {"plan": plan.key, "at_steps": due.steps, "attempt": self.attempt, "time": time.time(), **told}
        append(self._directory / FILE, record)
        symptom = plan.symptom or KINDS[plan.kind].symptom
        self._ledger.write("failure", sync=True, symptom=symptom, **told, **more)

    def _advance(self, since: float) -> None:
        gap = next(self._times, None)
        self._next = None if gap is None else since + gap


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a record, through to the disk.

    Args:
        path: The file.
        record: What JSON knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")  # by the machine's end
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, (("\n" if torn else "") + json.dumps(record) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """What a record holds; nothing if there is none. Torn lines are left out.

    Args:
        path: The file.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= {"plan", "at_steps", "attempt", "rank"}:
            records.append(record)
    return records


def _seconds(name: str, text: str | None) -> float | None:
    """A time in seconds, above zero."""
    if text is None:
        return None
    try:
        value = 60 * minutes(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not value:
        raise ValueError(f"{name} must be above 0, got {text}")
    return value


assert set(KINDS) == set(get_args(Kind))
