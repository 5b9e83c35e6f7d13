"""What an engine's step gives to a transport."""

from dataclasses import dataclass

from mesh.wire import Ended, Pong, Ready, Refused, Steps, Token


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A message for another node's inbox."""

    to: str
    message: Steps | Ready


Report = Token | Ended | Refused | Pong
"""What readers or the supervisor get."""

EngineOutput = NodeMessage | Report
