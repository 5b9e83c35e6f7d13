"""Taking a generation in: check, quote, hold, and write it down in one transaction."""

import asyncio
import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

import structlog
from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.problem_details import OUTAGES
from api.http.services import Services
from api.schemas.base import ModelId, RequestBody
from market import ledger, metrics, outbox
from market.catalog.models import Model
from market.errors import InvalidRequest
from market.geo.distance import Coordinates
from market.jobs import queries
from market.jobs.errors import ContextExceeded, IdempotencyConflict
from market.jobs.tables import Job
from market.money import times
from market.nodes import live_lookup
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.outbox import Outbox
from market.prompt_vault import PromptText
from market.routing import route_search, tiers
from market.routing.errors import KvCapacityExceeded, NoRoute
from market.routing.request import NodeRule
from market.routing.skip_reasons import explain_skips
from market.routing.tiers import Tier
from mesh.errors import MeshError

log = structlog.get_logger()

NO_ROUTE_RETRY = 30
"""Seconds: a heartbeat interval, after which a node that comes back is known."""

MAX_STOP = 4

StopText = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Generate(RequestBody):
    """A request to generate text (§7.1). Priced by generated token; the prompt is free."""

    model_id: ModelId
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(100, ge=1, le=1_000_000, strict=True)
    temperature: float = Field(0.7, ge=0, le=2, strict=True)
    """0 chooses the likeliest token each time."""
    top_p: float = Field(0.9, gt=0, le=1, strict=True)
    stream: bool = Field(False, strict=True)
    tier: Tier = Tier.STANDARD
    seed: int | None = Field(None, ge=0, lt=2**63, strict=True)
    """The same seed and request give the same text."""
    stop: list[StopText] = Field([], max_length=MAX_STOP)
    """Generation ends before any of these."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A request that can be served, and what it may cost at most."""

    model: Model
    token_ids: list[int]
    price: Decimal
    hold: Decimal


async def submit(
    services: Services,
    wallet: str,
    body: Generate,
    idempotency_key: str | None,
    *,
    near: Coordinates | None = None,
) -> Job:
    """The job of a request: a new one, or the one that the same key made before.

    Args:
        near: About where the user is, in whole degrees.

    Raises:
        MeshError: whatever is wrong with the request; then nothing is held.
    """
    digest = services.vault.digest(body.model_dump_json().encode())
    if idempotency_key is not None:
        earlier = await _earlier(services, wallet, idempotency_key, digest)
        if earlier is not None:
            return earlier
    try:
        quote = await _quote(services, body)
        job = await _write(services, wallet, body, quote, digest, idempotency_key, near)
    except MeshError:
        model_id = body.model_id if body.model_id in services.catalog else "unknown"
        metrics.inference_requests.labels(model_id, body.tier, "rejected").inc()
        raise
    except IntegrityError as error:
        if idempotency_key is None or "uq_sessions_idempotency" not in str(error.orig):
            raise
        earlier = await _earlier(services, wallet, idempotency_key, digest)
        if earlier is None:
            raise
        return earlier
    metrics.inference_requests.labels(body.model_id, body.tier, "accepted").inc()
    log.info(
        "inference_accepted",
        request_id=job.request_id,
        model_id=job.model_id,
        user_wallet=wallet,
        tier=job.tier,
        prompt_tokens=job.prompt_tokens,
        max_tokens=job.max_tokens,
    )
    await _poke(services, job)
    return job


async def _poke(services: Services, job: Job) -> None:
    """Wake a worker. The job is accepted whether this succeeds or not: the outbox has it."""
    try:
        await outbox.send_outbox(services.sessions, services.queue)
    except OUTAGES as error:
        log.warning("outbox_kept", request_id=job.request_id, error=type(error).__name__)


async def _earlier(services: Services, wallet: str, key: str, digest: bytes) -> Job | None:
    async with services.sessions() as db:
        job = await db.scalar(
            select(Job).where(Job.user_wallet == wallet, Job.idempotency_key == key)
        )
    if job is not None and job.request_digest != digest:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for a different request. Use a new key."
        )
    return job


