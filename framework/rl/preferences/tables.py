"""Preferences and sums of components in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from framework.rl.preferences.model import Array, Pair
from framework.tables import read_table


def pairs_of_ranking(ranks: Mapping[str, float], group: str) -> list[Pair]:
    """All pairs of a ranking.

    Args:
        ranks: Rank by trajectory, 1 for the best; equal ranks are ties.
        group: Name of the ranking.
    """
    ordered = sorted(ranks, key=lambda name: ranks[name])
    return [Pair(first, second, ranks[first] == ranks[second], group) for first, second in combinations(ordered, 2)]


def read_components(path: str | Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Sums of components by trajectory, and the names of the components.

    Args:
        path: A table with a column ``trajectory``; every other column is a component.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a trajectory stands there twice, or a value is not a finite number.
    """
    frame = read_table(path, "components", text=["trajectory"])
    names = tuple(column for column in frame.columns if column != "trajectory")
    if "trajectory" not in frame.columns or not names:
        raise ValueError(f"{path} needs a column trajectory and one per component, got {', '.join(frame.columns)}")
    sums: dict[str, Array] = {}
    for line, (trajectory, values) in enumerate(zip(frame["trajectory"], frame[list(names)].to_numpy(object)), start=2):
        if _empty(trajectory):
            raise ValueError(f"{path}:{line}: trajectory is empty")
        if str(trajectory) in sums:
            raise ValueError(f"{path}:{line}: trajectory {trajectory} stands there twice")
        for name, value in zip(names, values):
            if _empty(value) or isinstance(value, str | bool) or not math.isfinite(value):
                raise ValueError(f"{path}:{line}: {name} must be a finite number, got {value!r}")
        sums[str(trajectory)] = values.astype(np.float64)
    return sums, names


def read_preferences(path: str | Path) -> list[Pair]:
    """Preferences from a table of pairs or of rankings.

    Args:
        path: A table. Pairs: columns ``better`` and ``worse``, and if wanted ``tie`` (1 or 0) and ``group``. Rankings:
            columns ``trajectory`` and ``rank`` (1 is the best, equal ranks are ties), and ``group`` if there are
            several.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing or a value is not allowed, naming file and line.
    """
    frame = read_table(path, "pairs", text=["better", "worse", "trajectory", "group"])
    columns = set(frame.columns)
    kind = ("better", "worse") if "better" in columns else ("trajectory", "rank")
    if not set(kind) <= columns:
        raise ValueError(
            f"{path} needs columns better and worse, or trajectory and rank, got {', '.join(frame.columns)}"
        )
    groups = frame["group"].fillna("").astype(str) if "group" in columns else [""] * len(frame)
    last = frame["tie"] if "tie" in columns else [0] * len(frame)
    pairs: list[Pair] = []
    rankings: dict[str, dict[str, float]] = {}
    for line, (first, second, tie, group) in enumerate(zip(frame[kind[0]], frame[kind[1]], last, groups), start=2):
        if _empty(first) or _empty(second):
            raise ValueError(f"{path}:{line}: {kind[0] if _empty(first) else kind[1]} is empty")
        first = str(first)
        if kind[0] == "better":
            if tie not in (0, 1):
                raise ValueError(f"{path}:{line}: tie must be 0 or 1, got {tie}")
            pairs.append(Pair(first, str(second), bool(tie), group))
            continue
        if isinstance(second, str) or not math.isfinite(second):
            raise ValueError(f"{path}:{line}: rank must be a finite number, got {second}")
        ranking = rankings.setdefault(group, {})
        if first in ranking:
            raise ValueError(f"{path}:{line}: trajectory {first} is ranked twice")
        ranking[first] = float(second)
    for group, ranking in rankings.items():
        pairs += pairs_of_ranking(ranking, group or "ranking")
    return pairs


def _empty(value: Any) -> bool:
    return value is None or bool(value != value)
