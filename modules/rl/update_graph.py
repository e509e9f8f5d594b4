"""One update of many small operations, captured once as a CUDA graph and replayed with a single launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Update = Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]]
"""Takes a batch and its noise, changes weights and optimisers in place, and tells scalars by name."""


class UpdateGraph:
    """An update as a CUDA graph: the launches of hundreds of small operations become one.

    What is captured is replayed as it was: the same tensors (weights, gradients, states of optimisers) and shapes, and
    the same numbers that are no tensors, such as learning rates. Capturing executes nothing.

    Args:
        update: What is captured. It must have run before, so that everything that is made once exists.
        optimizers: What it steps; torch's, with their state on the device.
        batch: A batch, for its shapes.
        noise: Its noise.
    """

    def __init__(
        self, update: Update, optimizers: Sequence[torch.optim.Optimizer], batch: Mapping[str, Tensor], noise: Tensor
    ) -> None:
        self._batch = {name: values.clone() for name, values in batch.items()}
        self._noise = noise.clone()
        self._graph = torch.cuda.CUDAGraph()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        before = [group.get("capturable", False) for group in groups]
        for group in groups:
            group["capturable"] = True
        try:
            # Other threads may write a checkpoint meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                told = update(self._batch, self._noise)
                self._names, self._told = list(told), torch.stack(list(told.values()))
        finally:
            for group, value in zip(groups, before):
                group["capturable"] = value

    def __call__(self, batch: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Replay the update.

        Args:
            batch: As the one given first.
            noise: Its noise.

        Returns:
            What the update told; the tensors are not used again.
        """
        for name, values in self._batch.items():
            values.copy_(batch[name], non_blocking=True)
        self._noise.copy_(noise, non_blocking=True)
        self._graph.replay()
        return dict(zip(self._names, self._told.clone().unbind()))
