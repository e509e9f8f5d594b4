"""Rooms from above: frames, trajectories of episodes, and animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from framework.rl.navigation.episodes import Episode, Scene
from framework.rl.navigation.geometry import Array
from framework.rl.navigation.robots import Robots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"goal": "C2", "collision": "C3", "time": "C1"}
"""Of a path, by how its episode ended."""


def frame(robots: Robots, robot: int, pixels: int = 360) -> NDArray[np.uint8]:
    """One robot's world now.

    Args:
        robots: The batch.
        robot: Index in it.
        pixels: Width and height.

    Returns:
        RGB, shape ``(pixels, pixels, 3)``.
    """
    figure, axes = _canvas(1)
    scene = Scene.of(robots, robot)
    draw_scene(axes[0], scene)
    draw_robot(axes[0], scene, scene.pose)
    return _rgb(figure, pixels)


def trajectories_figure(episodes: Sequence[Episode], columns: int = 3) -> Figure:
    """Paths of episodes, each in its room: from a square to the goal's ring; discs as they stood at the end.

    Args:
        episodes: At least one.
        columns: Rooms side by side.

    Raises:
        ValueError: If there is no episode.
    """
    if not episodes:
        raise ValueError("a picture of trajectories needs at least one episode, got none")
    figure, axes = _canvas(len(episodes), columns)
    for each, episode in zip(axes, episodes):
        draw_scene(each, episode.scene, episode.discs[-1])
        each.plot(*episode.path[:, :2].T, color=COLOURS[episode.end], lw=1.6)
        each.plot(*episode.path[0, :2], "ks", ms=4)
        draw_robot(each, episode.scene, episode.path[-1], COLOURS[episode.end])
        seconds = (len(episode.path) - 1) * episode.scene.settings.dt
        each.set_title(f"{episode.end}, {seconds:.1f} s", fontsize=9)
    return figure


def animate(episode: Episode, path: str | Path, pixels: int = 360, every: int = 2) -> None:
    """Write an episode as a moving picture.

    Args:
        episode: What to show.
        path: A file whose ending Pillow knows for several frames: ``.gif``, ``.png``, ``.webp``.
        pixels: Width and height.
        every: Steps from one frame to the next, at least 1.

    Raises:
        ValueError: If ``every`` is below 1 or the ending is none of those.
    """
    from PIL import Image

    target = Path(path)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if target.suffix.lower() not in {".gif", ".png", ".webp"}:
        raise ValueError(f"an animation must end in .gif, .png or .webp, got {target.name}")
    images = []
    last = len(episode.path) - 1
    for step in [*range(0, last, every), last]:
        figure, axes = _canvas(1)
        draw_scene(axes[0], episode.scene, episode.discs[step])
        axes[0].plot(*episode.path[: step + 1, :2].T, color="C0", lw=1.2)
        draw_robot(axes[0], episode.scene, episode.path[step])
        images.append(Image.fromarray(_rgb(figure, pixels)))
    wait = int(1000 * every * episode.scene.settings.dt)
    images[0].save(target, save_all=True, append_images=images[1:], duration=wait, loop=0)


def draw_scene(axes: Axes, scene: Scene, discs: Array | None = None) -> None:
    """Walls, obstacles, ways of the discs, and the goal.

    Args:
        axes: Where to draw.
        scene: What to draw.
        discs: Where the discs are, shape ``(2, M)``; as in the scene by default.
    """
    from matplotlib.patches import Circle, Polygon

    axes.add_patch(Polygon(scene.room.T, closed=True, fill=False, color="k", lw=1.5))
    for index in range(scene.polygons.shape[1]):
        axes.add_patch(Polygon(scene.polygons[:, index].T, closed=True, color="0.55", lw=0))
    for x, y, radius in scene.circles.T:
        axes.add_patch(Circle((x, y), radius, color="0.55", lw=0))
    for ends, (x, y) in zip(np.moveaxis(scene.patrols, 2, 0), (scene.discs if discs is None else discs).T):
        axes.plot(*ends, color="C4", lw=0.8, ls=":")
        axes.add_patch(Circle((x, y), scene.settings.moving_radius, color="C4", alpha=0.7, lw=0))
    axes.add_patch(Circle(tuple(scene.goal), scene.settings.goal_radius, fill=False, color="C2", lw=1.8))
    middle, half = scene.room.mean(axis=1), 1.02 * np.abs(scene.room - scene.room.mean(axis=1, keepdims=True)).max()
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    axes.set_axis_off()


def draw_robot(axes: Axes, scene: Scene, pose: Array, colour: str = "C0") -> None:
    """The robot with a line to where it is heading.

    Args:
        axes: Where to draw.
        scene: For its radius.
        pose: Place and heading, shape ``(3,)``.
        colour: Of its body.
    """
    from matplotlib.patches import Circle

    x, y, heading = pose
    radius = scene.settings.robot_radius
    axes.add_patch(Circle((x, y), radius, color=colour, lw=0, zorder=3))
    axes.plot([x, x + radius * np.cos(heading)], [y, y + radius * np.sin(heading)], "w", lw=1.5, zorder=4)


def _canvas(count: int, columns: int = 1) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, (2.6 if columns == 1 else 2.8) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for each in axes[count:]:
        each.set_axis_off()
    return figure, axes[:count]


def _rgb(figure: Figure, pixels: int) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(pixels / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:pixels, :pixels, :3].copy()
