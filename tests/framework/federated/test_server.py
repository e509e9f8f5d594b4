"""The server's side, against clients that are three lines of arithmetic."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.errors import RunFailed
from framework.federated import wire
from framework.federated.grid import SerialGrid, node_of, partition_of
from framework.federated.rounds import weighted_mean
from framework.federated.server import Server, take_all
from framework.federated.settings import Federation
from framework.federated.strategies import FedAvgPerKey
from framework.federated.systems import Systems

WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]]), "n": torch.tensor(4)}


def app(answer, seen=None):
    """Clients that answer ``answer(client, arrays) -> (arrays by key, examples)``."""
    made = ClientApp()

    @made.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        if seen is not None:
            seen.append(client)
        arrays, examples = answer(client, {k: v.numpy() for k, v in message.content["arrays"].items()})
        content = {
            "arrays": ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()}),
            "metrics": MetricRecord({"num-examples": examples, "steps": 3.0, "train/loss": float(client)}),
        }
        return Message(RecordDict(content), reply_to=message)

    return made


def server(answer, seen=None, grid=SerialGrid, **federation):
    made = Federation(**{"clients": 3, "rounds": 1, "fail_fast": False, **federation})
    take_all(made.strategy)
    return Server(made, grid(app(answer, seen), made.clients), WEIGHTS, seed=3)


def plus(client, arrays):
    return {
        key: value + (client + 1 if value.dtype == np.float32 else client) for key, value in arrays.items()
    }, client + 1


class Backwards(SerialGrid):
    """Replies come in another order than messages went out."""

    def send_and_receive(self, messages, *, timeout=None):
        return list(reversed(list(super().send_and_receive(list(messages), timeout=timeout))))


def test_weights_are_averaged_by_items_and_keep_their_types():
    done = server(plus)
    report = done.train(1)
    shift = (1 * 1 + 2 * 2 + 3 * 3) / 6
    torch.testing.assert_close(done.weights["a"], WEIGHTS["a"] + shift)
    assert done.weights["n"].dtype == torch.int64
    assert int(done.weights["n"]) == 4 + round((0 * 1 + 1 * 2 + 2 * 3) / 6)
    assert report.metrics == {"clients/train/loss": pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6)}
    assert [(each.client, each.outcome, each.examples) for each in report.clients] == [
        (0, "used", 1.0), (1, "used", 2.0), (2, "used", 3.0)
    ]  # fmt: skip
    assert report.up == report.down == 3 * report.clients[0].up


def test_the_order_of_replies_does_not_matter():
    def odd(client, arrays):  # sums of these depend on their order
        return {key: value + np.asarray([1e8, 1.0, -1e8][client], value.dtype) for key, value in arrays.items()}, 1

    forwards, backwards = server(odd), server(odd, grid=Backwards)
    forwards.train(1), backwards.train(1)
    assert all(torch.equal(value, backwards.weights[key]) for key, value in forwards.weights.items())


BAD = {
    "NaN": (lambda a: {**a, "a": a["a"] * np.nan}, "a holds NaN or infinity"),
    "infinity": (lambda a: {**a, "a": np.array([np.inf, -np.inf], np.float32)}, "a holds NaN or infinity"),
    "shape": (lambda a: {**a, "a": a["a"][:1]}, r"a has shape \(1,\), expected \(2,\)"),
    "type": (lambda a: {**a, "a": a["a"].astype(np.float64)}, "a has type float64, expected float32"),
    "missing": (lambda a: {"a": a["a"]}, "weights b, n are missing"),
    "unknown": (lambda a: {**a, "c": a["a"]}, "unknown weights c"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_rejected_and_the_round_goes_on(kind):
    spoil, words = BAD[kind]

    def answer(client, arrays):
        new, examples = plus(client, arrays)
        return (spoil(new) if client == 1 else new), examples

    done = server(answer)
    report = done.train(1)
    assert [each.outcome for each in report.clients] == ["used", "rejected", "used"]
    assert re.search(words, report.clients[1].detail)
    torch.testing.assert_close(done.weights["a"], WEIGHTS["a"] + (1 * 1 + 3 * 3) / 4)


def test_weights_whose_sum_overflows_are_good_weights():
    def answer(client, arrays):
        return {**arrays, "a": np.full_like(arrays["a"], 3e38)}, 1

    assert not wire.complaint(wire.pack({"a": torch.full((2,), 3e38)}), {"a": torch.zeros(2)})
    report = server(answer).train(1)
    assert [each.outcome for each in report.clients] == ["used"] * 3


@pytest.mark.parametrize("examples", [0, -1, float("nan")])
def test_a_reply_without_items_is_rejected(examples):
    report = server(lambda client, arrays: (arrays, examples if client else 1), quorum=0.0).train(1)
    assert [each.outcome for each in report.clients] == ["used", "rejected", "rejected"]


def fails_at_two(client, arrays):
    if client == 2:
        raise OSError("disk full")
    return plus(client, arrays)


def test_a_failing_client_drops_out_of_the_mean():
    done = server(fails_at_two)
    report = done.train(1)
    assert (report.clients[2].outcome, report.clients[2].detail) == ("failed", "OSError: disk full")
    torch.testing.assert_close(done.weights["a"], WEIGHTS["a"] + (1 + 4) / 3)


def test_too_few_usable_replies_end_the_federation():
    with pytest.raises(RunFailed, match=r"round 1: 2 of 3 replies can be used, federation.quorum asks for 0.9 of "
                       r"them: client 2 failed \(OSError: disk full\)"):  # fmt: skip
        server(fails_at_two, quorum=0.9).train(1)


def test_fail_fast_ends_it_at_once_and_names_the_client():
    with pytest.raises(RuntimeError, match="client 2 failed in round 1: OSError: disk full"):
        server(fails_at_two, fail_fast=True).train(1)
    seen = []
    federation = Federation(clients=3, rounds=1)
    grid = SerialGrid(app(fails_at_two, seen), 3, raise_errors=True)
    with pytest.raises(OSError, match="disk full"):
        Server(federation, grid, WEIGHTS, 3).train(1)


def test_of_several_failures_the_same_is_told_whoever_answered_first():
    def fails(client, arrays):
        raise OSError(f"disk {client} full")

    with pytest.raises(RuntimeError, match="client 0 failed in round 1: OSError: disk 0 full"):
        server(fails, fail_fast=True, grid=Backwards).train(1)


def test_participants_depend_on_seed_and_round_alone():
    some = server(plus, clients=20, fraction=0.29)
    assert some.federation.participants == 6  # Flower would truncate to 5
    drawn = [some.participants(server_round) for server_round in range(1, 30)]
    torch.manual_seed(0), np.random.seed(0)
    assert drawn == [server(plus, clients=20, fraction=0.29).participants(r) for r in range(1, 30)]
    assert all(len(set(each)) == 6 and each == sorted(each) for each in drawn)
    assert set().union(*drawn) == set(range(20))
    seen = []
    server(plus, seen, clients=20, fraction=0.29).train(4)
    assert sorted(seen) == drawn[3]


def test_strategies_do_not_choose_clients_themselves():
    with pytest.raises(
        ValueError, match=r"FedAvg.fraction_train is 0.5, but the server chooses .* federation.fraction"
    ):
        take_all(flower.FedAvg(fraction_train=0.5))
    wrapped = flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(min_train_nodes=7), 0.0, 100.0, 3)
    take_all(wrapped)
    assert wrapped.strategy.min_train_nodes == 1


# -- partial updates --------------------------------------------------------------------------------------------------


def test_the_hand_case_of_layers_sent_by_one_client():
    """Items d = (1, 3); client 0 sends a, client 1 sends a and b: a is (x + 3y) / 4, b is y."""

    def answer(client, arrays):
        values = {"a": arrays["a"] + 10 * client, "b": arrays["b"] * 5}
        return ({"a": values["a"]} if client == 0 else values), (1, 3)[client]

    done = server(answer, clients=2, strategy=FedAvgPerKey())
    done.train(1)
    assert torch.equal(done.weights["a"], (WEIGHTS["a"] + 3 * (WEIGHTS["a"] + 10)) / 4)
    assert torch.equal(done.weights["b"], WEIGHTS["b"] * 5)
    assert torch.equal(done.weights["n"], WEIGHTS["n"])


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-9, 9)), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_where_everybody_sends_everything_it_is_flowers_fedavg(clients):
    def answer(client, arrays):
        examples, shift = clients[client]
        return {key: (value + shift).astype(value.dtype) for key, value in arrays.items()}, examples

    ours, theirs = (server(answer, clients=len(clients), strategy=each()) for each in (FedAvgPerKey, flower.FedAvg))
    ours.train(1), theirs.train(1)
    for key, value in ours.weights.items():
        torch.testing.assert_close(value, theirs.weights[key], rtol=1e-7 * 20, atol=1e-6)


# -- systems ----------------------------------------------------------------------------------------------------------


def test_the_clock_adds_the_slowest_client_of_each_round():
    systems = Systems(step_seconds=(0.5, 0.5), down_mbit=(8e-6, 8e-6), up_mbit=(16e-6, 16e-6))  # 1 and 2 bytes a second
    done = server(plus, systems=systems)
    report = done.train(1)
    each = report.clients[0]
    assert each.seconds == pytest.approx(each.down / 1 + 3 * 0.5 + each.up / 2)
    assert report.clock == pytest.approx(each.seconds)
    assert done.train(2).clock == pytest.approx(2 * each.seconds)


def test_profiles_belong_to_the_client_and_lie_in_the_bounds():
    systems = Systems(step_seconds=(0.01, 1.0))
    profiles = [systems.profile(client, 3) for client in range(200)]
    assert profiles == [Systems(step_seconds=(0.01, 1.0)).profile(client, 3) for client in range(200)]
    speeds = np.log10([profile.step_seconds for profile in profiles])
    assert speeds.min() >= -2
    assert speeds.max() <= 0
    assert abs(np.median(speeds) + 1) < 0.2  # log-uniform


def test_who_is_late_is_left_out_and_the_round_ends_at_the_deadline():
    systems = Systems(step_seconds=(0.01, 10.0))
    times = [server(plus, systems=systems).train(1).clients[client].seconds for client in range(3)]
    deadline = sorted(times)[1] + 1e-6  # in time for two of three
    done = server(plus, systems=Systems(step_seconds=(0.01, 10.0), deadline=deadline))
    report = done.train(1)
    assert [each.outcome for each in report.clients] == ["late" if t > deadline else "used" for t in times]
    assert report.clock == pytest.approx(deadline)


def test_drop_outs_do_not_train_and_depend_on_seed_round_and_client():
    seen = []
    done = server(plus, seen, clients=40, systems=Systems(drop_out=0.5), quorum=0.0)
    first, second = done.train(1), done.train(2)
    out = [{each.client for each in report.clients if each.outcome == "dropped out"} for report in (first, second)]
    assert 8 <= len(out[0]) <= 32
    assert out[0] != out[1]
    assert seen[: 40 - len(out[0])] == [client for client in range(40) if client not in out[0]]
    assert out[0] == {c for c in range(40) if Systems(drop_out=0.5).drops_out(c, 1, 3)}


# -- the grid and small parts -----------------------------------------------------------------------------------------


def test_the_grid_keeps_what_it_needs_of_flowers_private_parts():
    """Fails on an upgrade of flwr that moves them, instead of a user's run."""
    grid = SerialGrid(app(plus), 2)
    message = grid.create_message(RecordDict(), "train", node_of(1), "7")
    assert message.metadata.run_id == grid.run.run_id
    assert message.metadata.group_id == "7"
    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])  # there is no record of arrays: the client fails, and says so
    assert reply.has_error()
    assert "KeyError" in reply.error.reason
    assert reply.metadata.reply_to_message_id == number
    assert partition_of(reply.metadata.src_node_id) == 1
    assert list(grid.pull_messages([number])) == []
    assert [partition_of(node) for node in grid.get_node_ids()] == [0, 1]


