"""Why a node was not on a route."""

from dataclasses import replace
from decimal import Decimal

import pytest

from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import SkipReason
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips
from tests.unit.market.routing.test_route_search import BERLIN, HAMBURG, SYDNEY, chosen, live, node

LAYERS = 6
ROUTE = [node(0, 3, name="first"), node(3, 6, name="last", place=HAMBURG)]


def reason(
    other: Node, *, cooling_down: bool = False, near: Coordinates | None = None
) -> SkipReason:
    """Why the other node is not on the route of the two."""
    nodes = [*ROUTE, other]
    live_nodes = [LiveNode(each, cooling_down and each is other) for each in nodes]
    free_kv = {each.node_id: 100 for each in nodes if each.node_id != "dead"}
    free_kv["full"] = 5
    request = RouteRequest(
        LAYERS,
        positions=10,
        price=Decimal(1),
        tier_rule=lambda each: each.node_id != "common",
        free_kv=free_kv,
        near=near,
    )
    route = cheapest_route(live_nodes, request)
    assert route is not None
    assert [each.node_id for each in route] == ["first", "last"]
    (found,) = explain_skips(live_nodes, request, route).items()
    assert found[0] == other.node_id
    return found[1]


QUICK = {"latency": 0.1}
REASONS = {
    SkipReason.UNHEALTHY: replace(node(3, 6, **QUICK), is_healthy=False),
    SkipReason.NOT_RUNNING: node(3, 6, name="dead", **QUICK),
    SkipReason.SPAN_OUTSIDE_MODEL: node(3, 7, **QUICK),
    SkipReason.NOT_TRUSTED: node(0, 6, trusted=False, **QUICK),
    SkipReason.PRICE_ABOVE_MARKET: replace(node(3, 6, **QUICK), min_price=Decimal(2)),
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
    request = RouteRequest(LAYERS)
    assert chosen([first, alone], LAYERS) is None
    hole = dict.fromkeys(["first", "alone"], SkipReason.SPAN_MEETS_NOBODY)
    assert explain_skips(live([first, alone]), request, []) == hole
    assert explain_skips(live([first, last]), request, []) == dict.fromkeys(
        ["first", "last"], SkipReason.TOO_FEW_NODES
    )


def test_a_node_that_serves_a_generation_already_has_its_kv_cache() -> None:
    first = live([node(0, 3, name="first")])
    request = RouteRequest(LAYERS, positions=10, free_kv={"first": 0})
    full = explain_skips(first, request, [])
    assert full == {"first": SkipReason.NO_ROOM}
    kept = explain_skips(first, replace(request, prefer=["first"]), [])
    assert kept == {"first": SkipReason.SPAN_MEETS_NOBODY}


def test_a_whole_kv_cache_that_is_too_small() -> None:
    nodes = [*ROUTE, node(3, 6, name="small", kv=9, **QUICK)]
    request = RouteRequest(LAYERS, positions=10)
    assert cheapest_route(live(nodes), request) == ROUTE
    assert explain_skips(live(nodes), request, ROUTE) == {"small": SkipReason.NO_ROOM}


def test_a_node_outside_the_circle_in_which_there_was_a_route() -> None:
    first = replace(ROUTE[0], latitude=BERLIN.latitude, longitude=BERLIN.longitude)
    away = node(3, 6, name="away", place=SYDNEY, **QUICK)
    nodes = live([first, ROUTE[1], away])
    request = RouteRequest(LAYERS, near=BERLIN)
    route = cheapest_route(nodes, request)
    assert route == [first, ROUTE[1]]
    assert explain_skips(nodes, request, route) == {"away": SkipReason.TOO_FAR}


def test_where_nodes_anywhere_were_asked_none_is_too_far() -> None:
    """The route's node is beyond the largest circle, and was preferred to one whose place is
    unknown by what it costs."""
    nodes = live([node(0, 6, name="far", place=SYDNEY), node(0, 6, name="unknown", latency=9)])
    request = RouteRequest(LAYERS, near=BERLIN)
    route = cheapest_route(nodes, request)
    assert route == [nodes[0].node]
    assert explain_skips(nodes, request, route) == {"unknown": SkipReason.SLOWER_THAN_OTHERS}
