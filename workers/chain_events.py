"""Follows the escrow's events into the ledger. May be killed between any two lines.

Everything above the last block that counts is read again in each pass, so up to there a
reorganisation is nothing special: the new reading replaces the old one. One that is deeper shows
in the hash of that last block. Then we go back to a block that both branches have and read from
there, and what the new branch does not have is reversed.

What a reading changes (events, ledger, how far we are) is one database transaction.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from aiohttp import ClientError
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from mesh import metrics
from mesh.chain_logs import Block, Event, EventSource, ReadAgain, Reading, Reorganised
from mesh.db import ChainBlock, ChainCursor, ChainEvent
from mesh.errors import ChainError
from workers import chain_effects
from workers.chain_merge import Record, merge
from workers.services import Services

log = structlog.get_logger()

KEPT_BLOCKS = 20_000
"""How far back a block's hash is remembered: several ranges, and hours on BSC. A deeper change is
another chain rather than a reorganisation."""


async def follow_chain(ctx: dict[str, Any]) -> None:
    """arq cron: read on from where the last run stopped."""
    services: Services = ctx["services"]
    if not services.settings.payments.escrow_contract:
        return
    source = EventSource.of(services.settings.payments)
    try:
        await index(services, source)
    except ReadAgain as error:
        log.info("chain_moved", reason=error.detail)
    except ChainError as error:
        log.error("chain_unread", code=error.code, reason=error.detail)
    except (OSError, ClientError) as error:  # the RPC endpoint does not answer
        # Not its text: the URL in it may hold a key.
        log.error("chain_unread", code="unreachable", reason=type(error).__name__)
    finally:
        await source.close()


async def index(services: Services, source: EventSource) -> int:
    """Follow the chain to its newest block; returns how many events the ledger has followed.

    Raises:
        ReadAgain: the chain moved meanwhile. What was stored before that is right.
        ChainError: the node refuses, or shows another chain.
    """
    applied = 0
    while True:
        known = await _last_counted(services, source)
        try:
            reading = await source.read_after(known)
        except Reorganised:
            await _go_back(services, source, known)
            continue
        if reading is None:
            return applied
        stored = await _store(services, source.address.lower(), known, reading)
        if stored is None:
            return applied
        applied += stored
        if reading.at_head:
            return applied


async def _last_counted(services: Services, source: EventSource) -> Block:
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
        raise ReadAgain(f"The node does not have block {number}.")
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


async def _go_back(services: Services, source: EventSource, known: Block) -> None:
    """To the newest block that was counted and is still there. The next reading compares events.

    Raises:
        ChainError: none is: the node is on another chain.
    """
    contract = source.address.lower()
    async with services.sessions() as db:
        counted = await db.scalars(
            select(ChainBlock)
            .where(ChainBlock.contract == contract, ChainBlock.number < known.number)
            .order_by(ChainBlock.number.desc())
        )
        blocks = [Block(block.number, block.hash) for block in counted]
    for common in blocks:
        if (await source.hashes([common.number]))[common.number] == common.hash:
            break
    else:
        raise ChainError(f"No block of ours is on this chain; the last was {known}.")
    async with services.sessions.begin() as db:
        if not await _is_last_counted(db, contract, known):
            return
        await db.execute(
            delete(ChainBlock).where(
                ChainBlock.contract == contract, ChainBlock.number > common.number
            )
        )
        await _move_cursor(db, contract, common)
    metrics.chain_reorganisations.inc()
    log.error("chain_reorganised", counted_to=known.number, back_to=common.number)


async def _store(services: Services, contract: str, known: Block, reading: Reading) -> int | None:
    """Make events and ledger those of the reading; none if another process was faster."""
    async with services.sessions.begin() as db:
        if not await _is_last_counted(db, contract, known):
            return None
        changes = merge(await _records(db, contract, reading), reading.events)
        await _delete(db, [record.event for record in changes.gone])
        await _delete(db, [record.event for record, _ in changes.moved])
        for record in sorted(changes.gone, key=lambda gone: gone.event.place, reverse=True):
            await _take_back(db, contract, record)
        await _insert(db, contract, [Record(event) for event in changes.new])
        await _insert(
            db,
            contract,
            [Record(event, record.status, record.reference) for record, event in changes.moved],
        )
        applied = await _apply(db, contract, reading.confirmed.number)
        touched = [record.event for record in changes.gone] + changes.new + applied
        await chain_effects.follow_caps(db, contract, touched)
        if reading.confirmed != known:
            await db.execute(
                insert(ChainBlock).values(
                    contract=contract,
                    number=reading.confirmed.number,
                    hash=reading.confirmed.hash,
                )
            )
            await _move_cursor(db, contract, reading.confirmed)
    for event in applied:
        metrics.chain_events.labels(event.name).inc()
        log.info(
            "chain_event_applied",
            name=event.name,
            user_wallet=event.wallet,
            transaction=event.transaction_hash,
            block=event.block_number,
        )
    return len(applied)


async def _records(db: AsyncSession, contract: str, reading: Reading) -> list[Record]:
    """What is stored of the blocks that were read, and of those that are no more."""
    statement = select(ChainEvent).where(
        ChainEvent.contract == contract,
        ChainEvent.block_number >= reading.first,
        ChainEvent.status != "reverted",
    )
    if not reading.at_head:
        statement = statement.where(ChainEvent.block_number <= reading.last)
    return [Record.of(row) for row in await db.scalars(statement)]


async def _apply(db: AsyncSession, contract: str, confirmed: int) -> list[Event]:
    """Let the ledger follow what is deep enough, in the chain's order."""
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
    events = [Record.of(row).event for row in rows]
    for event in events:
        reference = await chain_effects.apply(db, event)
        await db.execute(
            update(ChainEvent)
            .where(
                ChainEvent.transaction_hash == event.transaction_hash,
                ChainEvent.log_index == event.log_index,
            )
            .values(status="applied", reference=reference)
        )
    return events


