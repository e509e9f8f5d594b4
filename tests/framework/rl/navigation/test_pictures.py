"""Frames, trajectories, animations, recorded episodes, and the command that makes them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from framework.rl.navigation.__main__ import main
from framework.rl.navigation.environment import Navigation, VectorNavigation
from framework.rl.navigation.episodes import KEPT, drive
from framework.rl.navigation.pictures import animate, trajectories_figure
from framework.rl.navigation.pilots import straight
from framework.rl.navigation.settings import COMPONENTS, Settings

SHORT = {"time_limit": 12, "min_distance": 1.0, "max_distance": 3.0}


def test_frames():
    env = Navigation(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert (before.dtype, before.shape) == (np.uint8, (360, 360, 3))
    assert (env.render() == before).all()
    for _ in range(10):
        env.step([1.0, 0.2])
    assert (env.render() != before).any()
    many = VectorNavigation(2, render_mode="rgb_array")
    many.reset(seed=0)
    frames = many.render()
    assert len(frames) == 2
    assert (frames[0] == before).all()
    assert Navigation().render() is None
    assert VectorNavigation(2).render() is None


def test_recorded_episodes():
    env = VectorNavigation(3, record=2, **SHORT)
    env.reset(seed=0)
    assert env.figures() == {}
    sums, starts, found = np.zeros((3, 6)), env.robots.world["start"].copy(), []
    for actions in np.random.default_rng(0).uniform(-1, 1, (100, 3, 2)):
        _, _, terminated, truncated, info = env.step(actions)
        sums += info["reward_components"]
        for robot in np.flatnonzero(terminated | truncated):
            if robot < 2:
                end = "time" if truncated[robot] else "goal" if info["is_success"][robot] else "collision"
                found.append((robot, end, sums[robot].copy(), starts[:, robot].copy()))
            sums[robot], starts[:, robot] = 0, env.robots.world["start"][:, robot]
    assert len(found) > KEPT
    assert len(env.recorder.episodes) == KEPT
    for episode, (robot, end, total, start) in zip(env.recorder.episodes, found[-KEPT:]):
        assert (episode.robot, episode.end) == (robot, end)
        assert episode.components == pytest.approx(total)
        assert (episode.path[0] == start).all()
        assert len(episode.discs) == len(episode.path) <= 13
    (figure,) = env.figures().values()
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(",")[0] for title in titles] == [end for _, end, _, _ in found[-KEPT:]]


def test_trajectories_and_animation(tmp_path):
    settings = Settings(**SHORT)
    episodes = drive(lambda seen: straight(seen, settings), settings, 4)
    assert len(trajectories_figure(episodes).axes) == 6  # two of them empty
    with pytest.raises(ValueError, match=r"^a picture of trajectories needs at least one episode"):
        trajectories_figure([])
    animate(episodes[0], tmp_path / "a.gif", pixels=120, every=4)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == -(-(len(episodes[0].path) - 1) // 4) + 1
        assert image.size == (120, 120)
        assert image.info["duration"] == 400
    with pytest.raises(ValueError, match=r"^an animation must end in \.gif, \.png or \.webp, got a\.mp4"):
        animate(episodes[0], tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"^every must be at least 1, got 0"):
        animate(episodes[0], tmp_path / "a.gif", every=0)


def test_command(tmp_path, capsys):
    picture, table = tmp_path / "p.png", tmp_path / "sums.csv"
    arguments = ["--episodes", "20", "--set", "moving=0", "weights={speed: 1}", "--picture", str(picture)]
    assert main([*arguments, "--csv", str(table)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("gaps, 20 episodes: goal ")
    assert printed[1].startswith("mean return ")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["trajectory", *COMPONENTS]
    assert [row["trajectory"] for row in rows] == [str(number) for number in range(20)]
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert main(["--set", "movign=0"]) == 2
    assert capsys.readouterr().err == "navigation: error: navigation has no option movign; did you mean moving?\n"
    assert main(["--set", "moving"]) == 2
    assert "--set takes KEY=VALUE, got moving" in capsys.readouterr().err
    assert main(["--episodes", "1", "--set", "dt=5e-2", "moving=0", "time_limit=3"]) == 0
    assert capsys.readouterr().out.startswith("gaps, 1 episodes: goal 0.0 %, collision 0.0 %, time 100.0 %")
    assert main(["--set", "moving=["]) == 2
    assert capsys.readouterr().err.startswith("navigation: error: --set moving=[ cannot be read as YAML: ")
