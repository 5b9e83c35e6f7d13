"""Generations, the nodes on their routes, and what each node earned by them."""

import datetime as dt
import uuid
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from market.db import AMOUNT, INSTANT, WALLET, Base
from market.ledger.key_spending import KeyDay


class Job(Base):
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
            "idx_sessions_in_flight",
            "user_wallet",
            "model_id",
            postgresql_where=text("status IN ('pending', 'active')"),
        ),
        Index(
            "idx_sessions_unsettled",
            "completed_at",
            postgresql_where=text("settlement_id IS NULL AND total_cost_far > 0"),
        ),
        UniqueConstraint(
            "user_wallet", "idempotency_key", "choice", name="uq_sessions_idempotency"
        ),
        Index("idx_sessions_request_digest", "user_wallet", "request_digest", "started_at"),
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
    api_key_id: Mapped[str | None] = mapped_column(
        ForeignKey("api_keys.key_id", name="fk_sessions_api_key")
    )
    """The API key that asked for it; none if the wallet itself did."""

    price_per_token_far: Mapped[Decimal] = mapped_column(AMOUNT)
    price_per_prompt_token_far: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    price_per_cached_prompt_token_far: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    cached_prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    """How many of the prompt's tokens all nodes copied from their prefix caches."""
    prompt_cost_far: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")
    """The prompt's part of ``total_cost_far``."""
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
    waiting_since: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When a supervisor that found no route gave the lease back; none if a route was found since.
    No supervisor has such a job, and the dispatcher wakes one for it."""
    waiting_state: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What the next supervisor has to know of a job that waits
    (:class:`workers.supervisor.waiting_state.WaitingState`)."""
    accepted_draft_tokens: Mapped[int] = mapped_column(server_default="0")
    rejected_draft_tokens: Mapped[int] = mapped_column(server_default="0")
    """Draft tokens of the last epoch (speculative decoding), as the edge says."""
    batch_invariant: Mapped[bool | None]
    """Whether all nodes of all epochs said that a generation's tokens do not depend on what runs
    beside it; none before the first epoch."""
    quantization: Mapped[str | None] = mapped_column(String(100))
    """Of the nodes of the newest epoch, each kind once."""
    choice: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Which of a request's generations this is, from 0: one request may ask for several."""
    near_latitude: Mapped[int | None] = mapped_column(SmallInteger)
    near_longitude: Mapped[int | None] = mapped_column(SmallInteger)
    """About where the user was, in whole degrees; none where that is not known."""

    @property
    def key_day(self) -> KeyDay | None:
        """Whose spending the job counts as, and on which day; none without an API key."""
        if self.api_key_id is None:
            return None
        return KeyDay(self.api_key_id, self.started_at.astimezone(dt.UTC).date())


class RouteHop(Base):
    """One node of one generation's route at one epoch. ``first_token``: where the epoch began."""

    __tablename__ = "route_hops"
    __table_args__ = (Index("idx_route_hops_wallet", "wallet_address"),)

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
    prompt_tokens_contributed: Mapped[int] = mapped_column(server_default="0")
    """Positions of the prompt that the node is paid for, copied ones included."""
    layers: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    payment_far: Mapped[Decimal] = mapped_column(AMOUNT)
    paid_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


class StoredTokens(Base):
    """A page of an ended generation's tokens, encrypted as prompts are, so that a lost Redis loses
    no text that was paid for. Rows are erased after ``readable_until``."""

    __tablename__ = "job_tokens"
    __table_args__ = (Index("idx_job_tokens_readable_until", "readable_until"),)

    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("inference_sessions.id"), primary_key=True
    )
    page: Mapped[int] = mapped_column(primary_key=True)
    cipher: Mapped[bytes] = mapped_column(LargeBinary)
    readable_until: Mapped[dt.datetime] = mapped_column(INSTANT)


class StoredRequest(Base):
    """What has to be known of a request to give its answer again in the form that it asked for,
    encrypted as prompts are. Rows are erased after ``readable_until``."""

    __tablename__ = "job_requests"
    __table_args__ = (Index("idx_job_requests_readable_until", "readable_until"),)

    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("inference_sessions.id"), primary_key=True
    )
    cipher: Mapped[bytes] = mapped_column(LargeBinary)
    readable_until: Mapped[dt.datetime] = mapped_column(INSTANT)


EndReason = Literal["stop", "length", "cancelled", "failed"]
"""How a generation ends: by its text, by its length, by its user, or not as it should."""


class JobStatus(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
