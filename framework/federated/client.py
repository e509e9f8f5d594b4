"""A Flower client that trains a LightningModule: a fresh Trainer for every message, on its share of the data."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from framework.federated import client_state, private_rounds, wire
from framework.federated.client_callbacks import OnlyTrainable, Proximal, RestoreCallbacks
from framework.federated.client_draws import drawing_by
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.costs import step_flops
from framework.federated.importance import importance
from framework.federated.layer_groups import LayerGroups
from framework.federated.probe import Loss
from framework.federated.selective import SelectiveFedAvg
from framework.federated.shares import Shares
from framework.loaders import TrainPath, World, reindex
from framework.seeding import derive

if TYPE_CHECKING:
    from framework.federated.ledger_file import LedgerFile
    from framework.federated.privacy_ledger import Ledger
    from framework.federated.settings import Federation

_CALLBACKS, _FIT, _PRIVATE = "callbacks", "fit", "private"
"""Where a client's state lies among the records of its context."""
PRIVACY = "privacy"
"""Where its ledger of privacy lies."""

_log = logging.getLogger(__name__)


class Workplace(Protocol):
    """The user's module, data and trainer, from which every client of a process works.

    Attributes:
        data: The data, of which each client sees its share.
        seed: Seed of the run.
        fingerprint: Of the configuration, to be compared between processes; empty where there is one process.
        distributed: Whether this process is one of several that train as one client.
    """

    data: LightningDataModule
    seed: int
    fingerprint: str
    distributed: bool

    @property
    def device(self) -> torch.device:
        """Where the trainers put the module."""
        ...

    def module(self) -> LightningModule:
        """A module as the configuration describes it, that nothing has been done to."""
        ...

    def trainer(self, callbacks: Sequence[Callback] = (), first: Sequence[Callback] = (), **settings: Any) -> Trainer:
        """A new, silent trainer as the configuration describes it, with copies of its callbacks.

        Args:
            callbacks: More callbacks, after the user's.
            first: More, before them.
            settings: Arguments of ``Trainer`` that are decided here.
        """
        ...


class Client(Protocol):
    """What answers the messages of a federation; each message names its client by the partition of its node."""

    def train(self, message: Message, context: Context) -> Message: ...
    def evaluate(self, message: Message, context: Context) -> Message: ...
    def importance(self, message: Message, context: Context) -> Message: ...
    def introduce(self, message: Message, context: Context) -> Message: ...


