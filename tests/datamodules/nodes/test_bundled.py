import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule, Trainer
from sklearn import datasets
from sklearn.model_selection import train_test_split

from datamodules.nodes.base import nested_split
from datamodules.nodes.bundled import SklearnNodes
from framework.graphs.sources import GraphOptions, knn_pairs

MASKS = ("train", "val", "stop", "test")
FACTS = {  # nodes, inputs, classes, train = val = stop
    "wine": (178, 13, 3, 10),
    "cancer": (569, 30, 2, 10),
    "digits": (1797, 64, 10, 50),
    "iris": (150, 4, 3, 10),
}


def ready(*args, **kwargs):
    data = SklearnNodes(*args, **kwargs)
    data.setup("fit")
    return data


@pytest.mark.parametrize(("name", "facts"), FACTS.items())
def test_sizes_are_known_before_setup_and_splits_are_the_official_totals(name, facts):
    nodes, inputs, classes, size = facts
    data = SklearnNodes(name)
    assert (data.nodes, data.inputs, data.classes, len(data.class_names)) == (nodes, inputs, classes, classes)
    data.setup("fit")
    masks = torch.stack([getattr(data.graph, mask) for mask in MASKS])
    assert masks.sum(dim=1).tolist() == [size, size, size, nodes - 3 * size]
    assert (masks.sum(dim=0) == 1).all()  # disjoint, and every node is in one


@pytest.mark.parametrize("name", FACTS)
def test_splits_are_stratified(name):
    graph = ready(name).graph
    share = torch.bincount(graph.y) / graph.nodes
    for mask in MASKS:
        chosen = graph.y[getattr(graph, mask)]
        counts = torch.bincount(chosen, minlength=len(share))
        assert ((counts - share * len(chosen)).abs() < 1.5).all()
        assert (counts > 0).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_split_is_three_nested_calls_in_the_order_test_stop_val(seed):
    y = datasets.load_wine().target
    rest, test, y_rest, _ = train_test_split(
        np.arange(178), y, train_size=30, test_size=148, random_state=seed, stratify=y
    )
    rest, stop, y_rest, _ = train_test_split(
        rest, y_rest, train_size=20, test_size=10, random_state=seed, stratify=y_rest
    )
    train, val = train_test_split(rest, train_size=10, test_size=10, random_state=seed, stratify=y_rest)
    graph = ready("wine", seed=seed).graph
    for mask, expected in {"train": train, "val": val, "stop": stop, "test": test}.items():
        assert getattr(graph, mask).nonzero().flatten().tolist() == sorted(expected)


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    first, again, other = (ready("wine", seed=seed).graph for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.train, other.train)


def test_wine_and_cancer_are_standardised_over_all_nodes_and_digits_are_not():
    for name in ("wine", "cancer"):
        x = ready(name).graph.x.double()
        torch.testing.assert_close(x.mean(dim=0), torch.zeros(x.shape[1]).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.std(dim=0, unbiased=False), torch.ones(x.shape[1]).double(), atol=1e-6, rtol=0)
    x = ready("digits").graph.x
    assert (x.min(), x.max()) == (0, 16)
    np.testing.assert_array_equal(x, datasets.load_digits().data.astype(np.float32))
    raw = ready("wine", standardize=False).graph.x
    np.testing.assert_array_equal(raw, datasets.load_wine().data.astype(np.float32))


def test_the_graph_is_that_of_the_options():
    data = ready("wine", graph=GraphOptions(source="knn", k=7, metric="minkowski"))
    assert torch.equal(data.graph.edge_index, knn_pairs(data.graph.x, 7, "minkowski"))
    assert ready("wine").graph.edge_index.shape[1] == 1199  # k = 10, cosine, joined if either is near the other


