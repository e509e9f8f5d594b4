"""One run as a user meets it: its directory, its files, its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import rows
from lightning.pytorch.callbacks import ModelCheckpoint

from framework.cli import main, run
from framework.rundir import reserve, run_directory


def test_fit_fills_one_directory_and_prints_ours_beside_the_published_number(project, capsys):
    assert main(["fit", "-c", "base.yaml"]) is None
    out = capsys.readouterr().out
    home = Path("runs/base/0")
    assert {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()} == {
        "config.yaml", "metrics.csv", "results.json", "checkpoints/last.ckpt", "checkpoints/best-epoch=1.ckpt"
    }  # fmt: skip
    assert project.files() == {"runs", "runs/base", "runs/base/0"} | {str(p) for p in home.rglob("*")}
    row = next(line for line in out.splitlines() if line.startswith("test/loss"))
    assert "0.5 ± 0.1 (unverified)" in row
    assert "a colleague" in row
    record = json.loads((home / "results.json").read_text())
    assert record["metrics"]["test/loss"] == pytest.approx(float(row.split()[1]), rel=1e-3)
    assert record["checkpoint"] == "checkpoints/best-epoch=1.ckpt"
    assert record["reference"][0]["source"] == "a colleague"
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0] or "torch" in str(record)


def test_saved_configuration_is_complete_and_runs_again_under_the_same_name(project):
    first = run(["fit", "-c", "base.yaml", "--model.lr", "0.02", "--seed_everything", "3"])
    saved = yaml.safe_load((first.directory / "config.yaml").read_text())
    assert saved["model"]["init_args"] == {"inputs": 4, "lr": 0.02, "fail": ""}
    assert saved["about"]["reference"][0]["verified"] is False
    assert saved["seed_everything"] == 3
    assert saved["name"] == "base"
    assert "ckpt_path" not in saved
    second = run(["fit", "-c", str(first.directory / "config.yaml")])
    assert second.directory == Path("runs/base/1")
    assert second.results == first.results
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


@pytest.mark.parametrize("logger", ["csv", "off", "tensorboard", "lightning_csv", "wandb"])
def test_run_directory_is_the_same_with_every_logger(project, logger, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = {
        "csv": [],
        "off": ["--trainer.logger", "false"],
        "tensorboard": ["--trainer.logger", "TensorBoardLogger"],
        "lightning_csv": ["--trainer.logger", "CSVLogger"],
        "wandb": ["--trainer.logger", "WandbLogger"],
    }[logger]
    done = run(["fit", "-c", "base.yaml", "--name", "here/there", *extra])
    home = Path("runs/here/there/0")
    assert done.directory == home
    assert Path(done.trainer.log_dir).resolve() == home.resolve()
    assert run_directory(done.trainer) == home
    assert Path(done.trainer.checkpoint_callback.dirpath) == (home / "checkpoints").resolve()
    assert (home / "config.yaml").is_file()
    assert (home / "metrics.csv").is_file() == (logger != "off")
    assert {path.name for path in project.folder.iterdir()} == {project.package, "base.yaml", "runs"}
    assert [path.name for path in Path("runs/here/there").iterdir()] == ["0"]


def test_metrics_hold_every_logged_step(project):
    done = run(["fit", "-c", "base.yaml"])
    found = rows(done.directory)
    assert [row["step"] for row in found if row["train/loss"]] == [str(step) for step in range(8)]
    assert [row["step"] for row in found if row["val/loss"]] == ["3", "7"]
    assert [row["step"] for row in found if row["test/loss"]] == ["8"]
    assert list(found[0])[:2] == ["step", "epoch"]


def test_fast_dev_run_leaves_nothing_and_still_tests(project):
    done = run(["fit", "-c", "base.yaml", "--trainer.fast_dev_run", "2"])
    assert set(done.results) == {"test/loss"}
    assert project.files() == set()


def test_best_checkpoint_is_tested_not_the_last(project):
    diverging = ["--trainer.max_epochs", "6", "--model.lr", "0.4"]
    done = run(["fit", "-c", "base.yaml", *diverging])
    best = torch.load(done.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert best["epoch"] < 5  # the case would prove nothing otherwise
    losses = [float(row["val/loss"]) for row in rows(done.directory) if row["val/loss"]]
    assert done.results["test/loss"] == pytest.approx(min(losses), rel=1e-5)


def test_test_after_fit_can_be_switched_off(project):
    assert run(["fit", "-c", "base.yaml", "--test_after_fit", "false"]).results == {}


def test_own_model_checkpoint_replaces_the_default_one(project):
    extra = [
        "--trainer.callbacks+",
        "ModelCheckpoint",
        "--trainer.callbacks.filename",
        "mine",
        "--trainer.callbacks.monitor",
        "val/loss",
    ]
    done = run(["fit", "-c", "base.yaml", *extra])
    assert {path.name for path in (done.directory / "checkpoints").iterdir()} == {"mine.ckpt", "last.ckpt"}
    assert sum(isinstance(callback, ModelCheckpoint) for callback in done.trainer.callbacks) == 2


def test_evaluation_uses_the_best_checkpoint_and_writes_beside_it(project, capsys):
    fitted = run(["fit", "-c", "base.yaml"])
    config = (fitted.directory / "config.yaml").read_bytes()
    metrics = (fitted.directory / "metrics.csv").read_bytes()
    tested = run(["test", "-c", "base.yaml"])
    assert tested.directory == fitted.directory
    assert tested.results == fitted.results
    assert run(["validate", "-c", "base.yaml", "--ckpt_path", "last"]).results.keys() == {"val/loss"}
    run(["predict", "-c", "base.yaml"])
    assert (fitted.directory / "config.yaml").read_bytes() == config
    assert (fitted.directory / "metrics.csv").read_bytes() == metrics
    assert json.loads((fitted.directory / "results-test.json").read_text())["metrics"] == tested.results
    assert len(rows(fitted.directory, "metrics-test.csv")) == 1
    assert run(["test", "-c", str(fitted.directory / "config.yaml")]).results == fitted.results
    fresh = run(["test", "-c", "base.yaml", "--ckpt_path", "none"])
    assert fresh.results != tested.results
    assert fresh.directory == Path("runs/base/1")


def test_threads_are_set_for_the_run_only(project, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: seen.append(n))
    run(["fit", "-c", "base.yaml", "--threads", "1", "--trainer.fast_dev_run", "1"])
    assert seen == [1, before]


def test_two_reservations_never_share_a_directory(tmp_path):
    assert [reserve(tmp_path, "a/b").name for _ in range(12)] == [str(n) for n in range(12)]
