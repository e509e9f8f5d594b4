import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import kneighbors_graph

from framework.graphs import sources
from framework.graphs.batch import NodeBatch
from framework.graphs.sources import (
    GraphOptions,
    all_pairs,
    edges_from_adjacency,
    edges_from_pairs,
    knn_pairs,
    random_pairs,
    rbf_edges,
    retain_edges,
)


def points(nodes, inputs=5, seed=0):
    return torch.randn(nodes, inputs, generator=torch.Generator().manual_seed(seed))


def as_set(index):
    pairs = [tuple(pair) for pair in index.T.tolist()]
    assert pairs == sorted(set(pairs)), "pairs must be sorted and unique"
    assert all(i < j for i, j in pairs)
    return set(pairs)


def nearest(x, k, metric):
    """Directed nearest neighbours by the definition."""
    x = x.double()
    if metric == "cosine":
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
    else:
        distance = (x[:, None] - x[None]).norm(dim=2)
    distance.fill_diagonal_(math.inf)
    return {(i, j) for i in range(len(x)) for j in distance[i].topk(k, largest=False).indices.tolist()}


# ---------------------------------------------------------------------------------------------------------------- kNN


@pytest.mark.parametrize("metric", ["cosine", "minkowski"])
@pytest.mark.parametrize(("nodes", "k"), [(2, 1), (17, 1), (40, 5), (40, 39)])
def test_knn_equals_brute_force(metric, nodes, k):
    x = points(nodes)
    near = nearest(x, k, metric)
    assert as_set(knn_pairs(x, k, metric, "union")) == {(min(pair), max(pair)) for pair in near}
    assert as_set(knn_pairs(x, k, metric, "upper")) == {(i, j) for i, j in near if i < j}


@pytest.mark.parametrize("metric", ["cosine", "minkowski"])
def test_upper_is_the_strict_upper_triangle_of_scikit_learns_matrix_and_loses_edges(metric):
    x = points(60)
    matrix = kneighbors_graph(x.double().numpy(), 5, metric=metric, include_self=False).toarray()
    expected = torch.from_numpy(np.triu(matrix, 1)).nonzero().T
    upper = knn_pairs(x, 5, metric, "upper")
    assert torch.equal(upper, expected)
    lost = as_set(knn_pairs(x, 5, metric, "union")) - as_set(upper)
    assert lost
    assert all(matrix[j, i] == 1 and matrix[i, j] == 0 for i, j in lost)


@pytest.mark.parametrize("metric", ["cosine", "minkowski"])
def test_knn_of_sparse_features_is_that_of_dense_ones(metric):
    x = points(50, 8).clamp(min=0.2) - 0.2
    expected = knn_pairs(x, 4, metric)
    assert torch.equal(knn_pairs(x.to_sparse(), 4, metric), expected)
    assert torch.equal(knn_pairs(x.to_sparse_csr(), 4, metric), expected)


@pytest.mark.parametrize("metric", ["cosine", "minkowski"])
def test_equal_and_empty_rows_still_have_k_neighbours_and_no_self_loop(metric):
    index = knn_pairs(torch.zeros(10, 3), 3, metric)
    degree = torch.bincount(index.flatten(), minlength=10)
    assert (degree >= 3).all()
    as_set(index)


@given(st.integers(3, 25), st.data())
@settings(max_examples=25, deadline=None)
def test_every_node_has_at_least_k_neighbours_and_there_are_at_most_nk_edges(nodes, data):
    k = data.draw(st.integers(1, nodes - 1))
    index = knn_pairs(points(nodes, seed=nodes), k, data.draw(st.sampled_from(["cosine", "minkowski"])))
    as_set(index)
    assert (torch.bincount(index.flatten(), minlength=nodes) >= k).all()
    assert index.shape[1] <= nodes * k


def test_knn_graph_of_the_official_size_is_built_in_blocks(monkeypatch):
    import sklearn

    seen = []
    original = sklearn.config_context
    monkeypatch.setattr(sklearn, "config_context", lambda **options: seen.append(options) or original(**options))
    knn_pairs(points(2000, 8), 5)
    assert seen == [{"working_memory": 128}]


