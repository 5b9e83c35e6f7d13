"""What nodes can serve, and how long a new job waits for its start by that."""

import math
from collections.abc import Sequence

import pytest

from market.jobs.admission.capacity import Capacity, capacity_of
from market.nodes.node import Node
from tests.support.gateway.api import node

JOBS = 32
"""Jobs of a route."""


def capacity(nodes: Sequence[Node], rate: float | None = None) -> Capacity:
    return capacity_of(nodes, layers=6, jobs_per_route=JOBS, rate=rate)


def test_the_layer_that_can_serve_least_bounds_all() -> None:
    nodes = [
        node(0, kv_positions=1000),
        node(1, kv_positions=300),
        node(1, node_id="replica", kv_positions=200),
        node(2, kv_positions=700, max_sessions=5),
    ]
    assert capacity(nodes) == Capacity(positions=500, jobs=5, rate=None)


def test_replicas_of_a_whole_route_add_up() -> None:
    nodes = [
        node(0, node_id=f"whole_{number}", start_layer=0, end_layer=6, kv_positions=100)
        for number in range(3)
    ]
    assert capacity(nodes) == Capacity(positions=300, jobs=3 * JOBS, rate=None)


def test_spans_of_unlike_lengths_are_added_layer_by_layer() -> None:
    nodes = [
        node(0, start_layer=0, end_layer=4, kv_positions=100),
        node(1, start_layer=0, end_layer=6, kv_positions=50),
        node(2, start_layer=4, end_layer=6, kv_positions=10),
    ]
    assert capacity(nodes).positions == 60


def test_a_node_that_does_not_say_has_no_limit() -> None:
    nodes = [node(0), node(1, kv_positions=300), node(1, node_id="replica"), node(2)]
    assert capacity(nodes).positions == math.inf


def test_without_nodes_something_may_still_be_asked() -> None:
    assert capacity([]) == Capacity(positions=0, jobs=1, rate=None)


@pytest.mark.parametrize(
    ("jobs", "positions", "new", "seconds"),
    [
        (0, 0, 100, 0.0),
        (3, 300, 100, 0.0),
        (4, 400, 100, 10.0),
        (14, 1400, 100, 110.0),
        (3, 950, 100, 5.0),
    ],
    ids=["empty", "last that starts at once", "one too many", "queue", "no room"],
)
def test_a_start_is_expected_when_what_is_ahead_and_has_no_room_is_computed(
    jobs: int, positions: int, new: int, seconds: float
) -> None:
    at_ten_a_second = Capacity(positions=1000, jobs=4, rate=10.0)
    assert at_ten_a_second.start_wait(jobs, positions, new) == pytest.approx(seconds)


def test_who_has_to_wait_where_nothing_was_measured_waits_for_ever() -> None:
    unmeasured = Capacity(positions=1000, jobs=4, rate=None)
    assert unmeasured.start_wait(3, 300, 100) == 0
    assert unmeasured.start_wait(4, 400, 100) == math.inf
    assert unmeasured.start_wait(1, 950, 100) == math.inf
