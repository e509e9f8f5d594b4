"""Jobs: a synthetic mix with the shares of GPU time reported for the study's clusters, or a trace from a CSV file.

What is reported: over 90 % of the jobs use less than one node, and under 10 % of the GPU time; jobs of 256 GPUs and
more take 66 % of it on RSC-1, and 52 % on RSC-2. The finer shares, the durations and the priorities are made up.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from framework.reliability.cluster.model import Cluster, ClusterJob
from framework.reliability.interval import Rule, optimal_interval, young_interval
from framework.reliability.rates import MINUTES_PER_DAY, checked, job_rate
from framework.reliability.units import minutes
from framework.seeding import derive

Mix = Literal["rsc-1", "rsc-2"]


class Kind(NamedTuple):
    """Jobs of one size.

    Attributes:
        gpus: GPUs.
        share: Share of the GPU time.
        hours: Mean of the work.
        priority: Priority: larger jobs go first.
    """

    gpus: int
    share: float
    hours: float
    priority: int


MIXES: dict[Mix, tuple[Kind, ...]] = {
    "rsc-1": (
        Kind(8, 0.10, 24, 0),  # jobs of less than a node, a node's worth of them
        Kind(16, 0.04, 12, 0),
        Kind(32, 0.05, 12, 0),
        Kind(64, 0.06, 18, 0),
        Kind(128, 0.09, 18, 0),
        Kind(256, 0.12, 24, 1),
        Kind(512, 0.14, 24, 1),
        Kind(1024, 0.16, 36, 1),
        Kind(2048, 0.12, 48, 2),
        Kind(4096, 0.12, 72, 2),
    ),
    "rsc-2": (
        Kind(8, 0.10, 24, 0),
        Kind(16, 0.07, 12, 0),
        Kind(32, 0.09, 12, 0),
        Kind(64, 0.10, 18, 0),
        Kind(128, 0.12, 18, 0),
        Kind(256, 0.20, 24, 1),
        Kind(512, 0.18, 24, 1),
        Kind(1024, 0.14, 36, 2),
    ),
}
"""Synthetic mixes: of what is reported, they hold the share of GPU time below one node and from 256 GPUs."""

MAX_JOBS = 2_000_000
"""Jobs after which a simulation is refused: nobody would wait for it."""

SPREAD = 1.0
"""Standard deviation of the logarithm of a job's work, which is log-normal."""


@dataclass(frozen=True)
class Costs:
    """How jobs save and start.

    Attributes:
        interval: Productive minutes between checkpoints; not used by other rules than ``fixed``.
        write: Minutes that training stands still for one.
        restart: Minutes from every start to the first step.
        rule: ``fixed``, or the rule that gives each job its interval by the failure rate of its size.

    Raises:
        ValueError: For values out of range, or a rule without a cost of writing.
    """

    interval: float = 60.0
    write: float = 0.0
    restart: float = 5.0
    rule: Rule = "fixed"

    def __post_init__(self) -> None:
        checked("interval", self.interval, positive=True)
        checked("restart", self.restart)
        checked("write", self.write, positive=self.rule != "fixed")

    def of(self, cluster: Cluster, nodes: int) -> tuple[float, float, float]:
        """Interval, write and restart of a job.

        Args:
            cluster: Where it runs.
            nodes: Its size.
        """
        interval = self.interval
        if self.rule != "fixed":
            rate = job_rate(cluster.failure_rate, nodes, 1)
            interval = (young_interval if self.rule == "young" else optimal_interval)(rate, self.write)
            if math.isinf(interval):
                interval = cluster.lifetime if math.isfinite(cluster.lifetime) else 7 * MINUTES_PER_DAY
        return interval, self.write, self.restart


