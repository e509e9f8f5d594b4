"""Installs this checkout into its own .venv, or tells whether that is done; standard library only.

``bootstrap.py check EXTRAS`` exits 0 when nothing is to be done. It runs at every start, hence the few imports up here.
``bootstrap.py install EXTRAS PYTHON`` makes or updates .venv. See ``scripts/bootstrap`` for what may be set.

Three files in .venv tell what happened there: ``fulgurite.stamp`` is what the finished installation was made from,
``fulgurite.pending`` the same of one that has begun, ``fulgurite.log`` the output of pip.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP, PENDING, LOG = (os.path.join(VENV, "fulgurite." + name) for name in ("stamp", "pending", "log"))
GIB = 2**30
FREE_CPU, FREE_CUDA, FREE_UPDATE = 3.0, 8.0, 0.5  # GB: # packages as unpacked, and what pip holds meanwhile
OFFLINE = ("NewConnectionError", "name resolution", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError", "SSLError",
           "Connection refused", "ConnectionResetError", "Network is unreachable")  # fmt: skip


class Failure(Exception):
    """Something the user can put right; the message is one line."""


def main(mode: str, extras: str, python: str = sys.executable) -> int:
    wanted = {name for name in extras.split(",") if name}
    if mode == "check":
        return 1 if reason(wanted, version()) else 0
    try:
        install(wanted, python)
    except Failure as failure:
        say(f"fulgurite: {failure}")
        return 1
    except OSError as error:
        say(f"fulgurite: {explain(error)}")
        return 1
    except KeyboardInterrupt:
        say("\nfulgurite: the installation was interrupted; the next start takes it up again")
        return 130
    return 0


def version(python: str = "") -> str:
    """Version of this Python or of another; empty when that one does not run."""
    if not python:
        return sys.version.split()[0]
    import subprocess

    command = [python, "-I", "-S", "-c", "import sys; print(sys.version.split()[0])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def contents() -> str:
    """The two files that say what is installed."""
    return "\n".join(read(os.path.join(ROOT, name)) for name in ("pyproject.toml", "constraints.txt"))


def read(path: str) -> str:
    """Content of a file, empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def recorded(path: str) -> tuple[str, str, set[str], str]:
    """What a stamp says: place of the checkout, version of Python, extras, contents of the two files."""
    place, python, extras, files = ([*read(path).split("\n", 3), "", "", ""])[:4]
    return place, python, set(extras.split(",")) - {""}, files


def reason(extras: set[str], venv_version: str) -> str:
    """Why something must be installed; empty when nothing must."""
    place, made_with, have, files = recorded(STAMP)
    asked = os.environ.get("FULGURITE_PYTHON", "")
    if not place or not os.path.exists(PYTHON):
        return "an earlier installation was not finished" if os.path.exists(PENDING) else "first start"
    if place != ROOT:
        return "the checkout has moved"
    if made_with != venv_version or not os.path.exists(os.path.join(VENV, "bin", "fulgurite")):
        return "the Python of .venv has changed"
    if asked and version(asked) != venv_version:
        return "FULGURITE_PYTHON is another version"
    if not extras <= have:
        return "adding " + ", ".join(sorted(extras - have))
    return "" if files == contents() else "pyproject.toml or constraints.txt has changed"


