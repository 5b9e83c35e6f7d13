"""Published weights: uploaded once, listed for nodes, and fetched by signed URLs that expire."""

import hashlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import boto3
import pytest
from moto.server import ThreadedMotoServer
from redis.asyncio import Redis
from typer.testing import CliRunner

from cli.app import app
from market.settings import Settings
from mesh import signed_texts
from mesh.checkpoint.manifest import NAME, read_manifest
from mesh.errors import WeightsNotPublished
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.platform_client.weight_listing import ListingRequest, WalletKey
from node_runner.weights import published_source
from node_runner.weights.source_selection import select_source
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import (
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    open_gateway,
    problem,
)
from tests.support.gateway.api_served import Served, serve
from tests.support.gateway.signing import challenge
from tests.support.network.file_server import serving

BUCKET, PREFIX = "weights", "models/pydoc"
PATH = f"/api/models/{MODEL_ID}/files"
WALLET = WalletKey(PROVIDER.address, bytes(PROVIDER.key))


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty store with a bucket; boto3 knows no other."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "a secret for the tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, made)
    return made


def publish(checkpoint: Path, *options: str) -> str:
    done = CliRunner().invoke(
        app, ["models", "publish", str(checkpoint), "--model", MODEL_ID, *options]
    )
    assert done.exit_code == 0, done.output
    return done.output


def of_model(**values: object) -> dict[str, object]:
    entry = {"id": MODEL_ID, "path": str(DEMO_MODEL), "payment_per_token": "0.0001", **values}
    # The domain of a server that a node finds at a loopback address.
    auth = {"jwt_secret": "a secret for the tests, long enough", "domain": "127.0.0.1"}
    return {"models": [entry], "auth": auth}


@pytest.fixture
async def gateway(
    make_settings: Callable[..., Settings], redis: Redis, s3: Any, checkpoint: Path
) -> AsyncIterator[Gateway]:
    """One whose model is in S3."""
    publish(checkpoint, "--s3", f"{BUCKET}/{PREFIX}")
    async with open_gateway(make_settings(**of_model(s3=f"{BUCKET}/{PREFIX}"))) as opened:
        yield opened


def listing_of(
    served: Served, credential: str | WalletKey = WALLET
) -> Callable[[], published_source.WeightListing]:
    return ListingRequest(str(served.client.base_url), MODEL_ID, credential).send


def span_of(fetch_listing: Callable[[], published_source.WeightListing], cache: Path) -> Path:
    made, _ = prepare_span(
        MODEL_ID,
        layers=(2, 4),
        edge=False,
        cache=cache,
        opened=lambda: select_source(None, MODEL_ID, fetch_listing),
    )
    return made


async def test_a_node_fetches_its_span_from_s3(gateway: Gateway, tmp_path: Path) -> None:
    async with serve(gateway) as served:
        made = await anyio.to_thread.run_sync(span_of, listing_of(served), tmp_path / "spans")
    copied, _ = prepare_span(str(DEMO_MODEL), layers=(2, 4), edge=False, cache=tmp_path / "copied")
    name = "model.safetensors"
    assert (made / name).read_bytes() == (copied / name).read_bytes()


@pytest.mark.parametrize("kind", ["machine", "node"])
async def test_machines_and_nodes_get_the_list_with_their_tokens(
    gateway: Gateway, kind: str
) -> None:
    headers_of = {"machine": gateway.machine, "node": gateway.node}[kind]
    answer = await gateway.client.get(PATH, headers=await headers_of(PROVIDER_WALLET))
    listing = answer.raise_for_status().json()
    assert listing["expires_in"] == 3600
    by_name = {file["name"]: file for file in listing["files"]}
    assert by_name.keys() == {NAME, *(f.name for f in DEMO_MODEL.glob("*.json"))} | {
        f.name for f in DEMO_MODEL.glob("*.safetensors")
    }
    assert by_name[NAME]["sha256"] == listing["manifest_sha256"]
    url = urlsplit(by_name["model.safetensors"]["url"])
    assert url.path == f"/{BUCKET}/{PREFIX}/model.safetensors"
    assert "X-Amz-Expires=3600" in url.query


async def test_nobody_else_is_told(gateway: Gateway) -> None:
    problem(await gateway.client.get(PATH), 403, "scope_missing")
    gateway.client.headers.pop("Authorization")
    problem(await gateway.client.get(PATH), 401, "token_missing")
    asked = {"wallet_address": PROVIDER.address, "model_id": MODEL_ID}
    signed = await challenge(gateway.client)
    message = signed_texts.weights_message(**asked, **signed)
    body = {
        "wallet_address": PROVIDER.address,
        "nonce": signed["nonce"],
        "expires_at": signed["expires_at"],
        "signature": signed_texts.sign(message, bytes(STRANGER.key)),
    }
    problem(await gateway.client.post(PATH, json=body), 401, "signature_mismatch")
    body["signature"] = signed_texts.sign(message, bytes(PROVIDER.key))
    assert (await gateway.client.post(PATH, json=body)).status_code == 200
    problem(await gateway.client.post(PATH, json=body), 401, "nonce_unknown")
    elsewhere = await challenge(gateway.client) | {"platform": "other.example"}
    message = signed_texts.weights_message(**asked, **elsewhere)
    body |= {"nonce": elsewhere["nonce"], "expires_at": elsewhere["expires_at"]}
    body["signature"] = signed_texts.sign(message, bytes(PROVIDER.key))
    problem(await gateway.client.post(PATH, json=body), 401, "signature_mismatch")


