"""Events, cursor and ledger made those of a reading."""

from typing import Any

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.chain.errors import ChainMoved
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader, EventRange
from market.escrow.tables import ChainBlock, ChainCursor, ChainEvent
from market.resources import Services
from workers.chain_indexer import ledger_effects

log = structlog.get_logger()


REORG_WINDOW = 20_000
"""How far back a block's hash is remembered: several ranges, and hours on BSC. A deeper change is
another chain rather than a reorganisation."""


async def last_indexed(services: Services, source: EscrowEventReader) -> Block:
    """The last block that counts; where there is none, the one before the escrow's first."""
    contract = source.address.lower()
    before = max(services.settings.payments.first_block - 1, 0)
    async with services.sessions() as db:
        cursor = await db.get(ChainCursor, contract)
        number = before if cursor is None else cursor.next_block - 1
        stored = await db.get(ChainBlock, (contract, number))
    if stored is not None:
        return Block(stored.number, stored.hash)
    found = (await source.hashes([number]))[number]
    if found is None:
        raise ChainMoved(f"The node does not have block {number}.")
    async with services.sessions.begin() as db:
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
    services: Services, contract: str, known: Block, reading: EventRange
) -> int | None:
    """Make events and ledger those of the reading; none if another process was faster."""
    async with services.sessions.begin() as db:
        if not await is_last_indexed(db, contract, known):
            return None
        gone = await _replace_pending(db, contract, reading)
        applied = await _apply(db, contract, reading.confirmed.number)
        await ledger_effects.sync_caps(db, contract, [*gone, *reading.events])
        if reading.confirmed != known:
            # Those of events as well: then nothing is taken back that is older than a fork.
            counted = {event.block_number: event.block_hash for event in applied}
            counted[reading.confirmed.number] = reading.confirmed.hash
            await db.execute(
                insert(ChainBlock),
                [{"contract": contract, "number": n, "hash": h} for n, h in counted.items()],
            )
            await move_cursor(db, contract, reading.confirmed)
    for event in applied:
        metrics.chain_events.labels(event.name).inc()
        log.info("chain_event_applied", **log_fields(event))
    return len(applied)


async def _replace_pending(
    db: AsyncSession, contract: str, reading: EventRange
) -> list[EscrowEvent]:
    """Put the reading in the place of the last one; returns what the last one had."""
    old = delete(ChainEvent).where(
        ChainEvent.contract == contract,
        ChainEvent.status == "pending",
        ChainEvent.block_number >= reading.first,
    )
    if not reading.at_head:
        old = old.where(ChainEvent.block_number <= reading.last)
    gone = [as_event(row) for row in await db.scalars(old.returning(ChainEvent))]
    for event in reading.events:
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
        # One that was reverted may have come again, in this block or another.
        again = {
            column.name: row.excluded[column.name]
            for column in ChainEvent.__table__.columns
            if not column.primary_key
        }
        await db.execute(
            row.on_conflict_do_update(
                index_elements=[ChainEvent.transaction_hash, ChainEvent.log_index],
                set_=again,
                where=ChainEvent.status == "reverted",
            )
        )
    return gone


async def _apply(db: AsyncSession, contract: str, confirmed: int) -> list[EscrowEvent]:
    """Let the ledger follow what counts now, in the chain's order."""
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


async def is_last_indexed(db: AsyncSession, contract: str, known: Block) -> bool:
    """Whether nobody has gone on or back since; nobody can until this transaction ends."""
    next_block = await db.scalar(
        select(ChainCursor.next_block).where(ChainCursor.contract == contract).with_for_update()
    )
    if next_block != known.number + 1:
        return False
    block = await db.get(ChainBlock, (contract, known.number))
    return block is not None and block.hash == known.hash


async def move_cursor(db: AsyncSession, contract: str, counted: Block) -> None:
    await db.execute(
        update(ChainCursor)
        .where(ChainCursor.contract == contract)
        .values(next_block=counted.number + 1)
    )
    await db.execute(
        delete(ChainBlock).where(
            ChainBlock.contract == contract, ChainBlock.number < counted.number - REORG_WINDOW
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
