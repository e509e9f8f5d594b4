"""The user's module, data and trainer in one process, for every client in it and for the server's own evaluation."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import Any
from unittest.mock import patch

import torch
from lightning.fabric.utilities import registry
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar

from framework.federated.module_copies import ModuleCopies
from framework.lean_steps import lighten

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "min_epochs": None,
    "min_steps": None,
}
"""What every trainer of a message gets: a round logs as a whole, and nobody watches a hundred progress bars."""


class LocalWorkplace:
    """What fits a module, once per process.

    A client has no validation of its own, and a few epochs: checkpoints, progress bars and early stopping stay out.

    Args:
        module: The module; every message trains a copy of it.
        data: Its data; prepared and set up once.
        settings: Arguments of ``Trainer``. Callbacks are copied for every message.
        seed: Seed of the run.
        fingerprint: Of the configuration all this came from.
        distributed: Whether this process is one of several that train as one client.

    Attributes:
        callbacks: The user's, as far as clients have them; messages work on copies.

    Raises:
        ValueError: If the trainer asks for what a client cannot have, naming it.
    """

    def __init__(
        self,
        module: LightningModule,
        data: LightningDataModule,
        settings: Mapping[str, Any],
        seed: int,
        fingerprint: str = "",
        distributed: bool = False,
    ) -> None:
        if getattr(module, "_trainer", None) is not None:
            raise ValueError(f"{type(module).__name__} has been fitted: a federation begins with a fresh module")
        if not distributed:
            check_devices(settings)
        if settings.get("barebones"):
            raise ValueError("trainer.barebones must be false in a federation, which counts what its clients do")
        given_functions = (value for part in module.modules() for value in vars(part).values() if _makes(value))
        self._copies = ModuleCopies(module, given_functions)
        self.data, self.seed, self.fingerprint, self.distributed = data, seed, fingerprint, distributed
        given = settings.get("callbacks") or []
        given = list(given) if isinstance(given, Sequence) else [given]
        _check_no_privacy(given)
        self.callbacks = [each for each in given if not isinstance(each, Checkpoint | EarlyStopping | ProgressBar)]
        self._settings = {**settings, **QUIET} if distributed else {**settings, **QUIET, "devices": 1}
        _once(data)
        lighten()

    def module(self) -> LightningModule:
        """A copy of the module as it was given.

        Functions that it was given (an optimiser to be made) are shared: what makes them in the command line drags its
        whole parser along.
        """
        return self._copies.make()

    def trainer(self, callbacks: Sequence[Callback] = (), first: Sequence[Callback] = (), **settings: Any) -> Trainer:
        """A new, silent trainer; see :class:`framework.federated.client.Workplace`."""
        own = [copy.deepcopy(each) for each in self.callbacks]
        with _plugins_found_once():
            return Trainer(**{**self._settings, **settings, "callbacks": [*first, *own, *callbacks]})

    @cached_property
    def device(self) -> torch.device:
        """Where the trainers put the module."""
        return self.judge().strategy.root_device

    def judge(self) -> Trainer:
        """A new, silent trainer without the user's callbacks, for the server's evaluations."""
        with _plugins_found_once():
            return Trainer(**{**self._settings, "callbacks": []})


def check_devices(settings: Mapping[str, Any]) -> None:
    """Refuse several devices, where clients share a process.

    Args:
        settings: Arguments of ``Trainer``.

    Raises:
        ValueError: Naming the argument.
    """
    for name, allowed in (("devices", ("auto", 1, "1", [0], None)), ("num_nodes", (1, None))):
        if settings.get(name) not in allowed:
            raise ValueError(
                f"trainer.{name} must be 1 in a federation, got {settings[name]}: clients of one process train "
                "on one device (a SuperNode may have several by its own arguments)"
            )


def _check_no_privacy(callbacks: Sequence[Callback]) -> None:
    """Refuse DP-SGD as a callback, whose accountant would begin anew with each message."""
    loaded = sys.modules.get("framework.privacy.dp_sgd")  # nobody has one of its callbacks without it, and it is slow
    for each in callbacks:
        if loaded is not None and isinstance(each, loaded.DPSGD):
            raise ValueError(
                f"trainer.callbacks must be without {type(each).__name__} in a federation, whose budget would be one "
                "for each message: set federation.privacy, which is for all rounds of a client"
            )


def _makes(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.nn.Module)


_plugins = cache(entry_points)


@contextmanager
def _plugins_found_once() -> Iterator[None]:
    """Spare Lightning a look through all installed packages per trainer, which takes longer than all else it does."""
    with patch.object(registry, "entry_points", _plugins):
        yield


def _once(data: LightningDataModule) -> None:
    """Let a DataModule read its files once, however many trainers it is handed to."""
    done: set[str | None] = set()
    prepare: Callable[[], Any] = data.prepare_data
    setup: Callable[[Any], Any] = data.setup

    def prepare_once() -> None:
        if "prepared" not in done:
            prepare()
            done.add("prepared")

    def setup_once(stage: str | None = None) -> None:
        if stage in done or (stage == "validate" and "fit" in done):  # data set up to fit can validate
            return
        setup(stage)
        done.add(stage)

    vars(data).update(prepare_data=prepare_once, setup=setup_once)
