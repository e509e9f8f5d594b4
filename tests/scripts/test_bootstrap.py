"""The self-installing commands, with a fake Python whose venv and pip are shell scripts: no network, seconds."""

import errno
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

# Stands for a Python on PATH. `-m venv DIR` makes a DIR whose python fakes pip; the rest goes to the real Python.
PYTHON = r"""#!/bin/bash
case "$*" in
  "-m venv "*)
    case "${FAKE_VENV:-}" in
      missing) echo "Error: The virtual environment was not created successfully because ensurepip is not"; exit 1 ;;
      full) echo "OSError: [Errno 28] No space left on device"; exit 1 ;;
    esac
    echo venv >> "$FAKE_LOG"; mkdir -p "$3/bin"; cp "$FAKE_PIP_PYTHON" "$3/bin/python" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
PIP_PYTHON = r"""#!/bin/bash
case "$1 $2 $3" in
  "-m pytest "*)
    echo "pytest [${*:3}] in $PWD, $PYTEST_XDIST_AUTO_NUM_WORKERS workers, $OMP_NUM_THREADS threads"; exit 3 ;;
  "-m pip --version") exit 0 ;;
  "-m pip "*) ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
echo "pip ${*:3}" >> "$FAKE_LOG"
echo "user=$PIP_USER target=${PIP_TARGET-none} index=${PIP_INDEX_URL-none}" >> "$FAKE_LOG"
echo "Collecting torch==2.13.0 (from fulgurite)"
case "${FAKE_PIP:-}" in
  cuda) echo "Collecting nvidia-cublas==13"; exec sleep 60 ;;
  offline) echo "WARNING: Retrying after NewConnectionError"; echo "ERROR: No matching distribution found"; exit 1 ;;
  broken) echo "ERROR: Cannot install fulgurite because of conflicting dependencies"; exit 1 ;;
  slow) sleep 1.5 ;;
esac
echo "Installing collected packages: torch, fulgurite"
case "${FAKE_PIP:-}" in
  full) echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"; exit 1 ;;
  killed) kill -9 $PPID; exit 1 ;;
  orphan) kill -9 $PPID; sleep 1 ;;
