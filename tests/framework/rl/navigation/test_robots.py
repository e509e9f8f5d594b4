"""The batch: what is seen and paid, invariance, and state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from framework.rl.navigation.episodes import drive
from framework.rl.navigation.pilots import PILOTS, gaps, stand_still
from framework.rl.navigation.robots import Robots, generators_of
from framework.rl.navigation.settings import COMPONENTS, Settings

TASK = Settings(time_limit=60)


def begun(task, seeds):
    robots = Robots(task, len(seeds))
    robots.generators = generators_of(seeds)
    robots.reset()
    return robots


def rotate(robots, angle):
    """Turn worlds and robots about the origin."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    world = robots.world
    for name in ("room", "polygons", "patrols", "goal"):
        world[name] = np.tensordot(turn, world[name], 1)
    world["circles"][:2] = np.tensordot(turn, world["circles"][:2], 1)
    x, y = turn @ np.stack(robots.motion[:2])
    robots.motion = robots.motion._replace(x=x, y=y, heading=robots.motion.heading + angle)
    robots.refresh()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-math.pi, math.pi))
def test_nothing_changes_when_the_world_is_turned(seed, angle):
    seeds = range(seed, seed + 4)
    one, other = begun(TASK, seeds), begun(TASK, seeds)
    rotate(other, angle)
    actions = np.random.default_rng(seed).uniform(-1, 1, (12, 4, 2))
    for action in actions:
        a, b = one.step(action), other.step(action)
        assert b.components == pytest.approx(a.components, abs=1e-9)
        assert (b.success == a.success).all()
        assert (b.collision == a.collision).all()
        away = np.abs(one.observation() - other.observation())
        assert (away > 1e-4).sum() <= 1  # a ray that just touches may miss after rounding


def test_ranges_against_marching():
    """Steps of 5 mm from the centre until something is met."""
    robots = begun(TASK, range(3))
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 3, 2)):
        robots.step(action)
    at, close = np.arange(0, TASK.ray_range, 5e-3), []
    for robot in range(3):
        x, y, heading = (field[robot] for field in robots.motion[:3])
        shapes = [Path(corners.T) for corners in np.moveaxis(robots.world["polygons"][..., robot], 1, 0)]
        discs = [(*centre, TASK.moving_radius) for centre in robots.discs()[..., robot].T]
        for ray, angle in enumerate(TASK.ray_angles):
            points = np.array([x, y]) + at[:, None] * [math.cos(heading + angle), math.sin(heading + angle)]
            inside = np.abs(points).max(axis=1) > TASK.half
            for shape in shapes:
                inside |= shape.contains_points(points)
            for cx, cy, radius in [*robots.world["circles"][..., robot].T, *discs]:
                inside |= np.hypot(points[:, 0] - cx, points[:, 1] - cy) < radius
            first = at[inside.argmax()] if inside.any() else TASK.ray_range
            seen = robots.observation()[robot, ray] * TASK.ray_range
            assert seen <= first + 1e-5
            close.append(seen >= first - 6e-3)  # not where a corner is cut within one step, which marching misses
    assert np.mean(close) > 0.95


def test_collisions_against_points_on_the_rim():
    """A robot has collided if a point of its rim or its centre is in an obstacle, up to what 3,000 points can tell."""
    robots = begun(TASK, range(300))
    generator = np.random.default_rng(0)
    rim = np.stack([np.cos(np.linspace(0, 2 * math.pi, 3000)), np.sin(np.linspace(0, 2 * math.pi, 3000))], axis=1)
    x, y = generator.uniform(-TASK.half, TASK.half, (2, 300))
    robots.motion = robots.motion._replace(x=x, y=y)
    outcome = robots.step(np.zeros((300, 2)))
    assert 0.1 < outcome.collision.mean() < 0.9
    clearance = robots.clearance()
    for robot in np.flatnonzero(np.abs(clearance) > 2e-3)[:150]:
        points = np.concatenate([[[x[robot], y[robot]]], [x[robot], y[robot]] + TASK.robot_radius * rim])
        inside = np.abs(points).max(axis=1) > TASK.half
        discs = [(*centre, TASK.moving_radius) for centre in robots.discs()[..., robot].T]
        for cx, cy, radius in [*robots.world["circles"][..., robot].T, *discs]:
            inside |= np.hypot(points[:, 0] - cx, points[:, 1] - cy) < radius
        hit = inside.any()
        for corners in np.moveaxis(robots.world["polygons"][..., robot], 1, 0):
            hit |= Path(corners.T).contains_points(points).any()
            hit |= (np.hypot(*(corners - points[0][:, None])) < TASK.robot_radius).any()
        assert hit == outcome.collision[robot]


def test_components_of_episodes():
    episodes = drive(lambda seen: gaps(seen, TASK), TASK, 100, seed=5)
    sums = dict(zip(COMPONENTS, np.stack([episode.components for episode in episodes]).T))
    ends = np.array([episode.end for episode in episodes])
    assert set(ends) == {"goal", "collision", "time"}
    assert sums["goal"].tolist() == (ends == "goal").tolist()
    assert (-sums["collision"]).tolist() == (ends == "collision").tolist()
    way = [
        np.hypot(*(each.path[0, :2] - each.scene.goal)) - np.hypot(*(each.path[-1, :2] - each.scene.goal))
        for each in episodes
    ]
    assert sums["progress"] == pytest.approx(way, abs=1e-9)
    for name in ("speed", "acceleration", "clearance"):
        assert (sums[name] <= 0).all()
    steps = np.array([len(episode.path) - 1 for episode in episodes])
    assert (sums["acceleration"] >= -TASK.dt * steps).all()
    assert (sums["speed"] >= -TASK.dt * steps).all()


