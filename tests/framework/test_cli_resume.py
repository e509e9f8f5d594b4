"""Resuming, killed runs, several ranks: the same directory, the same history, the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from command_line import fails, rows

from framework.cli import run
from framework.commands.place import compare
from framework.errors import ConfigurationError


def test_resumed_run_equals_an_uninterrupted_one(project, capsys):
    whole = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--name", "whole"])
    run(["fit", "-c", "base.yaml"])
    capsys.readouterr()
    rest = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--ckpt_path", "last"])
    assert "resuming runs/base/0/checkpoints/last.ckpt" in capsys.readouterr().out
    assert rest.directory == Path("runs/base/0")
    assert not Path("runs/base/1").exists()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name])
    keep = [row for row in rows(rest.directory) if not (row["step"] == "8" and row["test/loss"])]
    assert keep == rows(whole.directory)
    assert yaml.safe_load((rest.directory / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_resume_without_a_run_starts_afresh_and_says_so(project, capsys):
    done = run(["fit", "-c", "base.yaml", "--ckpt_path", "last"])
    assert "starts afresh" in capsys.readouterr().out
    assert done.directory == Path("runs/base/0")


def test_resume_of_a_complete_run_says_so_and_tests_again(project, capsys):
    first = run(["fit", "-c", "base.yaml"])
    history = rows(first.directory)
    again = run(["fit", "-c", "base.yaml", "--ckpt_path", "last"])
    assert "nothing left to train" in capsys.readouterr().out
    assert again.results == first.results
    assert rows(again.directory) == history


def test_resume_of_an_early_stopped_run_trains_no_further(project, capsys):
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "mode": "max", "patience": 1}}
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 9, "callbacks+": [stop]}}))
    args = ["fit", "-c", "base.yaml", "-c", "stop.yaml"]
    first = run(args)
    assert first.trainer.current_epoch < 9
    for _ in range(2):
        again = run([*args, "--ckpt_path", "last"])
        assert "nothing left to train" in capsys.readouterr().out
        assert rows(again.directory) == rows(first.directory)


def test_other_data_are_refused_on_resume_and_another_way_of_reading_them_is_not(project, tmp_path):
    """A directory's saved configuration against one that differs in a single key."""

    def yaml_of(**data):
        return yaml.safe_dump({"model": {"lr": 1}, "data": {"init_args": {"seed": 1, "num_workers": 0, **data}}})

    (tmp_path / "config.yaml").write_text(yaml_of())
    assert compare(tmp_path, yaml_of()) == []
    assert compare(tmp_path, yaml_of(added_by_a_later_release=3)) == []
    (note,) = compare(tmp_path, yaml_of(num_workers=2))
    assert note.startswith("note: data.init_args.num_workers was 0")
    with pytest.raises(ConfigurationError, match=r"data.init_args.seed is 2, but .* was trained with 1"):
        compare(tmp_path, yaml_of(seed=2))


def test_another_seed_is_told_at_the_end_of_an_epoch_and_refused_where_it_must_not_be(project, capsys):
    run(["fit", "-c", "base.yaml"])
    again = ["fit", "-c", "base.yaml", "--trainer.max_epochs", "3", "--ckpt_path", "last", "--seed_everything", "5"]
    line = fails(capsys, *again, "--resumable", "true")
    assert "resumable: seed_everything is 5, but was 0" in line
    assert "resumable" in fails(capsys, *again, "--resumable", "perhaps")
    assert run(again).trainer.current_epoch == 3


def test_values_of_the_yaml_are_never_replaced_by_the_checkpoint(project, capsys):
    fitted = run(["fit", "-c", "base.yaml"])
    file = str(next(fitted.directory.glob("checkpoints/best*")))
    assert run(["test", "-c", "base.yaml", "--model.lr", "0.5", "--ckpt_path", file]).model.hparams.lr == 0.5
    line = fails(capsys, "fit", "-c", "base.yaml", "--model.lr", "0.5", "--ckpt_path", "last")
    assert "model.init_args.lr is 0.5" in line
    assert "0.01" in line
    assert not Path("runs/base/1").exists()


@pytest.mark.process
def test_killed_run_resumes_with_its_history(project):
    whole = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--name", "whole"])
    args = ["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--ckpt_path", "last"]
    assert project.process(*args, DIE_AT="10").returncode == -9
    killed = rows("runs/base/0")
    assert killed[-1]["step"] == "9"  # rows are on disk at once: two of them lie after the checkpoint of step 8
    done = project.process(*args)
    assert done.returncode == 0, done.stderr
    assert rows("runs/base/0") == rows(whole.directory)
    weights = [
        torch.load(f"{home}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for home in ("runs/base/0", "runs/whole/0")
    ]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_ranks_share_one_directory(project, launcher):
    start = (
        ("-m", "framework.cli")
        if launcher == "lightning"
        else ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29641", "-m", "framework.cli")
    )
    done = project.process("fit", "-c", "base.yaml", "-c", "overlays/ddp", launcher=start)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path("runs/base").iterdir()] == ["0"]
    assert done.stdout.count("run directory:") == 1
    found = rows("runs/base/0")
    assert [row["step"] for row in found if row["train/loss"]] == [
        "0",
        "1",
        "2",
        "3",
    ]  # 32 rows, 8 a batch, 2 ranks, 2 epochs
    assert Path("runs/base/0/checkpoints/last.ckpt").is_file()
    more = project.process(
        "fit",
        "-c",
        "base.yaml",
        "-c",
        "overlays/ddp",
        "--trainer.max_epochs",
        "3",
        "--ckpt_path",
        "last",
        launcher=start,
    )
    assert more.returncode == 0, more.stderr
    assert [row["step"] for row in rows("runs/base/0") if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]
