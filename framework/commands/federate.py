"""``federate``: what ``fit`` would train, trained by many clients."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy
from jsonargparse import ArgumentParser, Namespace

from framework.commands.checks import arguments_of, check_class
from framework.commands.messages import condense, instantiate
from framework.commands.train import FulguriteCLI
from framework.configuration import Configuration
from framework.errors import ConfigurationError, near
from framework.federated.partition import Partitioner
from framework.federated.run import FederatedRun
from framework.federated.settings import Federation
from framework.federated.skew import Skew
from framework.federated.workplace import LocalWorkplace
from framework.loaders.reindexing import kind

SECTION = "federation"
_CLASSES = {"partition": Partitioner, "skew": Skew, "strategy": Strategy}


class FederateCLI(FulguriteCLI):
    """One federation: a configuration that ``fit`` takes, with a section ``federation`` beside it.

    Args:
        configuration: The merged layers.

    Attributes:
        federation: The settings.
        run: The federation itself.
    """

    def __init__(self, configuration: Configuration, print_config: bool = False) -> None:
        super().__init__("fit", configuration, print_config)

    def _read(self) -> dict[str, Any]:
        named = self.configuration.values.get("name")
        values = super()._read()
        if named is None:
            self.name = values["name"] = f"{self.name}-federated"
        self._section_parser = section_parser()
        self._section = parsed(self._section_parser, values.pop(SECTION, None))
        self.federation: Federation = instantiate(self._section_parser, self._section)[SECTION]
        self.check_engine()
        return values

    def resolved(self) -> str:
        section = self._section_parser.dump(self._section, skip_validation=True)
        return super().resolved() + str(section)

    def fit(self, **kwargs: Any) -> None:
        """Run the federation, from its start or from where it was killed."""
        self.run = FederatedRun(self.workplace(), self.federation, self.directory, self.trainer.loggers)
        self.connect(self.run)
        self.run.check()
        if self.place.continued and not (self.federation.engine == "in_process" and self.run.here):
            self.run.check_stateless()
        done = self.run.resume() if self.place.continued else 0
        if done >= self.federation.rounds:
            self._say(f"{self.directory} is complete ({done} rounds): nothing left to train")
        self.run_callback.begin()
        self.run_callback.trained = True
        self.run_callback.save(self.trainer)
        describe = getattr(self.federation.strategy, "describe", None)
        if describe is not None:
            self._say(describe())
        self.rounds(self.run)

    def check_engine(self) -> None:
        """Ask for what the engine needs, before anything is made."""
        if self.federation.engine == "ray":
            from framework.federated.simulation import check_installed

            check_installed()

    def connect(self, run: FederatedRun) -> None:
        """Reach clients in other processes, where an engine is there from the start."""

    def rounds(self, run: FederatedRun) -> None:
        """Run the rounds that are left, by the engine that is asked for."""
        if self.federation.engine == "ray" and run.finished < self.federation.rounds:
            from framework.commands.flower import pickled_app  # it needs this class
            from framework.federated.simulation import simulate

            simulate(run, pickled_app(self.configuration))
        else:
            run.run()

    def workplace(self, **options: Any) -> LocalWorkplace:
        """Module, data and trainer for the clients of this process.

        Args:
            options: Further arguments of :class:`LocalWorkplace`.
        """
        if self.datamodule is None:
            raise ConfigurationError(f"data is not set: {kind(self.model)} brings no data that could be divided")
        settings = dict(self._get(self.config_init, "trainer", default={}))
        settings["default_root_dir"] = str(self.directory)
        return LocalWorkplace(self.model, self.datamodule, settings, self._seed(), **options)

    def after_fit(self) -> None:
        """Test the best round, and print ours beside the published numbers."""
        if not self._get(self.config, "test_after_fit") or not self._testable():
            return
        best = str(self.run.best_file) if self.run.best_file is not None else None
        trainer = self.run.workplace.judge()
        trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
        self.trainer = trainer
        self._report("test", best)

    def _seed(self) -> int:
        return int(self._get(self.config, "seed_everything") or 0)


def section_parser() -> ArgumentParser:
    """The parser of the section ``federation``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Federation, SECTION, fail_untyped=False, sub_configs=True)
    return parser


def parsed(parser: ArgumentParser, section: Any) -> Namespace:
    """Check the section and read it by the types of :class:`Federation`; nothing is made.

    Args:
        parser: From :func:`section_parser`.
        section: What the configuration holds; ``None`` for the defaults.

    Raises:
        ConfigurationError: Naming the key.
    """
    section = {} if section is None else section
    if not isinstance(section, Mapping):
        raise ConfigurationError(f"{SECTION}: expected a mapping, got {section!r}")
    known = arguments_of(Federation)
    for key in section:
        if key not in known:
            raise ConfigurationError(f"{SECTION}.{key}: no such key{near(str(key), known)}")
    for key, base in _CLASSES.items():
        check_class(section.get(key), f"{SECTION}.{key}", base)
    try:
        return parser.parse_object({SECTION: section})
    except ArgumentError as error:
        raise ConfigurationError(condense(str(error.message))) from error
