"""Real processes: a run that is killed and goes on, and two ranks, by the command line."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
from every_config import OWN_FILES, one_of_each

from framework.cli import run

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["--threads", "1", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
QUIET += ["--trainer.accelerator", "cpu"]

#: A package of the user's: what ends a process in the middle of an optimiser step, and what shows the weights of each
#: rank.
MINE = """
import os, signal
import torch
from lightning.pytorch import Callback


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Show(Callback):
    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"rank{trainer.global_rank}.pt")


class ShowBought(Callback):
    def on_train_end(self, trainer, pl_module):
        (active,) = [each for each in trainer.callbacks if type(each).__name__ == "ActiveLearning"]
        torch.save(active.pool.acquired_round, f"bought{trainer.global_rank}.pt")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)  # the next test's is another file


def fulgurite(*args: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "framework.cli", *args, *QUIET]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def differences(a, b, at=""):
    """Where two checkpoints differ, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            yield from differences(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from differences(left, right, f"{at}[{i}]")
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield at


# What is left of the epoch in hand was lost. tests/framework/resuming has checkpoints from the middle of an epoch.
RESUMED = {
    "lds/wine": (25, ["--trainer.max_epochs", "4"]),
    "lds/knn_gcn_wine": (25, ["--trainer.max_epochs", "4"]),
    "classifier/digits": (50, ["--trainer.max_epochs", "4", "--model.dropout", "0.3"]),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_resumes_bit_identically(folder, name):
    step, options = RESUMED[name]
    command = ["fit", "-c", name, *options]
    whole = run([*command, *QUIET, "--trainer.default_root_dir", "whole"]).directory
    resumed = Path("runs", name, "0")

    killed = fulgurite(*command, "--trainer.callbacks+", "mine.Kill", "--trainer.callbacks.step", str(step))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < kept["global_step"] < step  # so that steps of the epoch in hand were lost
    assert not (resumed / "results.json").exists()

    done = fulgurite(*command, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    ours, theirs = (torch.load(home / "checkpoints/last.ckpt", weights_only=True) for home in (resumed, whole))
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert list(differences(ours[part], theirs[part], part)) == []
    stopping = [key for key in theirs["callbacks"] if key.startswith("EarlyStopping")]
    for key in stopping:
        assert list(differences(ours["callbacks"][key], theirs["callbacks"][key], key)) == []
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    ours, theirs = (json.loads((home / "results.json").read_text()) for home in (resumed, whole))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["checkpoint"] == theirs["checkpoint"]


ACTIVE = ["-c", "overlays/active_learning", "--trainer.callbacks.0.epochs_per_round", "2"]
SCRATCH = ["--trainer.callbacks.0.training", "scratch", "--trainer.callbacks.0.acquisition", "bald"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classifier/digits", []),
        ("classifier/digits", [*SCRATCH, "--model.dropout", "0.3"]),
        ("active_ner/btc", ["--trainer.callbacks.0.cost", "words", "--trainer.callbacks.0.acquisition", "bald"]),
    ],
    ids=["incremental", "scratch", "words"],
)
def test_a_killed_active_learning_run_buys_and_learns_what_it_would_have(folder, name, options, monkeypatch):
    make_tiny.everything(folder)
    monkeypatch.setenv("FULGURITE_DATA", str(folder))
    command = ["fit", "-c", name, *ACTIVE, *options]
    whole = run([*command, *QUIET, "--trainer.default_root_dir", "whole"])
    steps, whole = whole.trainer.global_step, whole.directory
    resumed = Path("runs", name, "0")

    killed = fulgurite(*command, "--trainer.callbacks+", "mine.Kill", "--trainer.callbacks.step", str(steps // 4))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < kept["global_step"] < steps // 4
    rounds = kept["callbacks"]["ActiveLearning"]["round"]
    assert 0 < rounds < 4
    assert len((resumed / "active_learning.csv").read_text().splitlines()) == 1 + rounds

    done = fulgurite(*command, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    ours, theirs = (torch.load(home / "checkpoints/last.ckpt", weights_only=True) for home in (resumed, whole))
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert list(differences(ours[part], theirs[part], part)) == []
    ours, theirs = (each["callbacks"]["ActiveLearning"] for each in (ours, theirs))
    assert list(differences(ours, theirs)) == []
    assert theirs["pool"]["acquired_round"].max() == 4
    for file in ("active_learning.csv", "active_learning.png", "metrics.csv"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    ours, theirs = (json.loads((home / "results.json").read_text()) for home in (resumed, whole))
    assert ours["metrics"] == theirs["metrics"]


@pytest.mark.parametrize("acquisition", ["bald", "badge"])
def test_two_ranks_buy_what_one_would_with_the_same_weights(folder, acquisition):
    still = ["--model.lr", "1e-30", "--model.dropout", "0.3"]  # weights stay what they are
    buying = ["--trainer.callbacks.0.acquisition", acquisition, "--trainer.callbacks.0.epochs_per_round", "1"]
    command = ["fit", "-c", "classifier/digits", *ACTIVE, *buying, *still, "--test_after_fit", "false"]
    alone = run([*command, *QUIET, "--trainer.default_root_dir", "alone"])
    (active,) = [each for each in alone.trainer.callbacks if type(each).__name__ == "ActiveLearning"]
    done = fulgurite(*command, "-c", "overlays/ddp", "--trainer.callbacks+", "mine.ShowBought")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(f"bought{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, active.pool.acquired_round)
    assert first.max() == 4
    tables = [
        (home / "active_learning.csv").read_text() for home in (alone.directory, Path("runs/classifier/digits/0"))
    ]
    counts = [[line.split(",")[:5] for line in table.splitlines()] for table in tables]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", one_of_each(1))
def test_two_ranks_end_with_the_same_weights_and_one_result(folder, name, monkeypatch):
    make_tiny.everything(folder)
    monkeypatch.setenv("FULGURITE_DATA", str(folder))
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--trainer.callbacks+", "mine.Show"]
    done = fulgurite("fit", "-c", name, *OWN_FILES.get(name, []), "-c", "overlays/ddp", *few)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert list(differences(first, second)) == []
    (directory,) = Path("runs", name).iterdir()
    metrics = json.loads((directory / "results.json").read_text())["metrics"]
    assert metrics.get("test/loss", 1) > 0  # a policy has none
    assert any(name.startswith("test/") for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    last = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] > 0
    assert list(differences(last["state_dict"], first)) == []


@pytest.mark.parametrize("overlay", [None, "overlays/active_learning", "overlays/differential_privacy"])
def test_a_strategy_for_several_ranks_takes_one(folder, overlay):
    """Lightning would split the loader among ranks even then; ours has been made for the rank already."""
    more = [] if overlay is None else ["-c", overlay]
    one = ["--trainer.devices", "1", "--trainer.max_epochs", "2", "--trainer.callbacks+", "mine.Show"]
    done = fulgurite("fit", "-c", "classifier/digits", "-c", "overlays/ddp", *more, *one)
    assert done.returncode == 0, done.stderr
    (directory,) = Path("runs/classifier/digits").iterdir()
    last = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] > 0
    assert list(differences(last["state_dict"], torch.load("rank0.pt", weights_only=True))) == []
