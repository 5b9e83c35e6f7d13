"""Gets a batch into a block: simulate, allocate a nonce, sign, persist, send, replace."""

import datetime as dt
from collections.abc import Sequence

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.chain.errors import ChainError
from market.chain.rpc_errors import SendOutcome
from market.chain.transactions import Fees, SignedTransaction, sign_transaction
from market.escrow.errors import SettlementRefused
from market.settlement.tables import ChainNonce, Settlement, SettlementTransaction
from workers.settlement import exclusions
from workers.settlement.alerts.pauses import AlertReason, alert, check_gas_balance
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()


async def sign(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    """Sign the batch's call at a new nonce, and persist the bytes before anybody else sees them.

    Raises:
        SettlementRefused: the contract would revert the call, and excluding somebody does not help.
        SettlementPaused: the account has too small a gas balance.
        ChainError: the signer does not sign, or another settler has replaced the batch.
    """
    with phase(SettlementPhase.SIMULATE):
        refusal = None
        try:
            await batch.call.simulate(run.account)
            gas = await batch.call.estimate_gas(run.account)
        except SettlementRefused as refused:
            refusal = refused
    if refusal is not None:
        return await exclusions.exclude(run, batch, refusal)
    with phase(SettlementPhase.SIGN):
        chain_id = await run.chain.chain_id()
        fees = (await run.chain.suggested_fees()).at_most(run.fee_ceiling)
        await check_gas_balance(run, gas * fees.maximum)
        mined = await run.chain.nonce(run.account)
        async with run.sessions.begin() as db:
            # The nonce and the bytes that use it are one transaction: no nonce is ever lost.
            await _lock_for_signing(db, batch)
            nonce = await _allocate_nonce(db, run, chain_id, mined)
            signed = await _sign_at(db, run, batch, nonce, chain_id=chain_id, gas=gas, fees=fees)
    log.info("settlement_signed", batch=batch.id, transaction=signed.hash, nonce=nonce)
    return PhaseResult.ADVANCED


async def send_or_replace(
    run: SettlementRun, batch: OpenBatch, live: Sequence[SettlementTransaction], mined: int
) -> PhaseResult:
    """Send all transactions of the account that are not mined yet; replace the batch's newest where
    it is stuck.

    Args:
        live: The batch's transactions that may still be mined, the newest last; at least one.
        mined: The account's nonce on the chain.

    Raises:
        ChainError: the network refuses the transaction.
    """
    newest = live[-1]
    with phase(SettlementPhase.SEND):
        unmined = await _unmined(run, newest.chain_id, mined)
    gap = next((nonce for nonce in range(mined, newest.nonce) if nonce not in unmined), None)
    if gap is not None:
        # A reorg freed a nonce of a foreign transaction, or of a replaced batch, which
        # must not be mined any more. All later nonces wait for that one.
        return await _replace_transaction(run, batch, newest, nonce=gap)
    stuck = _is_stuck(newest, run.payments.stuck_after)
    if (
        stuck
        and await _replace_transaction(run, batch, newest, nonce=newest.nonce)
        is PhaseResult.ADVANCED
    ):
        return PhaseResult.ADVANCED
    with phase(SettlementPhase.SEND):
        outcome = SendOutcome.ACCEPTED
        for _, transaction in sorted(unmined.items()):
            outcome = await run.chain.send(transaction.raw)
            if outcome is SendOutcome.ACCEPTED and transaction.sent_at is None:
                await _mark_sent(run, transaction)
    if outcome is SendOutcome.UNDERPRICED and not stuck:
        return await _replace_transaction(run, batch, newest, nonce=newest.nonce)
    return PhaseResult.STOPPED if stuck else PhaseResult.WAITING


async def _replace_transaction(
    run: SettlementRun, batch: OpenBatch, old: SettlementTransaction, *, nonce: int
) -> PhaseResult:
    """Sign the batch's call with higher fees; `STOPPED` if they would be above the ceiling.

    At the nonce of ``old`` only one of the two can be mined; at another one the contract refuses
    the second.
    """
    with phase(SettlementPhase.REPLACE):
        priority = None if old.priority_fee_wei is None else int(old.priority_fee_wei)
        fees = Fees(int(old.max_fee_wei), priority).bumped(await run.chain.suggested_fees())
        if fees.maximum > run.fee_ceiling:
            alert(
                AlertReason.FEE_CEILING,
                f"Transaction {old.hash} is stuck, and {fees.maximum} wei a gas is too much.",
            )
            return PhaseResult.STOPPED
        await check_gas_balance(run, old.gas * fees.maximum)
        async with run.sessions.begin() as db:
            await _lock_for_signing(db, batch)
            signed = await _sign_at(
                db, run, batch, nonce, chain_id=old.chain_id, gas=old.gas, fees=fees
            )
    log.warning(
        "settlement_replaced",
        batch=batch.id,
        transaction=signed.hash,
        nonce=nonce,
        max_fee_wei=fees.maximum,
    )
    return PhaseResult.ADVANCED


async def _lock_for_signing(db: AsyncSession, batch: OpenBatch) -> None:
    """Lock the batch's row until the transaction ends. One settler is at work at a time; should
    another be after all, since the database dropped the lock's connection, it waits here.

    Raises:
        ChainError: another settler has replaced the batch, whose generations are in a new one.
    """
    held = await db.scalar(
        update(Settlement)
        .where(Settlement.id == batch.id, Settlement.status.in_(("closed", "signed")))
        .values(status="signed", failures=0)
        .returning(Settlement.id)
    )
    if held is None:
        raise ChainError(f"Batch {batch.id} was replaced meanwhile: another settler is at work.")


async def _allocate_nonce(db: AsyncSession, run: SettlementRun, chain_id: int, mined: int) -> int:
    """The account's next nonce, which no other transaction of ours will get.

    The chain's nonce ``mined`` is ahead where somebody else used the account. It is behind where
    we have signed and not sent: `send_or_replace` then sends those transactions first.
    """
    await db.execute(
        insert(ChainNonce)
        .values(chain_id=chain_id, account=run.account, next_nonce=mined)
        .on_conflict_do_nothing()
    )
    row = (
        await db.scalars(
            select(ChainNonce)
            .where(ChainNonce.chain_id == chain_id, ChainNonce.account == run.account)
            .with_for_update()
        )
    ).one()
    nonce = max(row.next_nonce, mined)
    row.next_nonce = nonce + 1
    return nonce


async def _sign_at(
    db: AsyncSession,
    run: SettlementRun,
    batch: OpenBatch,
    nonce: int,
    *,
    chain_id: int,
    gas: int,
    fees: Fees,
) -> SignedTransaction:
    """Sign the batch's call, and write the bytes down."""
    signed = await sign_transaction(
        run.signer,
        chain_id=chain_id,
        to=run.escrow.address,
        data=batch.call.data(),
        nonce=nonce,
        gas=gas,
        fees=fees,
    )
    db.add(
        SettlementTransaction(
            settlement_id=batch.id,
            chain_id=chain_id,
            account=run.account,
            nonce=nonce,
            hash=signed.hash,
            raw=signed.raw,
            gas=gas,
            max_fee_wei=fees.maximum,
            priority_fee_wei=fees.priority,
        )
    )
    return signed


async def _unmined(
    run: SettlementRun, chain_id: int, mined: int
) -> dict[int, SettlementTransaction]:
    """The newest transaction at each nonce of ours that the chain has not used: a later nonce waits
    for the earlier ones. Those of a replaced batch are never sent again: its generations are in
    another batch."""
    async with run.sessions() as db:
        found = await db.scalars(
            select(SettlementTransaction)
            .join(Settlement, Settlement.id == SettlementTransaction.settlement_id)
            .where(
                SettlementTransaction.chain_id == chain_id,
                SettlementTransaction.account == run.account,
                SettlementTransaction.nonce >= mined,
                Settlement.status != "replaced",
            )
            .order_by(SettlementTransaction.nonce, SettlementTransaction.id)
        )
        return {transaction.nonce: transaction for transaction in found}


async def _mark_sent(run: SettlementRun, transaction: SettlementTransaction) -> None:
    async with run.sessions.begin() as db:
        await db.execute(
            update(SettlementTransaction)
            .where(SettlementTransaction.id == transaction.id)
            .values(sent_at=func.now())
        )


def _is_stuck(transaction: SettlementTransaction, stuck_after: float) -> bool:
    if transaction.sent_at is None:
        return False
    waited = dt.datetime.now(dt.UTC) - transaction.sent_at
    return waited.total_seconds() >= stuck_after
