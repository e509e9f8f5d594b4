"""Re-indexing keeps a loader what it is, and refuses by name what it cannot follow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import FastLoader, Stream, TokenisedTexts, counting, numbers
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from framework.loaders import rebuild, reindex
from framework.loaders.labels import labels_of

subsets = st.integers(1, 30).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n))
)


@settings(max_examples=60, deadline=None)
@given(subsets, st.booleans())
def test_reindex_yields_exactly_the_items_asked_for(case, shuffle):
    n, indices = case
    got = numbers(reindex(counting(n, shuffle=shuffle), indices))
    assert sorted(got) == sorted(indices)
    if not shuffle:
        assert got == indices


@settings(max_examples=60, deadline=None)
@given(subsets, st.data())
def test_reindexing_twice_is_indexing_the_indices(case, data):
    n, outer = case
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), min_size=1))
    loader = reindex(reindex(counting(n), outer), inner)
    assert numbers(loader) == [outer[i] for i in inner]
    assert isinstance(loader.dataset.dataset, TensorDataset)  # one Subset, however many stages


def test_a_mask_is_a_set_of_indices():
    assert numbers(reindex(counting(5), torch.tensor([True, False, False, True, True]))) == [0, 3, 4]


def test_reindex_keeps_every_setting():
    def collate(items):
        return [torch.stack([x for (x,) in items])]

    def init(worker):
        return None

    loader = counting(
        20,
        batch_size=3,
        drop_last=True,
        num_workers=2,
        collate_fn=collate,
        pin_memory=True,
        timeout=7,
        worker_init_fn=init,
        multiprocessing_context="spawn",
        prefetch_factor=5,
        persistent_workers=True,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        in_order=False,
    )
    loader.note = "a user's own attribute"
    new = reindex(loader, range(10))
    names = "batch_size drop_last num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context "
    names += "prefetch_factor persistent_workers generator in_order note"
    for name in names.split():
        assert getattr(new, name) is getattr(loader, name), name
    assert type(new.sampler) is RandomSampler
    assert new.sampler.generator is loader.generator
    assert len(new) == 3
    assert len(loader) == 6, "the loader given must stay as it is"


def test_workers_serve_the_new_items_and_not_the_old():
    loader = counting(12, num_workers=1, persistent_workers=True)
    assert numbers(loader) == list(range(12))  # now it holds an iterator with live workers
    assert numbers(reindex(loader, [3, 1])) == [3, 1]
    assert numbers(loader) == list(range(12))


def test_same_generator_state_same_order():
    orders = [
        numbers(reindex(counting(50, shuffle=True, generator=torch.Generator().manual_seed(3)), range(25)))
        for _ in range(2)
    ]
    assert orders[0] == orders[1] != sorted(orders[0])


def test_shuffle_and_drop_last_can_be_replaced():
    loader = counting(10, shuffle=True, drop_last=True)
    assert numbers(reindex(loader, range(9), shuffle=False, drop_last=False)) == list(range(9))
    assert type(reindex(counting(10), range(9), shuffle=True).sampler) is RandomSampler


def test_without_batching():
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=None, shuffle=True)
    new = reindex(loader, [5, 2])
    assert new.batch_size is None
    assert sorted(int(x) for (x,) in new) == [2, 5]


def test_lists_of_indices_in_one_call_stay_lists():
    class ByList(Dataset):
        def __getitem__(self, i):
            assert isinstance(i, list)
            return torch.tensor(i)

        def __len__(self):
            return 9

    data = ByList()
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 2, False))
    new = DataLoader.__iter__(reindex(loader, [8, 0, 4]))
    assert [batch.tolist() for batch in new] == [[8, 0], [4]]


def test_weights_follow_their_items():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    loader = counting(5, sampler=WeightedRandomSampler(weights, 5))
    new = reindex(loader, [0, 3, 4])
    assert new.sampler.weights.tolist() == [0.0, 2.0, 0.0]
    assert numbers(new) == [3, 3, 3]  # as many draws as items, all on the only weight
    assert len(reindex(counting(5, sampler=WeightedRandomSampler(weights, 7)), [0, 3]).sampler) == 7


def test_a_subset_sampler_is_part_of_the_data():
    loader = counting(10, sampler=SubsetRandomSampler([9, 7, 5, 3]))
    new = reindex(loader, [0, 2])
    assert sorted(numbers(new)) == [5, 9]
    with pytest.raises(ValueError, match=r"indices must be in \[0, 4\), got 4"):
        reindex(loader, [4])


def test_a_distributed_sampler_keeps_its_rank_and_epoch():
    sampler = DistributedSampler(range(12), num_replicas=3, rank=1, shuffle=True, seed=5)
    sampler.set_epoch(2)
    new = reindex(counting(12, sampler=sampler), range(6)).sampler
    assert (new.num_replicas, new.rank, new.shuffle, new.seed, new.epoch, len(new)) == (3, 1, True, 5, 2, 2)


class ByParity(Sampler):
    """A batch sampler that knows how to follow its data set."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __iter__(self):
        yield [i for i, x in enumerate(self.items) if x % 2 == 0]
        yield [i for i, x in enumerate(self.items) if x % 2 == 1]

    def __len__(self):
        return 2

    def reindex(self, dataset, indices):
        assert len(dataset) == len(indices)
        return ByParity([self.items[i] for i in indices])


