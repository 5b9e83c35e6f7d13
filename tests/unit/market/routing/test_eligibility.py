"""The route search and the explanation go by one list of rules."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import RULES, SkipReason, ineligibility
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips
from tests.unit.market.routing.test_route_search import BERLIN, HAMBURG, LISBON, SYDNEY, node

LAYERS = 4
POSITIONS = 50
COMMON = "common"
"""The GPU of nodes that a tier may not admit."""

OF_RULES = {reason for reason, _ in RULES}
more = settings(max_examples=150, deadline=None)


@st.composite
def live_nodes(draw: st.DrawFn, name: str) -> LiveNode:
    """Mostly a node that might serve, and with any of its shortcomings by chance."""
    rarely = st.sampled_from([False, False, False, True])
    start = draw(st.integers(0, LAYERS))
    made = node(
        start,
        draw(st.integers(start, LAYERS + 1)),
        name=name,
        edge=start == 0 and not draw(rarely),
        trusted=not draw(rarely),
        latency=draw(st.integers(0, 3)),
        requests=draw(st.integers(0, 2)),
        kv=draw(st.sampled_from([0, POSITIONS - 1, POSITIONS])),
        place=draw(st.sampled_from([None, BERLIN, HAMBURG, LISBON, SYDNEY])),
    )
    made = replace(
        made,
        is_healthy=not draw(rarely),
        min_price=draw(st.sampled_from([None, Decimal(1), Decimal(2)])),
        gpu_model=COMMON if draw(rarely) else "rare",
    )
    return LiveNode(made, cooling_down=draw(rarely))


@st.composite
def requests(draw: st.DrawFn, ids: list[str]) -> RouteRequest:
    free = st.sampled_from([None, POSITIONS - 1, POSITIONS, POSITIONS])
    free_kv = {name: positions for name in ids if (positions := draw(free)) is not None}
    return RouteRequest(
        LAYERS,
        positions=draw(st.sampled_from([0, POSITIONS])),
        price=draw(st.sampled_from([None, Decimal(1), Decimal(2)])),
        tier_rule=draw(st.sampled_from([None, admits])),
        free_kv=draw(st.sampled_from([None, free_kv])),
        avoid=draw(st.sets(st.sampled_from(ids), max_size=1)),
        prefer=draw(st.sets(st.sampled_from(ids), max_size=2)),
        near=draw(st.sampled_from([None, BERLIN])),
        within_km=draw(st.sampled_from([100.0, 1000.0, 5000.0])),
    )


@st.composite
def choices(draw: st.DrawFn, most: int = 7) -> tuple[list[LiveNode], RouteRequest]:
    """Live nodes, and what is asked of them."""
    ids = [f"n{number}" for number in range(draw(st.integers(1, most)))]
    return [draw(live_nodes(name)) for name in ids], draw(requests(ids))


def admits(each: Node) -> bool:
    return each.gpu_model != COMMON


def test_the_rules_come_in_the_order_of_the_reasons() -> None:
    reasons = [reason for reason, _ in RULES]
    assert reasons == [*SkipReason][: len(RULES)]


@more
@given(choices(most=1))
def test_a_node_is_a_candidate_if_no_rule_holds_and_only_then(
    choice: tuple[list[LiveNode], RouteRequest],
) -> None:
    """The only node for its span, between nodes that may serve all other layers."""
    [tested], request = choice
    start, end = tested.node.start_layer, tested.node.end_layer
    spans = [(0, start), (start, end), (end, LAYERS)]
    others = [
        LiveNode(node(*span, name=f"other {number}", place=BERLIN), cooling_down=False)
        for number, span in enumerate(spans)
        if span[0] < span[1] and span != (start, end)
    ]
    if request.free_kv is not None:
        free_kv = {each.node.node_id: POSITIONS for each in others}
        request = replace(request, free_kv=free_kv | request.free_kv)
    route = cheapest_route([*others, tested], request) or []
    assert (tested.node in route) == (ineligibility(tested, request) is None)


@more
@given(choices())
def test_each_node_that_is_not_on_the_route_has_one_reason(
    choice: tuple[list[LiveNode], RouteRequest],
) -> None:
    live, request = choice
    route = cheapest_route(live, request) or []
    reasons = explain_skips(live, request, route)
    assert all(ineligibility(each, request) is None for each in live if each.node in route)
    assert reasons.keys() == {each.node.node_id for each in live} - {n.node_id for n in route}
    for each in live:
        reason, rule = reasons.get(each.node.node_id), ineligibility(each, request)
        assert reason is rule if rule else reason not in OF_RULES
    assert SkipReason.TOO_FEW_NODES not in reasons.values()
    if not route:
        assert {*reasons.values()} <= {*OF_RULES, SkipReason.SPAN_MEETS_NOBODY}


@more
@given(choices())
def test_the_first_rule_that_holds_is_told(choice: tuple[list[LiveNode], RouteRequest]) -> None:
    live, request = choice
    for each in live:
        found = ineligibility(each, request)
        for reason, holds in RULES:
            if reason is found:
                break
            assert not holds(each, request)


@more
@given(choices())
def test_nodes_that_may_not_serve_change_no_route(
    choice: tuple[list[LiveNode], RouteRequest],
) -> None:
    live, request = choice
    candidates = [each for each in live if ineligibility(each, request) is None]
    assert cheapest_route(live, request) == cheapest_route(candidates, request)


def test_places_are_those_of_the_user_and_of_the_node() -> None:
    assert RouteRequest(LAYERS).distance_km(node(0, 1, place=BERLIN)) == float("inf")
    assert RouteRequest(LAYERS, near=BERLIN).distance_km(node(0, 1)) == float("inf")
    assert (
        RouteRequest(LAYERS, near=Coordinates(0, 0)).distance_km(
            node(0, 1, place=Coordinates(0, 0))
        )
        == 0
    )
    assert [*RouteRequest(LAYERS).radii] == [float("inf")]
    radii = [*RouteRequest(LAYERS, near=BERLIN, within_km=6000).radii]
    assert radii == [6000, 12000, float("inf")]
