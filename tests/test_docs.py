"""README and docs: links lead somewhere, commands are accepted, the example of a user's own module runs as printed."""

from __future__ import annotations

import csv
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from framework.cli import COMMANDS, RUNS, main, run
from framework.commands.checks import check_classes
from framework.commands.federate import parsed, section_parser
from framework.configuration import Configuration, check_numbers, find
from scripts._reproduce.experiments import load
from scripts._reproduce.main import _parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_MODULE = ROOT / "docs" / "your-own-module.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = r"(?:scripts/|\.ci/run|fulgurite |sbatch |\.venv/bin/torchrun )"
#: Options of sbatch and torchrun in our examples that take a value.
LAUNCHER_OPTIONS = {"--nodes", "--time", "--nproc-per-node"}

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def fences(document: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(document.read_text()) if language in languages]


def without_fences(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """Names that a link may have after ``#``, as GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", without_fences(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    return [
        target for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(document)) if not target.startswith("http")
    ]


@documents
def test_relative_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if link[0] != "#"]
    assert set(DOCUMENTS) <= seen


def test_pictures_are_small_and_used() -> None:
    used = {(document.parent / link).resolve() for document in DOCUMENTS for link in links(document)}
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture in used, f"{picture} is in no document"
        assert picture.stat().st_size < 150_000, f"{picture} is larger than 150 KB"


# -- commands ---------------------------------------------------------------------------------------------------------


def commands(document: Path) -> list[str]:
    """What a reader might type: lines of shell blocks, and code spans that begin with a program of ours."""
    text = document.read_text()
    blocks = "\n".join(fences(document, "", "sh", "bash")).replace("\\\n", " ")
    spans = re.findall(rf"`({PROGRAMS}[^`<…]*)`", FENCE.sub("", text))
    lines = [line for line in blocks.splitlines() if re.match(rf"(?:\w+=\S+ )*{PROGRAMS}", line.strip())]
    return [*lines, *spans]


def after_launcher(words: list[str]) -> list[str] | None:
    """Arguments of ``fulgurite`` in a command line of sbatch or torchrun; ``None`` for any other program."""
    if Path(words[0]).name not in {"sbatch", "torchrun"}:
        return None
    rest = words[1:]
    while rest[0].startswith("--"):
        del rest[: 2 if rest[0] in LAUNCHER_OPTIONS else 1]
    assert rest[0] in {"scripts/slurm/train", "scripts/slurm/train.sbatch"}, rest[0]
    assert (ROOT / rest[0]).is_file()
    return ["fit", *rest[1:]]


def check_fulgurite(args: list[str], own: Path) -> None:
    """Everything that is checked before a run, short of building anything; ``own`` holds the files of the example."""
    if not args or args[0] in {"--help", "--version", "help"}:
        return
    command, *rest = args
    assert command in COMMANDS, command
    if command not in RUNS or rest in ([], ["--help"]):
        return
    configuration, pairs = Configuration(command), []
    while rest:
        key, _, value = rest.pop(0).partition("=")
        if not value and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        pairs.append((key, value))
    for key, value in pairs:
        if key.endswith(".help") or key == "--print_config":
            continue
        assert key.startswith("--") or key == "-c", key
        if key == "-c":
            # `runs/lds/wine/0/config.yaml` is the saved form of lds/wine.
            saved = re.fullmatch(r"runs/(.+)/\d+/config\.yaml", value)
            file = own / value if (own / value).is_file() else find(saved[1] if saved else value)
            configuration.layer(file)
        else:
            configuration.override(key.removeprefix("--"), value or "true")
    values = configuration.interpolated()
    check_numbers(values)
    check_classes(values)
    if command == "federate":
        parsed(section_parser(), values.get("federation"))


def example_files(folder: Path) -> list[str]:
    """Write the blocks of the example that begin with a file's name; returns the names."""
    names = []
    for block in fences(OWN_MODULE, "python", "yaml"):
        named = re.match(r"# (\w+\.(?:py|yaml))\n", block)
        if named:
            (folder / named[1]).write_text(block[named.end() :])
            names.append(named[1])
    return names


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the example as the current one, its module not imported yet."""
    assert example_files(tmp_path) == ["diabetes.py", "diabetes.yaml", "gradient_norm.yaml"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "diabetes", raising=False)
    yield tmp_path
    sys.modules.pop("diabetes", None)


@documents
def test_commands_are_accepted(document: Path, example: Path) -> None:
    for line in commands(document):
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if not words:
            continue
        program, args = words[0], words[1:]
        launched = after_launcher(words)
        try:
            if launched is not None:
                check_fulgurite(launched, example)
                continue
            if program == "fulgurite":
                check_fulgurite(args, example)
                continue
            assert os.access(ROOT / program, os.X_OK) or (ROOT / program).exists(), f"no {program}"
            if program == "scripts/fulgurite":
                check_fulgurite(args, example)
            elif program == "scripts/reproduce" and args:
                given = _parser().parse_args(args)
                if given.method:
                    file = ROOT / "scripts" / "experiments" / f"{given.method}.yaml"
                    assert load(file, example).cells(given.rows, given.data, given.seeds)
            elif program == "scripts/benchmark" and args:
                assert (ROOT / "scripts" / "benchmarks" / f"{args[0]}.py").is_file()
        except (ValueError, AssertionError, SystemExit) as error:
            pytest.fail(f"{line}: {error}")


def test_a_wrong_command_is_found(example: Path) -> None:
    for line in (
        "fit -c lds/whine",
        "fit -c lds/wine --model.tao 3",
        "fitt",
        "fit -c lds/wine --trainer.max_epochs -3",
        "federate -c lds/wine --federation.partition Dirichlet --federation.partition.alfa 1",
    ):
        with pytest.raises((ValueError, AssertionError)):
            check_fulgurite(line.split(), example)


# -- the example ------------------------------------------------------------------------------------------------------


def test_example_of_a_users_own_module_runs_as_printed(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [shlex.split(line) for block in fences(OWN_MODULE, "sh") for line in block.splitlines()]
    assert all(words[0] == "fulgurite" for words in lines)
    (shown,) = fences(OWN_MODULE, "text")
    for words in lines:
        main([*words[1:], "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"])
        if words == lines[0]:
            printed = capsys.readouterr().out
            assert shown.splitlines()[-1] in printed.splitlines()
            assert error_in(printed) == pytest.approx(error_in(shown), abs=0.02)  # machines differ in the last digits

    first, wide = example / "runs" / "diabetes" / "0", example / "runs" / "wide" / "0"
    assert {path.name for path in (first / "figures").iterdir()} == {"learning_curve.png", "test.png"}
    assert list(wide.glob("events.out.tfevents.*"))
    norms = column(wide / "metrics.csv", "train/gradient_norm")
    assert len(norms) == 30 * 9  # 265 patients in batches of 32
    assert min(norms) > 0
    predicted, target = (column(first / "predictions" / "predictions.csv", name) for name in ("prediction", "target"))
    assert len(predicted) == 442
    mean = sum(target) / len(target)
    assert sum(abs(p - t) for p, t in zip(predicted, target)) < 0.8 * sum(abs(mean - t) for t in target)
    assert column(example / "runs" / "classifier" / "digits" / "0" / "metrics.csv", "train/gradient_norm")
    assert {path.name for path in example.iterdir()} - {"__pycache__"} == {
        "diabetes.py", "diabetes.yaml", "gradient_norm.yaml", "runs"
    }  # fmt: skip


def test_example_needs_nothing_of_ours(example: Path) -> None:
    code = (example / "diabetes.py").read_text()
    assert not re.search(r"\b(framework|modules|datamodules|callbacks|fulgurite)\b", code.split('"""', 2)[2])


def test_example_tells_a_bad_argument_in_one_line(example: Path) -> None:
    with pytest.raises(ValueError, match=r"^lr must be positive, got -1\.0$"):
        run(["fit", "-c", "diabetes.yaml", "--model.lr", "-1"])


def error_in(text: str) -> float:
    return float(re.search(r"^test/error +([\d.]+)$", text, re.MULTILINE)[1])


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name] != ""]
