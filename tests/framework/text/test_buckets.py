"""Length buckets: every item once, similar lengths together, and what Lightning and re-indexing do to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler, Subset, TensorDataset

from framework.loaders import reindex
from framework.text.buckets import LengthBuckets

lengths_of_items = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(torch.tensor)


def loader(lengths: torch.Tensor, **options) -> DataLoader:
    data = TensorDataset(torch.arange(len(lengths)))
    return DataLoader(data, batch_sampler=LengthBuckets(RandomSampler(data), lengths, **options))


@settings(deadline=None)
@given(lengths=lengths_of_items, batch_size=st.integers(1, 40), min_batches=st.integers(1, 12), random=st.booleans())
def test_every_item_comes_exactly_once(lengths, batch_size, min_batches, random):
    data = range(len(lengths))
    sampler = RandomSampler(data) if random else SequentialSampler(data)
    buckets = LengthBuckets(sampler, lengths, batch_size, min_batches)
    batches = list(buckets)
    assert sorted(i for batch in batches for i in batch) == list(data)
    assert len(batches) == len(buckets)
    assert max(map(len, batches)) == buckets.size <= batch_size
    assert len(batches) >= min(min_batches, len(lengths))
    if not random:
        flat = [int(lengths[i]) for batch in batches for i in batch]
        assert flat == sorted(flat)


def test_a_tiny_pool_makes_small_batches():
    assert [loader(torch.ones(n), batch_size=32, min_batches=10).batch_sampler.size for n in (1, 9, 10, 70, 7000)] == [
        *(1, 1, 1, 7, 32),
    ]


def test_little_is_padded():
    torch.manual_seed(0)
    lengths = torch.randint(1, 60, (2000,))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in loader(lengths, batch_size=32).batch_sampler)
    assert padded < 1.15 * int(lengths.sum())
    without = sum(
        int(lengths[batch].max()) * len(batch) for batch in loader(lengths, batch_size=32, noise=0).batch_sampler
    )
    assert without < padded


def test_the_global_generator_decides_the_order():
    lengths = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(0))
    buckets = loader(lengths, batch_size=8).batch_sampler

    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return list(buckets)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    shortest = [int(lengths[batch].min()) for batch in loader(lengths, batch_size=8, noise=0).batch_sampler]
    assert shortest != sorted(shortest), "batches come in random order"
    assert {frozenset(batch) for batch in drawn(1)} != {frozenset(batch) for batch in drawn(2)}


@settings(deadline=None)
@given(lengths=lengths_of_items, data=st.data())
def test_reindexing_follows(lengths, data):
    kept = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    again = data.draw(st.lists(st.integers(0, len(kept) - 1), min_size=1, unique=True))
    whole = loader(lengths, batch_size=4, min_batches=3)
    some = reindex(reindex(whole, kept), again)
    items = torch.cat([batch for (batch,) in some])
    assert sorted(items.tolist()) == sorted(kept[i] for i in again)
    assert len(some) == len(list(some))
    assert torch.equal(some.batch_sampler.lengths, lengths[kept][again])
    assert some.batch_sampler.is_random
    assert (some.batch_sampler.batch_size, some.batch_sampler.min_batches, some.batch_sampler.noise) == (4, 3, 0.1)


@settings(deadline=None)
@given(lengths=lengths_of_items, shuffle=st.booleans(), data=st.data())
def test_ranks_share_the_items_up_to_padding(lengths, shuffle, data):
    kept = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=2, unique=True)) if len(lengths) > 1 else [0]
    subset = Subset(range(len(lengths)), kept)
    ranks = []
    for rank in range(2):
        sampler = DistributedSampler(subset, 2, rank, shuffle=shuffle)
        buckets = LengthBuckets(sampler, lengths[kept], 3)
        assert buckets.is_random == shuffle
        ranks.append(list(buckets))
    assert len(ranks[0]) == len(ranks[1]), "no rank waits for the other's last batch"
    items = [sorted(i for batch in rank for i in batch) for rank in ranks]
    assert set(items[0]) | set(items[1]) == set(range(len(kept)))
    assert len(set(items[0]) & set(items[1])) <= len(kept) % 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "min_batches": 0}, "min_batches must be at least 1, got 0"),
        ({"batch_size": 1, "noise": -0.1}, "noise must be at least 0, got -0.1"),
        ({"batch_size": 1, "drop_last": True}, "drop_last must be False"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loader(torch.ones(3), **options)