async def _take_back(db: AsyncSession, contract: str, record: Record) -> None:
    """An event that is not on the chain any more."""
    if record.status == "pending":
        return
    await chain_effects.reverse(db, record.event, record.reference)
    await _insert(db, contract, [Record(record.event, "reverted", record.reference)])
    metrics.chain_events_reverted.labels(record.event.name).inc()
    log.error(
        "chain_event_reverted",
        name=record.event.name,
        user_wallet=record.event.wallet,
        transaction=record.event.transaction_hash,
        block=record.event.block_number,
    )


async def _insert(db: AsyncSession, contract: str, records: Sequence[Record]) -> None:
    if not records:
        return
    rows = insert(ChainEvent).values([record.row(contract) for record in records])
    # Only one that was reverted can be there: it has come again.
    await db.execute(
        rows.on_conflict_do_update(
            index_elements=[ChainEvent.transaction_hash, ChainEvent.log_index],
            set_={
                column.name: rows.excluded[column.name]
                for column in ChainEvent.__table__.columns
                if not column.primary_key
            },
            where=ChainEvent.status == "reverted",
        )
    )


async def _delete(db: AsyncSession, events: Sequence[Event]) -> None:
    for event in events:
        await db.execute(
            delete(ChainEvent).where(
                ChainEvent.transaction_hash == event.transaction_hash,
                ChainEvent.log_index == event.log_index,
            )
        )


async def _is_last_counted(db: AsyncSession, contract: str, known: Block) -> bool:
    """Whether nobody has gone on or back since; nobody can until this transaction ends."""
    next_block = await db.scalar(
        select(ChainCursor.next_block).where(ChainCursor.contract == contract).with_for_update()
    )
    if next_block != known.number + 1:
        return False
    block = await db.get(ChainBlock, (contract, known.number))
    return block is not None and block.hash == known.hash


async def _move_cursor(db: AsyncSession, contract: str, counted: Block) -> None:
    await db.execute(
        update(ChainCursor)
        .where(ChainCursor.contract == contract)
        .values(next_block=counted.number + 1)
    )
    await db.execute(
        delete(ChainBlock).where(
            ChainBlock.contract == contract, ChainBlock.number < counted.number - KEPT_BLOCKS
        )
    )
