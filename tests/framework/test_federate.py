"""``fulgurite federate`` as a user meets it: a stranger's module, files, resume after a kill, one-line errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import fails, resolved, rows

from framework.cli import main, run

FOUR = ["-c", "base.yaml", "--federation.clients", "4", "--federation.rounds", "3"]
HOME = Path("runs/base-federated/0")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_federation_leaves_what_a_fit_leaves_and_its_rounds(project, capsys):
    done = run(["federate", *FOUR])
    out = capsys.readouterr().out
    assert done.directory == HOME
    assert "0.5 ± 0.1 (unverified)" in next(line for line in out.splitlines() if line.startswith("test/loss"))
    found = rows(HOME)
    assert [row["step"] for row in found] == ["0", "1", "2", "3"]
    losses = [float(row["val/loss"]) for row in found]
    assert losses == sorted(losses, reverse=True)
    assert {row["federation/used"] for row in found[1:]} == {"4"}
    records = [json.loads(line) for line in (HOME / "rounds.jsonl").open()]
    assert [len(record["clients"]) for record in records] == [0, 4, 4, 4]
    assert {client["examples"] for client in records[1]["clients"]} == {8}
    saved = torch.load(HOME / "checkpoints" / "best-round=3.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == {"layer.weight", "layer.bias"}
    tested = json.loads((HOME / "results.json").read_text())["metrics"]["test/loss"]
    assert tested == pytest.approx(losses[-1], rel=1e-5)  # the stranger tests on what it validates on
    again = run(["test", "-c", "base.yaml", "--name", "base-federated"])
    assert again.results["test/loss"] == pytest.approx(tested)


def test_the_saved_configuration_runs_the_federation_again(project):
    first = run(["federate", *FOUR, "--federation.partition", "Quantity", "--federation.partition.alpha", "2.0"])
    saved = yaml.safe_load((first.directory / "config.yaml").read_text())
    assert saved["federation"]["clients"] == 4
    assert saved["federation"]["partition"]["init_args"]["alpha"] == 2.0
    second = run(["federate", "-c", str(first.directory / "config.yaml")])
    assert second.directory == Path("runs/base-federated/1")
    assert second.results == first.results


def test_a_fit_does_not_mind_the_section_of_another_command(project):
    first = run(["federate", *FOUR])
    assert run(["fit", "-c", str(first.directory / "config.yaml"), "--name", "plain"]).results


@pytest.mark.process
def test_a_killed_federation_is_resumed_bit_by_bit(project):
    args = ["federate", *FOUR, "--federation.keep", "everything", "--federation.strategy", "FedAdam"]
    whole = run([*args, "--name", "whole"])
    killed = project.process(*args, "--ckpt_path", "last", DIE_AT="2")  # the third step of the first client: round 3
    assert killed.returncode == -9
    assert [row["step"] for row in rows(HOME)] == ["0", "1", "2"]
    done = project.process(*args, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    assert rows(HOME) == rows(whole.directory)
    for name in ("checkpoints/last.ckpt", "federation/federation.pt"):
        states = [torch.load(home / name, weights_only=True) for home in (HOME, whole.directory)]
        weights = [state.get("state_dict", state.get("weights")) for state in states]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_more_rounds_for_a_finished_federation_and_none_for_a_complete_one(project, capsys):
    whole = run(["federate", *FOUR, "--name", "whole"])
    run(["federate", "-c", "base.yaml", "--federation.clients", "4", "--federation.rounds", "2"])
    run(["federate", *FOUR, "--ckpt_path", "last"])
    assert rows(HOME) == rows(whole.directory)
    capsys.readouterr()
    run(["federate", *FOUR, "--ckpt_path", "last"])
    assert "runs/base-federated/0 is complete (3 rounds): nothing left to train" in capsys.readouterr().out
    assert rows(HOME) == rows(whole.directory)


def test_another_federation_is_no_continuation(project, capsys):
    run(["federate", *FOUR])
    line = fails(capsys, "federate", *FOUR, "--federation.clients", "5", "--ckpt_path", "last")
    assert "federation.clients is 5, but the run to resume (runs/base-federated/0) was trained with 4" in line


def test_fast_dev_run_leaves_nothing(project):
    done = run(["federate", *FOUR, "--trainer.fast_dev_run", "1"])
    assert set(done.results) == {"test/loss"}
    assert project.files() == set()


def test_the_resolved_configuration_shows_the_section(project, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(["federate", *FOUR, "--print_config"])
    assert exit_.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["federation"]["rounds"] == 3
    assert "federation" not in resolved(capsys, "-c", "base.yaml")


def test_help_lists_the_settings(project, capsys):
    run(["federate", "--federation.help"])
    out = capsys.readouterr().out
    assert "--federation.local_epochs" in out
    assert "Share of the clients that take part" in re.sub(r"\s+", " ", out)


LABELS = ("Dirichlet", "--federation.partition.alpha", "0.1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--federation.client", "3"], "no such key; did you mean clients"),
        (["--federation.clients", "0"], "federation.clients must be at least 1, got 0"),
        (["--federation.clients", "many"], "federation.clients: expected int, got many"),
        (["--federation.clients", "33"], "more clients (33) than items (32)"),
        (
            ["--federation.partition", "Dirichle"],
            "partition.class_path: no class Dirichle; did you mean Dirichlet",
        ),
        (
            ["--federation.partition", "Net"],
            "no class Net; there are Attribute, Classes",
        ),
        (["--federation.partition", "flwr.serverapp.strategy.FedAvg"], "FedAvg is no Partitioner; there are"),
        (["--federation.partition", *LABELS], "integer"),
        (["--federation.strategy", "FedAvrg"], "federation.strategy.class_path: no class FedAvrg; did you mean FedAvg"),
        (["--federation.strategy", "FedAdam", "--federation.strategy.etta", "1"], "FedAdam takes no such argument"),
        (["--federation.strategy", "FedAvg", "--federation.strategy.fraction_train", "0.1"], "set federation.fraction"),
        (
            ["--federation.keep", "all"],
            "federation.keep: expected one of 'nothing', 'callbacks', 'everything', got all",
        ),
        (["--federation.systems", "{drop_out: 2}"], "systems.drop_out must be in [0, 1), got 2"),
        (
            ["--federation.strategy", "WeiAvg"],
            "federation.privacy must be set for WeiAvg, which asks clients for epsilon",
        ),
        (["--federation.privacy.epsilon", "-1"], "federation.privacy: the epsilon of client 0 must be positive"),
        (["--federation.privacy.epsilon", "Dist1"], "Dist1 is for 20, 40 or 60 clients, got 4"),
        (["--federation.privacy.accountant", "moments"], "federation.privacy"),
        (["--federation.privacy.epsilon", "1", "--federation.privacy.batch_size", "9"], "at most its 8 items, got 9"),
        (["--trainer.devices", "2"], "trainer.devices must be 1 in a federation, got 2"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(project, capsys, arguments, words):
    assert words in fails(capsys, "federate", *FOUR, *arguments)
    assert project.files() == set()


def test_a_federation_that_nobody_takes_part_in_any_more_fails_in_one_line_and_keeps_its_rounds(project, capsys):
    private = ["--federation.privacy.epsilon", "8", "--federation.privacy.delta", "1e-3"]
    with pytest.raises(SystemExit) as exit_:
        main(["federate", *FOUR, *private, "--federation.privacy.planned_rounds", "1"])
    assert exit_.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    line = told.splitlines()[-1]
    assert "fulgurite: error: round 2: 0 of 4 replies can be used, federation.quorum asks for" in line
    assert "client 0 refused (another round would pass its privacy budget" in line
    assert [row["round"] for row in rows(HOME)] == ["0", "1"]


def test_a_failing_client_shows_where(project, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["federate", *FOUR, "--model.fail", "step"])
    assert exit_.value.code == 1
    assert "a true bug" in capsys.readouterr().err
