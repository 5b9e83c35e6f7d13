"""Users who submit jobs at a rate of their own, whatever becomes of them, and what that was."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import aiohttp
import httpx
from eth_account import Account
from redis.asyncio import Redis

from benchmarks.running.user import RESPONSE_TIMEOUT, User
from market.jobs import live_session
from market.jobs.live_session import EndEntry
from mesh.token_stream import START
from stack import demo

LOGIN_SECONDS = 0.5
"""Seconds between two logins of somebody else."""


@dataclass(slots=True)
class LoadResult:
    """What became of the jobs of one load.

    ``accepted``: request ids, and when each was submitted (Unix time). ``accepted_ms``,
    ``refused_ms``: milliseconds to the answer. ``codes``: of refusals. ``retry_after``: seconds
    that each refusal said. ``logins_ms``: milliseconds that a login of somebody else took
    meanwhile, both requests and the signature. ``waits``: seconds from each submission to the first
    token. ``ends``: how the accepted ended.
    """

    accepted: dict[str, float] = field(default_factory=dict)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    retry_after: list[int] = field(default_factory=list)
    logins_ms: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)


class LoadGenerator:
    """Users of one stack who ask for generations of the same length."""

    def __init__(
        self, users: Sequence[User], prompts: Sequence[str], new_tokens: int, api_url: str
    ) -> None:
        self._users = itertools.cycle(users)
        self._prompts = itertools.cycle(prompts)
        self._new_tokens = new_tokens
        self._api_url = api_url
        self._random = Random(1)

    async def run_open_loop(self, redis: Redis, *, rate: float, seconds: float) -> LoadResult:
        """Jobs come at random, ``rate`` a second on average; then wait until all have ended."""
        result = LoadResult()
        async with self._client() as http, asyncio.TaskGroup() as tasks:
            logins = tasks.create_task(self._log_in_repeatedly(result))
            until = time.monotonic() + seconds
            at = time.monotonic()
            while (at := at + self._random.expovariate(rate)) < until:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                tasks.create_task(self._submit(http, result))
            logins.cancel()
        await _follow_all(redis, result)
        return result

    async def at_once(self, redis: Redis, count: int) -> LoadResult:
        """So many jobs at the same moment; then wait until all have ended."""
        result = LoadResult()
        async with self._client() as http:
            await asyncio.gather(*(self._submit(http, result) for _ in range(count)))
        await _follow_all(redis, result)
        return result

    async def saturate(self, redis: Redis, *, jobs: int, seconds: float) -> float:
        """Keep so many jobs in flight; returns how many ended a second."""
        ended = 0
        until = time.monotonic() + seconds

        async def one_after_the_other(http: aiohttp.ClientSession) -> None:
            nonlocal ended
            while time.monotonic() < until:
                result = LoadResult()
                await self._submit(http, result)
                await _follow_all(redis, result)
                ended += len(result.accepted) if time.monotonic() < until else 0

        async with self._client() as http, asyncio.TaskGroup() as tasks:
            for _ in range(jobs):
                tasks.create_task(one_after_the_other(http))
        return ended / seconds

    def _client(self) -> aiohttp.ClientSession:
        """Of hundreds of requests at once httpx takes longer than a gateway: it looks through all
        of its connections at each."""
        return aiohttp.ClientSession(
            self._api_url,
            timeout=aiohttp.ClientTimeout(RESPONSE_TIMEOUT),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def _submit(self, http: aiohttp.ClientSession, result: LoadResult) -> None:
        user, prompt = next(self._users), next(self._prompts)
        at, began = time.time(), time.perf_counter()
        answer = await user.ask(http, prompt, self._new_tokens)
        took = 1000 * (time.perf_counter() - began)
        body = await answer.json(content_type=None)
        if answer.status == httpx.codes.ACCEPTED:
            result.accepted[body["request_id"]] = at
            result.accepted_ms.append(took)
        else:
            code = f"{answer.status} {body['code']}"
            result.codes[code] = result.codes.get(code, 0) + 1
            result.refused_ms.append(took)
            result.retry_after.append(int(answer.headers.get("Retry-After", 0)))

    async def _log_in_repeatedly(self, result: LoadResult) -> None:
        account = Account.create()
        while True:
            result.logins_ms.append(1000 * await asyncio.to_thread(self._log_in, account))
            await asyncio.sleep(LOGIN_SECONDS)

    def _log_in(self, account: demo.LocalAccount) -> float:
        began = time.perf_counter()
        with httpx.Client(base_url=self._api_url, timeout=RESPONSE_TIMEOUT) as http:
            demo.login(http, account)
        return time.perf_counter() - began


async def _follow_all(redis: Redis, result: LoadResult) -> None:
    """Note how each accepted job ended and when its first token came."""
    for request_id, submitted_at in result.accepted.items():
        end = await _end_of(redis, request_id)
        result.ends[end] = result.ends.get(end, 0) + 1
        first = await live_session.first_token_at(redis, request_id)
        if first is not None:
            result.waits.append(first - submitted_at)


async def _end_of(redis: Redis, request_id: str) -> str:
    """How a job ended, once it has: the reason, or the code of its failure."""
    after = START
    while True:
        for entry in await live_session.read(redis, request_id, after, wait=RESPONSE_TIMEOUT):
            after = entry.entry_id
            if isinstance(entry, EndEntry):
                return entry.outcome["error"] or entry.outcome["finish_reason"] or "unknown"
