import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from modules.lds.propagation import Graph

DOUBLE = torch.float64


def random_graph(nodes, seed, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(nodes, nodes, generator=generator) < share).triu(1)
    return upper.nonzero().T, (upper + upper.T).to(DOUBLE), generator


def normalised(adjacency):
    adjacency = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
    r = adjacency.sum(1).rsqrt()
    return r[:, None] * adjacency * r


@pytest.mark.parametrize("dense", [True, False])
@given(seed=st.integers(0, 1000), nodes=st.integers(1, 12), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_operator_is_the_normalised_adjacency(dense, seed, nodes, share):
    edges, adjacency, generator = random_graph(nodes, seed, share)
    weight = torch.rand(edges.shape[1], generator=generator, dtype=DOUBLE)
    z = torch.randn(nodes, 3, generator=generator, dtype=DOUBLE)
    assert_close(Graph(nodes, edges, dtype=DOUBLE, dense=dense).operator @ z, normalised(adjacency) @ z)
    weighted = torch.zeros(nodes, nodes, dtype=DOUBLE)
    weighted[edges[0], edges[1]] = weight
    ours = Graph(nodes, edges, weight, dtype=DOUBLE, dense=dense).operator @ z
    assert_close(ours, normalised(weighted + weighted.T) @ z)


def test_equals_torch_geometrics_convolution():
    gcn_conv = pytest.importorskip("torch_geometric.nn").GCNConv
    edges, _, generator = random_graph(40, 7, 0.1)
    both = torch.cat([edges, edges.flip(0)], dim=1)
    x = torch.randn(40, 9, generator=generator)
    first, second = gcn_conv(9, 16, bias=False), gcn_conv(16, 4, bias=False)
    with torch.no_grad():
        expected = second(first(x, both).relu(), both)
        p = Graph(40, edges, dense=True).operator
        ours = p @ ((p @ (x @ first.lin.weight.T)).relu() @ second.lin.weight.T)
    assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_edge_factors_are_autograds_derivative_with_respect_to_the_adjacency(dense):
    edges, adjacency, generator = random_graph(9, 1, 0.4)
    g, z = torch.randn(2, 9, 4, generator=generator, dtype=DOUBLE)
    adjacency.requires_grad_()
    (expected,) = torch.autograd.grad((g * (normalised(adjacency) @ z)).sum(), adjacency)
    graph = Graph(9, edges, dtype=DOUBLE, dense=dense)
    left, right = graph.edge_factors(g, z, graph.operator @ z, graph.operator @ g)
    off_diagonal = ~torch.eye(9, dtype=torch.bool)  # the self loop is a constant of the model
    assert_close((left @ right.T)[off_diagonal], expected[off_diagonal])


def test_from_upper_is_the_same_graph():
    edges, adjacency, _ = random_graph(11, 4)
    graph = Graph.from_upper(adjacency.triu(1))
    assert_close(graph.operator, Graph(11, edges, dtype=DOUBLE, dense=True).operator)
