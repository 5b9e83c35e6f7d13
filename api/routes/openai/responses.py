"""/v1/responses: OpenAI's Responses API, without anything that is stored for later requests."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from sse_starlette import ServerSentEvent

from api.http.authentication import CancelCaller, ReadJobsCaller
from api.http.reading.reader_slots import HeldForAnswer
from api.http.services import Services, WithServices
from api.routes.inference.sse import EVENT_STREAM
from api.routes.openai.following import Reading, collect, follow
from api.routes.openai.response_writer import STATUSES, Event, ResponseWriter
from api.routes.openai.streaming import cancelling_stream, resumable_stream
from api.routes.openai.submission import WithAsking
from api.routes.openai.whole_answers import whole_answer
from api.schemas.openai.responses import ResponseBody
from market.chat.answer import AnswerReader
from market.errors import InvalidRequest
from market.jobs import cancellation, queries
from market.jobs.errors import GenerationFailed, JobNotFound
from market.jobs.reading import reader_errors, stored_requests
from market.jobs.request import JobRequest
from market.jobs.tables import Job, JobStatus
from market.money import ZERO, format_exact
from mesh.wire.limits import MAX_TOKENS

router = APIRouter(prefix="/v1", tags=["openai"])

PATH = f"{router.prefix}/responses"

MAX_EVENTS = 4 * MAX_TOKENS

NOT_FOUND = "You have no background response of this id, or not any more."


@router.post("/responses", responses={200: {"content": EVENT_STREAM}})
async def create(body: ResponseBody, asking: WithAsking) -> Response:
    """A response, as OpenAI's API gives it: one JSON document, or with `"stream": true`
    server-sent events.

    With `"background": true` the answer comes at once, and the response is found at
    `GET /v1/responses/{id}`; else a client that goes away cancels the generation, and pays for what
    was delivered.
    """
    services = asking.services
    model = asking.model(body.model)
    prepared = await asking.prepare(model, body.chat())
    echo = body.echo(model)
    kept = {"echo": echo, "functions": sorted(prepared.functions)}
    jobs = await asking.submit(
        body,
        JobRequest(
            model_id=model.id,
            prompts=[prepared.prompt],
            max_tokens=body.max_output_tokens,
            sampling=body.sampling_params(model, prepared.grammar),
            tier=body.service_tier,
            near=asking.near,
            kept_form=json.dumps(kept).encode() if body.background else None,
        ),
    )
    [job] = jobs
    writer = ResponseWriter(job, echo, prepared.reader(job.request_id), model.tokenizer)
    reading = Reading(job)
    if body.stream:
        events = _events(services, reading, writer)
        if body.background:
            return resumable_stream(jobs, events)
        return cancelling_stream(services, [reading], events, attempt=asking.attempt)
    if body.background:
        return JSONResponse(writer.document(STATUSES[JobStatus.PENDING]))
    return await whole_answer(asking, [reading], _whole(services, reading, writer))


@router.get("/responses/{response_id}", responses={200: {"content": EVENT_STREAM}})
async def retrieve(
    response_id: str,
    caller: ReadJobsCaller,
    services: WithServices,
    held: HeldForAnswer,
    stream: Annotated[bool, Query()] = False,
    starting_after: Annotated[int | None, Query(ge=0, le=MAX_EVENTS)] = None,
) -> Response:
    """A background response as it is now; with `stream=true` its events, from the first, or from
    the one after `starting_after` (a `sequence_number`). It is forgotten an hour after its end."""
    job, writer = await _find(services, caller.wallet, response_id)
    if stream:
        held.enter_context(services.reader_slots.hold(caller.wallet, job.request_id))
        after = -1 if starting_after is None else starting_after
        return resumable_stream([job], _after(_events(services, Reading(job), writer), after))
    if starting_after is not None:
        raise InvalidRequest(
            "starting_after: This needs stream=true.",
            code="starting_after_unexpected",
            param="starting_after",
        )
    return JSONResponse(await _now(services, job, writer))


@router.post("/responses/{response_id}/cancel")
async def cancel(response_id: str, caller: CancelCaller, services: WithServices) -> Response:
    """End a background response. You pay for what was generated until then."""
    job, writer = await _find(services, caller.wallet, response_id)
    if job.status not in queries.ENDED:
        await cancellation.cancel_and_wait(services, job, services.packed_tokens)
        job, writer = await _find(services, caller.wallet, response_id)
    return JSONResponse(await _now(services, job, writer))


async def _find(services: Services, wallet: str, response_id: str) -> tuple[Job, ResponseWriter]:
    """The job of a background response, and a writer that is at its beginning.

    Raises:
        JobNotFound: there is none of that id, or not any more.
    """
    if not response_id.startswith("resp_"):
        raise JobNotFound(NOT_FOUND)
    try:
        job = await services.snapshots.find(wallet, f"req_{response_id.removeprefix('resp_')}")
    except JobNotFound:
        raise JobNotFound(NOT_FOUND) from None
    kept = await stored_requests.read(services.sessions, services.vault, job)
    if kept is None:
        raise JobNotFound(NOT_FOUND)
    form: dict[str, Any] = json.loads(kept)
    model = services.catalog.get(job.model_id)
    reader = AnswerReader(model.tool_call_style, form["functions"], job.request_id)
    return job, ResponseWriter(job, form["echo"], reader, model.tokenizer)


async def _now(services: Services, job: Job, writer: ResponseWriter) -> dict[str, Any]:
    """The response as it is now."""
    if job.status == JobStatus.FAILED:
        cost = format_exact(job.total_cost_far or ZERO)
        return writer.failed(
            reader_errors.failure(job.request_id, job.error_code, job.token_count, cost)
        )
    if job.status in queries.ENDED:
        return await _whole(services, Reading(job), writer)
    return writer.document(STATUSES[JobStatus(job.status)])


async def _whole(services: Services, reading: Reading, writer: ResponseWriter) -> dict[str, Any]:
    """The response, once its job has ended.

    Raises:
        MeshError: see :func:`api.routes.openai.following.follow`.
    """
    [ended] = await collect(services, [reading])
    for token in ended.tokens:
        _exhaust(writer.token(token))
    _exhaust(writer.end(ended.outcome))
    return writer.ended(ended.outcome)


async def _events(
    services: Services, reading: Reading, writer: ResponseWriter
) -> AsyncIterator[bytes]:
    for event in writer.begin():
        yield _encoded(event)
    try:
        async for piece in follow(services, [reading]):
            for token in piece.tokens:
                for event in writer.token(token):
                    yield _encoded(event)
            if piece.outcome is not None:
                for event in writer.end(piece.outcome):
                    yield _encoded(event)
    except GenerationFailed as error:
        for event in writer.fail(error):
            yield _encoded(event)


async def _after(events: AsyncIterator[bytes], number: int) -> AsyncIterator[bytes]:
    """The events after that of a sequence number."""
    at = 0
    async for event in events:
        if at > number:
            yield event
        at += 1


def _encoded(event: Event) -> bytes:
    content = json.dumps(event, ensure_ascii=False)
    return ServerSentEvent(content, event=event["type"]).encode()


def _exhaust(events: Any) -> None:
    for _ in events:
        pass
