"""Partitions hold every item once, are drawn as their law says, and say what cannot be had."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import Stream
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from framework.federated.attributes import Attribute, attributes_of
from framework.federated.partition import IID, Classes, Dirichlet, Quantity, Shards, hold_out
from framework.federated.partition_figure import class_counts, heterogeneity, partition_figure
from framework.federated.partition_file import FromFile, save

ROOT = Path(__file__).resolve().parents[3]
RULES = {
    "iid": IID(),
    "dirichlet": Dirichlet(0.5),
    "capped": Dirichlet(0.5, capped=True),
    "balanced": Dirichlet(0.5, balanced=True),
    "shards": Shards(2),
    "classes": Classes(2),
    "quantity": Quantity(0.5),
    "attribute": Attribute("writer"),
}
DRAWN = sorted(set(RULES) - {"attribute"})


def digits(items: int = 6000, classes: int = 10) -> torch.Tensor:
    """Labels of classes of equal size, shuffled."""
    return (torch.arange(items) % classes)[torch.randperm(items, generator=torch.Generator().manual_seed(7))]


def assert_partition(parts, items, clients):
    assert len(parts) == clients
    assert torch.cat(parts).sort().values.tolist() == list(range(items))
    assert all(part.dtype == torch.int64 and len(part) and bool((part.diff() > 0).all()) for part in parts)


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# -- What holds for every partitioner


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.sampled_from([-1, 0, 1, 2, 5]), min_size=1, max_size=80),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_item_belongs_to_one_client_or_the_error_says_why(rule, labels, clients, seed):
    y, partitioner = torch.tensor(labels), RULES[rule]
    try:
        parts = partitioner.split(len(y), y, clients, seed, attributes=y)
    except ValueError as error:
        reasons = {
            "shards": clients * 2 > len(y),
            "classes": not 2 <= len(set(labels)) <= clients * 2 or "more owners than some class has" in str(error),
        }
        in_vain = "min_items=1; in the best of 100 draws the smallest client had 0" in str(error)
        assert clients > len(y) or reasons.get(rule, in_vain), error  # noqa: PT017
        return
    assert_partition(parts, len(y), clients)
    assert equal(parts, partitioner.split(len(y), y, clients, seed, attributes=y))


@pytest.mark.parametrize("rule", RULES)
def test_global_generators_are_neither_read_nor_moved(rule):
    y, writers = digits(), torch.arange(6000) // 400

    def split():
        return RULES[rule].split(6000, y, 10, 3, writers)

    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = split()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(1)
    np.random.seed(1)
    assert equal(first, split())


@pytest.mark.parametrize("rule", DRAWN)
def test_seeds_differ(rule):
    y = digits()
    assert not equal(RULES[rule].split(6000, y, 10, 0), RULES[rule].split(6000, y, 10, 1))


def test_sixty_thousand_items_and_a_hundred_clients_take_well_under_a_second():
    y, writers = digits(60_000), torch.arange(60_000) % 345
    for name, rule in RULES.items():
        start = time.process_time()
        parts = rule.split(60_000, y, 100, 0, writers)
        counts = class_counts(parts, y, 10)
        assert time.process_time() - start < 1, name
        assert counts.sum() == 60_000


def test_importing_the_partitioners_loads_no_heavy_library():
    code = (
        "import sys\n"
        "from framework.federated import partition, partition_figure, skew\n"
        "print(sorted({'lightning', 'matplotlib', 'sklearn', 'scipy', 'flwr', 'transformers'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.strip() == "[]", done.stderr


# -- What each law says


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 3))
def test_iid_sizes_are_equal_up_to_one(items, clients, seed):
    if clients <= items:
        sizes = [len(part) for part in IID().split(items, None, clients, seed)]
        assert max(sizes) - min(sizes) <= 1


def test_iid_mixes_the_items():
    parts = IID().split(10_000, None, 10, 0)
    assert all(abs(part.double().mean() - 5000) < 500 for part in parts)  # five standard deviations of the mean
    assert all((part.diff() != 1).any() for part in parts)


@pytest.mark.parametrize("law", [{}, {"capped": True}, {"balanced": True}], ids=str)
def test_dirichlet_goes_from_few_classes_to_iid(law):
    y = digits(20_000)
    near_iid = class_counts(Dirichlet(1e4, **law).split(20_000, y, 10, 0), y, 10)
    assert (near_iid - 200).abs().max() < 60  # a share of 0.1 has a standard deviation of 0.001; drawing adds sqrt(180)
    skewed = class_counts(Dirichlet(0.05, **law).split(20_000, y, 10, 0), y, 10)
    most = skewed.sort(dim=1, descending=True).values[:, :3].sum()
    assert most > 0.9 * 20_000
    assert heterogeneity(near_iid) < 0.05 < 0.6 < heterogeneity(skewed)


def test_dirichlet_shares_have_the_moments_of_the_law():
    y, alpha, clients = torch.arange(100_000) % 2, 0.7, 4
    shares = torch.cat(
        [class_counts(Dirichlet(alpha).split(len(y), y, clients, seed), y, 2).T / 50_000 for seed in range(150)]
    )
    # Var = (1/n)(1 - 1/n) / (n alpha + 1) = 0.0493; 300 draws are given without retries to speak of.
    assert shares.mean(0).sub(1 / clients).abs().max() < 0.05
    assert shares.var().item() == pytest.approx(0.25 * 0.75 / (clients * alpha + 1), rel=0.12)


def test_a_client_with_its_equal_share_gets_nothing_of_the_next_class():
    y = digits(1000)
    for seed in range(20):
        counts = class_counts(Dirichlet(0.3, capped=True).split(1000, y, 10, seed), y, 10)
        for one in range(1, 10):
            full = counts[:, :one].sum(1) >= 100
            assert counts[full, one].sum() == 0
    plain = class_counts(Dirichlet(0.3).split(1000, y, 10, 0), y, 10)
    assert plain[plain[:, :5].sum(1) >= 100, 5:].sum() > 0


def test_balanced_dirichlet_has_equal_sizes_and_the_classes_shares_on_average():
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([6000, 3000, 1003]))
    counts = class_counts(Dirichlet(0.2, balanced=True).split(len(y), y, 7, 0), y, 3)
    assert counts.sum(1).max() - counts.sum(1).min() == 0
    counts = class_counts(Dirichlet(1e4, balanced=True).split(len(y), y, 10, 0), y, 3)
    assert sorted(counts.sum(1).tolist()) == [1000] * 7 + [1001] * 3
    assert (counts / 1000 - torch.tensor([0.6, 0.3, 0.1])).abs().max() < 0.06  # about four standard deviations


def test_balanced_dirichlet_treats_all_clients_alike():
    y, distances = digits(1000), torch.zeros(10)
    for seed in range(60):
        counts = class_counts(Dirichlet(0.5, balanced=True).split(1000, y, 10, seed), y, 10).double()
        distances += (counts / 100 - 0.1).abs().sum(1) / 2 / 60
    # The last client to draw would be far off if it had to take what the others left.
    assert distances.max() - distances.min() < 0.1


@pytest.mark.parametrize("alpha", [5e-324, 1e-12, 1e12, 1.7e308])
def test_dirichlet_at_the_ends_of_its_range(alpha):
    y = digits(600, 6)
    for law in ({}, {"capped": True}, {"balanced": True}):
        try:
            assert_partition(Dirichlet(alpha, **law).split(600, y, 2, 0), 600, 2)
        except ValueError as error:
            assert alpha < 1, error  # noqa: PT017


def test_shards_of_mnist_sizes_give_two_classes_at_most_and_equal_sizes():
    y = digits(6000)
    for seed in range(5):
        parts = Shards(2).split(6000, y, 100, seed)
        counts = class_counts(parts, y, 10)
        assert {len(part) for part in parts} == {60}
        assert (counts > 0).sum(1).max() == 2
        assert set(counts[counts > 0].tolist()) == {30, 60}


def test_shards_do_not_follow_the_order_of_the_data_within_a_class():
    parts = Shards(1).split(100, torch.zeros(100, dtype=torch.int64), 2, 0)
    assert (parts[0].diff() != 1).any()


@pytest.mark.parametrize(("clients", "k"), [(10, 1), (10, 2), (10, 3), (30, 2), (7, 2), (4, 3), (3, 10), (1, 10)])
def test_every_client_has_exactly_k_classes_divided_equally(clients, k):
    y = digits(3000)
    for seed in range(5):
        counts = class_counts(Classes(k).split(3000, y, clients, seed), y, 10)
        assert ((counts > 0).sum(1) == k).all()
        assert ((counts > 0).sum(0) > 0).all()
        if clients >= 10:  # NIID-Bench: client i has the class i modulo their number
            assert (counts[torch.arange(clients), torch.arange(clients) % 10] > 0).all()
        for one in counts.T:
            assert one[one > 0].max() - one[one > 0].min() <= 1


def test_classes_leave_out_owners_that_a_small_class_cannot_serve():
    y = torch.cat([digits(500, 5), torch.tensor([5, 5])])  # class 5 has two items
    for seed in range(10):
        counts = class_counts(Classes(3).split(502, y, 12, seed), y, 6)
        assert ((counts > 0).sum(1) == 3).all()
        assert counts[:, 5].sort().values.tolist()[-3:] == [0, 1, 1]
    with pytest.raises(ValueError, match=r"more owners than some class has items \(the smallest of 2 has 1\)"):
        Classes(2).split(5, torch.tensor([0, 0, 0, 0, 1]), 2, 0)


def test_quantity_differs_in_sizes_and_not_in_labels():
    y = digits(60_000)
    parts = Quantity(0.5, min_items=500).split(60_000, None, 10, 0)
    sizes = torch.tensor([len(part) for part in parts])
    assert sizes.min() >= 500
    assert sizes.max() > 3 * sizes.min()
    assert heterogeneity(class_counts(parts, y, 10)) < 0.05
    assert max(len(part) for part in Quantity(1e6).split(60_000, None, 10, 0)) < 6100


def test_whole_attribute_values_are_dealt_by_size():
    genres = ["news"] * 50 + ["chat"] * 30 + ["blog"] * 25 + ["mail"] * 5
    parts = Attribute("genre").split(110, None, 2, 0, genres)
    # chat and blog fill the second client; the first value in sorted order belongs to the first client
    assert sorted(len(part) for part in parts) == [55, 55]
    assert [{genres[i] for i in part.tolist()} for part in parts] == [{"blog", "chat"}, {"mail", "news"}]
    one_each = Attribute("genre").split(110, None, 4, 0, genres)
    assert [{genres[i] for i in part.tolist()} for part in one_each] == [{"blog"}, {"chat"}, {"mail"}, {"news"}]


def test_attribute_values_are_cut_into_blocks_for_more_clients():
    domains = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1, 1])
    parts = Attribute("domain").split(10, None, 5, 0, domains)
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2], [3, 5], [6, 7], [8, 9]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 12))
def test_no_client_mixes_a_cut_value_with_another(values, clients):
    if clients <= len(values):
        y = torch.tensor(values)
        parts = Attribute(0).split(len(values), None, clients, 0, values)
        held = [set(y[part].tolist()) for part in parts]
        if clients > len(set(values)):
            assert all(len(of_client) == 1 for of_client in held)
        else:
            assert sum(map(len, held)) == len(set(values))


def test_attributes_are_found_without_decoding_an_item():
    class Drawings(Dataset):
        writer = ["ann", "bob", "ann"]

        def __getitem__(self, i):
            raise AssertionError("an item was decoded")

        def __len__(self):
            return 3

    assert attributes_of(Drawings(), "writer") == ["ann", "bob", "ann"]
    assert attributes_of(Subset(Subset(Drawings(), [2, 1]), [1]), "writer") == ["bob"]
    assert attributes_of(ConcatDataset([Drawings(), Subset(Drawings(), [1])]), "writer")[-2:] == ["ann", "bob"]
    triple = TensorDataset(torch.zeros(3, 2), torch.zeros(3), torch.tensor([[4], [6], [4]]))
    assert attributes_of(triple, 2).tolist() == [4, 6, 4]
    assert attributes_of([{"x": 1.0, "domain": "a"}, {"x": 2.0, "domain": "b"}], "domain") == ["a", "b"]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "Stream is an IterableDataset"),
        (TensorDataset(torch.zeros(3)), TypeError, "TensorDataset has no 'writer'"),
        ([{"writer": "ann"}, {"writer": 3}], ValueError, "'writer' of list must be all integers or all strings.* 3"),
        ([{"writer": 0.5}], ValueError, "one integer or string for each of 1 items, got float64"),
        (ConcatDataset([[{"writer": 1}], [{"writer": "b"}]]), ValueError, "a string in some and an integer in other"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_attributes_that_cannot_be_known(dataset, error, message):
    with pytest.raises(error, match=message):
        attributes_of(dataset, "writer")


# -- What cannot be had


@pytest.mark.parametrize("rule", [Dirichlet(0.05, 5), Dirichlet(0.05, 5, capped=True), Quantity(0.3, 5)])
def test_the_minimum_is_kept(rule):
    for seed in range(10):
        assert min(len(part) for part in rule.split(3000, digits(3000), 8, seed)) >= 5


@pytest.mark.parametrize("rule", [Dirichlet(0.01, 55), Dirichlet(0.01, 55, capped=True), Quantity(0.01, 55)])
def test_a_minimum_out_of_reach_is_an_error_that_says_what_to_change(rule):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"alpha=0.01 found no split of 600 items .* 10 clients has min_items=55"):
        rule.split(600, digits(600, 6), 10, 0)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IID(0), "min_items must be a whole number of at least 1, got 0"),
        (lambda: IID(1.5), "min_items must be a whole number of at least 1, got 1.5"),
        (lambda: Dirichlet(0.0), "alpha must be a positive, finite number, got 0.0"),
        (lambda: Dirichlet(float("inf")), "alpha .* got inf"),
        (lambda: Dirichlet(float("nan")), "alpha .* got nan"),
        (lambda: Dirichlet("much"), "alpha .* got 'much'"),
        (lambda: Dirichlet(1, min_items=-1), "min_items .* got -1"),
        (lambda: Dirichlet(1, max_retries=0), "max_retries .* got 0"),
        (lambda: Dirichlet(1, balanced=True, capped=True), "balanced and capped are different laws"),
        (lambda: Quantity(-1), "alpha .* got -1"),
        (lambda: Shards(0), "per_client .* got 0"),
        (lambda: Classes(True), "per_client .* got True"),
        (lambda: Attribute(""), "field must be the name or position"),
        (lambda: FromFile("split.csv"), r"path must be a file .npz or .json, got 'split.csv'"),
        (lambda: FromFile("split.npz", train=""), "train must be the name of an array"),
        (lambda: IID().split(3, None, 4, 0), r"more clients \(4\) than items \(3\)"),
        (lambda: IID().split(3, None, 0, 0), "clients must be a whole number of at least 1, got 0"),
        (lambda: IID().split(0, None, 1, 0), "items must be a whole number of at least 1, got 0"),
        (lambda: IID().split(3, None, 1, -1), "seed must be a whole number of at least 0, got -1"),
        (lambda: IID(2).split(3, None, 2, 0), "min_items=2 for 2 clients needs 4 items, but there are 3"),
        (lambda: Dirichlet(1).split(3, None, 1, 0), "Dirichlet divides by labels.* IID and Quantity need none"),
        (lambda: Shards().split(3, None, 1, 0), "Shards divides by labels"),
        (lambda: Classes().split(3, None, 1, 0), "Classes divides by labels"),
        (
            lambda: Dirichlet(1).split(3, torch.zeros(2).long(), 1, 0),
            r"labels must be one .* of 3 items, got .* \(2,\)",
        ),
        (lambda: Dirichlet(1).split(3, torch.zeros(3), 1, 0), "labels must be one integer .* got float32"),
        (
            lambda: Shards(2).split(5, torch.zeros(5).long(), 3, 0),
            "per_client=2 for 3 clients makes 6 shards of 5 items",
        ),
        (lambda: Classes(3).split(4, torch.arange(4) % 2, 1, 0), "per_client=3, but the labels have only 2 classes"),
        (
            lambda: Classes(2).split(9, torch.arange(9), 4, 0),
            "some of 9 classes without an owner: raise per_client to 3",
        ),
        (lambda: Attribute("w").split(3, None, 1, 0), "Attribute needs attributes"),
        (lambda: Attribute("w").split(3, None, 1, 0, ["a", 1, "b"]), "attributes must be all integers or all strings"),
        (lambda: Attribute("w").split(3, None, 1, 0, ["a", "b"]), "attributes must be one .* for each of 3 items"),
        (lambda: hold_out([torch.arange(3)], 1.0, 0), r"share must be in \[0, 1\), got 1.0"),
        (lambda: hold_out([torch.arange(3)], float("nan"), 0), "share must be"),
        (lambda: hold_out([torch.arange(3)], 0.5, -1), "seed must be"),
        (lambda: class_counts([torch.arange(2)], torch.tensor([0, 3]), 3), r"labels must be in \[0, 3\).* got 3"),
        (lambda: partition_figure(torch.zeros(0, 3)), r"counts must have the shape .* got \(0, 3\)"),
        (lambda: partition_figure(torch.ones(2, 3), ["a"]), "1 names for 3 classes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- Items that clients keep


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 2**64 - 1),
)
def test_clients_keep_their_share_and_never_all(sizes, share, seed):
    parts = list(torch.arange(sum(sizes)).split(sizes))
    train, held = hold_out(parts, share, seed)
    for part, left, kept in zip(parts, train, held, strict=True):
        assert torch.cat([left, kept]).sort().values.tolist() == part.tolist()
        assert (left.diff() > 0).all()
        assert (kept.diff() > 0).all()
        if len(part) >= 2:
            assert len(kept) == min(max(round(share * len(part)), int(share > 0)), len(part) - 1)
        else:
            assert len(kept) == 0
    assert equal(held, hold_out(parts, share, seed)[1])


def test_what_a_client_keeps_depends_on_its_own_items_alone():
    parts = [torch.arange(20), torch.arange(20, 60)]
    other = [torch.arange(20), torch.arange(30, 33)]
    assert torch.equal(hold_out(parts, 0.3, 1)[1][0], hold_out(other, 0.3, 1)[1][0])
    assert not torch.equal(hold_out(parts, 0.3, 1)[1][0], hold_out(parts, 0.3, 2)[1][0])
    assert IID().held_out(parts) is None


# -- Files


def test_a_saved_partition_comes_back(tmp_path):
    path = tmp_path / "new" / "split.npz"
    parts = Dirichlet(0.3).split(300, digits(300), 6, 0)
    train, held = hold_out(parts, 0.25, 0)
    save(path, train, held)
    saved = FromFile(str(path))
    assert equal(saved.split(300, None, 6, 5), parts)
    again_train, again_held = saved.held_out(parts)
    assert equal(again_train, train)
    assert equal(again_held, held)
    assert FromFile(str(path), held_out=None).held_out(parts) is None
    save(path, parts)
    assert equal(FromFile(str(path)).split(300, None, 6, 0), parts)
    assert all(len(kept) == 0 for kept in FromFile(str(path)).held_out(parts)[1])


def test_a_partition_in_json(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"1": [4, 0], "0": [1, 3, 2]}))
    saved = FromFile(str(path))
    parts = saved.split(5, None, 2, 0)
    assert [part.tolist() for part in parts] == [[1, 2, 3], [0, 4]]
    assert saved.held_out(parts) is None


def test_a_relative_path_is_looked_for_among_the_data_sets(tmp_path, monkeypatch):
    save(tmp_path / "mnist" / "split.npz", [torch.tensor([0]), torch.tensor([1])])
    monkeypatch.setenv("FULGURITE_DATA", str(tmp_path))
    assert len(FromFile("mnist/split.npz").split(2, None, 2, 0)) == 2


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"train_client": np.zeros(3, int)},
            {},
            r"train: array 'train_client' of .* each of 4 items, got int64 .*\(3,\)",
        ),
        ({"train_client": np.zeros(4)}, {}, "must hold an integer for each of 4 items, got float64"),
        ({"train_client": np.array([0, -1, 1, 1])}, {}, "has the client -1 at item 1"),
        ({"train_client": np.array([0, 0, 2, 2])}, {}, "clients 0 to 2, but clients=2"),
        ({"train_client": np.array([0, 0, 0, 0])}, {}, "clients 0 to 0, but clients=2"),
        ({"train_client": np.array([1, 1, 1, 1])}, {}, "has no item of client 0"),
        ({"client": np.array([0, 1, 0, 1])}, {}, "train: .* has no array 'train_client', it has client"),
        ({"train_client": np.array([0, 1, 0, 1])}, {"train": "train_clients"}, "did you mean train_client"),
        (
            {"train_client": np.array([{}] * 4, object)},
            {},
            "cannot be read as an .npz file with an array 'train_client'",
        ),
    ],
)
def test_bad_npz_files(tmp_path, arrays, options, message):
    path = tmp_path / "split.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        FromFile(str(path), **options).split(4, None, 2, 0)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "held_out: .* has no array 'train_is_test', it has train_client; held_out: null takes all items"),
        (np.zeros(4, int), "held_out: array 'train_is_test' of .* must hold a bool for each of 4 items, got int64"),
        (np.zeros(5, bool), r"each of 4 items, got bool of shape \(5,\)"),
        (np.array([True, False, True, False]), "leaves client 0 no item to train on"),
    ],
)
def test_bad_arrays_of_kept_items(tmp_path, mask, message):
    path = tmp_path / "split.npz"
    np.savez(path, train_client=np.array([0, 1, 0, 1]), **({} if mask is None else {"train_is_test": mask}))
    saved = FromFile(str(path))
    parts = saved.split(4, None, 2, 0)
    with pytest.raises(ValueError, match=message):
        saved.held_out(parts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"no zip file", "cannot be read as an .npz"),
        ("a.npz", b"", "cannot be read as an .npz"),
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.json", b"\xff", "cannot be read as JSON"),
        ("a.json", b"[[0, 1]]", "must hold lists of indices by client"),
        ("a.json", b'{"0": [0, 1], "2": [2, 3]}', "by client, .* without a gap"),
        ("a.json", b'{"0": [0, 1], "1": [2, 4]}', "client 1 of .* has the item 4; items are 0 to 3"),
        ("a.json", b'{"0": [0, 1], "1": [2, -1]}', "has the item -1"),
        ("a.json", b'{"0": [0, 1], "1": [2, 3.0]}', "client 1 of .* whole numbers"),
        ("a.json", b'{"0": [0, 1], "1": 2}', "client 1 of .* whole numbers"),
        ("a.json", b'{"0": [0, 1], "1": [1, 2, 3]}', "item 1 of .* belongs to clients 0 and 1"),
        ("a.json", b'{"0": [0, 1], "1": [2]}', "gives item 3 of 4 to no client"),
        ("a.json", b'{"0": [0, 1, 2, 3]}', "clients 0 to 0, but clients=2"),
        ("a.json", b'{"0": [], "1": [0, 1, 2, 3]}', "has no item of client 0"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        FromFile(str(tmp_path / name)).split(4, None, 2, 0)


def test_a_single_array_a_folder_and_a_file_that_is_not_there(tmp_path):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(4, int))
    (tmp_path / "folder.npz").mkdir()
    for name in ("one", "folder"):
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read as an .npz file"):
            FromFile(str(tmp_path / f"{name}.npz")).split(4, None, 2, 0)
    for name in ("none.npz", "none.json"):
        with pytest.raises(FileNotFoundError, match=f"there is no partition file .*{name}"):
            FromFile(str(tmp_path / name)).split(4, None, 2, 0)


@pytest.mark.parametrize(
    ("path", "parts", "held", "message"),
    [
        ("a.txt", [[0]], None, "path must be a file .npz"),
        ("a.npz", [[0], [1]], [[2]], "1 parts for 2 clients"),
        ("a.npz", [[0, 1], [2]], [[1], []], "together hold each of 0 to 3 once"),
        ("a.npz", [[0], [2]], None, "together hold each of 0 to 1 once"),
    ],
)
def test_partitions_that_cannot_be_saved(tmp_path, path, parts, held, message):
    parts, held = ([torch.tensor(p, dtype=torch.int64) for p in some] if some else None for some in (parts, held))
    with pytest.raises(ValueError, match=message):
        save(tmp_path / path, parts, held)
    assert not list(tmp_path.iterdir())


def test_pfllibs_partition_of_mnist(data_root_or_skip):
    path = data_root_or_skip / "mnist/pfllib_dirichlet01_partition.npz"
    if not path.is_file():
        pytest.skip(f"PFLlib's partition is not at {path}")
    with np.load(path) as arrays:
        clients, kept = arrays["train_client"], arrays["train_is_test"]
    saved = FromFile(str(path))
    parts = saved.split(60_000, None, 20, 0)
    train, held = saved.held_out(parts)
    for client in range(20):
        assert parts[client].tolist() == np.flatnonzero(clients == client).tolist()
        assert train[client].tolist() == np.flatnonzero((clients == client) & ~kept).tolist()
        assert held[client].tolist() == np.flatnonzero((clients == client) & kept).tolist()
    # The published sizes count the images of the training and of the test files.
    rest = FromFile(str(path), train="test_client", held_out="test_is_test")
    rest_parts = rest.split(10_000, None, 20, 0)
    sizes = [len(a) + len(b) for a, b in zip(parts, rest_parts, strict=True)]
    assert (min(sizes), max(sizes), sum(sizes)) == (499, 6189, 70_000)
    kept_sizes = [len(a) + len(b) for a, b in zip(held, rest.held_out(rest_parts)[1], strict=True)]
    assert sum(kept_sizes) == 17_508
    assert all(abs(k / n - 0.25) < 0.001 for k, n in zip(kept_sizes, sizes))

    with gzip.open(data_root_or_skip / "mnist/train-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()[8:]), dtype=torch.uint8)
    counts = class_counts(parts, labels, 10)
    assert counts[16].nonzero().flatten().tolist() == [0]  # this client has nothing but zeros
    assert heterogeneity(counts) > 0.6
    with pytest.raises(ValueError, match="clients 0 to 19, but clients=10"):
        saved.split(60_000, None, 10, 0)


# -- How much clients differ


def test_class_counts_equal_a_loop():
    y = torch.tensor([0, 2, -1, 1, 2, 2])
    parts = [torch.tensor([0, 1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 4, 5])]
    assert class_counts(parts, y, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 2, 0]]


def test_heterogeneity_in_closed_form():
    assert heterogeneity(torch.tensor([[5, 5], [50, 50]])) == 0
    assert heterogeneity(torch.eye(4, dtype=torch.int64) * 30) == pytest.approx(0.75)
    assert heterogeneity(torch.tensor([[30, 0], [0, 10], [0, 0]])) == pytest.approx((0.25 + 0.75) / 2)
    assert heterogeneity(torch.zeros(2, 3)) == 0


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_heterogeneity_is_in_the_unit_interval(rows):
    assert 0 <= heterogeneity(torch.tensor(rows)) <= 1


def test_figures_show_the_counts_and_leave_pyplot_alone():
    counts = torch.tensor([[3, 0, 2], [1, 4, 0]])
    axes = partition_figure(counts, ["a", "b", "c"]).axes[0]
    bars = [[bar.get_height() for bar in group] for group in axes.containers]
    tops = [[bar.get_y() + bar.get_height() for bar in group] for group in axes.containers]
    assert bars == counts.T.tolist()
    assert tops == counts.cumsum(1).T.tolist()
    assert "0.40" in axes.get_title()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    sizes = partition_figure(torch.tensor([4, 6])).axes[0]
    assert [bar.get_height() for bar in sizes.containers[0]] == [4, 6]
    many = torch.arange(60).reshape(2, 30)
    assert partition_figure(many).axes[0].images[0].get_array().tolist() == many.T.tolist()
