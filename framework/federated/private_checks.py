"""What private clients could not train is refused before a federation begins, in words that it can follow."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from framework.federated.privacy_ledger import check_budgets
from framework.federated.settings import Federation
from framework.privacy.checks import check_model, check_trainer

_ADVICE = ": set fix: true"
"""What the callback can do about a layer, and a federation cannot: all clients and the server need the same weights."""


def check_private(federation: Federation, module: LightningModule, data: LightningDataModule, trainer: Trainer) -> None:
    """Compare module, data and trainer with what DP-SGD asks for.

    Args:
        federation: The settings, with privacy.
        module: The module.
        data: Its data.
        trainer: One as a client has it.

    Raises:
        ValueError: Naming the setting or the layers, and what to do about them.
    """
    privacy = federation.privacy
    pieces = privacy is not None and privacy.max_physical_batch is not None
    ghost = privacy is not None and privacy.grad_sample_mode == "ghost"
    trainer.datamodule = data  # type: ignore[attr-defined] # as in fit: its hooks count, too
    check_trainer(trainer, module, adaptive=False, pieces=pieces, ghost=ghost)
    try:
        check_model(module)
    except ValueError as error:
        told, advised, _ = str(error).partition(_ADVICE)
        if not advised:
            raise
        raise ValueError(
            f"{told}: federation.privacy replaces no layers, so replace it in the module (BatchNorm by GroupNorm or "
            "LayerNorm, others by those of opacus.layers)"
        ) from None


def check_spending(federation: Federation, items: Sequence[int], own_batch_size: int | None) -> None:
    """Compare batch sizes and budgets with what the clients hold.

    Args:
        federation: The settings.
        items: Number of examples of each client.
        own_batch_size: That of the DataModule's loader, where it counts.

    Raises:
        ValueError: If a client has fewer examples than a batch, or a budget that no noise keeps.
    """
    privacy = federation.privacy
    if privacy is not None:
        privacy.check_sizes(items, own_batch_size)
        check_budgets(
            privacy, items, own_batch_size, federation.local_steps, federation.local_epochs, federation.rounds
        )
