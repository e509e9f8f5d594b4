"""Tag decoders: probabilities that add up, greedy and beam search against brute force, valid tags on demand."""

from __future__ import annotations

import itertools

import pytest
import torch

from framework.text.tags import tag_names, violation
from modules.ner.decoders import CRFDecoder, LSTMDecoder, SoftmaxDecoder

TAGS = tag_names(["PER", "LOC"])
FEW = ["O", "B-X", "E-X"]
LENGTHS = [1, 4, 3, 6]


def make(kind, tags=TAGS, **options):
    decoder = kind(5, tags, **options).eval().double()  # so that tolerances can be tight
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()  # transitions begin at 0, and others are small
    return decoder


def inputs(lengths=LENGTHS, width=5):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, width, dtype=torch.float64), mask


KINDS = [LSTMDecoder, CRFDecoder, SoftmaxDecoder]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def likelihood(decisions):
    log_probs, chosen, mask = decisions
    return (log_probs.gather(2, chosen.unsqueeze(2)).squeeze(2) * mask).sum(1)


def test_log_probabilities_of_the_chosen_tags_are_minus_their_loss(kind):
    """For the LSTM: the greedy decode step by step against teacher forcing in one call."""
    decoder = make(kind)
    h, mask = inputs()
    with torch.no_grad():
        decisions = decoder.decode(h, mask)
        loss = decoder.loss(h, decisions.chosen.masked_fill(~mask, -100), mask)
    torch.testing.assert_close(likelihood(decisions), -loss)
    torch.testing.assert_close(decisions.log_probs.logsumexp(2), torch.zeros(mask.shape, dtype=torch.float64))
    assert decisions.chosen.dtype == torch.int64
    assert not decisions.chosen[~mask].any()


