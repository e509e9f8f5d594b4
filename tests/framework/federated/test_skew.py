"""How an item looks depends on (seed, client, item) alone, and as the skew says."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from strangers import Stream
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from framework.federated.skew import LABELS, LabelNoise, Noise, Rotate, Several, Skewed, Transform, rotated
from framework.loaders.labels import LABEL_NAMES, labels_of


def images(items: int = 40, classes: int = 4) -> TensorDataset:
    x = torch.randn(items, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.arange(items) % classes)


def seen(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and labels, read one by one."""
    x, y = zip(*(dataset[i] for i in range(len(dataset))))
    return torch.stack(x), torch.as_tensor(y)


SKEWS = {
    "noise": Noise(0.5),
    "rotate": Rotate([0.0, 30.0, 90.0]),
    "transform": Transform(["transpose", "invert", "none"]),
    "labels": LabelNoise(0.5),
    "several": Several([Noise(0.5), Transform(["mirror"]), Noise(0.1), LabelNoise(0.5)]),
}


# -- What holds for every skew


@pytest.mark.parametrize("name", SKEWS)
def test_an_item_looks_the_same_however_it_is_read(name):
    data, skew = images(), SKEWS[name]
    before = [tensor.clone() for tensor in data.tensors]
    torch.manual_seed(0)
    first = seen(skew.of(data, 1, 3, 7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    skewed = skew.of(data, 1, 3, 7)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5)).tolist()
    for i in [*order, *order]:  # twice, in another order
        x, y = skewed[i]
        assert torch.equal(x, first[0][i])
        assert y == first[1][i]
    assert torch.equal(torch.get_rng_state(), state)
    at_once = skewed.__getitems__(order)
    assert torch.equal(torch.stack([x for x, _ in at_once]), first[0][order])
    assert torch.equal(skewed[-1][0], first[0][39])
    for copied in (copy.deepcopy(skewed), pickle.loads(pickle.dumps(skewed))):
        assert torch.equal(seen(copied)[0], first[0])
    assert all(torch.equal(a, b) for a, b in zip(before, data.tensors, strict=True))  # nothing was changed in place


@pytest.mark.parametrize("name", SKEWS)
def test_a_subset_may_be_wrapped_or_wrap(name):
    data, kept = images(), [3, 31, 8, 20]
    outside = Subset(SKEWS[name].of(data, 1, 3, 0), kept)
    inside = SKEWS[name].of(Subset(Subset(data, range(1, 40)), [i - 1 for i in kept]), 1, 3, 0)
    for one, other in zip(seen(outside), seen(inside), strict=True):
        assert torch.equal(one, other)


def test_a_loader_collates_the_same_structure_in_workers_too():
    data = images()
    skewed = SKEWS["several"].of(data, 2, 3, 0)
    alone = seen(skewed)
    for workers in (0, 2):
        batches = list(DataLoader(skewed, batch_size=16, num_workers=workers))
        assert [type(batch) for batch in batches] == [list] * 3  # as without skew
        assert torch.equal(torch.cat([x for x, _ in batches]), alone[0])
        assert torch.equal(torch.cat([y for _, y in batches]), alone[1])


def test_items_keep_their_kind_and_what_else_they_hold():
    class Item(NamedTuple):
        x: torch.Tensor
        y: int
        number: int

    x = torch.zeros(2, 2)
    for item in ((x, 1, "a"), [x, 1, "a"], Item(x, 1, 7), (x, np.int64(1))):
        for skew in (Noise(1.0), LabelNoise(1.0, classes=3)):
            got = skew.of([item], 1, 2, 0)[0]
            assert type(got) is type(item)
            assert got[2:] == item[2:]
            assert type(got[1]) is type(item[1])
    half = Noise(1.0).of([(x.bfloat16(), 1)], 1, 2, 0)[0][0]
    assert half.dtype == torch.bfloat16
    assert half.abs().max() > 0


