"""Pictures of a learned graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framework.graphs.batch import NodeBatch
from modules.lds.edges import CandidateEdges, DenseEdges
from modules.lds.statistics import pairs_among

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def edge_probability_figure(edges: DenseEdges | CandidateEdges, batch: NodeBatch) -> Figure:
    """Histogram of edge probabilities for pairs within a class and between classes, on nodes that no loss has seen.

    Args:
        edges: The edge probabilities.
        batch: The graph; its test nodes are shown.
    """
    import numpy as np
    from matplotlib.figure import Figure

    y = batch.y.cpu()
    pairs, probability = (
        part.cpu() for part in pairs_among(edges, (batch.test & (batch.y >= 0)).to(edges.theta.device))
    )
    same = y[pairs[0]] == y[pairs[1]]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    # From 1e-6 up: most pairs of a learned graph lie orders of magnitude below 1, and 0 has no logarithm.
    bins = np.logspace(-6, 0, 37).tolist()
    for mask, label in ((same, "same class"), (~same, "different classes")):
        values = probability[mask].clamp(min=1e-6).numpy()
        share = np.full(len(values), 1 / max(len(values), 1))
        axes.hist(values, bins=bins, weights=share, alpha=0.6, label=f"{label} (mean {values.mean():.2g})")
    axes.set(
        xscale="log", yscale="log", xlabel="edge probability (below 1e-6 in the first bin)", ylabel="share of pairs"
    )
    axes.set_title("Learned edge probabilities between test nodes")
    axes.legend()
    return figure


def graph_figure(edges: DenseEdges | CandidateEdges, batch: NodeBatch, most: int = 4000) -> Figure:
    """The most likely edges drawn over the features' two principal components, coloured by class.

    Args:
        edges: The edge probabilities.
        batch: The graph.
        most: Edges that are drawn at most.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    pairs, probability = (part.cpu() for part in edges.pairs(above=0.01))
    order = probability.argsort(descending=True)[:most]
    pairs, probability = pairs[:, order], probability[order]
    x = batch.x.cpu()
    x = (x if x.layout == torch.strided else x.to_dense()).float()
    with torch.random.fork_rng(devices=[]):  # the projection is randomised: the run's own numbers stay as they are
        torch.default_generator.manual_seed(0)
        places = (x - x.mean(0)) @ torch.pca_lowrank(x, q=min(2, *x.shape))[2]
    places = torch.nn.functional.pad(places, (0, 2 - places.shape[1]))  # a single feature: a line
    y = batch.y.cpu()
    same = y[pairs[0]] == y[pairs[1]]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    for mask, colour in ((same, (0.5, 0.5, 0.5)), (~same, (0.84, 0.15, 0.16))):
        lines = places[pairs[:, mask].T].numpy()
        shades = [(*colour, 0.5 * p) for p in probability[mask].tolist()]  # as visible as it is likely
        axes.add_collection(LineCollection(list(lines), colors=shades, linewidths=0.5, zorder=1))
    axes.scatter(places[:, 0], places[:, 1], c=y, s=14, cmap="tab10", zorder=2)
    trained = batch.train.cpu()
    axes.scatter(places[trained, 0], places[trained, 1], s=60, facecolors="none", edgecolors="black", zorder=3)
    axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second principal component")
    axes.set_title(f"{len(order):,} most likely edges; red joins two classes; circled nodes are trained on")
    return figure
