"""Monte Carlo of one job under failures: whole runs from the first queue to the last step, many at a time.

A gap without failures of length X first meets the restart; what is left of it holds
``floor((X - restart - latency) / cycle)`` intervals that last. As gaps are independent, all of this is arithmetic on
arrays of runs x gaps: a run's progress before a gap is a cumulative sum, and the run ends in the first gap that has
room for what is then left to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.reliability.gaps import Gaps, TraceGaps
from framework.reliability.job import Job
from framework.reliability.rates import checked
from framework.reliability.renewal import Budget, segments_of

if TYPE_CHECKING:
    import numpy as np

    from framework.reliability.gaps import Floats

BLOCK = 1 << 15
"""Gaps of all runs that are drawn together: some ten arrays of this size stay in the cache."""

MAX_FAILURES = 100_000_000
"""Failures after which a simulation gives up: the job would never finish, or not while somebody waits."""


@dataclass(frozen=True)
class Simulated:
    """Runs of one job with equal work.

    Attributes:
        productive: Work of each run in minutes.
        write: Minutes of each run for checkpoints that last.
        lost: Minutes of each run that a failure undid.
        restart: Minutes of each run starting up.
        queue: Minutes of each run waiting.
        failures: Failures of each run.
    """

    productive: float
    write: Floats
    lost: Floats
    restart: Floats
    queue: Floats
    failures: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def wall(self) -> Floats:
        """Wall-clock minutes of each run, W = Q + R + U."""
        return self.queue + self.restart + self.productive + self.write + self.lost

    @property
    def ettr(self) -> float:
        """Work over mean wall-clock time, R / E[W]; what the closed forms compute."""
        return self.productive / float(self.wall.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of ``ettr`` (delta method); NaN for a single run."""
        wall = self.wall
        if len(wall) < 2:
            return math.nan
        return self.ettr * float(wall.std(ddof=1)) / float(wall.mean()) / math.sqrt(len(wall))

    @property
    def mean_of_ratios(self) -> float:
        """Mean of the runs' own ratios, E[R / W]: larger than ``ettr`` where runs are short."""
        return float((self.productive / self.wall).mean())

    @property
    def budget(self) -> Budget:
        """Mean minutes and failures of a run."""
        parts = (self.write, self.lost, self.restart, self.queue, self.failures)
        return Budget(self.productive, *(float(part.mean()) for part in parts))


def simulate(job: Job, gaps: Gaps | TraceGaps, productive: float, runs: int = 100, seed: int = 0) -> Simulated:
    """Runs of a job from the first queue to the last step.

    Args:
        job: The job; its ``rate`` does not matter, ``gaps`` say when it fails. Synchronous writing is ``latency`` 0;
            with asynchronous writing ``write`` is the stall, and a checkpoint is safe ``latency`` later.
        gaps: Times between failures.
        productive: Work of each run in minutes, positive. Its last interval ends without a checkpoint.
        runs: How many runs, positive.
        seed: Seed of all random draws.

    Returns:
        Where the time of each run goes.

    Raises:
        ValueError: For values out of range, if no gap is long enough to make progress, or after ``MAX_FAILURES``.
    """
    import numpy as np

    checked("productive", productive, positive=True)
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    segments, rest = segments_of(productive, job.interval)
    need = job.restart + (job.cycle + job.latency if segments > 1 else rest)
    if gaps.longest < need:
        raise ValueError(
            f"the longest time without a failure, {gaps.longest:g} min, is shorter than a restart with one interval "
            f"and its checkpoint, {need:g} min: the job would never get on"
        )
    generator = np.random.default_rng(seed)
    totals = np.zeros((4, runs))  # write, lost, restart, and gaps begun
    done = np.zeros(runs)  # whole intervals, exact in a float
    alive = np.arange(runs)
    drawn = 0
    while len(alive):
        columns = _columns(len(alive), segments * job.cycle / gaps.mean)
        x = gaps.draw(generator, (len(alive), columns))
        drawn += x.size
        if drawn > MAX_FAILURES:
            raise ValueError(
                f"{len(alive)} of {runs} runs are not done after {MAX_FAILURES:,} failures: they are too frequent "
                f"for a checkpoint every {job.interval:g} min"
            )
        starting = np.minimum(x, job.restart)
        running = x - starting
        kept = np.floor(np.maximum(running - job.latency, 0.0) / job.cycle)
        after = done[alive, None] + np.cumsum(kept, axis=1)
        left = segments - (after - kept)  # at the beginning of the gap
        finish = (left - 1) * job.cycle + rest
        ends = running >= finish  # which is above zero, so not in a gap that ends before the restart does
        over = ends.any(axis=1)
        last = np.where(over, ends.argmax(axis=1), columns)
        lost = np.maximum(running - kept * job.cycle, 0.0)  # below zero by rounding at most
        rows, index = np.nonzero(over)[0], last[over]
        # The gap in which a run ends is used up to its last step, with no checkpoint after it.
        lost[rows, index] = 0.0
        kept[rows, index] = left[rows, index] - 1
        used = np.arange(columns) <= last[:, None]
        totals[0, alive] += job.write * (kept * used).sum(axis=1)
        totals[1, alive] += (lost * used).sum(axis=1)
        totals[2, alive] += (starting * used).sum(axis=1)
        totals[3, alive] += used.sum(axis=1)
        done[alive] = after[:, -1]
        alive = alive[~over]
    write, lost, restart, begun = totals
    return Simulated(productive, write, lost, restart, job.queue * begun, (begun - 1).astype(np.int64))


def _columns(runs: int, expected: float) -> int:
    """Gaps to draw per run: about what it takes without lost work, within the size of a block."""
    return max(1, min(int(1.2 * expected) + 8, BLOCK // runs))
