"""Scores against closed forms, properties that hold for all decisions, and two other libraries."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from framework.active import scores
from framework.active.decisions import Decisions

ONE_PASS = {
    "lc": scores.least_confidence,
    "mnlp": scores.mnlp,
    "margin": scores.margin,
    "entropy": scores.entropy,
    "length": scores.length,
}
SEVERAL = {"variation_ratio": scores.variation_ratio, "mutual_information": scores.mutual_information}


def decided(*items):
    """Decisions from probabilities: items of decisions of classes; shorter items are padded with rubbish."""
    n, classes = max(map(len, items)), len(items[0][0])
    log_probs = torch.full((len(items), n, classes), torch.nan)
    mask = torch.zeros(len(items), n, dtype=torch.bool)
    for row, item in enumerate(items):
        log_probs[row, : len(item)] = torch.tensor(item).reshape(-1, classes).log()
        mask[row, : len(item)] = True
    return Decisions(log_probs, log_probs.argmax(2).where(mask, -100), mask)


@st.composite
def sequences(draw, passes=1, same_length=False):
    """Decisions of some items about the same inputs, ``passes`` times."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, n, classes = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(2, 5))
    sharpness = draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    lengths = torch.full((batch,), n) if same_length else torch.randint(0, n + 1, (batch,), generator=generator)
    mask = torch.arange(n) < lengths[:, None]
    found = []
    for _ in range(passes):
        log_probs = (sharpness * torch.randn(batch, n, classes, generator=generator)).log_softmax(2)
        found.append(Decisions(log_probs, log_probs.argmax(2), mask))
    return found if passes > 1 else found[0]


def padded(decisions, more=5):
    """The same with more padding, which holds NaN and no class."""
    batch, n, classes = decisions.log_probs.shape
    log_probs, chosen = torch.full((batch, n + more, classes), torch.nan), torch.full((batch, n + more), -100)
    mask = torch.zeros(batch, n + more, dtype=torch.bool)
    log_probs[:, :n], chosen[:, :n], mask[:, :n] = decisions
    return Decisions(log_probs, chosen, mask)


