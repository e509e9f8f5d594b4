"""Layers chosen on importance scores, against brute force, another solver and closed forms."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.federated.selection import (
    STRATEGIES,
    equal_budgets,
    error_terms,
    layer_weights,
    normalise,
    scale_of,
    select,
    solve_p1,
    truncated_normal_budgets,
)


def value(scores, masks, lam):
    """The objective as the paper writes it: each pair of clients once."""
    m = np.asarray(masks, dtype=float)
    pairs = itertools.combinations(range(len(m)), 2)
    return (scores * m).sum() - lam * sum(((m[i] - m[j]) ** 2).sum() for i, j in pairs)


def brute_force(scores, budgets, lam, costs):
    sets = np.array(list(itertools.product((0, 1), repeat=scores.shape[1])), dtype=bool)
    allowed = [sets[sets @ cost <= budget + 1e-9] for cost, budget in zip(costs, budgets, strict=True)]
    return max(value(scores, masks, lam) for masks in itertools.product(*allowed))


def highs(scores, budgets, lam):
    """The optimum by the pairwise linearisation, |m_i - m_j| as a variable."""
    from scipy.optimize import LinearConstraint, milp

    clients, layers = scores.shape
    pairs = list(itertools.product(itertools.combinations(range(clients), 2), range(layers)))
    rows = np.zeros((2 * len(pairs) + clients, scores.size + len(pairs)))
    for k, ((i, j), layer) in enumerate(pairs):
        for row, sign in ((2 * k, 1), (2 * k + 1, -1)):
            rows[row, [i * layers + layer, j * layers + layer, scores.size + k]] = sign, -sign, -1
    for i in range(clients):
        rows[2 * len(pairs) + i, i * layers : (i + 1) * layers] = 1
    result = milp(
        np.concatenate([-scores.ravel(), np.full(len(pairs), lam)]),
        integrality=np.concatenate([np.ones(scores.size), np.zeros(len(pairs))]),
        bounds=(0, 1),
        constraints=LinearConstraint(rows, -np.inf, np.concatenate([np.zeros(2 * len(pairs)), budgets])),
        options={"mip_rel_gap": 0},
    )
    return -result.fun


def top(scores, budgets):
    masks = np.zeros(scores.shape, dtype=bool)
    for i, budget in enumerate(budgets):
        masks[i, np.argsort(-scores[i], kind="stable")[:budget]] = True
    return masks


@st.composite
def problems(draw, unit=None):
    """Scores, budgets, lambda and costs (None or numbers) of up to 3 clients and 4 layers."""
    clients, layers = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["smooth", "ties", "signed", "heavy"]))
    shape = clients, layers
    scores = {
        "smooth": lambda: rng.random(shape),
        "ties": lambda: rng.integers(0, 3, shape).astype(float),
        "signed": lambda: rng.normal(size=shape),
        "heavy": lambda: 1e4 * np.exp(3 * rng.normal(size=shape)),
    }[kind]()
    lam = draw(st.sampled_from([0, 0.01, 0.1, 0.3, 1, 10, 1e9])) * float(np.abs(scores).max() or 1)
    if draw(st.booleans()) if unit is None else unit:
        return scores, rng.integers(0, layers + 1, clients), lam, None
    costs = rng.integers(1, 6, shape) * 0.1 if draw(st.booleans()) else rng.integers(1, 6, layers).astype(float)
    return scores, rng.random(clients) * np.broadcast_to(costs, shape).sum(axis=1), lam, costs


@given(problems())
@settings(max_examples=150, deadline=None)
def test_p1_equals_brute_force_and_keeps_the_budgets(problem):
    scores, budgets, lam, costs = problem
    prices = np.broadcast_to(1.0 if costs is None else costs, scores.shape)
    found = solve_p1(scores, budgets, lam, costs, fill_budget=False, time_limit=600)
    best = brute_force(scores, budgets, lam, prices)
    tolerance = 1e-6 * max(1, np.abs(scores).max())
    assert found.optimal
    assert found.bound == found.objective == found.filled_objective
    assert found.objective == pytest.approx(best, abs=tolerance)
    assert found.objective == pytest.approx(value(scores, found.masks, lam), abs=tolerance)
    assert not found.filled.any()
    filled = solve_p1(scores, budgets, lam, costs, time_limit=600)
    assert filled.objective == found.objective
    assert filled.filled_objective == pytest.approx(value(scores, filled.masks, lam), abs=tolerance, rel=1e-12)
    assert (filled.masks & ~filled.filled == found.masks).all()
    for masks in (found.masks, filled.masks):
        assert ((masks * prices).sum(axis=1) <= budgets * (1 + 1e-9)).all()
    # Nothing more fits, and what was added is worth at least as much as whatever is as cheap and was left.
    left = budgets * (1 + 1e-9) - (filled.masks * prices).sum(axis=1)
    assert (prices > left[:, None])[~filled.masks].all()
    for i, layer in np.argwhere(filled.filled):
        others = ~filled.masks[i] & (prices[i] <= prices[i, layer])
        assert (scores[i, others] <= scores[i, layer]).all()


@pytest.mark.parametrize(
    ("seed", "clients", "layers", "lam"), [(0, 6, 5, 0.03), (1, 8, 6, 0.1), (2, 7, 8, 0.3), (3, 10, 4, 1)]
)
def test_p1_equals_another_solver(seed, clients, layers, lam):
    rng = np.random.default_rng(seed)
    for scores in (rng.random((clients, layers)), rng.exponential(size=(clients, layers))):
        scores = normalise(scores)
        budgets = rng.integers(1, layers, clients)
        assert solve_p1(scores, budgets, lam, time_limit=600).objective == pytest.approx(
            highs(scores, budgets, lam), abs=1e-6
        )


def test_coordinate_ascent_alone_would_be_caught_here():
    """The value of agreement shows only when all clients change at once (the note's worst case, at lambda 1)."""
    rng = np.random.default_rng(0)
    scores = normalise(np.exp(rng.normal(size=(10, 12))))
    budgets = rng.integers(1, 5, 10)
    found = solve_p1(scores, budgets, 1, time_limit=600)
    assert found.optimal
    assert found.objective == pytest.approx(highs(scores, budgets, 1), abs=1e-6)
    assert found.objective > 0


@pytest.mark.parametrize("lam", [0, 0.01, 0.1, 1, 10])
def test_twenty_clients_and_twelve_layers_are_quick(lam):
    for seed, budgets in itertools.product(range(2), (equal_budgets(2, 20), truncated_normal_budgets(1, 4, 20, 0))):
        rng = np.random.default_rng(seed)
        for scores in (rng.random((20, 12)), np.exp(np.linspace(0, 2, 12) + 0.5 * rng.normal(size=(20, 12)))):
            begin = time.process_time()
            found = solve_p1(normalise(scores), budgets, lam, time_limit=600)
            assert found.optimal
            assert time.process_time() - begin < 2


@given(problems(unit=True))
@settings(max_examples=50, deadline=None)
def test_without_a_price_of_disagreement_each_client_takes_its_own_best(problem):
    scores, budgets, _, _ = problem
    assert (solve_p1(scores, budgets, 0).masks == top(scores, budgets)).all()


@pytest.mark.parametrize("lam", [3, 1e3, 1e12])
def test_a_large_price_of_disagreement_gives_one_common_set(lam):
    scores = np.random.default_rng(0).random((9, 7))
    common = np.sort(np.argsort(-scores.sum(axis=0))[:3])
    found = solve_p1(scores, equal_budgets(3, 9), lam)
    assert found.optimal
    assert all(np.flatnonzero(row).tolist() == common.tolist() for row in found.masks)
    assert found.objective == pytest.approx(scores[:, common].sum())


def test_unequal_budgets_fall_back_to_the_smallest_and_are_filled_by_own_scores():
    scores = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2.5, 6]])
    bare = solve_p1(scores, [1, 2, 3], 100, fill_budget=False)
    assert bare.masks.tolist() == [[False, False, False, True]] * 3
    full = solve_p1(scores, [1, 2, 3], 100)
    assert full.masks.astype(int).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 1]]
    assert full.objective == bare.objective == 14
    assert full.filled_objective == 14 + 3 + 4 + 3 - 100 * (2 + 2 + 2)
    assert not solve_p1(scores, [0, 2, 3], 100, fill_budget=False).masks.any()