def test_attributes_are_those_of_the_data():
    class Named(Dataset):
        classes = ["cat", "dog"]
        targets = [0, 1, 1]

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.zeros(2), self.targets[i]

    skewed = Noise(1.0).of(Named(), 0, 2, 0)
    assert skewed.classes == ["cat", "dog"]
    assert skewed.targets == [0, 1, 1]
    assert labels_of(skewed).tolist() == [0, 1, 1]
    assert not hasattr(skewed, "nothing_of_this_name")
    without = Noise(1.0).of(TensorDataset(torch.zeros(2, 1)), 0, 1, 0)
    assert not hasattr(without, "targets")
    assert LABELS == LABEL_NAMES


# -- Noise


def test_the_level_of_noise_grows_with_the_client():
    data = TensorDataset(torch.zeros(50, 1, 20, 20), torch.zeros(50).long())
    for client in range(4):
        x = seen(Noise(0.8).of(data, client, 4, 0))[0]
        assert x.std().item() == pytest.approx(0.8 * client / 4, rel=0.02)
        assert x.mean().abs() < 0.02
        assert Noise(0.8).level(client, 4) == 0.8 * client / 4


def test_noise_differs_by_item_client_seed_and_place():
    data = TensorDataset(torch.zeros(300, 16), torch.zeros(300).long())
    one = seen(Noise(1.0).of(data, 2, 4, 0))[0]
    correlations = torch.corrcoef(one).fill_diagonal_(0)
    assert correlations.abs().max() < 0.95  # no two items share their noise
    assert correlations.mean().abs() < 0.01
    for client, seed in ((3, 0), (2, 1)):
        other = seen(Noise(1.0).of(data, client, 4, seed))[0]
        both = torch.stack([one.flatten(), other.flatten()])
        assert torch.corrcoef(both)[0, 1].abs() < 0.06
    twice = seen(Several([Noise(1.0), Noise(1.0)]).of(data, 2, 4, 0))[0]
    assert twice.std().item() == pytest.approx(0.5 * 2**0.5, rel=0.05)  # not 1, as the same noise twice would be


# -- Images


@pytest.mark.parametrize("turns", range(5))
def test_right_angles_are_rot90(turns):
    data = images()
    x = seen(Rotate([90.0 * turns]).of(data, 0, 1, 0))[0]
    assert torch.equal(x, data.tensors[0].rot90(turns, (-2, -1)))
    assert torch.equal(rotated(data.tensors[0], 90.0 * (turns - 4)), x)


def test_half_a_turn_undoes_itself():
    x = images()[0][0]
    assert torch.equal(rotated(rotated(x, 180), 180), x)
    wide = torch.randn(3, 4, 7)
    assert torch.equal(rotated(rotated(wide, 180), 180), wide)


