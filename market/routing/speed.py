"""How long a generation takes along a route at the speed that its nodes measured last."""

from collections.abc import Sequence
from dataclasses import dataclass

from market.nodes.node import Node
from mesh.wire.limits import MAX_STEP_ROWS


@dataclass(frozen=True, slots=True)
class RouteSpeed:
    """``step``: seconds that one step takes through all nodes, with their hops."""

    step: float

    def seconds(self, prompt_tokens: int, max_tokens: int) -> float:
        """Seconds of a whole generation. A step computes up to :data:`MAX_STEP_ROWS` tokens of the
        prompt, or one token; more rows take longer, so this is too little rather than too much."""
        return self.step * (_chunks(prompt_tokens) + max_tokens)

    def tokens_within(self, seconds: float, prompt_tokens: int) -> int:
        """The most tokens that end in time; 0 if none do."""
        return max(0, int(seconds / self.step) - _chunks(prompt_tokens))


def speed_of(route: Sequence[Node]) -> RouteSpeed | None:
    """The speed of a route; none as long as one of its nodes has not measured its step."""
    if not all(node.latency_ms > 0 for node in route):
        return None
    return RouteSpeed(sum(node.latency_ms + node.hop_ms for node in route) / 1000)


def _chunks(prompt_tokens: int) -> int:
    return -(-prompt_tokens // MAX_STEP_ROWS)
