"""DP-SGD in a fit, under stock trainers, on modules and data that know nothing of it."""

from __future__ import annotations

import math
import warnings
from itertools import chain

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
)
from strangers import Stream, trainer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from framework.loaders import Partition, Pool, TrainPath
from framework.loaders.callback import StageCallback
from framework.privacy.accounting import epsilon_spent, history_to_lists, load_history, make_accountant, steps_taken
from framework.privacy.checks import check_trainer
from framework.privacy.dp_sgd import DPSGD


class Data(LightningDataModule):
    """Points with a class; the last column of x is the number of the item."""

    def __init__(self, count=60, batch_size=8, **options):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        x = torch.randn(count, 4, generator=g)
        y = (x.sum(1) > 0).long()
        self.train = TensorDataset(torch.cat([x, torch.arange(count)[:, None]], 1), y)
        self.options = {"batch_size": batch_size, "shuffle": True, **options}

    def train_dataloader(self):
        return DataLoader(self.train, **self.options)


class Net(LightningModule):
    """A user's classifier, with a diary of the batches it saw."""

    def __init__(self, lr=0.1, hidden=6):
        super().__init__()
        torch.manual_seed(3)
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.seen: list[list[int]] = []

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0][:, :4]), batch[1])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0][:, 4].int().tolist())
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(dp, module=None, data=None, *more, ckpt_path=None, **options):
    module = module or Net()
    t = trainer(dp, *more, **{"max_epochs": 1, **options})
    t.fit(module, datamodule=data or Data(), ckpt_path=ckpt_path)
    return module, t


def private(**options):
    return DPSGD(**{"noise_multiplier": 1.0, "accountant": "rdp", **options})


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


# -- what it does -----------------------------------------------------------------------------------------------------


class Flat(LightningModule):
    """A loss without a gradient: what moves the weights is noise."""

    def __init__(self, width=4000, lr=0.1):
        super().__init__()
        self.layer, self.lr = nn.Linear(4, width), lr

    def training_step(self, batch, batch_idx):
        return 0.0 * self.layer(batch[0][:, :4]).mean(1).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.parametrize(("count", "batch", "z"), [(400, 16, 2.0), (400, 64, 1.0), (800, 32, 4.0), (1600, 64, 1.0)])
def test_the_energy_of_an_update_is_that_of_the_noise_law(count, batch, z):
    module = Flat()
    before = weights(module)
    dp = private(noise_multiplier=z, max_grad_norm=3.0, check_loss=False)
    fit(dp, module, Data(count, batch))
    steps = math.ceil(count / batch)
    expected = steps * 0.1**2 * len(before) * (3.0 * z / batch) ** 2  # the denominator is b, also where N % b != 0
    assert float((weights(module) - before).square().sum()) == pytest.approx(expected, rel=0.05)
    assert dp.accountant.history == [(z, batch / count, steps)]


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("most", [None, 3])
def test_without_noise_it_is_sgd_on_clipped_gradients(mode, most):
    module, data = Net(), Data()
    expected = Net()
    dp = private(noise_multiplier=0.0, max_grad_norm=0.5, grad_sample_mode=mode, max_physical_batch=most, seed=7)
    fit(dp, module, data)
    sampler = dp.sampler
    for step in range(8):
        total = [torch.zeros_like(weight) for weight in expected.parameters()]
        for i in sampler.draw(step):
            loss = expected.loss([part[None] for part in data.train[i]])
            grads = torch.autograd.grad(loss, list(expected.parameters()))
            norm = torch.cat([g.flatten() for g in grads]).norm()
            for t, g in zip(total, grads, strict=True):
                t += g * min(1.0, float(0.5 / norm))
        with torch.no_grad():
            for weight, t in zip(expected.parameters(), total, strict=True):
                weight -= 0.1 * t / 8
    assert torch.allclose(weights(module), weights(expected), atol=1e-5)
    drawn = [sampler.draw(step) for step in range(8)]
    if most is None:
        assert module.seen == [batch or [0] for batch in drawn]
    else:  # in pieces, each item once, and one step per batch
        assert list(chain(*module.seen)) == list(chain(*(batch or [0] for batch in drawn)))
        assert max(map(len, module.seen)) <= 3
    assert steps_taken(dp.accountant) == 8


