"""Selective layer fine-tuning: each round the server decides which layers each client trains.

Sun, Xie, Ding, Li, Zhang. Exploring Selective Layer Fine-Tuning in Federated Learning. 2024 (arXiv 2408.15600). A round
takes two trips: clients score their layers on the weights of this round, the server chooses under their budgets, and
clients train, and send, what was chosen for them together with the common layers (the head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import nn

from framework.errors import near
from framework.federated import selection, wire
from framework.federated.costs import backward_flops, backward_seconds
from framework.federated.grid import partition_of
from framework.federated.importance import KINDS
from framework.federated.layer_groups import COMMON, FROZEN, LayerGroups
from framework.federated.probe import Loss
from framework.federated.strategies import FedAvgPerKey

QUERY = "query.importance"
SCORED = ("p1", "top_scores", "snr", "rgn")
"""Choices that need scores of the clients."""
CHOICES = (*selection.STRATEGIES, "snr", "rgn")


class SelectiveFedAvg(FedAvgPerKey):
    """Federated averaging layer by layer, over layers chosen for each client in each round.

    Args:
        select: How layers are chosen. ``p1``: large importance and agreement between clients (the paper's). Own best
            layers by importance (``top_scores``), signal-to-noise (``snr``) or relative gradient norm (``rgn``). Fixed:
            ``full``, ``head_only``, ``top`` (next to the output), ``bottom``, ``both``.
        budget: Layers that a client may train in a round; two numbers draw one for each client, once, from a truncated
            normal distribution between them.
        lam: Weight of disagreement between clients in ``p1``, at least 0, on scores normalised by ``scale``.
        importance: Score of a layer for ``p1`` and ``top_scores``: ``norm``, ``norm_per_batch``, ``rgn`` or ``snr``.
        batches: Batches that a client scores its layers on; ``None`` for all.
        every: Rounds from one choice to the next; in between clients keep theirs, as long as all of a round have one.
        scale: What scores are divided by: their ``max``, their ``mean``, or ``none``.
        costs: What a layer costs: ``one``, or in units of the mean layer its number of ``parameters``, the ``flops`` of
            its backward pass, or the ``seconds`` that this takes, measured on the server before the first round (such
            a run cannot be repeated to the bit). See :mod:`framework.federated.costs`.
        fill_budget: Whether ``p1`` spends what agreement left of a budget on a client's own best layers.
        groups: Patterns of parameter names by layer, from input to output; ``None`` finds the blocks of the module.
        common: Patterns of what every client trains; ``None`` for the head.
        frozen: Patterns of what nobody trains.
        time_limit: Seconds for solving ``p1``.

    Raises:
        ValueError: If an argument is out of range, naming it.
    """

    def __init__(
        self,
        select: str = "p1",
        budget: int | tuple[int, int] = 1,
        lam: float = 0.1,
        importance: str = "norm",
        batches: int | None = None,
        every: int = 1,
        scale: Literal["max", "mean", "none"] = "max",
        costs: Literal["one", "parameters", "flops", "seconds"] = "one",
        fill_budget: bool = True,
        groups: dict[str, list[str]] | None = None,
        common: list[str] | None = None,
        frozen: list[str] | None = None,
        time_limit: float = 10.0,
    ) -> None:
        super().__init__()
        for name, value, known in (("select", select, CHOICES), ("importance", importance, KINDS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{near(value, known)}")
        for name, number in (("batches", batches), ("every", every)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        low, high = (budget, budget) if isinstance(budget, int) else budget
        if not 0 <= low <= high:
            raise ValueError(f"budget must be a number of layers, or two with the smaller one first, got {budget}")
        if not 0 <= lam < float("inf"):
            raise ValueError(f"lam must be finite and not negative, got {lam}")
        self.select, self.budget, self.lam, self.every, self.scale = select, (low, high), lam, every, scale
        self.kind, self.batches, self.costs = select if select in ("snr", "rgn") else importance, batches, costs
        self.fill_budget, self.time_limit = fill_budget, time_limit
        self._patterns = (groups, common, frozen or [])
        self._groups: LayerGroups | None = None
        self._budgets: np.ndarray | None = None
        self._costs: np.ndarray | None = None
        self._chosen: dict[int, list[str]] = {}
        self.failures: dict[int, Message] = {}  # of the first trip, for the server to judge
        self.traffic: dict[int, tuple[int, int]] = {}
        self.notes: dict[str, float] = {}

    def groups_of(self, module: nn.Module) -> LayerGroups:
        """The layers of a module.

        Args:
            module: The module that is trained.

        Raises:
            ValueError: If patterns match nothing or overlap, or no blocks are found.
        """
        groups, common, frozen = self._patterns
        return LayerGroups.of(module, groups, common, frozen)

    def bind(self, module: nn.Module, clients: int, seed: int, probe: Callable[[], tuple[Loss, Any]]) -> None:
        """Learn what is trained at what cost, and draw the clients' budgets; called once, before the first round.

        Args:
            module: The module.
            clients: Number of clients.
            seed: Seed of the run.
            probe: Gives the module's loss and a batch, to count or measure costs on.

        Raises:
            ValueError: If a budget exceeds the number of layers.
        """
        self._groups = self.groups_of(module)
        low, high = self.budget
        if high > len(self._groups.names):
            raise ValueError(f"budget must be at most {len(self._groups.names)}, the number of layers, got {high}")
        self._costs = self._costs_of(module, self._groups, probe)
        self._budgets = (
            selection.equal_budgets(low, clients)
            if low == high
            else selection.truncated_normal_budgets(low, high, clients, seed)
        )

    def describe(self) -> str:
        """What is divided how, in one line: a division that was found by itself is worth a look."""
        assert self._groups is not None, "bind has not been called"
        sizes = self._groups.sizes
        return (
            f"layers: {', '.join(f'{name} ({sizes[name]:,})' for name in self._groups.names)}; "
            f"trained by all: {sizes[COMMON]:,} weights; by nobody: {sizes[FROZEN]:,}"
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for scores where they are needed, choose, and say to each client what it trains."""
        nodes = sorted(grid.get_node_ids())
        self.failures, self.traffic, self.notes = {}, {}, {}
        stale = (server_round - 1) % self.every == 0 or any(node not in self._chosen for node in nodes)
        if stale:
            nodes = self._choose(server_round, arrays, nodes, grid)
        messages = []
        for node in nodes:
            own = ConfigRecord({**config, "layers": self._chosen[node]})
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
            messages.append(Message(content, node, MessageType.TRAIN))
        return messages

    def state_dict(self) -> dict[str, Any]:
        """The present choice, which later rounds may keep, and what layers cost."""
        costs = None if self._costs is None else self._costs.tolist()
        return {"chosen": {str(node): list(layers) for node, layers in self._chosen.items()}, "costs": costs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the choice of an earlier process."""
        self._chosen = {int(node): list(layers) for node, layers in state["chosen"].items()}
        if state.get("costs") is not None:  # measured once for all rounds
            self._costs = np.array(state["costs"])

    def _costs_of(
        self, module: nn.Module, groups: LayerGroups, probe: Callable[[], tuple[Loss, Any]]
    ) -> np.ndarray | None:
        if self.costs == "one":
            return None
        if self.costs == "parameters":
            found = np.array([groups.sizes[name] for name in groups.names], dtype=np.float64)
        else:
            count = backward_flops if self.costs == "flops" else backward_seconds
            loss, batch = probe()
            found = count(module, loss, batch, groups)
        return found / found.mean()

    def _choose(self, server_round: int, arrays: ArrayRecord, nodes: Sequence[int], grid: Grid) -> list[int]:
        """Choose for all nodes that answer; returns those."""
        assert self._groups is not None, "bind has not been called"
        assert self._budgets is not None
        layers = self._groups.names
        scores: np.ndarray | None = None
        sizes = np.ones(len(nodes))
        if self.select in SCORED:
            answers = self._scores(server_round, arrays, nodes, grid)
            nodes = [node for node in nodes if node in answers]
            if not nodes:
                return []
            scores = selection.normalise([answers[node][0] for node in nodes], self.scale)
            sizes = np.array([answers[node][1] for node in nodes])
        budgets = np.array([self._budgets[partition_of(node)] for node in nodes], dtype=np.float64)
        how = "top_scores" if self.select in ("snr", "rgn") else self.select
        made = selection.select(
            how, budgets, len(layers), scores, lam=self.lam, costs=self._costs, fill_budget=self.fill_budget,
            time_limit=self.time_limit,
        )  # fmt: skip
        for node, mask in zip(nodes, made.masks, strict=True):
            self._chosen[node] = list(self._groups.chosen(mask))
        if scores is not None:
            self._note(made, answers, nodes, sizes)
        return list(nodes)

    def _scores(
        self, server_round: int, arrays: ArrayRecord, nodes: Sequence[int], grid: Grid
    ) -> dict[int, tuple[list[float], float]]:
        """The first trip: scores and numbers of items by node."""
        config = ConfigRecord({"server-round": server_round, "kind": self.kind, "batches": self.batches or 0})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        answers = {}
        for reply in grid.send_and_receive([Message(content, node, QUERY) for node in nodes]):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.failures[node] = reply
                continue
            record = next(iter(reply.content.metric_records.values()))
            scores = [float(value) for value in cast(list[float], record["scores"])]
            answers[node] = (scores, float(cast(float, record["num-examples"])))
            self.traffic[node] = (wire.size(arrays), 8 * len(scores))
        return answers

    def _note(
        self,
        made: selection.Selection,
        answers: Mapping[int, tuple[list[float], float]],
        nodes: Sequence[int],
        sizes: np.ndarray,
    ) -> None:
        """The two error terms of the paper's bound.

        The server knows the norm of each client's gradient, not of their mean, which is at most the mean of the norms
        (Jensen): ``left_out`` is that bound.
        """
        raw = np.array([answers[node][0] for node in nodes])
        if self.kind == "norm":
            bound = (sizes / sizes.sum()) @ raw
            terms = selection.error_terms(bound, made.masks, sizes)
            self.notes = {"left_out": terms.left_out, "disagreement": terms.disagreement}
        if np.isfinite(made.objective):
            self.notes |= {"objective": made.objective, "filled_objective": made.filled_objective}
            self.notes["optimal"] = float(made.optimal)
        self.notes["scale"] = selection.scale_of(raw, self.scale)
