"""A user's money with us: what may be spent, what is in use, and what is on its way."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.services import Services
from api.schemas.base import shown
from api.schemas.billing import Balance, CapLowering, Spending, Withdrawal
from market import ledger
from market.escrow.tables import ChainEvent
from market.ledger.tables import SpendingCap
from market.money import ZERO, from_units, plain

CAP_EVENTS = ("CapRaised", "CapLoweringRequested", "CapLoweringCancelled", "CapLowered")


async def balance(services: Services, wallet: str) -> Balance:
    """The wallet's balance, from one snapshot of the ledger and the chain's events."""
    contract = (services.settings.payments.escrow_contract or "").lower()
    async with services.sessions() as db:
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        of = await ledger.balances_of(db, wallet)
        cap = await db.get(SpendingCap, wallet)
        events = await _events(db, contract, wallet)
    signed, committed, asked = (
        (ZERO, ZERO, ZERO) if cap is None else (cap.signed, cap.committed, cap.withdrawal)
    )
    held, lacking = of.get("held", ZERO), -of.get("shortfall", ZERO)
    # What was asked for has to be left, also what of it is not set aside yet.
    free = max(ZERO, of.get("available", ZERO) - max(ZERO, asked - of.get("withdrawing", ZERO)))
    incoming, left = _incoming(events), max(ZERO, signed - committed)
    return Balance(
        wallet_address=wallet,
        available_far=shown(free),
        available_far_exact=plain(free),
        held_far=shown(held),
        held_far_exact=plain(held),
        incoming_far=shown(incoming),
        incoming_far_exact=plain(incoming),
        shortfall_far=shown(lacking),
        shortfall_far_exact=plain(lacking),
        withdrawal=_withdrawal(asked, events) if asked else None,
        cap=Spending(
            signed_far=shown(signed),
            signed_far_exact=plain(signed),
            spent_far=shown(committed - held),
            spent_far_exact=plain(committed - held),
            left_far=shown(left),
            left_far_exact=plain(left),
            lowering=_lowering(events),
        ),
    )


async def _events(db: AsyncSession, contract: str, wallet: str) -> Sequence[ChainEvent]:
    """What is still to come of the wallet's events, in the chain's order: the newest of each kind,
    and all deposits that do not count yet."""
    mine = (
        ChainEvent.contract == contract,
        ChainEvent.wallet_address == wallet,
    )
    newest = (
        select(ChainEvent)
        .where(*mine, ChainEvent.name.in_((*CAP_EVENTS, "WithdrawalRequested")))
        .where(ChainEvent.status != "reverted")
        .ext(distinct_on(ChainEvent.name))
        .order_by(ChainEvent.name, ChainEvent.block_number.desc(), ChainEvent.log_index.desc())
    )
    unconfirmed = select(ChainEvent).where(
        *mine, ChainEvent.name == "Deposited", ChainEvent.status == "pending"
    )
    found = [*await db.scalars(newest), *await db.scalars(unconfirmed)]
    return sorted(found, key=lambda event: (event.block_number, event.log_index))


def _incoming(events: Sequence[ChainEvent]) -> Decimal:
    """Deposits that were seen and do not count yet."""
    amounts = (int(each.arguments["amount"]) for each in events if each.name == "Deposited")
    return from_units(sum(amounts))


def _withdrawal(asked: Decimal, events: Sequence[ChainEvent]) -> Withdrawal:
    requests = [each for each in events if each.name == "WithdrawalRequested"]
    return Withdrawal(
        amount_far=shown(asked),
        amount_far_exact=plain(asked),
        ready_at=_ready_at(requests[-1]) if requests else None,
    )


def _lowering(events: Sequence[ChainEvent]) -> CapLowering | None:
    """The lowering that was asked for, unless something has happened to the cap since."""
    of_cap = [each for each in events if each.name in CAP_EVENTS]
    if not of_cap or of_cap[-1].name != "CapLoweringRequested":
        return None
    maximum = from_units(int(of_cap[-1].arguments["maximum"]))
    return CapLowering(
        maximum_far=shown(maximum),
        maximum_far_exact=plain(maximum),
        ready_at=_ready_at(of_cap[-1]),
    )


def _ready_at(event: ChainEvent) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(event.arguments["readyAt"]), dt.UTC)
