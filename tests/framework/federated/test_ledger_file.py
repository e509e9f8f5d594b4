"""The ledger of a client in a file: one message at a time, on every node of a deployment, and never forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from federation_net import Net, Points
from flwr.app import ConfigRecord, Message, RecordDict

from framework.federated import wire
from framework.federated.client import PRIVACY, LightningClient
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.grid import SerialGrid, node_of
from framework.federated.ledger_file import LedgerFile, default_folder
from framework.federated.privacy_ledger import Ledger, spent
from framework.federated.settings import Federation
from framework.federated.workplace import LocalWorkplace

QUICK = {"delta": 1e-3, "accountant": "classic_rdp", "epsilon": 2.0}
RUN = 1
"""Flower's id of the run in one process."""


class Waits(Net):
    """Trains when it is told to: files say that it waits, and that it may go on."""

    folder = ""

    def training_step(self, batch, batch_idx):
        if self.folder and self.trainer.state.fn == "fit":
            Path(self.folder, "waiting").touch()
            until = time.monotonic() + 120
            while not Path(self.folder, "go").exists() and time.monotonic() < until:
                time.sleep(0.02)
        return super().training_step(batch, batch_idx)


class Node:
    """A node of a deployment, which holds client 0 of three: 32 points in batches of 8, four steps a round."""

    def __init__(self, folder="", fingerprint="abc", **privacy):
        torch.manual_seed(0)
        module = Waits(norm=False)
        module.folder = folder
        workplace = LocalWorkplace(module, Points(), {"accelerator": "cpu"}, 7, fingerprint)
        federation = Federation(clients=3, rounds=2, privacy=ClientPrivacy(**QUICK, **privacy))
        self.client = LightningClient(workplace, federation)
        self.weights = workplace.module().state_dict()
        self.restart()

    def restart(self):
        """Forget, as Flower does when a SuperNode ends."""
        self.grid = SerialGrid(self.client.app(), 3)

    def train(self, server_round=1):
        content = {"arrays": wire.pack(self.weights), "config": ConfigRecord({"server-round": server_round})}
        (reply,) = self.grid.send_and_receive([Message(RecordDict(content), node_of(0), "train")])
        if reply.has_error():
            return reply.error.reason
        refused = reply.content.config_records.get(wire.REFUSAL)
        return "trained" if refused is None else refused["reason"]

    @property
    def state(self):
        return self.grid.contexts[0].state.config_records.get(PRIVACY)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.process
