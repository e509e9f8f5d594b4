import dataclasses
import json
import math
import multiprocessing
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.evaluation.records import (
    Commit,
    Environment,
    Record,
    format_records,
    merge_records,
    read_records,
)

HERE = Environment("3.11.9", "Linux", "Some CPU", 2, (), {"torch": "2.13.0"})
THERE = dataclasses.replace(HERE, gpu=("Some GPU",))
COMMIT = Commit("0" * 40, False)


def record(row="LDS", data="wine", seed=1, accuracy=0.9, environment=HERE, **fields):
    fields = {"date": "2026-01-02", "commit": COMMIT, **fields}
    return Record(row, data, seed, {"test/accuracy": accuracy}, environment=environment, **fields)


records = st.builds(
    record,
    row=st.sampled_from(["GCN", "LDS", "kNN \u201cé\u201d"]),
    data=st.sampled_from(["wine", "cora"]),
    seed=st.integers(0, 4),
    accuracy=st.floats(0, 1),
    environment=st.sampled_from([HERE, THERE]),
    choice=st.dictionaries(st.text(min_size=1), st.integers() | st.lists(st.integers()) | st.text()),
    seconds=st.none() | st.floats(0, 1e4),
    command=st.text(),
)


@given(st.lists(records, min_size=1))
def test_what_is_written_is_read_back_with_the_last_of_each_key(tmp_path_factory, new):
    path = tmp_path_factory.mktemp("results") / "lds.json"
    merge_records(path, new)
    assert read_records(path) == sorted({r.key: r for r in new}.values(), key=lambda r: r.key)


@given(st.lists(records, min_size=1, unique_by=lambda r: r.key), st.randoms())
def test_the_bytes_do_not_depend_on_the_order(new, random):
    shuffled = list(new)
    random.shuffle(shuffled)
    assert format_records(new) == format_records(shuffled)


def test_rerunning_a_seed_changes_one_line(tmp_path):
    path = tmp_path / "lds.json"
    merge_records(path, [record(seed=seed) for seed in range(5)])
    before = path.read_text().splitlines()
    merge_records(path, [record(seed=3, accuracy=0.5)])
    after = path.read_text().splitlines()
    assert len(before) == len(after)
    changed = [new for old, new in zip(before, after) if old != new]
    assert len(changed) == 1
    assert json.loads(changed[0].rstrip(","))["metrics"] == {"test/accuracy": 0.5}


def test_an_environment_is_stored_once_and_only_while_used(tmp_path):
    path = tmp_path / "lds.json"
    merge_records(path, [record(seed=seed) for seed in range(3)])
    merge_records(path, [record(seed=9, environment=THERE)])
    assert set(json.loads(path.read_text())["environments"]) == {HERE.id, THERE.id}
    merge_records(path, [record(seed=9)])
    assert set(json.loads(path.read_text())["environments"]) == {HERE.id}


def _merge_one(path, seed):
    merge_records(path, [record(seed=seed)])


@pytest.mark.process
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "lds.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_merge_one, args=(path, seed)) for seed in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [r.seed for r in read_records(path)] == list(range(8))
    assert [file.name for file in tmp_path.iterdir()] == ["lds.json"]


def test_no_file_is_no_records(tmp_path):
    assert read_records(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"lds\.json is not JSON: "),
        ("[]", "must hold `environments` and `records`, got list"),
        ('{"records": []}', "must hold `environments` and `records`, got records"),
        ('{"environments": {}, "records": [{"row": "a"}]}', "bad record: missing field 'environment'"),
        ('{"environments": {}, "records": [{"environment": "x"}]}', "environment 'x' is not among"),
    ],
)
def test_a_bad_file_is_named_and_left_alone(tmp_path, content, message):
    path = tmp_path / "lds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(path)
    with pytest.raises(ValueError, match=message):
        merge_records(path, [record()])
    assert path.read_text() == content


def test_an_edited_environment_or_field_or_a_repeated_record_is_refused(tmp_path):
    path = tmp_path / "lds.json"
    text = format_records([record()])
    path.write_text(text.replace("Some CPU", "Faster CPU"))
    with pytest.raises(ValueError, match=f"environment {HERE.id} was edited"):
        read_records(path)
    path.write_text(text.replace('"seed"', '"sead"'))
    with pytest.raises(ValueError, match=r"bad record: .*sead"):
        read_records(path)
    line = next(line for line in text.splitlines() if '"row"' in line)
    path.write_text(text.replace(line, f"{line},\n{line}"))
    with pytest.raises(ValueError, match=r"record \('LDS', 'wine', 1\) more than once"):
        read_records(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"row": ""}, "row of a record must be a non-empty text, got ''"),
        ({"seed": "1"}, "seed of a record must be an integer, got '1'"),
        ({"seed": True}, "seed of a record must be an integer, got True"),
        ({"accuracy": math.nan}, r"metric 'test/accuracy' of record .* must be a finite number, got nan"),
        ({"accuracy": "0.9"}, "must be a finite number, got '0.9'"),
    ],
)
def test_bad_records_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        record(**fields)


def test_current_environment_and_commit(tmp_path, monkeypatch):
    here = Environment.current()
    assert here.cores >= 1
    assert here.cpu
    assert here.packages["numpy"]
    assert here == Environment.current()
    assert Commit.current(tmp_path) == Commit("unknown", True)
    monkeypatch.setenv("FULGURITE_COMMIT", "f" * 40)
    assert Commit.current(tmp_path) == Commit("f" * 40, False)

    def git(*args):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("a")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = Commit.current(tmp_path)
    assert len(clean.id) == 40
    assert not clean.dirty
    (tmp_path / "docs" / "page").write_text("b")  # results written by an earlier run
    assert not Commit.current(tmp_path).dirty
    (tmp_path / "file").write_text("b")
    assert Commit.current(tmp_path) == Commit(clean.id, True)


@pytest.mark.process
def test_peak_memory_grows_with_what_is_held_and_does_not_shrink():
    # In a process of its own: this one may have held more before.
    code = """
from framework.evaluation.records import peak_memory_mb
before = peak_memory_mb()
held = b"x" * 200_000_000
during = peak_memory_mb()
del held
print(before, during, peak_memory_mb())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, during, after = map(float, done.stdout.split())
    assert 190 < during - before < 230
    assert after > before + 150  # the kernel batches its counters, so that a few hundred kB come and go
