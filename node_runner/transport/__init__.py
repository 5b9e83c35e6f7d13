"""How a node gets its work: it pulls; nothing ever connects to it."""

from collections.abc import Sequence
from typing import Protocol

from mesh.wire import Message
from node_runner.engine.results import Result


class Unreachable(Exception):
    """The platform does not answer. What was pushed may have arrived; pushing it again is
    harmless."""


class Transport(Protocol):
    """One exchange with the platform: push results, then pull what waits in the inbox.

    Pulling is by cursor, not by acknowledgement: a lost answer is asked for again. Messages may
    therefore arrive twice; their positions and epochs make that harmless.
    """

    def exchange(self, results: Sequence[Result], *, wait: float) -> list[Message]:
        """Push, then pull. Waits up to ``wait`` seconds for the first message.

        A token that was refused, since its epoch is over, comes back as a ``Halt``.

        Raises:
            Unreachable: exchange the same results again, a little later.
        """
        ...

    def close(self) -> None: ...
