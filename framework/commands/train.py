"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with layered configurations and run directories."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import sys
import tempfile
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from framework import rundir
from framework.about import About
from framework.commands import report
from framework.commands.checks import arguments_of, check_classes, import_class, is_required
from framework.commands.messages import condense, constructor_said
from framework.configuration import OWN, Configuration, check_numbers, name_of
from framework.errors import ConfigurationError
from framework.metrics_log import MetricsLog

#: Attributes of a DataModule that fill the model's arguments of the same name.
DERIVED = ("inputs", "classes", "nodes")


class LastCheckpoint(ModelCheckpoint):
    """Keep ``last.ckpt`` of the latest finished epoch.

    ``ModelCheckpoint(save_last=True)`` writes it only when the monitored metric improved, so a killed run would lose
    every epoch since its best one.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
        )


class RunCallback(Callback):
    """Tie one run to its directory, and know when training has begun.

    Args:
        cli: The command line that owns the run.
    """

    def __init__(self, cli: FulguriteCLI) -> None:
        self.cli = cli
        self.started = False
        self.trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = Path(trainer.strategy.broadcast(str(self.cli.directory)))
        if directory != self.cli.directory:  # only the first rank knows the number of the run
            self.cli.directory = directory
            vars(trainer)["_default_root_dir"] = str(directory)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsLog):
                    logger.directory = directory

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = False  # the training data are still to be loaded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True
        self._begin()
        self._save(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.forget(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin()
            self._save(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()
        self._save(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()
        self._save(trainer)

    def _begin(self) -> None:
        self.started = True
        self.cli.messages.release()

    def _save(self, trainer: Trainer) -> None:
        if self.cli.saved or _fast(trainer):
            return
        self.cli.saved = True
        if trainer.is_global_zero:
            text = self.cli.resolved()
            _write(self.cli.directory / self.cli.named("config.yaml"), text)
            for logger in trainer.loggers:
                if not isinstance(logger, MetricsLog | TensorBoardLogger | CSVLogger):
                    logger.log_hyperparams(yaml.safe_load(text))


class FulguriteCLI(LightningCLI):
    """One run of one command, from a configuration to its results.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        configuration: The merged layers.

    Attributes:
        directory: The run directory.
        results: Metrics of the test after ``fit``, or of ``validate`` and ``test``.
    """

    def __init__(self, command: str, configuration: Configuration, print_config: bool = False) -> None:
        self.command = command
        self.configuration = configuration
        self.print_config = print_config
        self.directory = Path()
        self.temporary: Path | None = None
        self.reserved = False
        self.saved = False
        self.results: dict[str, float] = {}
        self.run_callback = RunCallback(self)
        self.messages = Messages()
        values = self._read()
        with self._surroundings(values):
            super().__init__(
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"default_root_dir": "runs"},
                parser_kwargs={"exit_on_error": False, **{name: {"exit_on_error": False} for name in OWN}},
                args={"subcommand": command, command: values},
            )

    # -- from layers to objects ---------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        values = self.configuration.interpolated()
        check_numbers(values)
        self.about = About.read(values["about"]) if values.get("about") is not None else None
        if not isinstance(values.get("model"), dict) or "class_path" not in values["model"]:
            raise ConfigurationError(
                "model.class_path is not set: give a configuration (-c lds/wine), or --model <class>"
            )
        files = self.configuration.files
        own = str(values["model"]["class_path"]).rpartition(".")[2].lower()
        values["name"] = rundir.check_name(str(values.get("name") or (name_of(files[0]) if files else own)))
        self.name: str = values["name"]
        trainer = values.setdefault("trainer", {})
        self.root = Path(str(trainer.get("default_root_dir") or "runs")).expanduser()
        _default_log_dirs(trainer, str(self.root))
        check_classes(values)
        return values

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--about", type=dict | None, default=None, help="Which method, paper and number this is.")
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run's folder under the root.")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads of torch.")
        if not hasattr(self, "_added"):
            self._added = iter(self.subcommands())
        if next(self._added) == "fit":
            parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best checkpoint after fit.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        values = args[self.command]
        seed = values.get("seed_everything", 0)
        if not isinstance(seed, bool):
            seed_everything(_seed(seed), workers=True, verbose=False)
        self._given_data = self._make_data(values)
        self._derive(values)
        try:
            self.config = parser.parse_object(args)
        except ArgumentError as error:
            raise ConfigurationError(condense(str(error.message))) from error
        if self.print_config:
            sys.stdout.write(self.resolved())
            raise SystemExit(0)

    def _make_data(self, values: dict[str, Any]) -> LightningDataModule | None:
        """Build the DataModule first: the model's arguments may derive from it."""
        if values.get("data") is None:
            return None
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
        try:
            config = parser.parse_object({"data": values["data"]})
        except ArgumentError as error:
            raise ConfigurationError(condense(str(error.message))) from error
        if self.print_config and not any(_has(import_class(values["data"]["class_path"]), name) for name in DERIVED):
            return None
        with _own_errors():
            return parser.instantiate_classes(config).data

    def _derive(self, values: dict[str, Any]) -> None:
        """Fill ``inputs``, ``classes`` and ``nodes`` of the model from the data; refuse a user's other value."""
        model = values["model"]
        kind = import_class(model["class_path"])
        given = model.get("init_args") or {}
        for name in set(DERIVED) & set(arguments_of(kind)):
            own = given.get(name)
            derived = getattr(self._given_data, name) if _has(self._given_data, name) else None
            if derived is None:
                if own is None and is_required(kind, name):
                    data = type(self._given_data).__name__ if self._given_data is not None else "no data"
                    raise ConfigurationError(
                        f"model.init_args.{name}: {kind.__name__} needs it, "
                        f"and {data} has no attribute {name} to take it from"
                    )
                continue
            if own is not None and str(own) != str(derived):
                raise ConfigurationError(
                    f"model.init_args.{name} is {own}, "
                    f"but {type(self._given_data).__name__}.{name} is {derived}: leave it out"
                )
            model.setdefault("init_args", {})[name] = int(derived)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the parent would let hyper-parameters of a checkpoint replace what the user's YAML says."""

    def instantiate_classes(self) -> None:
        self._find_directory()
        config = self.config.clone()
        own = config[self.command]
        own["data"] = None  # built already
        _place_logs(own.trainer, self.directory, self.root)
        with _own_errors():
            self.config_init = self.parser.instantiate_classes(config)
        self.datamodule = self._given_data
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings: dict[str, Any] = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        settings["default_root_dir"] = str(self.directory)
        callbacks = settings["callbacks"] or []
        callbacks = [self.run_callback, *(callbacks if isinstance(callbacks, list) else [callbacks])]
        bare = bool(settings["barebones"])
        folder = str(self.directory / rundir.CHECKPOINTS)
        own = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in own:
            callback.dirpath = callback.dirpath or folder
        if not bare and settings["enable_checkpointing"] is not False:
            if not own:
                monitor, mode = getattr(self.model, "monitor", None), getattr(self.model, "mode", "min")
                name = "best-{epoch}" if monitor else "{epoch}"
                callbacks.append(
                    ModelCheckpoint(folder, name, monitor=monitor, mode=mode, enable_version_counter=False)
                )
            callbacks.append(LastCheckpoint(folder))
        settings["callbacks"] = callbacks
        if not bare:
            settings["logger"] = self._loggers(settings["logger"])
        return self._instantiate_trainer(settings, [])

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False:
            return False
        loggers = [] if given is None or given is True else list(given) if isinstance(given, list) else [given]
        if not any(isinstance(logger, MetricsLog) for logger in loggers):
            loggers.append(MetricsLog(self.directory, self.named("metrics.csv")))
        return loggers

    # -- the run's directory and checkpoint ---------------------------------------------------------------------------

    def named(self, file: str) -> str:
        """Name of a file of this command: ``metrics.csv`` of ``fit`` is ``metrics-test.csv`` of ``test``."""
        stem, dot, suffix = file.partition(".")
        return file if self.command == "fit" else f"{stem}-{self.command}{dot}{suffix}"

    def _find_directory(self) -> None:
        given = self._get(self.config, "ckpt_path")
        fast = bool(self._get(self.config, "trainer").fast_dev_run)
        self.checkpoint: Path | None = None
        found = None
        if given is None and self.command != "fit" and not fast:
            found = rundir.best_checkpoint(self.root, self.name)
            if found is None:
                raise FileNotFoundError(
                    f"{self.root / self.name} holds no trained run: "
                    "fit it first, or give --ckpt_path (none for fresh weights)"
                )
            self._say(f"{self.command}: {found.file}")
        elif given is not None and given != "none":
            found = rundir.find_checkpoint(str(given), self.root, self.name)
            if found is None and (self.command != "fit" or given != "last"):
                raise FileNotFoundError(f"--ckpt_path {given}: {self.root / self.name} holds no run with a checkpoint")
            if found is None:
                self._say(f"--ckpt_path last: no run under {self.root / self.name} yet, so this one starts afresh")
        if found is not None:
            self.checkpoint = found.file
        if fast:
            self.directory = self.temporary = Path(tempfile.mkdtemp(prefix="fulgurite-"))
        elif found is not None and found.run is not None and self._continues(found.run):
            self.directory = found.run
            if self.command == "fit":
                self._refuse_conflicts()
                self._say(f"resuming {found.file}")
        elif rundir.is_first_rank():
            self.directory, self.reserved = rundir.reserve(self.root, self.name), True
        else:
            self.directory = self.root / self.name / "of-the-first-rank"  # replaced when the ranks can talk

    def _continues(self, run: Path) -> bool:
        """Whether a checkpoint's run is ours: evaluation always belongs to it, training only under its own name."""
        return self.command != "fit" or run.resolve().parent == (self.root / self.name).resolve()

    def _refuse_conflicts(self) -> None:
        """A resumed optimiser would keep the old values in silence, so another ``model`` section is an error."""
        file = self.directory / "config.yaml"
        if not file.is_file():
            return
        before, now = (yaml.safe_load(text) for text in (file.read_text(), self.resolved()))
        for key, old, new in _differences(before.get("model"), now.get("model"), "model"):
            raise ConfigurationError(
                f"{key} is {new}, but the run to resume ({self.directory}) was trained with {old}: "
                "keep it, or start a new run"
            )
        for key, old, new in _differences(before.get("data"), now.get("data"), "data"):
            self._say(f"note: {key} was {old} in {self.directory}, now {new}")

    def resolved(self) -> str:
        """The whole configuration as YAML, ready to be given to ``-c`` again."""
        own = self.config[self.command].clone()
        for key in ("config", "ckpt_path"):
            if key in own:
                del own[key]
        parser = self._subcommand_parsers[self.command]
        return str(parser.dump(own, skip_none=True, skip_validation=True))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self.checkpoint) if self.checkpoint is not None else None
        kwargs.pop("verbose", None)
        if subcommand in {"validate", "test"}:
            kwargs["verbose"] = False  # our own table follows
        return kwargs

    # -- what follows a run -------------------------------------------------------------------------------------------

    def after_fit(self) -> None:
        """Test the best checkpoint and print ours beside the published numbers."""
        if not self.run_callback.trained:
            self._say(f"{self.directory} is complete ({self.trainer.current_epoch} epochs): nothing left to train")
        if not self._get(self.config, "test_after_fit") or not self._testable():
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
        self._report("test", best)

    def after_validate(self) -> None:
        self._report("validate", self.checkpoint)

    def after_test(self) -> None:
        self._report("test", self.checkpoint)

    def after_predict(self) -> None:
        if self.trainer.is_global_zero and not _fast(self.trainer):
            self._say(f"run directory: {self.directory}")

    def _testable(self) -> bool:
        has_data = self.datamodule is not None and is_overridden(
            "test_dataloader", self.datamodule, LightningDataModule
        )
        has_data = has_data or is_overridden("test_dataloader", self.model, LightningModule)
        return has_data and is_overridden("test_step", self.model, LightningModule)

    def _report(self, stage: str, checkpoint: str | Path | None) -> None:
        self.results = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        if stage == "test":
            self.results = {key: value for key, value in self.results.items() if not key.startswith(("train", "val"))}
        if not self.trainer.is_global_zero:
            return
        references = self.about.reference if self.about is not None else ()
        sys.stdout.write("\n" + report.table(self.results, references, title=self.name) + "\n")
        if not _fast(self.trainer):
            place = self.directory / self.named("results.json")
            relative = os.path.relpath(checkpoint, self.directory) if checkpoint else None
            _write(place, report.record(self.name, self.results, references, relative))
            sys.stdout.write(f"run directory: {self.directory}\n")
        sys.stdout.flush()

    def _say(self, line: str) -> None:
        if rundir.is_first_rank():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def _finish_wandb(self) -> None:
        """End our W&B run, so that the next one in this process is another."""
        loggers = self.trainer.loggers if hasattr(self, "trainer") else []
        if any(isinstance(logger, WandbLogger) and logger._experiment is not None for logger in loggers):
            import wandb  # imported already by the logger

            wandb.finish()

    @contextmanager
    def _surroundings(self, values: Mapping[str, Any]) -> Iterator[None]:
        """Threads as asked for; messages held back until the run begins; nothing left of a run that never began."""
        before = torch.get_num_threads()
        if values.get("threads") is not None:
            torch.set_num_threads(int(float(values["threads"])))
        self.messages.hold()
        try:
            with warnings.catch_warnings():
                # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
                warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
                # A run that is resumed writes into the directory of its checkpoints, on purpose.
                warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
                yield
        except Exception as error:
            if self.run_callback.started:
                vars(error)["in_training"] = True  # then even a ValueError is a bug, and `main` shows the traceback
            raise
        finally:
            self.messages.drop()
            torch.set_num_threads(before)
            self._finish_wandb()
            if self.temporary is not None:
                shutil.rmtree(self.temporary, ignore_errors=True)
            elif self.reserved:
                rundir.discard(self.directory, self.root)


