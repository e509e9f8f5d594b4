"""Files of a round of labelling: one record per item, as JSON lines or as CSV, written and read with line numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Record(NamedTuple):
    """An item with what a person wrote.

    Attributes:
        place: ``file:line``.
        item: Its ``id``.
        label: As written, a string stripped; None if there is none yet.
        fingerprint: As written; empty if there is none.
    """

    place: str
    item: int
    label: Any
    fingerprint: str


def as_text(records: Sequence[Mapping[str, Any]], suffix: str) -> str:
    """The content of a file.

    Args:
        records: Plain JSON values by name.
        suffix: ``.jsonl`` or ``.csv``. In CSV a list of words is written with spaces between, other lists as JSON, and
            ``label`` is the last column.

    Returns:
        The text, to be written as UTF-8.
    """
    if suffix == ".csv":
        return _as_csv(records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def records_of(path: Path) -> Iterator[Record]:
    """What a file holds, in its order.

    Args:
        path: The file, ``.jsonl`` or ``.csv`` (with commas, semicolons or tabs, as spreadsheets save it).

    Yields:
        One record per item.

    Raises:
        FileNotFoundError: If it is gone.
        ValueError: If it is not UTF-8 or malformed; the message begins with ``file:line``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is gone: put it back, its items have been asked for") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    for place, fields in (_csv_rows if path.suffix == ".csv" else _jsonl_rows)(path, text):
        given = fields.get("id")
        if isinstance(given, bool) or not str(given).strip().isdigit():
            raise ValueError(f"{place}: id must be the number of an item, got {given!r}")
        label = fields.get("label")
        label = label.strip() or None if isinstance(label, str) else label
        yield Record(place, int(str(given)), label, str(fields.get("fingerprint") or "").strip())


def _as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    columns = dict.fromkeys(name for record in records for name in record if name != "label")
    text = io.StringIO()
    text.write("\ufeff")  # a spreadsheet takes it as the sign of UTF-8
    rows = csv.DictWriter(text, [*columns, "label"], lineterminator="\n")
    rows.writeheader()
    rows.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(each, str) and not set(each) & set(" \t\n") for each in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: expected one JSON object per line, got {line.strip()[:40]}")
        yield place, fields


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets of some countries save with semicolons
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for name in ("id", "label"):
        if name not in (rows.fieldnames or ()):
            raise ValueError(f"{path}:1: no column {name}; columns are {', '.join(rows.fieldnames or ())}")
    for fields in rows:
        yield f"{path}:{rows.line_num}", fields
