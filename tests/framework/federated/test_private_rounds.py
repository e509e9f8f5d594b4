"""What private clients send and say, what is refused before they begin, and federations of them as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command_line import fails
from federation_net import Net, Points
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import strategy as flower
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework.cli import run
from framework.commands import flower as apps
from framework.federated.client import PRIVACY
from framework.federated.client_privacy import ClientPrivacy
from framework.federated.grid import SerialGrid, node_of
from framework.federated.ledger_file import default_folder
from framework.federated.noise_aware import EqualWeights, Oracle, RobustHDP, WeiAvg
from framework.federated.partition import Dirichlet
from framework.federated.privacy_ledger import spent
from framework.federated.private_rounds import with_noise
from framework.federated.settings import Federation
from framework.federated.wire import pack
from framework.privacy.dp_sgd import DPSGD
from modules.resnet import ResNet

QUICK = {"delta": 1e-3, "accountant": "classic_rdp"}


def net(kind=Net, **arguments):
    torch.manual_seed(0)
    return kind(norm=False, **arguments)


@pytest.fixture
def begin(make):
    def begun(directory="run", module=None, privacy=None, **federation):
        settings = ClientPrivacy(**{**QUICK, "epsilon": [2.0, 4.0, 8.0], **(privacy or {})})
        return make(module or net(), directory=directory, privacy=settings, **federation)

    return begun


class Counts(Net):
    """A buffer that takes up what it is trained on, behind the back of the loss."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.register_buffer("sums", torch.zeros(4))
        self.register_buffer("still", torch.ones(2))
        self.still_frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.sums += batch[0].sum(0)


def test_what_has_no_noise_goes_back_as_it_came_and_is_named_once(begin, caplog):
    federation = begin(module=net(Counts), rounds=2)
    with caplog.at_level("WARNING"):
        federation.run()
    assert torch.equal(federation.server.weights["sums"], torch.zeros(4))
    for client in range(3):
        assert caplog.text.count(f"client {client}: sums changed in training without noise") == 1
    plain = begin("plain", module=net(Counts), rounds=1)
    plain.federation.privacy = None  # without privacy buffers are averaged as before
    plain.run()
    assert plain.server.weights["sums"].any()


def test_tied_weights_are_trained_under_all_their_names():
    class Tied(Net):
        def __init__(self):
            super().__init__(norm=False)
            self.again = self.head

    module = Tied()
    received = pack(module.state_dict())
    with torch.no_grad():
        module.head.weight.add_(1)
    sent, changed = with_noise(pack(module.state_dict()), received, module)
    assert changed == []
    assert list(sent) == list(received)
    for key in ("head.weight", "again.weight"):
        assert (sent[key].numpy() == received[key].numpy() + 1).all()


def test_errors_of_clients_tell_a_server_elsewhere_nothing(begin, caplog):
    federation = begin(rounds=1, fail_fast=False, quorum=0.0)

    def failing(*args, **settings):
        raise ValueError("no noise keeps epsilon=0.123")

    federation.client._fit = federation.client._evaluate = failing
    report = federation.server.train
    with pytest.raises(RuntimeError, match="0 of 3 replies") as told:
        report(1)
    assert "epsilon=0.123" in str(told.value)  # a simulation is all the user's own
    federation.workplace.fingerprint = "abc"
    with caplog.at_level("ERROR"), pytest.raises(RuntimeError, match="0 of 3 replies") as told:
        report(1)
    assert "private training failed; the reason is in the client's log" in str(told.value)
    assert "0.123" not in str(told.value)
    assert "client 0: ValueError: no noise keeps epsilon=0.123" in caplog.text
    caplog.clear()
    with caplog.at_level("ERROR"):
        federation.server.evaluate(1)
    assert "client 2: ValueError: no noise keeps epsilon=0.123" in caplog.text


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_clients_could_not_train_is_refused_before_anything_is_written(begin, make, tmp_path):
    class ByHand(Net):
        def __init__(self, norm=False):
            super().__init__(norm=norm)
            self.automatic_optimization = False

    settings = {"accumulate_grad_batches": 2}
    for name, arguments, words in (
        ("norm", {"module": Net(norm=True)}, "replaces no layers, so replace it in the module .BatchNorm by GroupNorm"),
        ("hand", {"module": ByHand()}, "ByHand optimises by hand"),
        ("pieces", {"settings": settings}, "trainer.accumulate_grad_batches must be 1 with differential privacy"),
        ("budget", {"privacy": {"epsilon": 1e-4}}, "federation.privacy of client 0: no noise keeps epsilon=0.0001"),
        ("prv", {"privacy": {"epsilon": 1e-6, "accountant": "prv"}}, "client 0: no noise keeps .* accountant prv"),
    ):
        with pytest.raises(ValueError, match=words) as told:
            begin(name, **arguments).run()
        assert "fix: true" not in str(told.value)
        assert not list((tmp_path / name).iterdir())
    begin("quick", privacy={"accountant": "prv"}).check()  # what rdp can keep, prv can: nothing is solved with it
    for more in ({}, {"privacy": ClientPrivacy()}):
        with pytest.raises(ValueError, match=r"must be without DPSGD in a federation.*set federation.privacy"):
            make(net(), settings={"callbacks": [DPSGD(epsilon=1.0)]}, **more)


