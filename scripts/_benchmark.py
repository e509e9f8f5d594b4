"""What stands behind ``scripts/benchmark``: two ways of doing the same, side by side.

A benchmark is a file ``scripts/benchmarks/<name>.py`` with

- a docstring, whose first line says what is compared;
- ``CASES``: a list of dicts, the parameters of each comparison;
- ``VARIANTS``: functions of one argument by name; the first is ours, the others are what it is compared with;
- ``setup(**case)``: what the functions are given; it runs once in the process of each variant and is not timed. If it
  has a parameter ``variant``, it receives the name;
- optionally ``agree(ours, peer)``: raises if the results of the two differ. Results travel between processes by pickle;
- optionally ``NEEDS``: packages that must be installed.

Each variant lives in a process of its own, so that its peak memory is its own. The processes take turns, and who begins
alternates, so that a slower or faster moment of the machine meets both.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import datetime
import gc
import importlib.util
import inspect
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from framework.evaluation.records import Commit, Environment, peak_memory_mb

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run a benchmark, print the comparison and write ``docs/results/benchmarks/<name>.json``.

    Args:
        arguments: Command line; ``None`` for the process's own.
        root: The checkout.

    Returns:
        0; 1 if a variant failed or results disagree; 2 for bad input.
    """
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Compare ours with a peer, side by side.")
    parser.add_argument("name", nargs="?", help="a file of scripts/benchmarks; without it, they are listed")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="timed calls of each (default 7)")
    parser.add_argument("--warm-up", type=int, default=1, metavar="N", help="calls before that (default 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads of each (default 1)")
    parser.add_argument(
        "--case", type=int, nargs="+", metavar="I", help="only these cases, counted from 0; not written"
    )
    given = parser.parse_args(arguments)
    folder = root / "scripts" / "benchmarks"
    try:
        if given.name is None:
            for path in benchmarks(folder):
                print(f"{path.stem:<24} {_first_line(ast.get_docstring(ast.parse(path.read_text())))}")
            return 0
        if given.repeats < 1 or given.warm_up < 0 or given.threads < 1:
            raise ValueError("--repeats and --threads must be at least 1, --warm-up at least 0")
        path = folder / f"{given.name}.py"
        if not path.exists():
            known = ", ".join(file.stem for file in benchmarks(folder)) or "none"
            raise FileNotFoundError(f"no benchmark {given.name}: {path} does not exist (there are: {known})")
        module = load(path)
        numbers = given.case if given.case is not None else range(len(module.CASES))
        if any(not 0 <= number < len(module.CASES) for number in numbers):
            raise ValueError(f"--case must be 0 to {len(module.CASES) - 1}, got {given.case}")
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    print(f"{_first_line(module.__doc__)}\n{given.repeats} repeats in turns, {given.threads} thread(s) each")
    cases = []
    try:
        for number in numbers:
            case = compare(path, number, given.repeats, given.warm_up, given.threads)
            print(describe(case), flush=True)
            cases.append(case)
    except Failure as failure:
        print(f"benchmark: {failure}", file=sys.stderr)
        return 1
    if given.case is None:
        place = root / "docs" / "results" / "benchmarks" / f"{given.name}.json"
        content = {
            "summary": _first_line(module.__doc__),
            "date": datetime.date.today().isoformat(),
            "commit": dataclasses.asdict(Commit.current(root)),
            "environment": cases[0].pop("environment"),
            "threads": given.threads,
            "cases": [{key: value for key, value in case.items() if key != "environment"} for case in cases],
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {place.relative_to(root)}")
    return 0


class Failure(Exception):
    """A variant raised, died, or disagrees with ours."""


def benchmarks(folder: Path) -> list[Path]:
    """Files that define ``CASES``, found without importing them; other files may hold what benchmarks share."""
    return [path for path in sorted(folder.glob("*.py")) if re.search(r"^CASES\b", path.read_text(), re.MULTILINE)]


def load(path: Path) -> ModuleType:
    """The benchmark in a file, checked.

    Raises:
        ValueError: If it lacks what a benchmark needs, or a package is missing.
    """
    specification = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for name, kind in (("CASES", list), ("VARIANTS", dict)):
        if not isinstance(getattr(module, name, None), kind) or not getattr(module, name):
            raise ValueError(f"{path} needs {name}, a non-empty {kind.__name__}")
    if len(module.VARIANTS) < 2:
        raise ValueError(f"{path} needs at least two VARIANTS, got {', '.join(module.VARIANTS)}")
    if not callable(getattr(module, "setup", None)):
        raise ValueError(f"{path} needs a function setup")
    missing = [name for name in getattr(module, "NEEDS", ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{path.stem} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    return module


def compare(path: Path, number: int, repeats: int, warm_up: int = 1, threads: int = 1) -> dict[str, Any]:
    """Run one case.

    Args:
        path: File of the benchmark.
        number: Which of its cases.
        repeats: Timed calls of every variant.
        warm_up: Calls before them.
        threads: CPU threads of every variant.

    Returns:
        The case; by variant the seconds and CPU seconds of every call, memory before the first call, and how much more
        was resident (and allocated on a GPU) at the peak; by peer the ratio of its time to ours: median and range.

    Raises:
        Failure: If a variant fails or disagrees.
    """
    module = load(path)
    names = list(module.VARIANTS)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH")}
    paths = [str(ROOT), *filter(None, [before["PYTHONPATH"]])]
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], {}
    try:
        for name in names:
            pipes[name], end = context.Pipe()
            processes.append(context.Process(target=_variant, args=(path, number, name, end), daemon=False))
            processes[-1].start()
            end.close()
        ready = {name: _receive(pipes[name], name) for name in names}
        calls: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        values: dict[str, Any] = {}
        agree = getattr(module, "agree", None)
        for turn in range(warm_up + repeats):
            for name in names if turn % 2 == 0 else names[::-1]:
                pipes[name].send("value" if agree is not None and turn == 0 else "time")
                answer = _receive(pipes[name], name)
                values.setdefault(name, answer.pop("value", None))
                calls[name].append(answer)
        for name in names[1:] if agree is not None else ():
            try:
                agree(values[names[0]], values[name])
            except Exception as error:
                raise Failure(f"{name} and {names[0]} disagree: {error}") from error
        for name in names:
            pipes[name].send("stop")
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    environment = ready[names[0]].pop("environment")
    variants = {
        name: {
            "seconds": [round(call["seconds"], 6) for call in calls[name][warm_up:]],
            "cpu_seconds": [round(call["cpu_seconds"], 6) for call in calls[name][warm_up:]],
            "before_mb": round(ready[name]["resident_mb"], 1),
            "extra_peak_mb": round(max(call["peak_mb"] for call in calls[name]) - ready[name]["resident_mb"], 1),
            "gpu_peak_mb": max(
                (call["gpu_peak_mb"] for call in calls[name] if call["gpu_peak_mb"] is not None), default=None
            ),
        }
        for name in names
    }
    ratios = {name: _ratio(variants[names[0]]["seconds"], variants[name]["seconds"]) for name in names[1:]}
    return {"case": module.CASES[number], "variants": variants, "ratios": ratios, "environment": environment}


def describe(case: Mapping[str, Any]) -> str:
    """The comparison as lines for a person."""
    ours = next(iter(case["variants"]))
    lines = ["", ", ".join(f"{key} {value}" for key, value in case["case"].items()) or "(one case)"]
    width = max(map(len, case["variants"]))
    for name, variant in case["variants"].items():
        line = f"  {name:<{width}}  {statistics.median(variant['seconds']):9.4f} s"
        line += f"  (CPU {statistics.median(variant['cpu_seconds']):.4f} s)"
        line += f"  +{variant['extra_peak_mb']:.0f} MB at peak"
        if variant["gpu_peak_mb"] is not None:
            line += f", {variant['gpu_peak_mb']:.0f} MB on the GPU"
        if name != ours:
            ratio = case["ratios"][name]
            line += f"  time / ours: {ratio['median']:.2f} (range {ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append(line)
    return "\n".join(lines)


def _ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    pairs = [theirs / mine for mine, theirs in zip(ours, peer)]
    return {"median": round(statistics.median(pairs), 3), "low": round(min(pairs), 3), "high": round(max(pairs), 3)}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _receive(pipe: Connection, name: str) -> dict[str, Any]:
    try:
        answer = pipe.recv()
    except EOFError:
        raise Failure(f"the process of {name} died (out of memory?)") from None
    if "error" in answer:
        raise Failure(f"{name} failed:\n{answer['error']}")
    return answer


def _variant(path: Path, number: int, name: str, pipe: Connection) -> None:
    """Body of a variant's process: set up, then one call for every message."""
    try:
        module = load(path)
        wants = "variant" in inspect.signature(module.setup).parameters
        state = module.setup(**module.CASES[number], **({"variant": name} if wants else {}))
        function = module.VARIANTS[name]
        gc.collect()
        _forget_peak()
        pipe.send({"resident_mb": _resident_mb(), "environment": dataclasses.asdict(Environment.current())})
        while (message := pipe.recv()) != "stop":
            value, answer = _call(function, state)
            if message == "value":
                answer["value"] = value
            pipe.send(answer)
            del value
    except EOFError:  # the other side has given up
        return
    except Exception:
        pipe.send({"error": traceback.format_exc()})


def _call(function: Any, state: Any) -> tuple[Any, dict[str, Any]]:
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    gc.collect()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    value = function(state)
    if gpu:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    return value, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # with those of child processes that ended; in steps of 0.01 s
        "peak_mb": peak_memory_mb(),
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1) if gpu else None,
    }


def _forget_peak() -> None:
    """Begin the peak of resident memory anew, where the system allows it: what was needed to set up does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_mb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6
