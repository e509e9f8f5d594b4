"""Run directories: ``<root>/<name>/<n>/`` holds everything one run leaves behind."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CHECKPOINTS = "checkpoints"
PREVIOUS = "-previous"
"""What is put to the name of a ``last`` checkpoint that the next one has overwritten."""
ASSIGNED = "FULGURITE_RUN_DIRECTORY"
"""Environment variable with the directory of a run that is started again and again, by its supervisor."""


def run_directory(trainer: Trainer) -> Path:
    """Where a callback puts what it writes.

    Args:
        trainer: Any Lightning trainer. Call it on all ranks: Lightning broadcasts the answer.

    Returns:
        The run directory of the command line, else the logger's directory, else ``trainer.default_root_dir``.
    """
    from framework.metrics_log import MetricsLog

    if getattr(trainer, "fast_dev_run", False):
        return Path(trainer.default_root_dir)  # Lightning swaps in a logger without a directory
    for logger in trainer.loggers:
        if isinstance(logger, MetricsLog):
            return Path(trainer.strategy.broadcast(logger.log_dir))
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_first_rank() -> bool:
    """Whether this process is the one that writes, by what torchrun, SLURM or Lightning put in the environment."""
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if key in os.environ:
            return int(os.environ[key]) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    return int(os.environ.get("NODE_RANK", "0")) == 0


def check_name(name: str) -> str:
    """Refuse a run name that would leave the root.

    Raises:
        ConfigurationError: If it is empty, absolute or holds ``..`` or odd characters.
    """
    if not re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", name) or {".", ".."} & set(name.split("/")):
        raise ConfigurationError(f"name must be letters, digits and _ . + = - in parts separated by /, got {name!r}")
    return name


def runs(root: Path, name: str) -> list[Path]:
    """Run directories of a name, oldest first."""
    home = root / name
    if not home.is_dir():
        return []
    return sorted(
        (path for path in home.iterdir() if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name)
    )


def reserve(root: Path, name: str) -> Path:
    """Make the next run directory; two runs started at once get two.

    Returns:
        The new, empty directory.
    """
    while True:
        taken = runs(root, name)
        path = root / name / str(int(taken[-1].name) + 1 if taken else 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another run took the number between the look and the leap
        return path


def discard(path: Path, root: Path) -> None:
    """Remove a reserved directory that stayed empty, and the folders above it that were made for it."""
    for each in (path, *path.parents):
        try:
            each.rmdir()
        except OSError:  # not empty, or not there
            return
        if each == root:
            return


def write(path: Path, text: str) -> None:
    """Write a file of a run as a whole: a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


@dataclass(frozen=True)
class Found:
    """A checkpoint and the run it belongs to.

    Attributes:
        file: The checkpoint.
        run: Its run directory, ``None`` for a file that lies elsewhere.
        skipped: A sentence for each newer file that cannot be used, and why.
    """

    file: Path
    run: Path | None
    skipped: tuple[str, ...] = ()


def damage(file: Path) -> str:
    """What is wrong with a checkpoint: a file that a crash cut short or a disk changed does not pass.

    A checkpoint is a zip archive whose table of contents is written last and which holds a CRC of each part; both are
    checked, at the speed of reading the file. Nothing is loaded.

    Args:
        file: The checkpoint; a folder, of a sharded one, is not looked into.

    Returns:
        The fault in a few words, empty if there is none.
    """
    if file.is_dir():
        return ""
    try:
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
    except FileNotFoundError:
        return "it is gone"
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return f"it is no whole checkpoint ({file.stat().st_size} bytes; {error or type(error).__name__})"
    return "" if part is None else f"{part} in it has changed since it was written (wrong CRC)"


def last_checkpoint(root: Path, name: str) -> Found | None:
    """The newest undamaged ``last`` checkpoint of the newest run that has one, or ``None``."""
    skipped: list[str] = []
    for run in reversed(runs(root, name)):
        files = [*run.glob(f"{CHECKPOINTS}/last*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
            fault = damage(file)
            if not fault:
                return Found(file, run, tuple(skipped))
            skipped.append(f"skipping {file}: {fault}")
        if files:  # not an older run, which this one was to follow
            raise ConfigurationError(f"no checkpoint of {run} can be used: {'; '.join(skipped)}")
    return None


def drop_previous(run: Path) -> None:
    """Remove what was kept of overwritten ``last`` checkpoints, of a complete run whose last one is whole."""
    for kept in run.glob(f"{CHECKPOINTS}/last*{PREVIOUS}.ckpt"):
        if not damage(kept.with_name(kept.name.replace(PREVIOUS, ""))):
            kept.unlink(missing_ok=True)


def best_checkpoint(root: Path, name: str) -> Found | None:
    """The best undamaged checkpoint of the newest run that has one, or ``None``."""
    for run in reversed(runs(root, name)):
        files = [file for file in run.glob(f"{CHECKPOINTS}/*.ckpt") if not file.name.startswith("last")]
        if not files:
            continue
        best = files[0] if len(files) == 1 else _best_of(run, files)
        fault = damage(best)
        if fault:
            raise ConfigurationError(f"{best} cannot be used: {fault}; --ckpt_path last takes another")
        return Found(best, run)
    return None


def find_checkpoint(given: str, root: Path, name: str) -> Found | None:
    """What ``--ckpt_path`` means.

    Args:
        given: ``last``, ``best`` or a file.
        root: Folder of all runs.
        name: Name of the configuration.

    Returns:
        The checkpoint, or ``None`` when ``last`` or ``best`` finds no run.

    Raises:
        FileNotFoundError: If a file is given that does not exist.
        ConfigurationError: If what is named is damaged, or all that ``last`` could take is.
    """
    if given == "last":
        return last_checkpoint(root, name)
    if given == "best":
        return best_checkpoint(root, name)
    file = Path(given).expanduser()
    if not file.exists():  # a sharded checkpoint is a folder
        raise FileNotFoundError(f"ckpt_path {given}: no such file; give last, best or the path of a checkpoint")
    fault = "" if _is_legacy(file) else damage(file)
    if fault:
        raise ConfigurationError(f"ckpt_path {given} cannot be used: {fault}")
    run = file.resolve().parent
    run = run.parent if run.name == CHECKPOINTS else run
    return Found(file, Path(os.path.relpath(run)) if (run / "config.yaml").is_file() else None)


def _is_legacy(file: Path) -> bool:
    """Whether a file is a bare pickle, as torch wrote before it made archives; such a file has no CRC."""
    if file.is_dir():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"


def _best_of(run: Path, files: list[Path]) -> Path:
    """Ask the last checkpoint which of several is best; without one, the newest file."""
    import torch

    for last in run.glob(f"{CHECKPOINTS}/last*.ckpt"):
        if damage(last):
            continue
        states = torch.load(last, map_location="cpu", weights_only=False, mmap=True).get("callbacks", {})
        for state in states.values():
            if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
                file = last.parent / Path(state["best_model_path"]).name
                if file in files:
                    return file
    return max(files, key=lambda file: file.stat().st_mtime_ns)
