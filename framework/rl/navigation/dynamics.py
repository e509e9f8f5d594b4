"""How a unicycle moves: bounded accelerations, then a circular arc."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from framework.rl.navigation.geometry import Array
from framework.rl.navigation.settings import Settings


class Motion(NamedTuple):
    """Place and velocity of robots; every field has shape ``(B,)``.

    Attributes:
        x: Metres.
        y: Metres.
        heading: Radians in [-pi, pi].
        speed: Metres per second along the heading.
        turn: Radians per second, counter-clockwise.
    """

    x: Array
    y: Array
    heading: Array
    speed: Array
    turn: Array


def advance(before: Motion, action: Array, settings: Settings) -> Motion:
    """One step: velocities change at once, within their bounds, and then stay for ``dt``.

    With a turn by the angle ``a`` on the way the robot runs along an arc, whose chord is ``sin(a/2) / (a/2)`` times as
    long and points half the angle further.

    Args:
        before: Where the robots are.
        action: Accelerations along and around, in [-1, 1] of the largest, shape ``(2, B)``.
        settings: Bounds and ``dt``.
    """
    dt = settings.dt
    speed = np.minimum(
        np.maximum(before.speed + settings.max_acceleration * dt * action[0], settings.min_speed), settings.max_speed
    )
    turn = before.turn + settings.max_turn_acceleration * dt * action[1]
    turn = np.minimum(np.maximum(turn, -settings.max_turn), settings.max_turn)
    half = turn * (dt / 2)
    chord = speed * dt * np.sinc(half / np.pi)
    x = before.x + chord * np.cos(before.heading + half)
    y = before.y + chord * np.sin(before.heading + half)
    heading = before.heading + 2 * half
    return Motion(x, y, heading - 2 * np.pi * np.rint(heading / (2 * np.pi)), speed, turn)


def patrol(ends: Array, phase: Array) -> Array:
    """Where discs are that go to and fro between two points.

    Args:
        ends: First and last point, shape ``(2, 2, M, B)``: coordinate, end, disc, robot.
        phase: In [0, 2): there and back, shape ``(M, B)``.

    Returns:
        Places, shape ``(2, M, B)``.
    """
    share = 1 - np.abs(1 - phase)
    place: Array = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * share
    return place
