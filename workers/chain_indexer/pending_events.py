"""Stores what a range of blocks shows, until it is confirmed."""

from collections.abc import Sequence

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.chain.errors import ChainMoved, ChainReorg
from market.escrow.event_reader import Block, EscrowEvent, EventRange
from market.escrow.tables import ChainEvent
from market.resources import Resources
from workers.chain_indexer import event_store, ledger_effects
from workers.chain_indexer.event_store import as_event, is_last_indexed

Key = tuple[str, int]
"""An event's transaction hash and log index."""


async def store_pending(
    resources: Resources, contract: str, last: Block, event_range: EventRange
) -> bool:
    """Bring the pending events to what a range shows: what has vanished is deleted, what is new is
    added, and nothing else is written. Whatever is left to do when this ends early, the next pass
    does.

    Args:
        last: The last indexed block when the range was read.

    Returns whether it is stored; not if another process has indexed meanwhile.

    Raises:
        ChainReorg: an event above ``last`` that was applied is not on the chain any more.
        ChainMoved: the endpoint is behind such an event.
    """
    async with resources.sessions() as db:
        stored = await _stored_above(db, contract, last)
    shown = {(event.transaction_hash, event.log_index): event for event in event_range.events}
    vanished = []
    for row in stored:
        event = as_event(row)
        known = shown.get((row.transaction_hash, row.log_index))
        if known is not None and known.block_hash == row.block_hash:
            del shown[row.transaction_hash, row.log_index]
        elif row.block_number > event_range.last:
            if row.status == "applied" and event_range.at_head:
                raise ChainMoved(f"The node is behind block {row.block_number}.")
            if row.status == "pending" and event_range.at_head:
                vanished.append(event)
        elif row.status == "applied":
            raise ChainReorg(f"Block {row.block_number} is not {row.block_hash} any more.")
        else:
            vanished.append(event)
    for write, events in ((_delete, vanished), (_insert, list(shown.values()))):
        for start in range(0, len(events), event_store.EVENTS_AT_ONCE):
            some = events[start : start + event_store.EVENTS_AT_ONCE]
            async with resources.sessions.begin() as db:
                if not await is_last_indexed(db, contract, last):
                    return False
                await write(db, contract, some)
                await ledger_effects.sync_caps(db, contract, some)
    return True


async def _stored_above(db: AsyncSession, contract: str, last: Block) -> Sequence[ChainEvent]:
    rows = await db.scalars(
        select(ChainEvent).where(
            ChainEvent.contract == contract,
            ChainEvent.status.in_(("pending", "applied")),
            ChainEvent.block_number > last.number,
        )
    )
    return rows.all()


async def _delete(db: AsyncSession, contract: str, events: Sequence[EscrowEvent]) -> None:
    keys = [(event.transaction_hash, event.log_index, event.block_hash) for event in events]
    key = tuple_(ChainEvent.transaction_hash, ChainEvent.log_index, ChainEvent.block_hash)
    await db.execute(delete(ChainEvent).where(ChainEvent.status == "pending", key.in_(keys)))


async def _insert(db: AsyncSession, contract: str, events: Sequence[EscrowEvent]) -> None:
    table = ChainEvent.__table__
    row = insert(ChainEvent)
    # An event that was reverted may be on the chain again, in its block or another one.
    renewed = {
        column.name: row.excluded[column.name] for column in table.columns if not column.primary_key
    }
    await db.execute(
        row.values(
            [
                {
                    "transaction_hash": event.transaction_hash,
                    "log_index": event.log_index,
                    "contract": contract,
                    "block_number": event.block_number,
                    "block_hash": event.block_hash,
                    "name": event.name,
                    "wallet_address": event.wallet,
                    "arguments": event.arguments,
                }
                for event in events
            ]
        ).on_conflict_do_update(
            index_elements=[ChainEvent.transaction_hash, ChainEvent.log_index],
            set_=renewed,
            where=ChainEvent.status == "reverted",
        )
    )
