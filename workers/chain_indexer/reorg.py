"""Goes back to a block that both branches have, after a deep reorg."""

import structlog
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.chain.errors import ChainError
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader
from market.escrow.tables import ChainBlock, ChainEvent
from market.resources import Resources
from workers.chain_indexer import event_store, ledger_effects
from workers.chain_indexer.event_store import as_event, is_last_indexed, log_fields, move_cursor

log = structlog.get_logger()


async def rewind(resources: Resources, reader: EscrowEventReader, last: Block) -> None:
    """Go back towards the newest stored block that is still on the chain, and reverse what was
    applied above it: at most `EVENTS_AT_ONCE` events, the newest first. The cursor goes back to the
    last block of which all events are still applied; so the next pass goes on with the rest.

    Args:
        last: The last indexed block. It, or an event after it, is not on the chain any more.

    Raises:
        ChainError: no stored block is on the chain: the endpoint is on another one.
    """
    contract = reader.address.lower()
    common = await _common_block(resources, reader, last)
    async with resources.sessions.begin() as db:
        if not await is_last_indexed(db, contract, last):
            return
        reverted = await reverse_newest(
            db, contract, common.number, limit=event_store.EVENTS_AT_ONCE
        )
        back_to = await _last_whole_block(db, contract, common.number)
        await db.execute(
            delete(ChainBlock).where(ChainBlock.contract == contract, ChainBlock.number > back_to)
        )
        await move_cursor(db, contract, back_to)
    if back_to == common.number:
        metrics.chain_reorgs.inc()
    log.error("chain_reorg", counted_to=last.number, back_to=back_to, events=len(reverted))
    for event in reverted:
        metrics.chain_events_reverted.labels(event.name).inc()
        log.error("chain_event_reverted", **log_fields(event))


async def _common_block(resources: Resources, reader: EscrowEventReader, last: Block) -> Block:
    async with resources.sessions() as db:
        stored = await db.scalars(
            select(ChainBlock)
            .where(ChainBlock.contract == reader.address.lower(), ChainBlock.number <= last.number)
            .order_by(ChainBlock.number)
        )
        blocks = [Block(block.number, block.hash) for block in stored]
    # Below a block that is still on the chain all are: so a binary search finds the newest.
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high) // 2
        block = blocks[middle]
        if (await reader.hashes([block.number]))[block.number] == block.hash:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise ChainError(f"None of our blocks is on the node's chain; the last was {last.number}.")
    return blocks[low - 1]


async def reverse_newest(
    db: AsyncSession, contract: str, above: int, *, limit: int | None
) -> list[EscrowEvent]:
    """Reverse the newest of the events that were applied above a block; all without a limit."""
    rows = await db.scalars(
        select(ChainEvent)
        .where(*_applied(contract, above))
        .order_by(ChainEvent.block_number.desc(), ChainEvent.log_index.desc())
        .limit(limit)
    )
    reverted = []
    for row in rows:
        event = as_event(row)
        await ledger_effects.reverse_event(db, event, row.reference)
        row.status = "reverted"
        reverted.append(event)
    await db.flush()
    await ledger_effects.sync_caps(db, contract, reverted)
    return reverted


async def _last_whole_block(db: AsyncSession, contract: str, common: int) -> int:
    """``common``, or else the last stored block before the one whose events were the next to be
    reversed."""
    newest = await db.scalar(
        select(func.max(ChainEvent.block_number)).where(*_applied(contract, common))
    )
    if newest is None:
        return common
    whole = await db.scalar(
        select(func.max(ChainBlock.number)).where(
            ChainBlock.contract == contract, ChainBlock.number < newest
        )
    )
    return common if whole is None else whole


def _applied(contract: str, above: int) -> tuple[ColumnElement[bool], ...]:
    return (
        ChainEvent.contract == contract,
        ChainEvent.status == "applied",
        ChainEvent.block_number > above,
    )
