"""The OpenAPI document and the gateway say the same, by Schemathesis: what the document calls valid
is accepted and the rest refused, and answers have the statuses, types and schemas that it names."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from market.settings.limits import LimitSettings
from tests.support.gateway.api import (
    ASYNC,
    PROVIDER_WALLET,
    WALLET,
    Gateway,
    all_nodes,
    open_gateway,
)
from tests.support.gateway.api_served import Served

RATES = [name for name, field in LimitSettings.model_fields.items() if field.annotation is str]

RUN = (
    "--checks=all",
    "--seed=1",
    "--generation-deterministic",
    "--no-shrink",
    "--continue-on-failure",
    "--request-timeout=60",
    "--warnings=off",
    "--no-color",
)

REFUSALS = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 413, 415, 422, 429]
"""
"""A body that is too large as well as invalid is refused as such: 413 is none of the defaults."""

Login = dict[str, str]


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """Without limits of rate."""
    limits = dict.fromkeys(RATES, "1000000/minute")
    async with open_gateway(make_settings(limits=limits)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def check(served: Served, folder: Path, login: Login, *options: str) -> str:
    """Run Schemathesis as its users do; what it says, if it has nothing to complain of."""
    # From a file, since it waits for the gateway's for ten seconds and no longer.
    schema = folder / "openapi.json"
    schema.write_bytes((await served.client.get("/openapi.json")).content)
    (folder / "schemathesis.toml").write_text(REFUSALS)
    headers = [f"--header={name}:{value}" for name, value in (ASYNC | login).items()]
    url = f"--url=http://127.0.0.1:{served.port}"
    run = (sys.executable, "-m", "schemathesis.cli", "run", str(schema), url)
    command = (*run, *RUN, *headers, *options)
    running = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await running.communicate())[0].decode()
    assert running.returncode == 0, said
    return said


async def test_some_operations(gateway: Gateway, served: Served, tmp_path: Path) -> None:
    """Of each kind one: a body, a path, a query, headers, an optional token, a text."""
    paths = (
        "/api/inference/jobs/{request_id}",
        "/api/billing/usage.csv",
        "/api/provider/stats",
        "/api/machines/token",
        "/metrics",
    )
    chosen = [f"--include-path={path}" for path in paths]
    said = await check(
        served, tmp_path, gateway.login(), "--phases=coverage", "--max-examples=1", *chosen
    )
    assert f"Tested: {len(paths) + 1}" in said  # a job is read and cancelled


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("caller", ["user", "node", "machine", "stranger"])
async def test_all_operations(
    gateway: Gateway, served: Served, tmp_path: Path, caller: str
) -> None:
    logins: dict[str, Login] = {
        "user": gateway.login(),
        "node": await gateway.node(PROVIDER_WALLET),
        "machine": await gateway.machine(WALLET),
        "stranger": {},
    }
    # Frames are no JSON, and no schema says what is in them: of a node, whom alone it lets in, it
    # refuses whatever is drawn.
    left_out = ["--exclude-path=/api/relay/exchange"] if caller == "node" else []
    said = await check(served, tmp_path, logins[caller], "--max-examples=10", *left_out)
    operations = sum(map(len, gateway.app.openapi()["paths"].values())) - len(left_out)
    assert f"Tested: {operations}" in said
