"""Which parameters of a module belong together as a layer, and which of the layers train.

Three kinds of group, as in selective layer fine-tuning (Sun et al. 2024, arXiv 2408.15600): *selectable* ones, of which
each client trains a few; the *common* one (the head), which every client always trains; the *frozen* one
(embeddings), which nobody does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from framework.errors import near

COMMON, FROZEN = "common", "frozen"
HEAD = re.compile(
    r"(.*\.)?(classifier|pre_classifier|classification_head|lm_head|qa_outputs|heads?|score|pooler|fc|cls|ln_post)\..*"
    r"|(.*\.)?proj"  # CLIP's, a parameter by itself; patch embeddings have proj.weight
)


@dataclass(frozen=True)
class LayerGroups:
    """A division of a module's parameters: each lies in one selectable group, in the common one or in the frozen one.

    Made by ``LayerGroups.of``. It holds names and sizes alone, so a server can use it without the module.

    A buffer belongs to the group whose pattern matches it or, where none does, to that of the parameters beside it (of
    the nearest module around it that has any, if these share a group); otherwise it is frozen.

    Attributes:
        names: The selectable groups, from input to output where blocks were discovered, as given otherwise.
        members: Names of parameters of each group, of ``"common"`` and of ``"frozen"``, in the module's order. A tied
            parameter has the first of its names here, and no other.
        buffers: The same of buffers that are in the state dict.
        sizes: Numbers of parameters (scalars) of the same, tied ones counted once.
    """

    names: tuple[str, ...]
    members: dict[str, tuple[str, ...]]
    buffers: dict[str, tuple[str, ...]]
    sizes: dict[str, int]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        groups: Mapping[str, str | Sequence[str]] | None = None,
        common: str | Sequence[str] | None = None,
        frozen: str | Sequence[str] = (),
    ) -> LayerGroups:
        r"""Divide the parameters of a module by patterns, or by its blocks.

        A pattern is a regular expression matched from the start of a name, as by ``re.match``, and need not reach its
        end: ``r"encoder\.layer\.1\."`` takes the second layer, ``r"encoder\.layer\.1"`` also those from 10 on, and
        ``r".*bias$"`` every bias. Names are those of ``named_parameters`` and, for buffers, of ``state_dict``.

        Without ``groups`` the blocks are looked for: the longest ``nn.ModuleList`` or ``nn.Sequential`` with at least
        two children of like structure (the same class; nested containers also with the same insides). Lists inside
        such a child, as experts, do not count, and lists of plain layers such as ``nn.Linear`` only where there is no
        other; the last one of these is the head if nothing follows. Each block is a group, named by its path.

        The head is what the module registers after its last block or group, and what bears a usual name such as
        ``classifier``, ``score`` or ``pooler``.

        Args:
            module: Any module; ``encoder.layer`` of transformers and ``nn.TransformerEncoder`` need no pattern.
            groups: Patterns of each selectable group, from input to output; None for the blocks.
            common: Patterns of what every client trains; None for the head, an empty list for nothing.
            frozen: Patterns of what nobody trains, such as base weights beside adapters. What no pattern matches and is
                neither block nor head is frozen, too.

        Raises:
            ValueError: If a pattern is no regular expression or matches nothing, a parameter is matched by patterns of
                two groups, a group bears a reserved name, or no blocks are found or more lists than one might be them.
        """
        known: dict[int, str] = {id(p): name for name, p in module.named_parameters()}
        # A tied parameter has several names; patterns may use any.
        aliases = {name: known[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
        state = [name for name in module.state_dict() if name not in aliases and not name.endswith("_extra_state")]
        patterns = {name: _listed(value) for name, value in (groups or {}).items()}
        if groups is not None and not patterns:
            raise ValueError("groups must name at least one layer group, got none; leave it out to find the blocks")
        for name in patterns:
            if name in (COMMON, FROZEN) or not name:
                raise ValueError(f"a layer group cannot be named {name!r}: {COMMON} and {FROZEN} are groups already")
        patterns |= {COMMON: _listed(common or ()), FROZEN: _listed(frozen)}
        owner = _matched(patterns, aliases)
        names = tuple(groups or ())
        if groups is None:
            blocks = _blocks(module, find_head=common is None)
            found = {alias: b for alias in aliases for b in blocks if alias.startswith(f"{b}.")}
            for alias, block in found.items():
                owner.setdefault(aliases[alias], block)
            names = tuple(block for block in blocks if block in owner.values())
            if not names:
                raise ValueError("common and frozen match every block of the module: none is left to be selected")
        if common is None:
            order = list(known.values())
            last = max(order.index(parameter) for parameter, group in owner.items() if group in names)
            for position, parameter in enumerate(order):
                if position > last or HEAD.fullmatch(parameter):
                    owner.setdefault(parameter, COMMON)
        held = {name: owner.get(name, FROZEN) for name in known.values()}
        held_buffers = _of_buffers(state, patterns, {alias: held[name] for alias, name in aliases.items()})
        every = (*names, COMMON, FROZEN)
        numel = {name: p.numel() for name, p in module.named_parameters()}
        members = {group: tuple(name for name, of in held.items() if of == group) for group in every}
        return cls(
            names=names,
            members=members,
            buffers={group: tuple(name for name, of in held_buffers.items() if of == group) for group in every},
            sizes={group: sum(numel[name] for name in members[group]) for group in every},
        )

    def parameters(self, group: str) -> tuple[str, ...]:
        """Names of the parameters of a selectable group, of ``"common"`` or of ``"frozen"``."""
        return self.members[self._known(group, (*self.names, COMMON, FROZEN))]

    def keys(self, group: str) -> tuple[str, ...]:
        """Keys of a group in the module's state dict: its parameters, then its buffers."""
        return self.parameters(group) + self.buffers[group]

    def keys_to_send(self, selected: Iterable[str]) -> tuple[str, ...]:
        """State-dict keys of selected groups, in the order of ``names``, then of the common one: what is sent."""
        chosen = self._selected(selected)
        return tuple(
            key for group in (*self.names, COMMON) if group in chosen or group == COMMON for key in self.keys(group)
        )

    def chosen(self, mask: object) -> tuple[str, ...]:
        """Names of the groups where a mask is true.

        Args:
            mask: One row of ``Selection.masks``, shape ``(layers,)``.
        """
        row = np.asarray(mask, dtype=bool)
        if row.shape != (len(self.names),):
            raise ValueError(
                f"mask must have one entry for each of the {len(self.names)} groups, got shape {row.shape}"
            )
        return tuple(name for name, taken in zip(self.names, row, strict=True) if taken)

    def set_trainable(self, module: nn.Module, selected: Iterable[str]) -> ExitStack:
        """Let selected groups and the common one require gradients, and no other parameter.

        Only ``requires_grad`` changes. Running statistics of a group that is not selected still move in training mode;
        they are not among ``keys_to_send``.

        Args:
            module: The module that was divided, or one with the same parameters.
            selected: Names of selectable groups; none for the common group alone.

        Returns:
            What restores the flags: on ``close()``, or at the end of ``with groups.set_trainable(...):``. Without
            either the new flags stay.
        """
        chosen = self._selected(selected)
        on = {
            name
            for group in (*self.names, COMMON)
            if group in chosen or group == COMMON
            for name in self.members[group]
        }
        parameters = dict(module.named_parameters())
        missing = {name for members in self.members.values() for name in members} ^ set(parameters)
        if missing:
            raise ValueError(
                f"module has other parameters than the one that was divided; one differs by {min(missing)}"
            )
        restore = ExitStack()
        for name, parameter in parameters.items():
            restore.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(name in on)
        return restore

    def _selected(self, selected: Iterable[str]) -> set[str]:
        if isinstance(selected, str):
            raise ValueError(f"selected must be a list of layer groups, got the string {selected!r}")
        return {self._known(group, self.names) for group in selected}

    def _known(self, group: str, valid: Sequence[str]) -> str:
        if group not in valid:
            hint = near(str(group), valid)
            raise ValueError(f"unknown layer group {group!r}{hint or ';'} there are {', '.join(valid)}")
        return group


