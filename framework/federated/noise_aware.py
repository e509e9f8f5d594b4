"""Averages of updates whose weights follow their noise: Robust-HDP and what it is compared with.

Malekmohammadi, Yu, Cao. Noise-Aware Algorithm for Heterogeneous Differentially Private Federated Learning (Robust-HDP).
ICML 2024 (arXiv 2406.03519). All of them are post-processing of what clients send, and cost no privacy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from framework.federated.grid import partition_of
from framework.federated.noise_aware_base import EPSILON, NOISE, NoiseAware, mean_update, told
from framework.federated.noise_energy import (
    DIVERGED,
    MINIMUM,
    Energies,
    by_leaving_one_out,
    by_pursuit,
    diverged,
    weights_of,
)
from framework.federated.principal_components import Floats, Penalty
from framework.federated.projection import Grouping, project_each, project_mean, public_clients

_log = logging.getLogger(__name__)


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
    An update that has diverged in the round of an estimate stays out of it, and its client is estimated the next time.

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
        tolerance: float = 2e-6,
        max_iterations: int = 2000,
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
        self._warned: set[int] = set()  # nodes whose updates were set aside

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        due = (server_round - 1) % self.refresh_every == 0 if self.refresh_every else not self._known
        passing: dict[int, tuple[float, float]] = {}  # what holds for this round alone
        if due or any(node not in self._known for node in nodes):
            passing = self._diverged(server_round, nodes, updates)
            rows = [row for row, node in enumerate(nodes) if node not in passing]
            others = [nodes[row] for row in rows]
            new = any(node not in self._known for node in others)
            if len(others) >= MINIMUM and (due or new):
                passing |= self._estimate(server_round, others, updates[rows] if passing else updates, everybody=due)
            elif new:
                _log.warning(
                    "round %d: %d updates say nothing of their noise, at least %d are needed: equal weights",
                    server_round, len(others), MINIMUM,
                )  # fmt: skip
                self.findings["noise/too_few"] = 1.0
                return np.array([float(node not in passing) for node in nodes]) / len(others)
        noise, signal = np.array([passing.get(node) or self._known[node] for node in nodes]).T
        self.energies = dict(zip(nodes, noise.tolist(), strict=True))
        return weights_of(noise, self.floor, self.cap, signal if self.weighting == "snr" else None)

    def state_dict(self) -> dict[str, Any]:
        """The estimates."""
        return {"known": {str(node): list(pair) for node, pair in self._known.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the estimates of an earlier process."""
        if "known" not in state:
            raise ValueError("the state to go on from holds no noise energies: another strategy has left it")
        self._known = {int(node): (float(pair[0]), float(pair[1])) for node, pair in state["known"].items()}

    def _diverged(self, server_round: int, nodes: Sequence[int], updates: Floats) -> dict[int, tuple[float, float]]:
        """Noise and signal of updates beside which those of others could not be seen: all of them counts as noise."""
        found = {nodes[row]: (squared, 0.0) for row, squared in diverged(updates).items()}
        for node in found.keys() - self._warned:
            self._warned.add(node)
            _log.warning(
                "round %d: the update of client %d is more than %g times as long as most: it counts as noise, and no "
                "estimate is kept", server_round, partition_of(node), DIVERGED,
            )  # fmt: skip
        return found

    def _estimate(
        self, server_round: int, nodes: Sequence[int], updates: Floats, everybody: bool
    ) -> dict[int, tuple[float, float]]:
        """Estimate and keep; returns what stands in for estimates that cannot be right."""
        found = by_leaving_one_out(updates) if self.estimator == "leave_one_out" else self._pursue(updates)
        known = [row for row, node in enumerate(nodes) if node in self._known and found.noise[row] > 0]
        # Where some keep their estimate of an earlier round, that of the others is told in the same unit.
        scale, passing = 1.0, {}
        if known and not everybody:
            scale = float(np.median([self._known[nodes[row]][0] / max(found.noise[row], 1e-300) for row in known]))
        for row, node in enumerate(nodes):
            if not everybody and node in self._known:
                continue
            if found.noise[row] > 0:
                self._known[node] = (float(found.noise[row]) * scale, float(found.signal[row]) * scale)
                continue
            # No update of a private client is without noise; kept, this would give it all the weight from now on.
            _log.warning(
                "round %d: no noise was found in the update of client %d: its norm counts instead, and is not kept",
                server_round, partition_of(node),
            )  # fmt: skip
            passing[node] = (float(np.linalg.norm(updates[row].astype(np.float64))) ** 2 * scale, 0.0)
        self.findings |= {"noise/iterations": float(found.iterations), "noise/converged": float(found.converged)}
        return passing

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
        return weights_of(np.array([told(each, NOISE, node) for each, node in zip(metrics, nodes, strict=True)]))


class WeiAvg(NoiseAware):
    """Weights proportional to the epsilon that clients declare (an earlier heuristic)."""

    needs = "epsilon"

    def weigh(
        self, server_round: int, nodes: Sequence[int], updates: Floats, metrics: Sequence[Mapping[str, float]]
    ) -> Floats:
        epsilons = np.array([told(each, EPSILON, node) for each, node in zip(metrics, nodes, strict=True)])
        with np.errstate(over="ignore"):
            total = epsilons.sum()
        if not np.isfinite(total):  # anybody may declare 1e308
            epsilons = epsilons / epsilons.max()
            total = epsilons.sum()
        return np.asarray(epsilons / total)


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
        epsilons = np.array([told(each, EPSILON, node) for each, node in zip(metrics, nodes, strict=True)])
        if self.weights_by == "items":
            items = np.array([each["num-examples"] for each in metrics])
            weights = items / items.sum()
        public = public_clients(epsilons, self.grouping)
        self.findings["pfa/public"] = float(public.sum())
        if public.all() or not public.any():
            return weights, mean_update(weights, updates)
        if self.variant == "original":
            return weights, project_mean(updates, public, weights, self.layers(), self.components)
        return weights, weights @ project_each(updates, public, self.components)
