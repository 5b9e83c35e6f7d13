"""The transaction that writes a new job, with the hold on its user's money."""

import datetime as dt
import secrets

from market import ledger
from market.identity.principal import Principal
from market.jobs import queries
from market.jobs.admission import decision
from market.jobs.admission.chain_index import check_index
from market.jobs.quote import Quote
from market.jobs.request import Idempotency, JobRequest
from market.jobs.request_id import new_request_id
from market.jobs.tables import Job
from market.outbox import Outbox
from market.prompt_vault import PromptText
from market.resources import Resources


def new_job(
    resources: Resources,
    caller: Principal,
    request: JobRequest,
    quote: Quote,
    idempotency: Idempotency,
) -> Job:
    """A job that is not written yet."""
    request_id = new_request_id()
    now = dt.datetime.now(dt.UTC)
    prompt = PromptText(quote.token_ids, list(request.stop))
    return Job(
        request_id=request_id,
        user_wallet=caller.wallet,
        api_key_id=caller.key_id,
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


async def write(resources: Resources, job: Job, quote: Quote) -> None:
    """Write job, hold and outbox row: all or none.

    Raises:
        InsufficientBalance: the wallet has less than the job may cost.
        SpendingCapExceeded: the wallet has not signed for so much.
        KeyLimitReached: a limit of the API key that asks leaves less than the job may cost.
        NotAuthenticated: the API key was revoked or has expired meanwhile.
        TooManyInFlight: jobs of the wallet have to end first.
        Overloaded: the job would start later than jobs may be expected to.
        ChainIndexBehind: it is not known who has withdrawn lately.
    """
    async with resources.sessions.begin() as db:
        await check_index(db, resources.settings.payments)
        # Others, such as many events of the chain, may have this wallet's row for a while.
        await ledger.lock_wallet_soon(db, job.user_wallet)
        positions = job.prompt_tokens + job.max_tokens
        await decision.check_in_flight(db, job.user_wallet, positions, resources.settings.limits)
        db.add(job)
        db.add(Outbox(task=queries.SUPERVISE, argument=job.request_id))
        await db.flush()
        await db.refresh(job)
        await ledger.hold(
            db,
            job=job.request_id,
            wallet=job.user_wallet,
            amount=job.hold_far,
            key=job.key_day,
        )
        await decision.admit(resources, db, job, quote.coverage)
