"""A stranger begins requests and does not finish them: bodies a byte at a time, headers without
end, requests behind requests."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis

from api.server.http_protocol import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED
from market.settings import Settings
from tests.support.gateway.relay import PATIENCE, Replica, replica, wait_until

PROBE = "/api/discovery/probe"
"""Takes long bodies of anybody."""


def begun(at: Replica, *headers: str, address: str = "127.0.0.1") -> socket.socket:
    """A connection on which a request was begun, from an address of this machine."""
    connection = socket.create_connection(
        ("127.0.0.1", at.port), timeout=PATIENCE, source_address=(address, 0)
    )
    lines = [f"POST {PROBE} HTTP/1.1", "Host: gateway", "Content-Type: application/json", *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(2**16):
            received += data
    return received


@pytest.fixture
def impatient(make_settings: Callable[..., Settings], client: redis.Redis) -> Iterator[Replica]:
    with replica(make_settings(limits={"transfer_grace": 0.5, "transfer_seconds": 3})) as started:
        yield started


@pytest.mark.parametrize(
    ("headers", "crumb"),
    [
        (["Content-Length: 1000000"], b"x"),
        (["Transfer-Encoding: chunked"], b"1\r\nx\r\n"),
    ],
)
def test_a_body_that_trickles_in_is_refused(
    impatient: Replica, headers: list[str], crumb: bytes
) -> None:
    with begun(impatient, *headers) as connection:
        connection.settimeout(0.05)
        received, give_up = b"", time.monotonic() + PATIENCE
        while not received:
            assert time.monotonic() < give_up, "it may trickle for ever"
            connection.sendall(crumb)
            with contextlib.suppress(TimeoutError):
                received = connection.recv(2**16)
        connection.settimeout(PATIENCE)
        received += answer(connection)
    assert b" 408 " in received
    assert b"transfer_too_slow" in received
    assert b"connection: close" in received.lower()
    assert impatient.transfer_bytes == 0


def test_a_body_that_comes_at_its_least_rate_has_a_deadline_all_the_same(
    impatient: Replica,
) -> None:
    began = time.monotonic()
    with begun(impatient, "Content-Length: 1000000") as connection:
        connection.settimeout(0.1)
        received = b""
        while not received:
            assert time.monotonic() - began < PATIENCE
            connection.sendall(bytes(4096))  # 40 KiB a second, where 16 are enough
            with contextlib.suppress(TimeoutError):
                received = connection.recv(2**16)
    assert b" 408 " in received
    assert time.monotonic() - began > 2


def test_who_fills_the_budget_stops_himself(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    limits = {"max_transfer_bytes": 2**19}
    with replica(make_settings(limits=limits)) as here, contextlib.ExitStack() as several:
        half = bytes(100_000)
        greedy = []
        for _ in range(12):
            connection = several.enter_context(
                begun(here, "Content-Length: 200000", address="127.0.0.2")
            )
            with contextlib.suppress(ConnectionError):
                connection.sendall(half)
            greedy.append(connection)
        wait_until(lambda: here.transfer_bytes > 300_000)
        assert here.transfer_bytes <= 2**19
        honest = httpx.post(here.url + PROBE, content=b" " * 250_000, timeout=PATIENCE)
        assert honest.json() == {"bytes": 250_000}
        assert here.transfer_bytes <= 2**19
        sent_away = [connection for connection in greedy if is_closed(connection)]
        assert len(sent_away) >= 7


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return b" 503 " in connection.recv(2**16)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "crumb",
    [b"X-Name: " + b"v" * 1000 + b"\r\n", b"v" * 1000],
    ids=["many headers", "one header"],
)
@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: gateway\r\nX-Long: ",
        b"GET /" + b"u" * 100,
        b"POST /api/discovery/probe HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\nX-Trailer: ",
        b"POST /api/discovery/probe HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1;extension=",
    ],
    ids=["header", "path", "trailer", "chunk extension"],
)
def test_headers_have_an_end(here: Replica, start: bytes, crumb: bytes) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", here.port), timeout=PATIENCE) as connection:
        connection.sendall(start)
        with contextlib.suppress(ConnectionError):
            while sent < 16 * MAX_HEAD_BYTES:
                connection.sendall(crumb)
                sent += len(crumb)
                time.sleep(0)
            sent = 0
            answer(connection)
            sent = 1
    assert sent, "the server takes whatever comes"
    assert httpx.get(here.url + "/healthz").status_code == 200


def test_requests_do_not_pile_up_behind_one(here: Replica) -> None:
    one = b"GET /api/auth/nonce HTTP/1.1\r\nHost: gateway\r\n\r\n"
    with socket.create_connection(("127.0.0.1", here.port), timeout=PATIENCE) as connection:
        connection.sendall(one * 1000)
        received = answer(connection)
    assert received.count(b"HTTP/1.1 ") <= MAX_PIPELINED + 1


LIST = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
TRAILERS = (
    b"POST /api/discovery/probe HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
)


@pytest.mark.parametrize("start", [LIST, TRAILERS], ids=["headers", "trailers"])
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["complete", "not complete"])
def test_short_header_fields_are_counted(here: Replica, start: bytes, end: bytes) -> None:
    with socket.create_connection(("127.0.0.1", here.port), timeout=PATIENCE) as connection:
        connection.sendall(start + b"a:\r\n" * (MAX_FIELDS + 1) + end)
        assert answer(connection).split()[1] == b"400"


@pytest.mark.parametrize("start", [LIST, TRAILERS], ids=["headers", "trailers"])
def test_some_header_fields_are_not_too_many(here: Replica, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", here.port), timeout=PATIENCE) as connection:
        connection.sendall(start + b"a:\r\n" * (MAX_FIELDS - 10) + b"\r\n")
        assert answer(connection).split()[1] == b"200"
