"""The order of items is a function of (seed, epoch), for every way of sampling, from any batch on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

from framework.loaders import TrainPath, World
from framework.loaders.resumable import Position, ResumableOrder
from framework.text.buckets import LengthBuckets

DATA = TensorDataset(torch.arange(23))


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return index, torch.rand(()).item()


class Secret(Sampler):
    """Draws from a generator that nobody can seed."""

    def __init__(self):
        self.hidden = torch.Generator()

    def __len__(self):
        return 23

    def __iter__(self):
        return iter(torch.randperm(23, generator=self.hidden).tolist())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(23))

    def __len__(self):
        return 23


WAYS = {
    "shuffled": lambda: DataLoader(DATA, 4, shuffle=True),
    "own generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=torch.Generator()),
    "in order": lambda: DataLoader(DATA, 4, drop_last=True),
    "weighted": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler(torch.arange(1.0, 24.0), 30)),
    "buckets": lambda: DataLoader(DATA, batch_sampler=LengthBuckets(RandomSampler(DATA), torch.arange(23), 4)),
    "no batches": lambda: DataLoader(DATA, batch_size=None, shuffle=True),
}


def batches(loader):
    return [batch[0].tolist() for batch in loader]


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_begun_anywhere_is_the_rest_of_the_whole(way):
    stage = ResumableOrder()
    stage.start(Position(7, 0))
    loader = stage.apply(WAYS[way](), World())
    first = batches(loader)
    loader.batch_sampler.set_epoch(1) if loader.batch_sampler else loader.sampler.set_epoch(1)
    second = batches(loader)
    assert len(first) == len(second) == len(loader)
    assert (first != second) == (way != "in order")
    again = ResumableOrder()
    for epoch, whole in enumerate((first, second)):
        for batch in (0, 1, 3, len(whole)):
            again.start(Position(7, epoch, batch))
            assert batches(again.apply(WAYS[way](), World())) == whole[batch:]
    again.start(Position(8, 1))
    assert (batches(again.apply(WAYS[way](), World())) != second) == (way != "in order")


def test_drawing_an_order_leaves_the_generators_as_they_were():
    stage = ResumableOrder()
    loader = stage.apply(WAYS["shuffled"](), World())
    before = torch.get_rng_state()
    stage.order.draw(0, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loader) == 6


def test_augmentation_is_the_same_with_and_without_workers_and_after_a_resume():
    def seen(workers, position):
        stage = ResumableOrder()
        stage.start(position)
        loader = stage.apply(DataLoader(Noise(), 4, shuffle=True, num_workers=workers), World())
        return [(index.tolist(), noise.tolist()) for index, noise in loader]

    whole = seen(0, Position(1, 2))
    assert seen(2, Position(1, 2)) == whole
    assert seen(0, Position(1, 2, 3)) == whole[3:]


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (lambda: DataLoader(Endless(), 4), "IterableDataset"),
        (lambda: DataLoader(DATA, 4, sampler=Secret()), "generators of its own"),
        (lambda: DataLoader(DATA, 4, sampler=iter(range(23))), "has no length"),
    ],
    ids=["iterable", "secret", "no length"],
)
def test_what_cannot_be_resumed_is_refused_or_told_by_name(loader, reason):
    with pytest.raises(ValueError, match=reason):
        ResumableOrder().apply(loader(), World())
    told = []
    given = loader()
    assert ResumableOrder(report=told.append).apply(given, World()) is given
    assert reason in told[0]


def test_the_slot_is_left_to_any_other_stage_whichever_comes_first():
    class Other(ResumableOrder):
        yields = False

    for ours_first in (True, False):
        path = TrainPath(type("Owner", (), {"train_dataloader": lambda self: WAYS["shuffled"]()})(), "train_dataloader")
        ours, other = ResumableOrder(), Other()
        for stage in (ours, other) if ours_first else (other, ours):
            path.add(stage)
        assert path.stages == (other,)
        path.remove(ours)
        assert path.has(other)
