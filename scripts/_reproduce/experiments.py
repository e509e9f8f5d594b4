"""Experiments as declared in ``scripts/experiments/<method>.yaml``.

::

    seeds: 5                                # 1 to 5, or a list
    seed: [seed_everything, data.seed]      # the keys that receive the seed (this is the default)
    overrides: {trainer.max_epochs: 50}     # for every run
    data:
      wine: lds/wine                        # label in tables: configuration, or a list of layers
      cora-25: {config: lds/cora, overrides: {data.retained: 25}}
    rows:
      - name: kNN-LDS
        data: [wine]                        # default: all; or {wine: {model.tau: 20}}, with overrides of its own
        config: [overlays/debug/fast]       # more layers
        overrides: {model.tau: 5}
        grid: {model.outer_lr: [1, 0.1]}    # every combination is run
        select: {metric: stop/accuracy, mode: max, ties: [{metric: stop/loss, mode: min}], last: false}
        seeds: 20
        collect: scripts.experiments.lds:curves # more to record of a finished run, from its directory
      - name: kNN-LDS by loss               # another choice from the same runs
        runs: kNN-LDS
        select: {metric: stop/loss, mode: min}
      - rows: [Logistic regression, Random forest]
        callable: scripts.experiments.lds:sklearn_rows
        arguments: {trees: 100}

A configuration is a shipped name, or a file as seen from the checkout.

A callable gets ``data`` (the label), ``seed`` and the arguments by name, and returns ``{row: {"metrics": {...}}}``,
with ``choice`` and ``selection`` beside ``metrics`` where it picked hyper-parameters. What ``collect`` names gets the
run's directory, checkpoints and all, and returns ``metrics`` and ``curves`` to record besides. ``preload`` may list
modules that many runs import, such as ``torch_geometric``: they are imported once for all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.configuration import Configuration, find, read

ROOT = Path(__file__).resolve().parents[2]
SEED_KEYS = ("seed_everything", "data.seed")
QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
"""What every run is given besides, since nobody watches it."""

_KEYS = {"seeds", "seed", "overrides", "data", "rows", "preload"}
_ROW_KEYS = {"name", "data", "config", "overrides", "grid", "select", "seeds", "runs", "collect"}
_CALLABLE_KEYS = {"rows", "callable", "arguments", "data", "seeds"}


@dataclasses.dataclass(frozen=True)
class Select:
    """How the grid point of a seed is picked; test metrics are refused.

    Attributes:
        metric: Logged name of a validation metric, as it was at the run's best checkpoint.
        mode: ``max`` or ``min``.
        ties: Further ``(metric, mode)`` that decide between equals, in order.
        last: Whether the last of what is still equal wins, in the order of the grid, instead of the first.
    """

    metric: str
    mode: str = "max"
    ties: tuple[tuple[str, str], ...] = ()
    last: bool = False

    @property
    def criteria(self) -> tuple[tuple[str, str], ...]:
        """All ``(metric, mode)``, most important first."""
        return ((self.metric, self.mode), *self.ties)

    def pick(self, metrics: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, Any]]:
        """The best of several grid points, and what to record about the choice.

        Args:
            metrics: Metrics by grid point.

        Raises:
            ValueError: If a point lacks a metric that decides.
        """
        for point in metrics:
            lacking = [metric for metric, _ in self.criteria if metric not in point]
            if lacking:
                raise ValueError(f"select needs {lacking[0]}, and the run logged {', '.join(sorted(point))}")

        def score(i: int) -> tuple[float, ...]:
            return tuple(metrics[i][metric] * (1 if mode == "max" else -1) for metric, mode in self.criteria)

        top = max(score(i) for i in range(len(metrics)))
        equal = [i for i in range(len(metrics)) if score(i) == top]
        index = equal[-1 if self.last else 0]
        rule = [*(f"{metric} {mode}" for metric, mode in self.ties), "last" if self.last else "first"]
        return index, {
            "metric": self.metric,
            "mode": self.mode,
            "points": len(metrics),
            "tied": sum(point[self.metric] == metrics[index][self.metric] for point in metrics),
            "ties": ", then ".join(rule),
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the command line: a grid point of a seed of a row.

    Attributes:
        layers: Configurations, as ``-c`` takes them.
        keys: Value by key, without the seed.
        seed: The seed.
        seed_keys: Keys that receive it.
        point: The part of ``keys`` that the grid sets.
        directory: Folder of its own.
        collect: ``package.module:name`` of what reads more from the run's directory; empty for nothing.
    """

    layers: tuple[str, ...]
    keys: Mapping[str, Any]
    seed: int
    seed_keys: tuple[str, ...]
    point: Mapping[str, Any]
    directory: Path
    collect: str = ""

    @property
    def arguments(self) -> list[str]:
        """What follows ``fulgurite`` in any folder, without what only concerns how the run is shown and stored."""
        return self._arguments([str(_find(layer)) for layer in self.layers])

    @property
    def command(self) -> str:
        """What to type in the checkout to repeat it."""
        return shlex.join(["scripts/fulgurite", *self._arguments(self.layers)])

    def _arguments(self, layers: Sequence[str]) -> list[str]:
        keys = {**self.keys, **dict.fromkeys(self.seed_keys, self.seed)}
        return ["fit", *(part for layer in layers for part in ("-c", layer)), *options(keys)]

    @property
    def hash(self) -> str:
        """Changes with the resolved configuration of the run (``about`` does not count) and what collects from it."""
        resolved = _resolved(self.layers, {**self.keys, **dict.fromkeys(self.seed_keys, self.seed)})
        return _hash([resolved, self.collect] if self.collect else [resolved])


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a Python function that returns several rows.

    Attributes:
        function: ``package.module:name``.
        rows: The rows it returns.
        data: Label of the data set.
        seed: The seed.
        options: Further arguments.
        directory: Folder of its own.
    """

    function: str
    rows: tuple[str, ...]
    data: str
    seed: int
    options: Mapping[str, Any]
    directory: Path

    @property
    def hash(self) -> str:
        """Changes with the call; not with the code behind it (``--force`` then)."""
        return _hash([self.function, self.data, self.seed, self.options])


@dataclasses.dataclass(frozen=True)
class Cell:
    """What becomes the record of one row, data set and seed (of several rows for a callable).

    Attributes:
        rows: The rows; one unless a callable makes them.
        data: Label of the data set.
        seed: The seed.
        jobs: The runs of the grid, or the one call.
        select: How a grid point is picked; ``None`` where there is one.
        experiment: Hash of all that was declared about it.
    """

    rows: tuple[str, ...]
    data: str
    seed: int
    jobs: tuple[Run, ...] | tuple[Call]
    select: Select | None
    experiment: str


def load(path: Path, runs: Path) -> Experiments:
    """Read and check a file of experiments.

    Args:
        path: ``scripts/experiments/<method>.yaml``.
        runs: Folder for the runs.

    Raises:
        FileNotFoundError: If there is no such file; the message names those there are.
        ValueError: If it is wrong, naming file, row and key.
    """
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"no experiments for {path.stem}: {path} does not exist (there are: {known})")
    try:
        return Experiments(path.stem, read(path), runs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class Experiments:
    """The experiments of one method.

    Args:
        method: Its name, which names the results file.
        content: The YAML.
        runs: Folder for the runs.

    Raises:
        ValueError: If the content is wrong, naming row and key.
    """

    def __init__(self, method: str, content: Mapping[str, Any], runs: Path) -> None:
        _only(content, _KEYS, "experiments")
        if not content.get("data") or not content.get("rows"):
            raise ValueError("experiments need `data` and `rows`")
        self.method, self.content, self.runs = method, content, runs
        self.preload: list[str] = list(content.get("preload", []))
        self.seed_keys = tuple(content.get("seed", SEED_KEYS))
        self.data = {label: _layers(given, f"data {label}") for label, given in content["data"].items()}
        self.rows: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(content["rows"], 1):
            _only(row, _CALLABLE_KEYS if "callable" in row else _ROW_KEYS, f"row {row.get('name', number)}")
            names = row.get("rows") if "callable" in row else [row.get("name")]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"row {number} needs {'`rows`' if 'callable' in row else '`name`'}")
            for name in names:
                if name in self.rows:
                    raise ValueError(f"row {name} is declared twice")
                self.rows[name] = row
        for name, row in self.rows.items():
            self._check(name, row)

    def _check(self, name: str, row: Mapping[str, Any]) -> None:
        for label in row.get("data", ()):
            if label not in self.data:
                raise ValueError(f"row {name}: data {label!r} is not declared; there are {', '.join(self.data)}")
        for key in {"callable", "collect"} & set(row):
            if not re.fullmatch(r"[\w.]+:\w+", row[key]):
                raise ValueError(f"row {name}: {key} must read package.module:function, got {row[key]!r}")
        if "callable" in row:
            return
        if "runs" in row:
            other = self.rows.get(row["runs"])
            if other is None or "callable" in other or "runs" in other:
                raise ValueError(f"row {name}: runs must name a row with runs of its own, got {row['runs']!r}")
            if set(row) - {"name", "runs", "select"}:
                raise ValueError(f"row {name}: beside `runs` only `select` makes sense")
        grid = self._source(row).get("grid", {})
        if any(not isinstance(values, list) or not values for values in grid.values()):
            raise ValueError(f"row {name}: every key of the grid needs a list of values, got {dict(grid)}")
        if _select(row.get("select"), name) is None and len(_points(grid)) > 1:
            raise ValueError(f"row {name}: a grid needs `select`: which validation metric picks the point")

    def _source(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.rows[row["runs"]] if "runs" in row else row

    def cells(
        self, rows: Sequence[str] = (), data: Sequence[str] = (), seeds: int | Sequence[int] | None = None
    ) -> list[Cell]:
        """What is to be run, in the order of declaration.

        Args:
            rows: Rows wanted; none for all.
            data: Data sets wanted; none for all.
            seeds: A number of seeds (the first ones), or the seeds; ``None`` as declared.

        Raises:
            ValueError: If a row or data set is not declared.
        """
        for kind, wanted, known in (("row", rows, self.rows), ("data set", data, self.data)):
            for name in wanted:
                if name not in known:
                    raise ValueError(f"no {kind} {name!r} is declared for {self.method}; there are {', '.join(known)}")
        cells, calls_done = [], []
        for name, row in self.rows.items():
            if (rows and name not in rows) or row in calls_done:
                continue
            if "callable" in row:
                calls_done.append(row)
            source = self._source(row)
            for label in source.get("data", list(self.data)):
                if data and label not in data:
                    continue
                for seed in _seeds(source.get("seeds", self.content.get("seeds", 5)), seeds):
                    make = self._call_cell if "callable" in row else self._run_cell
                    cells.append(make(name, row, label, seed))
        return cells

    def _call_cell(self, name: str, row: Mapping[str, Any], label: str, seed: int) -> Cell:
        directory = self.runs / self.method / _slug(row["callable"].rpartition(":")[2]) / label / str(seed)
        rows = tuple(row["rows"])
        call = Call(row["callable"], rows, label, seed, row.get("arguments", {}), directory)
        return Cell(rows, label, seed, (call,), None, call.hash)

    def _run_cell(self, name: str, row: Mapping[str, Any], label: str, seed: int) -> Cell:
        source = self._source(row)
        layers, overrides = self.data[label]
        more = source.get("config", [])
        layers = (*layers, *([more] if isinstance(more, str) else more))
        own = source["data"].get(label) if isinstance(source.get("data"), Mapping) else None
        keys = {**self.content.get("overrides", {}), **overrides, **source.get("overrides", {}), **(own or {})}
        home = self.runs / self.method / _slug(source["name"]) / label / str(seed)
        runs = tuple(
            Run(layers, {**keys, **point}, seed, self.seed_keys, point, home / str(number), source.get("collect", ""))
            for number, point in enumerate(_points(source.get("grid", {})))
        )
        select = _select(row.get("select"), name)
        declared = [[run.hash for run in runs], None if select is None else dataclasses.asdict(select)]
        return Cell((name,), label, seed, runs, select, _hash(declared))


def _points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations; the last key varies fastest. One empty point for no grid."""
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def _seeds(declared: int | Sequence[int], wanted: int | Sequence[int] | None) -> list[int]:
    seeds = list(range(1, declared + 1)) if isinstance(declared, int) else list(declared)
    if wanted is None:
        return seeds
    if not isinstance(wanted, int):
        return list(wanted)
    start = max(seeds) + 1
    return [*seeds, *range(start, start + wanted)][:wanted]


