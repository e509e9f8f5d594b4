"""``fulgurite ettr lemons``: nodes that fail far more often than others, and how well their history foretells it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_output import Report, Table, give, percent, plain
from framework.commands.ettr_simulate import add_trace, unreadable_notes
from framework.errors import ConfigurationError
from framework.reliability.lemons import PROBABILITY, VOTES
from framework.reliability.rates import MINUTES_PER_DAY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.reliability.gaps import Floats
    from framework.reliability.lemon_history import History

SYNTHETIC = {"nodes": 2048, "rate": 6.5e-3, "days": 56.0}
SHOWN = 20
"""Nodes that are printed; files hold all."""


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr lemons``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        ValueError: If the trace cannot be read.
    """
    options = _parser().parse(args)
    history, unreadable = _history(options)
    from framework.reliability import lemons as found
    from framework.reliability.lemon_history import SIGNALS

    split = options.split * history.days
    begin = max(0.0, split - options.window / MINUTES_PER_DAY) if options.window else 0.0
    signals = history.signals(begin, split)
    later = history.signals(split, history.days + 1e-9)[:, SIGNALS.index("out_count")]
    counts = signals[:, SIGNALS.index("out_count")]
    if not counts.any() or not later.any():
        raise ConfigurationError(f"ettr: --split {options.split:g}: no failure before it, or none after it")
    mixture = found.fit_mixture(counts, split - begin)
    scores = {
        "probability": found.lemon_probability(counts, split - begin, mixture),
        "rate": found.posterior_rate(counts, split - begin, mixture),
        "votes": found.votes(signals, options.quantile),
    }
    flags = {
        f"lemon with probability {options.probability:g} or more": scores["probability"] >= options.probability,
        f"{options.votes} votes or more": scores["votes"] >= options.votes,
        f"rate among the highest {100 * options.share:g} %": found.highest(scores["rate"], options.share),
    }
    truths = {f"among the worst {100 * options.share:g} % later": found.worst(later, options.share)}
    if history.lemons is not None:
        truths["made a lemon"] = found.marked(history.nodes, history.lemons)
    rows = [
        {"flagged_by": by, "truth": truth, **_row(found.evaluate(flag, bad))}
        for truth, bad in truths.items()
        for by, flag in flags.items()
    ]
    nodes = _nodes(history, signals, later, scores)
    tables = [_rates(mixture, split - begin), _evaluated(rows), _listed(nodes)]
    notes = [
        f"Signals of {split - begin:.4g} days, held against failures in the {history.days - split:.4g} days after.",
        "p: of as many hits for as many nodes flagged at random (exact permutation test).",
    ]
    if options.synthetic:
        notes.insert(0, "Synthetic data, made up.")
    notes += unreadable_notes(unreadable)

    def draw() -> Figure:
        from framework.reliability.figures_cluster import lemon_figure

        ranks = [("failure rate, empirical Bayes", scores["rate"]), ("votes of the signals", scores["votes"])]
        return lemon_figure(later, ranks, int(flags[next(iter(flags))].sum()))

    facts = {"synthetic": options.synthetic, "unreadable": unreadable, "mixture": mixture._asdict()}
    give(Report(tables, notes, facts, main=2), options, draw)


def _parser() -> given.Parser:
    parser = given.Parser(
        prog="fulgurite ettr lemons",
        description="Rank nodes by their history in the first part of a trace, and see which are bad in the second.",
    )
    add_trace(parser)
    between = given.share
    parser.add_argument("--synthetic", action="store_true", help="made-up data with known lemons in place of a trace")
    parser.add_argument(
        "--failure-rate",
        type=given.positive,
        metavar="R",
        help=f"of ordinary synthetic nodes, per node-day (default {SYNTHETIC['rate']:g})",
    )
    parser.add_argument("--seed", type=given.whole(0), default=0, help="of synthetic data (default 0)")
    parser.add_argument(
        "--window",
        type=given.typed(given.positive_time),
        metavar="TIME",
        help="of the signals, up to the split (default: 28d if synthetic, all before the split of a trace)",
    )
    parser.add_argument(
        "--split", type=between, default=0.5, metavar="X", help="where the first part ends (default 0.5)"
    )
    parser.add_argument(
        "--share", type=between, default=0.05, metavar="X", help="of the nodes that are called bad (default 0.05)"
    )
    parser.add_argument(
        "--probability",
        type=between,
        default=PROBABILITY,
        metavar="P",
        help="of a lemon, at which one is flagged (default 0.5)",
    )
    parser.add_argument(
        "--quantile", type=between, default=0.98, metavar="X", help="of a signal, beyond which it votes (default 0.98)"
    )
    parser.add_argument("--votes", type=given.whole(1, 6), default=VOTES, metavar="N", help="to be flagged (default 4)")
    given.add_output(parser, "the nodes")
    return parser


