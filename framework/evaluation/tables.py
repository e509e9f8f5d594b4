"""Tables in the documents, made from records, so that no number is typed by hand.

A document holds a place for a table between two lines::

    <!-- table: lds/accuracy -->
    <!-- end table -->

and ``docs/results/lds.yaml`` says what the table ``accuracy`` shows of the records in ``docs/results/lds.json``; in
``docs/methods/lds.md`` the name alone will do. Kinds of tables: ``values`` (mean and interval, beside published
numbers), ``differences`` (paired, against one row), ``choices`` (hyper-parameters picked per seed), ``reach`` (how far
along its curve a row gets to a level), ``methods`` (one line a method), ``benchmark`` (times and memory from
``docs/results/benchmarks``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework import configuration
from framework.about import About, Reference
from framework.evaluation.comparison import by_seed, chosen, compare
from framework.evaluation.curves import reach_by_seed
from framework.evaluation.records import Record, read_records
from framework.evaluation.statistics import Interval, mean_interval

NONE = "—"
"""Cell of what was not run or not published."""

MARKS = {"verified": "", "third-party": "ᵗ", "unverified": "ᵘ"}
"""How a published number is marked by how we know it."""

_MEANINGS = {
    "third-party": "ᵗ read in a third party's copy of the paper's table",
    "unverified": "ᵘ from memory, unverified",
}
_PLACE = re.compile(
    r"^<!-- table: (?P<name>\S+) -->\n(?P<body>.*?)(?P<end>^<!-- end table -->$|\Z)", re.DOTALL | re.MULTILINE
)
_REFERENCE = re.compile(r"(?P<value>-?[\d.]+)(?: \((?P<spread>[\d.]+)\))? (?P<known>verified|third-party|unverified)")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        data: Data set.
        label: Heading.
        metric: Logged name of what it shows.
        mode: Whether more (``max``) or less (``min``) of it is better.
        percent: Whether it is shown times 100.
    """

    data: str
    label: str
    metric: str
    mode: str = "max"
    percent: bool = True


def regenerate(root: str | os.PathLike[str]) -> dict[Path, tuple[str, list[str]]]:
    """Every document with tables as it should be, by path; nothing is written.

    Args:
        root: The checkout, which holds ``README.md`` and ``docs``.

    Returns:
        By document: its new text, and the names of the tables that differ from the old one.

    Raises:
        ValueError: If a place is not closed, a table is not specified, or a specification or results file is wrong.
    """
    root = Path(root)
    documents = [path for path in (root / "README.md", *sorted(root.glob("docs/**/*.md"))) if path.exists()]
    regenerated = {}
    for path in documents:
        text = path.read_text()
        changed: list[str] = []

        def fill(place: re.Match[str], path: Path = path, changed: list[str] = changed) -> str:
            name = place["name"]
            if not place["end"]:
                raise ValueError(f"{path}: table {name} has no line <!-- end table -->")
            try:
                body = f"{render(root, name, path)}\n"
            except ValueError as error:
                raise ValueError(f"{path}: table {name}: {error}") from None
            if body != place["body"]:
                changed.append(name)
            return f"<!-- table: {name} -->\n{body}<!-- end table -->"

        if _PLACE.search(text):
            regenerated[path] = (_PLACE.sub(fill, text), changed)
    return regenerated


def update_documents(root: str | os.PathLike[str]) -> list[str]:
    """Write the tables into the documents; returns what changed, as ``<file>: <table>``."""
    changes = []
    for path, (text, changed) in regenerate(root).items():
        if changed:
            path.write_text(text)
            changes += [f"{path.relative_to(root)}: {name}" for name in changed]
    return changes


def check_documents(root: str | os.PathLike[str]) -> list[str]:
    """Tables that differ from the committed results, as ``<file>: <table>``; nothing is written."""
    return [f"{path.relative_to(root)}: {name}" for path, (_, changed) in regenerate(root).items() for name in changed]


def render(root: str | os.PathLike[str], name: str, document: str | os.PathLike[str]) -> str:
    """One table as markdown.

    Args:
        root: The checkout.
        name: ``<method>/<table>``, or ``<table>`` in a document whose file is named after the method.
        document: Where the table will stand; links in it are relative to that file.

    Raises:
        ValueError: If the table is not specified, or its specification does not fit the records.
    """
    root, document = Path(root), Path(document)
    method, _, table = name.rpartition("/")
    method = method or document.stem.lower()
    folder = root / "docs" / "results"
    path = folder / f"{method}.yaml"
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    specifications = configuration.read(path)
    if table not in specifications:
        raise ValueError(f"{path} has no table {table!r}; it has {', '.join(map(str, specifications))}")
    specification = dict(specifications[table] or {})
    kinds: dict[str, Callable[..., tuple[list[list[str]], str]]] = {
        "values": _values, "differences": _differences, "choices": _choices, "reach": _reach
    }  # fmt: skip
    kind = specification.pop("kind", "values")
    try:
        if kind == "methods":
            return _markdown(*_methods(folder, **specification), left=6)
        if kind == "benchmark":
            results = folder / "benchmarks" / f"{specification.pop('name', table)}.json"
            cells, caption = _benchmark(results, **specification)
            return _markdown(cells, f"{caption} {_link(results, document)}", left=2)
        if kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join([*kinds, 'methods', 'benchmark'])}, got {kind!r}")
        results = folder / f"{specification.pop('results', method)}.json"
        cells, caption = kinds[kind](read_records(results), **specification)
    except TypeError as error:  # an unknown or missing key of the specification
        raise ValueError(f"{path}: {re.sub(r'^_[a-z]+[(][)]', 'the specification', str(error))}") from None
    return _markdown(cells, f"{caption} Seed by seed: {_link(results, document)}")


