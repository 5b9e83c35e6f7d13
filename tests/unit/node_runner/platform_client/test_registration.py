"""A node registers, against a server that answers as it is told."""

import datetime as dt
import time
from dataclasses import replace

import httpx
import pytest
from eth_account import Account

from mesh import signed_texts
from mesh.node_api import NONCE_PATH, REGISTRATION_PATH, DhtAccess, NodeRegistration
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.registration import describe, register
from tests.support.gateway.platform_server import (
    REGISTERED,
    TEMPORARY,
    Answer,
    PlatformServer,
    problem,
)

NODE = NodeRegistration(
    wallet_address="0x" + "ab" * 20,
    model_id="m",
    start_layer=2,
    end_layer=4,
    gpu_model="CPU",
    vram_gb=0,
    public_addr="0.0.0.0:31330",
    location="unknown",
)


def domain(server: PlatformServer) -> dict[str, str]:
    """By which a platform knows itself that is who it says."""
    return {"domain": server.url.removeprefix("http://")}


TOKEN = "the machine's token"


def test_a_node_waits_for_whatever_may_pass(server: PlatformServer, http: httpx.Client) -> None:
    server.answers[REGISTRATION_PATH] = [*TEMPORARY.values(), Answer(200, REGISTERED)]
    node = register(http, NODE, TOKEN)
    assert node.node_id == "node_1"
    assert server.paths == [REGISTRATION_PATH] * (len(TEMPORARY) + 1)
    assert (node.span, node.node_token) == ((2, 4), "the node's token")
    assert {request.token for request in server.requests} == {TOKEN}


def test_it_waits_for_as_long_as_the_platform_asks(
    server: PlatformServer, http: httpx.Client
) -> None:
    limited = Answer(429, problem("rate_limited"), {"Retry-After": "1"})
    server.answers[REGISTRATION_PATH].insert(0, limited)
    began = time.monotonic()
    register(http, NODE, TOKEN)
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(("status", "code"), [(403, "forbidden"), (404, "model_not_found")])
def test_a_refusal_is_one(
    server: PlatformServer, http: httpx.Client, status: int, code: str
) -> None:
    server.answers[REGISTRATION_PATH] = [Answer(status, problem(code))]
    with pytest.raises(PlatformError, match=rf"What it says. \({code}\)"):
        register(http, NODE, TOKEN)


@pytest.mark.parametrize("placeable", [False, True])
def test_a_wallets_key_signs_what_is_registered(
    server: PlatformServer, http: httpx.Client, placeable: bool
) -> None:
    """Without layers, where the platform is to choose them."""
    account = Account.create()
    server.answers[NONCE_PATH] = [
        Answer(200, {"nonce": "once", "expires_in": 300} | domain(server))
    ]
    changes = {"start_layer": 0, "end_layer": None} if placeable else {}
    node = replace(NODE, wallet_address=account.address, placeable=placeable, **changes)
    register(http, node, bytes(account.key))
    body = server.requests[-1].body
    message = signed_texts.registration_message(
        platform=domain(server)["domain"],
        wallet_address=account.address,
        model_id="m",
        start_layer=None if placeable else 2,
        end_layer=None if placeable else 4,
        edge=False,
        nonce="once",
        expires_at=body["expires_at"],
    )
    assert body["nonce"] == "once"
    left = signed_texts.instant(body["expires_at"]) - dt.datetime.now(dt.UTC)
    assert 0 < left.total_seconds() <= 300
    assert signed_texts.signed_by(message, body["signature"], account.address)
    assert {request.token for request in server.requests} == {None}


def test_nothing_is_signed_for_another_platform(server: PlatformServer, http: httpx.Client) -> None:
    account = Account.create()
    challenge = {"nonce": "once", "expires_in": 300, "domain": "other.example"}
    server.answers[NONCE_PATH] = [Answer(200, challenge)]
    node = replace(NODE, wallet_address=account.address)
    with pytest.raises(PlatformError, match=r"wants a signature for 'other.example'"):
        register(http, node, bytes(account.key))
    assert server.paths == [NONCE_PATH]


def test_what_a_later_platform_tells_beside_is_left_aside(
    server: PlatformServer, http: httpx.Client
) -> None:
    access = {"credential": "c", "registration": 1, "operator_key": "k", "peers": ["p"]}
    told = {**REGISTERED, "status": "registered", "dht": {**access, "new": 1}}
    server.answers[REGISTRATION_PATH] = [Answer(200, told)]
    node = register(http, NODE, TOKEN)
    assert node.dht == DhtAccess(credential="c", registration=1, operator_key="k", peers=["p"])


def test_a_node_that_is_not_described_has_no_description(
    server: PlatformServer, http: httpx.Client
) -> None:
    node = register(http, NODE, TOKEN)
    server.answers["/api/nodes/node_1"] = [
        Answer(200, {"skipped": {}}),
        Answer(404, problem("node_not_found")),
        TEMPORARY["an outage"],
    ]
    assert [describe(http, node) for _ in range(3)] == [{"skipped": {}}, {}, {}]
    assert server.requests[-1].token == "the node's token"
