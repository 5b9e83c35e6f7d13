"""Tables of the escrow's events as they were read: chain_events, chain_blocks, chain_cursors."""

import datetime as dt

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Index,
    String,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, WALLET, Base


class ChainEvent(Base):
    """An event of the escrow: ``pending`` → ``applied`` → ``reverted``.

    Pending until its block is confirmed, applied once it is in the ledger, reverted when a
    reorg has undone it after that; an event that vanishes while pending is deleted.
    ``reference`` is that of its posting in the ledger; none for an event that moves no money.
    ``arguments`` are text, as :class:`market.escrow.event_reader.EscrowEvent` has them.
    """

    __tablename__ = "chain_events"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'applied', 'reverted')", name="check_chain_event_status"
        ),
        Index("idx_chain_events_block", "contract", "block_number", "log_index"),
        Index("idx_chain_events_wallet", "wallet_address", "name", "block_number", "log_index"),
    )

    transaction_hash: Mapped[str] = mapped_column(String(66), primary_key=True)
    log_index: Mapped[int] = mapped_column(primary_key=True)
    contract: Mapped[str] = mapped_column(WALLET)
    block_number: Mapped[int] = mapped_column(BigInteger)
    block_hash: Mapped[str] = mapped_column(String(66))
    name: Mapped[str] = mapped_column(String(50))
    wallet_address: Mapped[str | None] = mapped_column(WALLET)
    """Whose money or cap it is about."""
    arguments: Mapped[dict[str, str]] = mapped_column(JSONB)
    status: Mapped[str] = mapped_column(String(20), server_default="pending")
    reference: Mapped[str | None] = mapped_column(String(255))
    seen_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())


class ChainBlock(Base):
    """An indexed block: if its hash is another one later, a reorg has undone it."""

    __tablename__ = "chain_blocks"

    contract: Mapped[str] = mapped_column(WALLET, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    hash: Mapped[str] = mapped_column(String(66))


class ChainCursor(Base):
    """How far the events of a contract are indexed: the block before ``next_block`` is the last
    indexed one, and is in chain_blocks. Of the first block with events after it some may be
    applied, from the block's beginning on; of later ones none."""

    __tablename__ = "chain_cursors"

    contract: Mapped[str] = mapped_column(WALLET, primary_key=True)
    next_block: Mapped[int] = mapped_column(BigInteger)
    indexed_until: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    """Until when the ledger knows all events that are confirmed: the last indexed block's own
    time."""