def test_components_in_closed_form():
    """From rest, at full acceleration straight ahead in an empty room."""
    task = Settings(circles=0, polygons=0, moving=0, safe_distance=1.0)
    robots = begun(task, [0])
    robots.motion = robots.motion._replace(x=np.zeros(1), y=np.zeros(1), heading=np.zeros(1))
    robots.world["goal"][:] = [[3.0], [0.0]]
    robots.refresh()
    for step in range(1, 4):
        outcome = robots.step([[1.0, 0.0]])
        speed = 0.1 * step
        away = [0, speed * 0.1, -0.1 * abs(speed / 0.8 - 1), -0.05, 0, 0]
        assert outcome.components[0] == pytest.approx(away, abs=1e-12)
        assert outcome.reward[0] == pytest.approx(task.component_weights @ away)
    robots.motion = robots.motion._replace(x=np.array([4 - 0.2 - 0.25]), speed=np.zeros(1))
    outcome = robots.step([[0.0, 0.0]])
    assert outcome.components[0, 4] == pytest.approx(-0.1 * 0.75**2)
    robots.motion = robots.motion._replace(x=np.array([2.8]))
    assert robots.step([[0.0, 0.0]]).success[0]
    robots.motion = robots.motion._replace(x=np.array([3.9]))
    assert robots.step([[0.0, 0.0]]).collision[0]


def test_observation():
    task = Settings(circles=0, polygons=0, moving=0, rays=4, scans=3, ray_range=5.0)
    robots = begun(task, [0])
    robots.motion = robots.motion._replace(x=np.array([1.0]), y=np.array([-2.0]), heading=np.zeros(1))
    robots.world["goal"][:] = [[1.0], [1.0]]
    robots.refresh()
    seen = robots.observation()
    assert seen.dtype == np.float32
    assert seen.shape == (1, task.observation_size)
    ranges = [1, 0.4, 0.6, 1]  # back, right, front, left; both 5 and 6 m are out of range
    assert seen[0] == pytest.approx([*ranges * 3, 3 / (8 * math.sqrt(2)), 0, 1, 0, 0], abs=1e-6)
    robots.motion = robots.motion._replace(speed=np.ones(1))
    robots.step([[1.0, -1.0]])
    newer = robots.observation()[0]
    assert newer[4:12] == pytest.approx([*ranges * 2], abs=1e-6)
    assert newer[2] < 0.6
    assert newer[-2:] == pytest.approx([1, -0.2], abs=1e-6)


def test_standing_still_is_safe_and_going_is_worth_it():
    """The default task tempts: a learner that tries things out loses more than one that stands; a driver gains."""
    task = Settings()
    generator = np.random.default_rng(0)
    value = {}
    policies = {name: lambda seen, pilot=pilot: pilot(seen, task) for name, pilot in PILOTS.items()}
    policies["random"] = lambda seen: generator.uniform(-1, 1, (len(seen), 2))
    for name, policy in policies.items():
        episodes = drive(policy, task, 60)
        value[name] = np.mean([episode.components @ task.component_weights for episode in episodes])
        if name == "still":
            assert {episode.end for episode in episodes} == {"time"}
        if name == "gaps":
            assert sum(episode.end == "goal" for episode in episodes) > 40
    assert value["random"] < value["still"] < value["gaps"]
    assert value["gaps"] > 5


def test_bad_actions_and_seeds():
    robots = begun(TASK, [0, 1])
    with pytest.raises(ValueError, match=r"^actions must have shape \(2, 2\), got \(2,\)"):
        robots.step([0.0, 0.0])
    with pytest.raises(ValueError, match=r"^actions must be finite, got \[0\.0, nan\] for robot 1"):
        robots.step([[0.0, 0.0], [0.0, math.nan]])
    with pytest.raises(ValueError, match=r"^the number of robots must be a whole number of at least 1, got 0"):
        Robots(TASK, 0)
    with pytest.raises(ValueError, match=r"^robots must be reset before their first step"):
        Robots(TASK, 1).step([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1"):
        drive(lambda seen: stand_still(seen, TASK), TASK, 1, seed=-1)


def test_actions_are_clipped():
    one, other = begun(TASK, [3]), begun(TASK, [3])
    assert (one.step([[5.0, -7.0]]).components == other.step([[1.0, -1.0]]).components).all()


def test_state_of_other_robots():
    state = begun(TASK, [0, 1]).state_dict()
    with pytest.raises(ValueError, match=r"^the saved state is of other robots: world\.start must have shape \(3, 3\)"):
        begun(TASK, range(3)).load_state_dict(state)
    del state["scans"]
    with pytest.raises(ValueError, match=r"scans must have shape \(2, 24, 2\), got None"):
        begun(TASK, range(2)).load_state_dict(state)
    moved = begun(TASK, [0])
    moved.load_state_dict(Robots(TASK, 1).state_dict())  # of robots that have no worlds yet
    with pytest.raises(ValueError, match=r"^robots must be reset before their first step"):
        moved.step([[0.0, 0.0]])
    strange = begun(TASK, [0])
    strange.generators = [np.random.Generator(np.random.MT19937(0))]
    with pytest.raises(ValueError, match=r"^generators must be PCG64 to be saved, got MT19937"):
        strange.state_dict()
