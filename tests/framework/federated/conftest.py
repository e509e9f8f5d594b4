"""What federates the small module on the small data."""

from __future__ import annotations

import pytest
import torch
from federation_net import Net, Points

from framework.federated.run import FederatedRun
from framework.federated.settings import Federation
from framework.federated.workplace import LocalWorkplace


@pytest.fixture
def make(tmp_path):
    """A federation of ``Net`` on ``Points``; module, data and trainer settings can be replaced."""

    def made(module=None, data=None, seed=7, directory="run", settings=None, loggers=(), **federation):
        if module is None:
            torch.manual_seed(0)
            module = Net()
        workplace = LocalWorkplace(module, data or Points(), {"accelerator": "cpu", **(settings or {})}, seed)
        folder = tmp_path / directory
        folder.mkdir(exist_ok=True)
        return FederatedRun(workplace, Federation(**{"clients": 3, "rounds": 2, **federation}), folder, loggers)

    return made
