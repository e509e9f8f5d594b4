"""What is known of each node's past: from a failure trace, from a simulated cluster, or made up.

The signals are those of the study (Kokolis et al., HPCA 2025, arXiv 2410.21680).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from framework.reliability.rates import MINUTES_PER_DAY, checked

if TYPE_CHECKING:
    from framework.reliability.cluster.account import Outcome
    from framework.reliability.gaps import Floats
    from framework.reliability.traces import Trace

SIGNALS = (
    "excl_jobid_count",
    "xid_cnt",
    "tickets",
    "out_count",
    "multi_node_node_fails",
    "single_node_node_fails",
    "single_node_node_failure_rate",
)
"""The study's signals: jobs whose users exclude the node, GPU errors, repair tickets, times out of service, failures of
jobs on several nodes and on this node alone, and the latter per job on this node alone."""

UNCORRELATED = ("excl_jobid_count",)
"""Signals that do not go with failures, as reported; they have no vote."""

WINDOW_DAYS = 28.0
"""Days of history that the study looks at."""

TICKET_MINUTES = MINUTES_PER_DAY
"""A failure of a trace whose repair took as long counts as a ticket, from when it had taken as long."""

MAX_RECORDS = 5_000_000
"""Records after which synthetic data are refused: nobody would wait for them."""

LEMON_FACTORS = (10.0, 30.0)
"""A lemon's rate over the mean of ordinary nodes: from and to."""

HETEROGENEITY = 2.0
"""Shape of the gamma distribution of the rates of ordinary nodes in synthetic data."""


class Record(NamedTuple):
    """Something that happened to a node.

    Attributes:
        minute: When.
        node: Which node, a number.
        kind: One of ``SIGNALS`` that is a count, or ``single_node_jobs``.
    """

    minute: float
    node: int
    kind: str


@dataclass(frozen=True)
class History:
    """Records of all nodes.

    Attributes:
        records: What happened, in any order.
        nodes: Number of nodes.
        days: Days of observation, from minute zero.
        names: Names of nodes by number; where a trace names fewer than there are, the rest have none.
        lemons: Nodes that are known to be lemons; ``None`` where that is not known.
    """

    records: list[Record]
    nodes: int
    days: float
    names: Sequence[str]
    lemons: frozenset[int] | None = None

    def signals(self, begin: float, end: float) -> Floats:
        """Signals of each node within a time.

        Args:
            begin: First day.
            end: Last day, after ``begin``.

        Returns:
            An array of nodes x ``SIGNALS``. The failure rate is per job on the node alone, or per day where such jobs
            are not recorded.
        """
        import numpy as np

        places = {name: index for index, name in enumerate((*SIGNALS[:-1], "single_node_jobs"))}
        counts = np.zeros((self.nodes, len(places)))
        low, high = begin * MINUTES_PER_DAY, end * MINUTES_PER_DAY
        for minute, node, kind in self.records:
            if low <= minute < high:
                counts[node, places[kind]] += 1
        jobs = counts[:, -1]
        exposure = np.maximum(jobs, 1.0) if jobs.any() else end - begin
        return np.column_stack((counts[:, :-1], counts[:, SIGNALS.index("single_node_node_fails")] / exposure))


def history_of_trace(trace: Trace) -> History:
    """History of the nodes of a failure trace.

    Each failure is a time out of service. It is one of several nodes if others fail at the same minute, and of this
    node alone otherwise; a repair of a day or more is a ticket, once it has taken a day. GPU errors and exclusions are
    not in such traces.

    Args:
        trace: A trace that names the nodes.

    Raises:
        ValueError: If it does not, or names more than there are.
    """
    names = list(dict.fromkeys(failure.node for failure in trace.failures))
    if not names or "" in names:
        raise ValueError("lemons need a trace with a column node that is never empty")
    nodes = round(trace.nodes)
    if len(names) > nodes:
        raise ValueError(f"the trace names {len(names)} nodes, and nodes is {nodes}")
    number = {name: index for index, name in enumerate(names)}
    begin = trace.failures[0].minute
    at_once = Counter(minute for minute, _ in {(failure.minute, failure.node) for failure in trace.failures})
    records = []
    for minute, node, down in trace.failures:
        kinds = ["out_count", "multi_node_node_fails" if at_once[minute] > 1 else "single_node_node_fails"]
        records += [Record(minute - begin, number[node], kind) for kind in kinds]
        if down >= TICKET_MINUTES:
            records.append(Record(minute - begin + TICKET_MINUTES, number[node], "tickets"))
    return History(records, nodes, trace.days, names)


