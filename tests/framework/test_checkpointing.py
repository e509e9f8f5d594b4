"""A whole checkpoint is on the disk at every moment, and a damaged one is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from command_line import fails

from framework import rundir
from framework.checkpointing import BackgroundCheckpointIO, DurableCheckpointIO
from framework.cli import run
from framework.errors import ConfigurationError


def value(file):
    return int(torch.load(file, weights_only=True)["x"][0])


@pytest.mark.parametrize("kind", [DurableCheckpointIO, BackgroundCheckpointIO])
def test_an_overwritten_last_checkpoint_is_kept(kind, tmp_path):
    plugin, last = kind(), tmp_path / "new" / "last.ckpt"
    for number in range(3):
        plugin.save_checkpoint({"x": torch.tensor([number])}, last)
    plugin.teardown()
    assert value(last) == 2
    assert value(last.with_name("last-previous.ckpt")) == 1
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "last-previous.ckpt"}


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"x": torch.tensor([1])}, last)
    for name in ("fsync", "replace"):

        def fail(*args):
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="no space"):
                DurableCheckpointIO().save_checkpoint({"x": torch.tensor([2])}, last)
        assert value(last) == 1


def test_background_writes_are_copies_and_removals_wait_for_them(tmp_path):
    plugin, tensor = BackgroundCheckpointIO(), torch.zeros(1_000_000)
    plugin.save_checkpoint({"x": tensor}, tmp_path / "a.ckpt")
    tensor += 1
    plugin.save_checkpoint({"x": tensor}, tmp_path / "b.ckpt")
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    plugin.wait()
    assert value(tmp_path / "b.ckpt") == 1
    assert not (tmp_path / "a.ckpt").exists()
    plugin.save_checkpoint({"x": tensor}, tmp_path / "b.ckpt" / "no-folder.ckpt")
    with pytest.raises(OSError):  # noqa: PT011
        plugin.teardown()


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "name" / "0" / "checkpoints"
    plugin = DurableCheckpointIO()
    for number in range(2):
        plugin.save_checkpoint({"x": torch.full((1000,), number)}, folder / "last.ckpt")
    os.utime(folder / "last-previous.ckpt", (1, 1))
    return folder


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "ruin", [lambda data: data[: len(data) // 2], lambda data: b"", flip], ids=["half", "0", "bit"]
)
def test_a_damaged_last_checkpoint_is_passed_over(files, tmp_path, ruin):
    last = files / "last.ckpt"
    assert rundir.last_checkpoint(tmp_path, "name").file == last
    last.write_bytes(ruin(last.read_bytes()))
    found = rundir.last_checkpoint(tmp_path, "name")
    assert value(found.file) == 0
    assert str(last) in found.skipped[0]
    rundir.drop_previous(tmp_path / "name" / "0")
    assert found.file.exists()  # it is all there is
    with pytest.raises(ConfigurationError, match=r"last\.ckpt cannot be used"):
        rundir.find_checkpoint(str(last), tmp_path, "name")
    found.file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"no checkpoint of .* can be used"):
        rundir.last_checkpoint(tmp_path, "name")


def test_the_command_line_goes_on_from_the_checkpoint_before_a_damaged_one(project, capsys):
    run(["fit", "-c", "base.yaml"])
    last = Path("runs/base/0/checkpoints/last.ckpt")
    whole = last.read_bytes()
    last.with_name("last-previous.ckpt").write_bytes(whole)
    os.utime(last.with_name("last-previous.ckpt"), (1, 1))
    last.write_bytes(whole[:-100])
    capsys.readouterr()
    run(["fit", "-c", "base.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    out = capsys.readouterr().out
    assert f"skipping {last}" in out
    assert "resuming runs/base/0/checkpoints/last-previous.ckpt" in out
    last.write_bytes(whole[:-100])
    assert "cannot be used" in fails(capsys, "test", "-c", "base.yaml", "--ckpt_path", str(last))
