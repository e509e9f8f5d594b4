"""What a run did with its time, from its ledger: the measured ETTR and its budget, beside what the models say.

Every moment from the first start to the end of training belongs to exactly one span, so that the budget closes. A step
is work from the end of what came before it (the last step, or the end of the start-up) to its own end, without the
checkpoints and validations in between: loading data and callbacks are part of it. The first completion of a step or a
validation is progress that lasts; done again it is lost work, and so is what a failure cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from framework.reliability.job import Job
from framework.reliability.ledger import FILE, Event, read
from framework.reliability.renewal import Budget

Kind = Literal["queue", "restart", "productive", "validation", "checkpoint", "redone", "lost"]
"""What a span is: waiting, from spawn to the first step, first completions, stalls, repeated work, cut-off work."""
KINDS: tuple[Kind, ...] = ("queue", "restart", "productive", "validation", "checkpoint", "redone", "lost")
_STARTED = ("run", "step", "validation_begin")
_CLOCK_DRIFT = 60.0
"""Seconds between the clocks beyond which the machine must have been booted again."""


@dataclass(frozen=True)
class Span:
    """A stretch of time.

    Attributes:
        kind: What it was.
        begin: Minutes since the run began.
        end: The same.
    """

    kind: Kind
    begin: float
    end: float


@dataclass
class AttemptTimes:
    """One attempt.

    Attributes:
        number: Its number.
        begin: When its processes were started, in minutes since the run began.
        end: When they had ended, or training had.
        spans: Its time, without gaps, the queue before it included.
        steps: Steps it was the first to finish.
        last_step: The last step it finished, -1 for none.
        checkpoints: Steps it wrote checkpoints of.
        how: How it ended, in words.
        failed: Whether that was a failure before training was complete.
        started: Whether it came to its first step.
    """

    number: int
    begin: float
    end: float = 0.0
    spans: list[Span] = field(default_factory=list)
    steps: int = 0
    last_step: int = -1
    checkpoints: list[int] = field(default_factory=list)
    how: str = ""
    failed: bool = False
    started: bool = False

    def minutes(self, kind: Kind) -> float:
        """Time of one kind."""
        return sum(span.end - span.begin for span in self.spans if span.kind == kind)


@dataclass
class Measured:
    """A whole run, in minutes.

    Attributes:
        attempts: Its attempts up to the end of training.
        complete: Whether training ended.
        after: Time of attempts after the end of training (a test), which counts for nothing here.
    """

    attempts: list[AttemptTimes]
    complete: bool
    after: float

    def minutes(self, kind: Kind) -> float:
        """Time of one kind."""
        return sum(each.minutes(kind) for each in self.attempts)

    @property
    def failures(self) -> int:
        """Attempts that failed."""
        return sum(each.failed for each in self.attempts)

    @property
    def steps(self) -> int:
        """Steps that were finished, each counted once."""
        return sum(each.steps for each in self.attempts)

    @property
    def budget(self) -> Budget:
        """The whole time, with validation among the productive and repeated among the lost."""
        return Budget(
            self.minutes("productive") + self.minutes("validation"),
            self.minutes("checkpoint"),
            self.minutes("redone") + self.minutes("lost"),
            self.minutes("restart"),
            self.minutes("queue"),
            self.failures,
        )

    @property
    def scheduled(self) -> float:
        """Time in which processes ran, where failures can happen."""
        return self.budget.wall - self.budget.queue

    @property
    def rate(self) -> float:
        """Realised failures per scheduled minute."""
        return self.failures / self.scheduled

    def job(self) -> Job:
        """The job of the models, with the realised rate and the mean costs.

        Raises:
            ValueError: If the run wrote no checkpoint, or did nothing.
        """
        written = [(each.number, step) for each in self.attempts for step in each.checkpoints]
        distinct = {step for _, step in written}
        until = self._productive_until_last_checkpoint()
        if not distinct or not until:
            raise ValueError("the run wrote no checkpoint, so the models have no interval for it")
        restarts = [each.minutes("restart") for each in self.attempts if each.started]
        waits = [each.minutes("queue") for each in self.attempts[1:]]
        return Job(
            self.rate,
            until / len(distinct),
            self.minutes("checkpoint") / len(set(written)),
            sum(restarts) / len(restarts),
            sum(waits) / len(waits) if waits else 0.0,
        )

    def _productive_until_last_checkpoint(self) -> float:
        total = until = 0.0
        for each in self.attempts:
            for span in each.spans:
                if span.kind in ("productive", "validation"):
                    total += span.end - span.begin
                elif span.kind == "checkpoint":
                    until = total
        return until


def ledger_of(path: Path) -> Path:
    """The ledger of a run directory, or the file itself.

    Args:
        path: Either.

    Raises:
        FileNotFoundError: If there is none.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such ledger; fulgurite supervise writes one, and so does the callback ETTRRecorder"
        )
    return file


