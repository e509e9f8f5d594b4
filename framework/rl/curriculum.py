"""A reward that changes in stages: weights of its components, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from framework.errors import ConfigurationError, near

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from framework.rl.replay import ReplayBuffer

Mix = Literal["convex", "add"]
Group = Sequence[str] | Mapping[str, float]


@runtime_checkable
class Priced(Protocol):
    """Data that grow while a module is trained on them, and whose rewards are priced when they are sampled.

    Attributes:
        buffer: The experience, from ``setup`` on.
        env_steps: Steps of environments so far, over all processes.
        reward_weights: The weight of each component in the full reward, shape ``(K,)``.
    """

    buffer: ReplayBuffer
    env_steps: int
    reward_weights: Sequence[float]


def priced(data: Any, needed_by: str) -> Priced:
    """The data, if their rewards can be priced anew.

    Args:
        data: A DataModule after ``setup``.
        needed_by: Who asks, for the error.

    Raises:
        TypeError: Naming the data and what they lack.
    """
    meanings = {
        "buffer": "a framework.rl.replay.ReplayBuffer, which keeps the components of rewards",
        "env_steps": "the number of environment steps so far",
        "reward_weights": "the weight of each component in the full reward",
    }
    for name, meaning in meanings.items():
        if not hasattr(data, name):
            owner = "data without a DataModule" if data is None else type(data).__name__
            raise TypeError(f"{owner} has no {name}, which {needed_by} needs: {meaning}")
    found: Priced = data
    return found


@dataclass(frozen=True)
class RewardStage:
    """What is rewarded in a stage.

    Attributes:
        weights: Weight of each component.
        anneal_steps: Environment steps over which the weights of the stage before turn into these, linearly; 0 for a
            jump.
    """

    weights: tuple[float, ...]
    anneal_steps: int = 0

    def at(self, elapsed: int, origin: Sequence[float] | None) -> tuple[float, ...]:
        """The weights of a moment.

        Args:
            elapsed: Environment steps since the stage began.
            origin: Weights of the moment at which it began; None where there was no stage before.
        """
        if origin is None or elapsed >= self.anneal_steps:
            return self.weights
        share = elapsed / self.anneal_steps
        return tuple((1 - share) * old + share * new for old, new in zip(origin, self.weights))


def reward_stages(
    entries: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    defaults: Sequence[float],
    base: Group | None = None,
    aux: Group | None = None,
    mix: Mix = "convex",
) -> list[RewardStage]:
    """Stages as a configuration has them.

    Args:
        entries: For each stage either ``weight``, that of the auxiliary components in the mix, or ``weights``: by name
            of a component, or of a group (``base``, ``aux``), which counts for all its members; what is not named has
            the weight 0. Besides, ``anneal_steps``.
        names: Components of the reward.
        defaults: The environment's own weight of each.
        base: Components of the task: names, with their default weights, or weights by name. None for all that are not
            in ``aux``.
        aux: The auxiliary components, likewise; None for all that are not in ``base``.
        mix: ``convex``: ``(1 - weight) base + weight aux``; ``add``: ``base + weight aux``.

    Raises:
        ConfigurationError: If a component is unknown, a number out of range, or a stage says both or neither.
    """
    if mix not in ("convex", "add"):
        raise ConfigurationError(f"mix must be convex or add, got {mix!r}")
    if not entries:
        raise ConfigurationError("stages must hold at least one stage, got none")
    groups: dict[str, NDArray[np.float64]] = {}
    if base is not None or aux is not None:
        for group, own, other in (("base", base, aux), ("aux", aux, base)):
            rest = [name for name in names if name not in (other or ())]
            groups[group] = _group(rest if own is None else own, names, defaults, group)
        shared = [name for name in base or () if name in (aux or ())]
        if shared:
            raise ConfigurationError(f"base and aux must not share components, both have {', '.join(shared)}")
    return [_stage(entry, number, names, groups, mix) for number, entry in enumerate(entries)]


def _stage(
    entry: Mapping[str, Any], number: int, names: Sequence[str], groups: Mapping[str, NDArray[np.float64]], mix: Mix
) -> RewardStage:
    where = f"stages[{number}]"
    if ("weight" in entry) == ("weights" in entry):
        raise ConfigurationError(f"{where} must have either weight (of aux in the mix) or weights, got {dict(entry)}")
    anneal = entry.get("anneal_steps", 0)
    if isinstance(anneal, bool) or not isinstance(anneal, int) or anneal < 0:
        raise ConfigurationError(f"{where}.anneal_steps must be a whole number of at least 0, got {anneal!r}")
    if number == 0 and anneal:
        raise ConfigurationError(f"{where}.anneal_steps must be 0: there is no stage before the first; got {anneal}")
    if "weight" in entry:
        if not groups:
            raise ConfigurationError(
                f"{where}.weight needs base or aux: which components are the task, and which are not"
            )
        w = _number(entry["weight"], f"{where}.weight")
        if w < 0 or (mix == "convex" and w > 1):
            raise ConfigurationError(
                f"{where}.weight must be {'in [0, 1]' if mix == 'convex' else 'at least 0'}, got {w}"
            )
        total = ((1 - w) if mix == "convex" else 1.0) * groups["base"] + w * groups["aux"]
    else:
        total = _explicit(entry["weights"], f"{where}.weights", names, groups)
    return RewardStage(tuple(float(weight) for weight in total), anneal)


def _explicit(
    given: Any, where: str, names: Sequence[str], groups: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(names):
            raise ConfigurationError(
                f"{where} must be {len(names)} numbers, for {', '.join(names)}, or a mapping by name; got {list(given)}"
            )
        given = dict(zip(names, given))
    if not isinstance(given, Mapping) or not given:
        raise ConfigurationError(f"{where} must give weights by name of {', '.join(names)}; got {given!r}")
    total = np.zeros(len(names))
    for name, value in given.items():
        weight = _number(value, f"{where}.{name}")
        if name in names:  # before groups: a component may be called base
            total[list(names).index(name)] += weight
        elif name in groups:
            total += weight * groups[name]
        else:
            raise _unknown(name, where, [*names, *groups])
    return total


def _group(given: Group, names: Sequence[str], defaults: Sequence[float], where: str) -> NDArray[np.float64]:
    total = np.zeros(len(names))
    if isinstance(given, str) or not given:
        raise ConfigurationError(f"{where} must be a list of components, or weights by name; got {given!r}")
    for name in given:
        if name not in names:
            raise _unknown(name, where, names)
        place = list(names).index(name)
        total[place] = _number(given[name], f"{where}.{name}") if isinstance(given, Mapping) else defaults[place]
    return total


def _unknown(name: str, where: str, known: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(f"{where}: no component {name!r}; there are {', '.join(known)}{near(name, known)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"{where} must be a finite number, got {value!r}")
    return float(value)
