"""Live nodes as routes read them: those of a model, or one."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from market.nodes.node import Node
from market.nodes.record_codec import FIELD_NAMES, from_record
from mesh import redis_keys


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A node whose last heartbeat is no longer ago than the TTL. ``cooling_down``: the node failed
    a generation a moment ago."""

    node: Node
    cooling_down: bool

    @property
    def available(self) -> bool:
        """Whether routes may use the node."""
        return self.node.is_healthy and not self.cooling_down


async def available_nodes(redis: Redis, model_id: str) -> list[Node]:
    """Healthy nodes of a model without those that are cooling down."""
    return [live.node for live in await live_nodes(redis, model_id) if live.available]


async def healthy_nodes(redis: Redis, model_id: str) -> list[Node]:
    """Healthy nodes of a model, including those that are cooling down."""
    return [live.node for live in await live_nodes(redis, model_id) if live.node.is_healthy]


async def live_node(redis: Redis, node_id: str) -> LiveNode | None:
    """One node; none if it is not alive."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(redis_keys.node(node_id), FIELD_NAMES)
        pipe.exists(redis_keys.cooldown(node_id))
        record, cooling_down = await pipe.execute()
    node = from_record(record)
    return None if node is None else LiveNode(node, bool(cooling_down))


async def live_nodes(redis: Redis, model_id: str) -> list[LiveNode]:
    """All live nodes of a model, in two round trips however many there are. Nodes that are gone, or
    serve another model now, are dropped from the model's set."""
    ids = sorted(m.decode() for m in await redis.smembers(redis_keys.model_nodes(model_id)))  # type: ignore[misc]
    if not ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in ids:
            pipe.hmget(redis_keys.node(node_id), FIELD_NAMES)
        for node_id in ids:
            pipe.exists(redis_keys.cooldown(node_id))
        answers = await pipe.execute()
    found, gone = [], []
    for node_id, record, cooling_down in zip(ids, answers, answers[len(ids) :], strict=False):
        node = from_record(record)
        if not any(record) or (node is not None and node.model_id != model_id):
            gone.append(node_id)
        elif node is not None:
            found.append(LiveNode(node, bool(cooling_down)))
    if gone:
        await _drop(redis, model_id, gone)
    return found


async def _drop(redis: Redis, model_id: str, node_ids: Sequence[str]) -> None:
    """Take nodes out of a model's set, but not one that has come back at this very moment."""
    members = redis_keys.model_nodes(model_id)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.srem(members, *node_ids)
        for node_id in node_ids:
            pipe.hget(redis_keys.node(node_id), "model_id")
        _, *models = await pipe.execute()
    back = [
        node_id
        for node_id, model in zip(node_ids, models, strict=True)
        if model == model_id.encode()
    ]
    if back:
        await redis.sadd(members, *back)  # type: ignore[misc]
