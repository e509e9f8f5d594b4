"""Many runs of the command line in forked children of one process, so that torch and Lightning are imported once.

``run(attempts)`` starts that process. Killed runs are real: each child is a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(attempts: list[dict[str, Any]], timeout: float = 600) -> list[tuple[int, str]]:
    """Run the command line, one attempt after another.

    Args:
        attempts: For each a ``folder`` to run in, its ``args``, an ``env`` of further variables, and the number of
            ``ranks``, 1 if left out; when one of them ends by a signal, the others are killed.
        timeout: Seconds for all.

    Returns:
        For each its exit code (negative for a signal) and what it wrote.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(attempts),
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout.splitlines()[-1])]


def _child(attempt: dict[str, Any], log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(attempt["folder"])
    os.environ.update(attempt.get("env") or {})
    sys.path.insert(0, attempt["folder"])
    from framework.cli import main

    code = 1
    try:
        main(attempt["args"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not the parent's `finally` and exit handlers


def _ended(children: list[int]) -> int:
    """Wait for all ranks; the exit code of the first that did not end well, else 0."""
    code = 0
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if code == 0 and status != 0:
            code = os.waitstatus_to_exitcode(status)
            for other in children:
                os.kill(other, signal.SIGKILL)
    return code


def _serve() -> None:
    from framework.lean import import_torchmetrics

    import_torchmetrics()
    importlib.import_module("framework.commands.train")
    results = []
    for number, attempt in enumerate(json.load(sys.stdin)):
        place, ranks = Path(attempt["folder"]) / f"attempt{number}.log", attempt.get("ranks", 1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with place.open("wb") as log:
            children = []
            for rank in range(ranks):
                pid = os.fork()
                if pid == 0:
                    if ranks > 1:
                        group = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "MASTER_PORT": port}
                        os.environ |= {key: str(value) for key, value in group.items()}
                        os.environ["MASTER_ADDR"] = "127.0.0.1"
                    _child(attempt, log.fileno())
                children.append(pid)
            results.append((_ended(children), place.read_text(errors="replace")))
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    _serve()