def test_a_message_that_comes_while_another_process_trains_the_client_is_refused(home):
    path = os.pathsep.join([os.getcwd(), str(Path(__file__).parents[2] / "support")])
    other = subprocess.Popen(
        [sys.executable, __file__, str(home)], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    try:
        node, until = Node(), time.monotonic() + 120
        while not (home / "waiting").exists():
            assert other.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        assert node.train() == "another round of this client is in training"
        assert node.state is None
        (home / "go").touch()
        assert other.communicate(timeout=120)[0].split() == ["trained"]
    finally:
        other.kill()
    file = LedgerFile(default_folder(RUN), 0)
    assert file.read()["steps"] == [4]
    assert node.train(2) == "trained"  # its own state is empty: the file is believed
    assert file.read()["steps"] == [8]
    assert dict(file.read()) == dict(node.state)
    assert spent(node.state) <= 2.0
    assert node.train(3) == "another round would pass its privacy budget"


def test_a_killed_process_lets_the_ledger_go(tmp_path):
    file = LedgerFile(tmp_path, 0)
    code = (
        "import os, sys; from framework.federated.ledger_file import LedgerFile\n"
        "with LedgerFile(sys.argv[1], 0).held() as free: print(free, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert killed.stdout.split() == ["True"]
    assert killed.returncode == -9
    with file.held() as free, file.held() as again:
        assert (free, again) == (True, False)
    with file.held() as free, LedgerFile(tmp_path, 1).held() as another:
        assert free
        assert another


def test_a_node_that_is_restarted_within_a_run_forgets_nothing_and_a_new_run_begins_anew(home):
    node = Node()
    assert node.train() == "trained"
    assert (home / "state" / "fulgurite" / "privacy" / "1" / "client-0.json").exists()
    node.restart()
    assert [node.train(), node.train()] == ["trained", "another round would pass its privacy budget"]
    node.restart()
    vars(node.grid.contexts[0])["run_id"] = 2
    assert node.train() == "trained"
    assert LedgerFile(default_folder(2), 0).read()["steps"] == [4]


def test_simulations_keep_no_file_unless_they_are_told_to(home):
    node = Node(fingerprint="")
    assert node.train() == "trained"
    assert not (home / "state").exists()


def test_where_state_lies(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for given in (None, "", "relative"):  # the standard has relative ones ignored
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        if given is not None:
            monkeypatch.setenv("XDG_STATE_HOME", given)
        assert default_folder(5) == Path("/home/somebody/.local/state/fulgurite/privacy/5")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_folder(5) == Path("/var/state/fulgurite/privacy/5")


def test_a_folder_that_cannot_be_written_is_one_line_in_the_clients_log(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    words = "cannot be written (Not a directory): give federation.privacy.ledger a folder that can"
    with caplog.at_level("ERROR"):
        told = Node().train()
    assert told == "RuntimeError: private training failed; the reason is in the client's log"
    assert words in caplog.text
    assert words in Node(fingerprint="", ledger=str(tmp_path / "file" / "ledger")).train()


def test_the_longer_of_file_and_state_is_believed(tmp_path):
    privacy, file = ClientPrivacy(**QUICK), LedgerFile(tmp_path, 0)
    noise = Ledger(privacy, 0, 3, 32, 8, 4, 4).noise
    record = {
        "epsilon": 2.0, "delta": 1e-3, "planned": 16, "noise_multiplier": noise, "energy": 1.0,
        "mechanism": "classic_rdp", "noise": [noise], "rate": [0.25],
    }  # fmt: skip
    for stored, kept in ((4, 8), (8, 4), (8, None), (None, 8)):
        file.path.unlink(missing_ok=True)
        if stored is not None:
            file.write(ConfigRecord({**record, "steps": [stored]}))
        own = None if kept is None else ConfigRecord({**record, "steps": [kept]})
        assert Ledger(privacy, 0, 3, 32, 8, 4, 4, own, file).accountant.history == [(noise, 0.25, 8)]
    assert not list(tmp_path.iterdir())  # nothing that was on the way
    with pytest.raises(ValueError, match="the state of client 0 is no ledger of privacy"):
        Ledger(privacy, 0, 3, 32, 8, 4, 4, ConfigRecord({**record, "noise": [], "rate": [], "steps": []}))


def test_a_batch_is_no_larger_than_what_the_client_holds(tmp_path):
    for items, size in ((7, 8), (0, 8), (7, 0)):
        with pytest.raises(ValueError, match=rf"batch_size of client 2 must be in \[1, {items}\], .* got {size}"):
            Ledger(ClientPrivacy(**QUICK), 2, 3, items, size, 4, 2)


def test_noise_is_planned_for_the_rounds_that_are_asked_for(make, tmp_path):
    """Two runs of two rounds on the same data, of which the first leaves half."""

    def begun(name, **privacy):
        return make(
            Net(norm=False), directory=name, clients=3, rounds=2,
            privacy=ClientPrivacy(**QUICK, ledger=str(tmp_path / "ledger"), **privacy),
        )  # fmt: skip

    first, second, third = (begun(name, planned_rounds=4) for name in ("first", "second", "third"))
    first.run()
    record = LedgerFile(tmp_path / "ledger", 0).read()
    assert (record["planned"], record["steps"]) == (16, [8])
    assert spent(record) < 2.0
    second.run()
    record = LedgerFile(tmp_path / "ledger", 0).read()
    assert (record["planned"], record["steps"]) == (16, [16])
    assert 0.98 * 2.0 < spent(record) <= 2.0
    with pytest.raises(RuntimeError, match=r"client 0 refused .another round would pass its privacy budget"):
        third.run()
    short = make(
        Net(norm=False), directory="short", rounds=2, quorum=0.5, privacy=ClientPrivacy(**QUICK, planned_rounds=1)
    )
    with pytest.raises(RuntimeError, match="round 2: 0 of 3 replies can be used"):
        short.run()
    with pytest.raises(ValueError, match=r"federation.privacy.planned_rounds must be at least 1, got 0"):
        ClientPrivacy(planned_rounds=0)


if __name__ == "__main__":
    sys.stdout.write(Node(sys.argv[1]).train())
