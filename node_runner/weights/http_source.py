"""Ranges of files over HTTP, retried and checked."""

import hashlib
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import httpx
import structlog

from mesh.checkpoint.manifest import Manifest
from mesh.errors import (
    WeightsChanged,
    WeightsCorrupt,
    WeightsError,
    WeightsMissing,
    WeightsRefused,
    WeightsUnreachable,
)
from node_runner.http_client import open_client
from node_runner.retry_after import retry_after
from node_runner.weights.source import BUFFER, MAX_SMALL_FILE, Version

log = structlog.get_logger()

T = TypeVar("T")

SILENCE = 30.0
"""Seconds; without a byte for that long, a connection counts as cut."""


NO_COMPRESSION = {"Accept-Encoding": "identity"}
"""Ranges count bytes of the file itself, and not of a compressed answer."""

RETRYABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504)


DENIED_STATUSES = (401, 403)

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How many attempts in a row may bring nothing, and the seconds between two: at random up to
    ``first``, doubled each time, up to ``longest``."""

    attempts: int = 8
    first: float = 1.0
    longest: float = 30.0

    def delay(self, failures: int) -> float:
        return random.uniform(0, min(self.longest, self.first * 2 ** (failures - 1)))


RETRY_POLICY = RetryPolicy()


class FileUrls(Protocol):
    """Where the files of a source are."""

    name: str

    def url_of(self, file: str) -> tuple[str, dict[str, str]]:
        """A file's URL, and headers for it.

        Raises:
            WeightsMissing: there is none of that name.
        """
        ...

    def on_response(self, file: str, response: httpx.Response) -> None:
        """Take note of a response with that file; ``response.history`` has its redirects."""
        ...

    def renew(self, file: str, refused: str) -> bool:
        """Whether there is another URL to try, where ``refused`` was answered with 401 or 403."""
        ...


class HttpSource:
    """A source of files at HTTP addresses. May be used by several threads."""

    def __init__(
        self,
        urls: FileUrls,
        *,
        manifest: Manifest | None = None,
    ) -> None:
        self.name = urls.name
        self.manifest = manifest
        self._urls = urls
        self._http = open_client(silence=SILENCE, total=None, follow_redirects=True)
        self._closed = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._sockets_lock = threading.Lock()

    def read_small(self, name: str) -> bytes:
        """See :class:`node_runner.weights.source.Source`."""
        content = self._with_retries(name, lambda: self._read_whole(name))
        known = self.manifest.files.get(name) if self.manifest is not None else None
        if known is not None and hashlib.sha256(content).hexdigest() != known.sha256:
            raise WeightsCorrupt(f"{name} of {self.name} is not what was published.")
        return content

    def head(self, name: str, length: int) -> tuple[Version, bytes]:
        """See :class:`node_runner.weights.source.Source`."""
        return self._with_retries(name, lambda: self._read_beginning(name, length))

    def stream(self, name: str, version: Version, start: int, end: int) -> Iterator[bytes]:
        """See :class:`node_runner.weights.source.Source`. After a cut it goes on from the byte that
        is missing."""
        retries = _Retries(name, self._urls, self._closed)
        while start < end:
            with retries, self._ask(name, _range(version, start, end)) as answer:
                _check_range(answer, name, version, start, end)
                for piece in _body(answer, end - start):
                    start += len(piece)
                    retries.reset()
                    yield piece

    def close(self) -> None:
        """See :class:`node_runner.weights.source.Source`."""
        self._closed.set()
        with self._sockets_lock:
            for each in self._sockets:
                with suppress(OSError):  # it is closed already
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
        self._http.close()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Keep each socket that a thread may be reading from: closing a socket does not wake the
        thread, a shutdown does."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._sockets_lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))

    def _with_retries(self, name: str, ask: Callable[[], T]) -> T:
        retries = _Retries(name, self._urls, self._closed)
        while True:
            with retries:
                return ask()

    def _read_whole(self, name: str) -> bytes:
        with self._ask(name, {}) as answer:
            if answer.status_code != httpx.codes.OK:
                raise WeightsRefused(f"{name}: {self.name} answered {answer.status_code}.")
            content = bytearray()
            for piece in answer.iter_raw(BUFFER):
                content += piece
                if len(content) > MAX_SMALL_FILE:
                    raise WeightsRefused(f"{name} of {self.name} is larger than it may be.")
            return bytes(content)

    def _read_beginning(self, name: str, length: int) -> tuple[Version, bytes]:
        with self._ask(name, {"Range": f"bytes=0-{length - 1}"}) as answer:
            start, end, size = _content_range(answer, name)
            if (start, end) != (0, min(length, size)):
                raise WeightsRefused(f"{name}: another range came than was asked for.")
            return Version(size, _tag(answer)), b"".join(_body(answer, end))

    @contextmanager
    def _ask(self, name: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """An answer of another status than those below, its body still to be read.

        Raises:
            _Retryable: the server is busy or broken.
            _AccessDenied: the URL is not allowed to us.
            WeightsMissing: no such file.
        """
        url, own = self._urls.url_of(name)
        with self._http.stream(
            "GET",
            url,
            headers={**NO_COMPRESSION, **own, **headers},
            extensions={"trace": self._trace},
        ) as answer:
            status = answer.status_code
            if status in RETRYABLE_STATUSES:
                raise _Retryable(f"HTTP {status}", retry_after(answer))
            if status in DENIED_STATUSES:
                raise _AccessDenied(url, f"{self.name} refuses {name} (HTTP {status}).")
            if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                raise WeightsMissing(f"{self.name} has no {name}.")
            self._urls.on_response(name, answer)
            yield answer


class _Retryable(Exception):
    """Worth another attempt; ``wait``: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.wait = wait


