"""Poisson batches on the path of the train loader."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from strangers import counting
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from framework.loaders import World
from framework.privacy.pieces import Pieces, piece_sizes
from framework.privacy.sampling import PoissonBatches, PoissonSampler, steps_per_epoch
from framework.text.buckets import LengthBuckets


def test_each_item_is_in_a_batch_with_the_same_probability_independently():
    sampler = PoissonSampler(50, 16)  # 50 is no multiple of 16
    sampler.start(3, 0)
    drawn = torch.zeros(4000, 50)
    for step in range(len(drawn)):
        drawn[step, sampler.draw(step)] = 1
    rate = 16 / 50
    deviation = math.sqrt(rate * (1 - rate) / len(drawn))
    assert (drawn.mean(0) - rate).abs().max() < 4.5 * deviation
    assert drawn.sum(1).var() == pytest.approx(50 * rate * (1 - rate), rel=0.1)  # batches do not have one size
    pairs = torch.corrcoef(drawn.T) - torch.eye(50)
    assert pairs.abs().max() < 5 / math.sqrt(len(drawn))


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_out_the_batch_that_one_would_draw(size):
    alone = PoissonSampler(40, 10)
    ranks = [PoissonSampler(40, 10, World(rank, size)) for rank in range(size)]
    for step in range(20):
        shares = [rank.draw(step) for rank in ranks]
        assert sorted(chain(*shares)) == alone.draw(step)


def test_a_pass_goes_on_where_it_is_told_to():
    sampler = PoissonSampler(30, 6)
    first = list(sampler)
    assert len(first) == len(sampler) == steps_per_epoch(30, 6) == 5
    sampler.start(0, 2)
    assert list(sampler)[:3] == first[2:]
    sampler.start(1, 0)
    assert list(sampler) != first
    assert steps_per_epoch(31, 6) == 6


def test_an_empty_draw_is_stood_in_for_and_counted_as_empty():
    sampler = PoissonSampler(4, 1)
    empty = [step for step, batch in enumerate(sampler) if sampler.size(step) == 0]
    for step in range(4):
        assert sampler.size(step) == len(sampler.draw(step))
    sampler.start(0, 0)
    assert all(batch == [0] for step, batch in enumerate(sampler) if step in empty)
    assert any(not PoissonSampler(4, 1).draw(step) for step in range(30))


def test_the_stage_takes_size_and_data_of_the_loader():
    stage = PoissonBatches()
    loader = stage.apply(counting(40, shuffle=True), World())
    assert isinstance(loader.batch_sampler, PoissonSampler)
    assert (stage.sampler.items, stage.sampler.batch_size, stage.sampler.rate) == (40, 4, 0.1)
    assert PoissonBatches().expected_size(counting(40), World(0, 2)) == 8
    part = PoissonBatches(2).apply(
        DataLoader(TensorDataset(torch.arange(9)), batch_size=3, sampler=SubsetRandomSampler([1, 5, 7])), World()
    )
    assert set(chain(*(batch[0].tolist() for _ in range(9) for batch in part))) == {1, 5, 7}
    lengths = torch.arange(12)
    buckets = LengthBuckets(torch.utils.data.SequentialSampler(range(12)), lengths, 4)
    assert PoissonBatches().apply(DataLoader(lengths, batch_sampler=buckets), World()).batch_sampler.batch_size == 4


def test_pieces_are_the_batch_once():
    loader = PoissonBatches(20, max_physical_batch=3).apply(counting(40), World())
    for step, batch in enumerate(loader):
        assert isinstance(batch, Pieces)
        items = [int(i) for piece in batch for i in piece[0]]
        assert items == loader.batch_sampler.draw(step)
        sizes = [len(piece[0]) for piece in batch]
        assert max(sizes) <= 3
        assert sizes == piece_sizes(len(items), 3)
        assert max(sizes) - min(sizes) <= 1


class Graphs(DataLoader):
    pass


Graphs.__module__ = "torch_geometric.loader.dataloader"


@pytest.mark.parametrize(
    ("loader", "size", "message"),
    [
        (counting(10, sampler=WeightedRandomSampler(torch.ones(10), 10)), None, "WeightedRandomSampler .* draws"),
        (counting(10, sampler=torch.utils.data.RandomSampler(range(10), replacement=True)), None, "RandomSampler"),
        (counting(10, batch_size=None), None, r"DataLoader makes no batches \(batch_size=None"),
        (counting(10), 11, r"batch_size must be in \[1, 10\], the number of train examples, got 11"),
        (Graphs(torch.arange(4), batch_size=2), None, "Graphs makes batches of graphs"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(loader, size, message):
    with pytest.raises(ValueError, match=message):
        PoissonBatches(size).apply(loader, World())
