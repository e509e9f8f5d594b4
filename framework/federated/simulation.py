"""Flower's own simulation engine: clients in Ray's processes, several at a time."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from importlib.util import find_spec
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from framework.errors import ConfigurationError
from framework.federated.nodes import PartitionGrid
from framework.federated.run import FederatedRun


def check_installed() -> None:
    """Ask for Ray before anything is made.

    Raises:
        ConfigurationError: If it is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigurationError(
            "federation.engine ray needs Flower's simulation engine, which is not installed: "
            "pip install 'fulgurite[simulation]'"
        )


def simulate(run: FederatedRun, app: ClientApp) -> None:
    """Run a federation whose clients work in processes of Ray.

    Args:
        run: The federation; the rounds happen in a thread of this process.
        app: The clients' app. Processes get it pickled, so it has to find module and data by itself.

    Raises:
        RuntimeError: As :meth:`FederatedRun.run`, or if the engine cannot start.
    """
    federation = run.federation
    server, ended = ServerApp(), threading.Event()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        run.connect(PartitionGrid(grid, federation.clients, patience=federation.timeout, ended=ended))
        run.run()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": federation.client_cpus, "num_gpus": federation.client_gpus},
        "init_args": {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False},
    }
    if os.environ.get("RAY_ADDRESS") is None:
        backend["init_args"]["num_cpus"] = max(os.cpu_count() or 1, int(-(-federation.client_cpus // 1)))
    from flwr.simulation import run_simulation  # Ray: seconds to import

    logger = logging.getLogger("flwr")
    logger.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's on its own defaults
            run_simulation(server, app, federation.clients, backend_config=backend)
    finally:
        ended.set()  # the rounds' thread would wait for its clients, whatever became of them
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that the call is deprecated: what is to replace it starts a daemon, and runs a copy of the code."""
    return "DEPRECATED FEATURE" not in record.getMessage()
