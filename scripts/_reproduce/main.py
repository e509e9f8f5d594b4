"""The command ``scripts/reproduce``."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.records import Commit, Environment, Record, merge_records, read_records
from framework.evaluation.tables import check_documents, update_documents
from scripts._reproduce.experiments import Experiments, load
from scripts._reproduce.jobs import Call, Cell, Run
from scripts._reproduce.workers import finished, outcome, run_all

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run what is asked for.

    Args:
        arguments: Command line; ``None`` for the process's own.
        root: The checkout: holds ``scripts/experiments``, ``docs`` and ``README.md``.

    Returns:
        0; 1 if a run failed or tables differ from the results; 2 for bad input.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.check:
            return _check(root)
        if given.tables:
            return _tables(root)
        if given.method is None:
            parser.error("name a method, or give --check or --tables")
        return _reproduce(given, root)
    except (ValueError, FileNotFoundError) as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nreproduce: interrupted; what is finished is kept, and the next start goes on from there", file=sys.stderr
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="Run the experiments declared in scripts/experiments/<method>.yaml, write "
        "docs/results/<method>.json, and regenerate the tables in README.md and docs. What is finished is not run "
        "again.",
    )
    parser.add_argument("method", nargs="?", help="such as lds")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows")
    parser.add_argument("--data", nargs="+", default=[], metavar="DATA", help="only these data sets")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N seeds instead of the declared ones")
    parser.add_argument("--seed", type=int, nargs="+", metavar="SEED", help="exactly these seeds")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes at once (default 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads of each process (default 1)")
    parser.add_argument("--force", action="store_true", help="run again what is finished")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    parser.add_argument("--list", action="store_true", help="say what would run, and stop")
    parser.add_argument("--check", action="store_true", help="only check that tables and results agree; exit 1 if not")
    parser.add_argument("--tables", action="store_true", help="only regenerate the tables")
    return parser


def _check(root: Path) -> int:
    differing = check_documents(root)
    for place in differing:
        print(f"reproduce: {place} differs from the results in docs/results", file=sys.stderr)
    if differing:
        print("reproduce: run scripts/reproduce --tables and commit what it writes", file=sys.stderr)
    return 1 if differing else 0


def _tables(root: Path) -> int:
    for place in update_documents(root):
        print(f"updated {place}")
    return 0


def _reproduce(given: argparse.Namespace, root: Path) -> int:
    if given.seeds is not None and given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}")
    experiments = load(root / "scripts" / "experiments" / f"{given.method}.yaml", root / "runs" / "reproduce")
    cells = experiments.cells(given.rows, given.data, given.seed if given.seed is not None else given.seeds)
    results = root / "docs" / "results" / f"{given.method}.json"
    current = {record.key: record.experiment for record in read_records(results)}
    if not given.force:
        cells = [
            cell
            for cell in cells
            if any(current.get((row, cell.data, cell.seed)) != cell.experiment for row in cell.rows)
        ]
    failed: set[Path] = set()
    later = sum(bool(cell.tuning) for cell in cells)
    if given.list:
        todo, earlier = _todo(cells, given)
        more = f", and then {later} with what they pick" if later else ""
        print(f"{given.method}: {len(cells)} records to make, {len(todo)} runs to do ({earlier}){more}")
        for cell in cells:
            print(f"  {', '.join(cell.rows)} on {cell.data}, seed {cell.seed}: {len(cell.first)} runs")
        return 0
    before = 0
    if later:
        tuned = [cell for cell in cells if cell.tuning]
        _, before = _run(tuned, given, experiments, results, failed, "runs to pick by")
        cells = [_tuned(cell) if cell.tuning else cell for cell in cells if not _any(cell.first, failed)]
    made, count = _run(cells, given, experiments, results, failed)
    print(f"{given.method}: {made} records written to {results.relative_to(root)}")
    _tables(root)
    if failed:
        print(f"reproduce: {len(failed)} of {before + count} runs failed; their records were not made", file=sys.stderr)
    return 1 if failed else 0


def _todo(cells: Sequence[Cell], given: argparse.Namespace) -> tuple[list[Run | Call], str]:
    """What is to be run first, and how much of it was before."""
    jobs: dict[Path, Run | Call] = {job.directory: job for cell in cells for job in cell.first}
    todo = [job for job in jobs.values() if given.force or not finished(job)]
    return todo, f"{len(jobs) - len(todo)} finished earlier"


def _any(jobs: Sequence[Run | Call], directories: set[Path]) -> bool:
    return any(job.directory in directories for job in jobs)


def _tuned(cell: Cell) -> Cell:
    """The cell with the one job that its tuning runs pick."""
    assert cell.select is not None
    chosen, selection = cell.select.pick([_mean([outcome(run)["monitored"] for run in runs]) for runs in cell.tuning])
    return dataclasses.replace(cell, jobs=(cell.jobs[chosen],), tuning=(), selection=selection)


def _mean(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = set.intersection(*map(set, points))
    return {name: statistics.fmean(point[name] for point in points) for name in shared}


def _run(
    cells: Sequence[Cell],
    given: argparse.Namespace,
    experiments: Experiments,
    results: Path,
    failed: set[Path],
    kind: str = "runs to do",
) -> tuple[int, int]:
    """Run what comes first, and make the records that need no more; how many there were, of records and of runs."""
    todo, earlier = _todo(cells, given)
    print(f"{experiments.method}: {len(cells)} records to make, {len(todo)} {kind} ({earlier})", flush=True)

    from tqdm import tqdm

    pending = {job.directory for job in todo}
    waiting = [cell for cell in cells if not cell.tuning]
    made = 0

    def collect() -> None:
        """Write the records whose runs have all ended: an interruption loses none of them."""
        nonlocal waiting, made
        ready = [cell for cell in waiting if not _any(cell.jobs, pending)]
        waiting = [cell for cell in waiting if _any(cell.jobs, pending)]
        records = [record for cell in ready if not _any(cell.jobs, failed) for record in _records(cell)]
        if records:
            merge_records(results, records)
            made += len(records)

    collect()
    with tqdm(total=len(todo), unit="run", disable=not todo) as bar:
        for done in run_all(todo, given.jobs, given.threads, given.keep, experiments.preload):
            pending.discard(done.job.directory)
            if done.code:
                failed.add(done.job.directory)
                bar.write(f"failed: {_name(done.job)} ({done.job.directory})\n{done.last_lines()}", file=sys.stderr)
            bar.update()
            collect()
    return made, len(todo)


def _name(job: Run | Call) -> str:
    return job.command if isinstance(job, Run) else f"{job.function} on {job.data}, seed {job.seed}"


def _records(cell: Cell) -> list[Record]:
    """Records of a cell whose jobs have all finished."""
    outcomes = [outcome(job) for job in cell.jobs]
    common: dict[str, Any] = {
        "data": cell.data,
        "seed": cell.seed,
        "experiment": cell.experiment,
        "seconds": round(sum(each["seconds"] for each in outcomes), 2),
        "peak_mb": max(each["peak_mb"] for each in outcomes),
    }
    first = cell.jobs[0]
    if isinstance(first, Call):
        (only,) = outcomes
        options = ["--rows", *first.rows, "--data", first.data, "--seed", str(first.seed), "--force"]
        method = first.directory.parents[2].name
        command = shlex.join(["scripts/reproduce", method, *options])
        return [
            Record(row=row, command=command, **fields, **common, **_circumstances(only))
            for row, fields in only["rows"].items()
        ]
    chosen, selection = 0, cell.selection
    if cell.select is not None and not selection:
        chosen, selection = cell.select.pick([each["monitored"] for each in outcomes])
    run, best = cell.jobs[chosen], outcomes[chosen]
    assert isinstance(run, Run)
    decided = [metric for metric, _ in cell.select.criteria] if cell.select is not None else [best["monitor"]]
    metrics = {**best["metrics"], **{name: best["monitored"][name] for name in decided if name is not None}}
    fields = {"metrics": metrics, "choice": dict(run.point), "selection": selection, "command": run.command}
    fields["curves"] = best.get("curves", {})
    return [Record(row=cell.rows[0], **fields, **common, **_circumstances(best))]


def _circumstances(done: dict[str, Any]) -> dict[str, Any]:
    environment = {**done["environment"], "gpu": tuple(done["environment"]["gpu"])}
    return {"date": done["date"], "commit": Commit(**done["commit"]), "environment": Environment(**environment)}
