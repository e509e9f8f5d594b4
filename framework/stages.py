"""Stages that training goes through in order, each switch happening once: rewards of a curriculum, growing resolutions.

A :class:`Criterion` says when a stage has done its work, a :class:`Schedule` keeps it within bounds and remembers where
training is. Both are told steps and values that are the same on all ranks, so they decide the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from framework.errors import ConfigurationError


class Criterion(Protocol):
    """Says when a stage has done its work.

    Attributes:
        needs: Names of the values that it looks at.
        earliest: Steps of a stage before which it cannot be due.
        checks: Checks that it takes at least; a criterion without the attribute takes one.
    """

    needs: tuple[str, ...]
    earliest: int

    def due(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether the stage has done its work; called at every check, from the stage's first on.

        Args:
            step: Steps of this stage, rising.
            values: What was measured since the last check. A name is missing where nothing was, or nothing finite.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as plain numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...


@dataclass(frozen=True)
class Switch:
    """The end of one stage and the beginning of the next.

    Attributes:
        criterion: When the stage has done its work.
        min_steps: Steps that the stage takes at least, whatever the criterion says, at least 0.
        max_steps: Steps after which it ends, whatever the criterion says; None for no such bound.
        check_every: Steps between checks, at least 1.

    Raises:
        ConfigurationError: If the bounds leave no time in which the criterion could be due.
    """

    criterion: Criterion
    min_steps: int = 0
    max_steps: int | None = None
    check_every: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.min_steps, bool) or not isinstance(self.min_steps, int) or self.min_steps < 0:
            raise ConfigurationError(f"min_steps must be a whole number of at least 0, got {self.min_steps!r}")
        if self.max_steps is None:
            return
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ConfigurationError(f"max_steps must be a whole number of at least 1 or null, got {self.max_steps!r}")
        if self.max_steps < self.min_steps:
            raise ConfigurationError(f"max_steps must be at least min_steps = {self.min_steps}, got {self.max_steps}")
        if self.max_steps < self._due:
            raise ConfigurationError(
                f"{type(self.criterion).__name__} can never be due: max_steps = {self.max_steps} ends the stage before "
                f"its step {self._due}"
            )

    @property
    def _due(self) -> int:
        """Steps of the stage before which the criterion cannot be due."""
        # Of several checks the first may come at once, the second just after it, and the others one by one.
        return max(self.criterion.earliest, (getattr(self.criterion, "checks", 1) - 2) * self.check_every)

    @property
    def earliest(self) -> int:
        """Steps of the stage before which it cannot end."""
        return max(self.min_steps, self._due)


class Schedule:
    """Where training is among its stages.

    Args:
        switches: One between each stage and the next; none for a single stage.

    Attributes:
        index: Number of the present stage, from 0.
        began: Step at which it began.
        history: Step of every switch so far.
    """

    def __init__(self, switches: Sequence[Switch] = ()) -> None:
        self.switches = tuple(switches)
        self.index = 0
        self.began = 0
        self.history: list[int] = []

    @property
    def switch(self) -> Switch | None:
        """What ends the present stage; None for the last one."""
        return self.switches[self.index] if self.index < len(self.switches) else None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the values that the criterion of the present stage looks at."""
        return self.switch.criterion.needs if self.switch else ()

    @property
    def earliest(self) -> int:
        """Step before which the last stage cannot begin."""
        return sum(switch.earliest for switch in self.switches)

    def overdue(self, step: int) -> bool:
        """Whether the criterion of the present stage could have been due by a step of training."""
        return self.switch is not None and step - self.began >= max(self.switch.earliest, 1)

    def check(self, step: int, values: Mapping[str, float]) -> bool:
        """Tell the criterion what was measured, and go to the next stage if it is time.

        Args:
            step: Steps since the beginning of training.
            values: What was measured since the last check, the same on all ranks.

        Returns:
            Whether a new stage has begun; never more than one at a time.
        """
        switch = self.switch
        if switch is None:
            return False
        elapsed = step - self.began
        # What is not finite would stay in averages and be a best that nothing beats.
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        due = switch.criterion.due(elapsed, finite)  # asked before min_steps, too: averages have to settle
        if elapsed < switch.min_steps or not (due or (switch.max_steps is not None and elapsed >= switch.max_steps)):
            return False
        self.index, self.began = self.index + 1, step
        self.history.append(step)
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that changes, with the state of every criterion."""
        return {
            "index": self.index,
            "began": self.began,
            "history": list(self.history),
            "criteria": [switch.criterion.state_dict() for switch in self.switches],
            "kinds": self._kinds,
        }

    @property
    def _kinds(self) -> list[str]:
        return [f"{type(each.criterion).__module__}.{type(each.criterion).__qualname__}" for each in self.switches]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: If it is of another number of stages, or of other criteria, which look at other values.
        """
        if len(state["criteria"]) != len(self.switches):
            raise ValueError(
                f"there are {len(self.switches) + 1} stages, but the checkpoint is of {len(state['criteria']) + 1}"
            )
        for number, (own, other) in enumerate(zip(self._kinds, state["kinds"])):
            if own != other:
                raise ValueError(
                    f"criterion of stage {number + 1} is {own}, but the checkpoint's is {other}: go on with the same"
                )
        self.index, self.began, self.history = state["index"], state["began"], list(state["history"])
        for switch, each in zip(self.switches, state["criteria"]):
            switch.criterion.load_state_dict(each)
