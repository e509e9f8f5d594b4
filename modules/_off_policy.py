"""What SAC and TD3 share: updates by hand on ready batches, noise by update, logging, evaluation, checkpoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from framework.optimizers import fuse
from framework.rl.policy import Experience
from framework.seeding import derive, run_seed
from modules.rl.update_graph import UpdateGraph

# A gradient scaler waits for a backward pass that there is not.
PRECISIONS = ("32-true", "64-true", "bf16-mixed")
# Updates that run as they are before one is captured: optimisers make their state, libraries their workspaces.
WARM_UP = 3


class OffPolicy(LightningModule):
    """Actor and critics trained on batches of transitions, wherever these come from.

    A training batch is a dict of tensors: ``observation`` (B, inputs), ``action`` (B, actions; in [-1, 1]), ``reward``
    (B,), ``next_observation`` and ``terminated`` (B,); or a list of these. Each is for one update, and one step of
    ``trainer.global_step``. A batch of validation or test is a dict of columns with a number for each episode, whose
    means are logged; one of prediction is a table, handed on as it is.

    Noise depends on the seed of the run, the rank and the number of the update alone, so that a resumed run repeats it.

    Attributes:
        core: Networks, losses and updates, in plain torch.
        updates: Updates done.
        told: Losses and what else the updates told, by name; the latest of each, without a graph. Means over the
            updates of a batch that is for several.
    """

    core: Any

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.monitor, self.mode = "val/return", "max"
        self.updates = 0
        self.told: dict[str, Tensor] = {}
        self._critic_only = 0
        self._noise: torch.Generator | None = None
        self._optimizers: dict[str, Any] = {}
        self._capture = False
        self._graphs: dict[
            tuple[bool, bool, int], int | UpdateGraph
        ] = {}  # or how often such an update was made without
        self._rates: list[float] = []

    # --- what a method says -------------------------------------------------------------------------------------------

    @abstractmethod
    def make_core(self) -> nn.Module:
        """Fresh networks, from the hyper-parameters."""

    @abstractmethod
    def act(self, observation: Tensor, deterministic: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Actions, see :class:`framework.rl.policy.Policy`."""

    def actor_is_due(self) -> bool:
        """Whether this update moves the targets and, unless the critics are trained alone, the actor, too."""
        return True

    @torch.no_grad()
    def q(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values of actions in [-1, 1] by each critic, shape ``(M, B)``."""
        values: Tensor = self.core.critic(self._own(observation), self._own(action))
        return values

    def _own(self, values: Tensor) -> Tensor:
        """On the device and of the type of the weights."""
        return values.to(self.core.parameters_of("actor")[0])

    def _draw(self, observation: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise for actions, drawn on the CPU, so that it is the same whatever the device."""
        return self._own(torch.randn(len(observation), self.hparams["actions"], generator=generator))

    # --- training -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision must be one of {', '.join(PRECISIONS)} for {type(self).__name__}, "
                f"got {self.trainer.precision}"
            )
        for name in ("inputs", "actions"):
            found = getattr(self._experience, name, None)
            if found is not None and found != self.hparams[name]:
                raise ValueError(f"{name} is {self.hparams[name]}, but the environment has {found}")

    @property
    def _experience(self) -> Experience | None:
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, Experience) else None

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each group of parameters, in one pass over all of them."""
        rates = {name: self.hparams.get(f"{name}_lr") or self.hparams["lr"] for name in self.core.groups()}
        return [fuse(torch.optim.Adam(each, lr=rates[name])) for name, each in self.core.groups().items()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch, which may be there already: a look through nested collections takes a share of a small step."""
        parts = batch if isinstance(batch, list) else [batch]
        values = [value for part in parts if isinstance(part, dict) for value in part.values()]
        if values and all(isinstance(value, Tensor) and value.device == device for value in values):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_start(self) -> None:
        found = self.optimizers()
        wrapped = dict(zip(self.core.groups(), found if isinstance(found, list) else [found]))
        # Lightning counts the steps of what it wraps: the critics', which every update has.
        self._optimizers = {
            name: each if name == "critic" or not isinstance(each, LightningOptimizer) else each.optimizer
            for name, each in wrapped.items()
        }
        self._graphs.clear()
        self._capture = self.hparams["cuda_graph"] and self._can_capture()

    def on_train_end(self) -> None:
        self._graphs.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_graphs": {}}  # what a graph replays are the tensors of this very module

    def _can_capture(self) -> bool:
        """Whether an update can be replayed: nobody reduces, scales, or looks at gradients within it."""
        trainer: Any = self.trainer
        looking = [each for each in trainer.callbacks if is_overridden("on_before_optimizer_step", each, Callback)]
        plain = trainer.world_size == 1 and trainer.precision in ("32-true", "64-true") and not looking
        return plain and self.device.type == "cuda" and isinstance(self._optimizers["critic"], LightningOptimizer)

    def training_step(self, batch: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], batch_idx: int) -> None:
        """One update, or one for each batch of a list."""
        if isinstance(batch, Mapping):
            self.told |= self._update(batch)
        else:
            told = [self._update(each) for each in batch]
            names = dict.fromkeys(name for each in told for name in each)
            self.told |= {name: torch.stack([each[name] for each in told if name in each]).mean() for name in names}
        every = getattr(self.trainer, "log_every_n_steps", 0)  # Lightning sets it without declaring it
        if every and (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0:
            more = {} if self._experience is None else self._experience.told()
            self.log_dict({**{f"train/{name}": value for name, value in self.told.items()}, **more})

    def _update(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = batch["reward"].device
        if self._noise is None or self._noise.device != device:
            self._noise = torch.Generator(device)
        self._noise.manual_seed(derive(run_seed(), "update", self.global_rank, self.updates))
        due = self.actor_is_due()
        actor = due and self._critic_only == 0
        update = self._replayed if self._capture else self._updated
        told = update(batch, self.core.noise(batch, self._noise), actor, due)
        self.updates += 1
        self._critic_only = max(self._critic_only - 1, 0)
        return told

    def _updated(self, batch: Mapping[str, Tensor], noise: Tensor, actor: bool, targets: bool) -> dict[str, Tensor]:
        told: dict[str, Tensor] = self.core.update(batch, self._step, noise, actor=actor, targets=targets)
        return told

    def _replayed(self, batch: Mapping[str, Tensor], noise: Tensor, actor: bool, targets: bool) -> dict[str, Tensor]:
        """The same update from a CUDA graph, of which there is one for each kind of update."""
        critic = self._optimizers["critic"]
        plain = {**self._optimizers, "critic": critic.optimizer}
        rates = [group["lr"] for each in plain.values() for group in each.param_groups]
        if rates != self._rates:  # a graph goes on with those it was captured with
            self._graphs.clear()
            self._rates = rates
        key = (actor, targets, len(batch["reward"]))
        graph = self._graphs.get(key, 0)
        if isinstance(graph, int) and graph < WARM_UP:
            self._graphs[key] = graph + 1
            return self._updated(batch, noise, actor, targets)
        if isinstance(graph, int):

            def step(group: str, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
                set_gradients(parameters, gradients)
                plain[group].step()

            def update(batch: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
                told: dict[str, Tensor] = self.core.update(batch, step, noise, actor=actor, targets=targets)
                return told

            graph = self._graphs[key] = UpdateGraph(update, list(plain.values()), batch, noise)
        critic._on_before_step()  # how Lightning counts
        told = graph(batch, noise)
        critic._on_after_step()
        return told

    def _step(self, group: str, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        if self.trainer.world_size > 1:
            joint = torch.cat([gradient.reshape(-1) for gradient in gradients])
            joint = self.trainer.strategy.reduce(joint, reduce_op="mean")
            assert isinstance(joint, Tensor)
            parts = joint.split([gradient.numel() for gradient in gradients])
            gradients = [part.view_as(gradient) for part, gradient in zip(parts, gradients)]
        set_gradients(parameters, gradients)
        self._optimizers[group].step()

    def train_critics_only(self, updates: int) -> None:
        """Leave the actor (and the temperature) as they are for the next updates, such as after a change of reward.

        Args:
            updates: How many, at least 0.
        """
        self._critic_only = updates

    def reset(self, *groups: str) -> None:
        """Begin some networks afresh, with their targets and optimisers; the same on all ranks.

        Args:
            groups: Names of ``core.groups()``: ``actor``, ``critic`` and, for SAC, ``alpha``.

        Raises:
            ValueError: If there is no such group.
        """
        known = self.core.groups()
        for group in groups:
            if group not in known:
                raise ValueError(f"no group {group!r} in {type(self).__name__}; there are {', '.join(known)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(run_seed(), "reset", self.updates))
            fresh = self.make_core().state_dict()
        # `target` belongs to the critics, `target_actor` to the actor.
        prefixes = {"critic": ("critic.", "target."), "actor": ("actor.", "target_actor."), "alpha": ("log_alpha",)}
        chosen = tuple(prefix for group in groups for prefix in prefixes[group])
        self.core.load_state_dict(
            {**self.core.state_dict(), **{key: value for key, value in fresh.items() if key.startswith(chosen)}}
        )
        for group in groups:
            optimizer = self._optimizers.get(group)
            if optimizer is not None:
                optimizer.state.clear()
        self._graphs.clear()  # they go on with the states from before

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["off_policy"] = {"updates": self.updates, "critic_only": self._critic_only}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["off_policy"]
        self.updates, self._critic_only = state["updates"], state["critic_only"]

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the means over episodes."""
        self._log_episodes("val", batch)
        if self._experience is not None and self.trainer.state.fn == "fit":
            self.log("env_steps", float(self._experience.env_steps), batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the means over episodes."""
        self._log_episodes("test", batch)

    def _log_episodes(self, stage: str, batch: Mapping[str, Tensor]) -> None:
        episodes = len(batch["return"])
        means = {name: values.mean() for name, values in batch.items() if name != "success"}
        for name, mean in means.items():
            self.log(f"{stage}/{name}", mean, prog_bar=name == "return", batch_size=episodes, sync_dist=True)
        # An environment may have said so to one process and not to another, so all of them ask.
        told = batch.get("success", batch["return"].new_zeros(episodes))
        table = torch.stack([told.sum(), told.new_tensor(episodes), told.new_tensor("success" in batch)])
        if self.trainer.world_size > 1:
            table = cast(Tensor, self.trainer.strategy.reduce(table, reduce_op="sum"))
        if table[2] > 0:
            self.log(f"{stage}/success", table[0] / table[1], batch_size=1, sync_dist=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """A table with a row for each step of the evaluated episodes."""
        return batch

    def figures(self) -> dict[str, Any]:
        """The pictures of the data: how returns grew, and trajectories where the environment draws them."""
        return {} if self._experience is None else self._experience.figures()


def set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Give each parameter its gradient."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient


def check_common(arguments: Mapping[str, Any]) -> None:
    """Check the arguments that both methods have.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """
    for name in ("inputs", "actions", "critics"):
        if arguments[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {arguments[name]}")
    if any(width < 1 for width in arguments["hidden"]):
        raise ValueError(f"hidden must be widths of at least 1, got {arguments['hidden']}")
    if not 0 <= arguments["gamma"] <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {arguments['gamma']}")
    if not 0 < arguments["tau"] <= 1:
        raise ValueError(f"tau must be in (0, 1], got {arguments['tau']}")
    for name, value in arguments.items():
        if name.endswith("lr") and value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, got {value}")
