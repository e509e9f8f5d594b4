"""How long training stands still for a checkpoint: written in the background, forced to disk, or by Lightning."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from framework.checkpointing import BackgroundCheckpointIO, DurableCheckpointIO

CASES = [{"megabytes": 4}, {"megabytes": 64}]
PLUGINS = {"background": BackgroundCheckpointIO, "durable": DurableCheckpointIO, "lightning": TorchCheckpointIO}


class State:
    """A checkpoint of a model with Adam, a folder, and what writes the one into the other."""

    def __init__(self, megabytes: int, variant: str) -> None:
        weights = torch.randn(megabytes * 2**20 // 12)  # beside them two moments of the same size
        self.checkpoint: dict[str, Any] = {
            "state_dict": {"weight": weights},
            "optimizer_states": [{"exp_avg": weights.clone(), "exp_avg_sq": weights.square()}],
        }
        self.folder = Path(tempfile.mkdtemp(prefix="stall-"))
        self.plugin = PLUGINS[variant]()

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def setup(megabytes: int, variant: str) -> State:
    return State(megabytes, variant)


def stall(state: State) -> None:
    """What training waits for. A write that is still under way keeps the machine busy, but not the trainer."""
    state.plugin.save_checkpoint(state.checkpoint, state.folder / "last.ckpt")


VARIANTS = {"background": stall, "durable": stall, "lightning": stall}
