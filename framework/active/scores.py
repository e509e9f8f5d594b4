"""How uncertain a module is of each item: pure functions of its decisions, larger where it is less certain.

Every score is a tensor of shape ``(batch,)`` and reads real decisions only, so padding never changes it. Sums over
decisions are taken in double precision, so that the length of the batch hardly shows in the last digits. An
item without any decision scores 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from framework.active.decisions import Decisions


def least_confidence(decisions: Decisions) -> Tensor:
    """-log P(y*|x) in nats, at least 0; the order is that of 1 - P(y*|x), which rounds to 1 for long sequences.

    Active NER (Shen et al. 2018), section 4, LC. Prefers long items.
    """
    return _sum(-_chosen(decisions), decisions.mask)


def mnlp(decisions: Decisions) -> Tensor:
    """-log P(y*|x) / n in nats: the maximum normalised log-probability with its sign turned, at least 0.

    Active NER (Shen et al. 2018), section 4, MNLP.
    """
    return _mean(-_chosen(decisions), decisions.mask)


def margin(decisions: Decisions) -> Tensor:
    """1 minus how far the likeliest class is ahead of the second in probability, the mean over decisions, in [0, 1]."""
    first, likeliest = decisions.log_probs.max(dim=2, keepdim=True)
    second = decisions.log_probs.scatter(2, likeliest, -torch.inf).amax(dim=2)  # several times as quick as topk
    first, second = first.squeeze(2).exp(), second.exp()
    return _mean(1 - (first - second), decisions.mask)


def entropy(decisions: Decisions) -> Tensor:
    """Entropy of the classes in nats, the mean over decisions, in [0, log(classes)]."""
    return _mean(_entropy(decisions.log_probs.exp(), decisions.log_probs), decisions.mask)


def length(decisions: Decisions) -> Tensor:
    """Number of decisions: the control for least confidence, which is easily mistaken for it."""
    return _wide(decisions.mask.sum(dim=1))


def variation_ratio(passes: Iterable[Decisions]) -> Tensor:
    """Share of the passes that do not choose what most passes choose, the mean over decisions, in [0, 1 - 1/classes].

    Active NER (Shen et al. 2018), section 4: what it calls BALD, f_i = 1 - max_y #{m : y_i^m = y} / M.

    Args:
        passes: Decisions about one batch, M times with other dropout masks; may be a generator, for only one is in
            memory at a time.

    Returns:
        Scores of shape ``(batch,)``; 0 if all passes agree.

    Raises:
        ValueError: If there are no passes.
    """
    first, rest = _split(passes)
    votes, count = torch.zeros_like(first.log_probs), 0
    for decisions in chain([first], rest):
        count += 1
        choice = _choice(decisions)
        votes.scatter_add_(2, choice, torch.ones_like(choice, dtype=votes.dtype))
    return _mean(1 - _wide(votes.amax(dim=2)) / count, first.mask)


def mutual_information(passes: Iterable[Decisions]) -> Tensor:
    """Entropy of the mean over passes minus the mean entropy of a pass in nats, the mean over decisions, at least 0.

    BALD as Houlsby et al. (2011) and Gal et al. (2017) define it. Where a decision depends on those before it, each
    pass is conditioned on its own.

    Args:
        passes: Decisions about one batch, M times with other dropout masks; may be a generator, for only one is in
            memory at a time.

    Returns:
        Scores of shape ``(batch,)``; 0 but for rounding if all passes agree.

    Raises:
        ValueError: If there are no passes.
    """
    first, rest = _split(passes)
    total = torch.zeros_like(_wide(first.log_probs))
    entropies, count = torch.zeros_like(total[..., 0]), 0
    for decisions in chain([first], rest):
        count += 1
        log_probs = _wide(decisions.log_probs)  # the difference of two entropies is small
        p = log_probs.exp()
        total += p
        entropies += _entropy(p, log_probs)
    mean = total / count
    # By Jensen it is not negative but for rounding.
    return _mean((_entropy(mean, mean.log()) - entropies / count).clamp(min=0), first.mask)


def gradient_errors(decisions: Decisions) -> Tensor:
    """Derivative of the cross-entropy with the chosen class by the logits: p - onehot(chosen).

    BADGE (Ash et al. 2020), section 3. The gradient by the last layer's weights is the outer product of this and the
    embedding; it is never formed.

    Args:
        decisions: Decisions of a classifier, n = 1.

    Returns:
        Shape ``(batch, classes)``.

    Raises:
        ValueError: If items have more than one decision.
    """
    if decisions.mask.shape[1] != 1:
        raise ValueError(
            "acquisition 'badge' needs one decision an item, as a classifier has it, "
            f"got items with up to {decisions.mask.shape[1]}"
        )
    p = decisions.log_probs.exp().squeeze(1)
    return p - torch.nn.functional.one_hot(decisions.chosen.squeeze(1), p.shape[1])


def _chosen(decisions: Decisions) -> Tensor:
    """Log-probability of each chosen class, shape ``(batch, n)``."""
    return decisions.log_probs.gather(2, _choice(decisions)).squeeze(2)


def _choice(decisions: Decisions) -> Tensor:
    """Chosen classes, shape ``(batch, n, 1)``; at padding, where there may be no class such as -100, class 0."""
    return torch.where(decisions.mask, decisions.chosen, 0).unsqueeze(2)


def _split(passes: Iterable[Decisions]) -> tuple[Decisions, Iterator[Decisions]]:
    """The first pass, and the others as they come."""
    rest = iter(passes)
    first = next(rest, None)
    if first is None:
        raise ValueError("passes must hold the decisions of at least one pass, got none")
    return first, rest


def _entropy(p: Tensor, log_probs: Tensor) -> Tensor:
    """Entropy of each decision, shape ``(batch, n)``."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # so that 0 log 0 is 0
    return -(p * finite).sum(dim=2)


def _wide(values: Tensor) -> Tensor:
    """Values in double precision; in single on Apple's GPUs, which have no double."""
    return values.float() if values.device.type == "mps" else values.double()


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, _wide(values), 0).sum(dim=1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return _sum(values, mask) / mask.sum(dim=1).clamp(min=1)