# The kinds. Each takes the keys of its specification as arguments and returns the cells, heading first, and a caption.


def _values(
    records: Sequence[Record],
    rows: Sequence[Any],
    columns: Sequence[Any],
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
    best: bool = False,
    reference: Mapping[str, Mapping[str, str]] | None = None,
    source: str = "",
) -> tuple[list[list[str]], str]:
    heads = _columns(columns, metric, mode, percent)
    labels = _rows(rows)
    published = {row: _published(row, cells, heads) for row, cells in (reference or {}).items()}
    unknown = set(published) - set(labels)
    if unknown:
        raise ValueError(f"reference names {sorted(unknown)[0]!r}, which is not among the rows {', '.join(labels)}")
    ours: dict[tuple[str, Column], Interval] = {}
    for row in labels:
        for column in heads:
            values = by_seed(records, row, column.data, column.metric)
            if values:
                ours[row, column] = mean_interval([100 * v if column.percent else v for v in values.values()])
    counts = {interval.n for interval in ours.values()}
    with_paper = [column for column in heads if any(column.label in cells for cells in published.values())]
    table = [["", *(head for c in heads for head in ([c.label, "paper"] if c in with_paper else [c.label]))]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            cell = _interval(ours.get((row, column)), decimals, counts)
            reached = [round(i.estimate, decimals) for (_, c), i in ours.items() if c == column]
            if best and cell != NONE and len(reached) > 1:
                top = max(reached) if column.mode == "max" else min(reached)
                if round(ours[row, column].estimate, decimals) == top:
                    cell = f"**{cell}**"
            cells.append(cell)
            if column in with_paper:
                cells.append(published.get(row, {}).get(column.label, (NONE, ""))[0])
        table.append(cells)
    marks = {known for cells in published.values() for _, known in cells.values()}
    caption = f"{_what(heads)}: mean ± half the width of the 95 % t-interval{_over(counts)}."
    if best:
        caption += " Bold: best mean of a column."
    if with_paper:
        caption += f" Paper: mean (standard deviation){f', {source}' if source else ''}"
        caption += "".join(f"; {_MEANINGS[known]}" for known in MARKS if known in marks and known in _MEANINGS) + "."
    return table, caption


def _differences(
    records: Sequence[Record],
    against: str,
    rows: Sequence[Any],
    columns: Sequence[Any],
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
) -> tuple[list[list[str]], str]:
    heads, labels = _columns(columns, metric, mode, percent), _rows(rows)
    differences = {
        (row, column): compare(records, row, against, column.data, column.metric) for row in labels for column in heads
    }
    counts = {interval.n for interval in differences.values() if interval is not None}
    table = [[f"minus {against}", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            interval = differences[row, column]
            if interval is not None and column.percent:
                interval = _scaled(interval, 100)
            cell = _interval(interval, decimals, counts, signed=True)
            cells.append(f"**{cell}**" if interval is not None and (interval.low > 0 or interval.high < 0) else cell)
        table.append(cells)
    return table, (
        f"{_what(heads)}, difference to {against} on the same seeds: mean ± half the width of the 95 % t-interval"
        f"{_over(counts)}. Bold: the interval excludes zero."
    )


def _choices(
    records: Sequence[Record], rows: Sequence[Any], columns: Sequence[Any], most: int = 3
) -> tuple[list[list[str]], str]:
    heads, labels = _columns(columns, "", "max", True), _rows(rows)
    table = [["", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            counted = chosen(records, row, column.data)
            shown = [f"{_choice(choice)} ({count})" for choice, count in counted[:most]]
            others = sum(count for _, count in counted[most:])
            cells.append("; ".join([*shown, *([f"others ({others})"] if others else [])]) or NONE)
        table.append(cells)
    return table, "Hyper-parameters picked for each seed on validation data, with the number of seeds that picked them."


def _reach(
    records: Sequence[Record],
    rows: Sequence[Any],
    columns: Sequence[Any],
    against: str,
    x: str,
    fraction: float = 0.99,
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
) -> tuple[list[list[str]], str]:
    heads, labels = _columns(columns, metric, mode, percent), _rows(rows)
    table = [["", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            levels = {
                seed: fraction * value for seed, value in by_seed(records, against, column.data, column.metric).items()
            }
            found = reach_by_seed(records, row, column.data, x, column.metric, levels, column.mode)
            there = [value * (100 if column.percent else 1) for value in found.values() if value is not None]
            cell = _interval(mean_interval(there) if there else None, decimals, {len(there)})
            if len(there) < len(found):
                cell = f"{cell} ({len(there)} of {len(found)} seeds)" if there else f"not reached ({len(found)} seeds)"
            cells.append(cell)
        table.append(cells)
    what = _what([dataclasses.replace(column, percent=False) for column in heads])
    return table, (
        f"`{x}`{' in %' if percent else ''} at which a seed first reaches {100 * fraction:g} % of what {against} "
        f"reaches in {what} with the same seed: mean ± half the width of the 95 % t-interval over the seeds that get "
        "there."
    )


def _methods(folder: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], str]:
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
        _check_mode(mode, f"entry {config}")
        about = About.read(configuration.read(configuration.find(config)).get("about"))
        values = by_seed(read_records(folder / f"{results}.json"), row, data, metric)
        ours = mean_interval(list(values.values())) if values else None
        papers = next((reference for reference in about.reference if reference.metric == metric), None)
        marks |= {papers.verified} if papers else set()
        table.append(
            [
                about.method,
                about.paper or NONE,
                f"`scripts/fulgurite fit -c {config}`",
                NONE if ours is None else f"{_share(metric, ours)} on {data} ({_seeds(ours.n)})",
                NONE if papers is None else _published_share(papers),
                note or _status(ours, papers, mode),
            ]
        )
    caption = "Ours: mean ± half the width of the 95 % t-interval over seeds."
    return table, f"{caption} ᵘ not read in the paper itself." if False in marks else caption


def _benchmark(results: Path) -> tuple[list[list[str]], str]:
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


# Parts of tables


def _markdown(cells: Sequence[Sequence[str]], caption: str, left: int = 1) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}"


def _link(results: Path, document: Path) -> str:
    return f"[{results.name}]({Path(os.path.relpath(results, document.parent)).as_posix()})."


def _columns(columns: Sequence[Any], metric: str, mode: str, percent: bool) -> list[Column]:
    heads = []
    for given in columns:
        fields = {"data": given} if isinstance(given, str) else dict(given)
        if "data" not in fields:
            raise ValueError(f"a column needs data, got {given}")
        defaults = {"label": fields["data"], "metric": metric, "mode": mode, "percent": percent}
        heads.append(Column(**{**defaults, **fields}))
        _check_mode(heads[-1].mode, f"column {heads[-1].label}")
    return heads


def _check_mode(mode: object, owner: str) -> None:
    if mode not in ("max", "min"):
        raise ValueError(f"mode of {owner} must be max or min, got {mode!r}")


def _choice(choice: Mapping[str, object]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in choice.items())


def _scaled(interval: Interval, factor: float) -> Interval:
    low, high = factor * interval.low, factor * interval.high
    return interval._replace(estimate=factor * interval.estimate, low=low, high=high)


def _rows(rows: Sequence[Any]) -> dict[str, str]:
    """Label by row."""
    pairs = [(row, row) if isinstance(row, str) else (row["row"], row.get("label", row["row"])) for row in rows]
    return dict(pairs)


def _published(row: str, cells: Mapping[str, str], heads: Sequence[Column]) -> dict[str, tuple[str, str]]:
    """Published number as shown and how it is known, by column label."""
    shown = {}
    for label, text in cells.items():
        if label not in [column.label for column in heads]:
            raise ValueError(f"reference of {row} names {label!r}, which is not among the columns")
        match = _REFERENCE.fullmatch(str(text))
        if match is None:
            raise ValueError(
                f"reference of {row} on {label} must read like `97.3 (0.4) unverified` with one of "
                f"{', '.join(MARKS)} at its end, got {text!r}"
            )
        spread = f" ({match['spread']})" if match["spread"] else ""
        shown[label] = f"{match['value']}{spread}{MARKS[match['known']]}", match["known"]
    return shown


def _interval(interval: Interval | None, decimals: int, counts: set[int], signed: bool = False) -> str:
    if interval is None:
        return NONE
    text = f"{interval.estimate:{'+' if signed else ''}z.{decimals}f}"  # z: no -0.0
    if interval.n > 1:
        text += f" ± {interval.half:.{decimals}f}"
    return text if len(counts) == 1 else f"{text} (n = {interval.n})"


def _what(heads: Sequence[Column]) -> str:
    shown = {f"{column.metric}{' in %' if column.percent else ''}" for column in heads}
    return ", ".join(f"`{name}`" if " " not in name else f"`{name[:-5]}` in %" for name in sorted(shown))


def _over(counts: set[int]) -> str:
    return f" over {_seeds(next(iter(counts)))}" if len(counts) == 1 else " over n seeds"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _scale(metric: str) -> tuple[int, int]:
    """Factor and decimals with which the table of methods shows a metric: shares in percent."""
    return (100, 1) if any(word in metric.lower() for word in ("accuracy", "f1")) else (1, 3)


def _share(metric: str, interval: Interval) -> str:
    scale, decimals = _scale(metric)
    return _interval(_scaled(interval, scale), decimals, {interval.n}) + (" %" if scale == 100 else "")


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
