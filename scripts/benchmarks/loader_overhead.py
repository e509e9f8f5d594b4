"""An epoch over half of a data set: a loader re-indexed by framework.loaders against a plain DataLoader of a Subset."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from framework.loaders import reindex

CASES = [{"items": 20_000, "batch_size": 128}, {"items": 100_000, "batch_size": 1024}]


def setup(items: int, batch_size: int, variant: str) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(items, 64, generator=generator), torch.arange(items))
    half = torch.randperm(items, generator=generator)[: items // 2].tolist()
    options: dict[str, Any] = {"shuffle": True, "generator": torch.Generator().manual_seed(1)}
    if variant == "plain":
        return DataLoader(Subset(data, half), batch_size, **options)
    return reindex(DataLoader(data, batch_size, **options), half)


def epoch(loader: DataLoader[Any]) -> list[int]:
    """Items seen, in order."""
    return [item for _, items in loader for item in items.tolist()]


def agree(ours: list[int], peer: list[int]) -> None:
    if ours != peer:
        raise ValueError(f"items differ: {len(ours)} and {len(peer)}")


VARIANTS = {"ours": epoch, "plain": epoch}
