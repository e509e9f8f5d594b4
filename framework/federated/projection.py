"""Projected federated averaging: noisy updates are projected on what the less noisy ones have in common.

PFA, projected federated averaging with heterogeneous differential privacy, from its public code (JunxuLiu/PFA at
72b3f89), and the variant that the authors of Robust-HDP compare with (Saber-mm/HDPFL at b00c897). Updates are rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from framework.federated.principal_components import Floats

Grouping = Literal["gmm", "kmeans", "single_linkage"]


def public_clients(epsilons: Floats, by: Grouping | float = "gmm") -> np.ndarray:
    """Which clients ask for little privacy, by the epsilon they declare.

    Args:
        epsilons: Shape ``(clients,)``, positive.
        by: How to tell two groups apart: a Gaussian mixture of two (``gmm``), ``kmeans``, ``single_linkage``, all on
            epsilons scaled to [0, 1]; the group with the larger mean is public. A number is a threshold: public is who
            declares at least that much.

    Returns:
        A mask. All False or all True where there is one group: epsilons that are all the same.
    """
    if not isinstance(by, str):
        return np.asarray(epsilons >= by)
    span = float(np.ptp(epsilons))
    if span == 0 or len(epsilons) < 2:
        return np.zeros(len(epsilons), dtype=bool)
    scaled = ((epsilons - epsilons.min()) / span).reshape(-1, 1)
    if by == "gmm":
        from sklearn.mixture import GaussianMixture

        groups = GaussianMixture(n_components=2, random_state=0).fit_predict(scaled)
    elif by == "kmeans":
        from sklearn.cluster import KMeans

        groups = KMeans(n_clusters=2, n_init=10, random_state=0).fit_predict(scaled)
    elif by == "single_linkage":
        from sklearn.cluster import AgglomerativeClustering

        groups = AgglomerativeClustering(n_clusters=2, linkage="single").fit_predict(scaled)
    else:
        raise ValueError(f"by must be gmm, kmeans, single_linkage or a threshold, got {by!r}")
    means = [scaled[groups == group].mean() if (groups == group).any() else -np.inf for group in (0, 1)]
    return np.asarray(groups == int(np.argmax(means)))


def project_each(updates: Floats, public: np.ndarray, components: int = 1) -> Floats:
    """Project each private update on the principal components of the public ones, every coordinate standardised.

    The variant in the code of Robust-HDP: over the whole vector at once, mean and standard deviation of the public
    clients for each coordinate (1 where they do not differ).

    Args:
        updates: Shape ``(clients, parameters)``.
        public: Mask of the public clients; at least one, not all.
        components: Principal components, at least 1. There are never more than public clients less one: the rest would
            be directions of rounding.

    Returns:
        The updates, those of private clients projected.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(updates[public])
    basis = _basis(scaler.transform(updates[public]), components)
    private = scaler.transform(updates[~public])
    found = np.array(updates, dtype=np.float64)
    found[~public] = scaler.inverse_transform((private @ basis.T) @ basis)
    return found


def project_mean(
    updates: Floats, public: np.ndarray, weights: Floats, layers: Sequence[slice], components: int = 1
) -> Floats:
    """Combine, layer by layer, the public mean with the projection of the private one: the original method.

    ``m + V^T V (q - m)`` with ``m`` the public and ``q`` the private mean and ``V`` the first principal directions of
    the centred public updates.

    Args:
        updates: Shape ``(clients, parameters)``.
        public: Mask of the public clients; at least one, not all.
        weights: Of the clients, shape ``(clients,)``, with sum 1: within each group and between the two.
        layers: Where each layer lies among the parameters.
        components: Principal directions of a layer, at least 1; see ``project_each``.

    Returns:
        The combined update, shape ``(parameters,)``.
    """
    found = np.zeros(updates.shape[1])
    for layer in layers:
        part = updates[:, layer].astype(np.float64)
        share = float(weights[public].sum())
        mean = weights[public] @ part[public] / share
        other = weights[~public] @ part[~public] / (1 - share)
        basis = _basis(part[public] - mean, components)
        found[layer] = share * mean + (1 - share) * (mean + ((other - mean) @ basis.T) @ basis)
    return found


def _basis(centred: Floats, components: int) -> Floats:
    """The first right singular vectors, as rows, from the small Gram matrix."""
    values, vectors = np.linalg.eigh(centred @ centred.T)
    most = min(components, len(centred) - 1)
    kept = [k for k in np.argsort(values)[::-1][:most] if values[k] > 1e-12 * max(values.max(), 1e-300)]
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept])).T @ centred)
