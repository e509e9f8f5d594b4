"""Clients with privacy budgets of their own: accounting over rounds, refusals, what is sent and what is not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from federation_net import Net, Points
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework.federated.client import PRIVACY
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.noise_aware import EqualWeights, Oracle, RobustHDP, WeiAvg
from framework.federated.partition import Quantity
from framework.federated.privacy_ledger import Ledger, LedgerFile, noise_energy, spent
from framework.federated.selective import SelectiveFedAvg
from framework.privacy.accounting import epsilon_after, epsilon_spent, make_accountant, noise_multiplier
from framework.privacy.dp_sgd import DPSGD
from scripts.experiments.robust_hdp import accuracy_figure, clients

QUICK = {"delta": 1e-3, "accountant": "classic_rdp"}
"""Integer orders alone: other accountants take a second for a search."""


def net(norm=False, **arguments):
    torch.manual_seed(0)
    return Net(norm=norm, **arguments)


@pytest.fixture
def begin(make):
    """Three clients with 32 points each, batches of 8: four steps an epoch."""

    def begun(directory="run", module=None, privacy=None, **federation):
        privacy = ClientPrivacy(**{**QUICK, "epsilon": [2.0, 4.0, 8.0], **(privacy or {})})
        return make(module or net(), directory=directory, privacy=privacy, **federation)

    return begun


def ledgers(federation):
    return [context.state.config_records.get(PRIVACY) for context in federation.grid.contexts]


def same(first, second):
    return all(torch.equal(value, second.server.weights[key]) for key, value in first.server.weights.items())


def test_the_rounds_of_a_client_spend_what_one_long_fit_spends_and_no_more_than_its_budget(begin):
    federation = begin(rounds=3, local_epochs=2)
    federation.run()
    for epsilon, state in zip((2.0, 4.0, 8.0), ledgers(federation), strict=True):
        (noise,), (rate,) = state["noise"], state["rate"]  # equal steps are one entry
        assert rate == 8 / 32
        assert state["steps"] == [3 * 2 * 4]
        assert noise == noise_multiplier(epsilon, 1e-3, 8 / 32, 24, "classic_rdp")
        assert 0.98 * epsilon < spent(state) <= epsilon
        whole = DPSGD(delta=1e-3, noise_multiplier=noise, accountant="classic_rdp", batch_size=8, seed=1)
        trainer = Trainer(
            max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, callbacks=[whole],
        )  # fmt: skip
        data = Points()
        data.setup()
        trainer.fit(net(), DataLoader(TensorDataset(*data.train[:32]), batch_size=8))
        assert whole.epsilon_spent == pytest.approx(spent(state), rel=1e-12)


def test_only_rounds_taken_part_in_count(begin):
    federation = begin(rounds=4, fraction=0.7, clients=3, local_steps=5)
    federation.run()
    rounds = [0, 0, 0]
    for report in federation.history[1:]:
        for each in report.used:
            rounds[each.client] += 1
    assert sum(rounds) == 4 * 2
    for count, epsilon, state in zip(rounds, (2.0, 4.0, 8.0), ledgers(federation), strict=True):
        assert sum(state["steps"]) == 5 * count
        assert state["planned"] == 4 * 5
        assert spent(state) < epsilon or count == 4


def test_a_client_refuses_to_overspend_and_the_federation_goes_on_without_it(begin):
    first = begin(rounds=2, strategy=EqualWeights())
    first.run()
    more = begin(rounds=4, strategy=EqualWeights(), quorum=0.0, privacy={"epsilon": [2.0, 4.0, 8.0]})
    assert more.resume() == 2
    roomy = dict(ledgers(more)[1]) | {"planned": 100}  # as if it had been planned for more rounds
    more.grid.contexts[1].state[PRIVACY] = ConfigRecord(roomy | {"epsilon": 4.0})
    before = [dict(state) for state in ledgers(more)]
    more.run()
    for report in more.history:
        assert [each.outcome for each in report.clients] == ["refused", "used", "refused"]
        assert report.clients[0].detail == "another round would pass its privacy budget"
        assert [each.weight for each in report.clients] == [None, 1.0, None]
        assert report.clients[0].up == 0
    assert [dict(state) for state in (ledgers(more)[0], ledgers(more)[2])] == [before[0], before[2]]


def test_when_everybody_refuses_the_round_says_so(begin):
    begin(rounds=1).run()
    more = begin(rounds=2)
    more.resume()
    with pytest.raises(RuntimeError, match=r"client 0 refused .another round would pass its privacy budget"):
        more.run()


def test_nothing_private_is_sent_unless_the_strategy_asks(begin, tmp_path):
    told = {"epsilon": "declared-epsilon", "noise": "noise-energy"}
    for strategy in (FedAvg(), RobustHDP(), WeiAvg(), Oracle()):
        federation = begin(type(strategy).__name__, rounds=1, strategy=strategy)
        replies, own = [], federation.grid.send_and_receive
        federation.grid.send_and_receive = lambda *a, own=own, replies=replies, **k: [
            replies.append(reply) or reply for reply in own(*a, **k)
        ]
        federation.run()
        assert len(replies) == 3
        needs = getattr(strategy, "needs", "")
        for reply in replies:
            assert set(reply.content) == {"arrays", "metrics"}
            assert set(reply.content["metrics"]) == {"num-examples"} | ({told[needs]} if needs else set())
    federation = begin("clock", rounds=1, systems=_systems())
    federation.run()
    assert federation.history[-1].clients[0].seconds > 0


def _systems():
    from framework.federated.systems import Systems

    return Systems()


def test_false_epsilons_leave_robust_hdp_as_it_is_to_the_bit(begin):
    for strategy, equal in ((RobustHDP, True), (WeiAvg, False)):
        pair = [
            begin(f"{strategy.__name__}{liars}", strategy=strategy(), rounds=2, privacy={"liars": liars})
            for liars in (0, 1)
        ]
        for each in pair:
            each.run()
        assert same(*pair) == equal
    weights = [each.weight for each in pair[1].history[-1].clients]
    np.testing.assert_allclose(weights, np.array([10.0, 4.0, 8.0]) / 22)


def test_the_energy_that_is_told_is_that_of_the_noise(make):
    """Weights of a module whose gradient is zero: what is sent is noise alone."""

    class Still(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2500)

        def training_step(self, batch, batch_idx):
            return (self.layer(batch[0]) * 0).sum(1).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    privacy = ClientPrivacy(**QUICK, epsilon=[1.0, 4.0, 2.0], batch_size=[8, 16, 7], max_grad_norm=3.0)
    federation = make(Still(), rounds=1, privacy=privacy, local_epochs=2)
    start = {key: value.clone() for key, value in federation.server.weights.items()}
    sent, own = {}, federation.grid.send_and_receive

    def watched(*args, **settings):
        for reply in own(*args, **settings):
            arrays = {key: torch.from_numpy(value.numpy().copy()) for key, value in reply.content["arrays"].items()}
            change = sum(float((arrays[key] - start[key]).double().square().sum()) for key in arrays)
            sent[reply.metadata.src_node_id - 2] = change
            yield reply

    federation.grid.send_and_receive = watched
    federation.run()
    for client, (state, size) in enumerate(zip(ledgers(federation), (8, 16, 7), strict=True)):
        steps = 2 * -(-32 // size)
        predicted = noise_energy(steps, 0.1, 12500, 3.0, state["noise_multiplier"], size)
        assert state["energy"] == pytest.approx(predicted)
        assert sent[client] == pytest.approx(predicted, rel=0.05)


class Decays(Net):
    """Its learning rate is 0 after one epoch."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)]


