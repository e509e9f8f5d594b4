"""The settings of a federation: section ``federation`` of a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from flwr.serverapp.strategy import FedAvg, Strategy

from framework.federated import attributes, noise_aware, own_data, partition_file, selective, strategies  # noqa: F401 - classes are found by name
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.partition import IID, Partitioner
from framework.federated.skew import Skew
from framework.federated.systems import Systems


class Federation:
    """Who takes part, what a client does, what travels, and how the server combines it.

    Args:
        clients: Number of clients, at least 1.
        rounds: Rounds of training, at least 1.
        partition: How the training data are divided; equal random parts by default.
        skew: How the items of one client look different from another's; not at all by default.
        held_out: Share of its items that a client keeps to evaluate on, in [0, 1). With 0 there is no evaluation by
            clients, unless the partition comes with items held out.
        fraction: Share of the clients that take part in a round, in (0, 1]; at least one does.
        local_epochs: Epochs that a client trains for in a round.
        local_steps: Optimiser steps instead.
        strategy: One of ``flwr.serverapp.strategy``, or one like it; ``FedAvg`` by default. The server chooses who
            takes part: the strategy's own fractions and minima have no effect.
        private: Patterns (regular expressions, matched from the start) of state-dict keys that stay with the client,
            such as ``head`` for a head of its own, or the keys of batch normalisation.
        privacy: Budget, batch size and clipping of clients that train with differential privacy; ``None``: without.
        keep: What a client keeps from round to round besides: ``callbacks`` (the state of its callbacks),
            ``everything`` (optimisers, schedules and counters, too: one long fit whose weights the server replaces), or
            ``nothing``.
        log_clients: Whether loggers get what each client's training logged, too, as ``client/<number>/<name>``.
        evaluate_every: Rounds from one evaluation to the next; the last round always has one. 0: only the last.
        monitor: The metric that picks the best round, such as ``clients/val/accuracy`` where the server's own data are
            not what clients see; its direction is the module's ``mode``. The module's ``monitor`` by default.
        systems: Speed and reliability of the clients; simulates how long a round takes, and who misses it.
        fail_fast: Whether an exception of a client ends the federation. Otherwise the round goes on without it.
        quorum: Share of a round's clients whose replies must be usable, in [0, 1].
        timeout: Seconds to wait for replies; not in one process, where clients answer in turn.
        engine: Where clients work: one after the other ``in_process``, or in processes of ``ray``, Flower's simulation
            engine. A deployment (``flwr run``) has its own, and takes no notice.
        client_cpus: CPUs that a client takes up with ``ray``: as many work at once as there is room for.
        client_gpus: GPUs, or a share of one, that it takes up.

    Raises:
        ValueError: If a value is out of range, naming it.
    """

    def __init__(
        self,
        clients: int = 10,
        rounds: int = 10,
        partition: Partitioner | None = None,
        skew: Skew | None = None,
        held_out: float = 0.0,
        fraction: float = 1.0,
        local_epochs: int | None = None,
        local_steps: int | None = None,
        strategy: Strategy | None = None,
        private: Sequence[str] = (),
        privacy: ClientPrivacy | None = None,
        keep: Literal["nothing", "callbacks", "everything"] = "callbacks",
        log_clients: bool = False,
        evaluate_every: int = 1,
        monitor: str | None = None,
        systems: Systems | None = None,
        fail_fast: bool = True,
        quorum: float = 0.5,
        timeout: float = 3600.0,
        engine: Literal["in_process", "ray"] = "in_process",
        client_cpus: float = 1.0,
        client_gpus: float = 0.0,
    ) -> None:
        for name, value, least in (
            ("clients", clients, 1),
            ("rounds", rounds, 1),
            ("evaluate_every", evaluate_every, 0),
        ):
            if value < least:
                raise ValueError(f"federation.{name} must be at least {least}, got {value}")
        if not 0 <= held_out < 1:
            raise ValueError(f"federation.held_out must be in [0, 1), got {held_out}")
        if not 0 < fraction <= 1:
            raise ValueError(f"federation.fraction must be in (0, 1], got {fraction}")
        if not 0 <= quorum <= 1:
            raise ValueError(f"federation.quorum must be in [0, 1], got {quorum}")
        if local_epochs is not None and local_steps is not None:
            raise ValueError(f"federation: give local_epochs ({local_epochs}) or local_steps ({local_steps}), not both")
        for name, given in (("local_epochs", local_epochs), ("local_steps", local_steps)):
            if given is not None and given < 1:
                raise ValueError(f"federation.{name} must be at least 1, got {given}")
        if not timeout > 0:
            raise ValueError(f"federation.timeout must be positive, got {timeout}")
        for name, share in (("client_cpus", client_cpus), ("client_gpus", client_gpus)):
            if share > 1 and share != int(share):
                raise ValueError(f"federation.{name} must be a whole number or a share below 1, got {share}")
        if not client_cpus > 0:
            raise ValueError(f"federation.client_cpus must be positive, got {client_cpus}")
        if not client_gpus >= 0:
            raise ValueError(f"federation.client_gpus must not be negative, got {client_gpus}")
        _check_wrapped(strategy)
        needs = getattr(strategy, "needs", "")
        if needs and privacy is None:
            raise ValueError(
                f"federation.privacy must be set for {type(strategy).__name__}, which asks clients for {needs}"
            )
        if privacy is not None:
            privacy.check(clients)
            if keep == "everything":
                raise ValueError("federation.keep must be callbacks or nothing with federation.privacy, got everything")
            if isinstance(strategy, selective.SelectiveFedAvg):
                raise ValueError(
                    "federation.privacy does not go with SelectiveFedAvg: clients tell it how large their gradients are"
                )
        for pattern in private:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"federation.private: {pattern!r} is no regular expression: {error}") from None
        self.clients, self.rounds, self.fraction = clients, rounds, fraction
        self.partition = partition if partition is not None else IID()
        self.skew, self.held_out, self.systems = skew, held_out, systems
        self.local_steps = local_steps
        self.local_epochs = 1 if local_epochs is None and local_steps is None else local_epochs
        self.strategy = strategy if strategy is not None else FedAvg()
        self.private, self.privacy, self.keep, self.log_clients = tuple(private), privacy, keep, log_clients
        self.evaluate_every, self.fail_fast, self.quorum, self.timeout = evaluate_every, fail_fast, quorum, timeout
        self.monitor = monitor
        self.engine, self.client_cpus, self.client_gpus = engine, client_cpus, client_gpus

    @property
    def participants(self) -> int:
        """Clients in a round: the fraction of all, rounded, at least 1."""
        return max(1, round(self.fraction * self.clients))

    def is_private(self, key: str) -> bool:
        """Whether the weight of this name stays with the client."""
        return any(pattern.match(key) for pattern in self._private)

    def evaluates(self, server_round: int) -> bool:
        """Whether a round, counted from 1, ends with an evaluation."""
        last = server_round == self.rounds
        return last or (self.evaluate_every > 0 and server_round % self.evaluate_every == 0)

    @cached_property
    def _private(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.private]


def _check_wrapped(strategy: Strategy | None) -> None:
    """Refuse what Flower wraps around a strategy that has to know the module, or be known to the clients."""
    inner = getattr(strategy, "strategy", None)
    while inner is not None:
        if hasattr(inner, "bind"):
            raise ValueError(
                f"federation.strategy: {type(strategy).__name__} cannot wrap {type(inner).__name__}, which looks at "
                "updates as clients send them: use one or the other"
            )
        inner = getattr(inner, "strategy", None)
