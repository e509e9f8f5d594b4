"""How much each layer of a module matters for a client's data: scores from one backward pass, which leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from framework.errors import near
from framework.federated.layer_groups import LayerGroups
from framework.federated.probe import Loss, mean_loss, untouched

Kind = Literal["norm", "norm_per_batch", "rgn", "snr"]
KINDS: tuple[str, ...] = get_args(Kind)


def importance(
    module: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    groups: LayerGroups,
    kind: str = "norm",
) -> np.ndarray:
    """Score the selectable layers on a client's data (selective layer fine-tuning, arXiv 2408.15600).

    With ``g`` the gradient of the mean loss over all data, which is the mean of the batches' gradients weighted by
    their items, so that neither their order nor their size matters:

    * ``norm``: ``||g||^2`` over the parameters of the layer, the importance of the paper.
    * ``norm_per_batch``: the sum over batches of the squared norm of each batch's gradient, as the official code's
      ``diff`` means to compute; it depends on the batch size.
    * ``rgn``: ``||g|| / ||w||``, the relative gradient norm of surgical fine-tuning. (The official code has the ratio
      of the squares: the same order of layers, other sums over clients.)
    * ``snr``: the sum over parameter tensors of ``mean(g)^2 / std(g)``, taken over the tensor's entries, as in the
      official code. A tensor of one entry, or of zero gradient, adds nothing.

    Weights, gradients, buffers, modes of all submodules, ``requires_grad`` and the global random states (torch on all
    devices, numpy, Python) are afterwards as before, also where an exception ends it. Gradients are taken in
    evaluation mode: without dropout, and with running statistics.

    Args:
        module: The module with the weights to score.
        loss: Gives for a batch the mean loss of its items, a scalar, and their number; any positive weight will do. It
            computes with ``module`` and moves the batch to its device.
        batches: Batches of the client, at least one.
        groups: Division of ``module``.
        kind: One of ``KINDS``.

    Returns:
        Scores of ``groups.names``, not negative, float64 of shape ``(layers,)``.

    Raises:
        ValueError: If a score is not finite, there is no batch, a loss is no scalar or reaches no selectable layer, a
            weight is not positive, or ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown importance {kind!r}{near(str(kind), KINDS) or ';'} there are {', '.join(KINDS)}")
    named = dict(module.named_parameters())
    names = [name for group in groups.names for name in groups.parameters(group)]
    missing = [name for name in names if name not in named]
    if missing:
        raise ValueError(f"module has no parameter {missing[0]}, which the layer groups name")
    parameters = [named[name] for name in names]
    with untouched(module):
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        sums: list[Tensor] = [torch.zeros_like(p, dtype=_precise(p)) for p in parameters]
        squares = [0.0] * len(parameters)
        total = 0.0
        for position, batch in enumerate(batches):
            gradients, weight = _gradients(loss, batch, parameters, position)
            total += weight
            for i, gradient in enumerate(gradients):
                if gradient is None:
                    continue  # the layer has no part in this loss
                if kind == "norm_per_batch":
                    squares[i] += _square(gradient)
                else:
                    sums[i].add_(gradient, alpha=weight)
        if not total:
            raise ValueError("batches must hold at least one batch, got none")
        found = dict(zip(names, (total_.div_(total) for total_ in sums), strict=True))
        square = dict(zip(names, squares, strict=True))

    def score(members: tuple[str, ...]) -> float:
        if kind == "norm_per_batch":
            return sum(square[name] for name in members)
        if kind == "snr":
            return sum(_signal_to_noise(found[name]) for name in members)
        gradient = sum(_square(found[name]) for name in members)
        if kind == "norm":
            return gradient
        weights = sum(_square(named[name].detach()) for name in members)
        return math.sqrt(gradient) / math.sqrt(weights) if weights else math.nan

    scores = np.array([score(groups.parameters(group)) for group in groups.names], dtype=np.float64)
    for group, value in zip(groups.names, scores, strict=True):
        if not np.isfinite(value):
            why = " because all its weights are zero" if kind == "rgn" and np.isnan(value) else ""
            raise ValueError(f"importance {kind} of layer {group} must be finite, got {value}{why}")
    return scores


def _gradients(
    loss: Loss, batch: Any, parameters: Sequence[Tensor], position: int
) -> tuple[tuple[Tensor | None, ...], float]:
    """Gradients of the mean loss of one batch, and the weight of the batch."""
    value, weight = mean_loss(loss, batch, position)
    if not value.requires_grad:
        raise ValueError(f"loss of batch {position} must depend on a selectable layer, but it depends on none")
    return torch.autograd.grad(value.reshape(()), parameters, allow_unused=True), weight


def _precise(parameter: Tensor) -> torch.dtype:
    """Where to add up: half precision would lose small batches."""
    return torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype


def _square(values: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(values.to(_precise(values))))
    return norm * norm


def _signal_to_noise(gradient: Tensor) -> float:
    if gradient.numel() < 2 or not gradient.any():
        return 0.0
    mean, noise = float(gradient.mean()), float(gradient.std())
    return mean * mean / noise if noise else math.inf
