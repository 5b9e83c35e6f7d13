"""Why a node was not on a route."""

from dataclasses import replace

import pytest

from market.geo.distance import Coordinates
from market.nodes.live_lookup import Sighting
from market.nodes.node import Node
from market.routing.eligibility import Skip
from market.routing.route_search import choose
from market.routing.skip_reasons import explain
from tests.unit.test_routing import BERLIN, HAMBURG, SYDNEY, node

LAYERS = 6
ROUTE = [node(0, 3, name="first"), node(3, 6, name="last", place=HAMBURG)]


def reason(other: Node, *, cools: bool = False, near: Coordinates | None = None) -> Skip:
    """Why the other node is not on the route of the two."""
    nodes = [*ROUTE, other]
    sighted = [Sighting(each, cools and each is other) for each in nodes]
    rooms = {each.node_id: 100 for each in nodes if each.node_id != "dead"}
    rooms["full"] = 5

    def fair(each: Node) -> bool:
        return each.node_id != "dear"

    def admits(each: Node) -> bool:
        return each.node_id != "common"

    usable = [seen.node for seen in sighted if seen.serves]
    route = choose(
        usable,
        LAYERS,
        admits=lambda each: fair(each) and admits(each),
        positions=10,
        rooms=rooms,
        near=near,
    )
    assert route is not None
    assert [each.node_id for each in route] == ["first", "last"]
    how = {"rooms": rooms, "positions": 10, "near": near, "fair": fair, "admits": admits}
    (found,) = explain(sighted, LAYERS, route, **how).items()
    assert found[0] == other.node_id
    return found[1]


QUICK = {"latency": 0.1}
REASONS = {
    Skip.UNHEALTHY: replace(node(3, 6, **QUICK), is_healthy=False),
    Skip.NOT_RUNNING: node(3, 6, name="dead", **QUICK),
    Skip.NOT_TRUSTED: node(0, 6, trusted=False, **QUICK),
    Skip.PRICE_ABOVE_MARKET: node(3, 6, name="dear", **QUICK),
    Skip.NOT_ADMITTED: node(3, 6, name="common", **QUICK),
    Skip.NO_ROOM: node(3, 6, name="full", **QUICK),
    Skip.SPAN_MEETS_NOBODY: node(2, 6, **QUICK),
    Skip.SLOWER_THAN_OTHERS: node(3, 6, latency=9.0),
    Skip.SPAN_ALREADY_COVERED: node(0, 6, latency=9.0),
}


@pytest.mark.parametrize("expected", REASONS)
def test_each_reason(expected: Skip) -> None:
    assert reason(REASONS[expected]) is expected


def test_a_node_that_cools_down() -> None:
    assert reason(node(3, 6, **QUICK), cools=True) is Skip.COOLING_DOWN


def test_without_a_route_each_node_hears_what_is_missing() -> None:
    first, last, alone = node(0, 3, name="first"), node(3, 6, name="last"), node(4, 6, name="alone")
    sighted = [Sighting(each, False) for each in (first, alone)]
    assert choose([first, alone], LAYERS) is None
    hole = dict.fromkeys(["first", "alone"], Skip.SPAN_MEETS_NOBODY)
    assert explain(sighted, LAYERS, []) == hole
    few = [Sighting(each, False) for each in (first, last)]
    assert explain(few, LAYERS, []) == dict.fromkeys(["first", "last"], Skip.TOO_FEW_NODES)


def test_who_serves_a_generation_already_has_its_room() -> None:
    sighted, rooms = [Sighting(node(0, 3, name="first"), False)], {"first": 0}
    full = explain(sighted, LAYERS, [], positions=10, rooms=rooms)
    assert full == {"first": Skip.NO_ROOM}
    kept = explain(sighted, LAYERS, [], positions=10, rooms=rooms, prefer=["first"])
    assert kept == {"first": Skip.SPAN_MEETS_NOBODY}


def test_a_node_outside_the_circle_in_which_there_was_a_route() -> None:
    first = replace(ROUTE[0], latitude=BERLIN.latitude, longitude=BERLIN.longitude)
    away = node(3, 6, name="away", place=SYDNEY, **QUICK)
    nodes = [first, ROUTE[1], away]
    route = choose(nodes, LAYERS, near=BERLIN)
    assert route == [first, ROUTE[1]]
    sighted = [Sighting(each, False) for each in nodes]
    assert explain(sighted, LAYERS, route, near=BERLIN) == {"away": Skip.TOO_FAR}
