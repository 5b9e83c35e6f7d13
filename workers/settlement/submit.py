"""Signs a batch, and gets it into a block: simulate, nonce, sign, persist, send, replace."""

import datetime as dt
from collections.abc import Sequence

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.chain.client import SendOutcome
from market.chain.errors import ChainError
from market.chain.transactions import Fees, SignedTransaction, sign_transaction
from market.escrow.errors import SettlementRefused
from market.settlement.tables import ChainNonce, Settlement, SettlementTransaction
from workers.settlement import exclusions
from workers.settlement.pauses import AlertReason, alert, check_gas_money
from workers.settlement.run_context import SettlementRun, contract_batch
from workers.settlement.steps import Step, StepResult, step

log = structlog.get_logger()


async def sign(run: SettlementRun, batch: Settlement) -> StepResult:
    """Write signed bytes down, at a new nonce, before anybody else sees them.

    Raises:
        SettlementRefused: the contract would revert it, and leaving somebody out does not help.
        SettlementPaused: there is too little gas money.
        ChainError: the signer does not sign.
    """
    content = contract_batch(batch)
    with step(Step.SIMULATE):
        refusal = None
        try:
            await run.escrow.simulate(run.account, content)
            gas = await run.escrow.gas_for(run.account, content)
        except SettlementRefused as refused:
            refusal = refused
    if refusal is not None:
        return await exclusions.exclude(run, batch, refusal)
    with step(Step.SIGN):
        chain_id = await run.network.chain_id()
        fees = (await run.network.fees()).capped(run.fee_ceiling)
        await check_gas_money(run, gas * fees.maximum)
        mined = await run.network.nonce(run.account)
        async with run.sessions.begin() as db:
            # The nonce and the bytes that use it are one transaction: no nonce is ever lost.
            await _lock_for_signing(db, batch)
            nonce = await _allocate_nonce(db, run, chain_id, mined)
            signed = await _sign_at(db, run, batch, nonce, chain_id=chain_id, gas=gas, fees=fees)
    log.info("settlement_signed", batch=batch.id, transaction=signed.hash, nonce=nonce)
    return StepResult.MOVED


async def send_or_replace(
    run: SettlementRun, batch: Settlement, live: Sequence[SettlementTransaction], mined: int
) -> StepResult:
    """Send what may still be mined, or replace it where it is stuck.

    Args:
        live: This batch's transactions that may still be mined, the newest last.
        mined: The account's nonce on the chain.

    Raises:
        ChainError: the network refuses it for good.
    """
    newest = live[-1]
    with step(Step.SEND):
        unmined = await _unmined(run, newest.chain_id, mined)
    gap = next((nonce for nonce in range(mined, newest.nonce) if nonce not in unmined), None)
    if gap is not None:
        # A reorganization freed a nonce that was not ours, or a replaced batch's, which must not
        # be mined any more. All later ones wait for it.
        return await _replace(run, batch, newest, nonce=gap)
    stuck = _is_stuck(newest, run.payments.stuck_after)
    if stuck and await _replace(run, batch, newest, nonce=newest.nonce) is StepResult.MOVED:
        return StepResult.MOVED
    with step(Step.SEND):
        outcome = SendOutcome.ACCEPTED
        for _, transaction in sorted(unmined.items()):
            outcome = await run.network.send(transaction.raw)
            if outcome is SendOutcome.ACCEPTED and transaction.sent_at is None:
                await _mark_sent(run, transaction)
    if outcome is SendOutcome.UNDERPRICED and not stuck:
        return await _replace(run, batch, newest, nonce=newest.nonce)
    return StepResult.BLOCKED if stuck else StepResult.WAITING


async def _replace(
    run: SettlementRun, batch: Settlement, old: SettlementTransaction, *, nonce: int
) -> StepResult:
    """The same call with higher fees; at the same nonce only one of the two can be mined, and at
    another the contract refuses the second. `BLOCKED` if the fees would be above the ceiling."""
    with step(Step.REPLACE):
        priority = None if old.priority_fee_wei is None else int(old.priority_fee_wei)
        fees = Fees(int(old.max_fee_wei), priority).bumped(await run.network.fees())
        if fees.maximum > run.fee_ceiling:
            alert(
                AlertReason.FEE_CEILING,
                f"Transaction {old.hash} is stuck, and {fees.maximum} wei a gas is too much.",
            )
            return StepResult.BLOCKED
        await check_gas_money(run, old.gas * fees.maximum)
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
    return StepResult.MOVED


async def _lock_for_signing(db: AsyncSession, batch: Settlement) -> None:
    """Lock the batch's row for the time of signing. One settler is at work at a time; should
    another be after all, since the database dropped the lock's connection, it waits here.

    Raises:
        ChainError: the other one has replaced the batch: its generations are in another.
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
    """Ours, until the database says otherwise. The chain may be ahead, if somebody else used the
    account; it may be behind what we have signed, and then `send_or_replace` sends that first."""
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
    batch: Settlement,
    nonce: int,
    *,
    chain_id: int,
    gas: int,
    fees: Fees,
) -> SignedTransaction:
    """Sign the batch's call, and keep the bytes."""
    signed = await sign_transaction(
        run.signer,
        chain_id=chain_id,
        to=run.escrow.address,
        data=run.escrow.settle_data(contract_batch(batch)),
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
    """The newest bytes of every nonce of ours that the chain has not used: a later nonce waits for
    the earlier ones. Those of a replaced batch are never sent again: its generations are in
    others."""
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


def _is_stuck(transaction: SettlementTransaction, patience: float) -> bool:
    if transaction.sent_at is None:
        return False
    waited = dt.datetime.now(dt.UTC) - transaction.sent_at
    return waited.total_seconds() >= patience
