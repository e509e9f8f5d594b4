"""Clients that hold data of their own: nothing is divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework.federated.partition import Ints, Partitioner


class OwnData(Partitioner):
    """Every client trains on all that the DataModule of its own process reads.

    This is a real federation: each node of a deployment has its files, and the server only those that it evaluates on.
    In one process, where all clients share one DataModule, it is refused.
    """

    def split(
        self,
        items: int,
        labels: Tensor | None,
        clients: int,
        seed: int,
        attributes: Tensor | Sequence[Any] | None = None,
    ) -> list[Tensor]:
        """All items, for every client; see :meth:`Partitioner.split`."""
        return [torch.arange(items)] * clients

    def _owners(self, items: int, values: Any, clients: int, rng: Any) -> Ints:
        raise NotImplementedError("items of clients with data of their own have no owner here")
