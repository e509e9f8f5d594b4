"""Labels from people: what is asked, what comes back, and everything that can be wrong with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from framework.active.items import as_class, fingerprint
from framework.active.labelling import LabelFolder, describe, is_labelled, set_labels

FORMATS = pytest.mark.parametrize("format", ["jsonl", "csv"])


class Sentences(Dataset):
    """Token data with protocols of their own; tags X and O."""

    def __init__(self, texts):
        self.texts, self.tags = [text.split() for text in texts], [None] * len(texts)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.texts[index], self.tags[index]

    def describe(self, index):
        return {"text": " ".join(self.texts[index]), "tokens": self.texts[index]}

    def is_labelled(self):
        return torch.tensor([tags is not None for tags in self.tags])

    def set_labels(self, labels):
        for index, tags in labels.items():
            if set(tags) - {"X", "O"}:
                raise ValueError(f"sentence {index}: unknown tag {tags!r}")
        for index, tags in labels.items():
            self.tags[index] = tags


class Images(Dataset):
    """Items decoded as they are served, augmented at random."""

    def __init__(self, targets):
        self.targets, self.files = targets, [Path(f"pictures/{k}.png") for k in range(len(targets))]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.rand(2, 2), int(self.targets[index])


def vectors(items=10, labelled=()):
    y = torch.full((items,), -1)
    y[list(labelled)] = 0
    return TensorDataset(torch.arange(items * 2.0).reshape(items, 2), y)


def fields(file):
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def fill(file, labels):
    """As a person does: write labels by id, and leave the rest."""
    records = fields(file)
    for record in records:
        if int(record["id"]) in labels:
            record["label"] = labels[int(record["id"])]
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# -- there and back ---------------------------------------------------------------------------------------------------


@FORMATS
def test_labels_go_out_and_come_back_through_nested_subsets(tmp_path, format):
    data = vectors(10)
    pool = Subset(Subset(data, range(9, -1, -1)), range(1, 9))  # item i of the pool is item 8 - i of the data
    folder = LabelFolder(tmp_path / "labels", format, class_names=["cat", "dog"])
    assert folder.next_round() == 0
    assert folder.pending() is None
    assert folder.read(pool) == {}

    first = folder.write(0, pool, [3, 1], scores=[0.123456, 2], suggestions=torch.tensor([1, 0]))
    assert first.name == f"round_000.{format}"
    assert [int(record["id"]) for record in fields(first)] == [3, 1]
    assert [str(record["score"]) for record in fields(first)] == ["0.1235", "2.0"]
    assert [record["suggestion"] for record in fields(first)] == ["dog", "cat"]
    assert all(not record["label"] for record in fields(first))
    waiting = folder.pending()
    assert waiting == (0, first, 2, 2)
    assert str(waiting).startswith(f"waiting for labels: 2 of 2 items in {first} have none; fill in `label`")

    fill(first, {1: "cat"})
    assert folder.pending().missing == 1
    with pytest.raises(ValueError, match=rf"round_000.{format}: 1 of 2 items have no label yet, the first is id 3"):
        folder.read(pool)
    fill(first, {3: 1})
    assert folder.pending() is None
    second = folder.write(folder.next_round(), pool, [0])
    assert folder.pending() == (1, second, 1, 1)
    fill(second, {0: "dog"})

    labels = LabelFolder(tmp_path / "labels", class_names=["cat", "dog"]).read(pool)  # another process
    assert labels == {3: 1, 1: 0, 0: 1}
    folder.apply(pool, labels)
    assert data.tensors[1].tolist() == [-1, -1, -1, -1, -1, 1, -1, 0, 1, -1]
    assert is_labelled(pool).nonzero().flatten().tolist() == [0, 1, 3]
    assert folder.read(pool) == labels  # labels do not change what an item is


@FORMATS
def test_what_nobody_can_label_is_skipped(tmp_path, format):
    data = vectors(10)
    folder = LabelFolder(tmp_path, format, class_names=["cat", "dog"])
    file = folder.write(0, data, [3, 1, 7])
    fill(file, {3: "dog", 1: "[Skip] "})
    assert folder.pending().missing == 1
    fill(file, {7: "[skip]"})
    assert folder.pending() is None
    assert folder.read(data) == {3: 1}
    assert folder.skipped == {1, 7}
    fill(file, {7: "cat"})  # somebody could, after all
    assert folder.read(data) == {3: 1, 7: 0}
    assert folder.skipped == {1}
    assert "[skip]" in (tmp_path / "README.txt").read_text()
    tokens = Sentences(["one", "two words"])
    fill(LabelFolder(tmp_path / "tokens", format).write(0, tokens, [0, 1]), {0: "O", 1: "[skip]"})
    assert LabelFolder(tmp_path / "tokens", format).read(tokens) == {0: ["O"]}


@FORMATS
def test_token_labels_as_list_or_with_spaces(tmp_path, format):
    data = Sentences(["never asked", "Ada met Bob", 'yes, "quoted"', "one"])
    pool = Subset(data, [1, 2, 3])
    folder = LabelFolder(tmp_path, format, class_names=["O", "X"])
    file = folder.write(0, pool, [0, 1, 2], suggestions=[[1, 0, 1], None, [0]])
    record = fields(file)[0]
    assert record["text"] == "Ada met Bob"
    assert record["tokens"] == (["Ada", "met", "Bob"] if format == "jsonl" else "Ada met Bob")
    assert record["suggestion"] == (["X", "O", "X"] if format == "jsonl" else "X O X")
    assert fields(file)[1]["text"] == 'yes, "quoted"'
    fill(file, {0: "X O  X ", 1: "O O" if format == "csv" else ["O", "O"], 2: "X"})
    folder.apply(pool, folder.read(pool))
    assert data.tags == [None, ["X", "O", "X"], ["O", "O"], ["X"]]
    assert "one tag per token" in (tmp_path / "README.txt").read_text()
    assert "Tags: O, X." in (tmp_path / "README.txt").read_text()


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8), min_size=1),
    format=st.sampled_from(["jsonl", "csv"]),
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1), min_size=1, unique=True
    ),
    draw=st.randoms(use_true_random=False),
)
def test_any_text_and_any_name_survive(tmp_path_factory, texts, format, names, draw):
    class Texts(Images):
        def describe(self, index):
            return {"text": texts[index]}

    data = Texts([-1] * len(texts))
    folder = LabelFolder(tmp_path_factory.mktemp("labels"), format, names)
    file = folder.write(0, data, range(len(texts)))
    assert [record["text"] for record in fields(file)] == texts
    wanted = {k: draw.randrange(len(names)) for k in range(len(texts))}
    fill(file, {k: names[number] for k, number in wanted.items()})
    assert folder.read(data) == wanted


def test_spreadsheets_change_delimiters_numbers_and_line_ends(tmp_path):
    data = vectors(3)
    folder = LabelFolder(tmp_path, "csv", classes=12)
    file = folder.write(0, data, [2, 0])
    prints = [record["fingerprint"] for record in fields(file)]
    file.write_bytes(f"\ufeffid;label;fingerprint\r\n0;11.0;{prints[1]}\r\n2;3;\r\n".encode())
    assert folder.read(data) == {0: 11, 2: 3}


def test_formats_may_change_between_rounds(tmp_path):
    data = vectors(4)
    fill(LabelFolder(tmp_path).write(0, data, [1]), {1: 5})
    folder = LabelFolder(tmp_path, "csv")
    fill(folder.write(1, data, [2]), {2: 6})
    assert folder.read(data) == {1: 5, 2: 6}


@FORMATS
def test_columns_of_the_data_do_not_hide_ours(tmp_path, format):
    data = Images([-1, -1])
    data.describe = lambda index: {"id": f"patient {index}", "label": "old", "age": 7}
    (record,) = fields(LabelFolder(tmp_path, format).write(0, data, [1]))
    assert (int(record["id"]), record["label"] or None) == (1, None)
    assert (record["data.id"], record["data.label"], int(record["age"])) == ("patient 1", "old", 7)


# -- writing again ----------------------------------------------------------------------------------------------------


def test_asking_again_asks_only_for_what_is_new(tmp_path):
    data, folder = vectors(), LabelFolder(tmp_path)
    file = folder.write(0, data, [4, 5])
    fill(file, {4: 0})
    before = file.read_text()
    assert folder.write(0, data, [5, 4]) is None
    second = folder.write(0, data, [5, 7, 6], scores=[1, 2, 3], suggestions=[1, 0, 1])  # another run, in its round 0
    assert second.name == "round_001.jsonl"
    assert [(each["id"], each["score"], each["suggestion"]) for each in fields(second)] == [(7, 2.0, 0), (6, 3.0, 1)]
    assert file.read_text() == before
    assert folder.write(5, data, [0]).name == "round_005.jsonl"
    assert folder.next_round() == 6
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"round_000.jsonl is gone"):
        folder.pending()


def test_killed_between_file_and_state_the_round_is_written_again(tmp_path, monkeypatch):
    from framework import rundir

    data, folder = vectors(), LabelFolder(tmp_path)
    write = rundir.write

    def dies(path, text):
        if path.name == "state.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(rundir, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.write(0, data, [3])
    monkeypatch.setattr(rundir, "write", write)
    assert folder.pending() is None
    assert folder.read(data) == {}
    stray = tmp_path / "round_000.jsonl"
    unlabelled = stray.read_text()
    folder.write(1, data, [8])
    fill(stray, {3: 1})
    stray.rename(tmp_path / "round_002.jsonl")
    with pytest.raises(ValueError, match=r"round_002.jsonl holds labels that .*state.json knows nothing of"):
        folder.write(0, data, [4, 5])
    (tmp_path / "round_002.jsonl").write_text(unlabelled)
    folder.write(0, data, [4, 5])
    fill(tmp_path / "round_001.jsonl", {8: 0})
    assert folder.pending() == (2, tmp_path / "round_002.jsonl", 2, 2)
    assert not list(tmp_path.glob(".*"))


BAD_QUESTIONS = {
    "empty": (1, [], {}, "indices must not be empty"),
    "negative": (1, [-1], {}, r"indices must be in \[0, 10\), got -1"),
    "beyond": (1, [10], {}, r"indices must be in \[0, 10\), got 10"),
    "twice": (1, [3, 2, 3], {}, "indices must be different, got 3 twice"),
    "round": (-1, [3], {}, "round must be at least 0, got -1"),
    "scores": (1, [3, 4], {"scores": [1.0]}, "scores must be one per item: 1 for 2 items"),
    "suggestions": (1, [3], {"suggestions": [1, 2]}, "suggestions must be one per item: 2 for 1 items"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_bad_question_writes_nothing(tmp_path, case):
    number, indices, more, message = BAD_QUESTIONS[case]
    data, folder = vectors(), LabelFolder(tmp_path)
    folder.write(0, data, [8])
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        folder.write(number, data, indices, **more)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


def test_bad_format_and_descriptions(tmp_path):
    with pytest.raises(ValueError, match="format must be jsonl or csv, got 'xlsx'"):
        LabelFolder(tmp_path, "xlsx")
    data = Sentences(["a b"])
    data.describe = lambda index: {"x": torch.ones(2)}
    with pytest.raises(TypeError, match=r"Sentences.describe\(0\) must give plain JSON values"):
        LabelFolder(tmp_path).write(0, data, [0])
    assert not list(tmp_path.iterdir())


# -- reading what is wrong --------------------------------------------------------------------------------------------

BAD_LINES = {
    "broken json": ('{"id": 3, "label": dog}', "round_000.jsonl:2: not valid JSON: Expecting value at column 20"),
    "no object": ("3", "round_000.jsonl:2: expected one JSON object per line, got 3"),
    "no id": ('{"label": "dog"}', "round_000.jsonl:2: id must be the number of an item, got None"),
    "bad id": ('{"id": true, "label": "dog"}', "round_000.jsonl:2: id must be the number of an item, got True"),
    "unknown id": ('{"id": 99, "label": "dog"}', "round_000.jsonl:2: id 99 does not exist: the data have 10 items"),
    "not asked": ('{"id": 5, "label": "dog"}', "round_000.jsonl:2: id 5 was asked for in no round"),
    "other round": (
        '{"id": 7, "label": "dog"}',
        r"round_000.jsonl:2: id 7 was asked for in round 1 \(round_001.jsonl\), not in round 0",
    ),
    "twice": ('{"id": 2, "label": "dog"}', "round_000.jsonl:2: id 2 stands there twice, first in .*round_000.jsonl:1"),
    "class": ('{"id": 3, "label": "dgo"}', "round_000.jsonl:2: id 3: no such class 'dgo'; did you mean dog[?];"),
    "number": ('{"id": 3, "label": 2}', "round_000.jsonl:2: id 3: no such class 2; classes are cat, dog"),
    "minus": ('{"id": 3, "label": -1}', "round_000.jsonl:2: id 3: no such class -1; classes are cat, dog"),
    "list": ('{"id": 3, "label": ["dog"]}', "round_000.jsonl:2: id 3: no such class"),
    "other data": (
        '{"id": 3, "label": "dog", "fingerprint": "0123456789abcdef"}',
        r"round_000.jsonl:2: id 3 is another item in these data .*\(fingerprint 0123456789abcdef\)",
    ),
    "missing": ('{"id": 3, "label": ""}', "round_000.jsonl: 1 of 2 items have no label yet, the first is id 3"),
    "line gone": ("", "round_000.jsonl: 1 of 2 items have no label yet, the first is id 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_named(tmp_path, case):
    line, message = BAD_LINES[case]
    data, folder = vectors(), LabelFolder(tmp_path, class_names=["cat", "dog"])
    file = folder.write(0, data, [2, 3])
    folder.write(1, data, [7])
    file.write_text('{"id": 2, "label": "cat"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        folder.read(data)
    assert data.tensors[1].tolist() == [-1] * 10


BAD_TAGS = {
    "too few": ("X", "round_000.jsonl:1: id 1 has 2 tokens, but 1 tags"),
    "no tags": (3, "round_000.jsonl:1: id 1: label must be a tag per token, got 3"),
    "not strings": ([0, 1], r"round_000.jsonl:1: id 1: label must be a tag per token, got \[0, 1\]"),
    "unknown": ("X Y", r"round_000.jsonl:1: id 1: sentence 2: unknown tag \['X', 'Y'\]"),
}


@pytest.mark.parametrize("case", BAD_TAGS)
def test_bad_tags_are_named_by_line_and_id(tmp_path, case):
    label, message = BAD_TAGS[case]
    pool = Subset(Sentences(["never", "asked", "a b", "c"]), [1, 2, 3])
    folder = LabelFolder(tmp_path)
    fill(folder.write(0, pool, [1, 2]), {1: label, 2: "X"})
    with pytest.raises(ValueError, match=message):
        folder.apply(pool, folder.read(pool))


def test_files_that_are_no_such_files(tmp_path):
    data, folder = vectors(), LabelFolder(tmp_path, "csv")
    file = folder.write(0, data, [2, 3])
    whole = file.read_bytes()
    file.write_text("id,etikett\n2,1\n")
    with pytest.raises(ValueError, match=r"round_000.csv:1: no column label; columns are id, etikett"):
        folder.pending()
    file.write_bytes("id,label\n2,Bär\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"round_000.csv: not UTF-8 .*save it as UTF-8"):
        folder.read(data)
    file.write_bytes(whole.replace(b"\n2", b"\ntwo"))
    with pytest.raises(ValueError, match=r"round_000.csv:2: id must be the number of an item, got 'two'"):
        folder.pending()
    file.write_bytes(whole)
    state = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(state[:-9])
    with pytest.raises(ValueError, match=r"state.json is damaged"):
        folder.pending()
    (tmp_path / "state.json").unlink()
    assert folder.pending() is None  # nothing is lost: no label yet
    fill(file, {2: "1"})
    with pytest.raises(ValueError, match=r"round_000.csv holds labels, but .*state.json, .* is gone"):
        folder.write(0, data, [5])


def test_other_data_or_another_split_are_noticed(tmp_path):
    data, folder = vectors(), LabelFolder(tmp_path)
    fill(folder.write(0, Subset(data, [4, 5, 6]), [0, 2]), {0: 1, 2: 1})
    with pytest.raises(ValueError, match=r":2: id 2 is another item in these data"):
        folder.read(Subset(data, [4, 6, 5]))
    changed = TensorDataset(data.tensors[0].clone(), data.tensors[1])
    changed.tensors[0][4, 1] += 1e-3
    with pytest.raises(ValueError, match=r":1: id 0 is another item in these data"):
        folder.read(Subset(changed, [4, 5, 6]))


# -- the data set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [list, np.array, torch.tensor])
@pytest.mark.parametrize("name", ["targets", "labels", "label", "y"])
def test_labels_are_kept_in_tensors_arrays_and_lists(keep, name):
    class Kept(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.zeros(1), getattr(self, name)[index]

    data = Kept()
    setattr(data, name, keep([-1, 2, -1, -1]))
    pool = Subset(data, [3, 1, 0])
    assert is_labelled(pool).tolist() == [False, True, False]
    set_labels(pool, {0: 5, 2: 0})
    assert [int(y) for y in getattr(data, name)] == [0, 2, -1, 5]
    assert is_labelled(pool).all()


def test_concatenated_data():
    parts = [vectors(3), vectors(2, labelled=[1]), Sentences(["a b", "c"])]
    data = ConcatDataset([ConcatDataset(parts[:2]), parts[2]])
    assert is_labelled(data).tolist() == [False, False, False, False, True, False, False]
    set_labels(data, {2: 1, 3: 0, 6: ["X"]})
    assert parts[0].tensors[1].tolist() == [-1, -1, 1]
    assert parts[1].tensors[1].tolist() == [0, 0]
    assert parts[2].tags == [None, ["X"]]
    assert describe(data, 3) == {"x": [0.0, 1.0]}
    assert describe(data, 6)["tokens"] == ["c"]


def test_what_a_person_sees():
    assert describe(Images([0, 1]), 1) == {"file": "pictures/1.png"}
    folder = Images([0, 1])
    del folder.files
    folder.samples = [("a/0.png", 0), ("b/1.png", 1)]  # torchvision's
    assert describe(folder, 0) == {"file": "a/0.png"}
    large = TensorDataset(torch.zeros(1, 3, 32, 32), torch.tensor([-1]))
    assert describe(large, 0) == {"x": "float32 of shape (3, 32, 32)"}
    assert describe([("some text", 3)], 0) == {"text": "some text"}
    assert describe([{"text": "a", "pixels": torch.tensor([1]), "label": 2}], 0) == {"text": "a", "pixels": [1]}
    assert describe([(object(), 3)], 0) == {"x": "object"}


def test_fingerprints_follow_content_and_nothing_else():
    data = vectors(4)
    prints = [fingerprint(data, k) for k in range(4)]
    assert len(set(prints)) == 4
    assert [fingerprint(Subset(data, [3, 0]), k) for k in range(2)] == [prints[3], prints[0]]
    data.tensors[1][0] = 7
    assert fingerprint(data, 0) == prints[0]
    halves = TensorDataset(data.tensors[0].to(torch.bfloat16), data.tensors[1])
    assert fingerprint(halves, 1) not in prints
    images = Images([0, 1])
    assert fingerprint(images, 0) == fingerprint(images, 0) != fingerprint(images, 1)
    del images.files  # then only class, number of items and position are known
    assert fingerprint(images, 0) == fingerprint(images, 0) != fingerprint(images, 1)
    longer = Images([0, 1, 1])
    del longer.files
    assert fingerprint(longer, 0) != fingerprint(images, 0)
    assert fingerprint([("a", 0)], 0) != fingerprint([("b", 0)], 0)


class Stale(Images):
    """Items that do not take their label from ``targets``."""

    def __getitem__(self, index):
        return torch.zeros(1), 0


def test_data_that_cannot_be_labelled_say_what_is_missing():
    with pytest.raises(TypeError, match="list has no set_labels, which filling in labels needs"):
        set_labels([(1, -1)], {0: 1})
    with pytest.raises(TypeError, match="TensorDataset has no set_labels"):
        set_labels(TensorDataset(torch.zeros(2), torch.zeros(2), torch.zeros(2)), {0: 1})
    with pytest.raises(TypeError, match=r"Stale has no set_labels.* its items do not take their label"):
        set_labels(Stale([-1, -1]), {1: 1})
    with pytest.raises(TypeError, match="labels of a TensorDataset of 1 tensors are not known"):
        is_labelled(TensorDataset(torch.zeros(2)))
    data = Sentences(["a"])
    data.is_labelled = lambda: [0]
    with pytest.raises(TypeError, match=r"is_labelled\(\) must give bool of shape \(1,\), got torch.int64"):
        is_labelled(data)
    with pytest.raises(ValueError, match="item 4 does not exist, the data have 4 items"):
        set_labels(vectors(4), {4: 0})
    for bad in (-1, 0.5, "cat", True):
        with pytest.raises(ValueError, match="item 1: a class must be an integer of 0 or more"):
            set_labels(vectors(4), {1: bad})


CLASSES = [
    ("dog", ["cat", "dog"], 1),
    (" dog ", ["cat", "dog"], 1),
    (1, ["cat", "dog"], 1),
    ("1", ["cat", "dog"], 1),
    (1.0, ["cat", "dog"], 1),
    (1, ["1", "2", "3"], 0),  # names that look like numbers are names
    ("3.0", ["1", "2", "3"], 2),
    ("1.0", ["1", "1.0"], 1),
    (7, None, 7),
]


@pytest.mark.parametrize(("value", "names", "number"), CLASSES)
def test_a_class_as_written(value, names, number):
    assert as_class(value, names) == number


@pytest.mark.parametrize(
    ("value", "names", "classes", "message"),
    [
        (0, ["1", "2"], None, "no such class 0; classes are 1, 2"),
        (2, ["cat", "dog"], None, "no such class 2"),
        (1.5, ["cat", "dog"], None, "no such class 1.5"),
        (10, None, 10, r"a class must be an integer in \[0, 10\), got 10"),
        ("cat", None, None, "a class must be an integer of 0 or more, got 'cat'"),
        (True, None, None, "got True"),
    ],
)
def test_no_such_class(value, names, classes, message):
    with pytest.raises(ValueError, match=message):
        as_class(value, names, classes)