class Messages(logging.Filter):
    """Lightning's notes (seed, devices) wait until the run begins, so that an error before it stands alone."""

    _LOGGERS = ("lightning.fabric.utilities.seed", "lightning.pytorch.utilities.rank_zero")

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.kept: list[logging.LogRecord] = []

    def hold(self) -> None:
        """Start to keep messages back."""
        self.holding = True
        for name in self._LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record back, and drop the advertisements."""
        if "Tip:" in record.getMessage():
            return False
        if self.holding and record.levelno < logging.WARNING:
            self.kept.append(record)
            return False
        return True

    def release(self) -> None:
        """Let through what was kept, and everything after."""
        self.holding = False
        kept, self.kept = self.kept, []
        for record in kept:
            logging.getLogger(record.name).handle(record)

    def drop(self) -> None:
        """Forget what was kept and take the filter away."""
        self.kept = []
        for name in self._LOGGERS:
            logging.getLogger(name).removeFilter(self)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise what a constructor raised, not the parser's account of it."""
    try:
        yield
    except Exception as error:
        inner: BaseException = error
        while inner.__cause__ is not None and _raised_in(inner, "jsonargparse"):
            inner = inner.__cause__
        sentence = constructor_said(str(error)) if _raised_in(inner, "jsonargparse") else ""
        if sentence:
            raise ConfigurationError(sentence) from error
        if inner is error or isinstance(inner, ArgumentError):
            raise
        raise inner from None


