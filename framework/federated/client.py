"""A Flower client that trains a LightningModule: a fresh Trainer for every message, on its share of the data."""

from __future__ import annotations

import io
import itertools
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from framework.federated import wire
from framework.federated.importance import importance
from framework.federated.layer_groups import LayerGroups
from framework.federated.selective import SelectiveFedAvg
from framework.federated.shares import Shares
from framework.loaders import TrainPath, World, reindex
from framework.seeding import derive, seed_all

if TYPE_CHECKING:
    from framework.federated.settings import Federation

_CALLBACKS, _FIT, _PRIVATE = "callbacks", "fit", "private"
"""Where a client's state lies among the records of its context."""


class Workplace(Protocol):
    """The user's module, data and trainer, from which every client of a process works.

    Attributes:
        data: The data, of which each client sees its share.
        seed: Seed of the run.
    """

    data: LightningDataModule
    seed: int

    def module(self) -> LightningModule:
        """A module as the configuration describes it, that nothing has been done to."""
        ...

    def trainer(self, callbacks: Sequence[Callback] = (), **settings: Any) -> Trainer:
        """A new, silent trainer as the configuration describes it, with copies of its callbacks.

        Args:
            callbacks: More callbacks, after the user's.
            settings: Arguments of ``Trainer`` that are decided here.
        """
        ...


class LightningClient:
    """All clients of one process: each message names its client by the partition of its node.

    Args:
        workplace: Module, data and trainer.
        federation: The settings.
    """

    def __init__(self, workplace: Workplace, federation: Federation) -> None:
        self._workplace, self._federation = workplace, federation
        self._shares: Shares | None = None

    def app(self) -> ClientApp:
        """The app that Flower's engines run."""
        app = ClientApp()
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        app.query("importance")(self.importance)
        return app

    def train(self, message: Message, context: Context) -> Message:
        """Train the weights of a message on the client's share, and reply with what they became.

        Args:
            message: Record ``arrays`` holds weights, record ``config`` the ``server-round`` and what the strategy adds,
                such as ``proximal-mu``.
            context: Of the client; its state is kept there.
        """
        partition, config = self._partition(context), message.content.config_records["config"]
        server_round = int(cast(int, config["server-round"]))
        module = self._module(message, context)
        with self._surroundings("train", server_round, partition):
            metrics = self._fit(module, partition, config, context)
        state = module.state_dict()
        if "layers" in config:
            sent = self._groups(module).keys_to_send(cast(list[str], config["layers"]))
            state = {key: state[key] for key in sent}
        private = [key for key in state if self._federation.is_private(key)]
        if private:
            context.state[_PRIVATE] = wire.pack({key: state[key] for key in private})
        content = RecordDict({
            "arrays": wire.pack({key: value for key, value in state.items() if key not in private}),
            "metrics": MetricRecord(metrics),
        })  # fmt: skip
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Validate the weights of a message on what the client has held out."""
        partition = self._partition(context)
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
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def importance(self, message: Message, context: Context) -> Message:
        """Score the layers of the weights of a message on the client's share: the first trip of selective training."""
        partition, config = self._partition(context), message.content.config_records["config"]
        module, batches = self._module(message, context), int(cast(int, config["batches"]))
        stage = self.shares.stage(partition)
        loader = stage.apply(_in_order(TrainPath.on(self._workplace.data).build(before="partition")), World())
        device = self._workplace.trainer().strategy.root_device
        module.to(device)

        def loss(batch: Any) -> tuple[Tensor, float]:
            made: Any = module.training_step(move_data_to_device(batch, device), 0)
            return (made["loss"] if isinstance(made, dict) else made), float(extract_batch_size(batch))

        server_round = int(cast(int, config["server-round"]))
        with self._surroundings("importance", server_round, partition), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`self.trainer` reference is not registered")
            chosen = itertools.islice(loader, batches or None)
            scores = importance(module, loss, chosen, self._groups(module), str(config["kind"]))
        metrics = MetricRecord({"num-examples": len(stage.indices), "scores": scores.tolist()})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

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

    def _fit(self, module: LightningModule, partition: int, config: ConfigRecord, context: Context) -> dict[str, Any]:
        federation = self._federation
        extra: list[Callback] = []
        mu = float(cast(float, config.get("proximal-mu", 0.0)))
        if mu:
            extra.append(Proximal(mu))
        if "layers" in config:
            groups = self._groups(module)
            groups.set_trainable(module, cast(list[str], config["layers"]))
            extra.append(OnlyTrainable())
        kept = context.state.config_records.get(_CALLBACKS) if federation.keep == "callbacks" else None
        if kept is not None:
            extra.append(RestoreCallbacks(_load(cast(bytes, kept["state"]))))
        before = context.state.config_records.get(_FIT) if federation.keep == "everything" else None
        done = 0 if before is None else int(cast(int, before["epochs"]))
        done_steps = 0 if before is None else int(cast(int, before["steps"]))
        limits: dict[str, Any] = {"max_epochs": -1, "max_steps": -1}
        if federation.local_steps is not None:
            limits["max_steps"] = done_steps + federation.local_steps
        else:
            limits["max_epochs"] = done + cast(int, federation.local_epochs)
        trainer = self._workplace.trainer(extra, limit_val_batches=0, **limits)
        path = TrainPath.on(self._workplace.data)
        stage = self.shares.stage(partition)
        path.add(stage)
        try:
            with _checkpoint(module, before) as resumed:
                trainer.fit(module, datamodule=self._workplace.data, ckpt_path=resumed, weights_only=True)
        finally:
            path.remove(stage)
        steps = trainer.global_step - done_steps
        if steps == 0:
            raise RuntimeError(f"client {partition} made no step on {len(stage.indices)} items: it trained nothing")
        if federation.keep == "callbacks":
            state = {each.state_key: each.state_dict() for each in trainer.callbacks if each.state_dict()}  # type: ignore[attr-defined]
            if state:
                context.state[_CALLBACKS] = ConfigRecord({"state": _save(state)})
        elif federation.keep == "everything":
            dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            del dumped["state_dict"]
            context.state[_FIT] = ConfigRecord({
                "state": _save(dumped), "epochs": trainer.current_epoch, "steps": trainer.global_step
            })  # fmt: skip
        loader: Any = trainer.train_dataloader
        items = len(loader.dataset)  # of a pool, those that have been bought
        return {"num-examples": items, "steps": float(steps), **wire.numbers(trainer.callback_metrics)}

    @contextmanager
    def _surroundings(self, what: str, server_round: int, partition: int) -> Iterator[None]:
        """All that is drawn depends on (seed, round, client); the caller's generators stay as they were."""
        seed = self._workplace.seed
        own = derive(seed, "client", partition) % 2**32  # for what a client decides once, such as its first labels
        before = os.environ.get("PL_GLOBAL_SEED")
        states = np.random.get_state(), random.getstate()
        os.environ["PL_GLOBAL_SEED"] = str(own)
        try:
            with torch.random.fork_rng():
                seed_all(derive(seed, what, server_round, partition))
                yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
            if before is None:
                del os.environ["PL_GLOBAL_SEED"]
            else:
                os.environ["PL_GLOBAL_SEED"] = before


