"""Which nodes serve a generation: the cheapest chain of spans that covers the model.

A route is a path through the layer graph: cuts between layers are its vertices, nodes its edges,
each from where its span starts to where it ends. A node computes its whole span, so nobody enters
one in the middle. All that a step costs belongs to single nodes (its messages go by way of the
platform, not from node to node), so the cheapest path to each cut is enough to go on from there.
"""

from collections.abc import Collection, Mapping, Sequence
from math import inf

from market.geo.distance import MAX_DISTANCE_KM, Coordinates, distance_km
from market.nodes.node import MIN_STEP_MS, Node
from market.routing.eligibility import has_free_kv
from market.routing.request import NEAR_KM, NodeRule


def cheapest_route(
    nodes: Sequence[Node],
    layers: int,
    *,
    avoid: Collection[str] = (),
    prefer: Collection[str] = (),
    admits: NodeRule | None = None,
    positions: int = 0,
    rooms: Mapping[str, int] | None = None,
    near: Coordinates | None = None,
    within_km: float = NEAR_KM,
) -> list[Node] | None:
    """The cheapest route through ``[0, layers)``, or none if some layer has no node.

    A route starts at a trusted node that holds the edge, and each span starts where the one
    before it ends. A node costs what a message takes to it and back, and its measured step once for
    each generation that it would then serve, so equal replicas share the load.

    Args:
        avoid: Nodes that are not to serve.
        prefer: Nodes that cost nothing, and whose room is reserved: they have computed a part of
            this generation already.
        admits: Says which nodes may serve at all.
        positions: KV room that each node has to have.
        rooms: Positions that each node has room for now. A node that is not in it does not run.
            None: by what the nodes say their whole caches hold.
        near: Where the user is. Nodes within ``within_km`` kilometres are asked first, then those
            within twice as much, and so on; at last everybody, also those whose place is unknown.
    """

    def may_serve(node: Node) -> bool:
        if node.node_id in avoid or not node.start_layer < node.end_layer <= layers:
            return False
        if node.start_layer == 0 and not (node.edge and node.trusted):
            return False
        return has_free_kv(node, positions, rooms, prefer) and (admits is None or admits(node))

    usable = sorted(filter(may_serve, nodes), key=lambda node: node.start_layer)
    if near is None:
        return _cheapest(usable, layers, prefer)
    away = {node.node_id: _away(node, near) for node in usable}
    while within_km < MAX_DISTANCE_KM:
        close = [node for node in usable if away[node.node_id] <= within_km]
        route = _cheapest(close, layers, prefer)
        if route is not None:
            return route
        within_km *= 2
    return _cheapest(usable, layers, prefer)


def longest_servable(nodes: Sequence[Node], layers: int, *, admits: NodeRule | None = None) -> int:
    """Positions of the longest generation for which these nodes make a route; 0 for none."""
    for positions in sorted({node.kv_positions for node in nodes}, reverse=True):
        if cheapest_route(nodes, layers, admits=admits, positions=positions) is not None:
            return positions
    return 0


def _cheapest(nodes: Sequence[Node], layers: int, prefer: Collection[str]) -> list[Node] | None:
    """Of nodes in the order in which their spans start. Of equal ones the first."""
    costs = {0: 0.0}
    last: dict[int, Node] = {}
    for node in nodes:
        if node.start_layer in costs:
            cost = costs[node.start_layer] + (0.0 if node.node_id in prefer else _cost(node))
            if cost < costs.get(node.end_layer, inf):
                costs[node.end_layer], last[node.end_layer] = cost, node
    if layers not in last:
        return None
    route = [last[layers]]
    while route[-1].start_layer:
        route.append(last[route[-1].start_layer])
    return route[::-1]


def _away(node: Node, near: Coordinates) -> float:
    """Kilometres; beyond any distance where it is not known."""
    return inf if node.coordinates is None else distance_km(node.coordinates, near)


def _cost(node: Node) -> float:
    """Milliseconds a step."""
    return node.hop_ms + max(node.latency_ms, MIN_STEP_MS) * (1 + node.current_requests)
