"""Earnings, stats, history."""

import datetime as dt
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.base import WalletAddress, amounts_far, as_float
from market.money import format_exact
from market.providers import earnings


class EarningsOfDay(BaseModel):
    date: dt.date
    amount_far: float

    @classmethod
    def of(cls, day: earnings.EarningsOfDay) -> Self:
        return cls(date=day.date, amount_far=as_float(day.amount))


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

    @classmethod
    def of(cls, earned: earnings.Earnings) -> Self:
        totals = earned.totals
        return cls(
            wallet_address=earned.wallet,
            **amounts_far(total_earned=totals.earned),
            total_tokens_served=totals.tokens_served,
            active_nodes=earned.active_nodes,
            avg_uptime_percent=totals.uptime_percent,
            **amounts_far(pending_payout=totals.owed),
            earnings_history=[EarningsOfDay.of(day) for day in earned.history],
        )


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
    """That failed after his nodes had been given a part, whoever was at fault."""

    @classmethod
    def of(cls, stats: earnings.ProviderStats) -> Self:
        return cls(
            wallet_address=stats.wallet,
            total_tokens_served=stats.totals.tokens_served,
            total_earned_far=as_float(stats.totals.earned),
            active_nodes=stats.active_nodes,
            uptime_percent=stats.totals.uptime_percent,
            avg_latency_ms=stats.latency_ms,
            reliability_score=None,
            total_requests_served=stats.requests_served,
            failed_requests=stats.requests_failed,
        )


class EarningsPoint(BaseModel):
    """A day of a provider's earnings (§4.2), in FAR."""

    date: dt.date
    amount: float
    amount_exact: str

    @classmethod
    def of(cls, day: earnings.EarningsOfDay) -> Self:
        return cls(
            date=day.date, amount=as_float(day.amount), amount_exact=format_exact(day.amount)
        )
