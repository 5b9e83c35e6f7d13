"""The context of one settlement run: contract, signer, settings, and the batch that is open."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from market import db
from market.chain.client import ChainClient
from market.chain.signer import Signer
from market.escrow.reader import EscrowReader
from market.escrow.settle_call import SettleCall, SettlementBatch
from market.resources import Resources
from market.settings.payments import PaymentsSettings
from market.settlement.planned_batch import stored_batch
from market.settlement.tables import Settlement, SettlementTransaction
from workers.exclusive import Progress

WEI_PER_GWEI = 10**9

STALLED_SECONDS = 120
"""Seconds that one phase may take: the largest batch on a slow database, and endpoints that are
asked one after the other."""


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is neither confirmed nor replaced, as the database had it when it was read."""

    row: Settlement
    call: SettleCall
    """What settles it."""
    transactions: Sequence[SettlementTransaction]
    """All that was ever signed for it, the oldest first."""

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def content(self) -> SettlementBatch:
        """Debits, credits and fee, as the contract takes them."""
        return self.call.batch


@dataclass(frozen=True, slots=True)
class SettlementRun:
    """One settler at work."""

    resources: Resources
    escrow: EscrowReader
    signer: Signer

    progress: Progress = field(default_factory=lambda: Progress(STALLED_SECONDS))
    """Marked with each phase: a run that hangs is ended."""

    @property
    def sessions(self) -> db.Sessions:
        """For statements that may take minutes: a batch has up to thousands of generations."""
        return self.resources.long_sessions

    @property
    def payments(self) -> PaymentsSettings:
        return self.resources.settings.payments

    @property
    def chain(self) -> ChainClient:
        return self.escrow.chain

    @property
    def account(self) -> str:
        """The account that signs, in lower case."""
        return self.signer.address.lower()

    @property
    def contract(self) -> str:
        """The escrow's address, in lower case."""
        return self.escrow.address.lower()

    @property
    def fee_ceiling(self) -> int:
        """Wei for each unit of gas, at most."""
        return int(self.payments.max_fee_gwei * WEI_PER_GWEI)

    async def final_block(self) -> int:
        """The newest block that no reorg takes away any more."""
        payments = self.payments
        return await self.chain.final_block(
            tag=payments.finalized_tag, depth=payments.confirmations
        )

    def settle_call(self, batch: SettlementBatch) -> SettleCall:
        """The call that settles a batch on this run's contract."""
        return SettleCall(self.escrow.contract, batch)

    async def open_batch(self) -> OpenBatch | None:
        """The batch that is on its way, if there is one. Those that a reorg has undone go
        first: their nonces are the lower ones."""
        async with self.sessions() as db:
            row = await db.scalar(
                select(Settlement)
                .where(Settlement.status.not_in(("confirmed", "replaced")))
                .order_by(Settlement.undone_at.is_(None), Settlement.created_at)
                .limit(1)
            )
            if row is None:
                return None
            signed = await db.scalars(
                select(SettlementTransaction)
                .where(SettlementTransaction.settlement_id == row.id)
                .order_by(SettlementTransaction.id)
            )
            return OpenBatch(row, self.settle_call(stored_batch(row)), signed.all())
