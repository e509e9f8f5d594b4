"""Drawn worlds: the start is free, the goal can be reached, patrols are safe; settings are checked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from framework.rl.navigation.dynamics import patrol
from framework.rl.navigation.geometry import distance_to_circles, distance_to_polygons, edges_of
from framework.rl.navigation.robots import Robots, generators_of
from framework.rl.navigation.settings import COMPONENTS, MARGIN, WEIGHTS, Settings
from framework.rl.navigation.worlds import draw

TASKS = {
    "default": Settings(),
    "crowded": Settings(circles=6, polygons=4, sides=3, moving=6),
    "empty": Settings(circles=0, polygons=0, moving=0),
    "small": Settings(circles=1, polygons=0, moving=1, room=4.0, min_distance=1.0, max_distance=3.0),
}


@pytest.mark.parametrize("task", TASKS)
def test_start_and_goal_are_free(task):
    settings, count = TASKS[task], 200
    robots = Robots(settings, count)
    robots.generators = generators_of(range(count))
    robots.reset()
    assert (robots.clearance() >= MARGIN - 1e-9).all()
    start, goal = robots.world["start"][:2], robots.world["goal"]
    apart = np.hypot(*(start - goal))
    assert (apart >= settings.min_distance - 1e-9).all()
    assert (apart <= settings.max_distance + 1e-9).all()
    robots.motion = robots.motion._replace(x=goal[0].copy(), y=goal[1].copy())
    assert (robots.clearance() >= MARGIN - 1e-9).all()  # discs included
    for name in ("circles", "polygons", "patrols"):
        assert np.abs(robots.world[name][:2]).max(initial=0) <= settings.half


def test_the_robot_fits_between_any_two_static_obstacles():
    settings, count = TASKS["crowded"], 40
    world = draw(settings, generators_of(range(count)))
    circles, polygons, gap = world["circles"], world["polygons"], settings.gap - 1e-9
    for one in range(settings.circles):
        x, y, radius = circles[:, one]
        assert (np.maximum(np.abs(x), np.abs(y)) + radius <= settings.half - gap).all()
        others = np.delete(circles, one, axis=1)
        assert (distance_to_circles(x, y, others) >= radius + gap).all()
        assert (distance_to_polygons(x, y, polygons, edges_of(polygons)) >= radius + gap).all()
    for one in range(settings.polygons):
        others = np.delete(polygons, one, axis=1)
        assert (np.abs(polygons[:, one]) <= settings.half - gap).all()
        for x, y in np.moveaxis(polygons[:, one], 1, 0):
            assert (distance_to_polygons(x, y, others, edges_of(others)) >= gap).all()


@pytest.mark.parametrize("task", ["default", "crowded"])
def test_goal_can_be_reached(task):
    """Cells that the robot's centre can take, among static obstacles, are connected from start to goal."""
    settings, count = TASKS[task], 10
    world = draw(settings, generators_of(range(count)))
    cell = 0.04
    axis = np.arange(-settings.half + settings.robot_radius, settings.half - settings.robot_radius, cell)
    x, y = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    for robot in range(count):
        circles = np.repeat(world["circles"][..., [robot]], len(x), axis=-1)
        polygons = world["polygons"][..., [robot]]
        free = distance_to_circles(x, y, circles) > settings.robot_radius
        free &= distance_to_polygons(x, y, polygons, edges_of(polygons)) > settings.robot_radius
        regions, _ = ndimage.label(free.reshape(len(axis), len(axis)), structure=np.ones((3, 3)))
        ends = [
            regions[tuple(np.rint((place - axis[0]) / cell).astype(int))]
            for place in (world["start"][:2, robot], world["goal"][:, robot])
        ]
        assert ends[0] == ends[1] > 0


