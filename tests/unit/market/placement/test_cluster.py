"""The registry's nodes in the solver's terms, and averages over time."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.catalog.models import load_model
from market.nodes.node import Node
from market.placement.cluster import ASSUMED_SPEED, Cluster, cluster_of, speed_of
from market.placement.solver import propose, throughput
from market.placement.speed_averages import ewma
from market.settings.models import ModelSettings
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.clusters import candidates, models
from tests.unit.market.routing.test_route_search import node

MODEL = load_model(
    ModelSettings.model_validate(
        {"id": MODEL_ID, "path": str(DEMO_MODEL), "payment_per_token": "0.0001"}
    )
)
MEMORY_BYTES = 10**9


def free(start: int, end: int, *, name: str, latency: float = 1.0) -> Node:
    """A node whose span the platform chooses."""
    placed = node(start, end, name=name, latency=latency)
    return replace(placed, placeable=True, memory_bytes=MEMORY_BYTES)


def made(*nodes: Node, fixed: tuple[str, ...] = ()) -> Cluster:
    return cluster_of(nodes, MODEL, positions=256, speeds={}, fixed=fixed)


def test_only_a_placeable_node_that_reports_its_memory_is_movable() -> None:
    nodes = [
        free(0, 3, name="free"),
        node(3, 6, name="pinned"),
        replace(free(3, 6, name="silent"), memory_bytes=0),
        free(3, 6, name="failed"),
    ]
    found = made(*nodes, fixed=("failed",))
    assert {c.node_id for c in found.candidates if c.movable} == {"free"}
    assert found.by_id["pinned"].capacity == 3
    assert found.by_id["free"].edge_capacity == 6 or found.by_id["free"].capacity > 6


def test_what_a_node_serves_it_holds() -> None:
    tiny = replace(free(0, 6, name="tiny"), memory_bytes=1)
    found = made(tiny)
    assert found.by_id["tiny"].holds((0, 6))


def test_first_layers_without_the_edge_serve_nothing() -> None:
    assert made(node(0, 3, trusted=False), node(0, 3, edge=False)).candidates == []


def test_a_quantization_that_does_not_exist_pins_its_node() -> None:
    [found] = made(replace(free(3, 6, name="odd"), quantization="int3")).candidates
    assert not found.movable


def test_a_node_that_has_not_served_counts_as_the_median() -> None:
    assert speed_of(node(3, 6, latency=0.0), MODEL) is None
    assert speed_of(node(3, 6, latency=30.0), MODEL) == pytest.approx(100)
    assert made(node(3, 6)).candidates[0].speed == ASSUMED_SPEED
    found = cluster_of(
        [node(3, 6, name="a"), node(3, 6, name="b")], MODEL, positions=0, speeds={"a": 7.0}
    )
    assert {c.speed for c in found.candidates} == {7.0}


@pytest.mark.parametrize("latency", [1e-9, 5e-324])
def test_no_reported_latency_outweighs_all_other_nodes(latency: float) -> None:
    """It says that a step takes it next to no time."""
    nodes = [
        node(0, 3, name="first", latency=30.0),
        node(3, 6, name="last", latency=30.0),
        node(3, 6, name="liar", latency=latency),
    ]
    speeds = {each.node_id: speed for each in nodes if (speed := speed_of(each, MODEL))}
    found = cluster_of(nodes, MODEL, positions=256, speeds=speeds)
    expected = found.by_id["first"].rate((0, 3), found.shape)
    assert throughput(found.by_id, found.spans, found.shape) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(candidates(most=7), models, st.data())
def test_a_rebalance_never_changes_a_node_that_is_not_movable(nodes, model, data) -> None:  # type: ignore[no-untyped-def]
    nodes = [replace(n, movable=data.draw(st.booleans())) for n in nodes]
    spans = {}
    for n in nodes:
        end = min(model.layers, max(n.capacity, 1))
        start = data.draw(st.integers(0, model.layers - end))
        if n.holds((start, start + end)):
            spans[n.node_id] = (start, start + end)
    plan = propose(nodes, spans, model)
    pinned = {n.node_id for n in nodes if not n.movable}
    assert plan is None or not pinned & {change.node_id for change in plan.changes}


def test_an_average_goes_half_the_way_in_its_half_life() -> None:
    assert ewma(10.0, 20.0, seconds=300, half_life=300) == pytest.approx(15)
    assert ewma(10.0, 20.0, seconds=0, half_life=300) == 10
    assert ewma(10.0, 20.0, seconds=1e6, half_life=300) == pytest.approx(20)
