"""Uncertainty of a pool of tagged sentences: framework.active.scores against a loop over sentences and against baal.

The decisions (probabilities of the tags of every token) are given, to each in the layout that it takes: ours in padded
batches of sentences of similar length, the loop sentence by sentence, as peers' code for sequence labelling does. baal
takes an array without a mask, so sentences of one length go in one call, and mixed ones one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.active.acquisition import acquisition
from framework.active.decisions import Decisions

NEEDS = ["baal"]
TAGS, LONGEST, BATCH = 17, 60, 256
CASES = [
    {"score": "mnlp", "lengths": "equal", "sentences": 10_000, "passes": 1},
    {"score": "mnlp", "lengths": "mixed", "sentences": 10_000, "passes": 1},
    {"score": "entropy", "lengths": "equal", "sentences": 10_000, "passes": 1},
    {"score": "entropy", "lengths": "mixed", "sentences": 10_000, "passes": 1},
    {"score": "bald_mi", "lengths": "equal", "sentences": 2_000, "passes": 10},
    {"score": "bald_mi", "lengths": "mixed", "sentences": 2_000, "passes": 10},
]


class Given(NamedTuple):
    """What a variant is timed on.

    Attributes:
        parts: Batches, sentences or arrays.
        score: From one part to the scores of its sentences.
        order: Sentence of each score, as parts come by length.
    """

    parts: list[Any]
    score: Callable[[Any], Any]
    order: Tensor


def setup(score: str, lengths: str, sentences: int, passes: int, variant: str) -> Given:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, LONGEST + 1, (sentences,), generator=generator)
    sizes = torch.full_like(drawn, LONGEST // 2) if lengths == "equal" else drawn
    # As of a trained tagger: most tokens are sure, some are not.
    sharpness = torch.rand(sentences, LONGEST, 1, generator=generator) * 5
    order = sizes.sort(stable=True).indices
    batches = []  # by length: the passes over each
    for rows in order.split(BATCH):
        n = int(sizes[rows].max())
        mask = torch.arange(n) < sizes[rows, None]
        logits = sharpness[rows, :n] * torch.randn(passes, len(rows), n, TAGS, generator=generator)
        log_probs = logits.log_softmax(3)
        batches.append([Decisions(one, one.argmax(2), mask) for one in log_probs])
    if variant == "ours":
        return Given(batches, acquisition(score, mc_samples=passes).score, order)
    single = [
        [decisions.log_probs[row, : int(decisions.mask[row].sum())].clone() for decisions in batch]
        for batch in batches
        for row in range(len(batch[0].mask))
    ]
    if variant == "loop":
        return Given(single, {"mnlp": mnlp, "entropy": entropy, "bald_mi": mutual_information}[score], order)
    arrays = [torch.stack(sentence, dim=2).exp().permute(1, 0, 2)[None].numpy() for sentence in single]
    arrays = [np.ascontiguousarray(array) for array in arrays]  # items, tags, tokens, passes
    if lengths == "equal":
        arrays = [np.concatenate(arrays)]
    return Given(arrays, heuristic(score).get_uncertainties, order)


def mnlp(sentence: list[Tensor]) -> float:
    (log_probs,) = sentence
    return -log_probs.max(dim=1).values.sum().item() / len(log_probs)


def entropy(sentence: list[Tensor]) -> float:
    (log_probs,) = sentence
    return -(log_probs.exp() * log_probs).sum().item() / len(log_probs)


def mutual_information(sentence: list[Tensor]) -> float:
    p = torch.stack(sentence).exp()
    mean = p.mean(dim=0)
    expected = -(p * p.log()).sum() / len(p)
    return (-(mean * mean.log()).sum() - expected).item() / len(mean)


def heuristic(score: str) -> Any:
    from baal.active import heuristics

    class MNLP(heuristics.AbstractHeuristic):
        """What a user of baal writes, for it has none."""

        def compute_score(self, predictions: Any, target_predictions: Any = None) -> Any:
            return -np.log(predictions[..., 0].max(axis=1))

    if score == "mnlp":
        return MNLP(reverse=True, reduction="mean")
    return {"entropy": heuristics.Entropy, "bald_mi": heuristics.BALD}[score](reduction="mean")


def run(given: Given) -> Tensor:
    """Score of every sentence."""
    found = [torch.as_tensor(given.score(part), dtype=torch.float64).reshape(-1) for part in given.parts]
    scores = torch.empty(len(given.order), dtype=torch.float64)
    scores[given.order] = torch.cat(found)
    return scores


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(peer, ours, rtol=1e-4, atol=1e-5)


VARIANTS = {"ours": run, "loop": run, "baal": run}
