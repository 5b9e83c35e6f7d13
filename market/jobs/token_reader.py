"""Whether a job's tokens can be read, and why it failed, for its readers."""

from market.errors import Unavailable
from market.jobs import live_session
from market.jobs.errors import GenerationFailed, StreamExpired
from market.jobs.tables import Job
from market.outages import OUTAGES
from market.resources import Resources
from mesh.token_stream import token_count_at

RESUMABLE_ERRORS: tuple[type[Exception], ...] = (Unavailable, *OUTAGES)
"""What ends a stream but not its job: whoever comes back resumes after the last id."""

FAILURES = {
    "no_route": "No route could be found in time: some layer had no healthy node.",
    "deadline_exceeded": "The generation did not end before its deadline.",
    "prompt_lost": "The prompt was erased before the generation could go on.",
    "stalled": "Every route that was tried stopped answering.",
}
"""What a failed job's code means, for people. Nothing was charged in any of these."""


async def readable(resources: Resources, job: Job) -> bool:
    """Whether Redis still has all tokens of a completed job."""
    newest = await live_session.last_entry_id(resources.redis, job.request_id)
    return token_count_at(newest) >= job.token_count


def stream_expired(request_id: str) -> StreamExpired:
    """The error of a job whose tokens Redis does not have any more."""
    return StreamExpired(f"The tokens of {request_id} have been forgotten.")


def failure(code: str | None) -> GenerationFailed:
    """The error of a failed job."""
    error = GenerationFailed(FAILURES.get(code or "", "The mesh could not finish.") + " Refunded.")
    error.code = code or error.code
    return error
