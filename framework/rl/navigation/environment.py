"""The robots as gymnasium environments: many at once, and one alone, which is a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from framework.rl.navigation import register
from framework.rl.navigation.episodes import Recorder
from framework.rl.navigation.robots import Outcome, Robots, generators_of
from framework.rl.navigation.settings import COMPONENTS, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Observations = NDArray[np.float32]
METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}


class _Shared:
    """What both environments offer.

    Attributes:
        settings: The task.
        robots: The simulation.
        reward_components: Names of the components of ``info["reward_components"]``.
        component_weights: Their weights, shape ``(6,)``: the reward is the weighted sum.
        recorder: Episodes that have ended, for pictures; none unless ``record`` asks for them.
    """

    metadata: dict[str, Any] = METADATA
    reward_components: tuple[str, ...] = COMPONENTS

    def _prepare(self, count: int, render_mode: str | None, record: int, options: Mapping[str, Any]) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or none, got {render_mode!r}")
        if isinstance(record, bool) or not isinstance(record, int) or record < 0:
            raise ValueError(f"record must be a whole number of robots, at least 0, got {record!r}")
        self.settings = Settings.of(options)
        self.robots = Robots(self.settings, count)
        self.recorder = Recorder(self.robots, min(record, count))
        self.render_mode = render_mode
        self.metadata = type(self).metadata | {"render_fps": max(1, round(1 / self.settings.dt))}

    @property
    def component_weights(self) -> NDArray[np.float64]:
        """Weights of the components in the reward, shape ``(6,)``."""
        return self.robots.weights.copy()

    def figures(self) -> dict[str, Figure]:
        """The last recorded episodes from above; empty before the first has ended."""
        from framework.rl.navigation.pictures import trajectories_figure

        episodes = list(self.recorder.episodes)
        return {"trajectories": trajectories_figure(episodes)} if episodes else {}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Worlds, robots and generators as arrays; recorded episodes are not part of it."""
        return self.robots.state_dict()

    def _spaces(self) -> tuple[Any, Any]:
        settings = self.settings
        low = np.zeros(settings.observation_size, dtype=np.float32)
        low[-4:] = -1
        return Box(low, np.ones_like(low)), Box(-1.0, 1.0, (2,))


class VectorNavigation(_Shared, VectorEnv[Observations, ArrayLike, NDArray[Any]]):
    """Many robots, each in a world of its own; an episode that ends is followed by the next in the same step.

    Robot ``i`` after ``reset(seed=s)`` does what a single environment does after ``reset(seed=s + i)``, bit for bit.
    ``info`` holds ``reward_components`` ``(B, 6)``, ``is_success`` and ``is_collision`` ``(B,)`` of the step taken,
    also where it ended an episode; then, as in gymnasium's own vector environments, ``final_obs`` ``(B, O)`` and
    ``final_info``, with the masks ``_final_obs`` and ``_final_info``.

    Args:
        num_envs: Number of robots.
        render_mode: ``rgb_array`` for pictures by :meth:`render`.
        record: Keep the last episodes of so many robots, the first ones, for :meth:`figures`.
        options: Fields of :class:`~framework.rl.navigation.settings.Settings`.

    Raises:
        ValueError: If an option is unknown or out of range, or obstacles find no place.
    """

    metadata = METADATA | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, record: int = 0, **options: Any) -> None:
        self._prepare(num_envs, render_mode, record, options)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self._spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: Robot ``i`` draws its worlds from ``seed + i``, or from the i-th of a list; without one it goes on
                with its generator, or begins with one from the system.
            options: ``reset_mask``, shape ``(num_envs,)``, resets some robots only; the first time it must be all.

        Returns:
            Observations and an empty dict.

        Raises:
            ValueError: If there are not as many seeds, or values in the mask, as robots, or a robot would begin without
                a world.
        """
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seed = range(int(seed), int(seed) + self.num_envs)
        elif seed is None and not self.robots.generators:
            seed = [int(word) for word in np.random.SeedSequence().generate_state(self.num_envs, np.uint64)]
        if seed is not None and len(seed) != self.num_envs:
            raise ValueError(f"seed must be one number or one per robot: {len(seed)} for {self.num_envs} robots")
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], dtype=np.bool_)
            if mask.shape != (self.num_envs,):
                raise ValueError(f"reset_mask must have shape {(self.num_envs,)}, got {mask.shape}")
            if not (mask.all() or self.robots.generators):
                raise ValueError(f"reset_mask must name all robots at the first reset, got {int(mask.sum())} of them")
        if seed is not None:
            new = generators_of(seed)
            kept = self.robots.generators or new
            self.robots.generators = [(new if mask[robot] else kept)[robot] for robot in range(self.num_envs)]
        self.robots.reset(mask)
        self.recorder.begin(mask)
        return self.robots.observation(), {}

    def step(
        self, actions: ArrayLike
    ) -> tuple[Observations, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move all robots; see the class for what ``info`` holds."""
        outcome = self.robots.step(actions)
        self.recorder.note(outcome)
        observations = self.robots.observation()
        terminated = outcome.success | outcome.collision
        ended = terminated | outcome.truncated
        info = _masked(_told(outcome), np.ones(self.num_envs, dtype=np.bool_))
        if ended.any():
            final = {
                key: np.where(_like(ended, value), value, 0).astype(value.dtype)
                for key, value in _told(outcome).items()
            }
            info |= {
                "final_obs": np.where(ended[:, None], observations, np.float32(0)),
                "_final_obs": ended.copy(),
                "final_info": _masked(final, ended),
                "_final_info": ended.copy(),
            }
            self.robots.reset(ended)
            self.recorder.begin(ended)
            observations[ended] = self.robots.observation(ended)
        return observations, outcome.reward, terminated, outcome.truncated, info

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Go on where :meth:`state_dict` was taken, bit for bit.

        Raises:
            ValueError: If the state is of another task or number of robots.
        """
        self.robots.load_state_dict(state)
        self.recorder.begin(np.ones(self.num_envs, dtype=np.bool_))

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Each robot's world from above, ``(H, W, 3)`` each; ``None`` without a render mode."""
        from framework.rl.navigation.pictures import frame

        if self.render_mode is None:
            return None
        return tuple(frame(self.robots, robot) for robot in range(self.num_envs))


