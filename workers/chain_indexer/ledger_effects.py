"""What a confirmed event of the escrow means for the ledger."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger, metrics
from market.escrow.event_reader import EscrowEvent
from market.escrow.settle_call import BatchTotals
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


REQUESTS = {"WithdrawalRequested", "WithdrawalCancelled"}
"""Events after which the ledger is the same whatever earlier ones of them said."""

NEWEST_CAP_EVENTS = text(
    """
    SELECT wallet, only_applied, newest.name, newest.maximum
    FROM unnest(CAST(:wallets AS varchar[])) AS wallet
    CROSS JOIN unnest(CAST(:names AS varchar[])) AS event_name
    CROSS JOIN (VALUES (true), (false)) AS counted (only_applied)
    CROSS JOIN LATERAL (
        SELECT name, arguments->>'maximum' AS maximum, block_number, log_index FROM chain_events
        WHERE contract = :contract AND wallet_address = wallet AND name = event_name
            AND (status = 'applied' OR status = 'pending' AND NOT only_applied)
        ORDER BY block_number DESC, log_index DESC LIMIT 1
    ) AS newest
    ORDER BY newest.block_number, newest.log_index
    """
)
"""The newest event of each kind, by wallet, in the chain's order. They are all that
`effective_cap` depends on, however many there are: the newest of all, and the newest that sets the
cap."""


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


def superseded_requests(events: Sequence[EscrowEvent]) -> set[int]:
    """Which of these events, by position, need no posting: requests of withdrawals and their
    cancellations that the same wallet's next event in the same block replaces. A contract makes
    thousands of them in one transaction.

    A reorg takes a block back whole, so the posting of the last one is all that it may have to
    reverse.
    """
    superseded = set()
    following: dict[str, EscrowEvent] = {}
    for number in reversed(range(len(events))):
        event = events[number]
        if event.name not in TRANSACTION_KINDS:
            continue
        wallet = event.arguments["user"]
        after = following.get(wallet)
        if (
            after is not None
            and after.block_hash == event.block_hash
            and {event.name, after.name} <= REQUESTS
        ):
            superseded.add(number)
        following[wallet] = event
    return superseded


async def sync_caps(db: AsyncSession, contract: str, events: Iterable[EscrowEvent]) -> None:
    """Set the spending caps of all users whose caps these events change, each once."""
    wallets = sorted({event.arguments["user"] for event in events if event.name in CAP_EVENTS})
    if not wallets:
        return
    found = await db.execute(
        NEWEST_CAP_EVENTS, {"contract": contract, "wallets": wallets, "names": list(CAP_EVENTS)}
    )
    newest: dict[tuple[str, bool], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for row in found:
        newest[row.wallet, row.only_applied].append((row.name, {"maximum": row.maximum}))
    for wallet in wallets:
        # A raise binds once it is confirmed, a lowering as soon as it is seen.
        maximum = from_units(
            min(effective_cap(newest[wallet, True]), effective_cap(newest[wallet, False]))
        )
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
