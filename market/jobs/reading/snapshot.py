"""A job as it is now: its row, its text so far, and who has served it."""

from collections.abc import Sequence
from dataclasses import dataclass

from market.jobs import queries, stop
from market.jobs.errors import JobNotFound
from market.jobs.reading.shared_answers import SharedAnswers
from market.jobs.reading.stored_tokens import StoredTokensReader
from market.jobs.reading.texts import JobTexts
from market.jobs.request_id import is_request_id
from market.jobs.stop import Reader
from market.jobs.tables import Job, NodeContribution
from market.resources import Resources


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """``text``: what has been generated so far; none once the tokens have been forgotten."""

    job: Job
    text: str | None
    tokens_generated: int
    contributions: Sequence[NodeContribution]


class JobSnapshots:
    """One a process: what many ask of one job at a time is asked of Postgres and Redis once."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._texts = JobTexts(resources.redis)
        self._stored = StoredTokensReader(resources.sessions, resources.vault)
        self._jobs = SharedAnswers(self._find)
        self._snapshots = SharedAnswers(self._make)

    async def find(self, wallet: str, request_id: str) -> Job:
        """The user's own job.

        Raises:
            JobNotFound: no such job, or another user's.
        """
        return await self._jobs.get((wallet, request_id))

    async def get(self, wallet: str, request_id: str) -> JobSnapshot:
        """The user's own job now, with all text so far.

        Raises:
            JobNotFound: no such job, or another user's.
        """
        return await self._snapshots.get((wallet, request_id))

    async def _find(self, key: tuple[str, str]) -> Job:
        wallet, request_id = key
        job = None
        if is_request_id(request_id):
            async with self._resources.sessions() as db:
                job = await queries.find(db, request_id)
        if job is None or job.user_wallet != wallet:
            raise JobNotFound("You have no job of this id.")
        return job

    async def _make(self, key: tuple[str, str]) -> JobSnapshot:
        job = await self._find(key)
        ended = job.status in queries.ENDED
        if not ended:
            ttl = self._resources.settings.generation.stream_ttl
            await stop.note_reader(self._resources.redis, job.request_id, Reader(), ttl=ttl)
        found = await self._texts.read(job.request_id)
        text, tokens = found.text, found.tokens
        if ended and tokens < job.token_count:  # Redis has lost it, or has forgotten it
            stored = await self._stored.all(job.request_id)
            text, tokens = "".join(token.text for token in stored), len(stored)
        async with self._resources.sessions() as db:
            parts = await queries.contributions(db, job)
        forgotten = ended and tokens < job.token_count
        return JobSnapshot(
            job=job,
            text=None if forgotten else text,
            tokens_generated=job.token_count if ended else tokens,
            contributions=parts,
        )