# ---------------------------------------------------------------------------------------------------------- retention


@pytest.mark.parametrize("retained", [25, 50, 75])
def test_each_edge_is_retained_with_the_stated_percentage(retained):
    index, weight = all_pairs(250, "test"), torch.rand(250 * 249 // 2)
    kept, kept_weight = retain_edges(index, weight, 250, retained, seed=3)
    n, p = index.shape[1], retained / 100
    assert abs(kept.shape[1] - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert as_set(kept) <= as_set(index)
    lookup = dict(zip(map(tuple, index.T.tolist()), weight.tolist()))
    assert [lookup[tuple(pair)] for pair in kept.T.tolist()] == kept_weight.tolist()


def test_retention_is_per_edge_and_by_seed():
    index, weight = all_pairs(12, "test"), torch.ones(66)
    draws = torch.zeros(66)
    for seed in range(600):
        kept, _ = retain_edges(index, weight, 12, 25, seed)
        draws += torch.tensor([pair in as_set(kept) for pair in map(tuple, index.T.tolist())])
    assert ((draws - 150).abs() < 4.5 * math.sqrt(600 * 0.25 * 0.75)).all()  # 66 frequencies at once: 4.5 sigma
    again = [retain_edges(index, weight, 12, 50, 7)[0] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], retain_edges(index, weight, 12, 50, 8)[0])


def test_all_edges_are_retained_at_100_percent():
    index, weight = all_pairs(9, "test"), torch.rand(36)
    kept = retain_edges(index, weight, 9, 100, 0)
    assert torch.equal(kept[0], index)
    assert torch.equal(kept[1], weight)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_enforce_connected_gives_lonely_nodes_one_original_edge_and_nothing_more(seed):
    index = edges_from_pairs(random_pairs(30, 0.1, seed=1), 30)[0]
    weight = torch.ones(index.shape[1])
    plain = as_set(retain_edges(index, weight, 30, 10, seed)[0])
    mended = as_set(retain_edges(index, weight, 30, 10, seed, enforce_connected=True)[0])
    touched = {node for pair in plain for node in pair}
    assert plain <= mended <= as_set(index)
    assert {node for pair in mended for node in pair} == set(index.flatten().tolist())
    back = mended - plain
    assert all(i not in touched or j not in touched for i, j in back)
    assert len(back) <= len(set(index.flatten().tolist()) - touched)


# ------------------------------------------------------------------------------------------------------------- random


@given(st.integers(2, 40), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_random_pairs_are_pairs(nodes, probability, seed):
    as_set(random_pairs(nodes, probability, seed))


def test_random_graph_has_the_expected_number_of_edges_and_every_pair_alike():
    nodes, probability, trials = 12, 0.3, 800
    counts = torch.zeros(nodes, nodes)
    for seed in range(trials):
        i, j = random_pairs(nodes, probability, seed)
        counts[i, j] += 1
    frequencies = counts[torch.triu(torch.ones(nodes, nodes), 1).bool()]
    sigma = math.sqrt(trials * probability * (1 - probability))
    assert ((frequencies - trials * probability).abs() < 4.5 * sigma).all()
    assert counts.tril().sum() == 0


def test_sparse_source_has_the_expected_degree_at_20000_nodes():
    index, weight, candidates = GraphOptions(source="sparse", degree=10).build(torch.zeros(20_000, 1), seed=2)
    assert abs(index.shape[1] - 100_000) < 4 * math.sqrt(100_000)
    assert weight.unique().tolist() == [1]
    assert candidates is None


def test_probability_one_is_the_complete_graph_and_zero_the_empty_one():
    assert torch.equal(random_pairs(30, 1.0, 0), all_pairs(30, "test"))
    assert random_pairs(30, 0.0, 0).shape == (2, 0)
    assert random_pairs(30, 1e-300, 0).shape == (2, 0)


# ------------------------------------------------------------------------------------------------------------- kernel


@pytest.mark.parametrize("gamma", [None, 0.3])
@pytest.mark.parametrize("sparse", [False, True])
def test_rbf_weights_are_scikit_learns(gamma, sparse):
    x = points(20).abs()
    index, weight = rbf_edges(x.to_sparse() if sparse else x, gamma)
    scale = 1 / (5 * x.double().numpy().var()) if gamma is None else gamma
    kernel = rbf_kernel(x.double().numpy(), gamma=scale)
    assert torch.equal(index, torch.triu_indices(20, 20, 1))
    np.testing.assert_allclose(weight, kernel[index[0], index[1]], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- given graphs


def test_edges_of_a_list_are_undirected_unique_and_without_self_loops():
    pairs = torch.tensor([[3, 1, 1, 2, 0, 3], [1, 3, 3, 2, 4, 1]])
    index, weight = edges_from_pairs(pairs, 5)
    assert index.tolist() == [[0, 1], [4, 3]]
    assert weight.tolist() == [1, 1]


@given(st.integers(2, 8), st.data())
@settings(max_examples=40, deadline=None)
def test_adjacency_goes_to_edges_and_back(nodes, data):
    upper = np.zeros((nodes, nodes))
    rows, cols = np.triu_indices(nodes, 1)
    upper[rows, cols] = data.draw(
        st.lists(st.sampled_from([0, 0.25, 1]), min_size=len(rows), max_size=len(rows)).map(np.array)
    )
    matrix = upper + upper.T
    for form in (matrix, csr_array(matrix), torch.from_numpy(matrix)):
        index, weight = edges_from_adjacency(form)
        back = np.zeros_like(matrix)
        back[index[0], index[1]] = weight
        np.testing.assert_array_equal(back + back.T, matrix)
        as_set(index)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: edges_from_adjacency(np.array([[0, 1], [0, 0]])), ["symmetric", "1 from 0 to 1", "0 back"]),
        (lambda: edges_from_adjacency(np.array([[0, 0.2], [0.3, 0]])), ["symmetric", "0.2", "0.3"]),
        (lambda: edges_from_adjacency(np.eye(2)), ["self-loops", "node 0"]),
        (lambda: edges_from_adjacency(np.zeros((2, 3))), ["square", "(2, 3)"]),
        (lambda: edges_from_adjacency(np.array([[0, 2], [2, 0]])), ["[0, 1]", "2"]),
        (lambda: edges_from_adjacency(np.array([[0, np.nan], [np.nan, 0]])), ["[0, 1]", "nan"]),
        (lambda: edges_from_pairs(torch.tensor([[0], [5]]), 5), ["0 to 4", "5"]),
        (lambda: edges_from_pairs(torch.tensor([[-1], [2]]), 5), ["0 to 4", "-1"]),
        (
            lambda: edges_from_pairs(torch.tensor([[0, 1], [1, 0]]), 5, torch.tensor([0.5, 0.6])),
            ["symmetric", "0 and 1"],
        ),
        (lambda: edges_from_pairs(torch.tensor([[0], [1]]), 5, torch.tensor([1.5])), ["[0, 1]", "1.5"]),
        (lambda: knn_pairs(points(5), 5), ["graph.k", "below the number of nodes (5)", "got 5"]),
        (lambda: knn_pairs(points(5), 0), ["graph.k", "got 0"]),
        (lambda: GraphOptions(k=30).build(points(10)), ["graph.k", "got 30"]),
        (lambda: GraphOptions(k=0), ["graph.k", "0"]),
        (lambda: GraphOptions(source="nearest"), ["graph.source", "knn", "nearest"]),
        (lambda: GraphOptions(metric="manhattan"), ["graph.metric", "cosine", "manhattan"]),
        (lambda: GraphOptions(symmetric="lower"), ["graph.symmetric", "lower"]),
        (lambda: GraphOptions(support="sparse"), ["graph.support", "sparse"]),
        (lambda: GraphOptions(retained=0), ["graph.retained", "(0, 100]", "0"]),
        (lambda: GraphOptions(retained=100.5), ["graph.retained", "100.5"]),
        (lambda: GraphOptions(retained=float("nan")), ["graph.retained", "nan"]),
        (lambda: GraphOptions(source="knn", retained=50), ["graph.retained", "given", "knn"]),
        (lambda: GraphOptions(retained=50).build(points(20)), ["graph.retained", "given"]),
        (lambda: GraphOptions(source="given").build(points(20)), ["graph.source", "no graph"]),
        (lambda: GraphOptions(base_probability=1.1), ["graph.base_probability", "1.1"]),
        (lambda: GraphOptions(density=-0.1), ["graph.density", "-0.1"]),
        (lambda: GraphOptions(degree=-1), ["graph.degree", "-1"]),
        (lambda: GraphOptions(source="sparse", degree=20).build(points(20)), ["graph.degree", "19", "20"]),
        (lambda: GraphOptions(gamma=0), ["graph.gamma", "0"]),
        (lambda: GraphOptions(support="knn", candidates=0), ["graph.candidates", "0"]),
        (lambda: GraphOptions(source="complete").build(torch.zeros(20_000, 1)), ["complete", "199,990,000", "knn"]),
        (lambda: GraphOptions(source="dense").build(torch.zeros(20_000, 1)), ["20,000 nodes", "knn"]),
    ],
)
def test_bad_options_and_graphs_are_named_in_one_line(call, words):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- options


