"""Where the initial graph comes from: given, neighbours, random, kernel; and which pairs may be learned.

:class:`GraphOptions` is the one thing a configuration touches::

    graph: {source: knn, k: 10, metric: cosine}                    # neighbours in feature space, every pair learnable
    graph: {source: given, retained: 25}                           # keep a quarter of the known edges
    graph: {source: knn, k: 10, support: knn, candidates: 50}      # 20,000 nodes: learn only 50 candidates per node

The functions below do the work and can be used alone. All of them return pairs ``i < j`` in lexicographic order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from framework.graphs.batch import check_probability

Source = Literal["auto", "given", "knn", "sparse", "dense", "complete", "rbf", "empty"]
Metric = Literal["cosine", "minkowski"]
MAX_PAIRS = 2**26  # 67 million pairs, 1.3 GB of indices and weights: about 11,500 nodes with every pair listed


class InitialGraph(NamedTuple):
    """A weighted graph and the pairs whose probability may be learned; the graph part of a ``NodeBatch``.

    Attributes:
        edge_index: Edges ``i < j``, shape ``(2, edges)``, int64.
        edge_weight: Their probabilities, shape ``(edges,)``, float32 in [0, 1].
        candidates: Learnable pairs ``i < j``, shape ``(2, pairs)``, int64; None means every pair.
    """

    edge_index: Tensor
    edge_weight: Tensor
    candidates: Tensor | None


@dataclass(frozen=True)
class GraphOptions:
    """The initial graph of a node classifier. Options of another source than the one chosen have no effect.

    Attributes:
        source: ``given``: the graph of the data set; ``knn``: nearest neighbours of the features; ``sparse``: random,
            with ``degree`` expected neighbours; ``dense``: random, each pair with probability ``density``;
            ``complete``: every pair; ``rbf``: every pair, weighted by a Gaussian kernel of the features; ``empty``:
            none; ``auto``: given if the data set has a graph, else knn. All but ``given`` discard a given graph.
        retained: Percentage of the given edges that is kept, in (0, 100]; each is kept or dropped independently.
        enforce_connected: After dropping edges, give one of its edges back to each node that lost them all.
        k: Number of nearest neighbours, at least 1 and below the number of nodes.
        metric: Distance of the neighbours: ``cosine``, or ``minkowski`` (Euclidean).
        symmetric: ``union``: neighbours are joined if either is among the nearest of the other; ``upper``: as the
            official code of LDS does it, only if ``j > i`` is among the nearest of ``i``, which loses the edges where
            only ``i`` is among the nearest of ``j``.
        degree: Expected number of neighbours in the sparse random graph.
        density: Probability of each pair in the dense random graph, in [0, 1].
        gamma: Of the kernel ``exp(-gamma * distance**2)``, positive; None means one over (number of features times
            their variance), as scikit-learn's ``scale``.
        base_probability: Added to the probability of every learnable pair (then capped at 1), in [0, 1].
        support: Learnable pairs: ``dense``: all of them; ``knn``: ``candidates`` nearest neighbours of each node by
            ``metric`` (union), and all initial edges.
        candidates: Neighbours per node of ``support: knn``; capped at the number of other nodes.

    Raises:
        ValueError: If an option is out of range, or ``retained`` is below 100 with a source other than the given graph.
    """

    source: Source = "auto"
    retained: float = 100.0
    enforce_connected: bool = False
    k: int = 10
    metric: Metric = "cosine"
    symmetric: Literal["union", "upper"] = "union"
    degree: float = 10.0
    density: float = 0.5
    gamma: float | None = None
    base_probability: float = 0.0
    support: Literal["dense", "knn"] = "dense"
    candidates: int = 50

    def __post_init__(self) -> None:
        _check_option("graph.source", self.source, Source)
        _check_option("graph.metric", self.metric, Metric)
        _check_option("graph.symmetric", self.symmetric, Literal["union", "upper"])
        _check_option("graph.support", self.support, Literal["dense", "knn"])
        if not 0 < self.retained <= 100:
            raise ValueError(f"graph.retained is the percentage of edges kept, in (0, 100], got {self.retained}")
        if self.retained < 100 and self.source not in {"auto", "given"}:
            raise ValueError(f"graph.retained={self.retained} needs graph.source: given, got {self.source}")
        for field in ("k", "candidates"):
            if getattr(self, field) < 1:
                raise ValueError(f"graph.{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.degree < float("inf"):
            raise ValueError(f"graph.degree must be a number from 0, got {self.degree}")
        for field in ("density", "base_probability"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"graph.{field} must lie in [0, 1], got {getattr(self, field)}")
        if self.gamma is not None and not 0 < self.gamma < float("inf"):
            raise ValueError(f"graph.gamma must be positive, got {self.gamma}")

    def build(self, x: Tensor, given: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> InitialGraph:
        """The initial graph.

        Args:
            x: Node features, shape ``(nodes, inputs)``, dense or sparse.
            given: Edges ``i < j`` and weights of the data set's own graph, if it has one.
            seed: Seed of everything random here.

        Returns:
            Edges, weights and learnable pairs.

        Raises:
            ValueError: If the given graph is asked for and there is none, ``k`` is not below the number of nodes, or
                every pair of too many nodes would have to be listed.
        """
        nodes = x.shape[0]
        source = self.source if self.source != "auto" else ("knn" if given is None else "given")
        index, weight = self._initial(source, x, given, seed)
        candidates = None
        if self.support == "knn":
            near = knn_pairs(x, min(self.candidates, nodes - 1), self.metric, "union", field="graph.candidates")
            candidates = _unite(nodes, near, index)
        if self.base_probability > 0:
            pairs = (
                all_pairs(nodes, "graph.base_probability with graph.support: dense")
                if candidates is None
                else candidates
            )
            raised = torch.full((pairs.shape[1],), self.base_probability)
            raised[torch.searchsorted(_keys(pairs, nodes), _keys(index, nodes))] += weight
            index, weight = pairs, raised.clamp_(max=1.0)
        return InitialGraph(index, weight, candidates)

    def _initial(self, source: str, x: Tensor, given: tuple[Tensor, Tensor] | None, seed: int) -> tuple[Tensor, Tensor]:
        """Edges and weights before the base probability."""
        nodes = x.shape[0]
        if source == "given":
            if given is None:
                raise ValueError("graph.source is given, but the data have no graph; choose knn or another source")
            return retain_edges(*given, nodes, self.retained, seed, self.enforce_connected)
        if self.retained < 100:
            raise ValueError(f"graph.retained={self.retained} needs a given graph, and the data have none")
        if source == "rbf":
            return rbf_edges(x, self.gamma)
        if source == "knn":
            index = knn_pairs(x, self.k, self.metric, self.symmetric)
        elif source == "sparse":
            if self.degree > nodes - 1:
                raise ValueError(f"graph.degree must be at most {nodes - 1} with {nodes} nodes, got {self.degree}")
            index = random_pairs(nodes, self.degree / max(nodes - 1, 1), seed)
        elif source == "dense":
            index = random_pairs(nodes, self.density, seed)
        elif source == "complete":
            index = all_pairs(nodes, "graph.source: complete")
        else:
            index = torch.empty(2, 0, dtype=torch.long)
        return index, torch.ones(index.shape[1])


def edges_from_pairs(pairs: Tensor, nodes: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Undirected edges from a list in any order and direction; self-loops and repeats are dropped.

    Args:
        pairs: Node numbers, shape ``(2, entries)``, int64.
        nodes: Number of nodes.
        weight: Probability of each entry, shape ``(entries,)``, in [0, 1]; None means 1.

    Returns:
        Edges ``i < j``, shape ``(2, edges)``, and their weights, shape ``(edges,)``, float32.

    Raises:
        ValueError: If a node number or weight is out of range, or entries for the same pair differ in weight.
    """
    if pairs.numel() and (int(pairs.min()) < 0 or int(pairs.max()) >= nodes):
        wrong = int(pairs.min()) if int(pairs.min()) < 0 else int(pairs.max())
        raise ValueError(f"edges must name nodes 0 to {nodes - 1}, got {wrong}")
    weight = torch.ones(pairs.shape[1]) if weight is None else weight.to(torch.float32)
    check_probability("edge weights", weight)
    proper = pairs[0] != pairs[1]
    pairs, weight = pairs[:, proper].sort(dim=0).values, weight[proper]
    keys, first = _keys(pairs, nodes).unique(return_inverse=True)
    merged = torch.empty(len(keys)).scatter_(0, first, weight)
    differs = merged[first] != weight
    if bool(differs.any()):
        i, j = pairs[:, differs][:, 0].tolist()
        raise ValueError(f"the graph must be symmetric, got two different weights for nodes {i} and {j}")
    return _pairs(keys, nodes), merged


