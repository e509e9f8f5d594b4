"""``fulgurite supervise``: a run that is restarted from its last checkpoint until it is done; torch comes late."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from framework import rundir
from framework.commands.ettr_options import Parser, typed, whole
from framework.configuration import Configuration, name_of, pairs
from framework.errors import ConfigurationError
from framework.reliability.ledger import FILE, MODULES
from framework.reliability.supervisor import Outcome, Settings, Supervisor
from framework.reliability.supervisor_processes import replace
from framework.reliability.units import minutes

ENTRY = "framework.cli"
"""Module whose ``main`` is the command line, and which ``python -m`` runs."""
RUNS = ("fit", "federate")
RECORDER = "callbacks.ettr_recorder.ETTRRecorder"
ROUNDS = "rounds.jsonl"
PRINTING = ("-h", "--help", "--print_config")
"""Arguments of a run that have it print something and end: there is nothing to supervise."""

DESCRIPTION = """Start a run and restart it from its newest whole checkpoint, in the same directory, until it is done.

What follows fit or federate are its own arguments. A run that dies, hangs or is stopped (SIGSTOP) is started again;
one whose configuration is wrong (exit code 2) is not. SIGTERM and Ctrl-C stop the run, then the supervisor. What
happens is written to <run dir>/ledger.jsonl; `fulgurite ettr measure <run dir>` reads it."""
EXAMPLES = """examples
  fulgurite supervise fit -c classifier/digits
  fulgurite supervise --max-restarts 20 --hang-timeout 2min fit -c classifier/digits -c overlays/failure_injection
  fulgurite supervise --nproc 2 fit -c classifier/digits -c overlays/ddp

