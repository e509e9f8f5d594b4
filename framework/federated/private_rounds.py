"""What surrounds a private round of a client: one at a time, nothing sent without noise, no secrets in error texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from lightning.pytorch import LightningModule

from framework.federated import wire
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.ledger_file import LedgerFile, default_folder

BUSY = "another round of this client is in training"
"""Why a client refuses a message that comes while it works on another."""

_log = logging.getLogger(__name__)


@contextmanager
def held_ledger(
    privacy: ClientPrivacy, partition: int, run_id: int, deployed: bool
) -> Iterator[tuple[LedgerFile | None, bool]]:
    """The file of a client's ledger, for one message alone.

    Args:
        privacy: The settings.
        partition: Number of the client.
        run_id: Flower's id of the run.
        deployed: Whether this is a node of a deployment, where messages may come at once, and state in memory is lost.

    Yields:
        The file, ``None`` where a simulation keeps none, and whether nobody else holds it.
    """
    folder = default_folder(run_id) if privacy.ledger is None and deployed else privacy.ledger
    if folder is None:
        yield None, True
        return
    file = LedgerFile(folder, partition)
    with file.held() as free:
        yield file, free


@contextmanager
def discreet(what: str, partition: int, deployed: bool) -> Iterator[None]:
    """Tell the server of a deployment that something failed, and the log of the client why.

    Texts of errors name budgets, batch sizes and numbers of items, and may quote data.

    Args:
        what: What may fail, such as ``training``.
        partition: Number of the client.
        deployed: Whether this is a node of a deployment; in simulations whoever reads the error has configured it.
    """
    try:
        yield
    except Exception as error:
        if not deployed:
            raise
        _log.error("client %d: %s: %s", partition, type(error).__name__, error, exc_info=error)
        raise RuntimeError(f"private {what} failed; the reason is in the client's log") from None


def refusal(message: Message, reason: str) -> Message:
    """A reply that says why a client does not train, and nothing else: a zero update would count as one without noise.

    Args:
        message: What it replies to.
        reason: Why.
    """
    return Message(RecordDict({wire.REFUSAL: ConfigRecord({"reason": reason})}), reply_to=message)


def with_noise(arrays: ArrayRecord, received: ArrayRecord, module: LightningModule) -> tuple[ArrayRecord, list[str]]:
    """What a private client sends: its trained weights, to which noise was added, and all else as it came.

    A buffer that the forward pass fills from the data, such as running statistics, would otherwise be sent as it is.

    Args:
        arrays: The weights after training, by key.
        received: Those of the server's message, which hold at least the same keys.
        module: The module, after training.

    Returns:
        The arrays, and the keys of those that had changed without noise.
    """
    # Tied weights have several names, and each is a key of its own.
    named = module.named_parameters(remove_duplicate=False)
    trained = {name for name, weight in named if weight.requires_grad}
    changed = [key for key, array in arrays.items() if key not in trained and array.data != received[key].data]
    return ArrayRecord({key: array if key in trained else received[key] for key, array in arrays.items()}), changed
