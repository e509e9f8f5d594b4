"""``ledger.jsonl``: what happened to a run, one event a line, only ever appended to, so that no kill can take it away.

Several processes write to it: the recorder inside a run, whatever injects failures, and the supervisor outside. Each
line is one ``write`` to a descriptor opened for appending, which the system keeps whole against other writers; a kill
of a process loses nothing that was written, and only a crash of the machine or a full disk can tear a line.

An event has ``event``, ``time`` (seconds since 1970), ``monotonic`` (seconds of a clock that never jumps, equal in all
processes of a machine until it is booted again), ``attempt`` (0, 1, ...), ``rank``, and fields of its own.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "ledger.jsonl"
ATTEMPT = "FULGURITE_ATTEMPT"
"""Environment variable with the number of the attempt; the supervisor sets it."""

MODULES = "FULGURITE_MODULES"
"""Environment variable with a file for the names of the modules that a run has imported."""

Event = dict[str, Any]


class Ledger:
    """Appends events to a file, which is opened at the first.

    Args:
        path: The file.
        attempt: Number of the attempt; ``None`` for that of the environment, else the last in the file, else 0.
    """

    def __init__(self, path: str | Path, attempt: int | None = None) -> None:
        self.path = Path(path)
        self._attempt = attempt
        self._descriptor: int | None = None

    @property
    def attempt(self) -> int:
        """Number of the attempt."""
        if self._attempt is None:
            told = os.environ.get(ATTEMPT)
            self._attempt = int(told) if told is not None else max(0, last_attempt(self.path))
        return self._attempt

    def write(self, event: str, sync: bool = False, **fields: Any) -> None:
        """Append an event.

        Args:
            event: What happened.
            sync: Whether to wait until it is on the disk, for what has to outlive the machine.
            fields: More about it, as JSON knows it; ``attempt`` and ``rank`` replace the usual ones.

        Raises:
            OSError: If the disk is full; the next event that finds room is whole again.
        """
        line: Event = {"event": event, "time": time.time(), "monotonic": time.monotonic()}
        line |= {"attempt": self.attempt, "rank": _rank(), **fields}
        content = f"{json.dumps(line)}\n".encode()
        if (written := os.write(self._open(), content)) < len(content):
            self.close()  # opened again, it ends the torn line
            raise OSError(errno.ENOSPC, f"{written} of {len(content)} bytes were written", str(self.path))
        if sync:
            os.fsync(self._open())

    def touch(self) -> None:
        """Say that the run lives, without an event: the file's time changes."""
        os.utime(self._open())

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _end_line(self.path, descriptor)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor


class Tail:
    """Reads what has been added to a ledger since the last look.

    Args:
        path: The file, which need not exist yet.
        offset: Byte to begin at.
    """

    def __init__(self, path: str | Path, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset

    def read(self) -> list[Event]:
        """The new events; a line that is not complete yet is left for the next time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [event for event in map(_parse, whole.splitlines()) if event is not None]


def read(path: str | Path) -> list[Event]:
    """All events of a ledger in the order of the file; lines that were torn are left out.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such ledger")
    return Tail(path).read()


def last_attempt(path: str | Path) -> int:
    """The highest attempt of a ledger, -1 if there is none."""
    return max((int(event["attempt"]) for event in Tail(path).read()), default=-1)


def process_started() -> float:
    """When this process was started, on the clock of ``time.monotonic``; now, where the system does not tell."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return now


def _rank() -> int:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    usable = isinstance(event, dict) and all(isinstance(event.get(key), int | float) for key in _NUMBERS)
    return event if usable and isinstance(event.get("event"), str) else None


def _end_line(path: Path, descriptor: int) -> None:
    """End a line that a crash has torn, so that the next event is not lost with it."""
    size = os.fstat(descriptor).st_size
    if size:
        with open(path, "rb") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                os.write(descriptor, b"\n")


_NUMBERS = ("time", "monotonic", "attempt")
