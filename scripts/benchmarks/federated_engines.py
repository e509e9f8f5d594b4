"""A federation as a command, from a cold start: in one process against Flower's simulation engine on Ray.

Each call is ``fulgurite federate`` in a new process: MNIST, equal parts, ten local steps on batches of 64, evaluation
after the last round only. The difference of two cases that differ in their rounds is what rounds take once all is
running. Ray may use two cores, one for each of two clients at a time; the process in which all clients take turns has
one. Both end with the same weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

NEEDS = ["ray"]
CASES = [
    {"network": network, "clients": clients, "rounds": rounds}
    for network, clients, rounds in (
        ("mlp", 10, 1),
        ("mlp", 10, 6),
        ("cnn", 10, 1),
        ("cnn", 10, 6),
        ("mlp", 100, 1),
        ("cnn", 100, 1),
    )
]
CODE = "import sys; from framework.cli import main; sys.exit(main(sys.argv[1:]))"


def setup(network: str, clients: int, rounds: int) -> str:
    return (
        f"federate -c classifier/mnist -c federation/iid --model.network {network} --data.batch_size 64 --threads 1 "
        f"--federation.clients {clients} --federation.rounds {rounds} --federation.local_steps 10 "
        "--federation.evaluate_every 0 --trainer.accelerator cpu"
    )


def _run(arguments: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CODE, *arguments.split(), "--trainer.default_root_dir", folder, "--name", "a"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        (last,) = Path(folder).glob("a/*/checkpoints/last.ckpt")
        weights: dict[str, Tensor] = torch.load(last, weights_only=True)["state_dict"]
        return weights


def in_process(arguments: str) -> dict[str, Tensor]:
    """Ours."""
    return _run(arguments)


def ray(arguments: str) -> dict[str, Tensor]:
    """The peer: the same clients by ``flwr.simulation``."""
    return _run(f"{arguments} --federation.engine ray --federation.client_cpus 1")


def agree(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> None:
    for key, value in peer.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


VARIANTS = {"in one process": in_process, "Ray": ray}
