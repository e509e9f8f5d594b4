"""Vector environments by name, and their whole state as plain tensors, numbers and strings.

What can be saved, so that a run goes on bit-identically:

- an environment (or vector environment) with ``state_dict()`` and ``load_state_dict(state)`` of its own, which tasks of
  the DeepMind Control Suite have here;
- MuJoCo tasks of gymnasium: the integration state with warm starts, and the derived positions that the next step reads;
- gymnasium's classic control and toy text, whose state is numbers and arrays of the object.

With each of these go the generator of random numbers and all that wrappers keep: counters, such as the steps of a time
limit, queues of observations, running means. Anything else begins new episodes after a resume, also under a wrapper
that keeps more than numbers.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from framework.errors import ConfigurationError

#: Modules whose environments keep their state in plain attributes.
PLAIN = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
#: Derived arrays of MuJoCo that lag behind the state by a substep, so that they cannot be computed from it again.
DERIVED = (
    "xpos",
    "xquat",
    "xmat",
    "xipos",
    "ximat",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "cinert",
    "cvel",
    "cfrc_ext",
)
PHYSICS = "gymnasium.envs.mujoco"
#: What MuJoCo 4 warns of in gymnasium's and dm_control's models of the cheetah.
HARMLESS = "settotalmass"
#: Attributes of wrappers that say how they were made.
MADE = ("env", "_saved_kwargs", "_metadata", "_cached_spec")
OWN = "Fulgurite/"
"""Namespace of this package's environments, which are registered when first asked for."""
DM_CONTROL = "dm_control/"
"""Namespace of the tasks of the DeepMind Control Suite, likewise."""


def make(environment: str, count: int, arguments: Mapping[str, Any] | None = None) -> Any:
    """A vector environment that begins a new episode in the very step in which one ends.

    Args:
        environment: A gymnasium id, such as ``Hopper-v5`` or ``package.module:Mine-v0``, or a task of the DeepMind
            Control Suite, such as ``dm_control/cartpole-swingup``.
        count: How many environments, at least 1.
        arguments: Keyword arguments of the environment.

    Returns:
        A ``gymnasium.vector.VectorEnv``: the environment's own where it has one that resets in the same step, else its
        copies in a row.

    Raises:
        ConfigurationError: If there is no such environment, an argument does not fit, or it cannot be trained on here.
    """
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode, SyncVectorEnv
    except ModuleNotFoundError as error:
        extra = "dm-control" if environment.startswith(DM_CONTROL) else "rl"
        raise ConfigurationError(
            f"environment {environment!r} needs gymnasium: pip install fulgurite[{extra}]"
        ) from error
    if environment.startswith(OWN):
        from framework.rl.navigation import register

        register()
    elif environment.startswith(DM_CONTROL):
        from framework.rl.dm_control import register as register_task

        environment = register_task(environment)
    given = dict(arguments or {})
    module, _, name = environment.rpartition(":")
    try:
        if module:
            importlib.import_module(module)  # which registers it
        spec = gymnasium.spec(name)
        if str(spec.entry_point).startswith(PHYSICS):
            _quieten_mujoco()
        if spec.vector_entry_point is not None:
            envs = gymnasium.make_vec(environment, count, vectorization_mode="vector_entry_point", **given)
            if envs.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
                return envs
            envs.close()
        singles = [lambda: gymnasium.make(environment, disable_env_checker=True, **given)] * count
        return SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ConfigurationError(f"environment {environment!r} cannot be made: {_line(error)}") from error


def sizes(envs: Any, name: str) -> tuple[int, int]:
    """Numbers of an observation and of an action.

    Args:
        envs: A vector environment.
        name: What to call it in an error.

    Raises:
        ConfigurationError: Unless observations are vectors and actions vectors within finite bounds.
    """
    from gymnasium.spaces import Box

    observation, action = envs.single_observation_space, envs.single_action_space
    if not isinstance(action, Box):
        raise ConfigurationError(
            f"{name} has the actions {action}: a method for continuous actions needs a Box, a vector within bounds"
        )
    if len(action.shape) != 1 or not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise ConfigurationError(f"{name} has the actions {action}: they must be a vector within finite bounds")
    if not isinstance(observation, Box) or len(observation.shape) != 1:
        raise ConfigurationError(
            f"{name} has the observations {observation}: they must be a vector (a Box of one axis)"
        )
    return observation.shape[0], action.shape[0]


def state_of(envs: Any) -> dict[str, Any] | None:
    """All that the next steps of a vector environment depend on; None where that cannot be told."""
    own = getattr(envs.unwrapped, "state_dict", None)
    if own is not None:
        return {"own": _plain(own())}
    singles = getattr(envs, "envs", None)
    states = [_state(env) for env in singles] if singles is not None else [None]
    return None if any(state is None for state in states) else {"envs": states}


