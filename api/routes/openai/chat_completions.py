"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Response

from api.http.services import Services
from api.routes.inference.sse import EVENT_STREAM
from api.routes.openai import answers, chat_answers
from api.routes.openai.following import EndedJob, Reading, collect, follow
from api.routes.openai.streaming import cancelling_stream, data
from api.routes.openai.submission import WithAsking
from api.routes.openai.whole_answers import whole_answer
from api.schemas.openai.chat import ChatBody
from market.chat.preparation import PreparedChat
from market.jobs.live_session import JobOutcome, TokenEntry
from market.jobs.request import JobRequest
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
    model = asking.model(body.model)
    prepared = await asking.prepare(model, body.chat())
    jobs = await asking.submit(
        body,
        JobRequest(
            model_id=model.id,
            prompts=[prepared.prompt],
            max_tokens=body.longest,
            sampling=body.sampling_params(
                model, logprobs=body.reported_logprobs, grammar=prepared.grammar
            ),
            choices=body.n or 1,
            tier=body.service_tier,
            near=asking.near,
        ),
    )
    answer = _Answer(prepared, jobs, with_logprobs=bool(body.logprobs))
    readings = [Reading(job) for job in jobs]
    if body.stream:
        events = answer.events(services, readings, with_usage=body.includes_usage)
        return cancelling_stream(services, readings, events, attempt=asking.attempt)
    return await whole_answer(asking, readings, answer.whole(services, readings))


class _Answer:
    """The answer of some jobs: the choices of one request."""

    def __init__(self, prepared: PreparedChat, jobs: Sequence[Job], *, with_logprobs: bool) -> None:
        self._model = prepared.model
        self._readers = [prepared.reader(job.request_id) for job in jobs]
        self._jobs = jobs
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{jobs[0].request_id.removeprefix('req_')}"

    async def whole(self, services: Services, readings: Sequence[Reading]) -> dict[str, Any]:
        """One document, once all jobs have ended."""
        ended = await collect(services, readings)
        outcomes = answers.outcomes_of(ended)
        return {
            **self._head("chat.completion", answers.fingerprint(outcomes)),
            "choices": [self._choice(number, each) for number, each in enumerate(ended)],
            "usage": answers.usage(outcomes),
            "service_tier": "default",
            "jobs": answers.job_facts((each.job, each.outcome) for each in ended),
        }

    def _choice(self, number: int, ended: EndedJob) -> dict[str, Any]:
        reader = self._readers[number]
        reader.feed(ended.text)
        reader.finish()
        return {
            "index": number,
            "message": chat_answers.message(reader.answer),
            "logprobs": self._logprobs(ended.tokens),
            "finish_reason": self._finish_reason(number, ended.outcome),
        }

    def _finish_reason(self, number: int, outcome: JobOutcome) -> str:
        return chat_answers.finish_reason(
            answers.finish_reason(outcome), self._readers[number].answer
        )

    async def events(
        self, services: Services, readings: Sequence[Reading], *, with_usage: bool
    ) -> AsyncIterator[bytes]:
        """Chunks, the last of which has the usage if that is wanted."""
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        outcomes: dict[int, JobOutcome] = {}
        for number in range(len(self._jobs)):
            yield data(self._chunk(number, {"role": "assistant", "content": ""}) | rest)
        async for piece in follow(services, readings):
            for token in piece.tokens:
                for chunk in self._token_chunks(piece.number, token):
                    yield data(chunk | rest)
            if piece.outcome is not None:
                outcomes[piece.number] = piece.outcome
                for delta in self._readers[piece.number].finish():
                    yield data(self._chunk(piece.number, chat_answers.chunk_delta(delta)) | rest)
                reason = self._finish_reason(piece.number, piece.outcome)
                yield data(
                    self._chunk(piece.number, {}, reason=reason)
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

    def _token_chunks(self, number: int, token: TokenEntry) -> Iterator[dict[str, Any]]:
        """What a token shows, and its log-probability, though it may show nothing yet."""
        deltas = [
            chat_answers.chunk_delta(delta) for delta in self._readers[number].feed(token.text)
        ]
        logprobs = self._logprobs([token])
        if logprobs is not None and not deltas:
            deltas = [{}]
        for delta in deltas:
            yield self._chunk(number, delta, logprobs=logprobs)
            logprobs = None

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

    def _logprobs(self, tokens: Sequence[TokenEntry]) -> dict[str, Any] | None:
        return answers.chat_logprobs(self._model.tokenizer, tokens) if self._with_logprobs else None
