"""One blocking read for all jobs that this process's readers follow, fanned out in memory."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import sqlalchemy.exc
import structlog

from market.clients.redis_client import block_ms, open_redis
from market.errors import Unavailable
from market.jobs import live_session, stop
from market.jobs.live_session import EndEntry, JobOutcome, TokenEntry
from market.jobs.reading.ends import find_ends
from market.jobs.reading.followed_job import FollowedJob
from market.jobs.reading.pages import Pages, Render
from market.jobs.reading.reader_errors import stream_expired
from market.jobs.reading.stored_tokens import TOKENS_PER_PAGE, StoredTokensReader
from market.jobs.stop import Reader
from market.outages import OUTAGE_RETRY, OUTAGES, unavailable
from market.resources import Resources
from mesh import redis_keys
from mesh.token_stream import START, token_count_at

log = structlog.get_logger()

POLL_SECONDS = 1.0
"""Seconds without news of a job after which Postgres is asked whether it still runs; and seconds
that one read waits for tokens."""

ENTRIES_PER_READ = 128
"""Entries of one job that are taken in at once: about a millisecond's work."""

WAKEUP_TTL = 60
"""Seconds for which a wake-up is kept in Redis: longer than any read waits."""

PAUSE_PER_JOB = 2e-5
"""Seconds between two reads for each job that is followed, so that reading for many takes in
several tokens at once instead of all of the process's time: 20 ms at a thousand."""

TURN = 16
"""Readers woken, or tokens taken in, before all else in the process has its turn: about a
millisecond's work."""

WORK_OF_AN_END = 8
"""What the end of a reader's answer takes, in readers that are given a token."""