def test_without_noise_it_learns_what_plain_training_does_and_with_too_much_nothing():
    """64 steps on ten classes; what an older Opacus lost was the noise, in the optimizer's closure."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (2000,), generator=g)
    x = 2 * torch.randn(10, 16, generator=g)[y] + torch.randn(2000, 16, generator=g)

    class Ten(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(16, 10)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def accuracy(z):
        module, callbacks = Ten(), []
        if z is not None:
            callbacks = [private(noise_multiplier=z, max_grad_norm=10.0, seed=1)]
        t = trainer(*callbacks, max_epochs=2)
        t.fit(module, DataLoader(TensorDataset(x, y), batch_size=63, shuffle=True))
        assert t.global_step == 64
        return float((module.net(x).argmax(1) == y).float().mean())

    plain, clear, broken = accuracy(None), accuracy(0.0), accuracy(1000.0)
    assert plain > 0.9
    assert clear == pytest.approx(plain, abs=0.02)
    assert broken < 0.25


def test_the_module_is_as_it_was_and_fits_again():
    module, dp = Net(), private()
    keys = list(module.state_dict())
    _, t = fit(dp, module)
    assert t.global_step == 8
    assert list(module.state_dict()) == keys
    assert "training_step" not in vars(module)
    first = module.seen.copy()
    fit(dp, module)
    assert steps_taken(dp.accountant) == 16
    assert module.seen[8:] != first  # other batches
    fit(DPSGD(noise_multiplier=1.0, accountant="rdp"), module)
    plain = trainer(max_epochs=1)
    plain.fit(module, datamodule=Data())  # and without privacy
    assert not any(vars(weight) for weight in module.parameters())


class Fails(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            raise ZeroDivisionError


@pytest.mark.parametrize("options", [{}, {"max_physical_batch": 2}, {"grad_sample_mode": "ghost"}])
def test_a_fit_that_fails_leaves_nothing_behind(options):
    module, data = Net(), Data()
    with pytest.raises(ZeroDivisionError):
        fit(private(**options), module, data, Fails())
    assert not any(vars(weight) for weight in module.parameters())
    assert "training_step" not in vars(module)
    assert "train_dataloader" not in vars(data)
    fit(private(**options), module, data)


def test_rounds_of_their_own_spend_what_one_long_run_does():
    long = private()
    fit(long, max_epochs=4)
    lists, module, noises = history_to_lists(make_accountant("rdp")), Net(), []
    for _ in range(4):
        dp = private(accountant=load_history(make_accountant("rdp"), lists), log_epsilon=False)
        before = weights(module)
        _, t = fit(dp, module)
        noises.append(weights(module) - before)
        lists = history_to_lists(dp.accountant)
        assert "privacy/epsilon" not in t.callback_metrics
    assert lists == history_to_lists(long.accountant)
    assert epsilon_spent(dp.accountant, 1e-5) == long.epsilon_spent
    similar = torch.corrcoef(torch.stack(noises)) - torch.eye(4)
    assert similar.abs().max() < 0.9  # no noise twice


def test_epsilon_is_kept_and_logged():
    dp = DPSGD(epsilon=2.0, delta=1e-3, accountant="classic_rdp")
    _, t = fit(dp, max_epochs=3)
    assert t.global_step == 24
    assert 1.95 < dp.epsilon_spent <= 2.0
    assert float(t.callback_metrics["privacy/epsilon"]) == pytest.approx(dp.epsilon_spent)
    assert float(t.progress_bar_metrics["privacy/epsilon"]) == pytest.approx(dp.epsilon_spent, abs=1e-3)


@pytest.mark.parametrize("limits", [{"max_epochs": 50}, {"max_epochs": -1}, {"max_epochs": -1, "max_steps": 1000}])
def test_training_stops_at_the_last_step_within_the_budget(limits):
    dp = private(epsilon=3.0, delta=1e-3, accountant="classic_rdp")
    _, t = fit(dp, **limits)
    steps = steps_taken(dp.accountant)
    assert t.global_step == steps
    assert steps % 8  # within an epoch
    assert dp.epsilon_spent <= 3.0
    dp.accountant.step(noise_multiplier=1.0, sample_rate=8 / 60)
    assert dp.epsilon_spent > 3.0


def test_a_spent_budget_trains_nothing_more():
    accountant = make_accountant("rdp")
    for _ in range(500):
        accountant.step(noise_multiplier=1.0, sample_rate=8 / 60)
    module, t = fit(private(epsilon=3.0, accountant=accountant))
    assert t.global_step == 0
    assert torch.equal(weights(module), weights(Net()))


class Reloads(Data):
    """Has fewer examples in later epochs, each of which is then in a batch more often."""

    def train_dataloader(self):
        epoch = self.trainer.current_epoch
        return DataLoader(Subset(self.train, range(60 if epoch < 1 else 16)), **self.options)


class Prolongs(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.fit_loop.max_epochs = self.epochs


def test_data_that_shrink_do_not_pass_the_budget():
    dp = DPSGD(epsilon=2.0, delta=1e-3, accountant="rdp")
    _, t = fit(dp, data=Reloads(), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    assert 1.0 < dp.epsilon_spent <= 2.0
    assert steps_taken(dp.accountant) == t.global_step
    assert {round(rate, 3) for _, rate, _ in dp.accountant.history} <= {0.133, 0.5}


def test_a_plan_that_grows_does_not_pass_the_budget():
    dp = DPSGD(epsilon=2.0, delta=1e-3, accountant="rdp")
    _, t = fit(dp, None, None, Prolongs(9), max_epochs=2)
    assert 1.9 < dp.epsilon_spent <= 2.0
    assert 16 <= t.global_step < 72
    loose = DPSGD(epsilon=50.0, delta=1e-3, noise_multiplier=2.0, accountant="rdp")  # enough for all of it
    _, t = fit(loose, None, None, Prolongs(4), max_epochs=2)
    assert t.global_step == 32


def test_steps_that_the_budget_does_not_allow_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"min_steps and min_epochs ask for 400 steps, of which the budget .* allows"):
        fit(private(epsilon=3.0, delta=1e-3), max_epochs=50, min_epochs=50)


# -- resume -----------------------------------------------------------------------------------------------------------


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path, clipping):
    def start(epochs, ckpt_path=None):
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=8 if clipping == "flat" else 11)
        dp = DPSGD(epsilon=4.0, delta=1e-3, accountant="classic_rdp", clipping=clipping)
        options = {"enable_checkpointing": True, "max_epochs": epochs, "ckpt_path": ckpt_path}
        return dp, *fit(dp, Scheduled(), Data(), saver, **options), saver

    whole, module, _, _ = start(3)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == (3 if clipping == "flat" else 2)  # at the ends of epochs, and within them
    for file in files:
        kept = torch.load(file, weights_only=True)
        resumed, other, t, _ = start(3, str(file))
        assert steps_taken(resumed.accountant) == t.global_step == 24
        assert resumed.accountant.history == whole.accountant.history
        assert resumed.epsilon_spent == whole.epsilon_spent
        assert torch.equal(weights(module), weights(other))
        assert kept["callbacks"]["DPSGD"]["history"]["steps"] == [kept["global_step"]]


def test_a_run_that_began_without_privacy_cannot_go_on_with_it(tmp_path):
    saver = ModelCheckpoint(tmp_path, "plain", save_on_train_epoch_end=True)
    t = trainer(saver, max_epochs=1, enable_checkpointing=True)
    t.fit(Net(), datamodule=Data())
    with pytest.raises(ValueError, match="checkpoint has made 8 steps, of which 0 are accounted for"):
        fit(private(), ckpt_path=saver.best_model_path, max_epochs=2)


def test_two_runs_that_go_on_by_other_settings_draw_other_noise(tmp_path):
    """With the same noise, twice the one less the other would be free of it."""
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    start, _ = fit(private(), Flat(), None, saver, enable_checkpointing=True)

    def branch(**options):
        lr = options.pop("lr", 0.1)
        module, _ = fit(private(**options), Flat(lr=lr), ckpt_path=saver.best_model_path, max_epochs=2)
        return weights(module) - weights(start)

    same, again = branch(), branch()
    assert torch.equal(same, again)
    for options in ({"max_grad_norm": 2.0}, {"noise_multiplier": 2.0}, {"lr": 0.2}, {"batch_size": 9}):
        other = branch(**options)
        assert abs(float(nn.functional.cosine_similarity(same, other, dim=0))) < 0.1, options


def test_a_seed_that_was_known_stays_known(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(private(seed=1), None, None, saver, enable_checkpointing=True)
    later = private()
    fit(later, ckpt_path=saver.best_model_path, max_epochs=2)
    assert later.seeded
    assert not private().seeded


def test_a_loss_that_cannot_be_compared_is_told():
    dp = private()
    with pytest.warns(UserWarning, match="was not checked: Noisy.training_step, or the data, draw random numbers"):
        fit(dp, Noisy())
    assert dp.unchecked


def test_another_accountant_cannot_go_on(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(private(), None, None, saver, enable_checkpointing=True)
    with pytest.raises(ValueError, match="accountant classic_rdp cannot go on from a history of accountant rdp"):
        fit(private(accountant="classic_rdp"), ckpt_path=saver.best_model_path, max_epochs=2)


def test_more_epochs_on_a_resume_do_not_pass_the_budget(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(DPSGD(epsilon=2.0, accountant="rdp"), None, None, saver, enable_checkpointing=True)
    dp = DPSGD(epsilon=2.0, accountant="rdp")
    _, t = fit(dp, max_epochs=5, ckpt_path=saver.best_model_path)
    assert dp.epsilon_spent <= 2.0
    assert t.global_step <= 9


# -- data -------------------------------------------------------------------------------------------------------------


def test_empty_batches_are_steps_of_noise():
    module, data = Net(), Data(count=3, batch_size=1)
    dp = private(seed=0)
    _, t = fit(dp, module, data, max_epochs=10)
    sizes = [len(dp.sampler.draw(step)) for step in range(30)]
    assert 0 in sizes
    assert steps_taken(dp.accountant) == t.global_step == 30
    assert weights(module).isfinite().all()
    assert t.callback_metrics["train/loss"].isfinite()
    still = Net()
    fit(
        private(noise_multiplier=0.0, seed=0),
        still,
        Data(count=3, batch_size=1),
        limit_train_batches=1 + sizes.index(0),
    )
    assert len(still.seen[-1]) == 1  # item 0 stood in


def test_a_share_of_the_data_is_what_rate_and_batches_are_of():
    data, module = Data(), Net()
    TrainPath.on(data).add(Partition(range(20, 40)))
    dp = private(batch_size=5)
    fit(dp, module, data)
    assert {i for batch in module.seen for i in batch} <= set(range(20, 40))
    assert dp.accountant.history == [(1.0, 0.25, 4)]


def test_workers_and_pieces_and_bf16_and_adam_go_together():
    class Adam(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    module, dp = Adam(), private(max_physical_batch=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step")
        fit(dp, module, Data(num_workers=1), precision="bf16-mixed", max_epochs=2)
    assert steps_taken(dp.accountant) == 16
    assert weights(module).isfinite().all()


def test_fix_puts_group_norm_in_the_place_of_batch_norm():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

    with pytest.raises(ValueError, match=r"net.1 \(BatchNorm1d\) of Normed mixes .* set fix: true"):
        fit(private(), Normed())
    module, _ = fit(private(fix=True), Normed())
    assert type(module.net[1]) is nn.GroupNorm


class SkipsOne(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


@pytest.mark.parametrize("most", [None, 3])
def test_a_batch_with_nothing_to_learn_is_a_step_of_noise(most):
    dp = private(max_physical_batch=most)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*returned `None`")
        module, t = fit(dp, SkipsOne())
    assert t.global_step == steps_taken(dp.accountant) == 8
    assert weights(module).isfinite().all()


class Forces(Net):
    """Takes gradients in validation."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            x = batch[0][:, :4].clone().requires_grad_()
            loss = nn.functional.cross_entropy(self.net(x), batch[1])
            loss.backward()
        self.log("force", x.grad.norm())


