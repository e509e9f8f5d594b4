"""Rays and distances against marching and against boundaries drawn point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from framework.rl.navigation.geometry import (
    distance_to_circles,
    distance_to_polygons,
    distance_to_walls,
    edges_of,
    edges_seen_from,
    points_seen_from,
    rays_to_circles,
    rays_to_polygons,
    rays_to_walls,
)

SQUARE = np.array([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])


def random_polygons(generator, count, corners=5):
    """Convex polygons, shape (2, count, corners, 1), some of them around the origin."""
    angle = np.sort(generator.uniform(0, 2 * math.pi, (count, corners)), axis=1)
    angle = angle + np.arange(corners) * 1e-3  # no two corners alike
    radius = generator.uniform(0.2, 1.5, (count, 1))
    centre = generator.uniform(-2, 2, (2, count, 1))
    return (centre + radius * np.stack([np.cos(angle), np.sin(angle)]))[..., None]


def directions(count):
    angle = 2 * math.pi * np.arange(count) / count + 0.123
    return np.stack([np.cos(angle), np.sin(angle)])


def marched(inside, direction, reach=6.0, step=2e-3):
    """First sample on a ray that is inside of something; infinite if none is."""
    at = np.arange(0, reach, step)
    hits = np.flatnonzero(inside(at[:, None] * direction))
    return at[hits[0]] if len(hits) else math.inf


@pytest.mark.parametrize("seed", range(4))
def test_rays_against_marching(seed):
    generator = np.random.default_rng(seed)
    circles = np.stack([*generator.uniform(-3, 3, (2, 3, 1)), generator.uniform(0.2, 1, (3, 1))])
    polygons = random_polygons(generator, 3)
    edges = edges_of(polygons)
    rays = directions(40)
    cases = [
        (
            rays_to_circles(rays, circles)[:, 0],
            lambda p: (((p[:, None] - circles[:2, :, 0].T) ** 2).sum(2) < circles[2, :, 0] ** 2).any(1),
            lambda x, y: distance_to_circles(x, y, np.repeat(circles, len(x), axis=-1)),
        ),
        (
            rays_to_polygons(rays, edges)[:, 0],
            lambda p: np.any([Path(polygons[:, i, :, 0].T).contains_points(p) for i in range(3)], axis=0),
            lambda x, y: distance_to_polygons(
                x, y, np.repeat(polygons, len(x), axis=-1), np.repeat(edges, len(x), axis=-1)
            ),
        ),
    ]
    for cast, inside, distance in cases:
        assert np.isfinite(cast).any()
        for ray, found in zip(rays.T, cast):
            assert found <= marched(inside, ray) + 1e-9  # nothing in front of it
        hit = np.isfinite(cast)
        x, y = rays[:, hit] * cast[hit]
        at_start = cast[hit] == 0
        assert np.abs(distance(x, y)[~at_start]) == pytest.approx(0, abs=1e-9)  # and something there
        assert (distance(x, y)[at_start] <= 0).all()


def test_rays_to_walls():
    edges = edges_of(2 * SQUARE[:, None, :, None])[:, 0]
    ahead = np.array([[1.0, 0.0, -1.0, math.sqrt(0.5)], [0.0, 1.0, 0.0, math.sqrt(0.5)]])
    seen = edges_seen_from(edges, np.array([1.0]), np.array([0.0]), np.array([1.0]), np.array([0.0]))
    assert rays_to_walls(ahead, seen)[:, 0] == pytest.approx([1, 2, 3, math.sqrt(2)])
    outside = edges_seen_from(edges, np.array([3.0]), np.array([0.0]), np.array([1.0]), np.array([0.0]))
    assert rays_to_walls(ahead, outside)[0, 0] == 0


def test_rays_in_closed_form():
    rays = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    circle = np.array([3.0, 0.5, 1.0]).reshape(3, 1, 1)
    assert rays_to_circles(rays, circle)[:, 0] == pytest.approx([3 - math.sqrt(0.75), math.inf, math.inf])
    square = (SQUARE + np.array([[3.0], [0.0]]))[:, None, :, None]
    assert rays_to_polygons(rays, edges_of(square))[:, 0].tolist() == [2, math.inf, math.inf]
    around = SQUARE[:, None, :, None]
    assert rays_to_polygons(rays, edges_of(around))[:, 0].tolist() == [0, 0, 0]
    below = (SQUARE - np.array([[0.0], [2.0]]))[:, None, :, None]  # parallel to its upper edge
    assert rays_to_polygons(rays, edges_of(below))[:, 0].tolist() == [math.inf] * 3
    for none in (rays_to_circles(rays, np.empty((3, 0, 2))), rays_to_polygons(rays, np.empty((3, 0, 4, 2)))):
        assert none.tolist() == np.full((3, 2), math.inf).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-3, 3))
def test_distance_to_polygons_against_their_boundary(seed, x, y):
    polygon = random_polygons(np.random.default_rng(seed), 1)
    corners = polygon[:, 0, :, 0]
    share = np.linspace(0, 1, 2000)
    boundary = [corners[:, [i]] * (1 - share) + corners[:, [(i + 1) % 5]] * share for i in range(5)]
    nearest = min(np.hypot(points[0] - x, points[1] - y).min() for points in boundary)
    found = float(distance_to_polygons(np.array([x]), np.array([y]), polygon, edges_of(polygon))[0])
    assert abs(found) == pytest.approx(nearest, abs=2e-3)
    if nearest > 2e-3:
        assert (found < 0) == Path(corners.T).contains_point((x, y))


def test_distances_in_closed_form():
    x, y = np.array([0.0, 3.0, 0.5]), np.array([0.0, 4.0, 0.0])
    edges = np.repeat(edges_of(SQUARE[:, None, :, None])[:, 0], 3, axis=-1)
    assert distance_to_walls(x, y, edges) == pytest.approx([1, -3, 0.5])
    circle = np.repeat(np.array([0.0, 0.0, 1.0]).reshape(3, 1, 1), 3, axis=-1)
    assert distance_to_circles(x, y, circle) == pytest.approx([-1, 4, -0.5])
    assert distance_to_circles(x, y, np.empty((3, 0, 3))).tolist() == [math.inf] * 3
    assert distance_to_polygons(x, y, np.empty((2, 0, 4, 3)), np.empty((3, 0, 4, 3))).tolist() == [math.inf] * 3


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-7, 7))
def test_frame_of_a_robot(x, y, heading):
    pose = np.array([x]), np.array([y]), np.cos([heading]), np.sin([heading])
    points = np.array([[x + math.cos(heading), x - math.sin(heading)], [y + math.sin(heading), y + math.cos(heading)]])
    ahead_and_left = points_seen_from(points[..., None], *pose)[..., 0]
    assert ahead_and_left == pytest.approx(np.eye(2), abs=1e-12)
    edges = edges_of(SQUARE[:, None, :, None])
    turned = points_seen_from(SQUARE[:, None, :, None], *pose)
    assert edges_seen_from(edges, *pose) == pytest.approx(edges_of(turned), abs=1e-9)
