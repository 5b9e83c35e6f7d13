"""Applies confirmed events to the ledger, some at a time, and moves the cursor behind them."""

from collections.abc import Sequence

import structlog
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.escrow.event_reader import Block, EscrowEvent, EventRange
from market.escrow.tables import ChainBlock, ChainEvent
from market.resources import Resources
from workers.chain_indexer import event_store, ledger_effects
from workers.chain_indexer.event_store import (
    as_event,
    is_last_indexed,
    log_fields,
    move_cursor,
)

log = structlog.get_logger()


async def apply_confirmed(
    resources: Resources, contract: str, last: Block, event_range: EventRange
) -> tuple[int, bool]:
    """Apply the pending events of a range that are confirmed, in the chain's order.

    Each transaction applies at most `EVENTS_AT_ONCE`, and moves the cursor to the last block of
    which all are applied. What is applied of the block after that is known by its status: so a run
    that is ended at any time has made progress, and the next one goes on from there.

    Args:
        last: The last indexed block when the range was read.

    Returns how many events were applied, and whether these are all; not if another process has
    indexed meanwhile.
    """
    confirmed = event_range.confirmed
    hashes = {event.block_number: event.block_hash for event in event_range.events}
    count = 0
    while True:
        async with resources.sessions.begin() as db:
            if not await is_last_indexed(db, contract, last):
                return count, False
            found = await _pending(db, contract, last, confirmed)
            if any(hashes.get(row.block_number) != row.block_hash for row in found):
                return count, False
            rows = found[: event_store.EVENTS_AT_ONCE]
            rest = found[event_store.EVENTS_AT_ONCE :]
            applied = await _apply(db, rows)
            await ledger_effects.sync_caps(db, contract, applied)
            # The blocks of events as well: so a rewind reverses nothing that is below the fork.
            whole = {
                row.block_number: row.block_hash
                for row in rows
                if not rest or row.block_number < rest[0].block_number
            }
            if not rest and confirmed != last:
                whole[confirmed.number] = confirmed.hash
            if whole:
                last = await _index_blocks(db, contract, whole)
        for event in applied:
            metrics.chain_events.labels(event.name).inc()
            log.info("chain_event_applied", **log_fields(event))
        count += len(applied)
        if not rest:
            return count, True


async def _pending(
    db: AsyncSession, contract: str, last: Block, confirmed: Block
) -> Sequence[ChainEvent]:
    """The next events to apply, and one more, which tells whether these end their block."""
    rows = await db.scalars(
        select(ChainEvent)
        .where(
            ChainEvent.contract == contract,
            ChainEvent.status == "pending",
            ChainEvent.block_number > last.number,
            ChainEvent.block_number <= confirmed.number,
        )
        .order_by(ChainEvent.block_number, ChainEvent.log_index)
        .limit(event_store.EVENTS_AT_ONCE + 1)
    )
    return rows.all()


async def _apply(db: AsyncSession, rows: Sequence[ChainEvent]) -> list[EscrowEvent]:
    events = [as_event(row) for row in rows]
    superseded = ledger_effects.superseded_requests(events)
    for number, (row, event) in enumerate(zip(rows, events, strict=True)):
        if number not in superseded:
            row.reference = await ledger_effects.apply_event(db, event)
        row.status = "applied"
    await db.flush()
    return events


async def _index_blocks(db: AsyncSession, contract: str, hashes: dict[int, str]) -> Block:
    """Store blocks of which all events are applied; the newest becomes the last indexed one."""
    await db.execute(
        insert(ChainBlock),
        [{"contract": contract, "number": n, "hash": h} for n, h in hashes.items()],
    )
    last = max(hashes)
    await move_cursor(db, contract, last)
    return Block(last, hashes[last])