def test_validation_may_take_gradients():
    data, dp = Data(), private()
    data.val_dataloader = data.train_dataloader
    _, t = fit(dp, Forces(), data, max_epochs=2, num_sanity_val_steps=1)
    assert float(t.callback_metrics["force"]) > 0
    assert steps_taken(dp.accountant) == 16


def test_choices_by_train_metrics_are_warned_of():
    with pytest.warns(UserWarning, match="EarlyStopping chooses by train/loss, .* not covered by the guarantee"):
        fit(private(), None, None, EarlyStopping("train/loss"))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a positive number, got 0"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), got 1"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\), got 0"),
        ({"noise_multiplier": None}, "give epsilon, .*, or noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be at least 0, got -1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0"),
        ({"max_grad_norm": [1.0]}, r"max_grad_norm must be one number with clipping: flat, got \[1.0\]"),
        ({"accountant": "gdp"}, "accountant must be one of prv, rdp, classic_rdp, got 'gdp'"),
        ({"clipping": "soft"}, "clipping must be one of flat, per_layer, adaptive, got 'soft'"),
        ({"grad_sample_mode": "ew"}, "grad_sample_mode must be one of hooks, ghost, got 'ew'"),
        ({"grad_sample_mode": "ghost", "clipping": "adaptive"}, "clipping must be flat with grad_sample_mode: ghost"),
        ({"loss_reduction": "none"}, "loss_reduction must be one of mean, sum, got 'none'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_physical_batch": 0}, "max_physical_batch must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1"),
        ({"target_quantile": 1.0}, r"target_quantile must be in \(0, 1\), got 1"),
        ({"clip_learning_rate": 0.0}, "clip_learning_rate must be positive, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        private(**options)


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Net):
    def configure_optimizers(self):
        return [torch.optim.SGD([weight], lr=0.1) for weight in self.parameters()]


