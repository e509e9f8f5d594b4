"""How noisy the update of each client is, from the updates alone, and what that makes of their weights.

Malekmohammadi, Yu, Cao. Noise-Aware Algorithm for Heterogeneous Differentially Private Federated Learning (Robust-HDP).
ICML 2024 (arXiv 2406.03519). Updates are rows here: shape ``(clients, parameters)``.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import numpy as np

from framework.federated.principal_components import Floats, Penalty, pursue, pursue_inexactly

MINIMUM = 3
"""Clients without whom nothing can be said: of two updates neither is the odd one."""
PASSES = 5
"""Passes of the leave-one-out estimator; its weights hardly move after that."""
DIVERGED = 1000.0
"""Times the median norm above which an update says nothing of the others: beside it their noise is rounded away."""
BLOCK = 65_536
"""Parameters that are taken to double precision together."""


class Energies(NamedTuple):
    """Estimates for the updates of a round.

    Attributes:
        noise: Squared norm of the noise in each update, shape ``(clients,)``.
        signal: Squared norm of what is left of each, shape ``(clients,)``.
        iterations: Of the slowest pursuit; passes of another estimator.
        converged: Whether all pursuits did.
    """

    noise: Floats
    signal: Floats
    iterations: int
    converged: bool


def unusable(updates: Floats) -> dict[int, str]:
    """Rows that say nothing of noise, and why.

    A zero update would have no noise and take all the weight; a copy of another's would pass for common signal.

    Args:
        updates: Shape ``(clients, parameters)``; may hold NaN.

    Returns:
        Reasons by row; of equal rows the first is kept.
    """
    found: dict[int, str] = {}
    seen: dict[bytes, int] = {}  # by checksum: updates may be large
    for row, update in enumerate(updates):
        if not np.isfinite(update).all():
            found[row] = "its update holds NaN or infinity"
        elif not update.any():
            found[row] = "its update is zero"
        else:
            before = seen.setdefault(hashlib.blake2b(np.ascontiguousarray(update).data).digest(), row)
            if before != row:
                found[row] = "its update is a copy of another's"
    return found


def diverged(updates: Floats) -> dict[int, float]:
    """Rows so large that an estimate with them among the others would be one of them alone.

    Args:
        updates: Shape ``(clients, parameters)``, finite.

    Returns:
        Squared norms by row, of those whose norm is above ``DIVERGED`` times the median.
    """
    with np.errstate(over="ignore"):
        norms = np.array([np.linalg.norm(update.astype(np.float64)) for update in updates])
    most = DIVERGED * float(np.median(norms))
    return {row: min(float(norm), 1e150) ** 2 for row, norm in enumerate(norms) if norm > most}


def by_pursuit(
    updates: Floats,
    solver: Literal["admm", "ialm"] = "admm",
    penalty: Penalty | float = "candes",
    tolerance: float = 2e-6,
    max_iterations: int = 2000,
    chunk: int = 2000,
    parameters: int | None = 200_000,
) -> Energies:
    """Noise as what principal component pursuit leaves beside the low-rank part.

    The sum of squares over a sub-matrix estimates that over all, so chunks are solved one after the other and their
    squared norms added. Each takes every so many-th parameter, and so has its share of every layer. Chunks of one or
    two thousand parameters settle in half the iterations of the whole. Where the iteration stops too early, the
    energies of the noisiest clients are too small: with a tolerance of 2e-5 by up to half. Weights are right by then.

    Args:
        updates: Shape ``(clients, parameters)``, finite, no row zero.
        solver: ``admm`` with a fixed penalty (the authors'), or ``ialm``, which is quicker and less exact.
        penalty: Of ``admm``, see ``pursue``.
        tolerance: Of ``admm``.
        max_iterations: Of ``admm``.
        chunk: Most parameters in a chunk, at least 1.
        parameters: Most parameters that are looked at; energies are scaled up to all. The authors' code takes the first
            200,000, here it is every so many-th. ``None``: all.
    """
    everything = updates.shape[1]
    step = 1 if parameters is None else -(-everything // parameters)
    taken = updates[:, ::step]
    chunks = -(-taken.shape[1] // chunk)
    noise, signal = np.zeros(len(updates)), np.zeros(len(updates))
    iterations, converged = 0, True
    for first in range(chunks):
        part = taken[:, first::chunks]
        if not part.any():
            continue
        found = pursue_inexactly(part) if solver == "ialm" else pursue(part, penalty, tolerance, max_iterations)
        noise += np.square(found.rest).sum(axis=1)
        signal += np.square(found.low_rank).sum(axis=1)
        iterations, converged = max(iterations, found.iterations), converged and found.converged
    scale = everything / taken.shape[1]
    return Energies(noise * scale, signal * scale, iterations, converged)


def by_leaving_one_out(updates: Floats) -> Energies:
    """Noise as the distance from the weighted mean of the others, with weights made from it in turn; an ablation.

    Args:
        updates: Shape ``(clients, parameters)``, finite.
    """
    inner = np.zeros((len(updates), len(updates)))
    for start in range(0, updates.shape[1], BLOCK):
        block = updates[:, start : start + BLOCK].astype(np.float64)
        inner += block @ block.T
    squared = np.diag(inner)
    clients = len(updates)
    noise, signal = np.ones(clients), np.ones(clients)
    for _ in range(PASSES):
        weights = np.tile(1 / noise, (clients, 1))
        np.fill_diagonal(weights, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        signal = np.einsum("ij,jk,ik->i", weights, inner, weights)
        distance = squared - 2 * (weights * inner).sum(axis=1) + signal
        noise = np.maximum(distance, 1e-12 * squared.max())
    return Energies(noise, signal, PASSES, True)


def weights_of(scores: Floats, floor: float = 1e-6, cap: float | None = None, signal: Floats | None = None) -> Floats:
    """Weights that make the weighted mean least noisy: proportional to one over the noise energy.

    Args:
        scores: Noise energy of each client, at least 0, shape ``(clients,)``.
        floor: Energies below this times their median count as that much: no update is without noise. Positive.
        cap: Largest weight of a client; what is beyond it goes to the others in proportion, in equal parts where they
            have none. At least 1 / clients, else all weights are equal. ``None``: none.
        signal: Energy of the signal, to weight by the ratio of signal to noise instead.

    Returns:
        Not negative, with sum 1.
    """
    typical = float(np.median(scores))
    safe = np.maximum(scores, max(floor * typical, np.finfo(np.float64).tiny))
    raw = np.ones_like(safe) if signal is None else np.asarray(signal, dtype=np.float64)
    if not raw.any():
        raw = np.ones_like(safe)
    weights = raw * (safe.min() / safe)  # the ratio, so that tiny energies do not overflow
    weights /= weights.sum()
    return weights if cap is None else _capped(weights, cap)


def _capped(weights: Floats, cap: float) -> Floats:
    if cap * len(weights) <= 1:
        return np.full(len(weights), 1 / len(weights))
    full = np.zeros(len(weights), dtype=bool)
    while True:
        rest = weights * ~full
        if not rest.any():
            rest = 1.0 * ~full  # nobody else has any: in equal parts
        spread = np.where(full, cap, rest * (1 - cap * full.sum()) / rest.sum())
        over = ~full & (spread > cap)
        if not over.any():
            return spread
        full |= over
