"""Training a CNN-CNN tagger with the LSTM decoder against the CRF and the softmax decoder, by the number of tags.

IOBES with 4 entity types has T = 17 tags, with 18 types T = 73. A call is ``steps`` optimiser steps on batches of
``batch`` sentences of 24 words, so tokens per second are ``24 * batch * steps`` over its seconds. The LSTM decoder
reads the vectors of the words in a recurrence, whatever T is, and its softmax is O(T) a token; the CRF sums over T x T
transitions. Ours does so by a matrix product, ``textbook CRF`` by a log-sum-exp, as one would write it first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.text.batch import BOS, EOS, TokenBatch
from framework.text.tags import tag_names
from modules.ner import decoders
from modules.ner.crf import Transitions
from modules.ner.tagger import TaggerNetwork

LIGHT = {"word_filters": 200, "decoder_units": 100, "batch": 32, "steps": 10}
PAPER = {"word_filters": 800, "decoder_units": 256, "batch": 128, "steps": 2}
CASES = [{"types": types, **size} for size in (LIGHT, PAPER) for types in (4, 18)]

WORDS, VOCABULARY, CHARACTERS = 24, 10_000, 100


def setup(types: int, word_filters: int, decoder_units: int, batch: int, steps: int, variant: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names = tag_names([f"T{number}" for number in range(types)])
    kind: Any = variant.split()[-1].lower()
    network = TaggerNetwork(
        VOCABULARY, CHARACTERS, names, decoder=kind, word_filters=word_filters, decoder_units=decoder_units
    )
    if variant == "textbook CRF":
        decoders.log_partition = textbook_log_partition  # in this process alone
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    return {"network": network, "optimizer": optimizer, "batches": [random_batch(batch, names) for _ in range(steps)]}


def random_batch(size: int, names: list[str]) -> TokenBatch:
    words = torch.randint(EOS + 1, VOCABULARY, (size, WORDS + 2))
    words[:, 0], words[:, -1] = BOS, EOS
    # As in text, about half of the words of a batch are different ones.
    forms = size * WORDS // 2
    lengths = torch.randint(3, 13, (forms, 1))
    chars = torch.randint(4, CHARACTERS, (forms, 12)).masked_fill(torch.arange(12) >= lengths, 0)
    return TokenBatch(
        torch.arange(size),
        words,
        chars,
        torch.randint(forms, words.shape),
        torch.randint(len(names), (size, WORDS)),
        torch.ones(size, WORDS, dtype=torch.bool),
        [],
    )


def train(given: dict[str, Any]) -> None:
    network, optimizer = given["network"], given["optimizer"]
    for batch in given["batches"]:
        optimizer.zero_grad()
        network.loss(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()


def textbook_log_partition(emissions: Tensor, mask: Tensor, transitions: Transitions) -> Tensor:
    """The forward algorithm as one would write it first: a log-sum-exp over T x T values at every token."""
    start, between, end = transitions
    alpha = start + emissions[:, 0]
    for position in range(1, emissions.shape[1]):
        reached = (alpha.unsqueeze(2) + between).logsumexp(1) + emissions[:, position]
        alpha = torch.where(mask[:, position, None], reached, alpha)
    return (alpha + end).logsumexp(1)


VARIANTS = {"LSTM": train, "CRF": train, "textbook CRF": train, "softmax": train}
