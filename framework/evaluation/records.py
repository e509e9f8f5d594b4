"""Result records: what one run reached, and everything needed to doubt it or to run it again.

A file ``docs/results/<method>.json`` holds one record a line, sorted by (row, data, seed), and the environments the
records refer to (machine and package versions, which many records share) once each. Writing the same records in any
order gives the same bytes, and running one seed again changes one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    "fulgurite", "lightning", "torch", "torchmetrics", "numpy", "scipy", "scikit-learn",
    "torch-geometric", "transformers", "opacus", "flwr", "gymnasium",
)  # fmt: skip
"""Packages whose versions a record keeps, where installed."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """Machine and software of a run.

    Attributes:
        python: Version of Python.
        platform: Operating system, processor architecture and C library.
        cpu: Model name of the processor.
        cores: Logical processors this process may use.
        gpu: Names of the visible CUDA devices, empty without one.
        packages: Version by package, for those of ``PACKAGES`` that are installed.
    """

    python: str
    platform: str
    cpu: str
    cores: int
    gpu: tuple[str, ...] = ()
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits of a hash over all attributes."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @classmethod
    def current(cls) -> Environment:
        """The environment of this process. GPUs are asked for only where torch is already imported."""
        torch = sys.modules.get("torch")
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch is not None else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        system = " ".join(
            filter(None, (platform.system(), platform.machine(), "-".join(platform.libc_ver()).strip("-")))
        )
        versions = {}
        for package in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        return cls(platform.python_version(), system, _cpu_model(), cores, tuple(gpus), versions)


@dataclasses.dataclass(frozen=True)
class Commit:
    """State of the source of a run.

    Attributes:
        id: Full hash of the commit, or ``unknown`` outside a git checkout.
        dirty: Whether tracked files differed from it.
    """

    id: str
    dirty: bool

    @classmethod
    def current(cls, directory: str | os.PathLike[str] = ".") -> Commit:
        """The commit checked out around ``directory``; changes below ``docs/`` do not make it dirty.

        A copy of the source without its history is told its commit by the environment variable ``FULGURITE_COMMIT``.
        """

        def git(*args: str) -> str | None:
            try:
                done = subprocess.run(
                    ["git", "-C", os.fspath(directory), *args], check=False, capture_output=True, text=True
                )
            except FileNotFoundError:  # no git on this machine
                return None
            return done.stdout.strip() if done.returncode == 0 else None

        head = git("rev-parse", "HEAD")
        if head is None:
            told = os.environ.get("FULGURITE_COMMIT")
            return cls(told, False) if told else cls("unknown", True)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs")
        return cls(head, changes != "")


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run reached.

    Attributes:
        row: Row of the method's table, such as ``kNN-LDS``.
        data: Data set, such as ``wine``.
        seed: Seed of the run and of its split.
        metrics: Value by logged name; finite.
        choice: Hyper-parameters picked for this seed, empty where nothing was searched.
        selection: How they were picked: metric, mode, value, how many tied, how ties were broken.
        curves: Columns of equal length, such as a metric after each round; finite.
        command: What to type to run it again.
        experiment: Hash of the declared experiment (configs, overrides, grid); tells whether a record is still current.
        seconds: Wall-clock time, of the whole search where there was one.
        peak_mb: Largest resident memory of a process of the run, in MB (10^6 bytes).
        date: Day the run ended, ISO 8601.
        commit: Source it ran from.
        environment: Machine and versions it ran on.
    """

    row: str
    data: str
    seed: int
    metrics: Mapping[str, float]
    choice: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    command: str = ""
    experiment: str = ""
    seconds: float | None = None
    peak_mb: float | None = None
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())
    commit: Commit = dataclasses.field(default_factory=Commit.current)
    environment: Environment = dataclasses.field(default_factory=Environment.current)

    def __post_init__(self) -> None:
        for name in ("row", "data"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} of a record must be a non-empty text, got {getattr(self, name)!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed of a record must be an integer, got {self.seed!r}")
        if not self.metrics:
            raise ValueError(f"metrics of record {self.key} must hold at least one value, got none")
        for name, value in self.metrics.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"metric {name!r} of record {self.key} must be a finite number, got {value!r}")
        lengths = {name: len(curve) for name, curve in self.curves.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"curves of record {self.key} must be equally long, got {lengths}")
        for name, curve in self.curves.items():
            wrong = [value for value in curve if not math.isfinite(value)]
            if wrong:
                raise ValueError(f"curve {name!r} of record {self.key} must hold finite numbers, got {wrong[0]!r}")

    @property
    def key(self) -> tuple[str, str, int]:
        """``(row, data, seed)``, unique in a file."""
        return self.row, self.data, self.seed


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Records of a file, sorted by key; none if there is no such file.

    Raises:
        ValueError: If the file does not hold records, naming the file and what is wrong.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != {"environments", "records"}:
        keys = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must hold `environments` and `records`, got {keys}")
    try:
        environments = {}
        for name, fields in content["environments"].items():
            environments[name] = Environment(**{**fields, "gpu": tuple(fields["gpu"])})
            if environments[name].id != name:
                raise ValueError(f"environment {name} was edited: its content hashes to {environments[name].id}")
        records = []
        for fields in content["records"]:
            if fields["environment"] not in environments:
                raise ValueError(f"environment {fields['environment']!r} is not among `environments`")
            environment, commit = environments[fields["environment"]], Commit(**fields["commit"])
            records.append(Record(**{**fields, "commit": commit, "environment": environment}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"missing field {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} holds a bad record: {reason}") from None
    keys_seen = [record.key for record in records]
    if len(set(keys_seen)) < len(keys_seen):
        twice = next(key for key in keys_seen if keys_seen.count(key) > 1)
        raise ValueError(f"{path} holds record {twice} more than once")
    return sorted(records, key=lambda record: record.key)


def merge_records(path: str | os.PathLike[str], new: Iterable[Record]) -> list[Record]:
    """Add records to a file, replacing those of the same (row, data, seed); safe beside other processes doing the same.

    Args:
        path: File to write; it and its folder are created if needed.
        new: Records; of two with the same key the later wins.

    Returns:
        All records of the file after the merge, sorted.

    Raises:
        ValueError: If the file exists and does not hold records; it is left as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        merged = {record.key: record for record in read_records(path)}
        merged.update((record.key, record) for record in new)
        records = [merged[key] for key in sorted(merged)]
        _replace(path, format_records(records))
    return records


def format_records(records: Iterable[Record]) -> str:
    """The content of a results file: one environment or record a line, keys and records sorted."""
    records = sorted(records, key=lambda record: record.key)
    environments = {record.environment.id: record.environment for record in records}

    def line(value: Any) -> str:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)

    shared = [f"    {line(name)}: {line(dataclasses.asdict(environments[name]))}" for name in sorted(environments)]
    lines = []
    for record in records:
        fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        fields |= {"environment": record.environment.id, "commit": dataclasses.asdict(record.commit)}
        first = {name: fields.pop(name) for name in ("row", "data", "seed", "metrics")}  # what a reader looks for
        rest = {name: value for name, value in sorted(fields.items()) if value not in (None, "", {})}
        pairs = [f"{line(name)}: {line(value)}" for name, value in {**first, **rest}.items()]
        lines.append("    {" + ", ".join(pairs) + "}")
    return (
        "{\n"
        + '  "environments": {\n' + ",\n".join(shared) + "\n  },\n"
        + '  "records": [\n' + ",\n".join(lines) + "\n  ]\n"
        + "}\n"
    )  # fmt: skip


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss survives exec: it would count the process that started this one
        kib = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return kib * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder (on the folder itself, so that no lock file stays behind)."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, so that a killed process leaves the old or the new one, never a half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
