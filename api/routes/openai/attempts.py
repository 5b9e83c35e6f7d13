"""Attempts of clients that repeat a request by themselves, as OpenAI's do.

They send no idempotency key, but how often they have tried before. A retry joins the jobs that the
first attempt began (:meth:`market.jobs.submission.submissions.Submissions.submit`), so that it is
charged once. Such a client may come back after a connection is lost, so that its jobs are cancelled
only if it does not.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header

from api.http import disconnection
from api.http.services import Services
from api.routes.openai.following import Reading
from market.jobs import cancellation
from market.jobs.submission.submissions import RETRY_WINDOW
from market.jobs.tables import Job
from mesh import redis_keys

GRACE_SECONDS = 5.0
"""Seconds for which jobs whose client has gone away wait for its next attempt. OpenAI's clients
wait half a second before the first retry, and a second before the next."""

MAX_ATTEMPTS = 100


async def _attempt(
    x_stainless_retry_count: Annotated[
        int | None,
        Header(ge=0, le=MAX_ATTEMPTS, description="How often the client has tried before."),
    ] = None,
) -> int | None:
    return x_stainless_retry_count


Attempt = Annotated[int | None, Depends(_attempt)]
"""How often the client has sent this request before; none if it does not say so, and so does not
retry by itself."""


async def begin(services: Services, jobs: Sequence[Job], attempt: int | None) -> None:
    """An attempt waits for jobs from now on."""
    if attempt:
        ttl = int(RETRY_WINDOW.total_seconds())
        for job in jobs:
            await services.redis.set(redis_keys.attempt(job.request_id), attempt, ex=ttl)


async def abandon(services: Services, readings: Sequence[Reading], attempt: int | None) -> None:
    """The client of an attempt went away before its answer began: cancel the jobs, at once if it
    does not retry, else unless its next attempt comes soon. It pays for what was generated until
    then."""
    if attempt is None:
        await cancel(services, readings)
        return
    await asyncio.sleep(GRACE_SECONDS)
    for reading in readings:
        newest = await services.redis.get(redis_keys.attempt(reading.job.request_id))
        if int(newest or 0) <= attempt:
            await cancellation.cancel(services, reading.job)


async def cancel(services: Services, readings: Sequence[Reading]) -> None:
    """The client went away in the middle of its answer, after which no client retries: it pays for
    what it was sent."""
    await asyncio.gather(
        *(disconnection.cancel(services, reading.job, reading.reader) for reading in readings)
    )