def restore(envs: Any, state: Mapping[str, Any]) -> None:
    """Put a vector environment, which has been reset before, into a state.

    Args:
        envs: Made with the same arguments as the one that the state is of.
        state: What :func:`state_of` gave.
    """
    if "own" in state:
        envs.unwrapped.load_state_dict(_unplain(state["own"]))
        return
    if len(state["envs"]) != envs.num_envs:
        raise ValueError(f"num_envs is {envs.num_envs}, but the checkpoint is of {len(state['envs'])}")
    for env, each in zip(envs.envs, state["envs"]):
        _restore(env, each)


def _state(env: Any) -> dict[str, Any] | None:
    own = env.unwrapped
    state: dict[str, Any] = {}
    if isinstance(own.np_random, np.random.Generator):  # else it is the environment's own affair
        state["random"] = json.dumps(own.np_random.bit_generator.state)
    state["wrappers"] = [_wrapper(layer) for layer in _layers(env)]
    if None in state["wrappers"]:
        return None
    if hasattr(own, "state_dict"):
        state["own"] = _plain(own.state_dict())
    elif hasattr(own, "data") and hasattr(own, "model") and type(own).__module__.startswith(PHYSICS):
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(own.model, kind))
        mujoco.mj_getState(own.model, own.data, physics, kind)
        state["physics"] = torch.from_numpy(physics)
        state["derived"] = {name: torch.from_numpy(np.array(getattr(own.data, name))) for name in DERIVED}
        state["attributes"] = attributes(own)
    elif type(own).__module__.startswith(PLAIN):
        state["attributes"] = attributes(own)
    else:
        return None
    return state


def _restore(env: Any, state: Mapping[str, Any]) -> None:
    own = env.unwrapped
    if "random" in state:
        own.np_random.bit_generator.state = json.loads(state["random"])
    for layer, attributes in zip(_layers(env), state["wrappers"], strict=True):
        for name, value in _unplain(attributes).items():
            if isinstance(value, _Object):
                vars(getattr(layer, name)).update(value)
            else:
                setattr(layer, name, value)
    if "own" in state:
        own.load_state_dict(_unplain(state["own"]))
        return
    vars(own).update(_unplain(state["attributes"]))
    if "physics" in state:
        import mujoco

        mujoco.mj_setState(own.model, own.data, state["physics"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, values in state["derived"].items():
            getattr(own.data, name)[:] = values.numpy()


def _layers(env: Any) -> list[Any]:
    """The wrappers of an environment, outermost first."""
    layers = []
    while env is not env.unwrapped:
        layers.append(env)
        env = env.env
    return layers


def _wrapper(layer: Any) -> dict[str, Any] | None:
    """All that a wrapper keeps, or None where some of it is not numbers."""
    from gymnasium import Space
    from gymnasium.wrappers.utils import RunningMeanStd

    state = {}
    for name, value in vars(layer).items():
        if name in MADE or isinstance(value, Space) or callable(value):
            continue
        if isinstance(value, RunningMeanStd):
            state[name] = {"object": attributes(value)}
        elif _is_plain(value):
            state[name] = _plain(value)
        else:
            return None
    return state


def _is_plain(value: Any) -> bool:
    if isinstance(value, deque | list | tuple):
        return all(_is_plain(each) for each in value)
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
    return numbers or value is None or isinstance(value, bool | int | float | str)


class _Object(dict[str, Any]):
    """Attributes of an object, not a mapping."""


def attributes(owner: Any) -> dict[str, Any]:
    """The attributes of an object that are numbers, strings or arrays of numbers, in the form of a checkpoint."""
    return {
        name: _plain(value)
        for name, value in vars(owner).items()
        if _is_plain(value) and not isinstance(value, deque | list | tuple)
    }


def _plain(value: Any) -> Any:
    """Arrays as tensors, so that a checkpoint loads with ``weights_only=True``."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, deque):
        return {"queue": [_plain(each) for each in value], "longest": value.maxlen}
    if isinstance(value, tuple):
        return {"tuple": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        # unsigned integers beyond 8 bits have few operations in torch, but they can be stored
        return {"array": torch.from_numpy(np.array(value)), "scalar": isinstance(value, np.generic)}
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return {"integer": str(value)}
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"array", "scalar"}:
            array = value["array"].numpy().copy()
            return array[()] if value["scalar"] else array
        if set(value) == {"integer"}:
            return int(value["integer"])
        if set(value) == {"queue", "longest"}:
            return deque(_unplain(value["queue"]), value["longest"])
        if set(value) == {"tuple"}:
            return tuple(_unplain(value["tuple"]))
        if set(value) == {"object"}:
            return _Object(_unplain(value["object"]))
        return {key: _unplain(each) for key, each in value.items()}
    return [_unplain(each) for each in value] if isinstance(value, list) else value


def _quieten_mujoco() -> None:
    """Its warnings become Python's; by itself it writes them to a file in the working directory."""
    import mujoco

    def warn(text: str) -> None:
        if HARMLESS not in text:
            warnings.warn(f"MuJoCo: {text}", stacklevel=2)

    mujoco.set_mju_user_warning(warn)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