@pytest.mark.parametrize("lam", [0, 0.01, 0.5, 50])
def test_equal_scores_go_to_the_lower_layers(lam):
    found = solve_p1(np.ones((5, 6)), equal_budgets(2, 5), lam)
    assert found.masks.tolist() == [[True, True, False, False, False, False]] * 5
    twins = np.repeat(np.random.default_rng(0).random((6, 3)), 2, axis=1)  # each layer twice
    masks = solve_p1(twins, [1, 2, 1, 3, 2, 1], lam, fill_budget=False).masks
    assert (masks[:, 0::2].sum(axis=0) >= masks[:, 1::2].sum(axis=0)).all()


def test_results_repeat_and_follow_the_order_of_clients():
    rng = np.random.default_rng(1)
    scores, budgets, order = rng.random((12, 8)), rng.integers(1, 5, 12), rng.permutation(12)
    first = solve_p1(scores, budgets, 0.03, time_limit=600)
    assert (solve_p1(scores, budgets, 0.03, time_limit=600).masks == first.masks).all()
    assert (solve_p1(scores[order], budgets[order], 0.03, time_limit=600).masks == first.masks[order]).all()


def test_when_time_is_up_the_best_so_far_is_returned_with_a_bound():
    rng = np.random.default_rng(1)
    scores = normalise(rng.random((20, 12)))
    budgets = rng.integers(1, 5, 20)
    short, long = (solve_p1(scores, budgets, 0.03, time_limit=limit) for limit in (1e-9, 600))
    assert long.optimal
    assert not short.optimal
    assert 0.9 * long.objective < short.objective <= long.objective + 1e-9
    assert long.objective <= short.bound < 1.1 * long.objective
    assert (short.masks.sum(axis=1) == budgets).all()


