"""Nodes of an engine, known by their partitions: who is there, who came back, who is another."""

from __future__ import annotations

import threading

import pytest
import torch
from federation_net import Net, Points
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from framework.errors import RunFailed
from framework.federated.client import LightningClient
from framework.federated.nodes import PartitionGrid
from framework.federated.own_data import OwnData
from framework.federated.run import FederatedRun
from framework.federated.selective import SelectiveFedAvg
from framework.federated.settings import Federation
from framework.federated.workplace import LocalWorkplace

CLIENTS = 3


class Engine(Grid):
    """An engine in which nodes come and go: ids say nothing about partitions, replies come in another order.

    Args:
        apps: App by node id.
        partitions: Partition by node id.
    """

    def __init__(self, apps, partitions):
        self.apps, self.partitions = apps, dict(partitions)
        self.contexts = {
            node: Context(1, node, {"partition-id": k}, RecordDict(), {}) for node, k in partitions.items()
        }
        self.asked, self.replies, self.mute, self.lost = [], {}, set(), set()

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return sorted(self.partitions)

    def push_messages(self, messages):
        pushed = []
        for message in messages:
            node = message.metadata.dst_node_id
            name = f"m{len(self.asked)}"
            vars(message.metadata)["_message_id"] = name
            self.asked.append((node, message.metadata.message_type))
            pushed.append(name)
            if node in self.mute:
                continue
            if node in self.lost:  # as a SuperLink says of a node whose heart has stopped
                self.replies[name] = Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
                vars(self.replies[name].metadata)["_src_node_id"] = 1
                continue
            try:
                self.replies[name] = self.apps[node](message, self.contexts[node])
            except ValueError as error:
                self.replies[name] = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
        return pushed

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in sorted(message_ids, reverse=True) if name in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def federated(tmp_path, name, nodes=None, **settings):
    """A run and, if there are nodes, its engine, each node with a client built by itself."""

    def workplace(fingerprint=""):
        torch.manual_seed(1)
        return LocalWorkplace(Net(), Points(), {"accelerator": "cpu"}, seed=5, fingerprint=fingerprint)

    federation = Federation(clients=CLIENTS, **{"rounds": 2, "quorum": 0.5, **settings})
    run = FederatedRun(workplace(), federation, tmp_path / name)
    if nodes is None:
        return run, None
    apps = {node: LightningClient(workplace(mark), federation).app() for node, (_, mark) in nodes.items()}
    engine = Engine(apps, {node: k for node, (k, _) in nodes.items()})
    run.connect(PartitionGrid(engine, CLIENTS, "ours", patience=0.5))
    return run, engine


NODES = {77: (1, "ours"), 5: (2, "ours"), 90: (0, "ours")}


def test_weights_are_those_of_one_process_whatever_the_ids_of_the_nodes(tmp_path):
    here, _ = federated(tmp_path, "here")
    there, engine = federated(tmp_path, "there", NODES)
    here.run()
    there.run()
    assert all(torch.equal(here.server.weights[key], there.server.weights[key]) for key in here.server.weights)
    assert [kind for _, kind in engine.asked].count("query.partition") == CLIENTS  # each is asked once
    used = [client.client for client in there.history[1].used]
    assert used == [0, 1, 2]
    assert [client.metrics for client in there.history[2].clients] == [c.metrics for c in here.history[2].clients]


def test_a_node_that_is_away_is_said_to_be_and_is_found_again_under_another_id(tmp_path):
    run, engine = federated(tmp_path, "there", NODES, rounds=3, fail_fast=True)
    run.server.grid.gather()
    gone = engine.partitions.pop(5)
    first = run.server.train(1)
    assert [client.outcome for client in first.clients] == ["used", "used", "failed"]
    assert first.clients[2].detail == "its node is away"
    engine.partitions[6], engine.apps[6] = gone, engine.apps[5]
    engine.contexts[6] = Context(1, 6, {"partition-id": gone}, RecordDict(), {})
    assert [client.outcome for client in run.server.train(2).clients] == ["used"] * 3


def test_of_two_nodes_with_a_partition_the_later_one_works(tmp_path):
    run, engine = federated(tmp_path, "there", NODES)
    run.server.grid.gather()
    engine.partitions[4], engine.apps[4] = 2, engine.apps[5]
    engine.contexts[4] = Context(1, 4, {"partition-id": 2}, RecordDict(), {})
    engine.asked.clear()
    run.server.train(1)
    assert (4, "train") in engine.asked
    assert (5, "train") not in engine.asked


