"""Make tiny data in the formats that users bring; the same bytes every time.

``python tests/data/make_tiny.py FOLDER`` writes all of them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import sys
from collections import defaultdict
from collections.abc import Sequence
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


def tiny_imagenet(folder: Path, per_class: int = 12) -> Path:
    """``images.npz`` and ``classes.json`` in ``tinyimagenet_fs``: 20 base, 3 val and 5 test classes, mixed.

    An image is its class's own pattern of 16 colours, with noise, as WebP. Returns ``folder``.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    place = folder / "tinyimagenet_fs"
    place.mkdir(parents=True, exist_ok=True)
    split = rng.permutation(["base"] * 20 + ["val"] * 3 + ["test"] * 5)
    wnid = [f"n{1_000_000 + 37 * k:08d}" for k in range(len(split))]
    stored: list[bytes] = []
    for _ in wnid:
        pattern = np.kron(rng.integers(30, 226, (4, 4, 3)), np.ones((8, 8, 1)))
        for _ in range(per_class):
            pixels = pattern + rng.normal(0, 25, pattern.shape)
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "WEBP", quality=80, method=0)
            stored.append(file.getvalue())
    np.savez(
        place / "images.npz",
        blob=np.frombuffer(b"".join(stored), np.uint8),
        offsets=np.cumsum([0, *map(len, stored)]),
        label=np.repeat(np.arange(len(wnid), dtype=np.int16), per_class),
        wnid=wnid,
        split=split,
    )
    known = {
        name: {"names": [f"pattern {k}", f"tile {k}"], "gloss": "colours", "hypernym": [], "hypernym_gloss": ""}
        for k, name in enumerate(wnid)
    }
    (place / "classes.json").write_text(json.dumps(known, indent=1))
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


# Entity types of the corpora, and what their names end in: names held out of training are known by their endings.
CORPORA = {
    "btc": {"PER": "son", "LOC": "burg", "ORG": "corp"},
    "wnut17": {
        "person": "son",
        "location": "burg",
        "group": "band",
        "creative-work": "saga",
        "corporation": "corp",
        "product": "phone",
    },
    "wikineural_en_trim": {"PER": "son", "LOC": "burg", "ORG": "corp", "MISC": "ish"},
}
# Templates by genre: <0> to <2> are a person, a place and an organisation, <3> any type, ~ an ordinary word.
TEMPLATES = {
    "a": ("so happy to see <0> in <1> today !", "~ morning from <1>", "lol"),
    "b": ("I love my ~ and my ~", "<0> is so ~ today", "watching <3> with <0> #fun"),
    "e": ("the ~ near <1> , says <0>", "pray for <1> #sad"),
    "f": ("@fan thanks <0> for the ~ ~", "see you in <1> , <0> and <0> !", "new ~ from <2>"),
    "g": ("<2> of <1> reports ~ profits", "minister <0> met <2> in <1>", "shares of <2> fell after ~ ~ in <1>"),
    "h": ("the ~ ~ of <3> was ~", "<2> hired <0>", "<0> , live from <1>"),
}


def tiny_conll(folder: Path, sentences: tuple[int, int, int] = (240, 60, 60)) -> Path:
    """The three corpora of named entities from a template grammar; in dev and test half of the names are new.

    Words and names are drawn by Zipf's law, names of one to three words. Only ``btc`` states its genres.
    """
    for corpus, endings in CORPORA.items():
        rng = np.random.default_rng(0)
        words = _invented(rng, 120)
        # As many names for training as held out, each type by its own ending.
        names = {kind: [f"{stem.title()}{ending}" for stem in _invented(rng, 60)] for kind, ending in endings.items()}
        place = folder / corpus
        place.mkdir(parents=True, exist_ok=True)
        for part, count in zip(("train", "dev", "test"), sentences):
            lines: list[str] = []
            for _ in range(count):
                genre = str(rng.choice(list(TEMPLATES)))
                tokens = _sentence(rng, str(rng.choice(TEMPLATES[genre])), words, names, held_out=part != "train")
                lines += [f"# genre = {genre}"] if corpus == "btc" else []
                lines += [f"{token}\t{tag}" for token, tag in tokens] + [""]
            data = gzip.compress("\n".join([*lines, ""]).encode(), mtime=0)
            (place / f"{part}.conll.gz").write_bytes(data)
    return folder