Times have a unit (ms, s, min, h). Exit codes: 0 done, 1 gave up, 2 wrong configuration, 128 + N stopped by signal N."""


def run(args: list[str]) -> int:
    """Run the command.

    Args:
        args: What follows ``supervise``.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: For a mistake in the arguments or the configuration.
    """
    parser = _parser()
    at = next((index for index, word in enumerate(args) if word in RUNS), len(args))
    if at == len(args) and not {"-h", "--help"} & set(args):
        raise ConfigurationError("supervise: say what to run: fulgurite supervise [options] fit|federate ...")
    options = parser.parse_args([each for each in args[:at] if each != "--debug"])
    if any(each in PRINTING or each.partition("=")[0].endswith(".help") for each in args[at:]):
        import_module(ENTRY).run([each for each in args[at:] if each != "--debug"])
        return 0
    settings = Settings(
        max_restarts=options.max_restarts,
        backoff=options.backoff,
        hang_timeout=options.hang_timeout,
        start_timeout=options.start_timeout,
        checkpoint_timeout=options.checkpoint_timeout,
        crash_loop=options.crash_loop,
        grace=options.grace,
        processes=options.nproc,
    )
    outcome = supervise(args[at:], settings, options.cold)
    if outcome.code:
        sys.stderr.write(f"fulgurite: supervise: {outcome.summary()}\n")
    elif len(outcome.attempts) > 1:
        restarts = len(outcome.attempts) - 1
        sys.stdout.write(f"done after {restarts} restart{'s'[: restarts != 1]}: ")
        sys.stdout.write(f"fulgurite ettr measure {outcome.directory}\n")
    return outcome.code


def supervise(args: list[str], settings: Settings | None = None, cold: bool = False) -> Outcome:
    """Supervise a run, for Python.

    Args:
        args: ``fit`` or ``federate`` and what follows it.
        settings: When to restart.
        cold: Whether every attempt is a new interpreter, instead of a fork of this process, which then has to have one
            thread and must not have used a GPU.

    Returns:
        The outcome.

    Raises:
        ConfigurationError: For a mistake in the configuration that is seen without starting a run.
    """
    command, *given = args
    configuration = Configuration.of(command, pairs([each for each in given if each != "--debug"]))
    directory, fresh = _directory(command, configuration)
    arguments = [command, *given, *_recorder(command, configuration)]
    if not cold:
        reason = _preload(command, configuration)
        if reason:
            sys.stderr.write(f"fulgurite: supervise: every attempt is a new interpreter: {reason}\n")
        cold = bool(reason)
    with tempfile.TemporaryDirectory(prefix="fulgurite-") as folder:
        learned = _Learned(Path(folder) / "modules")

        def body(again: bool) -> None:
            begin = _cold if cold or learned.threads else _warm
            begin([*arguments, *(["--ckpt_path", "last"] if again else [])])

        outcome = Supervisor(
            body,
            directory,
            settings,
            directory / ROUNDS if command == "federate" else None,
            (lambda: None) if cold else learned.load,
            {} if cold else {MODULES: str(learned.file)},
        ).run()
    if fresh and not (directory / "config.yaml").exists():  # nothing has begun
        (directory / FILE).unlink(missing_ok=True)
        rundir.discard(directory, directory.parents[len(Path(configuration.values["name"]).parts)])
    return outcome


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"supervise: {message.removeprefix('argument ')}")


def _parser() -> Parser:
    seconds = typed(lambda text: 60 * minutes(text))
    settings = Settings()
    parser = _Parser(
        prog="fulgurite supervise", usage="fulgurite supervise [options] fit|federate ...",
        description=DESCRIPTION, epilog=EXAMPLES,
    )  # fmt: skip

    def add(name: str, kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> None:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=text)

    add("--max-restarts", whole(0), settings.max_restarts, "N", "give up after N restarts (default 1000)")
    add(
        "--crash-loop",
        whole(1),
        settings.crash_loop,
        "K",
        "give up when K in a row come no further (default 5)",
    )
    add("--backoff", seconds, settings.backoff, "TIME", "wait before a restart, doubled while none helps (default 1s)")
    add("--hang-timeout", seconds, settings.hang_timeout, "TIME", "longest silence while it trains (default 10min)")
    add("--start-timeout", seconds, settings.start_timeout, "TIME", "longest silence until then (default 20min)")
    add("--checkpoint-timeout", seconds, settings.checkpoint_timeout, "TIME", "longest checkpoint (default 30min)")
    add("--grace", seconds, settings.grace, "TIME", "a stopped run may take this long to end (default 30s)")
    add("--nproc", whole(1, 4096), 1, "N", "start N ranks on this machine, as torchrun does; all restart when one dies")
    parser.add_argument("--cold", action="store_true", help="a new interpreter for every attempt, instead of a fork")
    return parser


def _directory(command: str, configuration: Configuration) -> tuple[Path, bool]:
    """The directory of all attempts, and whether it is new.

    Raises:
        ConfigurationError: If there is nothing that could be restarted.
    """
    values = configuration.interpolated()
    trainer = values.get("trainer") or {}
    if trainer.get("fast_dev_run"):
        raise ConfigurationError("supervise: trainer.fast_dev_run leaves nothing that could be restarted")
    if str(trainer.get("enable_checkpointing", True)).lower() == "false":
        raise ConfigurationError("supervise: trainer.enable_checkpointing is false, so every restart would begin anew")
    own = str((values.get("model") or {}).get("class_path", "")).rpartition(".")[2].lower()
    name = values.get("name") or (name_of(configuration.files[0]) if configuration.files else own)
    if not own:
        raise ConfigurationError("model.class_path is not set: give a configuration (-c lds/wine), or --model <class>")
    name = rundir.check_name(str(name))
    if command == "federate" and not values.get("name"):
        name = f"{name}-federated"
    configuration.values["name"] = name
    root = Path(str(trainer.get("default_root_dir") or "runs")).expanduser()
    given = values.get("ckpt_path")
    found = rundir.find_checkpoint(str(given), root, name) if given not in {None, "none"} else None
    if found is not None and found.run is not None and found.run.resolve().parent == (root / name).resolve():
        return found.run, False
    return rundir.reserve(root, name), True


def _recorder(command: str, configuration: Configuration) -> list[str]:
    """What adds the recorder to a run that has none."""
    callbacks = (configuration.values.get("trainer") or {}).get("callbacks") or []
    if any(isinstance(each, dict) and each.get("class_path") == RECORDER for each in callbacks):
        return []
    signs = ["--trainer.callbacks.signs_only", "true"] if command == "federate" else []
    return ["--trainer.callbacks+", RECORDER, *signs]


def _preload(command: str, configuration: Configuration) -> str:
    """Import what the run needs.

    Returns:
        Why this process must not be forked, empty if it may be.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    from framework.lean import import_torchmetrics

    import_torchmetrics()
    import_module(f"framework.commands.{'federate' if command == 'federate' else 'train'}")
    for path in {*_classes(configuration.values), RECORDER}:
        module = path.rpartition(".")[0]
        if module:
            _try_import(module)
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        return "a GPU is in use already, which a fork cannot share"
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
        return f"a module has started threads ({names}), which a fork would not have"
    return ""


class _Learned:
    """What runs import late, in their set-up: imported here while the first one goes on, for those that follow.

    Args:
        file: Where the run leaves the names of its modules.

    Attributes:
        threads: Whether one of them has started threads, which a fork would not have.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stamp = 0
        self.threads = False

    def load(self) -> None:
        """Import what the run has, once that is known."""
        stamp = self.file.stat().st_mtime_ns if self.file.exists() else 0
        if stamp == self.stamp:
            return
        self.stamp = stamp
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in self.file.read_text(encoding="utf-8").split():
                if name not in sys.modules and not name.startswith("__"):
                    _try_import(name)
        if threading.active_count() > 1 and not self.threads:
            self.threads = True
            sys.stderr.write("fulgurite: supervise: every attempt is a new interpreter now: a module started threads\n")


def _classes(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["class_path"]] if isinstance(node.get("class_path"), str) else []
        return own + [path for each in node.values() for path in _classes(each)]
    return [path for each in node for path in _classes(each)] if isinstance(node, list) else []


def _try_import(module: str) -> None:
    try:
        import_module(module)
    except Exception:  # the run will say what is wrong, better
        return


def _warm(args: list[str]) -> None:
    """Run the command line in this fork, as if it had been started afresh."""
    entry = import_module(ENTRY)
    sys.modules["__main__"] = entry  # which Lightning starts again for further ranks
    sys.argv = [str(entry.__file__), *args]
    entry.main(args)


def _cold(args: list[str]) -> None:
    """Run the command line in a new interpreter, which takes the place of this fork."""
    replace([sys.executable, "-m", ENTRY, *args])
