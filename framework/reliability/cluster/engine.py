"""The simulation: a heap of events, nodes in a ring, jobs in strict order of priority and submission."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.reliability.cluster.account import (
    CASCADE,
    DONE,
    FAILURE,
    LIMIT,
    OPEN,
    PREEMPTION,
    Account,
    NodeEvent,
    Outcome,
)
from framework.reliability.cluster.faults import Fault, draw_faults, lemons_of
from framework.reliability.cluster.model import Cluster, ClusterJob
from framework.reliability.rates import checked

if TYPE_CHECKING:
    Nodes = np.ndarray[Any, np.dtype[np.int64]]

_DONE, _LIMIT, _FOUND, _BACK, _REPAIRED, _WAKE = range(6)
_MARKED, _FAILED = 1, 2


def simulate_cluster(
    cluster: Cluster,
    jobs: Sequence[ClusterJob],
    minutes: float,
    seed: int = 0,
    *,
    without: Iterable[int] = (),
    faults: Sequence[Fault] | None = None,
) -> Outcome:
    """Run jobs on a cluster.

    The job of the highest priority, and among equals the one that was submitted first, starts as soon as enough nodes
    are free, or would be if jobs of lower priority beyond their guard time gave way: those of the lowest priority
    first, the latest started first. Nothing overtakes a job that waits. A job that is interrupted goes back to its
    place in the queue under the same identity, and goes on from its last checkpoint.

    Args:
        cluster: The cluster.
        jobs: The jobs, in any order.
        minutes: How long, positive.
        seed: Seed of all random draws.
        without: Nodes that are not there: what is left when lemons are removed.
        faults: What happens to nodes, in the order of time, instead of draws.

    Returns:
        Where all of the time went.

    Raises:
        ValueError: For values out of range, or a job with more nodes than the cluster.
    """
    checked("minutes", minutes, positive=True)
    gone = frozenset(without)
    if gone and not 0 <= min(gone) <= max(gone) < cluster.nodes:
        raise ValueError(f"without must name nodes from 0 to {cluster.nodes - 1}, got {min(gone)} to {max(gone)}")
    there = cluster.nodes - len(gone)
    largest = max((job.nodes for job in jobs), default=0)
    if largest > there:
        raise ValueError(f"a job asks for {largest:,} nodes, and the cluster has {there:,}")
    if faults is None:
        faults = draw_faults(cluster, minutes, seed, gone)
    engine = _Engine(cluster, jobs, minutes, gone)
    engine.run(faults)
    return Outcome(
        cluster,
        minutes,
        engine.accounts,
        sum(each.used * each.job.nodes for each in engine.accounts),
        engine.idle_time,
        engine.down_time,
        engine.events,
        [node for node in lemons_of(cluster, seed) if node not in gone],
        len(gone),
    )


class _Level:
    """Jobs of one priority: those that wait, and those that run within and beyond their guard time."""

    __slots__ = ("ripe", "ripe_nodes", "running_nodes", "waiting", "young")

    def __init__(self) -> None:
        self.waiting: list[tuple[float, int, Account]] = []
        self.young: deque[tuple[float, Account, int]] = deque()  # start, job, attempt
        self.ripe: dict[Account, None] = {}
        self.ripe_nodes = self.running_nodes = 0


class _Engine:
    def __init__(self, cluster: Cluster, jobs: Sequence[ClusterJob], minutes: float, gone: frozenset[int]) -> None:
        self.cluster, self.minutes = cluster, minutes
        submitted = sorted((job for job in jobs if job.submit < minutes), key=lambda job: job.submit)
        self.accounts = [Account(job, index) for index, job in enumerate(submitted)]
        priorities = sorted({job.priority for job in submitted})
        self.levels = [_Level() for _ in priorities]
        self.level_of = {priority: index for index, priority in enumerate(priorities)}
        self.heap: list[tuple[float, int, int, Any, int]] = []
        self.queued = 0
        self.count = 0  # breaks ties in the heap by age
        self.ring: Nodes = np.array([node for node in range(cluster.nodes) if node not in gone], dtype=np.int64)
        self.head, self.free = 0, len(self.ring)
        self.owner: Nodes = np.full(cluster.nodes, -1, dtype=np.int64)
        self.out = bytearray(cluster.nodes)  # states of nodes that are, or will be, taken out
        self.down = 0
        self.last = self.idle_time = self.down_time = 0.0
        self.wake = math.inf
        self.events: list[NodeEvent] = []

    def run(self, faults: Sequence[Fault]) -> None:
        accounts, heap, minutes = self.accounts, self.heap, self.minutes
        arrivals = [each.job.submit for each in accounts] + [math.inf]
        breaks = [fault.minute for fault in faults] + [math.inf]
        arrived = broken = 0
        while True:
            now = heap[0][0] if heap else math.inf
            arrival, fault = arrivals[arrived], breaks[broken]
            first = min(now, arrival, fault)
            if first >= minutes:
                break
            self.idle_time += self.free * (first - self.last)
            self.down_time += self.down * (first - self.last)
            self.last = first
            if fault == first:
                self._fault(faults[broken])
                broken += 1
            elif now == first:
                self._event(*heappop(heap))
            else:
                self._wait(accounts[arrived])
                arrived += 1
            if self.queued:
                self._schedule(first)
        self.idle_time += self.free * (minutes - self.last)
        self.down_time += self.down * (minutes - self.last)
        for each in accounts:
            if each.nodes is not None:
                each.end(minutes, OPEN)
            elif each.status == OPEN:
                each.queue += minutes - each.since

    # -- events --------------------------------------------------------------------------------------------------------

    def _event(self, now: float, _: int, kind: int, what: Any, attempt: int) -> None:
        if kind in (_DONE, _LIMIT):
            # An end that was planned for an attempt that is over, or hangs, is no end.
            if what.attempts == attempt and what.nodes is not None and what.hung == math.inf:
                self._stop(what, now, DONE if kind == _DONE else LIMIT)
        elif kind == _FOUND:
            if what.attempts == attempt and what.nodes is not None:
                self._interrupt(what, now, FAILURE)
        elif kind == _BACK:
            self._wait(what)
        elif kind == _REPAIRED:
            self.down -= 1
            self.out[what] = 0
            self._give(np.array([what], dtype=np.int64))
        else:
            self.wake = math.inf

    def _fault(self, fault: Fault) -> None:
        now, node = fault.minute, fault.node
        state = self.out[node]
        if state == _FAILED or (state == _MARKED and fault.drains):
            return
        index = int(self.owner[node])
        job = self.accounts[index] if index >= 0 else None
        size = job.job.nodes if job else 0
        failed = job is not None and not fault.drains
        self.events.append(NodeEvent(now, node, size, failed, fault.repair, fault.transient))
        self.out[node] = _MARKED if fault.drains else _FAILED
        if job is None:  # a check before the next job finds it
            self._withdraw(node)
            self._repair(node, now, fault.repair)
            return
        job.marked = job.marked or {}
        job.marked[node] = max(fault.repair, job.marked.get(node, 0.0))
        if fault.drains or job.hung < math.inf:
            return
        check = self.cluster.check
        if fault.sudden or not check:
            self._interrupt(job, now, FAILURE)
        else:
            job.hung = now
            self._push((math.floor(now / check) + 1) * check, _FOUND, job, job.attempts)

    def _interrupt(self, job: Account, now: float, why: int) -> None:
        """End an attempt before its time; the job goes back into the queue, unless its lifetime is over."""
        over = job.used + now - job.began >= self.cluster.lifetime
        self._stop(job, now, why)
        if over:
            job.status = LIMIT
        elif self.cluster.requeue:
            self._push(now + self.cluster.requeue, _BACK, job)
        else:
            self._wait(job)

    def _wait(self, job: Account) -> None:
        level = self.levels[self.level_of[job.job.priority]]
        heappush(level.waiting, (job.job.submit, job.index, job))
        self.queued += 1

    def _push(self, minute: float, kind: int, what: Any, attempt: int = 0) -> None:
        self.count += 1
        heappush(self.heap, (minute, self.count, kind, what, attempt))

    # -- scheduling ----------------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> None:
        for rank in range(len(self.levels) - 1, -1, -1):
            waiting = self.levels[rank].waiting
            while waiting:
                job = waiting[0][2]
                if job.job.nodes > self.free and not self._make_room(job, rank, now):
                    return
                heappop(waiting)
                self.queued -= 1
                self._start(job, rank, now)

    def _make_room(self, job: Account, rank: int, now: float) -> bool:
        """Preempt jobs of lower priority if that frees enough nodes."""
        need, lower = job.job.nodes, self.levels[:rank]
        running = self.free
        for level in lower:
            running += level.running_nodes
        if running < need:
            return False
        ripe, ripens = self.free, math.inf
        for level in lower:
            ripens = min(ripens, self._ripen(level, now))
            ripe += level.ripe_nodes
        if ripe < need:
            if ripens < self.wake:
                self.wake = ripens
                self._push(ripens, _WAKE, None)
            return False
        why = CASCADE if job.cause in (FAILURE, CASCADE) else PREEMPTION
        for level in lower:
            while level.ripe and self.free < need:
                self._interrupt(next(reversed(level.ripe)), now, why)
        # Failed nodes that had not been found are no use: it takes those that are still within their guard time.
        return self.free >= need or self._make_room(job, rank, now)

    def _ripen(self, level: _Level, now: float) -> float:
        """Move jobs beyond their guard time; returns when the next will be."""
        young, guard = level.young, self.cluster.guard
        while young:
            start, job, attempt = young[0]
            if job.attempts == attempt and job.nodes is not None:
                if start + guard > now:
                    return start + guard
                level.ripe[job] = None
                level.ripe_nodes += job.job.nodes
            young.popleft()
        return math.inf

    def _start(self, job: Account, rank: int, now: float) -> None:
        need = job.job.nodes
        job.nodes = nodes = self._take(need)
        self.owner[nodes] = job.index
        level = self.levels[rank]
        level.young.append((now, job, job.attempts + 1))
        level.running_nodes += need
        length, limit = job.begin(now), self.cluster.lifetime - job.used
        self._push(now + min(length, limit), _DONE if length <= limit else _LIMIT, job, job.attempts)

    def _stop(self, job: Account, now: float, why: int) -> None:
        """End an attempt and give its nodes back, failed ones to repair."""
        level = self.levels[self.level_of[job.job.priority]]
        level.running_nodes -= job.job.nodes
        if job in level.ripe:
            del level.ripe[job]
            level.ripe_nodes -= job.job.nodes
        job.end(now, why)
        nodes, job.nodes = job.nodes, None
        self.owner[nodes] = -1
        if job.marked:
            for node, repair in job.marked.items():
                nodes = nodes[nodes != node]
                self._repair(node, now, repair)
            job.marked = None
        self._give(nodes)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _take(self, need: int) -> Nodes:
        ring, head = self.ring, self.head
        self.free -= need
        end = head + need
        if end < len(ring):
            self.head = end
            return ring[head:end].copy()
        self.head = end - len(ring)
        return np.concatenate((ring[head:], ring[: self.head]))

    def _give(self, nodes: Nodes) -> None:
        ring = self.ring
        begin = (self.head + self.free) % len(ring)
        self.free += len(nodes)
        room = len(ring) - begin
        if len(nodes) <= room:
            ring[begin : begin + len(nodes)] = nodes
        else:
            ring[begin:], ring[: len(nodes) - room] = nodes[:room], nodes[room:]

    def _withdraw(self, node: int) -> None:
        """Take a certain idle node out of the ring: the first one moves to its place."""
        size = len(self.ring)
        places = (self.head + np.arange(self.free)) % size
        place = places[self.ring[places] == node][0]
        self.ring[place] = self.ring[self.head]
        self.head = (self.head + 1) % size
        self.free -= 1

    def _repair(self, node: int, now: float, minutes: float) -> None:
        self.out[node] = _FAILED
        self.down += 1
        self._push(now + minutes, _REPAIRED, node)
