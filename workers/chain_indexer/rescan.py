"""Reads blocks again that were indexed before, and repairs the ledger where they differ.

An index that was made before completeness was shown, or by endpoints that lied together, may lack
an event. It cannot be posted by itself: what a withdrawal means depends on the requests before it.
So the index goes back to the block before the first difference, as after a reorg, and reads on from
there.
"""

from dataclasses import dataclass

import structlog
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.chain.errors import ChainMoved
from market.escrow import event_reader
from market.escrow.event_reader import Block, EscrowEventReader
from market.escrow.tables import ChainBlock, ChainCursor, ChainEvent
from market.resources import Resources
from workers.chain_indexer.event_store import last_indexed, move_cursor
from workers.chain_indexer.indexer import index_events
from workers.chain_indexer.reorg import reverse_newest

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rescan:
    """What a rescan has found."""

    first: int
    last: int
    """The blocks that were compared."""
    differs_at: int | None
    """The first block whose events are not those of the index; none if all are the same."""
    reversed: int = 0
    """Events from that block on that were taken back, to be posted again in their order."""
    applied: int = 0
    """Events that were posted after that."""


async def rescan(resources: Resources, reader: EscrowEventReader, first: int) -> Rescan:
    """Compare the chain with the index from block ``first`` to the last indexed one, and repair the
    index and the ledger where they differ. Safe to run while a worker indexes, and again after it
    was ended anywhere.

    Raises:
        ChainMoved: the endpoints do not say the same yet, or the index moved: run it again.
        ChainError: the endpoints refuse, or show another chain.
    """
    last = await last_indexed(resources, reader)
    first = min(max(first, resources.settings.payments.first_block, 1), last.number + 1)
    before = await _block(reader, first - 1)
    differs_at = await _first_difference(resources, reader, before, last.number)
    if differs_at is None:
        return Rescan(first, last.number, None)
    contract = reader.address.lower()
    target = await _block(reader, differs_at - 1)
    async with resources.long_sessions.begin() as db:
        reversed_events = await _go_back(db, contract, target)
    log.error("chain_rescan", back_to=target.number, events=reversed_events)
    applied = await index_events(resources, reader)
    return Rescan(first, last.number, differs_at, reversed_events, applied)


async def _block(reader: EscrowEventReader, number: int) -> Block:
    found = (await reader.hashes([number]))[number]
    if found is None:
        raise ChainMoved(f"The node does not have block {number}.")
    return Block(number, found)


async def _first_difference(
    resources: Resources, reader: EscrowEventReader, position: Block, last: int
) -> int | None:
    while position.number < last:
        until = min(last, position.number + event_reader.MAX_BLOCK_RANGE)
        found = await reader.read_confirmed(position, until)
        there = {
            (event.block_number, event.block_hash, event.transaction_hash, event.log_index)
            for event in found.events
        }
        async with resources.sessions() as db:
            rows = await db.execute(
                select(
                    ChainEvent.block_number,
                    ChainEvent.block_hash,
                    ChainEvent.transaction_hash,
                    ChainEvent.log_index,
                ).where(
                    ChainEvent.contract == reader.address.lower(),
                    ChainEvent.status == "applied",
                    ChainEvent.block_number > position.number,
                    ChainEvent.block_number <= found.last.number,
                )
            )
        indexed: set[tuple[int, str, str, int]] = {(row[0], row[1], row[2], row[3]) for row in rows}
        different = there ^ indexed
        if different:
            return min(number for number, _, _, _ in different)
        position = found.last
    return None


async def _go_back(db: AsyncSession, contract: str, target: Block) -> int:
    """Make ``target`` the last indexed block; returns how many events were reversed. In one
    transaction: a worker that indexes meanwhile sees all of it or nothing."""
    await db.execute(select(ChainCursor).where(ChainCursor.contract == contract).with_for_update())
    reverted = await reverse_newest(db, contract, target.number, limit=None)
    await db.execute(
        delete(ChainBlock).where(ChainBlock.contract == contract, ChainBlock.number > target.number)
    )
    await db.execute(
        insert(ChainBlock)
        .values(contract=contract, number=target.number, hash=target.hash)
        .on_conflict_do_nothing()
    )
    await move_cursor(db, contract, target.number)
    return len(reverted)
