import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import ConfigurationError
from framework.stages import Schedule, Switch


class Told:
    """Due when the value says so."""

    needs = ("due",)
    earliest = 0

    def __init__(self) -> None:
        self.seen: list[int] = []

    def due(self, step, values):
        self.seen.append(step)
        return values["due"] > 0

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


bounds = st.integers(0, 40).flatmap(
    lambda least: st.tuples(st.just(least), st.none() | st.integers(max(least, 1), least + 60))
)
checks = st.lists(st.tuples(st.integers(1, 15), st.booleans()), min_size=1, max_size=60)


@given(st.lists(bounds, max_size=4), checks)
def test_every_stage_lasts_within_its_bounds_and_is_left_once(limits, told):
    schedule = Schedule([Switch(Told(), least, most) for least, most in limits])
    step, begins, indices = 0, [0], [0]
    for gap, due in told:
        step += gap
        before, elapsed = schedule.index, step - schedule.began
        switched = schedule.check(step, {"due": float(due)})
        if before < len(limits):
            least, most = limits[before]
            assert switched == (elapsed >= least and (due or (most is not None and elapsed >= most)))
        else:
            assert not switched
        assert schedule.index == before + switched
        if switched:
            begins.append(step)
            indices.append(schedule.index)
    assert schedule.history == begins[1:]
    assert schedule.began == begins[-1]
    assert indices == list(range(len(indices)))  # no stage is skipped or repeated


@given(st.lists(bounds, min_size=1, max_size=3), checks, st.data())
def test_a_schedule_goes_on_from_its_state(limits, told, data):
    def fresh():
        return Schedule([Switch(Told(), least, most) for least, most in limits])

    whole, first, second = fresh(), fresh(), fresh()
    cut = data.draw(st.integers(0, len(told)))
    step = 0
    for number, (gap, due) in enumerate(told):
        step += gap
        if number == cut:
            second.load_state_dict(first.state_dict())
        whole.check(step, {"due": float(due)})
        (first if number < cut else second).check(step, {"due": float(due)})
    assert (first if cut == len(told) else second).state_dict() == whole.state_dict()


def test_a_criterion_is_told_the_steps_of_its_own_stage():
    schedule = Schedule([Switch(Told(), 10), Switch(Told(), 10)])
    for step in range(5, 45, 5):
        schedule.check(step, {"due": 1.0})
    assert schedule.history == [10, 20]
    assert [switch.criterion.seen for switch in schedule.switches] == [[5, 10], [5, 10]]
    assert schedule.needs == ()
    assert schedule.earliest == 20


def test_a_number_that_is_not_finite_was_not_measured():
    seen = []
    told = Told()
    told.due = lambda step, values: seen.append(dict(values)) or False
    schedule = Schedule([Switch(told)])
    schedule.check(1, {"due": float("nan"), "other": 2.0})
    schedule.check(2, {"due": float("inf")})
    assert seen == [{"other": 2.0}, {}]


def test_a_single_stage_is_never_left():
    schedule = Schedule()
    assert not schedule.check(10**9, {})
    assert (schedule.index, schedule.history, schedule.needs, schedule.switch) == (0, [], (), None)


@pytest.mark.parametrize(
    ("least", "most", "message"),
    [
        (-1, None, "min_steps must be a whole number of at least 0, got -1"),
        (1.5, None, "min_steps must be a whole number of at least 0, got 1.5"),
        (0, 0, "max_steps must be a whole number of at least 1 or null, got 0"),
        (10, 9, "max_steps must be at least min_steps = 10, got 9"),
    ],
)
def test_bounds_that_leave_no_time_are_refused(least, most, message):
    with pytest.raises(ConfigurationError, match=message):
        Switch(Told(), least, most)


def test_a_criterion_that_the_bound_forestalls_is_refused():
    late = Told()
    late.earliest = 100
    assert Switch(late, 0, 100).earliest == 100
    with pytest.raises(
        ConfigurationError, match="Told can never be due: max_steps = 99 ends the stage before its step 100"
    ):
        Switch(late, 0, 99)


def test_a_bound_that_leaves_too_few_checks_is_refused():
    patient = Told()
    patient.checks = 5
    assert Switch(patient, 0, 30, 10).earliest == 30  # the first check may come at once, the second just after it
    with pytest.raises(ConfigurationError, match="Told can never be due: max_steps = 29 ends the stage before its"):
        Switch(patient, 0, 29, 10)


class Other(Told):
    pass


def test_a_state_of_other_stages_is_refused():
    with pytest.raises(
        ValueError, match=r"criterion of stage 1 is .*Told, but the checkpoint's is .*Other: go on with"
    ):
        Schedule([Switch(Told())]).load_state_dict(Schedule([Switch(Other())]).state_dict())
    with pytest.raises(ValueError, match="there are 1 stages, but the checkpoint is of 2"):
        Schedule().load_state_dict(Schedule([Switch(Told())]).state_dict())
