"""A user's own table as arrays: reading CSV or Parquet, labels as classes, columns as features.

Three steps, each usable alone::

    frame = read_table("patients.csv")
    labels = encode_labels(frame, "diagnosis", missing="allow")     # labels.y is -1 where there is none
    encoding = fit_encoding(frame, feature_columns(frame, exclude=["diagnosis", "id"]))
    x = encoding.transform(frame)                                   # (rows, inputs) float32

Fit the encoding on training rows only where that matters: ``transform`` takes any rows with the same columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MissingValues = Literal["refuse", "fill"]


class Labels(NamedTuple):
    """Classes of the rows of a table.

    Attributes:
        y: Class of each row, shape ``(rows,)``, int64; -1 where the label is missing.
        class_names: Name of each class; class ``c`` is ``class_names[c]``.
    """

    y: np.ndarray[Any, np.dtype[np.int64]]
    class_names: list[str]


@dataclass(frozen=True)
class Encoding:
    """How columns become features; made by :func:`fit_encoding`.

    Attributes:
        numeric: For each numeric column: the value that fills gaps, the shift and the scale, so that the feature is
            ``(value - shift) / scale``.
        categories: For each text column: its categories, one 0/1 feature each. A category not in the list, or a gap, is
            all zeros.
        missing: What gaps do: ``refuse`` or ``fill``.
    """

    numeric: dict[str, tuple[float, float, float]]
    categories: dict[str, list[str]]
    missing: MissingValues

    @property
    def names(self) -> list[str]:
        """Name of each feature: numeric columns first, then ``column=category``."""
        return [*self.numeric, *(f"{column}={name}" for column, names in self.categories.items() for name in names)]

    def transform(self, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Features of the rows of ``frame``, shape ``(rows, len(names))``, float32, finite.

        Raises:
            ValueError: If a column is missing, is not of the kind seen when fitting, has an infinite value, or has a
                gap while gaps are refused.
        """
        import numpy as np

        features = np.zeros((len(frame), len(self.names)), dtype=np.float32)
        for at, (column, (fill, shift, scale)) in enumerate(self.numeric.items()):
            values = _numbers(_column(frame, column, "column"), self.missing)
            features[:, at] = (np.where(np.isnan(values), fill, values) - shift) / scale
        at = len(self.numeric)
        for column, names in self.categories.items():
            texts = _texts(_column(frame, column, "column"), self.missing)
            for name in names:
                features[:, at] = texts == name
                at += 1
        return features


