"""A server that answers us by a byte now and then, or not at all, so that we wait for ever."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from market.chain.errors import ChainError
from market.chain.kms_signer import KmsSigner
from market.clients.http_reader import read_url
from node_runner.http_client import open_client
from node_runner.platform_client.errors import PlatformUnreachable
from node_runner.platform_client.http import request

TOTAL = 0.5
"""Seconds that an answer may take in these tests."""

PATIENCE = 20.0
"""Seconds within which each of them has ended on the busiest machine."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"


@contextmanager
def server(*, drips: bool) -> Iterator[str]:
    """The URL of a server that takes connections, and gives a byte each twentieth of a second, or
    nothing."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.sendall(HEAD)
                    while not ended.wait(0.05):
                        connection.sendall(b" ")
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        if drips:
            thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        if drips:
            thread.join()


def test_a_node_does_not_wait_for_an_answer_without_end() -> None:
    began = time.monotonic()
    with (
        server(drips=True) as url,
        open_client(url, silence=5, total=TOTAL) as http,
        pytest.raises(PlatformUnreachable),
    ):
        request(http, "GET", "/api/machines")
    assert TOTAL <= time.monotonic() - began < PATIENCE


def test_a_file_of_somebody_is_read_in_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market.clients.http_reader.TOTAL", TOTAL)
    began = time.monotonic()
    with server(drips=True) as url, pytest.raises(httpx.ReadTimeout):
        read_url(url, most=1_000_000)
    assert TOTAL <= time.monotonic() - began < PATIENCE


async def test_a_silent_kms_ends_a_settlement_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market.clients.aws.KMS_SILENCE", 0.2)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    began = time.monotonic()
    with server(drips=False) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        with pytest.raises(ChainError, match="KMS"):
            await KmsSigner.open("key", region="eu-central-1")
    assert time.monotonic() - began < PATIENCE
