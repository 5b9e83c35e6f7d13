"""Several JSON-RPC endpoints as one.

Reads go to the endpoint with the highest head that answers. One whose newest block is old, or far
from the median of the others, is passed over: its state is out of date, or its head is a lie.
Transactions go to all endpoints. With one URL there is nothing to compare its head with but the
clock.

What moves money is asked of two endpoints: see `market.chain.client.ChainClient.agreed`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from statistics import median_low
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from aiohttp import ClientError, ClientResponseError
from web3.providers import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from market.chain.bounded_http import BoundedProvider
from market.chain.errors import AnswerTooLarge, ChainError, ChainUnreachable
from market.chain.rpc_errors import REQUESTS_LIMITED, asks_another, error_message, is_not_found
from market.settings.payments import PaymentsSettings
from mesh.clock_skew import CLOCK_SKEW

log = structlog.get_logger()

SECOND_AFTER = 0.5
"""Part of a request's time after which it is sent again on a new connection."""

POLL_SECONDS = 5.0
"""Seconds between polls of the endpoints' heads."""

MAX_BATCH = 50
"""Requests in one HTTP request: blocks of BSC have some 20 kB each without their transactions."""

BATCH_REFUSED = (400, 405, 413, 415, 422)
"""HTTP statuses by which an endpoint refuses a batch as such, and not whoever asks."""

CONCURRENT = 8
"""Requests at one time to an endpoint that takes no batches."""

TRANSPORT_ERRORS = (ClientError, OSError, TimeoutError, ValueError)
"""A broken connection, a time-out, an HTTP error, or a body that is no JSON."""


Request = tuple[RPCEndpoint, Any]
"""A method and its parameters."""

Answer = TypeVar("Answer")


