"""The CRF against all paths, one by one."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.ner.crf import Transitions, chain_rule, log_partition, path_score, viterbi


def random_case(lengths, tags, seed, scale=1.0):
    """Emissions, mask and transitions in double precision, with rubbish at padding."""
    draw = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    emissions = scale * torch.randn(len(lengths), longest, tags, generator=draw, dtype=torch.float64)
    parts = [scale * torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((tags,), (tags, tags))]
    end = scale * torch.randn(tags, generator=draw, dtype=torch.float64)
    return emissions.masked_fill(~mask.unsqueeze(2), 77.0), mask, Transitions(*parts, end)


def brute_force(emissions, length, transitions):
    """All paths of a sentence and their scores."""
    tags = emissions.shape[1]
    paths = list(itertools.product(range(tags), repeat=length))
    scores = [
        transitions.start[path[0]]
        + sum(emissions[i, tag] for i, tag in enumerate(path))
        + sum(transitions.between[a, b] for a, b in itertools.pairwise(path))
        + transitions.end[path[-1]]
        for path in paths
    ]
    return paths, torch.stack(scores)


LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(2, 4), st.integers(0, 10**6))
def test_partition_best_path_and_chain_rule_are_those_of_brute_force(lengths, tags, seed):
    emissions, mask, transitions = random_case(lengths, tags, seed)
    partition = log_partition(emissions, mask, transitions)
    best = viterbi(emissions, mask, transitions)
    score = path_score(emissions, best, mask, transitions)
    log_probs = chain_rule(emissions, best, mask, transitions)
    torch.testing.assert_close(log_probs.logsumexp(2), torch.zeros_like(log_probs[..., 0]))
    for row, length in enumerate(lengths):
        paths, scores = brute_force(emissions[row], length, transitions)
        torch.testing.assert_close(partition[row], scores.logsumexp(0))
        wanted = paths[scores.argmax()]
        assert best[row, :length].tolist() == list(wanted)
        assert best[row, length:].eq(0).all()
        torch.testing.assert_close(score[row], scores.max())
        for i in range(length):  # log P(y_i | the best tags before it), by summing over all paths that begin so
            for tag in range(tags):
                begins = [path[: i + 1] == (*wanted[:i], tag) for path in paths]
                before = [path[:i] == wanted[:i] for path in paths]
                conditional = scores[torch.tensor(begins)].logsumexp(0) - scores[torch.tensor(before)].logsumexp(0)
                torch.testing.assert_close(log_probs[row, i, tag], conditional)
        chosen = log_probs[row, range(length), list(wanted)].sum()
        torch.testing.assert_close(chosen, score[row] - partition[row])


@given(LENGTHS, st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_gradients_are_those_of_brute_force(lengths, seed):
    emissions, mask, transitions = random_case(lengths, 3, seed)
    inputs = [emissions.requires_grad_(), *(part.requires_grad_() for part in transitions)]
    ours = torch.autograd.grad(log_partition(emissions, mask, transitions).sum(), inputs, allow_unused=True)
    total = sum(brute_force(emissions[row], n, transitions)[1].logsumexp(0) for row, n in enumerate(lengths))
    theirs = torch.autograd.grad(total, inputs, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(*(inputs[0].new_zeros(()) if g is None else g for g in (a, b)))


def test_large_scores_keep_their_value_and_gradient():
    emissions, mask, transitions = random_case([4, 5], 3, seed=1, scale=15.0)
    emissions, transitions = emissions.float(), Transitions(*(part.float() for part in transitions))
    emissions.requires_grad_()
    partition = log_partition(emissions, mask, transitions)
    (gradient,) = torch.autograd.grad(partition.sum(), emissions)
    torch.testing.assert_close((gradient * mask.unsqueeze(2)).sum(2), mask.float())  # marginals sum to 1
    for row, length in enumerate([4, 5]):
        expected = brute_force(emissions[row], length, transitions)[1].logsumexp(0)
        torch.testing.assert_close(partition[row], expected)


def test_enormous_scores_stay_finite():
    emissions, mask, transitions = random_case([4, 5], 3, seed=1, scale=1e4)
    parts = [part.float().requires_grad_() for part in (emissions, *transitions)]
    partition = log_partition(parts[0], mask, Transitions(*parts[1:]))
    assert partition.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(partition.sum(), parts))
