"""Weights that lie in a folder beside the gateway, which gives them out itself."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import anyio.to_thread
import pytest
from redis.asyncio import Redis

from market.catalog import local_weights
from market.identity.tokens import issue_weights_token
from market.settings import Settings
from mesh.checkpoint.manifest import NAME, make_manifest, read_manifest
from mesh.errors import WeightsError
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.platform_client.weight_listing import ListingRequest, WalletKey
from node_runner.weights.source_selection import select_source
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import (
    PROVIDER,
    PROVIDER_WALLET,
    WALLET,
    Gateway,
    open_gateway,
    problem,
)
from tests.support.gateway.api_served import serve

PATH = f"/api/models/{MODEL_ID}/files"
WEIGHTS = "model.safetensors"
PIECE = 10_000


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, made)
    (made / "notes.txt").write_text("the operator's own")
    (tmp_path / "secret.json").write_text("not the model's")
    return made


@pytest.fixture
def settings(make_settings: Callable[..., Settings], checkpoint: Path) -> Settings:
    model = {"id": MODEL_ID, "path": str(checkpoint), "payment_per_token": "0.0001"}
    return make_settings(
        models=[model],
        limits={"downloads_per_wallet": 2, "weight_files_per_wallet": "20/hour"},
        auth={"jwt_secret": "a secret for the tests, long enough", "domain": "127.0.0.1"},
    )


@pytest.fixture
async def gateway(settings: Settings, redis: Redis) -> AsyncIterator[Gateway]:
    async with open_gateway(settings) as opened:
        yield opened


async def listing(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.client.get(PATH, headers=await gateway.node(PROVIDER_WALLET))
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


async def url_of(gateway: Gateway, name: str = WEIGHTS) -> str:
    """Of a file, as the list gives it."""
    [url] = [file["url"] for file in (await listing(gateway))["files"] if file["name"] == name]
    return urljoin(PATH, url)


@pytest.mark.parametrize("kind", ["token", "key"])
async def test_a_node_fetches_its_span_from_the_platform(
    gateway: Gateway, tmp_path: Path, kind: str
) -> None:
    credential: str | WalletKey = WalletKey(PROVIDER.address, bytes(PROVIDER.key))
    if kind == "token":
        headers = await gateway.machine(PROVIDER_WALLET)
        credential = headers["Authorization"].removeprefix("Bearer ")
    async with serve(gateway) as served:
        fetch = ListingRequest(str(served.client.base_url), MODEL_ID, credential).send

        def prepare() -> Path:
            made, _ = prepare_span(
                MODEL_ID,
                layers=(2, 4),
                edge=False,
                cache=tmp_path / "spans",
                opened=lambda: select_source(None, MODEL_ID, fetch),
            )
            return made

        made = await anyio.to_thread.run_sync(prepare)
    copied, _ = prepare_span(str(DEMO_MODEL), layers=(2, 4), edge=False, cache=tmp_path / "copied")
    assert (made / WEIGHTS).read_bytes() == (copied / WEIGHTS).read_bytes()
    assert '"checked": "manifest"' in (made / "span.json").read_text()


async def test_files_and_ranges(gateway: Gateway, checkpoint: Path) -> None:
    content = (checkpoint / WEIGHTS).read_bytes()
    gateway.client.headers.pop("Authorization")  # the URL alone will do, as one of S3's
    url = await url_of(gateway)
    whole = await gateway.client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    assert (whole.headers["ETag"], whole.headers["Accept-Ranges"]) == (tag, "bytes")
    some = {"Range": "bytes=1000-1999"}
    part = await gateway.client.get(url, headers=some)
    assert (part.status_code, part.content) == (206, content[1000:2000])
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
    same = await gateway.client.get(url, headers={**some, "If-Range": tag})
    other = await gateway.client.get(url, headers={**some, "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)
    beyond = {"Range": f"bytes={len(content)}-"}
    assert (await gateway.client.get(url, headers=beyond)).status_code == 416


async def test_the_manifest_is_made_of_the_folder(gateway: Gateway, checkpoint: Path) -> None:
    listed = await listing(gateway)
    answer = await gateway.client.get(await url_of(gateway, NAME))
    assert hashlib.sha256(answer.content).hexdigest() == listed["manifest_sha256"]
    assert read_manifest(answer.content) == make_manifest(checkpoint, MODEL_ID)
    named = {file["name"]: file["size"] for file in listed["files"]}
    assert named.keys() == {NAME, WEIGHTS, *(path.name for path in DEMO_MODEL.glob("*.json"))}
    assert named[NAME] == len(answer.content)


async def test_a_file_that_is_replaced_is_hashed_again(gateway: Gateway, checkpoint: Path) -> None:
    before = (await listing(gateway))["manifest_sha256"]
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    after = await listing(gateway)
    assert after["manifest_sha256"] != before
    content = (await gateway.client.get(await url_of(gateway, "config.json"))).content
    assert content == config.read_bytes()


async def test_a_manifest_that_was_published_is_taken_as_it_is(
    gateway: Gateway, checkpoint: Path
) -> None:
    written = make_manifest(checkpoint, "another name").to_bytes()
    (checkpoint / NAME).write_bytes(written)
    assert (await listing(gateway))["manifest_sha256"] == hashlib.sha256(written).hexdigest()
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    answer = await gateway.client.get(PATH, headers=await gateway.node(PROVIDER_WALLET))
    problem(answer, 503, "unavailable")  # it was published with another file


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "../secret.json",
        "..%2Fsecret.json",
        "%2e%2e/secret.json",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "model.safetensors%00",
    ],
)
async def test_no_other_file_is_given(gateway: Gateway, name: str) -> None:
    query = urlsplit(await url_of(gateway)).query
    answer = await gateway.client.get(f"{PATH}/{name}?{query}")
    assert answer.status_code == 404, answer.text
    assert "operator's own" not in answer.text


async def test_nothing_is_given_without_a_good_token(gateway: Gateway, settings: Settings) -> None:
    url = await url_of(gateway)
    [token] = parse_qs(urlsplit(url).query)["token"]
    bare = f"{PATH}/{WEIGHTS}"
    problem(await gateway.client.get(bare), 422, "token_missing")
    problem(await gateway.client.get(f"{bare}?token={token}x"), 401, "token_invalid")
    login = gateway.login()["Authorization"].removeprefix("Bearer ")
    problem(await gateway.client.get(f"{bare}?token={login}"), 401, "token_invalid")
    other = issue_weights_token(settings.auth, WALLET, "far/other", 60)
    problem(await gateway.client.get(f"{bare}?token={other}"), 401, "token_invalid")
    expired = issue_weights_token(settings.auth, WALLET, MODEL_ID, -3600)
    problem(await gateway.client.get(f"{bare}?token={expired}"), 401, "token_expired")
    # Nor does it open anything else.
    bearer = {"Authorization": f"Bearer {token}"}
    problem(await gateway.client.get(PATH, headers=bearer), 401, "token_invalid")
    problem(await gateway.client.get("/api/billing/balance", headers=bearer), 401, "token_invalid")


async def test_who_does_not_read_keeps_neither_slots_nor_the_loop(gateway: Gateway) -> None:
    url = await url_of(gateway)
    async with serve(gateway) as served:

        async def begin() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=PIECE)
            writer.write(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert b"200" in await reader.readline()
            return writer

        stalled = [await begin(), await begin()]
        problem(await served.client.get(url), 429, "rate_limited")
        assert (await served.client.get("/healthz")).status_code == 200
        for writer in stalled:
            writer.transport.abort()
        await served.idle()
        assert (await served.client.get(url)).status_code == 200
    assert gateway.services.downloads.in_use == 0


async def test_a_wallet_cannot_fetch_without_end(gateway: Gateway) -> None:
    url = await url_of(gateway, "config.json")
    for _ in range(20):
        assert (await gateway.client.get(url)).status_code == 200
    problem(await gateway.client.get(url), 429, "rate_limited")


async def test_while_a_folder_is_hashed_nodes_are_told_to_wait(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_weights, "HASHING_WAIT", 0.0)
    headers = await gateway.node(PROVIDER_WALLET)
    answer = await gateway.client.get(PATH, headers=headers)
    problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "5"
    monkeypatch.undo()
    assert (await gateway.client.get(PATH, headers=headers)).status_code == 200


async def test_a_folder_without_a_repository_on_the_hub_ends_with_a_sentence(
    settings: Settings, redis: Redis, checkpoint: Path
) -> None:
    """What the platform refuses is not looked for elsewhere."""
    async with open_gateway(settings) as gateway, serve(gateway) as served:
        ask = ListingRequest(
            str(served.client.base_url), "far/none", WalletKey(PROVIDER.address, PROVIDER.key)
        ).send
        with pytest.raises(WeightsError, match="There is no model 'far/none'"):
            await anyio.to_thread.run_sync(select_source, None, "far/none", ask)
