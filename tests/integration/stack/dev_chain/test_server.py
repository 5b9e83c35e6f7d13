"""What is no call, what is too much, and what browsers ask for."""

import json
import socket
from typing import Any

import httpx
import pytest

from stack.dev_chain import server
from stack.dev_chain.jsonrpc import MAX_BATCH
from tests.integration.stack.dev_chain.conftest import Ask

CALL = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}


def refusal(code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[1,", b"{'id': 1}", b"[" * 100_000, b"1" * 5000]
)
def test_what_is_no_json_is_a_parse_error(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/", content=body)
    assert (answer.status_code, answer.json()) == (200, refusal(-32700, "parse error"))


@pytest.mark.parametrize("body", [1, "eth_chainId", None, True, {}, {"id": 1}, {"method": "x"}])
def test_what_is_no_call_is_an_invalid_request(http: httpx.Client, body: Any) -> None:
    number = body.get("id") if isinstance(body, dict) else None
    expected = refusal(-32600, "invalid request") | {"id": number}
    assert http.post("/", content=json.dumps(body)).json() == expected


@pytest.mark.parametrize("field", [{"id": [1]}, {"jsonrpc": "1.0"}, {"method": 5}])
def test_a_call_whose_fields_are_of_other_types_is_invalid(
    http: httpx.Client, field: dict[str, Any]
) -> None:
    assert http.post("/", json=CALL | field).json()["error"]["code"] == -32600


def test_a_connection_outlives_its_errors(http: httpx.Client) -> None:
    for body in (b"{", b"1", b"[]", json.dumps(CALL).encode()):
        answer = http.post("/", content=body)
        assert answer.headers.get("connection") != "close"
    assert answer.json()["result"] == "0x7a69"


def test_batches_are_answered_call_by_call(http: httpx.Client) -> None:
    batch = [CALL, CALL | {"id": "two", "method": "eth_nothing"}, 3]
    answers = http.post("/", json=batch).json()
    assert [each["id"] for each in answers] == [1, "two", None]
    assert answers[0]["result"] == "0x7a69"
    assert [each["error"]["code"] for each in answers[1:]] == [-32601, -32600]


@pytest.mark.parametrize(
    ("batch", "message"), [([], "empty batch"), ([CALL] * (MAX_BATCH + 1), "batch too large")]
)
def test_batches_have_a_size(http: httpx.Client, batch: list[Any], message: str) -> None:
    assert http.post("/", json=batch).json() == refusal(-32600, message)


def test_notifications_are_not_answered(http: httpx.Client) -> None:
    notification = {"jsonrpc": "2.0", "method": "eth_chainId"}
    for body in (notification, [notification]):
        answer = http.post("/", json=body)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("eth_nothing", [], -32601, "the method eth_nothing does not exist/is not available"),
        ("eth_getBalance", [], -32602, "missing value for required argument 0"),
        ("eth_getBalance", [None], -32602, "missing value for required argument 0"),
        ("eth_chainId", [1], -32602, "too many arguments, want at most 0"),
        ("eth_getBalance", ["0x12"], -32602, "invalid argument 0: not the 20 bytes of an address"),
        ("eth_getBlockByNumber", ["newest"], -32602, None),
        ("eth_getBlockByNumber", ["0x1", 1], -32602, None),
        ("eth_getBlockByHash", ["0x01"], -32602, None),
        ("eth_call", [{"data": "0x1"}], -32602, None),
        ("eth_call", ["0x"], -32602, None),
        ("eth_call", [{"accessList": 5}], -32602, None),
        ("eth_call", [{"value": "0x" + "f" * 65}], -32602, None),
        ("eth_estimateGas", [{"gasPrice": "0x1", "maxFeePerGas": "0x1"}], -32602, None),
        ("eth_getLogs", [{"topics": [["0x12"]]}], -32602, None),
        ("eth_getLogs", [{"fromBlock": "0x2", "toBlock": "0x1"}], -32602, None),
        ("eth_feeHistory", ["0x1", "latest", [60, 40]], -32602, None),
        ("eth_getBalance", ["0x" + "0" * 40, "0xffffffff"], -32000, "header not found"),
    ],
)
def test_errors_are_those_of_geth(
    answer: Ask, method: str, params: list[Any], code: int, message: str | None
) -> None:
    found = answer(method, *params)["error"]
    assert found["code"] == code
    assert message in (None, found["message"])


def test_parameters_are_given_by_their_places(http: httpx.Client) -> None:
    answer = http.post("/", json=CALL | {"params": {"block": "latest"}}).json()
    assert answer["error"] == {"code": -32602, "message": "non-array args"}
    assert http.post("/", json=CALL | {"params": None}).json()["result"] == "0x7a69"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5173",
        "http://127.0.0.1:8000",
        "https://[::1]",
        "chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn",
    ],
)
def test_a_page_of_loopback_and_a_wallet_may_call(http: httpx.Client, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = http.options("/", headers=asked)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "*"
    answer = http.post("/", json=CALL, headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert answer.json()["result"] == "0x7a69"


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "http://localhost.example.com",
        "http://127.0.0.1.nip.io",
        "null",
        "http://[",
    ],
)
def test_a_page_of_elsewhere_may_not(http: httpx.Client, origin: str) -> None:
    for answer in (
        http.options("/", headers={"Origin": origin}),
        http.post("/", json=CALL, headers={"Origin": origin}),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_name_that_points_here_is_refused(http: httpx.Client) -> None:
    for host in ("example.com", "[", ""):
        assert http.post("/", json=CALL, headers={"Host": host}).status_code == 403
    for host in ("localhost", "127.0.0.1:8545", "[::1]:8545"):
        assert http.post("/", json=CALL, headers={"Host": host}).status_code == 200


def test_a_body_has_a_size_that_is_said(http: httpx.Client) -> None:
    for length, status in (
        (str(server.MAX_BODY + 1), 413),
        ("9" * 5000, 413),
        ("many", 411),
        (None, 411),
    ):
        with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as raw:
            said = "" if length is None else f"Content-Length: {length}\r\n"
            raw.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\n{said}\r\n".encode())
            assert raw.makefile("rb").readline().split()[1] == str(status).encode()


def test_a_body_that_does_not_come_ends_the_connection(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.RpcHandler, "timeout", 0.2)
    with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in raw.makefile("rb").read()
    with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as raw:
        assert raw.makefile("rb").read() == b"", "closed without a request"


def test_a_body_that_trickles_ends_the_connection(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_LIMIT", -1.0)
    with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in raw.makefile("rb").read()


def test_other_methods_of_http(http: httpx.Client) -> None:
    assert http.get("/").status_code == 200
    assert http.put("/").status_code == 501