def test_the_energy_is_that_of_the_rates_that_were_used(begin):
    federation = begin(module=Decays(norm=False), rounds=1, strategy=Oracle(), local_epochs=2)
    federation.run()
    weights = sum(weight.numel() for weight in Decays(norm=False).parameters())
    for state in ledgers(federation):
        first = noise_energy(4, 0.1, weights, 1.0, state["noise_multiplier"], 8)  # the second epoch adds nothing
        assert state["energy"] == pytest.approx(first)


class Watches(Callback):
    """Keeps the gradients that it sees."""

    seen: ClassVar[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        self.seen.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))


def test_callbacks_see_private_gradients(begin, make):
    Watches.seen.clear()
    federation = begin(rounds=1, settings={"callbacks": [Watches()]}, privacy={"max_grad_norm": 1e-6})
    federation.run()
    assert len(Watches.seen) == 3 * 4
    assert 0 < max(Watches.seen) < 1e-4  # of their own they are a thousand times as large


def test_a_killed_federation_goes_on_bit_by_bit_and_counts_every_step_once(begin):
    arguments = {"strategy": None, "fraction": 0.7, "privacy": {"batch_size": [8, 4, 16]}}
    whole = begin("whole", rounds=4, **{**arguments, "strategy": RobustHDP(refresh_every=2)})
    whole.run()
    # Rounds may change from one start to the next; noise is planned for all of them from the beginning.
    part = begin("part", rounds=4, **{**arguments, "strategy": RobustHDP(refresh_every=2)})
    _stop_after(part, 2)
    again = begin("part", rounds=4, **{**arguments, "strategy": RobustHDP(refresh_every=2)})
    assert again.resume() == 2
    again.run()
    assert same(whole, again)
    assert [dict(each) for each in ledgers(whole)] == [dict(each) for each in ledgers(again)]


