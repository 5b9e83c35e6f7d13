"""Whether a job's tokens can be read, and why it failed, for its readers."""

from market.errors import Unavailable
from market.jobs import live_session
from market.jobs.errors import GenerationFailed, StreamExpired
from market.jobs.reading import stored_tokens
from market.jobs.tables import Job
from market.outages import OUTAGES
from market.resources import Resources
from mesh.token_stream import token_count_at

RESUMABLE_ERRORS: tuple[type[Exception], ...] = (Unavailable, *OUTAGES)
"""What ends a stream but not its job: whoever comes back resumes after the last id."""

FAILURES = {
    "no_route": "No route could be found in time: some layer had no healthy node.",
    "deadline_exceeded": "The generation did not end before its deadline.",
    "prompt_lost": "The prompt could not be read any more before the generation could go on.",
    "stalled": "Every route that was tried stopped answering.",
    "grammar_refused": "The answer's form could not be followed with this model; make it simpler.",
    "generation_failed": "Two nodes failed at the same point of it, so no third one was tried.",
}
"""What a failed job's code means, for people."""


async def readable(resources: Resources, job: Job) -> bool:
    """Whether all tokens of a job that has ended can be read still: in Redis, or in Postgres."""
    newest = await live_session.last_entry_id(resources.redis, job.request_id)
    if token_count_at(newest) >= job.token_count:
        return True
    async with resources.sessions() as db:
        return await stored_tokens.has_tokens(db, job.id)


def stream_expired(request_id: str) -> StreamExpired:
    """The error of a job whose tokens nobody has any more."""
    return StreamExpired(f"The tokens of {request_id} have been forgotten.")


def failure(request_id: str, code: str | None, tokens: int, cost_far: str) -> GenerationFailed:
    """The error of a failed job, which delivered ``tokens`` tokens for ``cost_far`` FAR."""
    why = FAILURES.get(code or "", "The mesh could not finish.")
    error = GenerationFailed(
        f"{why} {_charged(tokens, cost_far)}",
        request_id=request_id,
        tokens_generated=tokens,
        cost_far_exact=cost_far,
    )
    error.code = code or error.code
    return error


def _charged(tokens: int, cost_far: str) -> str:
    if not tokens:
        return "Nothing was charged."
    return (
        f"You pay {cost_far} FAR for the prompt and the {tokens} tokens delivered before; the job "
        "has them."
    )
