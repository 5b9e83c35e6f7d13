"""Is this replica alive, can it work, and its metrics."""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from api.http import caller_address
from api.http.public_reads import WithReads
from api.http.services import Services, WithServices
from market import metrics, outages
from market.errors import Forbidden
from market.nodes import live_lookup
from market.settings.limits import LimitSettings

PATHS = ("/healthz", "/readyz", "/metrics")
"""Asked by the operator's own machines, also while Redis is away."""

router = APIRouter(tags=["health"])

PROBE_TIMEOUT = 2.0
"""Seconds that Postgres and Redis each have to answer, so that a probe is answered in time."""


JSON: dict[str, Any] = {"application/json": {}}
METRICS: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
"""Contents of answers."""


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    responses={503: {"description": "One of them does not answer.", "content": JSON}},
)
async def readyz(services: WithServices, reads: WithReads) -> JSONResponse:
    """The process reaches Postgres and Redis: 200 if so, 503 if not."""

    async def probe() -> dict[str, bool]:
        return await outages.reached(services.sessions, services.redis, within=PROBE_TIMEOUT)

    # One probe at a time, however many ask; no answer outlives it.
    reached = await reads.get(("readyz",), probe, seconds=0)
    ready = all(reached.values())
    return JSONResponse(
        {"status": "ready" if ready else "not ready", **reached}, status_code=200 if ready else 503
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": METRICS}})
async def prometheus(request: Request, services: WithServices, reads: WithReads) -> Response:
    """Metrics of this process (text format), for the operator's networks."""
    if not _may_read_metrics(request, services.settings.limits):
        raise Forbidden(
            "Metrics are for the operator's networks: FAR_LIMITS__METRICS_NETWORKS names them."
        )

    async def read() -> bytes:
        await _count_active_nodes(services)
        return generate_latest()

    return Response(await reads.get(("metrics",), read, seconds=0), media_type=CONTENT_TYPE_LATEST)


async def _count_active_nodes(services: Services) -> None:
    with suppress(RedisError, OSError):  # without Redis the other metrics matter all the more
        for model in services.catalog:
            nodes = await live_lookup.available_nodes(services.redis, model.id)
            metrics.active_nodes.labels(model.id).set(len(nodes))


def _may_read_metrics(request: Request, limits: LimitSettings) -> bool:
    address = caller_address.certain_address(request, limits)
    return address is not None and any(address in network for network in limits.metrics_networks)
