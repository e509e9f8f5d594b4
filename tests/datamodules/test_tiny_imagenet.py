"""Tiny ImageNet: which classes and images it serves, how it splits and decodes them, what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import make_tiny
import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from PIL import Image
from torch.utils.data import Subset

from datamodules import tiny_imagenet
from datamodules.tiny_imagenet import TinyImageNet, decode_images
from framework.federated.partition import Dirichlet
from framework.federated.skew import Rotate
from framework.loaders.labels import labels_of
from modules.classifier import Classifier

PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny.tiny_imagenet(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own(tmp_path) -> Path:
    """A copy that a test may spoil."""
    return make_tiny.tiny_imagenet(tmp_path, per_class=4)


def make(folder: Path, **options) -> TinyImageNet:
    data = TinyImageNet(str(folder), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def stored(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "tinyimagenet_fs" / "images.npz") as content:
        return dict(content)


def respoil(folder: Path, **changed) -> None:
    np.savez(folder / "tinyimagenet_fs" / "images.npz", **{**stored(folder), **changed})


def by_pillow(content: dict[str, np.ndarray], number: int) -> np.ndarray:
    begin, end = content["offsets"][number : number + 2]
    return np.asarray(Image.open(io.BytesIO(content["blob"][begin:end].tobytes())).convert("RGB"))


def numbers(data: TinyImageNet, part: str) -> list[int]:
    """Which images of the file a part has."""
    subset = getattr(data, part)
    return subset.dataset.numbers[subset.indices].tolist()


def bytes_of(x: torch.Tensor) -> np.ndarray:
    """The pixels that a served image was made of."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny_imagenet.MEAN, tiny_imagenet.STD))
    return ((x * std + mean) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


# -- What it serves


def test_an_item_is_the_image_its_class_and_its_number(tiny):
    data, content = make(tiny, class_split="all", batch_size=10), stored(tiny)
    known = json.loads((tiny / "tinyimagenet_fs" / "classes.json").read_text())
    for part in PARTS:
        for index in range(0, len(getattr(data, part)), 17):
            x, y, number = getattr(data, part)[index]
            assert (x.shape, x.dtype) == ((3, 32, 32), torch.float32)
            assert x.numel() == data.inputs
            np.testing.assert_array_equal(bytes_of(x), by_pillow(content, int(number)))
            wnid = str(content["wnid"][content["label"][int(number)]])
            assert data.wnids[int(y)] == wnid
            assert data.class_names[int(y)] == known[wnid]["names"][0]


def test_batches_are_the_items_one_by_one(tiny):
    data = make(tiny, batch_size=10)
    x, y, number = next(iter(data.val_dataloader()))
    items = [data.val[index] for index in range(10)]
    assert torch.equal(x, torch.stack([item[0] for item in items]))
    assert y.tolist() == [int(item[1]) for item in items]
    assert number.tolist() == [int(item[2]) for item in items]
    assert data.val_dataloader().batch_size == 10
    seen = torch.cat([batch[2] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == sorted(numbers(data, "train"))
    assert seen.tolist() != sorted(seen.tolist()), "training is shuffled"
    predicted = torch.cat([batch[2] for batch in data.predict_dataloader()])
    assert predicted.tolist() == numbers(data, "test")


def test_images_are_decoded_once_in_a_process(own, monkeypatch):
    opened, open_ = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **how: opened.append(1) or open_(*args, **how))
    data = make(own, classes=3)
    assert len(opened) == 3 * 4, "and only those that are asked for"
    data.setup("test")
    make(own, classes=3, seed=5)
    assert len(opened) == 3 * 4
    black = io.BytesIO()
    Image.new("RGB", (32, 32)).save(black, "PNG")
    offsets = len(black.getvalue()) * np.arange(28 * 4 + 1)
    respoil(own, blob=np.frombuffer(black.getvalue() * 28 * 4, np.uint8), offsets=offsets)
    assert make(own, classes=3).train.dataset.images.max() == 0, "a file written anew is read anew"


def test_it_trains(tiny):
    seed_everything(0, verbose=False)
    data = make(tiny, classes=5, batch_size=8)
    module = Classifier(data.inputs, data.classes, network="cnn", channels=3, lr=2e-3)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=6, accelerator="cpu", **off)
    trainer.fit(module, data)
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] >= 0.8


