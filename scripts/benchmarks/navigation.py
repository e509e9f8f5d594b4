"""Steps of the navigation robot: a batch in numpy against gymnasium's vector environment of single robots.

Both follow the same actions from the same seeds to the same observations, episode ends and new worlds included. Robots
times ``STEPS`` over seconds are robot-steps per second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from framework.rl.navigation.environment import Navigation, VectorNavigation

NEEDS = ("gymnasium",)
STEPS = 5
CASES = [{"robots": robots} for robots in (1, 64, 1024)]


def setup(robots: int, variant: str) -> tuple[Any, Any]:
    if variant == "batch":
        env: Any = VectorNavigation(robots)
    else:
        env = SyncVectorEnv([Navigation] * robots, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, robots, 2)).astype(np.float32)
    env.reset(seed=0)
    return env, actions


def steps(given: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Last observations and summed rewards."""
    env, actions = given
    rewards = np.zeros(env.num_envs)
    for action in actions:
        observations, reward, *_ = env.step(action)
        rewards += reward
    return observations, rewards


def agree(ours: tuple[np.ndarray, np.ndarray], peer: tuple[np.ndarray, np.ndarray]) -> None:
    assert all((mine == theirs).all() for mine, theirs in zip(ours, peer))


VARIANTS = {"batch": steps, "loop": steps}