class Newton(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(4, 4)


class Contrastive(Net):
    def loss(self, batch):
        x = self.net(batch[0][:, :4])
        return -(x @ x.T).log_softmax(1).diagonal().mean()


class MeanOfTokens(Net):
    """What taggers do: the mean over all the words of a batch."""

    def loss(self, batch):
        words = 1 + batch[0][:, 4] % 3
        each = nn.functional.cross_entropy(self.net(batch[0][:, :4]), batch[1], reduction="none")
        return (each * words).sum() / words.sum()


class Loose(Net):
    """Uses a weight, but not its layer."""

    def __init__(self):
        super().__init__()
        self.free = nn.Linear(4, 2)

    def loss(self, batch):
        x = batch[0][:, :4]
        return nn.functional.cross_entropy(self.net(x) + nn.functional.linear(x, self.free.weight), batch[1])


class Tied(Net):
    """Uses a weight in its layer, and outside."""

    def __init__(self):
        super().__init__()
        self.square = nn.Linear(4, 4)

    def loss(self, batch):
        x = batch[0][:, :4]
        return nn.functional.cross_entropy(self.net(self.square(x) + x @ self.square.weight), batch[1])


class Noisy(Net):
    """Draws random numbers of its own."""

    def loss(self, batch):
        x = batch[0][:, :4]
        return nn.functional.cross_entropy(self.net(x + 0.1 * torch.randn_like(x)), batch[1])


class Summed(Net):
    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0][:, :4]), batch[1], reduction="sum")


