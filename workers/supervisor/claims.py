"""What an event claims of a route's nodes, by who says it: all that a supervisor acts on.

A refusal says who is at fault. What that is worth depends on who says so: the platform has seen it,
a node says it of itself, or a node says it of its neighbour, and then nobody knows which of the two
is at fault. Nor does anybody where a node failed at what it was sent: whoever has computed before
it may have sent what looks right and is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from market.jobs.messaging import Event
from mesh.wire import PLATFORM, Cancel, Ended, GenerationRefused, Pong, PrefixReused
from mesh.wire.refusal_codes import (
    BROKEN_RULE,
    GRAMMAR_REFUSED,
    INPUT_FAULTS,
    LOST_STATE,
    OWN_FAULTS,
    known_code,
)


@dataclass(frozen=True, slots=True)
class ObservedFault:
    """The relay saw a node break a rule."""

    epoch: int
    node_id: str
    code: str


@dataclass(frozen=True, slots=True)
class OwnFault:
    """A node says that the generation cannot go on at itself, and nobody else can have caused
    that."""

    epoch: int
    node_id: str
    code: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A node says that it failed on what it was sent. ``before``: the node that sent it; none at
    the edge, whose input is the prompt."""

    epoch: int
    node_id: str
    before: str | None
    code: str


@dataclass(frozen=True, slots=True)
class Dispute:
    """``node_id`` says that ``accused``, the node before it, has sent, or not sent, what stops the
    generation."""

    epoch: int
    node_id: str
    accused: str
    code: str


Fault = ObservedFault | OwnFault | Failure | Dispute

Claim = Fault | Ended | Pong | PrefixReused | Cancel


def claim_of(event: Event, route: Sequence[str]) -> Claim | None:
    """What an event claims; none if its sender has no say in it.

    Args:
        event: Of a generation.
        route: Ids of the nodes of the generation's route, the edge's first.
    """
    message, sender = event.message, event.sender
    if isinstance(message, Cancel):
        return message if sender == PLATFORM else None
    if isinstance(message, GenerationRefused):
        return _fault(message, sender, route)
    if isinstance(message, Ended | PrefixReused):
        return message if sender in route[:1] else None
    if isinstance(message, Pong):
        return message if sender == message.node_id and sender in route else None
    return None


def _fault(refused: GenerationRefused, sender: str, route: Sequence[str]) -> Fault | None:
    epoch, code, accused = refused.epoch, known_code(refused), refused.node_id
    if sender == PLATFORM:
        return ObservedFault(epoch, accused, code) if accused in route else None
    if sender not in route:
        return None
    stage = route.index(sender)
    before = route[stage - 1]
    if accused == sender:
        return _own_fault(epoch, sender, before if stage else None, code)
    if accused == before and code not in OWN_FAULTS:
        return Dispute(epoch, sender, before, code)
    return None


def _own_fault(epoch: int, node_id: str, before: str | None, code: str) -> Fault:
    """What a node says of itself. ``before``: who sends it its input; none if nobody does."""
    if before is not None and code == "gap":
        return Dispute(epoch, node_id, before, code)
    if code in INPUT_FAULTS or (before is not None and code in LOST_STATE):
        return Failure(epoch, node_id, before, code)
    if before is not None and code == GRAMMAR_REFUSED:  # only an edge has one
        return OwnFault(epoch, node_id, BROKEN_RULE)
    return OwnFault(epoch, node_id, code)
