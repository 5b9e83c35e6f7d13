"""Questions to the platform from the command line: one request, one answer, or a clear refusal."""

from typing import Any

import httpx

from node_runner.platform_client.errors import PlatformRefused
from node_runner.platform_client.registration import PlatformError, PlatformUnreachable

TIMEOUT = 15.0
"""Seconds."""


def client(url: str) -> httpx.Client:
    """
    Raises:
        PlatformError: not a URL.
    """
    if not url.startswith(("http://", "https://")):
        raise PlatformError(f"The platform's URL begins with https:// (or http://); got {url!r}.")
    return httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT)


def ask(
    http: httpx.Client, method: str, path: str, body: Any = None, *, token: str | None = None
) -> Any:
    """The answer's document; none where it is empty.

    Raises:
        PlatformUnreachable: no answer, or none that is ours.
        Refused: the platform says no.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = http.request(method, path, json=body, headers=headers)
    except httpx.HTTPError as error:
        raise PlatformUnreachable(
            f"{http.base_url} does not answer ({type(error).__name__}). Is the URL right, and this "
            "machine online?"
        ) from None
    if answer.status_code == httpx.codes.NO_CONTENT:
        return None
    try:
        document = answer.json()
    except ValueError:
        raise PlatformUnreachable(
            f"{http.base_url} answers, but not as the platform does (HTTP {answer.status_code})."
        ) from None
    if answer.is_error:
        detail, code = f"HTTP {answer.status_code}", ""
        if isinstance(document, dict):
            detail, code = str(document.get("detail", detail)), str(document.get("code", ""))
        raise PlatformRefused(detail, code=code, status=answer.status_code)
    return document
