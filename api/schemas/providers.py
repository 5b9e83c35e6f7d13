"""Earnings, stats, history."""

import datetime as dt

from pydantic import (
    BaseModel,
    Field,
)

from api.schemas.base import WalletAddress


class EarningsOfDay(BaseModel):
    date: dt.date
    amount_far: float


class Earnings(BaseModel):
    """A provider's earnings (§7.2)."""

    wallet_address: str
    total_earned_far: float
    total_earned_far_exact: str
    total_tokens_served: int
    active_nodes: int
    avg_uptime_percent: float
    pending_payout_far: float
    pending_payout_far_exact: str
    earnings_history: list[EarningsOfDay]


class ProviderStats(BaseModel):
    """A provider at a glance (§8.3): what his dashboard shows."""

    wallet_address: WalletAddress
    total_tokens_served: int = Field(ge=0)
    total_earned_far: float = Field(ge=0)
    active_nodes: int = Field(ge=0)
    uptime_percent: float = Field(ge=0, le=100)
    avg_latency_ms: float = Field(ge=0)
    reliability_score: float | None = Field(ge=0, le=1)
    """None: nothing measures it yet."""
    total_requests_served: int = Field(ge=0)
    failed_requests: int = Field(ge=0)
    """That failed after his nodes had been given a part, whoever was to blame."""


class EarningsPoint(BaseModel):
    """A day of a provider's earnings (§4.2), in FAR."""

    date: dt.date
    amount: float
    amount_exact: str
