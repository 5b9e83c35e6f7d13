"""A machine's token taken back: its nodes leave the routes and lose their connections at once."""

from redis.asyncio import Redis
from sqlalchemy import func, update

from market.identity.errors import MachineNotFound
from market.identity.tables import Machine
from market.nodes import live_registry
from market.nodes.tables import RegisteredNode
from market.resources import Resources
from mesh import redis_keys

REVOKED = "revoked"
"""Stands in a node's relay connection instead of one, so that none is the node's."""


async def revoke_machine(resources: Resources, wallet: str, machine_id: str) -> None:
    """Take a machine's token back. The relay closes the connections of its nodes, and the next
    heartbeat of each is refused.

    Raises:
        MachineNotFound: the wallet has no such machine, or has taken its token back already.
    """
    async with resources.sessions.begin() as db:
        revoked = await db.scalar(
            update(Machine)
            .where(
                Machine.machine_id == machine_id,
                Machine.wallet_address == wallet,
                Machine.revoked_at.is_(None),
            )
            .values(revoked_at=func.now())
            .returning(Machine.machine_id)
        )
        if revoked is None:
            raise MachineNotFound("Your wallet has no machine of this id.")
        nodes = (
            await db.execute(
                update(RegisteredNode)
                .where(RegisteredNode.machine_id == machine_id)
                .values(is_active=False)
                .returning(
                    RegisteredNode.node_id, RegisteredNode.model_id, RegisteredNode.registration
                )
            )
        ).all()
    for node_id, model_id, registration in nodes:
        await live_registry.evict(resources.redis, node_id, model_id)
        await _disconnect(
            resources.redis, node_id, registration, ttl=resources.settings.auth.node_token_ttl
        )


async def _disconnect(redis: Redis, node_id: str, registration: int, *, ttl: int) -> None:
    """Let no connection of the node's be its own, open or to come, until it registers again.

    Args:
        ttl: Seconds for which the node's token would have been good.
    """
    key = redis_keys.relay_connection(node_id)
    async with redis.pipeline() as pipe:
        pipe.hset(key, mapping={"connection": REVOKED, "registration": registration + 1})
        pipe.expire(key, ttl)
        pipe.delete(redis_keys.keepalive(node_id))
        await pipe.execute()
