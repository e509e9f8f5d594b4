"""Principal component pursuit: a matrix as a low-rank one plus the rest, without a singular value decomposition.

Candes, Li, Ma, Wright. Robust Principal Component Analysis? Journal of the ACM 2011 (arXiv 0912.3599). For matrices of
few rows and many columns, as the updates of a federation's clients are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Penalty = Literal["candes", "official"]

GROWTH = 1.5
"""Factor by which the inexact method raises its penalty in each iteration (Lin, Chen, Ma 2010, arXiv 1009.5055)."""


class Pursuit(NamedTuple):
    """What a pursuit found.

    Attributes:
        low_rank: ``L``, of the shape of the matrix.
        rest: ``S``; ``L + S`` is the matrix within ``residual``.
        iterations: How many it took.
        residual: ``||M - L - S||_F / ||M||_F`` at the end.
        converged: Whether that is within the tolerance.
    """

    low_rank: Floats
    rest: Floats
    iterations: int
    residual: float
    converged: bool


def pursue(
    matrix: Floats, penalty: Penalty | float = "candes", tolerance: float = 2e-5, max_iterations: int = 500
) -> Pursuit:
    """Minimise ``||L||_* + lambda ||S||_1`` subject to ``L + S = M`` by ADMM with a fixed penalty.

    ``lambda = 1 / sqrt(max(shape))``. The singular values of ``X = M - S + Y / mu`` are thresholded through the
    eigenvectors of its Gram matrix, which is as small as the number of clients. With the scaled dual ``U = Y / mu`` and
    ``T = M - L + U``, the shrinkage of ``T`` leaves ``U' = clip(T)``, so that ``S = T - U'`` and ``X' = L - U + 2 U'``:
    neither ``S`` nor ``M - L - S`` is ever formed.

    Args:
        matrix: ``M``, shape ``(clients, parameters)``; finite, not zero.
        penalty: ``mu``: a positive number; ``candes`` for ``n p / (4 sum |M|)`` (their section 5); ``official`` for
            the authors' code of Robust-HDP, which takes the largest sum over a client's parameters instead (their
            ``mu`` is larger, and takes longer to the same point).
        tolerance: Stop when ``||M - L - S||_F``, times ``mu`` over Candes' ``mu``, is at most this times ``||M||_F``;
            positive. A larger penalty makes the residual small long before the split has settled.
        max_iterations: Stop then at the latest, at least 1.

    Raises:
        ValueError: If the matrix is zero, not finite or no matrix, or a number is out of range.
    """
    matrix, size = _checked(matrix, tolerance, max_iterations)
    sums = np.abs(matrix).sum(axis=1)
    usual = matrix.size / (4 * float(sums.sum()))
    if isinstance(penalty, str):
        if penalty not in ("candes", "official"):
            raise ValueError(f"penalty must be candes, official or a positive number, got {penalty!r}")
        mu = usual if penalty == "candes" else matrix.size / (4 * float(sums.max()))
    else:
        mu = float(penalty)
        if not 0 < mu < np.inf:
            raise ValueError(f"penalty must be candes, official or a positive number, got {penalty}")
    threshold = 1 / (mu * np.sqrt(max(matrix.shape)))
    low_rank = np.zeros_like(matrix)
    before, dual, total = np.zeros_like(matrix), np.zeros_like(matrix), np.zeros_like(matrix)
    point = matrix.copy()
    residual, iterations = np.inf, 0
    while iterations < max_iterations:
        iterations += 1
        np.matmul(_threshold(point, 1 / mu), point, out=low_rank)
        np.subtract(matrix, low_rank, out=total)
        total += before
        np.clip(total, -threshold, threshold, out=dual)
        np.subtract(dual, before, out=point)  # M - L - S, for a moment
        residual = float(np.linalg.norm(point)) / size
        if residual * mu <= tolerance * usual:
            break
        point += dual
        point += low_rank
        before, dual = dual, before
    else:
        dual = before  # undoes the last exchange
    return Pursuit(low_rank, total - dual, iterations, residual, residual * mu <= tolerance * usual)


def pursue_inexactly(matrix: Floats, tolerance: float = 1e-7, max_iterations: int = 100) -> Pursuit:
    """The same problem by the inexact augmented Lagrangian method, whose penalty grows: quicker, and less exact.

    Lin, Chen, Ma, The Augmented Lagrange Multiplier Method for Exact Recovery of Corrupted Low-Rank Matrices (arXiv
    1009.5055), algorithm 5. Noise is dense, not sparse, and the split freezes before it is right: for comparison.

    Args:
        matrix: As for ``pursue``.
        tolerance: As for ``pursue``.
        max_iterations: As for ``pursue``.

    Raises:
        ValueError: As ``pursue``.
    """
    matrix, size = _checked(matrix, tolerance, max_iterations)
    weight = 1 / np.sqrt(max(matrix.shape))
    spectral = float(np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[-1]))
    dual = matrix / max(spectral, float(np.abs(matrix).max()) / weight)
    mu, rest, low_rank = 1.25 / spectral, np.zeros_like(matrix), np.zeros_like(matrix)
    residual, iterations = np.inf, 0
    while iterations < max_iterations:
        iterations += 1
        point = matrix - rest + dual / mu
        low_rank = _threshold(point, 1 / mu) @ point
        total = matrix - low_rank + dual / mu
        rest = total - np.clip(total, -weight / mu, weight / mu)
        gap = matrix - low_rank - rest
        dual += mu * gap
        mu *= GROWTH
        residual = float(np.linalg.norm(gap)) / size
        if residual <= tolerance:
            break
    return Pursuit(low_rank, rest, iterations, residual, residual <= tolerance)


def _threshold(point: Floats, by: float) -> Floats:
    """What, times ``point`` from the left, makes each of its singular values smaller by a number, at least 0."""
    values, vectors = np.linalg.eigh(point @ point.T)
    singular = np.sqrt(np.maximum(values, 0))
    kept = singular > by
    scale = 1 - by / singular[kept]
    return np.asarray((vectors[:, kept] * scale) @ vectors[:, kept].T)


def _checked(matrix: Floats, tolerance: float, max_iterations: int) -> tuple[Floats, float]:
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"matrix must have clients in rows and parameters in columns, got shape {matrix.shape}")
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            f"tolerance must be positive and max_iterations at least 1, got {tolerance} and {max_iterations}"
        )
    matrix = np.ascontiguousarray(matrix, dtype=np.float64)
    size = float(np.linalg.norm(matrix))
    if not 0 < size < np.inf:
        raise ValueError(f"matrix must be finite and not zero, its norm is {size}")
    return matrix, size
