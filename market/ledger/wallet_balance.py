"""A user's money with us: what may be spent, what is in use, and what is on its way."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from market.db import Sessions
from market.escrow.tables import ChainEvent
from market.ledger.accounts import balances_of
from market.ledger.tables import SpendingCap
from market.money import ZERO, from_units

CAP_EVENTS = ("CapRaised", "CapLoweringRequested", "CapLoweringCancelled", "CapLowered")


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """FAR that a user has asked the contract to pay out, and has not got. ``ready_at``: when the
    contract's delay is over; none if the request was not seen on the chain."""

    amount: Decimal
    ready_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class CapLowering:
    """A lower cap in FAR that the contract carries out after its delay, and that binds here at
    once."""

    maximum: Decimal
    ready_at: dt.datetime


@dataclass(frozen=True, slots=True)
class CapUse:
    """The cap that a user signed for the contract, and how much of it is gone, in FAR.

    ``signed``: all that may ever be debited. ``spent``: what ended generations have cost, ever.
    ``left``: what may be held beyond what is spent and held.
    """

    signed: Decimal
    spent: Decimal
    left: Decimal
    lowering: CapLowering | None


@dataclass(frozen=True, slots=True)
class Balance:
    """A user's money in FAR.

    ``available``: may be held. ``held``: what running generations may cost at most. ``incoming``:
    deposits that are on the chain and not confirmed yet. ``shortfall``: what the contract let out,
    or took back, after it was spent; the next deposit fills it.
    """

    wallet: str
    available: Decimal
    held: Decimal
    incoming: Decimal
    shortfall: Decimal
    withdrawal: Withdrawal | None
    cap: CapUse


async def balance_of(sessions: Sessions, wallet: str, contract: str | None) -> Balance:
    """The wallet's balance, from one snapshot of the ledger and the escrow contract's events."""
    async with sessions() as db:
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        accounts = await balances_of(db, wallet)
        cap = await db.get(SpendingCap, wallet)
        events = await _events(db, (contract or "").lower(), wallet)
    signed, committed, asked = (
        (ZERO, ZERO, ZERO) if cap is None else (cap.signed, cap.committed, cap.withdrawal)
    )
    held = accounts.get("held", ZERO)
    # What was asked for has to be left, also what of it is not set aside yet.
    missing = max(ZERO, asked - accounts.get("withdrawing", ZERO))
    return Balance(
        wallet=wallet,
        available=max(ZERO, accounts.get("available", ZERO) - missing),
        held=held,
        incoming=_incoming(events),
        shortfall=-accounts.get("shortfall", ZERO),
        withdrawal=_withdrawal(asked, events) if asked else None,
        cap=CapUse(
            signed=signed,
            spent=committed - held,
            left=max(ZERO, signed - committed),
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
        amount=asked,
        ready_at=_ready_at(requests[-1]) if requests else None,
    )


def _lowering(events: Sequence[ChainEvent]) -> CapLowering | None:
    """The lowering that was asked for, unless something has happened to the cap since."""
    of_cap = [each for each in events if each.name in CAP_EVENTS]
    if not of_cap or of_cap[-1].name != "CapLoweringRequested":
        return None
    maximum = from_units(int(of_cap[-1].arguments["maximum"]))
    return CapLowering(maximum=maximum, ready_at=_ready_at(of_cap[-1]))


def _ready_at(event: ChainEvent) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(event.arguments["readyAt"]), dt.UTC)
