"""Machines that a wallet has let in: used, listed."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from market.identity.errors import MachineRevoked
from market.identity.tables import Machine

MAX_LISTED = 1000


async def mark_used(db: AsyncSession, machine_id: str) -> str:
    """Note that a machine has called; returns the wallet that let it in.

    Raises:
        MachineRevoked: its wallet has taken the token back.
    """
    wallet: str | None = await db.scalar(
        update(Machine)
        .where(Machine.machine_id == machine_id, Machine.revoked_at.is_(None))
        .values(last_used_at=func.now())
        .returning(Machine.wallet_address)
    )
    if wallet is None:
        raise MachineRevoked("The wallet has taken this machine's token back. Log in again.")
    return wallet


async def machines_of(db: AsyncSession, wallet: str) -> Sequence[Machine]:
    """The machines that may register nodes for a wallet, the newest first."""
    rows = await db.scalars(
        select(Machine)
        .where(Machine.wallet_address == wallet, Machine.revoked_at.is_(None))
        .order_by(Machine.created_at.desc())
        .limit(MAX_LISTED)
    )
    return rows.all()