def test_patrols_touch_neither_static_obstacles_nor_start_and_goal():
    settings, count = TASKS["crowded"], 50
    world = draw(settings, generators_of(range(count)))
    edges = edges_of(world["polygons"])
    for phase in np.linspace(0, 1, 60):
        for x, y in np.moveaxis(patrol(world["patrols"], np.full_like(world["phase"], phase)), 1, 0):
            radius = settings.moving_radius
            assert (distance_to_circles(x, y, world["circles"]) >= radius - 1e-9).all()
            assert (distance_to_polygons(x, y, world["polygons"], edges) >= radius - 1e-9).all()
            assert (np.maximum(np.abs(x), np.abs(y)) <= settings.half - radius).all()
            for place in (world["start"][:2], world["goal"]):
                assert (np.hypot(x - place[0], y - place[1]) >= radius + settings.robot_radius + MARGIN - 1e-9).all()
    lengths = np.hypot(*(world["patrols"][:, 1] - world["patrols"][:, 0]))
    speeds = world["pace"] * lengths / settings.dt
    assert (speeds <= settings.moving_speed + 1e-9).all()
    assert (speeds >= settings.moving_speed / 2 - 1e-9).all()


def test_a_world_depends_on_its_own_generator_alone():
    crowded = TASKS["crowded"]  # so that some worlds take several attempts
    together = draw(crowded, generators_of(range(30)))
    for robot in (0, 7, 29):
        alone = draw(crowded, generators_of([robot]))
        for name, array in alone.items():
            assert (array[..., 0] == together[name][..., robot]).all(), name


def test_no_room():
    with pytest.raises(
        ValueError, match=r"^no place for 60 circles, 0 polygons and 0 moving discs in a room of 8\.0 m"
    ):
        Robots(Settings(circles=60, polygons=0, moving=0), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cirlces": 3}, r"navigation has no option cirlces; did you mean circles\?"),
        ({"circles": -1}, "circles must be a whole number of at least 0, got -1"),
        ({"rays": 2.5}, "rays must be a whole number of at least 1, got 2.5"),
        ({"sides": 2}, "sides must be a whole number of at least 3, got 2"),
        ({"room": math.nan}, "room must be a finite number, got nan"),
        ({"room": "large"}, "room must be a finite number, got 'large'"),
        ({"dt": 0}, "dt must be positive, got 0"),
        ({"dt": 0.5}, r"dt must be at most 0\.133, got 0\.5: in a step, robot and disc would come 0\.75 m nearer"),
        ({"min_radius": 0.8}, r"min_radius must be at most max_radius = 0\.7, got 0\.8"),
        ({"reference_speed": 1.5}, r"reference_speed must be at most max_speed = 1\.0, got 1\.5"),
        ({"min_distance": 11, "max_distance": 12}, r"min_distance must be less than 10\.5 in a room of 8\.0, got 11"),
        ({"goal_radius": 4.0}, r"goal_radius must be less than min_distance = 4\.0, got 4\.0: an episode would"),
        ({"max_radius": 3.6}, r"max_radius must be less than 3\.5 in a room of 8\.0, got 3\.6"),
        ({"moving_radius": 4}, r"moving_radius must be less than 3\.9 in a room of 8\.0, got 4"),
        ({"field_of_view": 7}, "field_of_view must be at most 2 pi, got 7"),
        ({"min_speed": 0.1}, r"min_speed must be at most 0, got 0\.1"),
        ({"moving_speed": -1}, "moving_speed must be at least 0, got -1"),
        ({"weights": [1, 2]}, r"weights must be a mapping from components to numbers, got \[1, 2\]"),
        ({"weights": {"gaol": 1}}, r"weights: no such reward component gaol; did you mean goal\?"),
        ({"weights": {"goal": math.inf}}, "weights: the weight of goal must be a finite number, got inf"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Settings.of(options)


def test_settings():
    assert Settings(weights={"speed": 2}).component_weights.tolist() == [10, 1, 2, 0.5, 1, 10]
    assert tuple(WEIGHTS) == COMPONENTS
    around = Settings(rays=8).ray_angles
    assert around == pytest.approx(np.arange(-4, 4) * math.pi / 4)
    assert Settings(rays=3, field_of_view=math.pi).ray_angles == pytest.approx([-math.pi / 2, 0, math.pi / 2])
    assert Settings(rays=1, field_of_view=1.0).ray_angles.tolist() == [0]
