"""Look at a module by running it, and leave no trace: what scores and prices of layers have in common."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[Any], tuple[Tensor, float]]
"""Gives for a batch the mean loss of its items, a scalar, and their number; any positive weight will do. It computes
with the module that is looked at, and moves the batch to its device."""


def mean_loss(loss: Loss, batch: Any, position: int = 0) -> tuple[Tensor, float]:
    """The mean loss of one batch and its weight, checked.

    Args:
        loss: Gives both.
        batch: A batch.
        position: Its number, for messages.

    Raises:
        TypeError: If ``loss`` does not give a pair.
        ValueError: If the loss is no scalar, or the weight not positive.
    """
    result = loss(batch)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
        raise TypeError(f"loss must give the mean loss of a batch and its number of items, got {type(result).__name__}")
    value, weight = result[0], float(result[1])
    if value.numel() != 1:
        raise ValueError(f"loss must give a scalar for each batch, got shape {tuple(value.shape)} for batch {position}")
    if not 0 < weight < math.inf:
        raise ValueError(f"loss must give a positive weight for each batch, got {weight} for batch {position}")
    return value, weight


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give a module and the global random states back as they were; gradients can be taken inside.

    Gradients, buffers, modes of all submodules, ``requires_grad`` and the global random states (torch on all devices,
    numpy, Python) are afterwards as before, also where an exception ends it. Inside, no parameter has a gradient yet.

    Args:
        module: Any module; whoever looks at it changes no weights.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    # A module may also put another tensor in a buffer's place, so the place is kept beside the values.
    buffers = [
        (inner, name, buffer, None if buffer is None else buffer.detach().clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
    ]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for inner, mode in modes:
            inner.training = mode
        for parameter, flag, gradient in parameters:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        with torch.no_grad():
            for inner, name, buffer, values in buffers:
                if buffer is not None and values is not None and not torch.equal(buffer, values):
                    buffer.copy_(values)
                inner._buffers[name] = buffer
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