def test_a_batch_sampler_that_can_follow_is_honoured_and_another_refused_by_name():
    data = TensorDataset(torch.arange(10))
    new = reindex(DataLoader(data, batch_sampler=ByParity(list(range(10)))), [9, 2, 4, 1])
    assert [batch[0].tolist() for batch in new] == [[2, 4], [9, 1]]
    with pytest.raises(TypeError, match=r"shuffle cannot be set: ByParity"):
        reindex(new, [0], shuffle=False)
    Own = type("Own", (Sampler,), {"__iter__": lambda self: iter([[0, 1]]), "__len__": lambda self: 1})
    with pytest.raises(TypeError, match=r"Own cannot be re-indexed.*reindex\(dataset, indices\)"):
        reindex(DataLoader(data, batch_sampler=Own()), [0])
    with pytest.raises(TypeError, match="Own cannot be re-indexed"):
        reindex(DataLoader(data, batch_size=2, sampler=Own()), [0])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "must not be empty"),
        ([0, 5], r"must be in \[0, 5\), got 5"),
        ([-1], r"must be in \[0, 5\), got -1"),
        (torch.tensor([0.5]), "one-dimensional integers, got torch.float32"),
        (torch.tensor([[1]]), r"one-dimensional integers, got torch.int64 of shape \(1, 1\)"),
        (torch.zeros(5, dtype=torch.bool), "the mask has no True entry"),
        (torch.ones(4, dtype=torch.bool), "4 entries for 5 items"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        reindex(counting(5), indices)


def test_iterable_unsized_and_foreign_loaders_are_refused_by_name():
    with pytest.raises(TypeError, match="Stream is an IterableDataset"):
        reindex(DataLoader(Stream()), [0])
    with pytest.raises(TypeError, match="got list"):
        reindex([1, 2], [0])
    Unsized = type("Unsized", (Dataset,), {"__getitem__": lambda self, i: i})
    loader = DataLoader(Unsized(), sampler=[0, 1])
    with pytest.raises(TypeError, match="Unsized has no __len__"):
        reindex(loader, [0])


def test_rebuild_refuses_what_does_not_fit_together():
    loader = counting(4)
    with pytest.raises(ValueError, match="sampler or batch_sampler, not both"):
        rebuild(loader, sampler=[0], batch_sampler=[[0]])
    with pytest.raises(ValueError, match="new dataset needs a new sampler"):
        rebuild(loader, dataset=loader.dataset)
    with pytest.raises(ValueError, match="drop_last does not go with batch_sampler"):
        rebuild(loader, batch_sampler=[[0]], drop_last=True)
    with pytest.raises(ValueError, match="drop_last needs a loader with a batch_size"):
        rebuild(DataLoader(loader.dataset, batch_size=None), drop_last=True)


def test_rebuild_with_batches_of_ones_own():
    assert numbers(rebuild(counting(6), batch_sampler=[[5], [0, 1]])) == [5, 0, 1]


# -- Third-party loaders


def test_a_torch_geometric_loader_keeps_its_collater():
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    graphs = [
        Data(x=torch.full((i + 1, 1), float(i)), edge_index=torch.zeros(2, 1, dtype=torch.int64), y=i) for i in range(8)
    ]
    loader = GraphLoader(graphs, batch_size=2, follow_batch=["x"])
    new = reindex(loader, [7, 0, 3])
    assert type(new) is GraphLoader
    first, second = list(new)
    assert first.num_graphs == 2
    assert first.y.tolist() == [7, 0]
    assert first.x_batch.tolist() == [0] * 8 + [1]
    assert second.y.tolist() == [3]
    assert labels_of(new.dataset).tolist() == [7, 0, 3]


def test_a_dict_data_set():
    loader = DataLoader(TokenisedTexts(9), batch_size=2)
    batches = list(reindex(loader, [8, 1, 3]))
    assert [batch["input_ids"].flatten().tolist() for batch in batches] == [[8, 1], [3]]
    assert [batch["labels"].tolist() for batch in batches] == [[2, 1], [0]]


def test_a_loader_class_with_an_init_of_its_own():
    new = reindex(FastLoader(torch.arange(6)), [4, 5, 0])
    assert type(new) is FastLoader
    assert numbers(new) == [4, 5, 0]
