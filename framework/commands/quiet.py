"""Lightning's notes at the start of a run, held back until it is clear that the run begins."""

from __future__ import annotations

import logging


class Messages(logging.Filter):
    """Lightning's notes (seed, devices) wait until the run begins, so that an error before it stands alone."""

    _LOGGERS = ("lightning.fabric.utilities.seed", "lightning.pytorch.utilities.rank_zero")

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.kept: list[logging.LogRecord] = []

    def hold(self) -> None:
        """Start to keep messages back."""
        self.holding = True
        for name in self._LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record back, and drop the advertisements."""
        if "Tip:" in record.getMessage():
            return False
        if self.holding and record.levelno < logging.WARNING:
            self.kept.append(record)
            return False
        return True

    def release(self) -> None:
        """Let through what was kept, and everything after."""
        self.holding = False
        kept, self.kept = self.kept, []
        for record in kept:
            logging.getLogger(record.name).handle(record)

    def drop(self) -> None:
        """Forget what was kept and take the filter away."""
        self.kept = []
        for name in self._LOGGERS:
            logging.getLogger(name).removeFilter(self)
