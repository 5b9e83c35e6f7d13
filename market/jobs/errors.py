"""Errors of jobs: unknown, tokens expired, failed, context exceeded, idempotency key used twice,
too many in flight, too many waiting, chain not known."""

from market.errors import InvalidRequest, RateLimited, Unavailable
from mesh.errors import MeshError, NotFound


class ContextExceeded(InvalidRequest):
    code = "context_exceeded"
    title = "Context exceeded"


class JobNotFound(NotFound):
    code = "job_not_found"


class IdempotencyConflict(MeshError):
    code = "idempotency_conflict"
    status = 409
    title = "Idempotency key used for another request"
    retry_useless = True


class TooManyInFlight(RateLimited):
    """The wallet has as many jobs, or positions, in flight as it may."""

    code = "too_many_in_flight"
    title = "Too many jobs in flight"


class Overloaded(Unavailable):
    """A new job would wait too long for its start."""

    code = "overloaded"
    title = "Overloaded"


class ChainIndexBehind(Unavailable):
    """Deposits and withdrawals of the last hours are not known."""

    code = "chain_index_behind"
    title = "Chain index behind"


class StreamExpired(MeshError):
    code = "stream_expired"
    status = 410
    title = "Stream expired"


class GenerationFailed(MeshError):
    """``delivered``: what readers have of it, and what it cost; members of the problem document."""

    code = "generation_failed"
    status = 502
    title = "Generation failed"

    def __init__(self, detail: str, **delivered: object) -> None:
        super().__init__(detail)
        self.delivered = delivered

    def problem(self) -> dict[str, object]:
        return super().problem() | self.delivered