def test_what_wraps_a_strategy_that_looks_at_updates_is_refused():
    wrapper = flower.DifferentialPrivacyServerSideFixedClipping
    for inner in (RobustHDP(), WeiAvg(), Oracle()):
        with pytest.raises(ValueError, match=f"{wrapper.__name__} cannot wrap {type(inner).__name__}"):
            Federation(strategy=wrapper(inner, 0.0, 100.0, 3), privacy=ClientPrivacy())
    assert Federation(strategy=wrapper(flower.FedAvg(), 0.0, 100.0, 3))


def test_a_state_of_another_strategy_is_refused_by_name(begin):
    begin(rounds=1).run()
    with pytest.raises(ValueError, match=r"federation.strategy is RobustHDP, but .* was trained with FedAvg"):
        begin(rounds=2, strategy=RobustHDP()).resume()
    assert begin(rounds=2).resume() == 1
    with pytest.raises(ValueError, match="another strategy has left it"):  # of an earlier release
        RobustHDP().load_state_dict({})


# -- federations ------------------------------------------------------------------------------------------------------


class Many(Points):
    """160 points: eight for each of twenty clients."""

    def setup(self, stage=None):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(190, 4, generator=draw)
        y = (x @ torch.randn(4, 3, generator=draw)).argmax(1)
        self.train, self.val = TensorDataset(x[:160], y[:160]), TensorDataset(x[160:], y[160:])


def test_five_liars_of_twenty_move_weiavg_and_not_robust_hdp(make):
    for strategy, equal in ((RobustHDP, True), (WeiAvg, False)):
        pair = []
        for liars in (0, 5):
            privacy = ClientPrivacy(**QUICK, epsilon="Dist4", batch_size=4, liars=liars)
            pair.append(
                make(
                    net(), Many(), directory=f"{strategy.__name__}{liars}", clients=20, strategy=strategy(),
                    privacy=privacy, evaluate_every=0,
                )
            )  # fmt: skip
            pair[-1].run()
        first, second = (each.server.weights for each in pair)
        assert all(torch.equal(value, second[key]) for key, value in first.items()) == equal
        weights = [np.array([each.weight for each in run.history[-1].clients]) for run in pair]
        assert np.array_equal(*weights) == equal
    strictest = np.argsort(weights[0])[:5]
    assert (weights[1][strictest] == weights[1].max()).all()  # who lies has the most


