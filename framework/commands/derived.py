"""Values of the model that follow from the data: sizes, and the names of tags."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from numbers import Integral
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from framework.commands.checks import arguments_of, import_class, is_required
from framework.commands.messages import condense, instantiate
from framework.errors import ConfigurationError

#: Attributes of a DataModule that fill the model's arguments of the same name.
DERIVED = ("inputs", "classes", "nodes", "words", "characters", "tags", "actions")


def make_data(section: dict[str, Any] | None, only_if_derived_from: bool = False) -> LightningDataModule | None:
    """Build the DataModule, before the model because the model's arguments may derive from it.

    Args:
        section: ``data`` of the configuration.
        only_if_derived_from: Build it only if its class has one of the attributes that a model's arguments follow.

    Returns:
        The DataModule; ``None`` without a section, or where it is not needed.

    Raises:
        ConfigurationError: If the section does not fit the class; else whatever the constructor raises.
    """
    if section is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
    try:
        config = parser.parse_object({"data": section})
    except ArgumentError as error:
        raise ConfigurationError(condense(str(error.message))) from error
    if only_if_derived_from and not any(_has(import_class(section["class_path"]), name) for name in DERIVED):
        return None
    made: LightningDataModule = instantiate(parser, config).data
    return made


def derive(model: dict[str, Any], data: LightningDataModule | None) -> None:
    """Fill the arguments of the model that are named in ``DERIVED`` from the data.

    Args:
        model: ``model`` of the configuration; changed in place.
        data: The DataModule, if there is one.

    Raises:
        ConfigurationError: If the user's value is another one, or a needed value is nowhere.
    """
    kind = import_class(model["class_path"])
    given = dict(model.get("init_args") or {})
    takes = arguments_of(kind)
    for name in (each for each in DERIVED if each in takes):
        own = given.get(name)
        derived = _plain(getattr(data, name)) if _has(data, name) else None
        if derived is None:
            if own is None and is_required(kind, name):
                owner = type(data).__name__ if data is not None else "no data"
                raise ConfigurationError(
                    f"model.init_args.{name}: {kind.__name__} needs it, "
                    f"and {owner} has no attribute {name} to take it from"
                )
            continue
        if own is not None and str(own) != str(derived):
            raise ConfigurationError(
                f"model.init_args.{name} is {own}, but {type(data).__name__}.{name} is {derived}: leave it out"
            )
        given[name] = derived
    if given:
        model["init_args"] = given


def _plain(value: object) -> int | list[str] | None:
    """A size or a list of names as YAML knows it; anything else that happens to have that name derives nothing."""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return list(value)
    return int(value) if isinstance(value, Integral) else None


def _has(owner: object, name: str) -> bool:
    """Whether an attribute is defined, without running the property behind it."""
    if owner is None:
        return False
    try:
        inspect.getattr_static(owner, name)
    except AttributeError:
        return False
    return True
