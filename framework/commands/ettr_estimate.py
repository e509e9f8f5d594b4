"""``fulgurite ettr estimate``: closed forms for a job, inverse questions, and the figures reported for the study."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_output import Report, Table, give, percent, plain, ratio, signed, time
from framework.errors import ConfigurationError
from framework.reliability.interval import Rule
from framework.reliability.inverse import Quantity, intervals, largest
from framework.reliability.job import Job
from framework.reliability.linear import VALID_PRESSURE, ettr_linear
from framework.reliability.published import TOLERANCE, compared
from framework.reliability.rates import mttf, node_rate
from framework.reliability.renewal import Budget, cycle_budget, ettr_exact, ettr_finite
from framework.reliability.units import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("productive", "write", "lost", "restart", "queue")
"""Where wall-clock time goes."""


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr estimate``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
    """
    parser = given.Parser(
        prog="fulgurite ettr estimate",
        description="ETTR of a job: exact for constant failure rates, and the first-order form with its error.",
    )
    given.add_rate(parser)
    given.add_interval(parser)
    given.add_costs(parser)
    parser.add_argument(
        "--run-length",
        type=given.typed(given.positive_time),
        metavar="TIME",
        help="productive time of a finite run (default: a long run)",
    )
    parser.add_argument(
        "--reach", type=given.share, metavar="X", help="what interval, restart, ... or size would give an ETTR of X"
    )
    parser.add_argument(
        "--table", action="store_true", help="figures reported for the study beside the formulas; needs no other option"
    )
    given.add_output(parser)
    options = parser.parse(args)
    if options.table:
        allowed = {"table", "json", "csv", "picture"}
        changed = [name for name, value in vars(options).items() if value != parser.get_default(name)]
        if extra := [name for name in changed if name not in allowed]:
            raise ConfigurationError(f"ettr: --table shows fixed cases, so it goes without {given.flag(extra[0])}")
        give(_published(), options, None)
        return
    jobs = given.jobs(options)
    if options.run_length is not None and options.write_latency:
        raise ConfigurationError(
            "ettr: --run-length has no closed form with --write-latency; `ettr simulate` takes both"
        )
    report = Report([_table(jobs, options)], _notes(jobs))
    if options.reach is not None:
        report.tables.append(_reach(jobs, options))
        report.notes.append("Each bound leaves all the rest as it is.")

    def draw() -> Figure:
        from framework.reliability.figures import ettr_figure

        return ettr_figure([(f"{size:,} GPUs", job) for size, job in jobs], line_at=options.reach)

    give(report, options, draw)


