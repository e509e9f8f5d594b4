"""How a script of this folder finds its packages: in the active environment, else in .venv, made if needed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ensure_environment(*needed: str, extra: str = "") -> None:
    """Start the running script again inside the checkout's .venv if a package is missing here.

    Args:
        needed: Packages that must be importable.
        extra: Extra of pyproject.toml that brings those which are optional.
    """
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if Path(sys.prefix).resolve() == (ROOT / ".venv").resolve() and os.environ.get("FULGURITE_BOOTSTRAPPED"):
        sys.exit(f"{Path(sys.argv[0]).name}: .venv lacks {', '.join(missing)} although scripts/bootstrap has just run")
    code = subprocess.run([ROOT / "scripts" / "bootstrap", *([extra] if extra else [])], check=False).returncode
    if code:
        sys.exit(code)
    os.environ["FULGURITE_BOOTSTRAPPED"] = "1"
    python = ROOT / ".venv" / "bin" / "python"
    os.execv(python, [str(python), *sys.argv])
