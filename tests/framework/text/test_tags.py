"""Tag schemes against each other, and against seqeval."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.text.tags import SCHEMES, convert, detect_scheme, from_spans, spans, split_tag, tag_names, violation

TYPES = ["PER", "creative-work", "O"]  # a type may hold a hyphen, or be called like the tag outside
any_tags = st.lists(st.sampled_from(tag_names(TYPES)), max_size=12)


@st.composite
def entities(draw):
    length = draw(st.integers(1, 12))
    cuts = sorted(draw(st.sets(st.integers(0, length))))
    found = [(draw(st.sampled_from(TYPES)), a, b) for a, b in pairwise(cuts) if draw(st.booleans())]
    return found, length


@pytest.fixture(scope="module")
def seqeval():
    return pytest.importorskip("seqeval.metrics.sequence_labeling")


@settings(max_examples=500, deadline=None)
@given(tags=any_tags)
def test_spans_are_those_of_seqeval(seqeval, tags):
    assert [(kind, start, end - 1) for kind, start, end in spans(tags)] == seqeval.get_entities(tags)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(drawn=entities())
def test_entities_survive_any_scheme(scheme, drawn):
    found, length = drawn
    tags = from_spans(found, length, scheme)
    assert len(tags) == length
    assert spans(tags) == found
    assert violation(tags, scheme) is None


@given(any_tags, st.sampled_from(SCHEMES), st.sampled_from(SCHEMES))
def test_conversion_keeps_the_entities(tags, first, second):
    there = convert(tags, first)
    assert spans(there) == spans(tags)
    assert convert(convert(there, second), first) == there


@given(st.lists(entities(), min_size=1, max_size=5))
def test_a_detected_scheme_is_one_that_is_followed(drawn):
    for scheme in SCHEMES:
        sentences = [from_spans(found, length, scheme) for found, length in drawn]
        assert all(violation(tags, detect_scheme(sentences)) is None for tags in sentences)


def test_neighbours_of_one_type_in_each_scheme():
    found = [("A", 0, 1), ("A", 1, 3), ("B", 3, 4)]
    assert from_spans(found, 5, "iob1") == ["I-A", "B-A", "I-A", "I-B", "O"]
    assert from_spans(found, 5, "iob2") == ["B-A", "B-A", "I-A", "B-B", "O"]
    assert from_spans(found, 5, "iobes") == ["S-A", "B-A", "E-A", "S-B", "O"]


@pytest.mark.parametrize(
    ("scheme", "tags", "position"),
    [
        ("iob2", ["O", "I-A"], 1),
        ("iob2", ["B-A", "I-B"], 1),
        ("iob2", ["B-A", "E-A"], 1),
        ("iob1", ["O", "B-A"], 1),
        ("iob1", ["I-A", "B-A", "I-B"], None),
        ("iobes", ["O", "B-A", "O"], 1),
        ("iobes", ["S-A", "B-A", "I-A"], 2),
        ("iobes", ["S-A", "I-A", "E-A"], 1),
    ],
)
def test_violations_are_found_where_they_are(scheme, tags, position):
    assert violation(tags, scheme) == position


def test_detection():
    assert detect_scheme([["O", "I-A"], ["B-A", "I-A"]]) == "iob1"
    assert detect_scheme([["O", "B-A"], ["O"]]) == "iob2"
    assert detect_scheme([["O", "B-A"], ["S-A"]]) == "iobes"
    assert detect_scheme([["O"]]) == "iob2"


def test_tag_names_are_four_a_type_and_outside():
    assert tag_names(["PER", "LOC"]) == [
        *("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"),
    ]
    assert len(tag_names([str(k) for k in range(18)])) == 73


@pytest.mark.parametrize("tag", ["", "X", "B", "B-", "B_PER", "L-PER", "o", "O-PER"])
def test_other_tags_are_refused(tag):
    with pytest.raises(ValueError, match=r"a tag must be O, or B-, I-, E- or S- and an entity type, got '"):
        split_tag(tag)


@pytest.mark.parametrize("bad", [[("A", 1, 1)], [("A", 0, 4)], [("A", -1, 1)], [("A", 0, 2), ("B", 1, 3)]])
def test_impossible_entities_are_refused(bad):
    with pytest.raises(ValueError, match="non-empty, apart and inside the 3 tokens"):
        from_spans(bad, 3)
    with pytest.raises(ValueError, match="scheme must be one of iob1, iob2, iobes, got 'bilou'"):
        from_spans([], 3, "bilou")
