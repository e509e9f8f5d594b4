"""FailureInjection under a stock trainer: where it strikes, once, and what the records hold by then."""

from __future__ import annotations

import copy
import errno
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader, TensorDataset

from callbacks import failure_injection
from callbacks.failure_injection import FailureInjection
from framework.errors import ConfigurationError
from framework.reliability import ledger, strikes
from framework.rundir import ASSIGNED

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:FailureInjection .* without a supervisor"),
]

INJECTED = "injected by FailureInjection at step"


class Net(LightningModule):
    """A linear regression: a user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[str] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(f"train {self.global_step}")
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.seen.append(f"val {self.global_step}")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    """Four batches."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2)), batch_size=2)

    val_dataloader = train_dataloader


class Shown(Callback):
    def __init__(self):
        self.steps = 0

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.steps += 1


def trainer(folder, *callbacks, **options):
    settings = {"max_epochs": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1, **options}
    return Trainer(
        default_root_dir=folder, logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **settings,
    )  # fmt: skip


def fit(folder, *callbacks, net=None, ckpt_path=None, **options):
    made = trainer(folder, *callbacks, **options)
    made.fit(net or Net(), Data(), ckpt_path=ckpt_path)
    return made


def last(folder, **settings):
    return ModelCheckpoint(
        folder / "checkpoints", "last", save_top_k=1, enable_version_counter=False,
        **{"save_on_train_epoch_end": True, **settings},
    )  # fmt: skip


def events(folder):
    return [event for event in ledger.read(folder / ledger.FILE) if event["event"] == "failure"]