def read_table(path: str | os.PathLike[str], field: str = "path", text: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV (``.csv``, ``.tsv``, also ``.gz``, ``.xz``, ``.zip``) or Parquet (``.parquet``, ``.pq``) file.

    Args:
        path: The file; ``~`` is expanded.
        field: Name of the option it came from, for messages.
        text: Columns of a CSV file kept as they are written, such as identifiers with leading zeros.

    Returns:
        The table, at least one row, columns named by strings. Empty cells are missing values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the kind of file is unknown, or the file is empty or cannot be parsed.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """
    import pandas as pd

    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{field} is not a file: {file}")
    kinds = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in {".gz", ".xz", ".zip", ".bz2"}]
    kind = kinds[-1] if kinds else ""
    try:
        if kind in {".csv", ".tsv"}:
            frame = pd.read_csv(file, sep="\t" if kind == ".tsv" else ",", dtype=dict.fromkeys(text, str))
        elif kind in {".parquet", ".pq"}:
            _require_pyarrow(file)
            frame = pd.read_parquet(file, engine="pyarrow")
        else:
            raise ValueError(f"{field} must end in .csv, .tsv, .parquet or .pq, got {file.name}")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{field} cannot be read as a table: {file}: {' '.join(str(error).split())}") from error
    frame.columns = frame.columns.astype(str)
    if len(frame) == 0:
        raise ValueError(f"{field} has no rows: {file}")
    return frame


def encode_labels(
    frame: pd.DataFrame,
    label: str,
    *,
    missing: Literal["refuse", "allow"] = "refuse",
    class_names: Sequence[str] | None = None,
) -> Labels:
    """Turn the label column into classes 0, 1, ...

    Args:
        frame: The table.
        label: Name of the label column.
        missing: ``allow`` gives rows without a label the class -1; ``refuse`` makes them an error.
        class_names: Names in the order of the classes; default: the values found, numbers in numeric order, else sorted
            as text.

    Returns:
        Classes and their names.

    Raises:
        ValueError: If there is no such column, a label is missing or not among ``class_names``, or there are fewer than
            two classes.
    """
    import numpy as np
    import pandas as pd

    column = _column(frame, label, "label")
    gaps = column.isna().to_numpy()
    if missing == "refuse" and gaps.any():
        raise ValueError(f"label column {label!r} must have a value in every row, got none in row {int(gaps.argmax())}")
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    known = column[~gaps]
    if numeric and not (known % 1 == 0).all():
        example = known[known % 1 != 0].iloc[0]
        raise ValueError(f"label column {label!r} must hold classes, got the number {example}")
    found = sorted(known.unique().tolist()) if numeric else sorted({str(value) for value in known})
    names = [_name(value) for value in found]
    if class_names is not None:
        unknown = [name for name in names if name not in class_names]
        if unknown:
            raise ValueError(f"class_names must hold every label of column {label!r}, got label {unknown[0]!r} besides")
        if len(set(class_names)) != len(class_names):
            raise ValueError(f"class_names must not repeat, got {list(class_names)}")
        names = list(class_names)
    if len(names) < 2:
        raise ValueError(f"label column {label!r} must hold at least 2 classes, got {names}")
    index = {name: at for at, name in enumerate(names)}
    y = np.full(len(frame), -1, dtype=np.int64)
    y[~gaps] = [index[_name(value)] for value in known]
    return Labels(y, names)


def feature_columns(frame: pd.DataFrame, exclude: Iterable[str | None] = ()) -> list[str]:
    """All columns but the excluded ones, in the order of the table.

    Args:
        frame: The table.
        exclude: Columns that are no features (label, id, split, ...); None is ignored, which suits optional columns.

    Raises:
        ValueError: If an excluded column does not exist or nothing is left.
    """
    out = [column for column in exclude if column is not None]
    for column in out:
        _column(frame, column, "column")
    left = [column for column in frame.columns if column not in out]
    if not left:
        raise ValueError(f"the table must have at least one feature column besides {', '.join(out)}")
    return left


def fit_encoding(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    missing: MissingValues = "refuse",
    standardize: bool = True,
    max_categories: int = 100,
) -> Encoding:
    """Learn from the rows of ``frame`` how its columns become features.

    Numbers and booleans stay one feature each; any other column is text and becomes one 0/1 feature per category.

    Args:
        frame: Rows to learn from.
        columns: Feature columns.
        missing: ``refuse`` makes a gap an error that names the column and the row; ``fill`` puts the median in numeric
            columns and no category in text columns.
        standardize: Whether numeric columns get mean 0 and standard deviation 1 over these rows (a constant column
            becomes 0).
        max_categories: Most categories of a text column; more usually means free text or an identifier.

    Raises:
        ValueError: Naming the column, for gaps that are refused, infinite values, columns without any value, dates, and
            text with too many categories.
    """
    import numpy as np
    import pandas as pd

    numeric: dict[str, tuple[float, float, float]] = {}
    categories: dict[str, list[str]] = {}
    for name in columns:
        column = _column(frame, name, "column")
        if column.isna().all():
            raise ValueError(f"column {name!r} must hold some values, got none in {len(frame)} rows; drop the column")
        if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
            raise ValueError(
                f"column {name!r} must hold numbers or text, got {column.dtype}; turn it into numbers or drop it"
            )
        if pd.api.types.is_numeric_dtype(column):
            values = _numbers(column, missing)
            fill = float(np.nanmedian(values))
            values = np.where(np.isnan(values), fill, values)
            shift, scale = (float(values.mean()), float(values.std())) if standardize else (0.0, 1.0)
            numeric[name] = (fill, shift, scale if scale > 0 else 1.0)
        else:
            found = sorted({value for value in _texts(column, missing) if value is not None})
            if len(found) > max_categories:
                raise ValueError(_too_many_categories(column, name, len(found), max_categories))
            categories[name] = found
    return Encoding(numeric, categories, missing)


def _column(frame: pd.DataFrame, name: str, field: str) -> pd.Series[Any]:
    """The column, or an error that lists those there are."""
    if name not in frame.columns:
        shown = ", ".join(map(str, frame.columns[:20])) + (", ..." if len(frame.columns) > 20 else "")
        raise ValueError(f"{field} {name!r} is not a column of the table; its columns are: {shown}")
    return frame[name]


def _numbers(column: pd.Series[Any], missing: MissingValues) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values as float64, NaN for gaps; refuses infinities, text, and gaps if told so."""
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"column {column.name!r} must hold numbers as before, got {column.dtype}")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        raise ValueError(
            f"column {column.name!r} must be finite, got {values[np.isinf(values)][0]} in row {_row(np.isinf(values))}"
        )
    _refuse_gaps(column, np.isnan(values), missing)
    return values


def _texts(column: pd.Series[Any], missing: MissingValues) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Values as str, None for gaps; refuses gaps if told so."""
    import numpy as np

    gaps = column.isna().to_numpy()
    _refuse_gaps(column, gaps, missing)
    values = np.empty(len(column), dtype=object)
    values[:] = [None if gap else _name(value) for value, gap in zip(column, gaps, strict=True)]
    return values


def _refuse_gaps(column: pd.Series[Any], gaps: np.ndarray[Any, np.dtype[np.bool_]], missing: MissingValues) -> None:
    if missing == "refuse" and gaps.any():
        raise ValueError(
            f"column {column.name!r} has {int(gaps.sum())} missing values, the first in row {_row(gaps)}; "
            "fill them in, drop the column, or set missing: fill"
        )


def _row(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    return int(mask.argmax())


def _name(value: Any) -> str:
    """Text of a value; 3.0 reads ``3``, because gaps turn a column of integers into floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _too_many_categories(column: pd.Series[Any], name: str, found: int, limit: int) -> str:
    """Message for text with too many categories; says which value kept a mostly numeric column from being numbers."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    culprits = (numbers.isna() & column.notna()).to_numpy()
    if culprits.any() and numbers.notna().mean() > 0.5:
        row = _row(culprits)
        return f"column {name!r} is read as text because of the value {str(column.iloc[row])!r} in row {row}"
    return (
        f"column {name!r} is text with {found} different values (max_categories is {limit}); drop it or raise the limit"
    )


def _require_pyarrow(file: Path) -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise ModuleNotFoundError(
            f"reading {file.name} needs pyarrow, which is not installed: "
            "pip install 'fulgurite[tables]', or save the table as CSV"
        )
