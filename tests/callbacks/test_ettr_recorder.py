"""The recorder under a stock trainer: every step, validation and checkpoint once, and cheaply."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from callbacks.ettr_recorder import ETTRRecorder
from framework.reliability.ledger import ATTEMPT, MODULES, Ledger, read
from framework.reliability.measured import measure
from framework.rundir import ASSIGNED


class Net(LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail_at = fail_at

    def training_step(self, batch, i):
        if self.global_step == self.fail_at:
            raise RuntimeError("broken")
        return self.layer(batch[0]).sum()

    def validation_step(self, batch, i):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in (ATTEMPT, ASSIGNED, MODULES, "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def loader(batches=6):
    return DataLoader(TensorDataset(torch.ones(batches, 2)), batch_size=1)


def trainer(home, *callbacks, **options):
    settings = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"default_root_dir": home, "accelerator": "cpu", "enable_checkpointing": False}
    return Trainer(**{**settings, **options}, callbacks=[ETTRRecorder(), *callbacks])


def told(home, *names):
    events = read(home / "ledger.jsonl")
    return [(each["event"], each["step"]) for each in events if each["event"] in names]


def test_a_run_is_recorded_from_its_start_to_its_end(home):
    save = ModelCheckpoint(home / "kept", every_n_train_steps=4, save_top_k=-1, save_on_train_epoch_end=False)
    done = trainer(home, save, enable_checkpointing=True)
    done.fit(Net(), loader(), loader(2))
    assert told(home, "run", "step", "train_end") == [
        ("run", 0), *(("step", number) for number in range(1, 13)), ("train_end", 12),
    ]  # fmt: skip
    assert told(home, "validation_begin", "validation_end") == [
        (f"validation_{what}", step) for step in (6, 12) for what in ("begin", "end")
    ]  # not the sanity check
    assert told(home, "checkpoint_begin", "checkpoint_end") == [
        (f"checkpoint_{what}", step) for step in (4, 8, 12) for what in ("begin", "end")
    ]
    result = measure(home)
    assert result.complete
    assert result.steps == 12
    assert result.minutes("validation") > 0
    assert result.attempts[0].checkpoints == [4, 8, 12]
    assert "save_checkpoint" not in vars(done)


def test_a_step_of_several_batches_is_one(home):
    trainer(home, max_epochs=1, accumulate_grad_batches=3).fit(Net(), loader())
    assert told(home, "step") == [("step", 1), ("step", 2)]


def test_starts_without_a_supervisor_are_attempts(home):
    file = home / "kept.ckpt"
    first = trainer(home, max_epochs=1)
    first.fit(Net(), loader())
    first.save_checkpoint(file)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(home, max_epochs=2).fit(Net(fail_at=8), loader(), ckpt_path=file)
    trainer(home, max_epochs=2).fit(Net(), loader(), ckpt_path=file)
    result = measure(home)
    assert [(each.number, each.steps, each.last_step) for each in result.attempts] == [(0, 6, 6), (1, 2, 8), (2, 4, 12)]
    assert result.failures == 1
    assert result.steps == 12
    (exception,) = [each for each in read(home / "ledger.jsonl") if each["event"] == "exception"]
    assert (exception["kind"], exception["step"]) == ("RuntimeError", 8)


def test_a_supervisor_tells_where_and_which(home, monkeypatch):
    monkeypatch.setenv(ASSIGNED, str(home / "run"))
    monkeypatch.setenv(ATTEMPT, "5")
    monkeypatch.setenv(MODULES, str(home / "modules"))
    trainer(home, max_epochs=1).fit(Net(), loader())
    assert {each["attempt"] for each in read(home / "run/ledger.jsonl")} == {5}
    assert {"torch", "callbacks.ettr_recorder"} <= set((home / "modules").read_text().split())


@pytest.mark.parametrize("run", ["validate", "test", "fast"])
def test_what_is_no_training_leaves_no_ledger(home, run):
    if run == "fast":
        trainer(home, fast_dev_run=True).fit(Net(), loader())
    else:
        getattr(trainer(home), run)(Net(), loader(), verbose=False)
    assert not (home / "ledger.jsonl").exists()


def test_signs_alone_change_the_time_of_the_file(home):
    Ledger(home / "ledger.jsonl", 0).write("spawn")
    content = (home / "ledger.jsonl").read_bytes()
    os.utime(home / "ledger.jsonl", ns=(0, 0))
    signs = trainer(home, max_epochs=1)
    signs.callbacks[0] = ETTRRecorder(signs_only=True)
    signs.fit(Net(), loader())
    assert (home / "ledger.jsonl").stat().st_mtime_ns > 0
    assert (home / "ledger.jsonl").read_bytes() == content


def test_a_step_costs_less_than_fifty_microseconds(home):
    recorder = ETTRRecorder()
    recorder.ledger = Ledger(home / "ledger.jsonl", 0)
    stand_in = SimpleNamespace(global_step=0)
    best = float("inf")
    for _ in range(5):  # other processes may disturb some
        began = time.process_time()
        for _ in range(400):
            stand_in.global_step += 1
            recorder.on_train_batch_start(stand_in, None, None, 0)
            recorder.on_train_batch_end(stand_in, None, None, None, 0)
        best = min(best, (time.process_time() - began) / 400)
    assert best < 50e-6
