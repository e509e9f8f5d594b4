import pytest

from framework.evaluation.comparison import by_seed, chosen, compare
from framework.evaluation.records import Commit, Environment, Record
from framework.evaluation.statistics import mean_interval

HERE = Environment("3.11.9", "Linux", "Some CPU", 2)


def record(row, seed, accuracy, data="wine", **fields):
    commit = Commit("0" * 40, False)
    return Record(row, data, seed, {"test/accuracy": accuracy}, environment=HERE, commit=commit, **fields)


RECORDS = [
    *(record("LDS", seed, 0.9 + seed / 100, choice={"tau": 5 if seed < 3 else 16, "k": [1]}) for seed in range(4)),
    *(record("kNN", seed, 0.8 + seed / 50) for seed in (1, 2, 9)),
    record("LDS", 1, 0.1, data="cora"),
]


def test_by_seed_keeps_one_row_on_one_data_set():
    assert by_seed(RECORDS, "kNN", "wine", "test/accuracy") == pytest.approx({1: 0.82, 2: 0.84, 9: 0.98})
    assert by_seed(RECORDS, "LDS", "cora", "test/accuracy") == {1: 0.1}
    assert by_seed(RECORDS, "GCN", "wine", "test/accuracy") == {}
    with pytest.raises(ValueError, match=r"has no metric 'test/f1'; it has test/accuracy"):
        by_seed(RECORDS, "kNN", "wine", "test/f1")


def test_compare_pairs_the_seeds_that_both_have():
    expected = mean_interval([0.91 - 0.82, 0.92 - 0.84])
    assert compare(RECORDS, "LDS", "kNN", "wine", "test/accuracy") == pytest.approx(expected)
    assert compare(RECORDS, "LDS", "kNN", "cora", "test/accuracy") is None


def test_chosen_counts_choices():
    assert chosen(RECORDS, "LDS", "wine") == [({"k": [1], "tau": 5}, 3), ({"k": [1], "tau": 16}, 1)]
    assert chosen(RECORDS, "kNN", "wine") == []
