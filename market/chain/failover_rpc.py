"""Several JSON-RPC endpoints as one.

What is read comes from the best endpoint that answers; an endpoint that lags behind is passed
over, since what it says about a payment is old. What is sent goes to all of them. One URL works
just as well; then there is nothing to compare it with but the clock.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import ClientError, ClientTimeout
from web3.providers import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from market.chain.bounded_http import BoundedProvider
from market.chain.errors import ChainError, ChainUnreachable
from market.settings.payments import PaymentsSettings

log = structlog.get_logger()

POLL_SECONDS = 5.0
"""Seconds between looks at the endpoints' heads."""

LIMIT_EXCEEDED = -32005
"""JSON-RPC code for "limit exceeded" (EIP-1474): another endpoint may answer."""

TRANSPORT_ERRORS = (ClientError, OSError, TimeoutError, ValueError)
"""A broken connection, a time-out, an HTTP error, or a body that is not JSON."""


class Endpoint:
    """One URL, and the newest block that it told of."""

    def __init__(self, url: str, seconds: float, chain_id: int | None = None) -> None:
        self.name = urlsplit(url).hostname or "endpoint"
        """For logs: the URL may hold a key."""
        self.number: int | None = None
        self.age = 0.0
        self._expected = chain_id
        """EIP-155 id that it has yet to show; none once it has, or where none is expected."""
        # Without retries: the next endpoint is the retry.
        self._http = BoundedProvider(url, {"timeout": ClientTimeout(total=seconds)})

    async def ask(self, method: str, params: Any) -> RPCResponse:
        """One answer, which may be an error of the chain's.

        Raises:
            ChainUnreachable: there is no answer, or it would be another chain's.
            AnswerTooLarge: there is too much of one.
        """
        if self._expected is not None:
            await self._identify(self._expected)
        return await self._ask(method, params)

    async def _identify(self, expected: int) -> None:
        found = (await self._ask("eth_chainId", [])).get("result")
        if found != hex(expected):
            raise ChainUnreachable(f"{self.name}: chain {found}, not {hex(expected)}")
        self._expected = None

    async def _ask(self, method: str, params: Any) -> RPCResponse:
        try:
            answer = await self._http.make_request(RPCEndpoint(method), params)
        except TRANSPORT_ERRORS as error:
            # Not the error's text: aiohttp quotes the URL.
            raise ChainUnreachable(f"{self.name}: {type(error).__name__}") from None
        # Who asks for logs may have asked for too many, and will ask for fewer.
        if _error_code(answer) == LIMIT_EXCEEDED and method != "eth_getLogs":
            raise ChainUnreachable(f"{self.name}: too many requests")
        return answer

    async def look(self) -> None:
        """Ask for the newest block; `number` is none if there is no answer."""
        self.number = None
        try:
            block: Any = (await self.ask("eth_getBlockByNumber", ["latest", False])).get("result")
        except ChainError as error:
            log.warning("rpc_silent", reason=error.detail)
            return
        if block:
            self.number = int(block["number"], 16)
            self.age = time.time() - int(block["timestamp"], 16)

    async def close(self) -> None:
        await self._http.disconnect()


class FailoverProvider(AsyncBaseProvider):
    """A web3 provider over any number of endpoints.

    Args:
        urls: In order of preference among those that are equally far.
        max_age: Seconds since the newest block after which an endpoint is stale; 0 for no limit,
            on a chain that makes blocks only when it has something to put into them.
        max_lag: Blocks that an endpoint may be behind the best one.
        timeout: Seconds that one request may take.
        chain_id: EIP-155 id of the chain. An endpoint of another one counts as silent: what it
            says of our contract's address is nothing, or about a stranger's.
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
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    @classmethod
    def of(cls, payments: PaymentsSettings) -> "FailoverProvider":
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
                return await endpoint.ask(method, params)
            except ChainUnreachable as error:
                endpoint.number = None  # until the next look
                reasons.append(error.detail)
        self._looked_at = float("-inf")
        raise ChainUnreachable(f"No RPC endpoint answers: {'; '.join(reasons)}.")

    async def everywhere(self, method: str, params: Any) -> list[RPCResponse]:
        """The answers of all endpoints that give one, stale ones included.

        Raises:
            ChainUnreachable: there is none.
        """
        asked = [endpoint.ask(method, params) for endpoint in self.endpoints]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ChainError):
                raise answer
        given = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not given:
            reasons = "; ".join(str(answer) for answer in answers)
            raise ChainUnreachable(f"No RPC endpoint answers: {reasons}.")
        return given

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
        if len(self.endpoints) == 1 and not self._max_age:
            return self.endpoints
        async with self._looking:
            if time.monotonic() - self._looked_at >= POLL_SECONDS:
                await asyncio.gather(*(endpoint.look() for endpoint in self.endpoints))
                self._looked_at = time.monotonic()
        best = max((endpoint.number or 0 for endpoint in self.endpoints), default=0)
        ranked = sorted(
            (endpoint for endpoint in self.endpoints if self._fresh(endpoint, best)),
            key=lambda endpoint: -(endpoint.number or 0),
        )
        if not ranked:
            self._looked_at = float("-inf")
            names = ", ".join(endpoint.name for endpoint in self.endpoints)
            raise ChainUnreachable(f"No RPC endpoint is fresh: {names}.")
        return ranked

    def _fresh(self, endpoint: Endpoint, best: int) -> bool:
        if endpoint.number is None:
            return False
        if self._max_age and endpoint.age > self._max_age:
            log.warning("rpc_stale", endpoint=endpoint.name, age=round(endpoint.age))
            return False
        if best - endpoint.number > self._max_lag:
            log.warning("rpc_behind", endpoint=endpoint.name, blocks=best - endpoint.number)
            return False
        return True


def _error_code(answer: RPCResponse) -> int | None:
    error = answer.get("error")
    return error.get("code") if isinstance(error, dict) else None
