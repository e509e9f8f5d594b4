"""A run that was killed goes on bit for bit."""

from __future__ import annotations

from framework.resuming.callback import ResumableRun


class Resumable(ResumableRun):
    """Make a run that was killed, anywhere, go on from its checkpoint as if it had not been.

    ``fulgurite fit`` has it by itself (``--resumable auto | true | false``). Under a trainer of your own, put it before
    callbacks that draw random numbers. See :class:`framework.resuming.callback.ResumableRun` for how it does it.

    Args:
        strict: Whether data whose order cannot be resumed, and a checkpoint that does not fit, are refused. Else one
            line says what such a run cannot do, and only a checkpoint from the middle of an epoch is refused.

    Raises:
        ValueError: Before training, where something is refused: the message names it.
    """

    def __init__(self, strict: bool = True) -> None:
        super().__init__(strict)
