"""When a stage of a curriculum has done its work: criteria by name, each with its own options.

Steps are environment steps of the present stage. Values are means over the time since the last check, and over ranks.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from framework.errors import ConfigurationError, near
from framework.stages import Criterion

ALPHA_LOSS, ACTOR_LOSS, ACTOR_FIT = "alpha_loss", "actor_loss", "actor_fit"
RETURNS = {"evaluation": "return/evaluation", "collected": "return/collected"}
"""Mean return under the weights of the present stage, by the episodes that are looked at."""


class FixedStep:
    """At a given step of the stage.

    Args:
        steps: Environment steps, at least 1.
    """

    needs = ()

    def __init__(self, steps: int) -> None:
        _whole("steps", steps)
        self.earliest = steps

    def due(self, step: int, values: Mapping[str, float]) -> bool:
        return step >= self.earliest

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to load."""


class _Patient:
    """Due once something has held at several checks in a row.

    Args:
        patience: How many, at least 1.
    """

    needs: tuple[str, ...] = ()
    earliest = 0
    _kept: ClassVar[tuple[str, ...]] = ("held",)

    def __init__(self, patience: int) -> None:
        _whole("patience", patience)
        self.patience, self.checks, self.held = patience, patience, 0

    def due(self, step: int, values: Mapping[str, float]) -> bool:
        (name,) = self.needs
        if name in values:  # what was not measured neither holds nor fails
            self.held = self.held + 1 if self.holds(step, values[name]) else 0
        return self.held >= self.patience

    def holds(self, step: int, value: float) -> bool:
        """Whether it holds at this check."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self._kept:
            setattr(self, name, state[name])


class RewardThreshold(_Patient):
    """Once the mean return, priced with the weights of the present stage, is at least a threshold.

    Args:
        threshold: A finite number.
        of: ``evaluation``: of the latest validation; ``collected``: of the episodes that ended in training since the
            last check, exploration included.
        patience: At how many checks in a row; checks without such an episode do not count. At least 1.
    """

    def __init__(
        self, threshold: float, of: Literal["evaluation", "collected"] = "collected", patience: int = 1
    ) -> None:
        super().__init__(patience)
        if isinstance(threshold, bool) or not math.isfinite(threshold):
            raise ConfigurationError(f"threshold must be a finite number, or it can never be reached; got {threshold}")
        if of not in RETURNS:
            raise ConfigurationError(f"of must be {' or '.join(RETURNS)}, got {of!r}")
        self.threshold, self.needs = threshold, (RETURNS[of],)

    def holds(self, step: int, value: float) -> bool:
        return value >= self.threshold


class _Settled(_Patient):
    """Due once a moving average has stayed within bounds.

    Args:
        eps: The bound, positive.
        smoothing: Share of the old average in the new one, in [0, 1). The first value is the first average: one that
            begins at 0 would look settled.
        patience: At how many checks in a row, at least 1.
    """

    _kept = ("held", "average", "previous", "before")

    def __init__(self, eps: float, smoothing: float, patience: int) -> None:
        super().__init__(patience)
        if isinstance(eps, bool) or not (math.isfinite(eps) and eps > 0):
            raise ConfigurationError(f"eps must be positive, or the criterion can never be due; got {eps}")
        if not 0 <= smoothing < 1:
            raise ConfigurationError(f"smoothing must be in [0, 1), got {smoothing}")
        self.eps, self.smoothing = eps, smoothing
        self.average: float | None = None
        self.previous: float | None = None
        self.before = 0

    def holds(self, step: int, value: float) -> bool:
        signal = self.signal(step, value)
        self.previous, self.before = value, step
        if signal is None:
            return False
        old = signal if self.average is None else self.average
        self.average = self.smoothing * old + (1 - self.smoothing) * signal
        return self.settled(self.average)

    def signal(self, step: int, value: float) -> float | None:
        """What is averaged; None at the first check, where there is nothing to compare with."""
        raise NotImplementedError

    def settled(self, average: float) -> bool:
        """Whether the average is within its bound."""
        return abs(average) < self.eps


class AlphaLoss(_Settled):
    """Once the loss of SAC's temperature has converged: the average slope of ``|J(alpha)|`` is near 0.

    After the first version of the paper (arXiv 2410.16790v1), as a public summary tells it; averaging and defaults are
    ours. J is the mean over the updates since the last check.

    Args:
        eps: Bound of the slope's absolute value, in change per 1000 environment steps; positive.
        smoothing: Share of the old average in the new one, in [0, 1).
        patience: At how many checks in a row, at least 1.
    """

    needs = (ALPHA_LOSS,)

    def __init__(self, eps: float = 0.1, smoothing: float = 0.8, patience: int = 5) -> None:
        super().__init__(eps, smoothing, patience)

    def signal(self, step: int, value: float) -> float | None:
        if self.previous is None:
            return None
        return 1000 * (abs(value) - abs(self.previous)) / (step - self.before)


class ActorFit(_Settled):
    """Once the actor is as good as what the critic knows near it, by :func:`framework.rl.measures.actor_fit`.

    The second version of the paper switches by how well the actor matches the critic; **the formula is ours**.

    Args:
        eps: How much better the best other action may be, in standard deviations of Q over states; positive.
        smoothing: Share of the old average in the new one, in [0, 1).
        patience: At how many checks in a row, at least 1.
        actions: Other actions for each state, at least 1.
        spread: Standard deviation of those about the actor's action, in units of the normalised action, positive; None
            for uniform ones.
        states: Stored states that are looked at, at least 2.
    """

    needs = (ACTOR_FIT,)

    def __init__(
        self,
        eps: float = 0.05,
        smoothing: float = 0.8,
        patience: int = 5,
        actions: int = 8,
        spread: float | None = 0.2,
        states: int = 256,
    ) -> None:
        super().__init__(eps, smoothing, patience)
        _whole("actions", actions)
        _whole("states", states, 2)
        if spread is not None and not (math.isfinite(spread) and spread > 0):
            raise ConfigurationError(f"spread must be positive or null, got {spread}")
        self.actions, self.spread, self.states = actions, spread, states

    def signal(self, step: int, value: float) -> float | None:
        return value

    def settled(self, average: float) -> bool:
        return average > -self.eps


class ActorLoss(_Settled):
    """Once the actor's loss changes little: a cheap stand-in for convergence, for any module with an actor.

    Args:
        eps: Bound of the average relative change from check to check, positive.
        smoothing: Share of the old average in the new one, in [0, 1).
        patience: At how many checks in a row, at least 1.
    """

    needs = (ACTOR_LOSS,)

    def __init__(self, eps: float = 0.05, smoothing: float = 0.8, patience: int = 5) -> None:
        super().__init__(eps, smoothing, patience)

    def signal(self, step: int, value: float) -> float | None:
        if self.previous is None:
            return None
        return abs(value - self.previous) / max(abs(self.previous), 1e-8)


class Plateau:
    """Once a value has not improved for a number of steps.

    Args:
        of: ``return/evaluation``, ``return/collected``, ``alpha_loss``, ``actor_loss``, ``actor_fit``, or the name of
            a logged metric such as ``val/success``.
        steps: Environment steps without an improvement, at least 1; counted from the first value of the stage on. It
            takes a second value to be due, so nothing ends between two evaluations.
        min_delta: What counts as one, at least 0.
        mode: Whether it should rise, ``max``, or fall, ``min``.
    """

    def __init__(
        self, steps: int, of: str = RETURNS["collected"], min_delta: float = 0.0, mode: Literal["max", "min"] = "max"
    ) -> None:
        _whole("steps", steps)
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigurationError(f"min_delta must be a number of at least 0, got {min_delta}")
        known = (*RETURNS.values(), ALPHA_LOSS, ACTOR_LOSS, ACTOR_FIT)
        if of not in known and "/" not in of:
            raise ConfigurationError(
                f"of must be {', '.join(known)}, or a logged name such as val/success; got {of!r}{near(of, known)}"
            )
        if mode not in ("max", "min"):
            raise ConfigurationError(f"mode must be max or min, got {mode!r}")
        self.needs, self.earliest, self.checks, self.min_delta = (of,), steps, 2, min_delta
        self.sign = 1 if mode == "max" else -1
        self.best: float | None = None
        self.since = 0

    def due(self, step: int, values: Mapping[str, float]) -> bool:
        (name,) = self.needs
        if name not in values:
            return False  # what was not measured has not failed to improve
        value = self.sign * values[name]
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.since = value, step
        return step - self.since >= self.earliest

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.since = state["best"], state["since"]


CRITERIA: dict[str, type[Any]] = {
    "fixed": FixedStep,
    "reward_threshold": RewardThreshold,
    "alpha_loss": AlphaLoss,
    "actor_fit": ActorFit,
    "actor_loss": ActorLoss,
    "plateau": Plateau,
}
"""Criteria by short name."""


def criterion(given: str | Mapping[str, Any] | Criterion, where: str = "criterion") -> Criterion:
    """A criterion as a configuration has it.

    Args:
        given: A short name, the name of a class here, or the dotted path of one of one's own; a mapping with that as
            ``name`` and its arguments beside it, or as ``class_path`` with ``init_args``; or a criterion.
        where: How to call it in an error.

    Returns:
        A new one.

    Raises:
        ConfigurationError: If there is no such class, or an argument is missing, unknown or out of range.
    """
    if hasattr(given, "due"):
        return copy.deepcopy(cast(Criterion, given))
    entry: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = entry.pop("name", None) or entry.pop("class_path", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{where} must be a name, or a mapping with name and arguments; got {given!r}")
    arguments = {**(entry.pop("init_args", None) or {}), **entry}
    kind = _class(name, where)
    if not callable(kind):
        raise ConfigurationError(f"{where} ({name}) must be a class of criteria, got {kind!r}")
    known = inspect.signature(kind).parameters
    for each in arguments:
        if each not in known and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            raise ConfigurationError(
                f"{where} ({name}) has no {each!r}; there are {', '.join(known)}{near(each, known)}"
            )
    try:
        inspect.signature(kind).bind(**arguments)
        made: Criterion = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where} ({name}): {error}") from error
    for member in ("needs", "earliest", "due", "state_dict", "load_state_dict"):
        if not hasattr(made, member):
            raise ConfigurationError(
                f"{where} ({name}) is no criterion: it has no {member}, see framework.stages.Criterion"
            )
    return made


def _class(name: str, where: str) -> Any:
    classes = {kind.__name__: kind for kind in CRITERIA.values()}
    found = CRITERIA.get(name, classes.get(name))
    if found is not None:
        return found
    if "." not in name:
        known = [*CRITERIA, *classes]
        raise ConfigurationError(f"{where}: no criterion {name!r}; there are {', '.join(CRITERIA)}{near(name, known)}")
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _whole(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, got {value!r}")
