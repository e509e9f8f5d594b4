"""The network as a whole: padding, unknown words, dropout, precision, bad arguments."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from framework.active.scores import least_confidence, mnlp, variation_ratio
from framework.text.batch import BOS, EOS, PAD, UNK
from modules.ner.encoders import CharCNN, Convolution
from modules.ner.tagger import TaggerNetwork

ALL = list(itertools.product(("cnn", "lstm", "none"), ("cnn", "lstm"), ("lstm", "crf", "softmax")))
SMALL = {"word_filters": 20, "word_units": 10, "decoder_units": 12}


def make(data, char="cnn", word="cnn", decoder="lstm", **options):
    names = {"char_encoder": char, "word_encoder": word, "decoder": decoder}
    return TaggerNetwork(**data.sizes, **names, **{**SMALL, **options})


@pytest.mark.parametrize("names", ALL, ids="-".join)
def test_a_batch_of_one_is_as_one_of_32(data, names):
    network = make(data, *names, char_layers=2, residual=True).eval()
    together = data.batch()
    with torch.no_grad():
        losses, decisions = network.loss(together), network.decode(together)
        scores = mnlp(decisions), least_confidence(decisions)
        for row in range(32):
            alone = data.batch(indices=[row])
            n = int(together.lengths[row])
            found = network.decode(alone)
            assert torch.equal(found.chosen[0], decisions.chosen[row, :n])
            close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-6)
            close(found.log_probs[0], decisions.log_probs[row, :n])
            close(network.loss(alone)[0], losses[row])
            close(mnlp(found)[0], scores[0][row])
            close(least_confidence(found)[0], scores[1][row])


def test_what_stands_at_padding_is_not_read(data):
    network = make(data, char_layers=2, word_layers=3).eval()
    with torch.no_grad():
        network.embedding.weight[PAD] = 100  # as if training had moved it
        network.characters.embedding.weight[PAD] = 100
    batch = data.batch()
    wider = batch._replace(
        words=nn.functional.pad(batch.words, (0, 9)),
        chars=nn.functional.pad(batch.chars, (0, 7)),
        word_forms=nn.functional.pad(batch.word_forms, (0, 9), value=5),
        mask=nn.functional.pad(batch.mask, (0, 9)),
    )
    real = batch.mask
    with torch.no_grad():
        torch.testing.assert_close(network.decode(wider).log_probs[:, :-9][real], network.decode(batch).log_probs[real])


def test_unknown_words_are_drawn_in_training_and_never_at_the_special_ones(data):
    network = make(data, "none", unk_rate=0.5, input_dropout=0, encoder_dropout=0)
    seen = []
    network.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batch = data.batch(indices=range(60))
    for _ in range(20):
        network(batch)
    words = batch.words.expand(20, -1, -1)
    now = torch.stack(seen)
    special = words <= EOS
    assert {PAD, BOS, EOS} <= set(words[special].tolist())
    assert torch.equal(now[special], words[special])
    changed = now != words
    assert (now[changed] == UNK).all()
    assert changed[~special].float().mean().item() == pytest.approx(0.5, abs=0.02)
    seen.clear()
    network.eval()(batch)
    assert torch.equal(seen[0], batch.words)


@pytest.mark.parametrize("decoder", ["lstm", "crf", "softmax"])
def test_monte_carlo_passes_differ_by_dropout_alone(data, decoder):
    batch = data.batch()

    def passes(network):
        network.eval()
        for layer in network.modules():
            layer.train(layer.training or isinstance(layer, nn.Dropout))
        with torch.inference_mode():
            return variation_ratio([network.decode(batch) for _ in range(5)])

    assert not passes(make(data, decoder=decoder, input_dropout=0, encoder_dropout=0, decoder_dropout=0)).any()
    assert passes(make(data, decoder=decoder)).all()


def test_equal_lengths_are_ranked_alike_by_both_normalisations(data):
    lengths = data.data["train"].words
    same = (lengths == lengths.mode().values).nonzero().squeeze(1)
    decisions = make(data).eval().decode(data.batch(indices=same.tolist()))
    assert torch.equal(mnlp(decisions).argsort(stable=True), least_confidence(decisions).argsort(stable=True))


@pytest.mark.parametrize("names", [("cnn", "cnn", "lstm"), ("lstm", "lstm", "crf"), ("none", "cnn", "softmax")])
def test_gradients_reach_every_parameter(data, names):
    network = make(data, *names)
    network.loss(data.batch(indices=range(60))).sum().backward()
    still = {name for name, parameter in network.named_parameters() if not parameter.grad.any()}
    assert not still
    assert network.embedding.weight.grad[PAD].eq(0).all()


@pytest.mark.parametrize("names", ALL, ids="-".join)
def test_half_precision(data, names):
    network, batch = make(data, *names), data.batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.loss(batch)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert network.eval().decode(batch).log_probs.isfinite().all()


def test_the_mean_embedding_is_of_real_words(data):
    network, batch = make(data), data.batch()
    means = network.mean_embedding(batch)
    for row, n in enumerate(batch.lengths.tolist()):
        expected = network.embedding.weight[batch.words[row, 1 : n + 1]].mean(0)
        torch.testing.assert_close(means[row], expected)


@pytest.mark.parametrize(("width", "positions"), [(1, 4), (3, 1), (3, 9), (5, 2), (7, 6)])
def test_convolution_is_that_of_torch(width, positions):
    torch.manual_seed(0)
    ours = Convolution(6, 10, width).double()
    theirs = nn.Conv1d(6, 10, width, padding=width // 2).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, positions, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, positions, 10, dtype=torch.float64)

    def gradients(y, layer):
        return torch.autograd.grad((y * weights).sum(), [x, layer.weight, layer.bias])

    y, expected = ours(x), theirs(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, ours), gradients(expected, theirs))


@pytest.mark.parametrize(("dim", "layers"), [(6, 1), (8, 1), (6, 3)])
def test_characters_are_convolved_as_by_torch(dim, layers):
    torch.manual_seed(0)
    encoder = CharCNN(12, dim, filters=8, width=5, layers=layers, dropout=0.0).double()
    chars = torch.randint(1, 12, (7, 9)) * (torch.arange(9) < torch.tensor([9, 1, 4, 2, 5, 3, 6]).unsqueeze(1))
    real = (chars != 0).unsqueeze(1)

    x = encoder.embedding(chars).transpose(1, 2)
    layer = encoder.first
    for number in range(layers):
        x = x * real
        if number:
            layer = encoder.deeper.convolutions[number - 1]
        y = nn.functional.conv1d(x, layer.weight, layer.bias, padding=2).relu()
        x = y + (x if number or dim == 8 else encoder.skip(x.transpose(1, 2)).transpose(1, 2))
    expected = x.masked_fill(~real, -torch.inf).amax(2)
    torch.testing.assert_close(encoder(chars), expected)

    weights, parameters = torch.randn_like(expected), list(encoder.parameters())
    found = torch.autograd.grad((encoder(chars) * weights).sum(), parameters)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), parameters))
    assert not found[0][0].any()  # the vector of padding stays zero


def test_widths_of_the_paper(data):
    network = TaggerNetwork(**data.sizes)
    assert network(data.batch()).shape[2] == 800 + 50 + 100  # the top layer beside its input
    assert [tuple(layer.weight.shape) for layer in network.words.convolutions.convolutions] == [
        (800, 150, 3),
        (800, 800, 3),
    ]
    assert network.characters.first.weight.shape == (50, 25, 5)
    assert network.characters.deeper is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": 4}, "words must be more than 4 .* got 4"),
        ({"characters": 0}, "characters must be more than 4 .* got 0"),
        ({"tags": ["O"]}, r"tags must be O and at least one other name, each once, got \['O'\]"),
        ({"tags": ["B-X", "I-X"]}, "tags must be O and"),
        ({"tags": ["O", "S-X", "S-X"]}, "tags must be O and"),
        ({"tags": ["O", "person"]}, "a tag must be O, or .* got 'person'"),
        ({"char_encoder": "rnn"}, "char_encoder must be one of cnn, lstm, none, got 'rnn'"),
        ({"word_encoder": "none"}, "word_encoder must be one of cnn, lstm, got 'none'"),
        ({"decoder": "beam"}, "decoder must be one of lstm, crf, softmax, got 'beam'"),
        ({"activation": "none"}, "activation must be one of relu, gelu, tanh, got 'none'"),
        ({"word_filters": 0}, "word_filters must be at least 1, got 0"),
        ({"char_width": 4}, "char_width must be odd, .* got 4"),
        ({"input_dropout": 1.0}, r"input_dropout must be in \[0, 1\), got 1.0"),
        ({"unk_rate": -0.1}, r"unk_rate must be in \[0, 1\), got -0.1"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"beam": 3, "decoder": "crf"}, "beam must be 1 with decoder crf, .* got 3"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TaggerNetwork(**{"words": 10, "characters": 10, "tags": ["O", "S-X"], **options})
