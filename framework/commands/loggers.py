"""Loggers of the user, placed in the run directory, and the CSV log that every run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from framework.commands.checks import arguments_of, import_class
from framework.metrics_log import MetricsLog


def _entries(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def default_log_dirs(trainer: dict[str, Any], root: str) -> None:
    """Give loggers without a ``save_dir`` the root of all runs, which stands for the run directory."""
    for entry in _entries(trainer.get("logger")):
        if isinstance(entry, dict) and "class_path" in entry:
            known = arguments_of(import_class(entry["class_path"], Logger))
            arguments = entry.setdefault("init_args", {})
            if "save_dir" in known and arguments.get("save_dir") is None:
                arguments["save_dir"] = root


def place_logs(trainer: Namespace, directory: Path, root: Path) -> None:
    """Turn that root into the run directory, in what is instantiated; the saved configuration keeps the root."""
    for entry in _entries(trainer.get("logger")):
        if not isinstance(entry, Namespace) or entry.init_args.get("save_dir") != str(root):
            continue
        kind = import_class(entry.class_path, Logger)
        if kind is CSVLogger:  # it would delete the history of a run that is resumed
            entry.class_path = f"{MetricsLog.__module__}.{MetricsLog.__qualname__}"
            entry.init_args = Namespace(directory=str(directory))
        elif issubclass(kind, TensorBoardLogger):
            entry.init_args["save_dir"] = str(directory.parent)
            entry.init_args["name"], entry.init_args["version"] = directory.name, ""
        else:
            entry.init_args["save_dir"] = str(directory)
            if issubclass(kind, WandbLogger):
                # W&B writes from a process that outlives a run, and stays where that was started.
                entry.init_args["save_dir"] = str(directory.resolve())
                entry.init_args["name"] = entry.init_args.get("name") or str(directory.relative_to(root))
                earlier = sorted((directory / "wandb").glob("*run-*/run-*.wandb"))
                if earlier and entry.init_args.get("id") is None and entry.init_args.get("version") is None:
                    entry.init_args["id"] = earlier[-1].stem.removeprefix("run-")  # a resumed run stays one run
