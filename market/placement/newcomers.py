"""The span for a node that registers."""

import datetime as dt
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.catalog.models import Model
from market.errors import InvalidRequest
from market.nodes import live_lookup
from market.nodes.node import Node
from market.nodes.registered_node import may_hold_edge, node_of
from market.nodes.tables import RegisteredNode
from market.placement import cluster, loading_nodes, speed_averages
from market.placement.solver import Candidate, Span, join
from market.resources import Resources
from mesh.node_api import NodeRegistration

LONGEST_LOADING = dt.timedelta(days=1)
"""After which a node that never served is not looked at, whatever it says: 1 TB at 100 Mbit/s."""

MAX_LOADING = 1000
"""Nodes of a model that load at once and count."""


async def place(
    resources: Resources,
    db: AsyncSession,
    model: Model,
    node: NodeRegistration,
    known: RegisteredNode | None,
    *,
    by_machine: bool,
) -> dict[str, Any]:
    """The span of a node that leaves it to the platform, as columns of its row: the span that it
    had, if it comes back, else the one with which it raises the throughput most. The caller has
    locked the model, so that two nodes that register at once do not get one span.

    Args:
        known: The node's row, if it comes back.
        by_machine: Whether a machine's token registers it.

    Raises:
        InvalidRequest: the node holds no layer of the model.
        UnsupportedModel: the model cannot be quantized as the node says.
    """
    placement = resources.settings.placement
    nodes = [
        each
        for each in await live_lookup.healthy_nodes(resources.redis, model.id)
        if known is None or each.node_id != known.node_id
    ]
    nodes += await loading(resources, db, model, {each.node_id for each in nodes})
    speeds = await speed_averages.averages(resources.redis, model.id)
    present = cluster.cluster_of(nodes, model, positions=placement.positions, speeds=speeds)
    newcomer = cluster.newcomer(
        "",
        model,
        quantization=node.quantization,
        vram_gb=node.vram_gb,
        memory_bytes=node.memory_bytes,
        trusted=may_hold_edge(
            resources.settings.discovery, node.wallet_address, by_machine=by_machine
        ),
        positions=placement.positions,
        speed=cluster.median_speed(speeds),
    )
    span = (
        _as_before(newcomer, known, model)
        or join(newcomer, present.by_id, present.spans, present.shape)
        or _beside(newcomer, present)
    )
    if span is None:
        raise InvalidRequest(
            f"{node.memory_bytes} bytes hold no layer of this model with the KV cache that it "
            "needs. Give the node more memory, or quantize.",
            code="memory_bytes_too_small",
        )
    return {"start_layer": span[0], "end_layer": span[1], "edge": span[0] == 0}


async def loading(
    resources: Resources, db: AsyncSession, model: Model, known: set[str]
) -> list[Node]:
    """Nodes that have registered and do not serve yet: they count with the span they got, for a
    while, and for as long as their weights come."""
    limit = dt.timedelta(seconds=resources.settings.placement.loading_limit)
    is_recent = RegisteredNode.registered_at > func.now() - limit
    found = await db.execute(
        select(RegisteredNode, is_recent)
        .where(
            RegisteredNode.model_id == model.id,
            RegisteredNode.last_seen.is_(None),
            RegisteredNode.registered_at > func.now() - LONGEST_LOADING,
        )
        .order_by(RegisteredNode.registered_at.desc())
        .limit(MAX_LOADING)
    )
    rows = [(row, recent) for row, recent in found if row.node_id not in known]
    older = [row.node_id for row, recent in rows if not recent]
    moving = await loading_nodes.moving(resources.redis, older)
    return [
        node_of(row, resources.settings.discovery)
        for row, recent in rows
        if recent or row.node_id in moving
    ]


def _as_before(newcomer: Candidate, known: RegisteredNode | None, model: Model) -> Span | None:
    """The span that a node had, whose checkpoint is on its disk and beside which other spans were
    chosen. None if the node served another model, or does not hold the span any more."""
    if known is None or known.model_id != model.id or not known.placeable:
        return None
    span = (known.start_layer, known.end_layer)
    return span if span[1] <= model.layers and newcomer.holds(span) else None


def _beside(newcomer: Candidate, present: cluster.Cluster) -> Span | None:
    """The span of a node that raises the throughput nowhere: that of the slowest replicas that it
    holds, else as many of the last layers as it holds, which a later rebalance may change."""
    rates: dict[Span, float] = {}
    for node_id, span in present.spans.items():
        if newcomer.holds(span):
            rates[span] = rates.get(span, 0.0) + present.by_id[node_id].rate(span, present.shape)
    if rates:
        return min(rates, key=lambda span: (rates[span], span))
    layers = present.shape.layers
    return (max(1, layers - newcomer.capacity), layers) if newcomer.capacity else None
