"""Follows the escrow's events into the ledger. May be killed between any two lines.

An event is applied to the ledger once its block is confirmed: the ledger says what the contract
said at the last block that counts. Everything above that block is read again in each pass, so a
reorganisation up there is nothing special: the new reading replaces the old one. One that is
deeper shows in the block's hash. Then we go back to a block that both branches have, reverse what
was applied above it, and read on from there.

What a reading changes (events, ledger, how far we are) is one database transaction.
"""

from typing import Any

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from web3.exceptions import Web3Exception

from market import metrics
from market.chain.errors import ChainError, ReadAgain, Reorganised
from market.escrow.event_reader import Block, Event, EventSource, Reading
from market.escrow.tables import ChainBlock, ChainCursor, ChainEvent
from market.resources import Services
from workers.chain_indexer import ledger_effects

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
    except Web3Exception as error:
        log.error("chain_unread", code="chain_error", reason=str(error))
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
        # Where a whole range is not final yet, the next pass reads it again.
        if reading.at_head or reading.confirmed == known:
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
    """To the newest block that counted and is still there.

    Raises:
        ChainError: there is none: the node is on another chain.
    """
    contract = source.address.lower()
    common = await _common_block(services, source, known)
    async with services.sessions.begin() as db:
        if not await _is_last_counted(db, contract, known):
            return
        await db.execute(
            delete(ChainBlock).where(
                ChainBlock.contract == contract, ChainBlock.number > common.number
            )
        )
        await _move_cursor(db, contract, common)
        reverted = await _take_back(db, contract, common.number)
    metrics.chain_reorganisations.inc()
    log.error(
        "chain_reorganised", counted_to=known.number, back_to=common.number, events=len(reverted)
    )
    for event in reverted:
        metrics.chain_events_reverted.labels(event.name).inc()
        log.error("chain_event_reverted", **_told(event))


async def _common_block(services: Services, source: EventSource, known: Block) -> Block:
    async with services.sessions() as db:
        counted = await db.scalars(
            select(ChainBlock)
            .where(ChainBlock.contract == source.address.lower(), ChainBlock.number < known.number)
            .order_by(ChainBlock.number)
        )
        blocks = [Block(block.number, block.hash) for block in counted]
    # Below a block that is still there everything is: so few of them have to be asked for.
    there, gone = 0, len(blocks)
    while there < gone:
        middle = (there + gone) // 2
        block = blocks[middle]
        if (await source.hashes([block.number]))[block.number] == block.hash:
            there = middle + 1
        else:
            gone = middle
    if not there:
        raise ChainError(f"None of our blocks is on the node's chain; the last was {known.number}.")
    return blocks[there - 1]


async def _take_back(db: AsyncSession, contract: str, above: int) -> list[Event]:
    """Reverse what was applied above a block, the last first."""
    rows = await db.scalars(
        select(ChainEvent)
        .where(
            ChainEvent.contract == contract,
            ChainEvent.status == "applied",
            ChainEvent.block_number > above,
        )
        .order_by(ChainEvent.block_number.desc(), ChainEvent.log_index.desc())
    )
    reverted = []
    for row in rows:
        event = _event(row)
        await ledger_effects.reverse(db, event, row.reference)
        row.status = "reverted"
        reverted.append(event)
    await db.flush()
    await ledger_effects.follow_caps(db, contract, reverted)
    return reverted


async def _store(services: Services, contract: str, known: Block, reading: Reading) -> int | None:
    """Make events and ledger those of the reading; none if another process was faster."""
    async with services.sessions.begin() as db:
        if not await _is_last_counted(db, contract, known):
            return None
        gone = await _replace_pending(db, contract, reading)
        applied = await _apply(db, contract, reading.confirmed.number)
        await ledger_effects.follow_caps(db, contract, [*gone, *reading.events])
        if reading.confirmed != known:
            # Those of events as well: then nothing is taken back that is older than a fork.
            counted = {event.block_number: event.block_hash for event in applied}
            counted[reading.confirmed.number] = reading.confirmed.hash
            await db.execute(
                insert(ChainBlock),
                [{"contract": contract, "number": n, "hash": h} for n, h in counted.items()],
            )
            await _move_cursor(db, contract, reading.confirmed)
    for event in applied:
        metrics.chain_events.labels(event.name).inc()
        log.info("chain_event_applied", **_told(event))
    return len(applied)


async def _replace_pending(db: AsyncSession, contract: str, reading: Reading) -> list[Event]:
    """Put the reading in the place of the last one; returns what the last one had."""
    old = delete(ChainEvent).where(
        ChainEvent.contract == contract,
        ChainEvent.status == "pending",
        ChainEvent.block_number >= reading.first,
    )
    if not reading.at_head:
        old = old.where(ChainEvent.block_number <= reading.last)
    gone = [_event(row) for row in await db.scalars(old.returning(ChainEvent))]
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


async def _apply(db: AsyncSession, contract: str, confirmed: int) -> list[Event]:
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
        event = _event(row)
        row.reference = await ledger_effects.apply(db, event)
        row.status = "applied"
        applied.append(event)
    await db.flush()
    return applied


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


def _event(row: ChainEvent) -> Event:
    return Event(
        transaction_hash=row.transaction_hash,
        log_index=row.log_index,
        block_number=row.block_number,
        block_hash=row.block_hash,
        name=row.name,
        arguments=row.arguments,
    )


def _told(event: Event) -> dict[str, Any]:
    """What the logs say of an event."""
    return {
        "name": event.name,
        "user_wallet": event.wallet,
        "transaction": event.transaction_hash,
        "block": event.block_number,
        "amount": event.arguments.get("amount"),
    }
