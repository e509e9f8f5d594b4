"""Seeded splits of a data set: one rule for every DataModule, with exact sizes and, if asked, equal class shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_shares(split: Sequence[float], field: str = "split") -> None:
    """Refuse shares that are not positive or do not sum to 1.

    Args:
        split: The shares, first to last.
        field: Name of the argument, for the message.

    Raises:
        ValueError: If a share is not positive or the sum differs from 1 by more than 1e-6.
    """
    if not split or min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(f"{field} must be positive shares that sum to 1, got {tuple(split)}")


def split_sizes(count: int, shares: Sequence[float], field: str = "split") -> list[int]:
    """Whole sizes nearest to the shares (largest remainders first) that sum to ``count``.

    Args:
        count: Number of items, at least 1 per share.
        shares: Positive shares that sum to 1.
        field: Name of the argument, for the message.

    Returns:
        One size per share, each at least 1.

    Raises:
        ValueError: If the shares are wrong or one of them is too small for a single item.
    """
    check_shares(shares, field)
    sizes = [int(count * share + 1e-9) for share in shares]
    remainders = [count * share - size for share, size in zip(shares, sizes)]
    for part in sorted(range(len(shares)), key=lambda part: -remainders[part])[: count - sum(sizes)]:
        sizes[part] += 1
    if min(sizes) < 1:
        raise ValueError(f"{field}={tuple(shares)} leaves a part of {count} items empty; every part needs one item")
    return sizes


def split_indices(count: int, shares: Sequence[float], seed: int, labels: Tensor | None = None) -> list[Tensor]:
    """Split ``range(count)`` at random into disjoint parts of exact sizes.

    Args:
        count: Number of items.
        shares: Positive shares that sum to 1, one per part.
        seed: Seed of the order; equal arguments give equal parts on every machine.
        labels: Class of each item, shape ``(count,)``. If given, the split is stratified: every class has in every part
            its share, to within about one item, while the sizes of the parts stay exact.

    Returns:
        One sorted int64 tensor of indices per share.

    Raises:
        ValueError: If the shares are wrong, a part would be empty, or ``labels`` has another length.
    """
    import torch

    sizes = split_sizes(count, shares)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        if len(labels) != count:
            raise ValueError(f"labels must have one entry per item: {len(labels)} labels for {count} items")
        # Members of a class get evenly spaced positions in (0, 1); cutting the merged order cuts every class alike.
        position = torch.empty(count, dtype=torch.float64)
        for label in labels.unique():
            members = order[labels[order] == label]
            position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        order = order[position[order].argsort(stable=True)]
    ends = list(accumulate(sizes))
    return [order[end - size : end].sort().values for size, end in zip(sizes, ends)]
