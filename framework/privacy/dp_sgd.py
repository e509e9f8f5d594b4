"""DP-SGD in the ``fit`` of any LightningModule: the callback that puts sampling, gradients and accounting together."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from opacus.accountants import IAccountant

from framework.loaders import Stage, StageCallback, TrainPath, World
from framework.loaders.stages import SLOTS
from framework.privacy import checks
from framework.privacy.accounting import (
    epsilon_spent,
    history_to_lists,
    load_history,
    make_accountant,
    noise_multiplier,
    steps_taken,
)
from framework.privacy.budget import Budget, planned_steps
from framework.privacy.gradients import PrivateGradients
from framework.privacy.pieces import PiecewiseStep, piece_sizes
from framework.privacy.probe import check_items
from framework.privacy.randomness import generator, secret
from framework.privacy.sampling import PoissonBatches, PoissonSampler


class DPSGD(StageCallback):
    """Train with differential privacy for examples, whatever the module and the data.

    Batches become Poisson samples of the train data, the gradient of every example is clipped, and noise is added to
    their sum before the module's own optimiser sees it. The accountant counts each step before it is made; training
    stops where one more would pass the budget. Module, state dict and optimiser are as before after ``fit``.

    Put it in front of callbacks that change gradients in ``on_before_optimizer_step``: they then see private ones.

    Args:
        epsilon: The budget. Without ``noise_multiplier`` the noise is solved for it and for the steps that the trainer
            plans. None sets no budget, and needs ``noise_multiplier``.
        delta: Probability with which the guarantee may fail, in (0, 1); less than 1 / (number of examples).
        noise_multiplier: Standard deviation of the noise in units of ``max_grad_norm``, at least 0.
        max_grad_norm: Norm to which the gradient of an example is clipped, positive; with ``per_layer`` it may be a
            list, one for each tensor.
        accountant: ``prv``, ``rdp`` or ``classic_rdp``, or an accountant of Opacus with what has been spent on these
            data before.
        batch_size: Expected size of a batch, over all processes. None for the train loader's.
        clipping: ``flat``, ``per_layer`` or ``adaptive``.
        grad_sample_mode: ``hooks`` stores the gradient of every example; ``ghost`` only their norms, for large models.
        max_physical_batch: The most examples in memory at a time; None for the whole batch.
        loss_reduction: How the module's loss comes from those of examples: ``mean`` or ``sum``.
        fix: Whether to replace layers that cannot be private, such as BatchNorm by GroupNorm.
        check_loss: Whether to try, on a few examples, that the loss treats them apart.
        log_epsilon: Whether to log ``privacy/epsilon`` after every epoch.
        seed: Seed of batches and noise. Whoever knows it can take the noise off again, so None, which asks the
            operating system, is the only choice with a guarantee.
        target_quantile: Share of examples that ``adaptive`` leaves unclipped, in (0, 1).
        clip_learning_rate: How fast ``adaptive`` follows it, positive.

    Attributes:
        accountant: What has been spent.

    Raises:
        ValueError: If an argument is out of range; before training, if trainer, module or data do not go with it.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float = 1e-5,
        noise_multiplier: float | None = None,
        max_grad_norm: float | list[float] = 1.0,
        accountant: str | IAccountant = "prv",
        batch_size: int | None = None,
        clipping: str = "flat",
        grad_sample_mode: str = "hooks",
        max_physical_batch: int | None = None,
        loss_reduction: str = "mean",
        fix: bool = False,
        check_loss: bool = True,
        log_epsilon: bool = True,
        seed: int | None = None,
        target_quantile: float = 0.5,
        clip_learning_rate: float = 0.2,
    ) -> None:
        super().__init__()
        checks.check_arguments(
            epsilon=epsilon,
            delta=delta,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            batch_size=batch_size,
            clipping=clipping,
            grad_sample_mode=grad_sample_mode,
            max_physical_batch=max_physical_batch,
            loss_reduction=loss_reduction,
            seed=seed,
            target_quantile=target_quantile,
            clip_learning_rate=clip_learning_rate,
        )
        self.epsilon, self.delta, self.noise_multiplier = epsilon, delta, noise_multiplier
        self.max_grad_norm, self.clipping, self.grad_sample_mode = max_grad_norm, clipping, grad_sample_mode
        self.batch_size, self.max_physical_batch, self.loss_reduction = batch_size, max_physical_batch, loss_reduction
        self.fix, self.check_loss, self.log_epsilon, self.seed = fix, check_loss, log_epsilon, seed
        self.target_quantile, self.clip_learning_rate = target_quantile, clip_learning_rate
        self.accountant = make_accountant(accountant) if isinstance(accountant, str) else accountant
        self._given_noise = noise_multiplier is not None
        self._secret = seed
        self.seeded = seed is not None  # or was, in the run that this one goes on
        self.unchecked = "" if check_loss else "check_loss is false"
        self.squared_rates = 0.0  # of the steps of this fit
        self._noise_state: torch.Tensor | None = None
        self._clip_norm: float | None = None
        self._gradients: PrivateGradients | None = None
        self._generator: torch.Generator | None = None
        self._piecewise: PiecewiseStep | None = None
        self._budget = Budget(epsilon, delta)
        self._settings = ""  # of what the noise is added to
        self._settings_before = ""  # the same in the checkpoint
        self._due = False  # a step has begun, and its gradient is not private yet

    @property
    def sampler(self) -> PoissonSampler:
        """Where batches come from; from the first train loader on."""
        if self._stage.sampler is None:
            raise RuntimeError("there are no Poisson batches before fit")
        return self._stage.sampler

    @property
    def _stage(self) -> PoissonBatches:
        if not isinstance(self.stage, PoissonBatches):
            raise RuntimeError("there are no Poisson batches before fit")
        return self.stage

    @property
    def epsilon_spent(self) -> float:
        """What has been spent so far, at ``delta``."""
        return epsilon_spent(self.accountant, self.delta)

    # -- before training ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.fix:
            for line in checks.fix_model(pl_module):
                rank_zero_info(f"{type(self).__name__} replaces {line}")
        if stage != "fit":
            return
        checks.check_trainer(
            trainer, pl_module, self.clipping == "adaptive", self.max_physical_batch is not None,
            self.grad_sample_mode == "ghost",
        )  # fmt: skip
        checks.check_model(pl_module)
        for line in checks.steered_by_train_metrics(trainer):
            rank_zero_warn(line)
        if self.noise_multiplier is None and trainer.max_steps == -1 and trainer.max_epochs == -1:
            raise ValueError(
                "trainer.max_epochs or trainer.max_steps must be set for the noise to be solved from epsilon: it "
                "depends on the number of steps; or give noise_multiplier"
            )
        super().setup(trainer, pl_module, stage)

    def make_stage(self, path: TrainPath, trainer: Trainer, pl_module: LightningModule) -> Stage:
        return PoissonBatches(self.batch_size, self.max_physical_batch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path is None:
            raise RuntimeError("setup has not been called")
        changing = [stage for stage in self._path.stages if stage.changes and stage.slot in SLOTS[:-1]]
        if changing:
            raise ValueError(
                f"{type(self).__name__} does not go with {type(changing[0]).__name__} of the train loader: what is "
                "chosen for training by looking at the data is not accounted for"
            )
        optimizer = checks.check_optimizers(pl_module, trainer.optimizers)
        world = World(trainer.global_rank, trainer.world_size)
        loader = self._path.build(before="sampler")
        size = self._stage.expected_size(loader, world)
        items = len(loader.dataset)  # type: ignore[arg-type]
        if self.delta >= 1 / items:
            rank_zero_warn(
                f"delta={self.delta} is not below 1 / {items}, the number of train examples: a mechanism that gives "
                "one of them away could have it"
            )
        if self.check_loss:
            self.unchecked = check_items(pl_module, loader, self.loss_reduction, self.grad_sample_mode)
            if self.unchecked:
                rank_zero_warn(f"that the loss treats examples apart was not checked: {self.unchecked}")
        self._settings = self._describe(optimizer, items, size)
        if self._settings_before not in ("", self._settings) and self.seed is None:
            # Two runs that go on from one checkpoint by different settings would differ by less than the noise.
            rank_zero_info(f"{type(self).__name__}: settings differ from the checkpoint's, so noise is drawn anew")
            self._noise_state = self._secret = None
        if self._secret is None:
            self._secret = int(trainer.strategy.broadcast(secret()))
        self._stage.start(self._secret, steps_taken(self.accountant))
        self._generator = self._noise_generator(pl_module.device)
        self._gradients = PrivateGradients(
            pl_module,
            optimizer,
            noise_multiplier=self.noise_multiplier or 0.0,
            max_grad_norm=self.max_grad_norm,
            batch_size=size,
            clipping=self.clipping,
            mode=self.grad_sample_mode,
            loss_reduction=self.loss_reduction,
            generator=self._generator,
            world=world,
            quantile=self.target_quantile,
            clip_learning_rate=self.clip_learning_rate,
        )
        if self._clip_norm is not None and self.clipping == "adaptive":
            self._gradients.private.max_grad_norm = self._clip_norm
        if self.max_physical_batch is not None:
            self._piecewise = PiecewiseStep(pl_module, self._pieces, self._gradients.expect, self._gradients.accumulate)

    def _noise_generator(self, device: torch.device) -> torch.Generator:
        """One that goes on where the noise so far has ended, so that none is ever used twice."""
        # A secret of its own for a first fit, or one on another kind of device than the checkpoint's.
        seed = secret() if self.seed is None else self.seed
        made, state = generator(seed, "noise", steps_taken(self.accountant), device=device), self._noise_state
        if state is not None and len(state) == len(made.get_state()):
            made.set_state(state)
        return made

    def _describe(self, optimizer: Any, items: int, size: int) -> str:
        """The settings that the noise of a step is added under, but for the noise multiplier."""
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        return repr((
            self.max_grad_norm, self.clipping, self.grad_sample_mode, self.loss_reduction, self.target_quantile,
            self.clip_learning_rate, self.noise_multiplier if self._given_noise else None, items, size,
            type(optimizer).__name__, groups,
        ))  # fmt: skip

    # -- the course of training ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > steps_taken(self.accountant):
            raise ValueError(
                f"the checkpoint has made {trainer.global_step} steps, of which {steps_taken(self.accountant)} are "
                "accounted for: the others were made without differential privacy, and nothing guarantees anything for "
                "them; if its weights may be public, begin a new run with them"
            )
        planned = planned_steps(trainer)
        if self.noise_multiplier is None:
            if self.epsilon is None or planned is None:
                raise RuntimeError("setup has not been called")
            if self.accountant.history:
                raise ValueError(
                    f"epsilon={self.epsilon} cannot be solved for: {steps_taken(self.accountant)} steps have been "
                    "accounted for already; give noise_multiplier"
                )
            rate = self.sampler.rate
            kind = self.accountant.mechanism()
            found = noise_multiplier(self.epsilon, self.delta, rate, planned, kind) if trainer.is_global_zero else 0.0
            self.noise_multiplier = float(trainer.strategy.broadcast(found))
            rank_zero_info(
                f"{type(self).__name__}: noise multiplier {self.noise_multiplier:.4g} for epsilon={self.epsilon} at "
                f"delta={self.delta} ({kind}), {planned} steps, sampling rate {rate:.4g}"
            )
        self._private.noise_multiplier = self.noise_multiplier
        self._count(trainer)
        if not self._budget.scarce:
            return
        left = int(self._budget.left)
        least = max(trainer.fit_loop.min_steps or 0, (trainer.fit_loop.min_epochs or 0) * len(self.sampler))
        if least > trainer.global_step + left:
            raise ValueError(
                f"trainer.min_steps and min_epochs ask for {least} steps, of which the budget epsilon={self.epsilon} "
                f"allows {trainer.global_step + left}"
            )
        rank_zero_info(
            f"{type(self).__name__}: epsilon={self.epsilon} allows {left} more steps"
            + ("" if planned is None else f" of the {planned} planned")
        )

    def _count(self, trainer: Trainer) -> None:
        """Count the steps that are left, by what is planned now."""
        self._budget.count(self.accountant, self._private.noise_multiplier, self.sampler.rate, planned_steps(trainer))
        trainer.should_stop = trainer.should_stop or (self._budget.scarce and self._budget.left == 0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        loader: Any = trainer.train_dataloader
        if not isinstance(loader.batch_sampler, PoissonSampler):
            raise RuntimeError(
                f"the trainer trains on batches of {type(loader.batch_sampler).__name__}, and the accountant counts "
                "Poisson samples"
            )
        if self._budget.left <= 0 or self.sampler.rate != self._budget.rate:
            self._count(trainer)  # more epochs than were planned, or other data

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._budget.left <= 0:  # by a plan that may have grown
            self._count(trainer)
        if self._budget.left <= 0:
            raise RuntimeError(f"one more step would pass epsilon={self.epsilon}, and the trainer goes on")
        self._private.begin()
        self._private.expect(self._pieces()[0])
        self._due = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self._due:
            raise RuntimeError(f"{type(pl_module).__name__} makes several optimizer steps of one batch")
        self._due = False
        self.squared_rates += float(optimizer.param_groups[0]["lr"]) ** 2
        private, sampler = self._private, self.sampler
        private.accumulate(self._pieces()[-1], counts=sampler.size(steps_taken(self.accountant)) > 0)
        self.accountant.step(noise_multiplier=private.noise_multiplier, sample_rate=sampler.rate)
        self._stage.start(sampler.seed, steps_taken(self.accountant))
        private.finish()
        self._budget.left -= 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._due:
            raise RuntimeError(
                f"{type(pl_module).__name__} has not stepped through Lightning's optimizer_step, so no noise was added "
                "and no step was counted"
            )
        if self._budget.left == 0 and self._budget.scarce:
            rank_zero_info(f"{type(self).__name__} stops: the next step would pass epsilon={self.epsilon}")
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.log_epsilon:
            pl_module.log(
                "privacy/epsilon", self.epsilon_spent, prog_bar=True, batch_size=1, sync_dist=trainer.world_size > 1
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._gradients is not None:
            self._gradients.pause(True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._gradients is not None:
            self._gradients.pause(False)

    def _pieces(self) -> list[int]:
        """Numbers of examples in the pieces of the present batch; 1 for what stands in for an empty one."""
        items = max(self.sampler.size(steps_taken(self.accountant)), 1)
        return [items] if self.max_physical_batch is None else piece_sizes(items, self.max_physical_batch)

    @property
    def _private(self) -> PrivateGradients:
        if self._gradients is None:
            raise RuntimeError(f"{type(self).__name__} is not attached: on_fit_start has not been called")
        return self._gradients

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.stage is None:
            return {}
        self._remember()
        return {
            "history": history_to_lists(self.accountant),
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self._clip_norm,
            "noise_state": self._noise_state,
            "seed": self._secret,
            "seeded": self.seeded,
            "settings": self._settings,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._path is None or not state_dict:
            return  # validate, test and predict restore callbacks, too
        load_history(self.accountant, state_dict["history"])
        if not self._given_noise:
            self.noise_multiplier = state_dict["noise_multiplier"]
        self._clip_norm, self._noise_state = state_dict["clip_norm"], state_dict["noise_state"]
        self._secret = state_dict["seed"]
        self.seeded = self.seeded or state_dict["seeded"]
        self._settings_before = state_dict.get("settings", "")  # checkpoints of earlier versions have none

    def _remember(self) -> None:
        if self._generator is not None:
            self._noise_state = self._generator.get_state().clone()
        if self._gradients is not None and self.clipping == "adaptive":
            self._clip_norm = self._gradients.max_grad_norm

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach(pl_module)
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def _detach(self, pl_module: LightningModule) -> None:
        if self._gradients is None:
            return
        self._remember()
        self._gradients.detach()
        self._gradients = self._generator = None
        if self._piecewise is not None:
            self._piecewise.undo()
            self._piecewise = None
