"""Drivers without learning: what an environment is worth without them is hard to say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from framework.rl.navigation.settings import Settings

Pilot = Callable[[NDArray[np.float32], Settings], NDArray[np.float64]]


def stand_still(observations: NDArray[np.float32], settings: Settings) -> NDArray[np.float64]:
    """No acceleration, whatever is seen: safe, as no disc passes over the start, and what a cautious learner ends at.

    Args:
        observations: Shape ``(B, observation_size)``.
        settings: The task.

    Returns:
        Actions, shape ``(B, 2)``.
    """
    return np.zeros((len(observations), 2))


def straight(observations: NDArray[np.float32], settings: Settings) -> NDArray[np.float64]:
    """Towards the goal at reference speed, blind to obstacles.

    Args:
        observations: Shape ``(B, observation_size)``.
        settings: The task.

    Returns:
        Actions, shape ``(B, 2)``.
    """
    cosine, sine = observations[:, -4].astype(np.float64), observations[:, -3].astype(np.float64)
    return _towards(np.arctan2(sine, cosine), np.full(len(observations), np.inf), observations, settings)


def gaps(observations: NDArray[np.float32], settings: Settings) -> NDArray[np.float64]:
    """Towards the free direction nearest to the goal's, slower where the way ahead is short.

    A direction is free if no ray within the width of the robot ends sooner than the robot could stop, or than the goal.

    Args:
        observations: Shape ``(B, observation_size)``.
        settings: The task.

    Returns:
        Actions, shape ``(B, 2)``.
    """
    angles = settings.ray_angles
    seen = observations[:, : settings.rays].astype(np.float64) * settings.ray_range
    wide = settings.robot_radius + 0.2
    # How far a body of that width gets in each direction before it touches the end of a ray.
    apart = angles[:, None] - angles[None]
    along, aside = np.cos(apart), np.abs(np.sin(apart))
    across = seen[:, None] * aside
    meets = (across < wide) & (along > 0) & (seen < settings.ray_range)[:, None]
    reach = np.where(meets, seen[:, None] * along - np.sqrt(np.maximum(wide**2 - across**2, 0)), settings.ray_range)
    reach = reach.min(axis=2)
    goal = np.arctan2(observations[:, -3], observations[:, -4]).astype(np.float64)
    distance = observations[:, -5].astype(np.float64) * np.sqrt(2) * settings.room
    detour = np.abs((angles - goal[:, None] + np.pi) % (2 * np.pi) - np.pi)
    wanted = np.minimum(np.maximum(distance - settings.goal_radius, 0.1), 1.5)[:, None]
    cost = detour + 4 * np.maximum(wanted - reach, 0) / wanted + 0.1 * np.abs(angles)
    best = cost.argmin(axis=1)
    robots = np.arange(len(observations))
    ahead = reach[:, np.abs(angles).argmin()]
    # Where the goal itself lies in the open, its own direction is better than that of the nearest ray.
    direction = np.where(detour[robots, best] < np.pi / settings.rays + 1e-9, goal, angles[best])
    return _towards(direction, ahead, observations, settings)


PILOTS: dict[str, Pilot] = {"still": stand_still, "straight": straight, "gaps": gaps}


def _towards(
    direction: NDArray[np.float64], ahead: NDArray[np.float64], observations: NDArray[np.float32], settings: Settings
) -> NDArray[np.float64]:
    """Turn to a direction; drive as fast as the reference, the turn and the way ahead allow."""
    speed = observations[:, -2].astype(np.float64) * max(settings.max_speed, -settings.min_speed)
    turn = observations[:, -1].astype(np.float64) * settings.max_turn
    wanted_turn = np.clip(2.5 * direction, -settings.max_turn, settings.max_turn)
    stopping = np.sqrt(settings.max_acceleration * np.maximum(ahead - 0.1, 0))
    wanted = np.minimum(settings.reference_speed * np.maximum(np.cos(direction), 0) ** 2, stopping)
    push = (wanted - speed) / (settings.max_acceleration * settings.dt)
    twist = (wanted_turn - turn) / (settings.max_turn_acceleration * settings.dt)
    return np.clip(np.stack([push, twist], axis=1), -1, 1)
