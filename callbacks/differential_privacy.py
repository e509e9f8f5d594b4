"""Differential privacy for the examples that a module is trained on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from lightning import LightningModule, Trainer

from framework.figures import png
from framework.privacy.dp_sgd import DPSGD
from framework.privacy.report import epsilon_curve, epsilon_figure, privacy_report
from framework.rundir import run_directory, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DifferentialPrivacy(DPSGD):
    """Train any module with differential privacy for its examples (DP-SGD), and report what was guaranteed.

    Batches become Poisson samples of the train data, the gradient of every example is clipped, noise is added to their
    sum, and training stops where one more step would pass the budget. ``privacy/epsilon`` is logged after every epoch;
    ``<run dir>/privacy.json`` and ``.png`` say in the end what holds, at which delta, and what does not. Accountant and
    noise are in the checkpoint, so a run that goes on forgets nothing and repeats no noise.

    The module must treat examples apart: no BatchNorm (``fix`` replaces it), a loss that is the mean over examples,
    inputs with examples along the first dimension. Gradients are taken with one optimiser, in Lightning's automatic
    optimisation. What does not go is refused before training, by name.

    Args:
        epsilon: The budget, positive. The noise is solved for it and for the steps planned, unless
            ``noise_multiplier`` is given. None sets none, and needs ``noise_multiplier``.
        delta: Probability with which the guarantee may fail, in (0, 1); less than 1 / (number of examples).
        noise_multiplier: Standard deviation of the noise in units of ``max_grad_norm``, at least 0; None to solve it.
        max_grad_norm: Norm to which the gradient of an example is clipped, positive. With ``per_layer`` it is shared
            out to the tensors, or a list has one for each.
        accountant: ``prv`` is the tightest, ``rdp`` the quickest, ``classic_rdp`` what papers used before 2020.
        batch_size: Expected size of a batch, over all processes. None for the train loader's (times the processes).
        clipping: ``flat`` for the whole gradient, ``per_layer`` for each tensor, ``adaptive`` for a norm that follows
            ``target_quantile``.
        grad_sample_mode: ``hooks`` stores the gradient of every example; ``ghost`` only their norms, which saves memory
            on large models (with ``flat``).
        max_physical_batch: The most examples in memory at a time; larger batches are taken in pieces. None for all.
        loss_reduction: How the module's loss comes from those of examples.
        fix: Whether to replace layers that cannot be private, such as BatchNorm by GroupNorm, whose weights are new.
        check_loss: Whether to try, on a few examples, that the loss treats them apart.
        seed: Seed of batches and noise, for experiments. Whoever knows it can take the noise off again; None asks the
            operating system.
        target_quantile: Share of examples that ``adaptive`` leaves unclipped, in (0, 1).
        clip_learning_rate: How fast ``adaptive`` follows it, positive.

    Raises:
        ValueError: If an argument is out of range; before training, if trainer, module or data do not go with it.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float = 1e-5,
        noise_multiplier: float | None = None,
        max_grad_norm: float | list[float] = 1.0,
        accountant: Literal["prv", "rdp", "classic_rdp"] = "prv",
        batch_size: int | None = None,
        clipping: Literal["flat", "per_layer", "adaptive"] = "flat",
        grad_sample_mode: Literal["hooks", "ghost"] = "hooks",
        max_physical_batch: int | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        fix: bool = False,
        check_loss: bool = True,
        seed: int | None = None,
        target_quantile: float = 0.5,
        clip_learning_rate: float = 0.2,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            delta=delta,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            accountant=accountant,
            batch_size=batch_size,
            clipping=clipping,
            grad_sample_mode=grad_sample_mode,
            max_physical_batch=max_physical_batch,
            loss_reduction=loss_reduction,
            fix=fix,
            check_loss=check_loss,
            seed=seed,
            target_quantile=target_quantile,
            clip_learning_rate=clip_learning_rate,
        )
        self._curve: list[tuple[float, float]] = []
        self._curve_of: list[Any] = []

    def report(self) -> dict[str, Any]:
        """What has been guaranteed so far, as it is in ``privacy.json``; from ``fit`` on."""
        norm = self._clip_norm if self.clipping == "adaptive" and self._clip_norm is not None else self.max_grad_norm
        return privacy_report(
            self.accountant,
            self.delta,
            epsilon=self.epsilon,
            max_grad_norm=norm,
            clipping=self.clipping,
            grad_sample_mode=self.grad_sample_mode,
            items=self.sampler.items,
            batch_size=self.sampler.batch_size,
            seeded=self.seeded,
            unchecked=self.unchecked,
            curve=self._points(),
        )

    def figures(self) -> dict[str, Figure]:
        """Epsilon over delta, for the Figures callback."""
        label = f"{self.accountant.mechanism()}, steps: {sum(steps for _, _, steps in self.accountant.history)}"
        figure = epsilon_figure(self._points(), self.delta, label)
        return {} if figure is None else {"privacy": figure}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = run_directory(trainer)  # communicates: on all ranks
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        write(directory / "privacy.json", json.dumps(self.report(), indent=2) + "\n")
        for figure in self.figures().values():
            (directory / "privacy.png").write_bytes(png(figure))

    def _points(self) -> list[tuple[float, float]]:
        """The curve; a new one only after more steps, for ``prv`` takes its time."""
        if self._curve_of != self.accountant.history:
            self._curve, self._curve_of = epsilon_curve(self.accountant, self.delta), list(self.accountant.history)
        return self._curve