def edges_from_adjacency(adjacency: Any) -> tuple[Tensor, Tensor]:
    """Undirected edges from a symmetric adjacency matrix with an empty diagonal.

    Args:
        adjacency: Probabilities in [0, 1], shape ``(nodes, nodes)``: tensor, array or SciPy sparse matrix.

    Returns:
        Edges ``i < j``, shape ``(2, edges)``, and their weights, shape ``(edges,)``, float32.

    Raises:
        ValueError: If the matrix is not square, not symmetric, has self-loops, or values outside [0, 1].
    """
    import numpy as np
    from scipy.sparse import coo_array, csr_array

    if isinstance(adjacency, Tensor):
        adjacency = adjacency.to_dense().numpy()
    if len(adjacency.shape) != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"the adjacency matrix must be square, got shape {tuple(adjacency.shape)}")
    matrix = csr_array(adjacency)
    check_probability("adjacency values", torch.from_numpy(np.asarray(matrix.data, dtype=np.float64)))
    if matrix.diagonal().any():
        raise ValueError(f"the graph must have no self-loops, got one at node {int(matrix.diagonal().argmax())}")
    difference = coo_array(matrix - matrix.T)
    difference.eliminate_zeros()
    if difference.nnz:
        i, j = int(difference.coords[0][0]), int(difference.coords[1][0])
        raise ValueError(f"the graph must be symmetric, got {matrix[i, j]:g} from {i} to {j} but {matrix[j, i]:g} back")
    entries = coo_array(matrix)
    entries.eliminate_zeros()
    pairs = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    return edges_from_pairs(pairs, matrix.shape[0], torch.from_numpy(entries.data.astype(np.float32)))


