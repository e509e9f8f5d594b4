"""Tables in the documents, made from records, so that no number is typed by hand.

A document holds a place for a table between two lines::

    <!-- table: lds/accuracy -->
    <!-- end table -->

and ``docs/results/lds.yaml`` says what the table ``accuracy`` shows of the records in ``docs/results/lds.json``; in
``docs/methods/lds.md`` the name alone will do. Kinds of tables: ``values`` (mean and interval, beside published
numbers), ``differences`` (paired, against one row), ``choices`` (hyper-parameters picked per seed), ``reach`` (how far
along its curve a row gets to a level), ``iqm`` (interquartile mean with a bootstrap interval), ``methods`` (one line a
method), ``benchmark`` (times and memory from ``docs/results/benchmarks``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from framework import configuration
from framework.evaluation.overview_tables import benchmark_table, methods_table
from framework.evaluation.record_tables import Cells, choices_table, differences_table, reach_table, values_table
from framework.evaluation.records import read_records
from framework.evaluation.robust_tables import iqm_table

_PLACE = re.compile(
    r"^<!-- table: (?P<name>\S+) -->\n(?P<body>.*?)(?P<end>^<!-- end table -->$|\Z)", re.DOTALL | re.MULTILINE
)
_KINDS: dict[str, Callable[..., tuple[Cells, str]]] = {
    "values": values_table, "differences": differences_table, "choices": choices_table, "reach": reach_table,
    "iqm": iqm_table,
}  # fmt: skip


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
    kind = specification.pop("kind", "values")
    try:
        if kind == "methods":
            return _markdown(*methods_table(folder, **specification), left=6)
        if kind == "benchmark":
            results = folder / "benchmarks" / f"{specification.pop('name', table)}.json"
            cells, caption = benchmark_table(results, **specification)
            return _markdown(cells, f"{caption} {_link(results, document)}", left=2)
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join([*_KINDS, 'methods', 'benchmark'])}, got {kind!r}")
        results = folder / f"{specification.pop('results', method)}.json"
        cells, caption = _KINDS[kind](read_records(results), **specification)
    except TypeError as error:  # an unknown or missing key of the specification
        raise ValueError(f"{path}: {re.sub(r'^[a-z]+_table[(][)]', 'the specification', str(error))}") from None
    return _markdown(cells, f"{caption} Seed by seed: {_link(results, document)}")


def _markdown(cells: Sequence[Sequence[str]], caption: str, left: int = 1) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}"


def _link(results: Path, document: Path) -> str:
    return f"[{results.name}]({Path(os.path.relpath(results, document.parent)).as_posix()})."
