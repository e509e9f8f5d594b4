"""What a supervisor knows of its run: whether it lives, what it is at, and how far it has come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from framework.reliability.ledger import Ledger, Tail

Phase = Literal["start", "run", "checkpoint"]


class Watch:
    """Follows a run by its ledger, and by a file of rounds where it has one.

    Args:
        ledger: The run's ledger; rounds become steps in it.
        rounds: A file that gets a JSON line with ``round`` whenever work is done and saved.

    Attributes:
        phase: What the attempt is at.
        step: The last step that the attempt has finished, -1 for none.
        checkpoint: Step of the last checkpoint of the run, -1 for none.
        progress: Whether the attempt has come further than the run had come before.
    """

    def __init__(self, ledger: Ledger, rounds: Path | None = None) -> None:
        self.ledger, self.rounds = ledger, rounds
        self._tail = Tail(ledger.path)
        self._furthest = (-1, -1)
        self.phase: Phase = "start"
        self.step, self.checkpoint, self.progress = -1, -1, False
        self._attempt, self._round, self._running = -1, -1, False
        self._stamps: list[int] = []
        self._seen = time.monotonic()
        self._take()  # what earlier supervisors saw

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._seen

    def begin(self, attempt: int) -> None:
        """A new attempt has been started.

        Args:
            attempt: Its number.
        """
        self._take()
        self._attempt, self.phase, self.step, self.progress = attempt, "start", -1, False
        self._round, self._running = self._last_round(), False
        self._stamps, self._seen = self._times(), time.monotonic()

    def look(self) -> None:
        """Take in what has happened since the last look."""
        stamps = self._times()
        if stamps == self._stamps:
            return
        self._stamps, self._seen = stamps, time.monotonic()
        self._take()
        if self.rounds is not None:
            self._count(self._last_round())

    def _take(self) -> None:
        for event in self._tail.read():
            name, step = event["event"], event.get("step", -1)
            if name == "step":
                self._at(step, self.checkpoint)
            elif name == "checkpoint_end":
                self._at(self.step, step)
            if name in ("run", "step", "validation_begin", "train_end", "checkpoint_end"):
                self.phase = "run"
            elif name == "checkpoint_begin":
                self.phase = "checkpoint"

    def _count(self, done: int) -> None:
        """Write rounds to the ledger as steps, each with its checkpoint."""
        if not self._running:
            self.ledger.write("run", attempt=self._attempt, rank=0)
            self._running = True
        for number in range(self._round + 1, done + 1):  # short rounds may end between two looks
            for event in ("step", "checkpoint_begin", "checkpoint_end"):
                self.ledger.write(event, attempt=self._attempt, rank=0, step=number)
        if done > self._round:
            self._take()
        self._round = done  # a resumed run forgets a round whose state was not saved

    def _last_round(self) -> int:
        """The last round in the file, -1 for none."""
        if self.rounds is None or not self.rounds.is_file():
            return -1
        lines = self.rounds.read_bytes().rpartition(b"\n")[0].splitlines()
        return int(json.loads(lines[-1])["round"]) if lines else -1

    def _at(self, step: int, checkpoint: int) -> None:
        step_before, checkpoint_before = self._furthest
        self.step, self.checkpoint = step, checkpoint
        if step > step_before or checkpoint > checkpoint_before:
            self.progress = True
            self._furthest = (max(step, step_before), max(checkpoint, checkpoint_before))

    def _times(self) -> list[int]:
        files = [self.ledger.path, *([self.rounds] if self.rounds is not None else [])]
        return [each.stat().st_mtime_ns if each.exists() else 0 for each in files]
