"""A federation from its first round to its last, with evaluation, checkpoints and records."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from framework.errors import near
from framework.federated import wire
from framework.federated.client import PRIVACY, LightningClient, mean_loss_of
from framework.federated.client_state import let_go
from framework.federated.figures import selection_heatmap
from framework.federated.grid import SerialGrid
from framework.federated.layer_groups import LayerGroups
from framework.federated.nodes import PartitionGrid
from framework.federated.own_data import OwnData
from framework.federated.partition_figure import partition_figure
from framework.federated.partition_file import save
from framework.federated.probe import Loss
from framework.federated.rounds import RoundReport
from framework.federated.server import Server, take_all
from framework.federated.settings import Federation
from framework.federated.state import StateFiles, load_strategy_state, strategy_state
from framework.federated.workplace import LocalWorkplace
from framework.metrics_log import MetricsLog
from framework.rundir import CHECKPOINTS

ROUNDS = "rounds.jsonl"


class FederatedRun:
    """Train one module by many clients, in this process unless ``connect`` leads elsewhere.

    Args:
        workplace: Module, data and trainer.
        federation: The settings.
        directory: Where the run's files go.
        loggers: Lightning loggers; each round is logged as one step.

    Attributes:
        best: Number and value of the best round by ``monitor``; the last round where that is not logged.
        history: Reports of the rounds of this process.
    """

    def __init__(
        self, workplace: LocalWorkplace, federation: Federation, directory: Path, loggers: Sequence[Logger] = ()
    ) -> None:
        take_all(federation.strategy)
        self.workplace, self.federation, self.directory = workplace, federation, directory
        self.loggers = loggers
        self.client = LightningClient(workplace, federation)
        self.grid: SerialGrid | PartitionGrid = SerialGrid(
            self.client.app(), federation.clients, raise_errors=federation.fail_fast
        )
        self.module: LightningModule = workplace.module()
        self.server = Server(federation, self.grid, self._shared(self.module.state_dict()), workplace.seed)
        bind = getattr(federation.strategy, "bind", None)
        if bind is not None:
            if federation.keep == "everything" and hasattr(federation.strategy, "groups_of"):
                raise ValueError(
                    f"federation.keep must be callbacks or nothing with {type(federation.strategy).__name__}, "
                    "got everything: optimisers change with the layers"
                )
            bind(self.module, federation.clients, workplace.seed, self._probe)
        self.files = StateFiles(directory / "federation")
        self.best: tuple[int, float | None] = (0, None)
        self.best_file: Path | None = None
        self.finished = 0
        self._begun = False
        self.history: list[RoundReport] = []

    def connect(self, grid: PartitionGrid) -> None:
        """Have the clients elsewhere, instead of in this process.

        Args:
            grid: Reaches them.
        """
        self.grid = self.server.grid = grid

    @property
    def monitor(self) -> str | None:
        """The metric that picks the best round."""
        return self.federation.monitor or getattr(self.module, "monitor", None)

    @property
    def here(self) -> bool:
        """Whether the clients are in this process, where their states can be saved."""
        return isinstance(self.grid, SerialGrid)

    def check_stateless(self) -> None:
        """Refuse to resume where clients kept a state in processes that are gone.

        Raises:
            ValueError: If they did, naming what.
        """
        federation = self.federation
        kept = "federation.keep everything" if federation.keep == "everything" else ""
        if federation.private:
            kept = f"federation.private {', '.join(federation.private)}"
        stateful = [each for each in self.workplace.callbacks if is_overridden("state_dict", each, Callback)]
        if federation.keep == "callbacks" and stateful:
            kept = f"federation.keep callbacks with {type(stateful[0]).__name__}"
        if federation.privacy is not None:
            kept = "federation.privacy"  # what clients have spent
        if kept:
            raise ValueError(
                f"a federation with {kept} can be resumed only with federation.engine in_process: "
                "other engines lose what clients keep from round to round when they end"
            )

    @property
    def holds_out(self) -> bool:
        """Whether clients have items to evaluate on."""
        if isinstance(self.federation.partition, OwnData):
            return self.federation.held_out > 0
        return any(len(part) for part in self.client.shares.held_out)

    def check(self) -> None:
        """Divide the data and solve for noise, so that what cannot be done is known before anything is written.

        Raises:
            ValueError: If data cannot be divided as asked, or clients cannot keep their privacy.
        """
        federation = self.federation
        if federation.privacy is not None:
            from framework.federated import private_checks  # it needs Opacus

            trainer = self.workplace.trainer(max_epochs=1)
            private_checks.check_private(federation, self.module, self.workplace.data, trainer)
        if not isinstance(federation.partition, OwnData):
            items = [len(part) for part in self.client.shares.train]
            if federation.privacy is not None:
                own = self.client.own_batch_size() if federation.privacy.batch_size is None else None
                private_checks.check_spending(federation, items, own)
        elif self.here:
            raise ValueError(
                "federation.partition OwnData is for clients in processes of their own (flwr run, with SuperNodes): "
                "here all would train on the same items"
            )

    def resume(self) -> int:
        """Go on where the state on disk ends.

        Returns:
            The rounds that are done; 0 if there is no state.

        Raises:
            ValueError: If another strategy has left it, or clients kept a state that is gone.
        """
        state = self.files.load(self.grid.contexts)
        if state is None:
            self._forget(0)  # a start that was killed before it had saved anything may have logged something
            return 0
        ours = type(self.federation.strategy).__name__
        theirs = state.get("strategy_class", ours)  # earlier releases did not save it
        if theirs != ours:
            raise ValueError(
                f"federation.strategy is {ours}, but {self.directory} was trained with {theirs}: keep it, or start a "
                "new run"
            )
        self._begun = True
        if not state.get("here", True):
            self.check_stateless()
        self.finished = int(state["round"])
        self.server.weights, self.server.clock = dict(state["weights"]), float(state["clock"])
        self.best = (int(state["best"][0]), state["best"][1])
        self.best_file = self.directory / CHECKPOINTS / state["best_file"] if state["best_file"] else None
        load_strategy_state(self.federation.strategy, state["strategy"])
        self._forget(self.finished + 1)
        return self.finished

    def run(self) -> None:
        """Run the rounds that are left.

        Raises:
            RuntimeError: If a client fails under ``fail_fast``.
            RunFailed: If a round misses its quorum. What earlier rounds left is on disk.
        """
        from tqdm import tqdm  # type: ignore[import-untyped]

        self.directory.mkdir(parents=True, exist_ok=True)
        with _undisturbed():
            self.check()
            if not self._begun:
                self._show_partition()
                self._finish(RoundReport(0, metrics=self._evaluate()), [])
            left = range(self.finished + 1, self.federation.rounds + 1)
            with tqdm(left, "federation", unit=" rounds", disable=None) as bar:
                for server_round in bar:
                    report = self.server.train(server_round)
                    if self.federation.evaluates(server_round):
                        report.metrics |= self._evaluate()
                        if self.holds_out:
                            report.metrics |= self.server.evaluate(server_round)
                    self._finish(report, [each.client for each in report.clients])
                    bar.set_postfix_str(self._postfix(report))
            self._show_layers()
            self._show_privacy()

    def _show_partition(self) -> None:
        """Who holds what, as a picture, and as a file for ``FromFile``."""
        if isinstance(self.federation.partition, OwnData):
            return  # the server does not know
        shares = self.client.shares
        save(self.directory / "partition.npz", shares.train, shares.held_out)
        figure = partition_figure(shares.counts())
        figure.savefig(self.directory / "partition.png", dpi=110)

    def _show_layers(self) -> None:
        """Which layers were trained, by round and by client, where they were chosen."""
        with open(self.directory / ROUNDS, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        if any(client["layers"] is not None for record in records for client in record["clients"]):
            groups: LayerGroups = self.federation.strategy.groups_of(self.module)  # type: ignore[attr-defined]
            selection_heatmap(records, groups.names).savefig(self.directory / "layers.png", dpi=110)

    def _show_privacy(self) -> None:
        """What clients of this process have spent, how noisy they are and how they were weighed; nodes tell nobody."""
        if self.federation.privacy is None or not self.here:
            return
        from framework.federated.privacy_figure import clients_privacy, privacy_figure

        states = {
            number: context.state.config_records[PRIVACY]
            for number, context in enumerate(self.grid.contexts)
            if PRIVACY in context.state.config_records
        }
        if not states:
            return
        with open(self.directory / ROUNDS, encoding="utf-8") as file:
            rows = clients_privacy(states, [json.loads(line) for line in file])
        (self.directory / "clients_privacy.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        privacy_figure(rows).savefig(self.directory / "clients_privacy.png", dpi=110)

    def _finish(self, report: RoundReport, changed: Sequence[int]) -> None:
        """Log a round, keep its checkpoint if it is the best, and save what a later process goes on from."""
        self.history.append(report)
        row = report.row(self.federation.log_clients)
        for logger in self.loggers:
            logger.log_metrics(row, step=report.round)
        with open(self.directory / ROUNDS, "a", encoding="utf-8") as file:
            file.write(json.dumps(report.record()) + "\n")
        outdone = self._save_checkpoints(report)
        self.finished = report.round
        state = {
            "weights": self.server.weights, "clock": self.server.clock, "best": list(self.best),
            "best_file": self.best_file.name if self.best_file else "",
            "strategy": strategy_state(self.federation.strategy), "here": self.here,
            "strategy_class": type(self.federation.strategy).__name__,
        }  # fmt: skip
        self.files.save(report.round, state, self.grid.contexts, changed)
        if outdone is not None:
            outdone.unlink(missing_ok=True)  # only now: a killed run goes on from the state before

    def _evaluate(self) -> dict[str, float]:
        """The server's evaluation, on the DataModule's validation data; empty where module or data have none."""
        module, data = self._loaded(), self.workplace.data
        if not is_overridden("validation_step", module) or not is_overridden("val_dataloader", data):
            return {}
        trainer = self.workplace.judge()
        trainer.validate(module, datamodule=data, verbose=False)
        let_go(module)
        return wire.numbers(trainer.callback_metrics)

    def _loaded(self) -> LightningModule:
        """A module with the server's weights; what is private to clients stays as it was initialised."""
        module = self.workplace.module()
        module.load_state_dict(self.server.weights, strict=False)
        return module

    def _save_checkpoints(self, report: RoundReport) -> Path | None:
        """Write ``last.ckpt``, and the best round's; returns the file of the round that was best until now."""
        folder = self.directory / CHECKPOINTS
        trainer, module = self.workplace.judge(), self._loaded()
        trainer.strategy.connect(module)
        fresh = folder / ".last.ckpt.new"
        folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(fresh, weights_only=True)
        let_go(module)
        monitor, mode = self.monitor, getattr(module, "mode", "min")
        value = report.metrics.get(monitor) if monitor else None
        if self.federation.monitor and value is None and self.federation.evaluates(report.round) and report.round:
            known = ", ".join(sorted(report.metrics))
            raise ValueError(
                f"federation.monitor {monitor!r} was not logged{near(str(monitor), report.metrics)}; there are {known}"
            )
        value = None if value is None or math.isnan(value) else value
        before = self.best[1]
        sign = 1 if mode == "max" else -1
        outdone = None
        if report.round and (before is None or (value is not None and sign * value > sign * before)):
            outdone = self.best_file
            self.best, self.best_file = (report.round, value), folder / f"best-round={report.round}.ckpt"
            shutil.copyfile(fresh, self.best_file)
        os.replace(fresh, folder / "last.ckpt")
        return outdone if outdone != self.best_file else None

    def _shared(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if not self.federation.is_private(key)}

    def _probe(self) -> tuple[Loss, Any]:
        """The module's loss, and a batch of the first client's."""
        self.module.to(self.workplace.device)
        with torch.random.fork_rng():
            torch.manual_seed(self.workplace.seed)
            return mean_loss_of(self.module), next(iter(self.client.batches(0)))

    def _forget(self, first: int) -> None:
        """Drop what was logged of a round and of those after it."""
        for logger in self.loggers:
            if isinstance(logger, MetricsLog):
                logger.forget(first)
        path = self.directory / ROUNDS
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["round"] < first]
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text("".join(kept), encoding="utf-8")
        os.replace(fresh, path)

    def _postfix(self, report: RoundReport) -> str:
        loss = next((value for name, value in report.metrics.items() if name.endswith("train/loss")), None)
        monitor = self.monitor
        value = report.metrics.get(monitor) if monitor else None
        parts = [f"{len(report.used)}/{len(report.clients)} clients"]
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        parts += [f"{monitor} {value:.3f}"] if value is not None else []
        return ", ".join([*parts, f"down {_megabytes(report.down)}", f"up {_megabytes(report.up)}"])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Lightning's notes on each of a thousand trainers; the caller's generators stay as they were."""
    logger = logging.getLogger("lightning.pytorch")
    level, states = logger.level, (np.random.get_state(), random.getstate())
    logger.setLevel(logging.WARNING)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            yield
    finally:
        logger.setLevel(level)
        np.random.set_state(states[0])
        random.setstate(states[1])