class Endpoint(AsyncBaseProvider):
    """One URL, as a web3 provider, and the newest block that it has shown.

    Args:
        timeout: Seconds that one request may take.
        chain_id: EIP-155 id that the endpoint has to show before it is asked anything else.
    """

    def __init__(self, url: str, timeout: float, chain_id: int | None = None) -> None:
        super().__init__()
        self.name = urlsplit(url).hostname or "endpoint"
        """For logs: the URL may hold a key."""
        self.head: int | None = None
        """Number of its newest block when it was last polled; none if it did not answer."""
        self.head_age = 0.0
        """Seconds since the time of that block, when it was polled."""
        self.answered = False
        """Whether it answered when it was last polled."""
        self._unverified_chain_id = chain_id
        self._timeout = timeout
        self._takes_batches = True
        self._http = BoundedProvider(url, timeout)

    @property
    def endpoints(self) -> "list[Endpoint]":
        return [self]

    async def answering(self) -> "list[Endpoint]":
        return [self]

    async def best_first(self) -> "list[Endpoint]":
        return [self]

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        return await self.request(method, params)

    async def broadcast(self, method: str, params: Any) -> list[RPCResponse]:
        """As `FailoverProvider.broadcast`, to this endpoint alone."""
        return [await self.request(method, params)]

    async def request(self, method: str, params: Any) -> RPCResponse:
        """The endpoint's answer, which may be an error of the chain's.

        Raises:
            ChainUnreachable: there is no answer, the endpoint lacks what an answer needs, or it is
                of another chain.
            AnswerTooLarge: the answer is longer than is read.
        """
        if self._unverified_chain_id is not None:
            await self._verify_chain_id(self._unverified_chain_id)
        return await self._send(method, params)

    async def make_batch_request(self, requests: list[Request]) -> list[RPCResponse]:
        """The answers in the requests' order, each of which may be an error of the chain's.

        Raises:
            ChainUnreachable, AnswerTooLarge: as `request`, for any of them.
        """
        answers: list[RPCResponse] = []
        for start in range(0, len(requests), MAX_BATCH):
            answers += await self._request_all(requests[start : start + MAX_BATCH])
        return answers

    async def _request_all(self, requests: list[Request]) -> list[RPCResponse]:
        """In one HTTP request, if the endpoint takes so many and so much at once."""
        if len(requests) > 1 and self._takes_batches:
            if self._unverified_chain_id is not None:
                await self._verify_chain_id(self._unverified_chain_id)
            answers = await self._send_batch(requests)
            if answers is not None:
                return answers
        limit = asyncio.Semaphore(CONCURRENT)

        async def request(method: str, params: Any) -> RPCResponse:
            async with limit:
                return await self.request(method, params)

        return list(await asyncio.gather(*(request(*each) for each in requests)))

    async def _send_batch(self, requests: list[Request]) -> list[RPCResponse] | None:
        """The answers; none where the endpoint refuses the batch. A batch too large for an answer
        is halved."""
        try:
            answer = await self._ask(lambda: self._http.make_batch_request(requests))
        except AnswerTooLarge:
            half = len(requests) // 2
            return [
                *await self._request_all(requests[:half]),
                *await self._request_all(requests[half:]),
            ]
        except TRANSPORT_ERRORS as error:
            if not isinstance(error, ClientResponseError) or error.status not in BATCH_REFUSED:
                raise ChainUnreachable(f"{self.name}: {type(error).__name__}") from None
            answer = None
        if isinstance(answer, dict) and REQUESTS_LIMITED.search(error_message(answer)):
            raise ChainUnreachable(f"{self.name}: too many requests")
        if not isinstance(answer, list) or len(answer) != len(requests):
            self._takes_batches = False
            return None
        return [
            self._checked(method, each) for (method, _), each in zip(requests, answer, strict=True)
        ]

    async def _verify_chain_id(self, expected: int) -> None:
        found = (await self._send("eth_chainId", [])).get("result")
        if found != hex(expected):
            raise ChainUnreachable(f"{self.name}: chain {found}, not {hex(expected)}")
        self._unverified_chain_id = None

    async def _send(self, method: str, params: Any) -> RPCResponse:
        try:
            answer = await self._ask(lambda: self._http.make_request(RPCEndpoint(method), params))
        except TRANSPORT_ERRORS as error:
            # Not the error's text: aiohttp quotes the URL.
            raise ChainUnreachable(f"{self.name}: {type(error).__name__}") from None
        return self._checked(method, answer)

    def _checked(self, method: str, answer: RPCResponse) -> RPCResponse:
        """The answer to one request, if it is one.

        Raises:
            ChainUnreachable: it is a refusal that says nothing of the chain.
        """
        if is_not_found(method, answer):
            return {"jsonrpc": "2.0", "id": answer.get("id"), "result": None}
        reason = asks_another(method, answer)
        if reason is not None:
            log.info("rpc_refused", endpoint=self.name, method=method, said=error_message(answer))
            raise ChainUnreachable(f"{self.name}: {reason}")
        return answer

    async def _ask(self, send: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Ask a second time, on a new connection, where the first is silent for long: it may be the
        connection, not the endpoint. Whichever answers first counts; nothing that we ask for does
        harm when it is done twice. Any other failure is left to the next endpoint."""

        asked = [asyncio.create_task(send())]
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait(asked, timeout=SECOND_AFTER * self._timeout)
                if not asked[0].done():
                    asked.append(asyncio.create_task(send()))
                ended, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                return ended.pop().result()
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def poll_head(self) -> None:
        """Ask for the newest block."""
        self.head, self.answered = None, False
        try:
            answer = await self.request("eth_getBlockByNumber", ["latest", False])
            block: Any = answer["result"]
            self.head = int(block["number"], 16)
            self.head_age = time.time() - int(block["timestamp"], 16)
        except ChainError as error:
            log.warning("rpc_silent", reason=error.detail)
        except (KeyError, TypeError, ValueError):
            log.warning("rpc_silent", reason=f"{self.name}: shows no newest block")
        self.answered = self.head is not None

    async def disconnect(self) -> None:
        await self._http.disconnect()


class FailoverProvider(AsyncBaseProvider):
    """A web3 provider over any number of JSON-RPC endpoints.

    Args:
        urls: In order of preference among those whose heads are equal. One that is there twice
            is one endpoint.
        max_age: Seconds since the newest block after which an endpoint is stale; 0 for no limit,
            on a chain that makes blocks only when it has something to put into them.
        max_lag: Blocks that an endpoint may be behind or ahead of the median.
        timeout: Seconds that one request may take.
        chain_id: EIP-155 id of the chain. An endpoint of another chain counts as silent: at our
            contract's address there is nothing, or a stranger's contract.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        max_age: float = 0,
        max_lag: int = 20,
        timeout: float = 10,
        chain_id: int | None = None,
    ) -> None:
        super().__init__()
        if not urls:
            raise ValueError("A chain needs at least one RPC URL.")
        self.endpoints = [Endpoint(url, timeout, chain_id) for url in dict.fromkeys(urls)]
        self._max_age = max_age
        self._max_lag = max_lag
        self._polled_at = float("-inf")
        self._poll_lock = asyncio.Lock()

    @classmethod
    def from_settings(cls, payments: PaymentsSettings) -> "FailoverProvider":
        """The endpoints that the settings name."""
        return cls(
            payments.rpc_urls,
            max_age=payments.rpc_max_age,
            max_lag=payments.rpc_max_lag,
            timeout=payments.rpc_timeout,
            chain_id=payments.chain_id,
        )

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The best endpoint's answer.

        Raises:
            ChainUnreachable: no endpoint answers, or none is fresh.
        """
        return await self._first_answer(lambda endpoint: endpoint.request(method, params))

    async def make_batch_request(self, requests: list[Request]) -> list[RPCResponse]:
        """The best endpoint's answers, in the requests' order.

        Raises:
            ChainUnreachable: no endpoint answers them all, or none is fresh.
        """
        return await self._first_answer(lambda endpoint: endpoint.make_batch_request(requests))

    async def _first_answer(self, ask: Callable[[Endpoint], Awaitable[Answer]]) -> Answer:
        reasons = []
        for endpoint in await self.best_first():
            try:
                return await ask(endpoint)
            except ChainUnreachable as error:
                endpoint.head = None  # until the next poll
                reasons.append(error.detail)
        self._polled_at = float("-inf")
        raise ChainUnreachable(f"No RPC endpoint answers: {'; '.join(reasons)}.")

    async def broadcast(self, method: str, params: Any) -> list[RPCResponse]:
        """Ask all endpoints, stale ones included; the answers of those that give one.

        Raises:
            ChainUnreachable: no endpoint answers.
        """
        requests = [endpoint.request(method, params) for endpoint in self.endpoints]
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ChainError):
                raise outcome
        answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        if not answers:
            reasons = "; ".join(str(outcome) for outcome in outcomes)
            raise ChainUnreachable(f"No RPC endpoint answers: {reasons}.")
        return answers

    async def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether some endpoint is fresh."""
        try:
            return bool(await self.best_first())
        except ChainUnreachable:
            return False

    async def disconnect(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.disconnect()

    async def best_first(self) -> list[Endpoint]:
        """The fresh endpoints, those with the highest head first.

        Raises:
            ChainUnreachable: none is fresh.
        """
        if len(self.endpoints) == 1 and not self._max_age:
            return self.endpoints
        await self._poll()
        young = [each for each in self.endpoints if self._is_young(each)]
        heads = [each.head for each in young if each.head is not None]
        ranked = sorted(
            (each for each in young if self._is_near(each, median_low(heads))),
            key=lambda endpoint: -(endpoint.head or 0),
        )
        if not ranked:
            self._polled_at = float("-inf")
            names = ", ".join(endpoint.name for endpoint in self.endpoints)
            raise ChainUnreachable(f"No RPC endpoint is fresh: {names}.")
        return ranked

    async def answering(self) -> list[Endpoint]:
        """All endpoints that answered when they were last polled, in order of preference: stale
        ones too, for blocks that they do have."""
        await self._poll()
        return [each for each in self.endpoints if each.answered]

    async def _poll(self) -> None:
        async with self._poll_lock:
            if time.monotonic() - self._polled_at >= POLL_SECONDS:
                await asyncio.gather(*(endpoint.poll_head() for endpoint in self.endpoints))
                self._polled_at = time.monotonic()

    def _is_young(self, endpoint: Endpoint) -> bool:
        if endpoint.head is None:
            return False
        if self._max_age and endpoint.head_age > self._max_age + CLOCK_SKEW:
            log.warning("rpc_stale", endpoint=endpoint.name, age=round(endpoint.head_age))
            return False
        return True

    def _is_near(self, endpoint: Endpoint, median: int) -> bool:
        """Whether an endpoint's head may be believed. Of two the lower one is the median: what it
        shows is there, while a head far above it may be invented."""
        ahead = (endpoint.head or 0) - median
        if abs(ahead) <= self._max_lag:
            return True
        event = "rpc_ahead" if ahead > 0 else "rpc_behind"
        log.warning(event, endpoint=endpoint.name, blocks=abs(ahead))
        return False
