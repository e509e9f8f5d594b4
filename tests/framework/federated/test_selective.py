"""Selective layer fine-tuning over Flower: which layers move, what travels, and that choices follow the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from federation_net import Deep, Net
from flwr.serverapp.strategy import FedAvg
from torch import nn

from framework.federated.partition import Dirichlet
from framework.federated.selective import CHOICES, SelectiveFedAvg

LAYERS = [f"blocks.{k}" for k in range(4)]


def deep():
    torch.manual_seed(0)
    return Deep()


@pytest.fixture
def begin(make):
    def begun(directory="run", strategy=None, module=None, **selective):
        federation = {key: selective.pop(key) for key in list(selective) if key in {"rounds", "clients", "keep"}}
        return make(
            module or deep(), directory=directory, strategy=strategy or SelectiveFedAvg(**selective),
            partition=Dirichlet(0.5, min_items=8), **{"rounds": 1, **federation},
        )  # fmt: skip

    return begun


def moved(before, after):
    """Parts of the module in which any weight differs."""
    return {key.rpartition(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}


def clone(weights):
    return {key: value.clone() for key, value in weights.items()}


def parts(names):
    return {f"{name}.0" for name in names} | {"head"}


@pytest.mark.parametrize(
    ("select", "budget", "expected"),
    [
        ("full", 1, LAYERS),
        ("head_only", 2, []),
        ("top", 1, LAYERS[3:]),
        ("bottom", 2, LAYERS[:2]),
        ("both", 3, [LAYERS[0], LAYERS[1], LAYERS[3]]),
    ],
)
def test_only_what_was_chosen_moves_and_travels(begin, select, budget, expected):
    """Bitwise, under an optimiser with weight decay that the module gives all of its weights."""
    federation = begin(select=select, budget=budget)
    before = clone(federation.server.weights)
    federation.run()
    assert moved(before, federation.server.weights) == parts(expected)
    report = federation.history[-1]
    whole = begin("whole", FedAvg())
    whole.run()
    bytes_of = {"block": (4 * 4 + 4) * 4, "head": (4 * 3 + 3) * 4}
    headers = 128  # of each array of numpy
    for client, full in zip(report.clients, whole.history[-1].clients, strict=True):
        assert client.layers == expected
        arrays = 2 * (len(expected) + 1)
        assert client.up == len(expected) * bytes_of["block"] + bytes_of["head"] + arrays * headers
        assert client.up <= full.up
        assert client.down == full.down


def test_with_all_layers_for_everybody_it_is_flowers_fedavg(begin):
    ours, theirs = begin(select="full", rounds=3), begin("theirs", FedAvg(), rounds=3)
    ours.run(), theirs.run()
    for key, value in ours.server.weights.items():
        torch.testing.assert_close(value, theirs.server.weights[key], rtol=1e-6, atol=1e-7)


def squared_norms(federation, weights, client):
    """Of the gradient of the mean loss on all items of a client, by plain autograd on one batch."""
    module = deep().eval()
    module.load_state_dict(weights)
    x, y = (each[federation.client.shares.train[client]] for each in federation.workplace.data.train.tensors)
    nn.functional.cross_entropy(module(x), y).backward()
    return [sum(float(w.grad.pow(2).sum()) for w in block.parameters()) for block in module.blocks]


@pytest.mark.parametrize("select", ["top_scores", "p1"])
def test_without_agreement_each_client_trains_its_own_best_layer_of_this_round(begin, select):
    federation = begin(select=select, lam=0.0, budget=1, rounds=2)
    federation.check()
    for server_round in (1, 2):
        expected = [
            LAYERS[int(np.argmax(squared_norms(federation, federation.server.weights, client)))] for client in range(3)
        ]
        report = federation.server.train(server_round)
        assert [client.layers for client in report.clients] == [[name] for name in expected]
        assert {"selection/left_out", "selection/disagreement", "selection/scale"} <= report.metrics.keys()


def test_with_much_agreement_all_train_the_same(begin):
    federation = begin(select="p1", lam=1e6, budget=2)
    federation.run()
    chosen = [tuple(client.layers) for client in federation.history[-1].clients]
    assert len(set(chosen)) == 1
    assert len(chosen[0]) == 2
    assert federation.history[-1].metrics["selection/disagreement"] == 0


def test_the_error_terms_are_those_of_the_choice(begin):
    federation = begin(select="top_scores", budget=1)
    federation.check()
    norms = np.array([squared_norms(federation, federation.server.weights, client) for client in range(3)])
    sizes = np.array([len(part) for part in federation.client.shares.train]) / 96
    report = federation.server.train(1)
    masks = np.array([[name in client.layers for name in LAYERS] for client in report.clients])
    left = (sizes @ norms)[~masks.any(0)].sum()
    assert report.metrics["selection/left_out"] == pytest.approx(left, rel=1e-4)
    chi2 = 0.0
    for mask in masks.T:
        if mask.any():
            weights = mask * sizes / (mask * sizes).sum()
            chi2 += ((weights - sizes) ** 2 / sizes).sum()
    assert report.metrics["selection/disagreement"] == pytest.approx(chi2)


@pytest.mark.parametrize("select", CHOICES)
def test_every_choice_runs_under_budgets_that_differ(begin, select):
    federation = begin(select=select, budget=(1, 3), clients=4)
    federation.run()
    budgets = federation.federation.strategy._budgets
    report = federation.history[-1]
    assert all(np.isfinite(value) for value in report.metrics.values())
    if select not in ("full", "head_only"):
        assert [len(client.layers) for client in report.clients] == budgets.tolist()


def test_a_killed_federation_keeps_its_choice(begin):
    whole = begin("whole", rounds=4, every=2, select="p1")
    whole.run()
    begin("parts", rounds=3, every=2, select="p1").run()
    second = begin("parts", rounds=4, every=2, select="p1")
    assert second.resume() == 3  # the fourth round keeps the choice of the third
    second.run()
    assert all(torch.equal(value, second.server.weights[key]) for key, value in whole.server.weights.items())
    layers = [[client.layers for client in report.clients] for report in whole.history[1:]]
    assert layers[0] == layers[1]
    assert layers[2] == layers[3]
    lines = (whole.directory / "rounds.jsonl").read_text().splitlines()
    assert [[client["layers"] for client in json.loads(line)["clients"]] for line in lines[1:]] == layers


def test_scores_that_are_not_finite_name_client_and_layer(begin):
    federation = begin(select="p1")
    federation.check()
    x = federation.workplace.data.train.tensors[0]
    x[federation.client.shares.train[1][0]] = float("nan")
    federation.federation.fail_fast = federation.grid.raise_errors = False
    report = federation.server.train(1)
    assert [client.outcome for client in report.clients] == ["used", "failed", "used"]
    assert "importance norm of layer blocks.0 must be finite, got nan" in report.clients[1].detail
    federation.federation.fail_fast = True
    with pytest.raises(RuntimeError, match=r"client 1 failed in round 2: .*blocks.0 must be finite"):
        federation.server.train(2)


def test_layers_of_ones_own(begin):
    federation = begin(
        select="bottom", groups={"first": [r"blocks\.0"], "last": [r"blocks\.3"]}, common=["head"], frozen=[]
    )
    before = clone(federation.server.weights)
    federation.run()
    assert moved(before, federation.server.weights) == {"blocks.0.0", "head"}
    assert federation.history[-1].clients[0].layers == ["first"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": "P2"}, "select must be one of full, head_only, .*, got 'P2'"),
        ({"importance": "size"}, "importance must be one of norm, norm_per_batch, rgn, snr, got 'size'"),
        ({"budget": -1}, "budget must be a number of layers, or two with the smaller one first, got -1"),
        ({"budget": (3, 1)}, r"budget must be a number of layers, .*, got \(3, 1\)"),
        ({"lam": -0.1}, "lam must be finite and not negative, got -0.1"),
        ({"lam": float("nan")}, "lam must be finite and not negative, got nan"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"batches": 0}, "batches must be at least 1, got 0"),
        ({"budget": 5}, "budget must be at most 4, the number of layers, got 5"),
        ({"groups": {"a": ["nothing"]}}, "nothing"),
        ({"keep": "everything"}, "federation.keep must be callbacks or nothing with SelectiveFedAvg, got everything"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(begin, arguments, message):
    with pytest.raises(ValueError, match=message):
        begin(**arguments)


def test_a_module_without_blocks_is_refused(begin):
    with pytest.raises(ValueError, match="blocks"):
        begin(module=Net(norm=False))
