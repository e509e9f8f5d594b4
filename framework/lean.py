"""Import torchmetrics, and so Lightning, without transformers and scipy.signal.

torchmetrics imports a handful of classes of transformers whenever that is installed, for BERTScore and CLIPScore;
Lightning imports torchmetrics. For every run that uses neither, that is a second of CPU time and 600 modules. While
torchmetrics is imported, the classes are therefore replaced by stand-ins that fetch the real ones when first used. It
also imports scipy.signal, another second, only to add a name that scipy dropped and one audio package wants.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Later(type):
    """Class of stand-ins: whatever is asked of one is answered by the class of that name in transformers."""

    def _real(cls) -> Any:
        return getattr(importlib.import_module("transformers"), cls.__name__)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls._real())


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(name, (), {})


def import_torchmetrics() -> None:
    """Import torchmetrics with stand-ins; what is imported already, or not installed, is left as it is."""
    if "torchmetrics" in sys.modules:
        return
    absent = [name for name in ("transformers", "scipy.signal") if name not in sys.modules and _is_installed(name)]
    sys.modules.update((name, _StandIn(name)) for name in absent)
    try:
        importlib.import_module("torchmetrics")
    finally:
        for name in absent:
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    return find_spec(name.partition(".")[0]) is not None
