"""Why a node was not on a route."""

from dataclasses import replace

import pytest

from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import SkipReason
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips
from tests.support.market.routes import BERLIN, HAMBURG, SYDNEY, node

LAYERS = 6
ROUTE = [node(0, 3, name="first"), node(3, 6, name="last", place=HAMBURG)]


def reason(
    other: Node, *, cooling_down: bool = False, near: Coordinates | None = None
) -> SkipReason:
    """Why the other node is not on the route of the two."""
    nodes = [*ROUTE, other]
    live = [LiveNode(each, cooling_down and each is other) for each in nodes]
    rooms = {each.node_id: 100 for each in nodes if each.node_id != "dead"}
    rooms["full"] = 5

    def fair(each: Node) -> bool:
        return each.node_id != "dear"

    def admits(each: Node) -> bool:
        return each.node_id != "common"

    usable = [seen.node for seen in live if seen.available]
    route = cheapest_route(
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
    (found,) = explain_skips(live, LAYERS, route, **how).items()
    assert found[0] == other.node_id
    return found[1]


QUICK = {"latency": 0.1}
REASONS = {
    SkipReason.UNHEALTHY: replace(node(3, 6, **QUICK), is_healthy=False),
    SkipReason.NOT_RUNNING: node(3, 6, name="dead", **QUICK),
    SkipReason.NOT_TRUSTED: node(0, 6, trusted=False, **QUICK),
    SkipReason.PRICE_ABOVE_MARKET: node(3, 6, name="dear", **QUICK),
    SkipReason.NOT_ADMITTED: node(3, 6, name="common", **QUICK),
    SkipReason.NO_ROOM: node(3, 6, name="full", **QUICK),
    SkipReason.SPAN_MEETS_NOBODY: node(2, 6, **QUICK),
    SkipReason.SLOWER_THAN_OTHERS: node(3, 6, latency=9.0),
    SkipReason.SPAN_ALREADY_COVERED: node(0, 6, latency=9.0),
}


@pytest.mark.parametrize("expected", REASONS)
def test_each_reason(expected: SkipReason) -> None:
    assert reason(REASONS[expected]) is expected


def test_a_node_that_cools_down() -> None:
    assert reason(node(3, 6, **QUICK), cooling_down=True) is SkipReason.COOLING_DOWN


def test_without_a_route_each_node_hears_what_is_missing() -> None:
    first, last, alone = node(0, 3, name="first"), node(3, 6, name="last"), node(4, 6, name="alone")
    live = [LiveNode(each, False) for each in (first, alone)]
    assert cheapest_route([first, alone], LAYERS) is None
    hole = dict.fromkeys(["first", "alone"], SkipReason.SPAN_MEETS_NOBODY)
    assert explain_skips(live, LAYERS, []) == hole
    few = [LiveNode(each, False) for each in (first, last)]
    assert explain_skips(few, LAYERS, []) == dict.fromkeys(
        ["first", "last"], SkipReason.TOO_FEW_NODES
    )


def test_who_serves_a_generation_already_has_its_room() -> None:
    live, rooms = [LiveNode(node(0, 3, name="first"), False)], {"first": 0}
    full = explain_skips(live, LAYERS, [], positions=10, rooms=rooms)
    assert full == {"first": SkipReason.NO_ROOM}
    kept = explain_skips(live, LAYERS, [], positions=10, rooms=rooms, prefer=["first"])
    assert kept == {"first": SkipReason.SPAN_MEETS_NOBODY}


def test_a_node_outside_the_circle_in_which_there_was_a_route() -> None:
    first = replace(ROUTE[0], latitude=BERLIN.latitude, longitude=BERLIN.longitude)
    away = node(3, 6, name="away", place=SYDNEY, **QUICK)
    nodes = [first, ROUTE[1], away]
    route = cheapest_route(nodes, LAYERS, near=BERLIN)
    assert route == [first, ROUTE[1]]
    live = [LiveNode(each, False) for each in nodes]
    assert explain_skips(live, LAYERS, route, near=BERLIN) == {"away": SkipReason.TOO_FAR}
