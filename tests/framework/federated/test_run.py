"""Whole federations in one process: anchors to plain training, resume, evaluation, records."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from federation_net import Net, Points
from flwr.serverapp import strategy as flower
from lightning.pytorch import Trainer

from framework.federated.partition import Dirichlet
from framework.metrics_log import MetricsLog
from framework.seeding import derive, seed_all


def fitted(module, data, epochs, seed=None):
    """What a plain trainer makes of a module."""
    if seed is not None:
        seed_all(seed)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module.state_dict()


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


def net(**arguments):
    torch.manual_seed(0)
    return Net(**arguments)


def test_one_client_is_plain_training(make):
    """Bitwise, with dropout, batch statistics and shuffling: a federation of one adds nothing."""
    federation = make(net(), clients=1, rounds=1, local_epochs=3)
    federation.run()
    same(federation.server.weights, fitted(net(), Points(), 3, derive(7, "train", 1, 0)))


def test_a_client_that_keeps_everything_trains_one_long_fit(make):
    """Optimiser, schedule and counters go on from round to round; with nothing drawn it is a plain fit."""
    arguments = {"dropout": 0.0, "optimizer": "adam"}
    kept = make(net(**arguments), Points(shuffle=False), clients=1, rounds=3, keep="everything")
    kept.run()
    same(kept.server.weights, fitted(net(**arguments), Points(shuffle=False), 3))
    fresh = make(net(**arguments), Points(shuffle=False), directory="fresh", clients=1, rounds=3)
    fresh.run()
    assert not torch.equal(fresh.server.weights["head.weight"], kept.server.weights["head.weight"])


def test_local_steps_count_optimiser_steps(make):
    federation = make(clients=1, rounds=2, local_steps=5, keep="everything")
    federation.run()
    assert int(federation.server.weights["body.1.num_batches_tracked"]) == 10


@pytest.mark.parametrize("strategy", [flower.FedAvg, flower.FedAdam, flower.FedAvgM])
def test_a_killed_federation_goes_on_bit_by_bit(make, tmp_path, strategy):
    def begin(directory, rounds):
        learned = {"server_momentum": 0.9} if strategy is flower.FedAvgM else {}
        return make(
            net(optimizer="adam"), directory=directory, rounds=rounds, strategy=strategy(**learned), fraction=0.7,
            keep="everything", held_out=0.2, loggers=[MetricsLog(tmp_path / directory)],
        )  # fmt: skip

    whole = begin("whole", 4)
    whole.run()
    begin("parts", 2).run()
    with open(tmp_path / "parts" / "rounds.jsonl", "a") as file:
        file.write('{"round": 3, "clients"')  # the kill fell into the third round
    second = begin("parts", 4)
    assert second.resume() == 2
    second.run()
    same(whole.server.weights, second.server.weights)
    assert second.best == whole.best
    for name in ("metrics.csv",):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    records = [
        [{**json.loads(line), "wall_seconds": 0} for line in (tmp_path / folder / "rounds.jsonl").open()]
        for folder in ("whole", "parts")
    ]
    assert records[0] == records[1]
    assert [record["round"] for record in records[0]] == [0, 1, 2, 3, 4]
    files = [{path.name for path in (tmp_path / folder / "checkpoints").iterdir()} for folder in ("whole", "parts")]
    assert files[0] == files[1] == {"last.ckpt", f"best-round={whole.best[0]}.ckpt"}


def test_resume_without_a_state_begins(make):
    assert make().resume() == 0


def test_the_generators_of_the_caller_stay_as_they_were(make):
    federation = make(held_out=0.2, strategy=flower.FedAvg())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    federation.run()
    after = random.random(), np.random.rand(), torch.rand(1)
    assert before == after


def test_data_are_read_once_however_many_messages_there_are(make):
    data = Points()
    make(data=data, rounds=3).run()
    assert data.set_ups == ["fit"]


def test_clients_evaluate_on_what_they_hold_out(make):
    federation = make(net(norm=False), held_out=0.25, rounds=1, partition=Dirichlet(1.0, min_items=8))
    federation.run()
    module, shares = federation._loaded().eval(), federation.client.shares
    x, y = federation.workplace.data.train.tensors
    hits = [(module(x[part]).argmax(1) == y[part]).float() for part in shares.held_out]
    expected = torch.cat(hits).mean().item()  # weighted by items is over all items
    assert federation.history[-1].metrics["clients/val/accuracy"] == pytest.approx(expected, abs=1e-6)
    assert {int(i) for part in shares.held_out for i in part}.isdisjoint(int(i) for part in shares.train for i in part)


def test_evaluation_happens_when_it_is_asked_for_and_at_the_end(make):
    federation = make(rounds=5, evaluate_every=2)
    federation.run()
    assert [report.round for report in federation.history if "val/accuracy" in report.metrics] == [0, 2, 4, 5]


def test_the_best_round_is_kept_by_the_modules_own_monitor(make, tmp_path):
    federation = make(rounds=4)
    federation.run()
    values = {report.round: report.metrics["val/accuracy"] for report in federation.history if report.round}
    best = max(values, key=values.get)
    assert federation.best == (best, pytest.approx(values[best]))
    saved = torch.load(tmp_path / "run" / "checkpoints" / f"best-round={best}.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == Net().state_dict().keys()
    if best == 4:
        same(saved["state_dict"], federation.server.weights)


def test_the_best_round_can_be_the_clients_choice(make):
    run = make(rounds=4, held_out=0.3, monitor="clients/val/accuracy")
    run.run()
    values = [report.metrics["clients/val/accuracy"] for report in run.history[1:]]
    assert run.best == (1 + values.index(max(values)), max(values))


def test_what_is_private_stays_with_its_client(make):
    federation = make(private=["head"], rounds=2, held_out=0.2)
    federation.run()
    sent = federation.history[-1].clients[0].up
    assert not any(key.startswith("head") for key in federation.server.weights)
    whole = make(directory="whole", rounds=1)
    whole.run()
    assert sent < whole.history[-1].clients[0].up
    heads = [context.state.array_records["private"]["head.weight"].numpy() for context in federation.grid.contexts]
    assert not np.array_equal(heads[0], heads[1])


STRATEGIES = {
    "FedAvg": {}, "FedAvgM": {"server_momentum": 0.9}, "FedAdam": {}, "FedAdagrad": {}, "FedYogi": {}, "FedMedian": {},
    "FedProx": {"proximal_mu": 0.1}, "FedTrimmedAvg": {}, "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4}, "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "train/loss"},
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_flower_runs_by_name(make, name):
    strategy = getattr(flower, name)(**STRATEGIES[name])
    federation = make(net(norm=False), clients=7, rounds=2, strategy=strategy)
    before = {key: value.clone() for key, value in federation.server.weights.items()}
    federation.run()
    for key, value in federation.server.weights.items():
        assert value.dtype == before[key].dtype
        assert torch.isfinite(value).all()
    assert not torch.equal(before["head.weight"], federation.server.weights["head.weight"])


def test_a_module_in_half_precision_travels_wider_and_comes_back(make):
    federation = make(net(norm=False).to(torch.bfloat16), data=HalfPoints(), rounds=1)
    federation.run()
    assert federation.server.weights["head.weight"].dtype == torch.float32
    assert federation._loaded().head.weight.dtype == torch.bfloat16


class HalfPoints(Points):
    def setup(self, stage=None):
        super().setup(stage)
        for part in (self.train, self.val):
            part.tensors = (part.tensors[0].to(torch.bfloat16), part.tensors[1])
