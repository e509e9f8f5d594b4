"""DP-SGD on two gloo processes is DP-SGD on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from framework.privacy.dp_sgd import DPSGD

x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
data = TensorDataset(x, (x.sum(1) > 0).long())


class Net(LightningModule):
    def __init__(self, flat=False):
        super().__init__()
        torch.manual_seed(1)
        self.net, self.flat = nn.Sequential(nn.Linear(4, 2000 if flat else 8), nn.Linear(2000 if flat else 8, 2)), flat

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * (0.0 if self.flat else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


CASES = {
    "plain": {"noise_multiplier": 0.0},
    "pieces": {"noise_multiplier": 0.0, "max_physical_batch": 3},
    "ghost": {"noise_multiplier": 0.0, "grad_sample_mode": "ghost"},
    "noise": {"noise_multiplier": 2.0},
}
processes = int(sys.argv[1])
results = {}
for name, options in CASES.items():
    dp = DPSGD(accountant="rdp", batch_size=20, max_grad_norm=0.5, seed=None if name == "noise" else 5, **options)
    module = Net(flat=name == "noise")
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", callbacks=[dp],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=4))
    moved = torch.cat([(w.detach() - b).flatten() for w, b in zip(module.parameters(), before)])
    results[name] = {"moved": moved, "history": dp.accountant.history, "epsilon": dp.epsilon_spent}
torch.save(results, f"{sys.argv[2]}.pt")
"""


def start(folder, processes, rank):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": (folder / "port").read_text(), "WORLD_SIZE": str(processes)}
    command = [sys.executable, "script.py", str(processes), f"{processes}-{rank}"]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.process
def test_two_processes_spend_and_learn_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    running = [start(tmp_path, 1, 0), start(tmp_path, 2, 0), start(tmp_path, 2, 1)]
    for each in running:
        _, errors = each.communicate(timeout=240)
        assert each.returncode == 0, errors
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name in ("plain", "pieces", "ghost", "noise"):
        assert first[name]["history"] == second[name]["history"] == alone[name]["history"]
        assert first[name]["epsilon"] == second[name]["epsilon"] == alone[name]["epsilon"]
        assert torch.equal(first[name]["moved"], second[name]["moved"])
        if name != "noise":  # the same batches, whoever takes them: the same weights but for rounding
            assert torch.allclose(first[name]["moved"], alone[name]["moved"], atol=1e-5)
            assert first[name]["moved"].norm() > 0.01
    assert first["noise"]["history"] == [(2.0, 20 / 90, 10)]
    for got in (alone, first):  # as much noise in sum: not once per process, and not divided by their number
        moved = got["noise"]["moved"]
        expected = 10 * 0.1**2 * len(moved) * (0.5 * 2.0 / 20) ** 2
        assert float(moved.square().sum()) == pytest.approx(expected, rel=0.05)
    similar = nn.functional.cosine_similarity(alone["noise"]["moved"], first["noise"]["moved"], dim=0)
    assert abs(float(similar)) < 0.05
