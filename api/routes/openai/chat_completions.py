"""POST /v1/chat/completions."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.http import disconnection
from api.http.disconnection import ClientDisconnected
from api.http.services import Services
from api.routes.inference.sse import EVENT_STREAM
from api.routes.openai import answers, attempts
from api.routes.openai.following import EndedJob, collect, follow
from api.routes.openai.streaming import cancelling_stream, data
from api.routes.openai.submission import WithAsking
from api.schemas.openai.chat import ChatBody
from market.catalog.models import Model
from market.errors import InvalidRequest
from market.jobs.live_session import JobOutcome
from market.jobs.request import JobRequest, TextPrompt
from market.jobs.tables import Job

router = APIRouter(prefix="/v1", tags=["openai"])

PATH = f"{router.prefix}/chat/completions"


@router.post("/chat/completions", responses={200: {"content": EVENT_STREAM}})
async def chat_completions(body: ChatBody, asking: WithAsking) -> Response:
    """An answer to a chat, as OpenAI's API gives it: one JSON document, or with `"stream": true`
    server-sent events that end with `[DONE]`.

    Beside OpenAI's fields, `usage` has the `cost` in FAR, and `jobs` says who served each answer
    and where its receipt is. A client that goes away cancels the generation, and pays for what was
    delivered.
    """
    services = asking.services
    model = services.catalog.get(body.model)
    prompt = await _prompt(model, body)
    jobs = await asking.submit(
        body,
        JobRequest(
            model_id=model.id,
            prompts=[prompt],
            max_tokens=body.longest,
            sampling=body.sampling_params(model, logprobs=body.reported_logprobs),
            choices=body.n or 1,
            tier=body.service_tier,
            near=asking.near,
        ),
    )
    answer = _Answer(model, jobs, with_logprobs=bool(body.logprobs))
    if body.stream:
        events = answer.events(services, with_usage=body.includes_usage)
        return cancelling_stream(services, jobs, events, attempt=asking.attempt)
    try:
        ended = await disconnection.unless_disconnected(asking.request, collect(services, jobs))
    except ClientDisconnected:
        services.in_background(attempts.abandon(services, jobs, asking.attempt))
        return Response(status_code=499)
    return JSONResponse(answer.whole(ended))


async def _prompt(model: Model, body: ChatBody) -> TextPrompt:
    """
    Raises:
        InvalidRequest: the model has no chat template, or its template refuses the messages.
    """
    if model.chat_template is None:
        raise InvalidRequest(
            f"{model.id} has no chat template: it continues texts. Use /v1/completions.",
            code="chat_unsupported",
            param="model",
        )
    messages = body.template_messages()
    text = await asyncio.to_thread(model.chat_template.render, messages)
    return TextPrompt(text, add_special_tokens=False)


class _Answer:
    """The answer of some jobs: the choices of one request."""

    def __init__(self, model: Model, jobs: Sequence[Job], *, with_logprobs: bool) -> None:
        self._model = model
        self._jobs = jobs
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{jobs[0].request_id.removeprefix('req_')}"

    def whole(self, ended: Sequence[EndedJob]) -> dict[str, Any]:
        """One document."""
        outcomes = answers.outcomes_of(ended)
        return {
            **self._head("chat.completion", answers.fingerprint(outcomes)),
            "choices": [
                {
                    "index": number,
                    "message": {"role": "assistant", "content": each.text, "refusal": None},
                    "logprobs": self._logprobs(each.tokens),
                    "finish_reason": answers.finish_reason(each.outcome),
                }
                for number, each in enumerate(ended)
            ],
            "usage": answers.usage(outcomes),
            "service_tier": "default",
            "jobs": answers.job_facts((each.job, each.outcome) for each in ended),
        }

    async def events(self, services: Services, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Chunks, the last of which has the usage if that is wanted."""
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        outcomes: dict[int, JobOutcome] = {}
        for number in range(len(self._jobs)):
            yield data(self._chunk(number, {"role": "assistant", "content": ""}) | rest)
        async for piece in follow(services, self._jobs):
            for token in piece.tokens:
                if token.text or self._with_logprobs:
                    delta = {"content": token.text}
                    logprobs = self._logprobs([token])
                    yield data(self._chunk(piece.number, delta, logprobs=logprobs) | rest)
            if piece.outcome is not None:
                outcomes[piece.number] = piece.outcome
                yield data(
                    self._chunk(piece.number, {}, reason=answers.finish_reason(piece.outcome))
                    | {"system_fingerprint": answers.fingerprint([piece.outcome])}
                    | rest
                )
        if with_usage:
            ordered = [outcomes[number] for number in range(len(self._jobs))]
            yield data(
                self._head("chat.completion.chunk", answers.fingerprint(ordered))
                | {"choices": [], "usage": answers.usage(ordered)}
                | {"jobs": answers.job_facts(zip(self._jobs, ordered, strict=True))}
            )

    def _head(self, kind: str, fingerprint: str | None = None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": answers.created_at(self._jobs),
            "model": self._model.id,
            "system_fingerprint": fingerprint,
        }

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        return answers.chat_logprobs(self._model.tokenizer, tokens) if self._with_logprobs else None