def _stop_after(federation, rounds):
    own = federation.server.train

    def train(server_round):
        if server_round > rounds:
            raise KeyboardInterrupt
        return own(server_round)

    federation.server.train = train
    with pytest.raises(KeyboardInterrupt):
        federation.run()


def test_noise_is_never_the_same_twice(begin):
    """Neither of two clients, nor of two rounds; but the same in a repeated run, and another one if it is secret."""
    changes = {}
    for name, secret in (("first", False), ("repeated", None), ("secret", True)):
        federation = begin(name, rounds=2, clients=3, privacy={"secret": secret, "epsilon": 0.5})
        before = {key: value.clone() for key, value in federation.server.weights.items()}
        federation.run()
        changes[name] = federation.server.weights["head.weight"] - before["head.weight"]
    assert torch.equal(changes["first"], changes["repeated"])
    assert not torch.equal(changes["first"], changes["secret"])
    one = begin("one", rounds=2, clients=1, privacy={"epsilon": 0.2}, module=_flat())
    steps = []
    for number in (1, 2):
        before = one.server.weights["head.bias"].clone()
        one.server.train(number)
        steps.append(one.server.weights["head.bias"] - before)
    assert not torch.allclose(steps[0], steps[1], rtol=0.1)


def _flat():
    return net(dropout=0.0, lr=1e-4)


def test_on_nodes_of_a_deployment_noise_is_secret(begin):
    federation = begin()
    assert federation.client._privacy_seed(0) is not None
    assert federation.client._privacy_seed(0) != federation.client._privacy_seed(1)
    federation.workplace.fingerprint = "abc"
    assert federation.client._privacy_seed(0) is None


def test_the_smallest_budget_for_all(begin):
    federation = begin(rounds=1, privacy={"minimum": True, "batch_size": [8, 8, 4]})
    federation.run()
    found = [state["noise_multiplier"] for state in ledgers(federation)]
    assert found[0] == found[1] != found[2]
    assert {state["epsilon"] for state in ledgers(federation)} == {2.0}


def test_a_run_leaves_what_was_spent_and_a_picture(begin, tmp_path):
    federation = begin(rounds=2, strategy=RobustHDP(), held_out=0.2)
    federation.run()
    rows = json.loads((tmp_path / "run" / "clients_privacy.json").read_text())
    assert [row["client"] for row in rows] == [0, 1, 2]
    for row, epsilon in zip(rows, (2.0, 4.0, 8.0), strict=True):
        assert row["spent"] <= row["epsilon"] == epsilon
        assert row["steps"] == 2 * 4
        assert row["estimated"] > 0
        assert 0 < row["weight"] < 1
    assert (tmp_path / "run" / "clients_privacy.png").stat().st_size > 5000
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").open()]
    assert [each["weight"] for each in records[2]["clients"]] == [row["weight"] for row in rows]
    found = clients(tmp_path / "run")  # what experiments record
    assert {"last/accuracy", "privacy/spent", "weights/distance", "noise/correlation"} <= set(found["metrics"])
    assert 0.9 < found["metrics"]["privacy/spent"] <= 1
    assert list(found["curves"]["round"]) == [1, 2]
    plain = begin("plain", rounds=1)
    plain.run()
    assert json.loads((tmp_path / "plain" / "clients_privacy.json").read_text())[0]["weight"] is None


