"""The transaction that writes a request's jobs, with the holds on their user's money."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

from market import ledger
from market.identity.principal import Principal
from market.jobs import queries
from market.jobs.admission import decision
from market.jobs.admission.chain_index import check_index
from market.jobs.quote import Quote
from market.jobs.reading import stored_requests
from market.jobs.request import Idempotency, JobRequest
from market.jobs.request_id import new_request_id
from market.jobs.tables import Job
from market.outbox import Outbox
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh.wire import SamplingParams

MAX_SEED = 2**63 - 1


def new_jobs(
    resources: Resources,
    caller: Principal,
    request: JobRequest,
    quote: Quote,
    idempotency: Idempotency,
) -> list[Job]:
    """Jobs that are not written yet: all choices of the first prompt, then those of the next."""
    now = dt.datetime.now(dt.UTC)
    sampling = request.sampling
    encrypted = _encrypted_sampling(sampling)
    jobs = []
    for number in range(request.generations):
        index, choice = divmod(number, request.choices)
        prompt = quote.prompts[index]
        request_id = new_request_id()
        secret = PromptText(prompt.token_ids, sampling.stop, encrypted)
        jobs.append(
            Job(
                request_id=request_id,
                choice=number,
                user_wallet=caller.wallet,
                api_key_id=caller.key_id,
                model_id=quote.model.id,
                tier=request.tier,
                started_at=now,
                deadline_at=now + dt.timedelta(seconds=resources.settings.generation.deadline),
                prompt_tokens=len(prompt.token_ids),
                max_tokens=prompt.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=(sampling.seed + choice) & MAX_SEED,
                request_cipher=resources.vault.encrypt(request_id, secret.to_bytes()),
                request_digest=idempotency.digests[0],
                idempotency_key=idempotency.key,
                price_per_token_far=quote.prices.token,
                price_per_prompt_token_far=quote.prices.prompt_token,
                price_per_cached_prompt_token_far=quote.prices.cached_prompt_token,
                hold_far=prompt.hold,
                near_latitude=None if request.near is None else int(request.near.latitude),
                near_longitude=None if request.near is None else int(request.near.longitude),
            )
        )
    return jobs


def _encrypted_sampling(sampling: SamplingParams) -> dict[str, Any]:
    """What differs from a request that names nothing, beside what the job's row has."""
    plain = SamplingParams(sampling.temperature, sampling.top_p, sampling.seed, sampling.stop)
    return {
        field.name: value
        for field in dataclasses.fields(sampling)
        if (value := getattr(sampling, field.name)) != getattr(plain, field.name)
    }


async def write(
    resources: Resources, request: JobRequest, jobs: Sequence[Job], quote: Quote
) -> None:
    """Write a request's jobs, their holds and outbox rows: all or none.

    Raises:
        InsufficientBalance: the wallet has less than the jobs may cost.
        SpendingCapExceeded: the wallet has not signed for so much.
        KeyLimitReached: a limit of the API key that asks leaves less than the job may cost.
        NotAuthenticated: the API key was revoked or has expired meanwhile.
        TooManyInFlight: jobs of the wallet have to end first.
        Overloaded: the jobs would start later than jobs may be expected to.
        ChainIndexBehind: it is not known who has withdrawn lately.
    """
    wallet = jobs[0].user_wallet
    positions = [job.prompt_tokens + job.max_tokens for job in jobs]
    async with resources.sessions.begin() as db:
        await check_index(db, resources.settings.payments)
        # Others, such as many events of the chain, may have this wallet's row for a while.
        await ledger.lock_wallet_soon(db, wallet)
        await decision.check_in_flight(db, wallet, positions, resources.settings.limits)
        db.add_all(jobs)
        db.add_all(Outbox(task=queries.SUPERVISE, argument=job.request_id) for job in jobs)
        await db.flush()
        if request.kept_form is not None:
            ttl = resources.settings.generation.stream_ttl
            db.add_all(
                stored_requests.row_of(resources.vault, job, request.kept_form, ttl) for job in jobs
            )
        for job in jobs:
            await db.refresh(job)
            await ledger.hold(
                db,
                job=job.request_id,
                wallet=wallet,
                amount=job.hold_far,
                key=job.key_day,
            )
        await decision.admit(resources, db, jobs, quote.coverage)
