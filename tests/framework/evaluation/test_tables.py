import json

import pytest

from framework import configuration
from framework.evaluation.records import Commit, Environment, Record, merge_records
from framework.evaluation.tables import check_documents, regenerate, render, update_documents

HERE = Environment("3.11.9", "Linux", "Some CPU", 2)

SPECIFICATION = """
accuracy:
  columns: [wine, {data: cora, label: Cora}]
  rows: [kNN, {row: LDS, label: ours}]
  best: true
  source: a copy
  reference:
    LDS: {wine: 97.3 (0.4) third-party, Cora: 84.1 unverified}
    kNN: {wine: 93.2 (3.1) verified}
gain:
  kind: differences
  against: kNN
  rows: [LDS]
  columns: [wine]
picked: {kind: choices, rows: [LDS, kNN], columns: [wine], most: 1}
loss: {columns: [wine], rows: [LDS], metric: test/loss, percent: false, decimals: 3, mode: min}
"""


def record(row, data, seed, accuracy, **fields):
    metrics = {"test/accuracy": accuracy, "test/loss": 1 - accuracy}
    return Record(row, data, seed, metrics, environment=HERE, commit=Commit("0" * 40, False), **fields)


@pytest.fixture
def checkout(tmp_path):
    results = tmp_path / "docs" / "results"
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    merge_records(
        results / "lds.json",
        [
            record("LDS", "wine", 1, 0.96, choice={"model.tau": 5}),
            record("LDS", "wine", 2, 0.98, choice={"model.tau": 5}),
            record("LDS", "wine", 3, 0.94, choice={"model.tau": 16}),
            *(record("kNN", "wine", seed, 0.93) for seed in (1, 2, 3)),
            record("kNN", "cora", 1, 0.8),
            record("LDS", "cora", 1, 0.84),
        ],
    )
    (results / "lds.yaml").write_text(SPECIFICATION)
    return tmp_path


