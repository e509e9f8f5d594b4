"""The written-out derivatives of the network against autograd through a plain one."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from modules.lds.gcn import GCN, Features, GCNSample, NodeObjective
from modules.lds.propagation import Graph

DOUBLE = torch.float64
OFF_DIAGONAL = ~torch.eye(14, dtype=torch.bool)


@pytest.fixture(params=["dense", "sparse"])
def case(request):
    """A small problem, and its loss by autograd as a function of weights and adjacency."""
    generator = torch.Generator().manual_seed(2)
    upper = (torch.rand(14, 14, generator=generator) < 0.3).to(DOUBLE).triu(1)
    x = torch.randn(14, 5, generator=generator, dtype=DOUBLE)
    y = torch.randint(3, (14,), generator=generator)
    nodes = torch.tensor([0, 3, 4, 11])
    network = GCN(5, 3, hidden=6, weight_decay=0.3)
    mask = network.dropout_mask(14, generator, DOUBLE)
    w = network.init(generator, DOUBLE)
    collected = []
    sparse = request.param == "sparse"
    features = Features(x.to_sparse_csr() if sparse else x)
    objective = NodeObjective(network, features, y, nodes, penalty=True, collect=collected.append)
    graph = Graph(14, upper.nonzero().T, dtype=DOUBLE, dense=not sparse)

    def loss(w, adjacency):
        adjacency = adjacency + torch.eye(14, dtype=DOUBLE)
        r = adjacency.sum(1).rsqrt()
        p = r[:, None] * adjacency * r
        w0, w1 = network.weights(w)
        logits = p @ ((p @ x @ w0).relu() * mask @ w1)
        return cross_entropy(logits[nodes], y[nodes]) + 0.15 * w0.square().sum()

    return objective, GCNSample(graph, mask), w, upper + upper.T, loss, collected


def test_gradient(case):
    objective, sample, w, adjacency, loss, collected = case
    leaf = w.clone().requires_grad_()
    value = loss(leaf, adjacency)
    ours, grad = objective.gradient(w, sample)
    assert_close(ours, value.detach())
    assert_close(grad, torch.autograd.grad(value, leaf)[0])
    assert not collected


def test_pull(case):
    objective, sample, w, adjacency, loss, collected = case
    leaf, graph = w.clone().requires_grad_(), adjacency.clone().requires_grad_()
    d_w, d_graph = torch.autograd.grad(loss(leaf, graph), (leaf, graph))
    assert_close(objective.linearize(w, sample).pull(), d_w)
    (factors,) = collected
    assert_close((factors.left @ factors.right.T)[OFF_DIAGONAL], d_graph[OFF_DIAGONAL])


def test_pull_grad_is_the_hessian_product_and_its_part_in_every_single_edge(case):
    """Both directions of an edge are compared one by one: their sum alone would hide a transposed factor."""
    objective, sample, w, adjacency, loss, collected = case
    leaf, graph = w.clone().requires_grad_(), adjacency.clone().requires_grad_()
    direction = torch.randn(len(w), generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    (grad,) = torch.autograd.grad(loss(leaf, graph), leaf, create_graph=True)
    d_w, d_graph = torch.autograd.grad(direction @ grad, (leaf, graph))
    assert_close(objective.linearize(w, sample).pull_grad(direction), d_w)
    (factors,) = collected
    assert_close((factors.left @ factors.right.T)[OFF_DIAGONAL], d_graph[OFF_DIAGONAL])
