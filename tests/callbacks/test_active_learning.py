"""Active learning inside one fit, on modules and data that know nothing of it, under stock trainers."""

from __future__ import annotations

import csv
import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from strangers import Numbers, Recorder, Stream, trainer
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset, TensorDataset

from callbacks.active_learning import ActiveLearning
from framework.active.pool import LabelPool
from framework.commands.callbacks import RunCallback
from framework.errors import Paused
from framework.loaders import Partition, TrainPath
from framework.seeding import seed_epoch

COUNT = 40


class Data(LightningDataModule):
    """Points in the plane; the third column of x is the number of the item."""

    def __init__(self, count=COUNT, **options):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        x = torch.randn(count, 2, generator=g)
        y = (x.sum(1) > 0).long()
        self.train = TensorDataset(torch.cat([x, torch.arange(count)[:, None]], 1), y)
        self.train.words = [1 + i % 5 for i in range(count)]
        self.options = {"batch_size": 4, "shuffle": True, **options}

    def train_dataloader(self):
        return DataLoader(self.train, **self.options)

    def val_dataloader(self):
        return DataLoader(self.train, batch_size=40)


class Net(LightningModule):
    """A user's classifier with dropout, a scheduler, and a diary of the items that each epoch trained on."""

    monitor, mode = "val/accuracy", "max"

    def __init__(self, lr=0.05, dropout=0.3, plateau=False):
        super().__init__()
        torch.manual_seed(3)
        self.lr, self.plateau = lr, plateau
        self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
        self.seen: dict[int, list[int]] = {}
        self.looked = 0

    def forward(self, x):
        return self.net(x[:, :2])

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.setdefault(self.current_epoch, []).extend(x[:, 2].int().tolist())
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(1) == y).float().mean())
        self.log("val/epoch", float(self.current_epoch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if not self.plateau:
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
        # Lightning steps this one behind the callbacks of an epoch's end.
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/epoch"}}


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


disturbance = itertools.count(1)


def fit(*callbacks, module=None, data=None, ckpt_path=None, **options):
    """Fit in "another process": the global generators are anywhere."""
    module, data = module or Net(), data or Data()
    t = trainer(*callbacks, **{"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0, **options})
    torch.manual_seed(next(disturbance))
    t.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, t


def learner(**options):
    return ActiveLearning(**{"initial": 0.1, "budget": 6, "epochs_per_round": 2, "acquisition": "entropy", **options})


def rows():
    with open("active_learning.csv", newline="") as file:
        return list(csv.DictReader(file))


def differences(a, b):
    return [key for key in a if not torch.equal(a[key], b[key])]


# -- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["items", "words"])
def test_every_epoch_trains_on_exactly_what_has_been_bought(cost):
    active = learner(cost=cost)
    module, t = fit(active, max_epochs=6)
    acquired, costs = active.pool.acquired_round, active.pool.costs
    for epoch, seen in module.seen.items():
        assert sorted(seen) == (acquired.ge(0) & acquired.le(epoch // 2)).nonzero().squeeze(1).tolist()
    for round, target in enumerate([0.1 * costs.sum(), 6, 6]):
        bought = costs[acquired == round]
        assert target <= bought.sum() < target + costs.max()
    assert [int(row["epochs"]) for row in rows()] == [2, 4, 6]
    for round, row in enumerate(rows()):
        bought = acquired.ge(0) & acquired.le(round)
        assert float(row["cost"]) == costs[bought].sum()
        assert int(row["items"]) == bought.sum()
        assert float(row["share"]) == pytest.approx(costs[bought].sum() / costs.sum())
    assert float(rows()[-1]["val/accuracy"]) == t.callback_metrics["val/accuracy"]
    assert not any(name.startswith(("train", "active")) for name in rows()[0])
    assert Path("active_learning.png").stat().st_size > 1000


def test_it_buys_what_the_module_is_least_sure_of():
    class Constant(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    active = learner(acquisition="margin", budget=5)
    module, _ = fit(active, module=Constant(), max_epochs=3)
    p = module.eval()(Data().train.tensors[0]).softmax(1)
    lead = (p[:, 0] - p[:, 1]).abs()
    initial = active.pool.acquired_round == 0
    lead[initial] = torch.inf
    assert sorted(lead.argsort()[:5].tolist()) == (active.pool.acquired_round == 1).nonzero().squeeze(1).tolist()


def test_training_ends_with_the_pool_and_after_its_last_round():
    active = learner(budget=0.3)
    module, _ = fit(active, max_epochs=-1)
    assert len(module.seen) == 8  # 10 %, 40 %, 70 %, 100 %: two epochs each
    assert sorted(module.seen[7]) == list(range(COUNT))
    assert [float(row["share"]) for row in rows()] == [0.1, 0.4, 0.7, 1.0]
    whole = learner(initial=1.0)
    module, _ = fit(whole, max_epochs=-1)
    assert [len(seen) for seen in module.seen.values()] == [COUNT, COUNT]


def test_training_ends_at_max_cost_which_the_last_round_does_not_overshoot():
    active = learner(max_cost=12, budget=5)
    fit(active, max_epochs=-1)
    assert [int(row["items"]) for row in rows()] == [4, 9, 12]


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"target": 3.5, "metric": "val/epoch", "mode": "max"}, 6),  # measured: 1, 3, 5
        ({"target": 0.0}, 2),  # the module's own: accuracy
        ({"target": 1.5, "metric": "val/epoch", "mode": "min"}, 2),
    ],
)
def test_training_ends_at_the_target(options, epochs):
    module, _ = fit(learner(**options), max_epochs=-1)
    assert len(module.seen) == epochs


def test_a_round_cut_short_is_in_the_table():
    fit(learner(), max_epochs=3)
    assert [(row["round"], row["epochs"], row["items"]) for row in rows()] == [("0", "2", "4"), ("1", "3", "10")]


def test_without_further_epochs_nothing_is_scored(monkeypatch):
    looked = []
    monkeypatch.setattr("framework.active.scoring.PoolRunner.choose", lambda *_: looked.append(1))
    active = learner()
    fit(active, max_epochs=2)
    assert not looked
    assert active.round == 0


def test_loggers_get_the_counts(tmp_path):
    fit(learner(), max_epochs=4, logger=CSVLogger(tmp_path, name="", version=""))
    with open("metrics.csv", newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["active/round"]]
    counts = [[float(row[f"active/{name}"]) for name in ("round", "items", "cost", "share")] for row in logged]
    assert counts == [pytest.approx([0, 4, 4, 0.1]), pytest.approx([1, 10, 10, 0.25])]
    assert [row["epoch"] for row in logged] == ["1", "3"]
    assert set(learner().figures()) == set()


def test_a_trial_run_writes_nothing(tmp_path):
    fit(learner(epochs_per_round=1), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_an_earlier_round_are_not_taken_for_this_ones():
    with pytest.warns(UserWarning, match=r"epochs_per_round \(1\) is not a multiple of .*every_n_epoch \(3\)"):
        fit(learner(epochs_per_round=1), max_epochs=5, check_val_every_n_epoch=3)
    assert [row["val/epoch"] for row in rows()] == ["", "", "2.0", "", ""]


@pytest.mark.parametrize(
    ("epochs", "options", "message"),
    [
        (5, {}, "is not a multiple of epochs_per_round"),
        (2, {}, r"max_epochs \(2\) ends the run before its plan does: 7 rounds of 2 epochs take 14"),
        (6, {"max_cost": 0.5}, "4 rounds of 2 epochs take 8"),
    ],
)
def test_epochs_that_do_not_go_with_the_rounds_are_warned_of(epochs, options, message):
    with pytest.warns(UserWarning, match=message):
        fit(learner(**options), max_epochs=epochs, limit_train_batches=1)


# -- other callbacks --------------------------------------------------------------------------------------------------


class Patience(EarlyStopping):
    """Stops in the second epoch in which val/accuracy has not risen, as there is a first of each."""

    def __init__(self, **options):
        super().__init__("val/epoch", mode="min", patience=2, **options)


@pytest.mark.parametrize("when", [True, False], ids=["epoch end", "validation end"])
@pytest.mark.parametrize("last", [True, False])
def test_early_stopping_ends_the_round_and_begins_anew(last, when):
    active, stopping = learner(epochs_per_round=10), Patience(check_on_train_epoch_end=when)
    callbacks = [active, stopping] if last else [stopping, active]
    module, t = fit(*callbacks, max_epochs=9)
    # val/epoch rises from the second epoch of a round on: two bad ones, so three epochs a round.
    assert [len(module.seen[epoch]) for epoch in range(9)] == [4, 4, 4, 10, 10, 10, 16, 16, 16]
    assert stopping.wait_count == 0
    assert active.round == 2
    assert not any("RoundEnd" in type(each).__name__ for each in t.callbacks)


def test_early_stopping_that_had_fired_when_a_run_was_killed_still_ends_the_round_alone(tmp_path):
    class CommandLine(Callback):
        on_fit_start = RunCallback.on_fit_start
        cli = SimpleNamespace(place=SimpleNamespace(continued=False))

    def parts():
        saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
        return CommandLine(), learner(epochs_per_round=10), Patience(check_on_train_epoch_end=False), saver

    whole, resumed = parts(), parts()
    module, _ = fit(*whole, max_epochs=6, enable_checkpointing=True)
    again, _ = fit(*resumed, max_epochs=6, enable_checkpointing=True, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert list(again.seen) == [3, 4, 5]
    assert torch.equal(whole[1].pool.acquired_round, resumed[1].pool.acquired_round)
    assert differences(again.state_dict(), module.state_dict()) == []


def test_a_metric_that_is_not_finite_ends_the_training():
    class Diverged(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(float("nan" if self.current_epoch == 3 else 1)))

    module, _ = fit(
        learner(epochs_per_round=10), EarlyStopping("val/loss", patience=99), module=Diverged(), max_epochs=9
    )
    assert list(module.seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", [False, True])
def test_best_means_best_of_the_present_round(tmp_path, keep):
    best = ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="val/epoch", mode="min")  # the first of each round
    last = ModelCheckpoint(tmp_path / "last", "last", save_on_train_epoch_end=True, enable_version_counter=False)
    kept = {}

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            kept[trainer.current_epoch] = sorted(path.name for path in (tmp_path / "best").glob("*.ckpt"))

    active = learner(keep_round_checkpoints=keep)
    fit(best, last, Watch(), active, max_epochs=6, enable_checkpointing=True)
    assert Path(best.best_model_path).name == "epoch=4.ckpt"
    assert best.best_model_score == 4
    first, second, third = ([f"epoch={epoch}.ckpt"] for epoch in (0, 2, 4))
    assert kept[1] == kept[2] == first  # until the new round has saved one
    assert kept[3] == (first + second if keep else second)
    assert kept[5] == (first + second + third if keep else third)
    state = torch.load(tmp_path / "last" / "last.ckpt", weights_only=True)
    assert torch.equal(state["callbacks"]["ActiveLearning"]["pool"]["acquired_round"], active.pool.acquired_round)


def test_the_checkpoint_at_the_end_of_a_round_holds_what_has_just_been_bought(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    active = learner()
    fit(saver, active, max_epochs=3, enable_checkpointing=True)
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]["ActiveLearning"]
    assert torch.equal(state["pool"]["acquired_round"], active.pool.acquired_round)
    assert state["round"] == 1


# -- from scratch, and going on ---------------------------------------------------------------------------------------


class Weights(Callback):
    """Weights at the end of each epoch."""

    def __init__(self):
        self.after = {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.after[trainer.current_epoch] = {k: v.clone() for k, v in pl_module.state_dict().items()}


@pytest.mark.parametrize("plateau", [False, True])
def test_scratch_is_a_fresh_fit_on_the_labelled_set_to_the_bit(plateau):
    class Seeds(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seed_epoch(trainer, 0, trainer.current_epoch)

    class Labelled(Data):
        def train_dataloader(self):
            return DataLoader(Subset(self.train, (active.pool.acquired_round >= 0).nonzero().flatten()), **self.options)

    ours, theirs, on = Weights(), Weights(), Weights()
    active = learner(training="scratch")
    module, _ = fit(active, ours, module=Net(plateau=plateau), max_epochs=6)
    fresh, _ = fit(Seeds(), theirs, module=Net(plateau=plateau), data=Labelled(), max_epochs=2)
    assert fresh.seen[0] == module.seen[4]
    for epoch in range(2):
        assert differences(ours.after[4 + epoch], theirs.after[epoch]) == []
    fit(learner(), on, module=Net(plateau=plateau), max_epochs=6)
    assert differences(on.after[1], ours.after[1]) == []
    assert differences(on.after[5], ours.after[5]) != []


class Rates(Callback):
    """The learning rate of every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "exponents"),
    [
        ({}, [0, 1, 0, 1, 0, 1]),
        ({"restart_schedule": False}, [0, 1, 2, 3, 4, 5]),
        ({"training": "scratch"}, [0, 1, 0, 1, 0, 1]),
        ({"training": "scratch", "restart_schedule": False}, [0, 1, 0, 1, 0, 1]),
    ],
)
def test_schedules_begin_anew_with_a_round(options, exponents):
    rates = Rates()
    module, t = fit(learner(**options), rates, max_epochs=6)
    assert rates.seen == pytest.approx([0.05 * 0.9**exponent for exponent in exponents])
    moments = t.optimizers[0].state[module.net[0].weight]
    steps = [len(seen) for seen in module.seen.values()]
    last_round = steps[-2:] if options.get("training") == "scratch" else steps
    assert moments["step"] == sum(-(-count // 4) for count in last_round)  # moments are those of the weights


@pytest.mark.parametrize("save_on_train_epoch_end", [True, False])
@pytest.mark.parametrize("training", ["incremental", "scratch"])
def test_a_run_resumed_from_any_epoch_is_the_run_that_was_not(tmp_path, training, save_on_train_epoch_end):
    def parts():
        saver = ModelCheckpoint(
            tmp_path / "all", "{epoch}", save_top_k=-1, save_on_train_epoch_end=save_on_train_epoch_end
        )
        return learner(training=training, acquisition="bald", mc_samples=3), saver

    options = {"max_epochs": 6, "enable_checkpointing": True}
    whole, saver = parts()
    module, _ = fit(whole, saver, **options)
    table = Path("active_learning.csv").read_text()
    for epoch in range(6):
        again, saver = parts()
        resumed, _ = fit(again, saver, ckpt_path=tmp_path / "all" / f"epoch={epoch}.ckpt", **options)
        assert torch.equal(again.pool.acquired_round, whole.pool.acquired_round)
        assert again.history.rows == whole.history.rows
        if epoch < 5:
            assert Path("active_learning.csv").read_text() == table
        assert differences(resumed.state_dict(), module.state_dict()) == [], epoch
        assert resumed.seen == {e: seen for e, seen in module.seen.items() if e > epoch}


@pytest.mark.parametrize("by_hand", [False, True], ids=["last", "saved by hand"])
def test_more_epochs_or_money_continue_a_finished_run_as_if_it_had_not_ended(tmp_path, by_hand):
    def run(*, ckpt_path=None, max_epochs=8, max_cost=None):
        saver = ModelCheckpoint(tmp_path / f"{next(disturbance)}", "last", save_on_train_epoch_end=True)
        active = learner(max_cost=max_cost)
        module, t = fit(active, saver, max_epochs=max_epochs, enable_checkpointing=True, ckpt_path=ckpt_path)
        if by_hand and ckpt_path is None:
            t.save_checkpoint(saver.best_model_path)
        return active, module, saver.best_model_path or ckpt_path

    whole, module, _ = run()
    for options in ({"max_epochs": 4}, {"max_cost": 10}):
        first, _, saved = run(**options)
        assert first.round == 1
        idle, untrained, _ = run(ckpt_path=saved, **options)
        assert untrained.seen == {}  # it stays finished
        assert idle.round == 1
        more, continued, _ = run(ckpt_path=saved)
        assert torch.equal(more.pool.acquired_round, whole.pool.acquired_round)
        assert more.history.rows == whole.history.rows
        assert differences(continued.state_dict(), module.state_dict()) == []


def test_the_seed_of_the_run_decides(monkeypatch):
    def bought(**options):
        active = learner(**{"acquisition": "random", **options})
        fit(active, max_epochs=3)
        return active.pool.acquired_round.tolist()

    assert bought() == bought(seed=0)
    assert bought() != bought(seed=1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert bought() == bought(seed=1)
    # All arms begin with the same items.
    same = [[i for i, r in enumerate(bought(acquisition=name)) if r == 0] for name in ("random", "lc")]
    assert same[0] == same[1]


def test_validate_and_test_leave_the_run_alone(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/epoch", mode="min")
    active = learner()
    _, t = fit(active, best, max_epochs=6, enable_checkpointing=True)
    t.validate(datamodule=Data(), ckpt_path=best.best_model_path, verbose=False)
    assert len(active.history.rows) == 3


def test_a_checkpoint_of_other_data_or_without_a_snapshot_is_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(learner(), saver, max_epochs=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="the checkpoint's pool has 40 items, these data have 30"):
        fit(learner(), data=Data(30), max_epochs=3, ckpt_path=saver.best_model_path)
    with pytest.raises(ValueError, match="training: scratch goes back to the weights from before the first step"):
        fit(learner(training="scratch"), max_epochs=3, ckpt_path=saver.best_model_path)


# -- data and modules -------------------------------------------------------------------------------------------------


def test_labels_of_the_pool_reach_nobody():
    plain = learner(budget=5)
    fit(plain, max_epochs=3)
    data = Data()
    data.train.tensors[1][plain.pool.acquired_round == -1] = 999  # cross-entropy would fail on it
    data.val_dataloader = lambda: DataLoader(Data().train, batch_size=40)
    again = learner(budget=5)
    fit(again, data=data, max_epochs=3)
    assert torch.equal(plain.pool.acquired_round, again.pool.acquired_round)


def test_a_pool_of_a_partition_chooses_from_the_partition():
    data = Data()
    mine = [i for i in range(COUNT) if i % 3 == 0]
    path = TrainPath.on(data).add(Partition(mine))
    active = learner(budget=3)
    module, _ = fit(active, data=data, max_epochs=4)
    assert len(active.pool) == len(mine)
    assert set(module.seen[3]) == {mine[i] for i in active.pool.bought.tolist()}
    assert [type(stage).__name__ for stage in path.stages] == ["Partition"]


class Pairs(BatchSampler):
    """A stranger's batch sampler that can follow its data: batches of two neighbours."""

    def __init__(self, dataset):
        super().__init__(SequentialSampler(dataset), 2, False)
        self.dataset = dataset

    def __iter__(self):
        return (list(range(i, min(i + 2, len(self.dataset)))) for i in range(0, len(self.dataset), 2))

    def reindex(self, dataset, indices):
        return Pairs(dataset)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_last": True, "batch_size": 8},  # the first round has four items
        {"num_workers": 1},
        {"batch_size": 1, "shuffle": False, "batch_sampler": Pairs(range(COUNT))},
        {"batch_size": None, "shuffle": False, "sampler": BatchSampler(SequentialSampler(range(COUNT)), 3, False)},
        {"shuffle": False, "sampler": torch.utils.data.SubsetRandomSampler(range(10, 30))},
    ],
    ids=["drop_last", "workers", "batch sampler", "batches of the data set", "subset sampler"],
)
def test_loaders_of_all_kinds(options):
    active = learner(budget=3)
    module, _ = fit(active, data=Data(**options), max_epochs=4)
    allowed = (
        range(10, 30) if isinstance(options.get("sampler"), torch.utils.data.SubsetRandomSampler) else range(COUNT)
    )
    assert len(active.pool) == len(allowed)
    assert {allowed[i] for i in active.pool.bought.tolist()} == set(module.seen[3]) or options.get("drop_last")
    assert active.round == 1


@pytest.mark.parametrize(
    "name", ["random", "longest", "lc", "mnlp", "margin", "bald", "bald_mi", "submodular", "badge"]
)
def test_every_acquisition_function_buys(name):
    active = learner(acquisition=name, mc_samples=2, budget=4)
    module, _ = fit(active, max_epochs=3)
    assert 1 <= (active.pool.acquired_round == 1).sum() <= 4
    assert module.training


def test_core_set_buys_what_is_far_from_all_that_is_labelled():
    class Plane(Net):
        def acquisition_embedding(self, batch):
            return batch[0][:, :2]

    active = learner(acquisition="coreset", budget=1)
    fit(active, module=Plane(), max_epochs=3)
    x = Data().train.tensors[0][:, :2]
    first = active.pool.acquired_round == 0
    far = torch.cdist(x, x[first]).amin(1).argmax()
    assert (active.pool.acquired_round == 1).nonzero().flatten().tolist() == [int(far)]


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    Path("own_scores.py").write_text("def second(decisions):\n    return decisions.log_probs[:, 0, 1].exp()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    active = learner(acquisition="own_scores.second", budget=1)
    module, _ = fit(active, module=Net(lr=1e-9), max_epochs=3)
    p = module.eval()(Data().train.tensors[0]).softmax(1)[:, 1]
    p[active.pool.acquired_round == 0] = 0
    assert active.pool.acquired_round[p.argmax()] == 1


def test_max_pool_looks_at_some_items_only(monkeypatch):
    looked = []
    real = LabelPool.label
    monkeypatch.setattr(LabelPool, "label", lambda self, *a: (looked.append(a), real(self, *a)))
    active = learner(max_pool=7, budget=100)
    fit(active, max_epochs=3)
    assert len(looked[1][0]) == 7
    fit(learner(max_pool=7, budget=100, acquisition="bald"), max_epochs=3)
    assert torch.equal(looked[3][0], looked[1][0])  # drawn by seed and round


# -- people -----------------------------------------------------------------------------------------------------------


class Hidden(Data):
    """The same data without labels, but for the validation."""

    def __init__(self, given=()):
        super().__init__()
        self.truth = self.train.tensors[1].clone()
        unknown = [i for i in range(COUNT) if i not in given]
        self.train.tensors[1][unknown] = -1

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.train.tensors[0], self.truth), batch_size=40)


def answer(folder):
    """Fill in the true labels everywhere; the records of the latest round."""
    for file in sorted(Path(folder).glob("round_*.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            record["label"] = int(Data().train.tensors[1][record["id"]])
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def test_people_label_and_the_run_is_what_it_would_have_been(tmp_path):
    whole = learner()
    module, _ = fit(whole, max_epochs=6)
    Path("active_learning.csv").unlink()

    def go_on(ckpt_path=None):
        saver = ModelCheckpoint(tmp_path / "c", "last", save_on_train_epoch_end=True, enable_version_counter=False)
        active = learner(oracle="labels")
        module, _ = fit(active, saver, data=Hidden(), max_epochs=6, enable_checkpointing=True, ckpt_path=ckpt_path)
        return active, module, saver.best_model_path

    with pytest.raises(Paused, match=r"waiting for labels: 4 of 4 items in labels/round_000\.jsonl have none"):
        go_on()
    answer("labels")
    first, _, saved = go_on()
    assert "6 of 6 items in labels/round_001.jsonl" in str(first.paused)
    assert len(rows()) == 1
    with pytest.raises(Paused, match=r"round_001\.jsonl"):
        go_on(saved)
    records = answer("labels")
    assert all(record["suggestion"] in (0, 1) and record["score"] > 0 for record in records)
    assert [record["id"] for record in records] == (whole.pool.acquired_round == 1).nonzero().flatten().tolist()
    _, trained, saved = go_on(saved)
    assert list(trained.seen) == [2, 3]
    answer("labels")
    third, trained, _ = go_on(saved)
    assert third.paused is None
    assert torch.equal(third.pool.acquired_round, whole.pool.acquired_round)
    assert third.history.rows == whole.history.rows
    assert differences(trained.state_dict(), module.state_dict()) == []


def test_skipped_items_are_paid_for_and_not_trained_on(tmp_path):
    def go_on(ckpt_path=None):
        saver = ModelCheckpoint(tmp_path / "c", "last", save_on_train_epoch_end=True, enable_version_counter=False)
        active = learner(oracle="labels")
        module, _ = fit(active, saver, data=Hidden(), max_epochs=6, enable_checkpointing=True, ckpt_path=ckpt_path)
        return active, module, saver.best_model_path

    def skip(*ids):
        for file in Path("labels").glob("round_*.jsonl"):
            records = [json.loads(line) for line in file.read_text().splitlines()]
            for record in records:
                record["label"] = "[skip]" if record["id"] in ids else record["label"]
            file.write_text("".join(json.dumps(record) + "\n" for record in records))

    with pytest.raises(Paused):
        go_on()
    initial = [record["id"] for record in answer("labels")]
    skip(*initial)
    with pytest.raises(ValueError, match="oracle: all 4 items asked for in labels are skipped"):
        go_on()
    answer("labels")
    skip(initial[0])
    first, trained, saved = go_on()
    assert first.pool.bought.tolist() == sorted(initial)
    assert set(trained.seen[0]) == set(initial[1:])
    asked = [record["id"] for record in answer("labels")]
    skip(initial[0], *asked[:2])
    second, trained, saved = go_on(saved)
    assert second.pool.bought.tolist() == sorted([*initial, *asked])  # and none of them is asked for again
    assert set(trained.seen[2]) == {*initial, *asked} - {initial[0], *asked[:2]}
    answer("labels")
    _, trained, _ = go_on(saved)  # somebody could tell, after all
    assert set(trained.seen[4]) > {*initial, *asked}


def test_labels_that_are_there_already_are_the_first_round(tmp_path):
    active = learner(oracle="labels")
    fit(active, data=Hidden(given=[3, 5, 8]), max_epochs=4)
    assert active.paused is not None
    assert active.pool.bought.tolist() == [3, 5, 8]
    assert [path.name for path in Path("labels").glob("round*")] == ["round_001.jsonl"]
    with pytest.warns(UserWarning, match="oracle: every item of the train data has a label"):
        fit(learner(oracle="others"), max_epochs=2)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, r"budget must be positive \(units of cost, or below 1 a share of it\), got 0"),
        ({"budget": float("nan")}, "budget must be positive .* got nan"),
        ({"max_cost": -1}, "max_cost must be positive .* got -1"),
        ({"initial": 0}, r"initial must be a share in \(0, 1\], got 0"),
        ({"initial": 1.5}, r"initial must be a share in \(0, 1\], got 1.5"),
        ({"epochs_per_round": 0}, "epochs_per_round must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_pool": 0}, "max_pool must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"acquisition": "best"}, "acquisition must be one of random, longest, lc, mnlp, .*coreset.*, got 'best'"),
        ({"training": "warm"}, "training must be incremental or scratch, got 'warm'"),
        ({"mode": "up"}, "mode must be max, min or null, got 'up'"),
        ({"oracle": "labels", "oracle_format": "xml"}, "format must be jsonl or csv, got 'xml'"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        learner(**options)


class Regression(Net):
    def forward(self, x):
        return self.net(x[:, :2])[:, 0]


class Breaks(Net):
    def forward(self, batch):
        return self.net(batch["x"])


class NoMonitor(Net):
    monitor = None


class OneItemAtATime(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=None)


@pytest.mark.parametrize(
    ("options", "parts", "error", "message"),
    [
        (
            {},
            {"reload_dataloaders_every_n_epochs": 0},
            ValueError,
            "reload_dataloaders_every_n_epochs must be 1 .*got 0",
        ),
        ({}, {"module": Regression()}, TypeError, "Regression has no acquisition_scores, which ActiveLearning needs"),
        ({}, {"module": Breaks()}, TypeError, "Breaks has no acquisition_scores, .*failed on the inputs alone"),
        ({"cost": "tokens"}, {}, ValueError, "cost: TensorDataset has no attribute 'tokens'"),
        ({}, {"module": Recorder()}, TypeError, "Recorder has no acquisition_scores, which"),
        ({}, {"data": OneItemAtATime()}, TypeError, "batch_size=None and gives one item at a time"),
        ({"target": 0.9}, {"module": NoMonitor()}, ValueError, "target=0.9 needs metric, for NoMonitor has none"),
        ({"target": 0.9, "metric": "val/f1"}, {}, ValueError, "target=0.9 needs mode"),
        ({"target": 0.9}, {"limit_val_batches": 0}, ValueError, "needs val/accuracy, but this run has no validation"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(options, parts, error, message):
    module = parts.pop("module", None) or Net()
    with pytest.raises(error, match=message):
        fit(learner(**options), module=module, max_epochs=4, **parts)
    assert not getattr(module, "seen", None)


def test_iterable_data_are_refused_by_name():
    class Streamed(Data):
        def train_dataloader(self):
            return DataLoader(Stream())

    with pytest.raises(TypeError, match="Stream is an IterableDataset: its items cannot be chosen by index"):
        fit(learner(), data=Streamed(), max_epochs=4)


def test_bald_without_dropout_is_refused():
    class Dry(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))

    with pytest.raises(ValueError, match="'bald' compares passes with dropout, and Dry has no dropout layer"):
        fit(learner(acquisition="bald"), module=Dry(), max_epochs=4)


def test_a_target_that_nobody_measures_is_named():
    with pytest.raises(RuntimeError, match=r"target needs val/f1, which was not measured in .*: .*val/accuracy"):
        fit(learner(target=0.9, metric="val/f1", mode="max"), max_epochs=4)


def test_a_module_that_needs_no_model_for_its_choice_needs_no_scores():
    module = Recorder()
    active = ActiveLearning(acquisition="random", initial=0.1, budget=4, epochs_per_round=1)
    fit(active, module=module, data=Numbers(40, shuffle=True), max_epochs=3)
    assert [len(seen) for seen in module.seen] == [4, 8, 12]


def test_what_ends_the_run_is_said_once(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(learner(max_cost=4), max_epochs=4)
    assert [record.message for record in caplog.records if "ActiveLearning" in record.message] == [
        "ActiveLearning ends after round 0: max_cost=4 is reached"
    ]