def table(checkout, name):
    text = render(checkout, name, checkout / "docs" / "methods" / "lds.md")
    cells, caption = text.split("\n\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in cells.splitlines()], caption


def test_values_stand_beside_published_ones_with_their_provenance(checkout):
    (head, _, knn, lds), caption = table(checkout, "accuracy")
    assert head == ["", "wine", "paper", "Cora", "paper"]
    # 94, 96, 98: mean 96, s = 2, t_{0.975, 2} = 4.3027, half = 4.3027 * 2 / sqrt(3) = 4.97
    assert lds == ["ours", "**96.0 ± 5.0 (n = 3)**", "97.3 (0.4)ᵗ", "**84.0 (n = 1)**", "84.1ᵘ"]
    assert knn == ["kNN", "93.0 ± 0.0 (n = 3)", "93.2 (3.1)", "80.0 (n = 1)", "—"]
    assert "`test/accuracy` in %" in caption
    assert "a copy; ᵗ read in a third party's copy of the paper's table; ᵘ from memory" in caption
    assert caption.endswith("[lds.json](../results/lds.json).")


def test_equal_numbers_of_seeds_are_said_once(checkout):
    (_, _, row), caption = table(checkout, "loss")
    assert row == ["LDS", "0.040 ± 0.050"]
    assert "over 3 seeds" in caption


def test_differences_are_paired_and_bold_only_when_they_exclude_zero(checkout):
    (head, _, row), caption = table(checkout, "gain")
    assert head == ["minus kNN", "wine"]
    assert row == ["LDS", "+3.0 ± 5.0"]
    assert "same seeds" in caption
    results = checkout / "docs" / "results" / "lds.json"
    merge_records(results, [record("LDS", "wine", seed, 0.9 + seed / 1000) for seed in (1, 2, 3)])
    assert table(checkout, "gain")[0][2] == ["LDS", "**-2.8 ± 0.2**"]


def test_differences_to_several_rows_are_to_their_mean_seed_by_seed(checkout):
    results = checkout / "docs" / "results" / "lds.json"
    merge_records(results, [record("slow", "wine", seed, 0.9 + seed / 100) for seed in (1, 2)])
    merge_records(results, [record("fast", "wine", seed, 0.8 + seed / 100) for seed in (1, 2, 3)])
    specification = "t: {kind: differences, against: [slow, fast], rows: [LDS], columns: [wine]}"
    (checkout / "docs" / "results" / "lds.yaml").write_text(specification)
    (head, _, row), caption = table(checkout, "t")
    assert head == ["minus the mean of slow, fast", "wine"]
    assert row == ["LDS", "**+10.5 ± 6.4**"]  # 96 - 86 and 98 - 87
    assert "difference to the mean of slow, fast on the same seeds" in caption


def test_choices_are_counted(checkout):
    (_, _, lds, knn), _ = table(checkout, "picked")
    assert lds == ["LDS", "tau 5 (2); others (1)"]
    assert knn == ["kNN", "—"]


def test_best_follows_the_mode_and_ties_share_it(checkout):
    path = checkout / "docs" / "results" / "lds.yaml"
    path.write_text("t: {columns: [wine], rows: [LDS, kNN], metric: test/loss, mode: min, best: true, percent: false}")
    (_, _, lds, knn), _ = table(checkout, "t")
    assert lds[1].startswith("**0.0")
    assert not knn[1].startswith("**")
    merge_records(checkout / "docs" / "results" / "lds.json", [record("kNN", "wine", s, 0.96) for s in (1, 2, 3)])
    (_, _, lds, knn), _ = table(checkout, "t")
    assert lds[1].startswith("**")
    assert knn[1].startswith("**")


def test_documents_are_filled_checked_and_only_their_places_touched(checkout):
    page = checkout / "docs" / "methods" / "lds.md"
    page.write_text(
        "# LDS\n\n<!-- table: gain -->\nold\n<!-- end table -->\n\nText.\n<!-- table: picked -->\n<!-- end table -->\n"
    )
    readme = checkout / "README.md"
    readme.write_text("<!-- table: lds/gain -->\n<!-- end table -->\n")
    untouched = checkout / "docs" / "other.md"
    untouched.write_text("no tables, but `<!-- table: x -->` in a sentence\n")
    expected = ["README.md: lds/gain", "docs/methods/lds.md: gain", "docs/methods/lds.md: picked"]
    assert check_documents(checkout) == expected
    assert "old" in page.read_text()
    assert update_documents(checkout) == expected
    assert check_documents(checkout) == update_documents(checkout) == []
    text = page.read_text()
    assert text.startswith("# LDS\n\n<!-- table: gain -->\n| minus kNN |")
    assert "<!-- end table -->\n\nText.\n<!-- table: picked -->\n|" in text
    assert "(docs/results/lds.json)" in readme.read_text()
    assert untouched not in regenerate(checkout)

    page.write_text(text.replace("+3.0", "+4.0"))  # somebody touched a number
    assert check_documents(checkout) == ["docs/methods/lds.md: gain"]
    page.write_text(text)
    merge_records(checkout / "docs" / "results" / "lds.json", [record("LDS", "wine", 1, 0.99, choice={"model.tau": 5})])
    # ... or results moved on
    assert check_documents(checkout) == ["README.md: lds/gain", "docs/methods/lds.md: gain"]


CONFIG = """
about:
  method: LDS
  paper: Somebody et al., 2019
  reference: [{metric: test/accuracy, value: 0.955, std: 0.004, verified: false}]
"""


def test_the_table_of_methods_takes_paper_and_reference_from_the_configuration(checkout, monkeypatch):
    config = checkout / "wine.yaml"
    config.write_text(CONFIG)
    monkeypatch.setattr(configuration, "names", lambda: {"lds/wine": config, "lds/other": config})
    (checkout / "docs" / "results" / "readme.yaml").write_text(
        "methods: {kind: methods, entries: [{config: lds/wine, row: LDS, data: wine}, "
        "{config: lds/other, row: none, data: wine}, {config: lds/wine, row: kNN, data: wine, note: a baseline}]}"
    )
    text = render(checkout, "methods", checkout / "README.md")
    lines = text.splitlines()
    command = "`scripts/fulgurite fit -c lds/wine`"
    paper = "95.5 (0.4) %ᵘ"
    assert (
        lines[2] == f"| LDS | Somebody et al., 2019 | {command} | 96.0 ± 5.0 % on wine (3 seeds) | {paper} | reached |"
    )
    assert lines[3].endswith(f"| — | {paper} | not run |")
    assert lines[4].endswith("| a baseline |")
    config.write_text(CONFIG.replace("0.955", "0.97"))
    assert "| within our interval |" in render(checkout, "methods", checkout / "README.md")
    config.write_text(
        CONFIG.replace("0.955", "0.999").replace("[{", "[{verified: true, ").replace(", verified: false", "")
    )
    text = render(checkout, "methods", checkout / "README.md")
    assert "| 99.9 (0.4) % | within our interval |" in text
    config.write_text("about: {method: LDS}")
    assert "| no published number |" in render(checkout, "methods", checkout / "README.md")


@pytest.mark.parametrize(
    ("accuracies", "published", "metric", "status"),
    [
        ([0.9], 0.95, "accuracy", "below"),  # one seed has no interval to be within
        ([0.95], 0.95, "accuracy", "reached"),
        ([0.9496], 0.95, "accuracy", "reached"),  # 95.0 % both
        ([0.9494], 0.95, "accuracy", "below"),  # 94.9 %
        ([0.949, 0.949, 0.949], 0.95, "accuracy", "below"),
        ([0.93, 0.95, 0.94], 0.95, "accuracy", "within our interval"),
        ([0.9], 0.05, "loss", "above"),
        ([0.9], 0.1, "loss", "reached"),
        ([0.9], 0.2, "loss", "reached"),
        ([0.93, 0.95, 0.94], 0.05, "loss", "within our interval"),
    ],
)
def test_status_compares_what_the_line_shows(checkout, monkeypatch, accuracies, published, metric, status):
    config = checkout / "iris.yaml"
    config.write_text(f"about: {{method: LDS, reference: [{{metric: test/{metric}, value: {published}}}]}}")
    monkeypatch.setattr(configuration, "names", lambda: {"lds/iris": config})
    results = checkout / "docs" / "results"
    merge_records(results / "lds.json", [record("LDS", "iris", i, value) for i, value in enumerate(accuracies)])
    mode = {"accuracy": "max", "loss": "min"}[metric]
    entry = f"{{config: lds/iris, row: LDS, data: iris, metric: test/{metric}, mode: {mode}}}"
    (results / "readme.yaml").write_text(f"methods: {{kind: methods, entries: [{entry}]}}")
    line = render(checkout, "methods", checkout / "README.md").splitlines()[2]
    assert line.endswith(f"| {status} |")
    assert ("(1 seed)" if len(accuracies) == 1 else f"({len(accuracies)} seeds)") in line


def test_a_difference_that_rounds_to_nothing_has_no_minus(checkout):
    results = checkout / "docs" / "results" / "lds.json"
    merge_records(results, [record("LDS", "wine", seed, 0.9299 + seed / 1e5) for seed in (1, 2, 3)])
    assert table(checkout, "gain")[0][2][1].strip("*") == "+0.0 ± 0.0"


def test_benchmarks_have_a_line_a_variant(checkout):
    folder = checkout / "docs" / "results" / "benchmarks"
    folder.mkdir()

    def measured(*seconds, gpu=None):
        return {"seconds": seconds, "cpu_seconds": seconds, "extra_peak_mb": 12.4, "gpu_peak_mb": gpu}

    case = {
        "case": {"tau": 5, "nodes": 10},
        "variants": {"ours": measured(0.1, 0.2, 0.3), "plain": measured(0.5, 0.4, 0.9, gpu=3.0)},
        "ratios": {"plain": {"median": 3.0, "low": 2.0, "high": 5.0}},
    }
    environment = {"cpu": "Some CPU", "gpu": []}
    content = {"summary": "Ours against plain.", "threads": 1, "environment": environment, "cases": [case]}
    (folder / "speed.json").write_text(json.dumps(content))
    (checkout / "docs" / "results" / "lds.yaml").write_text("speed: {kind: benchmark}\nslow: {kind: benchmark}")
    (head, _, ours, plain), caption = table(checkout, "speed")
    assert head == ["Case", "", "Seconds", "Peak", "Time / ours"]
    assert ours == ["tau 5, nodes 10", "ours", "0.2", "+12 MB", "—"]
    assert plain == ["", "plain", "0.5", "+12 MB, GPU 3 MB", "3 (2 to 5)"]
    assert caption.startswith("Ours against plain. Median of 3 calls in turns, 1 thread(s), Some CPU;")
    assert caption.endswith("[speed.json](../results/benchmarks/speed.json).")
    with pytest.raises(ValueError, match=r"slow.json does not exist: run scripts/benchmark slow"):
        table(checkout, "slow")


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("other: {}", r"lds.yaml has no table 't'; it has other"),
        (
            "t: {kind: pie}",
            "kind must be one of values, differences, choices, reach, iqm, methods, benchmark, got 'pie'",
        ),
        ("t: {rows: [LDS], columns: [wine], colour: red}", r"lds.yaml: .*unexpected keyword argument 'colour'"),
        ("t: {rows: [LDS]}", "missing 1 required positional argument: 'columns'"),
        ("t: {rows: [LDS], columns: [{label: a}]}", "a column needs data, got"),
        ("t: {rows: [LDS], columns: [{data: wine, mode: up}]}", "mode of column wine must be max or min, got 'up'"),
        (
            "t: {kind: methods, entries: [{config: lds/wine, row: LDS, data: wine, mode: up}]}",
            "mode of entry lds/wine must be max or min, got 'up'",
        ),
        (
            "t: {rows: [LDS], columns: [wine], reference: {kNN: {}}}",
            "reference names 'kNN', which is not among the rows",
        ),
        (
            "t: {rows: [LDS], columns: [wine], reference: {LDS: {iris: 1 verified}}}",
            "'iris', which is not among the col",
        ),
        (
            "t: {rows: [LDS], columns: [wine], reference: {LDS: {wine: 97.3}}}",
            r"must read like `97.3 \(0.4\) unverified`",
        ),
        (
            "t: {rows: [LDS], columns: [wine], metric: test/f1}",
            "has no metric 'test/f1'; it has test/accuracy, test/loss",
        ),
        ("t: [", "lds.yaml"),
    ],
)
def test_bad_specifications_are_named_with_document_and_table(checkout, specification, message):
    (checkout / "docs" / "results" / "lds.yaml").write_text(specification)
    page = checkout / "docs" / "methods" / "lds.md"
    page.write_text("<!-- table: t -->\n<!-- end table -->\n")
    with pytest.raises(ValueError, match=rf"lds\.md: table t: .*{message}"):
        check_documents(checkout)


