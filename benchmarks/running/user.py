"""A user of the mesh who streams over HTTP, with times by the client's clock and by Redis'."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import aiohttp
import httpx
from eth_account import Account
from redis.asyncio import Redis

from benchmarks.common.timing import TokenTiming
from market.jobs import live_session
from market.jobs.live_session import TokenEntry
from market.money import to_units
from mesh import redis_keys, token_stream, wire
from mesh.wire import Ended
from stack import demo
from stack.development_stack import DevelopmentStack

GREEDY: Mapping[str, Any] = MappingProxyType({"temperature": 0.0})
"""How tokens are chosen, as fields of a request."""

FUNDS = to_units(Decimal(1000))

GENERATE = "/api/inference/distributed/generate"

CHAT = "/v1/chat/completions"

RESPONSE_TIMEOUT = 60.0
"""Seconds to wait for a generation's first response, or for the deposit to be credited."""


@dataclass(frozen=True, slots=True)
class Served:
    """The same generations on two clocks, and their tokens by prompt.

    ``user``: from the HTTP requests to the tokens that the client has read. ``pipeline``: from the
    first prompt in the edge's inbox to the tokens in their streams, all in Redis.
    """

    user: TokenTiming
    pipeline: TokenTiming
    token_ids: list[list[int]]


@dataclass(frozen=True, slots=True)
class ChatServed:
    """An answer of a chat: when its first and its last token were written (Unix time, Redis'
    clock), its tokens, and draft tokens that were accepted and rejected."""

    first: float
    last: float
    token_ids: list[int]
    accepted: int
    rejected: int


@dataclass(frozen=True, slots=True)
class _Streamed:
    request_id: str
    first: float
    last: float


class User:
    """A logged-in wallet with money on a running stack."""

    def __init__(self, stack: DevelopmentStack) -> None:
        self._plan = stack.plan
        account = Account.create()
        stack.chain.give(stack.deployment, account.address, FUNDS)
        stack.chain.deposit(stack.deployment, account, FUNDS)
        with httpx.Client(base_url=self._plan.api_url) as http:
            demo.login(http, account)
            self._headers = dict(http.headers)

    @property
    def authorization(self) -> str:
        """The header with which this user's requests are sent."""
        return self._headers["authorization"]

    def generate(
        self, prompts: Sequence[str], new_tokens: int, sampling: Mapping[str, Any] = GREEDY
    ) -> Served:
        """All prompts at once, each streamed to its end."""
        bodies = [self._body(prompt, new_tokens, sampling) for prompt in prompts]
        return asyncio.run(self._generate(bodies, new_tokens))

    def chat(self, body: Mapping[str, Any]) -> ChatServed:
        """A chat completion, whose end is waited for. ``body``: all but the model."""
        return asyncio.run(self._chat({**body, "model": self._plan.model_id}))

    async def submit(
        self, prompt: str, new_tokens: int, sampling: Mapping[str, Any] = GREEDY
    ) -> str:
        """Submit a generation as an asynchronous job, which needs no reader; returns its request
        id."""
        async with self._client() as http:
            body = self._body(prompt, new_tokens, sampling)
            headers = {"Prefer": "respond-async"}
            answer = await http.post(GENERATE, json=body, headers=headers)
            request_id: str = answer.raise_for_status().json()["request_id"]
            return request_id

    async def ask(
        self, http: aiohttp.ClientSession, prompt: str, new_tokens: int
    ) -> aiohttp.ClientResponse:
        """Submit a generation as an asynchronous job by a client that many users share; the answer,
        whose body is read, may be a refusal."""
        headers = {"Authorization": self.authorization, "Prefer": "respond-async"}
        body = self._body(prompt, new_tokens, GREEDY)
        async with http.post(GENERATE, json=body, headers=headers) as answer:
            await answer.read()
            return answer

    @contextmanager
    def streaming(self, prompt: str, new_tokens: int) -> Iterator[Iterator[str]]:
        """The events of one generation, whose connection closes on leaving."""
        body = {**self._body(prompt, new_tokens, GREEDY), "stream": True}
        with (
            httpx.Client(base_url=self._plan.api_url, headers=self._headers) as http,
            http.stream("POST", GENERATE, json=body, timeout=RESPONSE_TIMEOUT) as response,
        ):
            response.raise_for_status()
            yield (line for line in response.iter_lines() if line.startswith("data: "))

    def cancel(self, prompt: str, new_tokens: int, after: int) -> float:
        """Start a generation and cancel it once ``after`` tokens are there; returns when the
        cancelling was requested, on the monotonic clock."""
        with httpx.Client(base_url=self._plan.api_url, headers=self._headers) as http:
            body = self._body(prompt, new_tokens, GREEDY)
            answer = http.post(GENERATE, json=body, headers={"Prefer": "respond-async"})
            path = f"/api/inference/jobs/{answer.raise_for_status().json()['request_id']}"
            while http.get(path).raise_for_status().json()["tokens_generated"] < after:
                time.sleep(0.01)
            began = time.monotonic()
            http.delete(path).raise_for_status()
            return began

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._plan.api_url, headers=self._headers, timeout=RESPONSE_TIMEOUT
        )

    def _body(self, prompt: str, new_tokens: int, sampling: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "model_id": self._plan.model_id,
            "prompt": prompt,
            "max_tokens": new_tokens,
            **sampling,
        }

    async def _generate(self, bodies: Sequence[Mapping[str, Any]], new_tokens: int) -> Served:
        async with Redis.from_url(self._plan.redis_url) as redis, self._client() as http:
            inboxes = await self._edge_inboxes(http)
            opened = asyncio.create_task(_opened(redis, inboxes))
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            streamed = await asyncio.gather(
                *(_stream(http, body, new_tokens, began) for body in bodies)
            )
            start = await opened
            written = [await _written(redis, one.request_id) for one in streamed]
            tokens = len(bodies) * new_tokens
            return Served(
                user=TokenTiming(
                    min(one.first for one in streamed), max(one.last for one in streamed), tokens
                ),
                pipeline=TokenTiming(
                    min(first for first, _ in written) - start,
                    max(last for _, last in written) - start,
                    tokens,
                ),
                token_ids=[await _token_ids(redis, one.request_id) for one in streamed],
            )

    async def _chat(self, body: Mapping[str, Any]) -> ChatServed:
        async with Redis.from_url(self._plan.redis_url) as redis, self._client() as http:
            answer = await _paid(http, CHAT, body)
            [job] = answer["jobs"]
            first, last = await _written(redis, job["request_id"])
            details = answer["usage"]["completion_tokens_details"]
            return ChatServed(
                first,
                last,
                await _token_ids(redis, job["request_id"]),
                details["accepted_prediction_tokens"],
                details["rejected_prediction_tokens"],
            )

    async def _edge_inboxes(self, http: httpx.AsyncClient) -> list[str]:
        path = f"/api/discovery/nodes/active/{self._plan.model_id}"
        nodes = (await http.get(path)).raise_for_status().json()["nodes"]
        return [redis_keys.inbox(node["node_id"]) for node in nodes if node["edge"]]


