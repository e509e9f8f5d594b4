"""Who runs when, and who makes room: the cluster against a plain simulation that looks at every job in every minute."""

from __future__ import annotations

import math
import random

from framework.reliability.cluster.account import CASCADE, DONE, PREEMPTION
from framework.reliability.cluster.engine import simulate_cluster
from framework.reliability.cluster.model import Cluster, ClusterJob

MINUTES = 700


class Plain:
    """A job as it says it is."""

    def __init__(self, job, index):
        self.job, self.index, self.left = job, index, job.work
        self.queue = self.made_room = self.began = self.ends = self.order = 0
        self.running = self.done = False

    @property
    def segments(self):
        return math.ceil(self.left / self.job.interval)

    def start(self, now, order):
        rest = self.left - (self.segments - 1) * self.job.interval
        self.running, self.began, self.order = True, now, order
        self.ends = now + self.job.restart + (self.segments - 1) * self.job.cycle + rest

    def make_room(self, now):
        whole = max(0, now - self.began - self.job.restart) // self.job.cycle
        self.left -= min(whole, self.segments - 1) * self.job.interval
        self.running = False
        self.made_room += 1


def plainly(cluster, jobs):
    every = [Plain(job, index) for index, job in enumerate(jobs)]
    order = 0
    for now in range(MINUTES):
        for each in every:
            if each.running and each.ends == now:
                each.running, each.done = False, True
        while True:
            waiting = [each for each in every if not (each.running or each.done) and each.job.submit <= now]
            if not waiting:
                break
            first = min(waiting, key=lambda each: (-each.job.priority, each.job.submit, each.index))
            free = cluster.nodes - sum(each.job.nodes for each in every if each.running)
            lower = [each for each in every if each.running and each.job.priority < first.job.priority]
            lower = [each for each in lower if now - each.began >= cluster.guard]
            if free + sum(each.job.nodes for each in lower) < first.job.nodes:
                break
            for each in sorted(lower, key=lambda each: (each.job.priority, -each.order)):
                if free < first.job.nodes:
                    free += each.job.nodes
                    each.make_room(now)
            order += 1
            first.start(now, order)
        for each in every:
            each.queue += not (each.running or each.done) and each.job.submit <= now
    return [(each.queue, each.made_room, each.done) for each in every]


def test_queues_and_preemption_are_those_of_a_look_at_every_minute():
    made_room = 0
    for seed in range(40):
        choose = random.Random(seed)
        cluster = Cluster(8, 0, check=0.0, requeue=0.0, lifetime=math.inf, guard=choose.choice([0.0, 20.0, 60.0]))
        jobs = [
            ClusterJob(
                submit=choose.randrange(300),
                nodes=choose.randrange(1, 7),
                work=choose.randrange(1, 200),
                priority=choose.randrange(3),
                interval=choose.choice([7, 30]),
                write=choose.choice([0, 2]),
                restart=choose.choice([0, 5]),
            )
            for _ in range(15)
        ]
        jobs.sort(key=lambda job: job.submit)
        found = [
            (each.queue, each.ended[PREEMPTION] + each.ended[CASCADE], each.status == DONE)
            for each in simulate_cluster(cluster, jobs, MINUTES, faults=[]).jobs
        ]
        assert found == plainly(cluster, jobs), seed
        made_room += sum(count for _, count, _ in found)
    assert made_room > 40
