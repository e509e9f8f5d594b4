"""Make tiny data in the formats that users bring; the same bytes every time.

``python tests/data/make_tiny.py FOLDER`` writes all of them.
"""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import numpy as np


def tiny_table(folder: Path, rows: int = 90) -> Path:
    """A table ``plants.csv``: two measures and a colour that tell three species apart, some species not filled in."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plants.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["plant", "height", "leaves", "colour", "species"])
        for row in range(rows):
            kind = row % 3
            measures = [f"{10 * kind + rng.normal(20, 1.5):.2f}", int(rng.poisson(3 + 4 * kind))]
            colour = ("green", "red", "blue")[kind if rng.random() < 0.8 else rng.integers(3)]
            species = "" if row % 10 == 9 else ("fern", "lily", "rose")[kind]
            writer.writerow([f"p{row:03d}", *measures, colour, species])
    return path


def tiny_images(folder: Path, per_class: int = 12) -> Path:
    """A folder ``shapes`` of colour PNGs: ``bar``, ``disc`` and ``frame``, somewhere in the image, with noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root = folder / "shapes"
    yy, xx = np.mgrid[:20, :24]
    for name in ("bar", "disc", "frame"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            y, x = rng.integers(8, 12), rng.integers(9, 15)
            square = np.maximum(abs(yy - y), abs(xx - x))
            mask = {"bar": abs(yy - y) < 2, "disc": (yy - y) ** 2 + (xx - x) ** 2 < 36, "frame": square == 6}[name]
            pixels = rng.integers(0, 60, (20, 24, 3)) + 160 * mask[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


def tiny_mnist(folder: Path, train: int = 200, test: int = 50) -> Path:
    """Four IDX files in ``mnist``: each digit is a bright row at its own height, with noise. Returns ``folder``."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 50, (count, 28, 28))
        for number, label in enumerate(labels):
            images[number, 2 * label + 4 : 2 * label + 7] += 180
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the gzipped IDX format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for make in (tiny_table, tiny_images, tiny_mnist):
        make(target)
