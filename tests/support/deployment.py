"""Flower's SuperLink and SuperNodes as real processes on this machine, over TLS and with node authentication."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

BIN = Path(sys.executable).parent
APP = """
[project]
name = "app"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"
fab-include = ["**/*.py", "**/*.yaml"]

[tool.flwr.app.components]
serverapp = "framework.commands.flower:server_app"
clientapp = "framework.commands.flower:client_app"

[tool.flwr.app.config]
arguments = ""
"""


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


class Deployment:
    """A SuperLink, and SuperNodes by number.

    Args:
        folder: Where certificates, keys and logs go.
        root: The checkout.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1", "FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen] = {}
        self.address = f"127.0.0.1:{free_port()}"
        (folder / "flwr").mkdir(parents=True)
        self._certify("ca", "server")
        self._certify("other_ca", None)
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "ours"\n[superlink.ours]\naddress = "{self.address}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )

    def start(self) -> None:
        """Start the SuperLink and wait until it listens."""
        certificates = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        host, _, port = self.address.partition(":")
        self._launch(
            "superlink", "flower-superlink", *certificates, "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", "--host", host, "--port", port,
        )  # fmt: skip
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as each:
                if each.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError(self.log("superlink"))

    def key(self, name: str, register: bool = True) -> None:
        """Make a node's key, and have the SuperLink know it."""
        self.call("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", name, "-C", name)
        if register:
            self.call("flwr", "supernode", "register", f"{name}.pub")

    def node(self, name: str, partition: int, ca: str = "ca.crt", key: str = "", again: bool = False) -> None:
        """Start a SuperNode.

        Args:
            name: Its name.
            partition: What it holds.
            ca: The authority that it trusts.
            key: Its key, if that has another name.
            again: Whether to go on trying: a SuperLink refuses a node that it still believes to be there.
        """
        command = [
            "flower-supernode", "--superlink", self.address, "--root-certificates", ca, "--auth-supernode-private-key",
            key or name, "--port", str(free_port()), "--node-config", f"partition-id={partition}",
        ]  # fmt: skip
        self._launch(name, *(["sh", "-c", f"until {shlex.join(command)}; do sleep 2; done"] if again else command))

    def kill(self, name: str) -> None:
        """SIGKILL a process and all it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def wait_for(self, name: str, text: str, times: int = 1, seconds: float = 180) -> None:
        """Wait until a text stands in a process's log."""
        until = time.monotonic() + seconds
        while self.log(name).count(text) < times:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} does not say {text!r} {times} times:\n{self.log(name)}")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def flwr_run(self, app: Path, arguments: str) -> subprocess.Popen:
        """Start a run, and stream its log."""
        return self._launch("run", "flwr", "run", str(app), "--stream", "--run-config", f"arguments='{arguments}'")

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _launch(self, name: str, *command: str) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return self.processes[name]

    def _certify(self, ca: str, server: str | None) -> None:
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes")
        self.call(*new, "-x509", "-days", "2", "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", f"/CN={ca}")
        if server is None:
            return
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.call(*new, "-keyout", f"{server}.key", "-out", f"{server}.csr", "-subj", "/CN=superlink")
        self.call(
            "openssl", "x509", "-req", "-in", f"{server}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key",
            "-CAcreateserial", "-days", "2", "-out", f"{server}.pem", "-extfile", "names",
        )  # fmt: skip
