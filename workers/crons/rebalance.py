"""Rebalancing: looks whether a move of nodes pays, and begins it. One at a time for each model.

What is under way stands in Postgres, so a worker may die at any moment: the next one goes on from
there, and two at once are one.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Collection, Sequence
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.catalog.models import Model
from market.nodes import live_lookup
from market.nodes.node import Node
from market.placement import cluster, rebalances, speed_averages
from market.placement.solver import Policy, propose, throughput
from market.placement.tables import UNDER_WAY, Rebalance
from market.resources import Services

log = structlog.get_logger()


async def rebalance(ctx: dict[str, Any]) -> None:
    """arq cron: a look at each model."""
    services: Services = ctx["services"]
    for model in services.catalog:
        await rebalance_model(services, model)


async def rebalance_model(services: Services, model: Model) -> None:
    """End a move that came to nothing, or begin one that pays, if nodes are to be moved at all.
    Nothing if another worker looks."""
    seen = await live_lookup.live_nodes(services.redis, model.id)
    async with services.sessions.begin() as db:
        if not await rebalances.try_lock(db, model.id):
            return
        move = await rebalances.under_way(db, model.id)
        if move is not None:
            await _check(services, db, move, {live_node.node.node_id for live_node in seen})
        elif services.settings.placement.enabled:
            healthy = [live_node.node for live_node in seen if live_node.node.is_healthy]
            move = await _propose(services, db, model, healthy)
    if move is not None and move.state in UNDER_WAY:
        limit = services.settings.placement.move_limit
        await rebalances.publish_assignments(services.redis, move, ttl=limit)
    elif move is not None:
        await rebalances.withdraw_assignments(services.redis, move)


async def _check(
    services: Services, db: AsyncSession, move: Rebalance, heard: Collection[str]
) -> None:
    """Give a move up if a node of it is gone, or it takes too long."""
    ttl = services.settings.discovery.node_ttl
    gone = []
    for node_id in set(rebalances.nodes_of(move)) - set(heard):
        asked = await rebalances.asked_at(services.redis, node_id) or move.proposed_at.timestamp()
        if time.time() - asked > ttl:  # while it loads, a node may be off the routes
            gone.append(node_id)
    age = (dt.datetime.now(dt.UTC) - move.proposed_at).total_seconds()
    if gone:
        await rebalances.fail(db, move, f"gone: {', '.join(sorted(gone))}")
    elif age > services.settings.placement.move_limit:
        await rebalances.fail(db, move, "not loaded in time", state="expired")
    else:
        return
    log.warning("move_ended", model_id=move.model_id, state=move.state, reason=move.reason)


async def _propose(
    services: Services, db: AsyncSession, model: Model, nodes: Sequence[Node]
) -> Rebalance | None:
    how = services.settings.placement
    speeds = await speed_averages.update_averages(
        services.redis,
        model.id,
        {node.node_id: speed for node in nodes if (speed := cluster.speed_of(node, model))},
        now=time.time(),
        half_life=how.half_life,
    )
    seen = cluster.cluster_of(
        nodes,
        model,
        positions=how.positions,
        speeds=speeds,
        fixed=await rebalances.failed_lately(db, model.id, how.retry),
    )
    metrics.placement_throughput.labels(model.id).set(
        throughput(seen.by_id, seen.spans, seen.shape)
    )
    if await rebalances.ended_within(db, model.id, how.pause):
        return None
    began = time.perf_counter()
    move = await asyncio.to_thread(  # half a second for a thousand nodes
        propose, seen.candidates, seen.spans, seen.shape, Policy(how.threshold, how.horizon)
    )
    metrics.placement_seconds.observe(time.perf_counter() - began)
    if move is None or all(change.new is None for change in move.changes):
        return None
    recorded = await rebalances.record(db, model.id, move)
    log.info(
        "move_proposed",
        model_id=model.id,
        changes=[[change.node_id, change.old, change.new] for change in move.changes],
        steps_before=round(move.before, 3),
        steps_after=round(move.after, 3),
        load_seconds=round(move.seconds, 1),
    )
    return recorded
