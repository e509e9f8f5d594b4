"""``fulgurite supervise``: its help, what it refuses, and real runs that die and end as if they had not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import fails, rows

from framework.cli import main
from framework.reliability.ledger import read
from framework.reliability.measured import measure

ROOT = Path(__file__).resolve().parents[3]

#: A module, data, and a callback that ends the process at steps, each once.
MINE = """
import os, signal
from pathlib import Path
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    monitor, mode = "val/loss", "min"

    def __init__(self, lr: float = 0.05):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 2)

    def _loss(self, batch, name):
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log(f"{name}/loss", loss)
        return loss

    def training_step(self, batch, i):
        return self._loss(batch, "train")

    def validation_step(self, batch, i):
        self._loss(batch, "val")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Data(LightningDataModule):
    classes = 2

    def setup(self, stage):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        self.train = TensorDataset(x, (x[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.train, batch_size=16)


class Die(Callback):
    def __init__(self, steps: list[int], rank: int = 0, after_round: int = -1):
        self.steps, self.rank, self.after_round = steps, rank, after_round

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rounds = [line for file in Path().glob("runs/*/0/rounds.jsonl") for line in file.read_text().splitlines()]
        if len(rounds) <= self.after_round:
            return
        file = Path(f"died-at-{trainer.global_step}")
        if trainer.global_step in self.steps and trainer.global_rank == self.rank and not file.exists():
            file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
BASE = {
    "model": {"class_path": "mine.Net"},
    "data": {"class_path": "mine.Data"},
    "trainer": {
        "max_epochs": 4, "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "num_sanity_val_steps": 0,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def fulgurite(*args):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("FULGURITE_ATTEMPT", "RANK"))}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "framework.cli", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def weights(directory):
    return torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_help_is_cheap_and_has_every_option():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys\nfrom framework.cli import main\n"
        "try: main(['supervise', '--help'])\n"
        "except SystemExit as error: assert not error.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'lightning', 'numpy'}))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for option in ("max-restarts", "backoff", "hang-timeout", "start-timeout", "crash-loop", "nproc", "cold"):
        assert f"--{option}" in done.stdout


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--nproc", "2"], "say what to run"),
        (["--hang-timeout", "0s", "fit", "-c", "base.yaml"], "hang_timeout must be positive"),
        (["--hang-timeout", "5", "fit"], "--hang-timeout: '5' is no time"),
        (["--max-restarts", "-1", "fit"], "--max-restarts: expected a whole number from 0"),
        (["--restarts", "1", "fit"], "supervise: unrecognized arguments: --restarts"),
        (["fit", "-c", "nothing.yaml"], "no such file"),
        (["fit"], "model.class_path is not set"),
        (["fit", "-c", "base.yaml", "--trainer.fast_dev_run", "true"], "fast_dev_run leaves nothing"),
        (["fit", "-c", "base.yaml", "--trainer.enable_checkpointing", "false"], "enable_checkpointing is false"),
        (["fit", "-c", "base.yaml", "--ckpt_path", "nowhere.ckpt"], "ckpt_path nowhere.ckpt: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line_before_anything_is_started(folder, capsys, args, part):
    assert part in fails(capsys, "supervise", *args)
    assert not Path("runs").exists()


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
def test_what_only_prints_is_not_supervised(folder, capsys, debug):
    main(["supervise", *debug, "fit", "-c", "base.yaml", "--help"])
    assert capsys.readouterr().out.startswith("usage: fulgurite fit")
    with pytest.raises(SystemExit) as ended:
        main(["supervise", "--nproc", "2", *debug, "fit", "-c", "base.yaml", "--print_config"])
    assert not ended.value.code
    assert "class_path: mine.Net" in capsys.readouterr().out
    assert not Path("runs").exists()


LATE = """
import sys, threading
from pathlib import Path
from framework.commands.supervise import _Learned

Path("late.py").write_text("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
sys.path.append(".")
learned = _Learned(Path("modules"))
for name in ("colorsys", "late"):
    Path("modules").write_text(name)
    learned.stamp = 0
    learned.load()
    assert name in sys.modules
    print(learned.threads)
"""
STACKS = """
import os, signal
from framework.cli import main

try:
    main(["fit", "-c", "nothing.yaml"])
except SystemExit:
    os.kill(os.getpid(), signal.SIGUSR2)
    print("lives")
"""


def test_a_module_with_threads_ends_the_forks_and_a_new_interpreter_shows_its_stacks(folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FULGURITE_ATTEMPT": "0"}
    late, stacks = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        for code in (LATE, STACKS)
    )
    assert late.stdout.split() == ["False", "True"]
    assert "every attempt is a new interpreter now" in late.stderr
    assert stacks.stdout == "lives\n"
    assert "Current thread" in stacks.stderr


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_dies_ends_as_if_it_had_not(folder):
    die = ["--trainer.callbacks+", "mine.Die", "--trainer.callbacks.steps"]
    done = fulgurite("supervise", "--backoff", "10ms", "fit", "-c", "base.yaml", *die, "[2, 9]")
    assert done.returncode == 0, done.stderr
    assert "attempt 0 was killed by SIGKILL at step 2; restart 1" in done.stderr
    assert "attempt 1 was killed by SIGKILL at step 9; restart 2" in done.stderr
    assert done.stdout.splitlines()[-1] == "done after 2 restarts: fulgurite ettr measure runs/base/0"
    main(["fit", "-c", "base.yaml", "--name", "whole"])
    ours, theirs = Path("runs/base/0"), Path("runs/whole/0")
    assert [path.name for path in Path("runs/base").iterdir()] == ["0"]
    assert rows(ours) == rows(theirs)
    assert all(torch.equal(value, weights(theirs)[name]) for name, value in weights(ours).items())
    result = measure(ours)
    assert (result.steps, result.failures, result.complete) == (16, 2, True)
    assert [each.last_step for each in result.attempts] == [2, 9, 16]
    assert result.minutes("redone") > 0


@pytest.mark.process
@pytest.mark.slow
def test_ranks_new_interpreters_and_wrong_values(folder):
    die = ["--trainer.callbacks+", "mine.Die", "--trainer.callbacks.rank", "1", "--trainer.callbacks.steps", "[5]"]
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_epochs", "3"]
    done = fulgurite("supervise", "--nproc", "2", "--backoff", "10ms", "fit", "-c", "base.yaml", *two, *die)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done after 1 restart") == 1
    assert [path.name for path in Path("runs/base").iterdir()] == ["0"]
    assert measure("runs/base/0").steps == 6  # 32 items, 8 a batch, 2 ranks, 3 epochs
    assert {event["world"] for event in read("runs/base/0/ledger.jsonl") if event["event"] == "start"} == {2}

    wrong = fulgurite("supervise", "--cold", "fit", "-c", "base.yaml", "--model.lr", "much", "--name", "wrong")
    assert wrong.returncode == 2
    assert "the configuration is wrong, which no restart mends (1 attempt)" in wrong.stderr
    assert "model.init_args.lr" in wrong.stderr
    assert not Path("runs/wrong").exists()


@pytest.mark.process
@pytest.mark.slow
def test_a_federation_that_dies_goes_on_by_rounds(folder):
    part = ["--federation.clients", "2", "--federation.rounds", "3", "--federation.local_steps", "2"]
    die = [
        "--trainer.callbacks+",
        "mine.Die",
        "--trainer.callbacks.steps",
        "[1]",
        "--trainer.callbacks.after_round",
        "1",
    ]
    done = fulgurite("supervise", "--backoff", "10ms", "federate", "-c", "base.yaml", *part, *die)
    assert done.returncode == 0, done.stderr
    assert "done after 1 restart" in done.stdout
    directory = Path("runs/base-federated/0")
    assert [json.loads(line)["round"] for line in (directory / "rounds.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    steps = [event["step"] for event in read(directory / "ledger.jsonl") if event["event"] == "step"]
    assert steps == [0, 1, 2, 3]
