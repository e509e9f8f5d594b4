"""Tables of another make: one line a method, and times and memory of benchmarks.

Each takes the keys of its specification as arguments and returns the cells, heading first, and a caption.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework import configuration
from framework.about import About, Reference
from framework.evaluation.comparison import by_seed
from framework.evaluation.record_tables import MARKS, NONE, Cells, check_mode, scaled, seeds_text, shown_interval
from framework.evaluation.records import read_records
from framework.evaluation.statistics import Interval, mean_interval


def methods_table(folder: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[Cells, str]:
    """One line a method: paper, command, our number beside the published one.

    Args:
        folder: ``docs/results``.
        entries: Mappings with ``config``, ``row``, ``data`` and perhaps ``metric``, ``mode``, ``results``, ``note``.
    """
    table = [["Method", "Paper", "Command", "Ours", "Paper's", "Status"]]
    marks = set()
    for entry in entries:
        fields = dict(entry)
        try:
            config, row, data = (fields.pop(key) for key in ("config", "row", "data"))
        except KeyError as error:
            raise ValueError(f"an entry needs config, row and data, and lacks {error}") from None
        metric, mode = fields.pop("metric", "test/accuracy"), fields.pop("mode", "max")
        results, note = fields.pop("results", config.partition("/")[0]), fields.pop("note", "")
        if fields:
            raise ValueError(f"entry {config} has unknown keys {', '.join(map(str, fields))}")
        check_mode(mode, f"entry {config}")
        declared = configuration.read(configuration.find(config))
        about, verb = About.read(declared.get("about")), "federate" if "federation" in declared else "fit"
        values = by_seed(read_records(folder / f"{results}.json"), row, data, metric)
        ours = mean_interval(list(values.values())) if values else None
        papers = next((reference for reference in about.reference if reference.metric == metric), None)
        marks |= {papers.verified} if papers else set()
        table.append(
            [
                about.method,
                about.paper or NONE,
                f"`scripts/fulgurite {verb} -c {config}`",
                NONE if ours is None else f"{_share(metric, ours)} on {data} ({seeds_text(ours.n)})",
                NONE if papers is None else _published_share(papers),
                note or _status(ours, papers, mode),
            ]
        )
    caption = "Ours: mean ± half the width of the 95 % t-interval over seeds."
    return table, f"{caption} ᵘ not read in the paper itself." if False in marks else caption


def benchmark_table(results: Path) -> tuple[Cells, str]:
    """Seconds and peak memory by case and variant, and the ratio of times to ours.

    Args:
        results: The file that ``scripts/benchmark`` wrote.
    """
    if not results.exists():
        raise ValueError(f"{results} does not exist: run scripts/benchmark {results.stem}")
    content = json.loads(results.read_text())
    table = [["Case", "", "Seconds", "Peak", "Time / ours"]]
    for case in content["cases"]:
        name = ", ".join(f"{key} {value}" for key, value in case["case"].items())
        for number, (variant, measured) in enumerate(case["variants"].items()):
            ratio = case["ratios"].get(variant)
            seconds = f"{statistics.median(measured['seconds']):.3g}"
            shown = NONE if ratio is None else f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"
            memory = f"+{measured['extra_peak_mb']:.0f} MB"
            if measured["gpu_peak_mb"] is not None:
                memory += f", GPU {measured['gpu_peak_mb']:.0f} MB"
            table.append([name if number == 0 else "", variant, seconds, memory, shown])
    first = next(iter(content["cases"][0]["variants"].values()))
    where = content["environment"]["gpu"] or [content["environment"]["cpu"]]
    caption = f"{content['summary']} Median of {len(first['seconds'])} calls in turns, {content['threads']} thread(s), "
    return table, f"{caption}{where[0]}; peak memory beyond that of the set-up; ratio as median (range)."


def _scale(metric: str) -> tuple[int, int]:
    """Factor and decimals with which the table of methods shows a metric: shares in percent."""
    return (100, 1) if any(word in metric.lower() for word in ("accuracy", "f1")) else (1, 3)


def _share(metric: str, interval: Interval) -> str:
    scale, decimals = _scale(metric)
    return shown_interval(scaled(interval, scale), decimals, {interval.n}) + (" %" if scale == 100 else "")


def _published_share(reference: Reference) -> str:
    scale, decimals = _scale(reference.metric)
    spread = f" ({scale * reference.std:.{decimals}f})" if reference.std is not None else ""
    mark = "" if reference.verified else MARKS["unverified"]
    return f"{scale * reference.value:.{decimals}f}{spread}{' %' if scale == 100 else ''}{mark}"


def _status(ours: Interval | None, papers: Reference | None, mode: str) -> str:
    if ours is None:
        return "not run"
    if papers is None:
        return "no published number"
    scale, decimals = _scale(papers.metric)
    # As the line shows them: published numbers are rounded, and equal numbers side by side are not "below".
    mean, published = (round(scale * value, decimals) for value in (ours.estimate, papers.value))
    if mean >= published if mode == "max" else mean <= published:
        return "reached"
    if papers.value in ours:
        return "within our interval"
    return "below" if mode == "max" else "above"
