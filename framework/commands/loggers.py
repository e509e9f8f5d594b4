"""Loggers of the user, placed in the run directory, and the CSV log that every run has."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from framework.commands.checks import arguments_of, import_class
from framework.errors import ConfigurationError
from framework.metrics_log import MetricsLog

_PLACED = "the log lies in the run directory, which --name names"
#: Arguments that have no say over a log in the run directory, and why.
_DECIDED: dict[type, dict[str, str]] = {
    CSVLogger: {
        "name": _PLACED,
        "version": _PLACED,
        "flush_logs_every_n_steps": "each row of metrics.csv is written at once, so that a killed run keeps it",
    },
    TensorBoardLogger: {"name": _PLACED, "version": _PLACED},
}


def _entries(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def default_log_dirs(trainer: dict[str, Any], root: str) -> None:
    """Give loggers without a ``save_dir`` the root of all runs, which stands for the run directory.

    Raises:
        ConfigurationError: If such a logger is told what the run directory decides.
    """
    for i, entry in enumerate(_entries(trainer.get("logger"))):
        if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
            continue
        arguments = entry.get("init_args") or {}
        if not isinstance(arguments, dict):
            continue  # `check_classes` says so
        kind = import_class(entry["class_path"], Logger)
        if "save_dir" in arguments_of(kind) and arguments.get("save_dir") is None:
            arguments["save_dir"] = root
        if arguments.get("save_dir") == root:
            _refuse_decided(kind, arguments, f"trainer.logger[{i}].init_args")
        entry["init_args"] = arguments


def _refuse_decided(kind: type, arguments: dict[str, Any], at: str) -> None:
    defaults = signature(kind).parameters
    for name, reason in _DECIDED.get(kind, {}).items():
        given = arguments.get(name)
        if given is not None and str(given) != str(defaults[name].default):
            raise ConfigurationError(f"{at}.{name} is {given}, but {reason}: leave it out, or give save_dir a folder")


def place_logs(trainer: Namespace, directory: Path, root: Path, file: str) -> None:
    """Turn that root into the run directory, in what is instantiated; the saved configuration keeps the root.

    Args:
        trainer: The trainer's part of the configuration; changed in place.
        directory: The run directory.
        root: The folder of all runs.
        file: Name of the CSV log.
    """
    for entry in _entries(trainer.get("logger")):
        if not isinstance(entry, Namespace) or entry.init_args.get("save_dir") != str(root):
            continue
        kind = import_class(entry.class_path, Logger)
        if kind is CSVLogger:  # it would delete the history of a run that is resumed
            entry.class_path = f"{MetricsLog.__module__}.{MetricsLog.__qualname__}"
            entry.init_args = Namespace(directory=str(directory), file=file, prefix=entry.init_args.get("prefix") or "")
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
