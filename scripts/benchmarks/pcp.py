"""Principal component pursuit of a round's updates: eigenvectors of the Gram matrix against an SVD in each iteration.

The peer is the algorithm as it stands in the paper (Candes et al. 2011) and in the code of Robust-HDP, on the matrix
with parameters in rows. Both make the same number of iterations, so that both are equally far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from framework.federated.principal_components import pursue

CASES = [
    {"clients": 20, "parameters": 7850, "iterations": 100},
    {"clients": 20, "parameters": 28_938, "iterations": 100},
    {"clients": 60, "parameters": 7850, "iterations": 100},
]


class Given(NamedTuple):
    """What a variant is timed on: updates of one common direction with noise of different size, clients in rows."""

    updates: np.ndarray
    iterations: int


def setup(clients: int, parameters: int, iterations: int) -> Given:
    draw = np.random.default_rng(0)
    deviations = np.exp(draw.uniform(np.log(0.01), np.log(0.5), clients))
    common = np.tile(0.05 * draw.normal(size=parameters), (clients, 1))
    return Given(common + deviations[:, None] * draw.normal(size=(clients, parameters)), iterations)


def gram(given: Given) -> np.ndarray:
    """Ours: energies of what is left beside the low-rank part."""
    found = pursue(given.updates, tolerance=1e-300, max_iterations=given.iterations)
    return np.square(found.rest).sum(axis=1)


def svd(given: Given) -> np.ndarray:
    """The peer: singular values of the tall matrix in each iteration."""
    matrix = np.ascontiguousarray(given.updates.T)
    mu = matrix.size / (4 * np.abs(matrix).sum())
    weight = 1 / np.sqrt(max(matrix.shape))
    rest, dual = np.zeros_like(matrix), np.zeros_like(matrix)
    for _ in range(given.iterations):
        left, values, right = np.linalg.svd(matrix - rest + dual / mu, full_matrices=False)
        low_rank = (left * np.maximum(values - 1 / mu, 0)) @ right
        point = matrix - low_rank + dual / mu
        rest = np.sign(point) * np.maximum(np.abs(point) - weight / mu, 0)
        dual += mu * (matrix - low_rank - rest)
    return np.square(rest).sum(axis=0)


def agree(ours: np.ndarray, peer: np.ndarray) -> None:
    np.testing.assert_allclose(ours, peer, rtol=1e-6)


VARIANTS = {"gram": gram, "svd": svd}
