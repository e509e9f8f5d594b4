"""``fulgurite ettr fit``: failure rate, distribution of gaps and mean time to failure against size, from a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_output import Report, Table, give, plain, time
from framework.commands.ettr_simulate import add_trace, unreadable_notes
from framework.errors import ConfigurationError
from framework.reliability.rates import GPUS_PER_NODE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.reliability.traces import Trace

SIZES = [8, 64, 512, 1024, 4096, 16_384, 32_768, 131_072]
"""GPUs to project to, where none are given."""


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr fit``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        ValueError: If the trace cannot be read.
    """
    parser = given.Parser(
        prog="fulgurite ettr fit",
        description="Failure rate per node-day, distribution of the times between failures, and MTTF against size.",
    )
    add_trace(parser)
    parser.add_argument(
        "--failures",
        type=given.whole(0),
        metavar="N",
        help="a number of failures, with --nodes and --days, in place of a trace",
    )
    parser.add_argument("--confidence", type=given.share, default=0.95, metavar="P", help="of intervals (default 0.95)")
    parser.add_argument("--gpus", type=given.gpus, nargs="+", default=SIZES, metavar="N", help="sizes to project to")
    parser.add_argument(
        "--gpus-per-node", type=given.positive, default=GPUS_PER_NODE, metavar="N", help=f"default {GPUS_PER_NODE}"
    )
    given.add_output(parser, "mean time to failure against size")
    options = parser.parse(args)
    trace = _trace(options)
    from framework.reliability.fits import fit_gaps, node_rate_of, observed_by_size, project

    rate = node_rate_of(trace, options.confidence)
    interval = f"{100 * options.confidence:.4g} % interval"
    summary = {
        "failures": trace.count,
        "nodes": trace.nodes,
        "days": trace.days,
        "failures_per_node_day": rate.value,
        "low": rate.low,
        "high": rate.high,
    }
    tables = [_rate_table(summary, interval)]
    notes: list[str] = []
    if trace.failures:
        gaps, ties = trace.gaps()
        summary |= _gap_facts(gaps, ties, trace)
        try:
            tables.append(_fit_table(fit_gaps(gaps)))
        except ValueError as error:
            notes.append(f"No distribution: {error}.")
        if ties:
            notes.append(f"{ties} failures at the minute of the one before are left out of the distributions.")
    sizes = project(rate, options.gpus, options.gpus_per_node)
    tables.append(_size_table([(gpus, *size[1:]) for gpus, size in zip(options.gpus, sizes)], interval))
    observed = observed_by_size(trace)
    if observed:
        tables.append(_observed_table([each._asdict() for each in observed]))
    notes += unreadable_notes(trace.unreadable)

    def draw() -> Figure:
        from framework.reliability.figures import size_figure

        ends = sorted({*options.gpus, *([] if len(options.gpus) > 1 else SIZES)})
        return size_figure(project(rate, ends, options.gpus_per_node), observed, options.gpus_per_node)

    main = next(index for index, table in enumerate(tables) if table.name == "mttf")
    facts = {"unreadable": trace.unreadable, "confidence": options.confidence}
    give(Report(tables, notes, facts, main), options, draw if rate.value else None)


def _trace(options: Any) -> Trace:
    from framework.reliability.traces import Trace, read_trace

    if (options.trace is None) == (options.failures is None):
        raise ConfigurationError("ettr: fit needs --trace FILE, or --failures with --nodes and --days")
    if options.trace is not None:
        return read_trace(options.trace, system=options.system, nodes=options.nodes, days=options.days)
    given.needed(options, "nodes", "days")
    if options.system is not None:
        raise ConfigurationError("ettr: --system goes with --trace")
    return Trace([], options.nodes, options.days, options.failures)


def _gap_facts(gaps: Any, ties: int, trace: Trace) -> dict[str, Any]:
    from framework.reliability.fits import coefficient_of_variation

    down = sorted(failure.down for failure in trace.failures if failure.down >= 0)
    return {
        "mean_gap_min": float(gaps.mean()) if len(gaps) else None,
        "coefficient_of_variation": coefficient_of_variation(gaps) if len(gaps) > 1 else None,
        "zero_gaps": ties,
        "median_repair_min": down[len(down) // 2] if down else None,
    }


def _rate_table(row: dict[str, Any], interval: str) -> Table:
    columns = [
        ("failures", "failures", plain),
        ("nodes", "nodes", plain),
        ("days", "days", plain),
        ("failures_per_node_day", "per node-day", plain),
        ("low", f"{interval} from", plain),
        ("high", "to", plain),
    ]
    return Table("rate", columns, [row])


def _fit_table(fits: Any) -> Table:
    rows = [
        {"family": f.family, "shape": f.shape, "mean_min": f.mean, "log_likelihood": f.log_likelihood, "ks": f.ks}
        for f in fits
    ]
    columns = [
        ("family", "times between failures", plain),
        ("shape", "shape", plain),
        ("mean_min", "mean", time),
        ("log_likelihood", "log-likelihood", lambda value: f"{value:.1f}"),
        ("ks", "KS distance", lambda value: f"{value:.4f}"),
    ]
    return Table("fits", columns, rows)


def _size_table(rows: list[tuple[float, float, float, float]], interval: str) -> Table:
    columns = [
        ("gpus", "GPUs", plain),
        ("mttf_min", "MTTF", time),
        ("low_min", f"{interval} from", time),
        ("high_min", "to", time),
    ]
    names = ("gpus", "mttf_min", "low_min", "high_min")
    return Table("mttf", columns, [dict(zip(names, row)) for row in rows])


def _observed_table(rows: list[dict[str, Any]]) -> Table:
    columns = [
        ("nodes", "nodes in a group", plain),
        ("groups", "groups", plain),
        ("median", "median MTTF", time),
        ("low", "5 %", time),
        ("high", "95 %", time),
    ]
    return Table("observed", columns, rows, "Random groups of the trace's own nodes")
