"""``--model.help LDS``: the arguments of a class, from its signature and docstring."""

from __future__ import annotations

import io
from argparse import SUPPRESS

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from framework import registry
from framework.commands.checks import import_class
from framework.errors import ConfigurationError


def explain(section: str, name: str) -> str:
    """Help text of a class.

    Args:
        section: ``model``, ``data``, ``trainer`` or ``federation``.
        name: Short or dotted name of the class; not looked at for ``trainer`` and ``federation``.

    Raises:
        ConfigurationError: If there is no such section or class.
    """
    bases: dict[str, type] = {"model": LightningModule, "data": LightningDataModule, "trainer": Trainer}
    if section == "federation":
        from framework.federated.settings import Federation  # and with it flwr

        bases[section] = Federation
    if section not in bases:
        raise ConfigurationError(f"--{section}.help: help is there for {', '.join(f'--{each}.help' for each in bases)}")
    fixed = section in {"trainer", "federation"}
    kind = bases[section] if fixed else import_class(registry.resolve(name, section), bases[section], section)
    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    parser.add_class_arguments(kind, f"{section}", fail_untyped=False, instantiate=False, sub_configs=True)
    text = io.StringIO()
    parser.print_help(text)
    return text.getvalue()
