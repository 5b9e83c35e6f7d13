"""POST /v1/completions."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Response

from api.http.services import Services
from api.routes.inference.sse import EVENT_STREAM
from api.routes.openai import answers
from api.routes.openai.following import Reading, collect, follow
from api.routes.openai.streaming import cancelling_stream, data
from api.routes.openai.submission import WithAsking
from api.routes.openai.whole_answers import whole_answer
from api.schemas.openai.completions import CompletionBody
from market.catalog.models import Model
from market.jobs.live_session import JobOutcome, TokenEntry
from market.jobs.request import JobRequest
from market.jobs.tables import Job

router = APIRouter(prefix="/v1", tags=["openai"])

PATH = f"{router.prefix}/completions"


@router.post("/completions", responses={200: {"content": EVENT_STREAM}})
async def completions(body: CompletionBody, asking: WithAsking) -> Response:
    """Continuations of one or several prompts, as OpenAI's API gives them: one JSON document, or
    with `"stream": true` server-sent events that end with `[DONE]`.

    Beside OpenAI's fields, `usage` has the `cost` in FAR, and `jobs` says who served each one and
    where its receipt is. A client that goes away cancels the generations, and pays for what was
    delivered.
    """
    services = asking.services
    model = asking.model(body.model)
    jobs = await asking.submit(
        body,
        JobRequest(
            model_id=model.id,
            prompts=body.prompt,
            max_tokens=body.longest,
            sampling=body.sampling_params(model, logprobs=body.logprobs),
            choices=body.n or 1,
            tier=body.service_tier,
            near=asking.near,
        ),
    )
    answer = _Answer(model, jobs, with_logprobs=body.logprobs is not None)
    readings = [Reading(job) for job in jobs]
    if body.stream:
        events = answer.events(services, readings, with_usage=body.includes_usage)
        return cancelling_stream(services, readings, events, attempt=asking.attempt)
    return await whole_answer(asking, readings, answer.whole(services, readings))


class _Answer:
    """The answer of some jobs: all choices of the first prompt, then those of the next."""

    def __init__(self, model: Model, jobs: Sequence[Job], *, with_logprobs: bool) -> None:
        self._model = model
        self._jobs = jobs
        self._with_logprobs = with_logprobs
        self._id = f"cmpl-{jobs[0].request_id.removeprefix('req_')}"

    async def whole(self, services: Services, readings: Sequence[Reading]) -> dict[str, Any]:
        """One document, once all jobs have ended."""
        ended = await collect(services, readings)
        outcomes = answers.outcomes_of(ended)
        return {
            **self._head(answers.fingerprint(outcomes)),
            "choices": [
                {
                    "index": number,
                    "text": each.text,
                    "logprobs": self._logprobs(each.tokens, 0),
                    "finish_reason": answers.finish_reason(each.outcome),
                }
                for number, each in enumerate(ended)
            ],
            "usage": answers.usage(outcomes),
            "jobs": answers.job_facts((each.job, each.outcome) for each in ended),
        }

    async def events(
        self, services: Services, readings: Sequence[Reading], *, with_usage: bool
    ) -> AsyncIterator[bytes]:
        """Chunks, the last of which has the usage if that is wanted."""
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        outcomes: dict[int, JobOutcome] = {}
        written = [0] * len(self._jobs)
        async for piece in follow(services, readings):
            for token in piece.tokens:
                if token.text or self._with_logprobs:
                    logprobs = self._logprobs([token], written[piece.number])
                    written[piece.number] += len(token.text)
                    yield data(self._chunk(piece.number, token.text, logprobs=logprobs) | rest)
            if piece.outcome is not None:
                outcomes[piece.number] = piece.outcome
                yield data(
                    self._chunk(piece.number, "", reason=answers.finish_reason(piece.outcome))
                    | {"system_fingerprint": answers.fingerprint([piece.outcome])}
                    | rest
                )
        if with_usage:
            ordered = [outcomes[number] for number in range(len(self._jobs))]
            yield data(
                self._head(answers.fingerprint(ordered))
                | {"choices": [], "usage": answers.usage(ordered)}
                | {"jobs": answers.job_facts(zip(self._jobs, ordered, strict=True))}
            )

    def _head(self, fingerprint: str | None = None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": answers.created_at(self._jobs),
            "model": self._model.id,
            "system_fingerprint": fingerprint,
        }

    def _chunk(
        self,
        number: int,
        text: str,
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(), "choices": [choice]}

    def _logprobs(self, tokens: Sequence[TokenEntry], offset: int) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return answers.completion_logprobs(self._model.tokenizer, tokens, offset)
