"""Rebalancing: whether new spans for some nodes pay, and beginning that. One rebalance at a time
for each model.

A rebalance under way is a row in Postgres, so that a worker may fail at any moment: the next run
goes on from there, and of two runs at once one does nothing.
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
from market.placement import cluster, loading_nodes, rebalances, speed_averages
from market.placement.solver import Policy, propose, throughput
from market.placement.tables import UNDER_WAY, Rebalance
from market.resources import Resources

log = structlog.get_logger()


async def rebalance(ctx: dict[str, Any]) -> None:
    """arq cron: rebalance each model."""
    resources: Resources = ctx["resources"]
    for model in resources.catalog:
        await rebalance_model(resources, model)


async def rebalance_model(resources: Resources, model: Model) -> None:
    """End a model's rebalance that cannot complete; or, if none is under way and rebalancing is
    enabled, begin one that pays. Nothing is done while another worker places the model's nodes."""
    live = await live_lookup.live_nodes(resources.redis, model.id)
    async with resources.sessions.begin() as db:
        if not await rebalances.try_lock(db, model.id):
            return
        current = await rebalances.under_way(db, model.id)
        if current is not None:
            live_ids = {live_node.node.node_id for live_node in live}
            await _end_if_stuck(resources, db, current, live_ids)
        elif resources.settings.placement.enabled:
            healthy = [live_node.node for live_node in live if live_node.node.is_healthy]
            current = await _propose(resources, db, model, healthy)
    if current is not None and current.state in UNDER_WAY:
        limit = resources.settings.placement.move_limit
        await rebalances.publish_assignments(resources.redis, current, ttl=limit)
    elif current is not None:
        await rebalances.withdraw_assignments(resources.redis, current)


async def _end_if_stuck(
    resources: Resources, db: AsyncSession, current: Rebalance, live: Collection[str]
) -> None:
    """Let a rebalance fail if a node of it is gone, or loads too long without a byte."""
    ttl = resources.settings.discovery.node_ttl
    gone = []
    for node_id in set(rebalances.nodes_of(current)) - set(live):
        asked = (
            await rebalances.asked_at(resources.redis, node_id) or current.proposed_at.timestamp()
        )
        if time.time() - asked > ttl:  # while it loads, a node may be off the routes
            gone.append(node_id)
    age = (dt.datetime.now(dt.UTC) - current.proposed_at).total_seconds()
    if gone:
        await rebalances.fail(db, current, "gone", at=gone)
    elif age > resources.settings.placement.move_limit:
        late = rebalances.not_loaded(current)
        moving = await loading_nodes.moving(resources.redis, late)
        if late and moving.issuperset(late):
            return
        late = [node_id for node_id in late if node_id not in moving]
        await rebalances.fail(db, current, "not loaded in time", at=late, state="expired")
    else:
        return
    log.warning(
        "rebalance_ended",
        model_id=current.model_id,
        state=current.state,
        reason=current.reason,
    )


async def _propose(
    resources: Resources, db: AsyncSession, model: Model, nodes: Sequence[Node]
) -> Rebalance | None:
    """Begin the rebalance that pays most, if one pays enough and none took effect too lately."""
    settings = resources.settings.placement
    speeds = await speed_averages.update_averages(
        resources.redis,
        model.id,
        {node.node_id: speed for node in nodes if (speed := cluster.speed_of(node, model))},
        now=time.time(),
        half_life=settings.half_life,
    )
    found = cluster.cluster_of(
        nodes,
        model,
        positions=settings.positions,
        speeds=speeds,
        fixed=await rebalances.failed_within(db, model.id, settings.retry),
    )
    metrics.placement_throughput.labels(model.id).set(
        throughput(found.by_id, found.spans, found.shape)
    )
    if await rebalances.switched_within(db, model.id, settings.pause):
        return None
    began = time.perf_counter()
    plan = await asyncio.to_thread(  # half a second for a thousand nodes
        propose,
        found.candidates,
        found.spans,
        found.shape,
        Policy(settings.threshold, settings.horizon),
    )
    metrics.placement_seconds.observe(time.perf_counter() - began)
    if plan is None or all(change.new is None for change in plan.changes):
        return None
    begun = await rebalances.begin(db, model.id, plan)
    log.info(
        "rebalance_proposed",
        model_id=model.id,
        changes=[[change.node_id, change.old, change.new] for change in plan.changes],
        steps_before=round(plan.before, 3),
        steps_after=round(plan.after, 3),
        load_seconds=round(plan.load_seconds, 1),
    )
    return begun
