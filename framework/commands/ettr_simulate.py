"""``fulgurite ettr simulate``: Monte Carlo of one job, beside the closed form."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_estimate import PARTS, facts, shares
from framework.commands.ettr_output import Report, Table, give, percent, plain, ratio, time
from framework.errors import ConfigurationError
from framework.reliability.job import Job
from framework.reliability.rates import job_rate
from framework.reliability.renewal import ettr_exact, ettr_finite
from framework.reliability.units import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.reliability.gaps import Gaps, TraceGaps
    from framework.reliability.traces import Trace

MTTFS = 500
"""Mean times to failure in the productive time of a run, where none is given."""


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr simulate``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        ValueError: If the job would never get on.
    """
    parser = given.Parser(
        prog="fulgurite ettr simulate",
        description="ETTR of whole runs by Monte Carlo, from the first queue to the last step.",
    )
    given.add_rate(parser, rate_needed=False)
    given.add_interval(parser)
    given.add_costs(parser)
    parser.add_argument(
        "--gaps",
        choices=["exponential", "weibull", "gamma", "trace"],
        default="exponential",
        help="times between failures (default exponential); trace: those of --trace, scaled to the failure rate",
    )
    parser.add_argument(
        "--shape",
        type=given.number("a number of at least 0.01", lambda value: value >= 0.01),
        metavar="K",
        help="of weibull or gamma; below 1: in bursts",
    )
    add_trace(parser)
    parser.add_argument(
        "--run-length",
        type=given.typed(given.positive_time),
        metavar="TIME",
        help=f"productive time of a run (default {MTTFS} x MTTF)",
    )
    parser.add_argument("--runs", type=given.whole(1, 10_000_000), default=100, help="default 100")
    parser.add_argument("--seed", type=given.whole(0), default=0, help="default 0")
    given.add_output(parser)
    options = parser.parse(args)
    _check(options)
    trace = None
    if options.trace:
        from framework.reliability.traces import read_trace

        trace = read_trace(options.trace, system=options.system, nodes=options.nodes, days=options.days)
    jobs = given.jobs(options, _trace_rate(trace, options))
    if any(not job.rate for _, job in jobs):
        raise ConfigurationError("ettr: --failure-rate must be above 0 for a simulation, got 0")
    rows = [_row(size, job, _gaps(job, trace, options), options) for size, job in jobs]
    columns = [
        ("gpus", "GPUs", plain),
        ("mttf_min", "MTTF", time),
        ("interval_min", "interval", time),
        ("ettr", "ETTR", ratio),
        ("standard_error", "+-", ratio),
        ("mean_of_ratios", "mean of ratios", ratio),
        ("exact", "exact", ratio),
        ("failures", "failures", plain),
        *((f"{part}_share", part, percent) for part in PARTS[1:]),
    ]
    notes = [
        f"ETTR is work over mean wall-clock time (+- standard error) of {options.runs:,} runs; the mean of their "
        "own ratios is larger.",
    ]
    if options.gaps != "exponential":
        notes.append("The exact form beside it is for failures at a constant rate of the same mean.")
    if trace:
        notes += unreadable_notes(trace.unreadable)

    def draw() -> Figure:
        from framework.reliability.figures import budget_figure

        return budget_figure([(f"{r['gpus']:,} GPUs", [(part, r[f"{part}_share"]) for part in PARTS]) for r in rows])

    facts_ = {"gaps": options.gaps, "shape": options.shape, "runs": options.runs, "seed": options.seed}
    give(Report([Table("rows", columns, rows)], notes, facts_), options, draw)


def add_trace(parser: given.Parser) -> None:
    """Options for a failure trace.

    Args:
        parser: Where to.
    """
    parser.add_argument(
        "--trace", metavar="FILE", help="CSV (also .gz, .xz) with a column start, or of LANL's public format"
    )
    parser.add_argument("--system", metavar="NAME", help="which system of the trace, where it has several")
    parser.add_argument("--nodes", type=given.positive, metavar="N", help="nodes that were observed")
    parser.add_argument("--days", type=given.positive, metavar="N", help="days of observation (default: first to last)")


def unreadable_notes(unreadable: list[str], shown: int = 5) -> list[str]:
    """Sentences about rows that could not be read.

    Args:
        unreadable: ``file:line: reason`` of each.
        shown: How many are written out.
    """
    if not unreadable:
        return []
    more = f"... and {len(unreadable) - shown} more" if len(unreadable) > shown else ""
    rows = "row" if len(unreadable) == 1 else "rows"
    return [f"{len(unreadable)} {rows} could not be read:", *unreadable[:shown], *([more] if more else [])]


def _check(options: argparse.Namespace) -> None:
    given.needed(options, "gpus", "checkpoint_interval")
    if options.gaps in ("weibull", "gamma"):
        if options.shape is None:
            raise ConfigurationError(f"ettr: --gaps {options.gaps} needs --shape")
    elif options.shape is not None:
        raise ConfigurationError(f"ettr: --shape is for weibull and gamma gaps, not for {options.gaps}")
    if (options.gaps == "trace") != (options.trace is not None):
        raise ConfigurationError("ettr: --gaps trace and --trace FILE go together")
    for name in ("system", "nodes", "days"):
        if options.trace is None and getattr(options, name) is not None:
            raise ConfigurationError(f"ettr: {given.flag(name)} goes with --trace")


def _trace_rate(trace: Trace | None, options: argparse.Namespace) -> Any:
    """The trace's own rate per node, where the user gives none."""
    if trace is None or options.failure_rate is not None or options.mttf is not None:
        return None
    per_node_day = trace.count / trace.node_days
    return lambda size: job_rate(per_node_day, size, options.gpus_per_node)


def _gaps(job: Job, trace: Trace | None, options: argparse.Namespace) -> Gaps | TraceGaps:
    from framework.reliability.gaps import Gaps, TraceGaps

    if trace is not None:
        if not trace.failures:
            raise ConfigurationError(f"ettr: --trace {options.trace} holds counts, not times")
        return TraceGaps(trace.gaps()[0], 1 / job.rate)
    return Gaps(1 / job.rate, options.gaps, options.shape or 1.0)


def _row(size: int, job: Job, gaps: Gaps | TraceGaps, options: argparse.Namespace) -> dict[str, Any]:
    from framework.reliability.simulation import simulate

    length = options.run_length or MTTFS / job.rate
    try:
        found = simulate(job, gaps, length, options.runs, options.seed)
    except ValueError as error:
        raise ValueError(f"{size:,} GPUs, MTTF {readable(1 / job.rate)}: {error}") from error
    row = facts(size, job, options)
    row["run_length_min"] = length
    row["ettr"] = found.ettr
    row["standard_error"] = found.standard_error
    row["mean_of_ratios"] = found.mean_of_ratios
    row["exact"] = ettr_exact(job) if job.latency else ettr_finite(job, length)
    row["failures"] = int(found.failures.sum())
    return row | shares(found.budget)
