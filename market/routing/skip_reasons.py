"""Why a node was not on a route, or why there was none: what its provider wants to know when it
earns nothing.

Pure, and apart from the choice itself, so that choosing costs no more for it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf

from market.geo.distance import Coordinates, distance_km
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import SkipReason
from market.routing.request import NEAR_KM, NodeRule


def explain_skips(
    live: Sequence[LiveNode],
    layers: int,
    route: Sequence[Node],
    *,
    avoid: Collection[str] = (),
    prefer: Collection[str] = (),
    admits: NodeRule | None = None,
    fair: NodeRule | None = None,
    positions: int = 0,
    rooms: Mapping[str, int] | None = None,
    near: Coordinates | None = None,
) -> dict[str, SkipReason]:
    """The reason of each node that is not on the route that was chosen, by id.

    Args:
        live: All nodes of the model, healthy or not.
        route: Empty if there was none.
        fair: Whether a node serves for the price.

    The rest as for :func:`market.routing.route_search.cheapest_route`.
    """
    chosen = {node.node_id for node in route}
    limit = _circle(route, near)

    def faults(seen: LiveNode) -> Iterator[tuple[SkipReason, bool]]:
        """In their order; each is only looked for if none before it holds."""
        node = seen.node
        yield SkipReason.UNHEALTHY, not node.is_healthy
        yield SkipReason.COOLING_DOWN, seen.cooling_down or node.node_id in avoid
        yield SkipReason.NOT_RUNNING, rooms is not None and node.node_id not in rooms
        yield SkipReason.NOT_TRUSTED, node.start_layer == 0 and not (node.edge and node.trusted)
        yield SkipReason.PRICE_ABOVE_MARKET, fair is not None and not fair(node)
        yield SkipReason.NOT_ADMITTED, admits is not None and not admits(node)
        yield (
            SkipReason.NO_ROOM,
            (rooms is not None and node.node_id not in prefer and rooms[node.node_id] < positions),
        )
        yield SkipReason.TOO_FAR, near is not None and _away(node, near) > limit

    reasons, usable = {}, []
    for seen in live:
        if seen.node.node_id not in chosen:
            reason = next((fault for fault, holds in faults(seen) if holds), None)
            if reason is None:
                usable.append(seen.node)
            else:
                reasons[seen.node.node_id] = reason
    spans = {(node.start_layer, node.end_layer) for node in route}
    reached, leads_on = _connected([*usable, *route], layers)
    for node in usable:
        if node.start_layer not in reached or node.end_layer not in leads_on:
            reasons[node.node_id] = SkipReason.SPAN_MEETS_NOBODY
        elif not route:
            reasons[node.node_id] = SkipReason.TOO_FEW_NODES
        elif (node.start_layer, node.end_layer) in spans:
            reasons[node.node_id] = SkipReason.SLOWER_THAN_OTHERS
        else:
            reasons[node.node_id] = SkipReason.SPAN_ALREADY_COVERED
    return reasons


def _connected(nodes: Sequence[Node], layers: int) -> tuple[set[int], set[int]]:
    """Cuts to which nodes lead from the first layer, and from which they lead to the last."""
    reached, leads_on = {0}, {layers}
    spans = {(node.start_layer, node.end_layer) for node in nodes}
    for start, end in sorted(spans):
        if start in reached:
            reached.add(end)
    for start, end in sorted(spans, key=lambda span: -span[1]):
        if end in leads_on:
            leads_on.add(start)
    return reached, leads_on


def _circle(route: Sequence[Node], near: Coordinates | None) -> float:
    """Kilometres: the circle around the user in which the route was found."""
    if near is None or not route:
        return inf
    farthest, radius = max(_away(node, near) for node in route), NEAR_KM
    while radius < farthest < inf:
        radius *= 2
    return radius if farthest < inf else inf


def _away(node: Node, near: Coordinates) -> float:
    return inf if node.coordinates is None else distance_km(node.coordinates, near)
