"""Strategies that weigh by noise, against clients that are a few lines of arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.decomposition import PCA as Principal
from sklearn.preprocessing import StandardScaler
from torch import nn

from framework.federated.client_privacy import ClientPrivacy
from framework.federated.grid import SerialGrid, node_of
from framework.federated.noise_aware import EPSILON, NOISE, PFA, EqualWeights, Oracle, RobustHDP, WeiAvg
from framework.federated.noise_energy import by_pursuit, weights_of
from framework.federated.projection import project_each, project_mean, public_clients
from framework.federated.server import Server, take_all
from framework.federated.settings import Federation

DEVIATIONS = np.array([0.5, 0.06, 0.1, 0.3, 0.07, 0.05])
CLIENTS = len(DEVIATIONS)
TRUTH = (1 / DEVIATIONS**2) / (1 / DEVIATIONS**2).sum()


class Layers(nn.Module):
    """Two trained tensors, one that is frozen, and a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(40, 30)), nn.Parameter(torch.zeros(200))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("count", torch.tensor(4))


def update(client, server_round=1):
    """What a client adds to the weights a and b, in one vector: a common signal, and noise of its own."""
    signal = np.random.default_rng(0).normal(size=1400) * 0.05
    noise = np.random.default_rng([client, server_round]).normal(size=1400)
    return (signal + DEVIATIONS[client] * noise).astype(np.float32)


def app(change, epsilons):
    made = ClientApp()

    @made.train()
    def train(message, context):
        client, server_round = context.node_config["partition-id"], message.content["config"]["server-round"]
        arrays = {key: array.numpy() for key, array in message.content["arrays"].items()}
        new = change(client, update(client, server_round))
        arrays["a"], arrays["b"] = arrays["a"] + new[:1200].reshape(40, 30), arrays["b"] + new[1200:]
        metrics = {"num-examples": client + 1, EPSILON: epsilons[client], NOISE: float(1400 * DEVIATIONS[client] ** 2)}
        content = {
            "arrays": ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()}),
            "metrics": MetricRecord(metrics),
        }
        return Message(RecordDict(content), reply_to=message)

    return made


def server(strategy, change=lambda client, new: new, epsilons=(1.0,) * CLIENTS, clients=CLIENTS, **federation):
    made = Federation(clients=clients, fail_fast=False, strategy=strategy, privacy=ClientPrivacy(), **federation)
    take_all(strategy)
    strategy.bind(Layers(), clients, 0, None)
    return Server(made, SerialGrid(app(change, epsilons), clients), Layers().state_dict(), seed=3)


def vector(weights):
    return torch.cat([(weights["a"] - 1).flatten(), weights["b"]]).double().numpy()


def updates(server_round=1):
    return np.stack([update(client, server_round) for client in range(CLIENTS)])


def test_robust_hdp_weighs_by_one_over_the_noise():
    done = server(RobustHDP())
    report = done.train(1)
    expected = weights_of(by_pursuit(updates()).noise)
    np.testing.assert_allclose([each.weight for each in report.clients], expected, rtol=1e-3)  # float32 travels
    assert np.abs(expected - TRUTH).sum() < 0.15
    np.testing.assert_allclose(vector(done.weights), expected @ updates(), atol=1e-5)
    assert torch.equal(done.weights["frozen"], torch.ones(3))
    assert int(done.weights["count"]) == 4
    assert report.metrics["weights/effective_clients"] == pytest.approx(1 / np.square(expected).sum(), rel=1e-3)
    assert report.metrics["noise/converged"] == 1
    assert all(each.noise is not None for each in report.clients)


def test_estimates_are_kept_or_made_again():
    once, often = server(RobustHDP()), server(RobustHDP(refresh_every=2))
    weights = {name: [[e.weight for e in each.train(r).clients] for r in (1, 2, 3)] for name, each in
               (("once", once), ("often", often))}  # fmt: skip
    assert weights["once"][0] == weights["once"][1] == weights["once"][2]
    assert weights["often"][0] == weights["often"][1] != weights["often"][2]
    np.testing.assert_allclose(weights["often"][0], weights["often"][2], rtol=0.5)


