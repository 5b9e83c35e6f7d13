"""What `far-node doctor` asks: how far, how fast, and the shape of a model."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from api.http import rate_limits
from api.http.services import WithServices
from api.schemas.discovery import ProbeAnswer

router = APIRouter(prefix="/api/discovery", tags=["discovery"])

PATH = f"{router.prefix}/probe"
"""Where bodies are measured, and not parsed."""

MAX_BYTES = 4 * 2**20
"""Enough to measure 100 Mbit/s for a third of a second."""

RANDOM_BYTES = os.urandom(2**16)
"""What is sent: no proxy can compress it."""


@router.get("/probe", response_class=StreamingResponse)
async def download(
    request: Request,
    services: WithServices,
    size: Annotated[int, Query(alias="bytes", ge=0, le=MAX_BYTES)] = 0,
) -> StreamingResponse:
    """Random bytes, as many as asked for, to time. The answer's `Date` is our clock's."""
    await rate_limits.PROBES.count_address(services, request)
    return StreamingResponse(
        _random_bytes(size),
        media_type="application/octet-stream",
        headers={"Content-Length": str(size), "Cache-Control": "no-store"},
    )


@router.post("/probe")
async def upload(request: Request, services: WithServices) -> ProbeAnswer:
    """Any body within the limit of all bodies, to time. It is thrown away."""
    await rate_limits.PROBES.count_address(services, request)
    return ProbeAnswer(bytes=len(await request.body()))


@router.get("/config/{model_id:path}", dependencies=[rate_limits.READS.by_address()])
async def config(model_id: str, services: WithServices) -> dict[str, Any]:
    """A model's `config.json`: what a machine needs to know how many layers it could hold."""
    return services.catalog.get(model_id).config


def _random_bytes(size: int) -> Iterator[bytes]:
    while size > 0:
        yield RANDOM_BYTES[:size]
        size -= len(RANDOM_BYTES)