def _history(options: argparse.Namespace) -> tuple[History, list[str]]:
    if options.synthetic == (options.trace is not None):
        raise ConfigurationError("ettr: lemons needs --trace FILE or --synthetic")
    if options.nodes is not None and options.nodes != int(options.nodes):
        raise ConfigurationError(f"ettr: --nodes must be a whole number, got {options.nodes:g}")
    from framework.reliability.lemon_history import WINDOW_DAYS, history_of_trace, synthetic_history

    if options.trace is not None:
        if options.failure_rate is not None:
            raise ConfigurationError("ettr: --failure-rate goes with --synthetic")
        from framework.reliability.traces import read_trace

        trace = read_trace(options.trace, system=options.system, nodes=options.nodes, days=options.days)
        return history_of_trace(trace), trace.unreadable
    if options.system is not None:
        raise ConfigurationError("ettr: --system goes with --trace")
    options.window = options.window or WINDOW_DAYS * MINUTES_PER_DAY
    nodes = options.nodes or SYNTHETIC["nodes"]
    days, rate = options.days or SYNTHETIC["days"], options.failure_rate or SYNTHETIC["rate"]
    return synthetic_history(int(nodes), days, rate, options.seed), []


def _row(evaluation: Any) -> dict[str, Any]:
    names = ("flagged", "bad", "hits", "precision", "low", "high", "recall", "lift", "p_value")
    return {name: getattr(evaluation, name) for name in names}


def _rates(mixture: Any, days: float) -> Table:
    columns = [
        ("days", "days", plain),
        ("mean", "failures per node-day", plain),
        ("shape", "shape of their gamma distribution", plain),
        ("share", "share of lemons", percent),
    ]
    return Table("rates", columns, [{"days": days, **mixture._asdict()}], "Rates of ordinary nodes, fitted")


def _evaluated(rows: list[dict[str, Any]]) -> Table:
    columns = [
        ("truth", "bad", plain),
        ("flagged_by", "flagged by", plain),
        ("bad", "bad", plain),
        ("flagged", "flagged", plain),
        ("hits", "both", plain),
        ("precision", "precision", percent),
        ("low", "95 % from", percent),
        ("high", "to", percent),
        ("recall", "recall", percent),
        ("lift", "lift", plain),
        ("p_value", "p", lambda value: f"{value:.2g}"),
    ]
    return Table("evaluation", columns, rows)


def _nodes(history: History, signals: Floats, later: Floats, scores: dict[str, Floats]) -> list[dict[str, Any]]:
    """All nodes, those of the highest rate first."""
    import numpy as np

    from framework.reliability.lemon_history import SIGNALS

    rows = []
    for node in np.argsort(-scores["rate"], kind="stable").tolist():
        row: dict[str, Any] = {"node": history.names[node] if node < len(history.names) else None}
        row |= {name: float(scores[name][node]) for name in ("probability", "rate", "votes")}
        row |= {name: float(value) for name, value in zip(SIGNALS, signals[node])}
        row["later_failures"] = float(later[node])
        if history.lemons is not None:
            row["lemon"] = node in history.lemons
        rows.append(row)
    return rows


def _listed(rows: list[dict[str, Any]]) -> Table:
    columns = [
        ("node", "node", plain),
        ("probability", "lemon with probability", lambda value: f"{value:.3f}"),
        ("rate", "per node-day", plain),
        ("votes", "votes", plain),
        ("out_count", "failures", plain),
        ("later_failures", "later", plain),
    ]
    if "lemon" in rows[0]:
        columns.append(("lemon", "lemon", lambda value: "yes" if value else "no"))
    return Table("nodes", columns, rows, f"The {min(SHOWN, len(rows))} nodes of the highest rate", printed=rows[:SHOWN])
