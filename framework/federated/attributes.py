"""Partitions by what the items are: a domain, a genre, a writer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from framework.federated.partition import Ints, Partitioner, even, per_item
from framework.loaders.labels import raw_labels


class Attribute(Partitioner):
    """The data's own division: by domain, genre, writer or whatever else is known of each item. Nothing is drawn.

    With at most as many clients as values, clients get whole values, the largest first to the client that has
    least; they are numbered by the first value they have, so that with as many values client ``k`` has the ``k``-th in
    sorted order. With more clients than values, a value has clients in proportion to its items, and they get
    consecutive blocks of them.

    Args:
        field: Where the data set keeps the attribute (see :func:`attributes_of`).
    """

    needs_attributes = True

    def __init__(self, field: str | int) -> None:
        if isinstance(field, bool) or not isinstance(field, (str, int)) or field == "":
            raise ValueError(f"field must be the name or position of an attribute of the items, got {field!r}")
        self.field = field

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
        if clients <= len(sizes):
            owner, load = np.empty(len(sizes), np.int64), np.zeros(clients, np.int64)
            for value in np.argsort(-sizes, kind="stable"):
                owner[value] = load.argmin()
                load[owner[value]] += sizes[value]
            _, first, group = np.unique(owner, return_index=True, return_inverse=True)
            return first.argsort().argsort()[group][codes]
        parts = np.ones(len(sizes), np.int64)
        for _ in range(clients - len(sizes)):
            parts[np.argmax(sizes / parts)] += 1
        owners = np.empty(items, np.int64)
        blocks = np.concatenate([even(int(size), int(count)) for size, count in zip(sizes, parts)])
        owners[codes.argsort(kind="stable")] = np.repeat(np.arange(clients), blocks)
        return owners


def attributes_of(dataset: Any, field: str | int) -> Tensor | list[str]:
    """An attribute of every item, found as :func:`framework.loaders.labels.labels_of` finds labels, decoding no item.

    Args:
        dataset: A map-style data set.
        field: Name of the attribute, column or key, or position of the tensor.

    Returns:
        One value per item: an int64 tensor of shape ``(items,)``, or strings.

    Raises:
        TypeError: If it cannot be found without decoding the items.
        ValueError: If what was found is not one integer or string per item.
    """
    found = _attributes(dataset, field)
    return found.tolist() if found.dtype.kind == "U" else torch.from_numpy(found)


def _attributes(dataset: Any, field: str | int) -> NDArray[Any]:
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise TypeError(f"{kind} is an IterableDataset: its items cannot be dealt to clients")
    if isinstance(dataset, Subset):
        return _attributes(dataset.dataset, field)[np.asarray(list(dataset.indices), np.int64)]
    if isinstance(dataset, ConcatDataset):
        pieces = [_attributes(part, field) for part in dataset.datasets]
        if len({piece.dtype.kind for piece in pieces}) > 1:
            raise ValueError(f"{field!r} is a string in some and an integer in other parts of the ConcatDataset")
        return np.concatenate(pieces)
    try:
        found, _ = raw_labels(dataset, field)
    except TypeError:
        raise TypeError(
            f"{kind} has no {field!r} that can be read without decoding its items: "
            f"give it an attribute of that name with one value per item"
        ) from None
    return per_item(found, len(dataset), f"{field!r} of {kind}")