async def test_a_wallet_cannot_ask_without_end(
    make_settings: Callable[..., Settings], redis: Redis, s3: Any, checkpoint: Path
) -> None:
    publish(checkpoint, "--s3", f"{BUCKET}/{PREFIX}")
    settings = make_settings(
        **of_model(s3=f"{BUCKET}/{PREFIX}"), limits={"weights_per_wallet": "2/hour"}
    )
    async with open_gateway(settings) as gateway:
        headers = await gateway.node(PROVIDER_WALLET)
        for _ in range(2):
            assert (await gateway.client.get(PATH, headers=headers)).status_code == 200
        refused = await gateway.client.get(PATH, headers=headers)
        problem(refused, 429, "rate_limited")
        assert int(refused.headers["Retry-After"]) > 0


async def test_what_was_not_published_comes_from_the_hub(
    make_settings: Callable[..., Settings], redis: Redis, checkpoint: Path
) -> None:
    """Of a folder that holds no weights, the gateway needs the rest."""
    (checkpoint / "model.safetensors").unlink()
    settings = make_settings(**of_model(path=str(checkpoint)))
    async with open_gateway(settings) as gateway, serve(gateway) as served:
        headers = await gateway.node(PROVIDER_WALLET)
        refused = await gateway.client.get(PATH, headers=headers)
        assert problem(refused, 404, "weights_not_published")["repository"] == MODEL_ID
        with pytest.raises(WeightsNotPublished):
            await anyio.to_thread.run_sync(listing_of(served))
        files = await anyio.to_thread.run_sync(select_source, None, MODEL_ID, listing_of(served))
        assert files.name == MODEL_ID
        files.close()


async def test_a_store_that_does_not_answer_is_an_outage(gateway: Gateway, s3: Any) -> None:
    s3.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{NAME}")
    answer = await gateway.client.get(PATH, headers=await gateway.node(PROVIDER_WALLET))
    problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "30"


async def test_an_open_web_server_will_do(
    make_settings: Callable[..., Settings], redis: Redis, checkpoint: Path, tmp_path: Path
) -> None:
    publish(checkpoint)
    with serving(checkpoint) as web:
        settings = make_settings(**of_model(weights_url=web.url))
        async with open_gateway(settings) as gateway, serve(gateway) as served:
            token = (await gateway.node(PROVIDER_WALLET))["Authorization"].removeprefix("Bearer ")
            fetch = listing_of(served, token)
            made = await anyio.to_thread.run_sync(span_of, fetch, tmp_path / "spans")
    assert (made / "model.safetensors").exists()
    assert web.names == {NAME, "config.json", "model.safetensors"}


def test_urls_that_expire_are_asked_for_anew(checkpoint: Path, tmp_path: Path) -> None:
    """The first URLs are refused from the first piece of weights on, and that answer is cut."""
    publish(checkpoint)
    manifest_sha256 = _sha256(checkpoint / NAME)
    asked = []
    with serving(checkpoint) as web:
        web.tokens = {"key=0"}

        def listing() -> published_source.WeightListing:
            asked.append(None)
            key = f"key={len(asked) - 1}"
            web.tokens = {key}
            urls = {file.name: f"{web.url}/{file.name}?{key}" for file in checkpoint.iterdir()}
            return published_source.WeightListing(MODEL_ID, urls, manifest_sha256)

        expired = threading.Event()

        def expire() -> None:
            if not expired.is_set():
                expired.set()
                web.tokens = {"none"}

        web.faults.on_piece = expire
        web.faults.cuts = [2048]
        made, _ = prepare_span(
            MODEL_ID,
            layers=(2, 4),
            edge=False,
            cache=tmp_path / "spans",
            opened=lambda: published_source.open_published(listing),
        )
    assert (made / "model.safetensors").exists()
    assert len(asked) == 2


def test_publishing_again_uploads_what_changed(s3: Any, checkpoint: Path) -> None:
    publish(checkpoint, "--s3", f"{BUCKET}/{PREFIX}")

    def written() -> dict[str, Any]:
        found = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
        return {Path(one["Key"]).name: one["ETag"] for one in found}

    before = written()
    key = f"{PREFIX}/model.safetensors"
    s3.put_object_tagging(
        Bucket=BUCKET, Key=key, Tagging={"TagSet": [{"Key": "kept", "Value": "yes"}]}
    )
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    assert f's3: "{BUCKET}/{PREFIX}"' in publish(checkpoint, "--s3", f"{BUCKET}/{PREFIX}")
    after = written()
    assert {name for name in after if after[name] != before[name]} == {"config.json", NAME}
    assert s3.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"], "it was uploaded again"
    content = s3.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{NAME}")["Body"].read()
    assert read_manifest(content).files["config.json"].sha256 == _sha256(config)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