def _select(given: Mapping[str, Any] | None, row: str) -> Select | None:
    if given is None:
        return None
    _only(given, {"metric", "mode", "ties", "last"}, f"select of row {row}")
    ties = tuple((tie["metric"], tie.get("mode", "max")) for tie in given.get("ties", ()))
    select = Select(given.get("metric", ""), given.get("mode", "max"), ties, given.get("last", False))
    for metric, mode in select.criteria:
        if not metric or metric.split("/")[0].startswith("test"):
            raise ValueError(f"row {row}: select must name a validation metric, got {metric!r}")
        if mode not in ("max", "min"):
            raise ValueError(f"row {row}: mode of {metric} must be max or min, got {mode!r}")
    return select


def _layers(given: Any, where: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Layers and overrides of a data set; a callable's data set may have none."""
    if isinstance(given, Mapping):
        _only(given, {"config", "overrides"}, where)
        layers, overrides = given.get("config", []), given.get("overrides", {})
    else:
        layers, overrides = given or [], {}
    return tuple([layers] if isinstance(layers, str) else layers), overrides


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = set(given) - known
    if unknown:
        raise ValueError(f"{where} has unknown keys {', '.join(sorted(unknown))}; it takes {', '.join(sorted(known))}")


def options(keys: Mapping[str, Any]) -> list[str]:
    """Keys with values as the command line takes them."""
    return [f"--{key}={_text(value)}" for key, value in keys.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _resolved(layers: Sequence[str], keys: Mapping[str, Any]) -> Mapping[str, Any]:
    configuration = Configuration("fit")
    for layer in layers:
        configuration.layer(_find(layer))
    for key, value in keys.items():
        configuration.override(key, _text(value))
    values = configuration.interpolated()
    values.pop("about", None)
    return values


def _find(layer: str) -> Path:
    """A layer's file, wherever ``scripts/reproduce`` was started: seen from the checkout, or the shipped one."""
    here = ROOT / layer
    return here if here.is_file() else find(layer)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-")
