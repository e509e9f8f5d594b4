"""What the command line imports, and how soon it answers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from framework import registry
from framework.about import About, Reference, cited, shown
from framework.cli import main
from framework.commands.methods import listing
from framework.configuration import names
from framework.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
#: Libraries of single methods and concerns.
HEAVY = ("transformers", "flwr", "opacus", "wandb", "torch_geometric", "gymnasium", "ray", "tensorboard")


def child(code: str, **environment: str):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["methods"], ["fit", "--help"]], ids=" ".join)
def test_cheap_answers_import_no_torch_and_take_under_half_a_second_of_cpu(args):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = child(
        "import sys\nfrom framework.cli import main\n"
        f"main({args!r})\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'lightning', 'jsonargparse', 'numpy', 'omegaconf'}))"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_import_of_the_package_is_empty():
    assert child("import sys, framework; print('yaml' in sys.modules, 'torch' in sys.modules)").split() == [
        "False",
        "False",
    ]


def test_wrong_configuration_is_answered_before_torch_is_imported(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("modle: {}\n")
    out = child(
        "import sys\nfrom framework.cli import main\n"
        f"try: main(['fit', '-c', {str(bad)!r}])\n"
        "except SystemExit as error: print(error.code, 'torch' in sys.modules)"
    )
    assert out.split() == ["2", "False"]


def test_a_classifier_imports_no_other_methods_libraries(tmp_path):
    out = child(
        "import json, os, sys\nfrom framework.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "main(['fit', '-c', 'classifier/digits', '--trainer.fast_dev_run', '1'])\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    assert json.loads(out.splitlines()[-1]) == []


def test_text_metrics_still_find_transformers():
    pytest.importorskip("transformers")
    out = child(
        "import sys\nfrom framework.lean import import_torchmetrics\nimport_torchmetrics()\n"
        "print('transformers' in sys.modules)\n"
        "from torchmetrics.functional.text import bert\n"
        "from torchmetrics.text import BERTScore\n"
        "print(bert.AutoModel.from_pretrained.__self__.__name__, 'transformers' in sys.modules)\n"
        "import transformers\n"
        "print(issubclass(transformers.BertTokenizer, bert.AutoTokenizer))"
    )
    assert out.split() == ["False", "AutoModel", "True", "False"]


def test_signal_processing_is_there_when_asked_for():
    out = child(
        "import sys\nfrom framework.lean import import_torchmetrics\nimport_torchmetrics()\n"
        "print('scipy.signal' in sys.modules)\n"
        "from torchmetrics.audio import SignalNoiseRatio\n"
        "import scipy.signal\n"
        "print(scipy.signal.windows.hann(3)[1], scipy.signal.find_peaks([0, 1, 0])[0])"
    )
    assert out.split() == ["False", "1.0", "[1]"]


def test_methods_lists_every_configuration_and_overlay_once(capsys):
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(listed) == sorted(names())
    for line in lines:
        if line.startswith("  overlays/"):
            assert len(line.split()) > 2, f"{line.strip()} needs a first comment line that says what it does"


def test_methods_shows_reference_numbers_and_refuses_a_broken_about(tmp_path, monkeypatch):
    from framework.commands import methods

    good = tmp_path / "good.yaml"
    good.write_text(
        "# a comment\nabout:  # which\n  method: M\n  summary: s\n  paper: P\n\n  reference:\n"
        "    - {metric: test/accuracy, value: 0.973, std: 0.004, verified: false}\nmodel: {class_path: X}\n"
    )
    monkeypatch.setattr(methods, "names", lambda: {"m/good": good})
    assert listing() == "M  (P)\n  m/good  s  test/accuracy 97.3 ± 0.4 % (unverified)\n"
    good.write_text("about:\n  methd: M\n")
    with pytest.raises(ConfigurationError, match=r"good.yaml: about.methd"):
        listing()


def test_numbers_are_shown_in_the_unit_people_read():
    assert shown("test/accuracy", 0.9731, 0.0042) == "97.3 ± 0.4 %"
    assert shown("test/f1", 1.0) == "100.0 %"
    assert shown("test/loss", 0.12345678) == "0.1235"
    assert shown("test/accuracy", 97.3) == "97.3"  # not a share
    assert cited(Reference("test/accuracy", 0.5, verified=True)) == "50.0 %"


def test_about_needs_a_method():
    with pytest.raises(ConfigurationError, match="about: missing method"):
        About.read({"summary": "s"})


def test_short_names_come_from_the_sources_without_importing_them(tmp_path, monkeypatch):
    room = tmp_path / "modules"
    (room / "deep").mkdir(parents=True)
    (room / "one.py").write_text('raise ImportError\nclass A: pass\nclass _B: pass\n"""\nclass C:\n"""\n')
    (room / "_shared.py").write_text("class Base: pass\n")
    (room / "deep" / "__init__.py").write_text("class D:\n    class E: pass\n")
    monkeypatch.setattr(registry, "_root", lambda: tmp_path)
    registry.classes.cache_clear()
    try:
        assert registry.classes("modules") == {"A": ["modules.one.A"], "D": ["modules.deep.D"]}
    finally:
        registry.classes.cache_clear()


def test_names_of_our_rooms_are_unambiguous():
    for room in registry.ROOMS.values():
        assert {name: paths for name, paths in registry.classes(room).items() if len(paths) > 1} == {}
