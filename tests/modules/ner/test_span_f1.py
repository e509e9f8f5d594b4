"""SpanF1 against seqeval on random tag sequences."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import IOBES

from framework.text.tags import tag_names
from modules.ner.span_f1 import SpanF1

TAGS = tag_names(["LOC", "PER", "X-Y"])


@st.composite
def pairs(draw):
    """True and predicted tag numbers of some sentences; half of the predictions are right."""
    sentences = []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 9))
        true = draw(st.lists(st.integers(0, len(TAGS) - 1), min_size=n, max_size=n))
        noise = draw(st.lists(st.integers(-len(TAGS), len(TAGS) - 1), min_size=n, max_size=n))
        sentences.append((true, [b if b >= 0 else a for a, b in zip(true, noise, strict=True)]))
    return sentences


def padded(sequences, filler):
    rows = [torch.tensor(sequence) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filler)


def update(metric, sentences):
    true, predicted = padded([t for t, _ in sentences], -100), padded([p for _, p in sentences], 5)
    mask = torch.arange(true.shape[1]) < torch.tensor([len(t) for t, _ in sentences])[:, None]
    metric.update(predicted, true, mask)


def named(sentences):
    return [[[TAGS[tag] for tag in pair[side]] for pair in sentences] for side in (0, 1)]


@settings(deadline=None, max_examples=150)
@given(pairs())
def test_lenient_scores_are_those_of_seqeval(sentences):
    metric = SpanF1(TAGS, by_type=True)
    update(metric, sentences)
    values = {name: value.item() for name, value in metric.compute().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(*named(sentences), output_dict=True, zero_division=0)
        expected = precision_recall_fscore_support(*named(sentences), average="micro", zero_division=0)[:3]
    assert [values[name] for name in ("precision", "recall", "f1")] == pytest.approx(list(expected))
    for kind in metric.types:
        theirs = report.get(kind, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        ours = [values[f"{name}/{kind}"] for name in ("precision", "recall", "f1", "entities")]
        assert ours == pytest.approx([theirs[name] for name in ("precision", "recall", "f1-score", "support")])


@settings(deadline=None, max_examples=150)
@given(pairs())
def test_strict_scores_are_those_of_seqeval(sentences):
    metric = SpanF1(TAGS, mode="strict")
    update(metric, sentences)
    values = [value.item() for value in metric.compute().values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = strict_scores(*named(sentences), average="micro", zero_division=0, scheme=IOBES)[:3]
    assert values == pytest.approx(list(expected))


@given(pairs(), pairs())
@settings(deadline=None, max_examples=20)
def test_batches_add_up(first, second):
    whole, parts = SpanF1(TAGS), SpanF1(TAGS)
    update(whole, first + second)
    update(parts, first)
    update(parts, second)
    assert whole.compute() == parts.compute()


def test_a_sentence_without_labels_counts_nowhere():
    metric, per = SpanF1(TAGS), TAGS.index("S-PER")
    mask = torch.ones(3, 2, dtype=torch.bool)
    metric.update(torch.full((3, 2), per), torch.tensor([[per, 0], [-100, -100], [per, -100]]), mask)
    assert metric.predicted.sum() == 2
    assert metric.true.sum() == 1
    assert metric.compute()["f1"] == pytest.approx(2 / 3)


def test_nothing_counted_is_zero():
    metric = SpanF1(TAGS)
    metric.update(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3).bool())
    assert [value.item() for value in metric.compute().values()] == [0, 0, 0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="mode must be lenient or strict, got 'exact'"):
        SpanF1(TAGS, mode="exact")
    with pytest.raises(ValueError, match=r"a tag must be O, or .* got 'PER'"):
        SpanF1(["O", "PER"])