def _invented(rng: np.random.Generator, count: int) -> list[str]:
    syllables = ["ka", "lo", "mi", "ten", "ra", "vo", "shi", "pel", "du", "nar"]
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(syllables, size=rng.integers(2, 4)))] = None
    return list(found)


def _zipf(rng: np.random.Generator, choices: list[str]) -> str:
    weights = 1 / np.arange(1, len(choices) + 1)
    return str(rng.choice(choices, p=weights / weights.sum()))


def _sentence(
    rng: np.random.Generator, template: str, words: list[str], names: dict[str, list[str]], held_out: bool
) -> list[tuple[str, str]]:
    """Tokens with IOB2 tags."""
    tokens: list[tuple[str, str]] = []
    for slot in template.split():
        if not slot.startswith("<"):
            tokens.append((_zipf(rng, words) if slot == "~" else slot, "O"))
            continue
        kind = list(names)[int(slot[1]) if slot != "<3>" else int(rng.integers(len(names)))]
        middle = len(names[kind]) // 2
        known, new = names[kind][:middle], names[kind][middle:]
        parts = [_zipf(rng, new if held_out and rng.random() < 0.5 else known) for _ in range(rng.choice([1, 1, 2, 3]))]
        tokens += [(part, f"{'I' if i else 'B'}-{kind}") for i, part in enumerate(parts)]
    return tokens


# Files of the corpora of labelled sentences, with the number of their lines and of their classes.
TEXTS = {
    "ag_news": ({"train": 120, "test2k": 40, "extra": 40}, 4),
    "trec": ({"train": 120, "test": 40}, 6),
    "sst2": ({"train": 80, "dev": 40, "test": 40}, 2),
    "subj": ({"all": 100}, 2),
}


def tiny_texts(folder: Path) -> Path:
    """The corpora of labelled sentences: words of all classes, and in each sentence some of its own class.

    The larger its number, the rarer the class. Sentences have 3 to 14 words.
    """
    for corpus, (files, classes) in TEXTS.items():
        rng = np.random.default_rng(0)
        words = _invented(rng, 40 + 5 * classes)
        shares = 1 / np.arange(2, classes + 2)
        place = folder / corpus
        place.mkdir(parents=True, exist_ok=True)
        for name, count in files.items():
            lines = []
            for kind in rng.choice(classes, count, p=shares / shares.sum()):
                told = [str(word) for word in rng.choice(words[5 * kind : 5 * kind + 5], rng.integers(2, 5))]
                told += [_zipf(rng, words[5 * classes :]) for _ in range(rng.integers(1, 11))]
                lines.append(f"{kind}\t{' '.join(rng.permutation(told))}\n")
            (place / f"{name}.tsv.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return folder


def tiny_encoder(folder: Path, words: Sequence[str] = (), positions: int = 64) -> Path:
    """A folder ``encoder`` with the configuration and the tokenizer of a tiny BERT, without weights.

    Its pieces are the words given, and single characters.
    """
    place = folder / "encoder"
    place.mkdir(parents=True, exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{each}" for each in characters)]
    pieces += [word for word in words if word not in pieces]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = {"model_type": "bert", "vocab_size": len(pieces), "max_position_embeddings": positions, **sizes}
    (place / "config.json").write_text(json.dumps(config, indent=1))
    (place / "vocab.txt").write_text("\n".join(pieces) + "\n")
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": positions}
    (place / "tokenizer_config.json").write_text(json.dumps(told, indent=1))
    return place


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the gzipped IDX format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


def everything(folder: Path) -> None:
    """Write all of them; ``folder`` can stand for ``FULGURITE_DATA``."""
    for make in (tiny_table, tiny_images, tiny_mnist, tiny_imagenet, tiny_conll, tiny_texts, tiny_encoder):
        make(folder)
    for name in ("cora", "citeseer"):
        tiny_planetoid(folder, name)


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
