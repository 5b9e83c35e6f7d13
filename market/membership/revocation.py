"""A machine's token taken back: its nodes leave the routes at once."""

from sqlalchemy import func, update

from market.identity.errors import MachineNotFound
from market.identity.tables import Machine
from market.nodes import live_registry
from market.nodes.tables import RegisteredNode
from market.resources import Resources


async def revoke_machine(resources: Resources, wallet: str, machine_id: str) -> None:
    """Take a machine's token back. The next heartbeat of each of its nodes is refused.

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
                .where(RegisteredNode.machine_id == machine_id, RegisteredNode.is_active)
                .values(is_active=False)
                .returning(RegisteredNode.node_id, RegisteredNode.model_id)
            )
        ).all()
    for node_id, model_id in nodes:
        await live_registry.evict(resources.redis, node_id, model_id)
