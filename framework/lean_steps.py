"""Training steps of Lightning without what it does again and again for the same answer.

Around every hook Lightning notes the hook's name in the module, some 25 times per step, and each note goes through
``torch.nn.Module.__setattr__``, which looks for a parameter, a module or a buffer of that name first. In every step it
also takes the signature of ``training_step`` apart. Together that is a sixth of its own time per step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core import module as _core
from lightning.pytorch.loops import evaluation_loop, training_epoch_loop
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn


def lighten() -> None:
    """Make the steps of every ``LightningModule`` of this process lighter; what they do stays the same."""
    LightningModule.__setattr__ = _set  # type: ignore[method-assign,assignment]
    for user in (_core, evaluation_loop, training_epoch_loop):
        user.is_param_in_hook_signature = takes  # type: ignore[attr-defined]


def takes(hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None) -> bool:
    """What Lightning's ``is_param_in_hook_signature`` says, asked once for a function.

    Args:
        hook_fx: The hook, a method or a function.
        param: Name of the parameter.
        explicit: Whether it has to be declared by name.
        min_args: As many parameters will do, too.
    """
    return _takes(getattr(hook_fx, "__func__", hook_fx), param, explicit, min_args)


_takes = lru_cache(maxsize=256)(is_param_in_hook_signature)


def _set(self: LightningModule, name: str, value: Any) -> None:
    if name == "_current_fx_name":
        self.__dict__[name] = value
    else:
        nn.Module.__setattr__(self, name, value)
