"""The tokens of the jobs of one request, as they come, until all have ended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from api.http.services import Services
from market.jobs.live_session import EndEntry, JobOutcome, TokenEntry
from market.jobs.reading import packed_tokens, reader_errors
from market.jobs.stop import Reader
from market.jobs.tables import Job, JobStatus

MAX_PIECES = 16
"""Pieces of all jobs that wait for a slow reader; what comes then stays where it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of one job. ``number``: its place in the request. ``outcome``: with the end."""

    number: int
    tokens: Sequence[TokenEntry]
    outcome: JobOutcome | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A job, and who reads it for one answer."""

    job: Job
    reader: Reader = field(default_factory=Reader)


@dataclass(slots=True)
class EndedJob:
    """A job that has ended as it should, with all of its tokens."""

    job: Job
    outcome: JobOutcome
    tokens: list[TokenEntry] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


async def follow(services: Services, readings: Sequence[Reading]) -> AsyncIterator[Piece]:
    """What comes of the jobs, each one's tokens in their order and its end last.

    Raises:
        GenerationFailed: one of them failed.
        StreamExpired: the tokens of one have been forgotten.
        Unavailable: one cannot be read now.
    """
    pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue(MAX_PIECES)
    tasks = [
        asyncio.create_task(_follow_one(services, number, reading, pieces))
        for number, reading in enumerate(readings)
    ]
    left = len(readings)
    try:
        while left:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            readings[piece.number].reader.taken += len(piece.tokens)
            yield piece
            left -= piece.outcome is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow_one(
    services: Services, number: int, reading: Reading, pieces: asyncio.Queue[Piece | Exception]
) -> None:
    job = reading.job
    ahead = Reader(reading.reader.name)  # of what has left the queue
    try:
        async for piece in services.packed_tokens.follow(
            job.request_id, owner=job.user_wallet, reader=ahead
        ):
            if isinstance(piece, EndEntry):
                await pieces.put(Piece(number, (), _checked(job, piece.outcome)))
            else:
                await pieces.put(Piece(number, list(packed_tokens.unpack(piece))))
    except Exception as error:
        await pieces.put(error)


def _checked(job: Job, outcome: JobOutcome) -> JobOutcome:
    if outcome["status"] == JobStatus.FAILED:
        raise reader_errors.failure(
            job.request_id, outcome["error"], outcome["total_tokens"], outcome["cost_far"]
        )
    return outcome


async def collect(services: Services, readings: Sequence[Reading]) -> list[EndedJob]:
    """All of the jobs, once they have ended.

    Raises:
        MeshError: as :func:`follow`.
    """
    tokens: list[list[TokenEntry]] = [[] for _ in readings]
    outcomes: dict[int, JobOutcome] = {}
    async for piece in follow(services, readings):
        tokens[piece.number] += piece.tokens
        reader = readings[piece.number].reader
        reader.sent = reader.taken  # the answer will be sent whole
        if piece.outcome is not None:
            outcomes[piece.number] = piece.outcome
    return [
        EndedJob(reading.job, outcomes[number], tokens[number])
        for number, reading in enumerate(readings)
    ]
