"""What one run works with."""

from dataclasses import dataclass

from sqlalchemy import select

from market import db
from market.chain.client import ChainClient
from market.chain.signer import Signer
from market.escrow.reader import Batch, EscrowReader
from market.resources import Services
from market.settings.payments import PaymentsSettings
from market.settlement.tables import Settlement, SettlementTransaction

WEI_PER_GWEI = 10**9


@dataclass(frozen=True, slots=True)
class SettlementRun:
    """One settler at work."""

    services: Services
    escrow: EscrowReader
    signer: Signer

    @property
    def sessions(self) -> db.Sessions:
        return self.services.sessions

    @property
    def payments(self) -> PaymentsSettings:
        return self.services.settings.payments

    @property
    def network(self) -> ChainClient:
        return self.escrow.network

    @property
    def account(self) -> str:
        """The account that signs, in lower case."""
        return self.signer.address.lower()

    @property
    def fee_ceiling(self) -> int:
        """Wei for each unit of gas, at most."""
        return int(self.payments.max_fee_gwei * WEI_PER_GWEI)

    async def final_block(self) -> int:
        """The newest block that will not be reorganized away."""
        payments = self.payments
        return await self.network.final_block(
            tag=payments.finalized_tag, depth=payments.confirmations
        )

    @property
    def contract(self) -> str:
        """The escrow's address, in lower case."""
        return self.escrow.address.lower()

    async def open_batch(self) -> Settlement | None:
        """The batch that is on its way, if there is one. Those that were undone go first: their
        nonces are the lower ones."""
        async with self.sessions() as db:
            return await db.scalar(
                select(Settlement)
                .where(Settlement.status.not_in(("confirmed", "replaced")))
                .order_by(Settlement.undone_at.is_(None), Settlement.created_at)
                .limit(1)
            )

    async def transactions(self, batch: Settlement) -> list[SettlementTransaction]:
        """All that was ever signed for a batch, the oldest first."""
        async with self.sessions() as db:
            found = await db.scalars(
                select(SettlementTransaction)
                .where(SettlementTransaction.settlement_id == batch.id)
                .order_by(SettlementTransaction.id)
            )
            return list(found)


def contract_batch(batch: Settlement) -> Batch:
    """The batch as the contract takes it."""
    return Batch(
        id=batch.id,
        debits={wallet: int(units) for wallet, units in batch.debits.items()},
        credits={wallet: int(units) for wallet, units in batch.credits.items()},
        fee=int(batch.fee_units),
        usage_root=batch.usage_root or "0x" + bytes(32).hex(),
    )
