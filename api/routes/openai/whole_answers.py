"""An answer as one document, for a client that waits for all of it."""

from collections.abc import Coroutine, Sequence
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from api.http import disconnection
from api.http.disconnection import CLIENT_CLOSED_REQUEST, ClientDisconnected
from api.routes.openai import attempts
from api.routes.openai.following import Reading
from api.routes.openai.submission import Asking


async def whole_answer(
    asking: Asking,
    readings: Sequence[Reading],
    document: Coroutine[Any, Any, dict[str, Any]],
) -> Response:
    """The document, once it is made. A client that goes away before cancels the jobs, unless its
    next attempt comes (:mod:`api.routes.openai.attempts`).

    Args:
        asking: The client's request.
        readings: Its jobs.
        document: Makes the answer of them.
    """
    try:
        made = await disconnection.unless_disconnected(asking.request, document)
    except ClientDisconnected:
        asking.services.in_background(attempts.abandon(asking.services, readings, asking.attempt))
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(made)
