"""Which components a reward has, and where an environment tells them.

An environment of one's own names them in ``env.unwrapped.reward_components``, a tuple of strings, gives default weights
in ``env.unwrapped.component_weights`` and their values at each step in ``info["reward_components"]``. MuJoCo tasks of
gymnasium (v5) are in a table. Any other environment has the single component ``reward``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.errors import ConfigurationError, near

CONTROL = {"reward_ctrl": "control"}
LOCOMOTION = {"reward_forward": "forward", **CONTROL}
REACHING = {"reward_dist": "distance", **CONTROL}
#: By class of a MuJoCo task: names of its components by their keys in ``info``.
MUJOCO = {
    "HopperEnv": {**LOCOMOTION, "reward_survive": "survive"},
    "Walker2dEnv": {**LOCOMOTION, "reward_survive": "survive"},
    "HalfCheetahEnv": LOCOMOTION,
    "SwimmerEnv": LOCOMOTION,
    "AntEnv": {**LOCOMOTION, "reward_contact": "contact", "reward_survive": "survive"},
    "ReacherEnv": REACHING,
    "PusherEnv": {**REACHING, "reward_near": "near"},
}
#: Where a task keeps the weight that ``reward_ctrl`` has been multiplied by.
CONTROL_WEIGHTS = ("_ctrl_cost_weight", "_reward_control_weight")


@dataclass(frozen=True)
class Components:
    """The components of an environment's reward.

    Attributes:
        names: One for each, in the order of the columns.
        weights: Default weights; with them, the weighted sum is the environment's own reward.
        keys: Keys of ``info``, one for each component; empty where ``info["reward_components"]`` is read.
        scales: What the values in ``info`` are divided by.
    """

    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    keys: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()

    def read(self, reward: np.ndarray, done: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        """The components of one step of a vector environment.

        Args:
            reward: The environment's rewards, shape ``(B,)``.
            done: Which episodes ended in this step, shape ``(B,)``: ``info`` is that of the next episode's beginning,
                and ``info["final_info"]`` that of the step.
            info: As the environment gave it.

        Returns:
            Shape ``(B, K)``, float32.
        """
        if self.names == ("reward",):
            return np.asarray(reward, np.float32)[:, None]
        if not self.keys:
            return self._column(info, "reward_components", done, (len(reward), len(self.names))).astype(np.float32)
        columns = [self._column(info, key, done, (len(reward),)) / scale for key, scale in zip(self.keys, self.scales)]
        return np.stack(columns, 1).astype(np.float32)

    @staticmethod
    def _column(info: Mapping[str, Any], key: str, done: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        values = np.zeros(shape)
        running = ~done if "final_info" in info else np.ones_like(done)
        for part, rows in ((info, running), (info.get("final_info", {}), ~running)):
            if rows.any():
                if key not in part:
                    raise ValueError(f"the environment gave no info[{key!r}], where components of its reward should be")
                values[rows] = _numbers(part[key], key, shape)[rows]
        return values

    def weighted(self, given: Mapping[str, float] | None) -> list[float]:
        """The default weights, with some replaced.

        Args:
            given: Weights by name of the component.

        Returns:
            One for each component.

        Raises:
            ConfigurationError: If a name is unknown or a weight no finite number.
        """
        weights = dict(zip(self.names, self.weights))
        for name, weight in (given or {}).items():
            if name not in weights:
                raise ConfigurationError(
                    f"reward_weights: no component {name!r} in this environment's reward; "
                    f"there are {', '.join(self.names)}{near(name, self.names)}"
                )
            if isinstance(weight, bool) or not np.isfinite(weight):
                raise ConfigurationError(f"reward_weights.{name} must be a finite number, got {weight!r}")
            weights[name] = float(weight)
        return list(weights.values())


def _numbers(given: Any, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """What an environment tells in each of its copies, if it is numbers of the right shape."""
    try:
        numbers = np.asarray(given, float)
        if numbers.shape == shape:
            return numbers
    except (TypeError, ValueError):
        pass
    wanted = f"an array of {shape[1]} numbers" if len(shape) > 1 else "a number"
    first = given[0] if isinstance(given, np.ndarray | list | tuple) and len(given) else given
    raise ValueError(f"the environment's info[{key!r}] must be {wanted}, got {first!r}")


def components_of(env: Any) -> Components:
    """The components of an environment.

    Args:
        env: An environment, or a vector environment that has the attributes itself.

    Raises:
        ConfigurationError: If names and weights do not go together, or the weight of the control cost is 0, so that the
            cost of an action cannot be told.
    """
    own = env.unwrapped
    names: Sequence[str] | None = getattr(own, "reward_components", None)
    kind = type(own).__name__
    if names is not None:
        weights = tuple(float(weight) for weight in getattr(own, "component_weights", np.ones(len(names))))
        if len(weights) != len(names) or len(set(names)) < len(names) or not names:
            raise ConfigurationError(
                f"{kind}.reward_components must be names that differ, with a weight each in component_weights, "
                f"got {list(names)} and {list(weights)}"
            )
        return Components(tuple(names), weights)
    if kind not in MUJOCO or not type(own).__module__.startswith("gymnasium.envs.mujoco."):
        return Components()
    if not type(own).__module__.endswith("_v5"):
        return Components()  # earlier versions tell other things under these keys
    table = MUJOCO[kind]
    control = next(float(getattr(own, name)) for name in CONTROL_WEIGHTS if hasattr(own, name))
    if control == 0:
        raise ConfigurationError(
            f"the control weight of {kind} is 0, so its info does not tell the cost of an action: "
            "leave it positive and set reward_weights.control to 0"
        )
    scales = tuple(control if key == "reward_ctrl" else 1.0 for key in table)
    return Components(tuple(table.values()), scales, tuple(table), scales)
