"""Soft actor-critic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from modules._off_policy import OffPolicy, check_common
from modules.rl.soft_actor_critic import SoftActorCritic


class SAC(OffPolicy):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905).

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers of actor and critics.
        critics: How many critics; values are the smallest of them.
        gamma: Discount, in [0, 1].
        tau: Share of the critics that their targets take over in each update, in (0, 1].
        lr: Learning rate of every Adam.
        actor_lr: The actor's own; None for ``lr``.
        critic_lr: The critics' own; None for ``lr``.
        alpha_lr: The temperature's own; None for ``lr``.
        alpha: The temperature, positive; where it begins if it is learned.
        learn_alpha: Whether the temperature follows ``target_entropy``.
        target_entropy: What the entropy of the normalised action is led to; None for ``-actions``.
        alpha_loss: The temperature's loss J, logged as ``train/alpha_loss``: ``log_alpha`` for
            ``-log(alpha) (log pi + target_entropy)``, ``alpha`` for ``-alpha (log pi + target_entropy)``.
        cuda_graph: Whether updates are replayed as a CUDA graph where they can be: on one GPU, in 32 or 64 bit, with no
            callback that looks at gradients.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        actor_lr: float | None = None,
        critic_lr: float | None = None,
        alpha_lr: float | None = None,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | None = None,
        alpha_loss: Literal["log_alpha", "alpha"] = "log_alpha",
        cuda_graph: bool = True,
    ) -> None:
        super().__init__()
        check_common(locals())
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be positive, got {alpha}")
        if target_entropy is not None and not math.isfinite(target_entropy):
            raise ValueError(f"target_entropy must be finite or null, got {target_entropy}")
        if alpha_loss not in ("log_alpha", "alpha"):
            raise ValueError(f"alpha_loss must be log_alpha or alpha, got {alpha_loss!r}")
        self.save_hyperparameters()
        self.core = self.make_core()

    def make_core(self) -> SoftActorCritic:
        p = self.hparams
        return SoftActorCritic(
            p["inputs"], p["actions"], p["hidden"], p["critics"], p["gamma"], p["tau"], p["alpha"], p["learn_alpha"],
            p["target_entropy"], p["alpha_loss"],
        )  # fmt: skip

    @torch.no_grad()
    def act(self, observation: Tensor, deterministic: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The mean action, or a draw of the policy; in [-1, 1]."""
        noise = None if deterministic else self._draw(observation, generator)
        return self.core.act(self._own(observation), noise)
