"""The state of a federation on disk: after a kill it goes on from the last whole round."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from torch import Tensor

from framework.federated import wire

FILE = "federation.pt"
CLIENTS = "clients"


class StateFiles:
    """Writes and reads the state, in a folder of the run.

    The state of a client that did not take part in a round is not written again: each client has a file per round in
    which it changed, and the main file, replaced as a whole, says which of them count.

    Args:
        directory: The folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._versions: dict[int, int] = {}

    @property
    def file(self) -> Path:
        """The main file."""
        return self.directory / FILE

    def save(
        self, server_round: int, state: Mapping[str, Any], contexts: Sequence[Context], changed: Sequence[int]
    ) -> None:
        """Write the state after a round.

        Args:
            server_round: The round.
            state: Plain values, tensors, and mappings and lists of them.
            contexts: Every client's context, by partition; none where the clients keep their own.
            changed: Partitions whose context may have changed in the round.
        """
        before = dict(self._versions)
        for client in changed if contexts else ():
            encoded = encode_record(contexts[client].state)
            if encoded:
                self._write(self._client(client, server_round), encoded)
                self._versions[client] = server_round
        self._write(self.file, {**state, "round": server_round, "clients": dict(self._versions)})
        for client, version in before.items():
            if self._versions[client] != version:
                self._client(client, version).unlink(missing_ok=True)

    def load(self, contexts: Sequence[Context]) -> dict[str, Any] | None:
        """Read the state of the last whole round, and give every client its own.

        Args:
            contexts: As for ``save``.

        Returns:
            What was saved, with ``round``; ``None`` if nothing was.
        """
        if not self.file.is_file():
            return None
        state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        self._versions = dict(state.pop("clients"))
        for client, version in self._versions.items():
            encoded = torch.load(self._client(client, version), map_location="cpu", weights_only=True)
            contexts[client].state = decode_record(encoded)
        return state

    def _client(self, client: int, version: int) -> Path:
        return self.directory / CLIENTS / f"{client}.{version}.pt"

    def _write(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        torch.save(content, fresh)
        os.replace(fresh, path)  # a kill leaves the old file or the new one


def strategy_state(strategy: Any) -> dict[str, Any]:
    """What a strategy has learned: its numbers, arrays and records, by attribute; of one it wraps, too.

    Args:
        strategy: Any strategy of Flower, or one like it. One that has ``state_dict`` says itself.
    """
    if hasattr(strategy, "state_dict"):
        return dict(strategy.state_dict())
    found = {}
    for name, value in vars(strategy).items():
        if name == "strategy":
            found[name] = strategy_state(value)
        else:
            try:
                found[name] = _encode(value)
            except TypeError:
                continue  # a callable: it came from the configuration, and will again
    return found


def load_strategy_state(strategy: Any, state: Mapping[str, Any]) -> None:
    """Give a strategy back what ``strategy_state`` found."""
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
        return
    for name, value in state.items():
        if name == "strategy":
            load_strategy_state(strategy.strategy, value)
        else:
            setattr(strategy, name, _decode(value))


def _encode(value: Any) -> Any:
    """A value as ``torch.load`` takes it with ``weights_only``."""
    if isinstance(value, np.generic):  # before floats: float64 is one
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    if isinstance(value, bytes):
        return {"bytes": torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0)}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.array(value))}
    if isinstance(value, ArrayRecord):
        return {"arrays": wire.unpack(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(each)] for key, each in value.items()]}
    raise TypeError(f"no plain form for {type(value).__name__}")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((form, content),) = value.items()
    if form == "bytes":
        return content.to(torch.uint8).numpy().tobytes()
    if form == "array":
        return content.numpy()
    if form == "arrays":
        return wire.pack(content)
    if form == "dict":
        return {_decode(key): _decode(each) for key, each in content}
    return (tuple if form == "tuple" else list)(_decode(each) for each in content)


def encode_record(record: RecordDict) -> dict[str, Any]:
    """Records of Flower as ``torch.load`` takes them with ``weights_only``."""
    return {key: [type(value).__name__, _encode(_content(value))] for key, value in record.items()}


def _content(value: Any) -> Any:
    return value if isinstance(value, ArrayRecord) else dict(value)


def decode_record(encoded: Mapping[str, Any]) -> RecordDict:
    """What ``encode_record`` encoded."""
    kinds = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord}
    record = RecordDict()
    for key, (kind, value) in encoded.items():
        content = _decode(value)
        record[key] = content if kind == "ArrayRecord" else kinds[kind](content)
    return record