def test_means_are_over_those_that_have_a_metric():
    entries = [(1.0, {"a": 1.0}), (3.0, {"a": 5.0, "b": 2.0}), (0.0, {"c": 1.0})]
    assert weighted_mean(entries) == {"a": 4.0, "b": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 0}, "federation.clients must be at least 1, got 0"),
        ({"rounds": 0}, "federation.rounds must be at least 1, got 0"),
        ({"fraction": 0.0}, r"federation.fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": float("nan")}, r"federation.fraction must be in \(0, 1\], got nan"),
        ({"held_out": 1.0}, r"federation.held_out must be in \[0, 1\), got 1.0"),
        ({"quorum": 1.5}, r"federation.quorum must be in \[0, 1\], got 1.5"),
        ({"local_epochs": 1, "local_steps": 2}, r"give local_epochs \(1\) or local_steps \(2\), not both"),
        ({"local_epochs": 0}, "federation.local_epochs must be at least 1, got 0"),
        ({"local_steps": -3}, "federation.local_steps must be at least 1, got -3"),
        ({"timeout": 0}, "federation.timeout must be positive, got 0"),
        ({"private": ["(head"]}, r"federation.private: '\(head' is no regular expression"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Federation(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_seconds": (0.0, 1.0)}, "systems.step_seconds must be two positive numbers"),
        ({"up_mbit": (3.0, 1.0)}, "systems.up_mbit must be two positive numbers, the smaller one first, got 3.0 and 1"),
        ({"drop_out": 1.0}, r"systems.drop_out must be in \[0, 1\), got 1.0"),
        ({"deadline": 0.0}, "systems.deadline must be positive, got 0.0"),
    ],
)
def test_systems_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Systems(**arguments)
