"""The one ordered list of rules: may this node serve, and if not, why.

The route search takes the nodes for which no rule holds; the explanation tells the first rule that
holds.
"""

from collections.abc import Callable
from enum import StrEnum

from market.nodes.live_lookup import LiveNode
from market.routing.request import RouteRequest


class SkipReason(StrEnum):
    """Why a node is not on a route. The first reason that holds, in this order, is the one that is
    told: those of :data:`RULES` are about the node alone, those after them about the route."""

    UNHEALTHY = "unhealthy"
    """The node says that it is unhealthy, or that it loads."""
    COOLING_DOWN = "cooling_down"
    """The node failed a generation a moment ago, or has changed its span."""
    NOT_RUNNING = "not_running"
    """The node's process sends no keep-alive."""
    SPAN_OUTSIDE_MODEL = "span_outside_model"
    """The node's span is empty, or goes beyond the model's last layer."""
    NOT_TRUSTED = "not_trusted"
    """The node serves the first layers without the edge, or the operator does not trust it with
    the edge."""
    PRICE_ABOVE_MARKET = "price_above_market"
    """The node asks for more than the user pays."""
    NOT_ADMITTED = "not_admitted"
    """The user's tier asks for another kind of node."""
    NO_ROOM = "no_room"
    """The node's KV cache has too few positions for the generation."""
    TOO_FAR = "too_far"
    """There was a route nearer to the user."""
    SPAN_MEETS_NOBODY = "span_meets_nobody"
    """No other nodes lead from the first layer to the node's span and from there to the last."""
    SLOWER_THAN_OTHERS = "slower_than_others"
    """Another node with the same span cost less: by its step, its hop or its queue."""
    SPAN_ALREADY_COVERED = "span_already_covered"
    """Nodes with other spans made a cheaper route."""
    TOO_FEW_NODES = "too_few_nodes"
    """There would be a route, but fewer nodes are available than the model asks for."""


Rule = tuple[SkipReason, Callable[[LiveNode, RouteRequest], bool]]
"""A reason, and whether it keeps a node from serving a request."""


def ineligibility(live_node: LiveNode, request: RouteRequest) -> SkipReason | None:
    """Why a node may not serve a request: the first rule that holds; none if the node may."""
    for reason, holds in RULES:
        if holds(live_node, request):
            return reason
    return None


def _unhealthy(live_node: LiveNode, _: RouteRequest) -> bool:
    return not live_node.node.is_healthy


def _cooling_down(live_node: LiveNode, request: RouteRequest) -> bool:
    return live_node.cooling_down or live_node.node.node_id in request.avoid


def _not_running(live_node: LiveNode, request: RouteRequest) -> bool:
    return request.free_kv is not None and live_node.node.node_id not in request.free_kv


def _span_outside_model(live_node: LiveNode, request: RouteRequest) -> bool:
    node = live_node.node
    return not node.start_layer < node.end_layer <= request.layers


def _not_trusted(live_node: LiveNode, _: RouteRequest) -> bool:
    node = live_node.node
    return node.start_layer == 0 and not (node.edge and node.trusted)


def _price_above_market(live_node: LiveNode, request: RouteRequest) -> bool:
    least = live_node.node.min_price
    return request.price is not None and least is not None and least > request.price


def _not_admitted(live_node: LiveNode, request: RouteRequest) -> bool:
    return request.tier_rule is not None and not request.tier_rule(live_node.node)


def _no_room(live_node: LiveNode, request: RouteRequest) -> bool:
    node = live_node.node
    if request.free_kv is None:
        return not node.could_hold(request.positions)
    return node.node_id not in request.prefer and (
        request.free_kv[node.node_id] < request.positions
    )


RULES: tuple[Rule, ...] = (
    (SkipReason.UNHEALTHY, _unhealthy),
    (SkipReason.COOLING_DOWN, _cooling_down),
    (SkipReason.NOT_RUNNING, _not_running),
    (SkipReason.SPAN_OUTSIDE_MODEL, _span_outside_model),
    (SkipReason.NOT_TRUSTED, _not_trusted),
    (SkipReason.PRICE_ABOVE_MARKET, _price_above_market),
    (SkipReason.NOT_ADMITTED, _not_admitted),
    (SkipReason.NO_ROOM, _no_room),
)
"""In the order in which they are tried: a node for which one rule holds is not tried by the next.
"""
