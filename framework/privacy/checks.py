"""What DP-SGD cannot be right for is refused, by name and before it trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from opacus.grad_sample import GradSampleHooks
from opacus.utils.module_utils import has_trainable_params
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from framework.privacy.accounting import check_budget, check_delta
from framework.privacy.gradients import CLIPPINGS, MODES, PrivateGradients
from framework.privacy.sampling import batch_items

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
"""Precisions in which the noise is added to weights of at least 32 bits."""
SEEDS = 2**63
"""How many seeds there are."""
_STEPS_THAT_LOOK_TWICE = (torch.optim.LBFGS,)
PROBED = 4
"""How many examples are looked at to see whether the loss treats them apart."""


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
    if adaptive and trainer.world_size > 1:
        raise ValueError(
            f"clipping: adaptive serves one process, got {trainer.world_size}: set clipping to flat or per_layer"
        )
    if pieces:
        hooks = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
        own = [hook for hook in hooks if is_overridden(hook, module)]
        if own:
            raise ValueError(
                f"max_physical_batch hands the batch over in pieces, which {name}.{own[0]} does not know: "
                "move what it does into training_step, or set max_physical_batch to null"
            )


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


def check_items(module: LightningModule, loader: DataLoader[Any], loss_reduction: str, mode: str = "hooks") -> str:
    """Refuse a module of which no gradients of examples can be taken, or whose loss mixes the examples of a batch.

    Clipping bounds what an example adds to the sum only if it changes no other's part of it. Neither a mean over the
    tokens of a batch, nor a contrastive loss, nor attention across examples is such a loss, and hooks take "gradients
    per example" of them all the same. So the gradient of a few examples in one batch is compared with the mean of those
    of each alone, on a copy of the module without dropout. The look at the data is released nowhere.

    Args:
        module: The module, on its device and without hooks.
        loader: The train loader as it was before batches became Poisson.
        loss_reduction: ``mean`` or ``sum``, of the losses of examples in a batch.
        mode: How gradients of examples are taken.

    Returns:
        Why nothing could be compared; empty where it was.

    Raises:
        ValueError: If they cannot be taken or differ, with what to do about it.
    """
    name, items = type(module).__name__, len(loader.dataset)  # type: ignore[arg-type]
    count = min(PROBED, items)
    chosen = torch.randperm(items, generator=torch.Generator().manual_seed(0))[:count].tolist()
    try:
        spare = _copied(module)
    except (AttributeError, RuntimeError, TypeError) as cause:
        return f"{name} cannot be copied: {cause}"
    spare.train()
    for layer in spare.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    weights = [weight for weight in spare.parameters() if weight.requires_grad]

    def loss(indices: list[int], seed: int = 0) -> Tensor:
        batch = move_data_to_device(batch_items(loader, indices), module.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`self.trainer` reference is not registered")
            torch.manual_seed(seed)
            made: Any = spare.training_step(batch, 0)
        found: Tensor = made["loss"] if isinstance(made, dict) else made
        return found

    def gradient() -> list[Tensor]:
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        return found

    gradient()
    with torch.random.fork_rng(), torch.enable_grad():
        try:
            steady = torch.allclose(loss(chosen), loss(chosen), rtol=1e-6)
            drawn = not torch.allclose(loss(chosen), loss(chosen, seed=1), rtol=1e-6)
            loss(chosen).backward()
            together = gradient()
            for i in chosen:
                (loss([i]) / count).backward()
            alone = gradient()
        except (AttributeError, RuntimeError, TypeError) as cause:
            return f"{name}.training_step cannot run outside of fit: {cause}"
        optimizer = torch.optim.SGD(weights, lr=0.0)
        examples = PrivateGradients(
            spare, optimizer, noise_multiplier=0.0, max_grad_norm=1e9, batch_size=count, mode=mode,
            loss_reduction=loss_reduction,
        )  # fmt: skip
        examples.begin()
        examples.expect(count)
        try:
            loss(chosen).backward()
        except RuntimeError as cause:
            raise ValueError(
                f"no gradient per example can be taken of {name}, some layer of which does not see one row for each: "
                f"{cause}"
            ) from cause
        examples.accumulate(count)
        examples.finish()
        private = gradient()
    whole = _norm(together)
    if steady and whole.isfinite() and not _norm([a - b for a, b in zip(together, private)]) <= 1e-2 * whole:
        raise ValueError(
            f"the gradients per example of {name} do not add up to its gradient: some of its weights are used outside "
            "of their layers' forward, or in two layers"
        )
    if drawn:
        return f"{name}.training_step, or the data, draw random numbers of their own, so that no two losses compare"
    scale = _norm(alone)
    factor = count if loss_reduction == "sum" else 1
    if not scale.isfinite() or _norm([a - factor * b for a, b in zip(together, alone)]) <= 1e-2 * factor * scale:
        return ""
    other = 1 if loss_reduction == "sum" else count
    if _norm([a - other * b for a, b in zip(together, alone)]) <= 1e-2 * other * scale:
        kind = "mean" if loss_reduction == "sum" else "sum"
        raise ValueError(
            f"loss_reduction must be {kind}, got {loss_reduction}: the loss of {name} is the {kind} over the examples "
            "of a batch"
        )
    raise ValueError(
        f"the gradient of an example in {name}.training_step depends on the other examples of its batch, so clipping "
        "it bounds nothing: the loss must be the mean over examples of a loss that looks at one (not the mean over all "
        "tokens of a batch, and not a comparison of examples)"
    )


def _copied(module: LightningModule) -> LightningModule:
    """A copy of a module without the run that it is in, to which what it holds (an optimiser's maker) may refer."""
    trainer = module.trainer
    shared = [trainer, trainer.strategy, getattr(trainer, "datamodule", None)]
    for layer in module.modules():
        shared += [each for each in vars(layer).values() if callable(each) and not isinstance(each, nn.Module)]
    return copy.deepcopy(module, {id(each): each for each in shared if each is not None})


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([each.double().norm() for each in tensors]).norm()


def _listed(layers: list[tuple[str, nn.Module]]) -> str:
    named = [f"{name or 'itself'} ({type(layer).__name__})" for name, layer in layers]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
