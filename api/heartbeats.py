"""Keeping nodes on the routes, cheaply: a heartbeat is one round trip to Redis, and a node's row is
written when it comes, when it leaves, and now and then."""

import dataclasses
import time
from typing import Any

import structlog
from sqlalchemy import func, select, update

from api.http.problem_details import OUTAGES, unavailable
from api.http.services import Services
from api.schemas.nodes import HeartbeatBody
from market.nodes import live_registry
from market.nodes.errors import NodeNotFound, NodeSuperseded
from market.nodes.node import NodeIncarnation
from market.nodes.registered_node import node_of, not_revoked, trusts
from market.nodes.tables import RegisteredNode

log = structlog.get_logger()


async def take(services: Services, caller: NodeIncarnation, body: HeartbeatBody) -> None:
    """Keep a node on the routes with what it has measured, or take it off them.

    Raises:
        NodeNotFound: it is not registered here, or not any more.
        NodeSuperseded: it has registered again: the caller is an earlier process of it.
    """
    discovery = services.settings.discovery
    measured = _measured(body)
    now = time.time()
    beat = await live_registry.record_heartbeat(
        services.redis, caller.node_id, caller.number, measured, now=now, ttl=discovery.node_ttl
    )
    if beat.state == "superseded":
        raise _superseded(caller)
    kept = beat.state == "kept" and body.is_healthy
    due = beat.uptime >= discovery.row_interval
    if kept and not due and beat.trusted == trusts(discovery, beat.wallet_address):
        return
    try:
        row = await _write(services, caller, beat, healthy=body.is_healthy)
    except OUTAGES as error:
        if not kept:
            raise
        unavailable(error)  # the uptime stays in Redis, for a later beat to write
        return
    if not body.is_healthy:
        await live_registry.evict(services.redis, row.node_id, row.model_id, caller.number)
        return
    node = node_of(row, discovery)
    node = dataclasses.replace(node, **measured, last_seen=now)
    if not await live_registry.put(services.redis, node, ttl=discovery.node_ttl):
        raise _superseded(caller)


def _measured(body: HeartbeatBody) -> dict[str, Any]:
    """What changes from beat to beat, by the names of :class:`registry.Node`."""
    measured = body.model_dump(
        include={
            "is_healthy",
            "latency_ms",
            "throughput_tokens_per_sec",
            "current_requests",
            "kv_positions",
            "hop_ms",
            "load_bytes_per_second",
            "gpu_utilization_percent",
            "vram_used_gb",
        }
    )
    if body.memory_bytes is not None:
        measured["memory_bytes"] = body.memory_bytes
    return measured


async def _write(
    services: Services,
    caller: NodeIncarnation,
    beat: live_registry.HeartbeatResult,
    *,
    healthy: bool,
) -> RegisteredNode:
    """Note in the node's row that it was heard, and for how long since the last time."""
    node_id = caller.node_id
    uptime = beat.uptime
    if beat.state == "unknown":
        uptime = await live_registry.unsaved_uptime(services.redis, node_id)
    async with services.sessions.begin() as db:
        row: RegisteredNode | None = await db.scalar(
            update(RegisteredNode)
            .where(
                RegisteredNode.node_id == node_id,
                RegisteredNode.registration == caller.number,
                not_revoked(),
            )
            .values(
                last_seen=func.now(),
                is_active=healthy,
                uptime_seconds=RegisteredNode.uptime_seconds + uptime,
            )
            .returning(RegisteredNode)
        )
        newest = await db.scalar(
            select(RegisteredNode.registration).where(RegisteredNode.node_id == node_id)
        )
    if row is None:
        await live_registry.evict(services.redis, node_id, beat.model_id, caller.number)
        if newest is not None and newest != caller.number:
            raise _superseded(caller)
        raise NodeNotFound(f"Node {node_id} is not registered here. Register again.")
    if uptime:
        await live_registry.mark_uptime_saved(services.redis, node_id, uptime)
    return row


def _superseded(caller: NodeIncarnation) -> NodeSuperseded:
    return NodeSuperseded(
        f"{caller.node_id} has registered again since: another process is this node now."
    )
