"""What a look at four examples finds: layers and losses that treat examples apart only by name."""

from __future__ import annotations

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from opacus.layers import DPLSTM
from strangers import trainer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from framework.privacy.dp_sgd import DPSGD


class Sequences(LightningDataModule):
    """Sequences of several lengths, padded with zeros."""

    def __init__(self, count=40):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 7, (count,), generator=g)
        x = torch.randn(count, 6, 4, generator=g) * (torch.arange(6)[None, :, None] < lengths[:, None, None])
        self.train = TensorDataset(x, lengths, torch.randint(0, 2, (count,), generator=g))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)


class Reader(LightningModule):
    """Packs padded sequences; ``how`` says who sorts them."""

    def __init__(self, how="packed", lstm=DPLSTM):
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        self.inner, self.memory, self.out = nn.Linear(4, 4), lstm(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x, lengths):
        rows = self.inner(x)
        if self.how == "padded":
            return self.out(self.memory(rows)[0].mean(1))
        if self.how == "packed":
            return self.out(self.memory(pack_padded_sequence(rows, lengths, True, enforce_sorted=False))[1][0][-1])
        order = lengths.argsort(descending=True)
        last = self.memory(pack_padded_sequence(rows[order], lengths[order], batch_first=True))[1][0][-1]
        return self.out(last[order.argsort()])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0], batch[1]), batch[2])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Points(LightningDataModule):
    def train_dataloader(self):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(40, 4, generator=g)
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)


class Mixed(Points):
    """Mixes examples where a batch is handed over."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [(batch[0] + batch[0].roll(1, 0)) / 2, batch[1]]


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Mixes(Net):
    on_after_batch_transfer = Mixed.on_after_batch_transfer


class Centred(nn.Module):
    """Keeps a mean of what it has seen."""

    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x


class Counted(nn.Module):
    """Counts steps, which tells nothing of what is in a batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return x


class Behind(Net):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def training_step(self, batch, batch_idx):
        return super().training_step([self.first(batch[0]), batch[1]], batch_idx)


def fit(module, data, mode="hooks"):
    dp = DPSGD(noise_multiplier=1.0, accountant="rdp", grad_sample_mode=mode)
    trainer(dp, max_epochs=1).fit(module, datamodule=data)
    return dp


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (lambda: Reader("packed"), Sequences, r"memory \(DPLSTM\) of Reader gets its sequences sorted by length"),
        (
            lambda: Reader("sorted"),
            Sequences,
            "layers of Reader do not see the examples .* in one order|no gradient per exa",
        ),
        (Mixes, Points, "the gradient of an example in Mixes.training_step depends on the other examples"),
        (Net, Mixed, "the gradient of an example in Net.training_step depends on the other examples"),
        (lambda: Behind(Centred(True)), Points, "the buffer first.mean of Behind is made of the examples"),
    ],
)
def test_what_only_looks_like_examples_is_refused(module, data, message, mode):
    module = module()
    before = [weight.clone() for weight in module.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(module, data(), mode)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not any(vars(weight) for weight in module.parameters())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize(
    ("module", "data"),
    [
        (lambda: Reader("padded"), Sequences),
        (lambda: Behind(Centred(False)), Points),
        (lambda: Behind(Counted()), Points),
    ],
)
def test_what_treats_examples_apart_is_checked_and_trains(module, data, mode):
    dp = fit(module(), data(), mode)
    assert dp.unchecked == ""
    assert dp.accountant.history == [(1.0, 8 / 40, 5)]
