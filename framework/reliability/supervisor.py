"""A run that is restarted until it is done: what is watched, when to begin again, and when to give up.

The supervisor imports what a run needs once and forks every attempt from itself, so that a restart costs no import. It
has one thread, and learns what an attempt does from the run's ledger alone: a run of any trainer that writes one can be
supervised.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

from framework.reliability.ledger import ATTEMPT, FILE, Ledger, last_attempt
from framework.reliability.rates import checked
from framework.reliability.supervisor_processes import Attempt, adopting, ranks
from framework.reliability.supervisor_watch import Watch
from framework.rundir import ASSIGNED

CONFIGURATION = 2
"""Exit code of a run whose configuration is wrong, which no restart mends."""
POLL = 0.2
SHOWN = 20
"""Lines of standard error that a summary shows, where they are no stack."""
LONGEST_BACKOFF = 300.0
OWN_END = 5.0
"""Seconds that what a run has started may outlive it when it ends well."""


@dataclass(frozen=True)
class Settings:
    """When to restart, and when to stop; times in seconds.

    Attributes:
        max_restarts: The most restarts, at least 0.
        backoff: Wait before a restart; doubled for each failure in a row without progress, at most five minutes.
        hang_timeout: Longest time without a sign of life while it trains or evaluates, positive.
        start_timeout: The same until the first step.
        checkpoint_timeout: The same while a checkpoint is written.
        crash_loop: Attempts in a row that come no further than those before, after which to give up, at least 1.
        grace: How long a run that is asked to stop may take before it is killed.
        processes: Ranks to start on this machine, at least 1.

    Raises:
        ValueError: For a value out of range, naming it.
    """

    max_restarts: int = 1000
    backoff: float = 1.0
    hang_timeout: float = 600.0
    start_timeout: float = 1200.0
    checkpoint_timeout: float = 1800.0
    crash_loop: int = 5
    grace: float = 30.0
    processes: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            checked(each.name, getattr(self, each.name), positive=each.name.endswith("timeout"))
        for name in ("crash_loop", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Ended:
    """One attempt.

    Attributes:
        number: Its number.
        code: Exit code; of a signal it is negative.
        reason: How it ended, in words.
        seconds: How long it ran.
        step: The last step it finished, -1 for none.
        checkpoint: Step of the last checkpoint of the run by then, -1 for none.
        progress: Whether it came further than those before.
        hung: Whether it was killed because it gave no sign of life.
    """

    number: int
    code: int
    reason: str
    seconds: float
    step: int
    checkpoint: int
    progress: bool
    hung: bool = False


@dataclass
class Outcome:
    """What came of a supervised run.

    Attributes:
        directory: The run directory.
        code: Exit code for the supervisor: 0 if the run is done.
        reason: Why it stopped, in words.
        attempts: The attempts.
        lines: Last lines that the last attempt wrote to standard error.
    """

    directory: Path
    code: int = 0
    reason: str = "done"
    attempts: list[Ended] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The attempts, and why the last one was the last."""
        table = [
            f"  attempt {each.number}: {each.reason} after {each.seconds:.1f} s"
            + (f", at step {each.step}" if each.step >= 0 else ", before its first step")
            + (f", checkpoint of step {each.checkpoint}" if each.checkpoint >= 0 else "")
            for each in self.attempts[-10:]
        ]
        if len(self.attempts) > 10:
            table.insert(0, f"  ({len(self.attempts) - 10} more before)")
        last = ["last lines on standard error:", *(f"  {line}" for line in self.lines)] if self.lines else []
        return "\n".join(
            [f"{self.reason} ({_counted(len(self.attempts), 'attempt')}), {self.directory}", *table, *last]
        )


class _Ledger(Ledger):
    """One that says what it cannot write, for the supervisor has to outlast a full disk.

    It is opened for every event, which ends a line that the run may have torn.
    """

    def write(self, event: str, sync: bool = False, **fields: Any) -> None:
        """Append an event, if that is possible."""
        try:
            super().write(event, sync, **fields)
        except OSError as error:
            _say(f"{event} is missing in the ledger: {error}")
        finally:
            self.close()


