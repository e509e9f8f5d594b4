"""What is spent, and how much noise a budget needs, against closed forms, brute force and published numbers."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from framework.privacy.accounting import (
    ACCOUNTANTS,
    epsilon_after,
    epsilon_spent,
    history_to_lists,
    load_history,
    make_accountant,
    noise_multiplier,
    steps_taken,
    steps_within,
)

DELTA = 1e-4


def spent(kind, noise, rate, steps, delta=DELTA):
    return epsilon_after(make_accountant(kind), noise, rate, steps, delta)


# Noise multipliers for 2400 examples, 200 epochs, delta 1e-4: (epsilon, batch) -> classic_rdp, rdp, prv.
TABLE = {
    (0.2, 16): (28.18, 17.34, 16.25),
    (0.57, 16): (8.87, 6.77, 6.25),
    (1, 64): (10.22, 8.15, 7.50),
    (2.81, 128): (5.42, 4.67, 4.32),
}


@pytest.mark.parametrize(("budget", "expected"), TABLE.items())
def test_noise_of_the_quick_accountants_is_as_published(budget, expected):
    epsilon, batch = budget
    for kind, reference in zip(("classic_rdp", "rdp"), expected, strict=False):
        z = noise_multiplier(epsilon, DELTA, batch / 2400, 200 * 2400 // batch, kind)
        assert z == pytest.approx(reference, rel=0.02)
        assert spent(kind, z, batch / 2400, 200 * 2400 // batch) <= epsilon
        assert spent(kind, z / 1.01, batch / 2400, 200 * 2400 // batch) > epsilon


@pytest.mark.parametrize("budget", [(1, 64), (2.81, 128)])
def test_noise_of_the_tight_accountant_is_as_published_and_the_least(budget):
    epsilon, batch = budget
    rate, steps = batch / 2400, 200 * 2400 // batch
    prv, rdp, classic = (noise_multiplier(epsilon, DELTA, rate, steps, kind) for kind in ACCOUNTANTS)
    assert prv == pytest.approx(TABLE[budget][2], rel=0.02)
    assert prv < rdp < classic
    assert spent("prv", prv, rate, steps) <= epsilon


def test_the_classic_conversion_is_its_formula_without_subsampling():
    z, steps = 3.0, 7
    by_order = [steps * order / (2 * z * z) - math.log(DELTA) / (order - 1) for order in range(2, 65)]
    assert spent("classic_rdp", z, 1.0, steps) == pytest.approx(min(by_order))


@pytest.mark.parametrize("kind", ["rdp", "classic_rdp"])
def test_many_rounds_spend_what_one_long_run_does(kind):
    long = make_accountant(kind)
    for _ in range(12):
        long.step(noise_multiplier=1.5, sample_rate=0.1)
    state = history_to_lists(make_accountant(kind))
    for _ in range(4):  # each round a new accountant, as in a client's process
        accountant = load_history(make_accountant(kind), json.loads(json.dumps(state)))
        for _ in range(3):
            accountant.step(noise_multiplier=1.5, sample_rate=0.1)
        state = history_to_lists(accountant)
    assert state == {"mechanism": kind, "noise": [1.5], "rate": [0.1], "steps": [12]}
    assert epsilon_spent(accountant, DELTA) == epsilon_spent(long, DELTA)
    assert steps_taken(accountant) == 12


def test_unlike_steps_are_kept_apart():
    accountant = make_accountant("rdp")
    for noise, rate in ((1.0, 0.1), (1.0, 0.1), (2.0, 0.1), (2.0, 0.2)):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    lists = history_to_lists(accountant)
    assert lists["steps"] == [2, 1, 1]
    assert epsilon_spent(load_history(make_accountant("rdp"), lists), DELTA) == epsilon_spent(accountant, DELTA)


@pytest.mark.parametrize("kind", ACCOUNTANTS)
def test_nothing_is_spent_by_nothing_and_everything_without_noise(kind):
    accountant = make_accountant(kind)
    assert epsilon_spent(accountant, DELTA) == 0
    accountant.step(noise_multiplier=0.0, sample_rate=0.1)
    assert epsilon_spent(accountant, DELTA) == math.inf


def test_steps_within_a_budget_are_the_most_there_are():
    accountant = make_accountant("rdp")
    accountant.step(noise_multiplier=1.0, sample_rate=0.05)
    allowed = steps_within(accountant, 1.0, 0.05, 2.0, DELTA)
    assert epsilon_after(accountant, 1.0, 0.05, allowed, DELTA) <= 2.0
    assert epsilon_after(accountant, 1.0, 0.05, allowed + 1, DELTA) > 2.0
    assert steps_within(accountant, 1.0, 0.05, 2.0, DELTA, most=allowed - 3) == allowed - 3
    assert steps_within(accountant, 1.0, 0.05, 2.0, DELTA, most=10 * allowed) == allowed
    assert steps_within(accountant, 0.0, 0.05, 2.0, DELTA) == 0
    assert steps_taken(accountant) == 1  # asking spends nothing


def test_noise_holds_over_a_range_of_budgets():
    for epsilon, rate in ((0.2, 0.001), (1.0, 1.0), (20.0, 0.05)):
        z = noise_multiplier(epsilon, 1e-5, rate, 50, "classic_rdp" if epsilon > 0.5 else "rdp")
        kind = "classic_rdp" if epsilon > 0.5 else "rdp"
        assert 0.95 * epsilon < spent(kind, z, rate, 50, 1e-5) <= epsilon


def test_budgets_that_the_quick_accountant_cannot_count_take_the_tight_one():
    with pytest.raises(ValueError, match=r"no noise keeps epsilon=0.08 .* or use accountant prv"):
        noise_multiplier(0.08, 1e-5, 0.001, 5, "rdp")
    z = noise_multiplier(0.08, 1e-5, 0.001, 5, "prv", tolerance=0.1)
    assert spent("prv", z, 0.001, 5, 1e-5) <= 0.08


def test_the_history_of_another_mechanism_is_refused():
    lists = history_to_lists(make_accountant("prv"))
    with pytest.raises(ValueError, match="accountant rdp cannot go on from a history of accountant prv"):
        load_history(make_accountant("rdp"), lists)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0}, "epsilon must be a positive number, got 0"),
        ({"epsilon": math.nan}, "epsilon must be a positive number, got nan"),
        ({"delta": 0}, r"delta must be in \(0, 1\), got 0"),
        ({"delta": 1}, r"delta must be in \(0, 1\), got 1"),
        ({"sample_rate": 1.5}, r"sample_rate must be in \(0, 1\], got 1.5"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accountant": "gdp"}, "accountant must be one of prv, rdp, classic_rdp, got 'gdp'"),
        ({"epsilon": 1e-3, "accountant": "classic_rdp"}, r"no noise keeps epsilon=0.001 .* allow a larger epsilon"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    good = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 10, "accountant": "rdp"}
    with pytest.raises(ValueError, match=message):
        noise_multiplier(**{**good, **change})


@pytest.mark.parametrize("kind", ["rdp", "classic_rdp"])
@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.5, 12.0), delta=st.floats(1e-7, 1e-2), rate=st.floats(0.002, 0.6), steps=st.integers(1, 3000)
)
def test_noise_is_looked_for_at_few_orders_and_is_that_of_all(kind, epsilon, delta, rate, steps):
    z = noise_multiplier(epsilon, delta, rate, steps, kind)
    assert epsilon_after(make_accountant(kind), z, rate, steps, delta) <= epsilon
    assert epsilon_after(make_accountant(kind), z / 1.003, rate, steps, delta) > epsilon


@pytest.mark.parametrize(("epsilon", "delta", "rate", "steps"), [(1e300, 0.99, 1.0, 1), (1e4, 1e-5, 0.5, 3)])
def test_budgets_that_are_next_to_none(epsilon, delta, rate, steps):
    assert 0 < noise_multiplier(epsilon, delta, rate, steps, "rdp") < 0.1


@pytest.mark.parametrize("epsilon", [1e-18, 1e-200])
def test_budgets_that_nothing_keeps(epsilon):
    with pytest.raises(ValueError, match="no noise keeps epsilon"):
        noise_multiplier(epsilon, 1e-5, 0.1, 10, "rdp")


@pytest.mark.parametrize("history", [[(1.1, 0.01, 300)], [(0.8, 0.02, 5), (2.0, 0.02, 70), (0.8, 0.02, 1)]])
def test_remembered_steps_cost_what_opacus_says(history):
    ours, peer = make_accountant("rdp"), RDPAccountant()
    ours.history, peer.history = list(history), list(history)
    for _ in range(2):  # the second time from memory
        assert ours.get_privacy_spent(delta=1e-5) == peer.get_privacy_spent(delta=1e-5)
    orders = [2.5, 3.0, 8]
    assert ours.get_epsilon(1e-6, orders) == peer.get_epsilon(1e-6, orders)


def test_the_number_of_items_cancels_from_the_energy_of_the_noise():
    """E z^2 / b^2 for 200 epochs at one epsilon: the published scaling law."""
    energies = []
    for items in (600, 1200, 2400, 4800):
        steps = 200 * math.ceil(items / 32)
        z = noise_multiplier(1.0, 1e-4, 32 / items, steps, "rdp")
        energies.append(items / 32 * z**2 / 32**2)
    assert max(energies) / min(energies) < 1.03