def test_accuracy_is_drawn_for_all_arms():
    curve = {"round": [1, 2], "value": [0.5, 0.75]}
    records = [SimpleNamespace(row=row, curves=curve) for row in ("Oracle", "Oracle", "Robust-HDP", "another")]
    (axes,) = accuracy_figure(records).axes
    assert [line.get_label() for line in axes.get_lines()] == ["Oracle", "Robust-HDP"]
    assert list(axes.get_lines()[0].get_ydata()) == [50, 75]


def test_what_cannot_be_private_is_refused_before_anything_is_written(begin, make, tmp_path):
    with pytest.raises(ValueError, match=r"BatchNorm1d. of Net mixes the examples of a batch"):
        begin("norm", module=net(norm=True)).run()
    with pytest.raises(ValueError, match="batch_size of client 0 must be at most its 32 items, got 33"):
        begin("large", privacy={"batch_size": 33}).run()
    assert not list((tmp_path / "norm").iterdir())
    assert not list((tmp_path / "large").iterdir())
    with pytest.raises(ValueError, match=r"keep must be callbacks or nothing with federation.privacy, got everything"):
        begin(keep="everything")
    with pytest.raises(ValueError, match=r"federation.privacy does not go with SelectiveFedAvg"):
        begin(strategy=SelectiveFedAvg())
    with pytest.raises(ValueError, match="gradient_clip_val must be none with differential privacy"):
        make(net(), privacy=ClientPrivacy(), settings={"gradient_clip_val": 1.0}, directory="clip").run()


def test_a_delta_that_allows_to_publish_an_example_is_warned_of(begin, caplog):
    with caplog.at_level("WARNING"):
        begin(privacy={"delta": 0.05}).check()
    assert "delta of 3 clients (the first is 0) is not below one over their number of items" in caplog.text