def test_an_open_place_and_a_missing_specification_are_named(checkout):
    page = checkout / "docs" / "methods" / "lds.md"
    page.write_text("<!-- table: gain -->\n| a |\n")
    with pytest.raises(ValueError, match=r"lds\.md: table gain has no line <!-- end table -->"):
        check_documents(checkout)
    page.write_text("<!-- table: gan/x -->\n<!-- end table -->\n")
    with pytest.raises(ValueError, match=r"lds\.md: table gan/x: .*gan\.yaml does not exist"):
        check_documents(checkout)


def test_reach_says_where_a_curve_gets_to_its_seeds_own_level(checkout):
    results = checkout / "docs" / "results"
    share = [0.1, 0.2, 0.3]

    def curve(row, seed, *heights):
        return record(row, "wine", seed, heights[-1], curves={"share": share, "test/accuracy": heights})

    merge_records(
        results / "active.json",
        [
            *(record("All data", "wine", seed, accuracy) for seed, accuracy in ((1, 0.8), (2, 0.9))),
            *(curve("MNLP", 1, 0.5, 0.73, 0.7), curve("MNLP", 2, 0.5, 0.7, 0.85), curve("MNLP", 3, 0.9, 0.9, 0.9)),
            *(curve("random", 1, 0.5, 0.6, 0.73), curve("random", 2, 0.5, 0.6, 0.7)),
            *(curve("longest", 1, 0.1, 0.1, 0.1), curve("longest", 2, 0.1, 0.1, 0.1)),
        ],
    )
    (results / "active.yaml").write_text(
        "reach: {kind: reach, against: All data, x: share, fraction: 0.9, columns: [wine], "
        "rows: [MNLP, random, longest, BALD]}"
    )
    text = render(checkout, "active/reach", checkout / "docs" / "methods" / "active.md")
    lines = text.split("\n\n")[0].splitlines()[2:]
    assert lines[0] == "| MNLP | 25.0 ± 63.5 |"  # at 0.2 and 0.3; seed 3 has no level
    assert lines[1] == "| random | 30.0 (1 of 2 seeds) |"
    assert lines[2] == "| longest | not reached (2 seeds) |"
    assert lines[3] == "| BALD | — |"
    assert "first reaches 90 % of what All data reaches in `test/accuracy`" in text
    (results / "active.yaml").write_text(
        "reach: {kind: reach, against: random, at: 0.15, x: share, fraction: 1, columns: [wine], rows: [MNLP, longest]}"
    )
    text = render(checkout, "active/reach", checkout / "docs" / "methods" / "active.md")
    lines = text.split("\n\n")[0].splitlines()[2:]
    assert lines[0] == "| MNLP | 20.0 ± 0.0 |"  # random choice has 0.6 at 0.2, for both seeds
    assert lines[1] == "| longest | not reached (2 seeds) |"
    assert "100 % of what random reaches in `test/accuracy` at 15 % with the same seed" in text
