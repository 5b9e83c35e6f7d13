"""The node's HTTP clients: the one place that opens them, and their time limits."""

import time
from collections.abc import Iterator, Mapping

import httpx

CONNECT_TIMEOUT = 10.0
"""Seconds for name, TCP and TLS, at most."""


def open_client(
    base_url: str = "",
    *,
    silence: float,
    total: float | None,
    connect: float = CONNECT_TIMEOUT,
    headers: Mapping[str, str] | None = None,
    follow_redirects: bool = False,
) -> httpx.Client:
    """A client to be closed after use. Proxies and certificates are the environment's.

    Args:
        silence: Seconds without a byte after which a request ends with `httpx.TimeoutException`.
        total: Seconds after which it ends so although bytes come; none for what is as long as the
            line is slow, such as weights.
        connect: Seconds for name, TCP and TLS, if those are fewer than ``silence``.
    """
    client = httpx.Client(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(silence, connect=min(connect, silence)),
        follow_redirects=follow_redirects,
    )
    if total is not None:
        deadline = _Deadline(total)
        client.event_hooks = {"request": [deadline.begin], "response": [deadline.limit]}
    return client


class _Deadline:
    """Ends an answer of which bytes come, but not its end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def begin(self, request: httpx.Request) -> None:
        request.extensions["ends_at"] = time.monotonic() + self._seconds

    def limit(self, response: httpx.Response) -> None:
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _LimitedStream(response.stream, response.request)


class _LimitedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._request.extensions["ends_at"]:
                raise httpx.ReadTimeout("The answer takes too long.", request=self._request)
            yield piece

    def close(self) -> None:
        self._stream.close()
