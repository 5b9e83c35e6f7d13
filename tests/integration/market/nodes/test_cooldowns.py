"""Disputes of nodes, counted by their opponents' wallets."""

import asyncio

from redis.asyncio import Redis

from market.nodes import cooldowns
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys

DISCOVERY = DiscoverySettings(disputes=3, dispute_window=600, cooldown=30)


async def dispute(redis: Redis, opponent: str, discovery: DiscoverySettings = DISCOVERY) -> bool:
    return await cooldowns.record_dispute(redis, discovery, "node", opponent)


async def test_different_wallets_make_a_cooldown_and_then_count_anew(redis: Redis) -> None:
    assert not await dispute(redis, "0xA")
    assert not await dispute(redis, "0xa")  # another spelling
    assert not await dispute(redis, "0xB")
    assert not await redis.exists(redis_keys.cooldown("node"))
    assert await dispute(redis, "0xC")
    assert 0 < await redis.pttl(redis_keys.cooldown("node")) <= 30_000
    assert not await dispute(redis, "0xC")


async def test_old_disputes_do_not_count(redis: Redis) -> None:
    brief = DISCOVERY.model_copy(update={"dispute_window": 1.0})
    for opponent in ("0xA", "0xB"):
        assert not await dispute(redis, opponent, brief)
    await asyncio.sleep(1.1)
    assert not await dispute(redis, "0xC", brief)
    assert await redis.zcard(redis_keys.disputes("node")) == 1


async def test_disputes_expire(redis: Redis) -> None:
    await dispute(redis, "0xA")
    assert 0 < await redis.ttl(redis_keys.disputes("node")) <= 600
