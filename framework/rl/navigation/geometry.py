"""Distances and rays of many robots at once.

The last axis is always the robot: operations run along it, and one robot among many gets the very numbers that it gets
alone. Polygons are convex, with corners counter-clockwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def edges_of(corners: Array) -> Array:
    """Edges of convex polygons as half-planes ``n . p <= c``.

    Args:
        corners: Shape ``(2, P, V, B)``, counter-clockwise.

    Returns:
        Unit normal outwards and offset of the edge that begins at each corner, shape ``(3, P, V, B)``.
    """
    along = np.roll(corners, -1, axis=2) - corners
    normal = np.stack([along[1], -along[0]]) / np.sqrt(along[0] ** 2 + along[1] ** 2)
    return np.concatenate([normal, (normal[0] * corners[0] + normal[1] * corners[1])[None]])


def points_seen_from(points: Array, x: Array, y: Array, cosine: Array, sine: Array) -> Array:
    """Points in the frame of a robot: origin at its centre, first axis along its heading.

    Args:
        points: Shape ``(2, ..., B)``.
        x: Place of the robots, shape ``(B,)``.
        y: Place of the robots, shape ``(B,)``.
        cosine: Of their headings, shape ``(B,)``.
        sine: Of their headings, shape ``(B,)``.
    """
    right, up = points[0] - x, points[1] - y
    return np.stack([cosine * right + sine * up, cosine * up - sine * right])


def edges_seen_from(edges: Array, x: Array, y: Array, cosine: Array, sine: Array) -> Array:
    """Half-planes, shape ``(3, ..., B)``, in the frame of a robot; see :func:`points_seen_from`."""
    offset = edges[2] - (edges[0] * x + edges[1] * y)
    return np.stack([cosine * edges[0] + sine * edges[1], cosine * edges[1] - sine * edges[0], offset])


def rays_to_circles(directions: Array, circles: Array) -> Array:
    """How far rays from the origin go until they meet a circle.

    Args:
        directions: Unit vectors, shape ``(2, K)``.
        circles: Centre and radius, shape ``(3, C, B)``.

    Returns:
        Distance to the nearest, shape ``(K, B)``; 0 from inside of one, infinite where none is met.
    """
    dx, dy = directions[:, :, None]
    nearest, along, root, spare = _buffers(4, dx, circles)
    nearest.fill(np.inf)
    with np.errstate(invalid="ignore"):
        for index in range(circles.shape[1]):
            x, y, radius = circles[:, index]
            np.multiply(x, dx, out=along)
            along += np.multiply(y, dy, out=spare)
            np.multiply(x, dy, out=root)
            root -= np.multiply(y, dx, out=spare)
            root *= root
            np.sqrt(np.subtract(radius * radius, root, out=root), out=root)  # NaN, which fmin skips, where it is missed
            np.add(along, root, out=spare)
            behind = _infinite(spare, out=spare)
            np.maximum(np.subtract(along, root, out=along), 0, out=along)
            np.fmin(nearest, np.maximum(along, np.negative(behind, out=behind), out=along), out=nearest)
    return nearest


def rays_to_polygons(directions: Array, edges: Array) -> Array:
    """How far rays from the origin go until they meet a convex polygon.

    A ray is inside of a polygon from where it has entered the last half-plane until it leaves the first.

    Args:
        directions: Unit vectors, shape ``(2, K)``.
        edges: Half-planes, shape ``(3, P, V, B)``.

    Returns:
        Distance to the nearest, shape ``(K, B)``; 0 from inside of one, infinite where none is met.
    """
    dx, dy = directions[:, :, None]
    nearest, entry, exit, slope, meets, other = _buffers(6, dx, edges)
    nearest.fill(np.inf)
    for polygon in range(edges.shape[1]):
        entry.fill(0)
        exit.fill(np.inf)
        for edge in range(edges.shape[2]):
            aside = _meet(dx, dy, edges[:, polygon, edge], slope, meets)
            np.fmin(exit, np.maximum(meets, aside, out=other), out=exit)
            np.fmax(entry, np.minimum(meets, aside, out=other), out=entry)
        np.subtract(exit, entry, out=exit)
        aside = _infinite(exit, out=exit)
        np.fmin(nearest, np.maximum(entry, np.negative(aside, out=aside), out=entry), out=nearest)
    return nearest


def rays_to_walls(directions: Array, edges: Array) -> Array:
    """How far rays from the origin go until they leave a convex room, shape ``(K, B)``; 0 from outside.

    Args:
        directions: Unit vectors, shape ``(2, K)``.
        edges: Half-planes of the room, shape ``(3, W, B)``.
    """
    dx, dy = directions[:, :, None]
    exit, slope, meets = _buffers(3, dx, edges)
    exit.fill(np.inf)
    for edge in range(edges.shape[1]):
        aside = _meet(dx, dy, edges[:, edge], slope, meets)
        np.fmin(exit, np.maximum(meets, aside, out=meets), out=exit)
    return np.maximum(exit, 0, out=exit)


def _buffers(count: int, dx: Array, things: Array) -> Array:
    """Room for arrays of rays by robots. What is used again stays in the cache, and nothing here branches."""
    return np.empty((count, len(dx), things.shape[-1]), dtype=things.dtype)


def _infinite(sign: Array, out: Array) -> Array:
    return np.copysign(sign.dtype.type(np.inf), sign, out=out)


def _meet(dx: Array, dy: Array, edge: Array, slope: Array, meets: Array) -> Array:
    """Where rays meet the line of an edge, in ``meets``; returns infinity where they enter, else minus infinity.

    A ray along the edge meets it at infinity, with the sign that fits: never from inside, and too late from outside.
    """
    np.multiply(edge[0], dx, out=slope)
    slope += np.multiply(edge[1], dy, out=meets)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(edge[2], slope, out=meets)
    return np.negative(_infinite(slope, out=slope), out=slope)


def distance_to_circles(x: Array, y: Array, circles: Array) -> Array:
    """Signed distance of points to the nearest circle, shape ``(B,)``: negative inside, infinite without circles.

    Args:
        x: Shape ``(B,)``.
        y: Shape ``(B,)``.
        circles: Centre and radius, shape ``(3, C, B)``.
    """
    right, up = circles[0] - x, circles[1] - y
    return (np.sqrt(right * right + up * up) - circles[2]).min(axis=0, initial=np.inf)


def distance_to_polygons(x: Array, y: Array, corners: Array, edges: Array) -> Array:
    """Signed distance of points to the nearest convex polygon, shape ``(B,)``: negative inside, infinite without one.

    Args:
        x: Shape ``(B,)``.
        y: Shape ``(B,)``.
        corners: Shape ``(2, P, V, B)``.
        edges: Their half-planes, shape ``(3, P, V, B)``.
    """
    across = edges[0] * x + edges[1] * y - edges[2]
    right, up = x - corners[0], y - corners[1]
    ahead = np.roll(corners, -1, axis=2) - corners
    length = np.sqrt(ahead[0] ** 2 + ahead[1] ** 2)
    along = edges[0] * up - edges[1] * right  # the edge runs along (-ny, nx)
    beyond = along - np.minimum(np.maximum(along, 0), length)
    outside = np.sqrt(across * across + beyond * beyond).min(axis=1)
    deepest = across.max(axis=1)
    return np.where(deepest > 0, outside, deepest).min(axis=0, initial=np.inf)


def distance_to_walls(x: Array, y: Array, edges: Array) -> Array:
    """Signed distance of points to the nearest wall of a convex room, shape ``(B,)``: negative outside.

    Args:
        x: Shape ``(B,)``.
        y: Shape ``(B,)``.
        edges: Half-planes of the room, shape ``(3, W, B)``.
    """
    return (edges[2] - (edges[0] * x + edges[1] * y)).min(axis=0)
