"""Batches gathered in one go are those that PyTorch makes item by item."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from framework.loaders import Items, TensorSubset, reindex
from framework.loaders.gathering import subset_of


def tensors(count: int = 12, columns: int = 2) -> TensorDataset:
    draw = torch.Generator().manual_seed(count)
    more = [torch.arange(count), torch.randn(count, 2, generator=draw, dtype=torch.float64) > 0]
    return TensorDataset(torch.randn(count, 2, 3, generator=draw).transpose(1, 2), *more[: columns - 1])


@given(columns=st.integers(1, 3), rows=st.lists(st.integers(0, 11), min_size=1, max_size=20), size=st.integers(1, 7))
def test_batches_equal_those_of_a_subset_to_the_bit(columns, rows, size):
    data = tensors(columns=columns)
    ours, peer = (list(DataLoader(kind(data, rows), size)) for kind in (TensorSubset, Subset))
    for batch, other in zip(ours, peer, strict=True):
        assert type(batch) is type(other) is list
        for column, same in zip(batch, other, strict=True):
            assert torch.equal(column, same)
            assert column.dtype == same.dtype
            assert column.stride() == same.stride()


def test_any_other_collate_function_sees_items():
    seen = []

    def collate(batch):
        seen.extend(batch)
        assert len(batch) == 2
        return batch[-1], batch[0:1]

    data = tensors()
    last, first = next(iter(DataLoader(TensorSubset(data, [3, 5, 7]), 2, collate_fn=collate)))
    for item, number in zip(seen, (3, 5), strict=True):
        assert isinstance(item, tuple)
        assert all(torch.equal(a, b) for a, b in zip(item, data[number], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(last, data[5], strict=True))
    assert isinstance(first, Items)
    assert len(first) == 1


def test_items_that_were_put_into_other_batches_are_stacked():
    items = TensorSubset(tensors(), [3, 5, 7]).__getitems__([0, 1, 2])
    expected = default_collate([tensors()[5], tensors()[3]])
    made = default_collate([items[1], items[0]])
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    nested = default_collate([{"item": items[2]}, {"item": items[2]}])
    assert nested["item"][0].shape == (2, 3, 2)


def test_no_items_are_columns_without_rows():
    none = TensorSubset(tensors(), [3]).__getitems__([])
    assert len(none) == 0
    assert [tuple(column.shape) for column in none.columns] == [(0, 3, 2), (0,)]


def test_workers_serve_the_same():
    data = TensorSubset(tensors(), [8, 1, 4])
    assert pickle.loads(pickle.dumps(data)).indices == [8, 1, 4]
    ours, peer = (list(DataLoader(data, 2, num_workers=workers)) for workers in (1, 0))
    for batch, other in zip(ours, peer, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


class Own(TensorDataset):
    def __getitem__(self, index):
        return tuple(tensor[index] + 1 for tensor in self.tensors)


def test_only_plain_tensors_are_gathered():
    data = tensors()
    assert type(subset_of(data, [1])) is TensorSubset
    assert type(subset_of(Own(*data.tensors), [1])) is Subset
    loader = reindex(reindex(DataLoader(data, 2), [4, 2, 6]), [2, 0])
    assert isinstance(loader.dataset, TensorSubset)
    assert loader.dataset.dataset is data  # reached in one step
    assert loader.dataset.indices == [6, 4]
    assert [batch[1].tolist() for batch in loader] == [[6, 4]]
    changed = reindex(DataLoader(Own(*data.tensors), 2), [4, 2])
    assert [batch[1].tolist() for batch in changed] == [[5, 3]]


class Missing(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise IndexError(index)


def test_other_data_are_left_alone():
    with pytest.raises(IndexError):
        next(iter(DataLoader(subset_of(Missing(), [0]), 1)))
