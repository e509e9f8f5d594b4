"""A client that trains on several devices: for each message, torchrun starts one process per device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from framework.commands.flower import ClientCLI, client_configuration
from framework.federated.client import Client
from framework.federated.state import decode_record, encode_record

JOB, ANSWER, ERROR = "job.pt", "answer.pt", "error.txt"


class DistributedClient:
    """Train by torchrun; everything else is left to a client on one device.

    A process that another program started cannot become one rank of several, so each message is written to a file,
    the ranks read it, and rank 0 writes the answer.

    Args:
        values: The merged configuration, as YAML, with ``trainer.devices`` as they are to be.
        devices: How many.
        single: The client on one device.
        timeout: Seconds after which the ranks are killed: the server no longer waits then.
    """

    def __init__(self, values: str, devices: int, single: Client, timeout: float) -> None:
        self._values, self._devices, self._timeout = values, devices, timeout
        self.evaluate, self.importance, self.introduce = single.evaluate, single.importance, single.introduce

    def train(self, message: Message, context: Context) -> Message:
        """See :class:`framework.federated.client.LightningClient`.

        Raises:
            RuntimeError: If a rank fails, with its error, or if they take too long.
        """
        with tempfile.TemporaryDirectory(prefix="fulgurite-") as name:
            folder = Path(name)
            job = {
                "values": self._values, "node_config": dict(context.node_config),
                "content": encode_record(message.content), "state": encode_record(context.state),
            }  # fmt: skip
            torch.save(job, folder / JOB)
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._devices}",
                "-m", __name__, str(folder),
            ]  # fmt: skip
            code = _run(command, self._timeout)
            if code is None:
                raise RuntimeError(
                    f"training on {self._devices} devices took longer than federation.timeout, {self._timeout:g} s"
                )
            if code or not (folder / ANSWER).is_file():
                told = folder / ERROR
                reason = told.read_text(encoding="utf-8") if told.is_file() else f"exit code {code}"
                raise RuntimeError(f"training on {self._devices} devices failed: {reason}")
            answer = torch.load(folder / ANSWER, weights_only=True)
        context.state = decode_record(answer["state"])
        return Message(decode_record(answer["content"]), reply_to=message)


def devices_of(values: Mapping[str, Any]) -> int:
    """Processes that a configuration's trainer asks for on this machine; 1 where it leaves the choice open.

    Args:
        values: The merged configuration.
    """
    given = (values.get("trainer") or {}).get("devices", 1)
    if isinstance(given, str) and given.lstrip("-").isdigit():
        given = int(given)
    if isinstance(given, list):
        return len(given)
    if given == -1:
        return max(torch.cuda.device_count(), 1)
    return given if isinstance(given, int) else 1


def _run(command: list[str], timeout: float) -> int | None:
    """Run a command that finds packages where this process does; it leaves no rank behind, whatever ends this one.

    Returns:
        Its exit code, or ``None`` if it was killed for taking longer than ``timeout`` seconds.
    """
    path = os.pathsep.join(dict.fromkeys([*(part for part in sys.path if part), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main(folder: Path) -> None:
    """One rank: train, and write the answer if it is the first."""
    job = torch.load(folder / JOB, weights_only=True)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    client = ClientCLI(client_configuration(job["values"]), distributed=True).client
    context = Context(1, 2, job["node_config"], decode_record(job["state"]), {})
    content: RecordDict = decode_record(job["content"])
    reply = client.train(Message(content, 2, "train"), context)
    if int(os.environ["RANK"]) == 0:
        answer = {"content": encode_record(reply.content), "state": encode_record(context.state)}
        torch.save(answer, folder / ANSWER)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        # The first to fail has the reason; the others only lose sight of it.
        with suppress(FileExistsError), open(Path(sys.argv[1]) / ERROR, "x", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}")
        raise