# -- Classes


def test_classes_are_divided(tiny):
    found = {name: TinyImageNet(str(tiny), class_split=name) for name in ("base", "val", "test", "all")}
    assert {name: data.classes for name, data in found.items()} == {"base": 20, "val": 3, "test": 5, "all": 28}
    together = [wnid for name in ("base", "val", "test") for wnid in found[name].wnids]
    assert sorted(together) == found["all"].wnids, "every class in one of them, in order"
    for data in found.values():
        data.setup("fit")
        assert set(labels_of(data.train).tolist()) == set(range(data.classes))


def test_the_first_classes_or_those_named(tiny):
    all_base = TinyImageNet(str(tiny)).wnids
    assert TinyImageNet(str(tiny), classes=7).wnids == all_base[:7]
    wanted = [all_base[4], all_base[2]]
    data = make(tiny, classes=wanted)
    assert (data.wnids, data.classes) == (wanted, 2)
    content = stored(tiny)
    for part in PARTS:
        for number, label in zip(numbers(data, part), labels_of(getattr(data, part)).tolist(), strict=True):
            assert content["wnid"][content["label"][number]] == wanted[label]


def test_sizes_are_known_without_decoding(tiny, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "decode_images", None)
    data = TinyImageNet(str(tiny), classes=4)
    assert (data.inputs, data.classes, len(data.class_names)) == (3072, 4, 4)


# -- The split


def test_the_split_is_stratified_and_no_image_is_lost(tiny):
    data = make(tiny, split=(0.5, 0.25, 0.25))
    parts = [numbers(data, part) for part in PARTS]
    assert [len(part) for part in parts] == [120, 60, 60]
    assert sorted(number for part in parts for number in part) == data.chosen.numbers.tolist()
    for part, each in zip(PARTS, (6, 3, 3)):
        assert labels_of(getattr(data, part)).bincount().tolist() == [each] * 20


def test_the_seed_decides_the_split(tiny):
    first, again, other = (make(tiny, seed=seed) for seed in (1, 1, 2))
    assert all(numbers(first, part) == numbers(again, part) for part in PARTS)
    assert all(numbers(first, part) != numbers(other, part) for part in PARTS)


def test_fewer_images_of_each_class(tiny):
    data = make(tiny, per_class=5, classes=4, split=(0.6, 0.2, 0.2))
    assert [labels_of(getattr(data, part)).bincount().tolist() for part in PARTS] == [[3] * 4, [1] * 4, [1] * 4]
    content = stored(tiny)
    served = content["label"][data.chosen.numbers]
    assert all((served == label).sum() == 5 for label in np.unique(served))
    assert len(make(tiny, per_class=1000).chosen.numbers) == 240


# -- Federations


def test_clients_divide_it_by_labels_and_see_it_skewed(tiny):
    data = make(tiny, batch_size=16)
    labels = labels_of(data.train)
    assert len(labels) == len(data.train)
    parts = Dirichlet(0.5).split(len(labels), labels, clients=3, seed=0)
    theirs = Subset(data.train, parts[1].tolist())
    skewed = Rotate([0.0, 90.0]).of(theirs, client=1, clients=3, seed=0)
    seen = skewed.__getitems__([0, 3])
    for (x, y, number), index in zip(seen, (0, 3), strict=True):
        image, label, expected = theirs[index]
        assert torch.equal(x, image.rot90(1, (-2, -1)))
        assert (int(y), int(number)) == (int(label), int(expected))
        assert torch.equal(x, skewed[index][0])
    assert torch.equal(labels_of(skewed), labels[parts[1]])


