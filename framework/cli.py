"""Entry point of ``fulgurite``: cheap answers first, torch and Lightning only when a run is asked for."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from framework.errors import ConfigurationError, RunFailed, near

if TYPE_CHECKING:
    from framework.commands.train import FulguriteCLI

RUNS = {
    "fit": "train, then test the best checkpoint",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint",
    "predict": "predict with a checkpoint",
    "federate": "train by many clients, then test the best round",
}
COMMANDS = {
    **RUNS,
    "supervise": "start fit or federate, and restart it from its last checkpoint until it is done",
    "methods": "list the configurations and overlays there are",
    "ettr": "estimate training under failures: effective time, checkpoint interval, failure rates",
}

HELP = f"""usage: fulgurite <command> -c <configuration> [-c <overlay>]... [--<key> <value>]...

commands
{chr(10).join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())}

options
  -h, --help      show this text; after a command, its options
  --version       show the version
  --debug         show tracebacks

examples
  fulgurite methods
  fulgurite fit -c classifier/digits
  fulgurite fit -c classifier/digits -c overlays/wandb --trainer.max_epochs 5
  fulgurite test -c classifier/digits --ckpt_path best
  fulgurite ettr --help
"""

RUN_HELP = """usage: fulgurite {command} -c <configuration> [-c <overlay>]... [--<key> <value>]...

{summary}. Layers and keys apply from left to right.

options
  -c, --config FILE      YAML file, or the name of a shipped one (`fulgurite methods`); several are
                         laid over one another
  --<key> VALUE          one value, such as --trainer.max_epochs 5, --model.lr 1e-3, --data.batch_size 32,
                         --model <class>, --trainer.callbacks+ <class>
  --name NAME            folder of the run under trainer.default_root_dir ("runs"); default: the name of the first -c
  --ckpt_path PATH       {checkpoint}
  --seed_everything N    seed (default 0)
  --threads N            CPU threads of torch{extra}
  --print_config         print the resolved configuration and stop
  --model.help CLASS     show the arguments of a class; also --data.help CLASS and --trainer.help
  --debug                show tracebacks
  -h, --help             show this text
"""
_CHECKPOINT = {
    "fit": "last (continue the newest run of this name, or start one), best, or a file",
    "validate": "best (default), last, a file, or none for fresh weights",
}
_EXTRA = {
    "fit": "\n  --test_after_fit BOOL  test the best checkpoint after training (default true)"
    "\n  --resumable auto|true|false  a killed run goes on bit for bit: say what cannot, or refuse it (default auto)",
    "federate": "\n  --federation.<key> VALUE  who takes part, what a client does, how the server combines it; "
    "--federation.help lists them"
    "\n  --test_after_fit BOOL  test the best round after the last (default true)",
}


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: What follows ``fulgurite``; ``None`` takes it from the process.

    Raises:
        SystemExit: With code 2 after one line on stderr for a mistake of the user (or the environment) before training,
            130 after an interrupt, 143 after SIGTERM in training, 1 after one line for a run that failed without being
            wrong (``RunFailed``) or the traceback of any other error. Success returns ``None``.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    if given[:1] != ["supervise"]:  # which hands it on
        given = [each for each in given if each != "--debug"]
    try:
        run(given)
        _leave_group()
    except SystemExit as error:
        if _interrupted(error):
            raise SystemExit(130) from None
        if type(error).__name__ == "SIGTERMException":  # Lightning's, which has no code: the run is not done
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        if not _expected(error):
            _traceback()
        line = " ".join(str(error).split()) or type(error).__name__
        hint = " (--debug shows where)" if isinstance(error, TypeError) else ""
        sys.stderr.write(f"fulgurite: error: {line}{hint}\n")
        raise SystemExit(1 if isinstance(error, RunFailed) else 2) from None


def run(args: list[str]) -> FulguriteCLI | None:
    """The same for Python: errors come as exceptions.

    Args:
        args: What follows ``fulgurite``.

    Returns:
        The finished run with its ``trainer``, ``model``, ``datamodule``, ``directory`` and ``results``; ``None`` for
        commands that only print.
    """
    if not args or args[0] in {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return None
    command, rest = args[0], args[1:]
    if command == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            sys.stdout.write(f"fulgurite {version('fulgurite')}\n")
        except PackageNotFoundError:
            sys.stdout.write("fulgurite, from a checkout that is not installed\n")
        return None
    if command not in COMMANDS:
        raise ConfigurationError(
            f"no such command {command}{near(command, COMMANDS) or '; fulgurite --help lists them'}"
        )
    if command == "methods":
        from framework.commands.methods import listing

        if rest:
            raise ConfigurationError(f"methods takes no arguments, got {' '.join(rest)}")
        sys.stdout.write(listing())
        return None
    if command == "ettr":
        from framework.commands.ettr import ettr

        ettr(rest)
        return None
    if command == "supervise":
        from framework.commands.supervise import run as supervise

        code = supervise(rest)
        if code:
            raise SystemExit(code)
        return None
    if "-h" in rest or "--help" in rest:
        checkpoint = _CHECKPOINT.get(command, _CHECKPOINT["validate"])
        sys.stdout.write(
            RUN_HELP.format(
                command=command,
                summary=COMMANDS[command].capitalize(),
                checkpoint=checkpoint,
                extra=_EXTRA.get(command, ""),
            )
        )
        return None
    return _train(command, rest)


def _train(command: str, rest: list[str]) -> FulguriteCLI | None:
    if "FULGURITE_ATTEMPT" in os.environ:
        from framework.reliability.supervisor_processes import die_with_parent, show_stacks

        show_stacks()  # a new interpreter does not yet
        if "LOCAL_RANK" in os.environ:
            die_with_parent(os.getppid())  # a rank that the first one has started
    from framework.configuration import Configuration, pairs

    given = pairs(rest)
    print_config = any(key == "--print_config" for key, _ in given)
    helped = [pair for pair in given if pair[0].endswith(".help")]
    configuration = Configuration.of(
        command, [pair for pair in given if pair[0] != "--print_config" and pair not in helped]
    )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own package; last, so that it cannot hide ours
    from framework.lean import import_torchmetrics

    import_torchmetrics()
    if helped:
        from framework.commands.explain import explain

        sys.stdout.write(explain(helped[0][0].removeprefix("--").removesuffix(".help"), helped[0][1]))
        return None
    if command == "federate":
        from framework.commands.federate import FederateCLI

        return FederateCLI(configuration, print_config)
    from framework.commands.train import FulguriteCLI

    return FulguriteCLI(command, configuration, print_config)


def _expected(error: Exception) -> bool:
    """Whether an error is the user's to mend, or no fault of the program: one line serves better than a traceback."""
    if isinstance(error, ConfigurationError | RunFailed):
        return True
    exceptions = sys.modules.get("lightning.fabric.utilities.exceptions")
    if exceptions is not None and isinstance(error, exceptions.MisconfigurationException):
        return True
    mistakes = ValueError | TypeError | FileNotFoundError | PermissionError
    return isinstance(error, mistakes) and not vars(error).get("in_training")


def _leave_group() -> None:
    """End what processes of a run talked through: its threads, if left to the interpreter's end, may abort it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _traceback() -> NoReturn:
    import traceback

    traceback.print_exc()
    raise SystemExit(1)


def _interrupted(error: BaseException) -> bool:
    context = error.__context__
    while context is not None:
        if isinstance(context, KeyboardInterrupt):
            return True
        context = context.__context__
    return False


if __name__ == "__main__":
    main()
