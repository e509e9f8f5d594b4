"""The hypergradient of LDS against a plain float64 unroll, finite differences and exact expectations."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from framework.bilevel.hypergradient import Unroll
from framework.bilevel.optimizers import Adam
from modules.lds.edges import CandidateEdges, DenseEdges
from modules.lds.engine import LDSProblem
from modules.lds.gcn import GCN, Features, GCNSample
from modules.lds.propagation import Graph

DOUBLE = torch.float64
NODES, INPUTS, CLASSES = 30, 7, 3
Y = torch.randint(0, CLASSES, (NODES,), generator=torch.Generator().manual_seed(9))
TRAIN, VAL = torch.arange(8), torch.arange(8, 16)
BENCHMARK = Path(__file__).parents[3] / "scripts/benchmarks/lds_hypergradient.py"


@pytest.fixture(scope="module")
def plain_hypergradient():
    """The benchmark's peer serves as the oracle."""
    spec = importlib.util.spec_from_file_location("lds_hypergradient", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plain_hypergradient


def make(edge_gradient="symmetric", sparse=False, seed=0, dropout=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NODES, INPUTS, generator=generator, dtype=DOUBLE)
    x = x * (torch.rand(NODES, INPUTS, generator=generator) < 0.5)
    theta = (torch.rand(NODES, NODES, generator=generator, dtype=DOUBLE) * 0.4).triu(1)
    network = GCN(INPUTS, CLASSES, hidden=5, dropout=dropout)
    features = Features(x.to_sparse_csr() if sparse else x)
    problem = LDSProblem(network, DenseEdges(theta), features, Y, TRAIN, VAL, edge_gradient)
    w = network.init(torch.Generator().manual_seed(seed + 1), DOUBLE)
    return problem, x, w, torch.tensor(0.02, dtype=DOUBLE)


def run(problem, w, lr, tau, seed=3, **options):
    optimizer = Adam()
    unroll = Unroll(optimizer, problem.inner, optimizer.init(w))
    return problem.round(unroll, lr, tau, torch.Generator().manual_seed(seed), **options), unroll


def replay(problem, tau, seed=3):
    """The graphs and masks that ``run`` draws, as dense matrices."""
    generator = torch.Generator().manual_seed(seed)
    adjacencies, masks = [], []
    for step in range(tau + 1):
        pairs = problem.edges.sample(generator)
        adjacency = torch.zeros(NODES, NODES, dtype=DOUBLE)
        adjacency[pairs[0], pairs[1]] = 1
        adjacencies.append(adjacency + adjacency.T)
        if step < tau:
            masks.append(problem.network.dropout_mask(NODES, generator, DOUBLE))
    return adjacencies, masks


@pytest.mark.parametrize("tau", [1, 5, 20])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_equals_a_float64_full_unroll(plain_hypergradient, tau, sparse, monkeypatch):
    monkeypatch.setattr(Graph, "DENSE_BELOW", 0 if sparse else 1000)
    monkeypatch.setattr(LDSProblem, "FLUSH", 40)  # several flushes within one round
    problem, x, w, lr = make(sparse=sparse)
    result, unroll = run(problem, w, lr, tau)
    adjacencies, masks = replay(problem, tau)
    w0, w1 = problem.network.weights(w)
    outer, d_theta, d_lr = plain_hypergradient(problem.edges.theta, x, Y, TRAIN, VAL, w0, w1, lr, adjacencies, masks)
    assert_close(result.outer_loss, outer, rtol=1e-12, atol=0)
    assert (result.d_theta - d_theta).norm() / d_theta.norm() < 1e-8
    assert abs(result.d_lr / d_lr - 1) < 1e-8
    assert unroll.count == tau
    assert not unroll.steps  # nothing is kept for the next round


def direct_term(problem, w, pairs):
    """The derivative of the outer loss with respect to the graph, at fixed weights."""
    problem.gradient = torch.zeros_like(problem.edges.theta)
    problem.outer.linearize(w, GCNSample(Graph(problem.x.nodes, pairs, dtype=DOUBLE))).pull()
    problem._flush()
    return problem.gradient


class Relaxed(LDSProblem):
    """The same problem on the expected graph: every weight is its probability, so that nothing is sampled."""

    def draw(self, generator, dropout):
        theta = self.edges.theta
        return GCNSample(Graph.from_upper(theta))


@pytest.mark.parametrize("tau", [1, 4])
def test_finite_differences_without_sampling(tau):
    problem, _, w, lr = make()
    problem.__class__ = Relaxed
    gradient = run(problem, w, lr, tau)[0].d_theta
    theta, step = problem.edges.theta, 1e-6
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        direction = torch.randn(NODES, NODES, generator=generator, dtype=DOUBLE).triu(1)
        values = []
        for sign in (1, -1):
            theta.add_(sign * step * direction)
            values.append(run(problem, w, lr, tau)[0].outer_loss)
            theta.sub_(sign * step * direction)
        difference = (values[0] - values[1]) / (2 * step)
        assert abs((gradient * direction).sum() / difference - 1) < 1e-4


def test_straight_through_mean_is_the_expectation_over_all_graphs():
    """On three nodes the eight graphs can be listed: the Monte-Carlo mean of the direct term must meet their mean."""
    generator = torch.Generator().manual_seed(1)
    theta = torch.tensor([[0, 0.2, 0.7], [0, 0, 0.5], [0, 0, 0]], dtype=DOUBLE)
    network = GCN(2, 2, hidden=3, dropout=0)
    x = torch.randn(3, 2, generator=generator, dtype=DOUBLE)
    y = torch.tensor([0, 1, 1])
    problem = LDSProblem(network, DenseEdges(theta), Features(x), y, torch.tensor([0]), torch.tensor([1, 2]))
    w = network.init(generator, DOUBLE)
    index = torch.triu_indices(3, 3, 1)

    def direct(pairs):
        return direct_term(problem, w, pairs)[index[0], index[1]]

    exact = torch.zeros(3, dtype=DOUBLE)
    p = theta[index[0], index[1]]
    for present in itertools.product([False, True], repeat=3):
        mask = torch.tensor(present)
        exact += torch.where(mask, p, 1 - p).prod() * direct(index[:, mask])
    draws = torch.stack([direct(problem.edges.sample(generator)) for _ in range(3000)])
    assert ((draws.mean(0) - exact).abs() <= 3.5 * draws.std(0) / len(draws) ** 0.5).all()


def test_upper_gradient_is_one_direction_of_the_symmetric_one(plain_hypergradient):
    both = run(*_problem_w_lr("symmetric"), 5)[0].d_theta
    upper = run(*_problem_w_lr("upper"), 5)[0].d_theta
    assert 0.3 < upper.norm() / both.norm() < 0.9
    assert (upper - both).abs().max() > 1e-6


def _problem_w_lr(kind):
    problem, _, w, lr = make(kind)
    return problem, w, lr


def test_candidate_support_gives_the_dense_gradient_on_its_pairs():
    problem, x, w, lr = make()
    theta = problem.edges.theta
    candidates = (theta > 0).nonzero().T
    dense = run(problem, w, lr, 5)[0]
    few = LDSProblem(
        problem.network,
        CandidateEdges(theta[candidates[0], candidates[1]], candidates),
        Features(x),
        Y,
        TRAIN,
        VAL,
    )
    # The two sample in another order: give both the same graphs.
    generator = torch.Generator().manual_seed(3)
    samples = [problem.draw(generator, dropout=step < 5) for step in range(6)]
    given = iter(samples)
    few.draw = lambda generator, dropout: next(given)
    sparse = run(few, w, lr, 5)[0]
    assert_close(sparse.d_theta, dense.d_theta[candidates[0], candidates[1]])
    assert_close(sparse.outer_loss, dense.outer_loss)


def test_new_graphs_in_the_reverse_pass_change_the_hypergradient_only():
    problem, _, w, lr = make()
    reused, unroll = run(problem, w, lr, 5)
    fresh, other = run(problem, w, lr, 5, reuse_graphs=False)
    assert torch.equal(unroll.state[0], other.state[0])
    assert torch.equal(reused.inner_losses, fresh.inner_losses)
    assert (reused.d_theta - fresh.d_theta).norm() > 1e-3 * reused.d_theta.norm()


def test_skipping_every_step_leaves_the_direct_term():
    problem, _, w, lr = make()
    result, unroll = run(problem, w, lr, 3, skip=3)
    assert result.d_lr == 0
    adjacencies, _ = replay(problem, 3)
    result = result.d_theta.clone()
    assert_close(direct_term(problem, unroll.state[0], adjacencies[-1].triu(1).nonzero().T), result)


def test_certain_edges_make_every_prediction_the_same_gcn():
    problem, x, w, _ = make()
    problem.edges.theta.copy_((problem.edges.theta > 0.3).to(DOUBLE))
    mean = problem.mean_logits(w, 16, torch.Generator().manual_seed(0))
    graph = Graph(NODES, (problem.edges.theta > 0).nonzero().T, dtype=DOUBLE)
    assert_close(mean, problem.network.logits(w, Features(x), GCNSample(graph)))


def test_mean_logits_averages_before_the_softmax():
    problem, x, w, _ = make()
    mean = problem.mean_logits(w, 5, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    each = [problem.network.logits(w, Features(x), problem.draw(generator, dropout=False)) for _ in range(5)]
    assert_close(mean, torch.stack(each).mean(0))
    assert (each[0] - each[1]).abs().max() > 1e-3


def test_inner_loss_is_the_mean_cross_entropy_plus_half_the_squared_norm():
    problem, x, w, _ = make(dropout=0)
    w0, w1 = problem.network.weights(w)
    sample = problem.draw(torch.Generator().manual_seed(0), dropout=True)
    assert sample.hidden_mask is None
    operator = sample.graph.operator
    logits = operator @ (operator @ x @ w0).relu() @ w1
    log_p = logits.log_softmax(1)[TRAIN, Y[TRAIN]]
    assert_close(problem.inner.gradient(w, sample)[0], -log_p.mean() + 2.5e-4 * w0.square().sum())


def test_dropout_masks_have_mean_one():
    mask = GCN(3, 2, hidden=50, dropout=0.25).dropout_mask(400, torch.Generator().manual_seed(0))
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)


def test_glorot_range():
    network = GCN(30, 4, hidden=10)
    w0, w1 = network.weights(network.init(torch.Generator().manual_seed(0)))
    assert w0.shape == (30, 10)
    assert w1.shape == (10, 4)
    for weight in (w0, w1):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.8 * bound < weight.abs().max() <= bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("sparse", [False, True])
def test_hypergradient_on_a_gpu_equals_the_cpus_on_the_same_graphs(sparse):
    problem, x, w, lr = make(sparse=sparse)
    expected = run(problem, w, lr, 5)[0]
    adjacencies, masks = replay(problem, 5)
    samples = [
        GCNSample(Graph(NODES, a.triu(1).nonzero().T.cuda(), dtype=torch.float64, dense=not sparse), m)
        for a, m in zip(adjacencies, [*(mask.cuda() for mask in masks), None], strict=True)
    ]
    features = Features((x.to_sparse_csr() if sparse else x).cuda())
    nodes = Y.cuda(), TRAIN.cuda(), VAL.cuda()
    there = LDSProblem(problem.network, DenseEdges(problem.edges.theta.cuda()), features, *nodes)
    given = iter(samples)
    there.draw = lambda generator, dropout: next(given)
    optimizer = Adam()
    unroll = Unroll(optimizer, there.inner, optimizer.init(w.cuda()))
    result = there.round(unroll, lr.cuda(), 5, torch.Generator("cuda"))
    assert_close(result.d_theta.cpu(), expected.d_theta, rtol=1e-8, atol=1e-12)
    assert_close(result.d_lr.cpu(), expected.d_lr, rtol=1e-8, atol=1e-12)
