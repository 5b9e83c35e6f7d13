"""Batches, their signed transactions and nonces, and pauses."""

import datetime as dt
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Numeric,
    String,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, WALLET, Base


class Settlement(Base):
    """One batch: ``closed`` → ``signed`` → ``mined`` → ``confirmed``; or ``replaced``.

    ``id`` is the hash of the content, and the contract takes each id once. ``debits`` and
    ``credits`` map wallets to base units (as strings: JSON numbers are floats to some readers).
    A reorg brings ``mined`` back to ``signed``, and ``confirmed`` as well where it goes
    deeper than what counted as final. A batch that the contract would refuse is replaced: its
    generations go into other batches.
    """

    __tablename__ = "settlements"
    __table_args__ = (
        CheckConstraint(
            "status IN ('closed', 'signed', 'mined', 'confirmed', 'replaced')",
            name="check_settlement_status",
        ),
        # One at a time: the next batch closes only when the last is final. Those that were final
        # once come back beside it.
        Index(
            "uq_settlements_open",
            text("(true)"),
            unique=True,
            postgresql_where=text("status NOT IN ('confirmed', 'replaced') AND undone_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(66), primary_key=True)
    contract: Mapped[str | None] = mapped_column(WALLET)
    """The escrow that it was closed for; none for batches from before this was written down."""
    status: Mapped[str] = mapped_column(String(20), server_default="closed")
    debits: Mapped[dict[str, Any]] = mapped_column(JSONB)
    credits: Mapped[dict[str, Any]] = mapped_column(JSONB)
    fee_units: Mapped[Decimal] = mapped_column(Numeric(38, 0))
    fee_recipient: Mapped[str | None] = mapped_column(WALLET)
    """Whose the fee lines of the usage tree are; none for batches of the first contract."""
    usage_root: Mapped[str | None] = mapped_column(String(66))
    """None for batches of the first contract."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Refusals since the batch last came further."""
    transaction_hash: Mapped[str | None] = mapped_column(String(66))
    """The transaction that was mined; none before, or if only the contract knows."""
    block_number: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    confirmed_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    undone_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When we saw that a reorg had undone it although it was final; none once it is
    again."""


class StoredUsageTree(Base):
    """The nodes of a batch's usage tree, so that a receipt's proof need not hash all of its lines:
    64 bytes a line."""

    __tablename__ = "usage_trees"

    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"), primary_key=True)
    nodes: Mapped[bytes] = mapped_column(LargeBinary)


class SettlementTransaction(Base):
    """Signed bytes that may be on the chain some day. A replacement is a row with the same nonce.

    Written before anybody else sees the bytes, and never deleted: whatever is mined at a nonce of
    ours can be told by its hash.
    """

    __tablename__ = "settlement_transactions"
    __table_args__ = (
        Index("idx_settlement_transactions_settlement", "settlement_id"),
        Index("idx_settlement_transactions_nonce", "chain_id", "account", "nonce"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"))
    chain_id: Mapped[int] = mapped_column(BigInteger)
    account: Mapped[str] = mapped_column(WALLET)
    nonce: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(66), unique=True)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    gas: Mapped[int] = mapped_column(BigInteger)
    max_fee_wei: Mapped[Decimal] = mapped_column(Numeric(38, 0))
    """For each unit of gas; the gas price where ``priority_fee_wei`` is none."""
    priority_fee_wei: Mapped[Decimal | None] = mapped_column(Numeric(38, 0))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    sent_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When an endpoint first took it."""
    reverted_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When we saw that it was mined and had changed nothing."""


class ChainNonce(Base):
    """The next nonce of an account that signs. All below it have bytes in
    ``settlement_transactions``, or were used on the chain already."""

    __tablename__ = "chain_nonces"

    chain_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    account: Mapped[str] = mapped_column(WALLET, primary_key=True)
    next_nonce: Mapped[int] = mapped_column(BigInteger)


class SettlementPause(Base):
    """While one is in force nothing is settled; an operator ends it."""

    __tablename__ = "settlement_pauses"
    __table_args__ = (
        Index(
            "uq_settlement_pauses_in_force",
            text("(true)"),
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    reason: Mapped[str] = mapped_column(String(50))
    detail: Mapped[str]
    began_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    ended_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
