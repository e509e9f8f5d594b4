"""Nodes of a real Flower engine, known by the partition they hold."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from framework.errors import RunFailed
from framework.federated.grid import node_of, partition_of

QUESTION = "query.partition"
UNREACHABLE = (
    ErrorCode.NODE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE
)  # fmt: skip
"""What Flower says of a node that is away or has lost a message: no exception of a client."""
POLL, SLOWEST_POLL = 0.05, 1.0
"""Seconds between two looks for nodes or replies; each pause is longer than the one before, up to the second."""
INTRODUCTION = 60.0
"""Seconds that a running federation waits for newcomers to say what they hold."""

_log = logging.getLogger(__name__)


class PartitionGrid(Grid):
    """A grid over an engine's, in which the node of partition ``k`` has the id ``k + 2``, as in one process.

    Engines draw the ids of their nodes at random. Here each node is asked once which partition it holds. A node that
    was away and came back is found again, under its old id or a new one; one that is away answers with Flower's error
    ``NODE_UNAVAILABLE``, at once.

    Args:
        grid: The engine's grid.
        clients: Number of partitions, each of which a node has to hold.
        fingerprint: Of the server's configuration; a node with another one is refused. Empty accepts all.
        patience: Seconds to wait for the first appearance of all nodes.
        ended: Set when the engine has ended, so that nothing waits for it any longer.
    """

    contexts: tuple[()] = ()
    """Nodes keep their own state."""

    def __init__(
        self,
        grid: Grid,
        clients: int,
        fingerprint: str = "",
        patience: float = 3600.0,
        ended: threading.Event | None = None,
    ) -> None:
        self._grid, self._clients, self._fingerprint, self._patience = grid, clients, fingerprint, patience
        self._ended = ended or threading.Event()
        self._refused: set[int] = set()
        self._partition: dict[int, int] = {}  # by the engine's node id
        self._present: dict[int, int] = {}  # the engine's node id by partition, of those that are there now
        self._gathered = False

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> list[int]:
        return [node_of(partition) for partition in range(self._clients)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError("send_and_receive is what a federation uses")

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError("send_and_receive is what a federation uses")

    def gather(self) -> None:
        """Wait until every partition has a node.

        Raises:
            RunFailed: If that takes longer than the patience.
            ValueError: If a node holds another configuration, or a partition that does not exist.
        """
        until = time.monotonic() + self._patience
        while True:
            self._look(until)
            missing = [k for k in range(self._clients) if k not in self._present]
            if not missing:
                self._gathered = True
                return
            if time.monotonic() > until:
                raise RunFailed(
                    f"{len(missing)} of {self._clients} partitions have no node after {self._patience:g} s "
                    f"(the first is {missing[0]}): start one with --node-config 'partition-id={missing[0]}', "
                    "or set federation.timeout higher"
                )
            self._pause(SLOWEST_POLL)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        if self._gathered:
            self._look(time.monotonic() + INTRODUCTION)
        else:
            self.gather()
        until = None if timeout is None else time.monotonic() + timeout  # not spent on looking for nodes
        replies: list[Message] = []
        sent = []
        for message in messages:
            node = self._present.get(partition_of(message.metadata.dst_node_id))
            if node is None:
                vars(message.metadata)["_message_id"] = "not sent"
                absent = Error(ErrorCode.NODE_UNAVAILABLE, "its node is away")
                replies.append(Message(absent, reply_to=message))
            else:
                sent.append(_to(node, message))
        for node, reply in self._exchange(sent, until):
            # Not public; a test watches over it.
            vars(reply.metadata)["_src_node_id"] = node_of(self._partition[node])
            replies.append(reply)
        return replies

    def _look(self, until: float) -> None:
        """Learn who is there, and ask those that are new which partition they hold.

        Before the first round a node that cannot take part ends the federation. Later it is left out.
        """
        there = list(self._grid.get_node_ids())
        new = [node for node in there if node not in self._partition and node not in self._refused]
        question = RecordDict({"config": ConfigRecord({"fingerprint": self._fingerprint})})
        for node, reply in self._exchange([Message(question, node, QUESTION) for node in new], until):
            if reply.has_error():
                if reply.error.code in UNREACHABLE:
                    continue
                told = f"node {node} cannot take part: {reply.error.reason}"
                if not self._gathered:
                    raise ValueError(told)
                _log.warning(told)
                self._refused.add(node)
                continue
            partition = int(cast(int, reply.content.config_records["config"]["partition"]))
            self._partition[node] = partition
        # Where two nodes hold the same partition, the one that was met last has replaced the other.
        order = list(self._partition)
        self._present = {self._partition[node]: node for node in sorted(set(there) & set(order), key=order.index)}

    def _exchange(self, messages: list[Message], until: float | None) -> list[tuple[int, Message]]:
        """Send to the engine's nodes; returns what comes back in time, and from whom.

        An error that the engine reports for a node bears the engine's own id, so replies are told by what they answer.
        """
        if not messages:
            return []
        pushed = {each for each in self._grid.push_messages(messages) if each}
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        waiting = {name: node for name, node in waiting.items() if name in pushed}
        replies: list[tuple[int, Message]] = []
        pause = POLL
        while waiting:
            found = list(self._grid.pull_messages(set(waiting)))
            replies += [(waiting.pop(reply.metadata.reply_to_message_id), reply) for reply in found]
            if not waiting or (until is not None and time.monotonic() >= until):
                break
            pause = POLL if found else min(1.1 * pause, SLOWEST_POLL)
            self._pause(pause)
        return replies

    def _pause(self, seconds: float) -> None:
        """Wait, unless the engine has ended: then no reply will ever come."""
        if self._ended.wait(seconds):
            raise RuntimeError("the engine has ended")


def _to(node: int, message: Message) -> Message:
    metadata = message.metadata
    return Message(message.content, node, metadata.message_type, group_id=metadata.group_id, ttl=metadata.ttl)
