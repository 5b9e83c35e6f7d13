"""Tables (SQLAlchemy) and the one way to open a transaction.

The column names of ``inference_sessions``, ``node_contributions`` and ``node_registry`` are the
specification's (§3.4); amounts are NUMERIC(38,18). Migrations in ``mesh/migrations`` build the
same schema, and a test compares the two.
"""

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

AMOUNT = Numeric(38, 18)
WALLET = String(42)
INSTANT = DateTime(timezone=True)

Sessions = async_sessionmaker[AsyncSession]
"""``async with sessions.begin() as db:`` opens one transaction: commits, or rolls back on error."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class InferenceSession(Base):
    """One generation: its state, its lease and what it cost.

    ``request_cipher`` holds the prompt's token ids and stop strings under AES-GCM; it is erased
    when the job ends. ``lease_counter`` fences: a supervisor writes only while the counter is
    still the one it was given.
    """

    __tablename__ = "inference_sessions"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'active', 'completed', 'failed')", name="check_status"
        ),
        Index("idx_sessions_user", "user_wallet", "completed_at", "id"),
        Index("idx_sessions_status", "status"),
        Index(
            "idx_sessions_unsettled",
            "completed_at",
            postgresql_where=text("settlement_id IS NULL AND total_cost_far > 0"),
        ),
        UniqueConstraint("user_wallet", "idempotency_key", name="uq_sessions_idempotency"),
    )

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    request_id: Mapped[str] = mapped_column(String(255), unique=True)
    user_wallet: Mapped[str] = mapped_column(WALLET)
    model_id: Mapped[str] = mapped_column(String(255))
    tier: Mapped[str] = mapped_column(String(20), server_default="standard")
    started_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    completed_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    token_count: Mapped[int] = mapped_column(server_default="0")
    total_cost_far: Mapped[Decimal | None] = mapped_column(AMOUNT)
    status: Mapped[str] = mapped_column(String(20), server_default="pending")

    finish_reason: Mapped[str | None] = mapped_column(String(20))
    """``stop``, ``length``, ``cancelled``; none if failed."""
    error_code: Mapped[str | None] = mapped_column(String(50))
    cancel_requested: Mapped[bool] = mapped_column(server_default="false")
    deadline_at: Mapped[dt.datetime] = mapped_column(INSTANT)
    first_token_ms: Mapped[int | None]
    latency_ms: Mapped[int | None]

    prompt_tokens: Mapped[int]
    max_tokens: Mapped[int]
    temperature: Mapped[float]
    top_p: Mapped[float]
    seed: Mapped[int] = mapped_column(BigInteger)
    request_cipher: Mapped[bytes | None] = mapped_column(LargeBinary)
    request_digest: Mapped[bytes] = mapped_column(LargeBinary)
    """Keyed hash of the request, to tell a retry from another request under the same key."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))

    price_per_token_far: Mapped[Decimal] = mapped_column(AMOUNT)
    hold_far: Mapped[Decimal] = mapped_column(AMOUNT)
    fee_far: Mapped[Decimal | None] = mapped_column(AMOUNT)
    settlement_id: Mapped[str | None] = mapped_column(
        ForeignKey("settlements.id", name="fk_sessions_settlement")
    )
    withheld_until: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """Not settled before; ``infinity`` until somebody decides."""
    withheld_reason: Mapped[str | None] = mapped_column(String(100))

    epoch: Mapped[int] = mapped_column(server_default="0")
    lease_counter: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_expires_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