class TokenHub:
    """One a process. However many read, each token is read from Redis and rendered once.

    A reader holds a position, not tokens: a slow one takes no memory, and gets all that has come in
    one piece when it is ready. What is not kept in memory any more, or came before the first
    reader, is read from Redis for those that lack it (:class:`market.jobs.reading.pages.Pages`);
    what Redis has lost of a job that has ended, from Postgres.

    Args:
        render: Makes of a token the bytes that readers share.
    """

    def __init__(self, resources: Resources, render: Render) -> None:
        self._resources = resources
        self._render = render
        # Apart from all others' connections: what waits here is in nobody's way.
        self._redis = open_redis(resources.settings.redis_url, max_connections=1)
        self._pages = Pages(self._live_page, render)
        self._stored_pages = Pages(
            StoredTokensReader(resources.sessions, resources.vault).page, render
        )
        self._jobs: dict[str, FollowedJob] = {}
        self._any_job = asyncio.Event()
        self._wakeup_key = redis_keys.readers_wakeup(secrets.token_hex(8))
        self._wakeup_id = START
        self._done_in_turn = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["TokenHub"]:
        """Read for as long as this context lasts."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._look_for_ends())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._redis.aclose()

    async def follow(
        self,
        request_id: str,
        after: str = START,
        *,
        owner: str | None = None,
        reader: Reader | None = None,
    ) -> AsyncIterator[bytes | EndEntry]:
        """Each token after an entry, rendered, once and in order, and the summary last. Tokens that
        have come meanwhile are one piece.

        Args:
            owner: Whose readers take turns where much has come before; this job's if not given.
            reader: Who reads: told how many tokens he was given.

        Raises:
            StreamExpired: the job ended long ago and its tokens are forgotten.
            Unavailable: no worker is there to end the job, although its deadline has passed; or
                Redis or Postgres cannot be reached.
        """
        position, owner = token_count_at(after), owner or request_id
        reader = reader or Reader()
        async with self._followed(request_id, reader) as job:
            while True:
                data, tokens = b"", 0
                if position < job.oldest:
                    data, tokens = await self._pages.after(request_id, position, owner)
                if not tokens and _is_lost(job, position):
                    data, tokens = await self._stored_pages.after(request_id, position, owner)
                if tokens:
                    reader.taken = position = position + tokens
                    yield data
                elif job.oldest <= position < job.newest:
                    data, position = job.after(position), job.newest
                    reader.taken = position
                    yield data
                elif job.error is not None:
                    raise _copied(job.error)
                elif job.outcome is not None:
                    if position < job.outcome["total_tokens"]:
                        raise stream_expired(request_id)
                    yield EndEntry(f"{position}-1", job.outcome)
                    return
                else:
                    await job.change()

    async def wait_for_end(self, request_id: str, reader: Reader | None = None) -> None:
        """Return once the job has ended.

        Args:
            request_id: The job.
            reader: Who waits: told at the end of his wait how many tokens had come.

        Raises:
            Unavailable: as :meth:`follow`.
        """
        reader = reader or Reader()
        async with self._followed(request_id, reader) as job:
            try:
                await job.over.wait()
            finally:
                reader.sent = reader.taken = job.newest
            if job.error is not None:
                raise _copied(job.error)

    async def _live_page(self, request_id: str, page: int) -> list[TokenEntry]:
        return await live_session.tokens(
            self._resources.redis, request_id, page * TOKENS_PER_PAGE, count=TOKENS_PER_PAGE
        )

    def forget(self, request_id: str) -> None:
        """Keep no token of a job that only one reader here has followed, and that he does not want
        any more: some may be taken back."""
        self._pages.forget(request_id)
        job = self._jobs.get(request_id)
        if job is not None and job.readers <= 1:
            self._forget(job)

    @asynccontextmanager
    async def _followed(self, request_id: str, reader: Reader) -> AsyncIterator[FollowedJob]:
        await self._note(request_id, reader)
        job = self._jobs.get(request_id)
        if job is None:
            job = self._jobs[request_id] = FollowedJob(request_id)
            job.found = asyncio.create_task(self._find(job))
        job.readers += 1
        try:
            assert job.found is not None
            await asyncio.shield(job.found)
            yield job
        finally:
            job.readers -= 1
            if not job.readers:
                self._forget(job)

    async def _note(self, request_id: str, reader: Reader) -> None:
        """Say that there is a reader, before he is given anything."""
        ttl = self._resources.settings.generation.stream_ttl
        try:
            await stop.note_reader(self._resources.redis, request_id, reader, ttl=ttl)
        except Exception as error:
            raise _known(error) from error

    async def _find(self, job: FollowedJob) -> None:
        """Look how far a job's stream is, and have what comes after that read from now on."""
        try:
            last = await live_session.last_entry(self._resources.redis, job.request_id)
            job.heard_at = asyncio.get_running_loop().time()
            if last is not None:
                job.oldest = job.newest = token_count_at(last.entry_id)
            if isinstance(last, EndEntry):
                job.end(last.outcome)
                return
            job.followed = True
            self._any_job.set()
            await self._wake_read()
        except Exception as error:
            await self._fail([job], error)

    async def _wake_read(self) -> None:
        """Let the read that may be waiting begin again, with all jobs."""
        async with self._resources.redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._wakeup_key, {"": ""}, maxlen=1, approximate=False)
            pipe.expire(self._wakeup_key, WAKEUP_TTL)
            await pipe.execute()

    async def _read(self) -> None:
        while True:
            jobs = {redis_keys.tokens(job.request_id): job for job in self._followed_jobs()}
            if not jobs:
                self._any_job.clear()
                await self._any_job.wait()
                continue
            try:
                await self._read_once(jobs)
            except Exception as error:
                await self._fail(jobs.values(), error)
            await asyncio.sleep(PAUSE_PER_JOB * len(jobs))

    async def _read_once(self, jobs: Mapping[str, FollowedJob]) -> None:
        """Wait for entries of any of the jobs, by their streams, and fan them out."""
        after: dict[Any, Any] = {key: f"{job.newest}-0" for key, job in jobs.items()}
        after[self._wakeup_key] = self._wakeup_id
        answer = await self._redis.xread(
            after, count=ENTRIES_PER_READ, block=block_ms(POLL_SECONDS)
        )
        for raw_key, entries in answer:
            job = jobs.get(raw_key.decode())
            if job is None:
                self._wakeup_id = entries[-1][0].decode()
                continue
            try:
                await self._take(job, live_session.entries_of(entries))
            except Exception as error:
                # A fault of this job, with which the others' readers have nothing to do.
                await self._fail([job], error)

    async def _take(self, job: FollowedJob, entries: Sequence[TokenEntry | EndEntry]) -> None:
        job.heard_at = asyncio.get_running_loop().time()
        for entry in entries:
            if isinstance(entry, TokenEntry):
                job.append(self._render(job.request_id, entry))
            else:
                job.end(entry.outcome)
            await self._give_turn()
        await self._wake(job)

    async def _wake(self, job: FollowedJob) -> None:
        for waiter in job.take_waiting():
            if not waiter.done():
                waiter.set_result(None)
            await self._give_turn(WORK_OF_AN_END if job.over.is_set() else 1)

    async def _give_turn(self, work: int = 1) -> None:
        """Let all else in this process run, now and then."""
        self._done_in_turn += work
        if self._done_in_turn >= TURN:
            self._done_in_turn = 0
            await asyncio.sleep(0)

    async def _look_for_ends(self) -> None:
        """End what has ended without a summary in its stream."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            silent_since = asyncio.get_running_loop().time() - POLL_SECONDS
            silent = {
                job.request_id: job for job in self._followed_jobs() if job.heard_at <= silent_since
            }
            if not silent:
                continue
            try:
                for request_id, end in (await find_ends(self._resources, silent)).items():
                    await self._end_silent(silent[request_id], end)
            except Exception as error:
                await self._fail(silent.values(), error)

    async def _end_silent(self, job: FollowedJob, end: JobOutcome | Unavailable) -> None:
        if isinstance(end, Unavailable):
            await self._fail([job], end)
            return
        if job.newest < end["total_tokens"]:
            last = await live_session.last_entry_id(self._resources.redis, job.request_id)
            if token_count_at(last) >= end["total_tokens"]:
                return  # the rest is there, and read in a moment
        job.end(end)
        await self._wake(job)

    async def _fail(self, jobs: Iterable[FollowedJob], error: Exception) -> None:
        """Send the readers of these jobs away. Whoever comes after them begins anew."""
        known = _known(error)
        for job in jobs:
            if job.over.is_set():
                continue
            job.fail(known)
            self._forget(job)
            await self._wake(job)

    def _forget(self, job: FollowedJob) -> None:
        job.followed = False
        if self._jobs.get(job.request_id) is job:
            del self._jobs[job.request_id]

    def _followed_jobs(self) -> list[FollowedJob]:
        return [job for job in self._jobs.values() if job.followed]


def _is_lost(job: FollowedJob, position: int) -> bool:
    """Whether a job has ended with tokens after a position that its stream did not bring."""
    if job.outcome is None or job.oldest <= position < job.newest:
        return False
    return position < job.outcome["total_tokens"]


def _known(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, OUTAGES):
        with suppress(sqlalchemy.exc.DBAPIError):
            return unavailable(error)
    log.error("reading_failed", error=type(error).__name__)
    return Unavailable("The job cannot be read now.", retry_after=OUTAGE_RETRY)


def _copied(error: Unavailable) -> Unavailable:
    """For one reader: what is raised keeps a traceback, and with it all of its reader."""
    return Unavailable(error.detail, retry_after=error.retry_after)
