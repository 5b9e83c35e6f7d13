"""What an engine's step gives to a transport."""

from dataclasses import dataclass

from mesh.wire import Ended, Pong, Ready, Refused, Steps, Token


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A message for another node's inbox."""

    to: str
    message: Steps | Ready


EngineOutput = NodeMessage | Token | Ended | Refused | Pong
