"""Uncertainty of a pool of tagged sentences: framework.active.scores against a loop over sentences and scikit-activeml.

The decisions (probabilities of the tags of every token) are given, to each in the layout that it takes: ours in padded
batches of sentences of similar length, the loop sentence by sentence, as peers' code for sequence labelling does.
scikit-activeml knows items and no sentences: it scores all tokens as one array, whose means over sentences are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.active.acquisition import acquisition
from framework.active.decisions import Decisions

NEEDS = ["skactiveml"]
TAGS, LONGEST, BATCH = 17, 60, 256
CASES = [
    {"score": score, "lengths": lengths, "sentences": 10_000}
    for score in ("entropy", "margin")
    for lengths in ("equal", "mixed")
]


class Given(NamedTuple):
    """What a variant is timed on.

    Attributes:
        parts: Batches, sentences, or all tokens at once.
        score: From one part to the scores of its sentences.
        order: Sentence of each score, as parts come by length.
    """

    parts: list[Any]
    score: Callable[[Any], Any]
    order: Tensor


def setup(score: str, lengths: str, sentences: int, variant: str) -> Given:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, LONGEST + 1, (sentences,), generator=generator)
    sizes = torch.full_like(drawn, LONGEST // 2) if lengths == "equal" else drawn
    # As of a trained tagger: most tokens are sure, some are not.
    sharpness = torch.rand(sentences, LONGEST, 1, generator=generator) * 5
    order = sizes.sort(stable=True).indices
    batches = []  # by length
    for rows in order.split(BATCH):
        n = int(sizes[rows].max())
        mask = torch.arange(n) < sizes[rows, None]
        log_probs = (sharpness[rows, :n] * torch.randn(len(rows), n, TAGS, generator=generator)).log_softmax(2)
        batches.append(Decisions(log_probs, log_probs.argmax(2), mask))
    if variant == "ours":
        how = acquisition(score)
        return Given(batches, lambda batch: how.score([batch]), order)
    single = [log_probs[row][mask[row]] for log_probs, _, mask in batches for row in range(len(mask))]
    if variant == "loop":
        return Given(single, {"entropy": entropy, "margin": margin}[score], order)
    starts = torch.tensor([0, *(len(sentence) for sentence in single)]).cumsum(0).numpy()
    return Given([torch.cat(single).exp().numpy()], of_tokens(score, starts), order)


def entropy(log_probs: Tensor) -> float:
    return -(log_probs.exp() * log_probs).sum().item() / len(log_probs)


def margin(log_probs: Tensor) -> float:
    first, second = log_probs.exp().topk(2, dim=1).values.unbind(1)
    return 1 - (first - second).mean().item()


def of_tokens(score: str, starts: Any) -> Callable[[Any], Any]:
    """What a user of scikit-activeml writes for sentences that begin at ``starts`` and end where the next does."""
    from skactiveml.pool import uncertainty_scores

    method = {"entropy": "entropy", "margin": "margin_sampling"}[score]
    return lambda probas: np.add.reduceat(uncertainty_scores(probas, method=method), starts[:-1]) / np.diff(starts)


def run(given: Given) -> Tensor:
    """Score of every sentence."""
    found = [torch.as_tensor(given.score(part), dtype=torch.float64).reshape(-1) for part in given.parts]
    scores = torch.empty(len(given.order), dtype=torch.float64)
    scores[given.order] = torch.cat(found)
    return scores


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(peer, ours, rtol=1e-4, atol=1e-5)


VARIANTS = {"ours": run, "loop": run, "scikit-activeml": run}
