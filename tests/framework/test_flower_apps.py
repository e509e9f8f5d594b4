"""Clients and servers that an engine starts from a configuration alone: what they agree on, what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import fails
from flwr.app import Context, RecordDict

from framework.cli import run
from framework.commands import flower
from framework.commands.distributed_client import devices_of
from framework.configuration import Configuration, pairs
from framework.errors import ConfigurationError
from framework.federated import simulation

THREE = ["--federation.clients", "3", "--federation.rounds", "1"]


def configuration(*arguments):
    return Configuration.of("federate", pairs(["-c", "base.yaml", *arguments]))


def context(arguments="-c base.yaml --federation.clients 3", own=None, partition=0):
    node = {"partition-id": partition} | ({"arguments": own} if own is not None else {})
    return Context(1, 2, node, RecordDict(), {} if arguments is None else {"arguments": arguments})


@pytest.fixture
def importable(project, monkeypatch):
    """The project as an engine's processes see it: its folder is on the path."""
    monkeypatch.syspath_prepend(str(project.folder))
    flower.client_of.cache_clear()
    return project


def test_a_node_adds_its_own_arguments_and_stays_in_agreement(importable):
    plain, own = flower._of_run(context()), flower._of_run(context(own="--data.rows 64", partition=1))
    assert [len(client.shares.train[0]) for client in (plain, own)] == [11, 22]
    assert plain._workplace.fingerprint == own._workplace.fingerprint == flower.fingerprint(configuration(*THREE[:2]))
    assert flower._of_run(context()) is plain  # made once for all messages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (context(own="-c other.yaml"), r"arguments of a node take no layers \(-c\), only keys, got '-c other.yaml'"),
        (context(None), "run config 'arguments' is not set: give what would follow `fulgurite federate`"),
        (context("  "), "run config 'arguments' is not set"),
        (context("-c nowhere.yaml"), "-c nowhere.yaml: no such file"),
    ],
)
def test_what_a_run_cannot_be_made_from_is_said(importable, given, message):
    with pytest.raises(ConfigurationError, match=message):
        flower._of_run(given)


def test_layers_are_found_beside_the_app_wherever_an_engine_was_started(importable, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert len(flower._of_run(context()).shares.train) == 3


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        (["--federation.rounds", "9"], True),
        (["--federation.engine", "ray"], True),
        (["--trainer.accelerator", "cpu"], True),
        (["--trainer.default_root_dir", "elsewhere"], True),
        (["--name", "other"], True),
        (["--model.lr", "0.5"], False),
        (["--federation.local_epochs", "2"], False),
        (["--seed_everything", "3"], False),
        (["--trainer.gradient_clip_val", "1"], False),
        (["--trainer.callbacks+", "DeviceStatsMonitor"], False),
    ],
)
def test_the_fingerprint_is_of_what_changes_the_weights(project, arguments, same):
    assert (flower.fingerprint(configuration()) == flower.fingerprint(configuration(*arguments))) is same


def test_a_client_takes_a_configuration_with_callbacks_that_only_a_fit_needs(importable):
    given = configuration("--trainer.callbacks+", "ModelCheckpoint")
    client = flower.client_of(flower.text_of(given))
    assert not client._workplace.callbacks


def test_numbers_as_keys_reach_the_clients(importable):
    given = configuration()
    given.values["model"]["init_args"] |= {
        "of": {0: "a", 1: None},
        "small": 1e-05,
        "text": "1e-05",
        "endless": float("inf"),
    }
    assert flower.client_configuration(flower.text_of(given)).values == given.values


@pytest.mark.parametrize(
    ("devices", "count"), [(None, 1), ("auto", 1), (1, 1), ("2", 2), (3, 3), ([0, 1], 2), (-1, 1), ("-1", 1)]
)
def test_how_many_processes_a_node_starts(devices, count, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert devices_of({"trainer": {} if devices is None else {"devices": devices}}) == count


def test_data_of_its_own_is_for_nodes(project, capsys):
    line = fails(capsys, "federate", "-c", "base.yaml", *THREE, "--federation.partition", "OwnData")
    assert "federation.partition OwnData is for clients in processes of their own" in line
    assert project.files() == set()


def test_ray_that_is_not_installed_is_one_line_with_what_to_install(project, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "find_spec", lambda name: None)
    line = fails(capsys, "federate", "-c", "base.yaml", *THREE, "--federation.engine", "ray")
    assert "pip install 'fulgurite[simulation]'" in line


@pytest.mark.parametrize("kept", [["--federation.keep", "everything"], ["--federation.private", "[layer.bias]"]])
def test_what_clients_kept_in_processes_that_are_gone_is_not_made_up(project, capsys, kept):
    run(["federate", "-c", "base.yaml", *THREE, *kept])
    more = ["--ckpt_path", "last", "--federation.rounds", "2", "--federation.engine", "ray"]
    line = fails(capsys, "federate", "-c", "base.yaml", *THREE, *kept, *more)
    assert "can be resumed only with federation.engine in_process" in line


def test_flower_does_not_report_runs():
    code = "import framework.commands.federate; import flwr.supercore.telemetry as t; print(t.FLWR_TELEMETRY_ENABLED)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_a_metric_that_is_not_logged_cannot_pick_the_best_round(project):
    with pytest.raises(ValueError, match=r"federation.monitor 'val/los' was not logged"):
        run(["federate", "-c", "base.yaml", *THREE, "--federation.monitor", "val/los"])
