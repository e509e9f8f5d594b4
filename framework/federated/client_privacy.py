"""Clients that train with differential privacy, each with a budget of its own for its whole participation.

Examples of a client are protected from everyone who sees its updates, the server included. Clients hold different
examples, so their guarantees hold beside one another (parallel composition); the rounds of one client add up in one
accountant, whose history lies in the client's own state. Who takes part is known to the server: there is no
amplification by the choice of clients, and only rounds that a client takes part in cost anything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from framework.federated.privacy_levels import batch_sizes, epsilons

Accountant = Literal["rdp", "prv", "classic_rdp"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientPrivacy:
    """DP-SGD in every client: section ``federation.privacy``.

    The noise of a client is solved for once, for as many steps as it would take if it took part in all rounds.

    Args:
        epsilon: Privacy budget of a client for all rounds together: a number for all, a list with one for each, or
            ``Dist1`` to ``Dist9`` (20, 40 or 60 clients), the distributions of the paper's code. Positive.
        delta: Probability with which the guarantee may fail, in (0, 1), one for all or a list. Should be below one over
            the client's number of items.
        batch_size: Expected size of a Poisson batch: a number, a list, or ``paper`` for the list of the paper's code;
            ``None`` for that of the DataModule.
        max_grad_norm: Norm to which the gradient of each example is clipped, positive.
        accountant: ``rdp`` (quick), ``prv`` (less noise for the same budget, takes some seconds for each client before
            its first round) or ``classic_rdp`` (more noise; the conversion that the paper's code used).
        minimum: Whether all train with the smallest budget of all: the common way to treat unequal wishes.
        declared: The epsilon that clients tell to strategies that ask for it: a number for all, or a list. ``None``:
            the truth.
        liars: How many clients, those with the smallest budgets, declare ``lie`` instead. It changes nothing else.
        lie: What they declare, positive.
        max_physical_batch: The most examples in memory at a time; ``None`` for the whole batch.
        grad_sample_mode: ``hooks``, or ``ghost`` for large models, of whose gradients of examples only norms are made.
        secret: Whether batches and noise are drawn from the operating system's randomness. Drawn from the seed of the
            run, who knows the seed can take the noise away again: right for simulations only. ``None``: secret on nodes
            of a deployment, from the seed in simulations.
        ledger: Folder in which what each client has spent is kept beside its state, as ``client-<number>.json``; of the
            two, the one that accounts for more is believed. With it a budget is one for all runs on the same data; each
            data set needs a folder of its own. ``None``: on nodes of a deployment a folder of the user's state for
            each run, ``~/.local/state/fulgurite/privacy/<run id>``; in simulations nothing beside the state.
        planned_rounds: Rounds of participation for which the noise is solved, at least 1; ``None`` for the rounds of
            the federation. More of them leave something for a later run on the same ``ledger``; with fewer, clients
            refuse to train when they have taken part in so many.

    Raises:
        ValueError: If a value is out of range, naming it.
    """

    epsilon: float | list[float] | str = 1.0
    delta: float | list[float] = 1e-5
    batch_size: int | list[int] | str | None = None
    max_grad_norm: float = 1.0
    accountant: Accountant = "rdp"
    minimum: bool = False
    declared: float | list[float] | None = None
    liars: int = 0
    lie: float = 10.0
    max_physical_batch: int | None = None
    grad_sample_mode: Literal["hooks", "ghost"] = "hooks"
    secret: bool | None = None
    ledger: str | None = None
    planned_rounds: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_grad_norm", self.max_grad_norm), ("lie", self.lie)):
            if not 0 < value < float("inf"):
                raise ValueError(f"federation.privacy.{name} must be positive and finite, got {value}")
        for delta in self.delta if isinstance(self.delta, list) else [self.delta]:
            if not 0 < delta < 1:
                raise ValueError(f"federation.privacy.delta must be in (0, 1), got {delta}")
        for name, count in (("max_physical_batch", self.max_physical_batch), ("planned_rounds", self.planned_rounds)):
            if count is not None and count < 1:
                raise ValueError(f"federation.privacy.{name} must be at least 1, got {count}")
        if self.grad_sample_mode not in ("hooks", "ghost"):
            raise ValueError(
                f"federation.privacy.grad_sample_mode must be hooks or ghost, got {self.grad_sample_mode!r}"
            )
        if self.accountant not in get_args(Accountant):
            known = ", ".join(get_args(Accountant))
            raise ValueError(f"federation.privacy.accountant must be one of {known}, got {self.accountant!r}")

    def check(self, clients: int) -> None:
        """Compare with the number of clients.

        Args:
            clients: Number of clients.

        Raises:
            ValueError: If there is no budget, delta, batch size or declaration for each of them.
        """
        try:
            epsilons(self.epsilon, clients)
            epsilons(self.delta, clients, "delta")
            if self.declared is not None:
                epsilons(self.declared, clients, "declared epsilon")
            if self.batch_size is not None:
                batch_sizes(self.batch_size, clients)
        except ValueError as error:
            raise ValueError(f"federation.privacy: {error}") from None
        if not 0 <= self.liars <= clients:
            raise ValueError(f"federation.privacy.liars must be in [0, {clients}], got {self.liars}")

    def budget(self, client: int, clients: int) -> tuple[float, float]:
        """Epsilon and delta of a client.

        Args:
            client: Its number.
            clients: Number of clients.
        """
        wished = epsilons(self.epsilon, clients)
        return min(wished) if self.minimum else wished[client], epsilons(self.delta, clients)[client]

    def declares(self, client: int, clients: int) -> float:
        """The epsilon that a client tells; arguments as for ``budget``."""
        wished = epsilons(self.epsilon, clients)
        strictest = sorted(range(clients), key=lambda each: (wished[each], each))[: self.liars]
        if client in strictest:
            return self.lie
        told = self.budget(client, clients)[0] if self.declared is None else epsilons(self.declared, clients)[client]
        return float(told)

    def rounds_of(self, rounds: int) -> int:
        """Rounds of participation for which the noise is solved.

        Args:
            rounds: Rounds of the federation.
        """
        return rounds if self.planned_rounds is None else self.planned_rounds

    def size(self, client: int, clients: int, own: int | None) -> int:
        """The batch size of a client.

        Args:
            client: Its number.
            clients: Number of clients.
            own: What the DataModule's loader has.

        Raises:
            ValueError: If neither says.
        """
        if self.batch_size is not None:
            return batch_sizes(self.batch_size, clients)[client]
        if own is None:
            raise ValueError("federation.privacy.batch_size must be given: the train loader has none")
        return own

    def check_sizes(self, items: Sequence[int], own: int | None) -> None:
        """Compare with what the clients hold.

        Args:
            items: Number of examples of each client.
            own: Batch size of the DataModule's loader.

        Raises:
            ValueError: If a client has fewer examples than a batch.
        """
        for client, count in enumerate(items):
            size = self.size(client, len(items), own)
            if size > count:
                raise ValueError(
                    f"federation.privacy.batch_size of client {client} must be at most its {count} items, got {size}"
                )
        loose = [client for client, count in enumerate(items) if self.budget(client, len(items))[1] >= 1 / count]
        if loose:
            _log.warning(
                "federation.privacy.delta of %d clients (the first is %d) is not below one over their number of items: "
                "publishing a whole example would be allowed with that probability", len(loose), loose[0],
            )  # fmt: skip