esac
printf '#!/bin/bash\necho "fulgurite [$*] in $PWD"\nexit 5\n' > .venv/bin/fulgurite; chmod +x .venv/bin/fulgurite
echo "Successfully installed torch fulgurite"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A checkout (in a folder with a space) and a PATH that holds only the fake Python and the system's small tools."""

    def __init__(self, place: Path) -> None:
        self.root, self.bin, self.log = place / "check out", place / "bin", place / "log"
        shutil.copytree(SCRIPTS, self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        extras = '[project]\nname = "x"\n[project.optional-dependencies]\ndev = []\nrl = []\n'
        (self.root / "pyproject.toml").write_text(extras)
        (self.root / "constraints.txt").write_text("torch==2.13.0\n")
        executable(self.bin / "python3", PYTHON)
        for tool in ("bash", "cat", "chmod", "cp", "dirname", "env", "getconf", "mkdir", "nproc", "readlink", "sleep"):
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.log.touch()
        real = str(Path(sys.executable).resolve())
        fake_pip = executable(place / "pip-python", PIP_PYTHON)
        self.env = {
            "PATH": str(self.bin),
            "REAL_PYTHON": real,
            "FAKE_LOG": str(self.log),
            "FAKE_PIP_PYTHON": str(fake_pip),
        }

    def start(self, command: str = "scripts/fulgurite", *args: str, cwd: Path | None = None, **env: str):
        path = command if os.path.isabs(command) else str(self.root / command)
        return subprocess.Popen(
            [path, *args],
            env=self.env | env,
            cwd=cwd or self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str = "scripts/fulgurite", *args: str, **options) -> tuple[int, str, str]:
        process = self.start(command, *args, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def done(self) -> list[str]:
        """What the fakes were asked to do since the last call: ``venv`` and ``pip install ...``."""
        lines = [line for line in self.log.read_text().splitlines() if not line.startswith("user=")]
        self.log.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


PLAIN = "pip install --progress-bar off --no-compile -c constraints.txt -e ."


def test_first_start_installs_under_constraints_and_runs_the_program(machine: Machine) -> None:
    code, out, err = machine.run("scripts/fulgurite", "fit", "-c", "a b.yaml")
    assert (code, out) == (5, f"fulgurite [fit -c a b.yaml] in {machine.root}\n")  # its output alone, and its exit code
    assert machine.done() == ["venv", PLAIN]
    assert [line[:5] for line in err.splitlines() if line.startswith("[")] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "installing 2 packages" in err
    assert "ready after" in err


def test_unchanged_is_reused_without_a_word(machine: Machine) -> None:
    machine.run()
    machine.done()
    code, out, err = machine.run("scripts/fulgurite", "methods")
    assert (code, out, err) == (5, f"fulgurite [methods] in {machine.root}\n", "")
    assert machine.done() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_change_of_what_is_required_installs_again_into_the_same_venv(machine: Machine, name: str) -> None:
    machine.run()
    machine.done()
    with (machine.root / name).open("a") as file:
        file.write("# newer\n")
    _, _, err = machine.run()
    assert "pyproject.toml or constraints.txt has changed" in err
    assert machine.done() == [PLAIN]
    assert machine.run()[2] == ""


def test_extras_add_up_and_stay(machine: Machine) -> None:
    code, out, _ = machine.run("scripts/test", "-x")
    assert code == 3
    assert out.startswith("pytest [-n auto --dist worksteal -m not evidence -x] in ")
    assert out.endswith(" workers, 1 threads\n")
    assert machine.done() == ["venv", PLAIN + "[dev]"]
    machine.run()  # fulgurite needs less than is there
    assert machine.done() == []
    machine.run(FULGURITE_EXTRAS="rl")
    assert machine.done() == [PLAIN + "[dev,rl]"]
    with (machine.root / "constraints.txt").open("a") as file:
        file.write("# newer\n")
    machine.run()
    assert machine.done() == [PLAIN + "[dev,rl]"]


def test_workers_follow_the_cores_even_when_threads_are_limited(machine: Machine) -> None:
    cores = subprocess.run(
        ["env", "-u", "OMP_NUM_THREADS", "nproc"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"{cores} workers, 1 threads" in machine.run("scripts/test", OMP_NUM_THREADS="1")[1]


def test_packages_are_compiled_only_where_python_would_not_do_it_when_it_imports_them(machine: Machine) -> None:
    machine.run(PYTHONDONTWRITEBYTECODE="1")
    assert machine.done() == ["venv", PLAIN.replace(" --no-compile", "")]


def test_unknown_extra(machine: Machine) -> None:
    code, _, err = machine.run(FULGURITE_EXTRAS="games")
    assert (code, err) == (1, "fulgurite: pyproject.toml has no extra games; it has dev, rl\n")
    assert machine.done() == []


def test_works_from_elsewhere_and_through_a_link(machine: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "fg").symlink_to(machine.root / "scripts" / "fulgurite")
    code, out, _ = machine.run(str(elsewhere / "fg"), "fit", cwd=elsewhere)
    assert (code, out) == (5, f"fulgurite [fit] in {elsewhere}\n")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["fg"]


def test_interrupted_while_writing_packages_starts_anew(machine: Machine) -> None:
    code, out, _ = machine.run(FAKE_PIP="killed")
    assert code != 5
    assert out == ""
    assert machine.done() == ["venv", PLAIN]
    _, _, err = machine.run()
    assert "an earlier installation was not finished" in err
    assert machine.done() == ["venv", PLAIN]


def test_killed_alone_pip_ends_its_work_and_the_next_start_waits_for_it(machine: Machine) -> None:
    assert machine.run(FAKE_PIP="orphan")[0] != 5
    code, _, err = machine.run()
    assert code == 5
    assert "waiting for it" in err
    assert machine.done() == ["venv", PLAIN, PLAIN]  # kept, and gone through once more


def test_failure_before_writing_packages_keeps_the_venv(machine: Machine) -> None:
    machine.run(FAKE_PIP="broken")
    assert machine.done() == ["venv", PLAIN]
    assert machine.run()[0] == 5
    assert machine.done() == [PLAIN]


def test_a_venv_made_by_hand_is_adopted(machine: Machine) -> None:
    machine.run()
    (machine.root / ".venv" / "fulgurite.stamp").unlink()
    (machine.root / ".venv" / "fulgurite.log").unlink()
    machine.done()
    assert machine.run()[0] == 5
    assert machine.done() == [PLAIN]


def test_a_venv_whose_python_is_gone_is_replaced(machine: Machine) -> None:
    machine.run()
    machine.done()
    (machine.root / ".venv" / "bin" / "python").unlink()
    (machine.root / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.11")
    assert machine.run()[0] == 5
    assert machine.done() == ["venv", PLAIN]


def test_moved_checkout_is_installed_anew(machine: Machine) -> None:
    machine.run()
    machine.done()
    machine.root = machine.root.rename(machine.root.with_name("moved"))
    code, out, err = machine.run()
    assert (code, out) == (5, f"fulgurite [] in {machine.root}\n")
    assert "the checkout has moved" in err
    assert machine.done() == ["venv", PLAIN]


def test_concurrent_starts_install_once(machine: Machine) -> None:
    first = machine.start(FAKE_PIP="slow")
    lock = machine.root / ".venv.lock"
    deadline = time.monotonic() + 30
    while not machine.log.read_text().count("pip") and time.monotonic() < deadline:
        time.sleep(0.02)
    with lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = machine.start(FAKE_PIP="slow")
    err = second.communicate(timeout=60)[1]
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (5, 5)
    assert err == "Another process is setting up this checkout; waiting for it.\n"
    assert machine.done() == ["venv", PLAIN]


def old_python(path: Path, version: str) -> Path:
    return executable(path, f'#!/bin/bash\n[ "$1" = -c ] && echo {version} || exit 1\n')


def test_old_python_is_named_and_a_newer_one_on_path_is_found(machine: Machine) -> None:
    good = (machine.bin / "python3").rename(machine.bin / "good")
    old_python(machine.bin / "python3", "3.8")
    executable(
        machine.bin / "python3.13", "#!/bin/bash\necho no such version >&2; exit 127\n"
    )  # a shim with nothing behind
    code, _, err = machine.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "Python 3.11 or newer is needed, and PATH has none (python3 is 3.8)" in err
    good.rename(machine.bin / "python3.12")
    assert machine.run()[0] == 5


def test_no_python_at_all(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    code, _, err = machine.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "no python3 at all" in err


def test_python_named_by_the_user(machine: Machine) -> None:
    named = (machine.bin / "python3").rename(machine.bin.parent / "my-python")
    assert machine.run(FULGURITE_PYTHON=str(named))[0] == 5
    assert machine.run(FULGURITE_PYTHON=str(named))[2] == ""
    assert machine.run()[2] == ""
    for version, message in {"3.9": "is Python 3.9, and 3.11 or newer is needed"}.items():
        other = old_python(machine.bin.parent / "other", version)
        code, _, err = machine.run(FULGURITE_PYTHON=str(other))
        assert (code, err) == (1, f"fulgurite: FULGURITE_PYTHON={other} {message}\n")
    code, _, err = machine.run(FULGURITE_PYTHON="/nowhere/python")
    assert (code, err) == (1, "fulgurite: FULGURITE_PYTHON=/nowhere/python cannot be run as a Python\n")


def test_another_python_named_by_the_user_replaces_the_venv(machine: Machine) -> None:
    def other(version: str) -> str:
        """A Python that gives itself out as another version."""
        name = executable(machine.bin / "other", PYTHON)
        name.write_text(PYTHON.replace("  *) exec", f"  *sys.version.split*) echo {version} ;;\n  *) exec"))
        return str(name)

    machine.run(FAKE_PIP="broken")  # left without a stamp
    machine.done()
    _, _, err = machine.run(FULGURITE_PYTHON=other("3.12.99"), FAKE_PIP="broken")
    assert "removing the .venv that is there" in err
    assert machine.done() == ["venv", PLAIN]
    assert machine.run()[0] == 5  # whatever Python made it, without the wish it stays
    machine.done()
    _, _, err = machine.run(FULGURITE_PYTHON=other("3.12.99"))
    assert "FULGURITE_PYTHON is another version" in err
    assert machine.done() == ["venv", PLAIN]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FAKE_VENV": "missing"}, "has no venv module; on Debian and Ubuntu: sudo apt install python3."),
        ({"FAKE_VENV": "full"}, "the disk is full: "),
        ({"FAKE_PIP": "full"}, "the disk is full: "),
        ({"FAKE_PIP": "offline"}, "pip could not reach its package index: check the network"),
        ({"FAKE_PIP": "broken"}, "pip failed with exit code 1; all it said is in "),
    ],
    ids=str,
)
def test_what_the_user_can_put_right_is_one_line(machine: Machine, env: dict[str, str], message: str) -> None:
    code, out, err = machine.run(**env)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("fulgurite: ")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert machine.run()[0] == 5  # put right


def test_settings_of_pip_are_kept_except_those_that_lead_out_of_the_venv(machine: Machine) -> None:
    machine.run(PIP_USER="1", PIP_TARGET="/elsewhere", PIP_INDEX_URL="https://index.example/simple")
    assert "user=0 target=none index=https://index.example/simple" in machine.log.read_text()


@pytest.fixture
def bootstrap(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """bootstrap.py of the machine's checkout as a module, to set what the operating system says."""
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    for name in ("FULGURITE_PYTHON", "FULGURITE_EXTRAS", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("bootstrap", machine.root / "scripts" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_too_little_space_is_said_before_anything_is_made(machine, bootstrap, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bootstrap, "free_gib", lambda place: 1.5)
    assert bootstrap.main("install", "", "python3") == 1
    assert (
        f"the disk is too full: 1.5 GB are free for {machine.root}/.venv, and 3.0 GB are needed\n"
        in capsys.readouterr().err
    )
    assert machine.done() == []
    assert not (machine.root / ".venv").exists()


def test_cuda_packages_need_more_space_and_pip_is_stopped(machine, bootstrap, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bootstrap, "free_gib", lambda place: 5.0)
    monkeypatch.setenv("FAKE_PIP", "cuda")  # would sleep for a minute
    begun = time.monotonic()
    assert bootstrap.main("install", "", "python3") == 1
    assert time.monotonic() - begun < 30
    assert "8.0 GB are needed with the CUDA packages of torch" in capsys.readouterr().err
    monkeypatch.setenv("FAKE_PIP", "")
    assert bootstrap.main("install", "", "python3") == 0


def test_read_only_checkout(bootstrap, monkeypatch, capsys) -> None:
    def refuse(path, mode="r", **options):
        if mode == "w":
            raise OSError(errno.EROFS, "Read-only file system", path)
        return open(path, mode, **options)

    monkeypatch.setattr(bootstrap, "open", refuse, raising=False)
    assert bootstrap.main("install", "", "python3") == 1
    assert "cannot be written to (Read-only file system), and .venv belongs there" in capsys.readouterr().err
