"""Rooms drawn at random, in which the robot begins in the open and its goal can be reached.

Static obstacles are convex and farther from one another and from the walls than the robot is wide: grown by the robot's
radius they stay apart, so that what is left of the room is in one piece. Discs patrol where they touch neither static
obstacles nor a robot at the start or the goal; who stands still at the start is never run over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from framework.rl.navigation.geometry import Array
from framework.rl.navigation.settings import MARGIN, Settings

Flags = NDArray[np.bool_]

CANDIDATES = 48
"""Places tried for each thing before a world is given up."""

ATTEMPTS = 200
"""Worlds tried before it is said that there is no room."""

BLOCK = 512
"""Worlds drawn at once; more would take memory and gain nothing."""


def draw(settings: Settings, generators: Sequence[np.random.Generator]) -> dict[str, Array]:
    """One world from each generator; what a generator yields does not depend on the others.

    Args:
        settings: What to draw.
        generators: One a robot.

    Returns:
        Arrays whose last axis is the robot: ``start`` (x, y, heading) ``(3, B)``, ``goal`` ``(2, B)``, ``circles``
        (x, y, radius) ``(3, C, B)``, ``polygons`` (corners) ``(2, P, V, B)``, ``room`` (corners) ``(2, 4, B)``,
        ``patrols`` ``(2, 2, M, B)``, ``phase`` ``(M, B)`` and ``pace`` (phase per step) ``(M, B)``.

    Raises:
        ValueError: If the obstacles find no place.
    """
    worlds: dict[str, Array] = {}
    waiting, attempts = np.arange(len(generators)), np.zeros(len(generators), dtype=np.int64)
    while len(waiting):
        chosen, rest = waiting[:BLOCK], waiting[BLOCK:]
        if attempts[chosen].max() == ATTEMPTS:
            raise ValueError(
                f"no place for {settings.circles} circles, {settings.polygons} polygons and {settings.moving} moving "
                f"discs in a room of {settings.room} m with start and goal {settings.min_distance} to "
                f"{settings.max_distance} m apart: give fewer or smaller obstacles, or a larger room"
            )
        attempts[chosen] += 1
        drawn, good = _attempt(settings, _Numbers(settings, [generators[index] for index in chosen]))
        for name, array in drawn.items():
            if name not in worlds:
                worlds[name] = np.empty((*array.shape[:-1], len(generators)))
            worlds[name][..., chosen[good]] = array[..., good]
        waiting = np.concatenate([chosen[~good], rest])
    return worlds


class _Numbers:
    """Uniform numbers, handed out in order: every world takes equally many, so that one call per generator does."""

    def __init__(self, settings: Settings, generators: Sequence[np.random.Generator]) -> None:
        static, tries = settings.circles + settings.polygons, CANDIDATES
        count = 4 * tries + 1 + static * (1 + 2 * tries)
        count += settings.polygons * (1 + settings.sides) + settings.moving * (4 * tries + 2)
        self.block = np.stack([generator.random(count) for generator in generators], axis=1)
        self.at = 0

    def take(self, *shape: int) -> Array:
        size = math.prod(shape)
        self.at += size
        return self.block[self.at - size : self.at].reshape(*shape, self.block.shape[1])


def _attempt(settings: Settings, numbers: _Numbers) -> tuple[dict[str, Array], Flags]:
    """Worlds, and which of them are good."""
    half, robot, circles = settings.half, settings.robot_radius, settings.circles
    inner = half - robot - MARGIN
    u = numbers.take(4, CANDIDATES)
    start = inner * (2 * u[:2] - 1)
    away = settings.min_distance + (settings.max_distance - settings.min_distance) * u[3]
    goal = start + away * _directions(u[2])
    (start, goal), good = _first([start, goal], (np.abs(goal) <= inner).all(axis=0))
    heading = np.pi * (2 * numbers.take() - 1)
    worlds = len(good)

    # Start and goal come first among what later things keep away from: places with the space around them.
    static = circles + settings.polygons
    places, space = np.empty((2, 2 + static, worlds)), np.empty((2 + static, worlds))
    places[:, 0], places[:, 1], space[:2] = start, goal, robot + MARGIN
    needed = np.full((2 + static, 1, 1), settings.gap)
    needed[:2] = 0
    radii = settings.min_radius + (settings.max_radius - settings.min_radius) * numbers.take(static)
    tries = 2 * numbers.take(static, 2, CANDIDATES) - 1
    for index in range(2, 2 + static):
        radius = radii[index - 2]
        place = (half - radius - settings.gap) * tries[index - 2]
        apart = place[:, None] - places[:, :index, None]
        fits = apart[0] ** 2 + apart[1] ** 2 >= (radius + space[:index, None] + needed[:index]) ** 2
        (places[:, index],), found = _first([place], fits.all(axis=0))
        space[index] = radius
        good &= found

    turned = np.arange(settings.sides)[:, None] + 0.6 * numbers.take(settings.polygons, settings.sides)
    angle = (turned + settings.sides * numbers.take(settings.polygons, 1)) / settings.sides
    corners = places[:, 2 + circles :, None] + radii[circles:, None] * _directions(angle)

    u = numbers.take(4, settings.moving, CANDIDATES)
    reach = half - settings.moving_radius - MARGIN
    middle = reach * (2 * u[:2] - 1)
    arm = settings.room * (0.125 + 0.125 * u[3]) * _directions(u[2])
    away = _from_segment(places[:, :, None, None], middle[:, None], arm[:, None])
    fits = (away >= (settings.moving_radius + space[:, None, None]) ** 2).all(axis=0)
    (middle, arm), found = _first([middle, arm], fits & (np.abs(middle) + np.abs(arm) <= reach).all(axis=0))
    speed = settings.moving_speed * (0.5 + 0.5 * numbers.take(settings.moving))
    square = half * np.array([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])
    return {
        "start": np.concatenate([start, heading[None]]),
        "goal": goal,
        "circles": np.concatenate([places[:, 2 : 2 + circles], radii[None, :circles]]),
        "polygons": corners,
        "room": np.repeat(square[:, :, None], worlds, axis=2),
        "patrols": np.stack([middle - arm, middle + arm], axis=1),
        "phase": 2 * numbers.take(settings.moving),
        "pace": speed * settings.dt / (2 * np.sqrt(arm[0] ** 2 + arm[1] ** 2)),
    }, good & found.all(axis=0)


def _directions(turns: Array) -> Array:
    """Unit vectors, the coordinate in front, from angles in full turns."""
    return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)])


def _first(candidates: Sequence[Array], fits: Flags) -> tuple[list[Array], Flags]:
    """The first candidate that fits, of each world; and whether there is one. Candidates are the last axis but one."""
    chosen = fits.argmax(axis=-2)[None, ..., None, :]
    return [np.take_along_axis(each, chosen, axis=-2)[..., 0, :] for each in candidates], np.any(fits, axis=-2)


def _from_segment(point: Array, middle: Array, arm: Array) -> Array:
    """Squared distance of points to the segments ``middle ± arm``."""
    right, up = point - middle
    share = (right * arm[0] + up * arm[1]) / (arm[0] ** 2 + arm[1] ** 2)
    share = np.minimum(np.maximum(share, -1), 1)
    distance: Array = (right - share * arm[0]) ** 2 + (up - share * arm[1]) ** 2
    return distance
