import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from modules.lds.edges import CandidateEdges, DenseEdges, _bernoulli_positions, add_random_edges
from modules.lds.propagation import EdgeFactors


def random_theta(nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    likely = torch.rand(nodes, nodes, generator=generator)
    tiny = torch.rand(nodes, nodes, generator=generator) * 0.01
    kind = torch.randint(0, 4, (nodes, nodes), generator=generator)
    theta = torch.where(kind == 0, likely, torch.where(kind == 1, tiny, torch.where(kind == 2, 0.0, 1.0)))
    theta[torch.rand(nodes, nodes, generator=generator) < 0.7] = 0.005
    return theta.triu(1), generator


def adjacency_of(nodes, pairs):
    adjacency = torch.zeros(nodes, nodes)
    adjacency[pairs[0], pairs[1]] += 1
    return adjacency + adjacency.T


@pytest.fixture(params=["direct", "skipping", "candidates"])
def sampler(request, monkeypatch):
    """Makes edges from a square theta, for each way of sampling."""
    monkeypatch.setattr(DenseEdges, "DIRECT_BELOW", 0 if request.param == "skipping" else 1 << 30)

    def make(theta):
        if request.param != "candidates":
            return DenseEdges(theta)
        candidates = torch.triu_indices(len(theta), len(theta), 1)
        return CandidateEdges(theta[candidates[0], candidates[1]], candidates)

    return make


def test_sampling_frequencies_match_theta(sampler):
    nodes, draws = 24, 4000
    theta, generator = random_theta(nodes, 0)
    edges = sampler(theta)
    count = sum(adjacency_of(nodes, edges.sample(generator)) for _ in range(draws))
    p = theta + theta.T
    sigma = (p * (1 - p) / draws).sqrt()
    assert ((count / draws - p).abs() <= 4.5 * sigma).all()  # 276 pairs: 4 sigma each would fail 1 run in 60
    assert (count[p == 0] == 0).all()
    assert (count[p == 1] == draws).all()


def test_pairs_are_sampled_independently(sampler):
    """The number of edges has the variance of a sum of independent draws."""
    nodes, draws = 24, 3000
    theta, generator = random_theta(nodes, 1)
    edges = sampler(theta)
    sizes = torch.tensor([float(edges.sample(generator).shape[1]) for _ in range(draws)])
    variance = (theta * (1 - theta)).sum()
    assert abs(sizes.mean() - theta.sum()) < 4 * (variance / draws).sqrt()
    assert sizes.var() / variance == pytest.approx(1, abs=4 * (2 / draws) ** 0.5)


@given(seed=st.integers(0, 10_000), nodes=st.integers(2, 30), direct=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_a_simple_graph(seed, nodes, direct):
    theta, generator = random_theta(nodes, seed)
    edges = DenseEdges(theta)
    edges.DIRECT_BELOW = 1 << 30 if direct else 0
    pairs = edges.sample(generator)
    assert (pairs[0] < pairs[1]).all()
    adjacency = adjacency_of(nodes, pairs)
    assert torch.equal(adjacency, adjacency.T)
    assert adjacency.max() <= 1  # no pair is drawn twice


def test_skipping_sees_a_theta_that_was_changed_in_place():
    theta = torch.zeros(40, 40)
    edges = DenseEdges(theta)
    edges.DIRECT_BELOW = 0
    generator = torch.Generator().manual_seed(0)
    assert edges.sample(generator).shape[1] == 0
    theta[3, 7] = 1
    assert edges.sample(generator).tolist() == [[3], [7]]
    theta[3, 7] = 0
    theta[0, 1] = 1
    assert edges.sample(generator).tolist() == [[0], [1]]


@pytest.mark.parametrize("p", [1e-9, 1e-30, 0.3, 1.0])
def test_bernoulli_positions(p):
    generator = torch.Generator().manual_seed(2)
    positions = _bernoulli_positions(1000, p, generator)
    assert (positions.diff() > 0).all()
    assert ((positions >= 0) & (positions < 1000)).all()
    if p == 1:
        assert torch.equal(positions, torch.arange(1000))
    elif p < 0.1:
        assert len(positions) == 0
    else:
        assert abs(len(positions) - 1000 * p) < 5 * (1000 * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("kind", ["symmetric", "upper"])
@pytest.mark.parametrize("block", [3, 256])
def test_gradient_of_factors(kind, block, monkeypatch):
    monkeypatch.setattr(DenseEdges, "BLOCK", block)
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    full = left @ right.T
    expected = (full + full.T if kind == "symmetric" else full).triu(1)
    theta = torch.zeros(10, 10, dtype=torch.float64)
    gradient = torch.ones_like(theta).triu(1)
    DenseEdges(theta).accumulate(EdgeFactors(left, right), gradient, kind)
    assert_close(gradient, expected + torch.ones_like(theta).triu(1))

    candidates = torch.tensor([[0, 2, 2, 8], [5, 3, 9, 9]])
    monkeypatch.setattr(CandidateEdges, "CHUNK", 8)
    some = torch.zeros(4, dtype=torch.float64)
    CandidateEdges(some, candidates).accumulate(EdgeFactors(left, right), some_gradient := some.clone(), kind)
    assert_close(some_gradient, expected[candidates[0], candidates[1]])


def test_initial_candidates():
    candidates = torch.tensor([[1, 0, 0], [2, 3, 1]])
    edges, weight = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.25, 1.0])
    assert CandidateEdges.initial(4, candidates, edges, weight).tolist() == [1.0, 0.0, 0.25]
    with pytest.raises(ValueError, match="candidates must hold every edge"):
        CandidateEdges.initial(4, candidates, torch.tensor([[2], [3]]), torch.ones(1))


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.5, 3.0]))
@settings(max_examples=30, deadline=None)
def test_random_edges_keep_the_graph_and_add_new_pairs(seed, share):
    generator = torch.Generator().manual_seed(seed)
    own = (torch.rand(12, 12, generator=generator) < 0.3).triu(1).nonzero().T
    weight = torch.rand(own.shape[1], generator=generator)
    pairs, value = add_random_edges(12, own, weight, share, generator)
    added = pairs.shape[1] - own.shape[1]
    assert 0 <= added <= round(share * own.shape[1])
    assert (pairs[0] < pairs[1]).all()
    assert pairs.unique(dim=1).shape == pairs.shape
    known = dict(zip(map(tuple, own.T.tolist()), weight.tolist(), strict=True))
    for pair, got in zip(map(tuple, pairs.T.tolist()), value.tolist(), strict=True):
        assert got == known.pop(pair, 1.0)
    assert not known


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_sampling_frequencies_match_theta_on_a_gpu():
    generator = torch.Generator("cuda").manual_seed(0)
    theta = torch.rand(24, 24, generator=generator, device="cuda").triu(1)
    edges, count, draws = DenseEdges(theta), torch.zeros(24, 24, device="cuda"), 4000
    for _ in range(draws):
        pairs = edges.sample(generator)
        count[pairs[0], pairs[1]] += 1
    assert ((count / draws - theta).abs() <= 4.5 * (theta * (1 - theta) / draws).sqrt()).all()
