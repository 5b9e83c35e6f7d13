"""What a supervision remembers while its generation waits for a route without a supervisor."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from pydantic import TypeAdapter, ValidationError

from mesh import token_stream
from workers.supervisor.route_finder import Avoidance, Hop

log = structlog.get_logger()


class Pending(NamedTuple):
    """What counts against a node for all generations once this one has more than ``tokens`` tokens,
    which shows that another route could do it, and that the prompt is not at fault.

    ``opponent``: the wallet that the node is in dispute with; none if it failed by its own word.
    """

    tokens: int
    node_id: str
    wallet: str
    opponent: str | None


class InputFault(NamedTuple):
    """An error that the prompt may have caused, after so many tokens. ``hop``: where. ``suspects``:
    wallets one of which may have caused it instead; the operator trusts none of them."""

    tokens: int
    hop: Hop
    suspects: frozenset[str] = frozenset()

    def repeats(self, other: "InputFault") -> bool:
        """Whether it is at the same token and the same layers as another."""
        return (
            self.tokens == other.tokens
            and self.hop.start_layer < other.hop.end_layer
            and other.hop.start_layer < self.hop.end_layer
        )


@dataclass(slots=True)
class WaitingState:
    """What a supervision knows that is neither in the job's row nor in Redis.

    ``last_event``: id of the last event that was read; what it says has been acted on. ``reason``:
    why the next epoch begins. ``hops``: the route that keeps the generation's KV cache, none if no
    node does. ``positions``: what each node has said it computed in the epoch. ``avoidance``: nodes
    that the generation avoids. ``use_prefix``: whether the edge may wait for what the others say of
    the prompt's prefixes.

    Of recovery: ``tolerated``: what was tolerated once of each node; ``refusals``: how often each
    has refused; ``pending``, ``input_faults``: errors that the prompt may have caused;
    ``failures``, ``rounds``: how many routes have failed, and how many in a row brought
    no token; ``tokens_before``: tokens when the newest epoch was begun.
    """

    last_event: str = token_stream.START
    reason: str = "first"
    hops: list[Hop] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    avoidance: Avoidance = field(default_factory=Avoidance)
    use_prefix: bool = True
    tolerated: set[tuple[str, str]] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    pending: list[Pending] = field(default_factory=list)
    input_faults: list[InputFault] = field(default_factory=list)
    failures: int = 0
    rounds: int = 0
    tokens_before: int = -1

    def to_json(self) -> dict[str, Any]:
        state: dict[str, Any] = _STATE.dump_python(self, mode="json")
        return state

    @classmethod
    def from_json(cls, state: dict[str, Any] | None) -> "WaitingState":
        """The state as it was stored; a fresh one where none was, or what was stored is not valid:
        what it remembers helps a generation, and none may be lost for it."""
        try:
            return cls() if state is None else _STATE.validate_python(state)
        except ValidationError as error:
            log.error("waiting_state_invalid", errors=error.error_count())
            return cls()


_STATE = TypeAdapter(WaitingState)