def _raised_in(error: BaseException, package: str) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(package)


def _fast(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _seed(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigurationError(f"seed_everything: expected an integer, got {value!r}") from None


def _has(owner: object, name: str) -> bool:
    """Whether an attribute is defined, without running the property behind it."""
    if owner is None:
        return False
    try:
        inspect.getattr_static(owner, name)
    except AttributeError:
        return False
    return True


def _entries(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _default_log_dirs(trainer: dict[str, Any], root: str) -> None:
    """Give loggers without a ``save_dir`` the root of all runs, which stands for the run directory."""
    for entry in _entries(trainer.get("logger")):
        if isinstance(entry, dict) and "class_path" in entry:
            known = arguments_of(import_class(entry["class_path"], Logger))
            arguments = entry.setdefault("init_args", {})
            if "save_dir" in known and arguments.get("save_dir") is None:
                arguments["save_dir"] = root


def _place_logs(trainer: Namespace, directory: Path, root: Path) -> None:
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
                earlier = sorted((directory / "wandb").glob("*run-*-*"))
                if earlier and entry.init_args.get("id") is None and entry.init_args.get("version") is None:
                    entry.init_args["id"] = earlier[-1].name.rpartition("-")[2]  # a resumed run stays one run


def _differences(before: Any, now: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{at}.{key}")
    elif before != now:
        yield at, before, now


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
