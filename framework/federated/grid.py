"""A Flower grid within this process: no ports, no Ray, no waiting; clients answer one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 1


class SerialGrid(Grid):
    """Run every client of a federation in this process, in the order of the messages.

    Flower's own simulation needs Ray, which takes a minute to start here and at least 0.1 s for every wave of messages.
    This grid calls the ``ClientApp`` directly. Node ``k`` has the id ``k + 2`` and holds partition ``k``, so that runs
    can be repeated; Flower draws ids at random.

    Args:
        app: The clients' app.
        clients: Number of clients, at least 1.
        raise_errors: Whether an exception of a client goes to the caller, instead of becoming an error in its reply.

    Attributes:
        contexts: Flower's context of each client, by partition; its ``state`` lives on from message to message.
    """

    def __init__(self, app: ClientApp, clients: int, raise_errors: bool = False) -> None:
        self._app, self.raise_errors = app, raise_errors
        self._run = Run.create_empty(RUN_ID)
        self._replies: dict[str, Message] = {}
        self._sent = 0
        # Flower makes messages in the name of a task; these setters are not public, and a test watches over them. A
        # process that an engine started has its identity already, and keeps it.
        for name, value in (("task_id", 1), ("run_id", RUN_ID), ("node_id", SERVER_NODE)):
            if getattr(TaskIdentity, f"_{name}") is None:
                setattr(TaskIdentity, name, value)
        self.contexts = [
            Context(
                run_id=RUN_ID,
                node_id=node_of(partition),
                node_config={"partition-id": partition, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(clients)
        ]

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        return [context.node_id for context in self.contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = []
        for message in messages:
            self._sent += 1
            vars(message.metadata)["_message_id"] = str(self._sent)
            self._replies[str(self._sent)] = self._answer(message)
            pushed.append(str(self._sent))
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self.contexts[partition_of(message.metadata.dst_node_id)]
        try:
            reply = self._app(message, context)
        except Exception as error:
            if self.raise_errors:
                raise
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message
            )
        vars(reply.metadata)["_message_id"] = f"reply-{message.metadata.message_id}"
        return reply


class Chosen(Grid):
    """A grid that shows a strategy only the nodes chosen for this round.

    Flower's strategies draw clients with the global ``random`` from ids that are random themselves. Here the server
    chooses by partition, and the strategy takes all it sees.

    Args:
        grid: The grid behind.
        nodes: Ids of the chosen nodes.
        timeout: Seconds to wait for replies where the strategy does not say.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int], timeout: float | None = None) -> None:
        self._grid, self._nodes, self._timeout = grid, list(nodes), timeout

    def get_node_ids(self) -> list[int]:
        return self._nodes

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=self._timeout if timeout is None else timeout)


def node_of(partition: int) -> int:
    """Node id of a partition."""
    return partition + SERVER_NODE + 1


def partition_of(node: int) -> int:
    """Partition of a node id."""
    return node - SERVER_NODE - 1
