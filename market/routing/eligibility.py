"""The one ordered list of rules: may this node serve, and if not, why."""

from collections.abc import Collection, Mapping
from enum import StrEnum

from market.nodes.node import Node


def has_free_kv(
    node: Node, positions: int, rooms: Mapping[str, int] | None, prefer: Collection[str]
) -> bool:
    if rooms is None:
        return node.could_hold(positions)
    if node.node_id not in rooms:
        return False
    return node.node_id in prefer or rooms[node.node_id] >= positions


class SkipReason(StrEnum):
    """A reason. The first that holds, in this order, is the one that is told."""

    UNHEALTHY = "unhealthy"
    """It says so, or loads."""
    COOLING_DOWN = "cooling_down"
    """It failed a generation a moment ago, or has moved."""
    NOT_RUNNING = "not_running"
    """Its process gives no sign of life."""
    NOT_TRUSTED = "not_trusted"
    """It serves the first layers, and the operator does not trust it with the edge."""
    PRICE_ABOVE_MARKET = "price_above_market"
    """It asks for more than the user pays."""
    NOT_ADMITTED = "not_admitted"
    """The user's tier asks for another kind of node."""
    NO_ROOM = "no_room"
    """Its KV cache has no room for so long a generation."""
    TOO_FAR = "too_far"
    """There was a route nearer to the user."""
    SPAN_MEETS_NOBODY = "span_meets_nobody"
    """No other nodes lead from the first layer to its span and from there to the last."""
    SLOWER_THAN_OTHERS = "slower_than_others"
    """Another node with the same span cost less: by its step, its hop or its queue."""
    SPAN_ALREADY_COVERED = "span_already_covered"
    """Nodes with other spans made a cheaper route."""
    TOO_FEW_NODES = "too_few_nodes"
    """There would be a route, but the model is not served by so few nodes."""
