"""Differential privacy by the command line and its overlay, and what is left in the run directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import fails

from callbacks.differential_privacy import DifferentialPrivacy
from framework.cli import run
from framework.privacy.accounting import steps_taken

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
QUIET += ["--trainer.accelerator", "cpu"]
QUICK = ["--trainer.callbacks.0.accountant", "classic_rdp"]
DIGITS = ["fit", "-c", "classifier/digits", "-c", "overlays/differential_privacy", *QUICK, *QUIET]

MINE = """
import os, signal
from lightning.pytorch import Callback


class Kill(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 30:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


def fulgurite(*args):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "framework.cli", *args, "--threads", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_overlay_trains_a_classifier_and_reports():
    done = run([*DIGITS, "-c", "overlays/figures", "--trainer.max_epochs", "3"])
    (dp,) = [each for each in done.trainer.callbacks if isinstance(each, DifferentialPrivacy)]
    told = json.loads((done.directory / "privacy.json").read_text())
    assert told["budget"] == 3.0
    assert 2.9 < told["epsilon"] <= 3.0
    assert told["steps"] == done.trainer.global_step == steps_taken(dp.accountant)
    assert told["warnings"] == []
    assert any("early stopping" in line for line in told["does_not_cover"])
    for picture in ("privacy.png", "figures/privacy.png"):
        assert (done.directory / picture).stat().st_size > 1000
    assert "privacy/epsilon" in (done.directory / "metrics.csv").read_text().partition("\n")[0]
    kept = torch.load(done.directory / "checkpoints/last.ckpt", weights_only=True)
    assert kept["callbacks"]["DifferentialPrivacy"]["history"]["steps"] == [done.trainer.global_step]
    assert not any("_module" in key for key in kept["state_dict"])
    assert done.results["test/loss"] > 0


def test_fast_writes_nothing():
    run([*DIGITS, "-c", "overlays/debug/fast"])
    assert not list(Path().rglob("privacy.*"))


def test_what_does_not_go_is_one_line(capsys):
    line = fails(capsys, *DIGITS, "--trainer.gradient_clip_val", "1.0")
    assert "trainer.gradient_clip_val must be none with differential privacy, got 1.0" in line
    line = fails(capsys, *DIGITS, "--trainer.callbacks.0.epsilon", "0")
    assert "epsilon must be a positive number, got 0" in line


def test_every_argument_is_plain_yaml():
    assert yaml.safe_load((ROOT / "configs/overlays/differential_privacy.yaml").read_text())
    values = {"clipping": "per_layer", "max_grad_norm": [1.0, 1.0], "noise_multiplier": 1.0, "seed": 3}
    DifferentialPrivacy(**values)


@pytest.mark.process
def test_a_killed_run_forgets_no_step_and_counts_none_twice():
    options = ["--trainer.max_epochs", "3", "--trainer.callbacks.0.seed", "5"]
    whole = run([*DIGITS, *options, "--trainer.default_root_dir", "whole"])
    killed = fulgurite(*DIGITS, *options, "--trainer.callbacks+", "mine.Kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = fulgurite(*DIGITS, *options, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    resumed = Path("runs/classifier/digits/0")
    homes = (resumed, whole.directory)
    ours, theirs = (torch.load(home / "checkpoints/last.ckpt", weights_only=True) for home in homes)
    for key, value in theirs["state_dict"].items():
        if key.startswith("network."):
            assert torch.equal(ours["state_dict"][key], value)
    told, expected = (json.loads((home / "privacy.json").read_text()) for home in homes)
    assert told == expected
