import sys

import numpy as np
import pandas as pd
import pytest

from framework.tables import encode_labels, feature_columns, fit_encoding, read_table


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "id": ["007", "008", "009", "010"],
            "age": [10.0, 20.0, None, 60.0],
            "town": ["b", "a", None, "b"],
            "fit": [True, False, True, True],
            "ill": [2.0, 10.0, None, 2.0],
        }
    )


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_kinds_of_files_read_alike(frame, tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    read = read_table(path, text=["id"])
    columns = ["age", "town", "fit"]
    expected = fit_encoding(frame, columns, missing="fill").transform(frame)
    assert read["id"].tolist() == ["007", "008", "009", "010"]
    np.testing.assert_array_equal(fit_encoding(read, columns, missing="fill").transform(read), expected)
    assert encode_labels(read, "ill", missing="allow").y.tolist() == [0, 1, -1, 0]


def test_encoding_by_hand(frame):
    encoding = fit_encoding(frame, ["age", "town", "fit"], missing="fill", standardize=False)
    assert encoding.names == ["age", "fit", "town=a", "town=b"]
    expected = [[10, 1, 0, 1], [20, 0, 1, 0], [20, 1, 0, 0], [60, 1, 0, 1]]  # median 20; no town: no category
    np.testing.assert_array_equal(encoding.transform(frame), np.array(expected, dtype=np.float32))


def test_standardised_columns_have_mean_0_and_deviation_1_and_constants_are_0(frame):
    frame["same"] = 3
    x = fit_encoding(frame, ["age", "fit", "same"], missing="fill").transform(frame)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), [1, 1, 0], atol=1e-6)


def test_rows_to_come_are_encoded_by_the_rows_seen(frame):
    encoding = fit_encoding(frame, ["age", "town"], missing="fill", standardize=False)
    later = pd.DataFrame({"town": ["c", "a"], "age": [np.nan, 5]})
    np.testing.assert_array_equal(encoding.transform(later), np.array([[20, 0, 0], [5, 1, 0]], dtype=np.float32))


def test_numbers_as_labels_keep_numeric_order_and_text_sorts(frame):
    assert encode_labels(frame, "ill", missing="allow").class_names == ["2", "10"]
    labels = encode_labels(frame, "town", missing="allow")
    assert labels.class_names == ["a", "b"]
    assert labels.y.tolist() == [1, 0, -1, 1]
    assert encode_labels(frame, "fit").class_names == ["False", "True"]


def test_class_names_set_the_order(frame):
    labels = encode_labels(frame, "town", missing="allow", class_names=["c", "b", "a"])
    assert labels.y.tolist() == [1, 2, -1, 1]
    assert labels.class_names == ["c", "b", "a"]


def test_feature_columns_leave_out_what_is_excluded(frame):
    assert feature_columns(frame, ["ill", None, "id"]) == ["age", "town", "fit"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: encode_labels(f, "sick"), ["label", "'sick'", "id, age, town, fit, ill"]),
        (lambda f: encode_labels(f, "ill"), ["'ill'", "row 2"]),
        (lambda f: encode_labels(f.assign(c=1), "c"), ["'c'", "2 classes"]),
        (lambda f: encode_labels(f.assign(c=[0.5, 1, 1, 2]), "c"), ["'c'", "0.5"]),
        (lambda f: encode_labels(f, "town", missing="allow", class_names=["a", "x"]), ["class_names", "'b'"]),
        (lambda f: encode_labels(f, "town", missing="allow", class_names=["a", "b", "a"]), ["class_names", "repeat"]),
        (lambda f: feature_columns(f, f.columns), ["at least one feature column"]),
        (lambda f: feature_columns(f, ["sick"]), ["'sick'"]),
        (lambda f: fit_encoding(f, ["age"]), ["'age'", "row 2", "missing: fill"]),
        (lambda f: fit_encoding(f, ["town"]), ["'town'", "row 2"]),
        (lambda f: fit_encoding(f.assign(v=np.inf), ["v"]), ["'v'", "inf", "row 0"]),
        (lambda f: fit_encoding(f.assign(v=np.nan), ["v"], missing="fill"), ["'v'", "drop"]),
        (lambda f: fit_encoding(f.assign(v=pd.Timestamp("2020-01-01")), ["v"]), ["'v'", "datetime"]),
        (lambda f: fit_encoding(f, ["id"], max_categories=3), ["'id'", "text"]),
        (lambda f: fit_encoding(f.assign(v=["1", "2", "?", "3"]), ["v"], max_categories=3), ["'v'", "'?'", "row 2"]),
        (lambda f: fit_encoding(f, ["fit"]).transform(f.drop(columns="fit")), ["'fit'"]),
        (lambda f: fit_encoding(f, ["fit"]).transform(f.assign(fit="yes")), ["'fit'", "numbers"]),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_line(frame, call, words):
    with pytest.raises(ValueError, match=r".") as caught:
        call(frame)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xlsx", "", [".csv", ".parquet", "t.xlsx"]),
        ("t.csv", "", ["path cannot be read"]),
        ("t.csv", "a,b\n", ["no rows"]),
        ("t.csv", "a,b\n1,2\n1,2,3,4\n", ["path cannot be read"]),
        ("t.csv", b"a,b\n\xff\xfe,2\n", ["path cannot be read"]),
    ],
)
def test_unreadable_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r".") as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"edges is not a file: .*none\.csv"):
        read_table(tmp_path / "none.csv", "edges")


def test_parquet_without_pyarrow_names_the_extra(frame, tmp_path, monkeypatch):
    frame.to_parquet(tmp_path / "t.parquet")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"fulgurite\[tables\]"):
        read_table(tmp_path / "t.parquet")
