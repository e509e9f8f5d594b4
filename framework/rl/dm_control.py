"""Tasks of the DeepMind Control Suite, whose reward has two components: the task, and the cost of actions.

Their reward is in [0, 1] and says nothing of actions, so the weight of ``control`` is 0 unless one is given; the papers
of the reward curriculum add such a penalty to these tasks. Observations are one vector.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np

from framework.errors import ConfigurationError, near
from framework.rl.environments import DM_CONTROL, HARMLESS, OWN, attributes

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no display, and nothing is shown on one
        from dm_control import suite
        from dm_control.mujoco.wrapper.mjbindings import sizes
        from shimmy.dm_control_compatibility import DmControlCompatibilityV0
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"environments of {DM_CONTROL} need the DeepMind Control Suite: pip install fulgurite[dm-control], "
        "on Python 3.11 or 3.12"
    ) from error
logging.getLogger("absl").addFilter(lambda record: HARMLESS not in record.getMessage())
_MODEL = mujoco.MjModel.from_xml_string("<mujoco/>")
for _struct, _owner in (("mjmodel", _MODEL), ("mjdata", mujoco.MjData(_MODEL))):
    # dm_control 1.0.50 looks for arrays by a list of names of which MuJoCo 4.0 has dropped some.
    for _name in [name for name in sizes.array_sizes[_struct] if not hasattr(_owner, name)]:
        del sizes.array_sizes[_struct][_name]


def register(environment: str) -> str:
    """Make a task known to gymnasium.

    Args:
        environment: ``dm_control/<domain>-<task>``, such as ``dm_control/cartpole-swingup``, with or without ``-v0``.

    Returns:
        The id by which gymnasium knows it: Shimmy has its own environments under the one given.

    Raises:
        ConfigurationError: If there is no such task.
    """
    domain, _, task = environment.removeprefix(DM_CONTROL).removesuffix("-v0").partition("-")
    if (domain, task) not in suite.ALL_TASKS:
        known = [f"{DM_CONTROL}{'-'.join(each)}" for each in suite.ALL_TASKS]
        raise ConfigurationError(
            f"environment: no {environment!r}; there are {', '.join(known)}{near(environment, known)}"
        )
    own = f"{OWN}{domain}-{task}-v0"
    if own not in gymnasium.registry:
        gymnasium.register(own, entry_point=f"{__name__}:ControlSuite", kwargs={"domain": domain, "task": task})
    return own


class ControlSuite(DmControlCompatibilityV0):
    """One task; an episode that its time limit ends is truncated.

    Args:
        domain: Such as ``cartpole``.
        task: Such as ``swingup``.
        task_kwargs: Of ``dm_control.suite.load``, such as ``{time_limit: 5}``, in seconds.
        environment_kwargs: Likewise, such as ``{control_timestep: 0.02}``.
        render_mode: As in gymnasium.
    """

    reward_components = ("task", "control")
    component_weights = (1.0, 0.0)

    def __init__(
        self,
        domain: str,
        task: str,
        task_kwargs: dict[str, Any] | None = None,
        environment_kwargs: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(suite.load(domain, task, dict(task_kwargs or {}), environment_kwargs), render_mode)
        self._parts: gymnasium.Space[Any] = vars(self)["observation_space"]
        self.observation_space = gymnasium.spaces.flatten_space(self._parts)
        self._made = {name: values.copy() for name, values in _arrays(self._env.physics.model.ptr)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        observation, _ = super().reset(seed=seed, options=options)
        return self._flat(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; ``info["reward_components"]`` has the task's reward, and minus the sum of the action's squares."""
        observation, reward, terminated, truncated, _ = super().step(action)
        parts = np.array([reward, -np.square(action).sum()])
        return self._flat(observation), float(reward), terminated, truncated, {"reward_components": parts}

    def _flat(self, observation: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(gymnasium.spaces.flatten(self._parts, observation))

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on; of the model, which some tasks change in each episode, what they did."""
        env = self._env
        model, data = env.physics.model.ptr, env.physics.data.ptr
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, physics, kind)
        name, keys, position, has_gauss, gauss = env.task.random.get_state()
        return {
            "physics": physics,
            "model": {key: each.copy() for key, each in _arrays(model) if not np.array_equal(each, self._made[key])},
            "random": [name, keys.astype(np.int64), position, has_gauss, gauss],
            "task": attributes(env.task),
            "steps": env._step_count,
            "ended": env._reset_next_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, after a reset."""
        env = self._env
        model, data = env.physics.model.ptr, env.physics.data.ptr
        for name, values in _arrays(model):
            values[:] = state["model"].get(name, self._made[name])
        mujoco.mj_setState(model, data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_step1(model, data)  # with which dm_control ends a step
        name, keys, *rest = state["random"]
        env.task.random.set_state((name, keys.astype(np.uint32), *rest))
        vars(env.task).update(state["task"])
        env._step_count, env._reset_next_step = state["steps"], state["ended"]


def _arrays(model: Any) -> list[tuple[str, np.ndarray]]:
    """The numbers of a model, by name."""
    found = ((name, getattr(model, name)) for name in dir(model) if not name.startswith("_"))
    return [(name, each) for name, each in found if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
