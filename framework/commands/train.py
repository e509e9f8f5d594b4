"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with layered configurations and run directories."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from framework import rundir
from framework.about import About
from framework.checkpointing import make_durable
from framework.commands import report
from framework.commands.callbacks import LastCheckpoint, RunCallback, is_fast
from framework.commands.checks import check_classes
from framework.commands.derived import derive, make_data
from framework.commands.loggers import default_log_dirs, place_logs
from framework.commands.messages import condense, instantiate
from framework.commands.place import Place, compare, find_place
from framework.commands.quiet import Messages
from framework.configuration import Configuration, check_numbers, name_of
from framework.errors import ConfigurationError, Paused
from framework.lean_steps import lighten
from framework.metrics_log import MetricsLog
from framework.resuming.callback import ResumableRun


class FulguriteCLI(LightningCLI):
    """One run of one command, from a configuration to its results.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        configuration: The merged layers.

    Attributes:
        directory: The run directory.
        results: Metrics of the test after ``fit``, or of ``validate`` and ``test``.
        paused: What a run of ``fit`` that has ended waits for, ``None`` if it waits for nothing.
    """

    def __init__(self, command: str, configuration: Configuration, print_config: bool = False) -> None:
        self.command = command
        self.configuration = configuration
        self.print_config = print_config
        self.directory = Path()
        self.place = Place(Path())
        self.saved = False
        self.results: dict[str, float] = {}
        self.paused: Paused | None = None
        self.run_callback = RunCallback(self)
        self.messages = Messages()
        values = self._read()
        with self._surroundings(values):
            super().__init__(
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"default_root_dir": "runs"},
                parser_kwargs={
                    "exit_on_error": False,
                    **{name: {"exit_on_error": False} for name in self.subcommands()},
                },
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
        default_log_dirs(trainer, str(self.root))
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
            parser.add_argument(
                "--resumable",
                type=Literal["auto"] | bool,
                default="auto",
                help="Make a killed run go on bit for bit: true refuses data with which it could not, auto says so.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        values = args[self.command]
        seed = values.get("seed_everything", 0)
        if not isinstance(seed, bool):
            try:
                seed_everything(int(str(seed)), workers=True, verbose=False)
            except ValueError:
                raise ConfigurationError(f"seed_everything: expected an integer, got {seed!r}") from None
        self._given_data = make_data(values.get("data"), only_if_derived_from=self.print_config)
        derive(values["model"], self._given_data)
        try:
            self.config = parser.parse_object(args)
        except ArgumentError as error:
            raise ConfigurationError(condense(str(error.message))) from error
        if self.print_config:
            sys.stdout.write(self.resolved())
            raise SystemExit(0)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the parent would let hyper-parameters of a checkpoint replace what the user's YAML says."""

    def instantiate_classes(self) -> None:
        self._find_directory()
        config = self.config.clone()
        own = config[self.command]
        own["data"] = None  # built already
        place_logs(own.trainer, self.directory, self.root, self.named("metrics.csv"))
        self.config_init = instantiate(self.parser, config)
        self.datamodule = self._given_data
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings: dict[str, Any] = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        settings["default_root_dir"] = str(self.directory)
        callbacks = settings["callbacks"] or []
        callbacks = [self.run_callback, *(callbacks if isinstance(callbacks, list) else [callbacks])]
        resumable = self.config[self.command].get("resumable", False)
        if resumable is not False and not any(isinstance(callback, ResumableRun) for callback in callbacks):
            callbacks.insert(1, ResumableRun(strict=resumable is True))
        bare = bool(settings["barebones"])
        folder = str(self.directory / rundir.CHECKPOINTS)
        own = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in own:
            callback.dirpath = callback.dirpath or folder
        if not bare and settings["enable_checkpointing"] is not False:
            if all(_saves_on_the_way(callback) for callback in own):
                monitor, mode = getattr(self.model, "monitor", None), getattr(self.model, "mode", "min")
                name = "best-{epoch}" if monitor else "{epoch}"
                best = ModelCheckpoint(folder, name, monitor=monitor, mode=mode, enable_version_counter=False)
                callbacks.insert(len(callbacks) if not own else callbacks.index(own[0]), best)
            callbacks.append(LastCheckpoint(folder))
        settings["callbacks"] = callbacks
        if not bare:
            settings["logger"] = self._loggers(settings["logger"])
        trainer = self._instantiate_trainer(settings, [])
        lighten()
        make_durable(trainer)
        return trainer

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
        self.place = find_place(self.command, None if given is None else str(given), fast, self.root, self.name)
        self.directory = self.place.directory
        if self.place.continued and self.command == "fit":
            for line in compare(self.directory, self.resolved()):
                self._say(line)
        if self.place.note:
            self._say(self.place.note)

    def resolved(self) -> str:
        """The whole configuration as YAML, ready to be given to ``-c`` again."""
        own = self.config[self.command].clone()
        for key in ("config", "ckpt_path"):
            if key in own:
                del own[key]
        parser = self._subcommand_parsers[self.command]
        return str(parser.dump(own, skip_validation=True))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self.place.checkpoint) if self.place.checkpoint is not None else None
        kwargs.pop("verbose", None)
        if subcommand in {"validate", "test"}:
            kwargs["verbose"] = False  # our own table follows
        return kwargs

    # -- the run and what follows it ----------------------------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Train, until the end or until a callback pauses the run."""
        try:
            self.trainer.fit(**kwargs)
        except Paused as pause:
            self.paused = pause
        else:
            pauses = (getattr(callback, "paused", None) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
            self.paused = next((pause for pause in pauses if isinstance(pause, Paused)), None)

    def after_fit(self) -> None:
        """Test the best checkpoint and print ours beside the published numbers; of a paused run, say what it needs."""
        if self.paused is not None:
            self._say(str(self.paused))
            return
        if self.trainer.is_global_zero:
            rundir.drop_previous(self.directory)
        if not self.run_callback.trained:
            self._say(f"{self.directory} is complete ({self.trainer.current_epoch} epochs): nothing left to train")
        if not self._get(self.config, "test_after_fit") or not self._testable():
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
        self._report("test", best)

    def after_validate(self) -> None:
        self._report("validate", self.place.checkpoint)

    def after_test(self) -> None:
        self._report("test", self.place.checkpoint)

    def after_predict(self) -> None:
        if self.trainer.is_global_zero and not is_fast(self.trainer):
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
        if not is_fast(self.trainer):
            place = self.directory / self.named("results.json")
            relative = os.path.relpath(checkpoint, self.directory) if checkpoint else None
            rundir.write(place, report.record(self.name, self.results, references, relative))
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
            self.place.leave(self.root)


def _saves_on_the_way(callback: ModelCheckpoint) -> bool:
    """Whether a checkpoint is there to lose less in a kill, and not to keep the best weights."""
    return callback.monitor is None and (callback._every_n_train_steps > 0 or callback._train_time_interval is not None)
