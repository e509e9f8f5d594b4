"""What a client may spend and has spent: kept in its Flower context, or a file of its node, and told to nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from flwr.app import ConfigRecord
from lightning.pytorch import LightningModule, Trainer

from framework.federated.client_privacy import ClientPrivacy
from framework.federated.ledger_file import LedgerFile, complaint
from framework.federated.noise_aware_base import EPSILON, NOISE
from framework.privacy.accounting import (
    epsilon_after,
    epsilon_spent,
    history_to_lists,
    load_history,
    make_accountant,
    noise_multiplier,
    steps_taken,
)
from framework.privacy.dp_sgd import DPSGD
from framework.privacy.sampling import steps_per_epoch

solved = cache(noise_multiplier)
"""The least noise for a budget; clients with the same budget and sizes share the search."""


class Ledger:
    """What one client may spend, and has spent.

    Args:
        privacy: The settings.
        client: Number of the client.
        clients: Number of clients.
        items: Its number of examples.
        batch_size: Expected size of its batches.
        steps: Steps that it takes in a round.
        rounds: Rounds of the federation.
        record: What an earlier round left; ``None`` at first.
        file: Where what was spent is kept besides; ``None``: nowhere. Who makes a ledger with one holds it.

    Attributes:
        epsilon: The budget.
        delta: Its delta.
        rate: Probability with which an example is in a batch.
        noise: Noise multiplier, solved for in the first round and kept.
        accountant: With the history of all rounds so far.

    Raises:
        ValueError: If the batches do not go with the items, the budget is not the one that the client began with,
            another accountant kept the history, or there is no history in the record.
    """

    def __init__(
        self,
        privacy: ClientPrivacy,
        client: int,
        clients: int,
        items: int,
        batch_size: int,
        steps: int,
        rounds: int,
        record: ConfigRecord | None = None,
        file: LedgerFile | None = None,
    ) -> None:
        if not 1 <= batch_size <= items:
            raise ValueError(
                f"federation.privacy.batch_size of client {client} must be in [1, {items}], its number of items, "
                f"got {batch_size}"
            )
        self.epsilon, self.delta = privacy.budget(client, clients)
        self.rate, self.steps = batch_size / items, steps
        self.accountant = make_accountant(privacy.accountant)
        self._privacy, self._batch_size, self._declared = privacy, batch_size, privacy.declares(client, clients)
        self._file = file
        record = _longer(None if file is None else file.read(), record)
        if record is None:
            self.planned = steps * privacy.rounds_of(rounds)
            self.noise = solved(self.epsilon, self.delta, self.rate, self.planned, privacy.accountant)
            return
        if complaint(record):
            raise ValueError(f"the state of client {client} is no ledger of privacy: {complaint(record)}")
        if (record["epsilon"], record["delta"]) != (self.epsilon, self.delta):
            raise ValueError(f"client {client} began with another privacy budget: a budget is for the whole federation")
        self.planned, self.noise = int(cast(int, record["planned"])), float(cast(float, record["noise_multiplier"]))
        load_history(self.accountant, cast(Mapping[str, Any], record))

    def refusal(self) -> str:
        """Why the client does not train another round; empty if it may. It does not say how large the budget is."""
        history = self.accountant.history
        as_planned = all((noise, rate) == (self.noise, self.rate) for noise, rate, _ in history)
        if as_planned and steps_taken(self.accountant) + self.steps <= self.planned:
            return ""  # what the noise was solved for: no need to count, which takes its time with prv
        after = epsilon_after(self.accountant, self.noise, self.rate, self.steps, self.delta)
        return "" if after <= self.epsilon else "another round would pass its privacy budget"

    def callback(self, seed: int | None) -> DPSGD:
        """What makes a round of training private; it goes on with the accountant of this ledger.

        Args:
            seed: Of batches and noise, which also depend on the steps taken so far; ``None`` for secret ones.
        """
        privacy = self._privacy
        self._callback = DPSGD(
            delta=self.delta, noise_multiplier=self.noise, max_grad_norm=privacy.max_grad_norm,
            accountant=self.accountant, batch_size=self._batch_size, max_physical_batch=privacy.max_physical_batch,
            grad_sample_mode=privacy.grad_sample_mode, check_loss=not self.accountant.history, log_epsilon=False,
            seed=seed,
        )  # fmt: skip
        return self._callback

    def close(self, trainer: Trainer, module: LightningModule) -> ConfigRecord:
        """The ledger after a round, for the client's state; its file, if it has one, is written.

        Args:
            trainer: Which has trained.
            module: What it has trained.

        Raises:
            RuntimeError: If batches were drawn at another rate than the noise was solved for.
        """
        if self.accountant.history[-1][1] != self.rate:
            raise RuntimeError(
                "the train loader draws from another number of items than the client holds: privacy was not planned so"
            )
        trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        rate = math.sqrt(self._callback.squared_rates / trainer.global_step)
        energy = noise_energy(
            trainer.global_step, rate, trained, self._privacy.max_grad_norm, self.noise, self._batch_size
        )
        record = ConfigRecord({
            "epsilon": self.epsilon, "delta": self.delta, "planned": self.planned, "noise_multiplier": self.noise,
            "energy": energy, **history_to_lists(self.accountant),
        })  # fmt: skip
        if self._file is not None:
            self._file.write(record)  # before anything is sent
        return record

    def told(self, needs: str, record: ConfigRecord) -> dict[str, float]:
        """What the client tells a strategy that needs more than its update.

        Args:
            needs: ``epsilon``, ``noise``, or nothing.
            record: As ``close`` made it.
        """
        if needs == "epsilon":
            return {EPSILON: self._declared}
        return {NOISE: float(cast(float, record["energy"]))} if needs == "noise" else {}


def check_budgets(
    privacy: ClientPrivacy, items: Sequence[int], own: int | None, steps: int | None, epochs: int | None, rounds: int
) -> None:
    """Solve the noise of all clients, before anything is trained; what was found is kept for them.

    Args:
        privacy: The settings.
        items: Number of examples of each client.
        own: Batch size of the DataModule's loader.
        steps: Local steps in a round, or
        epochs: local epochs.
        rounds: Rounds of the federation.

    Raises:
        ValueError: If no noise keeps the budget of a client, naming it.
    """
    for client, count in enumerate(items):
        size = privacy.size(client, len(items), own)
        planned = steps_of(count, size, epochs, steps) * privacy.rounds_of(rounds)
        arguments = (*privacy.budget(client, len(items)), size / count, planned)
        try:
            try:  # prv takes seconds for each, and needs no more noise than rdp: what rdp can keep, it can
                solved(*arguments, "rdp" if privacy.accountant == "prv" else privacy.accountant)
            except ValueError:
                solved(*arguments, privacy.accountant)
        except ValueError as error:
            raise ValueError(f"federation.privacy of client {client}: {error}") from None


def steps_of(items: int, batch_size: int, epochs: int | None, steps: int | None) -> int:
    """Steps of a round.

    Args:
        items: Examples of the client.
        batch_size: Expected size of a batch.
        epochs: Local epochs, or
        steps: local steps.
    """
    return steps if steps is not None else cast(int, epochs) * steps_per_epoch(items, batch_size)


def _longer(first: ConfigRecord | None, second: ConfigRecord | None) -> ConfigRecord | None:
    """The record that accounts for more steps, the first if they are as long; what was spent is never forgotten."""
    if first is None or second is None:
        return second if first is None else first
    steps = [sum(cast(list[int], each["steps"])) for each in (first, second)]
    return second if steps[1] > steps[0] else first


def spent(record: ConfigRecord) -> float:
    """The epsilon that a client has spent, from its state.

    Args:
        record: As ``Ledger.close`` made it.
    """
    kind = str(record["mechanism"])
    accountant = load_history(make_accountant(kind), cast(Mapping[str, Any], record))
    return epsilon_spent(accountant, float(cast(float, record["delta"])))


def noise_energy(
    steps: int, lr: float, parameters: int, max_grad_norm: float, multiplier: float, batch_size: float
) -> float:
    """Squared norm of the noise in an update of plain SGD: ``E eta^2 p c^2 z^2 / b^2``.

    With momentum or another optimiser it is right up to a factor, which all clients share if they take as many steps.

    Args:
        steps: ``E``, of the round.
        lr: ``eta``; the root of its mean square where it changes.
        parameters: ``p``, trained.
        max_grad_norm: ``c``.
        multiplier: ``z``.
        batch_size: ``b``, expected.
    """
    return steps * parameters * (lr * max_grad_norm * multiplier / batch_size) ** 2
