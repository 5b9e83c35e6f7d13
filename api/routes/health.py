"""Is this replica alive, can it work, and its metrics."""

from contextlib import suppress

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from api.http.services import WithServices
from market import metrics
from market.nodes import live_lookup
from market.outages import postgres_answers, redis_answers

router = APIRouter(tags=["health"])

PROBE_TIMEOUT = 2.0
"""Seconds that Postgres and Redis each have to answer, so that a probe is answered in time."""


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: WithServices) -> JSONResponse:
    """The process reaches Postgres and Redis: 200 if so, 503 if not."""
    reached = {
        "postgres": await postgres_answers(services.sessions, within=PROBE_TIMEOUT),
        "redis": await redis_answers(services.redis, within=PROBE_TIMEOUT),
    }
    ready = all(reached.values())
    return JSONResponse(
        {"status": "ready" if ready else "not ready", **reached}, status_code=200 if ready else 503
    )


@router.get("/metrics")
async def prometheus(services: WithServices) -> Response:
    """Metrics of this process (text format)."""
    with suppress(RedisError, OSError):  # without Redis the other metrics matter all the more
        for model in services.catalog:
            nodes = await live_lookup.available_nodes(services.redis, model.id)
            metrics.active_nodes.labels(model.id).set(len(nodes))
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
