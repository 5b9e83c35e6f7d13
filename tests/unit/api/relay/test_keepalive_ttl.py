"""How long a keep-alive holds."""

from api.relay.keepalive_ttl import AdaptiveTtl
from mesh.keepalive import (
    MAX_RELAY_KEEPALIVE_TTL,
    MIN_RELAY_KEEPALIVE_TTL,
    RELAY_KEEPALIVE_INTERVAL,
)


def test_keep_alives_hold_for_longer_where_they_come_unevenly() -> None:
    even, uneven = AdaptiveTtl(), AdaptiveTtl()
    for number in range(100):
        held = even.observe(number * RELAY_KEEPALIVE_INTERVAL)
        longer = uneven.observe(number * RELAY_KEEPALIVE_INTERVAL + (0.4 if number % 2 else 0.0))
    assert held == MIN_RELAY_KEEPALIVE_TTL
    assert MIN_RELAY_KEEPALIVE_TTL < longer <= MAX_RELAY_KEEPALIVE_TTL
    assert (
        uneven.observe(1000.0) == MAX_RELAY_KEEPALIVE_TTL
    )  # a gap, however long, makes nobody immortal
    for number in range(100):
        longer = uneven.observe(1000.0 + number * RELAY_KEEPALIVE_INTERVAL)
    assert longer == MIN_RELAY_KEEPALIVE_TTL
