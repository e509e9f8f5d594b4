import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import ConfigurationError
from framework.rl.criteria import (
    CRITERIA,
    ActorFit,
    ActorLoss,
    AlphaLoss,
    FixedStep,
    Plateau,
    RewardThreshold,
    criterion,
)
from framework.stages import Schedule, Switch

values = st.lists(st.floats(-100, 100), min_size=2, max_size=40)


def feed(made, series, every=1000):
    """At which check, from 0, it is first due; None if at none."""
    for number, value in enumerate(series):
        if made.due((number + 1) * every, {made.needs[0]: value}):
            return number
    return None


def averages(signals, smoothing):
    """The moving averages by their closed form: weights smoothing^k (1 - smoothing), the rest on the first signal."""
    for n in range(len(signals)):
        weights = [(1 - smoothing) * smoothing**k for k in range(n)] + [smoothing**n]
        yield sum(w * x for w, x in zip(weights, reversed(signals[: n + 1])))


def first_run(holds, patience):
    """The end of the first run of so many true values."""
    run = 0
    for number, each in enumerate(holds):
        run = run + 1 if each else 0
        if run == patience:
            return number
    return None


@given(values, st.floats(0, 0.95), st.integers(1, 4))
def test_alpha_loss_is_due_once_the_average_slope_of_its_absolute_value_is_flat(series, smoothing, patience):
    slopes = [abs(b) - abs(a) for a, b in itertools.pairwise(series)]  # per 1000 steps, which a check is apart
    holds = [abs(average) < 5 for average in averages(slopes, smoothing)]
    if any(abs(abs(average) - 5) < 1e-9 for average in averages(slopes, smoothing)):
        return
    expected = first_run(holds, patience)
    got = feed(AlphaLoss(eps=5, smoothing=smoothing, patience=patience), series)
    assert got == (None if expected is None else expected + 1)


@given(values, st.integers(1, 4))
def test_actor_loss_is_due_once_it_changes_little(series, patience):
    changes = [abs(b - a) / max(abs(a), 1e-8) for a, b in itertools.pairwise(series)]
    expected = first_run([change < 0.3 for change in changes], patience)
    got = feed(ActorLoss(eps=0.3, smoothing=0, patience=patience), series)
    assert got == (None if expected is None else expected + 1)


@given(values, st.integers(1, 4))
def test_actor_fit_is_due_once_others_are_hardly_better(series, patience):
    assert feed(ActorFit(eps=2, smoothing=0, patience=patience), series) == first_run(
        [v > -2 for v in series], patience
    )


@given(values, st.floats(-50, 50), st.integers(1, 4))
def test_reward_threshold_is_due_once_it_is_reached(series, threshold, patience):
    expected = first_run([value >= threshold for value in series], patience)
    assert feed(RewardThreshold(threshold, patience=patience), series) == expected


@given(values, st.integers(1, 8), st.floats(0, 10), st.sampled_from(["max", "min"]))
def test_plateau_is_due_once_nothing_has_improved(series, checks, delta, mode):
    sign = 1 if mode == "max" else -1
    best, since, expected = -math.inf, 0, None
    for number, value in enumerate(series):
        if sign * value > best + delta:
            best, since = sign * value, number
        if number - since >= checks:
            expected = number
            break
    assert feed(Plateau(checks * 1000, min_delta=delta, mode=mode), series) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: AlphaLoss(patience=1),
        lambda: ActorLoss(patience=1),
        lambda: ActorFit(patience=1),
        lambda: RewardThreshold(0.0),
        lambda: Plateau(1, "alpha_loss"),
        lambda: FixedStep(1),
    ],
    ids=["alpha_loss", "actor_loss", "actor_fit", "reward_threshold", "plateau", "fixed"],
)
@given(st.integers(1, 50_000), st.sampled_from([0.0, 1.0, -1.0, 1e-12]))
def test_no_flat_signal_ends_a_stage_before_its_minimum(make, least, value):
    made = make()
    schedule = Schedule([Switch(made, least)])
    name = (*made.needs, "nothing")[0]
    for step in range(1000, least + 5001, 1000):
        schedule.check(step, {name: value})
    assert all(step >= least for step in schedule.history)
    if not (isinstance(made, RewardThreshold | ActorFit) and value < 0):
        (switch,) = schedule.history  # what was flat all along ends it at the first check after that, or at the second
        assert switch - least < 3000


def test_a_moving_average_does_not_begin_at_zero():
    steep = [1000.0 * number for number in range(30)]  # an average that began at 0 would be small for a while
    assert feed(AlphaLoss(eps=500, smoothing=0.99, patience=1), steep) is None


