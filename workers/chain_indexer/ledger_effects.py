"""What an event of the escrow means for the ledger."""

from collections.abc import Iterable

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger, metrics
from market.escrow.event_reader import EscrowEvent
from market.escrow.tables import ChainEvent
from market.money import from_units
from market.settlement.tables import Settlement

log = structlog.get_logger()

CAP_EVENTS = ("CapRaised", "CapLoweringRequested", "CapLoweringCancelled", "CapLowered")

TRANSACTION_KINDS = {
    "Deposited": "deposit",
    "WithdrawalRequested": "request_withdrawal",
    "WithdrawalCancelled": "cancel_withdrawal",
    "Withdrawn": "withdrawn",
}
"""The ledger's kind of transaction for each event that moves a user's money. `Claimed` moves
none of ours: the ledger calls a provider paid once the contract has credited him."""


async def apply_event(db: AsyncSession, event: EscrowEvent) -> str | None:
    """Post what an event that counts has moved; returns the reference, if it moved something."""
    if event.name == "BatchSettled":
        await _compare_batch(db, event)
    if event.name not in TRANSACTION_KINDS:
        return None
    # The block is part of it: the same event may come again in another one.
    reference = f"{event.transaction_hash}:{event.log_index}@{event.block_hash}"
    wallet = event.arguments["user"]
    match event.name:
        case "Deposited":
            amount = from_units(event.units("amount"))
            await ledger.deposit(db, reference=reference, wallet=wallet, amount=amount)
        case "WithdrawalRequested":
            amount = from_units(event.units("amount"))
            await ledger.request_withdrawal(db, reference=reference, wallet=wallet, amount=amount)
        case "WithdrawalCancelled":
            await ledger.cancel_withdrawal(db, reference=reference, wallet=wallet)
        case "Withdrawn":
            amount = from_units(event.units("amount"))
            await ledger.complete_withdrawal(db, reference=reference, wallet=wallet, amount=amount)
    return reference


async def reverse_event(db: AsyncSession, event: EscrowEvent, reference: str | None) -> None:
    """Undo what :func:`apply_event` posted."""
    if reference is not None:
        await ledger.reverse(db, kind=TRANSACTION_KINDS[event.name], reference=reference)


async def sync_caps(db: AsyncSession, contract: str, events: Iterable[EscrowEvent]) -> None:
    """Set the caps of all users whose caps these events touch."""
    wallets = {event.arguments["user"] for event in events if event.name in CAP_EVENTS}
    for wallet in sorted(wallets):
        rows = await db.execute(
            select(ChainEvent.name, ChainEvent.arguments, ChainEvent.status)
            .where(
                ChainEvent.contract == contract,
                ChainEvent.wallet_address == wallet,
                ChainEvent.name.in_(CAP_EVENTS),
                ChainEvent.status != "reverted",
            )
            .order_by(ChainEvent.block_number, ChainEvent.log_index)
        )
        history = [(name, arguments, status) for name, arguments, status in rows]
        counted = [(name, arguments) for name, arguments, status in history if status == "applied"]
        seen = [(name, arguments) for name, arguments, _ in history]
        maximum = from_units(min(effective_cap(counted), effective_cap(seen)))
        await ledger.raise_cap(db, wallet=wallet, maximum=maximum)
        await ledger.lower_cap(db, wallet=wallet, maximum=maximum)


def effective_cap(events: Iterable[tuple[str, dict[str, str]]]) -> int:
    """What a user lets us debit in total, in base units, after cap events in their order.

    A lowering binds from the moment in which it is asked for, not only when the contract carries
    it out: what is held from then on might be settled after that.
    """
    cap = 0
    asked: int | None = None
    for name, arguments in events:
        if name == "CapLoweringRequested":
            asked = int(arguments["maximum"])
        else:
            asked = None
            if name != "CapLoweringCancelled":
                cap = int(arguments["maximum"])
    return cap if asked is None else min(cap, asked)


async def _compare_batch(db: AsyncSession, event: EscrowEvent) -> None:
    """A batch on the chain that we did not close, or not so, means a stolen settler key. One that
    we have replaced, and is there all the same, pays twice."""
    batch = await db.get(Settlement, event.arguments["batchId"])
    ours = None
    if batch is not None:
        debited = sum(int(units) for units in batch.debits.values())
        credited = sum(int(units) for units in batch.credits.values())
        ours = (debited, credited, int(batch.fee_units))
    theirs = (event.units("debited"), event.units("credited"), event.units("fee"))
    if batch is None or batch.status == "replaced" or ours != theirs:
        metrics.foreign_batches.inc()
        log.error(
            "batch_not_ours",
            batch=event.arguments["batchId"],
            transaction=event.transaction_hash,
            known=batch is not None,
        )