def install(extras: set[str], python: str) -> None:
    """Bring .venv up to date, one process at a time.

    Raises:
        Failure: If the user has to do something first.
    """
    import shutil
    import time

    begun = time.monotonic()
    known = known_extras()
    if not extras <= known:
        unknown, allowed = ", ".join(sorted(extras - known)), ", ".join(sorted(known))
        raise Failure(f"pyproject.toml has no extra {unknown}; it has {allowed}")
    lock = locked()
    why = reason(extras, version(PYTHON))
    if not why:  # another process did it while this one waited
        return
    # Extras asked for once stay: scripts/fulgurite must not take from the environment what scripts/test put there.
    extras = extras | ((recorded(STAMP)[2] | recorded(PENDING)[2]) & known)
    say(f"Fulgurite sets itself up in {VENV} ({why}); the first time takes a few minutes.")

    first = not recorded(STAMP)[0]
    anew = why.startswith(("the checkout", "the Python")) or not usable()
    if anew and os.path.lexists(VENV):
        say("      removing the .venv that is there: it cannot be used any more")
        os.unlink(VENV) if os.path.islink(VENV) or os.path.isfile(VENV) else shutil.rmtree(VENV)
    need_space(FREE_CPU if first or anew else FREE_UPDATE)
    if anew:
        say(f"[1/3] making .venv with Python {version()}")
        make_venv(python)
    else:
        say(f"[1/3] .venv with Python {version(PYTHON)} is there")

    write(PENDING, "\n".join([ROOT, version(PYTHON), ",".join(sorted(extras)), contents()]))
    write(LOG, "")  # its last line tells the next start where this one ended, should it not
    if os.path.exists(STAMP):
        os.unlink(STAMP)
    run_pip(extras, first or anew, lock)
    os.replace(PENDING, STAMP)  # last of all: without it the next start does all this again
    say(f"Fulgurite is ready after {time.monotonic() - begun:.0f} s. The next start goes straight on.")


def usable() -> bool:
    """Whether .venv runs the Python wanted, has pip, and was not left while packages were being written."""
    import subprocess

    here, asked = version(PYTHON), os.environ.get("FULGURITE_PYTHON", "")
    if tuple(map(int, (here or "0").split(".")[:2])) < (3, 11) or (asked and version(asked) != here):
        return False
    said = read(LOG)
    if not os.path.exists(STAMP) and "\nInstalling collected" in said and "\nSuccessfully installed" not in said:
        return False
    return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def known_extras() -> set[str]:
    """Names of the extras that pyproject.toml offers."""
    import tomllib

    project = tomllib.loads(read(os.path.join(ROOT, "pyproject.toml")))["project"]
    return set(project.get("optional-dependencies", {}))


def locked():
    """Wait until no other process installs here; the lock lasts as long as the returned file is open anywhere."""
    import fcntl

    lock = open(VENV + ".lock", "w")  # noqa: SIM115 -- held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another process is setting up this checkout; waiting for it.")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        say(f"note: no lock on this file system ({error.strerror}); start nothing else here until this has finished")
    return lock


def make_venv(python: str) -> None:
    import shutil
    import subprocess

    command = [python, "-m", "venv", VENV]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    output = made.stdout + made.stderr
    if "No space left" in output or "quota" in output:
        raise Failure(disk_full())
    if "ensurepip" in output or "No module named venv" in output:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise Failure(f"this Python ({python}) has no venv module; on Debian and Ubuntu: sudo apt install {package}")
    raise Failure(f"{python} -m venv failed: {(output.strip().splitlines() or ['no output'])[-1]}")


def environment() -> dict[str, str]:
    """The environment for pip: the user's settings, without those that lead out of .venv."""
    env = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1")
    env.setdefault("PIP_NO_INPUT", "1")  # its questions would not be seen
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME"):
        env.pop(name, None)
    if not env.get("HOME"):  # an empty one would put pip's cache into the root folder
        env.pop("HOME", None)
    return env


def run_pip(extras: set[str], first: bool, lock) -> None:
    """Run ``pip install -e .`` under the constraints, telling how far it is.

    Raises:
        Failure: If pip fails, with the reason in the user's words where it is a known one.
    """
    import subprocess
    import time

    target = "." + (f"[{','.join(sorted(extras))}]" if extras else "")
    command = [PYTHON, "-m", "pip", "install", "--progress-bar", "off"]
    if not os.environ.get("PYTHONDONTWRITEBYTECODE"):
        # Compiling every package takes half of the whole time; Python compiles the few that it imports by itself.
        command.append("--no-compile")
    command += ["-c", "constraints.txt", "-e", target]
    progress = Progress()
    # pip writes to the file itself and holds the lock too: should this process be killed, pip ends what it began,
    # no other start interferes, and the next one can read how far it came.
    with open(LOG, "w", encoding="utf-8") as log:
        pip = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
        )
    try:
        with open(LOG, encoding="utf-8", errors="replace") as log:
            running, line = True, ""
            while running:
                running = pip.poll() is None  # asked before reading, so that the last lines are read
                while part := log.readline():
                    line += part
                    if line.endswith("\n"):
                        cuda, line = progress.take(line), ""
                        if cuda and first:
                            need_space(FREE_CUDA, " with the CUDA packages of torch (CPU-only: see scripts/bootstrap)")
                progress.show()
                if running:
                    time.sleep(0.1)
        code = pip.wait()
    except BaseException:
        pip.terminate()
        pip.wait()
        raise
    finally:
        progress.end()
    if code:
        fail(code)


