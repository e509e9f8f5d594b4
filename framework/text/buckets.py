"""Batches of sentences of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler, SequentialSampler

from framework.loaders.reindexing import follow


class LengthBuckets(BatchSampler):
    """Batches of items of similar length, every item of the sampler exactly once.

    The sampler's items are sorted by length and cut into batches. Where the sampler gives a random order, lengths are
    first changed at random by up to the share ``noise`` and the batches come in random order, both by torch's global
    generator; where it gives a fixed order (``SequentialSampler``, or ``shuffle=False``), batches come from short to
    long. Lightning replaces the sampler by a distributed one, whose share of the items each rank then cuts for itself.

    Args:
        sampler: Gives positions in ``lengths``.
        lengths: Length of each item of the data set, shape ``(items,)``.
        batch_size: Most items of a batch, at least 1.
        min_batches: Batches shrink, down to one item, where there would be fewer than this: a tiny pool still makes
            enough steps. 1 keeps ``batch_size`` always.
        noise: Share of its length by which an item may be out of order, at least 0.
        drop_last: Must be False; Lightning wants the argument.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        lengths: Tensor,
        batch_size: int,
        min_batches: int = 1,
        noise: float = 0.1,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if min_batches < 1:
            raise ValueError(f"min_batches must be at least 1, got {min_batches}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if drop_last:
            raise ValueError("drop_last must be False: LengthBuckets drops nothing, the last batch is the shorter one")
        super().__init__(sampler, batch_size, drop_last=False)
        self.lengths, self.min_batches, self.noise = lengths, min_batches, noise

    @property
    def is_random(self) -> bool:
        """Whether the batches come in random order."""
        return not isinstance(self.sampler, SequentialSampler) and getattr(self.sampler, "shuffle", True)

    @property
    def size(self) -> int:
        """Items per batch, for as many items as the sampler has now."""
        return max(1, min(self.batch_size, len(self.sampler) // self.min_batches))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return ceil(len(self.sampler) / self.size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.tensor(list(self.sampler), dtype=torch.int64)
        key = self.lengths[order].double()
        if self.is_random and self.noise:
            key = key * (1 + self.noise * (2 * torch.rand(len(key), dtype=torch.float64) - 1))
        batches = order[key.argsort(stable=True)].split(self.size)
        turns = torch.randperm(len(batches)).tolist() if self.is_random else range(len(batches))
        for turn in turns:
            yield batches[turn].tolist()

    def reindex(self, dataset: Any, indices: Sequence[int]) -> LengthBuckets:
        """The same batches for ``dataset``, whose item ``i`` was item ``indices[i]`` until now."""
        kept = list(indices)
        sampler = follow(self.sampler, dataset, kept)
        return LengthBuckets(sampler, self.lengths[kept], self.batch_size, self.min_batches, self.noise)
