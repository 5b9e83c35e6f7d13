"""What every transport can do, and the round trip that it measures."""

from collections.abc import Sequence
from typing import Protocol

from mesh.wire import Message
from node_runner.outputs import EngineOutput


class TransportUnreachable(Exception):
    """The platform does not answer. What was pushed may have arrived: pushing it again does no
    harm."""


class RoundTripMeter:
    """Milliseconds that a message takes to the platform and back, as a moving average.

    Written by one thread, read by others.
    """

    SMOOTHING = 0.1
    """Weight of the newest message in the average."""

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one message, which was answered after ``seconds``."""
        weight = self.SMOOTHING if self.milliseconds else 1.0
        self.milliseconds += weight * (1000 * seconds - self.milliseconds)


class Transport(Protocol):
    """Pushes an engine's outputs, and pulls what waits in the node's inbox.

    Pulling is by cursor, not by acknowledgement: a lost answer is asked for again. Messages may
    therefore arrive twice; their positions and epochs make that harmless.
    """

    @property
    def hop_ms(self) -> float:
        """Milliseconds to the platform and back, as measured; 0 before the first measurement."""
        ...

    def exchange(self, outputs: Sequence[EngineOutput], *, wait: float) -> list[Message]:
        """Push, then pull. Waits up to ``wait`` seconds for the first message.

        A token that was refused, since its epoch is over, comes back as a ``StopEpoch``.

        Raises:
            TransportUnreachable: exchange the same outputs again, a little later.
        """
        ...

    def close(self) -> None:
        """Close the connection, after the last outputs have gone. May be called again."""
        ...
