"""An `EventSource`, as browsers and the npm package have it, follows a job to its end, and ends
there: by the standard it connects again whenever a stream ends, until it is answered by 204."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.support.browser import blank_page, needs_chromium, open_browser
from tests.support.gateway.api import (
    PATIENCE,
    Gateway,
    Job,
    all_nodes,
    open_gateway,
    request_body,
)
from tests.support.gateway.api_served import Served

REPOSITORY = Path(__file__).parents[3]
PACKAGES = REPOSITORY / "contracts" / "node_modules"
CLIENT = REPOSITORY / "tests" / "support" / "gateway" / "event_source.mjs"

needs_package = pytest.mark.skipif(
    not (PACKAGES / "eventsource").exists() or shutil.which("node") is None,
    reason="The npm package eventsource is not there: run `npm ci` in contracts/.",
)

TOKENS = ("The", " benefits", " are", "\n\n")

FOLLOW = """
(url) => new Promise((resolve) => {
  const seen = [];
  const source = new EventSource(url);
  source.onmessage = (event) => seen.push([event.lastEventId, JSON.parse(event.data)]);
  source.onerror = () => {
    seen.push(["error", source.readyState]);
    if (source.readyState === EventSource.CLOSED) resolve(seen);
  };
})
"""

ASK = """
async ([api, token, body]) => {
  const headers = {
    Authorization: `Bearer ${token}`, "Content-Type": "application/json",
    "Idempotency-Key": "one", Prefer: "respond-async",
  };
  const url = `${api}/api/inference/distributed/generate`;
  const accepted = await fetch(url, { method: "POST", headers, body });
  const refused = await fetch(url, { method: "POST", headers, body: "{" });
  const seen = await fetch(`${api}${accepted.headers.get("Location")}/events`, {
    method: "HEAD", headers: { Authorization: headers.Authorization, "Last-Event-ID": "3" },
  });
  return {
    accepted: [accepted.status, (await accepted.json()).poll_url, accepted.headers.get("Location")],
    refused: [refused.status, (await refused.json()).code],
    names: [accepted, refused, seen].map((answer) => answer.headers.get("X-Request-Id")),
    events: seen.status,
  };
}
"""


@pytest.fixture
def page_url() -> Iterator[str]:
    with blank_page() as url:
        yield url


@pytest.fixture
async def gateway(
    make_settings: Callable[..., Settings], redis: Redis, page_url: str
) -> AsyncIterator[Gateway]:
    async with open_gateway(make_settings(cors_origins=page_url)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def running(gateway: Gateway) -> Job:
    job = await gateway.submit()
    await job.write(*TOKENS[:2])
    return job


def check_events(job: Job, events: list[tuple[str, dict[str, Any]]]) -> None:
    """Each token came once, and the end came once."""
    *tokens, (last_id, done) = events
    assert tokens == [
        (str(number), {"token": text, "request_id": job.id})
        for number, text in enumerate(TOKENS, start=1)
    ]
    assert last_id == f"{len(TOKENS)}-done"
    assert done["done"] is True


@needs_package
@pytest.mark.slow  # three seconds pass before an EventSource connects again
async def test_the_npm_package_ends_at_the_end(
    gateway: Gateway, served: Served, tmp_path: Path
) -> None:
    """It ends by itself: the process has nothing left to do."""
    job = await running(gateway)
    script = tmp_path / CLIENT.name  # a module finds packages beside itself alone
    script.write_text(CLIENT.read_text())
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    token = gateway.login()["Authorization"].removeprefix("Bearer ")
    url = f"http://127.0.0.1:{served.port}{job.url}/events"
    client = await asyncio.create_subprocess_exec(
        "node", str(script), url, token, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert json.loads(await asyncio.wait_for(client.stdout.readline(), PATIENCE)) == {"open": True}
    await job.write(*TOKENS[2:])
    await job.complete("stop")
    told, _ = await asyncio.wait_for(client.communicate(), 3 * PATIENCE)
    said = [json.loads(line) for line in told.decode().splitlines()]
    check_events(job, [(each["id"], each["data"]) for each in said if "id" in each])
    # The stream's end, after which it connects again, and the answer to that.
    assert [each for each in said if "id" not in each] == [
        {"error": None, "state": 0},
        {"error": 204, "state": 2},
    ]


@needs_chromium
@pytest.mark.slow  # as above, and a browser starts
async def test_a_page_in_chromium_asks_follows_and_ends(
    gateway: Gateway, served: Served, page_url: str
) -> None:
    """A page of another origin. What a browser's own `EventSource` cannot send, the token, is added
    on its way, as by a server of the page's own."""
    api = f"http://127.0.0.1:{served.port}"
    login = gateway.login()
    token = login["Authorization"].removeprefix("Bearer ")
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(page_url)
        body = json.dumps(request_body())
        told = await page.evaluate(ASK, [api, token, body])
        status, poll_url, location = told["accepted"]
        assert status == 202
        assert location == poll_url
        assert told["refused"] == [400, "malformed_json"]
        assert told["events"] == 200
        assert all(len(name) == 32 for name in told["names"])

        job = Job(gateway, poll_url.rpartition("/")[2])
        await job.write(*TOKENS[:2])
        await page.set_extra_http_headers(login)
        following = asyncio.create_task(page.evaluate(FOLLOW, f"{api}{job.url}/events"))
        while not gateway.services.reader_slots.in_use:
            await asyncio.sleep(0.01)
        await job.write(*TOKENS[2:])
        await job.complete("stop")
        seen = await asyncio.wait_for(following, 3 * PATIENCE)
    check_events(job, [(name, data) for name, data in seen if name != "error"])
    assert [data for name, data in seen if name == "error"] == [0, 2]
