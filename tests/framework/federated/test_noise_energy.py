"""Noise energies from updates alone: the pursuit against an implementation by SVD, synthetic truths, guards."""

from __future__ import annotations

import numpy as np
import pytest

from framework.federated.noise_energy import by_leaving_one_out, by_pursuit, diverged, unusable, weights_of
from framework.federated.principal_components import pursue, pursue_inexactly


def rank_one(seed, clients=20, parameters=7850, signal=0.05, deviations=None):
    """Common signal plus noise whose deviation is log-uniform in [.01, .5], and the weights that are right."""
    draw = np.random.default_rng(seed)
    if deviations is None:
        deviations = np.exp(draw.uniform(np.log(0.01), np.log(0.5), clients))
    common = np.outer(np.ones(clients), draw.normal(size=parameters) * signal)
    truth = 1 / deviations**2
    return common + deviations[:, None] * draw.normal(size=(clients, parameters)), truth / truth.sum()


def distance(energies, truth):
    return np.abs(weights_of(energies) - truth).sum()


def by_svd(matrix, iterations):
    """ADMM as it is written in the paper, on the p x n matrix, with a singular value decomposition each time."""
    m = matrix.T
    p, n = m.shape
    mu, weight = p * n / (4 * np.abs(m).sum()), 1 / np.sqrt(max(p, n))
    sparse, dual = np.zeros_like(m), np.zeros_like(m)
    for _ in range(iterations):
        u, s, v = np.linalg.svd(m - sparse + dual / mu, full_matrices=False)
        low = (u * np.maximum(s - 1 / mu, 0)) @ v
        point = m - low + dual / mu
        sparse = np.sign(point) * np.maximum(np.abs(point) - weight / mu, 0)
        dual = dual + mu * (m - low - sparse)
    return low.T, sparse.T


@pytest.mark.parametrize("iterations", [1, 2, 40])
def test_the_gram_route_is_the_one_by_svd(iterations):
    matrix, _ = rank_one(0, clients=7, parameters=300)
    found = pursue(matrix, tolerance=1e-12, max_iterations=iterations)
    low, rest = by_svd(matrix, iterations)
    np.testing.assert_allclose(found.low_rank, low, atol=1e-9)
    np.testing.assert_allclose(found.rest, rest, atol=1e-9)
    assert found.iterations == iterations
    assert not found.converged


def test_more_clients_than_parameters_are_no_other_case():
    matrix, _ = rank_one(0, clients=9, parameters=4)
    low, rest = by_svd(matrix, 25)
    found = pursue(matrix, tolerance=1e-12, max_iterations=25)
    np.testing.assert_allclose(found.low_rank, low, atol=1e-9)
    np.testing.assert_allclose(found.rest, rest, atol=1e-9)


def test_weights_come_near_the_truth_within_300_iterations():
    """What taking the updates' own norms for noise gives, beside it; the third draw is the hardest of six."""
    within = []
    for seed in (0, 2, 3, 1):
        matrix, truth = rank_one(seed)
        found = pursue(matrix, max_iterations=300)
        within.append(distance(np.square(found.rest).sum(1), truth))
        assert distance(np.square(matrix).sum(1), truth) > 0.6
        assert found.residual < 5e-5
    assert max(within[:3]) <= 0.10
    assert within[3] <= 0.2


def test_the_default_stops_by_itself_and_the_parts_add_up():
    matrix, truth = rank_one(3)
    found = pursue(matrix)
    assert found.converged
    assert 200 < found.iterations < 500
    assert np.linalg.norm(found.low_rank + found.rest - matrix) <= 2e-5 * np.linalg.norm(matrix)
    estimated = np.square(found.rest).sum(1)
    official = pursue(matrix, "official", max_iterations=1500)
    assert official.iterations > found.iterations
    assert official.converged
    assert distance(np.square(official.rest).sum(1), truth) == pytest.approx(distance(estimated, truth), abs=0.05)


def test_the_inexact_method_is_quick():
    matrix, truth = rank_one(3)
    found = pursue_inexactly(matrix)
    assert found.converged
    assert found.iterations < 60
    np.testing.assert_allclose(found.low_rank + found.rest, matrix, atol=1e-5)
    assert distance(np.square(found.rest).sum(1), truth) < 0.5


def test_order_and_scale_of_the_updates_do_not_matter():
    matrix, _ = rank_one(3, clients=8, parameters=900)
    order = np.random.default_rng(1).permutation(8)
    reference = by_pursuit(matrix).noise
    np.testing.assert_allclose(by_pursuit(matrix[order]).noise, reference[order], rtol=1e-6)
    np.testing.assert_allclose(by_pursuit(matrix * 1024).noise, reference * 1024**2, rtol=1e-9)
    np.testing.assert_allclose(weights_of(by_pursuit(matrix * 1e-12).noise), weights_of(reference), rtol=1e-6)


