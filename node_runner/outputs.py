"""Outputs of an engine's step, for a transport."""

from dataclasses import dataclass

from mesh.wire import Ended, GenerationRefused, Pong, PrefixCached, PrefixReused, Steps, Token


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A message for another node's inbox."""

    to: str
    message: Steps | PrefixCached


Report = Token | Ended | GenerationRefused | Pong | PrefixReused
"""What readers or the supervisor get."""

EngineOutput = NodeMessage | Report