async def _quote(services: Services, body: Generate) -> Quote:
    model = services.catalog.get(body.model_id)
    limit = services.settings.limits.max_prompt_chars
    if len(body.prompt) > limit:
        raise InvalidRequest(
            f"prompt: {len(body.prompt)} characters; at most {limit} are allowed.",
            code="prompt_too_long",
        )
    if body.tier is not Tier.STANDARD:
        raise InvalidRequest(
            f"tier: {body.tier} is not offered here yet; use standard.", code="tier_unavailable"
        )
    # Of the tokenizer's calls this one lets go of the interpreter while it works.
    [encoded] = await asyncio.to_thread(model.tokenizer.encode_batch_fast, [body.prompt])
    token_ids: list[int] = encoded.ids
    if not token_ids:
        raise InvalidRequest("prompt: there is nothing in it to continue.", code="prompt_empty")
    if len(token_ids) + body.max_tokens > model.context:
        raise ContextExceeded(
            f"{len(token_ids)} tokens of prompt and max_tokens {body.max_tokens} exceed the "
            f"model's context of {model.context} tokens."
        )
    price = model.price_per_token
    fair = tiers.price_rule(price)
    live = await live_lookup.live_nodes(services.redis, model.id)
    nodes = [seen.node for seen in live if seen.available]
    if missing := _missing(model, nodes, fair):
        await _count_skips(services, model, live, fair)
        raise NoRoute(missing, retry_after=NO_ROUTE_RETRY)
    positions = len(token_ids) + body.max_tokens
    if route_search.cheapest_route(nodes, model.layers, admits=fair, positions=positions) is None:
        room = route_search.longest_servable(nodes, model.layers, admits=fair)
        raise KvCapacityExceeded(
            f"{len(token_ids)} tokens of prompt and max_tokens {body.max_tokens} are more than the "
            f"nodes of {model.id} have memory for: {room} together."
        )
    return Quote(model=model, token_ids=token_ids, price=price, hold=times(price, body.max_tokens))


def _missing(model: Model, nodes: Sequence[Node], fair: NodeRule) -> str | None:
    """What the nodes lack to serve the model; none if nothing."""
    if route_search.cheapest_route(nodes, model.layers, admits=fair) is None:
        return f"Not every layer of {model.id} has a healthy node for its price right now."
    if len(nodes) < model.min_nodes:
        return (
            f"{model.id} is served by no fewer than {model.min_nodes} healthy nodes, and has "
            f"{len(nodes)} right now."
        )
    return None


async def _count_skips(
    services: Services, model: Model, live: Sequence[LiveNode], fair: NodeRule
) -> None:
    """Tell the nodes that are there why they do not serve this; not every time."""
    if services.skips.due:
        await services.skips.count(explain_skips(live, model.layers, [], fair=fair))


async def _write(
    services: Services,
    wallet: str,
    body: Generate,
    quote: Quote,
    digest: bytes,
    idempotency_key: str | None,
    near: Coordinates | None,
) -> Job:
    request_id = f"req_{secrets.token_hex(12)}"
    now = dt.datetime.now(dt.UTC)
    job = Job(
        request_id=request_id,
        user_wallet=wallet,
        model_id=quote.model.id,
        tier=body.tier,
        started_at=now,
        deadline_at=now + dt.timedelta(seconds=services.settings.generation.deadline),
        prompt_tokens=len(quote.token_ids),
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        request_cipher=services.vault.seal(request_id, PromptText(quote.token_ids, body.stop)),
        request_digest=digest,
        idempotency_key=idempotency_key,
        price_per_token_far=quote.price,
        hold_far=quote.hold,
        near_latitude=None if near is None else int(near.latitude),
        near_longitude=None if near is None else int(near.longitude),
    )
    async with services.sessions.begin() as db:
        await _insert(db, job, wallet)
    return job


async def _insert(db: AsyncSession, job: Job, wallet: str) -> None:
    """Session, hold and outbox row: all or none."""
    db.add(job)
    db.add(Outbox(task=queries.SUPERVISE, argument=job.request_id))
    await db.flush()
    await db.refresh(job)
    await ledger.hold(db, job=job.request_id, wallet=wallet, amount=job.hold_far)
