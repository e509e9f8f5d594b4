"""The server's side of a round: choose clients, send, check what comes back, let the strategy combine it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from framework.errors import RunFailed
from framework.federated import wire
from framework.federated.grid import Chosen, node_of, partition_of
from framework.federated.nodes import UNREACHABLE
from framework.federated.noise_aware_base import EPSILON, NOISE
from framework.federated.rounds import ClientReport, RoundReport, weighted_mean
from framework.federated.settings import Federation
from framework.seeding import derive

_FROM_METRICS = ("num-examples", "steps", "flops", EPSILON, NOISE)
"""What a reply's metrics hold for the server's own use."""


class Server:
    """Rounds of a federation over any Flower grid.

    Args:
        federation: The settings.
        grid: Carries messages to the clients' apps.
        weights: The weights to begin with, by state-dict key, without those that are private to clients.
        seed: Seed of the run.

    Attributes:
        weights: The present weights.
        clock: Simulated seconds so far.
    """

    def __init__(self, federation: Federation, grid: Grid, weights: dict[str, Tensor], seed: int) -> None:
        self.federation, self.grid, self.seed = federation, grid, seed
        self.weights = {key: value.detach().cpu().clone() for key, value in weights.items()}
        self.clock = 0.0

    def participants(self, server_round: int) -> list[int]:
        """Partitions that take part in a round: drawn from (seed, round) alone."""
        draw = random.Random(derive(self.seed, "participants", server_round))
        return sorted(draw.sample(range(self.federation.clients), self.federation.participants))

    def train(self, server_round: int) -> RoundReport:
        """One round of training; ``weights`` are the new ones afterwards.

        Args:
            server_round: Its number, from 1.

        Returns:
            What happened, without evaluations.

        Raises:
            RuntimeError: If a client fails under ``fail_fast``.
            RunFailed: If fewer replies than the quorum can be used.
        """
        began = time.perf_counter()
        chosen = self.participants(server_round)
        report = RoundReport(server_round, [ClientReport(client, "not asked") for client in chosen])
        arrays = wire.pack(self.weights)
        with self._strategy_at_work("configure", server_round):
            messages = list(
                self.federation.strategy.configure_train(
                    server_round, arrays, ConfigRecord({"server-round": server_round}), self._view(chosen)
                )
            )
        self._take_notes(report)
        replies = self._screened(self._exchange(messages, report), report)
        self._check_quorum(report, replies)
        with self._strategy_at_work("aggregate", server_round):
            combined, _ = self.federation.strategy.aggregate_train(server_round, _alike(replies))
        if combined is not None:
            self.weights |= wire.cast_like(wire.unpack(combined), self.weights)
        self._take_weights(report)
        report.metrics |= {
            f"clients/{name}": value
            for name, value in weighted_mean((each.examples, each.metrics) for each in report.used).items()
        }
        self._advance_clock(report)
        report.wall_seconds = time.perf_counter() - began
        return report

    def evaluate(self, server_round: int) -> dict[str, float]:
        """Metrics of the present weights on what the clients have held out, weighted by their numbers of items.

        Args:
            server_round: The round after which it happens.
        """
        config = ConfigRecord({"server-round": server_round})
        content = RecordDict({"arrays": wire.pack(self.weights), "config": config})
        messages = [
            Message(content, node_of(client), "evaluate", group_id=str(server_round))
            for client in range(self.federation.clients)
        ]
        entries = []
        for reply in self.grid.send_and_receive(messages, timeout=self.federation.timeout):
            if reply.has_error():
                self._failed(partition_of(reply.metadata.src_node_id), reply, server_round)
                continue
            metrics = _metrics_of(reply)
            entries.append((partition_of(reply.metadata.src_node_id), metrics.pop("num-examples", 0.0), metrics))
        entries.sort(key=lambda entry: entry[0])
        means = weighted_mean((weight, metrics) for _, weight, metrics in entries)
        return {f"clients/{name}": value for name, value in means.items()}

    def _view(self, chosen: Sequence[int]) -> Grid:
        return Chosen(self.grid, [node_of(client) for client in chosen], self.federation.timeout)

    def _exchange(self, messages: Sequence[Message], report: RoundReport) -> list[Message]:
        """Send, and sort what comes back: usable replies by partition, everything else into the report."""
        federation, by_client = self.federation, {each.client: each for each in report.clients}
        sent = []
        for message in sorted(messages, key=lambda each: each.metadata.dst_node_id):  # strategies shuffle them
            client = by_client[partition_of(message.metadata.dst_node_id)]
            client.down += _bytes(message)
            layers = message.content.config_records["config"].get("layers")
            client.layers = None if layers is None else [str(layer) for layer in cast(list[str], layers)]
            systems = federation.systems
            if systems is not None and systems.drops_out(client.client, report.round, self.seed):
                client.outcome = "dropped out"
            else:
                client.outcome = "silent"  # until it answers
                sent.append(message)
        usable = {}
        replies = self.grid.send_and_receive(sent, timeout=federation.timeout)
        for reply in sorted(replies, key=lambda each: each.metadata.src_node_id):  # the same error is told each time
            client = by_client[partition_of(reply.metadata.src_node_id)]
            if reply.has_error():
                client.outcome, client.detail = "failed", self._failed(client.client, reply, report.round)
                continue
            client.up += _bytes(reply)
            if wire.REFUSAL in reply.content.config_records:
                client.outcome = "refused"
                client.detail = str(reply.content.config_records[wire.REFUSAL]["reason"])
                continue
            client.detail = self._complaint(reply)
            if client.detail:
                client.outcome = "rejected"
                continue
            metrics = _metrics_of(reply)
            client.examples, steps = metrics["num-examples"], metrics.get("steps", 0.0)
            client.flops = metrics.get("flops", 0.0)
            client.metrics = {name: value for name, value in metrics.items() if name not in _FROM_METRICS}
            client.outcome = "used"
            if federation.systems is not None:
                client.seconds = federation.systems.seconds(client.client, self.seed, steps, client.down, client.up)
                if federation.systems.is_late(client.seconds):
                    client.outcome = "late"
                    continue
            usable[client.client] = reply
        return [usable[client] for client in sorted(usable)]  # a fixed order of the sum, whoever answered first

    def _take_notes(self, report: RoundReport) -> None:
        """What a strategy that asks clients before it sends them to train has learned, and who failed to answer."""
        strategy = self.federation.strategy
        report.metrics |= {f"selection/{name}": value for name, value in getattr(strategy, "notes", {}).items()}
        traffic, failures = getattr(strategy, "traffic", {}), getattr(strategy, "failures", {})
        for client in report.clients:
            down, up = traffic.get(node_of(client.client), (0, 0))
            client.down, client.up = client.down + down, client.up + up
            reply = failures.get(node_of(client.client))
            if reply is not None:
                client.outcome, client.detail = "failed", self._failed(client.client, reply, report.round)

    def _screened(self, replies: list[Message], report: RoundReport) -> list[Message]:
        """Replies without those that a strategy which looks at them together cannot use."""
        screen = getattr(self.federation.strategy, "screen", None)
        reasons: dict[int, str] = screen(replies) if screen is not None else {}
        by_node = {node_of(each.client): each for each in report.clients}
        for node, reason in reasons.items():
            by_node[node].outcome, by_node[node].detail = "rejected", reason
        return [reply for reply in replies if reply.metadata.src_node_id not in reasons]

    def _take_weights(self, report: RoundReport) -> None:
        """How a strategy that says so has weighed the clients."""
        strategy = self.federation.strategy
        weights, energies = getattr(strategy, "weights", {}), getattr(strategy, "energies", {})
        for client in report.clients:
            client.weight = weights.get(node_of(client.client))
            client.noise = energies.get(node_of(client.client))
        report.metrics |= getattr(strategy, "findings", {})

    def _complaint(self, reply: Message) -> str:
        records = reply.content
        if len(records.array_records) != 1 or len(records.metric_records) != 1:
            return "a reply must hold one ArrayRecord and one MetricRecord"
        weight = _metrics_of(reply).get("num-examples")
        if weight is None or not weight > 0:
            return f"num-examples must be positive, got {weight}"
        partial = bool(getattr(self.federation.strategy, "partial", False))
        return wire.complaint(next(iter(records.array_records.values())), self.weights, partial)

    def _failed(self, client: int, reply: Message, server_round: int) -> str:
        reason = reply.error.reason or f"error {reply.error.code}"
        if self.federation.fail_fast and reply.error.code not in UNREACHABLE:
            raise RuntimeError(f"client {client} failed in round {server_round}: {reason}")
        return reason

    def _check_quorum(self, report: RoundReport, replies: Sequence[Message]) -> None:
        needed = self.federation.quorum * len(report.clients)
        if replies and len(replies) >= needed:
            return
        others = [each for each in report.clients if each.outcome != "used"]
        told = "; ".join(
            f"client {each.client} {each.outcome}{f' ({each.detail})' if each.detail else ''}" for each in others[:5]
        )
        raise RunFailed(
            f"round {report.round}: {len(replies)} of {len(report.clients)} replies can be used, "
            f"federation.quorum asks for {self.federation.quorum:g} of them: {told}"
        )

    def _advance_clock(self, report: RoundReport) -> None:
        systems = self.federation.systems
        if systems is None:
            return
        missing = any(each.outcome in ("late", "dropped out", "failed", "silent") for each in report.clients)
        slowest = max((each.seconds for each in report.used), default=0.0)
        self.clock += systems.deadline if missing and systems.deadline is not None else slowest
        report.clock = self.clock

    @contextmanager
    def _strategy_at_work(self, what: str, server_round: int) -> Iterator[None]:
        """Flower's strategies draw from the global generators and log a tree a round: neither is to reach the user."""
        states, logger = (random.getstate(), np.random.get_state()), logging.getLogger("flwr")
        level = logger.level
        random.seed(derive(self.seed, what, server_round))
        np.random.seed(derive(self.seed, what, server_round) % 2**32)
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])


