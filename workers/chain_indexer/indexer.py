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
from web3.exceptions import Web3Exception

from market.chain.errors import ChainError, ChainMoved, Reorganised
from market.escrow.event_reader import EscrowEventReader
from market.resources import Services
from workers.chain_indexer.event_store import last_indexed, store_range
from workers.chain_indexer.reorg import rewind

log = structlog.get_logger()


async def follow_chain(ctx: dict[str, Any]) -> None:
    """arq cron: read on from where the last run stopped."""
    services: Services = ctx["services"]
    if not services.settings.payments.escrow_contract:
        return
    source = EscrowEventReader.of(services.settings.payments)
    try:
        await index_events(services, source)
    except ChainMoved as error:
        log.info("chain_moved", reason=error.detail)
    except ChainError as error:
        log.error("chain_unread", code=error.code, reason=error.detail)
    except Web3Exception as error:
        log.error("chain_unread", code="chain_error", reason=str(error))
    finally:
        await source.close()


async def index_events(services: Services, source: EscrowEventReader) -> int:
    """Follow the chain to its newest block; returns how many events the ledger has followed.

    Raises:
        ChainMoved: the chain moved meanwhile. What was stored before that is right.
        ChainError: the node refuses, or shows another chain.
    """
    applied = 0
    while True:
        known = await last_indexed(services, source)
        try:
            reading = await source.read_after(known)
        except Reorganised:
            await rewind(services, source, known)
            continue
        if reading is None:
            return applied
        stored = await store_range(services, source.address.lower(), known, reading)
        if stored is None:
            return applied
        applied += stored
        # Where a whole range is not final yet, the next pass reads it again.
        if reading.at_head or reading.confirmed == known:
            return applied
