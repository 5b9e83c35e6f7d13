"""Which nodes serve a generation: the cheapest chain of spans that covers the model."""

from collections.abc import Collection, Sequence
from math import inf

from mesh.registry import Node


def choose(
    nodes: Sequence[Node],
    layers: int,
    *,
    avoid: Collection[str] = (),
    prefer: Collection[str] = (),
) -> list[Node] | None:
    """The cheapest route through ``[0, layers)``, or none if some layer has no node.

    Nodes in ``prefer`` cost nothing: they have computed a part of this generation already.

    A route starts at a trusted node that holds the edge, and each span starts where the one
    before it ends. A node costs its measured step latency, once for each generation that it
    would then serve, so equal replicas share the load.
    """
    usable = [node for node in nodes if node.node_id not in avoid and node.end_layer <= layers]
    best: dict[int, tuple[float, list[Node]]] = {0: (0.0, [])}
    for node in sorted(usable, key=lambda node: node.start_layer):
        if node.start_layer == 0 and not (node.edge and node.trusted):
            continue
        cost, route = best.get(node.start_layer, (inf, []))
        cost += 0.0 if node.node_id in prefer else _cost(node)
        if cost < best.get(node.end_layer, (inf, []))[0]:
            best[node.end_layer] = (cost, [*route, node])
    return best[layers][1] if layers in best else None


def room(nodes: Sequence[Node], layers: int) -> int:
    """Positions of the longest generation for which these nodes make a route; 0 for none."""
    for positions in sorted({node.kv_positions for node in nodes}, reverse=True):
        if choose([node for node in nodes if node.could_hold(positions)], layers) is not None:
            return positions
    return 0


def _cost(node: Node) -> float:
    latency = max(node.latency_ms, 0.01)
    return latency * (1 + node.current_requests)
