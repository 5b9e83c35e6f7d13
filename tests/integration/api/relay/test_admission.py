"""Who may connect, and what a node's token opens besides."""

import json
import re

import httpx
import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mesh import relay
from mesh.relay import (
    Hello,
)
from tests.support.gateway.api import WALLET
from tests.support.gateway.relay import (
    PATIENCE,
    Replica,
    bearer,
    websocket_url,
)


def test_only_a_node_gets_in(here: Replica, client: redis.Redis) -> None:
    tokens = {
        "": 401,
        "nonsense": 401,
        here.token(WALLET, "user"): 403,
        here.token(WALLET, "machine"): 403,
    }
    for token, status in tokens.items():
        headers = bearer(token) if token else {}
        with pytest.raises(InvalidStatus) as refused:
            connect(websocket_url(here), additional_headers=headers)
        assert refused.value.response.status_code == status
        answer = httpx.post(here.url + relay.EXCHANGE_PATH, content=b"", headers=headers)
        assert answer.status_code == status


def test_a_token_is_over_when_the_node_registers_again(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("twice"))
    here.register_again("twice")
    with pytest.raises(InvalidStatus) as refused:
        connect(websocket_url(here), additional_headers=headers)
    hello = relay.bundle([relay.encode(Hello(relay.VERSION, "session", ""))])
    answer = httpx.post(here.url + relay.EXCHANGE_PATH, content=hello, headers=headers)
    for status, body in (
        (refused.value.response.status_code, refused.value.response.body),
        (answer.status_code, answer.content),
    ):
        assert (status, json.loads(body or b"{}")["code"]) == (401, "token_invalid")


OWN = {
    relay.EXCHANGE_PATH,
    "/api/nodes/heartbeat",
    "/nodes/heartbeat",
    "/api/nodes/req_1",
    "/api/models/req_1/files",
}


def test_a_nodes_token_opens_nothing_else(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("middle"))
    guarded = 0
    with httpx.Client(base_url=here.url, timeout=PATIENCE) as http:
        for path, method in endpoints(http):
            body = {} if method in ("get", "delete") else {"json": {}}
            without = http.request(method, path, **body)
            if path in OWN or without.status_code != httpx.codes.UNAUTHORIZED:
                continue  # it is for nodes, or for everybody
            assert http.request(method, path, headers=headers, **body).status_code == 403, path
            guarded += 1
    assert guarded >= 5


def endpoints(http: httpx.Client) -> list[tuple[str, str]]:
    """All that there are, with something for their parameters."""
    paths = http.get("/openapi.json").json()["paths"]
    return [
        (re.sub(r"\{[^}]*\}", "req_1", path), method)
        for path, methods in paths.items()
        for method in methods
    ]
