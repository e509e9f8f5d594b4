"""One federation by every engine: the same weights; nodes that are killed, strangers, several devices."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deployment import APP, BIN, Deployment
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from framework.cli import main, run
from framework.commands.flower import client_of, text_of
from framework.configuration import Configuration, pairs
from framework.federated import wire
from framework.federated.grid import SerialGrid

ROOT = Path(__file__).resolve().parents[2]


DAEMON = 39093  # where Flower's own daemon takes commands
THREE = "--federation.clients 3 --federation.rounds 2 --threads 1"
pytestmark = [pytest.mark.process, pytest.mark.slow]


def weights(directory):
    return torch.load(Path(directory) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def rounds(directory):
    return [json.loads(line) for line in (Path(directory) / "rounds.jsonl").open()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


PRIVATE = "--federation.privacy.epsilon [2,4,8] --federation.privacy.delta 0.01 --federation.privacy.batch_size 4"


@pytest.mark.parametrize("more", ["", "--federation.keep everything", PRIVATE])
def test_ray_gives_the_weights_of_one_process_and_its_errors_name_the_client(project, capsys, more):
    layers = ["federate", "-c", "base.yaml", *THREE.split(), *more.split()]
    here = run([*layers, "--name", "here"])
    ray = run([*layers, "--name", "ray", "--federation.engine", "ray", "--federation.client_cpus", "0.5"])
    assert same(weights(here.directory), weights(ray.directory))
    assert here.results == ray.results
    strip = ("wall_seconds",)
    for a, b in zip(rounds(here.directory), rounds(ray.directory), strict=True):
        assert {k: v for k, v in a.items() if k not in strip} == {k: v for k, v in b.items() if k not in strip}
    if more:
        return
    with pytest.raises(SystemExit):
        main([*layers, "--name", "broken", "--federation.engine", "ray", "--model.fail", "step"])
    assert "client 0 failed in round 1" in capsys.readouterr().err


@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="certificates need openssl and ssh-keygen"
)
def test_a_deployment_gives_the_same_weights_survives_a_kill_and_refuses_strangers(project, tmp_path_factory):
    here = run(["federate", "-c", "base.yaml", *THREE.split(), "--name", "here"])
    project.write("pyproject.toml", APP)
    deployment = Deployment(tmp_path_factory.mktemp("deployment"), ROOT)
    try:
        deployment.start()
        for k in range(3):
            deployment.key(f"node{k}")
            deployment.node(f"node{k}", k)
        deployment.key("stranger", register=False)
        deployment.node("stranger", 0)
        deployment.node("elsewhere", 0, ca="other_ca.crt", key="node0")
        shared = f"-c base.yaml {THREE} --federation.timeout 90 --trainer.default_root_dir {project.folder}/runs"
        assert deployment.flwr_run(project.folder, f"{shared} --name deployed").wait(400) == 0
        assert same(weights(here.directory), weights(project.folder / "runs/deployed/0")), deployment.log("run")

        before = deployment.log("node2").count("Receiving: train message")
        deployment.flwr_run(project.folder, f"{shared} --name killed --federation.rounds 4")
        deployment.wait_for("node2", "Receiving: train message", before + 1)
        deployment.kill("node2")
        deployment.node("node2", 2, again=True)
        assert deployment.processes["run"].wait(500) == 0
        found = [[client["outcome"] for client in each["clients"]] for each in rounds(project.folder / "runs/killed/0")]
        assert [outcomes[:2] for outcomes in found[1:]] == [["used", "used"]] * 4, deployment.log("run")
        assert found[1][2] in ("silent", "failed")
        assert found[4][2] == "used"  # it is back
        assert "Failed to activate SuperNode" in deployment.log("stranger")
        assert "Connection attempt failed" in deployment.log("elsewhere")
        for name in ("stranger", "elsewhere"):
            assert "Receiving" not in deployment.log(name)
    finally:
        deployment.stop()


def test_flwr_run_local_gives_the_same_weights(project, tmp_path_factory):
    """Flower's daemon starts Ray, which starts our clients from a copy of the app."""
    with socket.socket() as each:
        if each.connect_ex(("127.0.0.1", DAEMON)) == 0:
            pytest.skip(f"something listens at {DAEMON}, where Flower's daemon would")
    here = run(["federate", "-c", "base.yaml", *THREE.split(), "--name", "here"])
    project.write("pyproject.toml", APP)
    home = tmp_path_factory.mktemp("flwr")
    environment = {
        **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "FLWR_HOME": str(home),
        "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }  # fmt: skip
    arguments = f"-c base.yaml {THREE} --name local --trainer.default_root_dir {project.folder}/runs"
    resources = "num-supernodes=3 client-resources-num-cpus=1"
    command = ["flwr", "run", ".", "local", "--stream", "--federation-config", resources]
    try:
        done = subprocess.run(
            [*command, "--run-config", f"arguments='{arguments}'"], cwd=project.folder, env=environment,
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
    finally:
        subprocess.run(["pkill", "-f", f"superlink.*{home}"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same(weights(here.directory), weights(project.folder / "runs/local/0")), done.stdout


def message(config, state):
    content = RecordDict({"arrays": wire.pack(state), "config": ConfigRecord(config)})
    return Message(content, 2, "train")


def context(partition=0):
    return Context(1, 2, {"partition-id": partition}, RecordDict(), {})


def test_a_client_on_two_devices_takes_the_steps_of_one_with_twice_the_batch(project):
    arguments = f"-c {project.folder}/base.yaml --federation.clients 2 --data.rows 32 --trainer.accelerator cpu"
    sys.path.append(str(project.folder))
    SerialGrid(ClientApp(), 1)  # messages are made in somebody's name

    def client(more=""):
        return client_of(text_of(Configuration.of("federate", pairs(f"{arguments} {more}".split()))))

    one, two = client(), client("--trainer.devices 2 --trainer.strategy ddp")
    state = {"layer.weight": torch.zeros(1, 4), "layer.bias": torch.zeros(1)}
    # A client has 16 items in batches of 8: one step on two devices is one of 16.
    replies = [each.train(message({"server-round": 1}, state), context()) for each in (one, two)]
    assert [reply.content.metric_records["metrics"]["steps"] for reply in replies] == [2, 1]
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))[one.shares.stage(0).indices]
    gradient = (2 * (0 - x.sum(1))[:, None] * x).mean(0)
    trained = wire.unpack(replies[1].content.array_records["arrays"])
    assert torch.allclose(trained["layer.weight"][0], -0.01 * gradient, atol=1e-6)
    with pytest.raises(RuntimeError, match="training on 2 devices failed: ValueError: a true bug"):
        client("--model.fail step --trainer.devices 2").train(message({"server-round": 1}, state), context())
    # Ranks need seconds to start alone.
    with pytest.raises(RuntimeError, match=r"training on 2 devices took longer than federation.timeout, 0.5 s"):
        client("--federation.timeout 0.5 --trainer.devices 2").train(message({"server-round": 1}, state), context())