def test_a_knapsack_is_not_filled_by_the_dearest_first():
    scores, costs = [[10.0, 6, 6]], [6.0, 5, 5]
    assert solve_p1(scores, [10], 0, costs).masks.tolist() == [[False, True, True]]
    assert select("top_scores", [10], scores=scores, costs=costs).masks.tolist() == [[True, False, False]]
    assert solve_p1([[3.0, 2, 1]], [0.3], 0, [0.1, 0.1, 0.1]).masks.all()  # 0.1 + 0.1 + 0.1 is 0.3


def test_equal_costs_are_numbers_of_layers():
    scores = np.random.default_rng(0).random((6, 5))
    by_number = solve_p1(scores, [1, 2, 3, 2, 1, 0], 0.05)
    speeds = np.array([[2.0], [7], [0.3], [1], [5], [4]])
    by_cost = solve_p1(scores, speeds[:, 0] * [1, 2.9, 3, 2, 1.5, 0.9], 0.05, np.broadcast_to(speeds, (6, 5)))
    assert (by_cost.masks == by_number.masks).all()


def test_fixed_strategies():
    def layers(strategy, budget, **more):
        (row,) = select(strategy, [budget], 5, **more).masks
        return np.flatnonzero(row).tolist()

    assert layers("full", 0) == [0, 1, 2, 3, 4]
    assert layers("head_only", 3) == []
    assert layers("top", 2) == [3, 4]
    assert layers("bottom", 2) == [0, 1]
    assert [layers("both", budget) for budget in range(6)] == [
        [],
        [0],
        [0, 4],
        [0, 1, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert layers("top_scores", 2, scores=[[1.0, 5, 5, 5, 0]]) == [1, 2]
    assert layers("top", 4, costs=[1.0, 1, 3, 3, 2]) == [0, 1, 4]  # 3 and 2 no longer fit


def test_strategies_report_their_objective_where_scores_are_given():
    scores = np.random.default_rng(0).random((3, 5))
    for strategy in STRATEGIES:
        found = select(strategy, [1, 2, 3], scores=scores, lam=0.2)
        assert found.filled_objective == pytest.approx(value(scores, found.masks, 0.2))
        assert found.optimal == (strategy == "p1")
        assert found.masks.shape == scores.shape
        assert found.masks.dtype == bool
        if strategy != "full":
            assert (found.masks.sum(axis=1) <= [1, 2, 3]).all()
    assert np.isnan(select("top", [1, 2, 3], 5).objective)


def test_scores_are_divided_by_one_number():
    scores = np.array([[1.0, 2], [3, 6]])
    assert normalise(scores).tolist() == [[1 / 6, 2 / 6], [0.5, 1]]
    assert normalise(scores, "mean").mean() == pytest.approx(1)
    assert (normalise(scores, "none") == scores).all()
    assert scale_of(scores) == 6
    assert (normalise(np.zeros((2, 2))) == 0).all()


def test_budgets_come_from_a_private_generator():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    budgets = truncated_normal_budgets(1, 4, 20_000, seed=3)
    assert (np.random.get_state()[1] == before).all()
    assert (budgets == truncated_normal_budgets(1, 4, 20_000, seed=3)).all()
    assert (budgets != truncated_normal_budgets(1, 4, 20_000, seed=4)).any()
    shares = np.bincount(budgets, minlength=6) / len(budgets)
    assert shares[1:5] == pytest.approx([0.383, 0.483, 0.121, 0.013], abs=0.015)  # the normal distribution's
    assert shares[0] == shares[5] == 0
    assert set(truncated_normal_budgets(2, 2, 100, 0)) == {2}
    assert set(truncated_normal_budgets(0, 1, 200, 0)) == {0, 1}
    far = truncated_normal_budgets(20, 24, 500, 0)
    assert far.min() == 20
    assert far.max() <= 24
    assert equal_budgets(3, 4).tolist() == [3, 3, 3, 3]


def test_a_layer_is_averaged_over_those_who_train_it():
    """The note's example: d = (1, 3), client 0 trains a, client 1 trains a and b; nobody trains c."""
    weights = layer_weights([[1, 0, 0], [1, 1, 0]], [1, 3])
    x, y = np.array([5.0, 100, 7]), np.array([1.0, 2, 9])
    new = weights[0] * x + weights[1] * y
    assert new[0] == (1 * 5 + 3 * 1) / 4
    assert new[1] == 2
    assert weights[:, 2].tolist() == [0, 0]
    everyone = layer_weights(np.ones((3, 4), dtype=bool), [1, 2, 5])
    assert everyone == pytest.approx(np.tile([[1 / 8], [2 / 8], [5 / 8]], 4))  # FedAvg


def test_error_terms_by_hand():
    terms = error_terms([4.0, 9, 25], [[1, 0, 1], [0, 0, 1]], [0.5, 0.5], kappa=[3.0, 5, 7])
    assert terms.left_out == 9
    assert terms.chi2.tolist() == [1, 0, 0]  # w = (1, 0); nobody; all
    assert terms.disagreement == 9
    full = error_terms([4.0, 9, 25], np.ones((2, 3)), [0.2, 0.8])
    assert full.left_out == 0
    assert full.disagreement == pytest.approx(0)


def test_error_terms_on_quadratic_objectives():
    """f_i = 1/2 sum_l a_l (theta_l - c_il)^2: one masked step of size 1/a moves layer l to sum_i w_il c_il."""
    rng = np.random.default_rng(0)
    clients, layers = 6, 5
    a, c, theta = rng.random(layers) + 0.5, rng.normal(size=(clients, layers)), rng.normal(size=layers)
    sizes = rng.integers(1, 9, clients)
    alpha = sizes / sizes.sum()
    masks = rng.random((clients, layers)) < 0.4
    masks[:, 1], masks[0, 0], masks[1:, 0] = False, True, False
    own = a * (theta - c)  # gradients of the clients
    gradient = alpha @ own
    kappa = np.abs(own - gradient).max(axis=0)
    terms = error_terms(gradient**2, masks, sizes, kappa)
    trained = masks.any(axis=0)
    assert not trained[1]
    assert terms.left_out == pytest.approx((gradient[~trained] ** 2).sum())
    weights = layer_weights(masks, sizes)
    assert terms.chi2[trained] == pytest.approx(((weights**2).T @ (1 / alpha) - 1)[trained])  # sum w^2 / alpha - 1
    assert terms.chi2[0] == pytest.approx(1 / alpha[0] - 1)  # one client by itself
    assert (terms.chi2[~trained] == 0).all()
    # What the terms stand for: the step misses the gradient by E_1 where nothing is trained, elsewhere by at most
    # kappa^2 chi2 (Cauchy and Schwarz).
    step = (weights * own).sum(axis=0)
    deviation = (step - gradient) ** 2
    assert deviation[~trained].sum() == pytest.approx(terms.left_out)
    assert (deviation[trained] <= (kappa**2 * terms.chi2)[trained] + 1e-12).all()
    assert deviation[trained].sum() <= terms.disagreement
    everyone = error_terms(gradient**2, np.ones_like(masks), sizes, kappa)
    assert (everyone.left_out, everyone.disagreement) == pytest.approx((0, 0))


SCORES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve_p1(SCORES, [1, 4], 0), "budget of client 1 must be a whole number from 0 to 3.*got 4"),
        (lambda: solve_p1(SCORES, [-1, 1], 0), "budget of client 0 .*got -1"),
        (lambda: solve_p1(SCORES, [1, 1.5], 0), "budget of client 1 .*got 1.5"),
        (lambda: solve_p1(SCORES, [1, np.nan], 0), "budget of client 1 .*got nan"),
        (lambda: solve_p1(SCORES, [1, np.inf], 0, [1, 1, 1]), "budget of client 1 must be finite.*got inf"),
        (lambda: solve_p1(SCORES, [1], 0), r"budgets must have shape \(2,\), one for each client, got \(1,\)"),
        (lambda: solve_p1(SCORES, 1, 0), r"budgets must have shape \(2,\)"),
        (lambda: solve_p1(SCORES, [1, 1], -0.5), "lam must be finite and not negative, got -0.5"),
        (lambda: solve_p1(SCORES, [1, 1], np.nan), "lam .*got nan"),
        (lambda: solve_p1(SCORES, [1, 1], np.inf), "lam .*got inf"),
        (lambda: solve_p1(SCORES, [1, 1], 0, time_limit=0), "time_limit .*got 0"),
        (lambda: solve_p1([[1, 2], [3, np.nan]], [1, 1], 0), "score of client 1, layer 1 must be finite, got nan"),
        (lambda: normalise([[np.inf, 2]]), "score of client 0, layer 0 must be finite, got inf"),
        (lambda: solve_p1([1, 2], [1, 1], 0), r"scores must have shape \(clients, layers\).*got \(2,\)"),
        (lambda: solve_p1(np.ones((0, 3)), [], 0), "at least one"),
        (lambda: solve_p1(SCORES, [1, 1], 0, [1, 2]), r"costs must have shape \(3,\) or \(2, 3\), got \(2,\)"),
        (lambda: solve_p1(SCORES, [1, 1], 0, [1, 0, 2]), "costs must be positive and finite, got 0"),
        (
            lambda: select("topp", [1], 3),
            "unknown selection strategy 'topp'; did you mean top.*there are full, head_only",
        ),
        (lambda: select("p1", [1], 3), "strategy p1 needs scores"),
        (lambda: select("top", [1]), "layers must be a positive number.*got None"),
        (lambda: select("top", [1, 1], 4, scores=SCORES), "layers must be the number of columns of scores, 3, got 4"),
        (lambda: select("top", [1, 1, 1], scores=SCORES), r"budgets must have shape \(2,\)"),
        (lambda: select("top", [1, 1], 3, lam=-1), "lam .*got -1"),
        (lambda: normalise(SCORES, "maximum"), "unknown normalisation 'maximum'; did you mean max.*max, mean, none"),
        (lambda: equal_budgets(-1, 2), "budget .*got -1"),
        (lambda: equal_budgets(1.5, 2), "budget .*got 1.5"),
        (lambda: equal_budgets(1, 0), "clients .*got 0"),
        (lambda: truncated_normal_budgets(3, 2, 5, 0), "low and high .*got 3 and 2"),
        (lambda: truncated_normal_budgets(1, 2, 0, 0), "clients .*got 0"),
        (lambda: layer_weights([[1, 0]], [1, 2]), r"weights of clients must have shape \(1,\), got \(2,\)"),
        (lambda: layer_weights([[1, 0], [0, 1]], [1, 0]), "weight of client 1 must be positive.*got 0"),
        (lambda: layer_weights([[1, 0.5]], [1]), "masks must be true or false"),
        (lambda: error_terms([1.0], [[1, 0]], [1]), "squared_norms must be 2 finite numbers"),
        (lambda: error_terms([1.0, 1], [[1, 0]], [1], [1, -1]), "kappa must be 2 finite numbers"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_the_selection_is_light():
    code = (
        "import sys, framework.federated.selection, framework.federated.importance, framework.federated.layer_groups;"
        "print([m for m in ('lightning', 'flwr', 'transformers', 'scipy.optimize') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