def test_with_partial_participation_stored_weights_are_renormalised_and_newcomers_estimated():
    done = server(RobustHDP(), fraction=0.5)
    known = {}
    for number in range(1, 13):
        report = done.train(number)
        assert sum(each.weight for each in report.clients) == pytest.approx(1)
        for each in report.clients:
            assert known.setdefault(each.client, each.noise) == each.noise  # kept
    assert len(known) == CLIENTS
    noise = np.array([known[client] for client in range(CLIENTS)])
    assert np.corrcoef(np.log(noise), np.log(DEVIATIONS))[0, 1] > 0.95


def test_estimates_are_in_the_state():
    from framework.federated.state import load_strategy_state, strategy_state

    first = RobustHDP()
    before = server(first)
    before.train(1)
    second = RobustHDP()
    load_strategy_state(second, torch.load(_saved(strategy_state(first)), weights_only=True))
    again = server(second)
    again.weights = before.weights
    ours, theirs = before.train(2), again.train(2)
    assert [each.weight for each in ours.clients] == [each.weight for each in theirs.clients]
    assert all(torch.equal(value, again.weights[key]) for key, value in before.weights.items())


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda new: new * 0, "its update is zero"),
        (lambda new: np.full_like(new, np.nan), "a holds NaN or infinity"),
        (lambda new: update(1), "its update is a copy of another's"),
    ],
)
def test_an_update_that_says_nothing_is_rejected_and_the_round_goes_on(spoil, words):
    done = server(RobustHDP(), lambda client, new: spoil(new) if client == 3 else new)
    report = done.train(1)
    assert [each.outcome for each in report.clients] == ["used"] * 3 + ["rejected"] + ["used"] * 2
    assert report.clients[3].detail == words
    assert report.clients[3].weight is None
    assert sum(each.weight for each in report.used) == pytest.approx(1)


def test_of_two_clients_nothing_can_be_said(caplog):
    done = server(RobustHDP(), clients=2)
    with caplog.at_level("WARNING"):
        report = done.train(1)
    assert "2 updates say nothing of their noise, at least 3 are needed: equal weights" in caplog.text
    assert [each.weight for each in report.clients] == [0.5, 0.5]
    assert report.metrics["noise/too_few"] == 1


@pytest.mark.parametrize("options", [{}, {"estimator": "leave_one_out"}, {"weighting": "snr"}])
def test_one_update_that_has_diverged_does_not_ruin_the_estimates_of_others(caplog, options):
    """In the first round, in which energies are estimated for all that follow; in the second the client is well."""
    rounds = iter([1e6] + [1.0] * 3)
    done = server(RobustHDP(**options), lambda client, new: new * np.float32(next(rounds)) if client == 3 else new)
    honest = server(RobustHDP(**options))
    with caplog.at_level("WARNING"):
        first, second, third = (done.train(number) for number in (1, 2, 3))
    assert caplog.text.count("the update of client 3 is more than 1000 times as long as most") == 1
    assert first.clients[3].weight < 1e-6
    assert [each.outcome for each in first.clients] == ["used"] * CLIENTS
    theirs = np.array([each.weight for each in honest.train(1).clients])
    rest = [client for client in range(CLIENTS) if client != 3]
    for report in (second, third):
        ours = np.array([each.weight for each in report.clients])
        assert 0 < ours[3] < 0.1
        np.testing.assert_allclose(ours[rest] / ours[rest].sum(), theirs[rest] / theirs[rest].sum(), rtol=0.4)


def test_of_three_clients_one_of_which_has_diverged_two_are_too_few():
    done = server(RobustHDP(), lambda client, new: new * np.float32(1e6) if client == 1 else new, clients=3)
    report = done.train(1)
    assert [each.weight for each in report.clients] == [0.5, 0.0, 0.5]
    assert report.metrics["noise/too_few"] == 1


