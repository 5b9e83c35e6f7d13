"""Pays providers on-chain, in batches. May be killed between any two lines.

A batch goes ``closed → signed → confirmed``. Its id is the hash of its content, a session belongs
to one batch for ever, and the contract takes each id once. So whatever was lost on the way (our
process, an answer of the node, the transaction itself), the next run asks the chain and goes on.
"""

import asyncio
import datetime as dt
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import structlog
from eth_account.signers.local import LocalAccount
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from mesh import ledger, metrics
from mesh.chain import Escrow, unlock
from mesh.db import InferenceSession, NodeContribution, Settlement
from mesh.errors import ChainError
from mesh.money import ZERO, from_units, plain, to_units
from workers.services import Services

log = structlog.get_logger()

SIGNER_LOCK = 0x0FA12
"""Postgres advisory lock: one process signs at a time, so that nonces do not collide."""

LOOK = 0.5
"""Seconds between looks for a receipt."""


async def settle(ctx: dict[str, Any]) -> None:
    """arq cron: finish the open batch, or close a new one and see it on-chain."""
    services: Services = ctx["services"]
    payments = services.settings.payments
    if not payments.escrow_contract or payments.operator_keyfile is None:
        return
    escrow = Escrow.of(payments)
    try:
        # Unlocking hashes for a second on purpose: not in the event loop.
        signer = await asyncio.to_thread(
            unlock, payments.operator_keyfile, payments.operator_password.get_secret_value()
        )
        await settle_due(services, escrow, signer)
    except (ChainError, OSError) as error:  # OSError: the RPC endpoint does not answer
        log.error("settlement_stopped", error=type(error).__name__, reason=str(error))
    finally:
        await escrow.close()


async def settle_due(services: Services, escrow: Escrow, signer: LocalAccount) -> str | None:
    """One batch, as far as the chain lets it come; returns its id if it is confirmed.

    Raises:
        ChainError: the chain refuses the batch or does not answer.
    """
    async with _only_signer(services) as alone:
        if not alone:
            return None
        batch = await _open_batch(services) or await close_batch(services)
        if batch is None:
            return None
        give_up = time.monotonic() + services.settings.payments.confirmation_wait
        while batch.status != "confirmed" and time.monotonic() < give_up:
            if batch.status == "closed":
                batch = await _sign(services, escrow, signer, batch)
            else:
                batch = await _confirm(services, escrow, signer, batch)
        return batch.id if batch.status == "confirmed" else None


async def close_batch(services: Services) -> Settlement | None:
    """Gather what is past its release delay into a new batch; none if there is nothing."""
    payments = services.settings.payments
    async with services.sessions.begin() as db:
        due = (
            await db.scalars(
                select(InferenceSession)
                .where(
                    InferenceSession.settlement_id.is_(None),
                    InferenceSession.total_cost_far > 0,
                    InferenceSession.completed_at
                    <= func.now() - dt.timedelta(seconds=payments.release_delay),
                )
                .order_by(InferenceSession.completed_at)
                .limit(payments.max_sessions_per_batch)
                .with_for_update(skip_locked=True)
            )
        ).all()
        if not due:
            return None
        batch = await _batch_of(db, due)
        db.add(batch)
        await db.flush()
        await db.execute(
            update(InferenceSession)
            .where(InferenceSession.id.in_([job.id for job in due]))
            .values(settlement_id=batch.id)
        )
    log.info("settlement_closed", batch=batch.id, sessions=len(due))
    return await _reload(services, batch.id)


