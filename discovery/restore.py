"""Nodes back on the routes, after Redis has lost them, before their next heartbeats.

The DHT knows how quick a node is; Postgres knows who has registered, with which wallet and span,
and has not left; a pulse tells who lives, since an announcement outlives its node by minutes. A
node needs all three. The DHT alone brings nobody onto a route: a record proves a key, and a route
needs a wallet that is paid.
"""

import dataclasses
import time
from collections.abc import Sequence

from redis.asyncio import Redis
from sqlalchemy import select

from market import db
from market.nodes import live_registry
from market.nodes.node import Node
from market.nodes.registered_node import node_of
from market.nodes.tables import RegisteredNode
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys
from mesh.dht.records import Announcement


async def restore(
    redis: Redis,
    sessions: db.Sessions,
    discovery: DiscoverySettings,
    announcements: Sequence[Announcement],
) -> list[str]:
    """Put back those that announce themselves, are registered for just this, live, and are not in
    Redis.
    They stay until their announcement expires, or their next heartbeat comes.

    Returns:
        The ids of those that are back.
    """
    lost = {each.node_id: each for each in await _alive_and_lost(redis, announcements)}
    if not lost:
        return []
    async with sessions() as session:
        rows = await session.scalars(
            select(RegisteredNode).where(RegisteredNode.node_id.in_(lost), RegisteredNode.is_active)
        )
        nodes = [node_of(row, discovery) for row in rows if _same(row, lost[row.node_id])]
    now = time.time()
    back = []
    for node in nodes:
        told = lost[node.node_id]
        ttl = min(told.expires - now, discovery.node_ttl)
        if ttl > 0:
            there = await live_registry.put(redis, _as_measured(node, told, now), ttl=ttl)
            back += [node.node_id] if there else []
    return back


async def _alive_and_lost(
    redis: Redis, announcements: Sequence[Announcement]
) -> list[Announcement]:
    async with redis.pipeline(transaction=False) as pipe:
        for each in announcements:
            pipe.exists(redis_keys.keepalive(each.node_id))
            pipe.exists(redis_keys.node(each.node_id))
        answers = await pipe.execute()
    beating, known = answers[::2], answers[1::2]
    return [
        each
        for each, beats, there in zip(announcements, beating, known, strict=True)
        if beats and not there
    ]


def _same(row: RegisteredNode, told: Announcement) -> bool:
    """Whether it announces what it has registered for, the last time: a span says where a route
    may use it."""
    return (row.registration, row.model_id, row.start_layer, row.end_layer) == (
        told.registration,
        told.model_id,
        told.start_layer,
        told.end_layer,
    )


def _as_measured(node: Node, told: Announcement, now: float) -> Node:
    return dataclasses.replace(
        node,
        latency_ms=told.latency_ms,
        throughput_tokens_per_sec=told.throughput_tokens_per_sec,
        current_requests=told.current_requests,
        kv_positions=told.kv_positions,
        last_seen=now,
    )
