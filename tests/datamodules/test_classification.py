"""Digits, MNIST, a user's table and image folder: what they serve, how they split, what they refuse."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import make_tiny
import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything

from datamodules import mnist
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder, read_image
from datamodules.mnist import MNIST, read_idx
from datamodules.table import Table
from framework import registry
from framework.loaders.labels import labels_of
from modules.classifier import Classifier


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for make in (make_tiny.tiny_table, make_tiny.tiny_images, make_tiny.tiny_mnist):
        make(folder)
    return folder


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0, verbose=False)


def accuracy(module, data, epochs: int) -> float:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", **off)
    trainer.fit(module, data)
    return trainer.test(module, data, verbose=False)[0]["test/accuracy"]


def table(folder: Path, rows: list[dict], name: str = "t.csv") -> str:
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def parts(data) -> list[torch.Tensor]:
    return [labels_of(part) for part in (data.train, data.val, data.test)]


# -- What they share


@pytest.mark.parametrize("name", ["digits", "mnist", "table", "folder"])
def test_only_training_is_shuffled_and_no_item_is_lost(tiny, name):
    data, keeps_workers = {
        "digits": (Digits(batch_size=100), False),
        "mnist": (MNIST(str(tiny), batch_size=100), True),
        "table": (Table(str(tiny / "plants.csv"), "species", id_column="plant", batch_size=100), False),
        "folder": (ImageFolder(str(tiny / "shapes"), size=4, batch_size=100), True),
    }[name]
    data.setup("fit")

    def served(loader) -> torch.Tensor:
        return torch.cat([batch[1] for batch in loader])

    train, val, test = parts(data)
    assert torch.equal(served(data.val_dataloader()), val)
    assert torch.equal(served(data.test_dataloader()), test)
    loader = data.train_dataloader()
    first, second = served(loader), served(loader)
    assert not torch.equal(first, second)
    assert torch.equal(first.bincount(), train.bincount())
    assert torch.equal(second.bincount(), train.bincount())
    assert loader.batch_size == 100
    data.hparams.num_workers = 1
    assert data.val_dataloader().persistent_workers == keeps_workers


def test_what_they_share_is_no_choice_on_the_command_line():
    offered = registry.classes("datamodules")
    assert {"Digits", "MNIST", "Table", "ImageFolder"} <= set(offered)
    assert "ClassificationData" not in offered


# -- Digits


def test_digits_are_split_and_scaled():
    data = Digits(seed=3)
    data.setup("fit")
    sizes = [len(part) for part in (data.train, data.val, data.test)]
    assert sum(sizes) == 1797
    assert abs(sizes[0] - 0.7 * 1797) <= 1
    together = {i for part in (data.train, data.val, data.test) for i in part.indices}
    assert together == set(range(1797))
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (64, data.inputs)
    assert (x.min(), x.max()) == (0, 1)
    assert set(torch.cat(parts(data)).tolist()) == set(range(data.classes))
    again = Digits(seed=3)
    again.setup("fit")
    assert data.train.indices == again.train.indices


def test_digits_reach_95_percent():
    module = Classifier(64, 10, network="cnn", hidden=[64], lr=3e-3)  # as configs/classifier/digits.yaml
    assert accuracy(module, Digits(), epochs=20) >= 0.95


def test_digits_refuse():
    with pytest.raises(ValueError, match=r"split must be positive shares that sum to 1, got \(0.5, 0.5, 0.5\)"):
        Digits(split=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Digits(batch_size=0)


# -- MNIST


def test_parts_of_mnist_share_no_image_and_make_up_the_whole(tiny):
    def images(*part):
        data = MNIST(str(tiny), part=part, seed=3) if part else MNIST(str(tiny), seed=3)
        data.setup("fit")
        return data.train.indices, data.val.indices

    whole, held = images()
    parts = [images(*part) for part in ((0, 0.2), (0.2, 0.7), (0.7, 1))]
    assert sorted(index for part, _ in parts for index in part) == whole
    assert all(val == held for _, val in parts)
    assert len(parts[1][0]) == round(0.7 * len(whole)) - round(0.2 * len(whole))


def test_mnist_serves_standardised_images(tiny):
    data = MNIST(str(tiny), batch_size=16)
    data.prepare_data()
    data.setup("fit")
    assert [len(part) for part in (data.train, data.val, data.test)] == [180, 20, 50]
    x, y = next(iter(data.val_dataloader()))
    assert x.shape == (16, 1, 28, 28)
    assert x[0].numel() == data.inputs
    raw = read_idx(tiny / "mnist" / "train-images-idx3-ubyte.gz")
    first = data.val.indices[0]
    torch.testing.assert_close(x[0, 0], (torch.from_numpy(raw[first]).float() / 255 - 0.1307) / 0.3081)
    assert int(y[0]) == first % 10
    assert parts(data)[1].bincount().tolist() == [2] * 10, "validation is stratified"
    _, label, number = data.predict[7]
    assert (int(label), number) == (7, 7)


def test_batches_of_mnist_are_the_items_one_by_one(tiny):
    data = MNIST(str(tiny), batch_size=7)
    data.setup("predict")
    data.setup("fit")
    for loader in (data.val_dataloader(), data.predict_dataloader()):
        columns = next(iter(loader))
        items = [loader.dataset[index] for index in range(7)]
        for column, values in zip(columns, zip(*items, strict=True), strict=True):
            assert torch.equal(column, torch.stack([torch.as_tensor(value) for value in values]))


def test_mnist_trains_a_cnn(tiny):
    assert accuracy(Classifier(784, 10, network="cnn", lr=3e-3), MNIST(str(tiny), batch_size=20), epochs=6) >= 0.9


def test_mnist_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"MNIST needs files .*mnist: train-images-idx3-ubyte.gz, .*https://.*--data.download"
    ):
        MNIST(str(tmp_path)).prepare_data()


def test_mnist_data_dir_comes_from_the_environment(monkeypatch, tiny):
    monkeypatch.setenv("FULGURITE_DATA", str(tiny))
    data = MNIST()
    data.prepare_data()
    assert data.folder == tiny / "mnist"


def test_idx_of_any_shape(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    make_tiny.write_idx(tmp_path / "a.gz", values)
    assert np.array_equal(read_idx(tmp_path / "a.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is not a complete gzip file"),
        (gzip.compress(b"PNG image")[:-4], "is not a complete gzip file"),
        (gzip.compress(b"\x89PNG image"), "must be an IDX file of bytes .* begins with 89 50 4e 47"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abc"), r"states \(5,\) values in its header but holds 3"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "ends inside its header, which states 3 dimensions"),
    ],
    ids=["text", "cut", "other", "short", "header"],
)
def test_broken_idx_files_are_refused(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a.gz")


def test_mnist_refuses_other_images_and_labels(tmp_path):
    make_tiny.tiny_mnist(tmp_path)
    labels = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    make_tiny.write_idx(labels, np.full(200, 11))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz must be 0 to 9, got 11"):
        MNIST(str(tmp_path)).setup("fit")
    make_tiny.write_idx(labels, np.zeros(199))
    with pytest.raises(ValueError, match=r"got shapes \(200, 28, 28\) and \(199,\)"):
        MNIST(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="val_share and the rest must be positive shares"):
        MNIST(val_share=1.0)
    with pytest.raises(
        ValueError, match=r"part must be two shares in \[0, 1\], the smaller one first, got \(0.5, 0.5\)"
    ):
        MNIST(part=(0.5, 0.5))


def test_mnist_downloads_only_what_is_right(tmp_path, monkeypatch):
    source = make_tiny.tiny_mnist(tmp_path / "source") / "mnist"
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in source.iterdir()}
    monkeypatch.setattr(mnist, "SOURCE", source.as_uri() + "/")
    monkeypatch.setattr(mnist, "MD5", sums)
    data = MNIST(str(tmp_path / "here"), download=True)
    data.prepare_data()
    assert {file.name for file in data.folder.iterdir()} == set(sums)
    monkeypatch.setattr(mnist, "MD5", dict.fromkeys(sums, "0" * 32))
    with pytest.raises(ValueError, match="the download is corrupt or changed"):
        MNIST(str(tmp_path / "there"), download=True).prepare_data()
    assert not list((tmp_path / "there").rglob("*.gz"))


def test_real_mnist_has_the_published_class_counts(data_root_or_skip):
    data = MNIST(str(data_root_or_skip))
    data.prepare_data()
    data.setup("fit")
    assert data.test.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images = data.train.dataset.images.float() / 255
    assert images.mean().item() == pytest.approx(mnist.MEAN, abs=1e-4)
    assert images.std().item() == pytest.approx(mnist.STD, abs=1e-4)


# -- A user's table


def test_a_table_knows_its_sizes_before_setup(tiny):
    data = Table(str(tiny / "plants.csv"), "species", id_column="plant")
    assert (data.inputs, data.classes) == (2 + 3, 3)
    assert data.class_names == ["fern", "lily", "rose"]
    assert data.feature_names == ["height", "leaves", "colour=blue", "colour=green", "colour=red"]


def test_a_table_is_standardised_by_its_training_rows(tiny):
    data = Table(str(tiny / "plants.csv"), "species", id_column="plant")
    data.setup("fit")
    x = data.train.tensors[0][:, :2]
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2))
    everything = data.rows.x[:, :2]
    assert not torch.allclose(everything.mean(0), torch.zeros(2), atol=1e-3)


def test_a_table_trains_and_predicts_every_row(tiny):
    data = Table(str(tiny / "plants.csv"), "species", id_column="plant", batch_size=8)
    module = Classifier(data.inputs, data.classes, lr=0.01)
    assert accuracy(module, data, epochs=30) >= 0.8
    _, _, names = next(iter(data.predict_dataloader()))
    assert list(names) == [f"p{row:03d}" for row in range(8)]
    batches = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False).predict(module, data)
    index = [name for batch in batches for name in batch["index"]]
    assert index == [f"p{row:03d}" for row in range(90)]


def test_unlabelled_rows_are_predicted_or_also_trained_on(tiny):
    path = str(tiny / "plants.csv")
    plain, semi = Table(path, "species", drop=["plant"]), Table(path, "species", drop=["plant"], unlabelled="train")
    for data in (plain, semi):
        data.setup("fit")
        assert all((part >= 0).all() for part in parts(data)[1:])
    assert sum(len(part) for part in parts(plain)) == 81
    assert int((parts(semi)[0] == -1).sum()) == 9
    assert len(semi.predict_dataloader().dataset) == 90


def test_a_split_column_decides(tmp_path):
    where = ["train", "train", "val", "test", "", "train"]
    rows = [{"x": i, "y": "ab"[i % 2] if i != 5 else "", "part": part} for i, part in enumerate(where)]
    path = table(tmp_path, rows)
    data = Table(path, "y", split_column="part")
    assert {name: rows.tolist() for name, rows in data.rows.parts.items()} == {"train": [0, 1], "val": [2], "test": [3]}
    assert Table(path, "y", split_column="part", unlabelled="train").rows.parts["train"].tolist() == [0, 1, 5]
    assert data.feature_names == ["x"]


def test_gaps_are_refused_or_filled_with_the_training_median(tmp_path):
    rows = [
        {"x": "" if i == 9 else i, "y": "ab"[i % 2], "part": "train" if i < 7 else ("val" if i == 7 else "test")}
        for i in range(10)
    ]
    path = table(tmp_path, rows)
    with pytest.raises(ValueError, match="column 'x' has 1 missing values, the first in row 9"):
        _ = Table(path, "y", split_column="part").rows
    filled = Table(path, "y", split_column="part", missing="fill", standardize=False).rows
    assert filled.x[9].item() == 3


def test_a_category_unseen_in_training_is_no_category(tmp_path):
    rows = [
        {"c": "new" if i == 9 else "uv"[i % 2], "y": i % 2, "part": ("train", "val", "test")[min(i // 4, 2)]}
        for i in range(10)
    ]
    data = Table(table(tmp_path, rows), "y", split_column="part")
    assert data.feature_names == ["c=u", "c=v"]
    assert data.rows.x[9].tolist() == [0, 0]
    assert data.class_names == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "kind"}, "label 'kind' is not a column of the table; its columns are: plant, height, leaves"),
        ({"drop": ["weight"]}, "column 'weight' is not a column of the table"),
        (
            {"split_column": "colour"},
            "split_column 'colour' must hold train, val, test or nothing, got 'green' in row 0",
        ),
        ({"split": (0.5, 0.5, 0.5)}, "split must be positive shares"),
        ({"missing": "guess"}, "missing must be one of refuse, fill, got 'guess'"),
        ({"unlabelled": "test"}, "unlabelled must be one of predict, train, got 'test'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"class_names": ["fern", "lily"]}, "class_names must hold every label .* got label 'rose'"),
    ],
)
def test_a_table_refuses(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        _ = Table(**{"path": str(tiny / "plants.csv"), "label": "species", "drop": ["plant"], **options}).rows


def test_a_split_column_must_make_sense(tmp_path):
    rows = [{"x": i, "y": "ab"[i % 2] if i < 3 else "", "part": ("train", "train", "val", "test")[i]} for i in range(4)]
    with pytest.raises(ValueError, match="puts row 3 into test, but the row has no label"):
        _ = Table(table(tmp_path, rows), "y", split_column="part").rows
    with pytest.raises(ValueError, match="split_column 'part' must hold test in at least one row"):
        _ = Table(table(tmp_path, rows[:3]), "y", split_column="part").rows
    with pytest.raises(FileNotFoundError, match="path is not a file"):
        _ = Table(str(tmp_path / "no.csv"), "y").inputs


# -- A user's images


def test_an_image_folder_splits_by_class(tiny):
    data = ImageFolder(str(tiny / "shapes"), size=16, split=(0.5, 0.25, 0.25), batch_size=5)
    assert (data.inputs, data.classes, data.class_names) == (3 * 16 * 16, 3, ["bar", "disc", "frame"])
    data.setup("fit")
    assert [part.bincount().tolist() for part in parts(data)] == [[6] * 3, [3] * 3, [3] * 3]
    files = [file for part in (data.train, data.val, data.test) for file in part.files]
    assert len(set(files)) == 36
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (5, 3, 16, 16)
    assert -1 <= x.min() < x.max() <= 1


def test_an_image_folder_trains(tiny):
    data = ImageFolder(str(tiny / "shapes"), size=16, channels=1, batch_size=6)
    module = Classifier(data.inputs, data.classes, network="cnn", lr=3e-3)
    assert accuracy(module, data, epochs=25) >= 0.8
    _, _, names = next(iter(data.predict_dataloader()))
    assert all(name.split("/")[0] in data.class_names for name in names)


def layout(root: Path, **counts: int) -> Path:
    from PIL import Image

    for folder, count in counts.items():
        path = root / folder.replace("__", "/")
        path.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(path / f"{number}.png")
    return root


def test_folders_for_the_parts(tmp_path):
    root = layout(tmp_path, train__a=8, train__b=8, test__a=1, test__b=2, predict=3)
    data = ImageFolder(str(root), size=8, split=(0.6, 0.2, 0.2))
    data.setup("fit")
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 3]
    assert all("test" in file.parts for file in data.test.files)
    _, labels, names = next(iter(data.predict_dataloader()))
    assert labels.tolist() == [-1] * 3
    assert list(names) == ["predict/0.png", "predict/1.png", "predict/2.png"]


def test_given_parts_are_not_split(tmp_path):
    root = layout(tmp_path, train__a=3, train__b=3, val__a=1, val__b=1, test__a=1, test__b=2)
    data = ImageFolder(str(root), size=8)
    data.setup("fit")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 3]


def test_images_are_scaled_and_the_middle_is_cut(tmp_path):
    from PIL import Image

    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = (255, 0, 0)  # the middle square is red, the sides are black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    red = read_image(tmp_path / "a.png", 4, 3)
    assert red.shape == (3, 4, 4)
    assert torch.equal(red[0], torch.ones(4, 4))
    assert torch.equal(red[1:], -torch.ones(2, 4, 4))
    assert read_image(tmp_path / "a.png", 2, 1).shape == (1, 2, 2)


def test_an_image_folder_refuses(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="path is not a folder"):
        _ = ImageFolder(str(tmp_path / "no")).classes
    with pytest.raises(ValueError, match=r"at least 2 folders of classes, got \['a'\]"):
        _ = ImageFolder(str(layout(tmp_path / "one", a=2))).classes
    with pytest.raises(ValueError, match="b has no images"):
        _ = ImageFolder(str(layout(tmp_path / "empty", a=2, b=0))).classes
    with pytest.raises(ValueError, match=r"test has folders of unknown classes: c; the classes are .*: a, b"):
        _ = ImageFolder(str(layout(tmp_path / "odd", train__a=2, train__b=2, test__a=1, test__b=1, test__c=1))).classes
    with pytest.raises(ValueError, match="val lacks classes: b"):
        _ = ImageFolder(str(layout(tmp_path / "lacks", train__a=2, train__b=2, val__a=1))).classes
    with pytest.raises(ValueError, match="path has test but no train folder"):
        _ = ImageFolder(str(layout(tmp_path / "only", test__a=1, test__b=1))).classes
    for options, message in (
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\), got 4"),
        ({"split": (1.0, 0.0, 0.0)}, "split must be positive shares"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolder(str(tiny / "shapes"), **options)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not really")
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded as an image"):
        read_image(tmp_path / "broken.png", 8, 3)


def test_tiny_data_are_the_same_every_time(tmp_path, tiny):
    for make in (make_tiny.tiny_table, make_tiny.tiny_images, make_tiny.tiny_mnist):
        make(tmp_path)
    for file in tiny.rglob("*.*"):
        assert (tmp_path / file.relative_to(tiny)).read_bytes() == file.read_bytes()
