"""Where a run writes and which checkpoint it starts from: a new directory, or the one of the run it continues."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from framework import rundir
from framework.errors import ConfigurationError


@dataclass(frozen=True)
class Place:
    """The outcome.

    Attributes:
        directory: The run directory.
        checkpoint: The checkpoint to start from, ``None`` for fresh weights.
        note: What the user should know about the choice; empty if there is nothing to say.
        continued: Whether the directory is that of an earlier run.
        temporary: Whether it has to be gone afterwards.
        reserved: Whether it was made for this run, so that it has to be gone if nothing was written.
    """

    directory: Path
    checkpoint: Path | None = None
    note: str = ""
    continued: bool = False
    temporary: bool = False
    reserved: bool = False

    def leave(self, root: Path) -> None:
        """Remove what a run leaves that never began, or that was only tried."""
        if self.temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        elif self.reserved:
            rundir.discard(self.directory, root)


def find_place(command: str, given: str | None, fast: bool, root: Path, name: str) -> Place:
    """Choose directory and checkpoint.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        given: ``--ckpt_path``.
        fast: Whether this is a ``fast_dev_run``.
        root: Folder of all runs.
        name: Name of the configuration.

    Raises:
        FileNotFoundError: If there is no checkpoint where one is needed.
    """
    assigned = Path(os.environ.get(rundir.ASSIGNED, ""))
    if assigned.parent == root / name and command == "fit" and not fast:
        return _assigned(assigned, given, root, name)
    found, note = None, ""
    if given is None and command != "fit" and not fast:
        found = rundir.best_checkpoint(root, name)
        if found is None:
            raise FileNotFoundError(
                f"{root / name} holds no trained run: fit it first, or give --ckpt_path (none for fresh weights)"
            )
        note = f"{command}: {found.file}"
    elif given is not None and given != "none":
        found = rundir.find_checkpoint(given, root, name)
        if found is None and (command != "fit" or given != "last"):
            raise FileNotFoundError(f"--ckpt_path {given}: {root / name} holds no run with a checkpoint")
        if found is None:
            note = f"--ckpt_path last: no run under {root / name} yet, so this one starts afresh"
    checkpoint = found.file if found is not None else None
    skipped = "" if found is None else "".join(f"{line}\n" for line in found.skipped)
    note = skipped + note
    if fast:
        return Place(Path(tempfile.mkdtemp(prefix="fulgurite-")), checkpoint, note, temporary=True)
    if found is not None and found.run is not None and _continues(command, found.run, root, name):
        if command == "fit":
            note = f"{skipped}resuming {found.file}"
        return Place(found.run, checkpoint, note, continued=True)
    if rundir.is_first_rank():
        return Place(rundir.reserve(root, name), checkpoint, note, reserved=True)
    return Place(root / name / "of-the-first-rank", checkpoint, note)  # replaced when the ranks can talk


HARMLESS = {"data_dir", "download", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor"}
"""Options of data that change how they are read, not what is read."""
LATER = {
    "rounds", "evaluate_every", "fail_fast", "quorum", "timeout", "log_clients", "engine", "client_cpus", "client_gpus"
}  # fmt: skip
"""Options of a federation that may change from one start to the next: they do not touch the rounds that are done."""


def compare(directory: Path, resolved: str) -> list[str]:
    """Compare a run's saved configuration with the one it is resumed with.

    A resumed optimiser would keep the old values of ``model`` in silence, and another split could turn nodes or images
    that were trained on into test data: both are errors. Options that a run was started without, because a later
    release brought them, are not compared.

    Args:
        directory: Directory of the run.
        resolved: The resolved configuration of now, as YAML.

    Returns:
        A line for each harmless difference.

    Raises:
        ConfigurationError: For a difference in the model or in what the data are.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        return []
    before, now = (yaml.safe_load(text) for text in (file.read_text(encoding="utf-8"), resolved))
    notes = []
    for section, harmless in (("model", set()), ("data", HARMLESS), ("federation", LATER)):
        for key, old, new in _differences(before.get(section), now.get(section), section):
            if key.rpartition(".")[2] not in harmless:
                told = f"the run to resume ({directory}) was trained with {old}"
                raise ConfigurationError(f"{key} is {new}, but {told}: keep it, or start a new run")
            notes.append(f"note: {key} was {old} in {directory}, now {new}")
    return notes


def _assigned(directory: Path, given: str | None, root: Path, name: str) -> Place:
    """The directory that a supervisor gives to all attempts of a run: what is in it is gone on with."""
    found = rundir.find_checkpoint(given, root, name) if given not in {None, "none"} else None
    if found is None or (given == "last" and found.run != directory):
        return Place(directory, continued=True)
    note = "".join(f"{line}\n" for line in found.skipped) + f"resuming {found.file}"
    return Place(directory, found.file, note, continued=True)


def _continues(command: str, run: Path, root: Path, name: str) -> bool:
    """Whether a checkpoint's run is ours: evaluation always belongs to it, training only under its own name."""
    return command != "fit" or run.resolve().parent == (root / name).resolve()


def _differences(before: Any, now: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() & now.keys():
            yield from _differences(before[key], now[key], f"{at}.{key}")
    elif before != now:
        yield at, before, now