class Navigation(_Shared, gymnasium.Env[Observations, ArrayLike]):
    """One robot.

    ``info`` holds ``reward_components`` ``(6,)``, ``is_success`` and ``is_collision`` of the step taken.

    Args:
        render_mode: ``rgb_array`` for pictures by :meth:`render`.
        record: 1 to keep the last episodes for :meth:`figures`.
        options: Fields of :class:`~framework.rl.navigation.settings.Settings`.

    Raises:
        ValueError: If an option is unknown or out of range, or obstacles find no place.
    """

    metadata = METADATA

    def __init__(self, render_mode: str | None = None, record: int = 0, **options: Any) -> None:
        self._prepare(1, render_mode, record, options)
        self.observation_space, self.action_space = self._spaces()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        super().reset(seed=seed)
        self.robots.generators = [self.np_random]
        self.robots.reset()
        self.recorder.begin(np.ones(1, dtype=np.bool_))
        return self.robots.observation()[0], {}

    def step(self, action: ArrayLike) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        outcome = self.robots.step(np.asarray(action)[None])
        self.recorder.note(outcome)
        info = {key: value[0].copy() if value.ndim > 1 else bool(value[0]) for key, value in _told(outcome).items()}
        terminated = bool(outcome.success[0] or outcome.collision[0])
        return self.robots.observation()[0], float(outcome.reward[0]), terminated, bool(outcome.truncated[0]), info

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Go on where :meth:`state_dict` was taken, bit for bit.

        Raises:
            ValueError: If the state is of another task.
        """
        self.robots.generators = [self.np_random]
        self.robots.load_state_dict(state)
        self.recorder.begin(np.ones(1, dtype=np.bool_))

    def render(self) -> NDArray[np.uint8] | None:
        """The world from above, ``(H, W, 3)``; ``None`` without a render mode."""
        from framework.rl.navigation.pictures import frame

        return None if self.render_mode is None else frame(self.robots, 0)


def _told(outcome: Outcome) -> dict[str, NDArray[Any]]:
    return {
        "reward_components": outcome.components,
        "is_success": outcome.success,
        "is_collision": outcome.collision,
    }


def _masked(values: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Values with gymnasium's masks beside them, all of them new arrays."""
    return {key: value.copy() for key, value in values.items()} | {f"_{key}": mask.copy() for key in values}


def _like(mask: NDArray[np.bool_], value: NDArray[Any]) -> NDArray[np.bool_]:
    return mask.reshape(-1, *[1] * (value.ndim - 1))


register()