@pytest.fixture(autouse=True)
def _unsupervised(monkeypatch):
    for name in (ledger.ATTEMPT, ASSIGNED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def signals(monkeypatch):
    """Signals to this process are written down instead of sent."""
    sent = []

    def kill(pid, number):
        assert pid == os.getpid()
        sent.append(number)

    monkeypatch.setattr(strikes.os, "kill", kill)
    return sent


@pytest.mark.parametrize(
    ("during", "seen"),
    [
        # After the sanity check: validation comes after four steps, in every epoch, and then the checkpoint.
        ("step", ["val 0", "train 0", "train 1"]),
        ("optimizer", ["val 0", "train 0", "train 1", "train 2"]),
        ("validation", ["val 0", "train 0", "train 1", "train 2", "train 3"]),
        ("checkpoint", ["val 0", "train 0", "train 1", "train 2", "train 3", "val 4"]),
    ],
)
def test_it_strikes_where_it_is_told_to(tmp_path, during, seen):
    net, shown = Net(), Shown()
    at = 2 if during in ("step", "optimizer") else 4
    with pytest.raises(RuntimeError, match=f"{INJECTED} {at}"):
        fit(tmp_path, shown, FailureInjection("exception", at_steps=[2], during=during), last(tmp_path), net=net)
    assert net.seen == seen
    assert shown.steps == at + (during == "optimizer")  # zero_grad comes before the step that failed
    (event,) = events(tmp_path)
    assert (event["kind"], event["during"], event["step"], event["symptom"]) == ("exception", during, at, "exception")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_comes_through_all_its_failures_and_ends_where_it_would_have(tmp_path):
    whole = fit(tmp_path / "whole", last(tmp_path / "whole"))
    kinds = [("exception", "step"), ("cuda_error", "optimizer"), ("exception", "validation"), ("disk_full", None)]
    failed, folder, done = [], tmp_path / "run", None
    torch.manual_seed(0)
    first = Net().state_dict()
    while done is None:
        net = Net()
        net.load_state_dict(first)
        plans = [FailureInjection(kind, at_steps=[1, 5], during=during) for kind, during in kinds]
        found = folder / "checkpoints/last.ckpt"
        try:
            done = fit(folder, *plans, last(folder), net=net, ckpt_path=str(found) if found.exists() else None)
        except (RuntimeError, OSError) as error:
            failed.append(str(error).split(":")[0])
    assert sorted(failed) == sorted(["[Errno 28] No space left on device", "CUDA error"] * 2 + [
        f"{INJECTED} {step}" for step in (1, 4, 5, 8)
    ])  # fmt: skip
    assert [event["attempt"] for event in events(folder)] == list(range(8))
    assert done.global_step == whole.global_step == 8


def test_signals_by_the_clock_strike_from_outside_the_loop_and_stop_with_it(tmp_path, signals):
    class Sleep(Callback):
        def on_train_start(self, trainer, pl_module):
            until = time.monotonic() + 5
            while len(signals) < 3 and time.monotonic() < until:
                time.sleep(0.01)

    callback = FailureInjection("sigkill", mttf="20ms", during="anywhere", seed=1)
    fit(tmp_path, Sleep(), callback)
    count = len(signals)
    assert count >= 3
    assert set(signals) == {signal.SIGKILL}
    assert len(events(tmp_path)) >= count
    for each in threading.enumerate():
        if isinstance(each, threading.Timer):
            each.join(5)  # cancelled, or it finds that the fit is over
            assert not each.is_alive()
    assert len(signals) <= count + 1


@pytest.mark.parametrize("kind", ["sigterm", "sigstop"])
def test_other_signals(tmp_path, signals, kind):
    fit(tmp_path, FailureInjection(kind, mttf="0.001ms", max_failures=1))
    assert signals == [getattr(signal, kind.upper())]
    assert [event["step"] for event in events(tmp_path)] == [0]


def test_the_newest_checkpoint_is_cut_in_half_and_then_the_process_dies(tmp_path, signals):
    sizes = []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            sizes.extend(each.stat().st_size for each in tmp_path.rglob("last.ckpt"))

    fit(tmp_path, FailureInjection("corrupt_checkpoint", at_steps=[1, 6]), Look(), last(tmp_path))
    assert signals == [signal.SIGKILL] * 2  # the first found no checkpoint
    assert sizes[2] == sizes[0] // 2
    assert [event.get("file") for event in events(tmp_path)] == [None, "checkpoints/last.ckpt"]


def test_a_full_disk_is_one_in_the_middle_of_a_write(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt") as caught:
        fit(tmp_path, FailureInjection("disk_full", at_steps=[6]), last(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    fit(tmp_path, FailureInjection("disk_full", at_steps=[6]), last(tmp_path))  # and never again


def test_a_write_in_the_background_fails_there(tmp_path):
    io = AsyncCheckpointIO()
    with pytest.raises(OSError, match="No space left on device"):
        fit(tmp_path, FailureInjection("disk_full", at_steps=[6]), last(tmp_path), plugins=[io])
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert "save_checkpoint" not in vars(io.checkpoint_io)  # the writer is what it was


def test_nan_gradients_of_one_step_spoil_the_weights(tmp_path):
    net = Net()
    fit(tmp_path, FailureInjection("nan", at_steps=[3]), net=net)
    assert all(weight.isnan().all() for weight in net.parameters())
    (event,) = events(tmp_path)
    assert (event["step"], event["symptom"]) == (3, "not_finite")


def test_a_slow_process_is_slow_for_a_while(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(failure_injection.time, "sleep", slept.append)
    fit(tmp_path, FailureInjection("slow", at_steps=[3], slow_by="20ms", slow_steps=2))
    assert slept == pytest.approx([0.02, 0.02])


def test_a_hang_may_end(tmp_path):
    before = time.monotonic()
    assert fit(tmp_path, FailureInjection("hang", at_steps=[3], hang_for="0.3s")).global_step == 8
    assert time.monotonic() - before > 0.3


def test_it_warns_that_nobody_will_restart_the_run_unless_somebody_does(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"FailureInjection \(hang\) without a supervisor: nobody will restart"):
        fit(tmp_path, FailureInjection("hang", at_steps=[99]))
    monkeypatch.setenv(ledger.ATTEMPT, "0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, FailureInjection("hang", at_steps=[99]))
    assert not [each for each in caught if "supervisor" in str(each.message)]


@pytest.mark.parametrize(
    ("kind", "during", "options"),
    [("hang", "validation", {"limit_val_batches": 0}), ("disk_full", "checkpoint", {"enable_checkpointing": False})],
)
def test_it_warns_where_it_can_never_strike(tmp_path, kind, during, options):
    with pytest.warns(UserWarning, match=rf"\({kind}\) waits for a {during}, of which this trainer has none"):
        fit(tmp_path, FailureInjection(kind, at_steps=[1], during=during), **options)
    assert not (tmp_path / ledger.FILE).exists()


def test_several_writers_may_fail_one_after_the_other(tmp_path):
    plans = [FailureInjection(kind, at_steps=[2], during="checkpoint") for kind in ("disk_full", "exception")]
    with pytest.raises(RuntimeError, match=f"{INJECTED} 4"):
        fit(tmp_path, *plans, last(tmp_path))
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, *[FailureInjection(each.plan.kind, [2], during="checkpoint") for each in plans], last(tmp_path))
    done = fit(
        tmp_path, *[FailureInjection(each.plan.kind, [2], during="checkpoint") for each in plans], last(tmp_path)
    )
    assert done.global_step == 8


def test_a_rank_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rank must be below the number of processes \(1\), got 3"):
        fit(tmp_path, FailureInjection("hang", at_steps=[1], rank=3))
    assert issubclass(ConfigurationError, ValueError)


def test_a_trial_run_is_left_alone(tmp_path):
    fit(tmp_path, FailureInjection("exception", at_steps=[0]), fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_copies_share_their_failures_and_count_steps_over_all_their_fits(tmp_path):
    callback = FailureInjection("exception", at_steps=[11])
    assert fit(tmp_path, copy.deepcopy(callback)).global_step == 8
    with pytest.raises(RuntimeError, match=f"{INJECTED} 11"):  # the fourth step of the second fit
        fit(tmp_path, copy.deepcopy(callback))
    assert fit(tmp_path, FailureInjection("exception", at_steps=[11]), max_epochs=4).global_step == 16


def test_it_holds_no_state_in_checkpoints(tmp_path):
    done = fit(tmp_path, FailureInjection("slow", at_steps=[1], slow_by="1ms"), last(tmp_path))
    saved = torch.load(Path(done.checkpoint_callback.best_model_path), weights_only=True)
    assert not [key for key in saved["callbacks"] if "Failure" in key]