def test_losses_are_those_of_a_distribution(kind):
    """Over all sequences of one length, probabilities sum to 1."""
    decoder = make(kind, FEW)
    h, mask = inputs([4])
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.no_grad():
        losses = decoder.loss(h.expand(len(every), -1, -1), every, mask.expand(len(every), -1))
    torch.testing.assert_close((-losses).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("beam", [1, 3])
def test_padding_changes_nothing(kind, beam):
    decoder = make(kind, **({"beam": beam, "units": 8} if kind is LSTMDecoder else {}))
    h, mask = inputs()
    tags = torch.randint(len(TAGS), mask.shape)
    with torch.no_grad():
        losses, together = decoder.loss(h, tags, mask), decoder.decode(h, mask)
        for row, length in enumerate(LENGTHS):
            part = (slice(row, row + 1), slice(length))
            torch.testing.assert_close(decoder.loss(h[part], tags[part], mask[part])[0], losses[row])
            alone = decoder.decode(h[part], mask[part])
            assert torch.equal(alone.chosen, together.chosen[part])
            torch.testing.assert_close(alone.log_probs, together.log_probs[part])


def test_sentences_without_all_their_tags_move_nothing(kind):
    decoder = make(kind)
    h, mask = inputs()
    tags = torch.randint(len(TAGS), mask.shape).masked_fill(~mask, -100)
    tags[1] = -100
    tags[3, 2] = -100
    losses = decoder.loss(h.requires_grad_(), tags, mask)
    assert losses[[1, 3]].tolist() == [0, 0]
    assert (losses[[0, 2]] > 0).all()
    losses.sum().backward()
    assert not h.grad[[1, 3]].any()
    assert h.grad[[0, 2]].any()
    parameters = list(decoder.parameters())
    nothing = torch.autograd.grad(decoder.loss(h, torch.full_like(tags, -100), mask).sum(), parameters)
    assert not any(gradient.any() for gradient in nothing)


@pytest.mark.parametrize("beam", [1, 3])
def test_constrained_decoding_gives_valid_iobes_and_probabilities(kind, beam):
    options = {"beam": beam} if kind is LSTMDecoder else {}
    decoder, free = make(kind, constrained=True, **options), make(kind)
    free.load_state_dict(decoder.state_dict())
    h, mask = inputs([1, 2, 3, 5, 8, 13] * 4)

    def broken(decisions):
        rows = zip(decisions.chosen.tolist(), mask.sum(1).tolist(), strict=True)
        return [violation([TAGS[tag] for tag in row[:n]], "iobes") is not None for row, n in rows]

    with torch.no_grad():
        decisions = decoder.decode(h, mask)
        assert any(broken(free.decode(h, mask)))
    assert not any(broken(decisions))
    assert decisions.log_probs.isfinite().all()
    torch.testing.assert_close(decisions.log_probs.exp().sum(2), torch.ones(mask.shape, dtype=torch.float64))


@pytest.mark.parametrize("kind", [CRFDecoder, SoftmaxDecoder])
def test_constrained_decoding_finds_the_best_valid_sequence(kind):
    decoder = make(kind, FEW, constrained=True)
    h, mask = inputs([4])
    every = list(itertools.product(range(3), repeat=4))
    valid = torch.tensor([row for row in every if violation([FEW[tag] for tag in row], "iobes") is None])
    with torch.no_grad():
        losses = decoder.loss(h.expand(len(valid), -1, -1), valid, mask.expand(len(valid), -1))
        decisions = decoder.decode(h, mask)
    assert decisions.chosen[0].tolist() == valid[losses.argmin()].tolist()
    torch.testing.assert_close(likelihood(decisions)[0], (-losses).log_softmax(0).max())


def test_a_beam_of_one_is_greedy_and_wider_ones_never_worse():
    h, mask = inputs([1, 4, 3, 6] + [9] * 60)

    def beams(width):
        torch.manual_seed(1)
        return make(LSTMDecoder, units=8, beam=width)

    with torch.no_grad():
        greedy = beams(1).decode(h, mask)
        found = beams(1)._beam_search(h, mask)
        assert torch.equal(found.masked_fill(~mask, 0), greedy.chosen)
        before = likelihood(greedy)
        gains = []
        for width in (2, 3, 8):
            decisions = beams(width).decode(h, mask)
            assert (likelihood(decisions) >= before).all()
            loss = beams(width).loss(h, decisions.chosen, mask)
            torch.testing.assert_close(likelihood(decisions), -loss)
            gains.append((likelihood(decisions) - before).max().item())
    assert max(gains) > 0.01, "a case where the search pays"


@pytest.mark.parametrize("constrained", [False, True])
def test_a_beam_of_full_width_is_brute_force(constrained):
    lengths = [4, 2, 3]
    h, mask = inputs(lengths)
    decoder = make(LSTMDecoder, FEW, units=8, beam=3**4, constrained=constrained)
    with torch.no_grad():
        decisions = decoder.decode(h, mask)
        for row, length in enumerate(lengths):
            every = torch.tensor(list(itertools.product(range(3), repeat=length)))
            real = torch.ones(every.shape, dtype=torch.bool)
            log_probs = decoder.log_probs(h[row, :length].expand(len(every), -1, -1), every, real)
            scores = log_probs.gather(2, every.unsqueeze(2)).sum((1, 2))
            assert decisions.chosen[row, :length].tolist() == every[scores.argmax()].tolist()
            torch.testing.assert_close(likelihood(decisions)[row], scores.max())


def test_half_precision_is_near(kind):
    decoder, (h, mask) = make(kind).float(), inputs()
    h, tags = h.float(), torch.randint(len(TAGS), mask.shape)
    with torch.autocast("cpu", torch.bfloat16):
        losses, decisions = decoder.loss(h, tags, mask), decoder.decode(h, mask)
    assert losses.dtype == decisions.log_probs.dtype == torch.float32
    torch.testing.assert_close(losses, decoder.loss(h, tags, mask), rtol=0.1, atol=0.5)
    with torch.inference_mode():
        assert decoder.bfloat16().decode(h.bfloat16(), mask).log_probs.isfinite().all()
