"""Labels of a data set without decoding its items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from framework.loaders.reindexing import kind

LABEL_NAMES = ("targets", "labels", "label", "y")
"""Attributes, columns and keys under which labels are looked for, in this order."""


def labels_of(dataset: Any, field: str | int | None = None) -> Tensor:
    """The class of every item, without decoding the items.

    Looked for in this order: what a ``Subset`` or ``ConcatDataset`` is made of; the second tensor of a two-tensor
    ``TensorDataset``; an attribute ``targets``, ``labels``, ``label`` or ``y`` (data sets of torchvision
    and torch_geometric have one); a column of one of these names, for what has ``column_names`` (Hugging Face); the
    items of a plain list, which are in memory anyway.

    Args:
        dataset: A map-style data set.
        field: Position of the tensor, or name of the attribute, column or key, where the rules above do not decide.

    Returns:
        int64 classes, shape ``(items,)``; -1 stands for "no label" where a data set says so.

    Raises:
        TypeError: If the labels cannot be found without decoding the items.
        ValueError: If what was found is not one integer per item.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(f"{kind(dataset)} is an IterableDataset: its labels cannot be known without running through it")
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, field)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part, field) for part in dataset.datasets])
    found, where = raw_labels(dataset, field)
    if isinstance(found, (list, tuple)) and found and isinstance(found[0], str):
        raise ValueError(f"labels of {kind(dataset)} must be integers, but {where} holds strings such as {found[0]!r}")
    labels = torch.stack(list(found)) if _tensors(found) else torch.as_tensor(found)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.shape != (len(dataset),) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels of {kind(dataset)} must be one integer per item, "
            f"but {where} holds {labels.dtype} of shape {tuple(labels.shape)} for {len(dataset)} items"
        )
    return labels.to(torch.int64)


def raw_labels(dataset: Any, field: str | int | None) -> tuple[Any, str]:
    """Labels (or another attribute) as the data set itself keeps them, and where they were; see :func:`labels_of`."""
    if isinstance(dataset, TensorDataset):
        position = 1 if field is None and len(dataset.tensors) == 2 else field
        if not isinstance(position, int) or not -len(dataset.tensors) <= position < len(dataset.tensors):
            raise TypeError(
                f"labels of a TensorDataset of {len(dataset.tensors)} tensors are not known: "
                f"say which tensor by field, got {field!r}"
            )
        return dataset.tensors[position], f"tensor {position}"
    names = LABEL_NAMES if field is None else (field,)
    columns = getattr(dataset, "column_names", None)
    for name in names:
        attribute = getattr(dataset, name, None) if isinstance(name, str) else None
        if attribute is not None and not callable(attribute):
            return attribute, f"attribute {name}"
        if columns is not None and name in columns:
            column = dataset[name]  # decodes this column alone; newer versions give a lazy view of it
            return (column if isinstance(column, Tensor) else column[:]), f"column {name}"
    if isinstance(dataset, (list, tuple)) and dataset:
        return _listed(dataset, names, field), "the items"
    raise TypeError(
        f"{kind(dataset)} has no labels that can be read without decoding its items: "
        f"give it an attribute targets, or say by field where they are (looked for {', '.join(map(str, names))})"
    )


def _listed(items: Sequence[Any], names: Sequence[str | int], field: str | int | None) -> list[Any]:
    first = items[0]
    for name in names:
        if isinstance(first, dict) and name in first:
            return [item[name] for item in items]
        if isinstance(name, str) and hasattr(first, name):
            return [getattr(item, name) for item in items]
    if isinstance(first, (tuple, list)) and (isinstance(field, int) or (field is None and len(first) == 2)):
        return [item[1 if field is None else int(field)] for item in items]
    raise TypeError(
        f"items of type {kind(first)} have no labels under {', '.join(map(str, names))}; say by field where they are"
    )


def _tensors(found: Any) -> bool:
    return isinstance(found, (list, tuple)) and bool(found) and isinstance(found[0], Tensor)
