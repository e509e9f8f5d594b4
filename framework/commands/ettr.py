"""``fulgurite ettr``: training under failures, by formula, by simulation, from traces and ledgers; imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from framework.errors import ConfigurationError, near

COMMANDS = {
    "estimate": "ETTR by the exact and the first-order formula, and what it takes to reach one",
    "optimum": "the best checkpoint interval",
    "simulate": "ETTR by Monte Carlo, also for failures in bursts or as in a trace",
    "fit": "failure rate, distribution and mean time to failure from a trace",
    "cluster": "many jobs on one cluster: queues, preemption cascades, repairs, lemon nodes",
    "lemons": "nodes that fail far more often than others, and how well their history tells",
    "measure": "ETTR, failures and lost work of a real run, from its ledger",
}

HELP = f"""usage: fulgurite ettr <command> [--<option> <value>]...

Effective training time ratio (ETTR): the share of a run's wall-clock time in which it makes progress that lasts.

commands
{chr(10).join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())}

Times have a unit (ms, s, min, h, d); failure rates are per node-day. `fulgurite ettr <command> --help` lists options.

examples
  fulgurite ettr estimate --gpus 16384 --failure-rate 6.5e-3 --checkpoint-interval 60min
  fulgurite ettr estimate --table
  fulgurite ettr optimum --gpus 16384 --failure-rate 6.5e-3 --checkpoint-write 5min
  fulgurite ettr simulate --gpus 16384 --failure-rate 6.5e-3 --checkpoint-interval 30min --gaps weibull --shape 0.8
  fulgurite ettr fit --trace failures.csv --nodes 512 --picture mttf.png
  fulgurite ettr cluster --gpus 16384 --failure-rate 6.5e-3 --lemons 0.012
  fulgurite ettr lemons --trace failures.csv --nodes 512
"""


def ettr(args: list[str]) -> None:
    """Run one of the commands.

    Args:
        args: What follows ``ettr``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        ValueError: For values that a formula has no answer to.
    """
    if not args or args[0] in {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return
    command, *rest = args
    if command not in COMMANDS:
        hint = near(command, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise ConfigurationError(f"ettr: no such command {command}{hint}")
    run: Callable[[list[str]], None] = import_module(f"framework.commands.ettr_{command}").run
    run(rest)
