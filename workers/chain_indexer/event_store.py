"""How far the chain is indexed, and the events as they are stored."""

import datetime as dt
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.chain.errors import ChainMoved
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader
from market.escrow.tables import ChainBlock, ChainCursor, ChainEvent
from market.resources import Resources

EVENTS_AT_ONCE = 100
"""Events that one database transaction stores, applies or reverses: a second or two, for which the
money of their wallets is locked. A run that is ended loses no more than that."""

REORG_WINDOW = 20_000
"""Blocks below the last indexed one whose hashes are kept: several ranges, and hours on BSC. A
deeper reorg is taken for another chain."""


async def last_indexed(resources: Resources, reader: EscrowEventReader) -> Block:
    """The last block whose events are in the ledger; at first, the one before the escrow's first.

    Raises:
        ChainMoved: the endpoint does not have that first block.
    """
    contract = reader.address.lower()
    before = max(resources.settings.payments.first_block - 1, 0)
    async with resources.sessions() as db:
        cursor = await db.get(ChainCursor, contract)
        number = before if cursor is None else cursor.next_block - 1
        stored = await db.get(ChainBlock, (contract, number))
    if stored is not None:
        return Block(stored.number, stored.hash)
    found = (await reader.hashes([number]))[number]
    if found is None:
        raise ChainMoved(f"The node does not have block {number}.")
    async with resources.sessions.begin() as db:
        await db.execute(
            insert(ChainCursor)
            .values(contract=contract, next_block=number + 1)
            .on_conflict_do_nothing()
        )
        await db.execute(
            insert(ChainBlock)
            .values(contract=contract, number=number, hash=found)
            .on_conflict_do_nothing()
        )
    return Block(number, found)


async def is_last_indexed(db: AsyncSession, contract: str, block: Block) -> bool:
    """Whether a block is still the last indexed one. Locks the cursor: until the transaction ends,
    no other process moves it."""
    next_block = await db.scalar(
        select(ChainCursor.next_block).where(ChainCursor.contract == contract).with_for_update()
    )
    if next_block != block.number + 1:
        return False
    stored = await db.get(ChainBlock, (contract, block.number))
    return stored is not None and stored.hash == block.hash


async def move_cursor(db: AsyncSession, contract: str, last: int) -> None:
    """Make a block the last indexed one, and forget the hashes below `REORG_WINDOW`."""
    await db.execute(
        update(ChainCursor).where(ChainCursor.contract == contract).values(next_block=last + 1)
    )
    await db.execute(
        delete(ChainBlock).where(
            ChainBlock.contract == contract, ChainBlock.number < last - REORG_WINDOW
        )
    )


async def set_indexed_until(db: AsyncSession, contract: str, instant: int | None = None) -> None:
    """Store until when all events are in the ledger: a Unix time, or now."""
    until = func.now() if instant is None else dt.datetime.fromtimestamp(instant, dt.UTC)
    await db.execute(
        update(ChainCursor).where(ChainCursor.contract == contract).values(indexed_until=until)
    )


def as_event(row: ChainEvent) -> EscrowEvent:
    return EscrowEvent(
        transaction_hash=row.transaction_hash,
        log_index=row.log_index,
        block_number=row.block_number,
        block_hash=row.block_hash,
        name=row.name,
        arguments=row.arguments,
    )


def log_fields(event: EscrowEvent) -> dict[str, Any]:
    """What the logs say of an event."""
    return {
        "name": event.name,
        "user_wallet": event.wallet,
        "transaction": event.transaction_hash,
        "block": event.block_number,
        "amount": event.arguments.get("amount"),
    }
