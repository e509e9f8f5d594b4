"""Averages of updates whose weights follow their noise: Robust-HDP and what it is compared with.

Malekmohammadi, Yu, Cao. Noise-Aware Algorithm for Heterogeneous Differentially Private Federated Learning (Robust-HDP).
ICML 2024 (arXiv 2406.03519). All of them are post-processing of what clients send, and cost no privacy.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from framework.federated.grid import partition_of
from framework.federated.noise_energy import (
    MINIMUM,
    Energies,
    by_leaving_one_out,
    by_pursuit,
    unusable,
    weights_of,
)
from framework.federated.principal_components import Floats, Penalty
from framework.federated.projection import Grouping, project_each, project_mean, public_clients

EPSILON, NOISE = "declared-epsilon", "noise-energy"
"""Metrics of a reply that a client sends only to a strategy that needs them."""

_log = logging.getLogger(__name__)


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
            value = 1.0 if name is None else _metrics(reply).get(name, float("nan"))
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
        weights, combined = self.combine(server_round, nodes, self._updates(valid), [_metrics(each) for each in valid])
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
        return weights, _mean(weights, updates)

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


class EqualWeights(NoiseAware):
    """Every client has the same weight, however many items it has."""

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        return np.full(len(nodes), 1 / len(nodes))


class RobustHDP(NoiseAware):
    """Weights proportional to one over the noise energy of each client's updates, estimated from the updates alone.

    No client says what privacy it asks for, and none gains by saying so falsely. A crafted *small* update does gain
    weight: this is no defence against poisoning. Energies are estimated in the first round and kept, which is sound as
    long as clients keep their privacy and batch size; those of the participants are turned into weights in each round.

    Args:
        refresh_every: Rounds from one estimate to the next, at least 1; ``None`` estimates once (the authors'). A
            client that was never estimated is, as soon as it takes part.
        estimator: ``pursuit`` (principal component pursuit, the paper's), or ``leave_one_out``, an ablation.
        weighting: ``noise`` (one over the noise energy), or ``snr`` (signal over noise), an ablation.
        floor: Noise energies below this times their median count as that much; positive.
        cap: Largest weight of a client, in (0, 1]; ``None``: none.
        solver: ``admm`` or ``ialm``; see :mod:`framework.federated.principal_components`.
        penalty: Of ``admm``: ``candes``, ``official``, or a positive number.
        tolerance: Of ``admm``, positive.
        max_iterations: Of ``admm``, at least 1.
        chunk: Most parameters that are solved for together, at least 1.
        parameters: Most parameters that are looked at, at least 1; ``None`` for all.

    Raises:
        ValueError: If an argument is out of range, naming it.
    """

    def __init__(
        self,
        refresh_every: int | None = None,
        estimator: Literal["pursuit", "leave_one_out"] = "pursuit",
        weighting: Literal["noise", "snr"] = "noise",
        floor: float = 1e-6,
        cap: float | None = None,
        solver: Literal["admm", "ialm"] = "admm",
        penalty: Penalty | float = "candes",
        tolerance: float = 2e-5,
        max_iterations: int = 500,
        chunk: int = 2000,
        parameters: int | None = 200_000,
    ) -> None:
        super().__init__()
        for name, number in (
            ("refresh_every", refresh_every), ("max_iterations", max_iterations), ("chunk", chunk),
            ("parameters", parameters),
        ):  # fmt: skip
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for name, value, known in (
            ("estimator", estimator, ("pursuit", "leave_one_out")),
            ("weighting", weighting, ("noise", "snr")),
            ("solver", solver, ("admm", "ialm")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name, positive in (("floor", floor), ("tolerance", tolerance)):
            if not 0 < positive < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {positive}")
        if cap is not None and not 0 < cap <= 1:
            raise ValueError(f"cap must be in (0, 1], got {cap}")
        if not (penalty in ("candes", "official") if isinstance(penalty, str) else 0 < penalty < float("inf")):
            raise ValueError(f"penalty must be candes, official or a positive number, got {penalty!r}")
        self.refresh_every, self.estimator, self.weighting, self.floor, self.cap = (
            refresh_every, estimator, weighting, floor, cap
        )  # fmt: skip
        self._pursuit: dict[str, Any] = {
            "solver": solver, "penalty": penalty, "tolerance": tolerance, "max_iterations": max_iterations,
            "chunk": chunk, "parameters": parameters,
        }  # fmt: skip
        self._known: dict[int, tuple[float, float]] = {}  # noise and signal by node

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        due = (server_round - 1) % self.refresh_every == 0 if self.refresh_every else not self._known
        if due or any(node not in self._known for node in nodes):
            if len(nodes) >= MINIMUM:
                self._estimate(nodes, updates, everybody=due)
            elif any(node not in self._known for node in nodes):
                _log.warning(
                    "round %d: %d updates say nothing of their noise, at least %d are needed: equal weights",
                    server_round, len(nodes), MINIMUM,
                )  # fmt: skip
                self.findings["noise/too_few"] = 1.0
                return np.full(len(nodes), 1 / len(nodes))
        noise, signal = np.array([self._known[node] for node in nodes]).T
        self.energies = dict(zip(nodes, noise.tolist(), strict=True))
        return weights_of(noise, self.floor, self.cap, signal if self.weighting == "snr" else None)

    def state_dict(self) -> dict[str, Any]:
        """The estimates."""
        return {"known": {str(node): list(pair) for node, pair in self._known.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the estimates of an earlier process."""
        self._known = {int(node): (float(pair[0]), float(pair[1])) for node, pair in state["known"].items()}

    def _estimate(self, nodes: Sequence[int], updates: Floats, everybody: bool) -> None:
        found = by_leaving_one_out(updates) if self.estimator == "leave_one_out" else self._pursue(updates)
        known = [row for row, node in enumerate(nodes) if node in self._known]
        # Where some keep their estimate of an earlier round, that of the others is told in the same unit.
        scale = 1.0
        if known and not everybody:
            scale = float(np.median([self._known[nodes[row]][0] / max(found.noise[row], 1e-300) for row in known]))
        for row, node in enumerate(nodes):
            if everybody or node not in self._known:
                self._known[node] = (float(found.noise[row]) * scale, float(found.signal[row]) * scale)
        self.findings |= {"noise/iterations": float(found.iterations), "noise/converged": float(found.converged)}

    def _pursue(self, updates: Floats) -> Energies:
        found = by_pursuit(updates, **self._pursuit)
        if not found.converged:
            _log.warning("the noise energies have not settled after %d iterations", found.iterations)
        return found


class Oracle(NoiseAware):
    """Weights proportional to one over the true noise energy, which clients tell: the best that an estimate can do."""

    needs = "noise"

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        return weights_of(np.array([_told(each, NOISE, node) for each, node in zip(metrics, nodes, strict=True)]))


class WeiAvg(NoiseAware):
    """Weights proportional to the epsilon that clients declare (an earlier heuristic)."""

    needs = "epsilon"

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        epsilons = np.array([_told(each, EPSILON, node) for each, node in zip(metrics, nodes, strict=True)])
        return np.asarray(epsilons / epsilons.sum())


class PFA(WeiAvg):
    """Projected federated averaging: private clients count only as far as they agree with the public ones.

    Public are those that declare a large epsilon. Where all are the same, the clients are not divided and this is
    ``WeiAvg``.

    Args:
        variant: ``robust_hdp`` as the authors of Robust-HDP compare with it: each private update is projected, as a
            whole vector, standardised. ``original``: per layer, the mean of the private updates; see
            :mod:`framework.federated.projection`.
        components: Principal components, at least 1.
        grouping: How public and private are told apart: ``gmm``, ``kmeans``, ``single_linkage``, or a threshold that
            the epsilon of a public client reaches.
        weights_by: ``epsilon``, or ``items`` for the original's unweighted form.

    Raises:
        ValueError: If an argument is out of range, naming it.
    """

    def __init__(
        self,
        variant: Literal["robust_hdp", "original"] = "robust_hdp",
        components: int = 1,
        grouping: Grouping | float = "gmm",
        weights_by: Literal["epsilon", "items"] = "epsilon",
    ) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        if isinstance(grouping, str) and grouping not in ("gmm", "kmeans", "single_linkage"):
            raise ValueError(f"grouping must be gmm, kmeans, single_linkage or a threshold, got {grouping!r}")
        for name, value, known in (
            ("variant", variant, ("robust_hdp", "original")), ("weights_by", weights_by, ("epsilon", "items"))
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.variant, self.components, self.grouping, self.weights_by = variant, components, grouping, weights_by

    def combine(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> tuple[Floats, Floats]:
        weights = self.weigh(server_round, nodes, updates, metrics)
        epsilons = np.array([_told(each, EPSILON, node) for each, node in zip(metrics, nodes, strict=True)])
        if self.weights_by == "items":
            items = np.array([each["num-examples"] for each in metrics])
            weights = items / items.sum()
        public = public_clients(epsilons, self.grouping)
        self.findings["pfa/public"] = float(public.sum())
        if public.all() or not public.any():
            return weights, _mean(weights, updates)
        if self.variant == "original":
            return weights, project_mean(updates, public, weights, self.layers(), self.components)
        return weights, weights @ project_each(updates, public, self.components)


def _mean(weights: Floats, updates: Floats) -> Floats:
    """The weighted sum of rows, in their own precision: there may be gigabytes of them."""
    return np.asarray(weights.astype(updates.dtype) @ updates)


def _metrics(reply: Message) -> dict[str, float]:
    record = next(iter(reply.content.metric_records.values()))
    return {name: float(cast(float, value)) for name, value in record.items() if not isinstance(value, list)}


def _told(metrics: Mapping[str, float], name: str, node: int) -> float:
    value = metrics.get(name, float("nan"))
    if not 0 < value < float("inf"):
        raise ValueError(f"client {partition_of(node)} sent {name} {value}: it must be a positive number")
    return value
