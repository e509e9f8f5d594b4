"""Time until help appears: `fulgurite --help` against the help of a plain LightningCLI, each in a new process."""

from __future__ import annotations

import subprocess
import sys

CASES = [{"arguments": "--help"}]
OURS = "import sys; from framework.cli import main; main(sys.argv[1:])"
PLAIN = "import sys; from lightning.pytorch.cli import LightningCLI; LightningCLI(args=sys.argv[1:])"


def setup(arguments: str) -> list[str]:
    return arguments.split()


def _run(code: str, arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


VARIANTS = {"ours": lambda arguments: _run(OURS, arguments), "LightningCLI": lambda arguments: _run(PLAIN, arguments)}
