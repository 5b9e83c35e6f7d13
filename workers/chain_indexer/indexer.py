"""Follows the escrow's events into the ledger. May be killed between any two lines.

An event is posted to the ledger once its block is confirmed: the ledger says what the contract said
at the last indexed block, which is confirmed. All blocks above that one are read again in each
pass, so a reorganisation among them needs no care: the new events replace the old ones. A deeper
one shows in the hash of the last indexed block. Then the index goes back to a block that both
branches have, reverses what was posted above it, and reads on from there.

What one range of blocks changes (events, ledger, cursor) is one database transaction.
"""

from typing import Any

import structlog
from web3.exceptions import Web3Exception

from market.chain.errors import ChainError, ChainMoved, Reorganised
from market.escrow.event_reader import EscrowEventReader
from market.resources import Resources
from workers.chain_indexer.event_store import last_indexed, store_range
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
        log.info("chain_moved", reason=error.detail)
    except ChainError as error:
        log.error("chain_unread", code=error.code, reason=error.detail)
    except Web3Exception as error:
        log.error("chain_unread", code="chain_error", reason=str(error))


async def index_events(resources: Resources, reader: EscrowEventReader) -> int:
    """Read to the chain's newest block; returns how many events were applied to the ledger.

    Raises:
        ChainMoved: the chain moved meanwhile. What was stored before that is right.
        ChainError: the endpoint refuses, or shows another chain.
    """
    applied = 0
    while True:
        last = await last_indexed(resources, reader)
        try:
            event_range = await reader.read_after(last)
        except Reorganised:
            await rewind(resources, reader, last)
            continue
        if event_range is None:
            return applied
        stored = await store_range(resources, reader.address.lower(), last, event_range)
        if stored is None:
            return applied
        applied += stored
        # Where none of a range is confirmed yet, the next pass reads the range again.
        if event_range.at_head or event_range.confirmed == last:
            return applied
