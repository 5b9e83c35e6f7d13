"""Whether the ledger says what the escrow contract says, to the last base unit.

Both are read at one point: the last block whose events the ledger has read, and what the contract
held then. A batch is what the two may know of at different times; it counts as the contract had it
at that block, whether the ledger has posted it since or not yet.
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
from market.money import ZERO, from_units, plain, to_units


class EscrowState(Protocol):
    """The escrow contract as it was at a block; amounts are base units, wallets in lower case."""

    @property
    def address(self) -> str: ...

    async def deposits(self, wallets: Collection[str], *, block: int) -> Mapping[str, int]: ...

    async def earned(self, wallets: Collection[str], *, block: int) -> Mapping[str, int]: ...

    async def total_deposits(self, *, block: int) -> int: ...

    async def fee_recipient(self, *, block: int) -> str: ...

    async def settled(self, batches: Collection[str], *, block: int) -> Collection[str]: ...


@dataclass(frozen=True, slots=True)
class ExpectedState:
    """What the ledger expects of the contract at a block, in FAR by wallet."""

    block: int
    deposits: dict[str, Decimal]
    earned: dict[str, Decimal]
    open_batches: int
    """Batches that are not posted yet, and of them those that the contract had settled."""
    settled_batches: int


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

EARNED = text(
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
"""The platform's fees are with whom the contract credited them to, which may be changed; what no
event tells of is with its present recipient."""


async def expected_state(db: AsyncSession, contract: EscrowState) -> ExpectedState | None:
    """What the contract should say, from one snapshot of the ledger; none if its events were never
    read."""
    next_block = await db.scalar(
        select(ChainCursor.next_block).where(ChainCursor.contract == contract.address.lower())
    )
    if next_block is None:
        return None
    block = next_block - 1
    unposted = (await db.scalars(OPEN_BATCHES)).all()
    settled = await contract.settled(unposted, block=block)
    given = {"block": block, "settled": list(settled)}
    earned = await db.execute(EARNED, {**given, "contract": contract.address.lower()})
    return ExpectedState(
        block=block,
        deposits=_by_wallet((await db.execute(DEPOSITS, given)).mappings().all()),
        earned=_by_wallet(earned.mappings().all()),
        open_batches=len(unposted),
        settled_batches=len(settled),
    )


def _by_wallet(rows: Collection[RowMapping]) -> dict[str, Decimal]:
    return {row["wallet"]: row["amount"] for row in rows}


async def differences(books: ExpectedState, contract: EscrowState) -> list[Finding]:
    """Where the contract says something else. Not one base unit is tolerated."""
    block = books.block
    earned = dict(books.earned)
    recipient = await contract.fee_recipient(block=block)
    earned[recipient] = earned.get(recipient, ZERO) + earned.pop(PLATFORM, ZERO)
    total = {"all deposits": sum(books.deposits.values(), ZERO)}
    total_on_chain = {"all deposits": await contract.total_deposits(block=block)}
    return [
        *_compare(
            COMPARISONS[0], books.deposits, await contract.deposits(books.deposits, block=block)
        ),
        *_compare(COMPARISONS[1], earned, await contract.earned(earned, block=block)),
        *_compare(COMPARISONS[2], total, total_on_chain),
    ]


def _compare(
    check: str, expected: Mapping[str, Decimal], found: Mapping[str, int]
) -> list[Finding]:
    return [
        Finding(check, subject, plain(amount), plain(from_units(found[subject])))
        for subject, amount in sorted(expected.items())
        if to_units(amount) != found[subject]
    ]
