"""A JSON-RPC endpoint over HTTP that is not ours, and whose answers are bounded in size."""

from typing import Any, cast

from aiohttp import ClientTimeout
from eth_typing import URI
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint, RPCResponse

from market.chain.errors import AnswerTooLarge

MAX_ANSWER_BYTES = 16 * 2**20
"""Bytes that an endpoint may answer with: some 20,000 events."""


CONNECT_TIMEOUT = 3.0
"""Seconds for TCP and TLS."""


class BoundedProvider(AsyncHTTPProvider):
    """web3's HTTP provider without retries, reading at most ``MAX_ANSWER_BYTES`` of an answer. Each
    request has a connection of its own, so none is silent since an earlier one.

    Args:
        timeout: Seconds that one request may take, from the connection to the answer's last byte.

    Raises:
        AnswerTooLarge: from a request whose answer is longer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        limits = ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        super().__init__(url, {"timeout": limits}, exception_retry_configuration=None)
        self._url = URI(url)

    async def make_batch_request(
        self, batch_requests: list[tuple[RPCEndpoint, Any]]
    ) -> list[RPCResponse] | RPCResponse:
        """The answers in the order of the requests; one error where the endpoint refuses them all,
        or does not say which answer is which."""
        data = self.encode_batch_rpc_request(batch_requests)
        answer: Any = self.decode_rpc_response(await self._make_request(RPCEndpoint("batch"), data))
        if not isinstance(answer, list):
            return cast(RPCResponse, answer)
        try:
            return sorted(answer, key=lambda each: int(each["id"]))
        except (KeyError, TypeError, ValueError):
            refused = {"code": None, "message": "The answers to a batch have no ids."}
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": None, "error": refused})

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:
        sessions = self._request_session_manager
        response = await sessions.async_get_response_from_post_request(
            self._url, data=request_data, **self.get_request_kwargs()
        )
        async with response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise AnswerTooLarge(f"More than {MAX_ANSWER_BYTES} bytes for one {method}.")
        return bytes(body)