def retain_edges(
    edge_index: Tensor, edge_weight: Tensor, nodes: int, retained: float, seed: int, enforce_connected: bool = False
) -> tuple[Tensor, Tensor]:
    """Keep each edge with probability ``retained / 100``, independently.

    Args:
        edge_index: Edges ``i < j``, shape ``(2, edges)``.
        edge_weight: Their weights, shape ``(edges,)``.
        nodes: Number of nodes.
        retained: Percentage kept (not deleted), in (0, 100].
        seed: Seed of the choice.
        enforce_connected: Give each node that lost all its edges one of them back, chosen at random.

    Returns:
        The edges kept and their weights, in the order given.
    """
    if retained == 100:
        return edge_index, edge_weight
    random = torch.Generator().manual_seed(seed)
    edges = edge_index.shape[1]
    kept = torch.rand(edges, generator=random, dtype=torch.float64) < retained / 100
    if enforce_connected:
        order = torch.randperm(edges, generator=random).tolist()
        left, right = edge_index.tolist()
        connected = torch.zeros(nodes, dtype=torch.bool)
        connected[edge_index[:, kept].flatten()] = True
        alone = ~connected
        for edge in order:  # the first edge in random order that touches a node left alone comes back
            if alone[left[edge]] or alone[right[edge]]:
                kept[edge] = True
                alone[left[edge]] = alone[right[edge]] = False
    return edge_index[:, kept], edge_weight[kept]


def knn_pairs(x: Tensor, k: int, metric: str = "cosine", symmetric: str = "union", field: str = "graph.k") -> Tensor:
    """Pairs of nearest neighbours; memory is a block of distances, never nodes times nodes.

    Args:
        x: Features, shape ``(nodes, inputs)``, dense or sparse, finite.
        k: Neighbours per node, in 1 ... nodes - 1; a node is no neighbour of itself.
        metric: ``cosine`` or ``minkowski``. Under ``cosine`` a node without features is at distance 1 from all others.
        symmetric: ``union`` or ``upper``, see :class:`GraphOptions`.
        field: Name of the option ``k`` came from, for the message.

    Returns:
        Pairs ``i < j``, shape ``(2, pairs)``, int64.

    Raises:
        ValueError: If ``k`` is not below the number of nodes.
    """
    from sklearn import config_context
    from sklearn.neighbors import kneighbors_graph

    nodes = x.shape[0]
    if not 1 <= k < nodes:
        raise ValueError(f"{field} must be from 1 to {nodes - 1}, below the number of nodes ({nodes}), got {k}")
    with config_context(working_memory=128):  # MiB of distances at a time
        near = kneighbors_graph(as_matrix(x), k, metric=metric, include_self=False).tocoo()
    i, j = torch.from_numpy(near.row).long(), torch.from_numpy(near.col).long()
    if symmetric == "upper":
        i, j = i[i < j], j[i < j]
    return _unite(nodes, torch.stack([torch.minimum(i, j), torch.maximum(i, j)]))


