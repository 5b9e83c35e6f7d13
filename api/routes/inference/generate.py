"""Ask for text."""

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from api.http import disconnection, rate_limits
from api.http.authentication import GenerateCaller
from api.http.disconnection import CLIENT_CLOSED_REQUEST, ClientDisconnected
from api.http.rate_limits import address_of
from api.http.reader_slots import HeldForAnswer
from api.http.services import Services, WithServices
from api.routes.inference.sse import EVENT_STREAM, cancelling_stream
from api.schemas.base import IdempotencyKey
from api.schemas.jobs import AcceptedJob, GenerateBody, JobView
from market.jobs.reading import reader_errors
from market.jobs.request import Idempotency
from market.jobs.stop import Reader
from market.jobs.tables import Job, JobStatus
from market.money import ZERO, format_exact

router = APIRouter(prefix="/api/inference", tags=["inference"])

PATH = f"{router.prefix}/distributed/generate"
"""Where bodies may be as long as a prompt."""


@router.post(
    "/distributed/generate",
    response_model=JobView,
    responses={
        200: {"content": EVENT_STREAM},
        202: {"model": AcceptedJob, "description": "With `Prefer: respond-async`."},
    },
)
async def generate(
    body: GenerateBody,
    request: Request,
    caller: GenerateCaller,
    services: WithServices,
    held: HeldForAnswer,
    prefer: Annotated[str, Header()] = "",
    idempotency_key: Annotated[IdempotencyKey | None, Header()] = None,
) -> Response:
    """Generate text.

    - As it is, the answer is one JSON document, once all is generated.
    - With `"stream": true` it is a stream of server-sent events.
    - With the header `Prefer: respond-async` (RFC 7240) it is 202 at once, and where to poll or
      follow the job.

    A client that goes away before the end of the first two cancels the generation, and pays for
    what was delivered; an asynchronous job goes on. The same `Idempotency-Key` gives the same job.
    """
    await rate_limits.count_generations(services, caller)
    waits = "respond-async" not in [preference.strip().lower() for preference in prefer.split(",")]
    if waits:
        held.enter_context(services.reader_slots.hold(caller.wallet))
    digests = services.vault.digests(body.model_dump_json().encode())
    [job] = await services.submissions.submit(
        caller,
        body.job_request(near=services.geoip.approximate(address_of(request, services))),
        Idempotency(idempotency_key, digests),
    )
    if not waits:
        return _accepted(job)
    if body.stream:
        return cancelling_stream(services, job)
    reader = Reader()
    try:
        await disconnection.unless_disconnected(
            request, services.tokens.wait_for_end(job.request_id, reader)
        )
    except ClientDisconnected:
        services.in_background(disconnection.cancel(services, job, reader))
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return await _result(services, job)


def _accepted(job: Job) -> Response:
    accepted = AcceptedJob.of(job)
    headers = {"Location": accepted.poll_url, "Preference-Applied": "respond-async"}
    return JSONResponse(accepted.model_dump(mode="json"), status_code=202, headers=headers)


async def _result(services: Services, job: Job) -> Response:
    snapshot = await services.snapshots.get(job.user_wallet, job.request_id)
    if snapshot.job.status == JobStatus.FAILED:
        ended = snapshot.job
        cost = format_exact(ended.total_cost_far or ZERO)
        raise reader_errors.failure(ended.request_id, ended.error_code, ended.token_count, cost)
    result = JobView.of(snapshot)
    return JSONResponse(result.model_dump(mode="json"))
