import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from callbacks.predictions import WritePredictions, as_columns


class Sign(LightningModule):
    """Predicts the sign of a number; a user's own module."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        (x,) = batch
        positive = (x > 0).long()
        return {
            "prediction": positive,
            "probability": torch.stack([1.0 - positive, positive * 1.0], 1),
            "item": [f"no. {v:g}" for v in x.tolist()],
        }


class Numbers(LightningDataModule):
    class_names = ["minus", "plus"]

    def __init__(self, n=7, **options):
        super().__init__()
        self.n, self.options = n, options

    def predict_dataloader(self):
        x = torch.arange(self.n) - 2.0
        return DataLoader(TensorDataset(x), **{"batch_size": 2, **self.options})


def predict(tmp_path, module, *data, callback=None, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[callback or WritePredictions()],
        enable_progress_bar=False,
        **options,
    )
    trainer.predict(module, *data, return_predictions=False)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_columns_and_class_names_are_written_in_order(tmp_path):
    predict(tmp_path, Sign(), Numbers())
    folder = tmp_path / "predictions"
    header, *body = rows(folder / "predictions.csv")
    assert header == ["prediction", "probability_minus", "probability_plus", "item"]
    assert body[0] == ["minus", "1.0", "0.0", "no. -2"]
    assert [row[0] for row in body] == ["minus"] * 3 + ["plus"] * 4
    assert [row[3] for row in body] == [f"no. {i}" for i in range(-2, 5)]
    assert [path.name for path in folder.iterdir()] == ["predictions.csv"]


def test_without_class_names_indices_stay(tmp_path):
    predict(tmp_path, Sign(), Numbers().predict_dataloader())
    header, *body = rows(tmp_path / "predictions" / "predictions.csv")
    assert header == ["prediction", "probability_0", "probability_1", "item"]
    assert body[-1] == ["1", "0.0", "1.0", "no. 4"]


def test_parquet_holds_the_same_table_with_types(tmp_path):
    import pyarrow.parquet

    predict(tmp_path, Sign(), Numbers(n=5000), callback=WritePredictions(str(tmp_path / "here"), "parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "here" / "predictions.parquet").to_pydict()
    assert table["item"] == [f"no. {i}" for i in range(-2, 4998)]
    assert set(map(type, table["probability_plus"])) == {float}


def test_parquet_whose_first_rows_are_unlabelled(tmp_path):
    import pyarrow.parquet

    class Late(Sign):
        def predict_step(self, batch, batch_idx):
            known = super().predict_step(batch, batch_idx)
            late = torch.full((len(next(iter(known.values()))),), batch_idx % 2)
            return {"target": torch.where(torch.tensor(batch_idx * len(late) < 4800), -1, late)}

    predict(tmp_path, Late(), Numbers(n=5000), callback=WritePredictions(str(tmp_path / "here"), "parquet"))
    target = pyarrow.parquet.read_table(tmp_path / "here" / "predictions.parquet").to_pydict()["target"]
    assert target[:4096] == [None] * 4096
    assert set(target[4900:]) == {"minus", "plus"}


def test_a_second_predict_replaces_the_first(tmp_path):
    predict(tmp_path, Sign(), Numbers(n=7))
    (tmp_path / "predictions" / ".parts-csv").mkdir()  # as a killed run leaves it
    (tmp_path / "predictions" / ".parts-csv" / "0.pickle").write_bytes(b"half")
    predict(tmp_path, Sign(), Numbers(n=3))
    assert len(rows(tmp_path / "predictions" / "predictions.csv")) == 4


def test_several_loaders_get_a_column(tmp_path):
    loaders = [Numbers(n=3).predict_dataloader(), Numbers(n=2).predict_dataloader()]
    predict(tmp_path, Sign(), loaders)
    header, *body = rows(tmp_path / "predictions" / "predictions.csv")
    assert header[0] == "dataloader"
    assert [row[0] for row in body] == ["0"] * 3 + ["1"] * 2


def test_iterable_data_are_written_as_they_come(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ((torch.tensor(float(v)),) for v in (3, -1, 2))

    predict(tmp_path, Sign(), DataLoader(Stream(), batch_size=2))
    assert [row[-1] for row in rows(tmp_path / "predictions" / "predictions.csv")[1:]] == ["no. 3", "no. -1", "no. 2"]


def test_one_process_keeps_the_order_and_repeats_of_its_loader(tmp_path):
    predict(tmp_path, Sign(), Numbers(sampler=[5, 1, 1, 3]))
    got = [row[-1] for row in rows(tmp_path / "predictions" / "predictions.csv")[1:]]
    assert got == ["no. 3", "no. -1", "no. -1", "no. 1"]


def test_rows_come_in_the_order_that_the_module_names(tmp_path):
    class Backwards(Sign):
        prediction_order = ("place",)

        def predict_step(self, batch, batch_idx):
            return {"item": batch[0], "place": [-int(v) for v in batch[0]]}

    predict(tmp_path, Backwards(), Numbers())
    assert [row[1] for row in rows(tmp_path / "predictions" / "predictions.csv")[1:]] == [str(n) for n in range(-4, 3)]


def test_the_modules_own_tables_are_written(tmp_path):
    class Graph(Sign):
        tables = {"edges": {"source": torch.tensor([0, 1]), "target": [1, 2], "probability": torch.tensor([0.5, 1.0])}}

        def prediction_tables(self):
            return self.tables

    predict(tmp_path, Graph(), Numbers())
    assert rows(tmp_path / "predictions" / "edges.csv") == [
        ["source", "target", "probability"],
        ["0", "1", "0.5"],
        ["1", "2", "1.0"],
    ]
    Graph.tables = {"predictions": {"a": [1]}}
    with pytest.raises(
        ValueError, match=r"prediction_tables\(\) of Graph must use plain file names, got 'predictions'"
    ):
        predict(tmp_path, Graph(), Numbers())
    Graph.tables = {"edges": {"a": [1], "b": [1, 2]}}
    with pytest.raises(ValueError, match=r"table 'edges' of Graph must be equally long, got \{'a': 1, 'b': 2"):
        predict(tmp_path, Graph(), Numbers())


@pytest.mark.parametrize(
    ("prediction", "names", "columns"),
    [
        (None, None, {}),
        (torch.tensor([1, 0]), ["a", "b"], {"prediction": ["b", "a"]}),
        (torch.tensor([[0.5, 1.5]]), ["a", "b"], {"output_0": [0.5], "output_1": [1.5]}),
        ({"prediction": [0.25]}, ["a"], {"prediction": [0.25]}),
        ({"target": torch.tensor([-1, 1])}, ["a", "b"], {"target": [None, "b"]}),
        ({"score": torch.tensor([0.5], dtype=torch.bfloat16)}, None, {"score": [0.5]}),
        ({"score": [torch.tensor(2.0)]}, None, {"score": [2.0]}),
        ({"probability": torch.tensor([[1.0]])}, ["a", "b"], {"probability_0": [1.0]}),
    ],
)
def test_as_columns(prediction, names, columns):
    assert as_columns(prediction, names, "M") == columns


@pytest.mark.parametrize(
    ("prediction", "error", "message"),
    [
        ("text", TypeError, "predict_step of M returned str, and WritePredictions needs a dict"),
        (torch.tensor(1.0), TypeError, "predict_step of M returned Tensor, and WritePredictions needs a dict"),
        ({"a": torch.zeros(1, 1, 1)}, TypeError, r"returned Tensor of shape \(1, 1, 1\) as column 'a'"),
        ({"a": "text"}, TypeError, "returned str as column 'a'"),
        ({"a": 3}, TypeError, "returned int as column 'a'"),
        ({"a": [1], "b": [1, 2]}, ValueError, r"must be equally long, got \{'a': 1, 'b': 2\}"),
        ({"prediction": [2]}, ValueError, "column 'prediction' holds class 2, and class_names has 2 names"),
    ],
)
def test_what_is_no_table_is_refused(prediction, error, message):
    with pytest.raises(error, match=message):
        as_columns(prediction, ["x", "y"], "M")


def test_columns_must_not_change_between_batches(tmp_path):
    class Moody(Sign):
        def predict_step(self, batch, batch_idx):
            return {f"column{batch_idx}": batch[0]}

    with pytest.raises(ValueError, match="of Moody returned the columns column1 in batch 1, and column0 before"):
        predict(tmp_path, Moody(), Numbers())


def test_a_trial_run_checks_but_writes_nothing(tmp_path):
    predict(tmp_path, Sign(), Numbers(), fast_dev_run=True)
    assert not (tmp_path / "predictions").exists()

    class Wrong(Sign):
        def predict_step(self, batch, batch_idx):
            return "text"

    with pytest.raises(TypeError, match="predict_step of Wrong returned str"):
        predict(tmp_path, Wrong(), Numbers(), fast_dev_run=True)


def test_format_is_checked():
    with pytest.raises(ValueError, match="format must be csv or parquet, got 'xlsx'"):
        WritePredictions(format="xlsx")


TWO_RANKS = """
import sys, torch
sys.path[:0] = [{here!r}, {root!r}]
from lightning import Trainer, seed_everything
from torch.utils.data import DataLoader, DistributedSampler
from callbacks.predictions import WritePredictions
from test_predictions import Numbers, Sign

