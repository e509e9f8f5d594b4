"""The classifier against closed forms, its behaviour with missing labels, its figures, and two processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau as LightningPlateau
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from modules._classification import Scores, confusion_figure
from modules.classifier import CNN, MLP, Classifier


def quiet(**kwargs) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(off, False), **kwargs})


class Blobs(LightningDataModule):
    """Three Gaussian classes; some labels missing."""

    class_names = ["ash", "birch", "cedar"]

    def __init__(self, count: int = 90, unlabelled: int = 0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(count) % 3
        x = torch.randn(count, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)
        self.x, self.y = x, y.clone()
        self.y[:unlabelled] = -1

    def loader(self, *columns, **kwargs):
        return DataLoader(TensorDataset(*columns), batch_size=7, **kwargs)

    def train_dataloader(self):
        return self.loader(self.x, self.y, shuffle=True)

    def val_dataloader(self):
        return self.loader(self.x, self.y)

    test_dataloader = val_dataloader

    def predict_dataloader(self):
        return self.loader(self.x, self.y, torch.arange(100, 100 + len(self.y)))


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0, verbose=False)


def test_it_learns_and_reports_the_truth():
    module, data = Classifier(4, 3, lr=0.05), Blobs()
    trainer = quiet(max_epochs=8)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    with torch.no_grad():
        logits = module.eval()(data.x)
    predicted = logits.argmax(1)
    assert result["test/accuracy"] == pytest.approx((predicted == data.y).float().mean().item())
    assert result["test/accuracy"] > 0.85
    assert result["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, data.y).item(), rel=1e-5)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for true, guess in zip(data.y, predicted, strict=True):
        counts[true, guess] += 1
    assert torch.equal(module.confusion_counts["test"], counts)
    precision, recall = counts.diag() / counts.sum(0), counts.diag() / counts.sum(1)
    f1 = (2 * precision * recall / (precision + recall)).mean()
    assert result["test/f1"] == pytest.approx(f1.item(), rel=1e-5)


def test_missing_labels_count_nowhere():
    module, data = Classifier(4, 3), Blobs(unlabelled=20)
    (result,) = quiet().test(module, data, verbose=False)
    known = data.y >= 0
    with torch.no_grad():
        logits = module.eval()(data.x[known])
    assert result["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, data.y[known]).item(), rel=1e-5)
    assert result["test/accuracy"] == pytest.approx((logits.argmax(1) == data.y[known]).float().mean().item())
    assert module.confusion_counts["test"].sum() == known.sum()


@given(
    classes=st.integers(2, 6),
    batches=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2**32)), min_size=1, max_size=4),
)
def test_scores_are_those_of_torchmetrics_on_all_items_at_once(classes, batches):
    scores, logits, target, loss = Scores(classes), [], [], 0.0
    for size, seed in batches:
        draw = torch.Generator().manual_seed(seed)
        logits.append(torch.randn(size, classes, generator=draw))
        target.append(torch.randint(-1, classes, (size,), generator=draw))  # -1 is not labelled
        total = nn.functional.cross_entropy(logits[-1], target[-1], ignore_index=-1, reduction="sum")
        scores.update(logits[-1], target[-1], total)
        loss += total.item()
    outputs, truth = torch.cat(logits), torch.cat(target)
    got = scores.compute()
    peers = {
        "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=-1),
        "f1": MulticlassF1Score(classes, average="macro", ignore_index=-1),
        "confusion": MulticlassConfusionMatrix(classes, ignore_index=-1),
    }
    for name, peer in peers.items():
        torch.testing.assert_close(got[name], peer(outputs, truth), msg=name)
    items = int((truth >= 0).sum())
    assert got["loss"].item() == (pytest.approx(loss / items, rel=1e-5) if items else pytest.approx(nan, nan_ok=True))


def test_a_network_of_another_width_is_refused():
    module = Classifier(4, 3, network=nn.Linear(4, 5))
    with pytest.raises(ValueError, match="network gives 5 logits for 3 classes"):
        quiet().fit(module, Blobs())


def test_a_batch_without_any_label_moves_nothing():
    module = Classifier(4, 3)
    loss = nn.functional.cross_entropy(module(torch.randn(5, 4)), torch.full((5,), -1), ignore_index=-1)
    assert loss.isnan(), "what one would get by the mean"
    data = Blobs(unlabelled=90)
    before = [p.clone() for p in module.parameters()]
    sgd = Classifier(4, 3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    sgd.load_state_dict(module.state_dict())
    quiet(limit_val_batches=0).fit(sgd, data)
    assert all(torch.equal(a, b) for a, b in zip(before, sgd.parameters(), strict=True))


def test_predictions_are_columns():
    module, data = Classifier(4, 3), Blobs(unlabelled=3)
    batches = quiet().predict(module, data)
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert list(columns) == ["index", "target", "prediction", "probability"]
    assert columns["index"].tolist() == list(range(100, 190))
    assert columns["target"][:4].tolist() == [-1, -1, -1, 0]
    assert columns["probability"].shape == (90, 3)
    torch.testing.assert_close(columns["probability"].sum(1), torch.ones(90))
    assert torch.equal(columns["prediction"], columns["probability"].argmax(1))


def test_predictions_without_labels():
    (columns,) = quiet().predict(Classifier(4, 2), DataLoader(torch.randn(3, 4), batch_size=3))
    assert list(columns) == ["prediction", "probability"]
    assert columns["prediction"].dtype == torch.int64


def test_the_network_is_a_choice():
    assert isinstance(Classifier(64, 10, network="cnn").network, CNN)
    assert isinstance(Classifier(64, 10).network, MLP)
    own = nn.Linear(5, 3)
    assert Classifier(5, 3, network=own).network is own


def test_logistic_regression_is_no_hidden_layer():
    module = Classifier(4, 3, hidden=[])
    linear = next(layer for layer in module.network if isinstance(layer, nn.Linear))
    x = torch.randn(6, 2, 2)
    torch.testing.assert_close(module(x), x.flatten(1) @ linear.weight.T + linear.bias)


def test_the_cnn_takes_images_flat_or_not():
    network = CNN(3 * 12 * 12, 5, channels=3)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(network(x), network(x.flatten(1)))
    assert network(x).shape == (2, 5)


def test_the_learning_rate_wins_over_the_optimisers_own():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)

    optimizer = Classifier(4, 3, lr=0.01, optimizer=sgd).configure_optimizers()
    assert (optimizer.defaults["momentum"], optimizer.param_groups[0]["lr"]) == (0.9, 0.01)
    assert Classifier(4, 3, optimizer=sgd).configure_optimizers().param_groups[0]["lr"] == 0.5


def test_a_scheduler_steps_once_per_epoch():
    module = Classifier(4, 3, lr=1.0, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    trainer = quiet(max_epochs=3)
    trainer.fit(module, Blobs())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**3)


def test_a_plateau_scheduler_watches_the_monitor():
    module = Classifier(4, 3, scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max"))
    trainer = quiet(max_epochs=2)
    trainer.fit(module, Blobs())
    assert trainer.lr_scheduler_configs[0].scheduler.best == pytest.approx(
        trainer.callback_metrics["val/accuracy"].item(), abs=0.2
    )


def test_a_plateau_scheduler_that_waits_for_a_minimum_watches_the_loss():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    watched = Classifier(4, 3, scheduler=plateau).configure_optimizers()["lr_scheduler"]["monitor"]
    assert watched == "val/loss"

    def lightnings(optimizer):
        return LightningPlateau(optimizer, monitor="val/f1", mode="max")

    assert Classifier(4, 3, scheduler=lightnings).configure_optimizers()["lr_scheduler"]["monitor"] == "val/f1"


def test_checkpoints_load_with_weights_only(tmp_path):
    module = Classifier(
        4, 3, hidden=[8], optimizer=torch.optim.SGD, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)
    )
    trainer = quiet()
    trainer.fit(module, Blobs())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt")
    x = torch.randn(3, 4)
    torch.testing.assert_close(again.eval()(x), module.eval()(x))


def test_figures_after_validation_and_test():
    module, data = Classifier(4, 3), Blobs()
    assert module.figures() == {}
    trainer = quiet()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    figures = module.figures()
    assert list(figures) == ["confusion_val", "confusion_test"]
    axes = figures["confusion_test"].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == data.class_names
    numbers = sum(int(text.get_text()) for text in axes.texts)
    assert numbers == len(data.y)
    figures["confusion_test"].savefig(io.BytesIO())


def test_a_confusion_matrix_of_many_classes_has_no_numbers():
    figure = confusion_figure(torch.eye(40, dtype=torch.int64))
    assert not figure.axes[0].texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 0}, "inputs must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"hidden": [8, 0]}, r"hidden must hold widths of at least 1, got \[8, 0\]"),
        ({"filters": (4, 0)}, r"filters must be two numbers of at least 1, got \[4, 0\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"network": "transformer"}, "network must be 'mlp', 'cnn' or a torch.nn.Module, got 'transformer'"),
        ({"network": "cnn", "inputs": 65}, "network 'cnn' needs inputs = .* got inputs=65 and channels=1"),
        ({"network": "cnn", "inputs": 64, "channels": 3}, "got inputs=64 and channels=3"),
        ({"network": "cnn", "inputs": 9}, "side of at least 4"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"inputs": 64, "classes": 3, **options})


TWO_PROCESSES = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
t.seed_everything(0, verbose=False)
module, data = t.Classifier(4, 3), t.Blobs(90, unlabelled=20)
trainer = t.quiet(strategy="ddp", devices=2)
(result,) = trainer.test(module, data, verbose=False)
with torch.no_grad():
    logits = module(data.x)
known = data.y >= 0
accuracy = (logits.argmax(1) == data.y)[known].float().mean()
loss = torch.nn.functional.cross_entropy(logits[known], data.y[known])
assert abs(result["test/accuracy"] - accuracy) < 1e-6, (result, accuracy)
assert abs(result["test/loss"] - loss) < 1e-5, (result, loss)
assert int(module.confusion_counts["test"].sum()) == int(known.sum()), module.confusion_counts
assert module.figures()
print("rank done")
"""


@pytest.mark.process
def test_two_processes_report_what_one_would(tmp_path):
    root, script = Path(__file__).parents[2], tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command = [*command, "--rdzv_endpoint=localhost:0", str(script), __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank done") == 2
