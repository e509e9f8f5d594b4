"""Columns in the manner of CoNLL: one token per line, a blank line after each sentence; and plain text."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Literal, NamedTuple

from framework.text.tags import SCHEMES, Scheme, convert, split_tag, violation

UNLABELLED = "_"
"""What stands in the tag column of a sentence that nobody has labelled."""

DOCUMENT = "-DOCSTART-"
_GENRE = re.compile(r"#\s*genre\s*=\s*(.*?)\s*$")

# A link; a user name or hashtag; an English contraction; a word, with marks between its parts; an ellipsis; a mark.
_TOKEN = re.compile(
    r"https?://\S+|[@#]\w+|n['\u2019]t\b|['\u2019](?:s|m|d|re|ve|ll)\b|\w+?(?=n['\u2019]t\b)|\w+(?:[-.,/:&]\w+)*|\.\.\.|[^\w\s]",
    re.IGNORECASE,
)


class Annotated(NamedTuple):
    """Sentences with the tags of their entities.

    Attributes:
        tokens: Tokens of each sentence, never none.
        tags: IOBES tags of each sentence, one per token; None for a sentence without labels.
        genres: Genre of each sentence, from a comment ``# genre = x`` before it; empty where there is none.
        comments: Comment lines before each sentence, joined by line feeds; empty where there are none. Without any
            sentence for text that knows no comments.
    """

    tokens: list[list[str]]
    tags: list[list[str] | None]
    genres: list[str]
    comments: Sequence[str] = ()

    @property
    def types(self) -> list[str]:
        """Entity types that occur, sorted."""
        return sorted({split_tag(tag)[1] for tags in self.tags for tag in set(tags or ())} - {""})

    def take(self, indices: Iterable[int]) -> Annotated:
        """Some of the sentences, in the order given."""
        kept = list(indices)
        return Annotated(*([part[i] for i in kept] if part else part for part in self))  # type: ignore[arg-type]


def read_conll(
    path: str | Path, tag_column: int | None = -1, token_column: int = 0, scheme: Literal["auto"] | Scheme = "auto"
) -> Annotated:
    """Read sentences from columns.

    Columns are separated by tabs if the first token line has one, else by spaces, and all token lines have equally
    many. A line that begins with ``#`` is a comment unless it has as many columns as the token lines (a hashtag has
    them, ``# genre = news`` has not). Between tabs a token may be empty or hold spaces. Lines of ``-DOCSTART-`` are
    skipped. A file of a single column, or with ``_`` for all tags of a sentence, is unlabelled there.

    Args:
        path: The file, in UTF-8; gzipped if its name ends in ``.gz``.
        tag_column: Column of the tags from 0, negative from the end (CoNLL-2003 has four columns, the last for
            entities). None reads a file with several columns as unlabelled.
        token_column: Column of the tokens, likewise.
        scheme: ``auto`` reads valid tags of any scheme, and broken ones as conlleval does; a named scheme makes tags
            that break its rules an error.

    Returns:
        The sentences, their tags in IOBES.

    Raises:
        ValueError: If a line or the file is malformed; the message begins with ``file:line``.
    """
    path = Path(path)
    if scheme not in ("auto", *SCHEMES):
        raise ValueError(f"scheme must be one of auto, {', '.join(SCHEMES)}, got {scheme!r}")
    lines = read_text(path).split("\n")
    layout = _Layout.of(path, lines, tag_column, token_column)
    tokens: list[str] = []
    raw: list[str] = []
    before: list[str] = []
    comments: list[str] = []
    genre = ""
    found = Annotated([], [], [], comments)
    for number, line in enumerate((*lines, ""), 1):
        columns = layout.columns(line, number)
        if columns is not None and columns[layout.token] != DOCUMENT:
            tokens.append(columns[layout.token])
            raw.append(UNLABELLED if layout.tag is None else _tag(columns[layout.tag], path, number))
        elif columns is None and line.startswith("#"):
            comment = _GENRE.match(line)
            genre = comment.group(1) if comment else genre
            before.append(line)
        elif tokens:
            found.tokens.append(tokens)
            found.tags.append(_labels(raw, scheme, path, number - len(raw)))
            found.genres.append(genre)
            comments.append("\n".join(before))
            tokens, raw, genre, before = [], [], "", []
    if not found.tokens:
        raise ValueError(f"{path} holds no sentence")
    return found


class _Layout(NamedTuple):
    """How the token lines of a file look."""

    path: Path
    separator: str
    width: int
    token: int
    tag: int | None

    @classmethod
    def of(cls, path: Path, lines: Sequence[str], tag_column: int | None, token_column: int) -> _Layout:
        content = [(number, line) for number, line in enumerate(lines, 1) if line.strip(" \t")]
        if not content:
            raise ValueError(f"{path} holds no sentence")
        # A file may begin with a hashtag; a line with another beginning, if there is one, leaves no doubt.
        number, line = next((c for c in content if not c[1].startswith("#")), content[0])
        separator = "\t" if "\t" in line else " "
        count = len(_split(line, separator))
        chosen: list[int | None] = []
        for field, column in (("token_column", token_column), ("tag_column", tag_column if count > 1 else None)):
            if column is not None and not -count <= column < count:
                raise ValueError(
                    f"{path}:{number}: {field} {column} is not there, the line has {count} columns "
                    f"(separated by {'tabs' if separator != ' ' else 'spaces'})"
                )
            chosen.append(None if column is None else column % count)
        token, tag = chosen
        assert token is not None
        if token == tag:
            raise ValueError(f"tag_column and token_column must differ, both are column {tag} of {count} in {path}")
        return cls(path, separator, count, token, tag)

    def columns(self, line: str, number: int) -> list[str] | None:
        """Columns of a token line; None for a blank line or a comment."""
        if not line.strip(" \t"):
            return None
        columns = _split(line, self.separator)
        if line.startswith("#") and self._is_comment(columns):
            return None
        if len(columns) != self.width:
            tabs = "tabs" if self.separator == "\t" else "spaces"
            raise ValueError(f"{self.path}:{number}: must have {self.width} columns separated by {tabs}, got {line!r}")
        return columns

    def _is_comment(self, columns: list[str]) -> bool:
        if len(columns) != self.width:
            return True
        if self.separator == "\t" or self.tag is None:
            return False
        try:  # "# genre = news" has four columns, as lines of CoNLL-2003 have, but ends in no tag
            split_tag(columns[self.tag])
        except ValueError:
            return columns[self.tag] != UNLABELLED
        return False


def _split(line: str, separator: str) -> list[str]:
    if separator == "\t":
        return line.split("\t")
    return [column for column in line.split(" ") if column]  # not split(): a token may be a no-break space


def _tag(tag: str, path: Path, number: int) -> str:
    tag = tag.strip()
    if tag != UNLABELLED:
        try:
            split_tag(tag)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return tag


def _labels(raw: list[str], scheme: Literal["auto"] | Scheme, path: Path, first: int) -> list[str] | None:
    """IOBES tags of a sentence whose first token is on line ``first``, or None without labels."""
    if UNLABELLED in raw:
        if set(raw) != {UNLABELLED}:
            position = raw.index(UNLABELLED)
            raise ValueError(f"{path}:{first + position}: a sentence has a tag for every token or for none")
        return None
    if scheme != "auto":
        position_of_error = violation(raw, scheme)
        if position_of_error is not None:
            place = f"{path}:{first + position_of_error}"
            raise ValueError(f"{place}: {raw[position_of_error]} breaks the rules of scheme {scheme} here")
    return convert(raw, "iobes")


def read_plain(path: str | Path, tokens: Literal["whitespace", "words"] = "whitespace") -> Annotated:
    """Read unlabelled sentences from plain text, one per line; blank lines are skipped.

    Args:
        path: The file, in UTF-8; gzipped if its name ends in ``.gz``.
        tokens: How a line becomes tokens: ``whitespace`` splits at white space, ``words`` is :func:`tokenize`.

    Returns:
        The sentences.

    Raises:
        ValueError: If the file holds no sentence or is not UTF-8.
    """
    if tokens not in ("whitespace", "words"):
        raise ValueError(f"tokens must be one of whitespace, words, got {tokens!r}")
    path = Path(path)
    rows = [line.split() if tokens == "whitespace" else tokenize(line) for line in read_text(path).split("\n")]
    kept = [row for row in rows if row]
    if not kept:
        raise ValueError(f"{path} holds no sentence")
    return Annotated(kept, [None] * len(kept), [""] * len(kept))


def tokenize(text: str) -> list[str]:
    """Split text into words and marks, roughly as English corpora do.

    Links, ``@names``, ``#tags`` and words with inner marks (``F-16``, ``3.5``) stay whole; ``don't`` becomes ``do n't``
    and ``Ann's`` becomes ``Ann 's``; every other mark is a token of its own.

    Args:
        text: Any text.

    Returns:
        The tokens in order; joined, they are the text without its white space.
    """
    return _TOKEN.findall(text)


def write_conll(
    path: str | Path,
    tokens: Iterable[Sequence[str]],
    *columns: Iterable[Sequence[str | float]],
    comments: Iterable[str] | None = None,
) -> None:
    """Write sentences as columns separated by tabs; the file appears under its name once it is complete.

    Args:
        path: The file; gzipped if its name ends in ``.gz``.
        tokens: Tokens of each sentence.
        *columns: Further columns, such as tags and the confidence in each: a value per token of each sentence. Floats
            are written with four decimals.
        comments: Comment lines of each sentence, joined by line feeds, written before it; empty for none. Their tabs
            become spaces, or they could look like tokens.

    Raises:
        ValueError: If a column is of another length than the tokens, or a value holds a tab or a line break.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = repeat("") if comments is None else iter(comments)
    parts: list[str] = []
    for number, (words, *rest) in enumerate(zip(tokens, *columns, strict=True)):
        if any(len(column) != len(words) for column in rest):
            lengths = [len(column) for column in rest]
            raise ValueError(f"sentence {number} has {len(words)} tokens, but columns of {lengths} values")
        lines = ["\t".join(map(_written, row)) for row in zip(words, *rest)]
        if any(line.count("\t") != len(rest) or "\n" in line or "\r" in line for line in lines):
            raise ValueError(f"sentence {number} has a tab or line break inside a value: {lines}")
        comment = next(before).replace("\t", " ")
        parts += [f"{comment}\n"] if comment else []
        parts.append("\n".join(lines) + "\n\n")
    data = "".join(parts).encode()
    partial.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    partial.replace(path)


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def read_text(path: str | Path) -> str:
    """Content of a text file, each line ended by a line feed alone.

    Args:
        path: The file, in UTF-8; gzipped if its name ends in ``.gz``.

    Returns:
        The text.

    Raises:
        ValueError: If it is not UTF-8 or not a complete gzip file; the message begins with the file.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: is not UTF-8 ({error.reason})") from error
    # Only these end a line: tweets hold characters at which str.splitlines would cut as well.
    return text.replace("\r\n", "\n")
