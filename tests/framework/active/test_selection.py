"""What is bought under a budget, against brute force and the definitions written out."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.active.selection import badge, core_set, facility_location, ranked, within_budget

GUARANTEE = 1 - 1 / 2.718281828459045**0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


@st.composite
def priced(draw, most=30):
    """Costs of some items, a budget, and a seed."""
    costs = torch.tensor(draw(st.lists(st.integers(1, 20), min_size=1, max_size=most)))
    return costs, draw(st.integers(1, 100)), draw(st.integers(0, 2**32))


def test_equal_scores_are_ranked_in_the_order_given():
    assert ranked(torch.tensor([1.0, 2.0, 1.0, torch.inf, 2.0])).tolist() == [3, 1, 4, 0, 2]
    assert ranked(torch.zeros(10_000)).tolist() == list(range(10_000))


def test_items_are_taken_until_the_budget_is_reached():
    costs = torch.tensor([5, 1, 2, 9])
    order = torch.tensor([2, 0, 3, 1])
    for budget, count in ((1, 1), (2, 1), (2.5, 2), (7, 2), (7.1, 3), (16, 3), (17, 4), (100, 4), (float("inf"), 4)):
        assert within_budget(order, costs, budget).tolist() == order[:count].tolist()
    assert within_budget(order[:0], costs, 3).tolist() == []


def overshoots_by_the_last_alone(bought, costs, budget):
    assert len(set(bought.tolist())) == len(bought)
    assert costs[bought[:-1]].sum() < budget
    assert costs[bought].sum() >= budget or len(bought) == len(costs)


@given(priced())
@settings(max_examples=50, deadline=None)
def test_all_but_facility_location_overshoot_the_budget_by_the_last_item_alone(given_):
    costs, budget, seed = given_
    vectors = randn(len(costs), 3, seed=seed)
    for bought in (
        within_budget(ranked(vectors[:, 0]), costs, budget),
        badge(randn(len(costs), 2, seed=seed + 1), vectors, costs, budget, generator(seed)),
        core_set(vectors, vectors[:0], costs, budget, generator(seed)),
        core_set(vectors, vectors[:2], costs, budget, generator(seed)),
    ):
        overshoots_by_the_last_alone(bought, costs, budget)


def value(similarity, weights, chosen):
    return float((similarity[list(chosen)].amax(0) * weights).sum()) if len(chosen) else 0.0


def optimum(similarity, weights, costs, budget):
    items = range(len(costs))
    affordable = (
        s for size in range(len(costs) + 1) for s in combinations(items, size) if costs[list(s)].sum() <= budget
    )
    return max(value(similarity, weights, s) for s in affordable)


def similarities(items, seed, dim=3):
    unit = torch.nn.functional.normalize(randn(items, dim, seed=seed), dim=1)
    return (unit @ unit.T).clamp(min=0)


@given(priced(most=8))
@settings(max_examples=60, deadline=None)
def test_facility_location_is_within_its_guarantee_of_brute_force(given_):
    costs, budget, seed = given_
    similarity, weights = similarities(len(costs), seed), torch.rand(len(costs), generator=generator(seed))
    bought = facility_location(similarity, costs, budget, weights).tolist()
    assert len(set(bought)) == len(bought) >= 1
    if (costs > budget).all():
        assert len(bought) == 1
        return
    assert costs[bought].sum() <= budget
    rest = [j for j in range(len(costs)) if j not in bought]
    assert all(costs[bought].sum() + costs[j] > budget for j in rest)  # money is left for no other item
    assert value(similarity, weights, bought) >= GUARANTEE * optimum(similarity, weights, costs, budget) - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_facility_location_of_twelve_items(seed):
    costs = torch.randint(1, 10, (12,), generator=generator(seed))
    similarity, weights = similarities(12, seed), torch.rand(12, generator=generator(seed))
    bought = facility_location(similarity, costs, 15, weights)
    assert value(similarity, weights, bought.tolist()) >= GUARANTEE * optimum(similarity, weights, costs, 15) - 1e-6


def test_the_best_single_item_is_bought_where_gain_per_cost_misleads():
    similarity = torch.eye(3)
    weights = torch.tensor([2.0, 100.0, 0.5])
    # By gain per cost the first comes before the second, which then no longer fits.
    costs, budget = torch.tensor([1, 100, 1]), 100
    assert facility_location(similarity, costs, budget, weights).tolist() == [1]
    # What is left over after the best single item is spent too.
    assert facility_location(similarity, costs, budget + 0.5, weights).tolist() == [1]
    assert facility_location(similarity, costs, budget + 1, weights).tolist() == [0, 1]
    assert facility_location(similarity, torch.tensor([1, 99, 1]), budget + 0.5, weights * 2).tolist() == [0, 1]


def eager(similarity, costs, budget, weights):
    """Greedy by the definition: every gain anew at every step."""
    chosen, covered = [], torch.zeros(len(costs))
    while True:
        left = budget - costs[chosen].sum()
        open_ = [j for j in range(len(costs)) if j not in chosen and costs[j] <= left]
        if not open_:
            return chosen
        gains = [float(((similarity[j] - covered).clamp(min=0) * weights).sum()) / float(costs[j]) for j in open_]
        best = open_[max(range(len(open_)), key=lambda k: gains[k])]
        chosen.append(best)
        covered = torch.maximum(covered, similarity[best])


@pytest.mark.parametrize("seed", range(4))
def test_lazy_equals_eager_greedy(seed):
    similarity, weights = similarities(80, seed, dim=8), torch.rand(80, generator=generator(seed))
    costs = torch.randint(1, 30, (80,), generator=generator(seed))
    found = facility_location(similarity.double(), costs, 150, weights.double())
    assert found.tolist() == eager(similarity.double(), costs, 150, weights.double())


def test_facility_location_breaks_ties_by_position_and_stands_for_what_is_uncertain():
    assert facility_location(torch.ones(6, 6), torch.ones(6), 3).tolist() == [0, 1, 2]
    assert facility_location(torch.eye(4), torch.ones(4), 2, torch.tensor([1.0, 3.0, 1.0, 2.0])).tolist() == [1, 3]
    clusters = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1))
    assert facility_location(clusters, torch.ones(6), 3).tolist() == [0, 3, 5]
    assert facility_location(torch.zeros(0, 0), torch.zeros(0), 3).tolist() == []


def outer_badge(errors, embeddings, count, seed):
    """k-means++ on gradient embeddings that are written out, with the same draws."""
    draws = generator(seed)
    vectors = (errors[:, :, None] * embeddings[:, None, :]).flatten(1).double()
    chosen = [int(vectors.norm(dim=1).argmax())]
    while len(chosen) < count:
        nearest = torch.cdist(vectors, vectors[chosen], compute_mode="donot_use_mm_for_euclid_dist").amin(1) ** 2
        cumulative = nearest.cumsum(0)
        draw = torch.rand((), generator=draws, dtype=torch.float64) * cumulative[-1]
        chosen.append(int((cumulative <= draw).sum()))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_badge_equals_kmeans_plus_plus_on_gradients_written_out(seed):
    errors, embeddings = randn(60, 4, seed=seed), randn(60, 7, seed=seed + 100)
    found = badge(errors, embeddings, torch.ones(60), 20, generator(seed))
    assert found.tolist() == outer_badge(errors, embeddings, 20, seed)
    assert found.tolist() == badge(errors, embeddings, torch.ones(60), 20, generator(seed)).tolist()


def test_badge_buys_equal_items_last():
    errors, embeddings = randn(4, 3).repeat(5, 1), randn(4, 6, seed=1).repeat(5, 1)
    for seed in range(10):
        bought = badge(errors, embeddings, torch.ones(20), 20, generator(seed))
        assert sorted(b % 4 for b in bought[:4].tolist()) == [0, 1, 2, 3]
        assert bought[4:].tolist() == sorted(bought[4:].tolist())
    sure = badge(torch.zeros(5, 3), randn(5, 2), torch.ones(5), 3, generator())  # a model that is sure of everything
    assert sure.tolist() == [0, 1, 2]


def radius(vectors, centres):
    return float(torch.cdist(vectors, centres).amin(1).max())


@pytest.mark.parametrize("labelled", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_core_set_is_within_twice_the_least_radius(seed, labelled):
    vectors, known = randn(10, 2, seed=seed), randn(labelled, 2, seed=seed + 50)
    bought = core_set(vectors, known, torch.ones(10), 3, generator(seed))
    best = min(radius(vectors, torch.cat([known, vectors[list(s)]])) for s in combinations(range(10), 3))
    assert radius(vectors, torch.cat([known, vectors[bought]])) <= 2 * best + 1e-5


def test_core_set_goes_to_the_farthest_each_time():
    vectors = torch.tensor([[0.0], [1.0], [5.0], [9.0], [9.0]])
    assert core_set(vectors, torch.tensor([[0.0]]), torch.ones(5), 5, generator()).tolist() == [3, 2, 1, 0, 4]
    starts = {int(core_set(vectors, torch.zeros(0, 1), torch.ones(5), 1, generator(seed))[0]) for seed in range(50)}
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(3))
def test_core_set_equals_that_of_scikit_activeml(seed):
    module = pytest.importorskip("skactiveml.pool._core_set", reason="scikit-activeml is in the extra bench")
    vectors = randn(300, 5, seed=seed)
    y = torch.full((300,), torch.nan)
    y[:40] = 0
    expected, _ = module.k_greedy_center(vectors.double().numpy(), y.numpy(), batch_size=30, random_state=0)
    found = core_set(vectors[40:], vectors[:40], torch.ones(260), 30, generator())
    assert (found + 40).tolist() == expected.tolist()


def test_core_set_does_not_depend_on_how_the_labelled_are_split():
    vectors, known = randn(3000, 4), randn(900, 4, seed=1)  # several chunks
    found = core_set(vectors, known, torch.ones(3000), 1, generator())
    assert int(found[0]) == int(torch.cdist(vectors.double(), known.double()).amin(1).argmax())
