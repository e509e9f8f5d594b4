"""What is asked of a module: nothing of a classifier, a method of anything else, and an error that names it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from framework.active.decisions import (
    Decisions,
    Embeddable,
    Scorable,
    decisions_and_embedding_of,
    decisions_of,
    embedding_of,
)


class Network(nn.Module):
    """A classifier whose output and last layer a test chooses."""

    def __init__(self, ending=lambda logits: logits, classes=3):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, classes)
        self.ending, self.calls = ending, 0

    def forward(self, x):
        self.calls += 1
        return self.ending(self.head(self.body(x).relu()))


class Tagger(nn.Module):
    def acquisition_scores(self, batch):
        log_probs = batch.log_softmax(2)
        return Decisions(log_probs, log_probs.argmax(2), torch.ones(batch.shape[:2], dtype=torch.bool))

    def acquisition_embedding(self, batch):
        return batch.mean(1)


class Output:
    def __init__(self, logits):
        self.logits = logits


def inputs(batch=5):
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(0))


ENDINGS = {
    "logits": lambda logits: logits,
    "log-probabilities": lambda logits: logits.log_softmax(1),
    "probabilities": lambda logits: logits.softmax(1),
    "an object": Output,
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_classifier_has_one_decision_an_item(ending, batch_size):
    torch.manual_seed(0)
    network, x = Network(ending), inputs(batch_size)
    log_probs, chosen, mask = decisions_of(network, (x, torch.zeros(batch_size)))
    expected = network.head(network.body(x).relu()).log_softmax(1)
    assert_close(log_probs, expected[:, None])
    assert torch.equal(chosen, expected.argmax(1, keepdim=True))
    assert mask.shape == (batch_size, 1)
    assert mask.all()


@pytest.mark.parametrize(
    "batch",
    [lambda x: x, lambda x: (x, 1), lambda x: [x, 1, 2], lambda x: {"x": x, "labels": 1}],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_inputs_are_found_in_a_batch_and_labels_are_not_passed_on(batch):
    network, x = Network(), inputs()
    assert_close(decisions_of(network, batch(x)).log_probs, decisions_of(network, x).log_probs)


def test_a_probability_of_zero_is_no_nan():
    log_probs, _, _ = decisions_of(nn.Identity(), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    assert_close(log_probs.exp().squeeze(1), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))


def test_half_precision_is_widened_before_the_softmax():
    logits = torch.tensor([[8.0, 0.0, -8.0], [0.1, 0.2, 0.3]])
    for narrow in (torch.float16, torch.bfloat16):
        found = decisions_of(nn.Identity(), logits.to(narrow)).log_probs
        assert found.dtype == torch.float32
        assert_close(found.squeeze(1), logits.to(narrow).float().log_softmax(1))


def test_a_scorable_module_is_asked():
    x = torch.randn(2, 4, 3)
    assert isinstance(Tagger(), Scorable)
    assert isinstance(Tagger(), Embeddable)
    assert not isinstance(Network(), (Scorable, Embeddable))
    assert decisions_of(Tagger(), x).log_probs.shape == (2, 4, 3)
    assert_close(embedding_of(Tagger(), x), x.mean(1))
    decisions, embedding = decisions_and_embedding_of(Tagger(), x)
    assert_close(decisions.log_probs, x.log_softmax(2))
    assert_close(embedding, x.mean(1))


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_the_embedding_of_a_classifier_is_what_its_last_layer_is_given(ending):
    torch.manual_seed(0)
    network, x = Network(ending), inputs()
    expected = network.body(x).relu()
    assert_close(embedding_of(network, x), expected)
    network.calls = 0
    decisions, embedding = decisions_and_embedding_of(network, x)
    assert network.calls == 1
    assert_close(embedding, expected)
    assert_close(decisions.log_probs, decisions_of(network, x).log_probs)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_last_layer_that_does_not_give_the_logits_is_no_embedding():
    for network in (Network(lambda logits: logits * 3), nn.Sequential(nn.Conv1d(4, 3, 1), nn.Flatten())):
        x = inputs() if isinstance(network, Network) else inputs().unsqueeze(2)
        decisions_of(network, x)
        with pytest.raises(TypeError, match=f"{type(network).__name__} has no acquisition_embedding, which ActiveLear"):
            embedding_of(network, x)
        assert not any(layer._forward_hooks for layer in network.modules())


class NoForward(nn.Module):
    pass


class TwoInputs(nn.Module):
    def forward(self, x, adjacency):
        return x


REFUSED = {
    "no forward": (NoForward(), inputs(), r'missing the required "forward"'),
    "two inputs": (TwoInputs(), inputs(), "missing a required argument: 'adjacency'"),
    "one logit": (nn.Linear(4, 1), inputs(), r"returns torch.float32 of shape \(5, 1\)"),
    "a vector": (nn.Flatten(0), inputs(), r"of shape \(20,\)"),
    "integers": (nn.Identity(), torch.zeros(5, 3, dtype=torch.int64), "returns torch.int64"),
    "three axes": (nn.Identity(), torch.zeros(5, 3, 2), r"of shape \(5, 3, 2\)"),
    "no tensor": (Network(lambda logits: {"a": logits}), inputs(), "returns dict"),
    "a batch of another kind": (nn.Identity(), 3, "a batch of type int"),
    "an empty batch": (nn.Identity(), (), "a batch of type tuple"),
}


@pytest.mark.parametrize(("module", "batch", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_scored_is_told_by_name_what_it_lacks(module, batch, says):
    name = type(module).__name__
    for ask in (decisions_of, embedding_of, decisions_and_embedding_of):
        with pytest.raises(TypeError, match=f"^{name} has no acquisition_scores, which ActiveLearning needs: .*{says}"):
            ask(module, batch)


def test_a_mistake_inside_the_module_stays_as_it_is():
    def broken(logits):
        raise TypeError("a bug of the user's")

    with pytest.raises(TypeError, match=r"^a bug of the user's$"):
        decisions_of(Network(broken), inputs())
