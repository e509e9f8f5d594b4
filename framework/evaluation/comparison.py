"""Questions to ask of records: what a row reached, how two rows differ seed by seed, what was chosen for each seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from framework.evaluation.records import Record
from framework.evaluation.statistics import Interval, paired_difference


def by_seed(records: Iterable[Record], row: str, data: str, metric: str) -> dict[int, float]:
    """Value of a metric by seed, for one row on one data set; empty if it was not run.

    Raises:
        ValueError: If a record of that row lacks the metric, naming those it has.
    """
    values = {}
    for record in records:
        if (record.row, record.data) == (row, data):
            if metric not in record.metrics:
                known = ", ".join(sorted(record.metrics))
                raise ValueError(f"record {record.key} has no metric {metric!r}; it has {known}")
            values[record.seed] = float(record.metrics[metric])
    return values


def compare(
    records: Iterable[Record],
    row: str,
    against: str | Sequence[str],
    data: str,
    metric: str,
    confidence: float = 0.95,
) -> Interval | None:
    """Paired difference ``row - against`` over the seeds both ran with; ``None`` where they share none.

    Several rows to compare with count as their mean, seed by seed, over the seeds that all of them ran with.
    """
    records = list(records)
    rows = [against] if isinstance(against, str) else list(against)
    ours, others = by_seed(records, row, data, metric), [by_seed(records, each, data, metric) for each in rows]
    seeds = set.intersection(*(set(values) for values in others))
    other = {seed: sum(values[seed] for values in others) / len(others) for seed in seeds}
    return paired_difference(ours, other, confidence) if set(ours) & set(other) else None


def chosen(records: Iterable[Record], row: str, data: str) -> list[tuple[dict[str, object], int]]:
    """Choices of hyper-parameters with the number of seeds that made them, most frequent first."""
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    originals: dict[tuple[tuple[str, str], ...], dict[str, object]] = {}
    for record in records:
        if (record.row, record.data) == (row, data) and record.choice:
            key = tuple((name, repr(value)) for name, value in sorted(record.choice.items()))
            counts[key] += 1
            originals[key] = dict(sorted(record.choice.items()))
    return [(originals[key], count) for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