@pytest.mark.parametrize("shape", [(9, 9), (2, 12, 8), (1, 7, 14)])
def test_other_angles_turn_the_same_way(shape):
    x = torch.randn(shape)
    torch.testing.assert_close(rotated(x, 179.9999), rotated(x, 180), atol=1e-3, rtol=0)
    if shape[-1] == shape[-2]:
        torch.testing.assert_close(rotated(x, 89.9999), x.rot90(1, (-2, -1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("degrees", [20.0, -75.0, 200.0])
def test_rotation_equals_scipys_away_from_the_border(degrees):
    from scipy.ndimage import rotate

    smooth = torch.nn.functional.avg_pool2d(torch.rand(1, 34, 24), 5, stride=1).double()[0]
    expected = rotate(smooth.numpy(), degrees, reshape=False, order=1, mode="nearest")
    inner = (slice(10, 20), slice(6, 14))
    np.testing.assert_allclose(rotated(smooth, degrees).numpy()[inner], expected[inner], atol=1e-5)


def test_groups_of_clients_look_alike():
    data = images()
    rotate = Rotate([0, 90, 180, 270])
    assert [rotate.group(client) for client in range(6)] == [0, 1, 2, 3, 0, 1]
    looks = [seen(rotate.of(data, client, 6, 0))[0] for client in range(6)]
    assert torch.equal(looks[0], data.tensors[0])
    assert torch.equal(looks[1], looks[5])
    assert not torch.equal(looks[1], looks[3])


def test_transforms():
    x = torch.tensor([[[0.0, 1.0], [2.0, 5.0]]])
    expected = {
        "none": [[0.0, 1.0], [2.0, 5.0]],
        "transpose": [[0.0, 2.0], [1.0, 5.0]],
        "invert": [[5.0, 4.0], [3.0, 0.0]],
        "mirror": [[1.0, 0.0], [5.0, 2.0]],
        "flip": [[2.0, 5.0], [0.0, 1.0]],
    }
    transform = Transform(list(expected))
    for client, values in enumerate(expected.values()):
        assert transform.of([(x, 0)], client, 5, 0)[0][0].tolist() == [values]
        shaped = Transform(list(expected), shape=(2, 2))
        assert shaped.of([(x.flatten(), 0)], client, 5, 0)[0][0].tolist() == [v for row in values for v in row]


def test_flattened_images_need_their_shape():
    x = torch.arange(6.0)
    flat = Rotate([180], shape=(2, 3)).of([(x, 0)], 0, 1, 0)[0][0]
    assert flat.tolist() == [5, 4, 3, 2, 1, 0]


# -- Labels


def test_a_share_of_the_labels_is_flipped_evenly_to_the_other_classes():
    data = images(8000, 4)
    y = seen(LabelNoise(0.3).of(data, 1, 2, 0))[1]
    flipped = y != data.tensors[1]
    assert flipped.double().mean().item() == pytest.approx(0.3, abs=0.02)  # four standard deviations
    moves = ((y - data.tensors[1]) % 4)[flipped].bincount(minlength=4)
    assert moves[0] == 0
    assert (moves[1:] / moves.sum() - 1 / 3).abs().max() < 0.05
    other = seen(LabelNoise(0.3).of(data, 0, 2, 0))[1] != data.tensors[1]
    assert (flipped & other).double().mean().item() == pytest.approx(0.09, abs=0.015)  # clients are independent


def test_all_labels_and_none():
    data = images()
    assert (seen(LabelNoise(1.0).of(data, 0, 1, 0))[1] != data.tensors[1]).all()
    assert torch.equal(seen(LabelNoise(0.0).of(data, 0, 1, 0))[1], data.tensors[1])


def test_labels_without_decoding_are_those_of_the_items():
    data = images(200)
    for skewed in (
        LabelNoise(0.5).of(data, 1, 2, 3),
        LabelNoise(0.5).of(Subset(data, [7, 3, 150]), 1, 2, 3),
        Subset(Noise(0.1).of(LabelNoise(0.5).of(Subset(data, range(50, 90)), 1, 2, 3), 1, 2, 3), [4, 30]),
        Several([LabelNoise(0.5), LabelNoise(0.5)]).of(data, 1, 2, 3),
    ):
        assert labels_of(skewed).tolist() == seen(skewed)[1].tolist()


def test_items_without_a_label_stay_so():
    data = TensorDataset(torch.zeros(50, 2), torch.tensor([-1, 0, 1, 2, -1] * 10))
    skewed = LabelNoise(1.0).of(data, 0, 1, 0)
    y = seen(skewed)[1]
    assert torch.equal(y == -1, data.tensors[1] == -1)
    assert ((y >= -1) & (y < 3)).all()
    assert torch.equal(labels_of(skewed), y)


def test_a_client_with_few_classes_flips_to_all_that_the_data_have():
    data = images(400, 4)
    zeros = Subset(data, range(0, 400, 4))
    assert set(seen(LabelNoise(1.0).of(zeros, 0, 1, 0))[1].tolist()) == {1, 2, 3}


def test_label_noise_asks_nothing_of_x():
    words = [(torch.tensor([4, 8]), 0), (torch.tensor([1, 2]), 1)]
    assert [y for _, y in LabelNoise(1.0).of(words, 0, 1, 0)] == [1, 0]


# -- What cannot be had


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(-0.1), "std must be a finite number of at least 0, got -0.1"),
        (lambda: Noise(float("nan")), "std must be .* got nan"),
        (lambda: Rotate([]), r"degrees must be a list of finite angles.* got \[\]"),
        (lambda: Rotate([0.0, float("inf")]), "degrees must be .* inf"),
        (lambda: Rotate(90.0), "degrees must be a list .* got 90.0"),
        (lambda: Rotate([90], shape=(8,)), r"shape must be a height and a width, both at least 1, got \(8,\)"),
        (lambda: Rotate([90], shape=(8, 0)), r"shape must be .* got \(8, 0\)"),
        (lambda: Transform([]), r"kinds must be a list of none, transpose, .* got \[\]"),
        (lambda: Transform(["none", "blur"]), "kinds must be .* 'blur'"),
        (lambda: Transform("none"), "kinds must be a list"),
        (lambda: LabelNoise(1.1), r"share must be in \[0, 1\], got 1.1"),
        (lambda: LabelNoise(0.1, classes=1), "classes must be at least 2, got 1"),
        (lambda: Several([]), "skews must name at least one"),
        (lambda: Noise(1).of(images(), 3, 3, 0), r"client must be in \[0, clients=3\), got 3"),
        (lambda: Noise(1).of(images(), -1, 3, 0), "client must be .* got -1"),
        (lambda: Noise(1).of(images(), 0, 3, -2), "seed must not be negative, got -2"),
        (
            lambda: LabelNoise(0.5).of(images(4, 1), 0, 1, 0),
            "at least 2 classes, but the labels of TensorDataset have 1",
        ),
        (
            lambda: LabelNoise(0.5, classes=2).of(images(), 0, 1, 0)[3],
            "y of TensorDataset must be below classes=2, got 3",
        ),
        (lambda: Rotate([90]).of([(torch.zeros(8), 0)], 0, 1, 0)[0], r"Rotate needs images .* shape \(8,\)"),
        (lambda: Rotate([90], (2, 3)).of([(torch.zeros(8), 0)], 0, 1, 0)[0], r"shape=\(2, 3\) does not fit an x of"),
        (lambda: Rotate([90]).of([(torch.zeros(2, 3), 0)], 0, 1, 0)[0], "turn images of 2 x 3 into 3 x 2"),
        (lambda: Transform(["transpose"]).of([(torch.zeros(2, 3), 0)], 0, 1, 0)[0], "needs square images"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(1).of(Stream(), 0, 1, 0), "Stream is not map-style"),
        (lambda: Noise(1).of(iter([]), 0, 1, 0), "list_iterator is not map-style"),
        (lambda: Noise(1).of([{"x": torch.zeros(1)}], 0, 1, 0)[0], "items of list must be tuples .* got dict"),
        (
            lambda: Noise(1).of([(torch.zeros(1).long(), 0)], 0, 1, 0)[0],
            "x of list must be .* got a tensor of torch.int64",
        ),
        (lambda: Noise(1).of([("text", 0)], 0, 1, 0)[0], "x of list must be a tensor of floats for Noise, got str"),
        (lambda: Rotate([90]).of([(np.zeros((2, 2)), 0)], 0, 1, 0)[0], "for Rotate, got ndarray"),
        (
            lambda: LabelNoise(1, 2).of([(torch.zeros(1), 0.5)], 0, 1, 0)[0],
            "y of list must be an integer class.* got float",
        ),
        (lambda: LabelNoise(1, 2).of([(0, torch.zeros(3).long())], 0, 1, 0)[0], r"got torch.int64 of shape \(3,\)"),
        (lambda: LabelNoise(1, 2).of([(torch.zeros(1),)], 0, 1, 0)[0], "items of list have no y beside x"),
        (lambda: LabelNoise(1).of(TensorDataset(torch.zeros(2)), 0, 1, 0), "give it the number of classes"),
    ],
)
def test_items_that_cannot_be_skewed(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_skewed_is_what_skews_make():
    assert isinstance(Noise(1.0).of(images(), 0, 1, 0), Skewed)
    assert len(Noise(1.0).of(images(12), 0, 1, 0)) == 12


def test_beyond_the_border_of_a_turned_image_its_values_go_on():
    flat = torch.full((1, 8, 8), -0.42)
    torch.testing.assert_close(rotated(flat, 45), flat)
