"""Whether the ledger agrees with the escrow contract, to the last base unit.

Both are compared at one block, the last whose events are in the ledger. Of a batch the two may know
at different times: it counts as the contract had it at that block, whether or not the ledger has
posted the batch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from sqlalchemy import RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from market.escrow.tables import ChainCursor
from market.ledger.accounts import PLATFORM
from market.ledger.invariants import Finding
from market.money import ZERO, format_exact, from_units, to_units


class EscrowState(Protocol):
    """What is read of the escrow contract; amounts are base units, wallets in lower case.

    `market.escrow.reader.EscrowReader` is what production uses.
    """

    @property
    def address(self) -> str: ...

    async def deposits(self, wallets: Collection[str], *, block: int) -> Mapping[str, int]: ...

    async def earnings(self, wallets: Collection[str], *, block: int) -> Mapping[str, int]: ...

    async def total_deposits(self, *, block: int) -> int: ...

    async def fee_recipient(self, *, block: int) -> str: ...

    async def settled_batches(self, batches: Collection[str], *, block: int) -> Collection[str]: ...


@dataclass(frozen=True, slots=True)
class ExpectedState:
    """What the ledger expects of the contract at a block, in FAR by wallet."""

    block: int
    deposits: dict[str, Decimal]
    earnings: dict[str, Decimal]
    open_batches: int
    """How many batches are not posted yet."""
    settled_batches: int
    """How many of them the contract had settled."""


COMPARISONS = ("deposits_equal_chain", "earnings_equal_chain", "total_equals_chain")

OPEN_BATCHES = text("SELECT id FROM settlements WHERE status NOT IN ('confirmed', 'replaced')")

DEPOSITS = text(
    """
    SELECT wallet, sum(amount) AS amount FROM (
        SELECT owner AS wallet, balance AS amount FROM ledger_balances
        WHERE kind IN ('available', 'held', 'withdrawing', 'shortfall')
        UNION ALL
        SELECT user_wallet, total_cost_far FROM inference_sessions WHERE total_cost_far > 0
            AND (settlement_id IS NULL OR settlement_id NOT IN (
                SELECT id FROM settlements
                WHERE status = 'confirmed' AND block_number <= :block OR id = ANY(:settled)
            ))
    ) AS money GROUP BY wallet
    """
)

EARNINGS = text(
    """
    WITH ahead AS (
        SELECT inference_sessions.id, fee_far, CASE settlements.status
            WHEN 'confirmed' THEN -1 ELSE 1 END AS sign
        FROM inference_sessions JOIN settlements ON settlements.id = settlement_id
        WHERE settlements.status = 'confirmed' AND block_number > :block
            OR settlements.id = ANY(:settled)
    )
    SELECT wallet, sum(amount) AS amount FROM (
        SELECT owner AS wallet, balance AS amount FROM ledger_balances WHERE kind = 'paid'
        UNION ALL
        SELECT wallet_address, sign * payment_far FROM ahead
            JOIN node_contributions ON session_id = ahead.id
        UNION ALL
        SELECT 'platform', sign * fee_far FROM ahead
        UNION ALL
        SELECT fees.* FROM chain_events, LATERAL (VALUES
            (arguments->>'recipient', (arguments->>'amount')::numeric * 1e-18),
            ('platform', (arguments->>'amount')::numeric * -1e-18)
        ) AS fees
        WHERE contract = :contract AND name = 'FeeCredited' AND status = 'applied'
    ) AS money GROUP BY wallet
    """
)
"""Earnings by wallet. A fee is the wallet's to which ``FeeCredited`` says that it was credited;
fees without such an event stay under ``platform``."""


async def expected_state(db: AsyncSession, escrow: EscrowState) -> ExpectedState | None:
    """What the ledger's snapshot expects of the contract; none if its events were never read."""
    next_block = await db.scalar(
        select(ChainCursor.next_block).where(ChainCursor.contract == escrow.address.lower())
    )
    if next_block is None:
        return None
    block = next_block - 1
    unposted = (await db.scalars(OPEN_BATCHES)).all()
    settled = await escrow.settled_batches(unposted, block=block)
    parameters = {"block": block, "settled": list(settled)}
    deposits = await db.execute(DEPOSITS, parameters)
    earnings = await db.execute(EARNINGS, {**parameters, "contract": escrow.address.lower()})
    return ExpectedState(
        block=block,
        deposits=_by_wallet(deposits.mappings().all()),
        earnings=_by_wallet(earnings.mappings().all()),
        open_batches=len(unposted),
        settled_batches=len(settled),
    )


def _by_wallet(rows: Collection[RowMapping]) -> dict[str, Decimal]:
    return {row["wallet"]: row["amount"] for row in rows}


async def differences(expected: ExpectedState, escrow: EscrowState) -> list[Finding]:
    """Where the contract differs from what the ledger expects, be it by one base unit.

    Fees that no event says the recipient of are expected with the present one.
    """
    of_deposits, of_earnings, of_total = COMPARISONS
    block = expected.block
    earnings = dict(expected.earnings)
    recipient = await escrow.fee_recipient(block=block)
    earnings[recipient] = earnings.get(recipient, ZERO) + earnings.pop(PLATFORM, ZERO)
    deposits = await escrow.deposits(expected.deposits, block=block)
    earned = await escrow.earnings(earnings, block=block)
    total = {"all deposits": sum(expected.deposits.values(), ZERO)}
    total_deposits = {"all deposits": await escrow.total_deposits(block=block)}
    return [
        *_compare(of_deposits, expected.deposits, deposits),
        *_compare(of_earnings, earnings, earned),
        *_compare(of_total, total, total_deposits),
    ]


def _compare(
    check: str, expected: Mapping[str, Decimal], found: Mapping[str, int]
) -> list[Finding]:
    return [
        Finding(check, subject, format_exact(amount), format_exact(from_units(found[subject])))
        for subject, amount in sorted(expected.items())
        if to_units(amount) != found[subject]
    ]
