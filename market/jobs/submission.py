"""Submission of a job: quoted, then stored with the hold on its user's money in one transaction."""

import datetime as dt
import secrets

import structlog
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger, metrics, outbox
from market.jobs import prompt_tokens, queries
from market.jobs.admission import decision, remembered_refusals
from market.jobs.admission.chain_index import check_index
from market.jobs.errors import IdempotencyConflict, Overloaded, TooManyInFlight
from market.jobs.quote import Quote, quote_of
from market.jobs.request import Idempotency, JobRequest
from market.jobs.request_id import new_request_id
from market.jobs.tables import Job
from market.ledger.errors import InsufficientBalance
from market.outages import OUTAGES
from market.outbox import Outbox
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh.errors import MeshError

log = structlog.get_logger()

WAITING_RETRY = 5
"""Seconds after which most of the submissions that wait have been looked at."""


async def submit(
    resources: Resources, wallet: str, request: JobRequest, idempotency: Idempotency
) -> Job:
    """The job of a request: a new one, or the one that the same key made before.

    Raises:
        TooManyInFlight: the wallet has too many jobs that have not ended.
        Overloaded: the job would start too late.
        ChainIndexBehind: it is not known who has withdrawn lately.
        MeshError: whatever else is wrong with the request; in all cases nothing is held.
    """
    earlier = await _earlier(resources, wallet, idempotency)
    if earlier is not None:
        return earlier
    try:
        if not resources.waiting_submissions.has_room(wallet):
            raise Overloaded(
                f"Too many submissions wait at this gateway. Try again in {WAITING_RETRY} seconds.",
                retry_after=WAITING_RETRY,
            )
        with resources.waiting_submissions.one_more(wallet):
            job = await _submit(resources, wallet, request, idempotency)
    except (InsufficientBalance, TooManyInFlight, Overloaded):
        earlier = await _earlier(resources, wallet, idempotency)  # accepted in the meantime
        if earlier is not None:
            return earlier
        _count_rejected(resources, request)
        raise
    except MeshError:
        _count_rejected(resources, request)
        raise
    except IntegrityError as error:
        if "uq_sessions_idempotency" not in str(error.orig):
            raise
        earlier = await _earlier(resources, wallet, idempotency)
        if earlier is None:
            raise
        return earlier
    metrics.inference_requests.labels(request.model_id, request.tier, "accepted").inc()
    log.info(
        "inference_accepted",
        request_id=job.request_id,
        model_id=job.model_id,
        user_wallet=wallet,
        tier=job.tier,
        prompt_tokens=job.prompt_tokens,
        max_tokens=job.max_tokens,
    )
    await _wake_worker(resources, job)
    return job


async def _submit(
    resources: Resources, wallet: str, request: JobRequest, idempotency: Idempotency
) -> Job:
    """A new job. Whoever is refused as others were a moment ago costs hardly anything, also of many
    who ask at once: most of them are refused while they wait for their turn. Nobody waits with a
    turn of :attr:`Resources.submissions` for a prompt to be tokenized, and no prompt is for which
    there is no money or no room."""
    model = resources.catalog.get(request.model_id)
    prompt_tokens.check(model, request, resources.settings.limits.max_prompt_chars)
    least_tokens = model.least_tokens(request.prompt)
    least = model.prices.most(least_tokens, request.max_tokens)

    async def check_refusals() -> None:
        await remembered_refusals.check(
            resources.redis, model.id, wallet, least_tokens + request.max_tokens
        )

    await check_refusals()
    async with resources.submissions:
        await check_refusals()
        async with resources.sessions() as db:
            await ledger.check_available(db, wallet=wallet, amount=least, at_least=True)
    token_ids = await prompt_tokens.tokenize(resources, wallet, request)
    async with resources.submitting.of(wallet), resources.submissions:
        await check_refusals()
        quote = await quote_of(resources, request, token_ids)
        return await _write(resources, wallet, request, quote, idempotency)


def _count_rejected(resources: Resources, request: JobRequest) -> None:
    model_id = request.model_id if request.model_id in resources.catalog else "unknown"
    metrics.inference_requests.labels(model_id, request.tier, "rejected").inc()


async def _wake_worker(resources: Resources, job: Job) -> None:
    """The job is accepted whether this succeeds or not: the outbox has it."""
    try:
        async with resources.submissions:
            await outbox.send_outbox(resources.sessions, resources.queue)
    except OUTAGES as error:
        log.warning("enqueue_failed", request_id=job.request_id, error=type(error).__name__)


async def _earlier(resources: Resources, wallet: str, idempotency: Idempotency) -> Job | None:
    if idempotency.key is None:
        return None
    async with resources.sessions() as db:
        job = await db.scalar(
            select(Job).where(Job.user_wallet == wallet, Job.idempotency_key == idempotency.key)
        )
    if job is not None and job.request_digest not in idempotency.digests:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for a different request. Use a new key."
        )
    return job


async def _write(
    resources: Resources, wallet: str, request: JobRequest, quote: Quote, idempotency: Idempotency
) -> Job:
    request_id = new_request_id()
    now = dt.datetime.now(dt.UTC)
    prompt = PromptText(quote.token_ids, list(request.stop))
    job = Job(
        request_id=request_id,
        user_wallet=wallet,
        model_id=quote.model.id,
        tier=request.tier,
        started_at=now,
        deadline_at=now + dt.timedelta(seconds=resources.settings.generation.deadline),
        prompt_tokens=len(quote.token_ids),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        request_cipher=resources.vault.encrypt(request_id, prompt.to_bytes()),
        request_digest=idempotency.digests[0],
        idempotency_key=idempotency.key,
        price_per_token_far=quote.prices.token,
        price_per_prompt_token_far=quote.prices.prompt_token,
        price_per_cached_prompt_token_far=quote.prices.cached_prompt_token,
        hold_far=quote.hold,
        near_latitude=None if request.near is None else int(request.near.latitude),
        near_longitude=None if request.near is None else int(request.near.longitude),
    )
    async with resources.sessions.begin() as db:
        await check_index(db, resources.settings.payments)
        # Before the model's lock, for which everybody waits: others, such as many events of the
        # chain, may have this wallet's row for a while.
        await ledger.lock_wallet_soon(db, wallet)
        await ledger.check_available(db, wallet=wallet, amount=job.hold_far)
        await decision.admit(resources, db, wallet, quote, job.prompt_tokens + job.max_tokens)
        await _insert(db, job, wallet)
    return job


async def _insert(db: AsyncSession, job: Job, wallet: str) -> None:
    """Job, hold and outbox row: all or none."""
    db.add(job)
    db.add(Outbox(task=queries.SUPERVISE, argument=job.request_id))
    await db.flush()
    await db.refresh(job)
    await ledger.hold(db, job=job.request_id, wallet=wallet, amount=job.hold_far)
