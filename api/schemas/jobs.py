"""A request to generate, and a job as its user sees it."""

import datetime as dt
import secrets
from typing import Annotated, Self

from pydantic import BaseModel, Field, Strict, StringConstraints, WithJsonSchema

from api.schemas.base import ModelId, RequestBody, amounts_far
from market.geo.distance import Coordinates
from market.jobs.reading.snapshot import JobSnapshot
from market.jobs.request import JobRequest, TextPrompt
from market.jobs.tables import Job, JobStatus, NodeContribution
from market.money import ZERO, format_exact
from market.routing.tiers import Tier
from mesh.wire import SamplingParams
from mesh.wire.limits import MAX_STOP_TEXT, MAX_STOP_TEXTS, MAX_TOKENS


class NodeUse(BaseModel):
    """One node's part in a generation."""

    node_id: str
    layers: list[int]


class ContributionView(NodeUse):
    """As :class:`NodeUse`, with what it was worth."""

    wallet_address: str
    tokens_contributed: int
    prompt_tokens_contributed: int
    """Positions of the prompt that the node is paid for, cached ones included."""
    payment_far: float
    payment_far_exact: str

    @classmethod
    def of(cls, part: NodeContribution) -> Self:
        return cls(
            node_id=part.node_id,
            layers=part.layers,
            wallet_address=part.wallet_address,
            tokens_contributed=part.tokens_contributed,
            prompt_tokens_contributed=part.prompt_tokens_contributed,
            **amounts_far(payment=part.payment_far),
        )


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
    cached_prompt_tokens: int
    """Of these, all nodes had computed so many before."""
    cost_far: float
    cost_far_exact: str
    prompt_cost_far_exact: str
    """The prompt's part of the cost."""
    platform_fee_far_exact: str | None
    price_per_token_far_exact: str
    price_per_prompt_token_far_exact: str
    price_per_cached_prompt_token_far_exact: str
    hold_far_exact: str
    latency_ms: int | None
    time_to_first_token_ms: int | None
    finish_reason: str | None
    error: str | None
    nodes_used: list[ContributionView]

    @classmethod
    def of(cls, snapshot: JobSnapshot) -> Self:
        job = snapshot.job
        return cls(
            request_id=job.request_id,
            status=JobStatus(job.status),
            model_id=job.model_id,
            tier=Tier(job.tier),
            started_at=job.started_at,
            completed_at=job.completed_at,
            text=snapshot.text,
            tokens_generated=snapshot.tokens_generated,
            prompt_tokens=job.prompt_tokens,
            cached_prompt_tokens=job.cached_prompt_tokens,
            **amounts_far(cost=job.total_cost_far or ZERO),
            prompt_cost_far_exact=format_exact(job.prompt_cost_far),
            platform_fee_far_exact=None if job.fee_far is None else format_exact(job.fee_far),
            price_per_token_far_exact=format_exact(job.price_per_token_far),
            price_per_prompt_token_far_exact=format_exact(job.price_per_prompt_token_far),
            price_per_cached_prompt_token_far_exact=format_exact(
                job.price_per_cached_prompt_token_far
            ),
            hold_far_exact=format_exact(job.hold_far),
            latency_ms=job.latency_ms,
            time_to_first_token_ms=job.first_token_ms,
            finish_reason=job.finish_reason,
            error=job.error_code,
            nodes_used=[ContributionView.of(part) for part in snapshot.contributions],
        )


class AcceptedJob(BaseModel):
    """Where to find an asynchronous job."""

    request_id: str
    status: JobStatus
    poll_url: str
    events_url: str

    @classmethod
    def of(cls, job: Job) -> Self:
        url = f"/api/inference/jobs/{job.request_id}"
        return cls(
            request_id=job.request_id,
            status=JobStatus(job.status),
            poll_url=url,
            events_url=f"{url}/events",
        )


StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_TEXT)]


RequestedTier = Annotated[
    Tier, Strict(False), WithJsonSchema({"type": "string", "enum": [Tier.STANDARD]})
]
"""The others are reserved, and refused by a code of their own."""


class GenerateBody(RequestBody):
    """A request to generate text (§7.1). Priced by token of the prompt and by generated token."""

    model_id: ModelId
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(100, ge=1, le=MAX_TOKENS)
    temperature: float = Field(0.7, ge=0, le=2)
    """0 chooses the likeliest token each time."""
    top_p: float = Field(0.9, gt=0, le=1)
    stream: bool = False
    tier: RequestedTier = Tier.STANDARD
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The same seed and request give the same text."""
    stop: list[StopText] = Field([], max_length=MAX_STOP_TEXTS)
    """Generation ends before any of these."""

    def job_request(self, near: Coordinates | None) -> JobRequest:
        """
        Args:
            near: About where the user is, in whole degrees.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return JobRequest(
            model_id=self.model_id,
            prompts=[TextPrompt(self.prompt)],
            max_tokens=self.max_tokens,
            sampling=SamplingParams(self.temperature, self.top_p, seed, self.stop),
            tier=self.tier,
            near=near,
        )
