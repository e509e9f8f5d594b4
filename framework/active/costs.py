"""What each item costs to label, without decoding the items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from framework.loaders.reindexing import kind

ITEMS = "items"
"""The field that stands for a cost of 1 an item."""


def cost_field(dataset: Any) -> str:
    """In what the labels of a data set are paid: what its attribute ``unit`` names, such as ``words``, else ``items``.

    Args:
        dataset: A map-style data set; looked through if it is a ``Subset`` or ``ConcatDataset``.

    Returns:
        A field for :func:`costs_of`.
    """
    unit = getattr(dataset, "unit", None)
    if isinstance(unit, str):
        return unit
    if isinstance(dataset, Subset):
        return cost_field(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        units = {cost_field(part) for part in dataset.datasets}
        return units.pop() if len(units) == 1 else ITEMS
    return ITEMS


def costs_of(dataset: Any, field: str = ITEMS) -> Tensor:
    """The cost of every item.

    Args:
        dataset: A map-style data set; looked through if it is a ``Subset`` or ``ConcatDataset``.
        field: ``"items"``: each costs 1. Else the name of an attribute or column of the data set with one positive
            number an item, such as ``words`` for sentences.

    Returns:
        Costs of shape ``(items,)``, int64 if they are whole numbers, else float64.

    Raises:
        ValueError: If the data set has no such field, or it does not hold one positive number an item.
    """
    if field == ITEMS:
        return torch.ones(len(dataset), dtype=torch.int64)
    if not hasattr(dataset, field):
        if isinstance(dataset, Subset):
            return costs_of(dataset.dataset, field)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
        if isinstance(dataset, ConcatDataset):
            return torch.cat([costs_of(part, field) for part in dataset.datasets])
    found = getattr(dataset, field, None)
    if found is None and field in (getattr(dataset, "column_names", None) or ()):
        found = dataset[field][:]
    if found is None or callable(found):
        raise ValueError(
            f"cost: {kind(dataset)} has no attribute {field!r}; use {ITEMS!r}, or give the data set an attribute with "
            "one positive number an item"
        )
    try:
        costs = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"cost: {field!r} of {kind(dataset)} must hold numbers, got {kind(found)}") from None
    if costs.shape != (len(dataset),) or costs.is_complex() or costs.dtype == torch.bool:
        raise ValueError(
            f"cost: {field!r} of {kind(dataset)} must hold one number an item, "
            f"got {costs.dtype} of shape {tuple(costs.shape)} for {len(dataset)} items"
        )
    costs = costs.cpu().to(torch.float64 if costs.is_floating_point() else torch.int64)
    wrong = ~((costs > 0) & (costs < torch.inf))
    if bool(wrong.any()):
        item = int(wrong.int().argmax())
        raise ValueError(
            f"cost: {field!r} of {kind(dataset)} must be positive and finite, got {costs[item].item()} for item {item}"
        )
    return costs
