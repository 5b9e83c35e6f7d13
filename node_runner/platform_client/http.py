"""One request to the platform: bearer token, limits of time and size, and what its answer means."""

from collections.abc import Collection
from typing import Any

import httpx

from mesh import json_text
from node_runner.http_client import open_client
from node_runner.platform_client.errors import PlatformError, PlatformRefused, PlatformUnreachable
from node_runner.retry_after import retry_after

TIMEOUT = 15.0
"""Seconds without a byte, while a person waits."""

TOTAL_TIMEOUT = 120.0
"""Seconds for one request: the largest, of `far-node doctor`, over a line of 1 Mbit/s."""

MAX_ANSWER = 4 * 2**20
"""Bytes of an answer; the largest has a signed URL for each of some thousand files."""

PROBLEM_FIELDS = frozenset({"code", "detail"})
"""Fields that each of the platform's refusals has."""


def client(url: str, *, timeout: float = TIMEOUT) -> httpx.Client:
    """The platform at a URL, to be closed after use. May be used by several threads.

    Raises:
        PlatformError: not a URL.
    """
    if not url.startswith(("http://", "https://")):
        raise PlatformError(f"The platform's URL begins with https:// (or http://); got {url!r}.")
    return open_client(url.rstrip("/"), silence=timeout, total=TOTAL_TIMEOUT)


def request(
    http: httpx.Client,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    required: Collection[str] = (),
) -> dict[str, Any]:
    """The answer's JSON object; an empty one where there is no content.

    Args:
        required: Fields that the answer has to have: without them it is not the platform's.

    Raises:
        PlatformUnreachable: no answer, an outage, a rate limit, or an answer that is not the
            platform's, such as a proxy's or a login page's.
        PlatformRefused: the platform says no.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with http.stream(method, path, json=body, headers=headers) as response:
            document = _document(response)
    except httpx.HTTPError as error:
        raise PlatformUnreachable(
            f"{http.base_url} does not answer ({type(error).__name__}). Is the URL right, and this "
            "machine online?"
        ) from error
    if response.is_success and document is not None and document.keys() >= set(required):
        return document
    if response.is_success or document is None or not document.keys() >= PROBLEM_FIELDS:
        raise PlatformUnreachable(
            f"{http.base_url} answers, but not as the platform does (HTTP {response.status_code})."
        )
    refused = PlatformRefused(document, status=response.status_code)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        raise PlatformUnreachable(str(refused), retry_after=retry_after(response))
    raise refused


def _document(response: httpx.Response) -> dict[str, Any] | None:
    """The body's JSON object; none if it is something else, or larger than any of the platform's.

    Raises:
        httpx.HTTPError: the connection broke within it.
    """
    if response.status_code == httpx.codes.NO_CONTENT:
        return {}
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > MAX_ANSWER:
            return None
    try:
        found = json_text.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
