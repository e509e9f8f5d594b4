"""A job as the models see it: how often it fails, how it saves, and what a failure costs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from framework.reliability.rates import checked


@dataclass(frozen=True)
class Job:
    """One training job on any number of nodes; times in minutes.

    Assumptions of the closed forms: failures come at a constant rate while the job runs, writes or restarts, and none
    while it is queued; a checkpoint counts once it is written; every failure costs a queue and then a restart, which
    may itself be hit and then begins again; work is redone as fast as it was done.

    Attributes:
        rate: Failures per minute of the whole job (:func:`~framework.reliability.rates.job_rate`).
        interval: Productive time between two checkpoints, positive.
        write: Time that training stands still for a checkpoint.
        restart: From the start of the processes to the first step.
        queue: Wait before each start; of random waits only the mean matters.
        latency: Time from the end of ``write`` until the checkpoint is safe, while training goes on: zero for
            synchronous writing. At most ``interval + write``, as one checkpoint at a time is on its way.

    Raises:
        ValueError: For a value out of range, naming it.
    """

    rate: float
    interval: float
    write: float = 0.0
    restart: float = 0.0
    queue: float = 0.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            checked(field.name, getattr(self, field.name), positive=field.name == "interval")
        if self.latency > self.cycle:
            raise ValueError(
                f"latency must be at most interval + write, {self.cycle:g} min, as only one checkpoint at a time is "
                f"written; got {self.latency:g} min"
            )

    @property
    def cycle(self) -> float:
        """From the start of one interval to the start of the next, without failures: interval and write."""
        return self.interval + self.write

    @property
    def pressure(self) -> float:
        """Share of the time lost to failures in the first-order form: rate x (restart + half an interval + latency)."""
        return self.rate * (self.restart + self.interval / 2 + self.latency)
