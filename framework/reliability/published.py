"""Figures reported for the study of two research clusters, beside what the formulas give for the same case.

Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", HPCA 2025, arXiv 2410.21680,
versions 1 and 2. The figures come from published accounts of others; the text of the paper was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from framework.reliability.interval import Rule, with_rule
from framework.reliability.job import Job
from framework.reliability.linear import ettr_linear
from framework.reliability.rates import job_rate, mttf, node_rate
from framework.reliability.renewal import ettr_exact

RSC_1 = 6.50e-3
"""Failures per node-day reported for RSC-1, jobs of more than 128 GPUs; nodes of 8 GPUs."""

RSC_2 = 2.34e-3
"""Failures per node-day reported for RSC-2."""

TOLERANCE = 0.05
"""A formula is said to give a reported figure, which is rounded, if it is within this share of it."""


class Case(NamedTuple):
    """A reported figure.

    Attributes:
        what: ``mttf`` (minutes) or ``ettr``.
        reported: The figure; ``None`` for a case that is described without one.
        gpus: Size of the job.
        node_rate: Failures per node-day.
        interval: Minutes between checkpoints.
        write: Minutes of a write.
        restart: Minutes of a restart.
        queue: Minutes of a queue.
        rule: Where the interval comes from.
        remark: What a reader should know.
        observed: Whether it was observed rather than computed by the authors.
    """

    what: Literal["mttf", "ettr"]
    reported: float | None
    gpus: int
    node_rate: float
    interval: float = 60.0
    write: float = 0.0
    restart: float = 5.0
    queue: float = 0.0
    rule: Rule = "fixed"
    remark: str = ""
    observed: bool = False


CASES = [
    Case("mttf", 47.7 * 1440, 8, RSC_1, observed=True),
    Case("mttf", 7.9 * 60, 1024, RSC_1, observed=True),
    Case("mttf", 10 * 60, 4096, RSC_1, remark="about 10 h at 4k GPUs", observed=True),
    Case("mttf", 1.8 * 60, 16384, RSC_1),
    Case("mttf", 15, 100_000, RSC_1, remark="rounded"),
    Case("mttf", 0.23 * 60, 131_072, RSC_1),
    Case("ettr", 0.7, 16_000, RSC_1, 60),
    Case("ettr", 0.93, 16_000, RSC_1, 5),
    Case("ettr", 0.9, 8000, RSC_1, 30),
    Case("ettr", 0.9, 8000, RSC_1, 30, queue=1),
    Case("ettr", 0.5, 100_000, RSC_1, 7, remark="the first-order form only"),
    Case("ettr", 0.5, 100_000, RSC_2, 21, remark="would take restarts of about 14 min"),
    Case("ettr", 0.9, 100_000, RSC_2, 2, restart=2, remark="said to need these; enough they are"),
    Case("ettr", None, 12_000, RSC_1, write=5, rule="young", remark="the case that the next two improve"),
    Case("ettr", 0.9, 12_000, 1e-3, write=5, rule="young"),
    Case("ettr", 0.9, 12_000, RSC_1, write=1 / 6, rule="young"),
]
"""Reported figures that a formula can be held against. Restarts take 5 min where no account says otherwise."""


@dataclass(frozen=True)
class Compared:
    """A reported figure and ours.

    Attributes:
        case: What was reported.
        interval: Minutes between checkpoints, by the rule of the case.
        value: By the formula of the study: MTTF in minutes, or the first-order ETTR.
        exact: Exact ETTR; for an MTTF the same as ``value``.
        valid: Whether the first-order form is valid there.
        follows: Whether ``value`` is within ``TOLERANCE`` of the reported figure; ``None`` without one.
        implied: Failures per node-day that an MTTF implies; ``None`` for an ETTR.
    """

    case: Case
    interval: float
    value: float
    exact: float
    valid: bool
    follows: bool | None
    implied: float | None


def compared() -> list[Compared]:
    """Every reported figure beside what the formulas give."""
    return [_compared(case) for case in CASES]


def _compared(case: Case) -> Compared:
    rate = job_rate(case.node_rate, case.gpus)
    if case.what == "mttf":
        value = mttf(rate)
        implied = node_rate(1 / case.reported, case.gpus) if case.reported else None
        return Compared(case, case.interval, value, value, True, _near(value, case.reported), implied)
    job = with_rule(Job(rate, case.interval, case.write, case.restart, case.queue), case.rule)
    linear = ettr_linear(job)
    near = _near(linear.value, case.reported)
    return Compared(case, job.interval, linear.value, ettr_exact(job), linear.valid, near, None)


def _near(value: float, reported: float | None) -> bool | None:
    return None if reported is None else abs(value / reported - 1) <= TOLERANCE
