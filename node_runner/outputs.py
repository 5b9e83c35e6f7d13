"""What an engine's step gives to a transport."""

from dataclasses import dataclass

from mesh.wire import Ended, Pong, Ready, Refused, Steps, Token


@dataclass(frozen=True, slots=True)
class Forward:
    """A message for another node's inbox."""

    to: str
    message: Steps | Ready


Result = Forward | Token | Ended | Refused | Pong