def test_labels_do_not_reach_features_or_graph(monkeypatch):
    honest = ready("wine").graph
    bunch = datasets.load_wine()
    shuffled = np.random.RandomState(0).permutation(bunch.target)
    monkeypatch.setattr(datasets, "load_wine", lambda: datasets._base.Bunch(**{**bunch, "target": shuffled}))
    lied = ready("wine").graph
    assert torch.equal(honest.x, lied.x)
    assert torch.equal(honest.edge_index, lied.edge_index)
    assert not torch.equal(honest.y, lied.y)


def test_loaders_serve_the_whole_graph_as_often_as_there_are_steps():
    data = ready("wine", steps_per_epoch=5)
    assert len(data.train_dataloader()) == 5
    served = list(data.train_dataloader())
    assert len(served) == 5
    assert all(batch is data.graph for batch in served)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (batch,) = loader
        assert batch is data.graph
    copy = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert len(copy) == 5
    assert torch.equal(copy[4].x, data.graph.x)
    with pytest.raises(IndexError):
        copy[5]


def test_worker_processes_can_serve_it():
    loader = ready("wine", steps_per_epoch=3).train_dataloader()
    again = torch.utils.data.DataLoader(loader.dataset, batch_size=1, collate_fn=loader.collate_fn, num_workers=1)
    assert [batch.nodes for batch in again] == [178] * 3


def test_setup_is_the_same_for_every_stage():
    data = ready("wine", graph=GraphOptions(source="sparse"))
    first = data.graph
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
    assert data.graph is first


def test_hyper_parameters_are_plain_and_load_with_weights_only(tmp_path):
    data = SklearnNodes("iris", graph=GraphOptions(k=3), split=(5, 6, 7))
    assert data.hparams["graph"]["k"] == 3
    torch.save(dict(data.hparams), tmp_path / "hparams.pt")
    assert torch.load(tmp_path / "hparams.pt", weights_only=True) == dict(data.hparams)


def test_another_split_can_be_chosen():
    graph = ready("iris", split=(15, 20, 25)).graph
    assert [int(getattr(graph, mask).sum()) for mask in MASKS] == [15, 20, 25, 90]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SklearnNodes("whine"), ["name", "wine", "whine"]),
        (lambda: SklearnNodes(steps_per_epoch=0), ["steps_per_epoch", "0"]),
        (lambda: ready("wine", split=(2, 10, 10)), ["split=(2, 10, 10)", "2 train", "3 classes"]),
        (lambda: ready("wine", split=(100, 50, 27)), ["split", "1 test"]),
        (lambda: ready("wine", split=(100, 100, 100)), ["split", "-122 test"]),
        (lambda: ready("wine", graph=GraphOptions(k=178)), ["graph.k", "178"]),
    ],
)
def test_bad_input_is_named_in_one_line(call, words):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_nested_split_of_unequal_classes_keeps_them_all():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 30)
    masks = nested_split(y, (12, 12, 12), seed=5)
    for mask in masks.values():
        assert len(y[mask].unique()) == 3


def test_a_later_configuration_changes_one_option_of_the_graph():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data")
    first = "data: {class_path: datamodules.nodes.bundled.SklearnNodes, init_args: {graph: {source: knn, k: 7}}}"
    later = "data: {init_args: {graph: {metric: minkowski}}}"
    told = parser.parse_args(["--config", first, "--config", later, "--data.init_args.graph.k=9"])
    data = parser.instantiate_classes(told).data
    assert (data.options.source, data.options.k, data.options.metric) == ("knn", 9, "minkowski")


class CountSteps(LightningModule):
    """Writes down how many graphs a rank is served."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.served = folder, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        assert batch.nodes == 178
        self.served += 1
        return (self.weight - 1).square().sum()

    def on_train_end(self):
        (self.folder / f"rank{self.global_rank}").write_text(str(self.served))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.process
def test_every_rank_is_served_every_step(tmp_path):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, **quiet)
    trainer.fit(CountSteps(tmp_path), train_dataloaders=None, datamodule=SklearnNodes("wine", steps_per_epoch=5))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rank0": "10", "rank1": "10"}
