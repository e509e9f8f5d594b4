"""A round of private clients and Robust-HDP's server: Lightning clients against a loop in Opacus and PyTorch.

The loop is what one would write for these networks and nothing else: load the weights, let Opacus make model, optimiser
and loader private, step through Poisson batches, and add up the updates by weights that are known. A call is a later
round of 20 clients, so that noise is solved for and estimated already. Each has ``items`` images of 28 x 28 pixels and
batches of 32.
"""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from typing import Any, NamedTuple

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from framework.federated.client import LightningClient
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.grid import SerialGrid
from framework.federated.noise_aware import RobustHDP
from framework.federated.partition import IID
from framework.federated.server import Server, take_all
from framework.federated.settings import Federation
from framework.federated.workplace import LocalWorkplace
from modules.classifier import Classifier
from scripts.benchmarks.federated_round import BATCH, Images

CLIENTS, LR, NORM = 20, 0.01, 1.0
CASES = [{"network": network, "items": items} for network, items in (("mlp", 480), ("cnn", 480), ("cnn", 2400))]


class Given(NamedTuple):
    """What a variant is timed on."""

    module: Classifier
    data: Images
    server: Server
    rounds: Any
    shares: list[Tensor]


def setup(network: str, items: int) -> Given:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    module = Classifier(784, 10, network=network, hidden=[], optimizer=_sgd)
    data, strategy = Images(CLIENTS * items), RobustHDP()
    privacy = ClientPrivacy(epsilon=4.0, delta=1e-4, batch_size=BATCH, accountant="classic_rdp", max_grad_norm=NORM)
    federation = Federation(clients=CLIENTS, rounds=200, partition=IID(), strategy=strategy, privacy=privacy)
    take_all(strategy)
    strategy.bind(module, CLIENTS, 0, lambda: None)
    client = LightningClient(LocalWorkplace(module, data, {"accelerator": "cpu"}, seed=0), federation)
    server = Server(federation, SerialGrid(client.app(), CLIENTS, raise_errors=True), module.state_dict(), seed=0)
    return Given(module, data, server, itertools.count(1), client.shares.train)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, LR)


def federation(given: Given) -> dict[str, Tensor]:
    """Ours."""
    given.server.train(next(given.rounds))
    return given.server.weights


def loop(given: Given) -> dict[str, Tensor]:
    """The peer."""
    weights = given.module.state_dict()
    total = {key: torch.zeros_like(value) for key, value in weights.items()}
    x, y = given.data.data.tensors
    for share in given.shares:
        network = copy.deepcopy(given.module.network).train()
        made = PrivacyEngine(accountant="rdp").make_private(
            module=network, optimizer=torch.optim.SGD(network.parameters(), LR), noise_multiplier=1.0,
            data_loader=DataLoader(TensorDataset(x[share], y[share]), batch_size=BATCH), max_grad_norm=NORM,
        )  # fmt: skip
        private, optimizer, loader = made[0], made[1], made[2]
        for images, classes in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(images), classes).backward()
            optimizer.step()
        for key, value in network.state_dict().items():
            total[f"network.{key}"] += (value - weights[f"network.{key}"]) / CLIENTS
    return {key: value + total[key] for key, value in weights.items()}


def agree(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> None:
    assert ours.keys() == peer.keys()
    assert all(value.isfinite().all() for weights in (ours, peer) for value in weights.values())


VARIANTS = {"federation": federation, "loop": loop}