def take_all(strategy: Any) -> None:
    """Let a strategy train with every node it is shown: the server chooses them.

    Args:
        strategy: A strategy, or one that wraps another.

    Raises:
        ValueError: If it was told to choose by itself.
    """
    inner = strategy
    while inner is not None:
        for name in ("fraction_train", "fraction_evaluate"):
            if getattr(inner, name, 1.0) != 1.0:
                raise ValueError(
                    f"federation.strategy: {type(inner).__name__}.{name} is {getattr(inner, name)}, "
                    "but the server chooses who takes part: leave it out, and set federation.fraction"
                )
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            if hasattr(inner, name):
                setattr(inner, name, 1)
        inner = getattr(inner, "strategy", None)


def _alike(replies: Sequence[Message]) -> list[Message]:
    """Replies with the metrics that all of them have, as Flower's strategies demand."""
    common = set.intersection(*(set(next(iter(reply.content.metric_records.values()))) for reply in replies))
    for reply in replies:
        for key, metrics in reply.content.metric_records.items():
            reply.content[key] = MetricRecord({name: metrics[name] for name in sorted(common)})
    return list(replies)


def _metrics_of(reply: Message) -> dict[str, float]:
    metrics = next(iter(reply.content.metric_records.values()))
    return {name: float(cast(float, value)) for name, value in metrics.items() if not isinstance(value, list)}


def _bytes(message: Message) -> int:
    return sum(wire.size(arrays) for arrays in message.content.array_records.values())
