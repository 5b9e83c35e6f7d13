"""Work for a client, as long as that is there, and the end of a job whose client has gone away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from api.http.services import Services
from market.jobs import cancellation
from market.jobs.stop import Reader
from market.jobs.tables import Job

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""Status of an answer that nobody reads, as nginx logs it."""


class ClientDisconnected(Exception):
    """The client has gone away; nobody reads an answer."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Its request's body must have been read.

    Raises:
        ClientDisconnected: the client went away first; the work was stopped.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def cancel(services: Services, job: Job, reader: Reader) -> None:
    """Cancel a job whose reader has disconnected: it ends with what he was sent, unless somebody
    else reads it, too."""
    for hub in (services.tokens, services.packed_tokens):
        hub.forget(job.request_id)
    await cancellation.cancel(services, job, reader)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
