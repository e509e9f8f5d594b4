"""What an injected failure does to its process."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from framework.reliability.failures import Kind

SIGNALS = {"sigkill": signal.SIGKILL, "sigterm": signal.SIGTERM, "sigstop": signal.SIGSTOP}
"""Kinds that are a signal, which a thread may send while the process does anything at all."""

CUDA_ERROR = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
"""What torch says after XID 31; injected by :func:`strike`."""


class InjectedFailure(RuntimeError):
    """An exception that was asked for."""


def strike(kind: Kind, step: int, hang: float | None = None, file: Path | None = None) -> None:
    """Let this process fail.

    Args:
        kind: How. ``slow`` and ``nan`` are not struck at once: nothing happens.
        step: At which step, for the message.
        hang: Seconds that a hang lasts; ``None`` for ever.
        file: What is to be damaged before the process dies, or what could not be written.

    Raises:
        InjectedFailure: For ``exception``.
        RuntimeError: For ``cuda_error``, of the class that torch raises.
        OSError: For ``disk_full``.
    """
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
    elif kind == "corrupt_checkpoint":
        if file is not None:
            damage(file)
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exception":
        raise InjectedFailure(f"injected by FailureInjection at step {step}")
    elif kind == "cuda_error":
        import torch

        raise getattr(torch, "AcceleratorError", RuntimeError)(CUDA_ERROR)
    elif kind == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), None if file is None else str(file))
    elif kind == "hang":
        ends = None if hang is None else time.monotonic() + hang
        while ends is None or time.monotonic() < ends:
            time.sleep(1.0 if ends is None else min(1.0, max(0.0, ends - time.monotonic())))


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint file below a folder that was written last; of a sharded checkpoint its largest part.

    Args:
        directory: The run directory.
    """
    found = max(directory.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found is None or found.is_file():
        return found
    parts = (path for path in found.rglob("*") if path.is_file())
    return max(parts, key=lambda path: path.stat().st_size, default=None)


def damage(file: Path) -> None:
    """Take away the second half of a file, as a machine's end does to one that was never flushed to the disk."""
    os.truncate(file, file.stat().st_size // 2)


@contextmanager
def half_written(then: Callable[[], None]) -> Iterator[None]:
    """Have what this thread saves with ``torch.save`` fail in the middle.

    Half of the bytes are handed to the file; then something happens that may raise or end the process; if it does
    neither, the other half follows. What is saved by other means fails after it is written.

    Args:
        then: What happens, once.
    """
    import torch

    save, thread, struck = torch.save, threading.get_ident(), False

    def torn(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal struck
        if struck or threading.get_ident() != thread:
            save(obj, f, *args, **kwargs)
            return
        struck = True
        buffer = io.BytesIO()
        save(obj, buffer, *args, **kwargs)
        content = buffer.getbuffer()
        if isinstance(f, str | os.PathLike):
            with open(f, "wb") as file:
                _in_halves(file, content, then)
        else:
            _in_halves(f, content, then)

    with patch.object(torch, "save", torn):
        yield
    if not struck:
        then()


def _in_halves(file: Any, content: memoryview, then: Callable[[], None]) -> None:
    middle = len(content) // 2
    file.write(content[:middle])
    if hasattr(file, "flush"):
        file.flush()
    then()
    file.write(content[middle:])


def poison(parameters: Iterator[Any]) -> None:
    """Make gradients NaN, as one bad device does to the mean over all.

    Args:
        parameters: Those of the module; what has no gradient is left alone.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.fill_(float("nan"))
