"""The load test in small: fifty nodes with a heartbeat every second, which come and go."""

import asyncio

import pytest

from benchmarks import scale

LOAD = scale.FleetLoad(nodes=50, seconds=12, interval=1, ttl=4, churn=3)


@pytest.mark.long
def test_no_heartbeat_is_lost_and_the_silent_are_gone_in_time() -> None:
    with scale.servers(LOAD) as on:
        outcome = asyncio.run(scale.run(LOAD, on))
    assert outcome.lost == []
    assert len(outcome.heartbeats_ms) > 5 * LOAD.nodes
    assert outcome.missing == 0
    assert outcome.silences > len(outcome.removals_s) > 0
    assert all(LOAD.ttl - 1 < seconds < LOAD.ttl + 3 for seconds in outcome.removals_s)
    assert outcome.overdue == 0
    assert outcome.bytes_a_node > outcome.record_bytes > 0
    assert outcome.transactions_per_heartbeat < 1
