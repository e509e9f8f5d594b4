"""Experiments as declared in ``scripts/experiments/<method>.yaml``.

::

    seeds: 5                                # 1 to 5, or a list
    seed: [seed_everything, data.seed]      # the keys that receive the seed (this is the default)
    overrides: {trainer.max_epochs: 50}     # for every run
    command: fit                            # or federate; a row may have its own
    data:
      wine: lds/wine                        # label in tables: configuration, or a list of layers
      cora-25: {config: lds/cora, overrides: {data.retained: 25}}
      shifted:
        config: classifier/vit_mnist
        start: {config: classifier/vit_mnist, key: model.weights} # fitted once per seed: whose checkpoint the key gets
    rows:
      - name: kNN-LDS
        data: [wine]                        # default: all; or {wine: {model.tau: 20}}, with overrides of its own
        config: [overlays/debug/fast]       # more layers
        overrides: {model.tau: 5}
        grid: {model.outer_lr: [1, 0.1]}    # every combination is run
        select: {metric: stop/accuracy, mode: max, ties: [{metric: stop/loss, mode: min}], last: false}
        # with seeds: [101], the point is picked once, on runs of these seeds, and reported seeds run with it alone
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
with ``choice`` and ``selection`` beside ``metrics`` where it picked hyper-parameters, and ``curves`` if there are any.
What ``collect`` names gets the run's directory, checkpoints and all, and returns ``metrics`` and ``curves`` to record
besides. ``preload`` may list modules that many runs import, such as ``torch_geometric``: they are imported once for
all.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.configuration import read
from scripts._reproduce.jobs import Call, Cell, Run, Select, hash_of

SEED_KEYS = ("seed_everything", "data.seed")

_KEYS = {"seeds", "seed", "overrides", "data", "rows", "preload", "command"}
_ROW_KEYS = {"name", "data", "config", "overrides", "grid", "select", "seeds", "runs", "collect", "command"}
COMMANDS = ("fit", "federate")
_CALLABLE_KEYS = {"rows", "callable", "arguments", "data", "seeds"}


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
        self.starts = {label: _start(given, label) for label, given in content["data"].items()}
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
        verb = row.get("command", self.content.get("command", "fit"))
        if verb not in COMMANDS:
            raise ValueError(f"row {name}: command must be {' or '.join(COMMANDS)}, got {verb!r}")
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
        rows = tuple(row["rows"])
        directory = self.runs / self.method / _slug(rows[0]) / label / str(seed)
        call = Call(row["callable"], rows, label, seed, row.get("arguments", {}), directory)
        return Cell(rows, label, seed, (call,), None, call.hash)

    def _run_cell(self, name: str, row: Mapping[str, Any], label: str, seed: int) -> Cell:
        source = self._source(row)
        layers, overrides = self.data[label]
        more = source.get("config", [])
        layers = (*layers, *([more] if isinstance(more, str) else more))
        own = source["data"].get(label) if isinstance(source.get("data"), Mapping) else None
        keys = {**self.content.get("overrides", {}), **overrides, **source.get("overrides", {}), **(own or {})}
        home = self.runs / self.method / _slug(source["name"]) / label
        verb = source.get("command", self.content.get("command", "fit"))

        def runs_of(seed: int) -> tuple[Run, ...]:
            start, start_key = self._start_run(label, seed)
            return tuple(
                Run(
                    layers, {**keys, **point}, seed, self.seed_keys, point, home / str(seed) / str(number),
                    source.get("collect", ""), verb, start, start_key,
                )
                for number, point in enumerate(_points(source.get("grid", {})))
            )  # fmt: skip

        runs, select = runs_of(seed), _select(row.get("select"), name)
        tuning = tuple(zip(*(runs_of(each) for each in select.seeds))) if select is not None else ()
        hashes = [run.hash for run in [*runs, *(run for point in tuning for run in point)]]
        declared = [hashes, None if select is None else select.declared]
        return Cell((name,), label, seed, runs, select, hash_of(declared), tuning)

    def _start_run(self, label: str, seed: int) -> tuple[Run | None, str]:
        given = self.starts[label]
        if given is None:
            return None, ""
        (layers, keys), key = given
        made = Run(layers, keys, seed, self.seed_keys, {}, Path())
        directory = self.runs / self.method / "start" / made.hash  # one for all data that start alike
        return dataclasses.replace(made, directory=directory), key


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
    _only(given, {"metric", "mode", "ties", "last", "seeds"}, f"select of row {row}")
    ties = tuple((tie["metric"], tie.get("mode", "max")) for tie in given.get("ties", ()))
    seeds = tuple(given.get("seeds", ()))
    select = Select(given.get("metric", ""), given.get("mode", "max"), ties, given.get("last", False), seeds)
    for metric, mode in select.criteria:
        if not metric or metric.split("/")[0].startswith("test"):
            raise ValueError(f"row {row}: select must name a validation metric, got {metric!r}")
        if mode not in ("max", "min"):
            raise ValueError(f"row {row}: mode of {metric} must be max or min, got {mode!r}")
    return select


def _layers(given: Any, where: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Layers and overrides of a data set; a callable's data set may have none."""
    if isinstance(given, Mapping):
        _only(given, {"config", "overrides", "key" if where.startswith("start") else "start"}, where)
        layers, overrides = given.get("config", []), given.get("overrides", {})
    else:
        layers, overrides = given or [], {}
    return tuple([layers] if isinstance(layers, str) else layers), overrides


def _start(given: Any, label: str) -> tuple[tuple[tuple[str, ...], Mapping[str, Any]], str] | None:
    """The run that a data set's runs start from, and the key that receives its checkpoint."""
    start = given.get("start") if isinstance(given, Mapping) else None
    if start is None:
        return None
    if not isinstance(start, Mapping) or not start.get("config") or not start.get("key"):
        raise ValueError(f"data {label}: start needs `config`, and `key`: which key receives its checkpoint")
    return _layers(start, f"start of data {label}"), str(start["key"])


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = set(given) - known
    if unknown:
        raise ValueError(f"{where} has unknown keys {', '.join(sorted(unknown))}; it takes {', '.join(sorted(known))}")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-")