async def _opened(redis: Redis, inboxes: Sequence[str]) -> float:
    """When the next prompt arrives in an edge's inbox (Unix time, Redis' clock)."""
    answer = await redis.xread(
        dict.fromkeys(inboxes, "$"), count=1, block=round(RESPONSE_TIMEOUT * 1000)
    )
    return _time_of(answer[0][1][0][0])


async def _paid(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request, once the deposit is credited."""
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    while True:
        answer = await http.post(path, json=body)
        if answer.status_code != httpx.codes.PAYMENT_REQUIRED or time.monotonic() > deadline:
            document: dict[str, Any] = answer.raise_for_status().json()
            return document
        await asyncio.sleep(0.2)


async def _stream(
    http: httpx.AsyncClient, body: Mapping[str, Any], new_tokens: int, began: float
) -> _Streamed:
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    while True:
        async with http.stream("POST", GENERATE, json={**body, "stream": True}) as response:
            if response.status_code == httpx.codes.PAYMENT_REQUIRED and time.monotonic() < deadline:
                await asyncio.sleep(0.2)  # the deposit is not credited yet
                continue
            if response.is_error:
                raise RuntimeError(f"The API refused the prompt: {await response.aread()!r}")
            return await _read(response, new_tokens, began)


async def _read(answer: httpx.Response, new_tokens: int, began: float) -> _Streamed:
    times = []
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if not event.get("done"):
            times.append(time.perf_counter() - began)
        elif event.get("error") or len(times) != new_tokens:
            raise RuntimeError(f"{len(times)} of {new_tokens} tokens, then {event}")
        else:
            return _Streamed(event["request_id"], times[0], times[-1])
    raise RuntimeError("The stream ended before the generation did.")


async def _written(redis: Redis, request_id: str) -> tuple[float, float]:
    """When the first and the last token were written (Unix time, Redis' clock)."""
    first = await live_session.first_token_at(redis, request_id)
    for entry, fields in await redis.xrange(redis_keys.events(request_id)):
        if isinstance(wire.decode(fields), Ended) and first is not None:
            return first, _time_of(entry)
    raise RuntimeError(f"Redis does not say when {request_id} began and ended.")


async def _token_ids(redis: Redis, request_id: str) -> list[int]:
    entries = await live_session.read(redis, request_id, token_stream.START)
    return [entry.token_id for entry in entries if isinstance(entry, TokenEntry)]


def _time_of(entry: bytes) -> float:
    return int(entry.partition(b"-")[0]) / 1000