class OnlyTrainable(Callback):
    """Take weights that are not to be trained out of the optimisers, whatever the module's own code put there."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if weight.requires_grad]


class Proximal(Callback):
    """FedProx: pull the weights towards those of the server.

    Adds the gradient of ``mu / 2 * ||w - w_server||^2`` to that of the loss, before gradients are clipped (Li et al.,
    Federated Optimization in Heterogeneous Networks, equation 2).

    Args:
        mu: Weight of the term, at least 0.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu
        self._anchor: dict[torch.nn.Parameter, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._anchor = {weight: weight.detach().clone() for weight in pl_module.parameters() if weight.requires_grad}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.add_(weight.detach() - self._anchor[weight], alpha=self.mu)


class RestoreCallbacks(Callback):
    """Give callbacks the state they had after the client's last message, when Lightning would restore a checkpoint.

    Args:
        states: State by the callback's key.
    """

    def __init__(self, states: dict[str, Any]) -> None:
        self.states = states

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_key in self.states:
                callback.load_state_dict(self.states[callback.state_key])


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader, serving every item once and in order."""
    own_batches = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    every = torch.arange(len(loader.dataset))  # type: ignore[arg-type]
    return reindex(loader, every) if own_batches else reindex(loader, every, shuffle=False, drop_last=False)


@contextmanager
def _checkpoint(module: LightningModule, before: ConfigRecord | None) -> Iterator[str | None]:
    """The client's last fit as a checkpoint with the server's weights in it; Lightning reads it as any other."""
    if before is None:
        yield None
        return
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
        torch.save({**_load(cast(bytes, before["state"])), "state_dict": module.state_dict()}, file)
        file.flush()
        yield file.name


def _save(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _load(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
