"""What operators look at, and what callers get while a part of the mesh is down."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from sqlalchemy import make_url

from api.routes import health
from market import ledger
from market.settings import Settings
from stack.servers import Postgres, free_port, redis_command, wait_for_redis
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    Gateway,
    all_nodes,
    open_gateway,
    problem,
    request_body,
)

SPECIFIED_METRICS = {
    "far_mesh_inference_requests": "counter",
    "far_mesh_inference_latency_seconds": "histogram",
    "far_mesh_active_nodes": "gauge",
    "far_mesh_payments_released": "counter",
    "far_mesh_payments_amount_far": "counter",
}
"""§12.1; a counter's samples have ``_total`` behind these names."""

ENDPOINTS = {
    "/api/inference/distributed/generate": {"post"},
    "/api/inference/jobs/{request_id}": {"get", "delete"},
    "/api/inference/jobs/{request_id}/events": {"get"},
    "/api/inference/jobs/{request_id}/receipt": {"get"},
    "/api/billing/usage.csv": {"get"},
    "/api/provider/earnings.csv": {"get"},
    "/api/billing/balance": {"get"},
    "/api/auth/nonce": {"get"},
    "/api/auth/login": {"post"},
    "/api/keys": {"get", "post"},
    "/api/keys/{key_id}": {"patch", "delete"},
    "/v1/key": {"get"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{model_id}": {"get"},
    "/v1/responses": {"post"},
    "/v1/responses/{response_id}": {"get"},
    "/v1/responses/{response_id}/cancel": {"post"},
    "/api/machines/device": {"post"},
    "/api/machines/token": {"post"},
    "/api/machines/message": {"post"},
    "/api/machines/approve": {"post"},
    "/api/machines/deny": {"post"},
    "/api/machines": {"get"},
    "/api/machines/{machine_id}": {"delete"},
    "/api/nodes/register-distributed": {"post"},
    "/api/nodes/heartbeat": {"post"},
    "/api/nodes/earnings/{wallet_address}": {"get"},
    "/api/models/{model_id}/files": {"get", "post"},
    "/api/models/{model_id}/files/{name}": {"get"},
    "/api/relay/exchange": {"post"},
    "/api/provider/stats": {"get"},
    "/api/provider/earnings/history": {"get"},
    "/api/nodes/{node_id}": {"get"},
    "/api/discovery/nodes/active/{model_id}": {"get"},
    "/api/inference/models": {"get"},
    "/nodes/register": {"post"},
    "/nodes/heartbeat": {"post"},
    "/nodes/active/{model_id}": {"get"},
    "/api/discovery/dht": {"get"},
    "/api/discovery/dht/{model_id}": {"get"},
    "/api/discovery/probe": {"get", "post"},
    "/api/discovery/config/{model_id}": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Redis that a test may stop, and its URL."""
    port = free_port()
    with subprocess.Popen(redis_command(port, tmp_path)) as process:
        wait_for_redis(port)
        yield process, f"redis://127.0.0.1:{port}/0"
        process.kill()


@pytest.fixture
async def fragile(
    make_settings: Callable[..., Settings], own_redis: tuple[subprocess.Popen[bytes], str]
) -> AsyncIterator[Gateway]:
    """The gateway on a Redis of its own, with nodes and money."""
    async with open_gateway(make_settings(redis_url=own_redis[1])) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def samples(gateway: Gateway) -> dict[str, float]:
    """Every sample of /metrics, by its name and labels."""
    answer = await gateway.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_a_gateway_that_runs_is_healthy_and_ready(empty_gateway: Gateway) -> None:
    assert (await empty_gateway.client.get("/healthz")).json() == {"status": "ok"}
    ready = await empty_gateway.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "postgres": True, "redis": True}


async def test_without_redis_nothing_is_taken_in(
    fragile: Gateway, own_redis: tuple[subprocess.Popen[bytes], str]
) -> None:
    before = await fragile.books()
    own_redis[0].kill()
    own_redis[0].wait()
    assert (await fragile.client.get("/healthz")).status_code == 200
    ready = await fragile.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"status": "not ready", "postgres": True, "redis": False}
    answer = await fragile.client.post(GENERATE, json=request_body(), headers=ASYNC)
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    problem(await fragile.client.get("/api/auth/nonce"), 503, "unavailable")
    assert "far_mesh_inference_requests_total" in (await fragile.client.get("/metrics")).text
    assert await fragile.books() == before


async def test_a_redis_that_hangs_is_not_ready(
    fragile: Gateway,
    own_redis: tuple[subprocess.Popen[bytes], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.2)
    os.kill(own_redis[0].pid, signal.SIGSTOP)
    ready = await fragile.client.get("/readyz")
    os.kill(own_redis[0].pid, signal.SIGCONT)
    assert ready.status_code == 503
    assert ready.json()["redis"] is False
    assert (await fragile.client.get("/readyz")).status_code == 200


async def test_without_postgres_it_is_not_ready(
    make_settings: Callable[..., Settings], redis: Redis, database_url: str
) -> None:
    url = make_url(database_url).set(database="no_such_database")
    settings = make_settings(database_url=url.render_as_string(hide_password=False))
    async with open_gateway(settings) as gateway:
        ready = await gateway.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"status": "not ready", "postgres": False, "redis": True}


async def test_lost_connections_to_postgres_cost_no_request(
    gateway: Gateway, postgres: Postgres
) -> None:
    job = await gateway.submit()
    database = make_url(gateway.services.settings.database_url).database
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    )
    assert (await gateway.client.get(job.url)).status_code == 200


async def test_a_bug_is_told_without_its_details(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a detail that is nobody's business")

    monkeypatch.setattr(ledger, "hold", fail)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    body = gateway.client.build_request("POST", GENERATE, json=request_body())
    received = [{"type": "http.request", "body": body.content, "more_body": False}]

    async def receive() -> Any:
        return received.pop()

    scope = {
        "type": "http",
        "method": "POST",
        "path": GENERATE,
        "query_string": b"",
        "headers": [(name.lower(), value) for name, value in body.headers.raw],
    }
    with pytest.raises(RuntimeError):  # the server logs it; the caller has his answer by then
        await gateway.app(scope, receive, send)
    assert sent[0]["status"] == 500
    assert b'"code":"internal_error"' in sent[1]["body"]
    assert b"business" not in sent[1]["body"]


async def test_metrics_have_the_specifications_names(gateway: Gateway) -> None:
    answer = await gateway.client.get("/metrics")
    families = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    assert SPECIFIED_METRICS.items() <= families.items()


async def test_metrics_count_requests_and_nodes(gateway: Gateway) -> None:
    accepted, rejected = (
        f"far_mesh_inference_requests_total{sorted([MODEL_ID, 'standard', status])}"
        for status in ("accepted", "rejected")
    )
    unknown = f"far_mesh_inference_requests_total{sorted(['unknown', 'standard', 'rejected'])}"
    before = await samples(gateway)
    await gateway.submit()
    await gateway.client.post(GENERATE, json=request_body(max_tokens=2000))
    await gateway.client.post(GENERATE, json=request_body(model_id="a stranger's label"))
    after = await samples(gateway)
    grown = {name: after[name] - before.get(name, 0) for name in (accepted, rejected, unknown)}
    assert grown == {accepted: 1, rejected: 1, unknown: 1}
    assert after[f"far_mesh_active_nodes{[MODEL_ID]}"] == 3
    assert not any("stranger" in name for name in after)


async def test_unknown_paths_and_methods(empty_gateway: Gateway) -> None:
    problem(await empty_gateway.client.get("/api/nothing"), 404, "not_found")
    wrong = await empty_gateway.client.get(GENERATE)
    problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "OPTIONS, POST"


def references(part: object) -> set[str]:
    """All ``$ref`` in a document."""
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*(references(value) for value in part.values()))
    if isinstance(part, list):
        return set().union(*(references(value) for value in part))
    return set()


async def test_the_openapi_document_is_valid_and_complete(empty_gateway: Gateway) -> None:
    document = (await empty_gateway.client.get("/openapi.json")).json()
    OpenAPI.model_validate(document)
    assert {path: set(methods) for path, methods in document["paths"].items()} == ENDPOINTS
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas
    names = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(names)) == len(names)


async def test_the_openapi_document_tells_of_problems_and_tokens(empty_gateway: Gateway) -> None:
    document = (await empty_gateway.client.get("/openapi.json")).json()
    problem_schema = document["components"]["schemas"]["Problem"]
    seed = document["components"]["schemas"]["GenerateBody"]["properties"]["seed"]["anyOf"][0]
    assert (type(seed["exclusiveMaximum"]), seed["exclusiveMaximum"]) == (int, 2**63)
    assert set(problem_schema["required"]) == {"type", "title", "status", "code", "detail"}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]
                assert list(content) == ["application/problem+json"]
    generate = document["paths"][GENERATE]["post"]
    assert set(generate["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "202" in generate["responses"]
    events = document["paths"]["/api/inference/jobs/{request_id}/events"]["get"]
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream"}
    for operation in (generate, events, document["paths"]["/api/nodes/heartbeat"]["post"]):
        assert operation["security"] == [{"HTTPBearer": []}]
    optional = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if {} in operation.get("security", [])
    }
    assert optional == {
        "/api/provider/stats",
        "/api/provider/earnings/history",
        "/api/nodes/register-distributed",
        "/nodes/register",
    }


def test_the_gateways_process_survives_deeply_nested_json() -> None:
    """Some libraries raise Python's recursion limit so far that its JSON parser would crash."""
    program = "import sys, api.app; print(sys.getrecursionlimit())"
    limit = subprocess.check_output([sys.executable, "-W", "ignore", "-c", program])
    assert int(limit) <= 1000
