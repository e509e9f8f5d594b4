"""Options of ``fulgurite ettr``: values with units, checked one by one, and the job that they describe."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from framework.errors import ConfigurationError, near
from framework.reliability.interval import Rule, with_rule
from framework.reliability.job import Job
from framework.reliability.rates import GPUS_PER_NODE, job_rate, rate_of_mttf
from framework.reliability.units import minutes


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one sentence."""

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Raise it for ``main`` to print.

        Args:
            message: What is wrong.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(f"ettr: {message.removeprefix('argument ')}")

    def parse(self, args: list[str]) -> argparse.Namespace:
        """The options; an unknown one is refused with the closest that there are.

        Args:
            args: What follows the command.

        Raises:
            ConfigurationError: For any mistake.
        """
        options, unknown = self.parse_known_args(_joined(args))
        if unknown:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            name = unknown[0].partition("=")[0]
            raise ConfigurationError(f"ettr: no such option {unknown[0]}{near(name, known) or '; --help lists them'}")
        return options


def typed(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A conversion whose ``ValueError`` is what the user reads, behind the name of the option."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def number(allowed: str, test: Callable[[float], bool]) -> Callable[[str], float]:
    """Conversion to a number of a certain range.

    Args:
        allowed: What is allowed, in words.
        test: Whether a number is.
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and test(value)):
            raise ValueError(f"expected {allowed}, got {text}")
        return value

    return typed(convert)


def whole(least: int, most: int = 1_000_000_000) -> Callable[[str], int]:
    """Conversion to a whole number of a certain range.

    Args:
        least: The smallest.
        most: The largest; beyond the default nothing has a meaning here, and numbers may overflow.
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most:,}, got {text}")
        return value

    return typed(convert)


def positive_time(text: str) -> float:
    """Minutes of a time above zero."""
    value = minutes(text)
    if not value:
        raise ValueError(f"expected a time above 0, got {text}")
    return value


def _interval(text: str) -> float | str:
    if text in ("young", "optimal"):
        return text
    try:
        return positive_time(text)
    except ValueError as error:
        raise ValueError(f"{error}; or young, or optimal") from None


def _png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png":
        raise ValueError(f"expected a file name that ends in .png, got {text}")
    return Path(text)


gpus = whole(1)
share = number("a number between 0 and 1, both excluded", lambda value: 0 < value < 1)
positive = number("a number above 0", lambda value: value > 0)


def add_rate(parser: Parser, rate_needed: bool = True) -> None:
    """Options for sizes and failure rates.

    Args:
        parser: Where to.
        rate_needed: Whether one of the two ways to give a rate is.
    """
    parser.add_argument("--gpus", type=gpus, nargs="+", metavar="N", help="GPUs of the job; several give one row each")
    parser.add_argument(
        "--gpus-per-node", type=positive, default=GPUS_PER_NODE, metavar="N", help=f"default {GPUS_PER_NODE}"
    )
    rates = parser.add_mutually_exclusive_group()
    default = "" if rate_needed else "; default: that of the trace"
    rates.add_argument(
        "--failure-rate",
        type=number("a number of failures per node-day, zero or more", lambda value: value >= 0),
        metavar="R",
        help=f"failures per node-day, such as 6.5e-3{default}",
    )
    rates.add_argument(
        "--mttf", type=typed(positive_time), metavar="TIME", help="mean time to failure of the whole job"
    )


def add_costs(parser: Parser) -> None:
    """Options for what failures and checkpoints cost."""
    time = typed(minutes)
    parser.add_argument(
        "--checkpoint-write", type=time, default=0.0, metavar="TIME", help="training stands still for one (default 0)"
    )
    parser.add_argument(
        "--write-latency",
        type=time,
        default=0.0,
        metavar="TIME",
        help="asynchronous writing: from the end of that stall until the checkpoint is safe (default 0)",
    )
    parser.add_argument(
        "--restart", type=time, default=5.0, metavar="TIME", help="from start to the first step (default 5min)"
    )
    parser.add_argument("--queue", type=time, default=0.0, metavar="TIME", help="wait before each start (default 0)")


