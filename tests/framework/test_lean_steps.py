"""Lighter steps of Lightning do what its own do."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops import evaluation_loop, training_epoch_loop
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.utils.data import DataLoader

from framework import lean_steps
from framework.lean_steps import lighten, takes


class Watching(LightningModule):
    """Notes what Lightning calls the hook that runs, and what is set beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.names: list[str | None] = []
        self.set: list[str] = []

    def __setattr__(self, name, value):
        if "set" in self.__dict__:
            self.set.append(name)
        super().__setattr__(name, value)

    def training_step(self, batch):
        self.names.append(self._current_fx_name)
        return self.layer(batch).mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.names.append(self._current_fx_name)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: LightningModule) -> LightningModule:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(off, False))
    torch.manual_seed(0)
    with torch.no_grad():
        module.layer.weight.fill_(1)
    trainer.fit(module, DataLoader(torch.ones(4, 2), batch_size=2))
    return module


def test_a_fit_is_the_same_and_sees_the_names_of_its_hooks(monkeypatch):
    plain = fit(Watching())
    monkeypatch.setattr(LightningModule, "__setattr__", nn.Module.__setattr__)  # put back what follows
    monkeypatch.setattr(training_epoch_loop, "is_param_in_hook_signature", is_param_in_hook_signature)
    monkeypatch.setattr(evaluation_loop, "is_param_in_hook_signature", is_param_in_hook_signature)
    bare = fit(Watching())
    lighten()
    lighten()  # twice is once
    light = fit(Watching())
    assert light.names == bare.names == plain.names == ["training_step", "on_train_batch_end"] * 2
    assert light.set == bare.set  # a module's own way of setting attributes is asked as before
    assert torch.equal(light.layer.weight, bare.layer.weight)
    assert light._current_fx_name is None


def test_attributes_are_registered_as_before():
    lighten()
    module = LightningModule()
    module.weight = nn.Parameter(torch.ones(2))
    module.layer = nn.Linear(2, 2)
    assert set(dict(module.named_parameters())) == {"weight", "layer.weight", "layer.bias"}
    with pytest.raises(TypeError, match="cannot assign"):
        module.weight = 3
    del module.layer
    assert list(module.children()) == []
    module._current_fx_name = "fit"
    assert module._current_fx_name == "fit"


class Steps:
    def bare(self, batch): ...
    def by_name(self, batch, batch_idx): ...
    def by_place(self, batch, number): ...
    def whatever(self, *args): ...
    @staticmethod
    def static(batch, batch_idx): ...

    @functools.wraps(by_name)
    def wrapped(self, *args): ...


@pytest.mark.parametrize("name", [name for name in vars(Steps) if not name.startswith("_")])
def test_signatures_are_read_as_lightning_reads_them(name):
    for hook in (getattr(Steps(), name), getattr(Steps, name)):
        for explicit in (False, True):
            for least in (None, 2):
                expected = is_param_in_hook_signature(hook, "batch_idx", explicit=explicit, min_args=least)
                assert takes(hook, "batch_idx", explicit=explicit, min_args=least) is expected


def test_a_signature_is_read_once(monkeypatch):
    read = []
    whole = inspect.getfullargspec
    monkeypatch.setattr(inspect, "getfullargspec", lambda fx: read.append(fx) or whole(fx))
    lean_steps._takes.cache_clear()
    for _ in range(3):
        assert takes(Steps().by_name, "batch_idx", min_args=2)
    assert len(read) == 1