def test_no_estimate_of_zero_is_kept(caplog, monkeypatch):
    from framework.federated import noise_aware

    strategy, own = RobustHDP(), noise_aware.by_pursuit

    def without_noise(*args, **settings):
        found = own(*args, **settings)
        found.noise[2] = 0.0
        return found

    monkeypatch.setattr(noise_aware, "by_pursuit", without_noise)
    done = server(strategy)
    with caplog.at_level("WARNING"):
        report = done.train(1)
    assert "round 1: no noise was found in the update of client 2" in caplog.text
    assert report.clients[2].noise == pytest.approx(np.square(update(2).astype(np.float64)).sum(), rel=1e-3)
    assert node_of(2) not in {int(node) for node in strategy.state_dict()["known"]}
    monkeypatch.setattr(noise_aware, "by_pursuit", own)
    assert 0 < done.train(2).clients[2].noise < report.clients[2].noise
    assert node_of(2) in {int(node) for node in strategy.state_dict()["known"]}


def test_huge_declarations_are_weights_like_others():
    told = (1.0, 1e308, 1.7e308, 1.0, 1.0, 1.0)
    weights = [each.weight for each in server(WeiAvg(), epsilons=told).train(1).clients]
    np.testing.assert_allclose(weights, [0, 1 / 2.7, 1.7 / 2.7, 0, 0, 0], atol=1e-12)


def test_a_cap_bounds_the_largest_weight():
    report = server(RobustHDP(cap=0.3)).train(1)
    assert max(each.weight for each in report.clients) == pytest.approx(0.3)


@pytest.mark.parametrize("options", [{"estimator": "leave_one_out"}, {"solver": "ialm"}, {"penalty": "official"}])
def test_other_estimators_weigh_alike(options):
    weights = [each.weight for each in server(RobustHDP(**options)).train(1).clients]
    assert np.abs(np.array(weights) - TRUTH).sum() < 0.5


def test_signal_to_noise_weighs_by_both():
    weights = [each.weight for each in server(RobustHDP(weighting="snr")).train(1).clients]
    assert np.argmax(weights) == np.argmax(TRUTH)
    assert sum(weights) == pytest.approx(1)


def test_what_clients_declare_moves_weiavg_and_not_robust_hdp():
    honest, lying = (1.0, 2.0, 0.5, 4.0, 1.0, 3.0), (1.0, 2.0, 10.0, 4.0, 1.0, 3.0)
    for strategy, same in ((RobustHDP, True), (EqualWeights, True), (Oracle, True), (WeiAvg, False), (PFA, False)):
        pair = [server(strategy(), epsilons=each) for each in (honest, lying)]
        for each in pair:
            each.train(1), each.train(2)
        equal = all(torch.equal(value, pair[1].weights[key]) for key, value in pair[0].weights.items())
        assert equal == same, strategy


def test_the_simple_weights():
    epsilons = (1.0, 2.0, 0.5, 4.0, 1.0, 1.5)
    for strategy, expected in (
        (EqualWeights(), np.full(6, 1 / 6)),
        (Oracle(), TRUTH),
        (WeiAvg(), np.array(epsilons) / 10),
    ):
        done = server(strategy, epsilons=epsilons)
        weights = [each.weight for each in done.train(1).clients]
        np.testing.assert_allclose(weights, expected)
        np.testing.assert_allclose(vector(done.weights), expected @ updates(), atol=1e-5)


def test_pfa_projects_private_updates_as_the_authors_of_robust_hdp_do():
    """Against scikit-learn's scaler and principal components, one after the other."""
    epsilons = np.array([0.5, 5.0, 0.6, 0.4, 5.5, 6.0])
    public = np.array([False, True, False, False, True, True])
    np.testing.assert_array_equal(public_clients(epsilons), public)
    matrix = updates().astype(np.float64)
    scaler = StandardScaler().fit(matrix[public])
    components = Principal(n_components=1).fit(scaler.transform(matrix[public]))
    projected = components.inverse_transform(components.transform(scaler.transform(matrix[~public])))
    expected = matrix.copy()
    expected[~public] = scaler.inverse_transform(projected)
    np.testing.assert_allclose(project_each(matrix, public), expected, atol=1e-10)
    done = server(PFA(), epsilons=epsilons.tolist())
    report = done.train(1)
    assert report.metrics["pfa/public"] == 3
    np.testing.assert_allclose(vector(done.weights), epsilons / epsilons.sum() @ expected, atol=1e-5)


