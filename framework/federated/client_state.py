"""What a client keeps of a fit until its next message, and what it lets go."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from flwr.app import ConfigRecord
from lightning.pytorch import LightningModule, Trainer


@contextmanager
def as_checkpoint(module: LightningModule, before: ConfigRecord | None) -> Iterator[str | None]:
    """The client's last fit as a checkpoint with the server's weights in it; Lightning reads it as any other."""
    if before is None:
        yield None
        return
    with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
        torch.save({**load(cast(bytes, before["state"])), "state_dict": module.state_dict()}, file)
        file.flush()
        yield file.name


def of_fit(trainer: Trainer) -> ConfigRecord:
    """All that Lightning would put into a checkpoint after a fit, but the weights."""
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    del dumped["state_dict"]
    return ConfigRecord({"state": save(dumped), "epochs": trainer.current_epoch, "steps": trainer.global_step})


def save(state: Any) -> bytes:
    """Anything as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """What ``save`` saved."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def let_go(module: LightningModule) -> None:
    """Free the weights of a message's module and the state of its optimisers now.

    Module and trainer refer to each other and lie there until the garbage collector comes, which counts objects, not
    megabytes: with a large module some fifty copies would pile up.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        tensor.grad = None
        tensor.data = tensor.data.new_empty(0)
    if module._trainer is not None:
        for optimizer in module._trainer.optimizers:
            optimizer.state.clear()
