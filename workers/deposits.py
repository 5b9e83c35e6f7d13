"""Watches the escrow for deposits: each counts once, when it is deep enough."""

from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from mesh import ledger
from mesh.chain import LOG_RANGE, DepositEvent, Escrow
from mesh.db import ChainCursor, Deposit
from mesh.money import from_units, plain
from workers.services import Services

log = structlog.get_logger()


async def watch_deposits(ctx: dict[str, Any]) -> None:
    """arq cron: read on from where the last run stopped."""
    services: Services = ctx["services"]
    if not services.settings.payments.escrow_contract:
        return
    escrow = Escrow.of(services.settings.payments)
    try:
        await credit_deposits(services, escrow)
    except OSError as error:  # the RPC endpoint does not answer; the next run reads on
        log.error("deposits_unread", error=type(error).__name__, reason=str(error))
    finally:
        await escrow.close()


async def credit_deposits(services: Services, escrow: Escrow) -> int:
    """Credit every confirmed deposit that was not; returns how many.

    Events, credits and cursor are one transaction for each range of blocks: killed anywhere, the
    next run reads the range again, and the key (transaction hash, log index) keeps each deposit
    single.
    """
    payments = services.settings.payments
    newest = await escrow.head() - payments.confirmations
    credited = 0
    while True:
        async with services.sessions.begin() as db:
            cursor = await _locked_cursor(db, escrow.address.lower(), payments.first_block)
            if cursor.next_block > newest:
                return credited
            last = min(newest, cursor.next_block + LOG_RANGE - 1)
            for event in await escrow.deposits(cursor.next_block, last):
                credited += await _credit(db, event)
            cursor.next_block = last + 1


async def _locked_cursor(db: AsyncSession, contract: str, first_block: int) -> ChainCursor:
    await db.execute(
        insert(ChainCursor)
        .values(contract=contract, next_block=first_block)
        .on_conflict_do_nothing()
    )
    return (
        await db.scalars(
            select(ChainCursor).where(ChainCursor.contract == contract).with_for_update()
        )
    ).one()


async def _credit(db: AsyncSession, event: DepositEvent) -> bool:
    amount = from_units(event.units)
    new = await db.scalar(
        insert(Deposit)
        .values(
            transaction_hash=event.transaction_hash,
            log_index=event.log_index,
            block_number=event.block_number,
            wallet_address=event.user,
            amount_far=amount,
        )
        .on_conflict_do_nothing()
        .returning(Deposit.log_index)
    )
    if new is None:
        return False
    reference = f"{event.transaction_hash}:{event.log_index}"
    await ledger.deposit(db, reference=reference, wallet=event.user, amount=amount)
    # This contract knows no caps: whatever was paid in may be debited.
    paid_in = await db.scalar(
        select(func.sum(Deposit.amount_far)).where(Deposit.wallet_address == event.user)
    )
    await ledger.raise_cap(db, wallet=event.user, maximum=paid_in or amount)
    log.info("deposit_credited", user_wallet=event.user, amount_far=plain(amount))
    return True
