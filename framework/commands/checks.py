"""Checks of classes and their arguments that say more than the parser does: what is near, and where it stands."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger

from framework import registry
from framework.errors import ConfigurationError, near


def import_class(path: str, base: type | None = None, section: str | None = None) -> Any:
    """The class (or function) of a ``class_path``.

    Args:
        path: Dotted path, or the short name of one of Lightning's callbacks and loggers.
        base: Class it derives from; short names are looked up among its known subclasses.
        section: Where the path stands, for the error and for hints.

    Raises:
        ConfigurationError: If it cannot be imported for the reason that it is not there.
    """
    at = f"{section}.class_path: " if section else ""
    if "." not in path:
        if base is not None:
            for each in (base, *_subclasses(base)):
                if each.__name__ == path:
                    return each
        known = _short_names(section) if base in {None, Callback, Logger} else _names(base)
        raise ConfigurationError(f"{at}no class {path}{near(path, known) or _listed(base)}")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and lacks something it imports
        raise ConfigurationError(f"{at}no module {error.name}{_near_path(path)}") from error
    except AttributeError as error:
        raise ConfigurationError(f"{at}{module} has no class {name}{_near_path(path)}") from error


def arguments_of(kind: Any) -> list[str]:
    """Names of the parameters of a class or function, with those that ``**kwargs`` pass on."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    return [name.removeprefix("it.") for name in add(kind, "it", fail_untyped=False, sub_configs=True)]


def is_required(kind: Any, name: str) -> bool:
    """Whether a parameter of a class or function has no default."""
    owners = [vars(each).get("__init__", each) for each in kind.__mro__] if inspect.isclass(kind) else [kind]
    for owner in owners:
        parameter = inspect.signature(owner).parameters.get(name)
        if parameter is not None:
            return parameter.default is inspect.Parameter.empty
    return False


def check_classes(values: Mapping[str, Any]) -> None:
    """Check every class of a configuration and the names of its arguments.

    Raises:
        ConfigurationError: Naming the key and what is near it.
    """
    trainer = values.get("trainer") or {}
    known = arguments_of(Trainer)
    for key in trainer:
        if key not in known:
            raise ConfigurationError(f"trainer.{key}: no such argument{near(str(key), known)}")
    for section in ("model", "data"):
        check_class(values.get(section), section, None)
    for i, entry in enumerate(_list(trainer.get("callbacks"))):
        check_class(entry, f"trainer.callbacks[{i}]", Callback)
    for i, entry in enumerate(_list(trainer.get("logger"))):
        check_class(entry, f"trainer.logger[{i}]", Logger)


def check_class(entry: Any, at: str, base: Any) -> None:
    """Check one class of a configuration, and the names of its arguments.

    Args:
        entry: A mapping with ``class_path`` and perhaps ``init_args``; nothing is to be said against ``None``.
        at: Where it stands.
        base: Class it derives from, among whose known subclasses short names are looked up.

    Raises:
        ConfigurationError: Naming the key and what is near it.
    """
    if not isinstance(entry, Mapping):
        if entry is not None and not (isinstance(entry, bool | str) and base is Logger):
            raise ConfigurationError(f"{at}: expected class_path and init_args, got {entry!r}")
        return
    allowed = ("class_path", "init_args", "dict_kwargs")
    for key in entry:
        if key not in allowed:
            raise ConfigurationError(f"{at}.{key}: no such key; arguments of a class belong under {at}.init_args")
    if not isinstance(entry.get("class_path"), str):
        raise ConfigurationError(f"{at}.class_path is not set")
    kind: Any = import_class(entry["class_path"], base, at)
    given = entry.get("init_args")
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"{at}.init_args: expected a mapping, got {given!r}")
    if base not in {None, Callback, Logger} and not (inspect.isclass(kind) and issubclass(kind, base)):
        known = [each.__name__ for each in _subclasses(base) if not inspect.isabstract(each)]
        raise ConfigurationError(
            f"{at}.class_path: {kind.__name__} is no {base.__name__}; there are {', '.join(known)}"
        )
    names = arguments_of(kind)
    open_ended = _open_ended(kind, names)
    for key in given or {}:
        if key not in names and not open_ended:
            hint = near(str(key), names) or (f"; it takes {', '.join(names)}" if names else "; it takes none")
            raise ConfigurationError(f"{at}.init_args.{key}: {kind.__name__} takes no such argument{hint}")


def _open_ended(kind: Any, names: list[str]) -> bool:
    """Whether ``**kwargs`` remain whose names cannot be known, as in ``WandbLogger``, which hands them to ``wandb``."""
    signature = inspect.signature(kind)
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return False
    return set(names) <= set(signature.parameters)


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _subclasses(base: type) -> list[type]:
    found: list[type] = []
    each: type
    for each in base.__subclasses__():
        found += [each, *_subclasses(each)]
    return found


def _names(base: Any) -> list[str]:
    """Short names of the classes that derive from a base and can be made."""
    found = {each.__name__ for each in _subclasses(base) if not inspect.isabstract(each)}
    return sorted(name for name in found if not name.startswith("_"))


def _listed(base: Any) -> str:
    return "" if base in {None, Callback, Logger} else f"; there are {', '.join(_names(base))}"


def _short_names(section: str | None) -> list[str]:
    room = {"model": ["modules"], "data": ["datamodules"]}.get(section or "", list(registry.ROOMS.values()))
    ours = [name for each in room for name in registry.classes(each)]
    lightnings = [] if section in {"model", "data"} else [*lightning_callbacks.__all__, *lightning_loggers.__all__]
    return [*ours, *lightnings]


def _near_path(path: str) -> str:
    known = [each for room in registry.ROOMS.values() for paths in registry.classes(room).values() for each in paths]
    return near(path, known) or near(path.rpartition(".")[2], known)