def test_what_was_not_measured_neither_holds_nor_fails():
    made = RewardThreshold(1.0, patience=2)
    told = [{}, {"return/collected": 2.0}, {}, {}, {"return/collected": 2.0}]
    assert [made.due(step, each) for step, each in enumerate(told, 1)] == [False, False, False, False, True]
    made = Plateau(steps=5)
    assert not made.due(100, {})  # nothing has been measured that could have improved
    name = made.needs[0]
    assert [made.due(step, told) for step, told in ((200, {name: 1.0}), (300, {}), (400, {name: 2.0}))] == [False] * 3
    assert made.due(500, {name: 2.0})


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "fixed"])
@given(values, st.data())
def test_a_criterion_goes_on_from_its_state(name, series, data):
    arguments = {"reward_threshold": {"threshold": 1.0}, "plateau": {"steps": 3000}}.get(name, {"eps": 3.0})
    whole, first, second = (criterion({"name": name, **arguments}) for _ in range(3))
    cut = data.draw(st.integers(0, len(series)))
    for number, value in enumerate(series):
        if number == cut:
            second.load_state_dict(first.state_dict())
        told = {whole.needs[0]: value}
        assert whole.due(number * 1000 + 1000, told) == (first if number < cut else second).due(
            number * 1000 + 1000, told
        )


def test_criteria_are_found_by_name_class_and_path():
    assert isinstance(criterion("alpha_loss"), AlphaLoss)
    assert criterion({"name": "AlphaLoss", "eps": 0.5}).eps == 0.5
    path = "framework.rl.criteria.FixedStep"  # as for a class of one's own
    for entry in ({"name": path, "steps": 7}, {"class_path": path, "init_args": {"steps": 7}}):
        made = criterion(entry)
        assert (made.earliest, made.due(6, {}), made.due(7, {})) == (7, False, True)
    once = RewardThreshold(1.0, patience=3)
    assert criterion(once) is not once  # stages do not share what they remember
    assert criterion(once).patience == 3


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("alpha_los", "criterion: no criterion 'alpha_los'; there are fixed, .*; did you mean alpha_loss"),
        ("nowhere.Criterion", "criterion: No module named 'nowhere'"),
        ("framework.rl.criteria.Nothing", "criterion: .*has no attribute 'Nothing'"),
        (7, "criterion must be a name, or a mapping with name and arguments; got 7"),
        ({"steps": 3}, "criterion must be a name, or a mapping with name and arguments; got"),
        ("framework.rl.curriculum.RewardStage", r"criterion .* missing a required argument: 'weights'"),
        ({"name": "framework.rl.curriculum.RewardStage", "weights": [1]}, "is no criterion: it has no needs"),
        ("framework.rl.criteria.RETURNS", "framework.rl.criteria.RETURNS. must be a class of criteria, got {"),
        ({"class_path": "fixed", "init_args": None}, r"criterion \(fixed\): missing a required argument: 'steps'"),
        ("fixed", r"criterion \(fixed\): missing a required argument: 'steps'"),
        (
            {"name": "fixed", "step": 3},
            "criterion .fixed. has no .step.; there are steps; did you",
        ),
        ({"name": "fixed", "steps": 0}, "steps must be a whole number of at least 1, got 0"),
        (
            {"name": "reward_threshold", "threshold": math.nan},
            "threshold must be .*never.*got nan",
        ),
        (
            {"name": "reward_threshold", "threshold": math.inf},
            "threshold must be .*never.*got inf",
        ),
        (
            {"name": "reward_threshold", "threshold": 1, "of": "test"},
            "of must be evaluation or coll",
        ),
        (
            {"name": "alpha_loss", "eps": 0},
            "eps must be positive, or the criterion can never be due",
        ),
        ({"name": "alpha_loss", "eps": math.nan}, "eps must be positive.*got nan"),
        ({"name": "actor_loss", "smoothing": 1}, r"smoothing must be in \[0, 1\), got 1"),
        (
            {"name": "actor_fit", "patience": 0},
            "patience must be a whole number of at least 1, got 0",
        ),
        ({"name": "actor_fit", "spread": -1}, "spread must be positive or null, got -1"),
        ({"name": "actor_fit", "states": 1}, "states must be a whole number of at least 2, got 1"),
        (
            {"name": "plateau", "steps": 5, "of": "actor_los"},
            "of must be return/evaluation, .*; did you mean actor_loss",
        ),
        ({"name": "plateau", "steps": 5, "mode": "up"}, "mode must be max or min, got 'up'"),
        ({"name": "plateau", "steps": 5, "min_delta": -1}, "min_delta must be .* got -1"),
    ],
)
def test_what_can_never_be_due_or_is_no_criterion_is_refused(given_, message):
    with pytest.raises(ConfigurationError, match=message):
        criterion(given_)
