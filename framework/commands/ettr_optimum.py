"""``fulgurite ettr optimum``: the best checkpoint interval by Daly-Young, exactly, and of the first-order form."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_estimate import facts
from framework.commands.ettr_output import Report, Table, give, plain, ratio, time
from framework.errors import ConfigurationError
from framework.reliability.interval import linear_optimal_interval, optimal_interval, young_interval
from framework.reliability.job import Job
from framework.reliability.linear import ettr_linear
from framework.reliability.renewal import ettr_exact

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr optimum``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
    """
    parser = given.Parser(
        prog="fulgurite ettr optimum",
        description="Checkpoint interval with the highest ETTR. Restart and queue do not move the exact one.",
    )
    given.add_rate(parser)
    given.add_costs(parser)
    parser.add_argument(
        "--step-time",
        type=given.typed(given.positive_time),
        metavar="TIME",
        help="of one step: adds steps per interval",
    )
    given.add_output(parser)
    options = parser.parse(args)
    given.needed(options, "gpus")
    rows: list[dict[str, Any]] = []
    marks: list[tuple[str, float]] = []
    best: list[tuple[str, Job]] = []
    for size in options.gpus:
        rate = given.rate_of(options, size)
        if not (rate and options.checkpoint_write):
            raise ConfigurationError("ettr: optimum needs a --failure-rate and a --checkpoint-write above 0")
        for rule, interval in _intervals(rate, options.checkpoint_write, options.restart).items():
            row, job = _row(size, rule, rate, interval, options)
            rows.append(row)
            if job and rule == "exact":
                best.append((f"{size:,} GPUs", job))
            if interval:
                marks.append((rule, interval))
    columns = [
        ("gpus", "GPUs", plain),
        ("mttf_min", "MTTF", time),
        ("rule", "rule", plain),
        ("interval_min", "interval", time),
        *([("steps", "steps", plain)] if options.step_time else []),
        ("ettr", "ETTR", ratio),
        ("first_order", "first order", ratio),
    ]
    notes = []
    if any(row["ettr"] is None for row in rows):
        notes.append(
            "No ETTR where the interval is shorter than a checkpoint is on its way (--write-latency), and no "
            "first-order interval where rate x restart is 1 or more."
        )

    def draw() -> Figure:
        from framework.reliability.figures import ettr_figure

        return ettr_figure(best, marks if len(options.gpus) == 1 else [])

    give(Report([Table("rows", columns, rows)], notes), options, draw if best else None)


def _intervals(rate: float, write: float, restart: float) -> dict[str, float | None]:
    linear = linear_optimal_interval(rate, write, restart) if rate * restart < 1 else None
    return {"Daly-Young": young_interval(rate, write), "exact": optimal_interval(rate, write), "first order": linear}


def _row(size: int, rule: str, rate: float, interval: float | None, options: Any) -> tuple[dict[str, Any], Job | None]:
    costs = Job(rate, interval or 1.0, options.checkpoint_write, options.restart, options.queue)
    job = replace(costs, latency=options.write_latency) if interval and options.write_latency <= costs.cycle else None
    row: dict[str, Any] = {"rule": rule, **facts(size, costs, options)}
    row["interval_min"], row["latency_min"] = interval, options.write_latency
    if options.step_time:
        row["steps"] = max(1, round(interval / options.step_time)) if interval else None
    row["ettr"] = ettr_exact(job) if job else None
    row["first_order"] = ettr_linear(job).value if job and job.pressure < 1 else None
    return row, job
