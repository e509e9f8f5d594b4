import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import ConfigurationError
from framework.rl.curriculum import RewardStage, priced, reward_stages
from framework.rl.measures import Means, actor_fit

NAMES, DEFAULTS = ("goal", "progress", "energy"), (10.0, 1.0, 0.5)


def stages(entries, base=("goal", "progress"), aux=None, mix="convex"):
    return reward_stages(entries, NAMES, DEFAULTS, base, aux, mix)


@given(st.floats(0, 1), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_mix_weighs_the_rewards_of_both_groups(w, components):
    base, aux = 10 * components[0] + components[1], 0.5 * components[2]
    for mix, expected in (("convex", (1 - w) * base + w * aux), ("add", base + w * aux)):
        (stage,) = stages([{"weight": w}], mix=mix)
        assert np.dot(stage.weights, components) == pytest.approx(expected, abs=1e-9)


def test_groups_are_names_or_weights_and_the_rest_is_the_other():
    full = [{"weight": 1.0}]
    assert stages(full, ["goal"], mix="add")[0].weights == (10, 1, 0.5)
    assert stages(full, {"goal": 3}, ["energy"], mix="add")[0].weights == (3, 0, 0.5)
    assert stages(full, None, ["energy"], mix="add")[0].weights == (10, 1, 0.5)
    assert stages([{"weight": 0}], None, {"energy": 7})[0].weights == (10, 1, 0)


def test_weights_are_by_component_by_group_or_in_order():
    assert stages([{"weights": {"goal": 2}}], None)[0].weights == (2, 0, 0)
    assert stages([{"weights": {"base": 2, "energy": 1}}])[0].weights == (20, 2, 1)
    assert stages([{"weights": [1, 2, 3]}], None)[0].weights == (1, 2, 3)


@given(st.integers(1, 1000), st.integers(0, 2000))
def test_weights_anneal_linearly_and_end_exactly(steps, elapsed):
    stage = RewardStage((0.3, -2.0), steps)
    got = stage.at(elapsed, (1.0, 0.1))
    if elapsed >= steps:
        assert got == stage.weights
    else:
        share = elapsed / steps
        assert got == pytest.approx((1 + share * (0.3 - 1), 0.1 + share * (-2.1)))
    assert stage.at(0, (1.0, 0.1)) == (1.0, 0.1)
    assert stage.at(0, None) == stage.weights  # nothing to come from
    assert RewardStage((1.0,)).at(0, (0.0,)) == (1.0,)


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        ([], {}, "stages must hold at least one stage"),
        ([{}], {}, r"stages\[0\] must have either weight .* or weights, got \{\}"),
        ([{"weight": 0, "weights": {"goal": 1}}], {}, r"stages\[0\] must have either"),
        ([{"weight": 0}, {"weight": 1.5}], {}, r"stages\[1\].weight must be in \[0, 1\], got 1.5"),
        ([{"weight": -1}], {"mix": "add"}, r"stages\[0\].weight must be at least 0, got -1"),
        ([{"weight": math.nan}], {}, r"stages\[0\].weight must be a finite number, got nan"),
        ([{"weight": 0}], {"base": None}, r"stages\[0\].weight needs base or aux"),
        (
            [{"weights": {"gaol": 1}}],
            {},
            r"stages\[0\].weights: no component 'gaol'; there are goal, .*did you mean goal",
        ),
        ([{"weights": {"base": 1}}], {"base": None}, "no component 'base'; there are goal, progress, energy"),
        (
            [{"weights": [1, 2]}],
            {},
            r"stages\[0\].weights must be 3 numbers, for goal, progress, energy, .* got \[1, 2\]",
        ),
        ([{"weights": {}}], {}, r"stages\[0\].weights must give weights by name"),
        ([{"weights": {"goal": "much"}}], {}, r"stages\[0\].weights.goal must be a finite number, got 'much'"),
        ([{"weight": 0}], {"base": ["goals"]}, "base: no component 'goals'; there are goal, progress, energy; did you"),
        ([{"weight": 0}], {"aux": {"energie": 1}}, "aux: no component 'energie'"),
        ([{"weight": 0}], {"base": "goal"}, "base must be a list of components, or weights by name; got 'goal'"),
        ([{"weight": 0}], {"mix": "sum"}, "mix must be convex or add, got 'sum'"),
        ([{"weight": 0, "anneal_steps": 5}], {}, r"stages\[0\].anneal_steps must be 0: .* got 5"),
        ([{"weight": 0}, {"weight": 1, "anneal_steps": -5}], {}, r"stages\[1\].anneal_steps must be .* got -5"),
    ],
)
def test_stages_that_make_no_sense_are_refused(entries, more, message):
    with pytest.raises(ConfigurationError, match=message):
        stages(entries, **more)


def test_data_without_components_are_refused_by_name():
    with pytest.raises(TypeError, match="list has no buffer, which RewardCurriculum needs: a framework"):
        priced([], "RewardCurriculum")
    with pytest.raises(TypeError, match="data without a DataModule has no buffer"):
        priced(None, "RewardCurriculum")


@given(st.lists(st.lists(st.floats(-10, 10), max_size=5), min_size=1, max_size=4))
def test_means_are_those_over_all_ranks(ranks):
    together = [value for rank in ranks for value in rank]
    kept = []
    for values in ranks:
        means = Means()
        for value in values:
            means.add("x", torch.tensor(value, dtype=torch.float64))
        other = Means()
        other.load_state_dict(means.state_dict())
        kept.append(other)
    tables = []
    for means in kept[1:]:
        means.take(("x", "y"), lambda table: tables.append(table) or table)
    got = kept[0].take(("x", "y"), lambda table: table + sum(tables))
    assert got.keys() == ({"x"} if together else set())  # nothing on any rank is no value, not 0
    if together:
        assert got["x"] == pytest.approx(np.mean(together), abs=1e-9)
    assert kept[0].take(("x",)) == {}


class Bowl:
    """Q has its top at an action that depends on the state; the actor misses it by an offset."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def act(self, observation, deterministic=False, generator=None):
        return (0.1 * observation[:, :1] + self.offset).clamp(-1, 1)

    def q(self, observation, action):
        best = -((action - 0.1 * observation[:, :1]) ** 2).squeeze(-1) + observation[:, 0]
        return torch.stack([best, best + 1])  # the smallest counts


@pytest.mark.parametrize("spread", [0.2, None])
def test_actor_fit_by_brute_force(spread):
    observation = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    module = Bowl(0.3)
    got = actor_fit(module, observation, 5, spread, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    own = module.q(observation, module.act(observation)).amin(0)
    if spread is None:
        others = torch.rand(5, 6, 1, generator=generator) * 2 - 1
    else:
        others = (module.act(observation) + spread * torch.randn(5, 6, 1, generator=generator)).clamp(-1, 1)
    fits = []
    for state in range(6):
        qs = [float(module.q(observation[state : state + 1], others[m, state : state + 1]).amin(0)) for m in range(5)]
        fits.append(float(own[state]) - max(qs))
    assert float(got) == pytest.approx(np.mean(fits) / float(own.std()), rel=1e-5)


def test_actor_fit_tells_a_good_actor_from_one_that_misses():
    observation = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    fits = [
        float(actor_fit(Bowl(offset), observation, 8, 0.2, torch.Generator().manual_seed(1)))
        for offset in (0, 0.2, 0.5)
    ]
    assert fits[0] >= 0 > fits[1] > fits[2]