def fail(code: int) -> None:
    """Say what went wrong, from pip's own output."""
    output = read(LOG)
    if any(sign in output for sign in ("No space left on device", "Errno 28", "Disk quota exceeded", "Errno 122")):
        raise Failure(disk_full())
    if code < 0:
        raise Failure(f"pip was ended by signal {-code}; the next start takes it up again")
    if any(sign in output for sign in OFFLINE):
        raise Failure("pip could not reach its package index: check the network, or set PIP_INDEX_URL or HTTPS_PROXY")
    lines = output.rstrip().splitlines()
    for line in [line for line in lines if line.startswith("ERROR:")][-4:] or lines[-4:]:
        say("      " + line)
    raise Failure(f"pip failed with exit code {code}; all it said is in {os.path.relpath(LOG)}")


class Progress:
    """One line that says how far pip is: rewritten on a terminal, repeated every half minute elsewhere."""

    def __init__(self) -> None:
        import time

        self.clock, self.begun, self.shown = time.monotonic, time.monotonic(), time.monotonic()
        self.step, self.packages, self.current, self.cuda = 2, set(), "", False
        self.total = 0
        if not sys.stderr.isatty():
            say("[2/3] finding and fetching packages")

    def take(self, line: str) -> bool:
        """Read one line of pip; true at the first sign of CUDA packages."""
        import re

        first_of_cuda = False
        if line.startswith(("Collecting ", "Requirement already satisfied: ")):
            collected = line.startswith("Collecting ")
            name = re.split(
                r"[^\w.-]", line.removeprefix("Requirement already satisfied: ").removeprefix("Collecting ")
            )[0]
            self.packages.add(name)
            first_of_cuda = collected and not self.cuda and name.startswith(("nvidia-", "cuda-toolkit"))
            self.cuda |= first_of_cuda
        elif line.lstrip().startswith(("Downloading ", "Using cached ")) and "(" in line:
            self.current = line.replace("Using cached", "").replace("Downloading", "").strip()
        elif line.startswith("Installing collected packages"):
            self.step, self.total, self.begun = 3, line.count(",") + 1, self.clock()
            if not sys.stderr.isatty():
                say(self.text())
                self.shown = self.clock()
        return first_of_cuda

    def text(self) -> str:
        seconds = f"{self.clock() - self.begun:.0f} s"
        if self.step == 3:
            return f"[3/3] installing {self.total} packages: {seconds}"
        return f"[2/3] finding and fetching packages: {len(self.packages)} so far, {seconds}  {self.current}"

    def show(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K" + self.text()[:110], end="", file=sys.stderr, flush=True)
        elif self.clock() - self.shown > 30:
            self.shown = self.clock()
            say(self.text())

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def free_gib(place: str) -> float:
    import shutil

    return shutil.disk_usage(place).free / GIB


def need_space(needed: float, why: str = "") -> None:
    free = free_gib(VENV if os.path.isdir(VENV) else ROOT)
    if free < needed:
        raise Failure(f"the disk is too full: {free:.1f} GB are free for {VENV}, and {needed:.1f} GB are needed{why}")


def disk_full() -> str:
    import tempfile

    temporary = tempfile.gettempdir()
    return (
        f"the disk is full: {free_gib(ROOT):.1f} GB free in {ROOT}, {free_gib(temporary):.1f} GB in {temporary} where "
        "pip unpacks (TMPDIR names another folder); make room and start again"
    )


def explain(error: OSError) -> str:
    """One line for what the operating system refuses."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{ROOT} cannot be written to ({error.strerror}), and .venv belongs there; clone into a folder of your own"
        )
    return str(error)


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
