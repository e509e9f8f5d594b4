"""Seeds: equal for equal purposes, unrelated for others, and an epoch's draws hang on them alone."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from strangers import Numbers, Recorder, trainer
from torch.utils.data import DistributedSampler

from framework.seeding import derive, run_seed, seed_all, seed_epoch


def test_other_keys_give_other_seeds():
    purposes = [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", 0, 0), ("a", 1, 0), ("a", 0, 1), (0,), (0, 0), (1,)]
    seeds = [derive(seed, *keys) for seed in range(3) for keys in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive(1, "a", 2) == derive(1, "a", 2)
    assert derive(0, "epoch", 0, 3) == 13669009066972778404  # for ever: runs are resumed years later


def test_all_global_generators_are_seeded():
    def draw():
        return torch.rand(()).item(), np.random.rand(), random.random()

    seed_all(2**64 - 1)
    first = draw()
    assert draw() != first
    seed_all(2**64 - 1)
    assert draw() == first


def test_seed_of_the_run(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed() == 7


class Seeds(Callback):
    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def on_train_epoch_start(self, trainer, pl_module):
        seed_epoch(trainer, 0, trainer.current_epoch + self.shift)


class Drawing(Recorder):
    """Draws a number of each kind in each step, and before: a hook that must not shift the order of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        torch.rand(3)

    def training_step(self, batch, batch_idx):
        self.drawn += [torch.rand(()).item(), np.random.rand(), random.random()]
        return super().training_step(batch, batch_idx)


OWN = torch.Generator()
EPOCHS = DistributedSampler(range(12), num_replicas=1, rank=0)


@pytest.mark.parametrize(
    "loader",
    [{"shuffle": True}, {"shuffle": True, "num_workers": 1}, {"shuffle": True, "generator": OWN}, {"sampler": EPOCHS}],
    ids=["shuffled", "workers", "own generator", "own epochs"],
)
@pytest.mark.parametrize("reload", [0, 1])
def test_an_epoch_draws_the_same_first_later_and_after_a_resume(tmp_path, reload, loader):
    options = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": reload, "default_root_dir": tmp_path}
    saved = {**options, "enable_checkpointing": True}

    def fit(shift=0, ckpt_path=None, **options):
        torch.manual_seed(next(disturbance))  # where a process happens to be
        module = Drawing()
        t = trainer(Seeds(shift), **options)
        t.fit(module, datamodule=Numbers(12, **loader), ckpt_path=ckpt_path)
        return module, t

    disturbance = itertools.count(1)
    whole, _ = fit(**options)
    assert len({tuple(epoch) for epoch in whole.seen}) == 4
    assert sorted(whole.seen[1]) == list(range(12))
    later, _ = fit(shift=2, **options | {"max_epochs": 2})
    assert later.seen == whole.seen[2:]
    assert later.drawn == whole.drawn[2 * 9 :]
    _, half = fit(**saved | {"max_epochs": 2})
    resumed, _ = fit(ckpt_path=half.checkpoint_callback.best_model_path, **saved)
    assert resumed.seen == whole.seen[2:]
    assert resumed.drawn == whole.drawn[2 * 9 :]
