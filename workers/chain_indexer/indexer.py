"""Follows the escrow's events into the ledger. May be killed between any two lines.

An event is posted to the ledger once its block is confirmed: the ledger says what the contract said
at the last indexed block, which is confirmed. All blocks above that one are read again in each
pass, so a reorg among them needs no care: the new events replace the old ones. A deeper
one shows in the hash of the last indexed block. Then the index goes back to a block that both
branches have, reverses what was posted above it, and reads on from there.

Strangers make as many events as they pay gas for. So a transaction of the database has a few at
most, and what it has changed (events, ledger, cursor) fits together: see
`market.escrow.tables.ChainCursor`.
"""

import time
from typing import Any

import structlog
from web3.exceptions import Web3Exception

from market import metrics
from market.chain.errors import ChainError, ChainMoved, ChainReorg
from market.escrow.event_reader import EscrowEventReader, EventRange
from market.jobs.admission.chain_index import index_age
from market.resources import Resources
from workers.chain_indexer.confirmed_events import apply_confirmed
from workers.chain_indexer.event_store import last_indexed, set_indexed_until
from workers.chain_indexer.pending_events import store_pending
from workers.chain_indexer.reorg import rewind

log = structlog.get_logger()


async def follow_chain(ctx: dict[str, Any]) -> None:
    """arq cron: read on from where the last run stopped."""
    resources: Resources = ctx["resources"]
    if not resources.settings.payments.escrow_contract:
        return
    try:
        async with EscrowEventReader.from_settings(resources.settings.payments) as reader:
            await index_events(resources, reader)
    except ChainMoved as error:
        log.info("chain_changed_during_read", reason=error.detail)
    except ChainError as error:
        log.error("indexing_failed", code=error.code, reason=error.detail)
    except Web3Exception as error:
        log.error("indexing_failed", code="chain_error", reason=str(error))
    finally:
        await report_age(resources)


async def report_age(resources: Resources) -> None:
    """Set the metric of the index's age, which grows until the next run ends; log an error if it is
    so old that nothing is held for new jobs."""
    payments = resources.settings.payments
    async with resources.sessions() as db:
        age = await index_age(db, payments)
    if age is None:
        return
    read_at = time.time() - age
    metrics.chain_index_age.set_function(lambda: time.time() - read_at)
    if payments.index_max_age and age > payments.index_max_age:
        log.error("chain_index_behind", seconds=round(age))


async def index_events(resources: Resources, reader: EscrowEventReader) -> int:
    """Read to the chain's newest block; returns how many events were applied to the ledger.

    Raises:
        ChainMoved: the chain moved meanwhile. What was stored before that is right.
        ChainError: the endpoint refuses, or shows another chain.
    """
    contract = reader.address.lower()
    applied = 0
    while True:
        last = await last_indexed(resources, reader)
        try:
            event_range = await reader.read_after(last)
            if event_range is None:
                await _note_progress(resources, contract, None)
                return applied
            if not await store_pending(resources, contract, last, event_range):
                return applied
        except ChainReorg:
            await rewind(resources, reader, last)
            continue
        count, complete = await apply_confirmed(resources, contract, last, event_range)
        applied += count
        if not complete:
            return applied
        await _note_progress(resources, contract, event_range)
        # Where none of a range is confirmed yet, the next pass reads the range again.
        if event_range.at_head or event_range.confirmed == last:
            return applied


async def _note_progress(
    resources: Resources, contract: str, event_range: EventRange | None
) -> None:
    """Store until when all events are in the ledger, after a range, or where there is no newer
    block. On a chain that makes blocks for transactions alone, that is now."""
    aging = bool(resources.settings.payments.rpc_max_age)
    if event_range is None and aging:
        return
    instant = event_range.confirmed_at if event_range is not None and aging else None
    async with resources.sessions.begin() as db:
        await set_indexed_until(db, contract, instant)