def test_the_original_pfa_projects_the_private_mean_layer_by_layer():
    public = np.array([False, True, False, False, True, True])
    matrix = updates().astype(np.float64)
    epsilons = np.array([0.5, 5.0, 0.6, 0.4, 5.5, 6.0])
    for by, weights in (("epsilon", epsilons / epsilons.sum()), ("items", np.arange(1, 7) / 21)):
        expected = []
        for part in (matrix[:, :1200], matrix[:, 1200:]):
            mean = np.average(part[public], axis=0, weights=weights[public])
            other = np.average(part[~public], axis=0, weights=weights[~public])
            basis = np.linalg.svd(part[public] - mean, full_matrices=False)[2][:2]
            share = weights[public].sum()
            expected.append(share * mean + (1 - share) * (mean + (other - mean) @ basis.T @ basis))
        layers = [slice(0, 1200), slice(1200, 1400)]
        combined = np.concatenate(expected)
        np.testing.assert_allclose(project_mean(matrix, public, weights, layers, 2), combined, atol=1e-12)
        done = server(PFA("original", components=2, weights_by=by), epsilons=epsilons.tolist())
        done.train(1)
        np.testing.assert_allclose(vector(done.weights), combined, atol=1e-5)


@pytest.mark.parametrize("grouping", ["gmm", "kmeans", "single_linkage"])
def test_clients_that_declare_the_same_are_not_divided(grouping):
    assert not public_clients(np.full(5, 2.0), grouping).any()
    assert public_clients(np.array([0.1, 0.2, 0.15, 9.0]), grouping).tolist() == [False, False, False, True]
    report = server(PFA(grouping=grouping)).train(1)
    assert report.metrics["pfa/public"] == 0
    assert [each.weight for each in report.clients] == [pytest.approx(1 / 6)] * 6


def test_one_public_client_is_all_that_private_ones_can_agree_with():
    matrix = updates().astype(np.float64)
    public = np.arange(CLIENTS) == 1
    np.testing.assert_allclose(project_each(matrix, public), np.tile(matrix[1], (CLIENTS, 1)))
    assert public_clients(np.array([1.0, 3.0]), 2.0).tolist() == [False, True]


def test_clients_alike_are_weighed_alike(monkeypatch):
    monkeypatch.setitem(globals(), "DEVIATIONS", np.full(CLIENTS, 0.1))
    weights = [each.weight for each in server(RobustHDP()).train(1).clients]
    np.testing.assert_allclose(weights, 1 / CLIENTS, rtol=0.15)


def test_a_client_that_does_not_tell_what_is_needed_is_named():
    report = server(WeiAvg(), epsilons=(1.0, 1.0, 0.0, 1.0, 1.0, 1.0)).train(1)
    assert [each.outcome for each in report.clients] == ["used"] * 2 + ["rejected"] + ["used"] * 3
    assert report.clients[2].detail == "it sent declared-epsilon 0.0, which must be a positive number"
    with pytest.raises(ValueError, match=r"federation.privacy must be set for Oracle, which asks clients for noise"):
        Federation(strategy=Oracle())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RobustHDP(refresh_every=0), "refresh_every must be at least 1, got 0"),
        (lambda: RobustHDP(estimator="pca"), "estimator must be one of pursuit, leave_one_out, got 'pca'"),
        (lambda: RobustHDP(cap=1.5), r"cap must be in \(0, 1\], got 1.5"),
        (lambda: RobustHDP(floor=0.0), "floor must be positive and finite, got 0.0"),
        (lambda: RobustHDP(penalty=0.0), "penalty must be candes, official or a positive number, got 0.0"),
        (lambda: PFA(components=0), "components must be at least 1, got 0"),
        (lambda: PFA(grouping="mixture"), "grouping must be gmm, kmeans, single_linkage or a threshold"),
        (lambda: PFA(variant="new"), "variant must be one of robust_hdp, original, got 'new'"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_nodes_are_those_of_the_grid():
    strategy = RobustHDP()
    server(strategy).train(1)
    assert set(strategy.weights) == {node_of(client) for client in range(CLIENTS)}