def measure(path: str | Path) -> Measured:
    """Measure a run.

    Args:
        path: Its directory or its ledger.

    Raises:
        FileNotFoundError: If there is no ledger.
        ValueError: If the ledger tells of no start.
    """
    file = ledger_of(Path(path))
    try:
        return measured(read(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def measured(events: Sequence[Event]) -> Measured:
    """Measure a run by its events.

    Args:
        events: As in the ledger.

    Raises:
        ValueError: If they tell of no start.
    """
    clock = _clock(events)
    order = sorted(events, key=lambda event: float(event[clock]))
    numbers = list(dict.fromkeys(int(each["attempt"]) for each in order if each["event"] in ("spawn", "start")))
    if not numbers:
        raise ValueError("it tells of no start of a run")
    books = _Books(clock)
    for number, following in zip(numbers, [*numbers[1:], None]):
        books.attempt(number, [each for each in order if each["attempt"] == number], following is None)
    return Measured(books.attempts, books.complete, books.after)


def merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Neighbouring spans of a kind made one.

    Args:
        spans: In order.
    """
    current: Span | None = None
    for span in spans:
        if current is not None and span.kind == current.kind and span.begin <= current.end + 1e-9:
            current = Span(current.kind, current.begin, span.end)
            continue
        if current is not None:
            yield current
        current = span
    if current is not None:
        yield current


class _Books:
    """Gives every moment to a span, attempt by attempt."""

    def __init__(self, clock: str) -> None:
        self.clock = clock
        self.origin: float | None = None
        self.attempts: list[AttemptTimes] = []
        self.complete, self.after = False, 0.0
        self.furthest = -1
        self.validated: set[tuple[int, int]] = set()
        self.ended = 0.0
        """When the last attempt had ended."""

    def attempt(self, number: int, events: list[Event], last: bool) -> None:
        """Book one attempt."""
        begin = self._begin(events)
        now = AttemptTimes(number, begin)
        exit_ = next((event for event in events if event["event"] == "exit"), None)
        own = [event for event in events if event["event"] not in ("spawn", "exit", "backoff", "stop", "supervise")]
        now.end = self._at(exit_) if exit_ is not None else max([begin, *map(self._at, own)])
        ended = now.end
        if self.complete and not any(event["event"] in _STARTED for event in own):
            self.after += ended - begin  # nothing was left to train
            self.ended = ended
            return
        if self.attempts and not self.complete:
            now.spans.append(Span("queue", self.ended, begin))
        self.complete = False
        self._book(now, own)
        if exit_ is not None:
            now.how, failed = str(exit_.get("reason", "")), bool(exit_.get("code") or exit_.get("hung"))
        else:
            now.how = _last_word(own, "" if last else "died")
            failed = bool(now.how)
        now.failed = failed and not self.complete and not now.how.startswith("stopped")
        self.after += ended - now.end
        self.ended = ended
        self.attempts.append(now)

    def _book(self, now: AttemptTimes, events: list[Event]) -> None:
        at = now.begin
        pending: list[Span] = []  # work on a step that is not finished yet
        validation: list[Span] | None = None
        saving = False
        seen: Counter[int] = Counter()
        for event in events:
            name, time, step = event["event"], self._at(event), int(event.get("step", -1))
            if not now.started:
                if name == "run" and self.furthest < 0:
                    self.furthest = step  # what was done before there was a ledger
                if name in _STARTED:
                    now.spans.append(Span("restart", at, time))
                    now.started, at = True, time
                elif name == "train_end":
                    break
                else:
                    continue
            work = Span("lost", at, time)
            if name == "checkpoint_begin":
                (pending if validation is None else validation).append(work)
                saving = True
            elif name == "checkpoint_end" and saving:
                self._settle(now, [work], "checkpoint")
                now.checkpoints.append(step)
                saving = False
            elif name == "validation_begin":
                pending += [*(validation or []), work]
                validation = []
            elif name == "validation_end" and validation is not None:
                key = (step, seen[step])
                seen[step] += 1
                kind: Kind = "redone" if key in self.validated else "validation"
                self.validated.add(key)
                self._settle(now, [*validation, work], kind)
                validation = None
            elif name == "step":
                first = step > self.furthest
                self._settle(now, [*pending, work], "productive" if first else "redone")
                now.steps += max(0, step - max(self.furthest, now.last_step, 0)) if first else 0
                self.furthest, now.last_step = max(self.furthest, step), step
                pending = []
            elif name == "train_end":
                self._settle(now, [*pending, *(validation or []), work], "productive")
                self.complete = True
                now.end = time
                break
            else:
                continue
            at = time
        else:
            self._settle(now, [*pending, *(validation or [])])
            self._settle(now, [Span("lost" if now.started else "restart", at, now.end)])
        now.spans.sort(key=lambda span: (span.begin, span.end))

    def _settle(self, now: AttemptTimes, spans: Sequence[Span], kind: Kind | None = None) -> None:
        now.spans += [Span(kind or span.kind, span.begin, span.end) for span in spans if span.end > span.begin]

    def _begin(self, events: list[Event]) -> float:
        """When the processes of an attempt were started: by the supervisor's word, else by the system's."""
        first = next(event for event in events if event["event"] in ("spawn", "start"))
        time = float(first[self.clock])
        if first["event"] == "start" and "process" in first:
            time -= float(first["monotonic"]) - float(first["process"])
        if self.origin is None:
            self.origin = time
        return max((time - self.origin) / 60, self.ended)

    def _at(self, event: Event) -> float:
        assert self.origin is not None
        return (float(event[self.clock]) - self.origin) / 60


def _last_word(events: Sequence[Event], otherwise: str) -> str:
    """How an attempt that nobody supervised ended: by Ctrl-C, by an exception, or in a way that left no word."""
    kinds = [str(event.get("kind")) for event in events if event["event"] == "exception"]
    if not kinds:
        return otherwise
    return "stopped by SIGINT" if kinds[-1] == "KeyboardInterrupt" else f"raised {kinds[-1]}"


def _clock(events: Sequence[Event]) -> str:
    """The clock to trust: the monotonic one, unless it began anew with a boot, or on another machine.

    Where the other one alone was set back, it is not to be trusted.
    """
    if _back(events, "time") > _CLOCK_DRIFT >= _back(events, "monotonic"):
        return "monotonic"
    offsets = [float(event["time"]) - float(event["monotonic"]) for event in events]
    return "monotonic" if not offsets or max(offsets) - min(offsets) < _CLOCK_DRIFT else "time"


def _back(events: Sequence[Event], clock: str) -> float:
    """The most seconds by which a clock goes back from an event to the next."""
    return max((float(before[clock]) - float(after[clock]) for before, after in pairwise(events)), default=0.0)
