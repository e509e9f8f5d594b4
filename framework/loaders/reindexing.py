"""Re-indexing: the same DataLoader over some of its items, or with another order of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from framework.loaders.gathering import TensorSubset, subset_of

T = TypeVar("T")


@runtime_checkable
class Reindexable(Protocol):
    """A sampler or batch sampler that knows how to follow its data set when items are taken out of it."""

    def reindex(self, dataset: Any, indices: Sequence[int]) -> Any:
        """The same sampler for ``dataset``, whose item ``i`` was item ``indices[i]`` until now."""
        ...


def reindex(
    loader: DataLoader[Any],
    indices: Tensor | Iterable[int],
    *,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
) -> DataLoader[Any]:
    """The same loader over some of its items.

    Kept: the class and every attribute of the loader, batch size, ``drop_last``, workers, ``collate_fn``, pinning,
    timeout, ``worker_init_fn``, multiprocessing context, prefetching, generator, and the way of sampling: in order,
    shuffled, weighted (the kept items keep their weights), distributed, or a sampler with a method ``reindex``.
    A ``SubsetRandomSampler`` counts as part of the data: ``indices`` are positions among the items it lets through.

    Args:
        loader: Any map-style loader.
        indices: Positions in ``[0, items)`` in the order wanted, or a boolean mask of shape ``(items,)``. Never empty.
        shuffle: True or False replaces the way of sampling by a shuffled or an ordered one; None keeps it.
        drop_last: Replaces the loader's own if not None; needs a loader that makes its batches by size.

    Returns:
        A new loader; the one given is not changed.

    Raises:
        TypeError: If the loader cannot be re-indexed: iterable or unsized data, or a sampler that cannot follow.
        ValueError: If ``indices`` are empty or out of range.
    """
    dataset = _map_style(loader)
    sampler = _innermost(loader)
    batch_sampler: Any = loader.batch_sampler
    own_batches = batch_sampler is not None and not _is_plain(batch_sampler, BatchSampler)
    for field, value in (("shuffle", shuffle), ("drop_last", drop_last)):
        if own_batches and value is not None:
            raise TypeError(f"{field} cannot be set: {kind(batch_sampler)} makes the loader's batches by its own rule")
    if _is_plain(sampler, SubsetRandomSampler):
        kept = [int(sampler.indices[i]) for i in _checked(indices, len(sampler))]
    else:
        kept = _checked(indices, len(dataset))

    # A Subset of a Subset is flattened: items are reached in one step however many stages there are.
    subset: Subset[Any]
    if type(dataset) in (Subset, TensorSubset):
        subset = subset_of(dataset.dataset, [dataset.indices[i] for i in kept])
    else:
        subset = subset_of(dataset, kept)

    if own_batches and isinstance(batch_sampler, Reindexable):
        return rebuild(loader, dataset=subset, batch_sampler=batch_sampler.reindex(subset, kept))
    if shuffle is None:
        new = follow(sampler, subset, kept)
    else:
        new = RandomSampler(subset, generator=loader.generator) if shuffle else SequentialSampler(subset)
    if batch_sampler is None and isinstance(loader.sampler, BatchSampler):
        # batch_size=None: lists of indices go to the data set in one call; they are made as before.
        new = _replaced(_plain_batches(loader, loader.sampler), sampler=new)
    return rebuild(loader, dataset=subset, sampler=new, drop_last=drop_last)


def rebuild(
    loader: DataLoader[Any],
    *,
    dataset: Any = None,
    sampler: Any = None,
    batch_sampler: Any = None,
    drop_last: bool | None = None,
) -> DataLoader[Any]:
    """The same loader with another data set, sampler or batch sampler; everything else is kept.

    The loader is copied, not constructed anew, so a subclass stays what it is whatever its ``__init__`` asks for or
    drops (torch_geometric's builds its own ``collate_fn``).

    Args:
        loader: Any map-style loader.
        dataset: New data set. Needs a ``sampler`` or ``batch_sampler`` beside it, because the old one counts the old
            items.
        sampler: New order of items; the batches are made as before, of the same size.
        batch_sampler: New batches of indices, instead of ``sampler``.
        drop_last: Replaces the loader's own if not None.

    Returns:
        A new loader without iterator or worker processes; the one given is not changed.

    Raises:
        TypeError: If the loader is not map-style, or ``sampler`` is given and its batches do not come from a sampler.
        ValueError: If the arguments do not fit together.
    """
    old = _map_style(loader)
    if sampler is not None and batch_sampler is not None:
        raise ValueError("give sampler or batch_sampler, not both")
    if dataset is not None and sampler is None and batch_sampler is None:
        raise ValueError("a new dataset needs a new sampler or batch_sampler: the old one counts the old items")
    state: dict[str, Any] = {"_iterator": None, "_IterableDataset_len_called": None}
    if dataset is not None:
        state["dataset"] = dataset
    if batch_sampler is not None:
        if drop_last is not None:
            raise ValueError("drop_last does not go with batch_sampler, which makes its own batches")
        state |= {"batch_sampler": batch_sampler, "batch_size": None, "drop_last": False}
        # Not iterated, but others read it: Lightning, to see whether the loader is shuffled or distributed.
        state["sampler"] = SequentialSampler(old if dataset is None else dataset)
    elif sampler is not None:
        state["sampler"] = sampler
        if loader.batch_sampler is not None:
            batches = _plain_batches(loader, loader.batch_sampler)
            drop_last = batches.drop_last if drop_last is None else drop_last
            state["batch_sampler"] = _replaced(batches, sampler=sampler, drop_last=drop_last)
            state["batch_size"] = batches.batch_size
    elif drop_last is not None and loader.batch_sampler is not None:
        batches = _plain_batches(loader, loader.batch_sampler)
        state["batch_sampler"] = _replaced(batches, drop_last=drop_last)
    if drop_last is not None:
        if state.get("batch_sampler", loader.batch_sampler) is None:
            raise ValueError("drop_last needs a loader with a batch_size")
        state["drop_last"] = drop_last
    new = copy.copy(loader)
    # Lightning's notes on how the loader was made would let it rebuild the old one; without them it reads attributes.
    for note in ("__pl_saved_args", "__pl_saved_kwargs", "__pl_saved_arg_names", "__pl_saved_default_kwargs"):
        new.__dict__.pop(note, None)
    new.__dict__.pop("__dataset", None)
    new.__dict__.update(state)  # not setattr: torch forbids it after __init__, since iterators would not see it
    return new


def with_dataset(loader: DataLoader[Any], dataset: Any) -> DataLoader[Any]:
    """The same loader over another data set of the same length, such as one that shows the same items differently.

    Args:
        loader: Any map-style loader.
        dataset: The data set; item ``i`` takes the place of item ``i``.

    Returns:
        A new loader; the one given is not changed.

    Raises:
        ValueError: If the lengths differ: samplers would go on counting the old items.
    """
    old = _map_style(loader)
    if len(dataset) != len(old):
        raise ValueError(f"{kind(dataset)} has {len(dataset)} items in place of {len(old)}")
    new = copy.copy(loader)
    new.__dict__.update({"_iterator": None, "_IterableDataset_len_called": None, "dataset": dataset})
    return new


def _map_style(loader: object) -> Any:
    """The data set of a loader whose items can be chosen by index; anything else is refused by name."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"a torch.utils.data.DataLoader is needed to choose its items by index, got {kind(loader)}")
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{kind(dataset)} is an IterableDataset: its items cannot be chosen by index; "
            "use a map-style data set, with __getitem__ and __len__"
        )
    missing = [method for method in ("__getitem__", "__len__") if not hasattr(dataset, method)]
    if missing:
        raise TypeError(f"{kind(dataset)} has no {' and no '.join(missing)}, which choosing its items by index needs")
    return dataset


