"""Several JSON-RPC endpoints as one.

Reads go to the endpoint with the highest head that answers. One that lags behind, or whose newest
block is old, is passed over, since its state is out of date. Transactions go to
all endpoints. With one URL there is nothing to compare its head with but the clock.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import ClientError
from web3.providers import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from market.chain.bounded_http import BoundedProvider
from market.chain.errors import ChainError, ChainUnreachable
from market.settings.payments import PaymentsSettings
from mesh.clock_skew import CLOCK_SKEW

log = structlog.get_logger()

SECOND_AFTER = 0.5
"""Part of a request's time after which it is sent again on a new connection."""

POLL_SECONDS = 5.0
"""Seconds between polls of the endpoints' heads."""

LIMIT_EXCEEDED = -32005
"""JSON-RPC code for "limit exceeded" (EIP-1474): another endpoint may answer."""

TRANSPORT_ERRORS = (ClientError, OSError, TimeoutError, ValueError)
"""A broken connection, a time-out, an HTTP error, or a body that is no JSON."""


class Endpoint:
    """One URL, and the newest block that it has shown.

    Args:
        timeout: Seconds that one request may take.
        chain_id: EIP-155 id that the endpoint has to show before it is asked anything else.
    """

    def __init__(self, url: str, timeout: float, chain_id: int | None = None) -> None:
        self.name = urlsplit(url).hostname or "endpoint"
        """For logs: the URL may hold a key."""
        self.head: int | None = None
        """Number of its newest block when it was last polled; none if it did not answer."""
        self.head_age = 0.0
        """Seconds since the time of that block, when it was polled."""
        self._unverified_chain_id = chain_id
        self._timeout = timeout
        self._http = BoundedProvider(url, timeout)

    async def request(self, method: str, params: Any) -> RPCResponse:
        """The endpoint's answer, which may be an error of the chain's.

        Raises:
            ChainUnreachable: there is no answer, or the endpoint is of another chain.
            AnswerTooLarge: the answer is longer than is read.
        """
        if self._unverified_chain_id is not None:
            await self._verify_chain_id(self._unverified_chain_id)
        return await self._send(method, params)

    async def _verify_chain_id(self, expected: int) -> None:
        found = (await self._send("eth_chainId", [])).get("result")
        if found != hex(expected):
            raise ChainUnreachable(f"{self.name}: chain {found}, not {hex(expected)}")
        self._unverified_chain_id = None

    async def _send(self, method: str, params: Any) -> RPCResponse:
        try:
            answer = await self._ask(RPCEndpoint(method), params)
        except TRANSPORT_ERRORS as error:
            # Not the error's text: aiohttp quotes the URL.
            raise ChainUnreachable(f"{self.name}: {type(error).__name__}") from None
        # Whoever asks for logs may have asked for too many, and will ask for fewer.
        if _error_code(answer) == LIMIT_EXCEEDED and method != "eth_getLogs":
            raise ChainUnreachable(f"{self.name}: too many requests")
        return answer

    async def _ask(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Ask a second time, on a new connection, where the first is silent for long: it may be the
        connection, not the endpoint. Whichever answers first counts; nothing that we ask for does
        harm when it is done twice. Any other failure is left to the next endpoint."""

        def ask() -> asyncio.Task[RPCResponse]:
            return asyncio.create_task(self._http.make_request(method, params))

        asked = [ask()]
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait(asked, timeout=SECOND_AFTER * self._timeout)
                if not asked[0].done():
                    asked.append(ask())
                ended, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                return ended.pop().result()
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def poll_head(self) -> None:
        """Ask for the newest block."""
        self.head = None
        try:
            answer = await self.request("eth_getBlockByNumber", ["latest", False])
        except ChainError as error:
            log.warning("rpc_silent", reason=error.detail)
            return
        block: Any = answer.get("result")
        if block:
            self.head = int(block["number"], 16)
            self.head_age = time.time() - int(block["timestamp"], 16)

    async def close(self) -> None:
        await self._http.disconnect()


class FailoverProvider(AsyncBaseProvider):
    """A web3 provider over any number of JSON-RPC endpoints.

    Args:
        urls: In order of preference among those whose heads are equal.
        max_age: Seconds since the newest block after which an endpoint is stale; 0 for no limit,
            on a chain that makes blocks only when it has something to put into them.
        max_lag: Blocks that an endpoint may be behind the best one.
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
        self.endpoints = [Endpoint(url, timeout, chain_id) for url in urls]
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
        reasons = []
        for endpoint in await self._best_first():
            try:
                return await endpoint.request(method, params)
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
            return bool(await self._best_first())
        except ChainUnreachable:
            return False

    async def disconnect(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.close()

    async def _best_first(self) -> list[Endpoint]:
        """The fresh endpoints, those with the highest head first.

        Raises:
            ChainUnreachable: none is fresh.
        """
        if len(self.endpoints) == 1 and not self._max_age:
            return self.endpoints
        async with self._poll_lock:
            if time.monotonic() - self._polled_at >= POLL_SECONDS:
                await asyncio.gather(*(endpoint.poll_head() for endpoint in self.endpoints))
                self._polled_at = time.monotonic()
        highest = max((endpoint.head or 0 for endpoint in self.endpoints), default=0)
        ranked = sorted(
            (endpoint for endpoint in self.endpoints if self._is_fresh(endpoint, highest)),
            key=lambda endpoint: -(endpoint.head or 0),
        )
        if not ranked:
            self._polled_at = float("-inf")
            names = ", ".join(endpoint.name for endpoint in self.endpoints)
            raise ChainUnreachable(f"No RPC endpoint is fresh: {names}.")
        return ranked

    def _is_fresh(self, endpoint: Endpoint, highest: int) -> bool:
        if endpoint.head is None:
            return False
        if self._max_age and endpoint.head_age > self._max_age + CLOCK_SKEW:
            log.warning("rpc_stale", endpoint=endpoint.name, age=round(endpoint.head_age))
            return False
        if highest - endpoint.head > self._max_lag:
            log.warning("rpc_behind", endpoint=endpoint.name, blocks=highest - endpoint.head)
            return False
        return True


def _error_code(answer: RPCResponse) -> int | None:
    """The code of an answer that is a JSON-RPC error."""
    error = answer.get("error")
    return error.get("code") if isinstance(error, dict) else None
