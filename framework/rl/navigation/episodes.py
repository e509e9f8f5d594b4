"""Episodes that have ended, as they were driven, for pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from framework.rl.navigation.geometry import Array
from framework.rl.navigation.robots import Flags, Outcome, Robots, generators_of
from framework.rl.navigation.settings import Settings

KEPT = 9
"""Episodes that a recorder keeps unless told otherwise."""

End = Literal["goal", "collision", "time"]
Policy = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True)
class Scene:
    """One robot's world at one moment.

    Attributes:
        settings: The task.
        room: Corners, shape ``(2, 4)``.
        circles: Centre and radius, shape ``(3, C)``.
        polygons: Corners, shape ``(2, P, V)``.
        discs: Centres of moving discs, shape ``(2, M)``.
        patrols: Ends of their ways, shape ``(2, 2, M)``.
        start: Shape ``(2,)``.
        goal: Shape ``(2,)``.
        pose: Place and heading of the robot, shape ``(3,)``.
    """

    settings: Settings
    room: Array
    circles: Array
    polygons: Array
    discs: Array
    patrols: Array
    start: Array
    goal: Array
    pose: Array

    @classmethod
    def of(cls, robots: Robots, robot: int) -> Scene:
        """The present scene of one robot of a batch."""
        world = {name: array[..., robot].copy() for name, array in robots.world.items()}
        return cls(
            settings=robots.settings,
            discs=robots.discs()[..., robot],
            start=world["start"][:2],
            pose=np.array([field[robot] for field in robots.motion[:3]]),
            **{name: world[name] for name in ("room", "circles", "polygons", "patrols", "goal")},
        )


@dataclass(frozen=True)
class Episode:
    """An episode from start to end.

    Attributes:
        scene: The world at its start.
        path: Place and heading before the first and after every step, shape ``(T + 1, 3)``.
        discs: Centres of the moving discs at the same times, shape ``(T + 1, 2, M)``.
        components: Sum of each reward component, shape ``(6,)``.
        end: How it ended.
        robot: Which robot of the batch drove it.
    """

    scene: Scene
    path: Array
    discs: Array
    components: Array
    end: End
    robot: int


class Recorder:
    """Keeps the last episodes of the first robots of a batch.

    Args:
        robots: The batch.
        count: How many of its robots; 0 records nothing and costs nothing.
        kept: How many episodes.

    Attributes:
        episodes: Oldest first. An episode whose beginning was not seen begins where the recording did.
    """

    def __init__(self, robots: Robots, count: int, kept: int = KEPT) -> None:
        self.robots = robots
        self.count = count
        self.episodes: deque[Episode] = deque(maxlen=kept)
        self._scenes: list[Scene] = []
        self._paths: list[list[Array]] = [[] for _ in range(count)]
        self._discs: list[list[Array]] = [[] for _ in range(count)]
        self._sums = np.zeros((count, len(robots.weights)))

    def begin(self, which: Flags) -> None:
        """Robots that have just been placed, as flags of shape ``(B,)``."""
        for robot in np.flatnonzero(which[: self.count]).tolist():
            scene = Scene.of(self.robots, robot)
            self._scenes[robot : robot + 1] = [scene]
            self._paths[robot], self._discs[robot] = [scene.pose], [scene.discs]
            self._sums[robot] = 0

    def note(self, outcome: Outcome) -> None:
        """What a step did, before robots whose episode has ended are reset."""
        if not self.count:
            return
        self._sums += outcome.components[: self.count]
        discs = self.robots.discs()
        for robot in range(self.count):
            self._paths[robot].append(np.array([field[robot] for field in self.robots.motion[:3]]))
            self._discs[robot].append(discs[..., robot].copy())
            if outcome.success[robot] or outcome.collision[robot] or outcome.truncated[robot]:
                end: End = "goal" if outcome.success[robot] else "collision" if outcome.collision[robot] else "time"
                path, moved = np.stack(self._paths[robot]), np.stack(self._discs[robot])
                self.episodes.append(Episode(self._scenes[robot], path, moved, self._sums[robot].copy(), end, robot))


def drive(policy: Policy, settings: Settings, episodes: int, seed: int = 0) -> list[Episode]:
    """Episodes of a policy, all at once: the first of robots seeded ``seed``, ``seed + 1``, ...

    Args:
        policy: Actions ``(B, 2)`` from observations ``(B, observation_size)``.
        settings: The task.
        episodes: How many, at least 1.
        seed: Not negative.

    Returns:
        Episodes by seed.

    Raises:
        ValueError: If a number is out of range.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    robots = Robots(settings, episodes)
    robots.generators = generators_of(range(seed, seed + episodes))
    robots.reset()
    recorder, first = Recorder(robots, episodes, episodes), dict[int, Episode]()
    recorder.begin(np.ones(episodes, dtype=np.bool_))
    while len(first) < episodes:
        outcome = robots.step(policy(robots.observation()))
        recorder.note(outcome)
        for episode in recorder.episodes:
            first.setdefault(episode.robot, episode)
        recorder.episodes.clear()
        ended = outcome.success | outcome.collision | outcome.truncated
        robots.reset(ended)
        recorder.begin(ended)
    return [first[robot] for robot in range(episodes)]