class _AccessDenied(Exception):
    """A URL that is not allowed to us, or not any more."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(reason)
        self.url = url


class _Retries:
    """The attempts of one request, each a `with` block that swallows a failure after a delay, up to
    a number in a row.

    ``closed``: set once nobody wants the file any more; no attempt begins then.
    """

    def __init__(self, name: str, urls: FileUrls, closed: threading.Event) -> None:
        self._name = name
        self._urls = urls
        self._closed = closed
        self.reset()

    def reset(self) -> None:
        """Count failures anew, since bytes came."""
        self._failures, self._renewed = 0, False

    def __enter__(self) -> None:
        if self._closed.is_set():
            raise WeightsError(f"{self._name} is not fetched any more.")

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        if isinstance(error, _AccessDenied):
            if self._renewed or not self._urls.renew(self._name, error.url):
                raise WeightsError(str(error)) from None
            self._renewed = True
            return True
        if not isinstance(error, httpx.TransportError | _Retryable):
            if isinstance(error, httpx.HTTPError):  # such as a ring of redirects
                raise WeightsRefused(f"{self._urls.name}: {error}") from None
            return False
        if self._closed.is_set():
            return True
        self._failures += 1
        reason = str(error) or type(error).__name__
        if self._failures >= RETRY_POLICY.attempts:
            raise WeightsUnreachable(
                f"{self._urls.name} does not give {self._name}: {reason} "
                f"({self._failures} attempts)."
            ) from None
        delay = RETRY_POLICY.delay(self._failures)
        if isinstance(error, _Retryable):
            delay = max(delay, error.wait)
        log.warning("weights_interrupted", file=self._name, reason=reason, retry_in=round(delay, 1))
        self._closed.wait(delay)
        return True


def _range(version: Version, start: int, end: int) -> dict[str, str]:
    headers = {"Range": f"bytes={start}-{end - 1}"}
    if version.tag.startswith('"'):  # a strong ETag; the server sends all of it if it changed
        headers["If-Range"] = version.tag
    return headers


def _check_range(answer: httpx.Response, name: str, version: Version, start: int, end: int) -> None:
    tag = _tag(answer)
    known = version.tag.startswith('"') and tag.startswith('"')
    if answer.status_code == httpx.codes.PRECONDITION_FAILED or (known and tag != version.tag):
        raise WeightsChanged(f"{name} changed while it was fetched. Start again.")
    got_start, got_end, size = _content_range(answer, name)
    if size != version.size:
        raise WeightsChanged(f"{name} has {size} bytes now; it had {version.size}.")
    if (got_start, got_end) != (start, end):
        raise WeightsRefused(
            f"{name}: asked for bytes {start} to {end}, got {got_start} to {got_end}."
        )


def _content_range(answer: httpx.Response, name: str) -> tuple[int, int, int]:
    """Start, end (not included) and the file's size, by the header Content-Range."""
    if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WeightsChanged(f"{name} is shorter than it was. Start again.")
    if answer.status_code == httpx.codes.OK:
        raise WeightsRefused(
            f"{name}: {answer.url.host} sends whole files only (it ignores Range). "
            "Weights have to lie on a server that gives ranges."
        )
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code != httpx.codes.PARTIAL_CONTENT or match is None:
        raise WeightsRefused(f"{name}: {answer.url.host} answered {answer.status_code}, no range.")
    start, last, size = map(int, match.groups())
    return start, last + 1, size


def _body(answer: httpx.Response, length: int) -> Iterator[bytes]:
    """Exactly ``length`` bytes of an answer's body.

    Raises:
        WeightsRefused: more came than was asked for.
        _Retryable: fewer.
    """
    got = 0
    for piece in answer.iter_raw(BUFFER):
        got += len(piece)
        if got > length:
            raise WeightsRefused(f"{answer.url.host} sends more bytes than it was asked for.")
        yield piece
    if got < length:
        raise _Retryable("the answer ended early", 0.0)


def _tag(answer: httpx.Response) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
