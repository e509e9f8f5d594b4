"""What a run reached, beside what was published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from framework.about import Reference, cited, shown
from framework.evaluation.records import Environment


def table(results: Mapping[str, float], references: Iterable[Reference], title: str) -> str:
    """A table of metric, ours, published value and source.

    Args:
        results: Metric values by logged name.
        references: Published numbers; those of metrics that were not measured are left out.
        title: Heading of the first column.

    Returns:
        Aligned lines; an unverified number is marked as one.
    """
    published = {reference.metric: reference for reference in references}
    rows = [(title, "ours", "published", "source")]
    for metric, value in sorted(results.items(), key=lambda item: item[0] not in published):
        reference = published.get(metric)
        rows.append(
            (metric, shown(metric, value), cited(reference) if reference else "", reference.source if reference else "")
        )
    used = [i for i in range(4) if i < 2 or any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in used]
    lines = ["  ".join(row[i].ljust(width) for i, width in zip(used, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def record(name: str, results: Mapping[str, float], references: Iterable[Reference], checkpoint: str | None) -> str:
    """The same as JSON, with the versions that made it."""
    content = {
        "name": name,
        "metrics": dict(results),
        "reference": [asdict(reference) for reference in references],
        "checkpoint": checkpoint,
        "environment": asdict(Environment.current()),
    }
    return json.dumps(content, indent=2) + "\n"
