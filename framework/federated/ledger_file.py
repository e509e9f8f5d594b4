"""What a client has spent, in a file of its node that one message at a time holds."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord

_KEYS = {"epsilon", "delta", "planned", "noise_multiplier", "energy", "mechanism", "noise", "rate", "steps"}


class LedgerFile:
    """What a client has spent in all runs, in a file of its node.

    Args:
        folder: Folder of such files, made when it is first needed.
        client: Number of the client.
    """

    def __init__(self, folder: str | Path, client: int) -> None:
        self.path = Path(folder).expanduser() / f"client-{client}.json"

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other messages, of this process or another, from the file; a kill lets it go.

        Yields:
            Whether nobody else holds it. Two messages that both read it before either writes would spend twice.

        Raises:
            ValueError: If the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own, which stays: the ledger is replaced as a whole, and with it a lock on it would go.
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unusable(error) from None
        free = False
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._unusable(error) from None
            yield free
        finally:
            if free:
                fcntl.flock(lock, fcntl.LOCK_UN)  # at once: a forked worker may have a copy of it
            os.close(lock)

    def read(self) -> ConfigRecord | None:
        """The record of the last round; ``None`` if there has been none.

        Raises:
            ValueError: If the file holds something else. To train on as if nothing had been spent would be a breach.
        """
        if not self.path.exists():
            return None
        try:
            record = ConfigRecord(json.loads(self.path.read_text(encoding="utf-8")))
            missing = _KEYS - record.keys()
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is no ledger of privacy ({error}): restore it, or train no more") from None
        if missing:
            raise ValueError(f"{self.path} is no ledger of privacy (it lacks {', '.join(sorted(missing))})")
        found = complaint(record)
        if found:
            raise ValueError(f"{self.path} is no ledger of privacy ({found}): restore it, or train no more")
        return record

    def write(self, record: ConfigRecord) -> None:
        """Keep a record, on the disk when this returns; a kill leaves the old one or the new one.

        Args:
            record: As ``Ledger.close`` made it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(dict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)  # without this the new name may be lost with the power
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _unusable(self, error: OSError) -> ValueError:
        return ValueError(
            f"the ledger of privacy {self.path.parent} cannot be written ({error.strerror}): "
            "give federation.privacy.ledger a folder that can"
        )


def complaint(record: Mapping[str, Any]) -> str:
    """What is wrong with the history in a record; empty if nothing is.

    Args:
        record: As ``Ledger.close`` made it.
    """
    lists = [record[name] for name in ("noise", "rate", "steps")]
    if all(isinstance(each, list) and each for each in lists) and len({len(each) for each in lists}) == 1:
        return ""
    return "noise, rate and steps must be lists of the same length, and none of them empty"


def default_folder(run_id: int) -> Path:
    """Where the nodes of a deployment keep their ledgers unless they are told: in the user's state, by Flower's run.

    Args:
        run_id: Flower's id of the run; ids are drawn at random, so a new run finds no old folder.

    Raises:
        ValueError: If the user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    try:
        state = Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ValueError(f"there is no folder for a ledger ({error}): give federation.privacy.ledger") from None
    return state / "fulgurite" / "privacy" / str(run_id)
