"""Where the time of each job and of the cluster goes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from framework.reliability.cluster.model import Cluster, ClusterJob
from framework.reliability.renewal import segments_of

FIRST, FAILURE, CASCADE, PREEMPTION, LIMIT, DONE, OPEN = range(7)
"""Why an attempt of a job began or ended: its first start; a failure of one of its nodes; preemption by a job that a
failure had brought back, directly or through others; preemption by a job for which no failure is to blame; the maximum
lifetime; the end of its work; the end of the simulation."""

STUDY_LOSS = 30.0
"""The study counts at most this many minutes of an interrupted attempt as lost."""


class NodeEvent(NamedTuple):
    """Something that happened to a node that was not under repair.

    Attributes:
        minute: When.
        node: Which node.
        job_nodes: Nodes of the job on it; 0 where it was idle.
        failed: Whether a job was ended or hung; low severity and idle nodes: no.
        repair: Minutes of the repair that follows.
        transient: Whether that is a short one.
    """

    minute: float
    node: int
    job_nodes: int
    failed: bool
    repair: float
    transient: bool


class Account:
    """A job in the simulation: what is left to do, and where its time went so far.

    Args:
        job: The job.
        index: Its place in the list of jobs.

    Attributes:
        productive: Minutes of progress that lasts.
        write: Minutes for checkpoints that last.
        lost: Minutes that were undone, by why the attempt ended.
        restart: Minutes of starting, by why the attempt began.
        queue: Minutes of waiting.
        attempts: Starts.
        ended: Number of ends of attempts, by why.
        study_loss: Minutes lost as the study counts, by why the attempt ended.
        status: ``LIMIT``, ``DONE`` or ``OPEN``.
    """

    __slots__ = (
        "attempts", "began", "cause", "ended", "hung", "index", "job", "left", "lost", "marked", "nodes", "productive",
        "queue", "rest", "restart", "segments", "since", "status", "study_loss", "used", "write",
    )  # fmt: skip

    def __init__(self, job: ClusterJob, index: int) -> None:
        self.job, self.index = job, index
        self.left = job.work
        self.productive = self.write = self.queue = self.used = self.began = 0.0
        self.since = job.submit
        self.lost, self.restart, self.study_loss = [0.0] * 5, [0.0] * 4, [0.0] * 5
        self.ended = [0] * 7
        self.attempts = self.segments = 0
        self.rest = 0.0
        self.cause, self.status = FIRST, OPEN
        self.hung = math.inf
        self.marked: dict[int, float] | None = None  # nodes to be taken out when it stops, and their repair
        self.nodes: Any = None  # an array while it runs

    def begin(self, now: float) -> float:
        """Start an attempt.

        Args:
            now: The time.

        Returns:
            Minutes until its work is done, if nothing happens.
        """
        job = self.job
        self.queue += now - self.since
        self.began, self.hung = now, math.inf
        self.attempts += 1
        self.segments, self.rest = segments_of(self.left, job.interval)
        return job.restart + (self.segments - 1) * (job.interval + job.write) + self.rest

    def end(self, now: float, why: int) -> None:
        """End an attempt: keep what the last checkpoint holds, and charge the rest to its reason.

        Args:
            now: The time.
            why: The reason.
        """
        job = self.job
        if self.hung < math.inf and why != OPEN:
            why = FAILURE  # whoever found out
        elapsed = now - self.began
        starting = min(elapsed, job.restart)
        running = elapsed - starting
        self.restart[self.cause] += starting
        self.used += elapsed
        self.ended[why] += 1
        self.since = now
        if why == DONE:
            self.productive += self.left
            self.write += (self.segments - 1) * job.write
            self.left = 0.0
        else:
            moved = max(0.0, min(now, self.hung) - self.began - job.restart)
            kept = min(math.floor(moved / job.cycle), self.segments - 1)
            self.productive += kept * job.interval
            self.write += kept * job.write
            self.left -= kept * job.interval
            undone = running - kept * job.cycle
            if why == OPEN and self.hung == math.inf:  # under way, and not lost
                under_way = min(undone, job.interval if self.segments > kept + 1 else self.rest)
                self.productive += under_way
                self.write += undone - under_way
            else:
                self.lost[FAILURE if self.hung < math.inf else why] += undone
            if why != OPEN:
                self.study_loss[why] += min(elapsed, STUDY_LOSS)
        if why in (LIMIT, DONE, OPEN):
            self.status = why
        else:
            self.cause = why

    @property
    def allotted(self) -> float:
        """Minutes on nodes, the sum of all that they went into."""
        return self.productive + self.write + sum(self.lost) + sum(self.restart)

    @property
    def wall(self) -> float:
        """Minutes from its submission to its end, or to that of the simulation: W = Q + R + U."""
        return self.queue + self.allotted


class Outcome(NamedTuple):
    """A simulated cluster.

    Attributes:
        cluster: The cluster.
        minutes: How long.
        jobs: All jobs that were submitted in that time.
        allotted: Node-minutes of nodes with a job.
        idle: Node-minutes of nodes without one.
        down: Node-minutes under repair.
        events: What happened to nodes, in the order of time.
        lemons: Nodes that are lemons.
        removed: Nodes that were not there.
    """

    cluster: Cluster
    minutes: float
    jobs: list[Account]
    allotted: float
    idle: float
    down: float
    events: list[NodeEvent]
    lemons: list[int]
    removed: int = 0

    @property
    def capacity(self) -> float:
        """Node-minutes in all."""
        return (self.cluster.nodes - self.removed) * self.minutes

    @property
    def utilisation(self) -> float:
        """Share of the capacity that is allotted."""
        return self.allotted / self.capacity

    @property
    def goodput(self) -> float:
        """Share of the capacity that is progress which lasts."""
        return sum(each.productive * each.job.nodes for each in self.jobs) / self.capacity
