"""``fulgurite ettr cluster``: a whole cluster with queues, preemption, repairs and lemon nodes, event by event."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.commands import ettr_options as given
from framework.commands.ettr_output import Report, Table, give, percent, plain, ratio, time
from framework.commands.ettr_simulate import unreadable_notes
from framework.errors import ConfigurationError, near
from framework.reliability.rates import GPUS_PER_NODE, MINUTES_PER_DAY
from framework.reliability.units import minutes, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.reliability.cluster.account import Outcome
    from framework.reliability.cluster.model import Cluster, ClusterJob
    from framework.reliability.cluster.summary import SizeClass
    from framework.reliability.cluster.workload import Costs

SUMS = (
    ("productive", "progress"),
    ("write", "checkpoints"),
    ("start", "first starts"),
    ("first_order", "first order"),
    ("second_order", "second order"),
    ("scheduling", "other preemption"),
    ("limit", "at lifetime"),
)
"""Where time on nodes goes: attribute of a class of size, and heading."""

SUMMED = tuple(name for name, _ in SUMS)
JOB_KEYS = ("gpus", "work", "submit", "priority", "count")


def run(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What follows ``ettr cluster``.

    Raises:
        ConfigurationError: For a mistake in the arguments.
        ValueError: If a file cannot be read.
    """
    parser = _parser()
    args, listed = _with_scenario(args)
    options = parser.parse(args)
    given.needed(options, "gpus", "failure_rate")
    _check(options, listed)
    from framework.reliability.cluster.engine import simulate_cluster
    from framework.reliability.cluster.summary import by_size

    cluster = _cluster(options)
    jobs, unreadable = _jobs(cluster, listed, options)
    if all(job.submit >= options.duration for job in jobs):
        raise ConfigurationError(f"ettr: no job is submitted in the first {readable(options.duration)}")
    outcome = simulate_cluster(cluster, jobs, options.duration, options.seed)
    classes = by_size(outcome)
    tables = [_whole(outcome, classes), _sizes(classes), _losses(classes)]
    notes = [
        "ETTR: progress over wall-clock time, queue included. First order: work undone by a job's own failures, and",
        "the restarts after them; second order: by preemption for jobs that failures had brought back.",
    ]
    if options.jobs is None and not listed:
        notes.insert(0, f"Synthetic jobs in the manner of {options.mix.upper()}.")
    if cluster.lemons:
        tables.append(_without_lemons(outcome, jobs, options))
        notes.append("Of the study it is reported that failures of jobs of 512 GPUs and more fell from 14 % to 4 %.")
    elif options.lemons:
        notes.append(f"A share of {options.lemons:g} of {cluster.nodes:,} nodes is no whole lemon: there is none.")
    notes += unreadable_notes(unreadable)

    def draw() -> Figure:
        from framework.reliability.figures_cluster import cluster_figure

        return cluster_figure(classes)

    facts = {"seed": options.seed, "unreadable": unreadable}
    give(Report(tables, notes, facts, main=1), options, draw)


