"""MNLP of a pool of sentences by a tagger: batches sorted by length against a loop over sentences.

The loop is what one would write first: a sentence at a time through the encoders, then the decoder's LSTM a token at a
time, adding up the log-probability of the best tag. A call scores ``sentences`` sentences, 1 to 60 words long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.active.scores import mnlp
from framework.active.scoring import batches_of
from framework.text.conll import Annotated
from framework.text.sentences import Sentences
from framework.text.tags import tag_names
from framework.text.vocabulary import Vocabulary
from modules.ner.module import Tagger

LIGHT = {"word_filters": 200, "decoder_units": 100, "sentences": 2000}
PAPER = {"word_filters": 800, "decoder_units": 256, "sentences": 500}
CASES = [{**LIGHT, "types": 4}, {**LIGHT, "types": 18}, {**PAPER, "types": 4}]

BATCH = 256


class Given(NamedTuple):
    """What a variant is timed on: a tagger and its pool."""

    tagger: Any
    pool: Sentences


def setup(word_filters: int, decoder_units: int, sentences: int, types: int) -> Given:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    lengths = torch.randint(1, 60, (sentences, 2), generator=generator).amin(1) + 1
    # Frequencies as in text: word number k about 1 / k times as often as the first.
    ranks = (20_000 ** torch.rand(int(lengths.sum()), generator=generator)).long()
    tokens = [[f"word{rank}" for rank in part.tolist()] for part in ranks.split(lengths.tolist())]
    names = tag_names([f"T{number}" for number in range(types)])
    vocabulary = Vocabulary(tokens)
    pool = Sentences(Annotated(tokens, [None] * sentences, [""] * sentences), vocabulary, names)
    tagger = Tagger(
        len(vocabulary.words),
        len(vocabulary.characters) + 4,
        names,
        word_filters=word_filters,
        decoder_units=decoder_units,
    )
    return Given(tagger.eval(), pool)


@torch.inference_mode()
def batched(given: Given) -> Tensor:
    """Ours: what framework.active does with a pool, without a trainer around it."""
    everything = torch.arange(len(given.pool))
    scores = torch.zeros(len(everything), dtype=torch.float64)
    for rows in batches_of(everything, given.pool.words, BATCH):
        positions = torch.tensor(rows)
        scores[positions] = mnlp(given.tagger.acquisition_scores(given.pool.batch(positions))).double()
    return scores


@torch.inference_mode()
def loop(given: Given) -> Tensor:
    """The peer: one sentence, one token after another."""
    network, decoder = given.tagger.network, given.tagger.network.decoder
    scores = []
    for row in range(len(given.pool)):
        vectors = network(given.pool.batch(torch.tensor([row])))
        state, tag, total = None, decoder.go, 0.0
        for position in range(vectors.shape[1]):
            before = decoder.embedding(torch.tensor([[tag]]))
            output, state = decoder.lstm(torch.cat([before, vectors[:, position : position + 1]], dim=2), state)
            log_probs = decoder.scores(output[0, 0]).log_softmax(0)
            tag = int(log_probs.argmax())
            total += float(log_probs[tag])
        scores.append(-total / vectors.shape[1])
    return torch.tensor(scores, dtype=torch.float64)


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-4)


VARIANTS = {"batched": batched, "loop": loop}
