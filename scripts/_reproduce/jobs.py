"""What an experiment runs: a command line or a call, with a hash that changes with what was declared about it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.configuration import Configuration, find

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
"""What every run is given besides, since nobody watches it."""


@dataclasses.dataclass(frozen=True)
class Select:
    """How the grid point of a seed is picked; test metrics are refused.

    Attributes:
        metric: Logged name of a validation metric, as it was at the run's best checkpoint.
        mode: ``max`` or ``min``.
        ties: Further ``(metric, mode)`` that decide between equals, in order.
        last: Whether the last of what is still equal wins, in the order of the grid, instead of the first.
        seeds: Seeds on whose mean it is picked, once for all seeds that are reported; none for each seed by itself.
    """

    metric: str
    mode: str = "max"
    ties: tuple[tuple[str, str], ...] = ()
    last: bool = False
    seeds: tuple[int, ...] = ()

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
            **({"seeds": list(self.seeds)} if self.seeds else {}),
        }

    @property
    def declared(self) -> dict[str, Any]:
        """What hashes are made of."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seeds" or value}


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
        verb: ``fit`` or ``federate``.
        start: A run whose best checkpoint this one begins with.
        start_key: The key that receives the checkpoint's file.
    """

    layers: tuple[str, ...]
    keys: Mapping[str, Any]
    seed: int
    seed_keys: tuple[str, ...]
    point: Mapping[str, Any]
    directory: Path
    collect: str = ""
    verb: str = "fit"
    start: Run | None = None
    start_key: str = ""

    @property
    def arguments(self) -> list[str]:
        """What follows ``fulgurite`` in any folder, without what only concerns how the run is shown and stored."""
        return self._arguments([str(_find(layer)) for layer in self.layers])

    @property
    def command(self) -> str:
        """What to type in the checkout to repeat it."""
        own = shlex.join(["scripts/fulgurite", *self._arguments(self.layers, start=False)])
        if self.start is None:
            return own
        best = "START=$(ls -t runs/start/*/checkpoints/best*.ckpt | head -n 1)"
        return f'{self.start.command} --name=start && {best} && {own} "--{self.start_key}=$START"'

    def _arguments(self, layers: Sequence[str], start: bool = True) -> list[str]:
        keys = {**self.keys, **dict.fromkeys(self.seed_keys, self.seed)}
        if self.start is not None and start:
            keys[self.start_key] = str(self.start.checkpoint)
        return [self.verb, *(part for layer in layers for part in ("-c", layer)), *options(keys)]

    @property
    def checkpoint(self) -> Path:
        """Where a run that others start from leaves its best checkpoint."""
        return self.directory / "best.ckpt"

    @property
    def hash(self) -> str:
        """Changes with the resolved configuration of the run (``about`` does not count) and what collects from it."""
        resolved = _resolved(self.verb, self.layers, {**self.keys, **dict.fromkeys(self.seed_keys, self.seed)})
        more = [self.collect] if self.collect else []
        if self.verb != "fit":
            more.append(self.verb)
        if self.start is not None:
            more += [self.start.hash, self.start_key]
        return hash_of([resolved, *more])


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
        return hash_of([self.function, self.data, self.seed, self.options])


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
        tuning: Runs of other seeds that pick one of ``jobs`` before it is run: by job, one for each of these seeds.
        selection: What to record about the choice, once they have.
    """

    rows: tuple[str, ...]
    data: str
    seed: int
    jobs: tuple[Run, ...] | tuple[Call]
    select: Select | None
    experiment: str
    tuning: tuple[tuple[Run, ...], ...] = ()
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> tuple[Run | Call, ...]:
        """What is run first: what decides, or all there is."""
        return tuple(run for point in self.tuning for run in point) or self.jobs


def options(keys: Mapping[str, Any]) -> list[str]:
    """Keys with values as the command line takes them."""
    return [f"--{key}={_text(value)}" for key, value in keys.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _resolved(verb: str, layers: Sequence[str], keys: Mapping[str, Any]) -> Mapping[str, Any]:
    given = [*(("-c", str(_find(layer))) for layer in layers), *((key, _text(value)) for key, value in keys.items())]
    values = Configuration.of(verb, given).interpolated()
    values.pop("about", None)
    return values


def _find(layer: str) -> Path:
    """A layer's file, wherever ``scripts/reproduce`` was started: seen from the checkout, or the shipped one."""
    here = ROOT / layer
    return here if here.is_file() else find(layer)


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