def _parser() -> given.Parser:
    parser = given.Parser(
        prog="fulgurite ettr cluster",
        description="Many jobs on one cluster: gang scheduling, priorities, preemption, repairs, lemon nodes.",
    )
    at_least_0 = given.number("a number of zero or more", lambda value: value >= 0)
    part = given.number("a number from 0 to 1", lambda value: 0 <= value <= 1)
    span, above = given.typed(minutes), given.typed(given.positive_time)
    add = parser.add_argument
    add("--scenario", metavar="FILE.yaml", help="options by name, and jobs as a list; the command line overrides it")
    add("--gpus", type=given.gpus, metavar="N", help="GPUs of the cluster")
    add("--gpus-per-node", type=given.positive, default=GPUS_PER_NODE, metavar="N", help=f"default {GPUS_PER_NODE}")
    add("--failure-rate", type=at_least_0, metavar="R", help="failures per node-day of an ordinary node")
    add("--duration", type=above, default=30 * MINUTES_PER_DAY, metavar="TIME", help="how long (default 30d)")
    add("--mix", choices=["rsc-1", "rsc-2"], default="rsc-1", help="synthetic jobs in whose manner (default rsc-1)")
    add("--load", type=given.positive, default=0.85, metavar="X", help="their work over the capacity (default 0.85)")
    add("--jobs", metavar="FILE.csv", help="jobs instead: columns submit, gpus, duration, and perhaps priority")
    given.add_interval(parser)
    add("--checkpoint-write", type=span, default=0.0, metavar="TIME", help="training stands still for one (default 0)")
    add("--restart", type=span, default=5.0, metavar="TIME", help="from start to the first step (default 5min)")
    add("--requeue", type=span, default=2.0, metavar="TIME", help="until an interrupted job queues (default 2min)")
    add("--guard", type=span, default=120.0, metavar="TIME", help="a start is not preempted for (default 2h)")
    add("--lifetime", type=above, default=7 * MINUTES_PER_DAY, metavar="TIME", help="of a job, on nodes (default 7d)")
    add("--check", type=span, default=5.0, metavar="TIME", help="between health checks (default 5min)")
    add("--sudden", type=part, default=0.5, metavar="X", help="share of failures found at once (default 0.5)")
    add(
        "--drain-rate",
        type=at_least_0,
        default=0.0,
        metavar="R",
        help="failed checks that let the job end, per node-day",
    )
    add("--transient", type=part, default=0.8, metavar="X", help="share of short repairs (default 0.8)")
    add("--short-repair", type=span, default=30.0, metavar="TIME", help="mean (default 30min)")
    add("--long-repair", type=span, default=3 * MINUTES_PER_DAY, metavar="TIME", help="mean (default 3d)")
    add("--lemons", type=part, default=0.0, metavar="X", help="share of lemon nodes, such as 0.012 (default 0)")
    add(
        "--lemon-factor",
        type=given.number("a number of at least 1", lambda value: value >= 1),
        default=20.0,
        metavar="X",
        help="how many times as often they fail (default 20)",
    )
    add("--large", type=given.gpus, default=512, metavar="N", help="GPUs of a large job, with --lemons (default 512)")
    add("--seed", type=given.whole(0), default=0, help="default 0")
    given.add_output(parser, "the table by size")
    return parser


def _with_scenario(args: list[str]) -> tuple[list[str], list[Any]]:
    """The arguments behind those of a scenario file, and the jobs that it lists."""
    finder = given.Parser(add_help=False)
    finder.add_argument("--scenario")
    found, rest = finder.parse_known_args(args)
    if found.scenario is None:
        return rest, []
    from framework.configuration import load

    name, content = f"ettr: --scenario {found.scenario}", load(Path(found.scenario))
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{name} must hold options by name, such as gpus: 16384")
    before: list[str] = []
    listed: list[Any] = []
    for key, value in content.items():
        if key == "jobs" and isinstance(value, list):
            if not value:
                raise ConfigurationError(f"{name}: jobs must list at least one, or be left out for synthetic ones")
            listed = value
        elif isinstance(value, str | int | float) and not isinstance(value, bool) and key != "scenario":
            before += [f"{given.flag(str(key))}={value}"]
        else:
            raise ConfigurationError(f"{name}: {key} must be one option's number or text, got {value!r}")
    return before + rest, listed


def _check(options: argparse.Namespace, listed: list[Any]) -> None:
    if options.gpus % options.gpus_per_node:
        raise ConfigurationError(
            f"ettr: --gpus must be whole nodes of {options.gpus_per_node:g} GPUs, got {options.gpus:,}"
        )
    if options.jobs and listed:
        raise ConfigurationError("ettr: jobs come from --jobs or from the scenario's list, not from both")
    if isinstance(options.checkpoint_interval, str) and not (options.failure_rate and options.checkpoint_write):
        raise ConfigurationError(
            f"ettr: --checkpoint-interval {options.checkpoint_interval} needs a --failure-rate and a "
            "--checkpoint-write above 0"
        )