def test_chunks_and_samples_of_parameters_estimate_the_same():
    matrix, truth = rank_one(3)
    whole = by_pursuit(matrix, chunk=10_000)
    np.testing.assert_allclose(whole.noise, np.square(pursue(matrix, tolerance=2e-6, max_iterations=2000).rest).sum(1))
    for options in ({}, {"parameters": 2000}, {"chunk": 500}):
        part = by_pursuit(matrix, **options)
        assert distance(part.noise, truth) < 0.12
        assert np.abs(weights_of(part.noise) - weights_of(whole.noise)).sum() < 0.06
        assert np.corrcoef(part.noise, 1 / truth)[0, 1] > 0.998
        assert part.iterations < whole.iterations


def test_an_early_stop_makes_the_noisiest_too_quiet_and_leaves_the_weights_alone():
    matrix, truth = rank_one(3)
    early, late = by_pursuit(matrix, tolerance=2e-5, max_iterations=500, chunk=10_000), by_pursuit(matrix)
    assert late.converged
    assert early.iterations < late.iterations / 2
    assert np.corrcoef(early.noise, 1 / truth)[0, 1] < 0.99
    assert np.corrcoef(late.noise, 1 / truth)[0, 1] > 0.9995
    assert np.abs(weights_of(early.noise) - weights_of(late.noise)).sum() < 0.02


@pytest.mark.parametrize("estimate", [by_pursuit, by_leaving_one_out])
def test_clients_that_are_all_alike_get_equal_weights(estimate):
    matrix, _ = rank_one(5, parameters=4000, deviations=np.full(20, 0.1))
    weights = weights_of(estimate(matrix).noise)
    assert np.abs(weights * 20 - 1).max() < 0.08


def test_leaving_one_out_is_no_bad_estimate_either():
    matrix, truth = rank_one(3)
    assert distance(by_leaving_one_out(matrix).noise, truth) < 0.2


def test_updates_that_say_nothing_are_named():
    matrix, _ = rank_one(0, clients=6, parameters=10)
    matrix[1] = 0
    matrix[2, 3] = np.nan
    matrix[4] = matrix[0]
    assert unusable(matrix) == {
        1: "its update is zero", 2: "its update holds NaN or infinity", 4: "its update is a copy of another's",
    }  # fmt: skip


def test_updates_that_have_diverged_are_named_with_their_energies():
    matrix, _ = rank_one(0, clients=6, parameters=50)
    assert diverged(matrix) == {}
    matrix[4] *= 1e6
    assert list(diverged(matrix)) == [4]
    assert diverged(matrix)[4] == pytest.approx(np.square(matrix[4]).sum())
    assert list(diverged((matrix * 1e20).astype(np.float32))) == [4]  # of which squares overflow
    matrix[4] = 1e300
    assert 1e299 < diverged(matrix)[4] < np.inf


def test_floor_and_cap():
    energies = np.array([0.0, 1.0, 1.0, 4.0])
    weights = weights_of(energies, floor=1e-2)
    np.testing.assert_allclose(weights, np.array([100, 1, 1, 0.25]) / 102.25)
    capped = weights_of(energies, floor=1e-2, cap=0.4)
    np.testing.assert_allclose(capped, [0.4, 0.6 / 2.25, 0.6 / 2.25, 0.15 / 2.25])
    np.testing.assert_allclose(weights_of(energies, cap=0.2), np.full(4, 0.25))
    np.testing.assert_allclose(weights_of(np.array([1.0, 2.0, 4.0]), cap=0.35), [0.35, 0.35, 0.3])
    assert np.isfinite(weights_of(np.zeros(3))).all()
    assert weights_of(np.array([1e-320, 1.0, 1.0])).sum() == pytest.approx(1)
    alone = weights_of(np.ones(4), cap=0.5, signal=np.array([1.0, 0, 0, 0]))  # nobody else has any weight to add to
    np.testing.assert_allclose(alone, [0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3])
    snr = weights_of(np.array([1.0, 2.0]), signal=np.array([3.0, 6.0]))
    np.testing.assert_allclose(snr, [0.5, 0.5])


@pytest.mark.parametrize(
    ("matrix", "arguments", "words"),
    [
        (np.zeros((3, 4)), {}, "not zero"),
        (np.full((3, 4), np.inf), {}, "finite"),
        (np.ones(3), {}, "got shape"),
        (np.ones((3, 4)), {"tolerance": 0.0}, "tolerance must be positive"),
        (np.ones((3, 4)), {"penalty": -1.0}, "positive number"),
        (np.ones((3, 4)), {"penalty": "candez"}, "candes, official"),
    ],
)
def test_what_cannot_be_split_is_refused(matrix, arguments, words):
    with pytest.raises(ValueError, match=words):
        pursue(matrix, **arguments)
