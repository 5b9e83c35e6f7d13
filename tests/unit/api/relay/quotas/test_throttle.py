"""Who sends too much waits."""

import pytest

from api.relay.quotas.throttle import NodeThrottle


async def test_a_burst_gets_through_and_what_comes_after_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("api.relay.quotas.throttle.asyncio.sleep", sleep)
    throttle = NodeThrottle(messages_per_second=10, bytes_per_second=1e9)
    for _ in range(20):
        await throttle.acquire("node", 1, 0)
    assert waits == []
    await throttle.acquire("other", 1, 0)
    assert waits == []
    await throttle.acquire("node", 10, 0)
    assert waits == [pytest.approx(1.0, abs=0.5)]
