"""Checkpoints that a crash cannot ruin: written aside, forced to disk, renamed; the last one before is kept."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import Strategy

from framework.rundir import PREVIOUS


class DurableCheckpointIO(TorchCheckpointIO):
    """Write checkpoints so that at every moment, power cuts included, a whole one is on the disk.

    A checkpoint goes to a temporary name in the same folder, is forced to disk (``fsync``), and takes its name by a
    rename, after which the folder is forced to disk, too. Where ``last.ckpt`` is overwritten, the file that was there
    stays as ``last-previous.ckpt``, so that a disk which garbles one file leaves another. Paths that are not local
    are written as Lightning does.

    Args:
        keep_previous: Whether to keep what an overwritten ``last`` checkpoint held.
    """

    def __init__(self, keep_previous: bool = True) -> None:
        self.keep_previous = keep_previous

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "file" not in _protocols(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.new")  # one name, so that killed writes do not pile up
        with fresh.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if self.keep_previous and place.is_file() and place.stem.startswith("last"):
            _keep(place)
        os.replace(fresh, place)
        _sync_folder(place.parent)


class BackgroundCheckpointIO(AsyncCheckpointIO):
    """Write checkpoints as :class:`DurableCheckpointIO` does, while training goes on.

    Training waits for a copy of the tensors in memory and no longer. A write that fails stops the run at the next
    checkpoint, or at the end. Files that a checkpoint replaces are removed after it has been written, not before.

    Args:
        keep_previous: Whether to keep what an overwritten ``last`` checkpoint held.
    """

    def __init__(self, keep_previous: bool = True) -> None:
        super().__init__(DurableCheckpointIO(keep_previous))
        self._removals: list[Future[None]] = []

    def remove_checkpoint(self, path: str | Path) -> None:
        if self._executor is None:
            super().remove_checkpoint(path)
        else:
            self._removals = [each for each in self._removals if not each.done()]
            self._removals.append(self._executor.submit(self._remove, path))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.wait()  # what is asked for may be the one in the making
        return super().load_checkpoint(*args, **kwargs)

    def wait(self) -> None:
        """Return once all that was to be written or removed has been.

        Raises:
            BaseException: What made a write fail.
        """
        if self._executor is not None:
            self._executor.submit(_nothing).result()
        if self._error:
            raise self._error

    def _remove(self, path: str | Path) -> None:
        if self._error is None:  # else the file to be removed is the newest there is
            super().remove_checkpoint(path)


def make_durable(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints by :class:`DurableCheckpointIO`, unless it has a way of its own.

    Args:
        trainer: The trainer. Strategies that write sharded checkpoints, and trainers with a plugin, stay as they are.
    """
    strategy = trainer.strategy
    if type(strategy).save_checkpoint is Strategy.save_checkpoint and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = DurableCheckpointIO()


def _keep(place: Path) -> None:
    """A second name for a file, in place of what that name stood for; where there are no links, a rename."""
    kept, fresh = place.with_name(f"{place.stem}{PREVIOUS}{place.suffix}"), place.with_name(f".{place.name}.old")
    fresh.unlink(missing_ok=True)
    try:
        os.link(place, fresh)
    except OSError:  # a file system without links: for a moment only the kept name is there
        os.replace(place, kept)
        return
    os.replace(fresh, kept)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _protocols(path: str | Path) -> tuple[str, ...]:
    protocol = get_filesystem(path).protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _nothing() -> None:
    pass
