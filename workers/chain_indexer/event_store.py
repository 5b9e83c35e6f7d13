"""Brings stored events, cursor and ledger to the state of a range that was read."""

from typing import Any

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.chain.errors import ChainMoved
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader, EventRange
from market.escrow.tables import ChainBlock, ChainCursor, ChainEvent
from market.resources import Resources
from workers.chain_indexer import ledger_effects

log = structlog.get_logger()


REORG_WINDOW = 20_000
"""Blocks below the last indexed one whose hashes are kept: several ranges, and hours on BSC. A
deeper reorganisation is taken for another chain."""


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


async def store_range(
    resources: Resources, contract: str, last: Block, event_range: EventRange
) -> int | None:
    """Store the events of a range, and apply to the ledger those that are confirmed.

    Args:
        last: The last indexed block when the range was read.

    Returns how many events were applied; none if another process has indexed meanwhile.
    """
    async with resources.sessions.begin() as db:
        if not await is_last_indexed(db, contract, last):
            return None
        replaced = await _replace_pending(db, contract, event_range)
        applied = await _apply_confirmed(db, contract, event_range.confirmed.number)
        await ledger_effects.sync_caps(db, contract, [*replaced, *event_range.events])
        if event_range.confirmed != last:
            # The blocks of events as well: so a rewind reverses nothing that is below the fork.
            hashes = {event.block_number: event.block_hash for event in applied}
            hashes[event_range.confirmed.number] = event_range.confirmed.hash
            await db.execute(
                insert(ChainBlock),
                [{"contract": contract, "number": n, "hash": h} for n, h in hashes.items()],
            )
            await move_cursor(db, contract, event_range.confirmed)
    for event in applied:
        metrics.chain_events.labels(event.name).inc()
        log.info("chain_event_applied", **log_fields(event))
    return len(applied)


async def _replace_pending(
    db: AsyncSession, contract: str, event_range: EventRange
) -> list[EscrowEvent]:
    """Store a range's events in the place of the pending ones; returns those."""
    old = delete(ChainEvent).where(
        ChainEvent.contract == contract,
        ChainEvent.status == "pending",
        ChainEvent.block_number >= event_range.first,
    )
    if not event_range.at_head:
        old = old.where(ChainEvent.block_number <= event_range.last)
    replaced = [as_event(row) for row in await db.scalars(old.returning(ChainEvent))]
    for event in event_range.events:
        row = insert(ChainEvent).values(
            transaction_hash=event.transaction_hash,
            log_index=event.log_index,
            contract=contract,
            block_number=event.block_number,
            block_hash=event.block_hash,
            name=event.name,
            wallet_address=event.wallet,
            arguments=event.arguments,
        )
        # An event that was reverted may be on the chain again, in its block or another one.
        renewed = {
            column.name: row.excluded[column.name]
            for column in ChainEvent.__table__.columns
            if not column.primary_key
        }
        await db.execute(
            row.on_conflict_do_update(
                index_elements=[ChainEvent.transaction_hash, ChainEvent.log_index],
                set_=renewed,
                where=ChainEvent.status == "reverted",
            )
        )
    return replaced


async def _apply_confirmed(db: AsyncSession, contract: str, confirmed: int) -> list[EscrowEvent]:
    """Apply to the ledger the pending events up to block ``confirmed``, in the chain's order."""
    rows = await db.scalars(
        select(ChainEvent)
        .where(
            ChainEvent.contract == contract,
            ChainEvent.status == "pending",
            ChainEvent.block_number <= confirmed,
        )
        .order_by(ChainEvent.block_number, ChainEvent.log_index)
        .execution_options(populate_existing=True)
    )
    applied = []
    for row in rows:
        event = as_event(row)
        row.reference = await ledger_effects.apply_event(db, event)
        row.status = "applied"
        applied.append(event)
    await db.flush()
    return applied


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


async def move_cursor(db: AsyncSession, contract: str, last: Block) -> None:
    """Make a block the last indexed one, and forget the hashes below `REORG_WINDOW`."""
    await db.execute(
        update(ChainCursor)
        .where(ChainCursor.contract == contract)
        .values(next_block=last.number + 1)
    )
    await db.execute(
        delete(ChainBlock).where(
            ChainBlock.contract == contract, ChainBlock.number < last.number - REORG_WINDOW
        )
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
