"""The cheapest chain of spans that covers the model, among the nodes that may serve.

A route is a path through the layer graph: cuts between layers are its vertices, nodes its edges,
each from where its span starts to where it ends. A node computes its whole span, so no route enters
a span in the middle. All that a step costs belongs to single nodes (its messages go by way of the
platform, not from node to node), so the cheapest path to each cut is enough to go on
from there.
"""

from collections.abc import Mapping, Sequence
from math import inf
from operator import attrgetter

from market.nodes.live_lookup import LiveNode
from market.nodes.node import MIN_STEP_MS, Node
from market.routing.eligibility import ineligibility
from market.routing.request import RouteRequest


def cheapest_route(live: Sequence[LiveNode], request: RouteRequest) -> list[Node] | None:
    """The cheapest route through ``[0, request.layers)`` over nodes that may serve the request;
    none if some layer has no such node.

    Each span starts where the one before it ends. A node costs the milliseconds that a message
    takes to it and back, and its measured step once for each generation that it would then serve,
    so that equal replicas share the load. Of equal nodes the first given serves.

    Where the request tells the user's place, the route is one within the smallest of
    :attr:`RouteRequest.radii` within which there is a route.
    """
    nodes = sorted(live, key=attrgetter("node.start_layer"))
    distances: dict[str, float] = {}
    for radius in request.radii:
        route = _cheapest_path(nodes, request, radius, distances)
        if route is not None:
            return route
    return None


def _cheapest_path(
    nodes: Sequence[LiveNode], request: RouteRequest, radius: float, distances: dict[str, float]
) -> list[Node] | None:
    """The cheapest route within a circle around the user.

    Whether a node may serve is asked last: the answer is only needed for nodes that make a path
    cheaper.

    Args:
        nodes: In the order in which their spans start, so that a cut's cheapest path is known
            before a node that starts there is added to it.
        radius: Of the circle in kilometres.
        distances: The distances found so far, by node; those that are found are added.
    """
    costs = {0: 0.0}
    last: dict[int, Node] = {}
    for each in nodes:
        node = each.node
        if node.start_layer not in costs:
            continue
        cost = costs[node.start_layer] + (0.0 if node.node_id in request.prefer else _cost(node))
        if (
            cost < costs.get(node.end_layer, inf)
            and (radius == inf or _distance(node, request, distances) <= radius)
            and ineligibility(each, request) is None
        ):
            costs[node.end_layer], last[node.end_layer] = cost, node
    return _backwards(last, request.layers)


def _backwards(last: Mapping[int, Node], layers: int) -> list[Node] | None:
    """The path to the last cut, by the last node of the cheapest path to each cut."""
    if layers not in last:
        return None
    route = [last[layers]]
    while route[-1].start_layer:
        route.append(last[route[-1].start_layer])
    return route[::-1]


def _distance(node: Node, request: RouteRequest, distances: dict[str, float]) -> float:
    if node.node_id not in distances:
        distances[node.node_id] = request.distance_km(node)
    return distances[node.node_id]


def _cost(node: Node) -> float:
    """Milliseconds of a step through a node, with its hop and its queue."""
    step_ms = node.latency_ms if node.latency_ms > MIN_STEP_MS else MIN_STEP_MS
    return node.hop_ms + step_ms * (1 + node.current_requests)