class _Stack(NamedTuple):
    path: str
    blocks: tuple[str, ...]
    kind: type[nn.Module]
    composite: bool


def _listed(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matched(patterns: Mapping[str, list[str]], aliases: Mapping[str, str]) -> dict[str, str]:
    """Parameters that patterns match, and the group of each."""
    owner: dict[str, str] = {}
    for group, expressions in patterns.items():
        for expression in expressions:
            try:
                compiled = re.compile(expression)
            except re.error as error:
                raise ValueError(f"pattern {expression!r} of group {group} is no regular expression: {error}") from None
            hits = [alias for alias in aliases if compiled.match(alias)]
            if not hits:
                hint = near(re.sub(r"\\(?=\W)", "", expression), aliases)
                raise ValueError(
                    f"pattern {expression!r} of group {group} matches no parameter (it is matched from the start of "
                    f"the name){hint or f'; the first is {next(iter(aliases), None)}'}"
                )
            for alias in hits:
                other = owner.setdefault(aliases[alias], group)
                if other != group:
                    raise ValueError(f"layer groups overlap: parameter {alias} is matched by {other} and by {group}")
    return owner


def _blocks(module: nn.Module, find_head: bool) -> tuple[str, ...]:
    """Paths of the blocks, from input to output."""
    stacks: list[_Stack] = []
    for path, container in module.named_modules():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        if any(path.startswith(f"{block}.") or path == block for stack in stacks for block in stack.blocks):
            continue  # inside a block
        alike: dict[object, list[str]] = {}
        kinds: dict[object, nn.Module] = {}
        for name, child in container.named_children():
            if any(True for _ in child.parameters()):
                likeness = _likeness(child)
                alike.setdefault(likeness, []).append(f"{path}.{name}" if path else name)
                kinds[likeness] = child
        if alike:
            best = max(alike, key=lambda likeness: len(alike[likeness]))
            if len(alike[best]) >= 2:
                child = kinds[best]
                stacks.append(_Stack(path, tuple(alike[best]), type(child), any(True for _ in child.children())))
    stacks = [stack for stack in stacks if stack.composite] or stacks
    if not stacks:
        raise ValueError(
            f"{type(module).__name__} has no blocks: no nn.ModuleList or nn.Sequential in it has two children alike; "
            f"name the layers yourself, as groups: {{first: 'conv1\\.', second: 'conv2\\.'}}"
        )
    best_stack = max(stacks, key=lambda stack: len(stack.blocks))
    for other in stacks:
        if other is not best_stack and (
            len(other.blocks) == len(best_stack.blocks) or other.kind is best_stack.kind is not nn.Sequential
        ):
            raise ValueError(
                f"{type(module).__name__} has several lists of blocks, {best_stack.path or 'itself'} and {other.path}: "
                f"name the layers yourself, as groups: {{first: '{re.escape(best_stack.blocks[0])}\\.', ...}}"
            )
    blocks = best_stack.blocks
    if find_head and not best_stack.composite:
        last = list(dict(module.named_parameters(remove_duplicate=False)))[-1]
        if last.startswith(f"{blocks[-1]}."):
            blocks = blocks[:-1]  # of plain layers the last one gives the output
    return blocks


def _likeness(child: nn.Module) -> object:
    """Equal for children that may be blocks of one stack."""
    if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):  # their class says nothing
        return tuple((name, type(inner)) for name, inner in child.named_modules())
    return type(child)


def _of_buffers(names: Sequence[str], patterns: Mapping[str, list[str]], held: Mapping[str, str]) -> dict[str, str]:
    """Groups of buffers: by pattern, or by the parameters around them."""
    groups: dict[str, str] = {}
    for name in names:
        matching = {group for group, listed in patterns.items() if any(re.match(pattern, name) for pattern in listed)}
        if len(matching) > 1:
            raise ValueError(f"layer groups overlap: buffer {name} is matched by {' and by '.join(sorted(matching))}")
        around = name
        while not matching and "." in around:
            around = around.rpartition(".")[0]
            matching = {group for parameter, group in held.items() if parameter.startswith(f"{around}.")}
        groups[name] = matching.pop() if len(matching) == 1 else FROZEN
    return groups
