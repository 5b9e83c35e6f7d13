"""Routes: they cover every layer, begin at a trusted edge, and share the load."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mesh.registry import Node
from mesh.routing import choose, room

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
    room: int = 0,
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
        kv_positions=room,
        last_seen=0,
    )


def names(nodes: list[Node], layers: int, avoid: tuple[str, ...] = ()) -> list[str] | None:
    route = choose(nodes, layers, avoid=avoid)
    return None if route is None else [chosen.node_id for chosen in route]


def test_a_route_covers_the_model_in_order() -> None:
    nodes = [node(4, 6, name="c"), node(0, 2, name="a"), node(2, 4, name="b")]
    assert names(nodes, 6) == ["a", "b", "c"]


def test_no_route_where_a_layer_is_missing() -> None:
    assert choose([node(0, 2), node(3, 6)], 6) is None
    assert choose([], 6) is None


def test_the_edge_must_be_trusted() -> None:
    assert choose([node(0, 3, trusted=False), node(3, 6)], 6) is None
    assert choose([node(0, 3, edge=False), node(3, 6)], 6) is None
    assert choose([node(0, 3), node(3, 6, trusted=False)], 6) is not None


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


def test_the_longest_generation_fits_every_node_of_one_route() -> None:
    small, large = node(0, 3, room=100), node(0, 3, room=300)
    rest, edgeless = node(3, 6, room=200), node(0, 3, room=500, edge=False)
    assert room([small, large, rest, edgeless], 6) == 200
    assert room([small, rest], 6) == 100
    assert room([small], 6) == 0
    assert small.could_hold(100)
    assert not small.could_hold(101)
    assert node(0, 6, room=0).could_hold(10**6)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 9)), max_size=12))
def test_the_route_is_the_cheapest_of_all(spans: list[tuple[int, int, int]]) -> None:
    nodes = [node(start, end, latency=cost) for start, end, cost in spans if start < end]

    def cheapest(begin: int) -> float:
        if begin == 6:
            return 0
        costs = [n.latency_ms + cheapest(n.end_layer) for n in nodes if n.start_layer == begin]
        return min(costs, default=float("inf"))

    route = choose(nodes, 6)
    if route is None:
        assert cheapest(0) == float("inf")
        return
    assert sum(chosen.latency_ms for chosen in route) == cheapest(0)
    ends = [0, *(chosen.end_layer for chosen in route)]
    assert [chosen.start_layer for chosen in route] == ends[:-1]
    assert ends[-1] == 6
