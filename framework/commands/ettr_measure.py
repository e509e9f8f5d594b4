"""``fulgurite ettr measure``: ETTR, failures and lost work of a real run, from its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_output import Report, Table, give, percent, plain, ratio, signed, time
from framework.errors import ConfigurationError
from framework.reliability.linear import ettr_linear
from framework.reliability.measured import KINDS, Measured, ledger_of, measure
from framework.reliability.renewal import ettr_exact, ettr_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS = {
    "queue": "Q: waiting to start",
    "restart": "U: from the start of the processes to the first step",
    "productive": "R: first completion of steps",
    "validation": "R: first completion of validations",
    "checkpoint": "U: training stood still for a checkpoint",
    "redone": "U: steps and validations done again",
    "lost": "U: cut off by a failure, or hung",
}


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr measure``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        FileNotFoundError: If there is no ledger.
        ValueError: If the ledger tells of no run.
    """
    parser = given.Parser(
        prog="fulgurite ettr measure",
        usage="fulgurite ettr measure RUN [options]",
        description="ETTR, failures and lost work of a real run, beside what the models say at its own rate and costs.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="run directory, or a ledger.jsonl")
    given.add_output(parser, "the attempts")
    options = parser.parse(args)
    if options.run is None:
        raise ConfigurationError("ettr: measure needs a run directory, or a ledger.jsonl")
    path = Path(options.run)
    result = measure(path)
    if not result.budget.wall:
        raise ConfigurationError(f"ettr: {ledger_of(path)} tells of no time at all")
    give(report(result), options, lambda: draw(result))


def report(result: Measured) -> Report:
    """The tables.

    Args:
        result: What was measured.
    """
    budget = result.budget
    facts: dict[str, Any] = {
        "ettr": budget.ettr, "wall_min": budget.wall, "productive_min": budget.productive, "complete": result.complete,
        "failures": result.failures, "steps": result.steps, "after_min": result.after,
    }  # fmt: skip
    tables = [_summary(result), _budget(result), _attempts(result)]
    notes = []
    try:
        tables.insert(2, _models(result))
    except ValueError as error:
        notes.append(f"No models: {error}.")
    if not result.complete:
        notes.append("Training has not ended.")
    if result.after:
        notes.append(f"{time(result.after)} after the end of training (the test) counts for nothing.")
    return Report(tables, notes, facts, next(i for i, table in enumerate(tables) if table.name == "attempts"))


def draw(result: Measured) -> Figure:
    """The timeline.

    Args:
        result: What was measured.
    """
    from framework.reliability.timeline import timeline_figure

    return timeline_figure(result)


def _summary(result: Measured) -> Table:
    budget = result.budget
    row = {
        "ettr": budget.ettr,
        "wall_min": budget.wall,
        "failures": result.failures,
        "mttf_min": 1 / result.rate if result.failures else None,
        "lost_min": budget.lost,
        "steps": result.steps,
        "goodput_per_min": result.steps / budget.wall,
        "possible_per_min": result.steps / budget.productive if budget.productive else None,
    }
    columns = [
        ("ettr", "ETTR", ratio),
        ("wall_min", "wall-clock", time),
        ("failures", "failures", plain),
        ("mttf_min", "MTTF", time),
        ("lost_min", "lost work", time),
        ("steps", "steps", plain),
        ("goodput_per_min", "goodput, steps/min", plain),
        ("possible_per_min", "without losses", plain),
    ]
    return Table("run", columns, [row])


def _budget(result: Measured) -> Table:
    wall = result.budget.wall
    rows = [
        {"kind": kind, "min": result.minutes(kind), "share": result.minutes(kind) / wall, "meaning": MEANINGS[kind]}
        for kind in KINDS
    ]
    columns = [("kind", "time", plain), ("min", "", time), ("share", "share", percent), ("meaning", "", plain)]
    return Table("budget", columns, rows, "Budget: W = Q + R + U")


def _models(result: Measured) -> Table:
    job, ettr = result.job(), result.budget.ettr
    linear = ettr_linear(job).value if job.pressure < 1 else None
    exact, finite = ettr_exact(job), ettr_finite(job, result.budget.productive)
    row = {
        "measured": ettr,
        "exact": exact,
        "exact_error": exact / ettr - 1 if ettr else None,
        "linear": linear,
        "linear_error": linear / ettr - 1 if linear is not None and ettr else None,
        "finite": finite,
        "interval_min": job.interval,
        "write_min": job.write,
        "restart_min": job.restart,
        "queue_min": job.queue,
    }
    columns = [
        ("measured", "measured", ratio),
        ("exact", "exact form", ratio),
        ("exact_error", "off by", signed),
        ("linear", "first order", ratio),
        ("linear_error", "off by", signed),
        ("finite", "of this length", ratio),
        ("interval_min", "interval", time),
        ("write_min", "write", time),
        ("restart_min", "restart", time),
        ("queue_min", "queue", time),
    ]
    return Table("models", columns, [row], "The models at the realised failure rate and mean costs")


def _attempts(result: Measured) -> Table:
    rows = [
        {
            "attempt": each.number,
            "begin_min": each.begin,
            **{f"{kind}_min": each.minutes(kind) for kind in KINDS},
            "steps": each.steps,
            "last_step": each.last_step if each.last_step >= 0 else None,
            "how": each.how or ("trained to the end" if result.complete else ""),
        }
        for each in result.attempts
    ]
    columns = [
        ("attempt", "attempt", plain),
        *((f"{kind}_min", kind, time) for kind in KINDS),
        ("steps", "new steps", plain),
        ("last_step", "last", plain),
        ("how", "how it ended", plain),
    ]
    return Table("attempts", columns, rows, "Attempts")