class LightningClient:
    """All clients of one process: each message names its client by the partition of its node.

    Args:
        workplace: Module, data and trainer.
        federation: The settings.
    """

    def __init__(self, workplace: Workplace, federation: Federation) -> None:
        self._workplace, self._federation = workplace, federation
        self._shares: Shares | None = None
        self._flops: dict[tuple[str, ...], float] = {}  # of a backward pass, by item
        self._warned: set[int] = set()  # clients whose buffers have changed

    def app(self) -> ClientApp:
        """The app that Flower's engines run."""
        return app_of(lambda context: self)

    def introduce(self, message: Message, context: Context) -> Message:
        """Say which partition this is, to a server with the same configuration.

        Raises:
            ValueError: If the server's configuration is another one.
        """
        theirs, ours = str(message.content.config_records["config"]["fingerprint"]), self._workplace.fingerprint
        if theirs and ours and theirs != ours:
            raise ValueError(
                f"its configuration is not the server's (fingerprint {ours}, the server's {theirs}): "
                "give both the same layers and keys"
            )
        return Message(RecordDict({"config": ConfigRecord({"partition": self._partition(context)})}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """Train the weights of a message on the client's share, and reply with what they became.

        Args:
            message: Record ``arrays`` holds weights, record ``config`` the ``server-round`` and what the strategy adds,
                such as ``proximal-mu``.
            context: Of the client; its state is kept there.
        """
        partition, privacy = self._partition(context), self._federation.privacy
        if privacy is None:
            return self._train(message, context, partition)
        with (
            private_rounds.discreet("training", partition, self._deployed),
            private_rounds.held_ledger(privacy, partition, context.run_id, self._deployed) as (file, free),
        ):
            if not free:
                return private_rounds.refusal(message, private_rounds.BUSY)
            if self._workplace.distributed:
                raise ValueError("trainer.devices must be 1 with federation.privacy, got several processes")
            ledger = self._ledger(partition, context, file)
            reason = ledger.refusal()
            if reason:
                return private_rounds.refusal(message, reason)
            return self._train(message, context, partition, ledger)

    def _train(self, message: Message, context: Context, partition: int, ledger: Ledger | None = None) -> Message:
        config = message.content.config_records["config"]
        server_round = int(cast(int, config["server-round"]))
        module = self._module(message, context)
        with self._surroundings("train", server_round, partition):
            metrics = self._fit(module, partition, config, context, ledger)
        state = module.state_dict()
        if "layers" in config:
            sent = self._groups(module).keys_to_send(cast(list[str], config["layers"]))
            state = {key: state[key] for key in sent}
        private = [key for key in state if self._federation.is_private(key)]
        if private:
            context.state[_PRIVATE] = wire.pack({key: state[key] for key in private})
        arrays = wire.pack({key: value for key, value in state.items() if key not in private})
        if ledger is not None:
            arrays, changed = private_rounds.with_noise(arrays, message.content.array_records["arrays"], module)
            if changed and partition not in self._warned:
                self._warned.add(partition)
                _log.warning(
                    "client %d: %s changed in training without noise, and are sent back as they came",
                    partition, ", ".join(changed),
                )  # fmt: skip
        client_state.let_go(module)
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Validate the weights of a message on what the client has held out."""
        partition = self._partition(context)
        if self._federation.privacy is None:
            return self._evaluate(message, context, partition)
        with private_rounds.discreet("evaluation", partition, self._deployed):
            return self._evaluate(message, context, partition)

    def _evaluate(self, message: Message, context: Context, partition: int) -> Message:
        server_round = int(cast(int, message.content.config_records["config"]["server-round"]))
        stage = self.shares.stage(partition, training=False)
        if not len(stage.indices):
            return Message(RecordDict({"metrics": MetricRecord({"num-examples": 0})}), reply_to=message)
        module = self._module(message, context)
        loader = stage.apply(_in_order(TrainPath.on(self._workplace.data).build(before="partition")), World())
        with self._surroundings("evaluate", server_round, partition):
            trainer = self._workplace.trainer(limit_val_batches=None)
            trainer.validate(module, dataloaders=loader, verbose=False)
        metrics: dict[str, Any] = {"num-examples": len(stage.indices), **wire.numbers(trainer.callback_metrics)}
        client_state.let_go(module)
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def importance(self, message: Message, context: Context) -> Message:
        """Score the layers of the weights of a message on the client's share: the first trip of selective training."""
        partition, config = self._partition(context), message.content.config_records["config"]
        module, batches = self._module(message, context), int(cast(int, config["batches"]))
        module.to(self._workplace.device)
        server_round = int(cast(int, config["server-round"]))
        with self._surroundings("importance", server_round, partition):
            chosen = itertools.islice(self.batches(partition), batches or None)
            scores = importance(module, mean_loss_of(module), chosen, self._groups(module), str(config["kind"]))
        items = len(self.shares.stage(partition).indices)
        metrics = MetricRecord({"num-examples": items, "scores": scores.tolist()})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def batches(self, partition: int) -> DataLoader[Any]:
        """What a client trains on, in order and every item once.

        Args:
            partition: Its number.
        """
        stage = self.shares.stage(partition)  # first: it sets the data up
        return stage.apply(_in_order(TrainPath.on(self._workplace.data).build(before="partition")), World())

    @property
    def shares(self) -> Shares:
        """Who holds what, the same in every process; the data are read when it is first asked for."""
        if self._shares is None:
            self._shares = Shares.of(self._workplace.data, self._federation, self._workplace.seed)
        return self._shares

    def _partition(self, context: Context) -> int:
        given, known = context.node_config.get("partition-id"), self._federation.clients
        if not isinstance(given, int) or not 0 <= given < known:
            raise ValueError(f"partition-id of a node must be a number in [0, {known}), got {given!r}")
        return given

    def _module(self, message: Message, context: Context) -> LightningModule:
        module = self._workplace.module()
        reference = module.state_dict()
        state = wire.unpack(message.content.array_records["arrays"])
        if _PRIVATE in context.state:
            state |= wire.unpack(context.state.array_records[_PRIVATE])
        unknown = [key for key in state if key not in reference]
        missing = [key for key in reference if key not in state and not self._federation.is_private(key)]
        if unknown or missing:
            raise ValueError(
                f"the weights of a message do not fit {type(module).__name__}: "
                f"unknown {unknown[:3]}, missing {missing[:3]}"
            )
        module.load_state_dict(wire.cast_like(state, reference), strict=False)
        return module

    def _groups(self, module: LightningModule) -> LayerGroups:
        return cast(SelectiveFedAvg, self._federation.strategy).groups_of(module)

    def own_batch_size(self) -> int | None:
        """The batch size of the DataModule, where its train loader has one."""
        size = TrainPath.on(self._workplace.data).build(before="partition").batch_size
        return None if size is None else int(size)

    @property
    def _deployed(self) -> bool:
        """Whether this is a node of a deployment, and the server somebody else's."""
        return bool(self._workplace.fingerprint)

    def _ledger(self, partition: int, context: Context, file: LedgerFile | None) -> Ledger:
        """What the client may spend."""
        from framework.federated.privacy_ledger import Ledger, steps_of  # it needs Opacus

        federation = self._federation
        privacy = cast(ClientPrivacy, federation.privacy)
        items = len(self.shares.stage(partition).indices)
        own = self.own_batch_size() if privacy.batch_size is None else None
        size = privacy.size(partition, federation.clients, own)
        steps = steps_of(items, size, federation.local_epochs, federation.local_steps)
        record = context.state.config_records.get(PRIVACY)
        return Ledger(privacy, partition, federation.clients, items, size, steps, federation.rounds, record, file)

    def _privacy_seed(self, partition: int) -> int | None:
        """Seed of batches and noise; none on nodes, whose seed the server knows."""
        privacy = self._federation.privacy
        secret = self._deployed if privacy is None or privacy.secret is None else privacy.secret
        return None if secret else derive(self._workplace.seed, "privacy", partition) % 2**63

    def _fit(
        self,
        module: LightningModule,
        partition: int,
        config: ConfigRecord,
        context: Context,
        ledger: Ledger | None = None,
    ) -> dict[str, Any]:
        federation = self._federation
        extra: list[Callback] = []
        private = [] if ledger is None else [ledger.callback(self._privacy_seed(partition))]
        mu = float(cast(float, config.get("proximal-mu", 0.0)))
        if mu:
            extra.append(Proximal(mu))
        flops = 0.0
        if "layers" in config:
            groups, layers = self._groups(module), tuple(cast(list[str], config["layers"]))
            if layers not in self._flops:
                self._flops[layers] = self._flops_per_item(module, layers)
            flops = self._flops[layers]
            groups.set_trainable(module, layers)
            extra.append(OnlyTrainable())
        kept = context.state.config_records.get(_CALLBACKS) if federation.keep == "callbacks" else None
        if kept is not None:
            extra.append(RestoreCallbacks(client_state.load(cast(bytes, kept["state"]))))
        before = context.state.config_records.get(_FIT) if federation.keep == "everything" else None
        done = 0 if before is None else int(cast(int, before["epochs"]))
        done_steps = 0 if before is None else int(cast(int, before["steps"]))
        limits: dict[str, Any] = {"max_epochs": -1, "max_steps": -1}
        if federation.local_steps is not None:
            limits["max_steps"] = done_steps + federation.local_steps
        else:
            limits["max_epochs"] = done + cast(int, federation.local_epochs)
        trainer = self._workplace.trainer(extra, private, limit_val_batches=0, **limits)
        path = TrainPath.on(self._workplace.data)
        stage = self.shares.stage(partition)
        path.add(stage)
        try:
            with client_state.as_checkpoint(module, before) as resumed:
                trainer.fit(module, datamodule=self._workplace.data, ckpt_path=resumed, weights_only=True)
        finally:
            path.remove(stage)
        steps = trainer.global_step - done_steps
        if steps == 0:
            raise RuntimeError(f"client {partition} made no step on {len(stage.indices)} items: it trained nothing")
        if federation.keep == "callbacks":
            own = [each for each in trainer.callbacks if each not in private]  # type: ignore[attr-defined] # the ledger's
            state = {each.state_key: each.state_dict() for each in own if each.state_dict()}
            if state:
                context.state[_CALLBACKS] = ConfigRecord({"state": client_state.save(state)})
        elif federation.keep == "everything":
            context.state[_FIT] = client_state.of_fit(trainer)
        loader: Any = trainer.train_dataloader
        items = len(loader.dataset)  # of a pool, those that have been bought
        if ledger is not None:
            # Metrics of training say things about the data that nobody has accounted for, and so do sizes of batches.
            context.state[PRIVACY] = record = ledger.close(trainer, module)
            clock = {"steps": float(steps)} if federation.systems is not None else {}
            return {"num-examples": items, **clock, **ledger.told(getattr(federation.strategy, "needs", ""), record)}
        counted = {"num-examples": items, "steps": float(steps)}
        if flops:
            batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
            counted["flops"] = flops * items * batches / len(loader)
        return {**counted, **wire.numbers(trainer.callback_metrics)}

    def _flops_per_item(self, module: LightningModule, layers: Sequence[str]) -> float:
        """Operations of the backward pass, counted on the first client's first batch: other texts have others."""
        spare = self._workplace.module().train()
        spare.load_state_dict(module.state_dict())
        with self._surroundings("flops", 0, 0):  # training draws what it would have drawn without
            batch = next(iter(self.batches(0)))
            counted = step_flops(spare, mean_loss_of(spare), batch, self._groups(module), layers)
        return counted.backward / float(extract_batch_size(batch))

    def _surroundings(self, what: str, server_round: int, partition: int) -> AbstractContextManager[None]:
        return drawing_by(self._workplace.seed, what, server_round, partition)


def mean_loss_of(module: LightningModule) -> Loss:
    """What a module is trained by, for whoever looks at its gradients outside of a fit.

    Args:
        module: The module; batches are moved to where it is.
    """

    def loss(batch: Any) -> tuple[Tensor, float]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`self.trainer` reference is not registered")
            made: Any = module.training_step(move_data_to_device(batch, module.device), 0)
        return (made["loss"] if isinstance(made, dict) else made), float(extract_batch_size(batch))

    return loss


def app_of(client: Callable[[Context], Client]) -> ClientApp:
    """Flower's app for clients of whatever kind.

    Args:
        client: Gives the client that answers for a context.
    """
    app = ClientApp()
    app.train()(lambda message, context: client(context).train(message, context))
    app.evaluate()(lambda message, context: client(context).evaluate(message, context))
    app.query("importance")(lambda message, context: client(context).importance(message, context))
    app.query("partition")(lambda message, context: client(context).introduce(message, context))
    return app


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader, serving every item once and in order."""
    own_batches = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    every = torch.arange(len(loader.dataset))  # type: ignore[arg-type]
    return reindex(loader, every) if own_batches else reindex(loader, every, shuffle=False, drop_last=False)