def _checked(indices: Tensor | Iterable[int], count: int) -> list[int]:
    """Indices as ints in ``[0, count)``, from any iterable of ints or from a boolean mask."""
    flat = torch.as_tensor(indices if isinstance(indices, Tensor) or hasattr(indices, "__array__") else list(indices))
    if flat.numel() == 0:
        raise ValueError("indices must not be empty: nothing would be left to train on")
    if flat.ndim != 1 or flat.is_floating_point() or flat.is_complex():
        raise ValueError(f"indices must be one-dimensional integers, got {flat.dtype} of shape {tuple(flat.shape)}")
    if flat.dtype == torch.bool:
        if len(flat) != count:
            raise ValueError(f"indices as a mask must have one entry per item: {len(flat)} entries for {count} items")
        if not flat.any():
            raise ValueError("indices must not be empty: the mask has no True entry")
        flat = flat.nonzero().squeeze(1)
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= count:
        raise ValueError(f"indices must be in [0, {count}), got {low if low < 0 else high}")
    return [int(i) for i in flat.tolist()]


def _innermost(loader: DataLoader[Any]) -> Any:
    """The sampler that chooses single items, under any plain batch samplers."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while _is_plain(sampler, BatchSampler):
        sampler = sampler.sampler
    return sampler


def follow(sampler: Any, dataset: Any, kept: list[int]) -> Any:
    """The same way of sampling from fewer items; what a batch sampler's ``reindex`` needs for the sampler inside it.

    Args:
        sampler: A sampler of torch, or one with a method ``reindex``.
        dataset: The new data set.
        kept: Which of the old items it holds, in its order.

    Returns:
        The sampler for ``dataset``.

    Raises:
        TypeError: If the sampler cannot follow.
    """
    if isinstance(sampler, Reindexable):
        return sampler.reindex(dataset, kept)
    if _is_plain(sampler, SubsetRandomSampler):
        return RandomSampler(dataset, generator=sampler.generator)
    if _is_plain(sampler, WeightedRandomSampler):
        whole = sampler.num_samples == len(sampler.weights)  # "as many as there are items" follows their number
        size = len(kept) if whole else sampler.num_samples
        return _replaced(sampler, weights=sampler.weights[torch.tensor(kept)], num_samples=size)
    if _is_plain(sampler, RandomSampler):
        whole = sampler._num_samples == len(sampler.data_source)
        return _replaced(sampler, data_source=dataset, _num_samples=None if whole else sampler._num_samples)
    if _is_plain(sampler, SequentialSampler):
        return _replaced(sampler, data_source=dataset)
    if _is_plain(sampler, DistributedSampler):
        new: DistributedSampler[Any] = DistributedSampler(
            dataset, sampler.num_replicas, sampler.rank, sampler.shuffle, sampler.seed, sampler.drop_last
        )
        new.set_epoch(sampler.epoch)
        return new
    raise TypeError(
        f"{kind(sampler)} cannot be re-indexed: it would go on counting the items that were there before; "
        "give it a method reindex(dataset, indices) that returns the sampler for the new data set, "
        "or let the loader shuffle by itself"
    )


def _plain_batches(loader: DataLoader[Any], batch_sampler: Any) -> BatchSampler:
    if isinstance(batch_sampler, BatchSampler) and _is_plain(batch_sampler, BatchSampler):
        return batch_sampler
    raise TypeError(
        f"{kind(batch_sampler)} cannot be re-indexed: it makes the batches of {kind(loader)} by a rule of its own; "
        "give it a method reindex(dataset, indices) that returns the batch sampler for the new data set, "
        "or let the loader make batches by batch_size"
    )


def _is_plain(sampler: Any, known: type) -> bool:
    """Whether a sampler is of a known class, or of a subclass of it that iterates as that class does."""
    return isinstance(sampler, known) and all(
        getattr(type(sampler), name) is getattr(known, name) for name in ("__iter__", "__len__")
    )


def _replaced(original: T, **attributes: Any) -> T:
    new = copy.copy(original)
    new.__dict__.update(attributes)
    return new


def kind(thing: Any) -> str:
    """What an error calls a loader, a sampler, a data set or a stage: the name of its class."""
    return type(thing).__name__
