"""Nodes to route through, made by hand."""

import itertools
from collections.abc import Iterable
from typing import Any

from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route

BERLIN, HAMBURG = Coordinates(52.52, 13.405), Coordinates(53.5511, 9.9937)


LISBON, SYDNEY = Coordinates(38.7223, -9.1393), Coordinates(-33.8688, 151.2093)

_numbers = itertools.count()


def node(
    start: int,
    end: int,
    *,
    name: str | None = None,
    edge: bool | None = None,
    trusted: bool = True,
    latency: float = 1.0,
    requests: int = 0,
    kv: int = 0,
    hop: float = 0.0,
    place: Coordinates | None = None,
) -> Node:
    return Node(
        node_id=name or f"node {next(_numbers)}",
        wallet_address="0x" + "bb" * 20,
        model_id="model",
        start_layer=start,
        end_layer=end,
        edge=start == 0 if edge is None else edge,
        trusted=trusted,
        gpu_model="",
        vram_gb=0,
        location="",
        public_addr="",
        is_healthy=True,
        latency_ms=latency,
        throughput_tokens_per_sec=0,
        current_requests=requests,
        kv_positions=kv,
        last_seen=0,
        hop_ms=hop,
        latitude=place.latitude if place else None,
        longitude=place.longitude if place else None,
    )


def live(nodes: Iterable[Node]) -> list[LiveNode]:
    """Nodes of which none cools down."""
    return [LiveNode(each, cooling_down=False) for each in nodes]


def chosen(nodes: Iterable[Node], layers: int, **asked: Any) -> list[Node] | None:
    """The route; ``asked``: fields of the request beside the layers."""
    return cheapest_route(live(nodes), RouteRequest(layers, **asked))


def names(nodes: Iterable[Node], layers: int, **asked: Any) -> list[str] | None:
    route = chosen(nodes, layers, **asked)
    return None if route is None else [node.node_id for node in route]
