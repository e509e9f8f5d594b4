"""``fulgurite ettr measure``: what it prints and writes of a ledger, and its one-line errors."""

from __future__ import annotations

import csv
import io
import json

import pytest
from command_line import fails

from framework.cli import main
from framework.reliability.measured import measure
from framework.reliability.renewal import ettr_exact


@pytest.fixture
def run(tmp_path):
    """Three attempts of a minute each, in seconds: killed, hung, done; eight steps, four checkpoints."""
    lines, now = [], 0.0

    def tell(event, after, attempt, **fields):
        nonlocal now
        now += after
        lines.append({"event": event, "time": 1e9 + now, "monotonic": now, "attempt": attempt, **fields})

    saved = 0
    for attempt, (last, code) in enumerate([(3, -9), (5, -9), (8, 0)]):
        tell("spawn", 1, attempt)
        tell("run", 5, attempt, step=saved)
        for step in range(saved + 1, last + 1):
            tell("step", 10, attempt, step=step)
            if step % 2 == 0:
                tell("checkpoint_begin", 0, attempt, step=step)
                tell("checkpoint_end", 2, attempt, step=step)
                saved = step
        if not code:
            tell("train_end", 0, attempt, step=last)
        tell("exit", 4, attempt, code=code, reason="ended" if not code else "was killed by SIGKILL")
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def printed(capsys, *args):
    capsys.readouterr()
    main(["ettr", "measure", *map(str, args)])
    return capsys.readouterr().out


def test_tables_have_the_run_its_budget_the_models_and_the_attempts(run, capsys):
    found = json.loads(printed(capsys, run, "--json", "-"))
    # Waits 1 + 1; starts 3 x 5; eight steps; two done again; four writes; cut off 4 + 4.
    assert found["wall_min"] * 60 == pytest.approx(2 + 15 + 80 + 20 + 8 + 8)
    assert found["ettr"] == pytest.approx(80 / 133)
    budget = {row["kind"]: row["min"] * 60 for row in found["budget"]}
    expected = {"queue": 2, "restart": 15, "productive": 80, "validation": 0, "checkpoint": 8, "redone": 20, "lost": 8}
    assert budget == pytest.approx(expected)
    assert sum(budget.values()) == pytest.approx(60 * found["wall_min"], abs=1e-9)
    (models,) = found["models"]
    job = measure(run).job()
    assert models["exact"] == ettr_exact(job)
    assert [models[f"{name}_min"] * 60 for name in ("interval", "write", "restart", "queue")] == pytest.approx(
        [20, 2, 5, 1]
    )
    (total,) = found["run"]
    assert total["mttf_min"] * 60 == pytest.approx(131 / 2)
    assert total["goodput_per_min"] == pytest.approx(8 / 133 * 60)
    assert [row["last_step"] for row in found["attempts"]] == [3, 5, 8]
    text = printed(capsys, run / "ledger.jsonl")
    for part in ("ETTR", "0.6015", "Budget: W = Q + R + U", "exact form", "first order", "was killed by SIGKILL"):
        assert part in text
    assert "4 s after the end of training (the test) counts for nothing." in text


def test_files_have_the_attempts_and_the_picture(run, capsys, tmp_path):
    rows = list(csv.DictReader(io.StringIO(printed(capsys, run, "--csv", "-"))))
    assert [(row["attempt"], row["steps"], row["how"]) for row in rows] == [
        ("0", "3", "was killed by SIGKILL"),
        ("1", "2", "was killed by SIGKILL"),
        ("2", "3", "ended"),
    ]
    printed(capsys, run, "--picture", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_checkpoints_is_measured_without_models(run, capsys):
    lines = [line for line in (run / "ledger.jsonl").read_text().splitlines() if "checkpoint" not in line]
    (run / "ledger.jsonl").write_text("\n".join(lines[:4]) + "\n")
    text = printed(capsys, run)
    assert "No models: the run wrote no checkpoint" in text
    assert "Training has not ended." in text


def test_mistakes_are_told_in_one_line(run, capsys, tmp_path):
    assert "measure needs a run directory" in fails(capsys, "ettr", "measure")
    assert "nowhere: no such ledger" in fails(capsys, "ettr", "measure", str(tmp_path / "nowhere"))
    assert "no such option --picure; did you mean --picture" in fails(capsys, "ettr", "measure", str(run), "--picure")
    bare = [{"event": name, "time": at, "monotonic": at, "attempt": 0} for name, at in (("spawn", 0), ("exit", 60))]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))  # of another program
    assert json.loads(printed(capsys, run, "--json", "-"))["failures"] == 0
    (run / "ledger.jsonl").write_bytes(b"\x80\x02PK\n")
    assert "it tells of no start of a run" in fails(capsys, "ettr", "measure", str(run))
    (run / "ledger.jsonl").write_text("not a ledger\n")
    assert "it tells of no start of a run" in fails(capsys, "ettr", "measure", str(run))