def history_of_cluster(outcome: Outcome) -> History:
    """History of the nodes of a simulated cluster.

    Every failure is a GPU error and a time out of service, a long repair is a ticket.

    Args:
        outcome: The simulated cluster.
    """
    records = []
    for event in outcome.events:
        kinds = ["xid_cnt", "out_count"]
        if event.failed:
            kinds.append("multi_node_node_fails" if event.job_nodes > 1 else "single_node_node_fails")
        if not event.transient:
            kinds.append("tickets")
        records += [Record(event.minute, event.node, kind) for kind in kinds]
    names = [str(node) for node in range(outcome.cluster.nodes)]
    days = outcome.minutes / MINUTES_PER_DAY
    return History(records, outcome.cluster.nodes, days, names, frozenset(outcome.lemons))


def synthetic_history(
    nodes: int, days: float, rate: float, seed: int = 0, share: float = 0.012, shape: float = HETEROGENEITY
) -> History:
    """Made-up history: gamma distributed rates, and lemons that fail ``LEMON_FACTORS`` times as often.

    Of the failures half hit jobs on several nodes, 40 % end in a ticket and 60 % show a GPU error. Jobs of users' own
    making add as many GPU errors again, and exclusions fall on any node alike.

    Args:
        nodes: Number of nodes, positive.
        days: Days of observation, positive.
        rate: Mean failures per node-day of ordinary nodes, not negative.
        seed: Seed of all draws.
        share: Share of lemons, rounded to whole nodes.
        shape: Shape of the gamma distribution, positive.

    Raises:
        ValueError: For a value out of range, naming it, or if there would be more than ``MAX_RECORDS``.
    """
    import numpy as np

    from framework.seeding import derive

    checked("nodes", nodes, positive=True)
    checked("days", days, positive=True)
    checked("rate", rate)
    checked("shape", shape, positive=True)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share:g}")
    # A node itself, three of a failure, of what users do 1.6 times those of an ordinary node, and half a job a day.
    expected = nodes * (1 + days * (rate * (3 + 1.6 + share * 3 * LEMON_FACTORS[1]) + 0.5))
    if expected > MAX_RECORDS:
        raise ValueError(f"rate gives some {expected:.3g} records: more than {MAX_RECORDS:,} are too many to wait for")
    generator = np.random.default_rng(derive(seed, "lemon history"))
    rates = rate * generator.gamma(shape, 1 / shape, nodes)
    lemons = generator.choice(nodes, round(share * nodes), replace=False)
    rates[lemons] = rate * generator.uniform(*LEMON_FACTORS, len(lemons))
    length = days * MINUTES_PER_DAY
    records: list[Record] = []

    def happen(kind: str, mean: Floats | float) -> None:
        counts = generator.poisson(np.broadcast_to(mean, nodes))
        where = np.repeat(np.arange(nodes), counts)
        times = generator.uniform(0, length, len(where))
        records.extend(Record(minute, node, kind) for minute, node in zip(times.tolist(), where.tolist()))

    for kind, part in (("multi_node_node_fails", 0.5), ("single_node_node_fails", 0.5)):
        begin = len(records)
        happen(kind, part * rates * days)
        for record in records[begin:]:
            records.append(record._replace(kind="out_count"))
            if generator.uniform() < 0.4:
                records.append(record._replace(kind="tickets"))
            if generator.uniform() < 0.6:
                records.append(record._replace(kind="xid_cnt"))
    happen("xid_cnt", 0.6 * rate * days)
    happen("excl_jobid_count", rate * days)
    happen("single_node_jobs", 0.5 * days)
    names = [str(node) for node in range(nodes)]
    return History(records, nodes, days, names, frozenset(lemons.tolist()))
