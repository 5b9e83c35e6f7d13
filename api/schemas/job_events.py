"""A job's server-sent events (§7.1), each as the bytes that readers get."""

import json
from typing import Any

from sse_starlette import ServerSentEvent

from market.jobs.live_session import EndEntry, TokenEntry
from market.jobs.reading.reader_errors import failure
from market.jobs.tables import JobStatus
from mesh.errors import MeshError
from mesh.token_stream import token_count_at


def token_event(request_id: str, entry: TokenEntry) -> bytes:
    """One token, with the id to resume after."""
    data = {"token": entry.text, "request_id": request_id}
    return _event(data, str(token_count_at(entry.entry_id)))


def end_event(request_id: str, entry: EndEntry) -> bytes:
    """How the job ended."""
    outcome = entry.outcome
    done: dict[str, Any] = {"done": True, "request_id": request_id, **outcome}
    done["cost_far_exact"] = outcome["cost_far"]
    done["cost_far"] = float(outcome["cost_far"])
    if outcome["status"] == JobStatus.FAILED:
        done["error"] = failure(
            request_id, outcome["error"], outcome["total_tokens"], outcome["cost_far"]
        ).problem()
    return _event(done, f"{token_count_at(entry.entry_id)}-done")


def expired_event(error: MeshError) -> bytes:
    """The job's tokens have been forgotten: no event will follow, now or later."""
    return _event({"done": True, "error": error.problem()})


def interruption_event(error: MeshError) -> bytes:
    """This stream ends, and the job does not: it can be resumed after the last id."""
    return _event({"error": error.problem()})


def _event(data: dict[str, Any], event_id: str | None = None) -> bytes:
    return ServerSentEvent(json.dumps(data), id=event_id).encode()