class Supervisor:
    """Starts attempts of one run until it is done or hopeless.

    Args:
        body: What each process of an attempt does; it is given whether it is a restart. Its
            environment has the number of the attempt and the run directory.
        directory: The run directory, which has the ledger.
        settings: When to restart.
        rounds: A file to which the run adds a JSON line with ``round`` for each unit of work that is done and saved,
            for a run that writes no steps to the ledger.
        meanwhile: Called again and again while an attempt runs, and before each.
        environment: What else to add to the environment of the attempts.
    """

    def __init__(
        self,
        body: Callable[[bool], None],
        directory: Path,
        settings: Settings | None = None,
        rounds: Path | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.body, self.directory, self.settings = body, directory, settings or Settings()
        self.ledger = _Ledger(directory / FILE)
        self.rounds, self.meanwhile = rounds, meanwhile
        self.environment = {**(environment or {}), ASSIGNED: str(directory)}
        self.stopping: int | None = None

    def run(self) -> Outcome:
        """Supervise until the end.

        Returns:
            The outcome; nothing of the run is left running.
        """
        outcome = Outcome(self.directory)
        number = last_attempt(self.ledger.path) + 1
        watch = Watch(self.ledger, self.rounds)
        idle = 0
        with _signals(self._stop), adopting():
            while True:
                ended, outcome.lines = self._attempt(number, watch, again=bool(outcome.attempts))
                outcome.attempts.append(ended)
                idle = 0 if ended.progress else idle + 1
                self._judge(outcome, idle)
                if outcome.reason:
                    break
                self._wait(number, ended, len(outcome.attempts), idle)
                if self.stopping is not None:
                    self._stopped(outcome)
                    break
                number += 1
        self.ledger.write("stop", attempt=number, code=outcome.code, reason=outcome.reason)
        return outcome

    def _attempt(self, number: int, watch: Watch, again: bool) -> tuple[Ended, list[str]]:
        """Start an attempt and stay with it to its end."""
        environment = {**self.environment, ATTEMPT: str(number)}
        self.meanwhile()
        watch.begin(number)
        each = [{**environment, **own} for own in ranks(self.settings.processes)]
        begun, day = time.monotonic(), time.time()
        attempt = Attempt(lambda: self.body(again), each)
        reason, code, hung = "", None, False
        try:
            self.ledger.write("spawn", attempt=number, time=day, monotonic=begun, pids=attempt.pids)
            while (code := attempt.code()) is None and not reason:
                attempt.wait(POLL)
                watch.look()
                self.meanwhile()
                if self.stopping is not None:
                    reason = f"stopped by {signal.Signals(self.stopping).name}"
                    self._ask(attempt)
                elif watch.silence > self._patience(watch.phase) and attempt.code() is None:
                    hung, reason = True, f"hung: no sign of life for {watch.silence:.3g} s ({watch.phase})"
                    attempt.stacks()
        finally:
            code = attempt.code() if code is None else code
            lasting = code == 0 and not reason
            attempt.end(OWN_END if lasting else 0.0)
        watch.look()
        code = code if code is not None else -signal.SIGKILL
        reason = reason or _words(code)
        self.ledger.write("exit", attempt=number, code=code, reason=reason, hung=hung)
        seconds = time.monotonic() - begun
        return Ended(number, code, reason, seconds, watch.step, watch.checkpoint, watch.progress, hung), list(
            attempt.lines
        )

    def _judge(self, outcome: Outcome, idle: int) -> None:
        """Decide whether that was the last attempt: then the outcome has a reason."""
        ended, settings = outcome.attempts[-1], self.settings
        outcome.code, outcome.reason = 1, ""
        if self.stopping is not None:
            self._stopped(outcome)
        elif ended.code == 0 and not ended.hung:
            outcome.code, outcome.reason = 0, "done"
        elif ended.code == CONFIGURATION:
            outcome.code, outcome.reason = CONFIGURATION, "the configuration is wrong, which no restart mends"
        elif idle >= settings.crash_loop:
            outcome.reason = f"gave up: {_counted(idle, 'attempt')} in a row came no further (--crash-loop)"
        elif len(outcome.attempts) > settings.max_restarts:
            outcome.reason = f"gave up after {_counted(settings.max_restarts, 'restart')} (--max-restarts)"

    def _stopped(self, outcome: Outcome) -> None:
        assert self.stopping is not None
        name = signal.Signals(self.stopping).name
        outcome.code, outcome.reason = 128 + self.stopping, f"stopped by {name}"

    def _wait(self, number: int, ended: Ended, restart: int, idle: int) -> None:
        """Wait before the next attempt, longer with each that led nowhere."""
        seconds = min(self.settings.backoff * 2.0 ** min(max(idle - 1, 0), 60), LONGEST_BACKOFF)
        at = f"at step {ended.step}" if ended.step >= 0 else "before its first step"
        _say(f"attempt {number} {ended.reason} {at}; restart {restart} in {seconds:.3g} s")
        if seconds:
            self.ledger.write("backoff", attempt=number, seconds=seconds)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.stopping is None:
            time.sleep(min(left, POLL))

    def _ask(self, attempt: Attempt) -> None:
        """Ask an attempt to stop, and give it the time for it."""
        assert self.stopping is not None
        attempt.send(self.stopping)
        until = time.monotonic() + self.settings.grace
        while (left := until - time.monotonic()) > 0 and any(each.exitcode is None for each in attempt.processes):
            attempt.wait(left)

    def _patience(self, phase: str) -> float:
        settings = self.settings
        times = {"start": settings.start_timeout, "checkpoint": settings.checkpoint_timeout}
        return times.get(phase, settings.hang_timeout)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = number


def _say(line: str) -> None:
    sys.stderr.write(f"fulgurite: supervise: {line}\n")
    sys.stderr.flush()


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Meanwhile, what would end this process is told to a handler instead; a hangup that is ignored stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _words(code: int) -> str:
    if code >= 0:
        return "ended" if code == 0 else f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