# -- Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_split": "train"}, "class_split must be one of base, val, test, all, got 'train'"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"classes": ["n01000000"]}, r"classes must be at least 2, got \['n01000000'\]"),
        ({"classes": 21}, "classes must be at most 20 for class_split=base, got 21"),
        ({"classes": ["n01000000", "n99999999"], "class_split": "all"}, "'n99999999' is no class of class_split=all"),
        ({"classes": ["n01000000"] * 2, "class_split": "all"}, "classes must not repeat a class"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"split": (0.5, 0.5, 0.5)}, "split must be positive shares"),
    ],
)
def test_bad_arguments(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        _ = TinyImageNet(str(tiny), **options).classes


def test_a_class_of_another_division_is_refused(tiny):
    base, test = TinyImageNet(str(tiny)).wnids, TinyImageNet(str(tiny), class_split="test").wnids
    with pytest.raises(ValueError, match=f"classes: '{test[0]}' is no class of class_split=base"):
        _ = TinyImageNet(str(tiny), classes=[base[0], test[0]]).classes


def test_missing_files_are_named(tmp_path):
    for ask in (TinyImageNet.prepare_data, TinyImageNet.setup, lambda data: data.classes):
        with pytest.raises(FileNotFoundError, match=r"TinyImageNet needs files .*tinyimagenet_fs: images.npz, classes"):
            ask(TinyImageNet(str(tmp_path)))


def test_the_folder_comes_from_the_environment(monkeypatch, tiny):
    monkeypatch.setenv("FULGURITE_DATA", str(tiny))
    assert TinyImageNet().folder == tiny / "tinyimagenet_fs"


def test_broken_files_are_refused(own):
    place, content = own / "tinyimagenet_fs", stored(own)
    wide = io.BytesIO()
    Image.new("RGB", (64, 32)).save(wide, "PNG")
    for wrong in (b"no image", wide.getvalue()):
        offsets = len(wrong) * np.arange(28 * 4 + 1)
        respoil(own, blob=np.frombuffer(wrong * 28 * 4, np.uint8), offsets=offsets)
        with pytest.raises(ValueError, match=r"image \d+ of .*images.npz must be one of 32 x 32 pixels"):
            make(own)
    respoil(own, **content | {"offsets": content["offsets"][:-1]})
    with pytest.raises(ValueError, match=r"image 111 of .*images.npz must be one of"):
        make(own, class_split="all")
    respoil(own, **content | {"label": content["label"] + 1})
    with pytest.raises(ValueError, match=r"images.npz must hold"):
        make(own)
    np.savez(place / "images.npz", **{name: content[name] for name in ("blob", "offsets", "label")})
    with pytest.raises(ValueError, match=r"images.npz must be an .npz file with blob, offsets, label, wnid, split"):
        make(own)
    (place / "images.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"images.npz must be an .npz file with"):
        make(own)


def test_a_class_without_a_name_is_refused(own):
    (own / "tinyimagenet_fs" / "classes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"classes.json must give each wnid a list of names"):
        _ = make(own).class_names


# -- The published files


def test_the_real_files_are_as_published(data_root_or_skip):
    if not (data_root_or_skip / "tinyimagenet_fs").is_dir():
        pytest.skip(f"{data_root_or_skip} has no folder tinyimagenet_fs")
    sizes = {"base": (120, 190), "val": (30, 60), "test": (50, 100)}
    for name, (classes, images) in sizes.items():
        data = TinyImageNet(str(data_root_or_skip), class_split=name)
        assert data.classes == classes
        assert data.chosen.targets.bincount().tolist() == [images] * classes
        assert len(set(data.class_names)) == classes


def test_real_images_are_standardised(data_root_or_skip):
    if not (data_root_or_skip / "tinyimagenet_fs").is_dir():
        pytest.skip(f"{data_root_or_skip} has no folder tinyimagenet_fs")
    data, content = TinyImageNet(str(data_root_or_skip)), stored(data_root_or_skip)
    numbers = data.chosen.numbers[::25]  # spread over all classes
    images = decode_images(data.folder / "images.npz", numbers)
    for row in (0, 17, 800):
        expected = by_pillow(content, int(numbers[row]))
        np.testing.assert_array_equal(images[row].permute(1, 2, 0).numpy(), expected)
    scaled = images.transpose(0, 1).flatten(1).double() / 255
    torch.testing.assert_close(scaled.mean(1), torch.tensor(tiny_imagenet.MEAN).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(scaled.std(1), torch.tensor(tiny_imagenet.STD).double(), atol=0.01, rtol=0)