def test_auto_takes_the_given_graph_else_neighbours():
    x, edges = points(20), edges_from_pairs(torch.tensor([[0, 1], [5, 6]]), 20)
    assert torch.equal(GraphOptions().build(x, edges).edge_index, edges[0])
    assert torch.equal(GraphOptions(k=3).build(x).edge_index, knn_pairs(x, 3))
    assert torch.equal(GraphOptions(source="knn", k=3).build(x, edges).edge_index, knn_pairs(x, 3))


SOURCES = ["given", "knn", "sparse", "dense", "complete", "rbf", "empty"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("base", [0.0, 0.3])
@pytest.mark.parametrize("support", ["dense", "knn"])
def test_every_source_makes_a_sound_batch(source, base, support):
    nodes = 24
    x, edges = points(nodes), edges_from_pairs(random_pairs(nodes, 0.2, 1), nodes)
    options = GraphOptions(source=source, k=3, degree=4, base_probability=base, support=support, candidates=6)
    graph = options.build(x, edges, seed=4)
    masks = torch.arange(nodes)[None] % 4 == torch.arange(4)[:, None]
    NodeBatch(x, torch.arange(nodes) % 2, *graph, *masks).check()
    again = options.build(x, edges, seed=4)
    assert torch.equal(graph.edge_index, again.edge_index)
    initial = GraphOptions(source=source, k=3, degree=4).build(x, edges, seed=4)
    if support == "knn":  # candidates are the neighbours united with the initial edges
        near = as_set(knn_pairs(x, 6))
        assert as_set(graph.candidates) == near | as_set(initial.edge_index)
    else:
        assert graph.candidates is None
    if base == 0:
        assert torch.equal(graph.edge_index, initial.edge_index)
    else:  # every learnable pair gets the base probability on top of its own, capped at 1
        learnable = graph.candidates if support == "knn" else all_pairs(nodes, "test")
        dense = torch.zeros(nodes, nodes)
        dense[initial.edge_index[0], initial.edge_index[1]] = initial.edge_weight
        assert torch.equal(graph.edge_index, learnable)
        expected = (dense[learnable[0], learnable[1]] + 0.3).clamp(max=1)
        torch.testing.assert_close(graph.edge_weight, expected)


def test_candidates_are_capped_at_the_other_nodes():
    graph = GraphOptions(k=2, support="knn", candidates=50).build(points(8))
    assert torch.equal(graph.candidates, all_pairs(8, "test"))


def test_candidates_of_many_nodes_are_never_all_pairs(monkeypatch):
    monkeypatch.setattr(sources, "MAX_PAIRS", 100_000)  # 3,000 nodes have 4.5 million pairs
    graph = GraphOptions(k=5, support="knn", candidates=20, base_probability=0.01).build(points(3000, 3))
    assert graph.candidates.shape[1] <= 60_000
    assert graph.edge_index.shape == graph.candidates.shape