def test_closed_forms():
    decisions = decided([[0.5, 0.3, 0.2]], [[0.9, 0.1, 0.0], [0.25, 0.25, 0.5]])
    expected = {
        "lc": [-log(0.5), -log(0.9 * 0.5)],
        "mnlp": [-log(0.5), -log(0.9 * 0.5) / 2],
        "margin": [1 - 0.2, (1 - 0.8 + 1 - 0.25) / 2],
        "entropy": [
            -(0.5 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.2)),
            (-0.9 * log(0.9) - 0.1 * log(0.1) + 1.5 * log(2)) / 2,
        ],
        "length": [1, 2],
    }
    for name, values in expected.items():
        assert_close(ONE_PASS[name](decisions), torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_least_confidence_is_of_the_sequence_that_was_chosen():
    """Beam search or Viterbi may choose what is not the likeliest class of a single decision."""
    decisions = decided([[0.6, 0.4], [0.5, 0.5]])._replace(chosen=torch.tensor([[1, 0]]))
    assert_close(scores.least_confidence(decisions).exp(), torch.tensor([1 / (0.4 * 0.5)], dtype=torch.float64))


def test_variation_ratio_counts_votes():
    votes = torch.tensor([[0, 1], [0, 1], [1, 2], [2, 1]])  # passes by decisions
    mask = torch.ones(1, 2, dtype=torch.bool)
    passes = [Decisions(torch.zeros(1, 2, 3).log_softmax(2), chosen[None], mask) for chosen in votes]
    assert_close(scores.variation_ratio(passes), torch.tensor([(2 / 4 + 1 / 4) / 2], dtype=torch.float64))
    only = passes[0].mask.clone()
    only[0, 1] = False
    assert_close(
        scores.variation_ratio(d._replace(mask=only) for d in passes), torch.tensor([0.5], dtype=torch.float64)
    )


def test_mutual_information_of_passes_that_are_sure_of_different_classes_is_log_two():
    passes = [decided([[1.0, 0.0]], [[0.5, 0.5]]), decided([[0.0, 1.0]], [[0.5, 0.5]])]
    assert_close(scores.mutual_information(passes), torch.tensor([log(2), 0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_passes_may_be_a_generator_and_must_not_be_empty():
    one = decided([[0.5, 0.5]])
    for function in SEVERAL.values():
        assert function(one for _ in range(3)).tolist() == pytest.approx([0], abs=1e-6)
        with pytest.raises(ValueError, match="passes must hold"):
            function([])


@pytest.mark.parametrize("function", ONE_PASS.values(), ids=ONE_PASS)
@given(sequences())
@settings(max_examples=30, deadline=None)
def test_neither_padding_nor_company_changes_a_score(function, decisions):
    together = function(decisions)
    assert together.isfinite().all()
    assert (together >= 0).all()
    assert_close(function(padded(decisions)), together, rtol=1e-6, atol=1e-7)
    for row, length in enumerate(decisions.mask.sum(1).tolist()):
        alone = Decisions(*(part[row : row + 1, : max(length, 1)] for part in decisions))
        assert_close(function(alone), together[row : row + 1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", SEVERAL.values(), ids=SEVERAL)
@given(sequences(passes=4))
@settings(max_examples=30, deadline=None)
def test_neither_padding_nor_company_changes_a_score_of_passes(function, passes):
    together = function(passes)
    assert together.isfinite().all()
    assert (together >= 0).all()
    assert_close(function([padded(d) for d in passes]), together, rtol=1e-6, atol=1e-12)
    assert_close(function(passes[::-1]), together, rtol=1e-6, atol=1e-12)
    for row, length in enumerate(passes[0].mask.sum(1).tolist()):
        alone = [Decisions(*(part[row : row + 1, : max(length, 1)] for part in d)) for d in passes]
        assert_close(function(alone), together[row : row + 1], rtol=1e-6, atol=1e-12)


@given(sequences(same_length=True))
@settings(max_examples=30, deadline=None)
def test_lc_and_mnlp_rank_alike_at_equal_lengths(decisions):
    n = decisions.mask.shape[1]
    assert_close(scores.least_confidence(decisions), n * scores.mnlp(decisions))


@given(sequences(same_length=True), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_lc_prefers_the_longer_of_two_that_begin_alike_and_mnlp_does_not_care_for_length(decisions, keep):
    shorter = decisions._replace(mask=decisions.mask & (torch.arange(decisions.mask.shape[1]) < keep))
    assert (scores.least_confidence(decisions) >= scores.least_confidence(shorter)).all()
    twice = Decisions(*(torch.cat([part, part], dim=1) for part in decisions))
    assert_close(scores.mnlp(twice), scores.mnlp(decisions))
    assert_close(scores.least_confidence(twice), 2 * scores.least_confidence(decisions))


@given(sequences(passes=5))
@settings(max_examples=30, deadline=None)
def test_passes_that_agree_score_zero_and_others_stay_within_bounds(passes):
    classes = passes[0].log_probs.shape[2]
    ratio, information = scores.variation_ratio(passes), scores.mutual_information(passes)
    assert (ratio <= 1 - 1 / classes + 1e-9).all()
    assert (information <= log(classes) + 1e-5).all()
    assert scores.variation_ratio(passes[:1] * 5).eq(0).all()
    same = scores.mutual_information(passes[:1] * 5)
    assert ((same >= 0) & (same < 1e-12)).all()


def test_an_item_without_decisions_scores_zero():
    empty = decided([[0.5, 0.5]], [])
    for function in ONE_PASS.values():
        assert function(empty)[1] == 0
    for function in SEVERAL.values():
        assert function([empty, empty])[1] == 0


def test_gradient_errors_are_the_gradient_of_the_loss():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen = logits.argmax(1)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, chosen, reduction="sum"), logits)
    log_probs = logits.detach().log_softmax(1)
    decisions = Decisions(log_probs[:, None], chosen[:, None], torch.ones(4, 1, dtype=torch.bool))
    assert_close(scores.gradient_errors(decisions), expected)
    with pytest.raises(ValueError, match=r"'badge' needs one decision an item.*got items with up to 2"):
        scores.gradient_errors(decided([[0.5, 0.5], [0.5, 0.5]]))


def probabilities(items=200, classes=5, passes=8):
    """Of passes over items, shape (passes, items, classes), in double precision as the other libraries compute."""
    generator = torch.Generator().manual_seed(1)
    base = 2 * torch.randn(1, items, classes, generator=generator, dtype=torch.float64)
    return (base + torch.randn(passes, items, classes, generator=generator, dtype=torch.float64)).softmax(2)


def as_passes(p):
    return [Decisions(one.log()[:, None], one.argmax(1, keepdim=True), torch.ones(len(one), 1) == 1) for one in p]


def order(found):
    return torch.as_tensor(found).argsort(descending=True, stable=True).tolist()


@pytest.mark.parametrize(
    ("ours", "theirs"), [("lc", "least_confident"), ("margin", "margin_sampling"), ("entropy", "entropy")]
)
def test_ranks_of_a_classifier_equal_those_of_scikit_activeml(ours, theirs):
    pool = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is in the extra bench")
    p = probabilities(passes=1)
    found = ONE_PASS[ours](as_passes(p)[0])
    expected = pool.uncertainty_scores(p[0].numpy(), method=theirs)
    assert order(found) == order(expected)
    if ours == "lc":
        found = 1 - (-found).exp()
    assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_disagreement_equals_that_of_scikit_activeml():
    pool = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is in the extra bench")
    p = probabilities()
    votes = p.argmax(2).T.numpy()
    assert_close(scores.variation_ratio(as_passes(p)), torch.from_numpy(pool.variation_ratios(votes)))
    # The mean divergence of the members from their consensus is the mutual information.
    expected = pool.average_kl_divergence(p.numpy())
    found = scores.mutual_information(as_passes(p))
    assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-9)
    assert order(found) == order(expected)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("lc", "Certainty"), ("margin", "Margin"), ("entropy", "Entropy"), ("bald_mi", "BALD")]
)
def test_ranks_of_a_classifier_equal_those_of_baal(ours, theirs):
    heuristics = pytest.importorskip(
        "baal.active.heuristics",
        reason="baal is not installed (it brings Jupyter along: pip install --no-deps baal structlog)",
    )
    p = probabilities(passes=8 if ours == "bald_mi" else 1)
    passes = as_passes(p)
    found = scores.mutual_information(passes) if ours == "bald_mi" else ONE_PASS[ours](passes[0])
    theirs = getattr(heuristics, theirs)()
    assert order(found) == theirs(p.permute(1, 2, 0).numpy()).tolist()  # items, classes, passes


@pytest.mark.parametrize(("ours", "theirs"), [("margin", "Margin"), ("entropy", "Entropy"), ("bald_mi", "BALD")])
def test_ranks_of_sequences_of_one_length_equal_those_of_baal(ours, theirs):
    """baal knows no mask: without padding its mean over decisions is ours."""
    heuristics = pytest.importorskip(
        "baal.active.heuristics",
        reason="baal is not installed (it brings Jupyter along: pip install --no-deps baal structlog)",
    )
    p = probabilities(items=60 * 7, passes=8 if ours == "bald_mi" else 1).unflatten(1, (60, 7))
    mask = torch.ones(60, 7, dtype=torch.bool)
    passes = [Decisions(one.log(), one.argmax(2), mask) for one in p]
    found = scores.mutual_information(passes) if ours == "bald_mi" else ONE_PASS[ours](passes[0])
    ranks = getattr(heuristics, theirs)(reduction="mean")(p.permute(1, 3, 2, 0).numpy())  # items, classes, n, passes
    assert order(found) == ranks.tolist()
