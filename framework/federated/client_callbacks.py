"""What a client adds to the user's callbacks for one message."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


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
