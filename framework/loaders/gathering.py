"""Batches of tensors gathered in one go, where PyTorch would take them apart into items and stack those again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torch.utils.data._utils.collate import collate, default_collate_fn_map


class Items(Sequence[tuple[Tensor, ...]]):
    """Items of a data set, kept by column.

    For ``__getitems__`` of a data set: PyTorch's ``default_collate`` takes the columns as they are, and any other
    ``collate_fn`` sees a sequence of tuples.

    Args:
        columns: Tensors of equal length, which is the number of items.
    """

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | Items:
        chosen = (column[index] for column in self.columns)
        return Items(*chosen) if isinstance(index, slice) else _Item(chosen)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(column.unbind() for column in self.columns))


class TensorSubset(Subset[tuple[Tensor, ...]]):
    """Some items of a ``TensorDataset``, which a DataLoader gets by the batch.

    Args:
        dataset: The tensors.
        indices: Numbers of the items, at least 0.
    """

    dataset: TensorDataset

    def __getitems__(self, indices: list[int]) -> Items:  # type: ignore[override] # a sequence will do for a loader
        rows = torch.tensor([self.indices[i] for i in indices], dtype=torch.int64)
        return Items(*(tensor.index_select(0, rows) for tensor in self.dataset.tensors))


def subset_of(dataset: Dataset[Any], indices: list[int]) -> Subset[Any]:
    """Some items of a data set, served as fast as they can be.

    Args:
        dataset: Any map-style data set.
        indices: Numbers of the items, at least 0.
    """
    return TensorSubset(dataset, indices) if type(dataset) is TensorDataset else Subset(dataset, indices)


class _Item(tuple[Tensor, ...]):
    """One of :class:`Items`, by which ``default_collate`` knows them."""


def _columns(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, Items):
        return list(batch.columns)
    return collate([tuple(item) for item in batch], collate_fn_map=collate_fn_map)


default_collate_fn_map[_Item] = _columns
