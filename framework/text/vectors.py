"""Word vectors: read from a file in GloVe's text format, or derived from unlabelled text by PPMI and SVD."""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from framework.text.batch import PAD
from framework.text.vocabulary import SPECIAL_WORDS, Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_VERSION = 1  # of what ppmi_vectors computes; a new one leaves old cache files alone


def default_cache() -> Path:
    """Folder of cached vectors: ``fulgurite/vectors`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fulgurite" / "vectors"


def read_vectors(path: str | Path, vocabulary: Vocabulary, dim: int | None = None, seed: int = 0) -> Tensor:
    """Vectors of the vocabulary's words from a text file: a word and its numbers per line, separated by spaces.

    GloVe's files are so; those of word2vec and fastText have a first line with two numbers more, which is skipped.
    Only the words needed are kept in memory. Where words are numbered regardless of case, a word written in lower case
    goes before its other spellings. Words that the file lacks are drawn from a normal distribution with the mean and
    deviation of those found.

    Args:
        path: The file, in UTF-8; gzipped if its name ends in ``.gz``.
        vocabulary: The words.
        dim: Numbers per word that are expected; None takes what the first line has.
        seed: Seed of the vectors drawn.

    Returns:
        Shape ``(len(vocabulary.words), dim)``, float32; padding is 0.

    Raises:
        ValueError: If a line is malformed or has another number of numbers (the message begins with ``file:line``), or
            no word of the vocabulary is in the file.
        FileNotFoundError: If there is no such file.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    path = Path(path).expanduser()
    numbers = {word: number for number, word in enumerate(vocabulary.words) if number >= len(SPECIAL_WORDS)}
    found: dict[int, Any] = {}
    exact: set[int] = set()
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for line_number, line in enumerate(tqdm(file, f"vectors of {path.name}", unit=" words", disable=None), 1):
                columns = line.rstrip().split(b" ")  # not split(): words may be odd white space
                if line_number == 1:
                    header = len(columns) == 2 and all(column.isdigit() for column in columns)
                    width = int(columns[1]) if header else len(columns) - 1
                    if width < 1 or (dim is not None and width != dim):
                        wanted = "at least 1" if dim is None else dim
                        raise ValueError(f"{path}:1: has {width} numbers per word, and {wanted} are asked for")
                    dim = width
                    if header:
                        continue
                word = columns[0].decode(errors="replace")
                own = word in numbers
                number = numbers.get(word, numbers.get(word.lower()) if vocabulary.lower else None)
                # An entry of several words, such as ". . .", is longer.
                if number is None or number in exact or (number in found and not own) or len(columns) - 1 > (dim or 0):
                    continue
                if len(columns) - 1 != dim:
                    raise ValueError(
                        f"{path}:{line_number}: must have {dim} numbers after the word, got {len(columns) - 1}"
                    )
                try:
                    found[number] = np.array(columns[1:], dtype=np.float32)
                except ValueError:
                    raise ValueError(f"{path}:{line_number}: the vector of {word!r} is not made of numbers") from None
                if own:
                    exact.add(number)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if not found:
        raise ValueError(f"{path} has no vector for any of the {len(numbers)} words of the text")
    known = torch.from_numpy(np.stack(list(found.values())))
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(vocabulary.words), known.shape[1], generator=random)
    vectors = vectors * known.std(correction=0) + known.mean()
    vectors[list(found)] = known
    vectors[PAD] = 0
    return vectors


def ppmi_vectors(
    sentences: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    dim: int = 100,
    window: int = 5,
    cache: str | Path | None = None,
) -> Tensor:
    """Word vectors from which words stand near which in unlabelled text (Levy, Goldberg and Dagan 2015, section 3).

    Co-occurrences within the window, nearer ones weighing more, give positive pointwise mutual information with
    contexts smoothed by the power 0.75; a truncated SVD of it, with singular values to the power 0.5, gives vectors,
    which are scaled to length 1 each. Equal arguments give equal vectors on a machine; the result is kept on disk.

    Args:
        sentences: Tokens of each sentence.
        vocabulary: The words; unknown ones take part as ``[UNK]``.
        dim: Numbers per word, at least 1. Those beyond the rank of so small a text are 0.
        window: Distance in words up to which words count as near, at least 1.
        cache: Folder to keep the vectors in, :func:`default_cache` if None. A folder that cannot be written to is
            warned about and not used.

    Returns:
        Shape ``(len(vocabulary.words), dim)``, float32. Words without neighbours, the unknown word if the text has
        none, and padding are 0.
    """
    for field, value in (("dim", dim), ("window", window)):
        if value < 1:
            raise ValueError(f"{field} must be at least 1, got {value}")
    words = [vocabulary.word_ids(tokens).numpy() for tokens in sentences]
    owner = np.repeat(np.arange(len(words)), [len(row) for row in words])
    flat = np.concatenate(words)
    key = hashlib.sha256(f"{_VERSION} {dim} {window} {vocabulary.fingerprint}".encode())
    key.update(flat.tobytes())
    key.update(owner.tobytes())
    file = Path(cache or default_cache()).expanduser() / f"ppmi-{key.hexdigest()[:32]}.npy"
    shape = (len(vocabulary.words), dim)
    kept = _load(file, shape)
    if kept is not None:
        return torch.from_numpy(kept)
    vectors = _factors(_ppmi(flat, owner, len(vocabulary.words), window), dim)
    _save(file, vectors)
    return torch.from_numpy(vectors)


def _ppmi(flat: Any, owner: Any, words: int, window: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    near = csr_matrix((words, words), dtype=np.float64)
    for distance in range(1, window + 1):
        same = owner[:-distance] == owner[distance:]
        pairs = (flat[:-distance][same], flat[distance:][same])
        weight = np.full(len(pairs[0]), (window - distance + 1) / window)
        near = near + csr_matrix((weight, pairs), shape=near.shape)  # equal pairs are summed
    near = (near + near.T).tocoo()
    row_sums = np.asarray(near.sum(axis=1)).ravel()
    contexts = row_sums**0.75
    probability = contexts / max(contexts.sum(), 1e-12)
    information = np.log(near.data / (row_sums[near.row] * probability[near.col]))
    positive = information > 0
    return csr_matrix((information[positive], (near.row[positive], near.col[positive])), shape=near.shape)


def _factors(matrix: csr_matrix, dim: int) -> Any:
    from sklearn.utils.extmath import randomized_svd
    from tqdm import tqdm

    with tqdm(total=1, desc=f"word vectors: SVD of {matrix.nnz:,} co-occurrences", disable=None) as bar:
        left, values, _ = randomized_svd(matrix, min(dim, matrix.shape[0]), n_iter=4, random_state=0)
        bar.update()
    vectors = np.zeros((matrix.shape[0], dim), dtype=np.float32)
    vectors[:, : len(values)] = left * np.sqrt(values)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 1e-6, length, np.inf)


def _load(file: Path, shape: tuple[int, int]) -> Any:
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or not whole
        return None
    return kept if kept.shape == shape and kept.dtype == np.float32 else None


def _save(file: Path, vectors: Any) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as sink:
            np.save(sink, vectors)
        partial.replace(file)
    except OSError as error:
        warnings.warn(f"word vectors are not kept for the next run: {error}", stacklevel=3)
