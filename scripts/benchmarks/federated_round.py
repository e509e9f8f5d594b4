"""A round of FedAvg: Lightning clients on the in-process grid against a hand-written PyTorch loop.

The loop is what one would write for this network and nothing else: load the weights, step through the client's batches,
add up. Both train the same weights. A call is a round with all clients, each of which makes ``steps`` steps on batches
of 32 images of 28 x 28 pixels.
"""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from framework.federated.client import LightningClient
from framework.federated.grid import SerialGrid
from framework.federated.partition import IID
from framework.federated.server import Server, take_all
from framework.federated.settings import Federation
from framework.federated.workplace import LocalWorkplace
from modules.classifier import Classifier

BATCH = 32
CASES = [
    {"network": network, "clients": clients, "steps": steps}
    for network, clients, steps in (
        ("mlp", 10, 10),
        ("cnn", 10, 10),
        ("cnn", 10, 50),
        ("mlp", 100, 10),
        ("cnn", 100, 10),
    )
]


class Images(LightningDataModule):
    """Random images in memory, served in their own order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.data = TensorDataset(
            torch.randn(count, 1, 28, 28, generator=draw), torch.randint(10, (count,), generator=draw)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=BATCH)


class Given(NamedTuple):
    """What a variant is timed on."""

    module: Classifier
    data: Images
    clients: int
    server: Server
    rounds: Any


def setup(network: str, clients: int, steps: int) -> Given:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    module = Classifier(784, 10, network=network, hidden=[128], optimizer=_sgd)
    data = Images(clients * steps * BATCH)
    federation = Federation(clients=clients, rounds=10**6, partition=IID())
    take_all(federation.strategy)
    client = LightningClient(LocalWorkplace(module, data, {"accelerator": "cpu"}, seed=0), federation)
    server = Server(federation, SerialGrid(client.app(), clients, raise_errors=True), module.state_dict(), seed=0)
    given = Given(module, data, clients, server, itertools.count(1))
    given.data.shares = client.shares.train  # type: ignore[assignment]
    return given


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01)


def grid(given: Given) -> dict[str, Tensor]:
    """Ours, from fresh weights so that every call does the same."""
    given.server.weights = {key: value.clone() for key, value in given.module.state_dict().items()}
    given.server.train(next(given.rounds))
    return given.server.weights


def loop(given: Given) -> dict[str, Tensor]:
    """The peer."""
    weights = given.module.state_dict()
    network = copy.deepcopy(given.module)
    total = {key: torch.zeros_like(value) for key, value in weights.items()}
    x, y = given.data.data.tensors
    for share in given.data.shares:  # type: ignore[attr-defined]
        network.load_state_dict(weights)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for rows in share.split(BATCH):
            loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for key, value in network.state_dict().items():
            total[key] += value / given.clients
    return total


def agree(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> None:
    for key, value in peer.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


VARIANTS = {"grid": grid, "loop": loop}
