"""Tag decoders with one interface: the loss of given tags, and the best tags with their conditional log-probabilities.

Below, B sentences of at most n tokens are tagged with one of T tags each. ``h`` are vectors of the tokens, of shape
``(B, n, inputs)``; ``tags`` are tag numbers of shape ``(B, n)``, negative where there is none; ``mask`` is True at
tokens, False at the padding on the right, shape ``(B, n)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from framework.active.decisions import Decisions
from framework.text.batch import IGNORED
from framework.text.tags import split_tag
from modules.ner.crf import Transitions, chain_rule, log_partition, path_score, viterbi
from modules.ner.lstm import LSTM

FORBIDDEN = -1e4
"""What the score of a forbidden tag is lowered by: its probability is 0, and 0 times its logarithm is 0, not NaN."""


def possible_transitions(tags: Sequence[str]) -> Transitions:
    """What IOBES allows: 0 for a transition that may occur in a valid sequence, ``FORBIDDEN`` for another one.

    Args:
        tags: Names of the tags.
    """
    parts = [split_tag(tag) for tag in tags]
    opens = torch.tensor([prefix in "BI" for prefix, _ in parts])  # goes on after this tag
    goes_on = torch.tensor([prefix in "IE" for prefix, _ in parts])
    same = torch.tensor([[a == b for _, b in parts] for _, a in parts])
    between = torch.where(opens.unsqueeze(1), goes_on & same, ~goes_on)
    return Transitions(*((~allowed).float() * FORBIDDEN for allowed in (~goes_on, between, ~opens)))


class Decoder(nn.Module, ABC):
    """What a tagger does with the vectors of its tokens.

    Args:
        tags: Names of the T tags in IOBES, for instance ``["O", "B-PER", ...]``.
        constrained: Whether decoding leaves out tags that IOBES does not allow after the tag before, or at the end.
            Probabilities are then those of the tags that are left. The loss knows nothing of it.
    """

    forbidden_start: Tensor
    forbidden_between: Tensor
    forbidden_end: Tensor

    def __init__(self, tags: Sequence[str], constrained: bool = False) -> None:
        super().__init__()
        self.constrained = constrained
        forbidden = possible_transitions(tags)
        for name, value in zip(forbidden._fields, forbidden):
            self.register_buffer(f"forbidden_{name}", value if constrained else torch.zeros_like(value), False)

    def loss(self, h: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """-log P(tags | x) in nats, shape ``(B,)``; 0 for a sentence with a token that has no tag.

        Args:
            h: Vectors of the tokens.
            tags: Tag numbers.
            mask: True at tokens.
        """
        labelled = labelled_sentences(tags, mask)
        return self._loss(h, tags.masked_fill(~(mask & labelled.unsqueeze(1)), IGNORED), mask, labelled)

    @abstractmethod
    def _loss(self, h: Tensor, tags: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
        """As :meth:`loss`, with all tags of unlabelled sentences and of padding ``IGNORED``."""

    @abstractmethod
    def decode(self, h: Tensor, mask: Tensor) -> Decisions:
        """The best tags, and at each token the log-probability of every tag given the best tags before it.

        Args:
            h: Vectors of the tokens.
            mask: True at tokens.

        Returns:
            ``log_probs`` of shape ``(B, n, T)``, at least float32, ``chosen`` of shape ``(B, n)``, 0 at padding, and
            the mask. The log-probabilities of the chosen tags sum to log P(chosen | x).
        """

    def _forbidden(self) -> Transitions:
        return Transitions(self.forbidden_start, self.forbidden_between, self.forbidden_end)


def labelled_sentences(tags: Tensor, mask: Tensor) -> Tensor:
    """Which sentences have a tag at every token, shape ``(B,)``, bool."""
    return ((tags >= 0) | ~mask).all(1)


class SoftmaxDecoder(Decoder):
    """Each tag on its own: a linear map and a softmax.

    Constrained decoding takes the best valid sequence of all.

    Args:
        inputs: Width of a token's vector.
        tags: Names of the tags.
        constrained: See :class:`Decoder`.
    """

    def __init__(self, inputs: int, tags: Sequence[str], constrained: bool = False) -> None:
        super().__init__(tags, constrained)
        self.scores = nn.Linear(inputs, len(tags))

    def _loss(self, h: Tensor, tags: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
        return _token_losses(self.scores(h), tags).sum(1)

    def decode(self, h: Tensor, mask: Tensor) -> Decisions:
        scores = _full(self.scores(h))
        if self.constrained:
            return _best_path(scores, mask, self._forbidden())
        log_probs = scores.log_softmax(2)
        return Decisions(log_probs, log_probs.argmax(2).masked_fill(~mask, 0), mask)


class CRFDecoder(Decoder):
    """A linear-chain conditional random field; Shen et al. (2018), section 3.3, the baseline.

    Args:
        inputs: Width of a token's vector.
        tags: Names of the tags.
        constrained: See :class:`Decoder`.
    """

    def __init__(self, inputs: int, tags: Sequence[str], constrained: bool = False) -> None:
        super().__init__(tags, constrained)
        count = len(tags)
        self.scores = nn.Linear(inputs, count)
        self.start, self.end = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.zeros(count))
        self.between = nn.Parameter(torch.zeros(count, count))

    def _loss(self, h: Tensor, tags: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
        emissions = _full(self.scores(h))
        with torch.autocast(h.device.type, enabled=False):  # sums over paths need full precision
            transitions = self._transitions()
            score = path_score(emissions, tags.clamp_min(0), mask, transitions)
            return (log_partition(emissions, mask, transitions) - score) * labelled

    def decode(self, h: Tensor, mask: Tensor) -> Decisions:
        return _best_path(_full(self.scores(h)), mask, self._transitions().plus(self._forbidden()))

    def _transitions(self) -> Transitions:
        return Transitions(_full(self.start), _full(self.between), _full(self.end))


class LSTMDecoder(Decoder):
    """Tags one after another: an LSTM reads the tag before and the token's vector, a softmax gives the next tag.

    Shen et al. (2018), section 3.3. Training reads the true tags (teacher forcing); decoding is greedy, or a beam
    search over whole sequences.

    Args:
        inputs: Width of a token's vector.
        tags: Names of the tags.
        units: Units of the LSTM.
        dim: Width of a tag's embedding.
        dropout: Probability of dropping a unit's output on its way to the softmax, in [0, 1).
        beam: Sequences that the search keeps; 1 is greedy. More never give a less likely sequence than greedy does.
        constrained: See :class:`Decoder`.
    """

    def __init__(
        self,
        inputs: int,
        tags: Sequence[str],
        units: int = 256,
        dim: int = 25,
        dropout: float = 0.5,
        beam: int = 1,
        constrained: bool = False,
    ) -> None:
        super().__init__(tags, constrained)
        self.go, self.beam = len(tags), beam  # [GO] is what stands before the first tag
        self.embedding = nn.Embedding(len(tags) + 1, dim)
        self.lstm = LSTM(dim + inputs, units, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(units, len(tags))

    def _loss(self, h: Tensor, tags: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
        return _token_losses(self._teacher_forced(h, self._before(tags.clamp_min(0))), tags).sum(1)

    def log_probs(self, h: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Conditional log P(y_i | tags before i, x) of every tag y_i, shape ``(B, n, T)``.

        Args:
            h: Vectors of the tokens.
            tags: Tag numbers, none of them negative.
            mask: True at tokens.
        """
        before = self._before(tags)
        scores = _full(self._teacher_forced(h, before))
        return (scores + self._forbidden_after()[before] + self._forbidden_last(mask)).log_softmax(2)

    def decode(self, h: Tensor, mask: Tensor) -> Decisions:
        log_probs, chosen = self._greedy(h, mask)
        if self.beam > 1:
            found = self._beam_search(h, mask)
            again = self.log_probs(h, found, mask)
            better = _log_likelihood(again, found, mask) > _log_likelihood(log_probs, chosen, mask)
            chosen = torch.where(better[:, None], found, chosen)
            log_probs = torch.where(better[:, None, None], again, log_probs)
        return Decisions(log_probs, chosen.masked_fill(~mask, 0), mask)

    def _teacher_forced(self, h: Tensor, before: Tensor) -> Tensor:
        output, _ = self.lstm(torch.cat([self.embedding(before), h], dim=2))
        scores: Tensor = self.scores(self.dropout(output))
        return scores

    def _before(self, tags: Tensor) -> Tensor:
        return torch.cat([tags.new_full((len(tags), 1), self.go), tags[:, :-1]], dim=1)

    def _forbidden_after(self) -> Tensor:
        """By the tag before, with ``[GO]``, shape ``(T + 1, T)``."""
        return torch.cat([self.forbidden_between, self.forbidden_start.unsqueeze(0)])

    def _forbidden_last(self, mask: Tensor) -> Tensor:
        """What may not be the last tag, at the last tokens, shape ``(B, n, T)``."""
        last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
        return last.unsqueeze(2) * self.forbidden_end

    def _projected(self, h: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of the gates: each token's share, n of shape ``(B, 4 units)``; each tag's; the weights of the hidden state.

        Decoding goes on token by token, so that all that is known before is multiplied in one go.
        """
        weight, recurrent, bias, more_bias = self.lstm.all_weights[0]
        dim = self.embedding.embedding_dim
        of_tags = linear(self.embedding.weight, weight[:, :dim], bias + more_bias)
        return list(linear(h, weight[:, dim:]).transpose(0, 1).contiguous().unbind()), of_tags, recurrent

    def _greedy(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        of_tokens, of_tags, recurrent = self._projected(h)
        after = self._forbidden_after() if self.constrained else None
        last = self._forbidden_last(mask).unbind(1) if self.constrained else ()
        hidden = cell = h.new_zeros(len(h), self.lstm.hidden_size)
        before = mask.new_full((len(h),), self.go, dtype=torch.int64)
        scores, chosen = [], []
        for position, of_token in enumerate(of_tokens):
            gates = of_token + of_tags[before] + linear(hidden, recurrent)
            hidden, cell = _lstm_step(gates, cell)
            score = self.scores(self.dropout(hidden))
            if after is not None:
                score = score + after[before] + last[position]
            before = score.argmax(1)
            scores.append(score)
            chosen.append(before)
        return _full(torch.stack(scores, 1)).log_softmax(2), torch.stack(chosen, 1)

    def _beam_search(self, h: Tensor, mask: Tensor) -> Tensor:
        """Tags of the likeliest of the sequences that are left at the end, shape ``(B, n)``."""
        of_tokens, of_tags, recurrent = self._projected(h)
        after, last = self._forbidden_after(), self._forbidden_last(mask).unbind(1)
        batch, beam, count = len(h), self.beam, self.go
        hidden = cell = h.new_zeros(batch * beam, self.lstm.hidden_size)
        before = torch.full((batch * beam,), count, device=h.device)
        # All begin equal: only the first one counts.
        total = _full(h.new_full((batch, beam), -torch.inf))
        total[:, 0] = 0
        rows = torch.arange(batch, device=h.device).unsqueeze(1) * beam
        stay = torch.full((count,), -torch.inf, device=h.device)  # after its end a sequence goes on in one way alone
        stay[0] = 0
        chosen, parents = [], []
        for position, (of_token, real) in enumerate(zip(of_tokens, mask.unbind(1))):
            gates = of_token.repeat_interleave(beam, 0) + of_tags[before] + linear(hidden, recurrent)
            hidden, cell = _lstm_step(gates, cell)
            scores = _full(self.scores(self.dropout(hidden))) + after[before]
            steps = (scores.view(batch, beam, count) + last[position].unsqueeze(1)).log_softmax(2)
            grown = total.unsqueeze(2) + torch.where(real[:, None, None], steps, stay)
            total, best = grown.view(batch, -1).topk(beam, dim=1)
            parent = best // count
            before, kept = (best % count).view(-1), (rows + parent).view(-1)
            hidden, cell = hidden[kept], cell[kept]
            chosen.append(before.view(batch, beam))
            parents.append(parent)
        at, path = total.argmax(1, keepdim=True), []
        for tag, parent in zip(reversed(chosen), reversed(parents)):
            path.append(tag.gather(1, at))
            at = parent.gather(1, at)
        return torch.cat(path[::-1], dim=1)


def _lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state and cell of the next position, each of shape ``(B, units)``, as ``nn.LSTM`` orders its gates."""
    i, f, g, o = gates.chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _full(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _token_losses(scores: Tensor, tags: Tensor) -> Tensor:
    return cross_entropy(_full(scores).flatten(0, 1), tags.flatten(), reduction="none").view_as(tags)


def _log_likelihood(log_probs: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
    return (log_probs.gather(2, tags.unsqueeze(2)).squeeze(2) * mask).sum(1)


def _best_path(emissions: Tensor, mask: Tensor, transitions: Transitions) -> Decisions:
    chosen = viterbi(emissions, mask, transitions)
    return Decisions(chain_rule(emissions, chosen, mask, transitions), chosen, mask)