def test_unequal_clients_have_rates_of_their_own(begin):
    federation = begin(rounds=1, partition=Quantity(1.0, min_items=12), privacy={"batch_size": [4, 8, 12]})
    federation.run()
    for part, size, state in zip(federation.client.shares.train, (4, 8, 12), ledgers(federation), strict=True):
        assert state["rate"] == [size / len(part)]
        assert state["steps"] == [-(-len(part) // size)]


def test_a_ledger_keeps_its_budget_and_its_accountant():
    privacy = ClientPrivacy(**QUICK, epsilon=2.0)
    first = Ledger(privacy, 0, 3, 32, 8, 4, 2)
    assert first.refusal() == ""
    record = ConfigRecord({
        "epsilon": 2.0, "delta": 1e-3, "planned": 8, "noise_multiplier": first.noise, "mechanism": "classic_rdp",
        "noise": [first.noise], "rate": [0.25], "steps": [8], "energy": 1.0,
    })  # fmt: skip
    assert Ledger(privacy, 0, 3, 32, 8, 4, 2, record).refusal()
    with pytest.raises(ValueError, match="client 0 began with another privacy budget"):
        Ledger(ClientPrivacy(**QUICK, epsilon=3.0), 0, 3, 32, 8, 4, 2, record)
    with pytest.raises(ValueError, match="accountant prv cannot go on from a history of accountant classic_rdp"):
        Ledger(ClientPrivacy(epsilon=2.0, delta=1e-3, accountant="prv"), 0, 3, 32, 8, 4, 2, record)
    # Another rate than planned: what counts is what the accountant says, not the number of steps.
    other = Ledger(privacy, 0, 3, 64, 8, 4, 2, ConfigRecord(dict(record) | {"steps": [4]}))
    accountant = make_accountant("classic_rdp")
    accountant.history = [(first.noise, 0.25, 4)]
    assert epsilon_after(accountant, first.noise, 8 / 64, 4, 1e-3) < 2
    assert other.refusal() == ""
    assert epsilon_spent(accountant, 1e-3) < 2


def test_a_ledger_file_makes_a_budget_one_for_all_runs(begin, tmp_path):
    """A run, a node that lost its state in the middle of it, and a second run on the same data."""
    file = {"ledger": str(tmp_path / "ledger")}
    plain = begin(rounds=3, directory="plain")
    plain.run()
    kept = begin(rounds=3, directory="kept", privacy=file)
    fit, messages = kept.client._fit, []

    def forgetful(module, partition, config, context, ledger=None):
        metrics = fit(module, partition, config, context, ledger)
        messages.append(partition)
        context.state.config_records.pop(PRIVACY)  # as Flower does when a SuperNode ends
        return metrics

    kept.client._fit = forgetful
    kept.run()
    assert len(messages) == 9
    for client, state in enumerate(ledgers(plain)):
        stored = LedgerFile(file["ledger"], client).read()
        assert dict(stored) == dict(state)  # to the bit: numbers survive the file
    again = begin(rounds=3, directory="again", privacy=file)
    with pytest.raises(RuntimeError, match="privacy budget"):
        again.run()
    for client, state in enumerate(ledgers(plain)):
        assert dict(LedgerFile(file["ledger"], client).read()) == dict(state)


def test_a_ledger_file_that_cannot_be_read_is_never_taken_for_an_unspent_budget(tmp_path):
    privacy, file = ClientPrivacy(**QUICK, epsilon=2.0), LedgerFile(tmp_path, 0)
    lists = (
        '{"epsilon": 2.0, "delta": 0.001, "planned": 8, "noise_multiplier": 1.0, "energy": 1.0, "mechanism": "rdp", '
    )
    for text in (
        '{"epsilon": 2.0', "[1, 2]", '{"epsilon": 2.0, "noise": {}}', '{"epsilon": 2.0}',
        lists + '"noise": [], "rate": [], "steps": []}', lists + '"noise": [1.0], "rate": [0.5, 0.5], "steps": [4]}',
    ):  # fmt: skip
        file.path.write_text(text)
        with pytest.raises(ValueError, match=r"client-0.json is no ledger of privacy"):
            Ledger(privacy, 0, 3, 32, 8, 4, 2, file=file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epsilon": -1.0}, "the epsilon of client 0 must be positive and finite, got -1.0"),
        ({"epsilon": [1.0, 2.0]}, "there must be one epsilon for each of the 10 clients, got 2"),
        ({"epsilon": "Dist4"}, "Dist4 is for 20, 40 or 60 clients, got 10"),
        ({"delta": 1.0}, r"federation.privacy.delta must be in \(0, 1\), got 1.0"),
        ({"delta": [0.1]}, "one delta for each of the 10 clients, got 1"),
        ({"batch_size": 0}, "the batch size of client 0 must be positive"),
        ({"max_grad_norm": 0.0}, "federation.privacy.max_grad_norm must be positive"),
        ({"accountant": "gdp"}, "federation.privacy.accountant must be one of rdp, prv, classic_rdp, got 'gdp'"),
        ({"liars": 11}, r"federation.privacy.liars must be in \[0, 10\], got 11"),
        ({"max_physical_batch": 0}, "federation.privacy.max_physical_batch must be at least 1, got 0"),
        ({"grad_sample_mode": "gost"}, "federation.privacy.grad_sample_mode must be hooks or ghost, got 'gost'"),
        ({"lie": -1.0}, "federation.privacy.lie must be positive"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(arguments, words):
    from framework.federated.settings import Federation

    with pytest.raises(ValueError, match=words):
        Federation(privacy=ClientPrivacy(**arguments))


def test_declarations():
    privacy = ClientPrivacy(epsilon=[3.0, 1.0, 2.0], liars=2, lie=9.0)
    assert [privacy.declares(client, 3) for client in range(3)] == [3.0, 9.0, 9.0]
    assert [privacy.budget(client, 3)[0] for client in range(3)] == [3.0, 1.0, 2.0]
    told = ClientPrivacy(epsilon=[3.0, 1.0, 2.0], declared=[1.0, 1.0, 5.0])
    assert [told.declares(client, 3) for client in range(3)] == [1.0, 1.0, 5.0]


def test_settings_do_not_import_opacus():
    import subprocess
    import sys

    code = "import sys, framework.federated.run; assert not {'opacus', 'sklearn.mixture'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