def synthetic_jobs(
    cluster: Cluster, days: float, *, mix: Mix = "rsc-1", load: float = 0.85, costs: Costs | None = None, seed: int = 0
) -> list[ClusterJob]:
    """Jobs of a synthetic mix that arrive at random; at the beginning those are there that would be by then.

    Kinds that need more than half of the cluster are left out, and the others take their share.

    Args:
        cluster: Where they run.
        days: Days in which they arrive.
        mix: Which mix.
        load: Their work over the capacity of the cluster; restarts and lost work come on top.
        costs: How they save and start.
        seed: Seed of the simulation.

    Raises:
        ValueError: For values out of range, if the cluster is too small for any, or if there would be more than
            ``MAX_JOBS``.
    """
    checked("days", days, positive=True)
    checked("load", load, positive=True)
    if mix not in MIXES:
        raise ValueError(f"mix must be one of {', '.join(MIXES)}, got {mix}")
    costs = costs or Costs()
    kinds = [(kind, math.ceil(kind.gpus / cluster.gpus_per_node)) for kind in MIXES[mix]]
    kinds = [(kind, nodes) for kind, nodes in kinds if 2 * nodes <= cluster.nodes]
    if not kinds:
        raise ValueError(f"nodes must be at least 2 for a mix of jobs, got {cluster.nodes}")
    whole = sum(kind.share for kind, _ in kinds)
    generator = np.random.default_rng(derive(seed, "jobs"))
    minutes_ = days * MINUTES_PER_DAY
    jobs: list[ClusterJob] = []
    # In the mean, at any time.
    running_of = [load * cluster.nodes * kind.share / whole / nodes for kind, nodes in kinds]
    expected = sum(running * (1 + days * 24 / kind.hours) for running, (kind, _) in zip(running_of, kinds))
    if expected > MAX_JOBS:
        raise ValueError(f"load gives some {expected:.3g} jobs: more than {MAX_JOBS:,} are too many to wait for")
    for running, (kind, nodes) in zip(running_of, kinds):
        mean = kind.hours * 60
        middle = math.log(mean) - SPREAD**2 / 2
        # Of those that run at a given time long ones are more than their share, and any part of them may be done.
        present = int(generator.poisson(running))
        left = generator.lognormal(middle + SPREAD**2, SPREAD, present) * generator.uniform(size=present)
        arriving = int(generator.poisson(running * minutes_ / mean))
        work = np.maximum(np.concatenate((left, generator.lognormal(middle, SPREAD, arriving))), 1.0)
        submit = np.concatenate((np.zeros(present), generator.uniform(0.0, minutes_, arriving)))
        given = costs.of(cluster, nodes)
        jobs += [ClusterJob(at, nodes, each, kind.priority, *given) for at, each in zip(submit.tolist(), work.tolist())]
    return jobs


@dataclass(frozen=True)
class JobTrace:
    """Jobs of a file.

    Attributes:
        jobs: The jobs in the order of submission, the first at zero.
        unreadable: ``file:line: reason`` of every row that could not be read.
    """

    jobs: list[ClusterJob]
    unreadable: list[str] = field(default_factory=list)


def read_jobs(path: str | Path, cluster: Cluster, costs: Costs | None = None) -> JobTrace:
    """Read jobs from a CSV file with a header.

    Columns ``submit`` (ISO 8601, minutes, or a time with a unit), ``gpus``, ``duration`` (productive time: minutes, or
    a time with a unit), and if there is one ``priority``, a whole number, zero where it is empty.

    Args:
        path: The file.
        cluster: Where they run: jobs take whole nodes.
        costs: How they save and start.

    Raises:
        ValueError: If the file cannot be read as a trace; the message names it.
    """
    costs = costs or Costs()
    jobs: list[ClusterJob] = []
    unreadable: list[str] = []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            header = [name.strip() for name in rows.fieldnames or []]
            rows.fieldnames = header
            if missing := [name for name in ("submit", "gpus", "duration") if name not in header]:
                raise ValueError(f"{path} has no column {missing[0]}; its columns: {', '.join(header) or 'none'}")
            for row in rows:
                try:
                    jobs.append(_job(row, cluster, costs))
                except ValueError as error:
                    unreadable.append(f"{path}:{rows.line_num}: {error}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if not jobs:
        first = f"; the first that could not be read: {unreadable[0]}" if unreadable else ""
        raise ValueError(f"{path} has no readable job{first}")
    begin = min(job.submit for job in jobs)
    jobs = sorted((replace(job, submit=job.submit - begin) for job in jobs), key=lambda job: job.submit)
    return JobTrace(jobs, unreadable)


def _job(row: dict[str, str | None], cluster: Cluster, costs: Costs) -> ClusterJob:
    gpus = _number("gpus", row["gpus"])
    nodes = math.ceil(gpus / cluster.gpus_per_node)
    if nodes > cluster.nodes:
        raise ValueError(f"gpus is {gpus:g}, more than the cluster has")
    priority = _number("priority", (row.get("priority") or "").strip() or "0", least=-math.inf)
    if priority != int(priority):
        raise ValueError(f"priority is {priority:g}, not a whole number")
    duration = _time("duration", row["duration"])
    return ClusterJob(_submitted(row["submit"]), nodes, duration, int(priority), *costs.of(cluster, nodes))


def _number(name: str, text: str | None, least: float = 0.0) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > least):
        raise ValueError(f"{name} is {text!r}, not a {'positive ' if least == 0 else ''}number")
    return value


def _time(name: str, text: str | None) -> float:
    text = (text or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = minutes(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {text!r}, not a time above zero")
    return value


def _submitted(text: str | None) -> float:
    text = (text or "").strip()
    try:
        if float(text) == 0:
            return 0.0
    except ValueError:
        pass
    else:  # before dates, which eight digits would be, too
        return _time("submit", text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return _time("submit", text)
    since = when.replace(tzinfo=None) - datetime(1970, 1, 1)
    return (since - (when.utcoffset() or since * 0)).total_seconds() / 60
