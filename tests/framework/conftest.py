"""A user's own project outside the repository: module and data in a package, a configuration, no import of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NET = '''
import os, signal
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """A linear regression.

    Args:
        inputs: Number of features.
        lr: Learning rate.
        fail: Where to fail: "init", "configure" or "step".
    """

    monitor, mode = "val/loss", "min"

    def __init__(self, inputs: int, lr: float = 0.1, fail: str = ""):
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be positive,\\n got {lr}")
        if fail == "init":
            {}["not the user's fault"]
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(inputs, 1)

    def step(self, batch, name):
        loss = (self.layer(batch[0]).squeeze(1) - batch[1]).pow(2).mean()
        self.log(f"{name}/loss", loss)
        return loss

    def training_step(self, batch, i):
        if self.hparams.fail == "step":
            raise ValueError("a true bug")
        if self.global_step == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.global_step == int(os.environ.get("INTERRUPT_AT", -1)):
            raise KeyboardInterrupt
        return self.step(batch, "train")

    def validation_step(self, batch, i):
        self.step(batch, "val")

    def test_step(self, batch, i):
        self.step(batch, "test")

    def predict_step(self, batch, i):
        return {"y": self.layer(batch[0]).squeeze(1)}

    def configure_optimizers(self):
        if self.hparams.fail == "configure":
            raise ValueError("no such schedule")
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Data(LightningDataModule):
    def __init__(self, features: int = 4, rows: int = 32, missing: bool = False):
        super().__init__()
        self.features, self.rows, self.missing = features, rows, missing

    @property
    def inputs(self):
        return self.features

    def setup(self, stage):
        if self.missing:
            raise FileNotFoundError("data/rows.csv is missing: get it from the office")
        x = torch.randn(self.rows, self.features, generator=torch.Generator().manual_seed(0))
        self.set = TensorDataset(x, x.sum(1))

    def loader(self):
        return DataLoader(self.set, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Other(Data):
    """The same with another signature: what is left over from Data would not fit."""

    def __init__(self, columns: int = 4):
        super().__init__(columns)


class Silent(Data):
    inputs = None
'''

BASE = """
about:
  method: Mine
  summary: a line
  reference:
    - {metric: test/loss, value: 0.5, std: 0.1, source: a colleague, verified: false}
model:
  class_path: %s.net.Net
  init_args: {lr: 1e-2}
data:
  class_path: %s.net.Data
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""


class Project:
    """The folder of a user, and runs in it."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder, self.package = folder, package

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def files(self) -> set[str]:
        """Everything in the folder but what the fixture put there."""
        own = {self.package, "base.yaml"}
        return {
            str(p.relative_to(self.folder))
            for p in self.folder.rglob("*")
            if p.relative_to(self.folder).parts[0] not in own
        }

    def process(self, *args: str, launcher: tuple[str, ...] = ("-m", "framework.cli"), **environment: str):
        """Run the command line in a process of its own."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, *launcher, *args], cwd=self.folder, env=env, capture_output=True, text=True, timeout=300
        )


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    package = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:60]
    made = Project(tmp_path, package)
    made.write(f"{package}/__init__.py", "")
    made.write(f"{package}/net.py", NET)
    made.write("base.yaml", BASE % (package, package))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    return made
