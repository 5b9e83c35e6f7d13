"""Answers that anybody may read: each is kept as the bytes that callers get, and each address has
few reads under way."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from api.http import caller_address
from api.http.caller_address import NETWORK_BITS, UNKNOWN, network_of
from api.http.reading.read_cache import Key, ReadCache
from api.http.services import WithServices

T = TypeVar("T")


class PublicReads:
    """The process's :class:`~api.http.reading.read_cache.ReadCache`, for one caller."""

    def __init__(self, cache: ReadCache, caller: str) -> None:
        self._cache = cache
        self._caller = caller

    async def get(
        self,
        key: Key,
        read: Callable[[], Coroutine[Any, Any, T]],
        *,
        seconds: float | None = None,
    ) -> T:
        """As :meth:`api.http.reading.read_cache.ReadCache.get`. What ``read`` gives should be
        encoded, so that the next caller takes no work."""
        return await self._cache.get(key, read, caller=self._caller, seconds=seconds)

    async def answer(
        self, key: Key, read: Callable[[], Coroutine[Any, Any, BaseModel]]
    ) -> Response:
        """The answer with what ``read`` gives, which is validated and encoded once for all who ask.

        Raises:
            Exception: as :meth:`get`.
        """

        async def encode() -> bytes:
            return encoded(await read())

        return json_response(await self.get(key, encode))


def encoded(value: BaseModel) -> bytes:
    """JSON, as FastAPI would give it."""
    return value.model_dump_json(by_alias=True).encode()


def json_response(content: bytes) -> Response:
    """An answer that is encoded."""
    return Response(content, media_type="application/json")


async def _of_caller(request: Request, services: WithServices) -> PublicReads:
    address = caller_address.address_of(request, services.settings.limits)
    caller = UNKNOWN if address is None else network_of(address, NETWORK_BITS)
    return PublicReads(services.read_cache, caller)


WithReads = Annotated[PublicReads, Depends(_of_caller)]