class Moves(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class StepsItself(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.optimizer.step()


class Layered(Net):
    """Has one more layer in front, of the kind that is tried."""

    def __init__(self, layer):
        super().__init__()
        self.first = layer

    def loss(self, batch):
        x = batch[0][:, :4]
        if isinstance(self.first, nn.Embedding):
            return nn.functional.cross_entropy(self.net(self.first((x > 0).long()).mean(1)), batch[1])
        x = self.first(x[:, None])[:, 0] if isinstance(self.first, nn.Conv1d) else self.first(x)
        return nn.functional.cross_entropy(self.net(x), batch[1])


class MovesData(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Streamed(Data):
    def train_dataloader(self):
        return DataLoader(Stream())


class Weighted(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, sampler=WeightedRandomSampler(torch.ones(60), 60))


class Grows(StageCallback):
    def __init__(self):
        super().__init__(Pool(range(30)))


@pytest.mark.parametrize(
    ("options", "parts", "error", "message"),
    [
        ({}, {"accumulate_grad_batches": 2}, ValueError, "accumulate_grad_batches must be 1 .* got 2"),
        ({}, {"gradient_clip_val": 1.0}, ValueError, "gradient_clip_val must be none .* got 1.0"),
        ({}, {"precision": "bf16-true"}, ValueError, "precision must be one of 32-true, .* got bf16-true"),
        ({}, {"overfit_batches": 2}, ValueError, "overfit_batches must be 0"),
        ({}, {"module": Manual()}, ValueError, "Manual optimises by hand"),
        ({}, {"module": TwoOptimizers()}, RuntimeError, "multiple optimizers is only supported with manual"),
        ({}, {"module": Newton()}, ValueError, "LBFGS of Newton looks at the data several times"),
        ({}, {"module": Recurrent()}, ValueError, r"memory \(LSTM\) of Recurrent has no gradient per example"),
        ({}, {"module": Contrastive()}, ValueError, "Contrastive.training_step depends on the other examples"),
        ({}, {"module": MeanOfTokens()}, ValueError, "MeanOfTokens.training_step depends on the other examples"),
        ({}, {"module": Loose()}, ValueError, "free.weight is used outside of its layer's forward"),
        ({}, {"module": Tied()}, ValueError, "the gradients per example of Tied do not add up to its gradient"),
        (
            {"grad_sample_mode": "ghost"},
            {"precision": "bf16-mixed"},
            ValueError,
            "32-true or 64-true .* got bf16-mixed",
        ),
        ({}, {"module": Summed()}, ValueError, "loss_reduction must be sum, got mean"),
        ({"loss_reduction": "sum"}, {}, ValueError, "loss_reduction must be mean, got sum"),
        (
            {},
            {"module": Layered(nn.Embedding(2, 4, max_norm=1.0))},
            ValueError,
            r"first \(Embedding\) .* set max_norm to",
        ),
        ({}, {"module": Layered(nn.Embedding(2, 4, scale_grad_by_freq=True))}, ValueError, "set scale_grad_by_freq to"),
        (
            {},
            {"module": Layered(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"))},
            ValueError,
            r"first \(Conv1d\) of Layered .* padding_mode='circular'",
        ),
        ({}, {"module": Layered(nn.LayerNorm(4, bias=False))}, ValueError, r"first \(LayerNorm\) .* set bias=True"),
        ({}, {"more": LearningRateFinder()}, ValueError, "LearningRateFinder does not go with .* without noise"),
        ({}, {"more": GradientAccumulationScheduler({0: 1})}, ValueError, "GradientAccumulationScheduler does not"),
        ({"max_physical_batch": 4}, {"data": MovesData()}, ValueError, "which MovesData.on_after_batch_transfer does"),
        ({}, {"module": StepsItself()}, RuntimeError, "StepsItself has not stepped through Lightning's"),
        ({"max_physical_batch": 2}, {"module": Moves()}, ValueError, "Moves.on_after_batch_transfer does not know"),
        ({}, {"data": Streamed()}, TypeError, "Stream is an IterableDataset"),
        ({}, {"data": Weighted()}, ValueError, "WeightedRandomSampler of the train loader draws"),
        ({"batch_size": 61}, {}, ValueError, r"batch_size must be in \[1, 60\], .* got 61"),
        ({"noise_multiplier": None, "epsilon": 1.0}, {"max_epochs": -1}, ValueError, "max_epochs or trainer.max_steps"),
        ({}, {"more": Grows(), "reload_dataloaders_every_n_epochs": 1}, ValueError, "does not go with Pool"),
    ],
)
def test_what_does_not_go_together_is_refused(options, parts, error, message):
    module, data, more = parts.pop("module", None) or Net(), parts.pop("data", None), parts.pop("more", None)
    before = weights(module).clone()
    with pytest.raises(error, match=message):
        fit(private(**options), module, data, *([more] if more else []), **parts)
    assert not any(vars(weight) for weight in module.parameters())
    if not isinstance(module, StepsItself):
        assert torch.equal(weights(module), before)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_forget_what_was_spent_are_refused(strategy):
    with pytest.raises(ValueError, match="got one that spawns or forks"):
        check_trainer(trainer(strategy=strategy, devices=2), Net(), False, False, False)


def test_sums_are_summed():
    module = Summed()
    fit(private(noise_multiplier=0.0, loss_reduction="sum", max_grad_norm=1e-3), module, limit_train_batches=1)
    assert 0 < (weights(module) - weights(Net())).norm() <= 0.1 * 1e-3 * len(module.seen[-1]) * 1.01


def test_a_loader_that_is_not_poisson_is_noticed():
    class Replaced(Callback):
        def on_train_start(self, trainer, pl_module):
            loop = trainer.fit_loop
            loop._combined_loader.flattened = [DataLoader(loop._combined_loader.flattened[0].dataset, batch_size=8)]

    module = Net()
    with pytest.raises(RuntimeError, match=r"replaced the sampler|not gone through the stages"):
        fit(private(), module, None, Replaced())
    assert not module.seen


def test_a_delta_that_is_too_large_is_warned_of():
    with pytest.warns(UserWarning, match=r"delta=0.02 is not below 1 / 60"):
        fit(private(delta=0.02))