class RouteHop(Base):
    """One node of one generation's route at one epoch. ``first_token``: where the epoch began."""

    __tablename__ = "route_hops"

    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("inference_sessions.id"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(primary_key=True)
    stage: Mapped[int] = mapped_column(primary_key=True)
    node_id: Mapped[str] = mapped_column(String(255))
    wallet_address: Mapped[str] = mapped_column(WALLET)
    start_layer: Mapped[int]
    end_layer: Mapped[int]
    first_token: Mapped[int]


class NodeContribution(Base):
    """What one node earned in one generation."""

    __tablename__ = "node_contributions"
    __table_args__ = (
        Index("idx_contributions_session", "session_id"),
        Index("idx_contributions_wallet", "wallet_address", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("inference_sessions.id"))
    node_id: Mapped[str] = mapped_column(String(255))
    wallet_address: Mapped[str] = mapped_column(WALLET)
    tokens_contributed: Mapped[int]
    layers: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    payment_far: Mapped[Decimal] = mapped_column(AMOUNT)
    paid_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


class NodeRegistry(Base):
    """Every node that ever proved its wallet; who is alive now stands in Redis."""

    __tablename__ = "node_registry"
    __table_args__ = (
        Index("idx_registry_model", "model_id"),
        Index("idx_registry_wallet", "wallet_address"),
        Index("idx_registry_active", "is_active"),
    )

    node_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    wallet_address: Mapped[str] = mapped_column(WALLET)
    model_id: Mapped[str] = mapped_column(String(255))
    gpu_model: Mapped[str | None] = mapped_column(String(100))
    vram_gb: Mapped[int | None]
    location: Mapped[str | None] = mapped_column(String(100))
    public_addr: Mapped[str | None] = mapped_column(String(255))
    registered_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    last_seen: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    is_active: Mapped[bool] = mapped_column(server_default="true")
    total_tokens_served: Mapped[int] = mapped_column(BigInteger, server_default="0")
    total_earned_far: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")

    start_layer: Mapped[int]
    end_layer: Mapped[int]
    edge: Mapped[bool] = mapped_column(server_default="false")
    uptime_seconds: Mapped[float] = mapped_column(server_default="0")
    """Time between heartbeats that were no further apart than the TTL."""


class LedgerAccount(Base):
    """Where money stands: an owner (a wallet, ``platform`` or ``chain``) and a kind.

    Its balance is kept by triggers, always the sum of its entries, and is read from the view
    ``ledger_balances``.
    """

    __tablename__ = "ledger_accounts"
    __table_args__ = (UniqueConstraint("owner", "kind", name="uq_ledger_accounts_owner_kind"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    owner: Mapped[str] = mapped_column(WALLET)
    kind: Mapped[str] = mapped_column(String(20))


class LedgerPart(Base):
    """A balance, or a part of one: accounts that everybody pays into have several rows, so that
    transactions need not wait for each other. Only triggers write here.

    ``may_be_negative``: the chain's clearing account, which mirrors what the escrow contract holds
    for everyone else, and the platform's shortfall.
    """

    __tablename__ = "ledger_parts"
    __table_args__ = (
        CheckConstraint("balance >= 0 OR may_be_negative", name="check_balance_not_negative"),
    )

    account_id: Mapped[int] = mapped_column(ForeignKey("ledger_accounts.id"), primary_key=True)
    part: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    balance: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    may_be_negative: Mapped[bool]


class LedgerTransaction(Base):
    """A set of entries that sums to zero. (``kind``, ``reference``) can be posted once.

    ``occurrence`` grows where the chain took an event back and brought it again: the database
    takes the next one only when the last was reversed.
    """

    __tablename__ = "ledger_transactions"
    __table_args__ = (
        UniqueConstraint("kind", "reference", "occurrence", name="uq_ledger_transactions_ref"),
        # A hold ends once.
        Index(
            "uq_ledger_transactions_end",
            "reference",
            unique=True,
            postgresql_where=text("kind IN ('capture', 'release')"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    reference: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    occurrence: Mapped[int] = mapped_column(SmallInteger, server_default="0")


class LedgerEntry(Base):
    """One amount on one account. Append-only: triggers refuse UPDATE, DELETE and TRUNCATE.

    A trigger looks for transaction and account: foreign keys would lock their rows for each entry,
    and all captures share the platform's account.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index(
            "idx_ledger_entries_account",
            "account_id",
            "posted_at",
            postgresql_include=["amount"],
        ),
    )

    transaction_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    account_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    amount: Mapped[Decimal] = mapped_column(AMOUNT)
    posted_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())


class SpendingCap(Base):
    """What a wallet's owner has told the contract: how much may be debited from it, ever, and what
    is to be paid out. No row: nothing may be debited.

    ``committed``: all that was captured from the wallet, ever, and what is held now. ``signed``:
    the cap; a hold has to stay within it. ``maximum``: the same, or what was committed when the
    cap was lowered, if that was more; the database refuses to commit more. ``withdrawal``: what
    the owner has asked the contract for; a hold has to leave that much.

    Whatever moves a wallet's money locks this row first, so that it happens in one order.
    """

    __tablename__ = "spending_caps"
    __table_args__ = (
        CheckConstraint(
            "0 <= committed AND committed <= maximum AND signed <= maximum",
            name="check_within_spending_cap",
        ),
    )

    wallet: Mapped[str] = mapped_column(WALLET, primary_key=True)
    signed: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    maximum: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    committed: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    withdrawal: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")


class Outbox(Base):
    """Tasks for the workers, written in the transaction that makes them necessary."""

    __tablename__ = "outbox"
    __table_args__ = (Index("idx_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task: Mapped[str] = mapped_column(String(50))
    argument: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    sent_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


class ChainEvent(Base):
    """An event of the escrow: ``pending`` → ``applied`` → ``reverted``.

    Pending until it is deep enough, applied when the ledger has followed, reverted when a
    reorganisation took it back after that; one that vanishes before is deleted. ``reference``: of
    its posting in the ledger; none for an event that moves no money. ``arguments`` are text, as
    :class:`mesh.chain.events.Event` has them.
    """

    __tablename__ = "chain_events"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'applied', 'reverted')", name="check_chain_event_status"
        ),
        Index("idx_chain_events_block", "contract", "block_number"),
        Index("idx_chain_events_wallet", "wallet_address", "name"),
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
    """A block that was read and counted: a later look at its hash shows a reorganisation."""

    __tablename__ = "chain_blocks"

    contract: Mapped[str] = mapped_column(WALLET, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    hash: Mapped[str] = mapped_column(String(66))


class ChainCursor(Base):
    """How far the events of a contract have been read and counted. The block before is stored."""

    __tablename__ = "chain_cursors"

    contract: Mapped[str] = mapped_column(WALLET, primary_key=True)
    next_block: Mapped[int] = mapped_column(BigInteger)


class Settlement(Base):
    """One batch: ``closed`` → ``signed`` → ``mined`` → ``confirmed``; or ``replaced``.

    ``id`` is the hash of the content, and the contract takes each id once. ``debits`` and
    ``credits`` map wallets to base units (as strings: JSON numbers are floats to some readers).
    A reorganization takes ``mined`` back to ``signed``. A batch that the contract would refuse is
    replaced: its generations go into others.
    """

    __tablename__ = "settlements"
    __table_args__ = (
        CheckConstraint(
            "status IN ('closed', 'signed', 'mined', 'confirmed', 'replaced')",
            name="check_settlement_status",
        ),
        # One at a time: the next batch closes only when the last is final.
        Index(
            "uq_settlements_open",
            text("(true)"),
            unique=True,
            postgresql_where=text("status NOT IN ('confirmed', 'replaced')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(66), primary_key=True)
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


def connect(database_url: str, *, pool_size: int = 10) -> tuple[AsyncEngine, Sessions]:
    """An engine and its transaction factory. Dispose of the engine when done."""
    engine = create_async_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,  # a restarted Postgres costs no request
        hide_parameters=True,  # an error message must not quote a row
    )
    return engine, async_sessionmaker(engine, expire_on_commit=False)