async def _batch_of(db: AsyncSession, due: Sequence[InferenceSession]) -> Settlement:
    debits: dict[str, int] = {}
    fee = 0
    for job in due:
        cost = to_units(job.total_cost_far or ZERO)
        debits[job.user_wallet] = debits.get(job.user_wallet, 0) + cost
        fee += to_units(job.fee_far or ZERO)
    earned = await db.execute(
        select(NodeContribution.wallet_address, func.sum(NodeContribution.payment_far))
        .where(NodeContribution.session_id.in_([job.id for job in due]))
        .group_by(NodeContribution.wallet_address)
        .order_by(NodeContribution.wallet_address)
    )
    credits = {wallet: units for wallet, amount in earned if (units := to_units(amount))}
    content = {
        "sessions": sorted(str(job.id) for job in due),
        "debits": {wallet: str(units) for wallet, units in sorted(debits.items())},
        "credits": {wallet: str(units) for wallet, units in credits.items()},
        "fee": str(fee),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Settlement(
        id=f"0x{digest}",
        debits=content["debits"],
        credits=content["credits"],
        fee_units=Decimal(fee),
    )


async def _sign(
    services: Services, escrow: Escrow, signer: LocalAccount, batch: Settlement
) -> Settlement:
    """Write the signed bytes down before anybody else sees them."""
    signed = await escrow.sign_settlement(
        signer,
        batch=batch.id,
        debits={wallet: int(units) for wallet, units in batch.debits.items()},
        credits={wallet: int(units) for wallet, units in batch.credits.items()},
        fee=int(batch.fee_units),
        nonce=await escrow.next_nonce(signer.address),
    )
    async with services.sessions.begin() as db:
        await db.execute(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status == "closed")
            .values(
                status="signed",
                nonce=signed.nonce,
                raw_transaction=signed.raw,
                transaction_hash=signed.transaction_hash,
            )
        )
    log.info("settlement_signed", batch=batch.id, transaction=signed.transaction_hash)
    return await _reload(services, batch.id)


async def _confirm(
    services: Services, escrow: Escrow, signer: LocalAccount, batch: Settlement
) -> Settlement:
    """Send, or find out what became of what was sent. The contract has the last word."""
    if batch.transaction_hash is None or batch.raw_transaction is None or batch.nonce is None:
        raise ChainError(f"Batch {batch.id} is signed, but its transaction is not stored.")
    block = await escrow.mined_in(batch.transaction_hash)
    if block is not None:
        depth = await escrow.head() - block
        if depth >= services.settings.payments.confirmations:
            if not await escrow.batch_settled(batch.id):
                raise ChainError(f"The contract does not know batch {batch.id} after its receipt.")
            return await _post(services, batch, block)
    elif await escrow.next_nonce(signer.address) > batch.nonce:
        # Another transaction took the nonce: this one can never be mined. Sign anew.
        return await _reopen(services, batch)
    else:
        await escrow.send(batch.raw_transaction)
    await asyncio.sleep(LOOK)
    return batch


async def _reopen(services: Services, batch: Settlement) -> Settlement:
    async with services.sessions.begin() as db:
        await db.execute(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status == "signed")
            .values(status="closed", nonce=None, raw_transaction=None, transaction_hash=None)
        )
    log.warning("settlement_reopened", batch=batch.id, nonce=batch.nonce)
    return await _reload(services, batch.id)


async def _post(services: Services, batch: Settlement, block: int) -> Settlement:
    """The ledger follows the chain: owed becomes paid."""
    paid = {wallet: from_units(int(units)) for wallet, units in batch.credits.items()}
    fee = from_units(int(batch.fee_units))
    async with services.sessions.begin() as db:
        await ledger.settle(db, batch=batch.id, amounts={**paid, ledger.PLATFORM: fee})
        sessions = select(InferenceSession.id).where(InferenceSession.settlement_id == batch.id)
        await db.execute(
            update(NodeContribution)
            .where(NodeContribution.session_id.in_(sessions))
            .values(paid_at=func.now())
        )
        await db.execute(
            update(Settlement)
            .where(Settlement.id == batch.id)
            .values(status="confirmed", block_number=block, confirmed_at=func.now())
        )
    total = sum(paid.values(), ZERO)
    metrics.payments_released.labels("FAR").inc(len(paid))
    metrics.payments_amount.inc(float(total))
    log.info(
        "settlement_confirmed",
        batch=batch.id,
        transaction=batch.transaction_hash,
        block=block,
        providers=len(paid),
        amount_far=plain(total),
        fee_far=plain(fee),
    )
    return await _reload(services, batch.id)


async def _open_batch(services: Services) -> Settlement | None:
    async with services.sessions() as db:
        return await db.scalar(select(Settlement).where(Settlement.status != "confirmed"))


async def _reload(services: Services, batch_id: str) -> Settlement:
    async with services.sessions() as db:
        return (await db.scalars(select(Settlement).where(Settlement.id == batch_id))).one()


@asynccontextmanager
async def _only_signer(services: Services) -> AsyncIterator[bool]:
    """Whether this process may sign now. The lock goes with its transaction, however that ends."""
    async with services.engine.begin() as connection:
        got = await connection.scalar(
            text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": SIGNER_LOCK}
        )
        yield bool(got)
