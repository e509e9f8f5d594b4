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
    assert_close(Graph(nodes, edges, dtype=DOUBLE, dense=dense).propagate(z), normalised(adjacency) @ z)
    weighted = torch.zeros(nodes, nodes, dtype=DOUBLE)
    weighted[edges[0], edges[1]] = weight
    ours = Graph(nodes, edges, weight, dtype=DOUBLE, dense=dense).propagate(z)
    assert_close(ours, normalised(weighted + weighted.T) @ z)


def test_equals_torch_geometrics_convolution():
    gcn_conv = pytest.importorskip("torch_geometric.nn").GCNConv
    edges, _, generator = random_graph(40, 7, 0.1)
    both = torch.cat([edges, edges.flip(0)], dim=1)
    x = torch.randn(40, 9, generator=generator)
    first, second = gcn_conv(9, 16, bias=False), gcn_conv(16, 4, bias=False)
    with torch.no_grad():
        expected = second(first(x, both).relu(), both)
        graph = Graph(40, edges, dense=True)
        ours = graph.propagate(graph.propagate(x @ first.lin.weight.T).relu() @ second.lin.weight.T)
    assert_close(ours, expected, rtol=0, atol=1e-5)


def scalar(propagate, z, weight, direction):
    """A function of the graph whose second-order part matters: <direction, d loss / d weight>."""
    loss = propagate(propagate(z @ weight).tanh() @ weight.T).sin().sum()
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    return (direction * grad).sum()


@pytest.mark.parametrize("dense", [True, False])
def test_factors_are_autograds_derivative_with_respect_to_the_adjacency(dense):
    edges, adjacency, generator = random_graph(9, 1, 0.4)
    z = torch.randn(9, 4, generator=generator, dtype=DOUBLE)
    weight = torch.randn(4, 4, generator=generator, dtype=DOUBLE, requires_grad=True)
    direction = torch.randn(4, 4, generator=generator, dtype=DOUBLE)
    adjacency.requires_grad_()
    plain = scalar(lambda h: normalised(adjacency) @ h, z, weight, direction)
    expected, expected_weight = torch.autograd.grad(plain, (adjacency, weight))
    graph = Graph(9, edges, dtype=DOUBLE, dense=dense)
    value = scalar(graph.propagate, z, weight, direction)
    with graph.noting():
        (d_weight,) = torch.autograd.grad(value, weight)
        left, right = graph.factors()
    off_diagonal = ~torch.eye(9, dtype=torch.bool)  # the self loop is a constant of the model
    assert_close((left @ right.T)[off_diagonal], expected[off_diagonal])
    assert_close(d_weight, expected_weight)


def test_nothing_is_noted_outside_a_backward_pass():
    graph = Graph(4, torch.tensor([[0, 1], [1, 3]]))
    z = torch.ones(4, 1, requires_grad=True)
    graph.propagate(z).sum().backward()
    with graph.noting(), pytest.raises(RuntimeError, match="no backward pass through propagate was noted"):
        graph.factors()
