"""Why each other node is not on a route, or why there is no route: what a provider wants to know
whose node earns nothing.

Apart from the search itself, so that choosing a route costs no more for it.
"""

from collections.abc import Sequence
from math import inf

from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import SkipReason, ineligibility
from market.routing.request import RouteRequest


def explain_skips(
    live: Sequence[LiveNode], request: RouteRequest, route: Sequence[Node]
) -> dict[str, SkipReason]:
    """The reason of each node that is not on the route that was chosen, by node id.

    Args:
        live: All nodes of the model, healthy or not.
        request: The request for which the route was chosen.
        route: The route; empty if there was none.
    """
    chosen = {node.node_id for node in route}
    radius = _radius(request, route)
    reasons, usable = {}, []
    for each in live:
        node = each.node
        if node.node_id in chosen:
            continue
        if reason := ineligibility(each, request):
            reasons[node.node_id] = reason
        elif radius < inf and request.distance_km(node) > radius:
            reasons[node.node_id] = SkipReason.TOO_FAR
        else:
            usable.append(node)
    return reasons | _beside_the_route(usable, request, route)


def _beside_the_route(
    nodes: Sequence[Node], request: RouteRequest, route: Sequence[Node]
) -> dict[str, SkipReason]:
    """The reasons of nodes that might have served on the route."""
    spans = {(node.start_layer, node.end_layer) for node in route}
    reached, leads_on = _connected([*nodes, *route], request.layers)
    reasons = {}
    for node in nodes:
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
    """Cuts to which nodes lead from the first layer, and cuts from which they lead to the last."""
    reached, leads_on = {0}, {layers}
    spans = {(node.start_layer, node.end_layer) for node in nodes}
    for start, end in sorted(spans):
        if start in reached:
            reached.add(end)
    for start, end in sorted(spans, key=lambda span: -span[1]):
        if end in leads_on:
            leads_on.add(start)
    return reached, leads_on


def _radius(request: RouteRequest, route: Sequence[Node]) -> float:
    """Kilometres: the circle around the user in which the route was found; infinite if it was
    found among all nodes."""
    if request.near is None or not route:
        return inf
    farthest = max(request.distance_km(node) for node in route)
    return next(radius for radius in request.radii if farthest <= radius)
