"""Copies of a module are those of ``copy.deepcopy``, share nothing with it, and fall back on it."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from framework.federated.module_copies import ModuleCopies
from modules._classification import Scores
from modules.classifier import Classifier
from modules.sac import SAC


class Tied(LightningModule):
    """Two layers with one weight, an LSTM with its flat weights, a frozen layer, and something to count with."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.lstm = nn.LSTM(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.seen = {"steps": [1, 2]}

    def forward(self, x):
        return self.frozen(self.norm(self.second(self.first(x)))).sum() + self.lstm(x)[0].sum()


MAKERS = {
    "tied": Tied,
    "mlp": lambda: Classifier(4, 3, network="mlp", hidden=[5]),
    "cnn": lambda: Classifier(784, 10, network="cnn", hidden=[]),
    "sac": lambda: SAC(4, 2),
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_copy_is_what_deepcopy_makes(name):
    module = MAKERS[name]()
    copies = ModuleCopies(module)
    first, second, peer = copies.make(), copies.make(), copy.deepcopy(module)
    assert copies._pickled is not None
    assert [type(part) for part in first.modules()] == [type(part) for part in peer.modules()]
    for (key, value), other in zip(first.state_dict().items(), peer.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    flags = [[(key, value.requires_grad) for key, value in each.named_parameters()] for each in (first, peer)]
    assert flags[0] == flags[1]
    assert first.hparams == peer.hparams
    # Nothing is shared: with the module, or from copy to copy.
    places = [{value.data_ptr() for value in each.state_dict().values() if value.numel()} for each in (module, first)]
    places.append({value.data_ptr() for value in second.state_dict().values() if value.numel()})
    assert not (places[0] & places[1])
    assert not (places[0] & places[2])
    assert not (places[1] & places[2])


def test_ties_flat_weights_and_plain_objects():
    module = Tied()
    copies = ModuleCopies(module)
    made = copies.make()
    assert made.first.weight is made.second.weight
    assert made.first.weight is not module.first.weight
    x = torch.randn(5, 4)
    loss = made(x)
    assert torch.equal(loss, copy.deepcopy(module)(x))
    before = copy.deepcopy(module.state_dict())
    loss.backward()
    torch.optim.SGD([each for each in made.parameters() if each.requires_grad], lr=1.0).step()
    made.seen["steps"].append(3)
    made.frozen.weight.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.seen == copies.make().seen == {"steps": [1, 2]}
    with torch.no_grad():  # the weights that the module has now
        module.first.weight.fill_(2.0)
    assert bool((copies.make().second.weight == 2).all())


def test_metrics_count_for_themselves():
    module = Classifier(4, 3, network="mlp", hidden=[5])
    copies = ModuleCopies(module)
    one, other = copies.make(), copies.make()
    scores = one.scores["train_"]
    assert isinstance(scores, Scores)
    scores.update(torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor(1.5))
    values = scores.compute()
    assert torch.equal(values.pop("confusion"), torch.eye(3, dtype=torch.long))
    assert {name: float(value) for name, value in values.items()} == {"loss": 0.5, "accuracy": 1, "f1": 1}
    assert all(not part.scores["train_"].update_called for part in (module, other))


class Stubborn(LightningModule):
    """What cannot be pickled, or not by its tensors."""

    def __init__(self, kind):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if kind == "lambda":
            self.make = lambda: 3
        elif kind == "views":
            joint = torch.arange(4.0)
            self.register_buffer("left", joint[:2])
            self.register_buffer("right", joint[2:])
            self.register_buffer("whole", joint)
        elif kind == "marked":
            self.layer.weight.mark = "mine"
        else:
            self.layer(torch.ones(2)).sum().backward()


@pytest.mark.parametrize("kind", ["lambda", "views", "marked", "gradient"])
def test_what_is_out_of_the_ordinary_is_left_to_deepcopy(kind):
    module = Stubborn(kind)
    copies = ModuleCopies(module)
    made = copies.make()
    assert copies._pickled is None
    assert torch.equal(made.layer.weight, module.layer.weight)
    if kind == "views":
        made.whole[0] = 5
        assert float(made.left[0]) == 5
        assert float(module.left[0]) == 0


def test_what_is_shared_stays_the_same_object():
    module = Tied()
    module.make = make = lambda: 3  # an optimiser's maker, say
    made = ModuleCopies(module, [make]).make()
    assert made.make is make
