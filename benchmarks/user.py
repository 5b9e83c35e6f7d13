"""A user of the mesh, who streams over HTTP; and Redis' own clock of the same generations."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from eth_account import Account
from redis.asyncio import Redis

from benchmarks.timing import Timing
from mesh import names, streams, wire
from mesh.money import to_units
from mesh.streams import Delivered
from mesh.wire import Ended
from stack import demo
from stack.supervisor import Stack

FUNDS = to_units(Decimal(1000))

PATIENCE = 60.0
"""Seconds to wait for a generation's first sign of life, or for the deposit to be credited."""


@dataclass(frozen=True, slots=True)
class Served:
    """The same generations on two clocks, and their tokens by prompt.

    ``user``: from the HTTP requests to the tokens in the reader's hands. ``pipeline``: from the
    first prompt in the edge's inbox to the tokens in their streams, all in Redis.
    """

    user: Timing
    pipeline: Timing
    token_ids: list[list[int]]


@dataclass(frozen=True, slots=True)
class _Streamed:
    request_id: str
    first: float
    last: float


class User:
    """A logged-in wallet with money on a running stack."""

    def __init__(self, stack: Stack) -> None:
        self._plan = stack.plan
        account = Account.create()
        stack.chain.give(stack.deployment, account.address, FUNDS)
        stack.chain.deposit(stack.deployment, account, FUNDS)
        with httpx.Client(base_url=self._plan.api_url) as http:
            demo.login(http, account)
            self._headers = dict(http.headers)
            path = f"/api/discovery/nodes/active/{self._plan.model_id}"
            nodes = http.get(path).raise_for_status().json()["nodes"]
        self._edge_inbox = names.inbox(next(node["node_id"] for node in nodes if node["edge"]))

    def generate(self, prompts: Sequence[str], new_tokens: int) -> Served:
        """All prompts at once, greedy, each streamed to its end."""
        return asyncio.run(self._generate(prompts, new_tokens))

    async def _generate(self, prompts: Sequence[str], new_tokens: int) -> Served:
        async with (
            Redis.from_url(self._plan.redis_url) as redis,
            httpx.AsyncClient(
                base_url=self._plan.api_url, headers=self._headers, timeout=PATIENCE
            ) as http,
        ):
            await http.get("/healthz")  # connected, as a user's client is
            opened = asyncio.create_task(self._opened(redis))
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            streamed = await asyncio.gather(
                *(self._stream(http, prompt, new_tokens, began) for prompt in prompts)
            )
            start = await opened
            written = [await _written(redis, one.request_id) for one in streamed]
            tokens = len(prompts) * new_tokens
            return Served(
                user=Timing(
                    min(one.first for one in streamed), max(one.last for one in streamed), tokens
                ),
                pipeline=Timing(
                    min(first for first, _ in written) - start,
                    max(last for _, last in written) - start,
                    tokens,
                ),
                token_ids=[await _token_ids(redis, one.request_id) for one in streamed],
            )

    async def _opened(self, redis: Redis) -> float:
        """When the next prompt arrives in the edge's inbox (Unix time, Redis' clock)."""
        answer = await redis.xread({self._edge_inbox: "$"}, count=1, block=round(PATIENCE * 1000))
        return _time_of(answer[0][1][0][0])

    async def _stream(
        self, http: httpx.AsyncClient, prompt: str, new_tokens: int, began: float
    ) -> _Streamed:
        body = {
            "model_id": self._plan.model_id,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        give_up = time.monotonic() + PATIENCE
        while True:
            async with http.stream("POST", "/api/inference/distributed/generate", json=body) as got:
                if got.status_code == httpx.codes.PAYMENT_REQUIRED and time.monotonic() < give_up:
                    await asyncio.sleep(0.2)  # the deposit is not credited yet
                    continue
                if got.is_error:
                    raise RuntimeError(f"The API refused the prompt: {await got.aread()!r}")
                return await _read(got, new_tokens, began)


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
    first = await streams.first_token_at(redis, request_id)
    for entry, fields in await redis.xrange(names.events(request_id)):
        if isinstance(wire.decode(fields), Ended) and first is not None:
            return first, _time_of(entry)
    raise RuntimeError(f"Redis does not say when {request_id} began and ended.")


async def _token_ids(redis: Redis, request_id: str) -> list[int]:
    entries = await streams.read(redis, request_id, streams.START)
    return [entry.token_id for entry in entries if isinstance(entry, Delivered)]


def _time_of(entry: bytes) -> float:
    return int(entry.partition(b"-")[0]) / 1000