def random_pairs(nodes: int, probability: float, seed: int) -> Tensor:
    """Erdős-Rényi graph: each pair with the same probability, independently; work in proportion to the edges.

    Args:
        nodes: Number of nodes.
        probability: Probability of each pair, in [0, 1].
        seed: Seed of the draw.

    Returns:
        Pairs ``i < j``, shape ``(2, pairs)``, int64.
    """
    import numpy as np

    if probability <= 0 or nodes < 2:
        return torch.empty(2, 0, dtype=torch.long)
    total = nodes * (nodes - 1) // 2
    _check_pairs_fit(round(total * probability), nodes, "a random graph of this density")
    # Gaps between successes are geometric: jump from edge to edge instead of tossing a coin per pair.
    random, chunks, last = np.random.default_rng(seed), [], -1
    while last < total:
        gaps = random.geometric(probability, size=max(16, int(1.1 * probability * (total - last - 1))))
        chunks.append(last + np.cumsum(np.minimum(gaps, total + 1)))  # no overflow for a tiny probability
        last = int(chunks[-1][-1])
    ranks = np.concatenate(chunks)
    return _pairs_of_ranks(torch.from_numpy(ranks[ranks < total]), nodes)


def all_pairs(nodes: int, what: str) -> Tensor:
    """Every pair ``i < j``, shape ``(2, nodes * (nodes - 1) / 2)``, int64.

    Args:
        nodes: Number of nodes.
        what: What asks for it, for the message.

    Raises:
        ValueError: If there are more than ``MAX_PAIRS``.
    """
    _check_pairs_fit(nodes * (nodes - 1) // 2, nodes, what)
    return torch.triu_indices(nodes, nodes, offset=1)


def rbf_edges(x: Tensor, gamma: float | None = None) -> tuple[Tensor, Tensor]:
    """Every pair, weighted by ``exp(-gamma * distance**2)``.

    Args:
        x: Features, shape ``(nodes, inputs)``.
        gamma: Positive; None means one over (number of features times their variance).

    Returns:
        Pairs ``i < j``, shape ``(2, pairs)``, and weights in [0, 1], shape ``(pairs,)``.
    """
    from sklearn.metrics.pairwise import rbf_kernel

    index = all_pairs(x.shape[0], "graph.source: rbf")
    matrix = as_matrix(x)
    if gamma is None:
        variance = (
            float(matrix.power(2).mean() - matrix.mean() ** 2) if x.is_sparse or x.is_sparse_csr else matrix.var()
        )
        gamma = 1.0 / (matrix.shape[1] * variance) if variance > 0 else 1.0
    kernel = torch.from_numpy(rbf_kernel(matrix, gamma=gamma))
    return index, kernel[index[0], index[1]].to(torch.float32).clamp_(0, 1)


def as_matrix(x: Tensor) -> Any:
    """Features for scikit-learn: a float64 array, or a SciPy CSR matrix if ``x`` is sparse."""
    import numpy as np

    if x.layout == torch.strided:
        return x.detach().cpu().numpy().astype(np.float64)
    from scipy.sparse import csr_matrix

    coo = (x if x.is_sparse else x.to_sparse_coo()).detach().cpu().coalesce()
    return csr_matrix((coo.values().numpy().astype(np.float64), coo.indices().numpy()), shape=tuple(x.shape))


def _keys(pairs: Tensor, nodes: int) -> Tensor:
    """One number per pair; their order is the lexicographic order of the pairs."""
    return pairs[0] * nodes + pairs[1]


def _pairs(keys: Tensor, nodes: int) -> Tensor:
    return torch.stack([keys // nodes, keys % nodes])


def _unite(nodes: int, *lists: Tensor) -> Tensor:
    """The union of lists of pairs, sorted, each pair once."""
    return _pairs(torch.cat([_keys(pairs, nodes) for pairs in lists]).unique(), nodes)


def _pairs_of_ranks(ranks: Tensor, nodes: int) -> Tensor:
    """Pairs at the given places of the lexicographic list of all pairs."""
    rows = torch.arange(nodes)
    starts = rows * (2 * nodes - rows - 1) // 2  # rank of the first pair (i, i + 1)
    i = torch.searchsorted(starts, ranks, right=True) - 1
    i = i.clamp_(max=nodes - 2)  # the last row has no pair and starts where the list ends
    return torch.stack([i, ranks - starts[i] + i + 1])


def _check_pairs_fit(pairs: int, nodes: int, what: str) -> None:
    if pairs > MAX_PAIRS:
        raise ValueError(
            f"{what} would list {pairs:,} pairs of {nodes:,} nodes, at most {MAX_PAIRS:,} are allowed; "
            "use graph.source: knn or sparse, with graph.support: knn"
        )


def _check_option(field: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{field} must be one of {', '.join(get_args(kind))}, got {value}")
