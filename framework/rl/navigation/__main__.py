"""``python -m framework.rl.navigation``: how drivers without learning fare, with pictures; needs no gymnasium."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from framework.figures import png
from framework.rl.navigation.episodes import KEPT, Episode, drive
from framework.rl.navigation.pictures import animate, trajectories_figure
from framework.rl.navigation.pilots import PILOTS
from framework.rl.navigation.settings import COMPONENTS, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive episodes, print how they ended and what they were worth.

    Args:
        arguments: Command line; ``None`` for the process's own.

    Returns:
        0; 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        "python -m framework.rl.navigation", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--pilot", choices=PILOTS, default="gaps", help="who drives (default gaps)")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first; the next has S + 1 (default 0)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the environment: moving=0"
    )
    parser.add_argument("--picture", metavar="FILE", help=f"paths of the first {KEPT} episodes, as PNG")
    parser.add_argument("--animation", metavar="FILE", help="the first episode, as .gif, .png or .webp")
    parser.add_argument("--csv", metavar="FILE", help="sums of reward components by trajectory")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.of(_options(given.set))
        pilot = PILOTS[given.pilot]
        episodes = drive(lambda seen: pilot(seen, settings), settings, given.episodes, given.seed)
        if given.animation:
            animate(episodes[0], given.animation)
        if given.picture:
            Path(given.picture).write_bytes(png(trajectories_figure(episodes[:KEPT]), dpi=80))
        if given.csv:
            _write(Path(given.csv), episodes, given.seed)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"navigation: error: {error}\n")
        return 2
    sums = np.stack([episode.components for episode in episodes])
    ends = Counter(episode.end for episode in episodes)
    shares = ", ".join(f"{end} {100 * ends[end] / len(episodes):.1f} %" for end in ("goal", "collision", "time"))
    parts = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(COMPONENTS, sums.mean(axis=0) * settings.component_weights)
    )
    value = (sums @ settings.component_weights).mean()
    sys.stdout.write(f"{given.pilot}, {len(episodes)} episodes: {shares}\nmean return {value:.2f}: {parts}\n")
    return 0


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {pair}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {pair} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if isinstance(options[key], str):
            with suppress(ValueError):  # 1e-3 is text to YAML
                options[key] = float(value)
    return options


def _write(path: Path, episodes: Sequence[Episode], seed: int) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trajectory", *COMPONENTS])
        rows.writerows([seed + index, *episode.components.tolist()] for index, episode in enumerate(episodes))


if __name__ == "__main__":
    sys.exit(main())