def test_a_node_that_falls_silent_is_waited_for_until_the_timeout(tmp_path):
    run, engine = federated(tmp_path, "there", NODES, timeout=0.5)
    run.server.grid.gather()
    engine.mute.add(77)
    assert [client.outcome for client in run.server.train(1).clients] == ["used", "silent", "used"]


def test_what_the_engine_says_of_a_lost_node_is_put_down_to_that_node(tmp_path):
    run, engine = federated(tmp_path, "there", NODES, fail_fast=True)
    run.server.grid.gather()
    engine.lost.add(5)
    clients = run.server.train(1).clients
    assert [(client.outcome, client.detail) for client in clients] == [("used", "")] * 2 + [("failed", "no heartbeat")]


def test_a_newcomer_that_cannot_take_part_is_left_out_of_a_running_federation(tmp_path, caplog):
    run, engine = federated(tmp_path, "there", NODES)
    run.server.grid.gather()
    engine.partitions[8], engine.apps[8] = 7, engine.apps[5]
    engine.contexts[8] = Context(1, 8, {"partition-id": 7}, RecordDict(), {})
    for server_round in (1, 2):
        assert [client.outcome for client in run.server.train(server_round).clients] == ["used"] * 3
    assert engine.asked.count((8, "query.partition")) == 1
    assert "node 8 cannot take part" in caplog.text


def test_nothing_waits_for_an_engine_that_has_ended(tmp_path):
    ended = threading.Event()
    run, engine = federated(tmp_path, "there", NODES, timeout=3600)
    run.connect(PartitionGrid(engine, CLIENTS, "ours", patience=3600, ended=ended))
    run.server.grid.gather()
    engine.mute.add(77)
    threading.Timer(0.3, ended.set).start()
    with pytest.raises(RuntimeError, match="the engine has ended"):
        run.server.train(1)


def test_layers_are_chosen_among_the_nodes_that_are_there(tmp_path):
    strategy = SelectiveFedAvg(select="p1", budget=1, groups={"body": [r"body\."]}, common=[r"head\."])
    run, engine = federated(tmp_path, "there", NODES, strategy=strategy, fail_fast=True, keep="nothing")
    run.server.grid.gather()
    engine.partitions.pop(5)
    clients = run.server.train(1).clients
    assert [client.outcome for client in clients] == ["used", "used", "failed"]
    assert clients[2].detail == "its node is away"
    assert [client.layers for client in clients] == [["body"], ["body"], None]


def test_a_node_that_does_not_score_its_layers_in_time_misses_the_round(tmp_path):
    strategy = SelectiveFedAvg(select="p1", budget=1, groups={"body": [r"body\."]}, common=[r"head\."])
    run, engine = federated(tmp_path, "there", NODES, strategy=strategy, keep="nothing", timeout=0.5)
    run.server.grid.gather()
    engine.mute.add(77)
    assert [client.outcome for client in run.server.train(1).clients] == ["used", "not asked", "used"]


def test_nodes_with_data_of_their_own_train_on_all_of_it(tmp_path):
    run, _ = federated(tmp_path, "there", NODES, partition=OwnData(), held_out=0.25)
    run.run()
    assert [client.examples for client in run.history[1].clients] == [72] * 3
    assert "clients/val/accuracy" in run.history[1].metrics
    assert not (tmp_path / "there" / "partition.png").exists()


def test_a_partition_without_a_node_is_named(tmp_path):
    run, _ = federated(tmp_path, "there", {5: (2, "ours"), 90: (0, "ours")})
    with pytest.raises(RunFailed, match=r"1 of 3 partitions have no node after 0.5 s \(the first is 1\): start one"):
        run.server.train(1)


def test_a_node_with_another_configuration_is_refused(tmp_path):
    run, _ = federated(tmp_path, "there", {**NODES, 5: (2, "theirs")})
    with pytest.raises(ValueError, match=r"node 5 cannot take part: .*fingerprint theirs, the server's ours"):
        run.server.train(1)


@pytest.mark.parametrize("partition", [3, -1, "0"])
def test_a_node_with_a_partition_that_does_not_exist_is_refused(tmp_path, partition):
    run, _ = federated(tmp_path, "there", {**NODES, 5: (partition, "ours")})
    with pytest.raises(ValueError, match=r"node 5 cannot take part: .*partition-id of a node must be .* \[0, 3\)"):
        run.server.train(1)