def facts(size: int, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """The inputs of one row.

    Args:
        size: GPUs of the job.
        job: The job.
        options: ``gpus_per_node``.
    """
    return {
        "gpus": size,
        "failures_per_node_day": node_rate(job.rate, size, options.gpus_per_node),
        "mttf_min": mttf(job.rate),
        "interval_min": job.interval,
        "write_min": job.write,
        "latency_min": job.latency,
        "restart_min": job.restart,
        "queue_min": job.queue,
    }


def shares(budget: Budget | None) -> dict[str, float | None]:
    """Share of wall-clock time of each part.

    Args:
        budget: Times; ``None`` where they are too long for a float.
    """
    return {f"{part}_share": getattr(budget, part) / budget.wall if budget else None for part in PARTS}


def budget_or_none(job: Job) -> Budget | None:
    """Times of a cycle, or ``None`` where a float cannot hold them.

    Args:
        job: The job.
    """
    try:
        budget = cycle_budget(job)
    except ValueError:
        return None
    return budget if math.isfinite(budget.wall) else None


def _table(jobs: list[tuple[int, Job]], options: argparse.Namespace) -> Table:
    rows, finite = [], options.run_length
    for size, job in jobs:
        linear = ettr_linear(job, finite or math.inf) if job.pressure < 1 else None
        row = facts(size, job, options)
        row["ettr"] = ettr_finite(job, finite) if finite else ettr_exact(job)
        row["first_order"] = linear.value if linear else None
        row["first_order_error"] = linear.error if linear else None
        row["first_order_valid"] = bool(linear and linear.valid)
        row["pressure"] = job.pressure
        rows.append(row | ({"run_length_min": finite} if finite else shares(budget_or_none(job))))
    columns = [
        ("gpus", "GPUs", plain),
        ("mttf_min", "MTTF", time),
        ("interval_min", "interval", time),
        ("write_min", "write", time),
        ("restart_min", "restart", time),
        ("queue_min", "queue", time),
        ("ettr", "ETTR", ratio),
        ("first_order", "first order", ratio),
        ("first_order_error", "its error", signed),
        ("first_order_valid", "valid", lambda valid: "yes" if valid else "no"),
    ]
    if not finite:
        columns += [(f"{part}_share", part, percent) for part in PARTS[1:]]
    title = f"Runs of {readable(finite)} of productive time: work over mean wall-clock time" if finite else ""
    return Table("rows", columns, rows, title)


def _notes(jobs: list[tuple[int, Job]]) -> list[str]:
    if all(job.pressure <= VALID_PRESSURE for _, job in jobs):
        return []
    return [
        "The first-order form is called valid while rate x (restart + interval / 2 + latency) is at most "
        f"{VALID_PRESSURE}; at 1 and beyond it has no value."
    ]


def _reach(jobs: list[tuple[int, Job]], options: argparse.Namespace) -> Table:
    rule: Rule = given.rule_of(options)
    target = options.reach
    rows = []
    for size, job in jobs:
        between = intervals(job, target)
        rate = largest(job, "rate", target, rule)
        row: dict[str, Any] = {"gpus": size}
        row["interval_from_min"], row["interval_to_min"] = between or (None, None)
        quantities: tuple[Quantity, ...] = ("write", "restart", "queue")
        row |= {f"{name}_to_min": largest(job, name, target, rule) for name in quantities}
        per_node = None if rate is None or math.isinf(rate) else node_rate(rate, size, options.gpus_per_node)
        row["failures_per_node_day_to"] = per_node
        row["gpus_to"] = math.floor(size * rate / job.rate) if rate is not None and job.rate else None
        rows.append(row)
    columns = [
        ("gpus", "GPUs", plain),
        ("interval_from_min", "interval from", time),
        ("interval_to_min", "to", time),
        ("write_to_min", "write up to", time),
        ("restart_to_min", "restart up to", time),
        ("queue_to_min", "queue up to", time),
        ("failures_per_node_day_to", "failures per node-day up to", plain),
        ("gpus_to", "GPUs up to", plain),
    ]
    return Table("reach", columns, rows, f"For an ETTR of {target:g} on long runs (- : not by this alone)")


def _published() -> Report:
    rows: list[dict[str, Any]] = []
    for each in compared():
        case = each.case
        is_mttf = case.what == "mttf"
        remark = case.remark
        if each.implied is not None and not each.follows:
            remark = f"implies {1000 * each.implied:.1f} per 1000 node-days" + (f"; {remark}" if remark else "")
        rows.append(
            {
                "figure": "MTTF" if is_mttf else "ETTR",
                "gpus": case.gpus,
                "failures_per_1000_node_days": 1000 * case.node_rate,
                "interval_min": None if is_mttf else each.interval,
                "write_min": None if is_mttf else case.write,
                "restart_min": None if is_mttf else case.restart,
                "queue_min": None if is_mttf else case.queue,
                "reported": case.reported,
                "observed": case.observed,
                "formula": each.value,
                "exact": each.exact,
                "first_order_valid": None if is_mttf else each.valid,
                "follows": each.follows,
                "remark": remark,
            }
        )
    columns = [
        ("figure", "figure", plain),
        ("gpus", "GPUs", plain),
        ("failures_per_1000_node_days", "per 1000 node-days", plain),
        ("interval_min", "interval", time),
        ("write_min", "write", time),
        ("restart_min", "restart", time),
        ("queue_min", "queue", time),
        ("reported", "reported", plain),
        ("formula", "formula", plain),
        ("exact", "exact", plain),
        ("follows", "follows", lambda follows: "yes" if follows else "NO"),
        ("remark", "remark", plain),
    ]
    numbers = ("reported", "formula", "exact")  # times or ratios, by the row
    printed: list[dict[str, Any]] = [row | {key: _shown(row["figure"], row[key]) for key in numbers} for row in rows]
    notes = [
        "Reported for Kokolis et al., HPCA 2025 (arXiv 2410.21680), by accounts of others. The formula is",
        "1 / (nodes x rate), or the first-order ETTR; a figure follows from it if they differ by at most",
        f"{TOLERANCE:.0%}. Up to 4,096 GPUs the reported MTTF is an observation. Cannot be checked, for want of what",
        "went into them: ETTRs of 0.85 to 0.9 of the largest jobs, and above 0.9 of RSC-1's beyond 1,024 GPUs.",
    ]
    return Report([Table("rows", columns, rows, printed=printed)], notes)


def _shown(figure: str, value: float | None) -> str | None:
    if value is None:
        return None
    return readable(value) if figure == "MTTF" else f"{value:.4g}"