def test_clients_with_unlike_classes_keep_budgets_of_their_own(begin):
    federation = begin(
        rounds=2, partition=Dirichlet(0.5, min_items=10), privacy={"batch_size": [4, 6, 8]}, strategy=EqualWeights()
    )
    federation.run()
    sizes = [len(part) for part in federation.client.shares.train]
    assert len(set(sizes)) > 1
    for context, items, size, epsilon in zip(federation.grid.contexts, sizes, (4, 6, 8), (2.0, 4.0, 8.0), strict=True):
        record = context.state.config_records[PRIVACY]
        assert record["rate"] == [size / items]
        assert record["steps"] == [2 * -(-items // size)]
        assert 0.95 * epsilon < spent(record) <= epsilon


class Tiles(LightningDataModule):
    """48 images of 16 x 16 in one channel."""

    def setup(self, stage=None):
        draw = torch.Generator().manual_seed(0)
        self.train = TensorDataset(torch.randn(48, 1, 16, 16, generator=draw), torch.arange(48) % 3)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4)


class Residual(Net):
    def __init__(self, norm=False):
        super().__init__(norm=norm)
        del self.body, self.drop
        self.head = ResNet(classes=3, channels=1)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_a_residual_network_trains_with_privacy(make, mode):
    privacy = ClientPrivacy(**QUICK, epsilon=[4.0, 8.0, 8.0], grad_sample_mode=mode, max_physical_batch=4)
    federation = make(
        net(Residual), Tiles(), rounds=1, local_steps=1, strategy=RobustHDP(), privacy=privacy, evaluate_every=0
    )
    before = {key: value.clone() for key, value in federation.server.weights.items()}
    federation.run()
    assert len(federation.history[-1].used) == 3
    for key, value in federation.server.weights.items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[key])


def test_another_accountant_for_a_federation_that_goes_on_is_one_line(project, capsys):
    arguments = [
        "-c", "base.yaml", "--federation.clients", "2", "--federation.privacy.epsilon", "2",
        "--federation.privacy.delta", "1e-2", "--federation.privacy.batch_size", "4", "--name", "again",
    ]  # fmt: skip
    run(["federate", *arguments, "--federation.rounds", "1", "--federation.privacy.accountant", "classic_rdp"])
    line = fails(
        capsys, "federate", *arguments, "--federation.rounds", "2", "--federation.privacy.accountant", "rdp",
        "--ckpt_path", "last",
    )  # fmt: skip
    assert "accountant is rdp, but the run to resume" in line
    assert "was trained with classic_rdp" in line


@pytest.mark.parametrize("shared", ["", "--federation.privacy.epsilon 50 --federation.privacy.secret false"])
def test_a_node_says_itself_what_protects_its_data(project, monkeypatch, shared):
    monkeypatch.syspath_prepend(str(project.folder))
    apps.client_of.cache_clear()
    own = (
        "--federation.privacy.epsilon 3 --federation.privacy.delta 1e-2 --federation.privacy.secret true "
        "--federation.privacy.batch_size 4"
    )
    run_config = {"arguments": f"-c base.yaml --federation.clients 3 {shared}"}
    context = Context(9, 2, {"partition-id": 1, "arguments": own}, RecordDict(), run_config)
    client = apps._of_run(context)
    plain = apps._of_run(Context(9, 3, {"partition-id": 0}, RecordDict(), run_config))
    assert client._workplace.fingerprint == plain._workplace.fingerprint
    assert client._privacy_seed(1) is None
    grid = SerialGrid(client.app(), 3)
    grid.contexts[1] = context
    content = {"arrays": pack(client._workplace.module().state_dict()), "config": ConfigRecord({"server-round": 1})}
    (reply,) = grid.send_and_receive([Message(RecordDict(content), node_of(1), "train")])
    assert set(reply.content["metrics"]) == {"num-examples"}
    assert context.state.config_records[PRIVACY]["epsilon"] == 3.0
    assert default_folder(9).joinpath("client-1.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--federation.privacy.epsilon", "1e-4", "--federation.privacy.delta", "1e-6"],
            "federation.privacy of client 0: no noise keeps epsilon=0.0001 at delta=1e-06",
        ),
        (["--trainer.gradient_clip_val", "1"], "trainer.gradient_clip_val must be none with differential privacy"),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches must be 1"),
        (["--federation.privacy.planned_rounds", "0"], "federation.privacy.planned_rounds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_private_is_one_line_and_leaves_nothing(project, capsys, arguments, words):
    common = ["--federation.clients", "2", "--federation.privacy.delta", "1e-2", "--federation.privacy.batch_size", "4"]
    assert words in fails(capsys, "federate", "-c", "base.yaml", *common, *arguments)
    assert not project.files()


def test_the_callback_is_refused_from_the_command_line(project, capsys):
    line = fails(
        capsys, "federate", "-c", "base.yaml", "-c", "overlays/differential_privacy", "--federation.clients", "2"
    )
    assert "trainer.callbacks must be without DifferentialPrivacy in a federation" in line
    assert "set federation.privacy" in line
    assert not project.files()
