"""Passes over the pool: which dropout is on, that modes come back, and that batches and ranks change nothing."""

from __future__ import annotations

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import RunningStage, TrainerState
from strangers import counting
from torch import nn

from framework.active.acquisition import acquisition
from framework.active.decisions import Decisions
from framework.active.scoring import PoolRunner, batches_of, deciding, dropout_layers
from framework.seeding import derive


class WordDropout(nn.Module):
    """A user's own."""

    def forward(self, x):
        return x * (torch.rand_like(x) > 0.5) if self.training else x


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.rnn, self.dry = nn.LSTM(4, 4, num_layers=2, dropout=0.5), nn.LSTM(4, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5)
        self.own, self.frozen = WordDropout(), nn.Linear(1, 1)


def test_only_what_drops_is_in_training_mode_and_all_modes_come_back():
    tower = Tower().train()
    tower.frozen.eval()
    tower.encoder.dropout.eval()
    before = {name: layer.training for name, layer in tower.named_modules()}
    on = set()

    def fail():
        with deciding(tower, dropout=True):
            on.update(name for name, layer in tower.named_modules() if layer.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    inside = {"encoder", "encoder.self_attn", "encoder.dropout", "encoder.dropout1", "encoder.dropout2"}
    assert on == {"plain.2", "rnn", "own"} | inside
    assert {name: layer.training for name, layer in tower.named_modules()} == before
    with deciding(tower):
        assert not any(layer.training for layer in tower.modules())
    assert dropout_layers(nn.Sequential(nn.Linear(1, 1), nn.LSTM(1, 1))) == []


@pytest.mark.parametrize("name", ["plain", "rnn", "encoder", "own"])
def test_each_kind_of_dropout_really_drops(name):
    tower, x = Tower(), torch.randn(3, 2, 4)
    part = getattr(tower, name)
    x = x[0] if name in ("plain", "own") else x

    def out():
        found = part(x)
        return found[0] if isinstance(found, tuple) else found

    with torch.no_grad(), deciding(tower):
        assert torch.equal(out(), out())
    with torch.no_grad(), deciding(tower, dropout=True):
        assert not torch.equal(out(), out())
        mean = tower.plain[1].running_mean.clone()
        tower.plain(torch.randn(8, 4))
        assert torch.equal(tower.plain[1].running_mean, mean)  # batch norm learns nothing


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_layers_that_drop_nothing_do_not_count(rate):
    layers = [
        nn.Dropout(rate),
        nn.Dropout2d(rate),
        nn.MultiheadAttention(4, 2, dropout=rate),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=rate),
        nn.LSTM(2, 2, 2, dropout=rate),
    ]
    for layer in layers:
        assert bool(dropout_layers(layer)) == (rate > 0), type(layer).__name__


def test_batches_go_by_cost_and_hold_every_item_once():
    costs, indices = torch.tensor([5, 1, 9, 1, 5, 2]), torch.tensor([0, 1, 3, 4, 5])
    assert batches_of(indices, costs, 2) == [[0, 3], [4, 1], [2]]  # 5 5, 2 1, 1


class Noisy(LightningModule):
    """Logits of item i are (i / 10 - 0.5, 0), with dropout of i."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.drop = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x):
        self.modes.append(self.training or torch.is_grad_enabled() or not self.world.validating)
        x = self.drop(x.float())
        return torch.stack([x / 10 - 0.5, torch.zeros_like(x)], 1)


class World:
    """Stands for a trainer on one of several ranks; what the others have is added by the test."""

    def __init__(self, rank=0, size=1):
        self.global_rank, self.world_size, self.is_global_zero = rank, size, rank == 0
        self.precision_plugin, self.progress_bar_callback = Precision(), None
        self.state, self.strategy, self.root_device = TrainerState(), self, torch.device("cpu")

    validating = property(lambda self: self.state.stage == "validate", lambda self, on: self._enter(on))

    def _enter(self, on):
        self.state.stage = RunningStage.VALIDATING if on else None

    def batch_to_device(self, batch, dataloader_idx):
        return batch

    def reduce(self, tensor, reduce_op):
        assert reduce_op == "sum"
        return tensor


def run(name, size=1, batch_size=3, count=20, indices=None):
    """Scores as a number of ranks find them together."""
    costs = 1 + torch.arange(count) % 4
    how = acquisition(name, mc_samples=5)
    indices = torch.arange(0, count, 2) if indices is None else indices
    parts = []
    for rank in range(size):
        world = World(rank, size)
        module = Noisy(world)
        torch.manual_seed(rank)
        before = torch.rand(()), torch.manual_seed(rank)
        runner = PoolRunner(world, module, counting(count), costs, batch_size, seed=7)
        parts.append(runner.scores(how, indices))
        assert torch.rand(()) == before[0]  # the global generators are as if nothing had been drawn
        assert not any(module.modes)
        assert world.state.stage is None
        assert module.training
    assert all(((part != 0).sum() < len(indices)) for part in parts) or size == 1
    return torch.stack(parts).sum(0)


def test_scores_come_back_in_the_order_asked_for():
    logits = torch.arange(0, 20, 2) / 10 - 0.5
    expected = -torch.nn.functional.logsigmoid(logits.abs()).double()
    torch.testing.assert_close(run("mnlp"), expected, atol=1e-6, rtol=0)
    shuffled = torch.tensor([4, 0, 10])
    expected = -torch.nn.functional.logsigmoid((shuffled / 10 - 0.5).abs()).double()
    torch.testing.assert_close(run("mnlp", indices=shuffled), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["mnlp", "bald", "bald_mi"])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_number_of_ranks_finds_the_same_scores_to_the_bit(name, size):
    assert torch.equal(run(name, size), run(name))


def test_batches_change_nothing_without_dropout():
    torch.testing.assert_close(run("entropy", batch_size=1), run("entropy", batch_size=256), atol=1e-6, rtol=0)


def test_a_module_that_decides_for_other_than_its_items_is_refused():
    class Tokens(Noisy):
        def acquisition_scores(self, batch):
            logits = torch.zeros(2 * len(batch[0]), 1, 2).log_softmax(2)
            return Decisions(logits, logits.argmax(2), torch.ones(len(logits), 1, dtype=torch.bool))

    world = World()
    module = Tokens(world)
    runner = PoolRunner(world, module, counting(10), torch.ones(10), 3, seed=0)
    with pytest.raises(TypeError, match=r"Tokens has no acquisition_scores, .*: it gives 6 decisions for a batch of 3"):
        runner.scores(acquisition("lc"), torch.arange(10))


def test_suggestions_are_classes_or_the_classes_of_real_tokens():
    class Tagger(Noisy):
        def acquisition_scores(self, batch):
            items = batch[0]
            chosen = items[:, None] * torch.ones(1, 3, dtype=torch.int64)
            mask = torch.arange(3) < 1 + items[:, None] % 3
            return Decisions(torch.zeros(len(items), 3, 20), chosen, mask)

    world = World()
    module = Tagger(world)
    runner = PoolRunner(world, module, counting(10), 1 + torch.arange(10), 3, seed=derive(0))
    assert runner.suggestions(torch.tensor([4, 2, 9])) == [[4, 4], [2, 2, 2], [9]]
