"""Nodes back on the routes, after Redis has lost them, before their next heartbeats.

The DHT knows how quick a node is; Postgres knows who has registered, with which wallet and span,
and has not left; a keep-alive says whose process runs, since an announcement outlives its node by
minutes. A node needs all three. The DHT alone brings nobody onto a route: a record proves a key,
and a route needs a wallet that is paid.
"""

import dataclasses
import time
from collections.abc import Sequence

from redis.asyncio import Redis
from sqlalchemy import select

from market import db
from market.nodes import live_registry
from market.nodes.node import Node
from market.nodes.registered_node import admits, node_of
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
    """Put nodes back that announce themselves, are registered for just that, run, and are not in
    Redis. They stay until their announcement expires, or their next heartbeat comes.

    Returns:
        The ids of the nodes that were put back.
    """
    missing = {each.node_id: each for each in await _alive_but_missing(redis, announcements)}
    if not missing:
        return []
    async with sessions() as session:
        rows = await session.scalars(
            select(RegisteredNode).where(
                RegisteredNode.node_id.in_(missing), RegisteredNode.is_active
            )
        )
        nodes = [
            node_of(row, discovery)
            for row in rows
            if _as_registered(row, missing[row.node_id]) and admits(discovery, row.wallet_address)
        ]
    now = time.time()
    restored = []
    for node in nodes:
        announcement = missing[node.node_id]
        ttl = min(announcement.expires - now, discovery.node_ttl)
        if ttl > 0:
            put = await live_registry.put(redis, _as_measured(node, announcement, now), ttl=ttl)
            restored += [node.node_id] if put else []
    return restored


async def _alive_but_missing(
    redis: Redis, announcements: Sequence[Announcement]
) -> list[Announcement]:
    async with redis.pipeline(transaction=False) as pipe:
        for each in announcements:
            pipe.exists(redis_keys.keepalive(each.node_id))
            pipe.exists(redis_keys.node(each.node_id))
        answers = await pipe.execute()
    running, known = answers[::2], answers[1::2]
    return [
        each
        for each, runs, in_redis in zip(announcements, running, known, strict=True)
        if runs and not in_redis
    ]


def _as_registered(row: RegisteredNode, announcement: Announcement) -> bool:
    """Whether a node announces what it registered for the last time: a route relies on the span."""
    return (row.registration, row.model_id, row.start_layer, row.end_layer) == (
        announcement.registration,
        announcement.model_id,
        announcement.start_layer,
        announcement.end_layer,
    )


def _as_measured(node: Node, announcement: Announcement, now: float) -> Node:
    return dataclasses.replace(
        node,
        latency_ms=announcement.latency_ms,
        throughput_tokens_per_sec=announcement.throughput_tokens_per_sec,
        current_requests=announcement.current_requests,
        kv_positions=announcement.kv_positions,
        last_seen=now,
    )
