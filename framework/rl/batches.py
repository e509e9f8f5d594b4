"""Batches that a DataModule makes while a module learns, as Lightning takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info


class Batches(IterableDataset[dict[str, Tensor]]):
    """Ready batches from a function that makes an iterator; it keeps no place of its own.

    Args:
        make: Makes the iterator.
        length: How many batches an epoch has.

    Attributes:
        resumes_itself: What comes next is in the DataModule's state, also within an epoch.
    """

    resumes_itself = True

    def __init__(self, make: Callable[[], Iterator[Any]], length: Callable[[], int]) -> None:
        self._iterator, self._length = make, length

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            refuse_workers(worker.num_workers)
        return self._iterator()

    def __len__(self) -> int:
        return self._length()

    # Lightning asks a loader for these if it is to go on within an epoch: here the DataModule does.

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def refuse_workers(count: int) -> None:
    """Refuse processes that load batches.

    Args:
        count: How many were asked for.

    Raises:
        ValueError: If any were.
    """
    if count != 0:
        raise ValueError(
            f"num_workers must be 0, got {count}: each worker would step environments and fill a buffer of its own"
        )
