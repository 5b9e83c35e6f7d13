"""Generate request, job as its user sees it."""

import datetime as dt

from pydantic import (
    BaseModel,
)

from market.jobs.tables import JobStatus
from market.routing.tiers import Tier


class NodeUse(BaseModel):
    """One node's part in a generation."""

    node_id: str
    layers: list[int]


class ContributionView(NodeUse):
    """As :class:`NodeUse`, with what it was worth."""

    wallet_address: str
    tokens_contributed: int
    payment_far: float
    payment_far_exact: str


class JobView(BaseModel):
    """A generation as its user sees it: the job."""

    request_id: str
    status: JobStatus
    model_id: str
    tier: Tier
    started_at: dt.datetime
    completed_at: dt.datetime | None
    text: str | None
    """What has been generated so far; none once the tokens have been forgotten."""
    tokens_generated: int
    prompt_tokens: int
    cost_far: float
    cost_far_exact: str
    platform_fee_far_exact: str | None
    price_per_token_far_exact: str
    hold_far_exact: str
    latency_ms: int | None
    time_to_first_token_ms: int | None
    finish_reason: str | None
    error: str | None
    nodes_used: list[ContributionView]
