"""A stranger names in a path what no table can hold, or asks for jobs that cannot be there."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from market.db import Sessions
from tests.support.gateway.api import Gateway, problem
from tests.support.gateway.routes import routes_of

NAMES = ["%00", "a%00b", "%0a", "%F0%9F%92%A9", "%ff", "%20", "x" * 3000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_no_path_is_an_error_of_ours(gateway: Gateway, name: str) -> None:
    asked = 0
    for route in routes_of(gateway.app):
        if not isinstance(route, APIRoute) or "{" not in route.path:
            continue
        path = route.path
        for parameter in route.param_convertors:
            path = path.replace(f"{{{parameter}}}", name).replace(f"{{{parameter}:path}}", name)
        for login in (gateway.login(), gateway.node_login("node_0"), {}):
            for method in route.methods:
                answer = await gateway.client.request(method, path, headers=login)
                assert 400 <= answer.status_code < 500, (method, path, answer.text)
                asked += 1
    assert asked > 30


@pytest.fixture
def statements(gateway: Gateway) -> Iterator[list[str]]:
    """What is asked of Postgres."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    engines = [_engine_of(each) for each in (gateway.services.sessions, gateway.services.reads)]
    for engine in engines:
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield asked
    for engine in engines:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


def _engine_of(sessions: Sessions) -> AsyncEngine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    return engine


NO_JOBS = ["x", "req_1", "req_" + "0" * 23, "req_" + "0" * 25, "req_" + "G" * 24, "%00"]


@pytest.mark.parametrize("request_id", NO_JOBS)
async def test_no_table_is_asked_for_a_job_that_cannot_be_there(
    gateway: Gateway, statements: list[str], request_id: str
) -> None:
    job = f"/api/inference/jobs/{request_id}"
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/receipt")]:
        answer = await gateway.client.request(method, job + path)
        problem(answer, 404, "job_not_found")
    assert statements == []
    absent = "/api/inference/jobs/req_" + "0" * 24
    problem(await gateway.client.get(absent), 404, "job_not_found")
    assert statements