def _cluster(options: argparse.Namespace) -> Cluster:
    from framework.reliability.cluster.model import Cluster

    same = {field.name for field in fields(Cluster)} - {"nodes", "lemon_share"}
    nodes = round(options.gpus / options.gpus_per_node)
    return Cluster(nodes, lemon_share=options.lemons, **{name: getattr(options, name) for name in same})


def _jobs(cluster: Cluster, listed: list[Any], options: argparse.Namespace) -> tuple[list[ClusterJob], list[str]]:
    from framework.reliability.cluster.workload import Costs, read_jobs, synthetic_jobs

    rule = given.rule_of(options)
    interval = options.checkpoint_interval if rule == "fixed" and options.checkpoint_interval else 60.0
    costs = Costs(interval, options.checkpoint_write, options.restart, rule)
    if options.jobs:
        trace = read_jobs(options.jobs, cluster, costs)
        return trace.jobs, trace.unreadable
    if listed:
        return [job for number, each in enumerate(listed, 1) for job in _listed(number, each, cluster, costs)], []
    days = options.duration / MINUTES_PER_DAY
    return synthetic_jobs(cluster, days, mix=options.mix, load=options.load, costs=costs, seed=options.seed), []


def _listed(number: int, entry: Any, cluster: Cluster, costs: Costs) -> list[ClusterJob]:
    """The jobs of one entry of a scenario's list."""
    from framework.reliability.cluster.model import ClusterJob
    from framework.reliability.cluster.workload import MAX_JOBS

    place = f"ettr: job {number} of the scenario"
    if not isinstance(entry, Mapping) or not {"gpus", "work"} <= entry.keys():
        raise ConfigurationError(f"{place} needs gpus and work, got {entry!r}")
    if unknown := [str(key) for key in entry if key not in JOB_KEYS]:
        raise ConfigurationError(f"{place} has an unknown key {unknown[0]}{near(unknown[0], JOB_KEYS)}")
    for key, least in (("gpus", 1), ("count", 1), ("priority", -math.inf)):
        value = entry.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                f"{place}: {key} must be a whole number{' above 0' if least == 1 else ''}, got {value!r}"
            )
    if entry.get("count", 1) > MAX_JOBS:
        raise ConfigurationError(f"{place}: count must be at most {MAX_JOBS:,}, got {entry['count']:,}")
    try:
        work, submit = given.positive_time(str(entry["work"])), minutes(str(entry.get("submit", 0)))
    except ValueError as error:
        raise ConfigurationError(f"{place}: {error}") from None
    nodes = math.ceil(entry["gpus"] / cluster.gpus_per_node)
    job = ClusterJob(submit, nodes, work, entry.get("priority", 0), *costs.of(cluster, nodes))
    return [job] * entry.get("count", 1)


def _whole(outcome: Outcome, classes: list[SizeClass]) -> Table:
    from framework.reliability.cluster.summary import second_order_share

    row = {
        "gpus": outcome.cluster.nodes * outcome.cluster.gpus_per_node,
        "duration_min": outcome.minutes,
        "jobs": len(outcome.jobs),
        "utilisation": outcome.utilisation,
        "idle_share": outcome.idle / outcome.capacity,
        "down_share": outcome.down / outcome.capacity,
        "goodput": outcome.goodput,
        "failures": sum(each.failures for each in classes),
        "cascades": sum(each.cascades for each in classes),
        "preemptions": sum(each.preemptions for each in classes),
        "second_order_share": second_order_share(classes),
    }
    columns = [
        ("gpus", "GPUs", plain),
        ("duration_min", "time", time),
        ("jobs", "jobs", plain),
        ("utilisation", "utilisation", percent),
        ("idle_share", "idle", percent),
        ("down_share", "down", percent),
        ("goodput", "goodput", percent),
        ("failures", "failures", plain),
        ("cascades", "preempted by failures", plain),
        ("preemptions", "otherwise", plain),
        ("second_order_share", "second-order share of loss", percent),
    ]
    return Table("cluster", columns, [row])


