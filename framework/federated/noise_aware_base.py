"""What strategies have in common whose weights do not follow the clients' numbers of items.

Updates are rows: shape ``(clients, parameters)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from framework.federated.grid import partition_of
from framework.federated.noise_energy import unusable
from framework.federated.principal_components import Floats

EPSILON, NOISE = "declared-epsilon", "noise-energy"
"""Metrics of a reply that a client sends only to a strategy that needs them."""


class NoiseAware(FedAvg):
    """``theta + sum_i w_i (theta_i - theta)``, with weights that do not follow the clients' numbers of items.

    Updates are vectors of the trainable floating-point weights, in the order of the module; everything else in a
    message (buffers, frozen weights) is averaged by the same weights.

    Attributes:
        needs: What a client has to tell beside its update: ``epsilon`` as it declares it, ``noise`` as it is, or
            nothing.
        weights: Of the clients in the last round, by node.
        energies: Estimated noise energies of the clients in the last round, by node; empty where none are estimated.
        findings: Numbers of the last round, for its report.
    """

    needs: Literal["", "epsilon", "noise"] = ""

    def __init__(self) -> None:
        super().__init__()
        self._trainable: set[str] | None = None
        self._sent: dict[str, np.ndarray] = {}
        self.weights: dict[int, float] = {}
        self.energies: dict[int, float] = {}
        self.findings: dict[str, float] = {}

    def bind(self, module: nn.Module, clients: int, seed: int, probe: Callable[[], Any]) -> None:
        """Learn which weights are trained; called once, before the first round.

        Args:
            module: The module.
            clients: Number of clients.
            seed: Seed of the run.
            probe: Not used.
        """
        self._trainable = {name for name, weight in module.named_parameters() if weight.requires_grad}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights to all nodes, and remember them."""
        self._sent = {key: array.numpy() for key, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def screen(self, replies: Sequence[Message]) -> dict[int, str]:
        """Which replies cannot be used, though their weights have the right shapes.

        Args:
            replies: Of a round, in the order of their clients.

        Returns:
            Reasons by node: updates that are zero, not finite, or copies of another's, and what clients have to tell
            that is no positive number.
        """
        nodes = [reply.metadata.src_node_id for reply in replies]
        found = {nodes[row]: reason for row, reason in unusable(self._updates(replies)).items()} if replies else {}
        name = {"epsilon": EPSILON, "noise": NOISE}.get(self.needs)
        for node, reply in zip(nodes, replies, strict=True):
            value = 1.0 if name is None else metrics_of(reply).get(name, float("nan"))
            if not 0 < value < float("inf"):
                found.setdefault(node, f"it sent {name} {value}, which must be a positive number")
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Weigh and combine what came; see the class."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        self.weights, self.energies, self.findings = {}, {}, {}
        if not valid:
            return None, None
        nodes = [reply.metadata.src_node_id for reply in valid]
        weights, combined = self.combine(
            server_round, nodes, self._updates(valid), [metrics_of(each) for each in valid]
        )
        self.weights = dict(zip(nodes, weights.tolist(), strict=True))
        self.findings |= {"weights/effective_clients": float(1 / np.square(weights).sum())}
        arrays, start = {}, 0
        for key, before in self._sent.items():
            if self._is_update(key):
                change = combined[start : start + before.size].reshape(before.shape)
                start += before.size
                arrays[key] = Array(np.asarray(before + change))
            else:
                sent = [next(iter(reply.content.array_records.values()))[key].numpy() for reply in valid]
                arrays[key] = Array(np.asarray(np.tensordot(weights, np.stack(sent), axes=1)))
        return ArrayRecord(arrays), self.train_metrics_aggr_fn([each.content for each in valid], self.weighted_by_key)

    def combine(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> tuple[Floats, Floats]:
        """Weights and the combined update.

        Args:
            server_round: The round, from 1.
            nodes: Of the clients, one for each row.
            updates: Shape ``(clients, parameters)``.
            metrics: What each client sent with it.

        Returns:
            Weights, shape ``(clients,)``, with sum 1, and the update of shape ``(parameters,)``.
        """
        weights = self.weigh(server_round, nodes, updates, metrics)
        return weights, mean_update(weights, updates)

    @abstractmethod
    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        """The weights alone; arguments as for ``combine``."""

    def state_dict(self) -> dict[str, Any]:
        """What later rounds depend on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what an earlier process has learned."""

    def layers(self) -> list[slice]:
        """Where each trained tensor lies in an update."""
        found, start = [], 0
        for key, value in self._sent.items():
            if self._is_update(key):
                found.append(slice(start, start + value.size))
                start += value.size
        return found

    def _is_update(self, key: str) -> bool:
        floating = np.issubdtype(self._sent[key].dtype, np.floating)
        return bool(floating) and (self._trainable is None or key in self._trainable)

    def _updates(self, replies: Sequence[Message]) -> Floats:
        keys = [key for key in self._sent if self._is_update(key)]
        rows = []
        for reply in replies:
            arrays = next(iter(reply.content.array_records.values()))
            parts = [arrays[key].numpy() - self._sent[key] for key in keys]
            rows.append(np.concatenate([part.ravel() for part in parts]))
        return np.stack(rows)


def mean_update(weights: Floats, updates: Floats) -> Floats:
    """The weighted sum of rows, in their own precision: there may be gigabytes of them."""
    return np.asarray(weights.astype(updates.dtype) @ updates)


def metrics_of(reply: Message) -> dict[str, float]:
    """The numbers that a client sent with its update."""
    record = next(iter(reply.content.metric_records.values()))
    return {name: float(cast(float, value)) for name, value in record.items() if not isinstance(value, list)}


def told(metrics: Mapping[str, float], name: str, node: int) -> float:
    """What a client has told of itself.

    Args:
        metrics: What it sent.
        name: ``EPSILON`` or ``NOISE``.
        node: Its node.

    Raises:
        ValueError: If that is no positive number.
    """
    value = metrics.get(name, float("nan"))
    if not 0 < value < float("inf"):
        raise ValueError(f"client {partition_of(node)} sent {name} {value}: it must be a positive number")
    return value
