"""Routes: they cover every layer, begin at a trusted edge, and share the load."""

import itertools
from collections.abc import Iterable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.geo.distance import Coordinates, distance_km
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


def test_a_route_covers_the_model_in_order() -> None:
    nodes = [node(4, 6, name="c"), node(0, 2, name="a"), node(2, 4, name="b")]
    assert names(nodes, 6) == ["a", "b", "c"]


def test_no_route_where_a_layer_is_missing() -> None:
    assert chosen([node(0, 2), node(3, 6)], 6) is None
    assert chosen([], 6) is None


def test_the_edge_must_be_trusted() -> None:
    assert chosen([node(0, 3, trusted=False), node(3, 6)], 6) is None
    assert chosen([node(0, 3, edge=False), node(3, 6)], 6) is None
    assert chosen([node(0, 3), node(3, 6, trusted=False)], 6) is not None


def test_the_cheapest_replica_serves() -> None:
    nodes = [node(0, 3), node(3, 6, name="slow", latency=9), node(3, 6, name="fast", latency=2)]
    assert names(nodes, 6)[1:] == ["fast"]  # type: ignore[index]


def test_a_busy_replica_yields_to_an_idle_one() -> None:
    nodes = [node(0, 6, name="busy", requests=5), node(0, 6, name="idle")]
    assert names(nodes, 6) == ["idle"]


def test_nodes_to_avoid_are_avoided() -> None:
    nodes = [node(0, 6, name="a"), node(0, 6, name="b", latency=5)]
    assert names(nodes, 6, avoid=("a",)) == ["b"]
    assert names(nodes, 6, avoid=("a", "b")) is None


def test_a_slow_link_costs_as_a_slow_device_does() -> None:
    nodes = [node(0, 6, name="far", latency=1, hop=9), node(0, 6, name="slow", latency=8)]
    assert names(nodes, 6) == ["slow"]
    assert names([*nodes, node(0, 6, name="near", latency=5, hop=1)], 6) == ["near"]


def test_a_span_is_not_entered_in_the_middle() -> None:
    assert chosen([node(0, 3), node(2, 6)], 6) is None
    assert chosen([node(0, 8)], 6) is None


def test_free_kv_counts_where_it_is_known() -> None:
    nodes = [node(0, 6, name="a", kv=100), node(0, 6, name="b", kv=100, latency=5)]

    def served_by(free_kv: dict[str, int], prefer: tuple[str, ...] = ()) -> list[str] | None:
        return names(nodes, 6, positions=60, free_kv=free_kv, prefer=prefer)

    assert served_by({"a": 60, "b": 60}) == ["a"]
    assert served_by({"a": 59, "b": 60}) == ["b"]
    assert served_by({"b": 60}) == ["b"]
    assert served_by({"a": 59, "b": 59}) is None
    assert served_by({"a": 59, "b": 59}, prefer=("a",)) == ["a"]  # its KV cache is reserved
    assert served_by({"b": 59}, prefer=("a",)) is None  # it does not run


def test_a_tier_admits_the_nodes_that_it_asks_for() -> None:
    nodes = [node(0, 6, name="cheap"), node(0, 6, name="reliable", latency=5)]
    assert names(nodes, 6, tier_rule=lambda n: n.node_id == "reliable") == ["reliable"]
    assert chosen(nodes, 6, tier_rule=lambda _: False) is None


