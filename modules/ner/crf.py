"""Linear-chain conditional random field: partition function, best path, and the chain rule along a path.

A path y of tags has the score ``start[y_1] + sum_i emissions[i, y_i] + sum_i between[y_{i-1}, y_i] + end[y_n]``, and
P(y|x) is proportional to its exponential. Sentences are padded on the right; each has at least one token.

Below, B sentences of at most n tokens are tagged with one of T tags each: ``emissions`` has shape ``(B, n, T)``,
``mask`` (True at tokens) ``(B, n)``, and the transitions are ``start`` and ``end`` of shape ``(T,)`` and ``between`` of
shape ``(T, T)``, from row to column.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transitions(NamedTuple):
    """Scores of beginning with a tag, of going from one to the next, and of ending with one."""

    start: Tensor
    between: Tensor
    end: Tensor

    def plus(self, other: Transitions) -> Transitions:
        """The sum of two scores of transitions."""
        return Transitions(*(a + b for a, b in zip(self, other)))


def log_partition(emissions: Tensor, mask: Tensor, transitions: Transitions) -> Tensor:
    """Logarithm of the sum of the exponentiated scores of all paths, in O(n T^2), shape ``(B,)``.

    A step is a matrix product of exponentials, shifted so that the largest is 1; that is many times quicker than a
    log-sum-exp over T x T values. Single precision reaches down to 1e-38 of the largest: a tag less likely than that
    (by 87 nats in one step) counts as if it were just that likely.
    """
    start, between, end = transitions
    shift = between.detach().amax(0)
    weights = (between - shift).exp()
    tiny = torch.finfo(emissions.dtype).tiny
    # One copy each, for indexing a step of (B, n, T) costs more than the step.
    steps, real = emissions.unbind(1), mask.unsqueeze(2).unbind(1)
    alpha = start + steps[0]
    for emission, now in zip(steps[1:], real[1:]):
        top = alpha.detach().amax(1, keepdim=True)
        reached = ((alpha - top).exp() @ weights).clamp_min(tiny).log() + (top + shift) + emission
        alpha = torch.where(now, reached, alpha)
    return (alpha + end).logsumexp(1)


def path_score(emissions: Tensor, tags: Tensor, mask: Tensor, transitions: Transitions) -> Tensor:
    """Score of one path of each sentence, shape ``(B,)``; ``tags`` of shape ``(B, n)`` may be anything at padding."""
    start, between, end = transitions
    tags = tags.masked_fill(~mask, 0)
    score = (emissions.gather(2, tags.unsqueeze(2)).squeeze(2) * mask).sum(1)
    steps = (between[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum(1)
    last = tags.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    return score + steps + start[tags[:, 0]] + end[last]


def viterbi(emissions: Tensor, mask: Tensor, transitions: Transitions) -> Tensor:
    """Tags of the path with the highest score, int64 of shape ``(B, n)``, 0 at padding."""
    start, between, end = transitions
    into = between.T.contiguous()  # rows are the later tag, so that the maximum is over neighbours in memory
    steps, real = emissions.unbind(1), mask.unsqueeze(2).unbind(1)
    stay = torch.arange(len(start), device=emissions.device).expand(len(emissions), -1)
    score, pointers = start + steps[0], []
    for emission, now in zip(steps[1:], real[1:]):
        best, pointer = (score.unsqueeze(1) + into).max(2)
        score = torch.where(now, best + emission, score)
        pointers.append(torch.where(now, pointer, stay))
    path = [(score + end).argmax(1, keepdim=True)]
    for pointer in reversed(pointers):
        path.append(pointer.gather(1, path[-1]))
    return torch.cat(path[::-1], dim=1).masked_fill(~mask, 0)


def chain_rule(emissions: Tensor, tags: Tensor, mask: Tensor, transitions: Transitions) -> Tensor:
    """Conditional log P(y_i | y_1 .. y_{i-1}, x) of every tag y_i after the given tags before it, shape ``(B, n, T)``.

    Backward messages sum over what may follow, so that the values at the given tags sum to log P(tags | x).

    Args:
        emissions: Scores of tags.
        tags: A path, shape ``(B, n)``.
        mask: True at tokens.
        transitions: Scores of transitions.
    """
    start, between, end = transitions
    steps, real = emissions.unbind(1), mask.unsqueeze(2).unbind(1)
    messages = [end.expand_as(steps[0])]
    for emission, later in zip(steps[:0:-1], real[:0:-1]):
        before = (between + (emission + messages[-1]).unsqueeze(1)).logsumexp(2)
        messages.append(torch.where(later, before, end))
    given = torch.cat([start.expand(len(tags), 1, -1), between[tags[:, :-1]]], dim=1)
    return (given + emissions + torch.stack(messages[::-1], dim=1)).log_softmax(2)
