"""The arc of a step against its closed form and against integration in small steps; bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.rl.navigation.dynamics import Motion, advance, patrol
from framework.rl.navigation.settings import Settings

SETTINGS = Settings(min_speed=-0.5)


def motion(*values):
    return Motion(*(np.array([float(value)]) for value in values))


@given(
    st.floats(-math.pi, math.pi),
    st.floats(-0.5, 1),
    st.one_of(st.just(0.0), st.floats(-1.5, 1.5)),
    st.floats(-1, 1),
    st.floats(-1, 1),
)
def test_a_step_is_an_arc(heading, speed, turn, push, twist):
    after = advance(motion(1, -2, heading, speed, turn), np.array([[push], [twist]]), SETTINGS)
    dt, v, w = SETTINGS.dt, float(after.speed[0]), float(after.turn[0])
    assert abs(v - speed) <= SETTINGS.max_acceleration * dt + 1e-12
    assert abs(w - turn) <= SETTINGS.max_turn_acceleration * dt + 1e-12
    assert -0.5 <= v <= 1
    assert -1.5 <= w <= 1.5
    assert -math.pi <= after.heading[0] <= math.pi
    assert math.remainder(after.heading[0] - heading - w * dt, 2 * math.pi) == pytest.approx(0, abs=1e-12)
    # The middle rule in small steps; and the closed form of a circle of radius v / w.
    angles = heading + w * dt * (np.arange(1000) + 0.5) / 1000
    moved = v * dt * np.array([np.cos(angles).mean(), np.sin(angles).mean()])
    assert [after.x[0] - 1, after.y[0] + 2] == pytest.approx(moved, abs=1e-8)
    if abs(w) > 1e-3:
        arc = [math.sin(heading + w * dt) - math.sin(heading), math.cos(heading) - math.cos(heading + w * dt)]
        assert [after.x[0] - 1, after.y[0] + 2] == pytest.approx([v / w * part for part in arc], abs=1e-10)


def test_a_full_circle_comes_back():
    steps = 80
    turn = 2 * math.pi / (steps * SETTINGS.dt)
    state = motion(0.3, 0.4, 0.5, 0.7, turn)
    for _ in range(steps):
        state = advance(state, np.zeros((2, 1)), SETTINGS)
    assert [field[0] for field in state] == pytest.approx([0.3, 0.4, 0.5, 0.7, turn], abs=1e-12)


def test_patrol_goes_there_and_back():
    ends = np.array([[0.0, 4.0], [1.0, 3.0]]).reshape(2, 2, 1, 1)
    for phase, share in ((0, 0), (0.25, 0.25), (1, 1), (1.5, 0.5), (1.75, 0.25)):
        assert patrol(ends, np.full((1, 1), phase))[:, 0, 0] == pytest.approx([4 * share, 1 + 2 * share])
