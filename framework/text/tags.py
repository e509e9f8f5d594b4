"""Tag schemes of entities: IOB1, IOB2 and IOBES (BIOES), and the entities that a tag sequence marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["iob1", "iob2", "iobes"]
Span = tuple[str, int, int]

SCHEMES: tuple[Scheme, ...] = ("iob1", "iob2", "iobes")
OUTSIDE = "O"


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and entity type of a tag.

    Args:
        tag: ``O``, or one of ``B``, ``I``, ``E``, ``S``, a hyphen and the type, which may hold hyphens itself.

    Returns:
        The prefix and the type; ``("O", "")`` outside entities.

    Raises:
        ValueError: If it is no such tag.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if len(tag) < 3 or tag[0] not in "BIES" or tag[1] != "-":
        raise ValueError(f"a tag must be O, or B-, I-, E- or S- and an entity type, got {tag!r}")
    return tag[0], tag[2:]


def spans(tags: Sequence[str]) -> list[Span]:
    """Entities that a tag sequence marks, by the lenient rules of conlleval (the default mode of seqeval).

    Valid sequences of all three schemes give their entities. In others an entity also begins at an ``I-`` or ``E-``
    that continues nothing, and ends where the type changes.

    Args:
        tags: Tags of one sentence, in any of the schemes.

    Returns:
        ``(type, start, end)`` of each entity, in order of position, ``end`` exclusive.
    """
    found: list[Span] = []
    start, before, kind_before = 0, OUTSIDE, ""
    for position, tag in enumerate((*tags, OUTSIDE)):
        prefix, kind = split_tag(tag)
        if prefix in "IE" and before in "BI" and kind == kind_before:  # goes on
            before = prefix
            continue
        if before != OUTSIDE:
            found.append((kind_before, start, position))
        start, before, kind_before = position, prefix, kind
    return found


def from_spans(entities: Iterable[Span], length: int, scheme: Scheme = "iobes") -> list[str]:
    """Tags that mark the given entities.

    Args:
        entities: ``(type, start, end)``, ``end`` exclusive, not overlapping.
        length: Number of tokens of the sentence.
        scheme: Scheme of the result.

    Returns:
        One tag per token.

    Raises:
        ValueError: If an entity is empty, lies outside the sentence or overlaps another one, or the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    tags = [OUTSIDE] * length
    last_end, last_kind = 0, ""
    for kind, start, end in sorted(entities, key=lambda span: span[1]):
        if not last_end <= start < end <= length:
            raise ValueError(
                f"entities must be non-empty, apart and inside the {length} tokens, got {kind} at {start}:{end}"
            )
        tags[start:end] = [f"I-{kind}"] * (end - start)
        if scheme != "iob1" or (last_kind == kind and last_end == start):
            tags[start] = f"B-{kind}"
        if scheme == "iobes":
            tags[end - 1] = f"{'S' if end - start == 1 else 'E'}-{kind}"
        last_end, last_kind = end, kind
    return tags


def convert(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities in another scheme.

    Args:
        tags: Tags of one sentence, in any of the schemes; broken sequences are read as :func:`spans` reads them.
        scheme: Scheme of the result.

    Returns:
        One tag per token.
    """
    return from_spans(spans(tags), len(tags), scheme)


def violation(tags: Sequence[str], scheme: Scheme) -> int | None:
    """Where a tag sequence first breaks the rules of a scheme.

    Args:
        tags: Tags of one sentence.
        scheme: The scheme that it should follow.

    Returns:
        Position of the first tag that should not be there, the sentence's last position if an entity is left open at
        its end, or None for a valid sequence.
    """
    valid = convert(tags, scheme)
    return next((position for position, (tag, wanted) in enumerate(zip(tags, valid)) if tag != wanted), None)


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tag sequences are written in.

    Args:
        sentences: Tags of sentences; the whole file, because a few sentences may fit several schemes.

    Returns:
        ``iobes`` if an ``E-`` or ``S-`` occurs, else ``iob2`` if every entity begins with ``B-``, else ``iob1``.
    """
    scheme: Scheme = "iob2"
    for tags in sentences:
        if any(tag[0] in "ES" for tag in tags):
            return "iobes"
        if scheme == "iob2" and any(tags[start][0] != "B" for _, start, _ in spans(tags)):
            scheme = "iob1"
    return scheme


def tag_names(types: Sequence[str]) -> list[str]:
    """Names of all IOBES tags, in the order of their numbers.

    Args:
        types: The k entity types.

    Returns:
        ``O``, then ``B-``, ``I-``, ``E-`` and ``S-`` of each type: 4k + 1 names.
    """
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BIES")]
