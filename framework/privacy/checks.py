"""What DP-SGD cannot be right for is refused, by name and before it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.model_helpers import is_overridden
from opacus.grad_sample import GradSampleHooks
from opacus.utils.module_utils import has_trainable_params
from opacus.validators import ModuleValidator
from torch import nn
from torch.optim import Optimizer

from framework.privacy.accounting import check_budget, check_delta
from framework.privacy.gradients import CLIPPINGS, MODES
from framework.privacy.randomness import SEEDS

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
"""Precisions in which the noise is added to weights of at least 32 bits."""
_STEPS_THAT_LOOK_TWICE = (torch.optim.LBFGS,)
_TRAINS_BEFORE = (LearningRateFinder, BatchSizeFinder)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_arguments(
    *,
    epsilon: float | None,
    delta: float,
    noise_multiplier: float | None,
    max_grad_norm: float | list[float],
    batch_size: int | None,
    clipping: str,
    grad_sample_mode: str,
    max_physical_batch: int | None,
    loss_reduction: str,
    seed: int | None,
    target_quantile: float,
    clip_learning_rate: float,
) -> None:
    """Refuse arguments of DP-SGD that are out of range, or do not go together.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """
    check_delta(delta)
    if epsilon is not None:
        check_budget(epsilon, delta)
    elif noise_multiplier is None:
        raise ValueError("give epsilon, for which the noise is solved, or noise_multiplier, or both")
    if noise_multiplier is not None and not 0 <= noise_multiplier < float("inf"):
        raise ValueError(f"noise_multiplier must be at least 0, got {noise_multiplier}")
    for field, value, known in (
        ("clipping", clipping, CLIPPINGS),
        ("grad_sample_mode", grad_sample_mode, MODES),
        ("loss_reduction", loss_reduction, ("mean", "sum")),
    ):
        if value not in known:
            raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r}")
    norms = max_grad_norm if isinstance(max_grad_norm, list) else [max_grad_norm]
    if not norms or not all(0 < norm < float("inf") for norm in norms):
        raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}")
    if isinstance(max_grad_norm, list) and clipping != "per_layer":
        raise ValueError(f"max_grad_norm must be one number with clipping: {clipping}, got {max_grad_norm}")
    if grad_sample_mode == "ghost" and clipping != "flat":
        raise ValueError(
            f"clipping must be flat with grad_sample_mode: ghost, got {clipping}: other clippings need the gradient of "
            "every example"
        )
    for field, number in (("batch_size", batch_size), ("max_physical_batch", max_physical_batch)):
        if number is not None and number < 1:
            raise ValueError(f"{field} must be at least 1, got {number}")
    if seed is not None and not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    if not 0 < target_quantile < 1:
        raise ValueError(f"target_quantile must be in (0, 1), got {target_quantile}")
    if clip_learning_rate <= 0:
        raise ValueError(f"clip_learning_rate must be positive, got {clip_learning_rate}")


def check_trainer(trainer: Trainer, module: LightningModule, adaptive: bool, pieces: bool, ghost: bool) -> None:
    """Refuse settings of a trainer with which the guarantee would not hold, or would hold for something else.

    Args:
        trainer: The trainer, in ``setup``.
        module: Its module.
        adaptive: Whether clipping is adaptive.
        pieces: Whether batches come in pieces.
        ghost: Whether clipping is ghost clipping.

    Raises:
        ValueError: Naming the setting, its value and what is allowed.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} optimises by hand (automatic_optimization=False): differential privacy needs every step to be "
            "one of Lightning's"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches must be 1 with differential privacy, got "
            f"{trainer.accumulate_grad_batches}: give a larger batch_size, and max_physical_batch for small memory"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler does not go with differential privacy, of which every batch is a step: "
                "give a larger batch_size, and max_physical_batch for small memory"
            )
        if isinstance(callback, _TRAINS_BEFORE):
            raise ValueError(
                f"{type(callback).__name__} does not go with differential privacy: it trains on the examples without "
                "noise, and what it finds is not accounted for"
            )
    if getattr(trainer, "overfit_batches", 0) > 0:
        raise ValueError(
            "trainer.overfit_batches must be 0 with differential privacy: batches are drawn anew, and never repeated"
        )
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val must be none with differential privacy, got {trainer.gradient_clip_val}: "
            "max_grad_norm clips the gradient of every example"
        )
    if trainer.precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)} with differential privacy, got "
            f"{trainer.precision}: scaled losses and noise of 16 bits are not what is accounted for"
        )
    if ghost and trainer.precision == "bf16-mixed":
        raise ValueError(
            "trainer.precision must be 32-true or 64-true with grad_sample_mode: ghost, got bf16-mixed: "
            "sums of 16 bits round by more than an example may add"
        )
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"trainer.strategy must be one device or ddp with differential privacy, got {type(strategy).__name__}: "
            "every process needs whole gradients of its examples"
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "trainer.strategy must be one device or ddp with differential privacy, got one that spawns or forks: what "
            "was spent would be forgotten with its processes"
        )
    if adaptive and trainer.world_size > 1:
        raise ValueError(
            f"clipping: adaptive serves one process, got {trainer.world_size}: set clipping to flat or per_layer"
        )
    if pieces:
        hooks = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
        for owner in (module, getattr(trainer, "datamodule", None)):
            own = [hook for hook in hooks if owner is not None and is_overridden(hook, owner)]
            if own:
                raise ValueError(
                    f"max_physical_batch hands the batch over in pieces, which {type(owner).__name__}.{own[0]} does "
                    "not know: move what it does into training_step, or set max_physical_batch to null"
                )


