"""Back to the common block."""

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.chain.errors import ChainError
from market.escrow.event_reader import Block, EscrowEvent, EscrowEventReader
from market.escrow.tables import ChainBlock, ChainEvent
from market.resources import Services
from workers.chain_indexer import ledger_effects
from workers.chain_indexer.event_store import as_event, is_last_indexed, log_fields, move_cursor

log = structlog.get_logger()


async def rewind(services: Services, source: EscrowEventReader, known: Block) -> None:
    """To the newest block that counted and is still there.

    Raises:
        ChainError: there is none: the node is on another chain.
    """
    contract = source.address.lower()
    common = await _common_block(services, source, known)
    async with services.sessions.begin() as db:
        if not await is_last_indexed(db, contract, known):
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
        "chain_reorganised", counted_to=known.number, back_to=common.number, events=len(reverted)
    )
    for event in reverted:
        metrics.chain_events_reverted.labels(event.name).inc()
        log.error("chain_event_reverted", **log_fields(event))


async def _common_block(services: Services, source: EscrowEventReader, known: Block) -> Block:
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


async def _reverse_events(db: AsyncSession, contract: str, above: int) -> list[EscrowEvent]:
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
        event = as_event(row)
        await ledger_effects.reverse_event(db, event, row.reference)
        row.status = "reverted"
        reverted.append(event)
    await db.flush()
    await ledger_effects.sync_caps(db, contract, reverted)
    return reverted