def add_interval(parser: Parser) -> None:
    """The option for the checkpoint interval."""
    parser.add_argument(
        "--checkpoint-interval",
        type=typed(_interval),
        metavar="TIME",
        help="productive time between two; or young (sqrt(2w/rate)), or optimal (exact)",
    )


def add_output(parser: Parser, csv: str = "the rows") -> None:
    """Options for what is written besides the table.

    Args:
        parser: Where to.
        csv: What the CSV file holds.
    """
    parser.add_argument(
        "--json", metavar="FILE", help="write everything, times in minutes; - for standard output alone"
    )
    parser.add_argument("--csv", metavar="FILE", help=f"write {csv}, times in minutes; - for standard output alone")
    parser.add_argument("--picture", type=typed(_png), metavar="FILE.png", help="draw a picture")


def needed(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that are missing.

    Args:
        options: The options.
        names: Their attributes.

    Raises:
        ConfigurationError: Naming the first that is missing.
    """
    for name in names:
        if getattr(options, name) is None:
            raise ConfigurationError(f"ettr: {flag(name)} is needed")


def flag(name: str) -> str:
    """The option of an attribute."""
    return "--" + name.replace("_", "-")


def rate_of(options: argparse.Namespace, size: int) -> float:
    """Failures per minute of a job.

    Args:
        options: The options.
        size: Its GPUs.

    Raises:
        ConfigurationError: If no rate is given.
    """
    if options.mttf is not None:
        if len(options.gpus) > 1:
            raise ConfigurationError(
                "ettr: --mttf is that of one size, so --gpus takes one number; or give --failure-rate"
            )
        return rate_of_mttf(options.mttf)
    if options.failure_rate is None:
        raise ConfigurationError("ettr: --failure-rate or --mttf is needed")
    return job_rate(options.failure_rate, size, options.gpus_per_node)


def jobs(options: argparse.Namespace, rate: Callable[[int], float] | None = None) -> list[tuple[int, Job]]:
    """The job of each size.

    Args:
        options: The options.
        rate: Failures per minute by GPUs, if not by the options.

    Raises:
        ConfigurationError: If something is missing, or does not fit together.
    """
    needed(options, "gpus", "checkpoint_interval")
    given = options.checkpoint_interval
    found = []
    for size in options.gpus:
        per_minute = rate(size) if rate else rate_of(options, size)
        costs = (options.checkpoint_write, options.restart, options.queue)
        if isinstance(given, str):
            if not (per_minute and options.checkpoint_write):
                raise ConfigurationError(
                    f"ettr: --checkpoint-interval {given} needs a --failure-rate and a --checkpoint-write above 0"
                )
            job = with_rule(Job(per_minute, 1.0, *costs), rule_of(options))
        else:
            job = Job(per_minute, given, *costs)
        if options.write_latency > job.cycle:
            raise ConfigurationError(
                f"ettr: --write-latency must be at most the interval and its write together, {job.cycle:g} min, as one "
                f"checkpoint at a time is written; got {options.write_latency:g} min"
            )
        found.append((size, Job(per_minute, job.interval, *costs, options.write_latency)))
    return found


def rule_of(options: argparse.Namespace) -> Rule:
    """The rule that sets the interval."""
    given = options.checkpoint_interval
    return given if given in ("young", "optimal") else "fixed"


def _joined(args: list[str]) -> list[str]:
    """Negative values joined to their options, so that the check of the value is what complains."""
    joined: list[str] = []
    for arg in args:
        before = joined[-1] if joined else ""
        if len(arg) > 1 and arg[0] == "-" and (arg[1].isdigit() or arg[1] == ".") and before.startswith("--"):
            joined[-1] = f"{before}={arg}"
        else:
            joined.append(arg)
    return joined
