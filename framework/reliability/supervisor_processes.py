"""The processes of one attempt: forked from the supervisor, watched, and ended with all that they started."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

Environment = Mapping[str, str]

LINES = 80
"""Lines of standard error that are kept: as many as the stack of a run that hangs may take."""
STACKS = signal.SIGUSR2
"""Asks a run for the stacks of its threads."""
_SET_DEATH_SIGNAL, _SET_SUBREAPER, _GET_SUBREAPER = 1, 36, 37  # of prctl(2)
_LINUX = sys.platform.startswith("linux")


class Attempt:
    """Processes that run until one fails, or all have ended.

    Args:
        body: What each of them does; what it raises, and the code of its ``SystemExit``, end the process as usual.
        environments: What to add to the environment of each.

    Attributes:
        lines: The last lines of their standard error.
    """

    def __init__(self, body: Callable[[], None], environments: Sequence[Environment]) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self._partial, self._heard = b"", True
        self._before = _children()
        self._stderr, write = os.pipe()
        os.set_blocking(self._stderr, False)
        self.processes: list[ForkProcess] = []
        self._ends: list[int] = []
        context = multiprocessing.get_context("fork")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or every child would print it again
        # Until a child has its own handlers, a signal must not run those of the supervisor in it.
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            for environment in environments:
                arguments = (body, environment, write, os.getpid(), blocked)
                process = context.Process(target=_enter, args=arguments, daemon=False)
                process.start()
                self.processes.append(process)
                assert process.pid is not None
                # At once: the next start reaps those that have ended.
                self._ends.append(os.pidfd_open(process.pid) if _LINUX else process.sentinel)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(write)

    @property
    def pids(self) -> list[int]:
        """Process ids, one per rank."""
        return [each.pid for each in self.processes if each.pid is not None]

    def wait(self, seconds: float) -> None:
        """Wait until a process ends, something is on standard error, or the time is over.

        Args:
            seconds: The time.
        """
        running = [end for end, each in zip(self._ends, self.processes) if each.exitcode is None]
        wait([*running, self._stderr] if self._heard else running, seconds)
        self._read()

    def code(self) -> int | None:
        """How the attempt ended: the first exit code that is not 0 (a signal's is negative); ``None`` while it runs."""
        codes = [each.exitcode for each in self.processes]
        failed = next((code for code in codes if code), None)
        return failed if failed is not None else None if None in codes else 0

    def send(self, number: int) -> None:
        """Send a signal to all processes, and to those that they started in their groups.

        Args:
            number: The signal.
        """
        for process in self.processes:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
                    continue
                if process.exitcode is None:  # it has not made its group yet
                    os.kill(process.pid, number)

    def stacks(self, seconds: float = 1.0) -> None:
        """Have processes that hang print where they are.

        Args:
            seconds: How long to wait for it.
        """
        self.send(STACKS)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.code() is None:
            self.wait(left)
            if left < seconds / 2 and self.lines:
                return

    def end(self, patience: float = 0.0) -> None:
        """Leave nothing of the attempt: kill what still runs, also what has left the group of its parent.

        Args:
            patience: Seconds that what the processes started may take to end by themselves.
        """
        until = time.monotonic() + patience
        if patience:
            while (left := until - time.monotonic()) > 0 and _children() - self._before - set(self.pids):
                time.sleep(min(0.05, left))
                _reap(_children() - self._before - set(self.pids))
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()
        until = time.monotonic() + 5
        while (left_over := _children() - self._before) and time.monotonic() < until:
            # Orphans come to the supervisor, whatever their group or session; killing one may send the next.
            for pid in left_over:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            _reap(left_over)
            time.sleep(0.002)
        self._read()
        if self._partial:
            self.lines.append(self._partial.decode(errors="replace"))
        os.close(self._stderr)
        if _LINUX:
            for end in self._ends:
                os.close(end)
        for process in self.processes:
            process.close()

    def _read(self) -> None:
        """Pass standard error on, and keep its end."""
        while True:
            try:
                added = os.read(self._stderr, 65536)
            except BlockingIOError:
                return
            if not added:
                self._heard = False
                return
            sys.stderr.write(added.decode(errors="replace"))
            sys.stderr.flush()
            *whole, self._partial = (self._partial + added).split(b"\n")
            # A progress bar returns to the start of its line.
            lines = (line.decode(errors="replace").rpartition("\r")[2].rstrip() for line in whole)
            self.lines.extend(line for line in lines if line)


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile, descendants whose parents die become children of this process, which can end them then."""
    if not _LINUX:
        yield
        return
    before = ctypes.c_int(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_GET_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SET_SUBREAPER, before.value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent dies, however that dies; on Linux only.

    Args:
        parent: Process id of the parent, which may have died already.
    """
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def ranks(count: int) -> list[dict[str, str]]:
    """The environment of each process of a run on this machine, as torchrun sets it, with a port that is free now.

    Args:
        count: Number of processes; a single one needs no environment.
    """
    if count == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": f"fulgurite-{os.getpid()}-{port}",
    }  # fmt: skip
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _enter(
    body: Callable[[], None], environment: Environment, stderr: int, parent: int, signals: set[signal.Signals]
) -> None:
    """Make a forked child a process of its own, then do what it is for."""
    die_with_parent(parent)
    os.setsid()
    os.dup2(stderr, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    show_stacks()
    random.seed()
    os.environ.update(environment)
    atexit._clear()  # those of the supervisor
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    try:
        body()
    finally:
        atexit._run_exitfuncs()  # which a fork of multiprocessing leaves out before Python 3.14


def show_stacks() -> None:
    """Have this process print the stacks of its threads when it is asked for them."""
    faulthandler.register(STACKS, file=2, all_threads=True)


def replace(command: Sequence[str]) -> NoReturn:
    """Become another program; for a body that begins afresh.

    Args:
        command: Program and arguments.
    """
    os.execve(command[0], list(command), dict(os.environ))


def _children() -> set[int]:
    """Process ids of the children of this process, as far as the system tells."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return set()


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
