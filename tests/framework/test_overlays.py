"""Overlays: each goes with a configuration of ours and with a user's own module."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from framework.cli import main, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OVERLAYS = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("overlays/**/*.yaml"))


def resolved(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("base", ["classifier/digits", "base.yaml"], ids=["ours", "theirs"])
def test_every_overlay_parses_and_changes_something(project, capsys, base, overlay):
    assert resolved(capsys, "-c", base, "-c", overlay) != resolved(capsys, "-c", base)


def test_all_overlays_accumulate(project, capsys):
    together = ["overlays/figures", "overlays/predictions", "overlays/wandb", "overlays/tensorboard"]
    trainer = resolved(capsys, "-c", "base.yaml", *[part for name in together for part in ("-c", name)])["trainer"]
    assert [each["class_path"].rpartition(".")[2] for each in trainer["callbacks"]] == ["Figures", "WritePredictions"]
    assert [each["class_path"].rpartition(".")[2] for each in trainer["logger"]] == ["WandbLogger", "TensorBoardLogger"]


def test_tensorboard_files_and_metrics_lie_in_the_run_directory(project):
    done = run(["fit", "-c", "base.yaml", "-c", "overlays/tensorboard"])
    assert Path(done.trainer.log_dir) == done.directory
    assert list(done.directory.glob("events.out.tfevents.*"))
    assert (done.directory / "metrics.csv").is_file()
    assert {path.name for path in done.directory.parent.iterdir()} == {"0"}


def test_bf16_trains(project):
    done = run(["fit", "-c", "base.yaml", "-c", "overlays/bf16"])
    assert done.trainer.precision == "bf16-mixed"
    assert done.results["test/loss"] >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_trains(project):
    done = run(["fit", "-c", "base.yaml", "-c", "overlays/gpu"])
    assert done.trainer.strategy.root_device.type == "cuda"


def test_fast_leaves_nothing(project):
    done = run(["fit", "-c", "base.yaml", "-c", "overlays/debug/fast"])
    assert done.trainer.fast_dev_run == 2
    assert project.files() == set()


def test_overfit_drives_the_training_loss_to_zero(project):
    done = run(["fit", "-c", "base.yaml", "-c", "overlays/debug/overfit", "--model.lr", "0.05"])
    with open(done.directory / "metrics.csv", newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 200
    assert losses[-1] < 1e-4 < losses[0]


def inspect(directory: Path, *options: str) -> str:
    """What W&B's own reader finds in the file of an offline run."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


@pytest.mark.slow
def test_wandb_offline_run_holds_configuration_metrics_and_figures(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    layers = ["-c", "classifier/digits", "-c", "overlays/wandb", "-c", "overlays/figures"]
    done = run(["fit", *layers, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5"])
    config = json.loads(inspect(done.directory, "--summary"))["config"]
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["class_path"] == "datamodules.digits.Digits"
    assert config["model"]["init_args"]["inputs"] == 64  # resolved: the derived value is in it
    records = [json.loads(line) for line in inspect(done.directory).splitlines()]
    assert next(each["run"]["display_name"] for each in records if each["type"] == "run") == "classifier/digits/0"
    history = [each["history"]["item"] for each in records if each["type"] == "history"]
    assert sum("train/loss" in row for row in history) == 2
    accuracies = [row["test/accuracy"] for row in history if "test/accuracy" in row]
    assert accuracies == [pytest.approx(done.results["test/accuracy"])]
    pictures = [file for row in history for key, files in row.items() if key.endswith(".filenames") for file in files]
    assert pictures
    (files,) = done.directory.glob("wandb/offline-run-*/files")
    assert all((files / picture).stat().st_size > 1000 for picture in pictures)
    assert {path.name for path in project.folder.iterdir()} == {project.package, "base.yaml", "runs"}


def test_resumed_wandb_run_stays_one_run(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = run(["fit", "-c", "base.yaml", "-c", "overlays/wandb"])
    again = ["--trainer.max_epochs", "3", "--ckpt_path", "last"]
    second = run(["fit", "-c", "base.yaml", "-c", "overlays/wandb", *again])
    assert first.directory == second.directory
    # Two starts within one second: W&B names the second folder after the first, with "-1" behind it.
    files = list(first.directory.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