def _sizes(classes: list[SizeClass]) -> Table:
    rows = [
        {
            "gpus_to": each.gpus,
            "jobs": each.jobs,
            "done": each.done,
            "limited": each.limited,
            "attempts": each.attempts,
            "failures": each.failures,
            "failed_share": each.failed_share,
            "cascades": each.cascades,
            "preemptions": each.preemptions,
            "ettr": each.ettr,
            "queue_share": each.queue / each.wall if each.wall else None,
            "mttf_min": each.mttf,
            "expected_mttf_min": each.expected_mttf,
        }
        for each in classes
    ]
    columns = [
        ("gpus_to", "GPUs up to", plain),
        ("jobs", "jobs", plain),
        ("done", "done", plain),
        ("failures", "failures", plain),
        ("failed_share", "of attempts", percent),
        ("cascades", "preempted by failures", plain),
        ("preemptions", "otherwise", plain),
        ("ettr", "ETTR", ratio),
        ("queue_share", "queue", percent),
        ("mttf_min", "MTTF", time),
        ("expected_mttf_min", "1 / (nodes x rate)", time),
    ]
    return Table("sizes", columns, rows, "By size of jobs")


def _losses(classes: list[SizeClass]) -> Table:
    rows = [_loss(f"{each.gpus:,.0f}", [each], classes) for each in classes] + [_loss("all", classes, classes)]
    columns = [
        ("gpus_to", "GPUs up to", plain),
        *((f"{name}_share", heading, percent) for name, heading in SUMS),
        ("of_first_order", "of all first order", percent),
        ("of_second_order", "of all second order", percent),
    ]
    return Table("loss", columns, rows, "Where time on nodes goes")


def _loss(name: str, some: list[SizeClass], classes: list[SizeClass]) -> dict[str, Any]:
    allotted = sum(each.allotted for each in some)
    row: dict[str, Any] = {"gpus_to": name}
    for part in SUMMED:
        row[f"{part}_share"] = sum(getattr(each, part) for each in some) / allotted if allotted else None
    for part in ("first_order", "second_order"):
        whole = sum(getattr(each, part) for each in classes)
        row[f"of_{part}"] = sum(getattr(each, part) for each in some) / whole if whole else None
    return row


def _without_lemons(outcome: Outcome, jobs: list[ClusterJob], options: argparse.Namespace) -> Table:
    """The same jobs on the nodes that are left when lemons are removed, with the same failures of these."""
    import numpy as np

    from framework.reliability.cluster.engine import simulate_cluster
    from framework.reliability.cluster.summary import failed_share
    from framework.reliability.lemon_history import WINDOW_DAYS, history_of_cluster
    from framework.reliability.lemons import find_lemons

    history = history_of_cluster(outcome)
    found = find_lemons(history, max(0.0, history.days - WINDOW_DAYS), history.days)
    flagged = np.nonzero(found)[0].tolist()
    largest = max(job.nodes for job in jobs)
    rows = []
    for name, gone in (("none", []), ("found by their history", flagged), ("all lemons", outcome.lemons)):
        row: dict[str, Any] = {"removed": name, "nodes": len(gone), "lemons": len(set(gone) & set(outcome.lemons))}
        row |= dict.fromkeys(("failed", "ended", "failed_share", "goodput"))
        rows.append(row)
        if outcome.cluster.nodes - len(gone) < largest:  # too few are left for its jobs
            continue
        each = simulate_cluster(outcome.cluster, jobs, outcome.minutes, options.seed, without=gone) if gone else outcome
        failed, ended = failed_share(each, options.large)
        row |= {"failed": failed, "ended": ended, "failed_share": failed / ended if ended else None}
        row["goodput"] = each.goodput
    columns = [
        ("removed", "nodes removed", plain),
        ("nodes", "nodes", plain),
        ("lemons", "lemons among them", plain),
        ("failed", "failures", plain),
        ("ended", "of attempts", plain),
        ("failed_share", "share", percent),
        ("goodput", "goodput", percent),
    ]
    return Table("lemons", columns, rows, f"Jobs of {options.large:,} GPUs and more, {readable(outcome.minutes)}")
