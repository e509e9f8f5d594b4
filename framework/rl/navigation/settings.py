"""What a navigation task is: robot, room, obstacles, rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framework.errors import near

COMPONENTS = ("goal", "progress", "speed", "acceleration", "clearance", "collision")
"""Names of the reward components, in their order."""

WEIGHTS = {"goal": 10.0, "progress": 1.0, "speed": 0.2, "acceleration": 0.5, "clearance": 1.0, "collision": 10.0}
"""Weights of the full reward, unless told otherwise."""

MARGIN = 0.1
"""Metres that are left free besides what the robot needs: between obstacles, to walls, to start and goal."""


@dataclass(frozen=True)
class Settings:
    """Options of the environment. Lengths in metres, times in seconds, angles in radians.

    Attributes:
        circles: Static round obstacles, at least 0.
        polygons: Static convex polygons, at least 0.
        sides: Corners of a polygon, at least 3.
        moving: Discs that go to and fro, at least 0.
        room: Side of the square room.
        min_distance: Least distance from start to goal.
        max_distance: Largest distance from start to goal.
        time_limit: Steps after which an episode is truncated, at least 1.
        dt: Time of a step.
        min_radius: Least radius of a static obstacle (of the circle around it, for a polygon).
        max_radius: Largest radius of a static obstacle.
        moving_radius: Radius of a moving disc.
        moving_speed: Largest speed of a moving disc; each has its own, from half of it upwards.
        robot_radius: Radius of the robot.
        goal_radius: How near to the goal the robot's centre must come.
        min_speed: Least speed, at most 0: negative for a robot that can reverse.
        max_speed: Largest speed.
        max_turn: Largest rate of turning.
        max_acceleration: Largest change of speed per second.
        max_turn_acceleration: Largest change of the rate of turning per second.
        reference_speed: Speed that the component ``speed`` asks for, at most ``max_speed``.
        safe_distance: Distance to an obstacle below which the component ``clearance`` counts.
        rays: Range rays, at least 1.
        ray_range: How far they see.
        field_of_view: Angle that they cover, at most 2 pi; half of it to either side of the heading.
        scans: How many scans an observation holds, newest first, at least 1. Two or more show what moves.
        weights: Weights of components that differ from ``WEIGHTS``, by name.

    Raises:
        ValueError: For a value out of range, naming it.
    """

    circles: int = 3
    polygons: int = 2
    sides: int = 4
    moving: int = 3
    room: float = 8.0
    min_distance: float = 4.0
    max_distance: float = 8.0
    time_limit: int = 200
    dt: float = 0.1
    min_radius: float = 0.3
    max_radius: float = 0.7
    moving_radius: float = 0.3
    moving_speed: float = 0.5
    robot_radius: float = 0.2
    goal_radius: float = 0.3
    min_speed: float = 0.0
    max_speed: float = 1.0
    max_turn: float = 1.5
    max_acceleration: float = 1.0
    max_turn_acceleration: float = 3.0
    reference_speed: float = 0.8
    safe_distance: float = 0.4
    rays: int = 24
    ray_range: float = 4.0
    field_of_view: float = 2 * math.pi
    scans: int = 2
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"circles": 0, "polygons": 0, "moving": 0, "sides": 3, "time_limit": 1, "rays": 1, "scans": 1}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in least:
                if isinstance(value, bool) or not isinstance(value, int) or value < least[each.name]:
                    raise ValueError(f"{each.name} must be a whole number of at least {least[each.name]}, got {value}")
            elif each.name != "weights":
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError(f"{each.name} must be a finite number, got {value!r}")
                if value <= 0 and each.name not in {"min_speed", "moving_speed"}:
                    raise ValueError(f"{each.name} must be positive, got {value}")
        self._check_ranges()
        if not isinstance(self.weights, Mapping):
            raise ValueError(f"weights must be a mapping from components to numbers, got {self.weights!r}")
        for name, weight in self.weights.items():
            if name not in COMPONENTS:
                hint = near(name, COMPONENTS) or f"; there are {', '.join(COMPONENTS)}"
                raise ValueError(f"weights: no such reward component {name}{hint}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"weights: the weight of {name} must be a finite number, got {weight!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Settings from keyword arguments.

        Raises:
            ValueError: If a name is unknown or a value out of range.
        """
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                hint = near(name, known) or f"; there are {', '.join(known)}"
                raise ValueError(f"navigation has no option {name}{hint}")
        return cls(**options)

    @property
    def component_weights(self) -> NDArray[np.float64]:
        """Weight of each component, shape ``(6,)``; the reward is ``component_weights . components``."""
        return np.array([(WEIGHTS | dict(self.weights))[name] for name in COMPONENTS], dtype=np.float64)

    @property
    def half(self) -> float:
        """Half the side of the room, whose centre is the origin."""
        return self.room / 2

    @property
    def gap(self) -> float:
        """Free space between any two static obstacles, or one and a wall: the robot passes everywhere."""
        return 2 * self.robot_radius + MARGIN

    @property
    def ray_angles(self) -> NDArray[np.float64]:
        """Angle of each ray to the heading, shape ``(rays,)``, ascending; a full circle does not repeat its end."""
        if self.field_of_view == 2 * math.pi:
            return 2 * math.pi * (np.arange(self.rays) - self.rays // 2) / self.rays
        if self.rays == 1:
            return np.zeros(1)
        return self.field_of_view * (np.arange(self.rays) / (self.rays - 1) - 0.5)

    @property
    def observation_size(self) -> int:
        """Length of an observation: scans of all rays, then distance, cosine and sine to the goal, speed, turning."""
        return self.scans * self.rays + 5

    def _check_ranges(self) -> None:
        if self.field_of_view > 2 * math.pi:
            raise ValueError(f"field_of_view must be at most 2 pi, got {self.field_of_view}")
        if self.min_speed > 0 or self.moving_speed < 0:
            name = "min_speed must be at most 0" if self.min_speed > 0 else "moving_speed must be at least 0"
            raise ValueError(f"{name}, got {self.min_speed if self.min_speed > 0 else self.moving_speed}")
        for low, high in (
            ("min_radius", "max_radius"),
            ("min_distance", "max_distance"),
            ("reference_speed", "max_speed"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} must be at most {high} = {getattr(self, high)}, got {getattr(self, low)}")
        if self.goal_radius >= self.min_distance:
            raise ValueError(
                f"goal_radius must be less than min_distance = {self.min_distance}, got {self.goal_radius}: an episode "
                "would begin at its goal"
            )
        # What is checked at the end of a step alone must not jump over anything in between.
        jump = self.dt * (max(self.max_speed, -self.min_speed) + self.moving_speed)
        if jump > self.robot_radius:
            raise ValueError(
                f"dt must be at most {self.dt * self.robot_radius / jump:.3g}, got {self.dt}: in a step, robot and "
                f"disc would come {jump:.3g} m nearer, more than the robot's radius"
            )
        limits = {"min_distance": (self.room - 2 * (self.robot_radius + MARGIN)) * math.sqrt(2)}
        if self.circles or self.polygons:
            limits["max_radius"] = self.half - self.gap
        if self.moving:
            limits["moving_radius"] = self.half - MARGIN
        for name, limit in limits.items():
            if getattr(self, name) >= limit:
                raise ValueError(
                    f"{name} must be less than {limit:.3g} in a room of {self.room}, got {getattr(self, name)}"
                )
