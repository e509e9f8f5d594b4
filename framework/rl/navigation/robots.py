"""Many robots, each in a world of its own, stepped together in numpy; neither gymnasium nor torch is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from framework.rl.navigation import geometry
from framework.rl.navigation.dynamics import Motion, advance, patrol
from framework.rl.navigation.geometry import Array
from framework.rl.navigation.settings import Settings
from framework.rl.navigation.worlds import draw

Flags = NDArray[np.bool_]
Index = NDArray[np.intp] | slice

BLOCK = 1024
"""Robots whose rays are cast at once: what is worked on stays in the cache."""


@dataclass(frozen=True)
class Outcome:
    """What a step did.

    Attributes:
        components: Reward components in the order of ``COMPONENTS``, shape ``(B, 6)``.
        reward: Their weighted sum, shape ``(B,)``.
        success: The goal is reached, shape ``(B,)``.
        collision: An obstacle or a wall is touched, shape ``(B,)``.
        truncated: Neither, and time is up, shape ``(B,)``.
    """

    components: Array
    reward: Array
    success: Flags
    collision: Flags
    truncated: Flags


class Robots:
    """A batch of robots.

    Args:
        settings: The task.
        count: Number of robots, at least 1.

    Attributes:
        generators: What each robot draws its worlds from; set them before :meth:`reset`.
        world: Arrays of :func:`~framework.rl.navigation.worlds.draw`; ``room`` and ``polygons`` may be moved by whoever
            calls :meth:`refresh` afterwards.
        motion: Places and velocities.
        steps: Steps of the present episode, shape ``(B,)``.

    Raises:
        ValueError: If ``count`` is below 1, or obstacles find no place.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"the number of robots must be a whole number of at least 1, got {count}")
        self.settings = settings
        self.count = count
        self.weights = settings.component_weights
        self.generators: list[np.random.Generator] = []
        some = draw(settings, [np.random.default_rng(0)])  # tells at once where there is no room
        self.world = {name: np.zeros((*array.shape[:-1], count)) for name, array in some.items()}
        self.motion = Motion(*np.zeros((5, count)))
        self.steps = np.zeros(count, dtype=np.int64)
        self.scans = np.zeros((settings.scans, settings.rays, count), dtype=np.float32)
        self.distance: Array = np.zeros(count)
        self._directions = np.stack([np.cos(settings.ray_angles), np.sin(settings.ray_angles)]).astype(np.float32)
        self._half_planes()

    # -- episodes -----------------------------------------------------------------------------------------------------

    def reset(self, which: Flags | None = None) -> None:
        """Begin new episodes in new worlds.

        Args:
            which: Robots to reset, shape ``(B,)``; all by default.
        """
        chosen = np.arange(self.count) if which is None else np.flatnonzero(which)
        if not len(chosen):
            return
        for name, array in draw(self.settings, [self.generators[index] for index in chosen]).items():
            self.world[name][..., chosen] = array
        start = self.world["start"][:, chosen]
        for field, value in zip(self.motion, (*start, 0.0, 0.0)):
            field[chosen] = value
        self.steps[chosen] = 0
        self.refresh(chosen)

    def refresh(self, which: NDArray[np.intp] | None = None) -> None:
        """Bring what is derived from worlds and places up to date; old scans are forgotten.

        Args:
            which: Indices of robots; all by default.
        """
        chosen = np.arange(self.count) if which is None else which
        self._half_planes(chosen)
        self.scans[..., chosen] = self._scan(chosen)
        self.distance[chosen] = self._to_goal(chosen)[0]

    def step(self, action: ArrayLike) -> Outcome:
        """Move robots and discs by one step. Episodes that end are left as they are: call :meth:`reset` for them.

        Args:
            action: Acceleration and turning acceleration in [-1, 1] of the largest, shape ``(B, 2)``; clipped.

        Raises:
            ValueError: If the shape is another, a number is not finite, or there was no :meth:`reset` yet.
        """
        if not self.generators:
            raise ValueError("robots must be reset before their first step")
        given = np.asarray(action, dtype=np.float64)
        if given.shape != (self.count, 2):
            raise ValueError(f"actions must have shape {(self.count, 2)}, got {given.shape}")
        if not np.isfinite(given).all():
            robot = int(np.flatnonzero(~np.isfinite(given).all(axis=1))[0])
            raise ValueError(f"actions must be finite, got {given[robot].tolist()} for robot {robot}")
        settings, before, before_distance = self.settings, self.motion, self.distance
        self.motion = advance(before, np.ascontiguousarray(np.clip(given, -1, 1).T), settings)
        self.world["phase"] = (self.world["phase"] + self.world["pace"]) % 2
        self.steps += 1
        self.distance = self._to_goal()[0]
        clearance = self.clearance()
        collision = clearance < 0
        success = (self.distance <= settings.goal_radius) & ~collision
        ended = success | collision
        dt = settings.dt
        pushed = (self.motion.speed - before.speed) / (settings.max_acceleration * dt)
        turned = (self.motion.turn - before.turn) / (settings.max_turn_acceleration * dt)
        near = np.maximum(1 - np.maximum(clearance, 0) / settings.safe_distance, 0)
        components = np.empty((self.count, len(self.weights)))
        components[:, 0] = success
        components[:, 1] = before_distance - self.distance
        components[:, 2] = -dt * np.abs(self.motion.speed / settings.reference_speed - 1)
        components[:, 3] = -dt / 2 * (pushed * pushed + turned * turned)
        components[:, 4] = -dt * (near * near)
        components[:, 5] = -collision.astype(np.float64)
        reward = (components * self.weights).sum(axis=1)
        self.scans[1:] = self.scans[:-1].copy()
        self.scans[0] = self._scan(np.arange(self.count))
        return Outcome(components, reward, success, collision, (self.steps >= settings.time_limit) & ~ended)

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def observation(self, which: Flags | None = None) -> NDArray[np.float32]:
        """What the robots perceive, a new array of shape ``(B, observation_size)``.

        ``scans`` times ``rays`` ranges in [0, 1] of ``ray_range``, the newest scan first; distance to the goal in
        [0, 1] of the room's diagonal; cosine and sine of the angle from heading to goal; speed in [-1, 1] of the
        largest; turning in [-1, 1] of the largest.

        Args:
            which: Robots asked for, shape ``(B,)``; the result has a row for each of them. All by default.
        """
        settings, chosen = self.settings, slice(None) if which is None else np.flatnonzero(which)
        ranges = settings.scans * settings.rays
        scans = self.scans[..., chosen]
        seen = np.empty((scans.shape[-1], settings.observation_size), dtype=np.float32)
        seen[:, :ranges] = scans.reshape(ranges, -1).T
        distance, cosine, sine = self._to_goal(chosen)
        seen[:, ranges] = np.minimum(distance / (np.sqrt(2) * settings.room), 1)
        seen[:, ranges + 1] = cosine
        seen[:, ranges + 2] = sine
        seen[:, ranges + 3] = self.motion.speed[chosen] / max(settings.max_speed, -settings.min_speed)
        seen[:, ranges + 4] = self.motion.turn[chosen] / settings.max_turn
        return seen

    def clearance(self) -> Array:
        """Distance from the robot's rim to the nearest obstacle or wall, shape ``(B,)``; negative in a collision."""
        x, y, world = self.motion.x, self.motion.y, self.world
        nearest = np.minimum(
            geometry.distance_to_walls(x, y, self._walls), geometry.distance_to_circles(x, y, self._round_ones())
        )
        if self.settings.polygons:
            to_polygons = geometry.distance_to_polygons(x, y, world["polygons"], self._edges)
            nearest = np.minimum(nearest, to_polygons)
        return nearest - self.settings.robot_radius

    def discs(self) -> Array:
        """Centres of the moving discs, shape ``(2, M, B)``."""
        return patrol(self.world["patrols"], self.world["phase"])

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All that the future depends on, as arrays of floats and int64, generators included."""
        state: dict[str, NDArray[Any]] = {f"world.{name}": array.copy() for name, array in self.world.items()}
        state |= {f"motion.{name}": array.copy() for name, array in self.motion._asdict().items()}
        generators = np.array([_packed(generator) for generator in self.generators], dtype=np.int64).reshape(-1, 6)
        return state | {"steps": self.steps.copy(), "scans": self.scans.copy(), "generators": generators}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take up a state of :meth:`state_dict`; the next steps are those that would have followed it.

        Args:
            state: Arrays, or what numpy makes arrays of.

        Raises:
            ValueError: If something is missing, or of another shape: it comes from another task or number of robots.
        """
        own = self.state_dict()
        own["generators"] = np.zeros((self.count, 6), dtype=np.int64)
        arrays = {name: np.array(value) for name, value in state.items()}
        for name, mine in own.items():
            shape = arrays[name].shape if name in arrays else None
            if shape != mine.shape and not (name == "generators" and shape == (0, 6)):
                raise ValueError(
                    f"the saved state is of other robots: {name} must have shape {mine.shape}, got {shape}"
                )
        self.world = {name: arrays[f"world.{name}"].astype(np.float64) for name in self.world}
        self.motion = Motion(*(arrays[f"motion.{name}"].astype(np.float64) for name in Motion._fields))
        self.steps = arrays["steps"].astype(np.int64)
        self._half_planes()
        self.scans = arrays["scans"].astype(np.float32)
        self.distance = self._to_goal()[0]
        packed = arrays["generators"].astype(np.int64)
        while len(self.generators) < len(packed):
            self.generators.append(np.random.Generator(np.random.PCG64(0)))
        if not len(packed):  # of robots that have no worlds yet
            self.generators = []
        for generator, words in zip(self.generators, packed):
            _unpack(generator, words)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _half_planes(self, which: NDArray[np.intp] | None = None) -> None:
        if which is None:
            with np.errstate(invalid="ignore"):  # rooms of robots that were never reset have no sides
                self._edges = geometry.edges_of(self.world["polygons"])
                self._walls = geometry.edges_of(self.world["room"][:, None])[:, 0]
        else:
            self._edges[..., which] = geometry.edges_of(self.world["polygons"][..., which])
            self._walls[..., which] = geometry.edges_of(self.world["room"][:, None][..., which])[:, 0]

    def _round_ones(self) -> Array:
        """Static circles and moving discs, shape ``(3, C + M, B)``."""
        discs = self.discs()
        radius = np.full((1, *discs.shape[1:]), self.settings.moving_radius)
        return np.concatenate([self.world["circles"], np.concatenate([discs, radius])], axis=1)

    def _to_goal(self, which: Index = slice(None)) -> tuple[Array, Array, Array]:
        """Distance to the goal, cosine and sine of the angle to it; straight ahead for who stands on it."""
        goal = self.world["goal"][:, which]
        x, y, heading = (field[which] for field in self.motion[:3])
        ahead, aside = geometry.points_seen_from(goal, x, y, np.cos(heading), np.sin(heading))
        distance = np.sqrt(ahead * ahead + aside * aside)
        there = distance == 0
        scale = np.where(there, 1.0, distance)
        return distance, np.where(there, 1.0, ahead / scale), aside / scale

    def _scan(self, which: NDArray[np.intp]) -> Array:
        """Ranges of all rays in [0, 1] of ``ray_range``, shape ``(rays, len(which))``."""
        # Places in double, rays in single precision, which is what observations have: half the time.
        ranges = np.empty((self.settings.rays, len(which)), dtype=np.float32)
        cosine, sine = np.cos(self.motion.heading), np.sin(self.motion.heading)
        round_ones = self._round_ones()
        for begin in range(0, len(which), BLOCK):
            part: Any = which[begin : begin + BLOCK]
            if len(part) == part[-1] - part[0] + 1:  # a view instead of a copy
                part = slice(part[0], part[-1] + 1)
            pose = (self.motion.x[part], self.motion.y[part], cosine[part], sine[part])
            circles, walls = round_ones[..., part], geometry.edges_seen_from(self._walls[..., part], *pose)
            circles = np.concatenate([geometry.points_seen_from(circles[:2], *pose), circles[2:]])
            reach = np.minimum(
                geometry.rays_to_walls(self._directions, walls.astype(np.float32)),
                geometry.rays_to_circles(self._directions, circles.astype(np.float32)),
            )
            if self.settings.polygons:
                edges = geometry.edges_seen_from(self._edges[..., part], *pose).astype(np.float32)
                reach = np.minimum(reach, geometry.rays_to_polygons(self._directions, edges))
            ranges[:, begin : begin + BLOCK] = np.minimum(reach / self.settings.ray_range, 1)
        return ranges


def generators_of(seeds: Sequence[int]) -> list[np.random.Generator]:
    """A generator per seed: what gymnasium makes of ``reset(seed=...)``."""
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def _packed(generator: np.random.Generator) -> NDArray[np.int64]:
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"generators must be PCG64 to be saved, got {state['bit_generator']}")
    long, increment = int(state["state"]["state"]), int(state["state"]["inc"])
    low = 2**64 - 1
    words = [long >> 64, long & low, increment >> 64, increment & low, int(state["has_uint32"]), int(state["uinteger"])]
    return np.array(words, dtype=np.uint64).view(np.int64)


def _unpack(generator: np.random.Generator, words: NDArray[np.int64]) -> None:
    high, low, inc_high, inc_low, has, left = (int(word) for word in words.view(np.uint64))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has,
        "uinteger": left,
    }