class Rows(Sign):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        # every item becomes two rows, as a graph becomes its nodes
        return {{"item": batch[0].tolist() * 2, "half": ["first"] * len(batch[0]) + ["second"] * len(batch[0])}}

def run(name, module, data, **options):
    trainer = Trainer(default_root_dir={out!r}, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_progress_bar=False, callbacks=[WritePredictions({out!r} + "/" + name)], **options)
    trainer.predict(module, data, return_predictions=False)

run("odd", Sign(), Numbers(7))
seed_everything(0)  # without it the ranks would shuffle differently, and Lightning would miss items
run("shuffled", Sign(), Numbers(7, shuffle=True))
run("whole", Rows(), Numbers(3, batch_size=3), use_distributed_sampler=False)
dataset = Numbers(7).predict_dataloader().dataset
class Padded(Numbers):
    def predict_dataloader(self):
        return DataLoader(dataset, batch_size=2, sampler=DistributedSampler(dataset, shuffle=False))
run("padded", Sign(), Padded())
"""


@pytest.mark.process
def test_two_ranks_write_every_item_once_in_the_order_of_the_data(tmp_path):
    script = tmp_path / "script.py"
    here = Path(__file__).parent
    script.write_text(TWO_RANKS.format(here=str(here), root=str(here.parents[1]), out=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [f"no. {i}" for i in range(-2, 5)]
    for name in ("odd", "shuffled", "padded"):
        header, *body = rows(tmp_path / name / "predictions.csv")
        assert header[0] == "prediction"
        assert [row[-1] for row in body] == expected, name
        assert [row[0] for row in body] == ["minus"] * 3 + ["plus"] * 4
    body = rows(tmp_path / "whole" / "predictions.csv")[1:]
    assert body == [[str(float(i)), half] for half in ("first", "second") for i in (-2, -1, 0)]