def steered_by_train_metrics(trainer: Trainer) -> list[str]:
    """Warnings of what looks at a metric of training, which is taken without noise, to choose what is released.

    Args:
        trainer: The trainer, in ``setup``.
    """
    return [
        f"{type(callback).__name__} chooses by {callback.monitor}, which is computed from the train examples without "
        "noise: what it chooses is not covered by the guarantee"
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and (callback.monitor or "").startswith("train")
    ]


def check_model(module: nn.Module) -> None:
    """Refuse layers whose gradients of examples do not exist, or that look at several examples at once.

    Args:
        module: The module.

    Raises:
        ValueError: Naming the layers and what to do about them.
    """
    norms = nn.modules.batchnorm._BatchNorm
    found: list[tuple[str, nn.Module]] = [each for each in module.named_modules() if isinstance(each[1], norms)]
    if found:
        raise ValueError(
            f"{_listed(found)} of {type(module).__name__} mixes the examples of a batch, so that no gradient belongs "
            "to one example: set fix: true, which puts GroupNorm in its place, or use GroupNorm or LayerNorm"
        )
    wrong = []
    for name, layer in module.named_modules():
        validate = ModuleValidator.VALIDATORS.get(type(layer))
        if validate is not None and validate(layer):
            wrong.append((name, layer))
    if wrong:
        fixable = all(type(layer) in ModuleValidator.FIXERS for _, layer in wrong)
        help_ = "set fix: true, which replaces it by one of Opacus" if fixable else "replace or freeze it"
        raise ValueError(f"{_listed(wrong)} of {type(module).__name__} has no gradient per example in Opacus: {help_}")
    for name, layer in module.named_modules():
        reason = _wrong_setting(layer)
        if reason:
            raise ValueError(f"{_listed([(name, layer)])} of {type(module).__name__} {reason}")
    # What Opacus has no rule for is run once more for each example, and would then drop other values than before.
    for name, layer in module.named_modules():
        by_itself = has_trainable_params(layer) and type(layer) not in GradSampleHooks.GRAD_SAMPLERS
        if by_itself and any(
            isinstance(each, nn.modules.dropout._DropoutNd) and each.p > 0 for each in layer.modules()
        ):
            raise ValueError(
                f"{_listed([(name, layer)])} of {type(module).__name__} has weights of its own beside a layer with "
                "dropout, for which Opacus takes no gradient per example: set dropout to 0"
            )


def _wrong_setting(layer: nn.Module) -> str:
    """Why no gradient per example of a layer is right, that it knows by its settings; empty if it is."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
        return "shortens the rows of words that occur (max_norm), without noise: set max_norm to None"
    if not has_trainable_params(layer):
        return ""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.scale_grad_by_freq:
        return "scales gradients by how often a word is in the batch: set scale_grad_by_freq to False"
    if isinstance(layer, _CONVOLUTIONS) and layer.padding_mode != "zeros":
        return (
            f"has no gradient per example in Opacus with padding_mode={layer.padding_mode!r}: pad with "
            "nn.functional.pad and set padding to 0"
        )
    if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and getattr(layer, "bias", None) is None:
        return "has no gradient per example in Opacus without a bias: set bias=True, or use nn.RMSNorm"
    return ""


def fix_model(module: nn.Module) -> list[str]:
    """Replace, in place, the layers that Opacus knows a replacement for: BatchNorm by GroupNorm, LSTM by DPLSTM, ...

    Args:
        module: The module. New layers begin with new weights, but for recurrent and attention layers.

    Returns:
        What was replaced, such as ``net.1: BatchNorm2d by GroupNorm``.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    said = []
    for name, layer in list(module.named_modules()):
        fixer: Callable[[Any], nn.Module] | None = ModuleValidator.FIXERS.get(type(layer))
        validate = ModuleValidator.VALIDATORS.get(type(layer))
        if not name or fixer is None or validate is None or not validate(layer):
            continue
        new = fixer(layer)
        weight = next(layer.parameters(), None)
        replaced[layer] = new if weight is None else new.to(weight.device)
        said.append(f"{name}: {type(layer).__name__} by {type(new).__name__}")
    for parent in list(module.modules()):
        for child, layer in list(parent.named_children()):
            if layer in replaced:
                setattr(parent, child, replaced[layer])
    return said


def check_optimizers(module: LightningModule, optimizers: list[Optimizer]) -> Optimizer:
    """The one optimiser of a module.

    Args:
        module: The module.
        optimizers: Its optimisers.

    Raises:
        ValueError: If there are several, none, or one that evaluates the loss more than once in a step.
    """
    name = type(module).__name__
    if len(optimizers) != 1:
        raise ValueError(f"{name} has {len(optimizers)} optimizers; differential privacy needs exactly one")
    if isinstance(optimizers[0], _STEPS_THAT_LOOK_TWICE):
        raise ValueError(
            f"{type(optimizers[0]).__name__} of {name} looks at the data several times in a step, which no accountant "
            "here counts: use SGD or Adam"
        )
    known = set(module.parameters())
    if any(weight not in known for group in optimizers[0].param_groups for weight in group["params"]):
        raise ValueError(f"the optimizer of {name} trains weights that are not {name}'s")
    return optimizers[0]


def _listed(layers: list[tuple[str, nn.Module]]) -> str:
    named = [f"{name or 'itself'} ({type(layer).__name__})" for name, layer in layers]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
