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
        section: ``model``, ``data`` or ``trainer``.
        name: Short or dotted name of the class; not looked at for ``trainer``.

    Raises:
        ConfigurationError: If there is no such section or class.
    """
    bases = {"model": LightningModule, "data": LightningDataModule, "trainer": Trainer}
    if section not in bases:
        raise ConfigurationError(f"--{section}.help: help is there for {', '.join(f'--{each}.help' for each in bases)}")
    kind = Trainer if section == "trainer" else import_class(registry.resolve(name, section), bases[section], section)
    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    parser.add_class_arguments(kind, f"{section}", fail_untyped=False, instantiate=False, sub_configs=True)
    text = io.StringIO()
    parser.print_help(text)
    return text.getvalue()
