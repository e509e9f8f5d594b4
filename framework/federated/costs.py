"""What it costs to train some layers and not others: operations and seconds of the backward pass.

The backward pass has to reach the lowest layer that is trained, through all layers above it, whether these are trained
or not. A low layer by itself is therefore dear: it saves what is sent and stored, not much of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from framework.federated.layer_groups import LayerGroups
from framework.federated.probe import Loss, mean_loss, untouched

FLOOR = 0.01
"""Least cost of a layer, in units of the mean layer: none is free, whatever the clock could not resolve."""


class Flops(NamedTuple):
    """Floating-point operations of one training step, without the optimiser's.

    Attributes:
        forward: Of the loss.
        backward: Of the gradients.
    """

    forward: int
    backward: int


def step_flops(module: nn.Module, loss: Loss, batch: Any, groups: LayerGroups, selected: Iterable[str]) -> Flops:
    """Count the operations of one training step in which selected layers and the common group are trained.

    torch counts them while the step runs: those of matrix products, convolutions and attention, two for each
    multiplication with its addition. Attention is run as the matrix products it consists of, so that the count is the
    same on all devices; a fused kernel does one of them again in the backward pass.

    Weights, gradients, buffers, ``requires_grad`` and the global random states are afterwards as before. The step runs
    in the modes that the module is in.

    Args:
        module: The module that is trained.
        loss: Gives for a batch the mean loss of its items and their number.
        batch: The batch of the step. Operations grow with its size, and with the length of its texts.
        groups: Division of ``module``.
        selected: Selectable layers that are trained; none for the common group alone.

    Returns:
        The counts; nothing to train takes no backward operation.

    Raises:
        ValueError: If a layer is unknown, or the loss no scalar.
    """
    counter = FlopCounterMode(display=False)
    with untouched(module), _as_products(), groups.set_trainable(module, selected), counter:
        value, _ = mean_loss(loss, batch)
        forward = counter.get_total_flops()
        if value.requires_grad:
            value.backward()
        return Flops(forward, counter.get_total_flops() - forward)


def backward_flops(module: nn.Module, loss: Loss, batch: Any, groups: LayerGroups) -> np.ndarray:
    """Cost of each layer in backward operations: as ``backward_seconds``, but the same on every machine and each time.

    Args:
        module: The module that is trained.
        loss: Gives for a batch the mean loss of its items and their number.
        batch: The batch to count on.
        groups: Division of ``module``, its layers from input to output.

    Returns:
        Positive numbers that add up to what training all layers takes beyond the common group, shape ``(layers,)``.
    """
    return _costs(groups.names, lambda selected: float(step_flops(module, loss, batch, groups, selected).backward))


def backward_seconds(module: nn.Module, loss: Loss, batch: Any, groups: LayerGroups, repeats: int = 5) -> np.ndarray:
    """Measure how long the backward pass takes for each layer, as costs that a budget can add up.

    A budget bounds ``sum_l m_l cost_l``, but the time ``T(S)`` of a set of layers is no such sum: passing the gradient
    down to the lowest one is paid once. The costs are the Shapley values of ``T(S) - T(none)``: the extra time of a
    layer, averaged over all orders in which layers could be added. Of all sums this one fits ``T`` best (least squares
    with the Shapley kernel) among those that are exact for no layer and for all layers. Each layer pays for the
    gradients of its own weights, and shares the way down with the other layers that need it.

    So the costs of all layers add up to ``T(all) - T(none)``. A few low layers without those above them take longer
    than their costs say, a few high ones less long; ``step_flops`` gives the price of just one choice.

    ``T`` is measured for the common group alone, with each single layer, and with all layers from each one to the
    output; from these the ways down and the layers' own shares are solved for. That takes ``2 * layers`` steps for
    each repeat and for one more to warm up. The least time of all repeats counts, and all sets take turns, so that a
    busy moment does not fall on one of them.

    Weights, gradients, buffers, ``requires_grad`` and the global random states are afterwards as before.

    Args:
        module: The module that is trained, on the device in question.
        loss: Gives for a batch the mean loss of its items and their number.
        batch: The batch to measure on.
        groups: Division of ``module``, its layers from input to output.
        repeats: Measurements of each set, at least 1.

    Returns:
        Positive seconds, shape ``(layers,)``; none below ``FLOOR`` of their mean.

    Raises:
        ValueError: If ``repeats`` is below 1, or the loss no scalar.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    best: dict[tuple[str, ...], float] = {}
    with untouched(module):
        for repeat in range(repeats + 1):
            for selected in _probes(groups.names):
                seconds = _backward_time(module, loss, batch, groups, selected)
                if repeat:  # the first time warms up
                    best[selected] = min(seconds, best.get(selected, seconds))
    return _costs(groups.names, best.__getitem__)


def _backward_time(module: nn.Module, loss: Loss, batch: Any, groups: LayerGroups, selected: Sequence[str]) -> float:
    with groups.set_trainable(module, selected):
        for parameter in module.parameters():
            parameter.grad = None
        value, _ = mean_loss(loss, batch)
        if not value.requires_grad:
            return 0.0
        _wait(value.device)
        began = perf_counter()
        value.backward()
        _wait(value.device)
        return perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _probes(names: Sequence[str]) -> list[tuple[str, ...]]:
    """No layer, each alone, and each with all above it: enough to tell a layer's own share from the way down to it."""
    alone = [(name,) for name in names]
    nested = [tuple(names[lowest:]) for lowest in range(len(names) - 1)]  # the last would be the last one alone
    return [(), *alone, *nested]


def _costs(names: Sequence[str], price: Callable[[tuple[str, ...]], float]) -> np.ndarray:
    """Shapley values of the layers in ``price``, for layers that follow one another.

    Then ``price(S) = price(()) + sum_{l in S} own_l + sum_{k >= min(S)} way_k``, with ``way_k`` the pass from layer
    ``k + 1``, or from the head, to layer ``k``. ``way_k`` is needed as soon as one of the layers ``0..k`` is trained:
    each of them bears the same share of it. Only layer 0 needs ``way_0``, which is counted as its own.
    """
    from scipy.optimize import nnls

    layers = len(names)
    place = {name: position for position, name in enumerate(names)}
    rows, extra = [], []
    nothing, *others = _probes(names)
    for selected in others:
        taken = [place[name] for name in selected]
        own, way = np.zeros(layers), np.zeros(layers)
        own[taken] = 1
        way[max(min(taken), 1) :] = 1
        rows.append(np.concatenate([own, way[1:]]))
        extra.append(price(selected))
    gained = np.array(extra) - price(nothing)
    scale = gained.max()
    if not scale > 0:  # below what a clock resolves: all alike
        return np.full(layers, 1e-9)
    # Not negative, which differences of noisy times can be; scaled, because the solver's tolerance is absolute.
    found, _ = nnls(np.array(rows), gained / scale)
    share = np.concatenate([[0.0], found[layers:]]) / np.arange(1, layers + 1)
    costs = scale * (found[:layers] + share[::-1].cumsum()[::-1])
    return np.maximum(costs, FLOOR * costs.mean())


@contextmanager
def _as_products() -> Iterator[None]:
    """Run attention as matrix products: of what fused kernels do, torch counts some on one device, none on another."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
