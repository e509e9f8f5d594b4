import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts._benchmark import Failure, benchmarks, compare, load, main

ROOT = Path(__file__).resolve().parents[2]

SLEEPS = '''"""Short sleeps against long ones.

More words.
"""
import time
CASES = [{"seconds": 0.02}, {"seconds": 0.01}]
def setup(seconds, variant):
    return {"ours": seconds, "peer": 3 * seconds}[variant]
VARIANTS = {"ours": time.sleep, "peer": time.sleep}
'''

GREEDY = 'return len(bytearray(b"x") * size)'
MEMORY = '''"""Memory."""
CASES = [{"megabytes": 150}]
def setup(megabytes):
    bytearray(400 * 10**6)  # what the set-up needed is not counted
    return megabytes * 10**6
def lean(size):
    return size
def greedy(size):
    return len(bytearray(b"x") * size)
VARIANTS = {"lean": lean, "greedy": greedy}
def agree(ours, peer):
    assert ours == peer
'''


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "scripts" / "benchmarks").mkdir(parents=True)

    def write(name, code):
        path = tmp_path / "scripts" / "benchmarks" / f"{name}.py"
        path.write_text(code)
        return path

    return write


@pytest.mark.process
def test_times_are_taken_in_turns_and_written_with_their_circumstances(benchmark, tmp_path, capsys):
    benchmark("sleeps", SLEEPS)
    assert main(["sleeps", "--repeats", "3"], tmp_path) == 0
    shown = capsys.readouterr().out
    assert "Short sleeps against long ones." in shown
    assert "time / ours: " in shown
    written = json.loads((tmp_path / "docs" / "results" / "benchmarks" / "sleeps.json").read_text())
    assert [case["case"] for case in written["cases"]] == [{"seconds": 0.02}, {"seconds": 0.01}]
    assert written["environment"]["cores"] >= 1
    for case in written["cases"]:
        ours, peer = case["variants"]["ours"]["seconds"], case["variants"]["peer"]["seconds"]
        assert len(ours) == len(peer) == 3
        assert min(ours) >= case["case"]["seconds"]
        assert min(peer) >= 3 * case["case"]["seconds"]
        ratios = sorted(theirs / mine for mine, theirs in zip(ours, peer))
        assert case["ratios"]["peer"]["median"] == pytest.approx(ratios[1], rel=1e-2)
        assert case["ratios"]["peer"]["low"] == pytest.approx(ratios[0], rel=1e-2)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_peak_memory_is_that_of_each_variant_without_its_set_up(benchmark):
    case = compare(benchmark("memory", MEMORY), 0, repeats=2)
    assert case["variants"]["lean"]["extra_peak_mb"] < 20
    assert 140 < case["variants"]["greedy"]["extra_peak_mb"] < 170


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return size", "return size + 1"), "greedy and lean disagree"),
        (
            ('return len(bytearray(b"x") * size)', "raise RuntimeError('no such luck')"),
            "(?s)greedy failed:.*no such luck",
        ),
        (('return len(bytearray(b"x") * size)', "import os; os._exit(3)"), "the process of greedy died"),
        (("return megabytes * 10**6", "1 / 0"), "(?s)lean failed:.*ZeroDivisionError"),
    ],
)
def test_failures_are_told_and_end_the_processes(benchmark, change, message):
    path = benchmark("memory", MEMORY.replace(*change))
    with pytest.raises(Failure, match=message):
        compare(path, 0, repeats=1)
    assert main(["memory", "--repeats", "1"], path.parents[2]) == 1
    assert not (path.parents[2] / "docs").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("CASES = []", "needs CASES, a non-empty list"),
        ("CASES = [{}]; VARIANTS = {'a': print}", "needs at least two VARIANTS, got a"),
        ("CASES = [{}]; VARIANTS = {'a': print, 'b': print}", "needs a function setup"),
        (MEMORY + "NEEDS = ['no_such_package']", "memory needs no_such_package: pip install no_such_package"),
    ],
)
def test_bad_benchmarks_are_named(benchmark, code, message, capsys):
    path = benchmark("memory", code)
    with pytest.raises(ValueError, match=message):
        load(path)
    assert main(["memory"], path.parents[2]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments_are_named(benchmark, capsys):
    root = benchmark("memory", MEMORY).parents[2]
    for arguments, message in (
        (["other"], "no benchmark other: "),
        (["memory", "--repeats", "0"], "--repeats and --threads must be at least 1"),
        (["memory", "--case", "1"], "--case must be 0 to 0, got [1]"),
    ):
        assert main(arguments, root) == 2
        assert message in capsys.readouterr().err
    (root / "scripts" / "benchmarks" / "shared.py").write_text("def helper(): ...")
    assert main([], root) == 0
    assert capsys.readouterr().out == "memory                   Memory.\n"


@pytest.mark.parametrize("path", benchmarks(ROOT / "scripts" / "benchmarks"), ids=lambda path: path.stem)
def test_every_benchmark_of_the_checkout_loads(path):
    module = load(path)
    assert module.__doc__
    assert all(isinstance(case, dict) for case in module.CASES)


@pytest.mark.process
def test_loader_overhead_sees_the_same_items(benchmark):
    text = (ROOT / "scripts" / "benchmarks" / "loader_overhead.py").read_text()
    case = compare(benchmark("loaders", text.replace("20_000", "500")), 0, repeats=1)
    assert case["case"] == {"items": 500, "batch_size": 128}


@pytest.mark.process
def test_the_script_itself_lists():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "benchmark"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "loader_overhead" in done.stdout
