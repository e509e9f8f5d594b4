"""Overlays: each goes with a configuration of ours and with a user's own module."""

from __future__ import annotations

import csv
import json
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


def records(directory: Path):
    """All records of an offline W&B run, by wandb's own reader and its own message types."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


@pytest.mark.slow
def test_wandb_offline_run_holds_configuration_metrics_and_figures(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    layers = ["-c", "classifier/digits", "-c", "overlays/wandb", "-c", "overlays/figures"]
    done = run(["fit", *layers, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5"])
    found = list(records(done.directory))
    config, history, kinds = {}, [], []
    for record in found:
        kinds.append(record.WhichOneof("record_type"))
        updates = list(record.config.update) + list(record.run.config.update)
        config.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates})
        history += [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        ]
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["class_path"] == "datamodules.digits.Digits"
    assert config["model"]["init_args"]["inputs"] == 64  # resolved: the derived value is in it
    logged = {key for row in history for key in row}
    assert {"train/loss", "val/accuracy", "test/accuracy"} <= logged
    accuracies = [row["test/accuracy"] for row in history if "test/accuracy" in row]
    assert accuracies[-1] == pytest.approx(done.results["test/accuracy"])
    images = [
        value
        for row in history
        for value in row.values()
        if isinstance(value, dict) and value.get("_type", "").startswith("image")
    ]
    assert images, "no figure was sent"
    assert {path.name for path in done.directory.parent.iterdir()} == {"0"}  # nothing of W&B beside the run


def test_resumed_wandb_run_stays_one_run(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = run(["fit", "-c", "base.yaml", "-c", "overlays/wandb"])
    again = ["--trainer.max_epochs", "3", "--ckpt_path", "last"]
    second = run(["fit", "-c", "base.yaml", "-c", "overlays/wandb", *again])
    assert first.directory == second.directory
    names = [path.name for path in first.directory.glob("wandb/offline-run-*")]
    assert len({name.rpartition("-")[2] for name in names}) == 1
