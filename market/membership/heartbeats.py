"""Heartbeats of nodes: each is one round trip to Redis; the node's row is written when it comes,
when it leaves, and now and then."""

import dataclasses
import time
from typing import Any

import structlog
from sqlalchemy import func, select, update

from market.nodes import live_registry
from market.nodes.errors import NodeNotFound, NodeSuperseded
from market.nodes.node import NodeIncarnation
from market.nodes.registered_node import (
    admits,
    check_admission,
    is_current,
    may_hold_edge,
    node_of,
    not_revoked,
)
from market.nodes.tables import RegisteredNode
from market.outages import OUTAGES, unavailable
from market.placement.loading_nodes import record_progress
from market.resources import Resources
from mesh.node_api import Heartbeat

log = structlog.get_logger()


async def accept(resources: Resources, caller: NodeIncarnation, heartbeat: Heartbeat) -> None:
    """Keep a node on the routes with what it has measured, or take it off them.

    Raises:
        NodeNotFound: it is not registered here, or not any more.
        NodeSuperseded: it has registered again: the caller is an earlier process of it.
        WalletNotAdmitted: its wallet is not among those that the operator lets in, or not any more.
    """
    discovery, stall = resources.settings.discovery, resources.settings.placement.loading_stall
    if heartbeat.fetched_bytes:
        await record_progress(resources.redis, caller.node_id, heartbeat.fetched_bytes, stall=stall)
    if heartbeat.is_loading:
        await _check_current(resources, caller)
        return
    measured = _measured(heartbeat)
    now = time.time()
    result = await live_registry.record_heartbeat(
        resources.redis, caller.node_id, caller.number, measured, now=now, ttl=discovery.node_ttl
    )
    if result.state == "superseded":
        raise _superseded(caller)
    if result.state == "kept" and not admits(discovery, result.wallet_address):
        await live_registry.evict(resources.redis, caller.node_id, result.model_id, caller.number)
        check_admission(discovery, result.wallet_address)
    kept = result.state == "kept" and heartbeat.is_healthy
    due = result.uptime >= discovery.row_interval
    trusted = may_hold_edge(discovery, result.wallet_address, by_machine=result.by_machine)
    if kept and not due and result.trusted == trusted:
        return
    try:
        row = await _write(resources, caller, result, healthy=heartbeat.is_healthy)
    except OUTAGES as error:
        if not kept:
            raise
        unavailable(error)  # the uptime stays in Redis, for a later heartbeat to write
        return
    if not heartbeat.is_healthy:
        await live_registry.evict(resources.redis, row.node_id, row.model_id, caller.number)
        return
    check_admission(discovery, row.wallet_address)
    node = node_of(row, discovery)
    node = dataclasses.replace(node, **measured, last_seen=now)
    if not await live_registry.put(resources.redis, node, ttl=discovery.node_ttl):
        raise _superseded(caller)


async def _check_current(resources: Resources, caller: NodeIncarnation) -> None:
    """
    Raises:
        NodeNotFound: the node has registered again since, or its machine's token was taken back.
    """
    async with resources.sessions() as db:
        if not await is_current(db, caller):
            raise NodeNotFound(f"Node {caller.node_id} is not registered here. Register again.")


def _measured(heartbeat: Heartbeat) -> dict[str, Any]:
    """What changes from heartbeat to heartbeat, by the names of :class:`market.nodes.node.Node`."""
    measured: dict[str, Any] = {
        "is_healthy": heartbeat.is_healthy,
        "latency_ms": heartbeat.latency_ms,
        "throughput_tokens_per_sec": heartbeat.throughput_tokens_per_sec,
        "current_requests": heartbeat.current_requests,
        "kv_positions": heartbeat.kv_positions,
        "hop_ms": heartbeat.hop_ms,
        "batch_invariant": heartbeat.batch_invariant,
        "load_bytes_per_second": heartbeat.load_bytes_per_second,
        "gpu_utilization_percent": heartbeat.gpu_utilization_percent,
        "vram_used_gb": heartbeat.vram_used_gb,
    }
    if heartbeat.memory_bytes is not None:
        measured["memory_bytes"] = heartbeat.memory_bytes
    return measured


async def _write(
    resources: Resources,
    caller: NodeIncarnation,
    result: live_registry.HeartbeatResult,
    *,
    healthy: bool,
) -> RegisteredNode:
    """Note in the node's row that it was heard, and for how long since the last time."""
    node_id = caller.node_id
    uptime = result.uptime
    if result.state == "unknown":
        uptime = await live_registry.unsaved_uptime(resources.redis, node_id)
    async with resources.sessions.begin() as db:
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
        await live_registry.evict(resources.redis, node_id, result.model_id, caller.number)
        if newest is not None and newest != caller.number:
            raise _superseded(caller)
        raise NodeNotFound(f"Node {node_id} is not registered here. Register again.")
    if uptime:
        await live_registry.mark_uptime_saved(resources.redis, node_id, uptime)
    return row


def _superseded(caller: NodeIncarnation) -> NodeSuperseded:
    return NodeSuperseded(
        f"{caller.node_id} has registered again since: another process is this node now."
    )
