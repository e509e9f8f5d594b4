"""The callback under a stock trainer: what it refuses, what it only tells, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from callbacks.resumable import Resumable


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].flatten().tolist())
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(1),)] * 8)


def items(count=24):
    return TensorDataset(torch.arange(float(count))[:, None])


def fit(folder, loader, callback, seed=0, ckpt_path=None, epochs=2, **settings):
    seed_everything(seed, verbose=False)
    steps = ModelCheckpoint(folder, "step", every_n_train_steps=4, enable_version_counter=False)
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, **settings}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback, steps], **settings)
    net = Net()
    trainer.fit(net, loader, ckpt_path=ckpt_path)
    return net


@pytest.fixture
def checkpoint(tmp_path):
    """Of step 4, in the middle of an epoch of 6."""
    fit(tmp_path, DataLoader(items(), 4, shuffle=True), Resumable(), epochs=1, limit_train_batches=None)
    return tmp_path / "step.ckpt"


@pytest.mark.parametrize(
    ("loader", "seed", "message"),
    [
        (lambda: DataLoader(items(), 6, shuffle=True), 0, "the batch size of the train data is 6, but was 4"),
        (lambda: DataLoader(items(28), 4, shuffle=True), 0, "the number of train items is 28, but was 24"),
        (lambda: DataLoader(items(), 4, shuffle=True), 1, "seed_everything is 1, but was 0"),
        (lambda: DataLoader(Endless(), 4), 0, "IterableDataset"),
    ],
    ids=["batch size", "items", "seed", "iterable"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_from_the_middle_of_an_epoch_needs_the_run_it_is_from(checkpoint, loader, seed, message, strict):
    with pytest.raises(ValueError, match=message):
        fit(checkpoint.parent, loader(), Resumable(strict), seed, ckpt_path=checkpoint)


def test_the_rest_of_the_epoch_is_trained_and_no_more(checkpoint):
    whole = fit(checkpoint.parent / "whole", DataLoader(items(), 4, shuffle=True), Resumable()).seen
    assert len(whole) == 12
    rest = fit(checkpoint.parent, DataLoader(items(), 4, shuffle=True), Resumable(), ckpt_path=checkpoint)
    assert rest.seen == whole[4:]


def test_iterable_data_are_refused_or_told(tmp_path, caplog):
    with pytest.raises(ValueError, match="cannot be resumed: Endless is an IterableDataset"):
        fit(tmp_path, DataLoader(Endless(), 4), Resumable())
    with caplog.at_level("INFO"):
        net = fit(tmp_path, DataLoader(Endless(), 4), Resumable(strict=False), epochs=1)
    assert len(net.seen) == 2


def test_several_loaders_train_as_without_it(tmp_path):
    class Two(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    loaders = {"a": DataLoader(items(), 4), "b": DataLoader(items(), 4)}
    seed_everything(0, verbose=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[Resumable(strict=False)], logger=False,
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    net = Two()
    trainer.fit(net, loaders)
    assert len(net.seen) == 6


@pytest.mark.parametrize("settings", [{"overfit_batches": 2}, {"fast_dev_run": 3}, {"limit_train_batches": 0.5}])
def test_it_goes_with_what_shortens_an_epoch(tmp_path, settings):
    seen = fit(tmp_path, DataLoader(items(), 4, shuffle=True), Resumable(), **settings).seen
    if "overfit_batches" in settings:
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    else:
        assert len(seen) == (3 if "fast_dev_run" in settings else 6)
        assert seen[0] != [0, 1, 2, 3]


def test_it_leaves_the_owner_of_the_data_as_it_was(tmp_path):
    loader = DataLoader(items(), 4, shuffle=True)
    before = dict(vars(loader))
    fit(tmp_path, loader, Resumable())
    assert vars(loader) == before
