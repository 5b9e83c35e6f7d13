"""How a node gets its work: it pulls; nothing ever connects to it."""

from collections.abc import Sequence
from typing import Protocol

from mesh.wire import Message
from node_runner.outputs import EngineOutput


class TransportUnreachable(Exception):
    """The platform does not answer. What was pushed may have arrived; pushing it again is
    harmless."""


class HopMeter:
    """Milliseconds that a message takes to the platform and back, smoothed over some dozen.

    Written by one thread, read by others.
    """

    SMOOTHING = 0.1

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def observe(self, seconds: float) -> None:
        """One message was answered after so long."""
        weight = self.SMOOTHING if self.milliseconds else 1.0
        self.milliseconds += weight * (1000 * seconds - self.milliseconds)


class Transport(Protocol):
    """One exchange with the platform: push results, then pull what waits in the inbox.

    Pulling is by cursor, not by acknowledgement: a lost answer is asked for again. Messages may
    therefore arrive twice; their positions and epochs make that harmless.
    """

    @property
    def hop_ms(self) -> float:
        """Milliseconds to the platform and back, as measured; 0 before the first measurement."""
        ...

    def exchange(self, results: Sequence[EngineOutput], *, wait: float) -> list[Message]:
        """Push, then pull. Waits up to ``wait`` seconds for the first message.

        A token that was refused, since its epoch is over, comes back as a ``Halt``.

        Raises:
            Unreachable: exchange the same results again, a little later.
        """
        ...

    def close(self) -> None: ...
