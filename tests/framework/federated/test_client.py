"""What one client does with a message: proximal term, skew, state, and what it refuses."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from federation_net import Net, Points
from flwr.serverapp import strategy as flower
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from framework.federated import wire
from framework.federated.partition import IID, Dirichlet
from framework.federated.partition_file import FromFile, save
from framework.federated.skew import LabelNoise, Noise, Several
from framework.federated.workplace import LocalWorkplace
from framework.loaders import World


def net(**arguments):
    torch.manual_seed(0)
    return Net(**arguments)


def test_the_proximal_term_is_that_of_the_paper(make):
    """Against a loop that adds mu / 2 ||w - w0||^2 to the loss, in the order in which the client sees its batches."""
    mu, module = 0.7, net(dropout=0.0, norm=False)
    federation = make(
        copy.deepcopy(module), Points(shuffle=False), clients=1, rounds=1, local_steps=5,
        strategy=flower.FedProx(proximal_mu=mu), partition=InOrder(),
    )  # fmt: skip
    federation.run()
    data, anchor = Points(shuffle=False), [weight.detach().clone() for weight in module.parameters()]
    data.setup()
    optimizer = module.configure_optimizers()
    for (x, y), _ in zip(data.train_dataloader(), range(5), strict=False):
        distance = sum((w - w0).pow(2).sum() for w, w0 in zip(module.parameters(), anchor, strict=True))
        loss = nn.functional.cross_entropy(module(x), y) + mu / 2 * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(federation.server.weights[name], value, rtol=1e-5, atol=1e-6)


class InOrder(IID):
    """Items in their own order."""

    def _owners(self, items, values, clients, rng):
        return torch.arange(items).numpy() * clients // items


def test_clients_see_their_items_skewed_and_evaluate_with_true_labels(make):
    federation = make(
        net(norm=False), skew=Several([Noise(0.5), LabelNoise(0.5, classes=3)]), held_out=0.25, rounds=1, clients=4
    )
    federation.check()
    data = federation.workplace.data
    for client in (0, 3):
        seen = [federation.client.shares.stage(client, training) for training in (True, False)]
        loaders = [stage.apply(data.train_dataloader(), World()) for stage in seen]
        for training, (stage, loader) in enumerate(zip(seen, loaders, strict=True)):
            items = [loader.dataset[i] for i in range(len(stage.indices))]
            x, y = (data.train.tensors[k][stage.indices] for k in (0, 1))
            moved = torch.stack([item[0] for item in items]) - x
            assert moved.std().item() == pytest.approx(0.5 * client / 4, rel=0.4, abs=1e-9)
            wrong = (torch.tensor([int(item[1]) for item in items]) != y).float().mean().item()
            assert (0.2 < wrong < 0.8) if training == 0 else wrong == 0
    federation.run()


class Counting(Callback):
    """Somebody's callback with a state."""

    def __init__(self):
        self.epochs = 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


@pytest.mark.parametrize(("keep", "expected"), [("callbacks", 6), ("everything", 6), ("nothing", None)])
def test_the_state_of_callbacks_lives_with_the_client(make, keep, expected):
    mine = Counting()
    federation = make(rounds=3, local_epochs=2, keep=keep, settings={"callbacks": [mine]})
    federation.run()
    for context in federation.grid.contexts:
        if expected is None:
            assert not context.state
            continue
        (record,) = context.state.config_records.values()
        state = torch.load(io.BytesIO(record["state"]), weights_only=True)
        state = state.get("callbacks", state)
        assert state["Counting"] == {"epochs": expected}
    assert mine.epochs == 0  # it was copied for each message


def test_the_weights_of_a_message_do_not_wait_for_the_garbage_collector(make, monkeypatch):
    """A module and its trainer refer to each other; a federation of large modules would fill the memory with them."""
    made = []
    original = LocalWorkplace.module
    monkeypatch.setattr(LocalWorkplace, "module", lambda self: made.append(original(self)) or made[-1])
    federation = make(net(optimizer="adam", lr=0.01), rounds=2, held_out=0.25, keep="everything")
    federation.run()
    used = [module for module in made if module is not federation.module and module._trainer is not None]
    assert len(used) >= 12  # training and evaluation of three clients in two rounds
    for module in used:
        trainer = module._trainer
        held = [*module.parameters(), *module.buffers(), *(each.grad for each in module.parameters())]
        held += [value for each in trainer.optimizers for state in each.state.values() for value in state.values()]
        assert sum(each.numel() for each in held if each is not None) == 0


def test_a_saved_partition_divides_again_as_it_did(make, tmp_path):
    first = make(partition=Dirichlet(0.5, min_items=9), held_out=0.2, rounds=1, directory="first")
    first.run()
    again = make(partition=FromFile(str(tmp_path / "first" / "partition.npz")), directory="again", rounds=1)
    again.run()
    for name in ("train", "held_out"):
        pairs = zip(getattr(first.client.shares, name), getattr(again.client.shares, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(value, again.server.weights[key]) for key, value in first.server.weights.items())
    assert (tmp_path / "first" / "partition.png").stat().st_size > 1000


def test_a_partition_of_the_whole_data_set_is_cut_to_what_is_trained_on(make, tmp_path):
    class Part(Points):
        def setup(self, stage=None):
            super().setup(stage)
            self.train = Subset(self.train, list(range(95, 15, -1)))  # 80 of the 96, in another order

    parts = [torch.arange(client, 96, 3) for client in range(3)]
    save(tmp_path / "whole.npz", parts)
    federation = make(net(norm=False), Part(), partition=FromFile(str(tmp_path / "whole.npz")))
    federation.check()
    for client, part in enumerate(federation.client.shares.train):
        found = sorted(95 - int(i) for i in part)
        assert found == [int(i) for i in parts[client] if 15 < i <= 95]


def test_half_precision_and_integers_travel(tmp_path):
    state = {"h": torch.randn(3).bfloat16(), "n": torch.tensor(5), "b": torch.tensor([True, False])}
    back = wire.cast_like(wire.unpack(wire.pack(state)), state)
    assert back["h"].dtype == torch.float32
    torch.testing.assert_close(back["h"], state["h"].float())
    assert torch.equal(back["n"], state["n"])
    assert back["n"].shape == ()
    assert torch.equal(wire.cast_like({"n": torch.tensor(4.6, dtype=torch.float64)}, state)["n"], torch.tensor(5))


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4), 0


def test_what_cannot_be_divided_is_refused_by_name(make):
    class Endless(Points):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=8)

    class One(Points):
        def setup(self, stage=None):
            super().setup(stage)
            self.train.tensors = tuple(each[:1] for each in self.train.tensors)

    with pytest.raises(TypeError, match="Stream is an IterableDataset"):
        make(data=Endless()).check()
    with pytest.raises(ValueError, match="TensorDataset cannot be divided among 3 clients: it is one item"):
        make(data=One()).check()
    with pytest.raises(ValueError, match=r"more clients \(97\) than items \(96\)"):
        make(clients=97).check()


def test_a_trainer_that_no_client_can_have_is_refused():
    for settings, words in (
        ({"devices": 2}, "trainer.devices must be 1 in a federation, got 2"),
        ({"num_nodes": 2}, "trainer.num_nodes must be 1 in a federation, got 2"),
        ({"barebones": True}, "trainer.barebones must be false"),
    ):
        with pytest.raises(ValueError, match=words):
            LocalWorkplace(Net(), Points(), settings, 0)
