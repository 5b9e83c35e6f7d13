"""Goes back to a block that both branches have, after a deep reorganisation."""

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.chain.errors import ChainError
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader
from market.escrow.tables import ChainBlock, ChainEvent
from market.resources import Resources
from workers.chain_indexer import ledger_effects
from workers.chain_indexer.event_store import as_event, is_last_indexed, log_fields, move_cursor

log = structlog.get_logger()


async def rewind(resources: Resources, reader: EscrowEventReader, last: Block) -> None:
    """Make the newest stored block that is still on the chain the last indexed one, and reverse
    what was applied above it.

    Args:
        last: The last indexed block, which is not on the chain any more.

    Raises:
        ChainError: no stored block is on the chain: the endpoint is on another one.
    """
    contract = reader.address.lower()
    common = await _common_block(resources, reader, last)
    async with resources.sessions.begin() as db:
        if not await is_last_indexed(db, contract, last):
            return
        await db.execute(
            delete(ChainBlock).where(
                ChainBlock.contract == contract, ChainBlock.number > common.number
            )
        )
        await move_cursor(db, contract, common)
        reverted = await _reverse_events(db, contract, common.number)
    metrics.chain_reorganisations.inc()
    log.error(
        "chain_reorganised", counted_to=last.number, back_to=common.number, events=len(reverted)
    )
    for event in reverted:
        metrics.chain_events_reverted.labels(event.name).inc()
        log.error("chain_event_reverted", **log_fields(event))


async def _common_block(resources: Resources, reader: EscrowEventReader, last: Block) -> Block:
    async with resources.sessions() as db:
        stored = await db.scalars(
            select(ChainBlock)
            .where(ChainBlock.contract == reader.address.lower(), ChainBlock.number < last.number)
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


async def _reverse_events(db: AsyncSession, contract: str, above: int) -> list[EscrowEvent]:
    """Reverse the events that were applied above a block, the newest first."""
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
        event = as_event(row)
        await ledger_effects.reverse_event(db, event, row.reference)
        row.status = "reverted"
        reverted.append(event)
    await db.flush()
    await ledger_effects.sync_caps(db, contract, reverted)
    return reverted
