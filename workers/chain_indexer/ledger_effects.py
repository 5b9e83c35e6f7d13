"""What a confirmed event of the escrow means for the ledger."""

from collections.abc import Iterable

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger, metrics
from market.escrow.event_reader import EscrowEvent
from market.escrow.settle_call import BatchTotals
from market.escrow.tables import ChainEvent
from market.money import from_units
from market.settlement.planned_batch import stored_batch
from market.settlement.tables import Settlement

log = structlog.get_logger()

CAP_EVENTS = ("CapRaised", "CapLoweringRequested", "CapLoweringCancelled", "CapLowered")

TRANSACTION_KINDS = {
    "Deposited": "deposit",
    "WithdrawalRequested": "request_withdrawal",
    "WithdrawalCancelled": "cancel_withdrawal",
    "Withdrawn": "withdrawn",
}
"""The kind of ledger transaction for each event that moves a user's money. ``Claimed`` moves none:
to the ledger a provider is paid once the contract has credited him."""


async def apply_event(db: AsyncSession, event: EscrowEvent) -> str | None:
    """Post what a confirmed event has moved; returns the posting's reference, if it moved
    something."""
    if event.name == "BatchSettled":
        await _compare_batch(db, event)
    if event.name not in TRANSACTION_KINDS:
        return None
    # With the block's hash: after a reorg one event may be in another block.
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
    """Reverse what :func:`apply_event` posted under ``reference``."""
    if reference is not None:
        await ledger.reverse(db, kind=TRANSACTION_KINDS[event.name], reference=reference)


async def sync_caps(db: AsyncSession, contract: str, events: Iterable[EscrowEvent]) -> None:
    """Set the spending caps of all users whose caps these events change."""
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
        applied = [(name, arguments) for name, arguments, status in history if status == "applied"]
        seen = [(name, arguments) for name, arguments, _ in history]
        # A raise binds once it is confirmed, a lowering as soon as it is seen.
        maximum = from_units(min(effective_cap(applied), effective_cap(seen)))
        await ledger.raise_cap(db, wallet=wallet, maximum=maximum)
        await ledger.lower_cap(db, wallet=wallet, maximum=maximum)


def effective_cap(events: Iterable[tuple[str, dict[str, str]]]) -> int:
    """What a user lets us debit in total, in base units, after cap events in their order.

    A lowering binds from the moment in which it is asked for, not only when the contract carries
    it out: what is held from then on might be settled after that.
    """
    cap = 0
    requested: int | None = None
    for name, arguments in events:
        if name == "CapLoweringRequested":
            requested = int(arguments["maximum"])
        else:
            requested = None
            if name != "CapLoweringCancelled":
                cap = int(arguments["maximum"])
    return cap if requested is None else min(cap, requested)


async def _compare_batch(db: AsyncSession, event: EscrowEvent) -> None:
    """Raise the alarm if a settled batch is not as we closed it, which means a stolen settler key,
    or was replaced, and so pays twice."""
    row = await db.get(Settlement, event.arguments["batchId"])
    settled = BatchTotals(event.units("debited"), event.units("credited"), event.units("fee"))
    if row is None or row.status == "replaced" or stored_batch(row).totals != settled:
        metrics.foreign_batches.inc()
        log.error(
            "unknown_batch_settled",
            batch=event.arguments["batchId"],
            transaction=event.transaction_hash,
            known=row is not None,
        )
