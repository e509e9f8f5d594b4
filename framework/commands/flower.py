"""The apps that Flower's engines start in processes of their own, from nothing but a configuration.

``flwr run`` finds both by the section ``[tool.flwr.app]`` of ``pyproject.toml``. The run's configuration is one text,
``arguments``: what would follow ``fulgurite federate``. A node may add its own, such as the place of its data, as
``--node-config 'partition-id=0 arguments="--data.data_dir /data"'``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from lightning.fabric.utilities.warnings import PossibleUserWarning

from framework.commands.federate import FederateCLI
from framework.commands.place import HARMLESS, LATER, Place
from framework.configuration import Configuration, pairs
from framework.errors import ConfigurationError
from framework.federated.client import Client, LightningClient, app_of
from framework.federated.nodes import PartitionGrid
from framework.federated.run import FederatedRun

ARGUMENTS = "arguments"
LEARNING = (
    "accumulate_grad_batches", "callbacks", "gradient_clip_algorithm", "gradient_clip_val", "limit_train_batches",
    "overfit_batches", "precision",
)  # fmt: skip
"""Arguments of the trainer that change what a client learns; the others are each node's own matter."""


class ClientCLI(FederateCLI):
    """The clients of a process: built from a configuration, and not run.

    Args:
        configuration: The merged layers.
        fingerprint: Of what server and clients share.
        distributed: Whether this process is one of several that train as one client.

    Attributes:
        client: Answers messages.
    """

    client: LightningClient

    def __init__(self, configuration: Configuration, fingerprint: str = "", distributed: bool = False) -> None:
        self._fingerprint, self._distributed = fingerprint, distributed
        super().__init__(configuration)

    def _read(self) -> dict[str, Any]:
        values = super()._read()
        values["trainer"]["logger"] = False
        return values

    def check_engine(self) -> None:
        """Nothing: the engine is there."""

    def _find_directory(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fulgurite-"))  # a client leaves nothing behind
        self.place = Place(self.directory, temporary=True)

    def fit(self, **kwargs: Any) -> None:
        """Make the client."""
        workplace = self.workplace(fingerprint=self._fingerprint, distributed=self._distributed)
        self.client = LightningClient(workplace, self.federation)

    def after_fit(self) -> None:
        """Nothing was run."""


class ServerCLI(FederateCLI):
    """A federation whose clients are nodes of an engine.

    Args:
        configuration: The merged layers.
        grid: The engine's grid.
    """

    def __init__(self, configuration: Configuration, grid: Grid) -> None:
        self._grid, self._fingerprint = grid, fingerprint(configuration)
        super().__init__(configuration)

    def check_engine(self) -> None:
        """Nothing: the engine is there."""

    def connect(self, run: FederatedRun) -> None:
        """Reach the clients through the engine."""
        federation = self.federation
        run.connect(PartitionGrid(self._grid, federation.clients, self._fingerprint, federation.timeout))

    def rounds(self, run: FederatedRun) -> None:
        """Run the rounds that are left; the engine is there already."""
        run.run()


def fingerprint(configuration: Configuration) -> str:
    """Of all that server and clients have to agree on: not where data lie, how they are read, or where results go.

    Args:
        configuration: The merged layers.
    """
    values = configuration.interpolated()
    shared = {key: values.get(key) for key in ("data", "lr_scheduler", "model", "optimizer", "seed_everything")}
    section = values.get("federation") or {}
    shared["federation"] = {key: value for key, value in section.items() if key not in LATER}
    trainer = values.get("trainer") or {}
    shared["trainer"] = {key: trainer[key] for key in LEARNING if key in trainer}
    text = json.dumps(_without(shared), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def client_of(values: str, fingerprint: str = "") -> Client:
    """The clients of this process, made when first asked for.

    Args:
        values: The merged configuration, as YAML.
        fingerprint: See :func:`fingerprint`.
    """
    from framework.commands.distributed_client import DistributedClient, devices_of  # it needs ClientCLI

    configuration = client_configuration(values)
    devices = devices_of(configuration.values)
    if devices == 1:
        return ClientCLI(configuration, fingerprint).client
    configuration.values["trainer"] |= {"devices": 1, "strategy": "auto"}
    single = ClientCLI(configuration, fingerprint)
    return DistributedClient(values, devices, single.client, single.federation.timeout)


def client_configuration(values: str) -> Configuration:
    """Make this process a client's: with its threads, and without what Lightning says of a trainer for each message.

    Args:
        values: The merged configuration, as YAML.
    """
    configuration = Configuration("federate")
    configuration.values = yaml.safe_load(values)
    if configuration.values.get("threads") is not None:
        torch.set_num_threads(int(configuration.values["threads"]))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    return configuration


def text_of(configuration: Configuration) -> str:
    """The merged configuration for another process; as YAML, whose keys may be numbers.

    Args:
        configuration: The merged layers.
    """
    return str(yaml.safe_dump(configuration.values, sort_keys=False))


def pickled_app(configuration: Configuration) -> ClientApp:
    """An app that other processes of this machine, or of machines with the same files, can unpickle.

    Args:
        configuration: The merged layers.
    """
    return app_of(partial(_of_text, text_of(configuration)))


def _of_text(values: str, context: Context) -> Client:
    return client_of(values)


def _of_run(context: Context) -> Client:
    """The clients that ``flwr run`` asks for."""
    shared = _configuration(context.run_config)
    agreed = fingerprint(shared)
    own = context.node_config.get(ARGUMENTS, "")
    for key, value in pairs(shlex.split(str(own))):
        if key in {"-c", "--config"}:
            raise ConfigurationError(f"{ARGUMENTS} of a node take no layers (-c), only keys, got {own!r}")
        shared.override(key.removeprefix("--"), value)
    return client_of(text_of(shared), agreed)


def _configuration(run_config: Mapping[str, Any]) -> Configuration:
    given = run_config.get(ARGUMENTS)
    if not isinstance(given, str) or not given.strip():
        raise ConfigurationError(
            f"run config {ARGUMENTS!r} is not set: give what would follow `fulgurite federate`, as in "
            f"--run-config '{ARGUMENTS}=\"-c classifier/digits -c federation/iid\"'"
        )
    return Configuration.of("federate", [_beside_the_app(pair) for pair in pairs(shlex.split(given))])


def _beside_the_app(pair: tuple[str, str]) -> tuple[str, str]:
    """Find a layer's file in the app's folder, of which an engine runs a copy from wherever it was started."""
    key, value = pair
    if key in {"-c", "--config"} and not Path(value).expanduser().is_file():
        files = (Path(folder) / value for folder in sys.path if folder)
        value = next((str(file) for file in files if file.is_file()), value)
    return key, value


def _without(value: Any) -> Any:
    """A configuration without options that do not concern what is learned."""
    if isinstance(value, Mapping):
        return {key: _without(each) for key, each in value.items() if key not in HARMLESS}
    return value


client_app = app_of(_of_run)
server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the federation that ``flwr run`` asks for."""
    try:
        ServerCLI(_configuration(context.run_config), grid)
    except Exception as error:
        sys.stderr.write(f"fulgurite: error: {' '.join(str(error).split())}\n")
        raise