class TestRegions:
    HERE = node(0, 6, name="here", latency=50, place=HAMBURG)
    ABROAD = node(0, 6, name="abroad", latency=5, place=LISBON)
    UNKNOWN = node(0, 6, name="unknown", latency=1)
    AWAY = node(0, 6, name="away", latency=1, place=SYDNEY)

    def serving(self, *nodes: Node, within_km: float = 1000) -> str | None:
        route = chosen(nodes, 6, near=BERLIN, within_km=within_km)
        return None if route is None else route[0].node_id

    def test_near_nodes_come_first(self) -> None:
        assert self.serving(self.AWAY, self.UNKNOWN, self.ABROAD, self.HERE) == "here"
        assert self.serving(self.ABROAD, self.HERE, within_km=5000) == "abroad"

    def test_where_they_cover_not_all_layers_the_circle_grows(self) -> None:
        half = node(0, 3, latency=1, place=BERLIN)
        assert self.serving(half, self.ABROAD, self.AWAY) == "abroad"

    def test_at_last_everybody_is_asked(self) -> None:
        assert self.serving(self.UNKNOWN) == "unknown"
        assert self.serving(self.AWAY, self.UNKNOWN) == "away"  # 16,000 km, but known
        assert self.serving() is None

    def test_without_a_place_of_the_user_all_are_alike(self) -> None:
        route = chosen([self.HERE, self.AWAY], 6)
        assert route == [self.AWAY]

    def test_distances_are_those_of_an_atlas(self) -> None:
        assert distance_km(BERLIN, HAMBURG) == pytest.approx(255, abs=2)
        assert distance_km(BERLIN, SYDNEY) == pytest.approx(16_094, rel=0.005)
        assert distance_km(Coordinates(0, 179), Coordinates(0, -179)) == pytest.approx(222, abs=1)
        assert distance_km(Coordinates(90, 0), Coordinates(-90, 7)) == pytest.approx(20_015, abs=1)


_places = st.sampled_from([None, BERLIN, HAMBURG, LISBON, SYDNEY])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2),
            st.integers(0, 9), st.sampled_from([40, 60]), st.booleans(), _places,
        ),
        max_size=8,
    )
)  # fmt: skip
def test_no_path_of_all_is_cheaper(
    drawn: list[tuple[int, int, int, int, int, int, bool, Coordinates | None]],
) -> None:
    """Of all within the smallest circle in which there is a path."""
    layers = 5
    nodes = [
        node(start, end, latency=ms, requests=queue, hop=hop, kv=kv, trusted=trusted, place=place)
        for start, end, ms, queue, hop, kv, trusted, place in drawn
        if start < end
    ]

    def cost(n: Node) -> float:
        return n.hop_ms + n.latency_ms * (1 + n.current_requests)

    def paths(usable: list[Node], begin: int = 0) -> list[list[Node]]:
        if begin == layers:
            return [[]]
        return [
            [first, *path]
            for first in usable
            if first.start_layer == begin and (begin or first.trusted)
            for path in paths(usable, first.end_layer)
        ]

    fitting = [n for n in nodes if n.kv_positions >= 50]
    circles = [1000.0, 2000.0, 4000.0, 8000.0, 16000.0]
    in_circles = [
        [n for n in fitting if n.coordinates and distance_km(BERLIN, n.coordinates) <= km]
        for km in circles
    ]
    found = next((all_ for group in [*in_circles, fitting] if (all_ := paths(group))), [])
    cheapest = min((sum(map(cost, path)) for path in found), default=inf)
    route = chosen(nodes, layers, positions=50, near=BERLIN)
    if route is None:
        assert cheapest == inf
    else:
        assert route in found
        assert sum(map(cost, route)) == pytest.approx(cheapest)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 9)), max_size=12))
def test_the_route_is_the_cheapest_of_all(spans: list[tuple[int, int, int]]) -> None:
    nodes = [node(start, end, latency=cost) for start, end, cost in spans if start < end]

    def cheapest(begin: int) -> float:
        if begin == 6:
            return 0
        costs = [n.latency_ms + cheapest(n.end_layer) for n in nodes if n.start_layer == begin]
        return min(costs, default=float("inf"))

    route = chosen(nodes, 6)
    if route is None:
        assert cheapest(0) == float("inf")
        return
    assert sum(each.latency_ms for each in route) == cheapest(0)
    ends = [0, *(each.end_layer for each in route)]
    assert [each.start_layer for each in route] == ends[:-1]
    assert ends[-1] == 6
