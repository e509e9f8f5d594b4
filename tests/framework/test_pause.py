"""A run that waits for somebody: one line, exit code 0, nothing tested, and it goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import rows

from framework.cli import main, run
from framework.errors import Paused

WAIT = """
from pathlib import Path
from lightning.pytorch import Callback
from framework.errors import Paused


class Wait(Callback):
    '''Wait for the file "go": before training, or after epoch 1.'''

    paused = None

    def __init__(self, before: bool = False):
        self.before = before

    def on_fit_start(self, trainer, pl_module):
        if self.before and not Path("go").exists():
            raise Paused("waiting for go")

    def on_train_epoch_end(self, trainer, pl_module):
        if not Path("go").exists():
            trainer.should_stop, self.paused = True, Paused("waiting for go")


class After(Callback):
    '''What comes after Wait is not cheated of its last hooks.'''

    def on_fit_end(self, trainer, pl_module):
        Path("fit_end").touch()

    def teardown(self, trainer, pl_module, stage):
        Path("teardown").touch()
"""


@pytest.fixture
def waiting(project):
    """Arguments of a run of two epochs that waits."""
    project.write(f"{project.package}/wait.py", WAIT)
    own = [word for name in ("Wait", "After") for word in ("--trainer.callbacks+", f"{project.package}.wait.{name}")]
    return project, ["fit", "-c", "base.yaml", *own, "--ckpt_path", "last"]


def test_paused_run_ends_in_good_order_and_goes_on_as_if_it_had_not(waiting, capsys):
    project, args = waiting
    whole = run(["fit", "-c", "base.yaml", "--name", "whole"])
    capsys.readouterr()
    main(args)  # no SystemExit: exit code 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "waiting for go"
    assert "Traceback" not in printed.out + printed.err
    assert {"fit_end", "teardown"} <= project.files()
    home = Path("runs/base/0")
    assert torch.load(home / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert not (home / "results.json").exists()
    assert "test/loss" not in rows(home)[-1]

    Path("go").touch()
    resumed = run(args)
    assert resumed.paused is None
    assert resumed.directory == home
    assert resumed.results == whole.results
    assert rows(home) == rows(whole.directory)


def test_pause_before_training_leaves_no_run(waiting, capsys):
    project, args = waiting
    args = [*args, "--trainer.callbacks.0.before", "true"]
    before = project.files()
    main(args)
    assert capsys.readouterr().out.splitlines()[-1] == "waiting for go"
    assert project.files() == before
    assert isinstance(run(args).paused, Paused)
    Path("go").touch()
    main(args)
    assert capsys.readouterr().out.splitlines()[-1] == "run directory: runs/base/0"


@pytest.mark.process
@pytest.mark.parametrize("before", [True, False])
def test_two_ranks_pause_together_and_say_it_once(waiting, before):
    project, args = waiting
    args = [*args, "-c", "overlays/ddp", "--trainer.callbacks.0.before", str(before).lower()]
    done = project.process(*args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("waiting for go") == 1
    assert "Traceback" not in done.stderr
    assert Path("runs/base/0/checkpoints/last.ckpt").exists() == (not before)
    Path("go").touch()
    more = project.process(*args)
    assert more.returncode == 0, more.stderr
    assert [row["step"] for row in rows("runs/base/0") if row["train/loss"]] == ["0", "1", "2", "3"]
    assert more.stdout.count("run directory:") == 1
