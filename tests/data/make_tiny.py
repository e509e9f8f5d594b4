"""Make tiny data in the formats that users bring; the same bytes every time.

``python tests/data/make_tiny.py FOLDER`` writes all of them.
"""

from __future__ import annotations

import csv
import gzip
import pickle
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

FIRST, TEST, SKIPPED = 520, 10, (523, 527)  # Planetoid: nodes before the test range, test nodes, places its index skips


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


def tiny_planetoid(
    folder: Path, name: str = "citeseer", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[int, list[int]], np.ndarray]:
    """Planetoid's eight files in ``planetoid``, with Citeseer's defect: a shuffled test index that skips two nodes.

    Returns features and classes in the order of the graph (class -1 for the skipped nodes), the graph, the test index.
    """
    from scipy.sparse import csr_matrix

    random = np.random.RandomState(seed)
    nodes, train = FIRST + TEST + len(SKIPPED), 12
    x = (random.rand(nodes, 7) < 0.4).astype(np.float32)
    x[list(SKIPPED)] = 0
    y = random.randint(3, size=nodes)
    y[:3], onehot = (0, 1, 2), np.eye(3, dtype=np.int32)
    test = random.permutation([node for node in range(FIRST, nodes) if node not in SKIPPED])
    graph = defaultdict(list, {node: random.choice(nodes, 2).tolist() for node in range(nodes)})
    graph[0] += [0, 1, 1]  # a self-loop and a repeat
    graph[1] += [0]
    content: dict[str, Any] = {
        "x": csr_matrix(x[:train]),
        "allx": csr_matrix(x[:FIRST]),
        "tx": csr_matrix(x[test]),
        "y": onehot[y[:train]],
        "ally": onehot[y[:FIRST]],
        "ty": onehot[y[test]],
        "graph": graph,
    }
    place = folder / "planetoid"
    place.mkdir(parents=True, exist_ok=True)
    for part, value in content.items():
        (place / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (place / f"ind.{name}.test.index").write_text("\n".join(map(str, test)) + "\n")
    y[list(SKIPPED)] = -1
    return x, y, graph, test


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the gzipped IDX format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


def everything(folder: Path) -> None:
    """Write all of them; ``folder`` can stand for ``FULGURITE_DATA``."""
    for make in (tiny_table, tiny_images, tiny_mnist):
        make(folder)
    for name in ("cora", "citeseer"):
        tiny_planetoid(folder, name)


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
